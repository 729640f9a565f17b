"""Low rank by singular values: the two-factor case that every other decomposition is made of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .._base.arrays import Array, checked_array
from .._base.checks import nearest, only_one
from .._base.errors import TopologyError

Split = Literal["both", "left", "right"]


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """M ~ left @ right through one bond.

    Attributes:
        left: A, of shape (rows, rank).
        right: B, of shape (rank, columns).
        spectrum: the singular values of the factors, largest first.
        dropped: the other ones.
        error: relative error in the Frobenius norm, sqrt(sum dropped^2 / sum of all squares).

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> factors = tn.low_rank_factors(np.diag([4.0, 3.0, 1.0]), rank=2)
        >>> factors.left.shape, factors.right.shape, factors.dropped.round(3).tolist(), round(factors.error, 3)
        ((3, 2), (2, 3), [1.0], 0.196)
    """

    left: Array
    right: Array
    spectrum: Array
    dropped: Array
    error: float

    @property
    def rank(self) -> int:
        """Size of the bond."""
        return len(self.spectrum)


def left_svd(matrix: Array) -> tuple[Array, Array]:
    """(U, s) of matrices of shape (..., m, n), without the right factor, which may be large."""
    if matrix.shape[-1] > matrix.shape[-2]:
        matrix = _adjoint(_triangle(_adjoint(matrix)))
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    return u, s


def singular_values(matrix: Array) -> Array:
    """Singular values of matrices of shape (..., m, n), largest first."""
    if matrix.shape[-1] > matrix.shape[-2]:
        matrix = matrix.swapaxes(-1, -2)
    if matrix.shape[-2] > 2 * matrix.shape[-1]:
        matrix = _triangle(matrix)
    found: Array = np.linalg.svd(matrix, compute_uv=False)
    return found


def root(gram: Array) -> Array:
    """X with X X^H = gram, for a positive semi-definite matrix; eigenvalues below zero are taken as rounding."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def _triangle(matrix: Array) -> Array:
    """R of the QR decomposition: the same singular values and right singular vectors in few rows."""
    r: Any = np.linalg.qr(matrix, mode="r")  # its type hints know no mode
    return np.asarray(r)


def _adjoint(matrix: Array) -> Array:
    return matrix.conj().swapaxes(-1, -2)


def tails(energies: Array) -> Array:
    """What is dropped at rank 0, 1, ..., len: sums of energies from there on.

    Examples:
        >>> tails(np.array([4.0, 2.0, 1.0])).tolist()
        [7.0, 3.0, 1.0, 0.0]
    """
    return np.append(np.cumsum(energies[::-1])[::-1], 0.0)


def rank_for(energies: Array, error: float) -> int:
    """The smallest rank of at least 1 whose relative error is at most `error`."""
    left = tails(energies)
    return max(1, int(np.argmax(left <= error**2 * left[0])))


def low_rank_factors(
    M: ArrayLike,
    *,
    rank: int | None = None,
    error: float | None = None,
    kept: float | None = None,
    split: Split = "both",
) -> Factors:
    """M ~ A B, the best approximation through one bond (Eckart and Young), N^2 numbers as 2 N D.

    Give exactly one of `rank`, `error`, `kept`.

    Args:
        M: a real or complex matrix.
        rank: of the bond, from 1 to the smaller side of M.
        error: largest relative error in the Frobenius norm, in [0, 1); the smallest rank that keeps it.
        kept: least share of the squared norm that is kept, in (0, 1]; the smallest rank that keeps it.
        split: "both" gives each factor the square roots of the singular values, so that
            A^H A = B B^H = diag(spectrum); "left" gives them all to A, "right" all to B, and the other factor
            is an isometry.

    Raises:
        ShapeError: M is not a matrix of numbers.
        DataError: M has NaN or infinite entries, or is zero.
        TopologyError: a rank, error or share that cannot be.

    Examples:
        >>> from tn4nn import low_rank_factors
        >>> f = low_rank_factors([[3.0, 0.0], [0.0, 4.0]], rank=1)
        >>> f.spectrum.tolist(), f.error
        ([4.0], 0.6)
        >>> abs(f.left @ f.right).round(12).tolist()
        [[0.0, 0.0], [0.0, 4.0]]
    """
    matrix = checked_array(M, "M", 2)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    r = _wanted_rank(s, rank, error, kept)
    powers = {"both": (0.5, 0.5), "left": (1.0, 0.0), "right": (0.0, 1.0)}
    if split not in powers:
        raise TopologyError(f"unknown split {split!r}." + nearest(str(split), powers))
    on_left, on_right = powers[split]
    keep, drop = s[:r], s[r:]
    left, right = u[:, :r] * keep**on_left, keep[:, None] ** on_right * v[:r]
    return Factors(left, right, keep, drop, float(np.linalg.norm(drop) / np.linalg.norm(s)))


def _wanted_rank(s: Array, rank: int | None, error: float | None, kept: float | None) -> int:
    given = {"rank": rank, "error": error, "kept": kept}
    only = only_one(given, "low_rank_factors")
    if only == "rank":
        return checked_rank(rank, len(s), "the smaller side of M")
    if only == "error":
        return rank_for(s**2, checked_error(error))
    if not (isinstance(kept, int | float) and 0 < kept <= 1):
        raise TopologyError(f"kept must be a share above 0 and at most 1, received {kept!r}")
    return rank_for(s**2, math.sqrt(1 - kept))


def checked_rank(rank: Any, most: int, why: str) -> int:
    """A rank as an int from 1 to `most`, or an error."""
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or not 1 <= rank <= most:
        raise TopologyError(f"rank must be a whole number from 1 to {most} ({why}), received {rank!r}")
    return int(rank)


def checked_error(error: Any) -> float:
    """A relative error as a float in [0, 1), or an error."""
    if isinstance(error, bool) or not isinstance(error, int | float | np.floating) or not 0 <= error < 1:
        raise TopologyError(f"error must be a relative error from 0 to below 1, received {error!r}")
    return float(error)
