"""Local moves on a network: its neighbours in the space of structures, and what their weights can start from.

A structure says which core holds which open legs, and which cores are joined by bonds of which size. A bond of size 1
is none: adding a bond is growing one from size 1, removing it is shrinking it there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.arrays import Array
from .._compression.ranks import Resized, with_larger_bonds, with_smaller_bonds
from .._graph.network import Network
from .._graph.topology import Core, Topology

Weights = Mapping[str, NDArray[Any]]

_STEP = 8  # a bond changes by an eighth of its size, by one at least


@dataclasses.dataclass(frozen=True)
class Move:
    """One step to a neighbour.

    Attributes:
        text: what changed, for people.
        network: what it became.
        bond: the bond that grew, by its name in `network`.
    """

    text: str
    network: Network
    bond: str = ""


def structure_of(network: Network) -> str:
    """The open legs of each core, and the size of each bond by the cores that it joins: networks that differ in
    nothing but names and the order of legs have the same text.

    Examples:
        >>> import tn4nn as tn
        >>> structure_of(tn.mpo((2, 3), (2, 2)).with_rank(4))
        '0:x0,y0 1:x1,y1 | 0-1=4'
    """
    modes, holders = network.topology.modes, network.topology.holders
    cores = [",".join(sorted(leg for leg in core.legs if leg in modes)) for core in network.topology.cores]
    bonds = sorted("-".join(map(str, holders[bond])) + f"={size}" for bond, size in network.ranks.items())
    return " ".join([*(f"{i}:{legs}" for i, legs in enumerate(cores)), "|", *bonds])


def without_bonds_of_one(network: Network) -> Network:
    """The same W without bonds of size 1, but for those that are all that a core has."""
    t = network.topology
    for bond in [b for b, size in network.ranks.items() if size == 1]:
        legs = [[leg for leg in core.legs if leg != bond] for core in t.cores]
        if all(legs):
            t = _with_legs(t, legs)
    return Network(t, {bond: network.ranks[bond] for bond in t.bonds})


def larger(network: Network, new_bonds: bool) -> Iterator[Move]:
    """Every bond a step larger; and a bond of size 2 between any two cores that share none."""
    for bond, size in network.ranks.items():
        grew = size + max(1, size // _STEP)
        yield Move(f"{bond} {size} -> {grew}", Network(network.topology, {**network.ranks, bond: grew}), bond)
    if new_bonds:
        for i, j in itertools.combinations(range(len(network.topology.cores)), 2):
            if not _joined(network.topology, i, j):
                yield _with_bond(network, i, j)


def smaller(network: Network, old_bonds: bool) -> Iterator[Move]:
    """Every bond a step smaller; at size 1 it is removed, unless bonds are to stay."""
    for bond, size in network.ranks.items():
        if size > 1:
            less = size - max(1, size // _STEP)
            shrunk = Network(network.topology, {**network.ranks, bond: less})
            yield Move(f"{bond} {size} -> {less}", without_bonds_of_one(shrunk) if old_bonds else shrunk)


def swaps(network: Network) -> Iterator[Move]:
    """Two cores exchange a leg each: open legs (a permutation of the modes), or where the two are neighbours any legs
    that they do not share (on a binary tree: the other two pairings of the branches around a bond)."""
    t, holders = network.topology, network.topology.holders
    for i, j in itertools.combinations(range(len(t.cores)), 2):
        near = _joined(t, i, j)
        mine, yours = (
            [
                leg
                for leg in t.cores[here].legs
                if leg not in t.cores[there].legs and len(holders[leg]) <= 2 and (near or leg in t.modes)
            ]
            for here, there in ((i, j), (j, i))
        )
        for a, b in itertools.product(mine, yours):
            text = f"{a} of {t.cores[i].name} against {b} of {t.cores[j].name}"
            yield Move(text, Network(exchanged(t, (i, a), (j, b)), network.ranks))


def exchanged(topology: Topology, one: tuple[int, str], other: tuple[int, str]) -> Topology:
    """The topology after two cores, by position, have exchanged a leg each."""
    (i, a), (j, b) = one, other
    legs = [list(core.legs) for core in topology.cores]
    legs[i][legs[i].index(a)], legs[j][legs[j].index(b)] = b, a
    return _with_legs(topology, legs)


def _joined(topology: Topology, i: int, j: int) -> bool:
    return bool(set(topology.cores[i].legs) & set(topology.cores[j].legs) & set(topology.bonds))


def _with_bond(network: Network, i: int, j: int) -> Move:
    t = network.topology
    taken = {*t.modes, *t.bonds}
    bond = next(name for n in itertools.count() if (name := f"b{n}") not in taken)
    legs = [[*core.legs, bond] if k in (i, j) else list(core.legs) for k, core in enumerate(t.cores)]
    text = f"{bond} between {t.cores[i].name} and {t.cores[j].name}"
    return Move(text, Network(_with_legs(t, legs), {**network.ranks, bond: 2}), bond)


def _with_legs(topology: Topology, legs: Sequence[Sequence[str]]) -> Topology:
    cores = tuple(Core(core.name, tuple(own)) for core, own in zip(topology.cores, legs, strict=True))
    return dataclasses.replace(topology, cores=cores)


def warm_start(network: Network, weights: Weights, onto: Network, seed: int) -> dict[str, Array] | None:
    """The weights of a network as a start for a neighbour: bonds of both are cut or grown, those of the one are cut to
    size 1 and left out, those of the other start at size 1 and grow. What is new is random on one side and zero on the
    other.

    None where legs have changed places, as then nothing carries over, and for complex weights.
    """
    if any(network.topology.holders[leg] != onto.topology.holders[leg] for leg in network.topology.modes):
        return None
    if any(np.iscomplexobj(array) for array in weights.values()):
        return None
    common = _common_bonds(network.topology, onto.topology)
    sizes = {bond: min(size, onto.ranks[bond]) if bond in common else 1 for bond, size in network.ranks.items()}
    smaller_bonds = {bond: size for bond, size in sizes.items() if size < network.ranks[bond]}
    moved = _on_graph(onto.topology, with_smaller_bonds(Resized(network, dict(weights)), smaller_bonds), common)
    larger_bonds = {bond: size for bond, size in onto.ranks.items() if size > moved.network.ranks[bond]}
    return with_larger_bonds(moved, larger_bonds, seed).weights


def _common_bonds(one: Topology, other: Topology) -> set[str]:
    """The bonds that join the same cores in two topologies."""
    return {bond for bond in one.bonds if bond in other.bonds and one.holders[bond] == other.holders[bond]}


def _on_graph(topology: Topology, start: Resized, common: set[str]) -> Resized:
    """The same weights on another graph. Bonds that are not common have size 1 before and after."""
    ranks = {bond: start.network.ranks[bond] if bond in common else 1 for bond in topology.bonds}
    sizes = {**topology.modes, **ranks}
    arrays = {}
    for before, after in zip(start.network.topology.cores, topology.cores, strict=True):
        stay = [leg for leg in after.legs if leg in before.legs and (leg in common or leg in topology.modes)]
        gone = [leg for leg in before.legs if leg not in stay]  # of size 1
        array = start.weights[before.name].transpose([before.legs.index(leg) for leg in (*stay, *gone)])
        arrays[after.name] = array.reshape([sizes[leg] for leg in after.legs])
    return Resized(Network(topology, ranks), arrays)
