"""What training gives: the history of its epochs, and the finished run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.notebook import shown
from .._base.tables import text_table
from .._model.backend import Module


@dataclasses.dataclass(frozen=True, slots=True)
class Epoch:
    """One line of a run's history: an epoch, or with `evaluate_every` the steps from one evaluation to the next.

    Attributes:
        epoch: counted from 1.
        loss: mean training loss over its steps.
        validation_loss: NaN without a validation split.
        accuracy: on the validation split, percent; NaN without one or for "mse".
        seconds: of training, evaluation left out.
        step: the number of steps that were done after it.

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.Linear(tn.mpo((8, 8), (2, 5)).with_rank(4))
        >>> run = tn.train(model, tn.load_data("digits"), backend="torch", epochs=2)
        >>> [line.epoch for line in run.history], run.history[1].loss < run.history[0].loss
        ([1, 2], True)
    """

    epoch: int
    loss: float
    validation_loss: float
    accuracy: float
    seconds: float
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Run:
    """What training gave.

    Attributes:
        losses: of every step, shape (steps,).
        accuracy: on the validation split at the last epoch, percent; NaN without a split.
        best_accuracy: the best over the epochs, and
        best_epoch: the epoch at which it was reached.
        test_accuracy: on the test split with the last weights, percent; NaN where no test data was given, or for "mse".
        weights: name -> array after the last step.
        best_weights: after the epoch with the best validation accuracy, or loss where the task is scored by it.
        history: one Epoch each.
        module: the native trained module, with the last weights.
        samples_per_s: training throughput.
        stopped_early: whether `patience` ended it.
        model: the layer graph of `weights`: what was given, or with `ranks=` what it became; None for a module of a
            person's own.
        ranks: with `ranks=` the ranks after each change, by epoch: layer -> bond -> rank.
        test_loss: on the test split with the last weights; NaN where no test data was given.

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.Linear(tn.mpo((8, 8), (2, 5)).with_rank(4))
        >>> run = tn.train(model, tn.load_data("digits"), backend="torch", epochs=2)
        >>> len(run.history), sorted(run.weights), bool(run.losses[-1] < run.losses[0])
        (2, ['bias', 'core0', 'core1'], True)
    """

    losses: NDArray[np.float64]
    accuracy: float
    best_accuracy: float
    best_epoch: int
    test_accuracy: float
    weights: dict[str, NDArray[Any]]
    best_weights: dict[str, NDArray[Any]]
    history: tuple[Epoch, ...]
    module: Module
    samples_per_s: float
    stopped_early: bool
    model: Any
    ranks: Mapping[int, Mapping[str, Mapping[str, int]]] = dataclasses.field(default_factory=dict)
    test_loss: float = math.nan

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return shown(str(self))

    def __str__(self) -> str:
        table = text_table(
            ("epoch", "loss", "val loss", "val acc %", "s"),
            [
                (str(e.epoch), f"{e.loss:.4f}", f"{e.validation_loss:.4f}", f"{e.accuracy:.2f}", f"{e.seconds:.2f}")
                for e in self.history
            ],
            left=0,
        )
        test = f"test accuracy {self.test_accuracy:.2f} %, loss {self.test_loss:.4f}"
        return f"{table}\n{test}, {self.samples_per_s:,.0f} samples/s"
