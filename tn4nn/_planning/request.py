"""The question that a plan answers: which network, for how many rows, for what, and where."""

from __future__ import annotations

import dataclasses

from .._base.errors import TN4NNError
from .._graph.network import Network
from .._graph.problem import FORMS, Form, Problem
from .._runtime.cost import Machine
from .._runtime.target import Target

PHASES = ("forward", "train")
OBJECTIVES = ("time", "flops", "memory")
_ALL_PHASES = (*PHASES, "frozen")


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """What is to be planned. Everything that decides the answer is here, and nothing else.

    Attributes:
        network: what is applied.
        batch: rows of x.
        phase: "forward", "train" for a step of forward and backward, or "frozen" for a forward pass that finds ready
            what is made of cores alone.
        minimize: "time" (by the cost model), "flops" (multiply-adds) or "memory" (peak bytes).
        form: "apply" for y = x W^T, "gather" for rows of W^T picked by integers, "dense" for W, "kernel" for W and the
            framework's own convolution with it.
        target: where it is to run.
        memory: cap in bytes on the peak.
        tune: measure the best few candidates.
        seed: of the path search (large networks).
        time_limit: seconds of the path search, and of pricing (large networks).
        machine: parameters of the cost model in place of the target's.
        window: positions of a convolution's kernel (kh * kw); rows of x are then patches of images.

    Raises:
        TN4NNError: no network, an unknown phase, objective or form, a batch below 1.

    Examples:
        >>> import tn4nn as tn
        >>> PlanRequest(tn.low_rank(64, 64).with_rank(4), 32, "train").itemsize
        4
    """

    network: Network
    batch: int
    phase: str = "forward"
    minimize: str = "time"
    form: Form = "apply"
    target: Target = Target()  # noqa: RUF009  (frozen)
    memory: int | None = None
    tune: bool = False
    seed: int = 0
    time_limit: float = 10.0
    machine: Machine | None = None
    window: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.network, Network):
            raise TN4NNError(
                f"plan takes a Network, received {type(self.network).__name__}: give a topology ranks (with_rank, "
                "with_budget), and plan the layers of a model one by one (model.networks())"
            )
        if self.phase not in _ALL_PHASES:
            raise TN4NNError(f"phase must be one of {', '.join(PHASES)}, received {self.phase!r}")
        if self.minimize not in OBJECTIVES:
            raise TN4NNError(f"minimize must be one of {', '.join(OBJECTIVES)}, received {self.minimize!r}")
        if self.form not in FORMS:
            raise TN4NNError(f"form must be one of {', '.join(FORMS)}, received {self.form!r}")
        if self.batch < 1:
            raise TN4NNError(f"a plan needs a batch of at least 1 row, received {self.batch}")

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return self.target.itemsize

    @property
    def problem(self) -> Problem:
        """The contraction that is asked about."""
        return Problem(self.network, self.form, self.batch)

    def at(self, batch: int) -> PlanRequest:
        """The same question for another number of rows."""
        return self if batch == self.batch else dataclasses.replace(self, batch=batch)


def bucket(batch: int) -> int:
    """The batch class: what a plan is made for when batches vary, the next power of four.

    Examples:
        >>> [bucket(n) for n in (0, 1, 3, 64, 65)]
        [1, 1, 4, 64, 256]
    """
    size = 1
    while size < batch:
        size *= 4
    return size
