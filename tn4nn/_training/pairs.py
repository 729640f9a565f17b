"""Data for training: checked against the model, and split."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._base.errors import DataError, ShapeError
from .._base.seeds import rng_for
from .._model.layers import Layer, embedding_of
from .splits import Arrays, Split, Subset
from .tasks import Task

Pair: TypeAlias = tuple[Any, Any]


def checked_pair(model: Layer, pair: Pair, loss: str, what: str) -> Pair:
    """x and y as arrays that fit the model, or an error that says what is wrong and where."""
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise DataError(f"{what}: expected (x, y) or a Dataset, received {type(pair).__name__}")
    x, y = np.asarray(pair[0]), np.asarray(pair[1])
    if len(x) == 0:
        raise DataError(f"{what}: expected at least one row, received none")
    if len(x) != len(y):
        raise DataError(f"{what}: x has {len(x)} rows, y has {len(y)}")
    try:
        out = model.out_shape(x.shape[1:])
    except ShapeError as error:
        raise ShapeError(f"{what}: x has shape {x.shape}: {error}") from None
    _check_inputs(model, x, what)
    if loss == "mse":
        _check_targets(y, out, what)
        return x, y
    _check_labels(y, out, what)
    return x, y.astype(np.int64)


def _check_inputs(model: Layer, x: NDArray[Any], what: str) -> None:
    if np.issubdtype(x.dtype, np.floating):
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
        if bad.any():
            raise DataError(
                f"{what}: x holds NaN or infinity in {int(bad.sum())} rows, the first is {int(bad.argmax())}"
            )
    elif embedding_of(model) is None:
        raise DataError(
            f"{what}: the model takes floating-point x, received {x.dtype}: convert it (x / 255 for images)"
        )


def _check_targets(y: NDArray[Any], out: tuple[int, ...], what: str) -> None:
    if not np.issubdtype(y.dtype, np.floating) or y.shape[1:] != out or not np.isfinite(y).all():
        raise DataError(
            f"{what}: 'mse' needs finite floating-point y of shape (rows, {', '.join(map(str, out))}), "
            f"received {y.dtype} of shape {y.shape}"
        )


def _check_labels(y: NDArray[Any], out: tuple[int, ...], what: str) -> None:
    *places, classes = out
    shape = ", ".join(["rows", *map(str, places)]) + ("" if places else ",")
    if not np.issubdtype(y.dtype, np.integer) or y.shape[1:] != tuple(places):
        raise DataError(
            f"{what}: 'cross_entropy' needs integer labels of shape ({shape}), received {y.dtype} of shape {y.shape}"
        )
    if y.min() < 0 or y.max() >= classes:
        wrong = (y < 0) | (y >= classes)
        row = int(wrong.reshape(len(y), -1).any(1).argmax())
        raise DataError(
            f"{what}: label {int(y[wrong][0])} in row {row} is not from 0 to {classes - 1}, the model's outputs"
        )


def checked_split(model: Layer, split: Split, task: Task, what: str) -> Split:
    """A split of a task whose rows fit the model: those in memory are all looked at, of others the first.

    Raises:
        DataError, ShapeError: see `checked_pair`.
    """
    try:
        out = model.out_shape(task.inputs)
    except ShapeError as error:
        raise ShapeError(f"{what}: x has rows of shape {task.inputs}: {error}") from None
    if task.loss == "cross_entropy" and out[-1] < task.outputs[-1]:
        raise DataError(
            f"{what}: the model has {out[-1]} outputs, but the task {task.outputs[-1]} classes: expected as many"
        )
    pair = split.whole()
    if pair is not None:
        return Arrays(*checked_pair(model, pair, task.loss, what))
    checked_pair(model, split.take(split.numbers()[:1]), task.loss, what)
    return split


def held_out(split: Split, share: float | None, seed: int) -> tuple[Split, Split | None]:
    """The rows to train on, and a share of them that is drawn from the seed for validation."""
    if not share:
        return split, None
    if not 0 < share < 1:
        raise DataError(f"validation must be a share from 0 to 1, or (x, y), or None, received {share!r}")
    count = max(1, round(len(split) * share))
    if count >= len(split):
        raise DataError(f"a validation share of {share} leaves none of {len(split)} rows to train on")
    order = rng_for(seed, "split").permutation(len(split))
    parts = [np.sort(order[count:]), np.sort(order[:count])]
    pair = split.whole()
    fitting, rest = (Subset(split, part) if pair is None else Arrays(*(a[part] for a in pair)) for part in parts)
    return fitting, rest
