"""Which topologies are trees of cores, and decomposing a tensor along one by singular values.

A topology is a tree here when its cores, joined by bonds of two cores each (several bonds between the same
two count as one), have no loop, and every open leg of several cores is on connected ones. So
MPO, hierarchical trees, Tucker, low rank, Kronecker, and also BTT and Monarch are trees; a leg on both sides of a
bond only makes the singular value decomposition at that bond one of blocks, one for each of its values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

from .paths import Legs
from .topology import Topology


@dataclasses.dataclass(frozen=True)
class Edge:
    """A core and what joins it to its parent.

    Attributes:
        core: position of the core.
        parent: position of its parent.
        bonds: between the two; none where two parts of a network are joined by nothing but a product.
        below: positions of the core and all that hangs on it.
        shared: open legs on both sides; there is one decomposition for each of their values.
        inner: the other open legs below.
    """

    core: int
    parent: int
    bonds: Legs
    below: frozenset[int]
    shared: Legs
    inner: Legs


@dataclasses.dataclass(frozen=True)
class Tree:
    """The cores of a topology from the leaves to the root.

    Attributes:
        topology: the graph.
        root: position of the last core.
        edges: of every core but the root, children before parents.
    """

    topology: Topology
    root: int
    edges: tuple[Edge, ...]

    @property
    def is_plain(self) -> bool:
        """Connected, one bond at each edge, and no open leg on two cores: what a canonical form needs."""
        t = self.topology
        return not t.kept and all(len(edge.bonds) == 1 and not edge.shared for edge in self.edges)


@functools.lru_cache(maxsize=1024)
def tree_of(topology: Topology, root: int | None = None) -> Tree | None:
    """The tree of a topology about a core (by default the last one), or None where it is none."""
    holders = topology.holders
    if any(len(holders[bond]) != 2 for bond in topology.bonds):
        return None
    joined: dict[tuple[int, int], list[str]] = {}
    for bond in topology.bonds:
        a, b = holders[bond]
        joined.setdefault((a, b), []).append(bond)
    _join_parts(len(topology.cores), joined)
    if len(joined) != len(topology.cores) - 1:  # connected, so a tree has one edge less than cores
        return None
    start = len(topology.cores) - 1 if root is None else root
    edges = tuple(_edge(topology, holders, joined, *pair) for pair in _leaves_first(start, joined))
    legs = [set(core.legs) for core in topology.cores]
    if any(not set(edge.shared) <= legs[edge.core] & legs[edge.parent] for edge in edges):
        return None
    return Tree(topology, start, edges)


def _join_parts(count: int, joined: dict[tuple[int, int], list[str]]) -> None:
    """Joins the parts of a graph that is not connected, each core to the one declared before it."""
    part = list(range(count))

    def merge(a: int, b: int) -> bool:
        old, new = part[b], part[a]
        part[:] = [new if p == old else p for p in part]
        return old != new

    for a, b in list(joined):
        merge(a, b)
    for i in range(1, count):
        if merge(i - 1, i):
            joined[(i - 1, i)] = []


def _leaves_first(root: int, joined: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(core, parent) of every core but the root, children before parents."""
    pairs, found, queue = set(joined), [], [root]
    while queue:
        parent = queue.pop(0)
        for pair in sorted(pairs):
            if parent in pair:
                core = pair[0] + pair[1] - parent
                found.append((core, parent))
                queue.append(core)
                pairs.discard(pair)
    return found[::-1]


def _edge(
    topology: Topology,
    holders: Mapping[str, Sequence[int]],
    joined: Mapping[tuple[int, int], Sequence[str]],
    core: int,
    parent: int,
) -> Edge:
    below, queue = {core}, [core]
    while queue:
        here = queue.pop()
        near = {a + b - here for a, b in joined if here in (a, b)} - below - {parent}
        below |= near
        queue += near
    inside = [leg for leg in topology.modes if below & set(holders[leg])]
    shared = tuple(leg for leg in inside if set(holders[leg]) - below)
    bonds = tuple(joined[(min(core, parent), max(core, parent))])
    return Edge(core, parent, bonds, frozenset(below), shared, tuple(leg for leg in inside if leg not in shared))
