"""How an einsum runs: in which order, by what, at what cost."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from .._base.notebook import shown
from .._graph.candidates import einsum_paths
from .._graph.einsum import Equation, Reduction
from .._graph.paths import Path, Progress
from .._graph.problem import linear_path
from .._runtime.arrays import Reducers, reduced
from .._runtime.cost import Cost, Machine
from .._runtime.lowering import Folded, folded, lower
from .._runtime.program import Ops, Program, registers_of, trace
from .._runtime.program_cost import einsum_cost
from .._runtime.target import Target
from .plan import Plan, in_bytes, native_lines, step_lines
from .planner import find
from .request import PlanRequest


@dataclasses.dataclass(frozen=True)
class EinsumRequest:
    """What is asked about an einsum. Everything that decides the answer is here, and nothing else.

    Attributes:
        equation: the equation, for operands of given shapes.
        target: where it is to run.
        phase: "forward", or "train" for a pass forward and backward.
        minimize: "time" (by the cost model), "flops" (multiply-adds) or "memory" (peak bytes).
        constants: positions of the operands that do not change.
        time_limit: seconds of the path search (large networks).
    """

    equation: Equation
    target: Target = Target()  # noqa: RUF009  (frozen)
    phase: str = "forward"
    minimize: str = "time"
    constants: frozenset[int] = frozenset()
    time_limit: float = 10.0


@dataclasses.dataclass(frozen=True)
class EinsumPlan:
    """How an einsum runs.

    Attributes:
        request: the question that it answers.
        executor: what runs it: "program" (array operations of the framework) or "native" (the C runtime of a CPU,
            where the equation is a network applied to rows).
        order: in words, where the contraction order comes from.
        path: pairs over the operands in single static assignment form: the i-th pair makes operand n + i.
        cost: of one pass; of a program with constants, without what is made of them alone.
        layer: native: the plan of the network and the rows.
    """

    request: EinsumRequest
    executor: str
    order: str
    path: Path
    cost: Cost
    layer: Plan | None = None

    @property
    def ssa_path(self) -> Path:
        """The path as cotengra's `ContractionTree.from_path(ssa_path=)` takes it: `path`."""
        return self.path

    @property
    def linear_path(self) -> Path:
        """The path as opt_einsum's `contract(optimize=)` and cotengra's `from_path(path=)` take it: each pair counts
        the operands that are left, and what it makes goes to their end."""
        return linear_path(self.path)

    @functools.cached_property
    def program(self) -> Program:
        """The path in array operations, over what the reductions leave of the operands."""
        return program_of(self.request.equation, self.path)

    @functools.cached_property
    def folded(self) -> Folded:
        """The program in two parts: what is made of constants alone, and the rest."""
        return folded(self.program, self.request.constants)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return shown(str(self))

    def __str__(self) -> str:
        return "\n".join([*_head(self), *(native_lines(self.layer) if self.layer else _steps(self))])


def program_of(equation: Equation, path: Path) -> Program:
    """The program of a path over the operands of an equation."""
    problem = equation.problem
    names = [f"operand{i}" for i in range(len(problem.tensors))]
    shape = equation.output_shape
    return lower(problem.tensors, problem.output, problem.sizes, path, names=names, output_shape=shape, wide=True)


def find_einsum(request: EinsumRequest, *, cache: bool = True, progress: Progress | None = None) -> EinsumPlan:
    """The plan that runs an einsum.

    Every order is lowered and priced, and the cheapest wins. Where the equation is a network applied to rows and the
    target has the native runtime, that runs it if its plan is cheaper still.

    Args:
        request: the question.
        cache: False searches anew and stores nothing.
        progress: called with a line of text per tree of the path search.
    """
    equation, target = request.equation, request.target
    machine = target.machine or Machine()
    shapes = [tuple(equation.sizes[leg] for leg in legs) for legs in equation.problem.tensors]
    found = list[EinsumPlan]()
    for order, path in einsum_paths(
        equation.problem, constants=request.constants, time_limit=request.time_limit, cache=cache, progress=progress
    ):
        program = program_of(equation, path)
        cost = einsum_cost(program, shapes, request.phase, target.itemsize, machine, request.constants)
        plan = EinsumPlan(request, "program", order, path, cost)
        vars(plan)["program"] = program
        found.append(plan)
    found += _native(request, cache, progress)
    return min(found, key=lambda plan: plan.cost.score(request.minimize))


