"""The training loop: chunks of steps, and what happens at the end of an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.errors import CheckpointError
from .._base.seeds import rng_for
from .._model.backend import Trainer
from .bar import Show
from .checkpoint import Checkpoint, Progress
from .feed import Feed
from .rank_changes import Ranks, change_ranks
from .results import Epoch, Run
from .settings import TrainSettings
from .splits import Split

_CHUNK = 64  # steps between two looks at the clock


class Loop:
    """A run in progress.

    Args:
        settings: how to train.
        model: the layer graph; it changes where ranks do. None for a module of a person's own.
        trainer: of the model.
        fitting: the rows to train on.
        held_out: the rows for validation.
        checkpoint: where to store the progress.
        larger_is_better: accuracy decides which weights are the best, and not the loss.
    """

    def __init__(
        self,
        settings: TrainSettings,
        model: Any,
        trainer: Trainer,
        fitting: Split,
        held_out: Split | None = None,
        checkpoint: Checkpoint | None = None,
        *,
        larger_is_better: bool = True,
    ) -> None:
        self.settings, self.model, self.trainer, self.checkpoint = settings, model, trainer, checkpoint
        self.larger_is_better = larger_is_better
        self.rows = len(fitting)
        self.course = settings.course(self.rows)
        self.rates = settings.rates(self.rows)
        self.fitting, self.held_out = Feed(trainer, fitting), None if held_out is None else Feed(trainer, held_out)
        self.progress = Progress()
        self._epoch, self._numbers = -1, np.empty(0, np.int64)
        self.ranks: dict[int, Ranks] = {}  # after each change, by epoch

    def resume(self) -> None:
        """Goes on from the checkpoint, where there is one."""
        if self.checkpoint is None or not self.checkpoint.path.exists():
            return
        found = self.checkpoint.read(self.trainer.state(), self.course)
        if found is None:
            return
        self.progress, state = found
        try:
            self.trainer.load(state)
        except CheckpointError as error:
            raise CheckpointError(f"{self.checkpoint.path}: {error}") from error
        except (LookupError, TypeError, ValueError, RuntimeError) as error:  # somebody's own trainer
            raise CheckpointError(f"{self.checkpoint.path} holds another state than this trainer's: {error}") from error

    def run(self, show: Show, callback: Callable[[Epoch, Trainer], None] | None) -> None:
        """Runs to the end, or until the patience runs out."""
        done = self.progress
        while done.step < len(self.rates) and not self._out_of_patience():
            before, begin = done.step, time.perf_counter()
            losses = self._run_chunk()
            seconds = time.perf_counter() - begin
            done.losses.append(losses)
            done.epoch_seconds += seconds
            if self.course.is_due(done.step):
                self._end_epoch(callback)
            if self.checkpoint is not None and self.checkpoint.due(before, done.step, self.course):
                self.checkpoint.write(done, self.trainer.state())
            accuracy = done.history[-1].accuracy if done.history else math.nan
            show(done.step, float(losses[-1]), accuracy, (done.step - before) * self.settings.batch_size / seconds)

    def _run_chunk(self) -> NDArray[np.float64]:
        """Runs the next steps, up to the end of the epoch, the next evaluation or checkpoint; returns their losses."""
        first, size, course = self.progress.step, self.settings.batch_size, self.course
        epoch, inside = divmod(first, course.per_epoch)
        order = self._order(epoch)
        full_batches = self.rows // size  # the last batch of an epoch, if smaller, is a chunk of its own
        every = [course.every] + ([self.checkpoint.every] if self.checkpoint and self.checkpoint.every else [])
        to_next = (steps - first % steps for steps in every)
        count = min(_CHUNK, max(full_batches - inside, 1), course.total - first, *to_next)
        count = min(count, self.fitting.most_rows // size or 1)
        rows = order[inside * size : (inside + count) * size]
        self.progress.step += count
        x, y, index = self.fitting.of(rows)
        losses = self.trainer.steps(x, y, index.reshape(count, -1), self.rates[first : first + count], first)
        return self.trainer.read(losses)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The numbers of an epoch's rows, in the order of training."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._numbers = self.fitting.split.numbers(rng_for(self.settings.seed, "order", epoch))
        return self._numbers

    def _end_epoch(self, callback: Callable[[Epoch, Trainer], None] | None) -> None:
        done = self.progress
        before = done.history[-1].step if done.history else 0
        number = len(done.history) + 1
        loss = float(np.concatenate(done.losses)[before:].mean())
        held_out = (math.nan, math.nan) if self.held_out is None else self.held_out.evaluated(self.trainer)
        done.history.append(Epoch(number, loss, *held_out, done.epoch_seconds, done.step))
        done.epoch_seconds = 0.0
        if self.held_out is None or not done.best_epoch or self._score(number) > self._score(done.best_epoch):
            done.best_epoch, done.best_weights = number, self.trainer.weights()
        if callback is not None:
            callback(done.history[-1], self.trainer)
        auto = self.settings.ranks
        if (
            auto is not None
            and auto.due(number, self.course.evaluations(self.course.total))
            and not self._out_of_patience()
        ):
            self.model, self.trainer, self.ranks[number] = change_ranks(
                self.model, self.trainer, auto, self.settings, number
            )
            done.best_epoch = 0  # the best weights are those of this model

    def _out_of_patience(self) -> bool:
        done, patience = self.progress, self.settings.patience
        if patience is None or self.held_out is None or not done.best_epoch:
            return False
        return len(done.history) - done.best_epoch >= patience

    def _score(self, epoch: int) -> float:
        """Validation score of an epoch; larger is better."""
        line = self.progress.history[epoch - 1]
        value = line.accuracy if self.larger_is_better else -line.validation_loss
        return -math.inf if math.isnan(value) else value

    def result(self, test: Split | None) -> Run:
        """The finished run."""
        done, trainer = self.progress, self.trainer
        tested = (math.nan, math.nan) if test is None else Feed(trainer, test).evaluated(trainer)
        seconds = sum(line.seconds for line in done.history)
        samples = self.course.samples(done.step, self.rows, self.settings.batch_size)
        return Run(
            losses=np.concatenate(done.losses),
            accuracy=done.history[-1].accuracy,
            best_accuracy=done.history[done.best_epoch - 1].accuracy,
            best_epoch=done.best_epoch,
            test_loss=tested[0],
            test_accuracy=tested[1],
            weights=trainer.weights(),
            best_weights=dict(done.best_weights),
            history=tuple(done.history),
            module=trainer.module(),
            samples_per_s=samples / seconds if seconds else math.nan,
            stopped_early=self._out_of_patience(),
            model=self.model,
            ranks=self.ranks,
        )
