"""Reconnecting a tree by entanglement: which open legs should be near each other.

At every bond of a binary tree four branches meet, and there are three pairings of them. Of the three the one
with least entanglement entropy across the bond is taken, bond after bond, until nothing changes (Hikihara, Ueda,
Okunishi, Harada, Nishino 2023, arXiv:2209.03196). The other bonds keep their bipartitions, so the sum of the
entropies over all bonds falls with every change.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from .._base.arrays import Array
from .._base.checks import checked_size
from .._base.errors import TopologyError
from .._base.seeds import rng_for
from .._compression.entanglement import Cut
from .._compression.svd import singular_values
from .._compression.target import target_of
from .._graph.topology import Topology
from .._graph.tree import tree_of
from .moves import exchanged

if TYPE_CHECKING:
    from .._graph.paths import Legs

_LESS = 1e-9  # nats by which an entropy must fall to count


@dataclasses.dataclass(frozen=True, eq=False)
class Reconnection:
    """A tree with its branches where the entanglement wants them.

    Attributes:
        topology: the tree.
        entropies: the sum of S over its bonds in nats, before the first sweep and after each.
        changes: what was exchanged, one sentence each.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> found = tn.reconnect(np.kron(np.eye(4), np.ones((4, 4))), tn.tree((2,) * 4, (2,) * 4))
        >>> found.entropies[-1] <= found.entropies[0], len(found.topology.cores)
        (True, 6)
    """

    topology: Topology
    entropies: tuple[float, ...]
    changes: tuple[str, ...]

    def __str__(self) -> str:
        sums = " -> ".join(f"{s:.4f}" for s in self.entropies)
        return "\n".join([f"Entropy over the bonds {sums} nats", *(f"  {c}" for c in self.changes), str(self.topology)])

    __repr__ = __str__


def reconnect(W: ArrayLike, tree: Topology, *, sweeps: int = 20, seed: int = 0) -> Reconnection:
    """A tree over the same open legs, with less entanglement entropy at its bonds.

    Args:
        W: of shape (out_features, in_features). (For an array of any order: its axes as inputs, one output of size 1.)
        tree: one bond at each edge, no open leg on two cores. Cores may have more than three legs; then all
            exchanges of two branches around a bond are compared.
        sweeps: through all bonds, at the most.
        seed: of the order in which the bonds are taken. Where the entropy stays as it is, a change is made too, once
            for each tree: entanglement between far legs must pass such plateaus.

    Raises:
        TopologyError: no such tree.
        ShapeError: W does not have the shape of the topology.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> bell = np.eye(2)
        >>> W = np.einsum("ad,bc->abcd", bell, bell).reshape(1, 16)   # x0 with x3, x1 with x2
        >>> tree = tn.topology("x0 x1 a, x2 x3 y0 a", {"x0": 2, "x1": 2, "x2": 2, "x3": 2}, {"y0": 1})
        >>> found = tn.reconnect(W, tree)
        >>> [round(float(s), 3) for s in found.entropies], [core.legs for core in found.topology.cores]
        ([1.386, 0.0, 0.0], [('x0', 'x3', 'a'), ('x2', 'x1', 'y0', 'a')])
    """
    found = tree_of(tree)
    if found is None or not found.is_plain or tree.is_padded or len(tree.bonds) != len(tree.cores) - 1:
        raise TopologyError(
            f"reconnect takes a connected tree with one bond at each edge, no open leg on two cores and no padding; "
            f"{tree.name!r} is none: start from tn.tree or tn.mpo"
        )
    target = target_of(W, tree, None, None)
    entropies = _Entropies(target.tensor(target.padded), tuple(tree.modes))
    state, changes = tree, list[str]()
    sums = [entropies.sum(state)]
    seen = {frozenset(_sides(state).values())}
    for number in range(checked_size(sweeps, "sweeps")):
        before = len(changes)
        for i in rng_for(seed, "reconnect", number).permutation(len(tree.bonds)):
            bond = tree.bonds[i]
            most = entropies.at(_sides(state)[bond])
            found_here = None
            for text, other in _pairings(state, bond):
                sides = _sides(other)
                entropy = entropies.at(sides[bond])
                if entropy < most - _LESS or (entropy < most + _LESS and frozenset(sides.values()) not in seen):
                    most, found_here = entropy, (text, other)
            if found_here is not None:
                text, state = found_here
                seen.add(frozenset(_sides(state).values()))
                changes.append(f"at {bond}: {text}")
        sums.append(entropies.sum(state))
        if len(changes) == before:
            break
    return Reconnection(state, tuple(sums), tuple(changes))


def _sides(tree: Topology) -> dict[str, frozenset[str]]:
    """bond -> the open legs on that side of it where the first one is not."""
    found = tree_of(tree)
    assert found is not None
    every, first = frozenset(tree.modes), next(iter(tree.modes))
    inner = {edge.bonds[0]: frozenset(edge.inner) for edge in found.edges}
    return {bond: every - legs if first in legs else legs for bond, legs in inner.items()}


def _pairings(tree: Topology, bond: str) -> Iterator[tuple[str, Topology]]:
    """The other pairings of the branches around a bond: two branches from either side are exchanged."""
    i, j = tree.holders[bond]
    one, other = tree.cores[i], tree.cores[j]
    keep = one.legs[0] if one.legs[0] != bond else one.legs[1]  # exchanging both branches would change nothing
    binary = len(one.legs) == len(other.legs) == 3
    for a in one.legs:
        for b in other.legs:
            if bond not in (a, b) and not (binary and a == keep):
                yield f"{a} of {one.name} against {b} of {other.name}", exchanged(tree, (i, a), (j, b))


class _Entropies:
    """S of a tensor across bipartitions of its legs, each computed once."""

    def __init__(self, tensor: Array, legs: Legs) -> None:
        self.tensor, self.legs = tensor, legs
        self.known: dict[frozenset[str], float] = {}

    def at(self, side: frozenset[str]) -> float:
        """S in nats."""
        if side not in self.known:
            axes = [i for i, leg in enumerate(self.legs) if leg in side]
            rest = [i for i in range(len(self.legs)) if i not in axes]
            rows = math.prod(self.tensor.shape[i] for i in axes)
            spectrum = singular_values(self.tensor.transpose([*axes, *rest]).reshape(rows, -1))
            self.known[side] = Cut("", (), spectrum, 0.0).entropy
        return self.known[side]

    def sum(self, tree: Topology) -> float:
        """Over all bonds of a tree."""
        return sum(map(self.at, _sides(tree).values()))
