"""Parameters of the cost model for a device, fitted to what runs on it: the native runtime, or a backend's programs.

Predicted seconds are a sum: numbers of multiply-adds, tiles, bytes, calls and the like, each times one parameter of
`Machine`. So plans of a few networks are run, and these parameters are fitted to their times: by least squares of the
relative errors, each between a tenth and ten times its default. The cost model itself says how many of each a plan has.
Of a step of a program it counts either the multiply-adds or the bytes, whichever takes longer. Which of them depends on
the parameters, so programs are fitted again with the parameters that were found.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._base.errors import BackendError, TN4NNError
from .._graph import catalogue
from .._graph.candidates import candidate_paths
from .._graph.network import Network
from .._graph.paths import Path
from .._model.backend import Place, place_of
from .._runtime.cost import Machine
from .._runtime.devices import SCHEMA, gpu, store, stored
from .._runtime.native import runtime
from .._runtime.processor import processors, vector_bytes
from .._runtime.program_cost import seconds_of
from .._runtime.recipe_cost import recipe_cost
from .._runtime.target import CPU, Target
from . import calibrate_threads
from .measure import measured
from .plan import Plan
from .planner import candidates
from .program import ProgramExecutor
from .request import PHASES, PlanRequest

NATIVE_PARAMETERS = ("tile_macs_per_s", "tile_s", "vector_s", "far_s", "task_s", "call_s", "memory_bytes_per_s")
PROGRAM_PARAMETERS: tuple[str, ...] = ("macs_per_s", "bytes_per_s", "strided", "op_s", "matrix_s", "pass_s", "step_s")
NATIVE_DTYPES = {"float32": 4, "float64": 8}
_RATES = ("tile_macs_per_s", "memory_bytes_per_s", "macs_per_s", "bytes_per_s")  # per second; the others are seconds
_RANGE = 10.0  # how far from its default a parameter may go
_RIDGE = 3e-4  # pull to the default, for parameters that the samples say little about
_LONGEST = 0.02  # seconds: what is predicted to take longer is no sample
_SHORTEST = 3e-6  # seconds: what takes less is nothing but the call from Python
_LARGEST = 1 << 30  # bytes: a program that holds more at once is no sample
_ROUNDS, _ROUND_S = 5, 2e-3  # of a program: how often it is timed, and for how long at the least
_SEARCH_S = 2.0  # for the orders of a network
_LARGE_BATCH = 16384  # rows that keep a GPU busy with a small network
_ALONE = 0.8  # of the time for one thread, where there are several
_REFITS = 3  # of programs: what a step counts, with the parameters found
_EACH = 4  # samples for each parameter, at the least
_HELD_OUT = 3  # one sample in so many is held out of the fit, drawn with a fixed seed

_T = TypeVar("_T")
Times = dict[str, float]  # parameter -> seconds that it explains, at its default


class Sample(NamedTuple):
    """One plan that was run.

    Attributes:
        text: what it is.
        times: the seconds that each parameter explains at its default.
        measured_s: the measured seconds.
        times_on: the seconds that each parameter explains on a machine; None where they only scale with the
            parameters.
    """

    text: str
    times: Times
    measured_s: float
    times_on: Callable[[Machine], Times] | None = None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a calibration found; the default parameters where no others were better on the plans held out.

    Attributes:
        what: was calibrated: the runtime, the device and the dtype.
        machine: parameters for `plan(machine=...)`.
        default: the parameters before.
        figures: names of those that were fitted.
        before: median of |predicted / measured - 1| over samples that were held out, with the default parameters.
        after: the same with the fitted parameters.
        samples: how many plans were run.
        seconds: how long it took.

    Examples:
        >>> import tn4nn as tn
        >>> own, default = tn.Machine(op_s=5e-6), tn.Machine()
        >>> found = tn.Calibration("torch", own, default, ("op_s",), before=0.3, after=0.1, samples=80, seconds=12)
        >>> print(str(found).splitlines()[1])
          op_s                    5e-06  (default 2.5e-06)
    """

    what: str
    machine: Machine
    default: Machine
    figures: tuple[str, ...]
    before: float
    after: float
    samples: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The calibration as plain data."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        own, default = self.machine, self.default
        lines = [
            f"Calibrated on {self.samples} plans in {self.seconds:.1f} s: {self.what}; median error on those held out "
            f"{self.before:.0%} with the default parameters, {self.after:.0%} with these:"
        ]
        lines += [
            f"  {name:<18} {getattr(own, name):>10.3g}  (default {getattr(default, name):.3g})" for name in self.figures
        ]
        return "\n".join(lines)


