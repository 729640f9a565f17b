"""numpy's arrays in array programs, and what is done to single operands before one, in any framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._graph.einsum import Reduction
from .program import Ops

Array = NDArray[Any]


class Reducers(NamedTuple):
    """What a framework brings for single operands, each with the meaning that numpy gives it."""

    reshape: Callable[[Any, tuple[int, ...]], Any]
    diagonal: Callable[[Any, int, int], Any]  # (array, axis, axis) -> their diagonal as the last axis
    sum: Callable[[Any, tuple[int, ...]], Any]  # over axes, in the dtype of the array


def reduced(ops: Reducers, array: Any, reduction: Reduction | None) -> Any:
    """An operand after what is done to it alone."""
    if reduction is None:
        return array
    if reduction.shape is not None:
        array = ops.reshape(array, reduction.shape)
    for first, second in reduction.diagonals:
        array = ops.diagonal(array, first, second)
    return ops.sum(array, reduction.summed) if reduction.summed else array


def all_reduced(ops: Reducers, arrays: Sequence[Any], reductions: Sequence[Reduction | None]) -> list[Any]:
    """All operands after that."""
    return [reduced(ops, array, reduction) for array, reduction in zip(arrays, reductions, strict=True)]


def _matmul(a: Array, b: Array) -> Array:
    product: Array = np.matmul(_readable(a), _readable(b))
    return product


def _readable(a: Array) -> Array:
    """A matrix as BLAS reads it, copied where both of its axes lie apart: numpy would multiply number by number."""
    down, across = a.strides[-2:]
    return a if a.itemsize in (down, across) else np.ascontiguousarray(a)


OPS = Ops(
    np.reshape,
    np.transpose,
    _matmul,
    np.multiply,
    lambda array, axis, position: array.take(position, axis),
    np.concatenate,
)
REDUCERS = Reducers(
    np.reshape,
    lambda array, first, second: np.diagonal(array, 0, first, second),
    lambda array, axes: np.add.reduce(array, axes, array.dtype),
)
