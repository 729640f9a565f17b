"""Plan: how a Network is applied to a batch: in which order, by which executor, at what cost."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._base.notebook import shown
from .._drawing.contraction_tree import ContractionTree, draw_tree
from .._graph.network import Network
from .._graph.paths import BATCH, Path, legs_along
from .._graph.problem import Form, linear_path, tensors_of
from .._runtime.cost import Cost
from .._runtime.devices import native_machine
from .._runtime.lowering import lowered
from .._runtime.program import Program, Work, trace
from .._runtime.program_cost import input_shapes, step_shapes
from .._runtime.recipe import Recipe, recipe
from .._runtime.recipe_cost import CallRow, call_rows
from .request import PlanRequest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[tuple[str, Cost], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a network is applied to a batch: by which executor, in which order, at what cost.

    Attributes:
        request: the question that it answers.
        executor: what runs it: "native" (the C runtime of a CPU), "program" (array operations of a framework), "dense"
            (the framework's own product, where W is one core), "graph" (captured CUDA graphs), or the name of another
            library.
        order: in words, where the contraction order comes from.
        path: the contraction path over the tensors.
        cost: of one pass.
        candidates: (order, cost) of what was considered, the chosen one first.
        block: rows of a batch tile; 0 for all at once.
        sliced: legs that a program loops over.
        layouts: native runtime: how the states lie in memory (`contraction.LAYOUTS`).
        save: native runtime: a training step saves the states instead of recomputing them.
        measured_s: seconds of one pass, where it was measured.

    Examples:
        >>> import tn4nn as tn
        >>> p = tn.plan(tn.low_rank(784, 256).with_rank(8), batch=100, phase="forward")
        >>> p.executor, p.cost.macs
        ('program', 832000)
        >>> p.candidates[0][1] == p.cost
        True
    """

    request: PlanRequest
    executor: str
    order: str
    path: Path
    cost: Cost
    candidates: Table = ()
    block: int = 0
    sliced: tuple[str, ...] = ()
    layouts: tuple[int, ...] = ()
    save: bool = False
    measured_s: float | None = None

    @property
    def network(self) -> Network:
        """What is applied."""
        return self.request.network

    @property
    def batch(self) -> int:
        """Rows that the cost is of; the plan runs any number."""
        return self.request.batch

    @property
    def phase(self) -> str:
        """ "forward" or "train"."""
        return self.request.phase

    @property
    def minimize(self) -> str:
        """ "time", "flops" or "memory"."""
        return self.request.minimize

    @property
    def form(self) -> Form:
        """What is contracted; see `plan`."""
        return self.request.form

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return self.request.itemsize

    @property
    def runtime(self) -> str:
        """ "native" or "program"."""
        return "native" if self.executor == "native" else "program"

    @property
    def ssa_path(self) -> Path:
        """The path as cotengra's `ContractionTree.from_path(ssa_path=)` takes it: `path`, pairs over the cores in
        order and x, which comes last; the i-th pair makes tensor n + i.

        Examples:
            >>> import cotengra, tn4nn as tn
            >>> net = tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(3)
            >>> p, t = tn.plan(net, batch=10), net.topology
            >>> inputs = [*(core.legs for core in t.cores), ("batch", *t.inputs)]
            >>> sizes = {**net.sizes, "batch": 10}
            >>> tree = cotengra.ContractionTree.from_path(inputs, ("batch", *t.outputs), sizes, ssa_path=p.ssa_path)
            >>> int(tree.total_flops()) == p.cost.macs
            True
        """
        return self.path

    @property
    def linear_path(self) -> Path:
        """The path as opt_einsum's `contract(optimize=)` and cotengra's `from_path(path=)` take it: each pair counts
        the tensors that are left, and what it makes goes to their end.

        Examples:
            >>> import tn4nn as tn
            >>> p = tn.plan(tn.low_rank(64, 64).with_rank(4), batch=10)
            >>> p.ssa_path, p.linear_path
            (((2, 0), (3, 1)), ((0, 2), (0, 1)))
        """
        return linear_path(self.path)

    @functools.cached_property
    def program(self) -> Program:
        """The path in array operations, computed when it is first read."""
        return lowered(self.request.problem, self.path, self.sliced, 0 if self.executor == "native" else self.block)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The path as calls of the native kernel, computed when it is first read."""
        return recipe(
            self.network, self.path, self.block or self.batch, itemsize=self.itemsize, layouts=self.layouts,
            save=self.save,
        )  # fmt: skip

    def input_shapes(self, batch: int | None = None) -> list[tuple[int, ...]]:
        """Shapes of the program's inputs at a batch (default: the plan's)."""
        problem = self.request.problem
        return input_shapes(problem if batch is None else problem.at(batch), self.program)

    def work(self) -> list[Work]:
        """The work of each step of the program at the plan's batch (of one batch tile and slice, where it has them)."""
        return trace(self.program, step_shapes(self.request.problem, self.program))

    def calls(self) -> list[CallRow]:
        """The calls of the native kernel with their predicted seconds; those of one batch tile together."""
        machine = self.request.machine or native_machine(self.itemsize)
        return call_rows(self.recipe, self.phase, machine, list(self.network.shapes))

    def draw(self, path: str | None = None) -> Figure:
        """Draws the contraction tree with matplotlib: x and the cores below, each step above what it contracts, with
        its share of the multiply-adds and the legs of its result; lines are the wider the more numbers they carry, and
        the step with the most multiply-adds is marked.

        Args:
            path: a .png or .svg file to write.

        Raises:
            TN4NNError: another ending, or matplotlib is not installed.
        """
        return draw_tree(self.picture(), path)

    def picture(self) -> ContractionTree:
        """What `draw` shows, as plain data."""
        tensors, names, output = tensors_of(self.network, self.form)
        sizes, legs = {**self.network.sizes, BATCH: self.batch}, legs_along(tensors, output, self.path)
        numbers = [math.prod(sizes[leg] for leg in on) for on in legs]
        macs = [math.prod(sizes[leg] for leg in legs[a] | legs[b]) for a, b in self.path]
        labels = [
            " ".join([*(["batch"] if BATCH in on else []), *(leg for leg in self.network.sizes if leg in on)])
            for on in legs[len(tensors) :]
        ]
        t = self.network.topology
        title = f"{t.name} {t.in_features} -> {t.out_features}, batch {self.batch}, {self.phase}: {self.order}"
        return ContractionTree(title, names, self.path, macs, numbers, labels)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return shown(str(self))

    def __str__(self) -> str:
        return "\n".join([*_head(self), *(native_lines(self) if self.executor == "native" else _program_lines(self))])


