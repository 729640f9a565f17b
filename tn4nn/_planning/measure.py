"""Native plans measured on random numbers, interleaved: what else runs on the machine slows all of them alike."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._runtime.native import Native, native
from .plan import Plan, replaced

_MEASURED, _OTHERS = 8, 2  # candidates that are measured; of these, with other batch tiles than the best have
_TIE = 1.03  # times the fastest: two measurements of one plan differ by as much
_HOPELESS = 1.3  # times the fastest: a candidate that slow is not run again


def worth_measuring(found: Sequence[Plan]) -> list[Plan]:
    """The best of all candidates, and the best with batch tiles that none of these has, since the price of a tile is
    what the cost model knows least."""
    first: dict[int, int] = {}
    for i, p in enumerate(found):
        first.setdefault(p.block, i)
    best = {*range(_MEASURED - _OTHERS), *first.values()}
    chosen = sorted(range(len(found)), key=lambda i: i not in best)[:_MEASURED]
    return [found[i] for i in sorted(chosen)]


def measured(found: Sequence[Plan]) -> list[Plan]:
    """Native plans of one request in the order of their measured times; as they were where there is no runtime."""
    runs = runs_of(found)
    if runs is None:
        return list(found)
    result = [replaced(p, measured_s=s) for p, s in zip(found, interleaved(runs), strict=True)]
    return sorted(result, key=lambda p: p.measured_s or 0.0)


def fastest_of(found: Sequence[Plan]) -> Plan:
    """The fastest of plans in the order of their measured times; where several are as fast as can be told, the one
    that is predicted to be fastest."""
    least = found[0].measured_s or 0.0
    tied = [p for p in found if (p.measured_s or 0.0) <= _TIE * least]
    return min(tied, key=lambda p: p.cost.predicted_s)


def runs_of(found: Sequence[Plan]) -> list[Callable[[], object]] | None:
    """What runs each of the native plans once, all on the same random numbers: a plan finds them in the caches as the
    one before has left them, however many there are. None where there is no runtime."""
    natives = [native(p.recipe) for p in found]
    ready = [runtime for runtime in natives if runtime is not None]
    if len(ready) < len(found) or not ready:
        return None if len(ready) < len(found) else []
    request = found[0].request
    network, batch, train, threads = request.network, request.batch, request.phase == "train", request.target.threads
    rng, kind = np.random.default_rng(0), np.float32 if request.itemsize == 4 else np.float64
    t, sizes = network.topology, network.sizes
    cores = [rng.standard_normal([sizes[leg] for leg in core.legs], dtype=kind) for core in t.cores]
    x = rng.standard_normal((batch, math.prod(t.inputs.values())), dtype=kind)
    y = rng.standard_normal((batch, math.prod(t.outputs.values())), dtype=kind)
    gy, gx, grads = np.ones_like(y), np.empty_like(x), [np.empty_like(c) for c in cores]
    saved = np.empty(max((runtime.saved(batch) for runtime in ready), default=0) if train else 0, kind)
    arrays = (cores, x, y, gy, gx, saved, grads)
    at, to = [c.ctypes.data for c in cores], [g.ctypes.data for g in grads]
    views = [array.ctypes.data for array in (x, y, gy, gx)]

    def run(runtime: Native, memory: int) -> object:
        runtime.forward(batch, at, memory, views[0], views[1], threads)
        if train:
            runtime.backward(batch, at, memory, views[0], views[2], views[3], to, (True,) * (1 + len(to)), threads)
        return arrays  # alive as long as the function is

    # What is looked up here is not measured.
    return [
        functools.partial(run, runtime, saved.ctypes.data if train and runtime.saved(batch) else 0) for runtime in ready
    ]


def interleaved(runs: Sequence[Any], least: float = 2e-3, rounds: int = 5) -> list[float]:
    """The least seconds of each, over rounds that go through all that are still in sight of the fastest."""
    best, repeats = [math.inf] * len(runs), [1] * len(runs)
    for number in range(rounds + 1):
        ahead = _HOPELESS * min(best, default=math.inf)
        for i, run in enumerate(runs):
            if best[i] > ahead and number > 2:  # one slow round may be the machine's fault
                continue
            if not number:
                run()  # the very first call meets fresh memory
            start = time.perf_counter()
            for _ in range(repeats[i]):
                run()
            spent = (time.perf_counter() - start) / repeats[i]
            if number:  # the first time only says how long a call takes
                best[i] = min(best[i], spent)
            else:
                repeats[i] = max(1, min(1000, int(least / max(1e-7, spent))))
    return best
