"""Gauge freedom: weights that differ, and whose W does not.

On a bond a matrix and its inverse can be put in. On a tree such a change makes all cores but one isometries
(canonical form), and then that core alone knows the norm and what can be dropped; on any graph, single values of
a bond can be scaled on one core and back on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.arrays import Array, check_range, numbers
from .._base.checks import nearest
from .._base.errors import TopologyError
from .._base.seeds import rng_for
from .._graph.contract import apply
from .._graph.network import Network
from .._graph.paths import Legs
from .._graph.topology import Topology
from .._graph.tree import Tree, tree_of

Weights = Mapping[str, NDArray[Any]]

_PASSES = 3
_PROBES = 64


def wide(weights: Weights) -> dict[str, Array]:
    """Copies in float64 or complex128."""
    return {n: np.array(a, dtype=np.complex128 if np.iscomplexobj(a) else np.float64) for n, a in weights.items()}


def checked_weights(network: Network, weights: Weights) -> dict[str, Array]:
    """Copies in float64 or complex128 of the weights of a network: what all that changes them starts from.

    Raises:
        ShapeError: weights of another network, or no numbers.
        DataError: NaN or infinity.
    """
    network.check(weights)
    found = wide({name: numbers(array, f"core {name!r}") for name, array in weights.items()})
    for name, array in found.items():
        check_range(array, f"core {name!r}")
    return found


def narrow(weights: Weights, like: Weights) -> dict[str, NDArray[Any]]:
    """Contiguous arrays in the dtypes of the weights that they were made from."""
    return {name: np.ascontiguousarray(weights[name], dtype=np.asarray(a).dtype) for name, a in like.items()}


def ends_of(topology: Topology, bond: str) -> list[tuple[str, int]]:
    """(core, axis) of a bond, for each core that holds it."""
    cores = [topology.cores[i] for i in topology.holders[bond]]
    return [(core.name, core.legs.index(bond)) for core in cores]


def plain_tree(network: Network, root: str | None, what: str) -> Tree:
    """The tree of a network, or an error where a canonical form has no meaning."""
    t = network.topology
    names = [core.name for core in t.cores]
    if root is not None and root not in names:
        raise TopologyError(f"{root!r} is not a core of {t.name!r}." + nearest(root, names))
    tree = tree_of(t, None if root is None else names.index(root))
    if tree is None or not tree.is_plain:
        raise TopologyError(
            f"{what} needs a tree of cores without loops and hyperedges, and {t.name!r} is none: "
            "balance() works on any graph"
        )
    return tree


def canonicalise(network: Network, weights: Weights, center: str | None = None) -> dict[str, NDArray[Any]]:
    """The canonical form of a tree network about a core: all other cores are isometries towards it.

    On a chain the last core as center is the left canonical form, the first the right one, and any other a
    mixed one. W does not move.

    Args:
        network: a tree (MPO, hierarchical tree, Tucker, low rank, or your own).
        weights: core name -> array.
        center: name of the core; by default the last one.

    Raises:
        TopologyError: a graph with loops or hyperedges, or no such core.
        ShapeError: weights of another network.
        DataError: NaN or infinity in a core.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.low_rank(6, 4).with_rank(2)
        >>> A = tn.canonicalise(net, net.init(0), center="core1")["core0"]
        >>> np.allclose(A.T @ A, np.eye(2), atol=1e-6)
        True
    """
    cores = checked_weights(network, weights)
    tree = plain_tree(network, center, "a canonical form")
    for edge in tree.edges:
        core, parent = (network.topology.cores[i] for i in (edge.core, edge.parent))
        cores[core.name], cores[parent.name] = _as_isometry(
            cores[core.name], core.legs, cores[parent.name], parent.legs, edge.bonds[0]
        )
    return narrow(cores, weights)


def _as_isometry(core: Array, legs: Legs, parent: Array, parent_legs: Legs, bond: str) -> tuple[Array, Array]:
    """A core as an isometry towards a bond, and the parent times the rest, both in their old shapes."""
    axis, other = legs.index(bond), parent_legs.index(bond)
    front = np.moveaxis(core, axis, -1)
    q, r = np.linalg.qr(front.reshape(-1, front.shape[-1]))
    short = front.shape[-1] - q.shape[1]  # a bond wider than the core: the rest is zero
    q, r = np.pad(q, ((0, 0), (0, short))), np.pad(r, ((0, short), (0, 0)))
    rest = np.moveaxis(np.tensordot(r, parent, axes=(1, other)), 0, other)
    return np.moveaxis(q.reshape(front.shape), -1, axis), rest


def balance(network: Network, weights: Weights) -> dict[str, NDArray[Any]]:
    """Scales every value of every bond so that the cores on it have equal norms there. W does not move.

    On a low rank pair in canonical form this gives the square roots of the singular values to both sides. It works
    on any graph, hyperedges included. Where a core is zero at a value of a bond, that value is left alone.

    Args:
        network: any network.
        weights: core name -> array.

    Raises:
        ShapeError: weights of another network.
        DataError: NaN or infinity in a core.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.low_rank(1, 1).with_rank(1)
        >>> w = tn.balance(net, {"core0": np.array([[8.0]]), "core1": np.array([[2.0]])})
        >>> float(w["core0"][0, 0]), float(w["core1"][0, 0])
        (4.0, 4.0)
    """
    balanced = checked_weights(network, weights)
    squares = {name: np.real(array * array.conj()) for name, array in balanced.items()}
    ends = {bond: ends_of(network.topology, bond) for bond in network.ranks}
    scales = {bond: [np.ones(size)] * len(ends[bond]) for bond, size in network.ranks.items()}
    for _ in range(_PASSES):
        for bond, where in ends.items():
            found = _balanced([_norms_along(squares[name], axis) for name, axis in where])
            for (name, axis), scale in zip(where, found, strict=True):
                squares[name] = squares[name] * _along(scale**2, axis, squares[name].ndim)
            scales[bond] = [old * new for old, new in zip(scales[bond], found, strict=True)]
    for bond, where in ends.items():
        for (name, axis), scale in zip(where, scales[bond], strict=True):
            balanced[name] = balanced[name] * _along(scale, axis, balanced[name].ndim)
    return narrow(balanced, weights)


def _balanced(norms: list[Array]) -> list[Array]:
    """What to multiply with for norms that are equal: their geometric mean."""
    if not all(norm.all() for norm in norms):
        zero = np.any([norm == 0 for norm in norms], axis=0)
        norms = [np.where(zero, 1.0, norm) for norm in norms]
    mean = np.exp(sum(map(np.log, norms)) / len(norms))
    return [mean / norm for norm in norms]


def _along(values: Array, axis: int, ndim: int) -> Array:
    return values.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _norms_along(squares: Array, axis: int) -> Array:
    return np.asarray(np.sqrt(np.add.reduce(squares, axis=tuple(i for i in range(squares.ndim) if i != axis))))


def gauge_error(network: Network, before: Weights, after: Weights) -> float:
    """How far W moved between two sets of weights, relative to its norm: 0 for a change of gauge.

    Both are applied to the same random inputs, so W is never formed; the figure is that of ||W - W'|| / ||W|| up to
    some percent, and rounding (about 1e-15 in float64, 1e-7 in float32) is all that a change of gauge shows.

    Raises:
        ShapeError: weights of another network.
        DataError: NaN or infinity in a core.

    Examples:
        >>> import tn4nn as tn
        >>> net = tn.mpo((2, 3, 2), (2, 2, 2)).with_rank(3)
        >>> weights = net.init(0)
        >>> tn.gauge_error(net, weights, tn.canonicalise(net, weights)) < 1e-6
        True
    """
    for weights in (before, after):
        checked_weights(network, weights)
    n = int(np.prod(list(network.topology.inputs.values())))
    x = rng_for(0, "gauge").standard_normal((_PROBES, n))
    y, z = apply(network, before, x), apply(network, after, x)
    norm = float(np.linalg.norm(y))
    return float(np.linalg.norm(y - z)) / norm if norm else float(np.linalg.norm(z) > 0)
