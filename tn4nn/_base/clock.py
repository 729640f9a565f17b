"""Times of functions that do the same thing, in interleaved rounds: what slows the machine slows all of them."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Call = Callable[[], object]  # returns when all is done


def rounds_of(
    runs: Mapping[str, Callable[[int], object]], repeats: Mapping[str, int], count: int
) -> dict[str, list[float]]:
    """Seconds of one call, by name and round.

    Each round has an order of its own: what a call leaves behind (threads that still spin, a cache full of its numbers)
    is paid by the one that comes next, which must not always be the same.

    Args:
        runs: by name, what calls that often and returns when all is done.
        repeats: calls of each in a round.
        count: rounds.
    """
    names, order = list(runs), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(count):
        order.shuffle(names)
        for name in names:
            begin = time.perf_counter()
            runs[name](repeats[name])
            times[name].append((time.perf_counter() - begin) / repeats[name])
    return times


def interleaved(
    calls: Mapping[str, Call], *, rounds: int, slot_s: float = 5e-3, most_s: float = 2.0
) -> dict[str, list[float]]:
    """Seconds of one call, by name and round (see `rounds_of`).

    Args:
        calls: by name; each is called once before anything is timed.
        rounds: fewer, but 3 at least, where they would take longer than `most_s`.
        slot_s: short calls are repeated to fill it.
        most_s: see `rounds`.
    """
    repeats, round_s = {}, 0.0
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        once = time.perf_counter() - begin
        repeats[name] = max(1, min(1000, math.ceil(slot_s / max(once, 1e-7))))
        round_s += repeats[name] * once
    count = max(3, min(rounds, int(most_s / max(round_s, 1e-9))))
    runs = {name: _repeated(call) for name, call in calls.items()}
    return rounds_of(runs, repeats, count)


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios within the rounds.

    Examples:
        >>> ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
        (2.0, 2.0, 2.5)
    """
    low, middle, high = statistics.quantiles(
        [a / b for a, b in zip(above, below, strict=True)], n=4, method="inclusive"
    )
    return low, middle, high


def _repeated(call: Call) -> Callable[[int], None]:
    def run(times: int) -> None:
        for _ in range(times):
            call()

    return run
