"""What a network costs over batches, beside what else a person could run; predicted, and measured where asked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from .._base.errors import TN4NNError
from .._base.fits import exponent
from .._base.tables import text_table
from .._graph.catalogue import dense
from .._graph.network import Network
from .._graph.paths import Path, find_paths, greedy_path, legs_along, peak_size
from .._model.layers import Embedding
from .._runtime.cost import Machine
from .._runtime.devices import machine_of, native_machine
from .._runtime.target import Target
from .layer import plan
from .measure import interleaved, runs_of
from .native import NativeExecutor
from .plan import Plan, in_bytes
from .program import ProgramExecutor
from .request import PHASES, PlanRequest

BATCHES = (1, 32, 256, 2048)
_LONGEST = 1.0  # seconds: what is predicted to take longer is not measured


@dataclasses.dataclass(frozen=True)
class CostRow:
    """What one candidate to apply a network costs for one batch and phase.

    Attributes:
        batch: rows of x.
        phase: "forward", or "train" for forward and backward.
        way: "ours", "dense", "W first", "left to right", "greedy" (cotengra's) or "fewest FLOPs".
        runtime: "native" (the C runtime of layers on a CPU), or "program" (array operations of a framework).
        order: in words, where the order comes from.
        macs: multiply-adds, half the FLOPs.
        bytes_moved: bytes read and written by all steps.
        largest: bytes of the largest array between x, the cores and y; 0 where there is none.
        saved: bytes saved between forward and backward.
        predicted_s: seconds by the cost model.
        roofline_s: the least seconds for these multiply-adds on this machine: at its peak rate, or at its bandwidth for
            reading and writing x, y and the cores once (in training their gradients too), whichever is longer.
        measured_s: seconds in the native runtime, or of numpy's product for dense; None where not measured.
        peak: most bytes alive at once, as `Cost.peak` counts them: as it runs, tile by tile, in training forward and
            backward, without the cores.
        peak_size: the same as cotengra's `ContractionTree.peak_size` counts it, times the bytes of a number: of one
            forward pass of the whole batch, every input held until it is read, the cores included.

    Examples:
        >>> import tn4nn as tn
        >>> report = tn.cost(tn.low_rank(784, 256).with_rank(8), (100,), phases=("forward",))
        >>> sorted({(row.way, row.macs) for row in report.rows if row.way in ("ours", "dense")})
        [('dense', 20070400), ('ours', 832000)]
    """

    batch: int
    phase: str
    way: str
    runtime: str
    order: str
    macs: int
    bytes_moved: int
    largest: int
    saved: int
    predicted_s: float
    roofline_s: float
    measured_s: float | None = None
    peak: int = 0
    peak_size: int = 0

    @property
    def roofline(self) -> float:
        """The share of the roofline that is reached, by the measured time where there is one, else the predicted."""
        return self.roofline_s / (self.predicted_s if self.measured_s is None else self.measured_s)

    @property
    def intensity(self) -> float:
        """Multiply-adds for each byte moved."""
        return self.macs / max(1, self.bytes_moved)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return {**dataclasses.asdict(self), "intensity": self.intensity, "roofline": self.roofline}


@dataclasses.dataclass(frozen=True, repr=False)
class CostReport:
    """What `cost` found; its text is the table.

    Attributes:
        network: what was priced.
        rows: for each batch and phase, ours first.

    Examples:
        >>> import tn4nn as tn
        >>> report = tn.cost(tn.low_rank(784, 256).with_rank(8), (1, 100), phases=("forward",))
        >>> sorted({row.batch for row in report.rows})
        [1, 100]
    """

    network: Network
    rows: tuple[CostRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        rows = [row.to_dict() for row in self.rows]
        return {"schema": 1, "network": self.network.to_dict(), "rows": rows, "growth": self.growth()}

    def growth(self) -> dict[str, dict[str, float]]:
        """By phase, the exponents e with which our time (on a CPU the native one), multiply-adds and memory grow as
        batch^e.

        A least-squares line through the logarithms at all batches; empty for one batch alone. Memory is what is saved
        for backward, in a forward pass the largest array.
        """
        found = {}
        for phase in dict.fromkeys(row.phase for row in self.rows):
            first = self.rows[0].runtime
            ours = [row for row in self.rows if (row.phase, row.way, row.runtime) == (phase, "ours", first)]
            if len({row.batch for row in ours}) > 1:
                quantities: dict[str, list[float]] = {
                    "time": [row.predicted_s if row.measured_s is None else row.measured_s for row in ours],
                    "MACs": [row.macs for row in ours],
                    "memory": [row.saved or row.largest for row in ours],
                }
                batches = [row.batch for row in ours]
                found[phase] = {
                    name: exponent(batches, values) for name, values in quantities.items() if min(values) > 0
                }
        return found

    def __repr__(self) -> str:
        net = self.network
        title = f"Cost of {net.topology.name!r}, {net.in_features} -> {net.out_features}, {net.num_params:,} parameters"
        groups = dict.fromkeys((row.batch, row.phase) for row in self.rows)
        lines = [title]
        for batch, phase in groups:
            lines += ["", f"{_PHASES[phase]} of {batch:,} row{'s' if batch > 1 else ''}"]
            lines.append(_table([row for row in self.rows if (row.batch, row.phase) == (batch, phase)]))
        for phase, exponents in self.growth().items():
            grown = ", ".join(f"{name} ~ batch^{exponent:.2f}" for name, exponent in exponents.items())
            lines += ["", f"{_PHASES[phase]}, ours, {_RUNTIMES[self.rows[0].runtime]}: {grown}"]
        return "\n".join([*lines, "", *_MEANINGS])

    __str__ = __repr__


@dataclasses.dataclass(frozen=True, repr=False)
class ModuleCost:
    """What `cost` found for a module; its text is the tables of its layers.

    Attributes:
        reports: by the name of the layer in the module.
    """

    reports: Mapping[str, CostReport]

    def to_dict(self) -> dict[str, Any]:
        """The reports as plain data."""
        return {"schema": 1, "layers": {name: report.to_dict() for name, report in self.reports.items()}}

    def __repr__(self) -> str:
        return "\n\n".join(f"{name or 'the module'}: {report}" for name, report in self.reports.items())

    __str__ = __repr__


_PHASES = {"forward": "Forward pass", "train": "Training step"}
_RUNTIMES = {"native": "C runtime", "program": "array program"}
_MEANINGS = (
    "multiply-adds  half the FLOPs",
    "moved          bytes that all steps read and write",
    "largest        the largest array between x, the cores and y, of one tile of rows where it runs in tiles",
    "peak           most bytes alive at once, without the cores",
    "peak_size      the same as cotengra counts it: one forward pass, all rows at once, with the cores",
    "saved          bytes kept from the forward pass for the backward pass",
    "limit          the least time for these multiply-adds, or for reading and writing x, y and the cores once, as a",
    "               share of the time that it takes",
)


def _table(rows: Sequence[CostRow]) -> str:
    """The rows of one batch and phase."""
    measured = any(row.measured_s is not None for row in rows)
    head = ("", "runs as", "multiply-adds", "moved", "largest", "peak", "peak_size", "saved", "predicted")
    cells = [
        (
            row.way,
            _RUNTIMES[row.runtime],
            f"{row.macs:,}",
            *(in_bytes(n) for n in (row.bytes_moved, row.largest, row.peak, row.peak_size, row.saved)),
            _milliseconds(row.predicted_s),
            *([] if not measured else ["" if row.measured_s is None else _milliseconds(row.measured_s)]),
            f"{row.roofline:.0%}",
        )
        for row in rows
    ]
    return text_table((*head, *(["measured"] if measured else []), "limit"), cells, left=2)


def _milliseconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


@overload
def cost(
    network: Network,
    batches: Iterable[int] = ...,
    *,
    phases: Sequence[str] = ...,
    itemsize: int = ...,
    machine: Machine | None = ...,
    device: str | None = ...,
    measure: bool = ...,
    cache: bool = ...,
) -> CostReport: ...
@overload
def cost(
    network: Any,
    batches: Iterable[int] = ...,
    *,
    phases: Sequence[str] = ...,
    itemsize: int = ...,
    machine: Machine | None = ...,
    device: str | None = ...,
    measure: bool = ...,
    cache: bool = ...,
) -> CostReport | ModuleCost: ...
def cost(
    network: Network | Any,
    batches: Iterable[int] = BATCHES,
    *,
    phases: Sequence[str] = PHASES,
    itemsize: int = 4,
    machine: Machine | None = None,
    device: str | None = None,
    measure: bool = False,
    cache: bool = True,
) -> CostReport | ModuleCost:
    """What a network costs for several batches, forward and training, beside the other ways to run it.

    For each batch and phase: our plan in the native runtime and as a program; the dense layer of the same features as
    one matrix product; W built first, x through the cores from left to right, cotengra's greedy order, and the order
    with the fewest FLOPs (exhaustive for small networks, the best found for others), these in the native runtime too.
    On a GPU all of them as programs, operation by operation.

    Args:
        network: what is applied; or a torch module, for a report on each of its linear layers and convolutions that
            are on a network. A row of a convolution is one position of its output.
        batches: rows of x.
        phases: "forward", "train" or both.
        itemsize: 4 or 8 bytes of a number; on a GPU also 2.
        machine: parameters of the cost model (default: this processor's, where calibrated; else one CPU core).
        device: a GPU, which need not be here: "H100", "H200", "H100 PCIe", "A100", or the full name of one that was
            calibrated with torch. Instead of `machine`.
        measure: also run the rows of the native runtime, and numpy's product for dense, on random numbers; the least
            time of several interleaved rounds. What is predicted to take more than a second is left out.
        cache: False plans anew and stores nothing.

    Raises:
        TN4NNError: an unknown phase, a batch below 1, no batch at all, a module without such layers, an unknown GPU, a
            GPU with a machine or to be measured.

    Examples:
        >>> import tn4nn as tn
        >>> report = tn.cost(tn.mpo((4, 8, 4), (4, 8, 4)).with_rank(4), [64], phases=["forward"])
        >>> [row.way for row in report.rows]
        ['ours', 'ours', 'dense', 'W first', 'left to right', 'greedy', 'fewest FLOPs']
        >>> report.rows[2].macs == 64 * 128 * 128
        True
    """
    sizes = tuple(batches)
    if not sizes:
        raise TN4NNError("a cost needs at least one batch, received none")
    if device is not None and (measure or machine is not None):
        raise TN4NNError(
            f"device={device!r} is priced, with its own parameters, and not measured: leave out machine= and measure=, "
            "or run benchmarks/step_time.py on it"
        )
    if not isinstance(network, Network):
        options: dict[str, Any] = {"itemsize": itemsize, "machine": machine, "device": device, "measure": measure}
        return ModuleCost(
            {
                name: _report(found.network, sizes, phases, cache, **options, layer=found)
                for name, found in _layers(network).items()
            }
        )
    return _report(network, sizes, phases, cache, itemsize=itemsize, machine=machine, device=device, measure=measure)


def _report(
    network: Network,
    sizes: Sequence[int],
    phases: Sequence[str],
    cache: bool,
    *,
    itemsize: int,
    machine: Machine | None,
    device: str | None,
    measure: bool,
    layer: Any = None,
) -> CostReport:
    known = machine or (native_machine(itemsize) if device is None else machine_of(device, itemsize))
    plan_of = getattr(layer, "plan", None)  # our layers have one
    rows: list[CostRow] = []
    for batch in sizes:
        for phase in phases:
            own = plan_of(batch) if plan_of is not None and device is None and machine is None else None
            if own is not None and own.phase != phase:
                own = None  # the layer plans for the other one
            asked = _Question(network, batch, phase, itemsize, known, device is not None, cache, own)
            rows += asked.measured() if measure else [row for row, _ in asked.rows()]
    return CostReport(network, tuple(rows))


def _layers(module: Any) -> dict[str, Any]:
    """The layers of a torch module that have a network, by name."""
    if not hasattr(module, "named_modules"):
        raise TN4NNError(f"a cost is of a Network or of a torch module, received {type(module).__name__}")
    layers = dict(module.named_modules())
    found = {
        name: layer
        for name, layer in layers.items()
        if isinstance(getattr(layer, "network", None), Network)
        and not isinstance(getattr(layer, "layer", None), Embedding)  # it picks rows: there is no product to price
    }
    if not found:
        raise TN4NNError(
            f"no linear layer or convolution of this {type(module).__name__} is on a network: put TNLinear or "
            "TNConv2d in it, or use tn4nn_torch.convert"
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Question:
    network: Network
    batch: int
    phase: str
    itemsize: int
    machine: Machine
    gpu: bool
    cache: bool
    own: Plan | None = None  # by which the layer of a module runs

    @property
    def request(self) -> PlanRequest:
        """The question to executors."""
        target = Target(dtype={2: "bfloat16", 4: "float32", 8: "float64"}[self.itemsize])
        return PlanRequest(self.network, self.batch, self.phase, target=target, machine=self.machine)

    def rows(self) -> Iterator[tuple[CostRow, Plan | None]]:
        """Each row, with the native plan that would run for it."""
        for runtime in ("program",) if self.gpu else ("native", "program"):
            p = self._plan(self.network, runtime)
            if self.own is not None and self.own.runtime == runtime:
                p = self.own
            yield self._row("ours", runtime, p), p if runtime == "native" else None
        p = self._plan(dense((self.network.in_features,), (self.network.out_features,)).with_rank(1), "program")
        yield self._row("dense", "program", dataclasses.replace(p, order="one product", path=())), None
        for name, path in self._others():
            if self.gpu:
                yield self._row(name, "program", ProgramExecutor("program").plan(self.request, name, path)), None
                continue
            p = NativeExecutor().arranged(self.request, name, path)[0]
            yield self._row(name, "native", p), p

    def measured(self) -> list[CostRow]:
        """The rows, those of the native runtime and dense measured in turns."""
        found = list(self.rows())
        short = [i for i, (row, _) in enumerate(found) if row.predicted_s <= _LONGEST]
        plans = {i: p for i in short if (p := found[i][1]) is not None}
        natives = runs_of([*plans.values()])
        runs = dict(zip(plans, natives or (), strict=False))  # none without the runtime
        runs |= {
            i: _dense_run(self.network, self.batch, self.phase, self.itemsize)
            for i in short
            if found[i][0].way == "dense"
        }
        times = dict(zip(runs, interleaved([*runs.values()]), strict=True))
        return [dataclasses.replace(row, measured_s=times.get(i)) for i, (row, _) in enumerate(found)]

    def _plan(self, network: Network, runtime: str) -> Plan:
        return plan(
            network,
            self.batch,
            self.phase,
            runtime=runtime,
            itemsize=self.itemsize,
            machine=self.machine,
            cache=self.cache,
        )

    def _others(self) -> list[tuple[str, Path]]:
        problem = self.request.problem
        question = problem.tensors, problem.output, problem.sizes
        fewest, greedy = find_paths(*question)[0], greedy_path(*question)
        left, first = problem.chains()[0], problem.dense_first()
        return [("W first", first), ("left to right", left), ("greedy", greedy), ("fewest FLOPs", fewest)]

    def _row(self, name: str, runtime: str, p: Plan) -> CostRow:
        cost = p.cost
        largest = self._largest(p)
        return CostRow(
            self.batch,
            self.phase,
            name,
            runtime,
            p.order,
            cost.macs,
            cost.bytes_moved,
            largest,
            cost.saved,
            cost.predicted_s,
            self._roofline(name, cost.macs),
            peak=cost.peak,
            peak_size=self._peak_size(p),
        )

    def _roofline(self, name: str, macs: int) -> float:
        """Seconds; see `CostRow.roofline_s`."""
        ends = self.batch * (self.network.in_features + self.network.out_features)
        cores = self.network.num_params
        if name == "dense":
            cores = self.network.in_features * self.network.out_features
        numbers = (ends + cores) * (2 if self.phase == "train" else 1)
        machine = self.machine
        peak = max(machine.macs_per_s, machine.tile_macs_per_s)
        bandwidth = max(machine.bytes_per_s, machine.memory_bytes_per_s)
        return max(macs / peak, numbers * self.itemsize / bandwidth)

    def _peak_size(self, p: Plan) -> int:
        """Bytes, as cotengra counts numbers; of the dense layer x, W and y."""
        if not p.path:
            net = p.network
            return (self.batch * (net.in_features + net.out_features) + net.dense_params) * self.itemsize
        problem = p.request.problem.at(self.batch)
        return peak_size(problem.tensors, problem.output, problem.sizes, p.path) * self.itemsize

    def _largest(self, p: Plan) -> int:
        """Bytes of the largest array that a plan makes before its result, of one batch tile."""
        problem = p.request.problem.at(min(p.block or self.batch, self.batch))
        legs = legs_along(problem.tensors, problem.output, p.path)[len(problem.tensors) : -1]
        return max((math.prod(problem.sizes[leg] for leg in on) for on in legs), default=0) * self.itemsize


def _dense_run(network: Network, batch: int, phase: str, itemsize: int) -> Callable[[], object]:
    """One pass of the dense layer through numpy's BLAS."""
    rng = np.random.default_rng(0)
    kind: type[np.float32 | np.float64] = np.float32 if itemsize == 4 else np.float64
    x = rng.standard_normal((batch, network.in_features), dtype=kind)
    w = rng.standard_normal((network.out_features, network.in_features), dtype=kind)
    gy = rng.standard_normal((batch, network.out_features), dtype=kind)
    if phase == "forward":
        return lambda: x @ w.T
    return lambda: (x @ w.T, gy.T @ x, gy @ w)
