"""Data for training as pairs (x, y): checked against the model, and split."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .._base.errors import DataError, ShapeError
from .._base.seeds import rng_for
from .._model.layers import Embedding, Layer

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
    _check_labels(y, out[-1], what)
    return x, y.astype(np.int64)


def _check_inputs(model: Layer, x: NDArray[Any], what: str) -> None:
    if np.issubdtype(x.dtype, np.floating):
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
        if bad.any():
            raise DataError(
                f"{what}: x holds NaN or infinity in {int(bad.sum())} rows, the first is {int(bad.argmax())}"
            )
    elif not any(isinstance(layer, Embedding) for _, layer in model.walk()):
        raise DataError(
            f"{what}: the model takes floating-point x, received {x.dtype}: convert it (x / 255 for images)"
        )


def _check_targets(y: NDArray[Any], out: tuple[int, ...], what: str) -> None:
    if not np.issubdtype(y.dtype, np.floating) or y.shape[1:] != out or not np.isfinite(y).all():
        raise DataError(
            f"{what}: 'mse' needs finite floating-point y of shape (rows, {', '.join(map(str, out))}), "
            f"received {y.dtype} of shape {y.shape}"
        )


def _check_labels(y: NDArray[Any], classes: int, what: str) -> None:
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise DataError(
            f"{what}: 'cross_entropy' needs integer labels of shape (rows,), received {y.dtype} of shape {y.shape}"
        )
    if y.min() < 0 or y.max() >= classes:
        row = int(((y < 0) | (y >= classes)).argmax())
        raise DataError(f"{what}: label {int(y[row])} in row {row} is not from 0 to {classes - 1}, the model's outputs")


def split(model: Layer, data: Pair, validation: float | Pair | None, seed: int, loss: str) -> tuple[Pair, Pair | None]:
    """The pair to train on and the one for validation; `validation` as for `train`."""
    if validation is None or (isinstance(validation, int | float) and validation == 0):
        return data, None
    if not isinstance(validation, int | float):
        return data, checked_pair(model, validation, loss, "validation data")
    if not 0 < validation < 1:
        raise DataError(f"validation must be a share from 0 to 1, or (x, y), or None, received {validation!r}")
    x, y = data
    count = max(1, round(len(x) * validation))
    if count >= len(x):
        raise DataError(f"a validation share of {validation} leaves none of {len(x)} rows to train on")
    order = rng_for(seed, "split").permutation(len(x))
    fitting, held_out = np.sort(order[count:]), np.sort(order[:count])
    return (x[fitting], y[fitting]), (x[held_out], y[held_out])
