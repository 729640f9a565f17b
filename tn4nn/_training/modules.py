"""Training of people's own modules by the same loop."""

from __future__ import annotations

from typing import Any

from .._base.errors import DataError
from .._model.backend import require_one_process
from .._model.foreign import foreign
from .loop import Loop
from .pairs import held_out
from .results import Run
from .settings import TrainSettings
from .tasks import Task

_SHARE = 0.1  # of the training rows, for validation where a task has none of its own


def train_module(module: Any, task: Task, settings: TrainSettings) -> Run:
    """Trains a module of a framework, in place.

    Args:
        module: gives outputs for a batch of the task; an Equinox module for one sample, as is usual there.
        task: what is learnt.
        settings: whose `weight_decay` is a number, and whose `loss` is the task's.

    Raises:
        DataError: the module does not fit the task.
    """
    require_one_process(settings.backend)
    known = foreign(settings.backend)
    check_outputs(known.outputs(module, task.train.take(task.train.numbers()[:2])[0])[1:], task)
    fitting, held = (task.train, task.validation)
    if held is None:
        fitting, held = held_out(fitting, _SHARE, settings.seed)
    assert isinstance(settings.weight_decay, int | float)
    trainer = known.trainer(module, settings.plain_spec(), settings.lr, float(settings.weight_decay))
    loop = Loop(settings, None, trainer, fitting, held, larger_is_better=task.larger_is_better)
    loop.run(lambda *_: None, None)
    return loop.result(task.test)


def check_outputs(made: tuple[int, ...], task: Task) -> None:
    """Raises DataError unless a model's outputs for one row are those of a task."""
    expected = task.outputs
    fits = made == expected
    if task.loss == "cross_entropy":
        fits = made[:-1] == expected[:-1] and bool(made) and made[-1] >= expected[-1]
    if not fits:
        raise DataError(f"the model gives {made} for a row of the task, which needs {expected}")
