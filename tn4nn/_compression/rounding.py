"""Rounding: smaller ranks for a given network, without ever forming its matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .._base.arrays import Array
from .._base.errors import DataError
from .._graph.network import Network
from .decompose import Decomposition
from .fit import Asked, lost_at_edges
from .gauge import Weights, balance, canonicalise, checked_weights, plain_tree
from .svd import singular_values
from .tree_svd import Tails


def rounded(
    network: Network,
    weights: Weights,
    *,
    rank: int | None = None,
    params: int | None = None,
    error: float | None = None,
) -> Decomposition:
    """A tree network with smaller ranks and nearly the same matrix (TT rounding of Oseledets 2011, on any tree).

    Bond by bond, in the canonical form about one of its ends, the smallest singular values are dropped; the squared
    error is exactly the sum of their squares. W is never formed.

    Args:
        network: a tree (MPO, hierarchical tree, Tucker, low rank, or your own).
        weights: core name -> array, real or complex.
        rank: largest size of every bond.
        params: parameters, never more; ranks by error per parameter.
        error: largest relative error in the Frobenius norm, from 0 to below 1. 0 drops what is exactly redundant.

    Raises:
        TopologyError: a graph with loops or hyperedges, or not exactly one of rank=, params=, error=.
        BudgetError: parameters that no ranks can meet.
        DataError: W is zero everywhere, or a core holds NaN or infinity.

    Examples:
        >>> import tn4nn as tn
        >>> net = tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(3)
        >>> wide = net.topology.with_rank(6)
        >>> weights = tn.decompose(net.to_dense(net.init(0)), wide, dtype="float64").weights
        >>> result = tn.rounded(wide, weights, error=1e-6)
        >>> result.network.ranks, result.error < 1e-6
        ({'a0': 3, 'a1': 3}, True)
    """
    rounder = _Rounder(network, checked_weights(network, weights))
    if rank is not None:
        rank = min(rank, max(network.ranks.values(), default=1))
    smaller, cores, _ = Asked(network.topology, rank, params, error).answer(rounder)
    kind = np.result_type(*(np.asarray(array).dtype for array in weights.values()))
    lost = lost_at_edges(rounder.tree, rounder.tails, smaller, rounder.tails.total)
    every = [e for _, e in lost]
    return Decomposition(
        network=smaller,
        weights={name: np.ascontiguousarray(a, dtype=kind) for name, a in balance(smaller, cores).items()},
        error=rounder.error_of(smaller, cores),
        output_error=None,
        bond_errors={bond: e for bonds, e in lost for bond in bonds},
        bound=min(1.0, float(np.linalg.norm(every))) if every else None,
        least=max(every) if every else None,
        random_error=None,
        method="svd",
    )


class _Rounder:
    """Weights of a network at lower ranks; see `tn4nn._compression.fit.Fits`."""

    def __init__(self, network: Network, weights: dict[str, Array]) -> None:
        self.network, self.weights = network, weights
        self.tree = plain_tree(network, None, "rounding")
        self._lost: dict[Network, float] = {}
        energies = [singular_values(self._center(weights, i)[0]) ** 2 for i in range(len(self.tree.edges))]
        self.tails = Tails(self.tree, energies)
        if energies and not self.tails.total > 0:
            raise DataError("W of this network is zero everywhere: there is nothing to round")

    def _center(self, weights: Mapping[str, NDArray[np.generic]], edge: int) -> tuple[Array, dict[str, Array]]:
        """The parent core of an edge as a matrix (bond, rest), and all cores canonical about it."""
        cores = self.network.topology.cores
        bond, parent = self.tree.edges[edge].bonds[0], cores[self.tree.edges[edge].parent]
        ranks = {b: n for c in cores for b, n in zip(c.legs, weights[c.name].shape, strict=True)}
        now = Network(self.network.topology, {b: ranks[b] for b in self.network.ranks})
        canonical = canonicalise(now, weights, parent.name)
        front = np.moveaxis(canonical[parent.name], parent.legs.index(bond), 0)
        return front.reshape(len(front), -1), canonical

    def fit(self, network: Network) -> dict[str, Array]:
        """Cores at the ranks of `network`."""
        weights, lost = dict(self.weights), 0.0
        for i, edge in enumerate(self.tree.edges):
            matrix, weights = self._center(weights, i)
            u, s, _ = np.linalg.svd(matrix, full_matrices=False)
            wanted = network.ranks[edge.bonds[0]]
            lost += float(np.sum(s[wanted:] ** 2))
            part = np.pad(u[:, :wanted], ((0, 0), (0, max(0, wanted - u.shape[1]))))
            # The bond's own space: the parent is projected onto the singular vectors, the child expressed in them.
            for position, basis in ((edge.parent, part.conj()), (edge.core, part)):
                core = self.network.topology.cores[position]
                axis = core.legs.index(edge.bonds[0])
                weights[core.name] = np.moveaxis(np.tensordot(weights[core.name], basis, axes=(axis, 0)), -1, axis)
        self._lost[network] = math.sqrt(lost / self.tails.total) if self.tails.total else 0.0
        return weights

    def swept_error(self, network: Network) -> float:
        """The relative error at these ranks."""
        self.fit(network)
        return self._lost[network]

    def error_of(self, network: Network, weights: Mapping[str, Array]) -> float:
        """The relative error at these ranks, as `fit` found it."""
        return self._lost[network]
