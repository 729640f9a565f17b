"""Times of training steps: all models in turn, in one process in which nothing else runs."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping

import numpy as np

from .._base.clock import ratio, rounds_of
from .._model.foreign import foreign
from .._model.layers import Layer
from .._training.feed import Feed
from .._training.settings import TrainSettings
from .._training.tasks import Task
from .modules import Recipe, ends_one_cell
from .settings import Settings

Model = Layer | Recipe
ROUNDS, STEPS = 7, 8  # rounds through all models, steps of each in a round


def step_times(
    backend_name: str, models: Mapping[str, Model], reference: Model, task: Task, settings: Settings
) -> dict[str, dict[str, float]]:
    """By model: the median time of a training step ("step_ms"), and the median over the rounds of its ratio to that of
    the dense model ("step_vs_dense"). A model that fails has none, and without the dense model there are no ratios."""
    runs: dict[str, Callable[[int], None]] = {}
    for name, model in {"": reference, **models}.items():
        try:
            runs[name] = _steps(backend_name, model, task, settings)
        except Exception as error:
            if not ends_one_cell(error, model):
                raise
    seconds = rounds_of(runs, dict.fromkeys(runs, STEPS), ROUNDS)
    dense = seconds.pop("", None)
    return {
        name: {"step_ms": 1e3 * statistics.median(taken)}
        | ({} if dense is None else {"step_vs_dense": ratio(taken, dense)[1]})
        for name, taken in seconds.items()
    }


def _steps(backend_name: str, model: Model, task: Task, settings: Settings) -> Callable[[int], None]:
    """A function that runs so many training steps, and returns when they are done."""
    how = TrainSettings(
        backend=backend_name, optimizer=settings.optimizer, precision=settings.precision, device=settings.device,
        batch_size=settings.batch_size, weight_norm=settings.weight_norm, loss=task.loss,
    )  # fmt: skip
    if isinstance(model, Recipe):
        trainer = foreign(backend_name).trainer(model.built(0), how.plain_spec(), how.lr, 0.0)
    else:
        trainer = how.trainer(model, model.init(0))
    numbers = task.train.numbers()
    x, y, place = Feed(trainer, task.train).of(numbers[: settings.batch_size * STEPS])

    @functools.cache
    def index(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        rows = np.resize(place, settings.batch_size * count)
        return rows.reshape(count, settings.batch_size)

    def run(count: int) -> None:
        trainer.read(trainer.steps(x, y, index(count), [0.0] * count, 0))
        trainer.sync()

    run(STEPS)  # compile and warm up
    return run
