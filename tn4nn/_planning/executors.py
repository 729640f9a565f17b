"""Executors: what can run a plan. A new one is a class here and its name in a backend's `Target.executors`.

Which one runs is decided in one place: `select` takes the first of the target's executors that can run the request.
The order is the backend's: its fastest first, by what was measured (benchmarks/step_time.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from .._base.errors import TN4NNError
from .._graph.paths import Path, Progress
from .._graph.problem import Problem
from .._runtime.cost import Cost
from .._runtime.program import Program
from .._runtime.recipe import Recipe
from .native import NativeExecutor
from .plan import Plan
from .program import DenseExecutor, ProgramExecutor
from .request import PlanRequest


class Executor(Protocol):
    """What can run plans.

    Attributes:
        name: in `Target.executors` and `Plan.executor`.
        version: raised when the same request may find another plan: stored plans are then ignored.
    """

    name: str
    version: int

    def refuses(self, request: PlanRequest) -> str | None:
        """Why it cannot run this, in words; None where it can."""
        ...

    def key(self, request: PlanRequest) -> Sequence[object]:
        """What its answer depends on beside the request, as plain data: parameters of its cost model."""
        ...

    def candidates(
        self,
        request: PlanRequest,
        paths: Sequence[tuple[str, Path]],
        seconds: float = math.inf,
        progress: Progress | None = None,
    ) -> list[Plan]:
        """The orders as plans, priced, the best first; after so many seconds no further one is priced. None where every
        order is beyond what it can run: then the next executor of the target is asked."""
        ...

    def cost(self, plan: Plan) -> Cost:
        """The cost of a plan at its request's batch."""
        ...

    def lower(self, plan: Plan) -> Program | Recipe:
        """What runs."""
        ...

    def smaller(self, plan: Plan, reorder: bool = True) -> Iterable[Iterator[Plan]]:
        """The same order with less memory, where asked for others too: sequences of plans with ever smaller peaks."""
        ...

    def could_make(self, plan: Plan) -> bool:
        """Whether it is one of its own plans: what came with somebody's model may be any combination."""
        ...


_EVERY: tuple[Executor, ...] = (
    NativeExecutor(),
    DenseExecutor(),
    ProgramExecutor("program"),
    ProgramExecutor("graph"),
    ProgramExecutor("quimb"),
    ProgramExecutor("tensornetwork"),
)
EXECUTORS: dict[str, Executor] = {executor.name: executor for executor in _EVERY}


def select(request: PlanRequest) -> Executor:
    """The executor of a request: the first of its target's that can run it.

    Raises:
        TN4NNError: none can; the message has each one's reason.

    Examples:
        >>> import tn4nn as tn
        >>> select(PlanRequest(tn.low_rank(64, 64).with_rank(4), 32)).name
        'program'
    """
    reasons = []
    for name in request.target.executors:
        executor = EXECUTORS[name]
        reason = executor.refuses(request)
        if reason is None:
            return executor
        reasons.append(reason)
    raise TN4NNError("; ".join(dict.fromkeys(reasons)))


def problem_of(request: PlanRequest) -> Problem:
    """The contraction whose orders are searched for: a kernel's W does not depend on the rows."""
    return request.problem.at(1) if request.form in ("dense", "kernel") else request.problem
