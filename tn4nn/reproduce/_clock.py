"""Times of several ways to do one thing: interleaved rounds, so that what slows the machine slows all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Call = Callable[[], object]  # returns when all is done


def interleaved(
    calls: Mapping[str, Call], *, rounds: int, slot_s: float = 5e-3, most_s: float = 2.0
) -> dict[str, list[float]]:
    """Seconds of one call, by name and round; each round starts with another one.

    Args:
        calls: by name; each is called once before anything is timed.
        rounds: fewer, but 3 at least, where they would take longer than `most_s`.
        slot_s: short calls are repeated to fill it.
        most_s: see `rounds`.
    """
    repeats, round_s = {}, 0.0
    for name, call in calls.items():
        call()
        once = _seconds(call, 1)
        repeats[name] = max(1, min(1000, math.ceil(slot_s / max(once, 1e-7))))
        round_s += repeats[name] * once
    count = max(3, min(rounds, int(most_s / max(round_s, 1e-9))))
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(count):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(_seconds(calls[name], repeats[name]))
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios within the rounds.

    Example:
        >>> ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        (2.0, 2.0, 2.5)
    """
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(above, below, strict=True)], n=4, method="inclusive"
    )
    return low, middle, high


def _seconds(call: Call, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats
