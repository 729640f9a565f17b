"""Curves through points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def exponent(at: Sequence[float], values: Sequence[float]) -> float:
    """The e of values ~ at^e: a least-squares line through the logarithms.

    Examples:
        >>> exponent([1, 2, 4], [3, 12, 48])
        2.0
    """
    return round(float(np.polyfit(np.log(at), np.log(values), 1)[0]), 3)
