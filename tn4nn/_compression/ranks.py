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
from .gauge import checked_weights, ends_of, narrow, wide
from .svd import root

Weights = Mapping[str, NDArray[Any]]

_NOTHING = 1e-7  # of the largest Schmidt value: below, a slice is empty (Gram matrices resolve no more)


@dataclasses.dataclass(frozen=True, eq=False)
class ChangeOfBasis:
    """What a change of one bond does to a core: new = old times `matrix` on `axis`; gradients change by `dual`.

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
    changes: tuple[ChangeOfBasis, ...] = ()

    def moment(self, core: str, array: NDArray[Any], degree: int) -> NDArray[Any]:
        """An optimizer's mean of gradients (degree 1) or of their squares (degree 2) for the new core."""
        moment = np.asarray(array, dtype=np.float64)
        for change in self.changes:
            if change.core == core:
                moment = (_mean if degree == 1 else _mean_square)(moment, change)
        return np.ascontiguousarray(moment, dtype=array.dtype)


def _mean(old: Array, change: ChangeOfBasis) -> Array:
    return _times(old, change.axis, change.dual)


def _mean_square(old: Array, change: ChangeOfBasis) -> Array:
    # The root of a mean square of a sum is at most the sum of the roots: steps get rather too small.
    new = _times(np.sqrt(old), change.axis, np.abs(change.dual)) ** 2
    if new.shape[change.axis] > old.shape[change.axis]:
        added = np.arange(new.shape[change.axis]) >= old.shape[change.axis]
        new += np.moveaxis(np.multiply.outer(old.mean(axis=change.axis), added), -1, change.axis)
    return new


def _times(array: Array, axis: int, matrix: Array) -> Array:
    """An array times a matrix along one of its axes."""
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
        DataError: NaN or infinity in a core.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.mpo((4, 4), (4, 4)).with_rank(2)
        >>> weights = net.init(0)
        >>> larger, grown = tn.grow(net, weights, {"a0": 5})
        >>> larger.ranks, bool(np.abs(larger.to_dense(grown) - net.to_dense(weights)).max() < 1e-6)
        ({'a0': 5}, True)
    """
    after = with_larger_bonds(Resized(network, checked(network, weights)), _sizes(network, ranks, larger=True), seed)
    return after.network, narrow(after.weights, weights)


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
        DataError: NaN or infinity in a core.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.mpo((4, 4), (4, 4)).with_rank(2)
        >>> weights = net.init(0)
        >>> back, kept = tn.cut(*tn.grow(net, weights, {"a0": 5}), {"a0": 2})
        >>> bool(np.abs(back.to_dense(kept) - net.to_dense(weights)).max() < 1e-6)
        True
    """
    after = with_smaller_bonds(Resized(network, checked(network, weights)), _sizes(network, ranks, larger=False))
    return after.network, narrow(after.weights, weights)


def checked(network: Network, weights: Weights) -> dict[str, Array]:
    """Copies in float64, or an error."""
    found = checked_weights(network, weights)
    if any(np.iscomplexobj(array) for array in found.values()):
        raise ShapeError("ranks change during training, which is real: received complex weights")
    return found


def _sizes(network: Network, ranks: Mapping[str, int], *, larger: bool) -> dict[str, int]:
    changed = {}
    for bond, size in ranks.items():
        if bond not in network.ranks:
            raise TopologyError(
                f"{bond!r} is not a bond of {network.topology.name!r}." + nearest(str(bond), network.ranks)
            )
        old, new = network.ranks[bond], checked_size(size, f"bond {bond!r}")
        if new != old and (new > old) != larger:
            word, other = ("above", "cut") if larger else ("below", "grow")
            raise TopologyError(f"bond {bond!r} has size {old}: expected one {word}, received {new}; see tn.{other}")
        if new != old:
            changed[bond] = new
    return changed


# -- larger -----------------------------------------------------------------------------------------------------


def with_larger_bonds(before: Resized, ranks: Mapping[str, int], seed: int) -> Resized:
    """The same W with larger bonds; see `grow`."""
    weights, changes = dict(before.weights), list(before.changes)
    for bond, size in ranks.items():
        ends = ends_of(before.network.topology, bond)
        for name, axis in ends:
            old = weights[name]
            pad = np.eye(old.shape[axis], size)
            new = _times(old, axis, pad)
            if name != ends[-1][0]:
                fresh = rng_for(seed, "grow", bond, name, size).standard_normal(new.shape)
                added = np.arange(size) >= old.shape[axis]
                scale = float(np.sqrt(np.mean(old**2)))
                new += np.moveaxis(np.moveaxis(fresh, axis, -1) * added, -1, axis) * scale
            weights[name] = new
            changes.append(ChangeOfBasis(name, axis, pad, pad))
    return Resized(_resized(before.network, ranks), weights, tuple(changes))


def _resized(network: Network, ranks: Mapping[str, int]) -> Network:
    return Network(network.topology, {**network.ranks, **ranks})


# -- smaller ----------------------------------------------------------------------------------------------------


def with_smaller_bonds(before: Resized, ranks: Mapping[str, int]) -> Resized:
    """The nearest W that is found with smaller bonds; see `cut`."""
    after = before
    for bond, size in ranks.items():
        changes = _Bond(after.network.topology, after.weights, bond).truncated(size)
        weights = dict(after.weights)
        for change in changes:
            weights[change.core] = _times(weights[change.core], change.axis, change.matrix)
        network = _resized(after.network, {bond: changes[0].matrix.shape[1]})
        after = Resized(network, weights, (*after.changes, *changes))
    return after


def schmidt_values(network: Network, weights: Weights, bond: str) -> Array:
    """What each value of a bond carries, largest first: what `cut` goes by.

    Examples:
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
        self.ends = ends_of(topology, bond)
        self.sides: tuple[Array, Array] | None = None
        if len(self.ends) == 2:
            tree = tree_of(topology)
            part = _Sides(topology, weights, tree is not None and tree.is_plain)
            grams = [part.gram(core, bond) for core in topology.holders[bond]]
            x, y = (root((gram + gram.T) / 2) for gram in grams)
            u, self.values, vt = np.linalg.svd(x.T @ y)
            self.sides = (y @ vt.T, x @ u)
            self.order = np.arange(len(self.values))
        else:
            norms = [np.linalg.norm(_front(weights[name], axis), axis=1) for name, axis in self.ends]
            product = np.prod(norms, axis=0)
            self.order = np.argsort(-product, kind="stable")
            self.values = product[self.order]

    def truncated(self, size: int) -> list[ChangeOfBasis]:
        """What leaves the largest `size` values, or those above zero where they are fewer."""
        above_zero = int(np.sum(self.values > _NOTHING * self.values[0]))
        rank = max(1, min(size, above_zero))
        if self.sides is None or not self.values[0] > 0:
            selection = np.eye(len(self.order))[:, np.sort(self.order[:rank])]
            return [ChangeOfBasis(name, axis, selection, selection) for name, axis in self.ends]
        scale = np.sqrt(self.values[:rank])
        left, right = (side[:, :rank] / scale for side in self.sides)
        (a, i), (b, j) = self.ends
        return [ChangeOfBasis(a, i, left, right), ChangeOfBasis(b, j, right, left)]


def _front(array: Array, axis: int) -> Array:
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


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
                weighed = _times(weighed, axis, self.gram(a + b - position, leg))
        axis = core.legs.index(bond)
        return _front(weighed, axis) @ _front(array, axis).T
