"""Tasks as data: what is learnt from what, how it is scored, and whether more or less is better."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from .._base.errors import DataError
from .._base.hashing import fingerprint_of
from .._model.layers import Shape
from .data import Dataset
from .splits import Array, Arrays, Columns, Split

Metric = Literal["accuracy", "loss"]
Given: TypeAlias = Any  # a pair of arrays, a table with columns, or an iterable of pairs


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a model learns: `tn.classification`, `tn.regression` and `tn.language_model` make one.

    Attributes:
        name: for tables and files.
        loss: "cross_entropy" or "mse".
        metric: what decides: "accuracy" in percent, where more is better, or "loss", where less is.
        train: the rows to train on.
        validation: for choices during training; None: a share of `train` is split off by the seed.
        test: looked at once; None where there is none.
        inputs: shape of x of one row, e.g. (784,), or (context,) for token ids.
        outputs: shape of what the model gives for it: (classes,), (context, vocabulary), or that of y.
        vocabulary: the characters that ids stand for, or None.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> x, y = np.random.default_rng(0).normal(size=(100, 8)), np.arange(100) % 3
        >>> task = tn.classification(x, y)
        >>> task.inputs, task.outputs, task.loss, task.metric
        ((8,), (3,), 'cross_entropy', 'accuracy')
    """

    name: str
    loss: str
    metric: Metric
    train: Split
    validation: Split | None
    test: Split | None
    inputs: Shape
    outputs: Shape
    vocabulary: str | None = None

    @property
    def is_given(self) -> bool:
        """Whether there is data: a person's own training may know its own."""
        return len(self.train) > 0

    @property
    def larger_is_better(self) -> bool:
        """The direction of the metric."""
        return self.metric == "accuracy"

    def shown(self, score: float) -> str:
        """A value of the metric, as people read it."""
        return f"{score:.2f} %" if self.metric == "accuracy" else f"loss {score:.4f}"

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, equal for equal tasks."""
        parts = [None if part is None else part.digest() for part in (self.train, self.validation, self.test)]
        return fingerprint_of([self.loss, self.metric, list(self.inputs), list(self.outputs), *parts])

    def __repr__(self) -> str:
        def rows(split: Split | None) -> str:
            return "0" if split is None else f"{len(split):,}"

        return (
            f"Task({self.name!r}: {rows(self.train)} train + {rows(self.validation)} validation + {rows(self.test)} "
            f"test rows, {self.inputs} -> {self.outputs}, {self.loss}, scored by {self.metric})"
        )


def classification(
    x: Given,
    y: Any = None,
    *,
    validation: Given | None = None,
    test: Given | None = None,
    classes: int | None = None,
    columns: tuple[str, str] = ("image", "label"),
    name: str = "classification",
) -> Task:
    """A task of telling classes apart, scored by accuracy.

    Args:
        x: of shape (rows, ...), floating-point, or token ids. Or a Dataset of `tn.load_data`; a `datasets.Dataset` of
            Hugging Face (then without y, see `columns`), of which rows are read as they are needed; or an iterable of
            (x, y) pairs of arrays.
        y: labels of shape (rows,), whole numbers from 0.
        validation: as (x, y), or in any form of x; left out, `tn.train` splits a share off.
        test: likewise; left out, none but that of a Dataset.
        classes: how many (default: the largest label of all splits and 1).
        columns: of x and y, of a table. Pictures of whole bytes become numbers from 0 to 1.
        name: for tables.

    Raises:
        DataError: x and y of different length, no rows, labels that are not whole numbers from 0 to classes - 1.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> x = np.random.default_rng(0).normal(size=(50, 8)).astype("float32")
        >>> tn.classification(x, (x[:, 0] > 0).astype("int64"))
        Task('classification': 50 train + 0 validation + 0 test rows, (8,) -> (2,), cross_entropy, scored by accuracy)
    """
    if isinstance(x, Dataset):
        if classes is None:
            classes = x.classes
        name = x.name if name == "classification" else name
        test = (x.x_test, x.y_test) if test is None else test
        x, y = x.x_train, x.y_train
    train, *others = _splits(x, y, validation, test, columns)
    some = [split for split in (train, *others) if split is not None]
    top = max(_top_label(split, part) for split, part in zip(some, _parts(others), strict=True))
    if classes is not None and top >= classes:
        raise DataError(f"the largest label is {top}, but classes={classes}: expected labels from 0 to {classes - 1}")
    count = max(2, top + 1) if classes is None else classes
    inputs = train.take(train.numbers()[:1])[0].shape[1:]
    return Task(name, "cross_entropy", "accuracy", train, others[0], others[1], inputs, (count,))


def regression(
    x: Given,
    y: Any = None,
    *,
    validation: Given | None = None,
    test: Given | None = None,
    columns: tuple[str, str] = ("x", "y"),
    name: str = "regression",
) -> Task:
    """A task of predicting numbers, scored by the mean of their squared errors; less is better.

    Args:
        x: see `classification`.
        y: targets of shape (rows, outputs...), floating-point; (rows,) stands for one output.
        validation: see `classification`.
        test: see `classification`.
        columns: see `classification`.
        name: for tables.

    Raises:
        DataError: x and y of different length, no rows, numbers that are not finite.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> x = np.random.default_rng(0).normal(size=(50, 8)).astype("float32")
        >>> task = tn.regression(x, x[:, :3] ** 2)
        >>> task.outputs, task.larger_is_better
        ((3,), False)
    """
    train, *others = _splits(x, y, validation, test, columns)
    splits = [_columned(split) for split in (train, *others)]
    shown = splits[0]
    assert shown is not None
    inputs, outputs = (part.shape[1:] for part in shown.take(shown.numbers()[:1]))
    return Task(name, "mse", "loss", shown, splits[1], splits[2], inputs, outputs)


def _parts(others: Sequence[Split | None]) -> list[str]:
    named = zip(("validation data", "test data"), others, strict=True)
    return ["training data", *(what for what, split in named if split is not None)]


def _splits(x: Given, y: Any, validation: Given, test: Given, columns: tuple[str, str]) -> list[Any]:
    pairs = {"training data": (x, y), "validation data": (validation, None), "test data": (test, None)}
    found: list[Split | None] = []
    for what, (first, second) in pairs.items():
        found.append(None if first is None else _split(first, second, columns, what))
    if found[0] is None:
        raise DataError("training data: expected x and y, received None")
    return found


def _split(x: Given, y: Any, columns: tuple[str, str], what: str) -> Split:
    if y is None and hasattr(x, "column_names"):
        missing = [name for name in columns if name not in x.column_names]
        if missing:
            raise DataError(
                f"{what}: no column {missing[0]!r} among {', '.join(x.column_names)}: name those of x and y (columns=)"
            )
        found: Split = Columns(x, columns)
    else:
        if y is None:
            x, y = _joined(x, what)
        first, second = (part if isinstance(part, np.memmap) else np.asarray(part) for part in (x, y))
        if first.dtype == object or second.dtype == object:
            raise DataError(f"{what}: expected arrays of numbers, received rows of different shapes or of objects")
        if first.ndim == 0 or second.ndim == 0 or len(first) != len(second):
            raise DataError(f"{what}: x has shape {first.shape}, y {second.shape}: expected one y for each row of x")
        found = Arrays(first, second)
    if len(found) == 0:
        raise DataError(f"{what}: expected at least one row, received none")
    return found


def _joined(pairs: Iterable[Any], what: str) -> tuple[Array, Array]:
    """One pair of a pair, or of all pairs that an iterable gives."""
    if isinstance(pairs, tuple | list) and len(pairs) == 2 and all(hasattr(part, "shape") for part in pairs):
        return pairs[0], pairs[1]
    try:
        xs, ys = zip(*((np.asarray(x), np.asarray(y)) for x, y in pairs), strict=True)
        return np.concatenate(xs), np.concatenate(ys)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what}: expected (x, y), a table with columns, or an iterable of pairs (x, y) of arrays, received "
            f"{type(pairs).__name__} ({error})"
        ) from error


def _top_label(split: Split, what: str) -> int:
    """The largest label, after a look at all of them."""
    if isinstance(split, Columns):  # labels alone: rows of x may be larger than memory
        y = np.asarray(split.table[split.columns[1]])
    else:
        y = split.y if isinstance(split, Arrays) else split.take(split.numbers())[1]
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{what}: expected whole-number labels of shape (rows,), received {y.dtype} of shape {y.shape}")
    if int(y.min()) < 0:
        raise DataError(f"{what}: expected labels from 0 on, received {int(y.min())} in row {int(y.argmin())}")
    return int(y.max())


def _columned(split: Split | None) -> Split | None:
    """Targets of shape (rows,) as (rows, 1)."""
    if isinstance(split, Arrays) and split.y.ndim == 1:
        return Arrays(split.x, split.y[:, None])
    return split
