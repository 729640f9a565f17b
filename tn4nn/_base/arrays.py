"""Arrays from outside: read, converted and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError, ShapeError

Array = NDArray[Any]
_RANGE = 1e120  # of magnitudes whose sums of squares are numbers


def numbers(value: Any, what: str) -> NDArray[Any]:
    """`value` as an array of numbers that numpy has; bfloat16 as float32, which holds it exactly.

    Raises:
        ShapeError: no numbers, or a tensor that numpy cannot read.
    """
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError, ValueError) as error:  # torch: bfloat16, gradients, a device; lists: their lengths
        advice = (
            "give rows of one length"
            if isinstance(value, list | tuple)
            else "of a torch tensor, give tensor.detach().float().cpu().numpy(); under jax.jit there are no numbers yet"
        )
        raise ShapeError(
            f"{what} must hold numbers that numpy can read, received {type(value).__name__} ({error}): {advice}"
        ) from None
    if array.dtype.name == "bfloat16":  # that of jax (ml_dtypes)
        return array.astype(np.float32)
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        received = f"{array.dtype}" if array.ndim else f"{type(value).__name__}"
        raise ShapeError(f"{what} must hold numbers that numpy has, received {received}: give an array of float32")
    return array


def check_range(array: Array, what: str) -> None:
    """Raises DataError for an array with an entry that is NaN, infinite, or too large to be squared."""
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(map(int, np.argwhere(bad)[0]))
        raise DataError(f"{what} has {int(bad.sum())} entries that are NaN or infinite, the first at {first}")
    largest = float(np.abs(array).max(initial=0.0))
    if largest > _RANGE:
        raise _out_of_range(what, largest)


def _out_of_range(what: str, largest: float) -> DataError:
    return DataError(
        f"the largest entry of {what} is {largest:.3g} in magnitude, whose square is out of range: scale {what} to "
        f"between {1 / _RANGE:g} and {_RANGE:g}"
    )


def checked_array(
    value: ArrayLike, what: str, ndim: int, zero: str = "there is nothing to decompose, leave the layer out"
) -> Array:
    """`value` as a float64 or complex128 array (never the caller's own) with finite entries, not all zero.

    Args:
        value: what was given.
        what: its name.
        ndim: number of axes.
        zero: what would do where it is zero everywhere.

    Raises:
        ShapeError: no numbers, or another number of axes.
        DataError: NaN, infinity, nothing but zeros, or numbers whose squares are out of range.
    """
    array = numbers(value, what)
    if array.ndim != ndim or 0 in array.shape:
        raise ShapeError(f"{what} must have {ndim} axes and at least one entry, received shape {array.shape}")
    array = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    check_range(array, what)
    largest = float(np.abs(array).max())
    if largest == 0:
        raise DataError(f"{what} is zero everywhere: {zero}")
    if largest < 1 / _RANGE:
        raise _out_of_range(what, largest)
    return array
