"""The training runs of one cell: those that choose its learning rate, and the one whose accuracy is reported."""

from __future__ import annotations

import math

from .._base.errors import TN4NNError
from .._training.data import Dataset
from .._training.pairs import Pair
from .._training.results import Run
from .._training.train import train
from .cells import Cell
from .rows import Outcome
from .settings import LEARNING_RATES, Settings

SEARCH_SEED = 1_000  # of the learning-rate search: no seed that is reported
FAILURES = (TN4NNError, RuntimeError, ValueError, MemoryError)  # of one cell, which end no sweep


def run_cell(cell: Cell, data: Dataset, settings: Settings, lr: float) -> Outcome:
    """Trains a cell; a failure is an outcome too."""
    try:
        run = _run(cell, data, settings, lr, cell.seed, settings.epochs)
    except FAILURES as error:
        return Outcome(lr, reason=f"{type(error).__name__}: {error}")
    if not math.isfinite(float(run.losses[-1])):
        return Outcome(lr, reason=f"the loss is {run.losses[-1]} at the last step: diverged")
    return Outcome(lr, "ok", accuracy=run.test_accuracy, best_validation=run.best_accuracy)


def best_rate(cell: Cell, data: Dataset, settings: Settings) -> float:
    """The learning rate with the best validation accuracy (ties: lower validation loss), on a seed of its own."""
    if isinstance(settings.lr, int | float):
        return float(settings.lr)
    rows = slice(settings.search_rows)
    some = data.x_train[rows], data.y_train[rows]
    return max(LEARNING_RATES, key=lambda lr: (*_score(cell, some, settings, lr), lr))


def _score(cell: Cell, data: Pair, settings: Settings, lr: float) -> tuple[float, float]:
    """Validation accuracy and minus the validation loss after a short run; larger is better."""
    try:
        last = _run(cell, data, settings, lr, SEARCH_SEED, settings.search_epochs).history[-1]
    except FAILURES:  # the run of the cell itself will say what is wrong
        return -1.0, -math.inf
    return (last.accuracy, -last.validation_loss) if math.isfinite(last.validation_loss) else (-1.0, -math.inf)


def _run(cell: Cell, data: Dataset | Pair, settings: Settings, lr: float, seed: int, epochs: int) -> Run:
    return train(
        cell.model, data, backend=cell.backend, seed=seed, epochs=epochs, batch_size=settings.batch_size,
        optimizer=settings.optimizer, lr=lr, precision=settings.precision, device=settings.device,
    )  # fmt: skip
