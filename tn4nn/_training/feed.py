"""Rows on their way to the device: all at once where they are in memory, else a chunk at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._model.backend import Trainer
from .splits import Split, bytes_of_row

_BYTES = 1 << 26  # of rows on the device at once, where they are not all there


class Feed:
    """A split, as a trainer takes it.

    Args:
        trainer: whose device the rows go to.
        split: where they come from.
    """

    def __init__(self, trainer: Trainer, split: Split) -> None:
        self.trainer, self.split = trainer, split
        pair = split.whole()
        self._whole = None if pair is None else (trainer.put(pair[0]), trainer.put(pair[1]))
        self.most_rows = len(split) if pair is not None else max(1, _BYTES // bytes_of_row(split))

    def of(self, numbers: NDArray[np.int64]) -> tuple[Any, Any, NDArray[np.int64]]:
        """(x, y, index): the rows of these numbers are those at `index`."""
        if self._whole is not None:
            return *self._whole, numbers
        x, y = self.split.take(numbers)
        return self.trainer.put(x), self.trainer.put(y), np.arange(len(numbers))

    def evaluated(self, trainer: Trainer) -> tuple[float, float]:
        """(mean loss, accuracy in percent) of all rows, with the weights of a trainer."""
        if self._whole is not None:
            return trainer.evaluate(*self._whole)
        numbers = self.split.numbers()
        sums = np.zeros(2)
        for start in range(0, len(numbers), self.most_rows):
            part = numbers[start : start + self.most_rows]
            x, y, _ = self.of(part)
            sums += len(part) * np.array(trainer.evaluate(x, y))
        loss, accuracy = sums / len(numbers)
        return float(loss), float(accuracy)
