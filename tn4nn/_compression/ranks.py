"""Larger and smaller bonds for weights that are there.

Growing leaves W as it is. Cutting drops what matters least: on a bond of a tree the smallest Schmidt values of W, on a
bond in a loop those of the two cores that it joins, on a hyperedge the values at which the product of the norms of
its cores is least. Only the bonds that change are touched, and both are one matrix on each core's axis, so that an
optimizer's moments can follow: gradients by the dual matrix, their squares by a bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.arrays import Array
from .._base.checks import checked_size, nearest
from .._base.errors import ShapeError, TopologyError
from .._base.seeds import rng_for
from .._graph.network import Network
from .._graph.topology import Topology
from .._graph.tree import tree_of
from .gauge import wide

Weights = Mapping[str, NDArray[Any]]

_NOTHING = 1e-7  # of the largest Schmidt value: below, a slice is empty (Gram matrices resolve no more)


@dataclasses.dataclass(frozen=True, eq=False)
class Turn:
    """What a change of one bond does to a core: new = old times `matrix` on `axis`; gradients turn by `dual`.

    Where the bond grows, squares of gradients are unknown in the new slices: they start at the mean of the others. (At
    zero Adam would move them six times too fast for a hundred steps, and does diverge.)
    """

    core: str
    axis: int
    matrix: Array
    dual: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Resized:
    """A network with other ranks, its weights, and how they came about."""

    network: Network
    weights: dict[str, Array]
    turns: tuple[Turn, ...] = ()

    def moment(self, core: str, array: NDArray[Any], degree: int) -> NDArray[Any]:
        """An optimizer's mean of gradients (degree 1) or of their squares (degree 2) for the new core."""
        made = np.asarray(array, dtype=np.float64)
        for turn in self.turns:
            if turn.core == core:
                old = made
                if degree == 1:
                    made = _turned(old, turn.axis, turn.dual)
                    continue
                # The root of a mean square of a sum is at most the sum of the roots: steps get rather too small.
                made = _turned(np.sqrt(old), turn.axis, np.abs(turn.dual)) ** 2
                if made.shape[turn.axis] > old.shape[turn.axis]:
                    new = np.arange(made.shape[turn.axis]) >= old.shape[turn.axis]
                    made += np.moveaxis(np.multiply.outer(old.mean(axis=turn.axis), new), -1, turn.axis)
        return np.ascontiguousarray(made, dtype=array.dtype)


def _turned(array: Array, axis: int, matrix: Array) -> Array:
    return np.moveaxis(np.tensordot(array, matrix, axes=(axis, 0)), -1, axis)


def grow(
    network: Network, weights: Weights, ranks: Mapping[str, int], *, seed: int = 0
) -> tuple[Network, dict[str, NDArray[Any]]]:
    """Larger bonds and the same W.

    The new slices are zero on one core of the bond (the last that holds it), so nothing changes, and random on
    all others, at the scale of their entries, so that gradients reach the zeros.

    Args:
        network: any network.
        weights: core name -> array, real.
        ranks: bond -> its new size, not below the old one.
        seed: of the new entries.

    Raises:
        TopologyError: no such bond, or a size below the old one.
        ShapeError: weights of another network, or complex ones.

    Example:
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.mpo((4, 4), (4, 4)).with_rank(2)
        >>> weights = net.init(0)
        >>> larger, grown = tn.grow(net, weights, {"a0": 5})
        >>> larger.ranks, bool(np.abs(larger.to_dense(grown) - net.to_dense(weights)).max() < 1e-6)
        ({'a0': 5}, True)
    """
    made = grown(Resized(network, checked(network, weights)), _sizes(network, ranks, larger=True), seed)
    return made.network, _like(made.weights, weights)


def cut(network: Network, weights: Weights, ranks: Mapping[str, int]) -> tuple[Network, dict[str, NDArray[Any]]]:
    """Smaller bonds, with what matters least dropped.

    A bond is cut to what it really carries where that is less than asked for. Its remaining values are balanced: they
    have the same norm on both sides.

    Args:
        network: any network.
        weights: core name -> array, real.
        ranks: bond -> its new size, not above the old one.

    Raises:
        TopologyError: no such bond, or a size above the old one.
        ShapeError: weights of another network, or complex ones.

    Example:
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.mpo((4, 4), (4, 4)).with_rank(2)
        >>> weights = net.init(0)
        >>> back, kept = tn.cut(*tn.grow(net, weights, {"a0": 5}), {"a0": 2})
        >>> bool(np.abs(back.to_dense(kept) - net.to_dense(weights)).max() < 1e-6)
        True
    """
    made = shortened(Resized(network, checked(network, weights)), _sizes(network, ranks, larger=False))
    return made.network, _like(made.weights, weights)


def checked(network: Network, weights: Weights) -> dict[str, Array]:
    """Copies in float64, or an error."""
    network.check(weights)
    if any(np.iscomplexobj(array) for array in weights.values()):
        raise ShapeError("ranks change during training, which is real: received complex weights")
    return wide(weights)


def _like(made: Weights, weights: Weights) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(made[name], dtype=np.asarray(a).dtype) for name, a in weights.items()}


