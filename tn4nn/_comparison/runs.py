"""The training runs of one cell: those that choose its learning rate, and the one whose result is reported."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from .._base.errors import DataError
from .._model.foreign import foreign
from .._training.modules import train_module
from .._training.results import Run
from .._training.settings import TrainSettings
from .._training.splits import Subset
from .._training.tasks import Task
from .._training.train import train
from .cells import Cell
from .modules import Fit, Recipe, ends_one_cell
from .rows import Outcome
from .settings import LARGER_RATES, LEARNING_RATES, SMALLER_RATES, Settings

SEARCH_SEED = 1_000  # of the learning-rate search: no seed that is reported
FAILED = (-math.inf, -math.inf)  # the score of a rate with which nothing is learnt
# Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943): all rates for the first share of a run, then the
# best two for the second.
RUNGS = (1 / 9, 1 / 3)


@dataclasses.dataclass(frozen=True)
class Rate:
    """A learning rate, and what it took to find it.

    Attributes:
        lr: the rate; None where a person's own training decides.
        search_steps: of all runs of the search together.
    """

    lr: float | None
    search_steps: int = 0


def run_cell(cell: Cell, task: Task, settings: Settings, rate: Rate, steps: int | None) -> Outcome:
    """Trains a cell for so many steps, or for the epochs of the settings; a failure is an outcome too."""
    found = Outcome(rate.lr, search_steps=rate.search_steps)
    try:
        if cell.own_fit is not None:
            metrics = _own_fit(cell, cell.own_fit, rate.lr, steps)
            return dataclasses.replace(found, status="ok", metrics=metrics, steps=steps)
        run = _run(cell, task, settings, _known(rate.lr), cell.seed, steps, 1.0)
    except Exception as error:
        if not ends_one_cell(error, cell.variant.model):
            raise
        return dataclasses.replace(found, reason=f"{type(error).__name__}: {error}")
    if not math.isfinite(float(run.losses[-1])):
        return dataclasses.replace(found, reason=f"the loss is {run.losses[-1]} at the last step: diverged")
    last = run.history[run.best_epoch - 1]
    named = {"loss": run.test_loss, "accuracy": run.test_accuracy}
    if task.test is None:
        named = {"loss": run.history[-1].validation_loss, "accuracy": run.accuracy}
    best = last.accuracy if task.larger_is_better else last.validation_loss
    return dataclasses.replace(
        found,
        status="ok",
        metrics={name: value for name, value in named.items() if math.isfinite(value)},
        best_validation=best if math.isfinite(best) else None,
        steps=len(run.losses),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class FitCell:
    """What a person's own `fit` is told of the run.

    Attributes:
        topology: name in the table.
        budget: what was asked for.
        seed: of the run.
        backend: name.
        lr: learning rate of `compare`; None for "auto", where `fit` decides.
        steps: of `compare`; None where it gives none.
        role: "topology", "dense" or "narrow".
        width: on a ladder of widths.
    """

    topology: str
    budget: float
    seed: int
    backend: str
    lr: float | None
    steps: int | None
    role: str
    width: int | None


def _own_fit(cell: Cell, fit: Fit, lr: float | None, steps: int | None) -> dict[str, float]:
    """The metrics that a person's own training returns.

    Raises:
        DataError: something else than numbers by name, or a number that is not finite.
    """
    variant = cell.variant
    told = FitCell(variant.topology, variant.budget, cell.seed, cell.backend, lr, steps, variant.role, variant.width)
    with foreign(cell.backend).seeded(cell.seed):
        found = fit(variant.model.built(cell.seed), told)
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"fit returned {found!r:.100}: expected metrics by name, for instance {{'loss': 1.9}}")
    metrics = {}
    for name, value in found.items():
        try:
            metrics[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"fit returned {value!r:.100} for {name!r}: expected a number") from error
        if not math.isfinite(metrics[str(name)]):
            raise DataError(f"fit returned {value} for {name!r}: diverged")
    return metrics


def _known(lr: float | None) -> float:
    assert lr is not None  # only a person's own fit may do without
    return lr


def best_rate(cell: Cell, task: Task, settings: Settings, steps: int | None) -> Rate:
    """The learning rate with the best validation score (ties: lower validation loss), on a seed of its own.

    All rates run for a ninth of the run, the best two for a third of it. Where the best of the first round is at an
    edge of what was tried, the next one beyond is tried too, up to three times.
    """
    if isinstance(settings.lr, int | float):
        return Rate(float(settings.lr))
    if cell.own_fit is not None:
        return Rate(None)
    some = task
    if settings.search_rows is not None and settings.search_rows < len(task.train):
        some = dataclasses.replace(task, train=Subset(task.train, task.train.numbers()[: settings.search_rows]))
    taken = 0

    def tried(lr: float, share: float) -> tuple[float, float]:
        nonlocal taken
        score, count = _score(cell, some, settings, lr, steps, share)
        taken += count
        return score

    scores = {lr: tried(lr, RUNGS[0]) for lr in LEARNING_RATES}

    def best() -> float:
        return max(scores, key=lambda lr: (scores[lr], lr))

    for edge, further in ((max, LARGER_RATES), (min, SMALLER_RATES)):
        for lr in further:
            if best() != edge(scores) or scores[best()] == FAILED:
                break
            scores[lr] = tried(lr, RUNGS[0])
    if scores[best()] == FAILED:  # the run of the cell itself will say what is wrong
        return Rate(best(), taken)
    finalists = sorted(scores, key=lambda lr: (scores[lr], lr))[-2:]
    scores = {lr: tried(lr, RUNGS[1]) for lr in finalists}
    return Rate(best(), taken)


def _score(
    cell: Cell, task: Task, settings: Settings, lr: float, steps: int | None, share: float
) -> tuple[tuple[float, float], int]:
    """(validation score and minus the validation loss after a part of a run, its steps); larger is better."""
    try:
        run = _run(cell, task, settings, lr, SEARCH_SEED, steps, share)
    except Exception as error:
        if not ends_one_cell(error, cell.variant.model):
            raise
        return FAILED, 0
    last = run.history[-1]
    if not math.isfinite(last.validation_loss):
        return FAILED, len(run.losses)
    score = last.accuracy if task.larger_is_better else -last.validation_loss
    return (score, -last.validation_loss), len(run.losses)


def _run(cell: Cell, task: Task, settings: Settings, lr: float, seed: int, steps: int | None, share: float) -> Run:
    length: dict[str, Any] = {"epochs": max(1, round(settings.epochs * share))}
    if steps is not None:
        length = {"steps": max(1, round(steps * share))}
        length["evaluate_every"] = settings.evaluate_every or length["steps"]
    how: dict[str, Any] = {
        "backend": cell.backend, "seed": seed, "batch_size": settings.batch_size, "optimizer": settings.optimizer,
        "lr": lr, "schedule": settings.schedule, "warmup": round(settings.warmup * share),
        "weight_decay": settings.weight_decay, "weight_norm": settings.weight_norm, "precision": settings.precision,
        "device": settings.device, **length,
    }  # fmt: skip
    model = cell.variant.model
    if isinstance(model, Recipe):
        return train_module(model.built(seed), task, TrainSettings(loss=task.loss, **how))
    return train(model, task, **how)
