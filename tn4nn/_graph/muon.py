"""Muon on networks: which axes of a core are the rows and the columns of the matrices that it orthogonalizes.

Muon moves a matrix by its momentum with all singular values set to about 1. A core is a stack of such matrices: as the
input is taken through the cores in their declared order, a core sums some legs and opens others, and any leg that it
only passes on numbers the matrices of the stack.

Source: K. Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks; for the size of a step, that of
AdamW, J. Liu et al. 2025, Muon is Scalable for LLM Training (arXiv:2502.16982).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .topology import Topology

Axes = tuple[tuple[int, ...], tuple[int, ...]]

MOMENTUM = 0.95  # of the gradient, with Nesterov's look ahead
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration of Newton and Schulz
STEPS = 5  # of that iteration
EPS = 1e-7  # least norm that a matrix is divided by
RMS = 0.2  # of the entries of a step, over the learning rate: about that of AdamW


class Stack(NamedTuple):
    """An array as a stack of matrices.

    Attributes:
        order: of its axes, for a transposition to (numbers of matrices, summed, opened).
        inverse: the order that undoes it.
        rows: of each matrix.
        columns: of each matrix.
    """

    order: tuple[int, ...]
    inverse: tuple[int, ...]
    rows: int
    columns: int

    @property
    def size(self) -> float:
        """Of the singular values of a step, over the learning rate."""
        return RMS * math.sqrt(max(self.rows, self.columns))


def stack_of(shape: Sequence[int], axes: Axes) -> Stack:
    """How an array of a shape is a stack of matrices.

    Examples:
        >>> stack_of((5, 3, 4), ((1,), (0,)))
        Stack(order=(2, 1, 0), inverse=(2, 1, 0), rows=3, columns=5)
    """
    summed, opened = axes
    order = (*(axis for axis in range(len(shape)) if axis not in (*summed, *opened)), *summed, *opened)
    inverse = tuple(order.index(axis) for axis in range(len(shape)))
    rows, columns = (math.prod(shape[axis] for axis in of) for of in axes)
    return Stack(order, inverse, rows, columns)


def matrix_axes(topology: Topology) -> dict[str, Axes]:
    """Axes that each core sums, and axes that it opens; all its other axes number the matrices of a stack.

    Examples:
        >>> import tn4nn as tn
        >>> matrix_axes(tn.mpo((4, 8), (2, 2)))
        {'core0': ((0,), (1, 2)), 'core1': ((0, 1), (2,))}
    """
    found = {}
    for position, core in enumerate(topology.cores):
        comes = [leg in topology.inputs or topology.holders[leg][0] < position for leg in core.legs]
        goes = [leg in topology.outputs or topology.holders[leg][-1] > position for leg in core.legs]
        summed = tuple(axis for axis, leaves in enumerate(goes) if not leaves)
        opened = tuple(axis for axis, leaves in enumerate(goes) if leaves and not comes[axis])
        found[core.name] = (summed, opened)
    return found
