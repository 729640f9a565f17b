"""A tensor along a tree of cores: the hierarchical singular value decomposition, and ranks for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from .._base.arrays import Array
from .._graph.paths import Legs
from .._graph.rank_problem import RankStep, greedy, topology_problem
from .._graph.topology import Topology, modes_on_cores
from .._graph.tree import Edge, Tree
from .svd import left_svd, singular_values, tails

_ALL_LOST = 1 - 1e-12  # of the squared norm: a rank of 0 has no logarithm


def _blocks(tensor: Array, legs: Legs, shared: Legs, rows: Legs) -> tuple[Array, Legs]:
    """A tensor as matrices (shared, rows, columns), and the legs of the columns."""
    columns = tuple(leg for leg in legs if leg not in shared and leg not in rows)
    size = dict(zip(legs, tensor.shape, strict=True))
    moved = tensor.transpose([legs.index(leg) for leg in (*shared, *rows, *columns)])
    return moved.reshape([math.prod(size[leg] for leg in part) for part in (shared, rows, columns)]), columns


def first_svd(tree: Tree, tensor: Array) -> tuple[Array, Array]:
    """(U, s) of the tensor across the first edge of a tree: what `energies_of` and `sweep` start with."""
    edge = tree.edges[0]
    matrices, _ = _blocks(tensor, modes_on_cores(tree.topology), edge.shared, edge.inner)
    return left_svd(matrices)


def energies_of(tree: Tree, tensor: Array, first: Array | None = None) -> list[Array]:
    """For each edge the squared singular values of the tensor across it, largest first, summed over blocks; `first` are
    the singular values at the first edge, where they are known."""
    legs = modes_on_cores(tree.topology)
    found = []
    for i, edge in enumerate(tree.edges):
        if i or first is None:
            values = singular_values(_blocks(tensor, legs, edge.shared, edge.inner)[0])
        else:
            values = first
        found.append(np.sum(values**2, axis=0))
    return found


def sweep(tree: Tree, tensor: Array, ranks: Mapping[str, int], first: Array | None = None) -> dict[str, Array]:
    """The cores of a tensor at given ranks, by singular value decompositions from the leaves to the root.

    Every step keeps the best `rank` left singular vectors of what is left of the tensor, so the squared error
    is exactly the sum of the squares that are dropped, and at most the sum over bonds of the tails of the
    tensor's own spectra (the hierarchical SVD of Grasedyck 2010; TT-SVD, Oseledets 2011, on a chain).
    All cores but the root are isometries towards it. Ranks beyond what there is are filled with zeros. `first` is
    U of `first_svd`, where it is known.
    """
    cores, legs = tree.topology.cores, modes_on_cores(tree.topology)
    size = {**tree.topology.modes, **ranks}
    found: dict[str, Array] = {}
    for i, edge in enumerate(tree.edges):
        link = (f":{i}",)  # all bonds of the edge as one leg
        rows = tuple(leg for leg in legs if leg in _held(tree, edge, i) and leg not in edge.shared)
        blocks, columns = _blocks(tensor, legs, edge.shared, rows)
        u = left_svd(blocks)[0] if i or first is None else first
        r = math.prod(ranks[bond] for bond in edge.bonds)
        if u.shape[-1] < r:
            u = np.pad(u, ((0, 0), (0, 0), (0, r - u.shape[-1])))
        u = u[..., :r]
        lengths = dict(zip(legs, tensor.shape, strict=True))
        found[cores[edge.core].name] = _core(
            u, (*edge.shared, *rows, *link), cores[edge.core].legs, tree, size, edge.core
        )
        tensor = np.matmul(u.conj().swapaxes(-1, -2), blocks)
        legs = (*edge.shared, *link, *columns)
        tensor = tensor.reshape([*(lengths[leg] for leg in edge.shared), r, *(lengths[leg] for leg in columns)])
    top = cores[tree.root]
    found[top.name] = _core(tensor, legs, top.legs, tree, size, tree.root)
    return found


def _held(tree: Tree, edge: Edge, position: int) -> set[str]:
    """The legs of a core while the tensor is taken apart: its open legs, and one for each child."""
    children = {f":{i}" for i, other in enumerate(tree.edges[:position]) if other.parent == edge.core}
    return children | set(tree.topology.cores[edge.core].legs)


def _core(array: Array, have: Legs, want: Legs, tree: Tree, size: Mapping[str, int], position: int) -> Array:
    """An array over open legs and edges as a core with its legs in their order."""
    split: list[str] = []
    for leg in have:
        split += tree.edges[int(leg[1:])].bonds if leg.startswith(":") else (leg,)
    core = array.reshape([size[leg] for leg in split])
    return core.transpose([split.index(leg) for leg in want])


class Tails:
    """What W loses at each edge of a tree for given ranks, in squared norm.

    Their sum bounds what `sweep` loses, and says nothing where it is above the squared norm of W. What is kept
    at one edge after another is nearly the product of what each keeps, so ranks are chosen by its logarithm.
    """

    def __init__(self, tree: Tree, energies: Sequence[Array]) -> None:
        self.edges = tree.edges
        self.dropped = [tails(values) for values in energies]
        self.total = float(self.dropped[0][0]) if self.dropped else 0.0
        shares = [left / (self.total or 1.0) for left in self.dropped]
        self.logs = [-np.log1p(-np.minimum(share, _ALL_LOST)) for share in shares]
        self.edge_of = {bond: i for i, edge in enumerate(tree.edges) for bond in edge.bonds}

    def at(self, i: int, ranks: Mapping[str, int]) -> float:
        """The squared norm that edge `i` drops."""
        return self._read(self.dropped, i, ranks)

    def sum(self, ranks: Mapping[str, int]) -> float:
        """Over all edges: an upper bound of the squared error of `sweep`."""
        return sum(self.at(i, ranks) for i in range(len(self.edges)))

    def lost(self, ranks: Mapping[str, int]) -> float:
        """About the share of the squared norm that `sweep` loses: 1 - the product of what the edges keep."""
        return -math.expm1(-sum(self._read(self.logs, i, ranks) for i in range(len(self.edges))))

    def change(self, bond: str, ranks: Mapping[str, int], step: int) -> tuple[float, float]:
        """How much less is dropped after a step of one bond: in squared norm, and of -ln of the product."""
        i = self.edge_of[bond]
        wide, last = self._wide(i, ranks), len(self.dropped[i]) - 1
        before, after = min(wide, last), min(wide // ranks[bond] * (ranks[bond] + step), last)
        dropped, logs = (float(of[i][before] - of[i][after]) for of in (self.dropped, self.logs))
        return dropped, logs

    def _wide(self, i: int, ranks: Mapping[str, int]) -> int:
        """The size of all bonds of edge `i` together."""
        return math.prod([ranks[bond] for bond in self.edges[i].bonds])

    def _read(self, of: Sequence[Array], i: int, ranks: Mapping[str, int]) -> float:
        return float(of[i][min(self._wide(i, ranks), len(of[i]) - 1)])


def full_ranks(tree: Tree, dropped: Tails, caps: Mapping[str, int]) -> dict[str, int]:
    """The ranks at which nothing is lost, up to rounding."""
    floor = 1e-30 * dropped.total
    found = {}
    for edge, left in zip(tree.edges, dropped.dropped, strict=True):
        useful = max(1, int(np.argmax(left <= floor)))
        for bond in edge.bonds:
            found[bond] = min(caps[bond], useful)
    return found


def grown(topology: Topology, dropped: Tails, most: Mapping[str, int], budget: int, error: float) -> dict[str, int]:
    """Ranks from 1 upwards: always the bond that loses least for its parameters, while the budget holds and
    the sum of the tails is above `error` (a squared norm)."""
    return _filled(topology, dropped, most, budget, error, dict.fromkeys(topology.bonds, 1))


def _filled(
    topology: Topology, dropped: Tails, most: Mapping[str, int], budget: int, error: float, ranks: dict[str, int]
) -> dict[str, int]:
    def gain(bond: str, price: int) -> float:
        return dropped.change(bond, ranks, 1)[1] / price

    def useful(step: RankStep[str], params: int) -> bool:
        return step.score > 0 and params + step.price <= budget and ranks[step.bond] < most[step.bond]

    if error and dropped.sum(ranks) <= error:
        return ranks
    for _ in greedy(topology_problem(topology), ranks, 1, gain, useful):
        if error and dropped.sum(ranks) <= error:
            break
    return ranks


def shrunk(topology: Topology, dropped: Tails, most: Mapping[str, int], budget: int, error: float) -> dict[str, int]:
    """Ranks from the top downwards: always the bond that loses least for the parameters it gives back, until
    the budget holds; and further while the sum of the tails stays at most `error` (a squared norm)."""
    ranks = dict(most)
    lost = dropped.sum(ranks)

    def saving(bond: str, price: int) -> float:
        return dropped.change(bond, ranks, -1)[1] / price

    def cheap(step: RankStep[str], params: int) -> bool:
        within = params > budget or lost - dropped.change(step.bond, ranks, -1)[0] <= error
        return within and ranks[step.bond] > 1

    for bond in greedy(topology_problem(topology), ranks, -1, saving, cheap):
        lost += dropped.change(bond, ranks, 1)[0]
    return ranks if error else _filled(topology, dropped, most, budget, error, ranks)
