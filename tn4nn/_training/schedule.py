"""Learning-rate schedules, as plain numbers: one list for all backends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import overload

from .._base.checks import nearest
from .._base.errors import TN4NNError

Schedule = str | tuple[str, float] | tuple[str, int, float] | Callable[[int, int], float]

DECAY = 0.2  # share of a warmup-stable-decay run in which the rate falls

# (share of the run that is over) -> factor on the learning rate
_SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "wsd": lambda done: min(1.0, (1 - done) / DECAY),
}


def learning_rates(
    schedule: Schedule, lr: float, *, steps: int, steps_per_epoch: int, warmup: int = 0
) -> Sequence[float]:
    """The learning rate of every step.

    Args:
        schedule: "constant", "cosine" (to 0), "linear" (to 0), "wsd" (warmup-stable-decay: constant, then linear to 0
            over the last fifth; Hu et al., arXiv:2404.06395), ("wsd", share of the fall), ("exponential", factor per
            epoch), ("step", epochs, factor every so many epochs), or a function (step, steps) -> factor.
        lr: the largest rate.
        steps: of the whole run.
        steps_per_epoch: for the schedules that count epochs.
        warmup: steps in which the rate rises linearly; they come out of `steps`.

    Raises:
        TN4NNError: an unknown schedule, a rate below 0 or not finite.

    Examples:
        >>> from tn4nn import learning_rates
        >>> learning_rates("linear", 1.0, steps=4, steps_per_epoch=4)
        [1.0, 0.75, 0.5, 0.25]
    """
    if not (math.isfinite(lr) and lr >= 0):
        raise TN4NNError(f"lr must be a finite number of at least 0, received {lr!r}")
    return _Rates(lr, _factor(schedule, steps_per_epoch), steps, warmup)


@dataclasses.dataclass(frozen=True, eq=False)
class _Rates(Sequence[float]):
    """The rates of a run, computed as they are read: a run may be asked for more steps than fit into memory."""

    lr: float
    factor: Callable[[int, int], float]
    steps: int
    warmup: int

    def __len__(self) -> int:
        return self.steps

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        if isinstance(index, slice):
            return [self[step] for step in range(*index.indices(self.steps))]
        step = range(self.steps)[index]
        rising = min(1.0, (step + 1) / (self.warmup + 1))
        rest = max(1, self.steps - self.warmup)
        return self.lr * rising * self.factor(max(0, step - self.warmup), rest)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return repr(list(self))


def _factor(schedule: Schedule, steps_per_epoch: int) -> Callable[[int, int], float]:
    if callable(schedule):
        return schedule
    if isinstance(schedule, str) and schedule in _SHAPES:
        shape = _SHAPES[schedule]
        return lambda step, steps: shape(step / steps)
    match schedule:
        case ("wsd", float() | int() as share) if 0 < share <= 1:
            return lambda step, steps: min(1.0, (1 - step / steps) / share)
        case ("exponential", float() | int() as rate):
            return lambda step, _: float(rate) ** (step // steps_per_epoch)
        case ("step", int() as every, float() | int() as rate):
            return lambda step, _: float(rate) ** (step // (every * steps_per_epoch))
    raise TN4NNError(
        f"unknown schedule {schedule!r}: expected 'constant', 'cosine', 'linear', 'wsd', ('exponential', 0.99), "
        "('step', 50, 0.3) or a function (step, steps) -> factor."
        + (nearest(schedule, _SHAPES) if isinstance(schedule, str) else "")
    )
