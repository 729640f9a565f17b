"""What a decomposition fits: W as a tensor over the open legs of a topology, and how errors are weighed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._base.arrays import Array, checked_array
from .._base.errors import DataError, ShapeError
from .._graph.ordering import Ordering
from .._graph.topology import Topology, modes_on_cores

_CLEAN = 1e-9  # of the mean variance: a covariance whose least eigenvalue is not below minus that is taken as it is
_ROUNDED = 1e-3  # of the largest eigenvalue: as far below zero as rounding may take others (TF32 has 10 bits)
_RIDGE = 1e-3  # of the mean variance: inputs that never vary must not get arbitrary weights


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """W and a topology for it, its columns in the order in which the network sees its inputs.

    Attributes:
        topology: what it will be fitted by.
        w: of shape (out_features, in_features).
        covariance: E[x x^H] of the inputs, of shape (in_features, in_features), or None for white inputs.
    """

    topology: Topology
    w: Array
    covariance: Array | None

    def error(self, fitted: Array) -> float:
        """Relative Frobenius error of another W."""
        return float(np.linalg.norm(self.w - fitted) / np.linalg.norm(self.w))

    def output_error(self, fitted: Array) -> float | None:
        """sqrt(E|(W - W')x|^2 / E|W x|^2), or None where no inputs were given."""
        if self.covariance is None:
            return None
        off, whole = (_mean_output(w, self.covariance) for w in (self.w - fitted, self.w))
        if whole <= 0:
            raise DataError("W maps all of the calibration inputs to zero: give inputs that it sees, or none")
        return math.sqrt(max(0.0, off) / whole)

    @property
    def ridged(self) -> Array:
        """The covariance of the padded inputs, with a ridge of a thousandth of the mean variance."""
        assert self.covariance is not None
        n = math.prod(self.topology.inputs.values())
        wide = np.zeros((n, n), dtype=self.covariance.dtype)
        features = len(self.covariance)
        wide[:features, :features] = self.covariance
        ridge = _RIDGE * float(np.trace(self.covariance).real) / features
        return np.asarray(wide + ridge * np.eye(n))

    @property
    def padded(self) -> Array:
        """W filled up with zeros to the products of the modes."""
        t = self.topology
        wide = np.zeros((math.prod(t.outputs.values()), math.prod(t.inputs.values())), dtype=self.w.dtype)
        wide[: t.out_features, : t.in_features] = self.w
        return wide

    def tensor(self, matrix: Array) -> Array:
        """A padded matrix as a tensor over the open legs on cores, in the order of the modes.

        What the topology cannot hold is left out: of a batch leg the diagonal remains, and of one on no core the mean
        along it.
        """
        t = self.topology
        size = t.modes
        outs, ins = tuple(t.outputs), tuple(t.inputs)
        number = {leg: i for i, leg in enumerate(t.modes)}
        array = matrix.reshape([size[leg] for leg in (*outs, *ins) if size[leg] != 1])
        have = [number[leg] for leg in (*outs, *ins) if size[leg] != 1]
        want = modes_on_cores(t)
        array = np.einsum(array, have, [number[leg] for leg in want if size[leg] != 1])
        free = math.prod(size[leg] for leg in t.modes if leg not in want)
        return np.asarray(array / free).reshape([size[leg] for leg in want])


def _mean_output(w: Array, covariance: Array) -> float:
    return float(np.einsum("oi,oi->", w @ covariance, w.conj()).real)


def target_of(W: ArrayLike, topology: Topology, inputs: ArrayLike | None, ordering: Ordering | None) -> Target:
    """Checks what `decompose` is given."""
    w = checked_array(W, "W", 2)
    wanted = (topology.out_features, topology.in_features)
    if w.shape != wanted:
        hint = ": it is transposed, give W.T" if w.shape == wanted[::-1] else ""
        raise ShapeError(
            f"W must have shape {wanted}, (out_features, in_features) of {topology.name!r}, received {w.shape}{hint}"
        )
    covariance = None if inputs is None else _covariance(inputs, w.shape[1])
    if ordering is not None:
        w = w[:, ordering.permutation]
        if covariance is not None:
            covariance = covariance[np.ix_(ordering.permutation, ordering.permutation)]
    return Target(topology, w, covariance)


def _covariance(inputs: Any, features: int) -> Array:
    x = checked_array(inputs, "inputs", 2, "give some that vary, or none")
    if x.shape[1] != features:
        raise ShapeError(
            f"inputs must be a batch of shape (rows, {features}) or a covariance of shape ({features}, {features}), "
            f"received {x.shape}"
        )
    if x.shape[0] == features and np.allclose(x, x.conj().T):
        return _semidefinite(x)
    covariance: Array = x.T @ x.conj() / len(x)
    return covariance


def _semidefinite(x: Array) -> Array:
    """A covariance without the eigenvalues below zero that rounding leaves: fewer rows than features, or features that
    are always zero, make many that are zero.

    Raises:
        DataError: eigenvalues far below zero.
    """
    features = len(x)
    try:  # far cheaper than eigenvalues
        np.linalg.cholesky(x + _CLEAN * np.trace(x).real / features * np.eye(features))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh((x + x.conj().T) / 2)
        if values[0] < -_ROUNDED * max(values[-1], 0.0):
            raise DataError(
                f"the covariance given as inputs has negative eigenvalues, down to {values[0]:.3g} (the largest is "
                f"{values[-1]:.3g}): it must be E[x x^T] of some x"
            ) from None
        return np.asarray((vectors * np.maximum(values, 0)) @ vectors.conj().T)
    return x