def replaced(plan: Plan, **changes: Any) -> Plan:
    """A copy with other figures, or for other rows, that runs what the plan was lowered to."""
    result = dataclasses.replace(plan, **changes)
    vars(result).update({name: vars(plan)[name] for name in ("program", "recipe") if name in vars(plan)})
    return result


def _head(p: Plan) -> list[str]:
    cost, target = p.cost, p.request.target
    lines = [
        f"Plan for {p.network.topology.name!r} {p.network.in_features} -> {p.network.out_features}, batch {p.batch}, "
        f"{p.phase}, least {p.minimize}: {p.order}",
        f"  {cost.macs:,} MACs, {in_bytes(cost.bytes_moved)} moved, peak {in_bytes(cost.peak)}, "
        f"saved {in_bytes(cost.saved)}, predicted {cost.predicted_s * 1e3:.3g} ms",
    ]
    if target.backend:
        lines.append(f"  runs in {target.backend} on {target.device}, {target.dtype}, by the executor {p.executor!r}")
    return lines


def native_lines(p: Plan) -> list[str]:
    """The kernel calls of a native plan, those of one batch tile together."""
    measured = "" if p.measured_s is None else f", measured {p.measured_s * 1e3:.3g} ms"
    lines = [f"  native runtime, {p.block} rows at a time{measured}; calls are of one tile"]
    lines.append(f"  {'call':<80} {'h x m x k x n':<20} {'MACs':>12} {'us':>8}")
    lines += [
        f"  {row.when + ': ' + row.text:<80} {row.sizes:<20} {row.macs:>12,} {row.seconds * 1e6:>8.2f}"
        for row in p.calls()
    ]
    return lines


def _program_lines(p: Plan) -> list[str]:
    lines = []
    loops = [f"{p.program.block} rows at a time"] if p.program.block else []
    loops += [f"{math.prod(n for n, _ in p.program.sliced)} slices"] if p.program.sliced else []
    if loops:
        lines.append(f"  runs {' and '.join(loops)}; the steps are of one pass")
    lines += step_lines(p.program, p.work(), p.itemsize)
    if p.form == "kernel":
        lines.append("  then the framework's own convolution with that kernel")
    return lines


def step_lines(program: Program, works: Sequence[Work], itemsize: int) -> list[str]:
    """The steps of a program and what each does, for people."""
    names = [*program.inputs, *(f"t{i}" for i in range(len(program.steps)))]
    lines = [f"  {'step':<38} {'result':<22} {'MACs':>12} {'bytes':>10}"]
    largest = max((math.prod(w.shape) for w in works), default=0)
    for i, (step, work) in enumerate(zip(program.steps, works, strict=True)):
        text = f"t{i} = {step.kind}({', '.join(names[a] for a in step.args)})"
        mark = "  <- largest" if math.prod(work.shape) == largest and work.macs else ""
        lines.append(
            f"  {text:<38} {'x'.join(map(str, work.shape)) or 'scalar':<22} {work.macs:>12,} "
            f"{in_bytes(work.moved * itemsize):>10}{mark}"
        )
    return [*lines, f"  largest intermediate {in_bytes(largest * itemsize)}"]


def in_bytes(number: float) -> str:
    """A number of bytes in words.

    Examples:
        >>> in_bytes(1536), in_bytes(3 << 30)
        ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def restored_cost(numbers: object) -> Cost:
    """A cost out of a stored entry; TypeError where it is none."""
    if not isinstance(numbers, list) or not all(isinstance(number, int | float) for number in numbers):
        raise TypeError(f"costs are numbers, received {numbers}")
    return Cost(*numbers)
