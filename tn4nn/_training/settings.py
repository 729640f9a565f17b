"""How to train: the arguments of `train` except the data, checked."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .._base.checks import at_least, nearest, one_of
from .._base.errors import TN4NNError
from .._graph.decay import checked_decay, decay_of_cores
from .._graph.init import OPTIMIZERS
from .._model.backend import Trainer, TrainSpec
from .._model.backend import backend as load_backend
from .._model.layers import Layer, OnNetwork
from .._model.layers.base import join, of_cores
from .autorank import AutoRank
from .schedule import Schedule, learning_rates

LOSSES = ("cross_entropy", "mse")
PRECISIONS = ("float32", "float64", "bf16")


@dataclasses.dataclass(frozen=True, slots=True)
class Course:
    """The steps of a run.

    Attributes:
        per_epoch: that see each row once.
        total: of the run.
        every: steps from one evaluation to the next; there is one after the last step in any case.
    """

    per_epoch: int
    total: int
    every: int

    def is_due(self, step: int) -> bool:
        """Whether there is an evaluation after so many steps."""
        return step % self.every == 0 or step == self.total

    def samples(self, step: int, rows: int, batch_size: int) -> int:
        """Rows that were trained on in so many steps; the last step of an epoch takes what is left."""
        epochs, rest = divmod(step, self.per_epoch)
        return epochs * rows + rest * batch_size

    def evaluations(self, step: int) -> int:
        """How many there are in so many steps."""
        return step // self.every + bool(step == self.total and step % self.every)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Names, meanings and defaults are those of the arguments of `train`.

    Raises:
        TN4NNError: an unknown word, a number out of range, or settings that exclude each other.
    """

    backend: str = "torch"
    seed: int = 0
    epochs: int = 10
    steps: int | None = None
    evaluate_every: int | None = None
    batch_size: int = 100
    optimizer: str = "adam"
    lr: float = 1e-3
    schedule: Schedule = "cosine"
    warmup: int = 0
    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float | Mapping[str, float] = 0.0
    lr_factors: str | Mapping[str, float] = "structure"
    weight_norm: bool = False
    loss: str = "cross_entropy"
    precision: str = "float32"
    device: str | None = None
    patience: int | None = None
    checkpoint: str | Path | None = None
    checkpoint_every: int | None = None
    ranks: AutoRank | None = None

    def __post_init__(self) -> None:
        one_of(self.optimizer, OPTIMIZERS, "optimizer")
        one_of(self.loss, LOSSES, "loss")
        one_of(self.precision, PRECISIONS, "precision")
        at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        for name in ("steps", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) is not None:
                at_least(1, **{name: getattr(self, name)})
        if self.ranks is not None and self.weight_norm:
            raise TN4NNError("ranks= changes cores that weight_norm= makes out of others: give one of the two")
        if self.ranks is not None and self.checkpoint is not None:
            raise TN4NNError(
                "ranks= changes the model between epochs, which a checkpoint cannot store: give one of the two"
            )

    def steps_per_epoch(self, rows: int) -> int:
        """Steps that see each of so many rows once; the last one takes what is left."""
        return -(-rows // self.batch_size)

    def course(self, rows: int) -> Course:
        """How a run on so many rows goes: its steps, and when it looks at the validation split."""
        per_epoch = self.steps_per_epoch(rows)
        total = self.epochs * per_epoch if self.steps is None else self.steps
        return Course(per_epoch, total, self.evaluate_every or per_epoch)

    def rates(self, rows: int) -> Sequence[float]:
        """The learning rate of every step of a run on so many rows."""
        course = self.course(rows)
        return learning_rates(
            self.schedule, self.lr, steps=course.total, steps_per_epoch=course.per_epoch, warmup=self.warmup
        )

    def spec(self, model: Layer) -> TrainSpec:
        """What the trainer of a model has to know."""
        factors = _lr_factors(model, self.lr_factors, self.lr, self.optimizer)
        return dataclasses.replace(
            self.plain_spec(),
            lr_factors=factors,
            decay=_decay(model, self.weight_decay, factors, self.optimizer),
            matrices=of_cores(model, lambda layer: layer.matrix_axes()) if self.optimizer == "muon" else {},
            caps=of_cores(model, lambda layer: layer.core_scales()) if self.weight_norm else {},
        )

    def plain_spec(self) -> TrainSpec:
        """The same without what is different for each weight."""
        return TrainSpec(
            loss=self.loss,
            optimizer=self.optimizer,
            momentum=self.momentum,
            nesterov=self.nesterov,
            betas=self.betas,
            eps=self.eps,
            lr_factors={},
            decay={},
            precision=self.precision,
            device=self.device,
            seed=self.seed,
            batch_size=self.batch_size,
        )

    def trainer(self, model: Layer, weights: Mapping[str, NDArray[Any]]) -> Trainer:
        """A trainer of the backend, at the start of a run."""
        return load_backend(self.backend).trainer(model, weights, self.spec(model))


def _lr_factors(model: Layer, given: str | Mapping[str, float], lr: float, optimizer: str) -> dict[str, float]:
    if isinstance(given, Mapping):
        return _by_pattern(model, given, 1.0, "lr_factors")
    one_of(given, ("none", "structure"), "lr_factors")
    found = dict.fromkeys(model.specs(), 1.0)
    if given == "structure":
        found |= of_cores(model, lambda layer: layer.lr_factors(lr=lr if lr > 0 else None, optimizer=optimizer))
    return found


def _decay(
    model: Layer, given: float | Mapping[str, float], factors: Mapping[str, float], optimizer: str
) -> dict[str, float]:
    """Decay of each weight. A number is that of W: of the cores of a layer each gets its part, but for "adam", which
    divides it by the gradients of each number."""
    if isinstance(given, Mapping):
        return _by_pattern(model, given, 0.0, "weight_decay")
    own = checked_decay(given)
    found = {name: own if spec.role == "core" else 0.0 for name, spec in model.specs().items()}
    if own and optimizer != "adam":
        for name, layer in model.walk():
            if isinstance(layer, OnNetwork):
                cores = {join(name, core): factors[join(name, core)] for core in layer.solid().shapes}
                found |= decay_of_cores(own, cores)
    return found


def _by_pattern(model: Layer, patterns: Mapping[str, float], default: float, what: str) -> dict[str, float]:
    """A number for each weight; of several patterns that match one, the last counts."""
    names = model.specs()
    found = dict.fromkeys(names, default)
    for pattern, value in patterns.items():
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise TN4NNError(f"{what}: {pattern!r} matches no weight." + nearest(pattern, names))
        found.update(dict.fromkeys(matched, float(value)))
    return found
