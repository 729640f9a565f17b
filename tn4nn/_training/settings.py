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
from .._model.backend import Trainer, TrainSpec
from .._model.backend import backend as load_backend
from .._model.layers import Layer
from .autorank import AutoRank
from .schedule import Schedule, learning_rates

OPTIMIZERS = ("sgd", "adam", "adamw")
LOSSES = ("cross_entropy", "mse")
PRECISIONS = ("float32", "float64", "bf16")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Names, meanings and defaults are those of the arguments of `train`.

    Raises:
        TN4NNError: an unknown word, a number out of range, or settings that exclude each other.
    """

    backend: str = "torch"
    seed: int = 0
    epochs: int = 10
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
        if self.checkpoint_every is not None:
            at_least(1, checkpoint_every=self.checkpoint_every)
        if self.ranks is not None and self.checkpoint is not None:
            raise TN4NNError(
                "ranks= changes the model between epochs, which a checkpoint cannot store: give one of the two"
            )

    def steps_per_epoch(self, rows: int) -> int:
        """Steps that see each of so many rows once; the last one takes what is left."""
        return -(-rows // self.batch_size)

    def rates(self, rows: int) -> Sequence[float]:
        """The learning rate of every step of a run on so many rows."""
        steps = self.steps_per_epoch(rows)
        return learning_rates(
            self.schedule, self.lr, steps=self.epochs * steps, steps_per_epoch=steps, warmup=self.warmup
        )

    def spec(self, model: Layer) -> TrainSpec:
        """What the trainer of a model has to know."""
        return TrainSpec(
            loss=self.loss,
            optimizer=self.optimizer,
            momentum=self.momentum,
            nesterov=self.nesterov,
            betas=self.betas,
            eps=self.eps,
            lr_factors=_lr_factors(model, self.lr_factors),
            decay=_decay(model, self.weight_decay),
            precision=self.precision,
            device=self.device,
            seed=self.seed,
            batch_size=self.batch_size,
        )

    def trainer(self, model: Layer, weights: Mapping[str, NDArray[Any]]) -> Trainer:
        """A trainer of the backend, at the start of a run."""
        return load_backend(self.backend).trainer(model, weights, self.spec(model))


def _lr_factors(model: Layer, given: str | Mapping[str, float]) -> dict[str, float]:
    if isinstance(given, Mapping):
        return _by_pattern(model, given, 1.0, "lr_factors")
    one_of(given, ("none", "structure"), "lr_factors")
    return {name: spec.lr_factor if given == "structure" else 1.0 for name, spec in model.specs().items()}


def _decay(model: Layer, given: float | Mapping[str, float]) -> dict[str, float]:
    if isinstance(given, Mapping):
        return _by_pattern(model, given, 0.0, "weight_decay")
    return {name: float(given) if spec.role == "core" else 0.0 for name, spec in model.specs().items()}


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
