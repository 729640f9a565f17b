"""The executors of array programs: orders lowered to reshape, permute, matmul and multiply, and priced."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Sequence

from .._graph.paths import EXHAUSTIVE, REORDERED, SMALL, Path, Progress, reordered_slices, slice_legs
from .._graph.problem import BY_HAND
from .._runtime.cost import Cost, Machine
from .._runtime.program import Program
from .._runtime.program_cost import convolution_cost, program_cost, unfolding_cost
from .plan import Plan, replaced
from .request import PlanRequest

_MOST_SLICES = 1 << 10  # of a reordered program: each takes a pass over all steps


def program_machine(request: PlanRequest) -> Machine:
    """Parameters of the cost model for array programs."""
    return request.machine or request.target.machine or Machine()


class ProgramExecutor:
    """Array operations of a framework (or another library along the same path)."""

    version = 12

    def __init__(self, name: str) -> None:
        self.name = name

    def refuses(self, request: PlanRequest) -> str | None:
        """See `Executor`: every framework runs programs."""
        return None

    def key(self, request: PlanRequest) -> Sequence[object]:
        """See `Executor`."""
        return dataclasses.astuple(program_machine(request))

    def candidates(
        self,
        request: PlanRequest,
        paths: Sequence[tuple[str, Path]],
        seconds: float = math.inf,
        progress: Progress | None = None,
    ) -> list[Plan]:
        """See `Executor`. Orders whose multiply-adds alone take longer than the best so far are not lowered."""
        machine, problem = program_machine(request), request.problem
        passes = 3 if request.phase == "train" else 1
        start, found = time.monotonic(), list[Plan]()
        for i, (order, path) in enumerate(paths):
            if found and (time.monotonic() - start) * (i + 1) / i > seconds:
                break
            best = min((p.cost.predicted_s for p in found), default=math.inf)
            named = order in BY_HAND and len(problem.tensors) <= EXHAUSTIVE
            if request.minimize == "time" and not named and passes * problem.macs(path) > best * machine.macs_per_s:
                continue
            found.append(self.plan(request, order, path))
        return sorted(found, key=lambda p: p.cost.score(request.minimize))

    def plan(self, request: PlanRequest, order: str, path: Path, sliced: tuple[str, ...] = (), block: int = 0) -> Plan:
        """One order as a plan, priced."""
        bare = Plan(request, self.name, order, path, Cost(0, 0, 0, 0, 0.0), block=block, sliced=sliced)
        return replaced(bare, cost=self.cost(bare))

    def cost(self, plan: Plan) -> Cost:
        """See `Executor`."""
        request, machine = plan.request, program_machine(plan.request)
        question = request.phase, request.itemsize, machine
        cost = program_cost(request.problem, plan.program, *question)
        if request.form == "kernel":
            return cost + convolution_cost(request.problem, request.window, *question)
        if request.window > 1:
            return cost + unfolding_cost(request.problem, request.window, *question)
        return cost

    def lower(self, plan: Plan) -> Program:
        """See `Executor`."""
        return plan.program

    def smaller(self, plan: Plan, reorder: bool = True) -> Iterable[Iterator[Plan]]:
        """See `Executor`: fewer rows at a time, or slices of the summed legs."""
        most = 0 if not reorder else len(REORDERED) if len(plan.request.problem.tensors) <= SMALL else 1
        reordered = (self._reordered(plan, *way) for way in REORDERED[:most])
        return self._in_tiles(plan), self._in_slices(plan), *reordered

    def could_make(self, plan: Plan) -> bool:
        """See `Executor`."""
        if plan.layouts or plan.save or (plan.block and plan.sliced):
            return False
        if plan.request.memory is None or plan.form == "gather":
            return not plan.block and not plan.sliced
        return not plan.block or (plan.form == "apply" and plan.block in _tiles(plan.batch))

    def _in_tiles(self, p: Plan) -> Iterator[Plan]:
        """The same order on ever fewer rows at a time."""
        for block in _tiles(p.batch) if p.form == "apply" else ():
            yield self.plan(p.request, p.order, p.path, (), block)

    def _in_slices(self, p: Plan) -> Iterator[Plan]:
        """The same order in ever smaller slices. What is tried does not depend on the cap, so a cap that is met once is
        met for every larger one too."""
        problem = p.request.problem
        largest = max(math.prod(work.shape) for work in p.work())
        seen: set[tuple[str, ...] | None] = {(), None}
        while p.form != "gather" and largest > 1:
            largest //= 2
            sliced = slice_legs(problem.tensors, problem.output, problem.sizes, p.path, largest)
            if sliced is not None and sliced not in seen:
                yield self.plan(p.request, p.order, p.path, sliced)
            seen.add(sliced)

    def _reordered(self, p: Plan, minimize: str, subtree: int) -> Iterator[Plan]:
        """Other orders, in ever smaller slices."""
        problem = p.request.problem
        question = problem.tensors, problem.output, problem.sizes, p.path, minimize, subtree
        for path, sliced in reordered_slices(*question) if p.form != "gather" else ():
            if math.prod(problem.sizes[leg] for leg in sliced) > _MOST_SLICES:
                return
            yield self.plan(p.request, p.order, path, sliced)


def _tiles(batch: int) -> Iterator[int]:
    """Rows at a time, ever fewer."""
    while batch > 1:
        batch = -(-batch // 2)
        yield batch


class DenseExecutor(ProgramExecutor):
    """The framework's own matrix product, where W is one core: a matrix, or the transpose of one."""

    def __init__(self) -> None:
        super().__init__("dense")

    def refuses(self, request: PlanRequest) -> str | None:
        """See `Executor`."""
        t = request.network.topology
        return None if t.is_matrix and request.form != "gather" else f"{t.name!r} is not one matrix"
