"""The figures of the cost model for this processor, fitted to what the native runtime takes on it.

The predicted seconds of a way are a sum of multiply-adds, tiles, vectors, strided reads, tasks, calls and bytes, each
times one figure of `Machine`. So ways of a few networks are run, and these figures are fitted to their times: by least
squares of the relative errors, each figure within a tenth and ten times its default. The cost model itself says how
many of each a way has, by pricing it with one figure at a time.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _catalogue as catalogue
from ._compiled import processor, vector_bytes
from ._errors import TN4NNError
from ._files import atomic_write, cache_folder
from ._native import runtime
from ._native_plan import Way, _Pricer, candidates, measured
from ._network import Network
from ._plan import Machine
from ._topology import fingerprint_of

FIGURES = ("tile_macs_per_s", "tile_s", "vector_s", "far_s", "task_s", "call_s", "memory_bytes_per_s")
_RATES = ("tile_macs_per_s", "memory_bytes_per_s")  # per second; the others are seconds
_RANGE = 10.0  # how far from its default a figure may go
_RIDGE = 3e-4  # pull to the default, for figures that the samples say little about
_LONGEST = 0.02  # seconds: a way that is predicted to take longer is no sample
_SHORTEST = 3e-6  # seconds: what takes less is nothing but the call from Python
_HELD = 3  # one sample in so many is held out of the fit, drawn with a fixed seed
_SCHEMA = 1

Times = dict[str, float]  # figure -> seconds that it explains, at its default


class Sample(NamedTuple):
    """One way that was run: what it is, the seconds that each figure explains at its default, the measured seconds."""

    text: str
    times: Times
    measured_s: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a calibration found; the default figures where no others were better on the ways held out.

    Attributes:
        machine: figures for `plan(machine=...)`.
        before: median of |predicted / measured - 1| over samples that were held out, with the default figures.
        after: the same with the fitted figures.
        samples: how many ways were run.
        seconds: how long it took.
    """

    machine: Machine
    before: float
    after: float
    samples: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The calibration as plain data."""
        return {"schema": _SCHEMA, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        own, default = self.machine, Machine()
        lines = [
            f"Calibrated on {self.samples} ways in {self.seconds:.1f} s; median error on those held out "
            f"{self.before:.0%} with the default figures, {self.after:.0%} with these:"
        ]
        lines += [
            f"  {name:<16} {getattr(own, name):>10.3g}  (default {getattr(default, name):.3g})" for name in FIGURES
        ]
        return "\n".join(lines)


def calibrate(
    *, itemsize: int = 4, time_limit: float = 40.0, progress: Callable[[str], None] | None = None
) -> Calibration:
    """Measures this processor for the cost model of the native runtime, and keeps the figures in the cache folder.

    Ways of a dozen small networks are run in one thread; `calibrated` gives the figures later on. The planner reads
    them where no `machine=` is passed.

    Args:
        itemsize: 4 or 8 bytes of a number.
        time_limit: seconds after which no further network is run.
        progress: called with a line of text for each network.

    Raises:
        TN4NNError: there is no native runtime (no compiler, or another itemsize), or the limit left too few samples.

    Example:
        >>> import tn4nn as tn
        >>> machine = tn.calibrated() or tn.Machine()
        >>> tn.plan(tn.low_rank(64, 64).with_rank(4), 32, runtime="native", machine=machine).runtime
        'native'
    """
    if runtime(itemsize) is None:
        raise TN4NNError(
            "calibrating measures the native runtime, which needs a C compiler (install gcc) and itemsize 4 or 8, "
            f"received itemsize={itemsize}"
        )
    start = time.perf_counter()
    machine = Machine(vector_bytes=vector_bytes())
    samples: list[Sample] = []
    for network, batches in _networks():
        if time.perf_counter() - start > time_limit:
            break
        for batch in batches:
            samples += _samples(network, batch, itemsize, machine)
        if progress is not None:
            progress(f"calibrating: {network.topology.name}, {len(samples)} ways, {time.perf_counter() - start:.1f} s")
    if len(samples) < 4 * len(FIGURES):
        raise TN4NNError(f"{time_limit} seconds were enough for {len(samples)} ways: allow more time")
    factors, before, after = judged(samples)
    found = Calibration(scaled(machine, factors), before, after, len(samples), time.perf_counter() - start)
    atomic_write(_file(itemsize), json.dumps(found.to_dict()).encode())
    return found


def calibrated(*, itemsize: int = 4) -> Machine | None:
    """The figures that `calibrate` has kept for this processor, or None where there are none that can be read.

    Example:
        >>> import tn4nn as tn
        >>> isinstance(tn.calibrated() or tn.Machine(), tn.Machine)
        True
    """
    try:
        data = json.loads(_file(itemsize).read_bytes())
        machine = Machine(**data["machine"])
        sound = data["schema"] == _SCHEMA and all(getattr(machine, name) > 0 for name in FIGURES)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return machine if sound else None


def _file(itemsize: int) -> Path:
    return cache_folder() / "machines" / f"{fingerprint_of([processor(), itemsize])}.json"


# -- what is run ------------------------------------------------------------------------------------------------


def _networks() -> Iterator[tuple[Network, tuple[int, ...]]]:
    """Small and large products, long chains of small ones, hyperedges; each with batches in and beyond the caches."""
    yield catalogue.dense((16,), (16,)).with_rank(1), (1, 16, 1024)
    yield catalogue.mpo((4, 8, 4), (4, 8, 4)).with_rank(4), (1, 32, 1024)
    yield catalogue.btt((16, 16), (16, 16)).with_rank(2), (1, 64, 1024)
    yield catalogue.low_rank(512, 512).with_rank(16), (1, 64, 1024)
    yield catalogue.dense((512,), (512,)).with_rank(1), (1, 128)
    yield catalogue.tree((4, 4, 4, 4), (4, 4, 4, 4)).with_rank(4), (4, 256)
    yield catalogue.mpo((4, 8, 8, 4), (8, 4, 4, 8)).with_rank(8), (1, 256)
    yield catalogue.cp((8, 8), (8, 8)).with_rank(8), (16, 1024)
    yield catalogue.ring((4, 4, 4), (4, 4, 4)).with_rank(3), (16, 512)
    yield catalogue.monarch((32, 32), (32, 32)).with_ranks({}), (16, 512)
    yield catalogue.tucker((4, 4, 4), (4, 4, 4)).with_rank(4), (16, 512)
    yield catalogue.kronecker((16, 16), (16, 16)).with_ranks({}), (16, 512)


def _samples(network: Network, batch: int, itemsize: int, machine: Machine) -> Iterator[Sample]:
    """The best, a middling and the worst way of a network, forward and training."""
    for phase in ("forward", "train"):
        ranked = [
            way
            for way in candidates(network, batch, phase, itemsize=itemsize, machine=machine)
            if way.cost.predicted_s < _LONGEST
        ]
        chosen = [ranked[i] for i in sorted({0, len(ranked) // 2, len(ranked) - 1})] if ranked else []
        for way in measured(network, batch, phase, chosen, itemsize):
            if (way.measured_s or 0.0) < _SHORTEST:
                continue
            text = f"{network.topology.name}, batch {batch}, {phase}, {way.order}"
            yield Sample(text, times_of(network, way, batch, phase, itemsize, machine), way.measured_s or math.nan)


def times_of(network: Network, way: Way, batch: int, phase: str, itemsize: int, machine: Machine) -> Times:
    """The predicted seconds of a way, by the figure that they come from."""
    nothing = {name: math.inf if name in _RATES else 0.0 for name in FIGURES}
    found, made = {}, way.recipe(network, itemsize)
    for name in FIGURES:
        alone = dataclasses.replace(machine, **{**nothing, name: getattr(machine, name)})
        pricer = _Pricer(network, way.path, way.order, batch, phase, itemsize, alone)
        found[name] = pricer.cost(made).predicted_s
    return found


# -- the fit ----------------------------------------------------------------------------------------------------


def judged(samples: Sequence[Sample]) -> tuple[dict[str, float], float, float]:
    """The factors of a fit, and the errors without and with them on samples that it has not seen; where they are no
    better there, no factors."""
    order = np.random.default_rng(0).permutation(len(samples))
    held = [samples[i] for i in order[::_HELD]]
    default: dict[str, float] = dict.fromkeys(FIGURES, 1.0)
    factors = fitted([samples[i] for place, i in enumerate(order) if place % _HELD])
    before, after = error(held, default), error(held, factors)
    return (factors, before, after) if after < before else (default, before, before)


def fitted(samples: Sequence[Sample]) -> dict[str, float]:
    """How many times longer than by default what each figure stands for takes: least squares of the relative errors
    in a box, one figure at a time until nothing moves."""
    a = _relative(samples)
    normal, wanted = a.T @ a / len(a), a.mean(axis=0)
    pull = _RIDGE * np.trace(normal)  # in the samples' own measure: a slow processor has small numbers here
    normal, wanted = normal + pull * np.eye(len(FIGURES)), wanted + pull
    factors = np.ones(len(FIGURES))
    for _ in range(10_000):
        before = factors.copy()
        for i in range(len(FIGURES)):
            rest = wanted[i] - normal[i] @ factors + normal[i, i] * factors[i]
            factors[i] = min(_RANGE, max(1 / _RANGE, rest / normal[i, i]))
        if abs(factors - before).max() < 1e-9:
            break
    return dict(zip(FIGURES, map(float, factors), strict=True))


def error(samples: Sequence[Sample], factors: Mapping[str, float]) -> float:
    """Median of |predicted / measured - 1|."""
    return float(np.median(abs(_relative(samples) @ [factors[name] for name in FIGURES] - 1)))


def _relative(samples: Sequence[Sample]) -> NDArray[np.float64]:
    return np.array([[sample.times[name] / sample.measured_s for name in FIGURES] for sample in samples])


def scaled(machine: Machine, factors: Mapping[str, float]) -> Machine:
    """The machine on which what each figure stands for takes so many times as long."""
    figures = {
        name: getattr(machine, name) / factor if name in _RATES else getattr(machine, name) * factor
        for name, factor in factors.items()
    }
    return dataclasses.replace(machine, **figures)