class Prepared(NamedTuple):
    """What a framework runs for a plan.

    Attributes:
        program: its inputs are the operands that are no constants, and what was made of constants.
        kept: what was made of constants.
        reductions: what is done to the operands first; empty where nothing is done to any.
    """

    program: Program
    kept: list[Any]
    reductions: tuple[Reduction | None, ...]


def prepared(plan: EinsumPlan, arrays: Sequence[Any], ops: Ops, reducers: Reducers) -> Prepared:
    """What a framework runs for a plan; what is made of constants alone is computed now.

    Args:
        plan: the plan.
        arrays: the operands in their common dtype, of which the constants are used.
        ops: the framework's array operations.
        reducers: those on single operands.
    """
    reductions = plan.request.equation.reductions
    program, kept = plan.program, list[Any]()
    if plan.request.constants:
        parts = plan.folded
        constants = [reduced(reducers, arrays[i], reductions[i]) for i in parts.fixed]
        registers = registers_of(ops, parts.steps, constants)
        program, kept = parts.rest, [registers[register] for register in parts.kept]
        reductions = tuple(reductions[i] for i in parts.varying)
    return Prepared(program, kept, reductions if any(reductions) else ())


def _native(request: EinsumRequest, cache: bool, progress: Progress | None) -> Sequence[EinsumPlan]:
    layer, target = request.equation.layer, request.target
    if layer is None or request.constants or "native" not in target.executors:
        return ()  # in every call it would contract constants again
    question = PlanRequest(
        layer.network, layer.batch, request.phase, request.minimize, target=target.only("native", "program"),
        time_limit=request.time_limit,
    )  # fmt: skip
    plan = find(question, cache=cache, progress=progress)
    if plan.executor != "native":
        return ()
    return (EinsumPlan(request, "native", plan.order, layer.over_operands(plan.path), plan.cost, plan),)


def _head(p: EinsumPlan) -> list[str]:
    request, cost = p.request, p.cost
    equation, target = request.equation, request.target
    shape = "x".join(map(str, equation.output_shape)) or "scalar"
    text = equation.text if len(equation.text) <= 80 else f"{equation.text[:77]}..."
    lines = [
        f"Plan for {text!r}, {len(equation.operands)} operands -> {shape}, {request.phase}, least "
        f"{request.minimize}: {p.order}",
        f"  {cost.macs:,} MACs, {in_bytes(cost.bytes_moved)} moved, peak {in_bytes(cost.peak)}, "
        f"saved {in_bytes(cost.saved)}, predicted {cost.predicted_s * 1e3:.3g} ms",
    ]
    if target.backend:
        lines.append(f"  runs in {target.backend} on {target.device}, {target.dtype}, by the executor {p.executor!r}")
    if request.constants:
        lines.append(f"  constants: {', '.join(f'operand{i}' for i in sorted(request.constants))}")
    return lines


def _steps(p: EinsumPlan) -> list[str]:
    equation = p.request.equation
    lines = [
        f"  operand{i} first: its diagonals, sums over indices of its own, axes of size 1"
        for i, reduction in enumerate(equation.reductions)
        if reduction is not None
    ]
    shapes = [tuple(equation.sizes[leg] for leg in legs) for legs in equation.problem.tensors]
    works = trace(p.program, shapes)
    return [*lines, *step_lines(p.program, works, p.request.target.itemsize)]
