"""The estimated gain of a larger bond, without a fit: the best rank-one step along it against the residual."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .._base.arrays import Array
from .._graph.contract import contract
from .._graph.network import Network
from .._graph.paths import Legs
from .._graph.topology import modes_on_cores
from .moves import Move


def estimated_gains(
    network: Network, weights: Mapping[str, Array], residual: Array, moves: Sequence[Move]
) -> list[float]:
    """For each move that makes a bond larger, how much of the squared residual one more value of it takes away.

    One more value of a bond between cores i and j adds a term W' = (u, v, all other cores) with two new slices u and
    v. The best direction is the top singular pair of the residual contracted with all other cores, and the
    best length along it takes away s^2 / ||W'||^2. For bonds of more than two cores the gain is infinity: they are
    always tried.

    Args:
        network: as it is.
        weights: its cores.
        residual: the target less W, over the open legs in the order of the modes.
        moves: from `larger`.
    """
    return [_gain(network, weights, residual, move) for move in moves]


def _gain(network: Network, weights: Mapping[str, Array], residual: Array, move: Move) -> float:
    t = network.topology
    ends = move.network.topology.holders[move.bond]
    pair = [tuple(leg for leg in t.cores[i].legs if leg != move.bond) for i in ends]
    if len(ends) != 2 or set(pair[0]) & set(pair[1]):
        return math.inf
    others = [core for i, core in enumerate(t.cores) if i not in ends]
    legs: list[Legs] = [core.legs for core in others]
    arrays = [weights[core.name] for core in others]
    modes = modes_on_cores(t)
    gradient = contract([*legs, modes], [*(a.conj() for a in arrays), residual], pair[0] + pair[1])
    rows = math.prod(network.sizes[leg] for leg in pair[0])
    u, s, vt = np.linalg.svd(gradient.reshape(rows, -1), full_matrices=False)
    slices = [
        side.reshape([network.sizes[leg] for leg in own]) for side, own in zip((u[:, 0], vt[0]), pair, strict=True)
    ]
    square = float(np.linalg.norm(contract([*legs, *pair], [*arrays, *slices], modes)) ** 2)
    return float(s[0] ** 2) / square if square > 0 else 0.0
