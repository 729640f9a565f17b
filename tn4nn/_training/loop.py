"""The training loop: chunks of steps, and what happens at the end of an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .._base.seeds import rng_for
from .._model.backend import Trainer
from .._model.layers import Layer
from .bar import Show
from .checkpoint import Checkpoint, Progress
from .pairs import Pair
from .rank_changes import Ranks, change_ranks
from .results import Epoch, Run
from .settings import TrainSettings

_CHUNK = 64  # steps between two looks at the clock


class Loop:
    """A run in progress.

    Args:
        settings: how to train.
        model: the layer graph; it changes where ranks do.
        trainer: of the model.
        fitting: the pair to train on.
        held_out: the pair for validation.
        checkpoint: where to store the progress.
    """

    def __init__(
        self,
        settings: TrainSettings,
        model: Layer,
        trainer: Trainer,
        fitting: Pair,
        held_out: Pair | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.settings, self.model, self.trainer, self.checkpoint = settings, model, trainer, checkpoint
        self.rows = len(fitting[0])
        self.per_epoch = settings.steps_per_epoch(self.rows)
        self.rates = settings.rates(self.rows)
        self.x, self.y = trainer.put(fitting[0]), trainer.put(fitting[1])
        self.held_out = None if held_out is None else (trainer.put(held_out[0]), trainer.put(held_out[1]))
        self.progress = Progress()
        self.ranks: dict[int, Ranks] = {}  # after each change, by epoch

    def resume(self) -> None:
        """Goes on from the checkpoint, where there is one."""
        found = None if self.checkpoint is None else self.checkpoint.read()
        if found is not None:
            self.progress, state = found
            self.trainer.load(state)

    def run(self, show: Show, callback: Callable[[Epoch, Trainer], None] | None) -> None:
        """Runs to the end, or until the patience runs out."""
        done = self.progress
        while done.step < len(self.rates) and not self._out_of_patience():
            before, begin = done.step, time.perf_counter()
            losses = self._run_chunk()
            seconds = time.perf_counter() - begin
            done.losses.append(losses)
            done.epoch_seconds += seconds
            if done.step % self.per_epoch == 0:
                self._end_epoch(callback)
            if self.checkpoint is not None and self.checkpoint.due(before, done.step, self.per_epoch):
                self.checkpoint.write(done, self.trainer.state())
            accuracy = done.history[-1].accuracy if done.history else math.nan
            show(done.step, float(losses[-1]), accuracy, (done.step - before) * self.settings.batch_size / seconds)

    def _run_chunk(self) -> NDArray[np.float64]:
        """Runs the next steps, up to the end of the epoch or the next checkpoint; returns their losses."""
        first, size = self.progress.step, self.settings.batch_size
        epoch, inside = divmod(first, self.per_epoch)
        order = rng_for(self.settings.seed, "order", epoch).permutation(self.rows)
        full_batches = self.rows // size  # the last batch of an epoch, if smaller, is a chunk of its own
        count = min(_CHUNK, max(full_batches - inside, 1))
        if self.checkpoint is not None and self.checkpoint.every:
            count = min(count, self.checkpoint.every - first % self.checkpoint.every)
        index = order[inside * size : (inside + count) * size].reshape(count, -1)
        self.progress.step += count
        losses = self.trainer.steps(self.x, self.y, index, self.rates[first : first + count], first)
        return self.trainer.read(losses)

    def _end_epoch(self, callback: Callable[[Epoch, Trainer], None] | None) -> None:
        done = self.progress
        number = done.step // self.per_epoch
        loss = float(np.concatenate(done.losses)[-self.per_epoch :].mean())
        held_out = (math.nan, math.nan) if self.held_out is None else self.trainer.evaluate(*self.held_out)
        done.history.append(Epoch(number, loss, *held_out, done.epoch_seconds))
        done.epoch_seconds = 0.0
        if self.held_out is None or not done.best_epoch or self._score(number) > self._score(done.best_epoch):
            done.best_epoch, done.best_weights = number, self.trainer.weights()
        if callback is not None:
            callback(done.history[-1], self.trainer)
        auto = self.settings.ranks
        if auto is not None and auto.due(number, self.settings.epochs) and not self._out_of_patience():
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
        value = line.accuracy if self.settings.loss == "cross_entropy" else -line.validation_loss
        return -math.inf if math.isnan(value) else value

    def result(self, test: Pair | None) -> Run:
        """The finished run."""
        done, trainer = self.progress, self.trainer
        test_accuracy = math.nan
        if test is not None:
            _, test_accuracy = trainer.evaluate(trainer.put(test[0]), trainer.put(test[1]))
        seconds = sum(line.seconds for line in done.history)
        return Run(
            losses=np.concatenate(done.losses),
            accuracy=done.history[-1].accuracy,
            best_accuracy=done.history[done.best_epoch - 1].accuracy,
            best_epoch=done.best_epoch,
            test_accuracy=test_accuracy,
            weights=trainer.weights(),
            best_weights=dict(done.best_weights),
            history=tuple(done.history),
            module=trainer.module(),
            samples_per_s=self.rows * len(done.history) / seconds if seconds else math.nan,
            stopped_early=self._out_of_patience(),
            model=self.model,
            ranks=self.ranks,
        )