def _sizes(network: Network, ranks: Mapping[str, int], *, larger: bool) -> dict[str, int]:
    made = {}
    for bond, size in ranks.items():
        if bond not in network.ranks:
            raise TopologyError(
                f"{bond!r} is no bond of {network.topology.name!r}." + nearest(str(bond), network.ranks)
            )
        old, new = network.ranks[bond], checked_size(size, f"bond {bond!r}")
        if new != old and (new > old) != larger:
            word, other = ("above", "cut") if larger else ("below", "grow")
            raise TopologyError(f"bond {bond!r} has size {old}: expected one {word}, received {new}; see tn.{other}")
        if new != old:
            made[bond] = new
    return made


# -- larger -----------------------------------------------------------------------------------------------------


def grown(before: Resized, ranks: Mapping[str, int], seed: int) -> Resized:
    """`before` with larger bonds."""
    weights, turns = dict(before.weights), list(before.turns)
    for bond, size in ranks.items():
        places = _places(before.network.topology, bond)
        for name, axis in places:
            old = weights[name]
            pad = np.eye(old.shape[axis], size)
            new = _turned(old, axis, pad)
            if name != places[-1][0]:
                fresh = rng_for(seed, "grow", bond, name, size).standard_normal(new.shape)
                scale = float(np.sqrt(np.mean(old**2)))
                new += (
                    np.moveaxis(np.moveaxis(fresh, axis, -1) * (np.arange(size) >= old.shape[axis]), -1, axis) * scale
                )
            weights[name] = new
            turns.append(Turn(name, axis, pad, pad))
    return Resized(_resized(before.network, ranks), weights, tuple(turns))


def _resized(network: Network, ranks: Mapping[str, int]) -> Network:
    return Network(network.topology, {**network.ranks, **ranks})


def _places(topology: Topology, bond: str) -> list[tuple[str, int]]:
    """(core, axis) of a bond."""
    cores = [topology.cores[i] for i in topology.holders[bond]]
    return [(core.name, core.legs.index(bond)) for core in cores]


# -- smaller ----------------------------------------------------------------------------------------------------


def shortened(before: Resized, ranks: Mapping[str, int]) -> Resized:
    """`before` with smaller bonds."""
    made = before
    for bond, size in ranks.items():
        pair = _Bond(made.network.topology, made.weights, bond)
        turns = pair.cut_to(size)
        weights = dict(made.weights)
        for turn in turns:
            weights[turn.core] = _turned(weights[turn.core], turn.axis, turn.matrix)
        network = _resized(made.network, {bond: turns[0].matrix.shape[1]})
        made = Resized(network, weights, (*made.turns, *turns))
    return made


def schmidt_values(network: Network, weights: Weights, bond: str) -> Array:
    """What each value of a bond carries, largest first: what `cut` goes by.

    Example:
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.low_rank(4, 4).with_rank(2)
        >>> weights = {"core0": np.diag([3.0, 1, 0, 0])[:, :2], "core1": np.diag([2.0, 1, 0, 0])[:2]}
        >>> schmidt_values(net, weights, "a0")
        array([6., 1.])
    """
    return _Bond(network.topology, wide(weights), bond).values


class _Bond:
    """A bond of two cores by the Gram matrices of its sides, X X^T and Y Y^T: the singular values of X^T Y are the
    Schmidt values, and Y V / sqrt(S) beside X U / sqrt(S) the projection onto the largest (balanced truncation)."""

    def __init__(self, topology: Topology, weights: Mapping[str, Array], bond: str) -> None:
        self.places = _places(topology, bond)
        self.sides: tuple[Array, Array] | None = None
        if len(self.places) == 2:
            tree = tree_of(topology)
            part = _Sides(topology, weights, tree is not None and tree.is_plain)
            x, y = (_root(part.gram(core, bond)) for core in topology.holders[bond])
            u, self.values, vt = np.linalg.svd(x.T @ y)
            self.sides = (y @ vt.T, x @ u)
            self.order = np.arange(len(self.values))
        else:
            norms = [np.linalg.norm(_front(weights[name], axis), axis=1) for name, axis in self.places]
            product = np.prod(norms, axis=0)
            self.order = np.argsort(-product, kind="stable")
            self.values = product[self.order]

    def cut_to(self, size: int) -> list[Turn]:
        carried = int(np.sum(self.values > _NOTHING * self.values[0]))
        kept = max(1, min(size, carried))
        if self.sides is None or not self.values[0] > 0:
            keep = np.eye(len(self.order))[:, np.sort(self.order[:kept])]
            return [Turn(name, axis, keep, keep) for name, axis in self.places]
        scale = np.sqrt(self.values[:kept])
        left, right = (side[:, :kept] / scale for side in self.sides)
        (a, i), (b, j) = self.places
        return [Turn(a, i, left, right), Turn(b, j, right, left)]


def _front(array: Array, axis: int) -> Array:
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _root(gram: Array) -> Array:
    """X with X X^T = gram."""
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


class _Sides:
    """Gram matrices along bonds: of everything on one side in a tree, of the core alone in other graphs."""

    def __init__(self, topology: Topology, weights: Mapping[str, Array], whole: bool) -> None:
        self.topology, self.weights, self.whole = topology, weights, whole
        self.holders = topology.holders

    def gram(self, position: int, bond: str) -> Array:
        core = self.topology.cores[position]
        array = self.weights[core.name]
        weighed = array
        for axis, leg in enumerate(core.legs):
            if self.whole and leg != bond and leg not in self.topology.modes:
                a, b = self.holders[leg]
                weighed = _turned(weighed, axis, self.gram(a + b - position, leg))
        axis = core.legs.index(bond)
        return _front(weighed, axis) @ _front(array, axis).T
