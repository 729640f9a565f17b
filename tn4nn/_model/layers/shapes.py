"""Shapes of samples, and how windows slide over them."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np

from ..._base.errors import ShapeError

Shape = tuple[int, ...]


def is_whole(number: object) -> TypeGuard[int]:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def pair(value: int | tuple[int, int], what: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(pair) != 2 or any(not is_whole(n) or n < least for n in pair):
        raise ShapeError(f"{what} must be one or two whole numbers of at least {least}, received {value!r}")
    return int(pair[0]), int(pair[1])


def windows(size: int, kernel: int, stride: int, padding: int, what: str) -> int:
    count = (size + 2 * padding - kernel) // stride + 1
    if count < 1:
        raise ShapeError(f"{what}: a window of {kernel} does not fit into {size} with padding {padding}")
    return count