def calibrate(
    device: str | None = None,
    *,
    backend: str | None = None,
    dtype: str = "float32",
    time_limit: float = 40.0,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Measures a device for the cost model, and stores the parameters in the cache folder.

    Without a backend, the native runtime of this processor, in one thread and then in all: native plans read the
    parameters where no `machine=` is passed. With one, the programs that this backend runs on the device, in the
    threads that it has: its layers plan with the parameters from then on, on this device and in this dtype. A few plans
    of each of a dozen small networks are run, on a GPU of some larger ones too. `calibrated` gives the parameters later
    on.

    Args:
        device: "cpu", or with a backend its own word for a device ("cuda", "gpu"); None for its default.
        backend: "torch" or "jax"; None for the native runtime.
        dtype: of the numbers: "float32" or "float64", with a backend also "bfloat16" or "float16".
        time_limit: seconds after which nothing new is run.
        progress: called with a line of text for each network and batch.

    Raises:
        TN4NNError: there is no native runtime (no compiler, or another dtype), or the limit left too few samples.
        BackendError: an unknown backend, or one that is not installed or has no such device or dtype.

    Examples:
        >>> import tn4nn as tn
        >>> machine = tn.calibrated() or tn.Machine()
        >>> tn.plan(tn.low_rank(64, 64).with_rank(4), 32, runtime="native", machine=machine).runtime
        'native'
    """
    start = time.perf_counter()
    subject = _native(device, dtype) if backend is None else _programs(device, backend, dtype)
    samples: list[Sample] = []
    several = backend is None and processors() > 1
    alone = time_limit * (_ALONE if several else 1.0)
    for network, batch in subject.asked:
        if time.perf_counter() - start > alone:
            break
        for sample in subject.samples(network, batch):
            samples.append(sample)
            if time.perf_counter() - start > alone:
                break
        if progress is not None:
            title = f"{network.topology.name}, batch {batch}"
            progress(f"calibrating: {title}, {len(samples)} plans, {time.perf_counter() - start:.1f} s")
    if len(samples) < _EACH * len(subject.figures):
        raise TN4NNError(f"{time_limit} seconds were enough for {len(samples)} plans: allow more time")
    factors, before, after = judged(samples, subject.machine)
    machine, figures = scaled(subject.machine, factors), subject.figures
    if several:
        left = max(0.0, time_limit - (time.perf_counter() - start))
        machine = calibrate_threads.with_threads(machine, subject.asked, dtype, processors(), left)
        figures = (*figures, *calibrate_threads.PARAMETERS)
    found = Calibration(
        subject.what, machine, subject.machine, figures, before, after, len(samples), time.perf_counter() - start
    )
    store(backend or "native", subject.name, dtype, found.to_dict())
    return found


def calibrated(device: str | None = None, *, backend: str | None = None, dtype: str = "float32") -> Machine | None:
    """The parameters that `calibrate` has stored, or None where there are none that can be read.

    Args:
        device: see `calibrate`.
        backend: see `calibrate`.
        dtype: see `calibrate`.

    Raises:
        BackendError: an unknown backend, or one that is not installed or has no such device or dtype.

    Examples:
        >>> import tn4nn as tn
        >>> isinstance(tn.calibrated() or tn.Machine(), tn.Machine)
        True
    """
    if backend is not None:
        place = place_of(backend, device, dtype)
        return stored(backend, place.name, place.dtype)
    _check_native(device)
    return stored("native", CPU, dtype)


# -- what is run ------------------------------------------------------------------------------------------------


class _Subject(NamedTuple):
    """What is calibrated.

    Attributes:
        what: in words.
        name: of the GPU, or "cpu".
        machine: the default parameters.
        figures: names of those that are fitted.
        asked: networks and batches.
        samples: runs plans of a network for a batch.
    """

    what: str
    name: str
    machine: Machine
    figures: tuple[str, ...]
    asked: Sequence[tuple[Network, int]]
    samples: Callable[[Network, int], Iterator[Sample]]


def _native(device: str | None, dtype: str) -> _Subject:
    _check_native(device)
    itemsize = NATIVE_DTYPES.get(dtype)
    if itemsize is None or runtime(itemsize) is None:
        raise TN4NNError(
            "without a backend, calibrating measures the native runtime, which needs its kernel (`tn4nn backends` says "
            f"whether it is there) and dtype {' or '.join(map(repr, NATIVE_DTYPES))}, received dtype={dtype!r}: for "
            "another, pass backend='torch' or backend='jax'"
        )
    machine = Machine(vector_bytes=vector_bytes())
    asked = [(network, batch) for network, batches in _networks() for batch in batches]
    samples = functools.partial(_samples, dtype=dtype, machine=machine)
    return _Subject(f"native runtime, {dtype}", CPU, machine, NATIVE_PARAMETERS, asked, samples)


def _check_native(device: str | None) -> None:
    if device not in (None, CPU):
        raise BackendError(
            f"the native runtime runs on the CPU, received device={device!r}: pass backend='torch' or backend='jax'"
        )


def _programs(device: str | None, backend: str, dtype: str) -> _Subject:
    """Networks and batches come in an order drawn with a fixed seed: where the time is too short for all of them (XLA
    compiles each program for a while), some of every kind were run."""
    place = place_of(backend, device, dtype)
    on_cpu = place.name == CPU
    machine = Machine() if on_cpu else gpu(place.name).machine(place.itemsize, compiled=place.compiled)
    each = [*_networks(), *([] if on_cpu else _large_networks())]
    asked = [(network, batch) for network, batches in each for batch in batches]
    if not on_cpu:
        asked += [(network, _LARGE_BATCH) for network, _ in _networks()]
    order = np.random.default_rng(0).permutation(len(asked))
    samples = functools.partial(_program_samples, place=place, machine=machine)
    what = f"programs of {backend} on {place.name}, {dtype}"
    return _Subject(what, place.name, machine, PROGRAM_PARAMETERS, [asked[i] for i in order], samples)


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


def _large_networks() -> Iterator[tuple[Network, tuple[int, ...]]]:
    """Products that keep a GPU busy."""
    yield catalogue.dense((4096,), (4096,)).with_rank(1), (256, 8192)
    yield catalogue.low_rank(4096, 4096).with_rank(64), (256, 8192)
    yield catalogue.mpo((8, 8, 8, 8), (8, 8, 8, 8)).with_rank(16), (256, 4096)
    yield catalogue.btt((64, 64), (64, 64)).with_rank(2), (256, 8192)


def _samples(network: Network, batch: int, dtype: str, machine: Machine) -> Iterator[Sample]:
    """The best, a middling and the worst candidate of a network, forward and training."""
    for phase in PHASES:
        request = PlanRequest(network, batch, phase, target=Target(dtype=dtype, executors=("native",)), machine=machine)
        ranked = [p for p in candidates(request) if p.cost.predicted_s < _LONGEST]
        for p in measured(_spread(ranked)):
            if (p.measured_s or 0.0) < _SHORTEST:
                continue
            text = f"{network.topology.name}, batch {batch}, {phase}, {p.order}"
            yield Sample(text, native_times(p, machine), p.measured_s or math.nan)


def _spread(ranked: Sequence[_T]) -> list[_T]:
    """The first, a middling and the last."""
    return [ranked[i] for i in sorted({0, len(ranked) // 2, len(ranked) - 1})] if ranked else []


def _program_samples(network: Network, batch: int, place: Place, machine: Machine) -> Iterator[Sample]:
    """The best, a middling and the worst program of a network, forward and training."""
    for phase in PHASES:
        request = PlanRequest(network, batch, phase, target=Target(dtype=place.dtype), machine=machine)
        priced = [ProgramExecutor("program").plan(request, *named) for named in _orders(request)]
        ranked = [
            p
            for p in sorted(priced, key=lambda p: p.cost.predicted_s)
            if p.cost.predicted_s < _LONGEST and p.cost.peak + p.cost.saved < _LARGEST
        ]
        chosen = _spread(ranked)
        runs = [place.run_of(p.program, p.input_shapes(), phase) for p in chosen]
        for p, seconds in zip(chosen, clocked(runs, place), strict=True):
            text = f"{network.topology.name}, batch {batch}, {phase}, {p.order}"
            times_on = functools.partial(program_times, p)
            yield Sample(text, times_on(machine), seconds, times_on)


def _orders(request: PlanRequest) -> list[tuple[str, Path]]:
    return candidate_paths(request.problem, time_limit=_SEARCH_S)


def clocked(runs: Sequence[Callable[[], Any]], place: Place) -> list[float]:
    """The least seconds of a call of each, over rounds that go through all of them: what else runs on the machine makes
    a round longer, nothing makes it shorter."""

    def seconds(run: Callable[[], Any], calls: int) -> float:
        start, worked = time.perf_counter(), time.process_time()
        result = None
        for _ in range(calls):
            result = run()
        place.wait(result)
        spent, worked = time.perf_counter() - start, time.process_time() - worked
        # Of one thread on the CPU the seconds that it worked are fewer where something else ran in between.
        return (min(spent, worked) if place.name == CPU else spent) / calls

    calls = []
    for run in runs:
        seconds(run, 2)  # the first call compiles, the second finds its memory
        calls.append(max(1, int(_ROUND_S / seconds(run, 1))))
    rounds = [[seconds(run, n) for run, n in zip(runs, calls, strict=True)] for _ in range(_ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def program_times(p: Plan, machine: Machine) -> Times:
    """The predicted seconds of a program that runs all at once, by the parameter that they come from."""
    found = dict.fromkeys(PROGRAM_PARAMETERS, 0.0)
    passes, start = (3, "step_s") if p.phase == "train" else (1, "pass_s")
    for work in p.work():
        for name, seconds in seconds_of(work, p.itemsize, machine):
            found[name] += passes * seconds
    found[start] = getattr(machine, start)
    return found


def native_times(p: Plan, machine: Machine) -> Times:
    """The predicted seconds of a native plan, by the parameter that they come from."""
    nothing = {name: math.inf if name in _RATES else 0.0 for name in NATIVE_PARAMETERS}
    found = {}
    for name in NATIVE_PARAMETERS:
        alone = dataclasses.replace(machine, **{**nothing, name: getattr(machine, name)})
        found[name] = recipe_cost(p.recipe, p.batch, p.phase, alone).predicted_s
    return found


# -- the fit ----------------------------------------------------------------------------------------------------


def judged(samples: Sequence[Sample], machine: Machine | None = None) -> tuple[dict[str, float], float, float]:
    """The factors of a fit, and the errors without and with them on samples that it has not seen; where they are no
    better there, no factors. `machine`: with the default parameters."""
    order = np.random.default_rng(0).permutation(len(samples))
    held_out = [samples[i] for i in order[::_HELD_OUT]]
    seen = [samples[i] for position, i in enumerate(order) if position % _HELD_OUT]
    default: dict[str, float] = dict.fromkeys(samples[0].times, 1.0)
    before, factors = error(held_out, default), fitted(seen)
    for _ in range(_REFITS if samples[0].times_on else 0):
        factors = fitted(_rescaled(seen, machine or Machine(), factors))
    after = error(_rescaled(held_out, machine or Machine(), factors), factors)
    return (factors, before, after) if after < before else (default, before, before)


def _rescaled(samples: Sequence[Sample], machine: Machine, factors: Mapping[str, float]) -> list[Sample]:
    """The samples with the seconds that each parameter explains at its default, where a step counts what takes longer
    with the parameters found."""
    own = scaled(machine, factors)
    return [
        sample
        if sample.times_on is None
        else sample._replace(times={name: t / factors[name] for name, t in sample.times_on(own).items()})
        for sample in samples
    ]


def fitted(samples: Sequence[Sample]) -> dict[str, float]:
    """By what factor each parameter makes things slower than by default: least squares of the relative errors in a
    box, one parameter at a time until nothing moves."""
    names = tuple(samples[0].times)
    a = _relative(samples)
    normal, wanted = a.T @ a / len(a), a.mean(axis=0)
    pull = _RIDGE * np.trace(normal)  # in the samples' own measure: a slow processor has small numbers here
    normal, wanted = normal + pull * np.eye(len(names)), wanted + pull
    factors = np.ones(len(names))
    for _ in range(10_000):
        before = factors.copy()
        for i in range(len(names)):
            rest = wanted[i] - normal[i] @ factors + normal[i, i] * factors[i]
            factors[i] = min(_RANGE, max(1 / _RANGE, rest / normal[i, i]))
        if abs(factors - before).max() < 1e-9:
            break
    return dict(zip(names, map(float, factors), strict=True))


def error(samples: Sequence[Sample], factors: Mapping[str, float]) -> float:
    """Median of |predicted / measured - 1|."""
    return float(np.median(abs(_relative(samples) @ [factors[name] for name in samples[0].times] - 1)))


def _relative(samples: Sequence[Sample]) -> NDArray[np.float64]:
    names = tuple(samples[0].times)
    return np.array([[sample.times[name] / sample.measured_s for name in names] for sample in samples])


def scaled(machine: Machine, factors: Mapping[str, float]) -> Machine:
    """The machine on which what each parameter measures takes so many times as long."""
    factors = dict(factors)
    if "strided" in factors:  # it measures copies, whose seconds are strided / bytes_per_s
        factors["strided"] /= factors["bytes_per_s"]
    parameters = {
        name: getattr(machine, name) / factor if name in _RATES else getattr(machine, name) * factor
        for name, factor in factors.items()
    }
    return dataclasses.replace(machine, **parameters)
