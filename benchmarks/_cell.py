"""What every competitor of a cell gets: the same network, core values, x and cotangent; and the oracle."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from _measure import Limits, Settings
from _paths import Contraction, Path, PathCost, of_layer, of_matrix
from _workset import Case
from numpy.typing import NDArray

import tn4nn as tn
from tn4nn.reference import apply

Array = NDArray[Any]

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}  # of y against the oracle, relative to its largest value
_GRADIENT = {"float32": 1e-5, "bfloat16": 0.02}  # of <g, p> - <gy, y>, relative to |gy| |y|
_EDGE = 2  # rows at each end of the batch that are compared
ITEM = {"float32": 4, "bfloat16": 2}  # bytes of a number


class CannotExpressError(Exception):
    """The competitor has no way to run this case; the message says why."""


class SkippedError(Exception):
    """The competitor could run this case, but it is too large or too slow here; the message says why."""


class WrongError(Exception):
    """The competitor gives other numbers than the oracle."""


class CaseData:
    """A case with numbers; made once for all its cells.

    Attributes:
        case: which.
        network: its network.
        weights: core name -> float32 array, drawn as tn4nn draws them; every competitor gets these values.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.network = case, case.network()
        self.weights = self.network.init(0)
        ends = np.random.default_rng(0).standard_normal((2 * _EDGE, self.network.in_features))
        self._ends = ends.astype(np.float32)

    @functools.cached_property
    def dense(self) -> Array:
        """W, (out_features, in_features)."""
        return self.network.to_dense(self.weights)

    @functools.cached_property
    def _expected(self) -> Array:
        return apply(self.network, self.weights, self._ends)

    def input(self, batch: int) -> Array:
        """x of a batch; its first and last rows are the same for every batch."""
        x = np.random.default_rng(batch).standard_normal((batch, self.network.in_features), dtype=np.float32)
        for row, end in self._rows(batch):
            x[row] = self._ends[end]
        return x

    def expected(self, batch: int) -> tuple[list[int], Array]:
        """(row numbers, the oracle's y there)."""
        rows = self._rows(batch)
        return [row for row, _ in rows], self._expected[[end for _, end in rows]]

    def _rows(self, batch: int) -> list[tuple[int, int]]:
        head = [(i, i) for i in range(min(_EDGE, batch))]
        tail = [(batch - 1 - i, 2 * _EDGE - 1 - i) for i in range(min(_EDGE, max(0, batch - _EDGE)))]
        return head + tail


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A case at one batch and in one phase.

    Attributes:
        data: the case with its numbers.
        batch: rows of x.
        phase: "forward" or "train".
        device: torch's name of the device.
        settings: caps on memory and time.
        limits: what the machine does at best.
        dtype: "float32" or "bfloat16", of everything.
    """

    data: CaseData
    batch: int
    phase: str
    device: str
    settings: Settings
    limits: Limits
    dtype: str = "float32"

    @property
    def network(self) -> tn.Network:
        """The network."""
        return self.data.network

    @property
    def on_torch(self) -> dict[str, Any]:
        """Where torch's tensors are, and of which dtype."""
        import torch

        return {"device": self.device, "dtype": getattr(torch, self.dtype)}

    @property
    def train(self) -> bool:
        """Whether gradients are part of the call."""
        return self.phase == "train"

    @property
    def modes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(input modes, output modes)."""
        t = self.network.topology
        return tuple(t.inputs.values()), tuple(t.outputs.values())

    @functools.cached_property
    def x(self) -> Array:
        """(batch, in_features)."""
        return self.data.input(self.batch)

    @functools.cached_property
    def gy(self) -> Array:
        """The cotangent of y, (batch, out_features)."""
        shape = (self.batch, self.network.out_features)
        return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)

    @functools.cached_property
    def layer(self) -> Contraction:
        """y as one einsum of cores and x."""
        return of_layer(self.network, self.batch)

    @functools.cached_property
    def matrix(self) -> Contraction:
        """W as one einsum of the cores."""
        return of_matrix(self.network)

    @functools.cached_property
    def best_path(self) -> Path:
        """The path with the fewest multiply-adds."""
        return self.layer.best_path()

    @property
    def cores(self) -> list[Array]:
        """Arrays in the network's order."""
        return [self.data.weights[core.name] for core in self.network.topology.cores]

    # -- guards ---------------------------------------------------------------------------------------------

    def guard(self, cost: PathCost, matrix: int = 0) -> None:
        """Raises SkippedError where a path takes too much memory or time; `matrix` counts elements of a W."""
        held = 2 * cost.intermediates if self.train else cost.largest
        held += matrix * (2 if self.train else 1)
        self.guard_bytes(ITEM[self.dtype] * (held + self._ends()))
        seconds = cost.macs * self._passes / self.limits.macs_per_s
        if seconds > self.settings.call_s:
            raise SkippedError(f"one call would take about {seconds:.0f} s, the cap is {self.settings.call_s:g} s")

    def guard_bytes(self, needed: int) -> None:
        """Raises SkippedError above the memory cap."""
        if needed > self.settings.memory:
            cap = self.settings.memory / 2**30
            raise SkippedError(f"would take about {needed / 2**30:.1f} GiB, the cap is {cap:.1f} GiB")

    def guard_dense(self) -> None:
        """Raises SkippedError where the dense layer is too large."""
        n = self.network
        self.guard(PathCost(self.batch * n.dense_params, 0, 0), n.dense_params)

    # -- figures --------------------------------------------------------------------------------------------

    @property
    def _passes(self) -> int:
        return 3 if self.train else 1

    def _ends(self) -> int:
        return self._passes * self.batch * (self.network.in_features + self.network.out_features)

    def macs(self, forward: int) -> int:
        """Multiply-adds of the phase, from the forward pass: reverse mode does each product twice more."""
        return forward * self._passes

    @property
    def dense_macs(self) -> int:
        """Of the dense layer."""
        return self.macs(self.batch * self.network.dense_params)

    @property
    def least_bytes(self) -> int:
        """What any implementation has to move: x, y and cores; in training their gradients too, and x and the
        cores once more."""
        n = self.network
        x, y = self.batch * n.in_features, self.batch * n.out_features
        total = 3 * (x + n.num_params) + 2 * y if self.train else x + y + n.num_params
        return ITEM[self.dtype] * total

    # -- checks ---------------------------------------------------------------------------------------------

    def check_output(self, y: Array) -> None:
        """Raises WrongError unless y has the oracle's values in the first and last rows."""
        rows, expected = self.data.expected(self.batch)
        wanted = (self.batch, self.network.out_features)
        if y.shape != wanted:
            raise WrongError(f"y has shape {y.shape}, expected {wanted}")
        error = float(np.max(np.abs(y[rows].astype(np.float64) - expected)) / np.max(np.abs(expected)))
        if not error <= TOLERANCE[self.dtype]:
            raise WrongError(f"y differs from the oracle by {error:.2g} of its largest value")

    def check_gradients(self, y: Array, pairs: Sequence[tuple[Array, Array]]) -> None:
        """Raises WrongError unless <gradient, value> = <gy, y> for x and for every parameter.

        y is linear in each of them, so this is Euler's identity; it catches gradients that are missing,
        scaled, or of something else.
        """
        goal, scale = _dot(self.gy, y), math.sqrt(_dot(self.gy, self.gy) * _dot(y, y))
        for i, (gradient, value) in enumerate(pairs):
            error = abs(_dot(gradient, value) - goal) / scale
            if not error <= _GRADIENT[self.dtype]:
                raise WrongError(f"gradient {i} of {len(pairs)} (0 is x's) fails Euler's identity by {error:.2g}")


def _dot(a: Array, b: Array) -> float:
    return float(np.dot(a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)))
