"""Times of training steps: all models in turn, in one process in which nothing else runs."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping

import numpy as np

from .._base.clock import ratio, rounds_of
from .._model.layers import Layer, Linear, ReLU, Sequential
from .._training.data import Dataset
from .._training.settings import TrainSettings
from .settings import Settings

ROUNDS, STEPS = 7, 8  # rounds through all models, steps of each in a round


def step_times(
    backend_name: str, models: Mapping[str, Layer], data: Dataset, settings: Settings
) -> dict[str, dict[str, float]]:
    """By model: the median time of a training step ("step_ms"), and the median over the rounds of its ratio to that of
    the dense model ("step_vs_dense")."""
    dense = Sequential(Linear(data.features, settings.hidden), ReLU(), Linear(settings.hidden, data.classes))
    runs = {name: _steps(backend_name, model, data, settings) for name, model in {"": dense, **models}.items()}
    seconds = rounds_of(runs, dict.fromkeys(runs, STEPS), ROUNDS)
    return {
        name: {
            "step_ms": 1e3 * statistics.median(seconds[name]),
            "step_vs_dense": ratio(seconds[name], seconds[""])[1],
        }
        for name in models
    }


def _steps(backend_name: str, model: Layer, data: Dataset, settings: Settings) -> Callable[[int], None]:
    """A function that runs so many training steps, and returns when they are done."""
    trainer = TrainSettings(
        backend=backend_name, optimizer=settings.optimizer, precision=settings.precision, device=settings.device,
        batch_size=settings.batch_size,
    ).trainer(model, model.init(0))  # fmt: skip
    x, y = trainer.put(data.x_train), trainer.put(data.y_train)

    @functools.cache
    def index(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        rows = np.arange(settings.batch_size * count) % len(data.x_train)
        return rows.reshape(count, settings.batch_size)

    def run(count: int) -> None:
        trainer.read(trainer.steps(x, y, index(count), [0.0] * count, 0))
        trainer.sync()

    run(STEPS)  # compile and warm up
    return run
