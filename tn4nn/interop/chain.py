"""Chains of cores, as torchTT and tltorch hold them: MPO (tensor-train matrix) layers, and rings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from .._base.errors import ShapeError
from .._graph.network import Network
from ._tensors import network_of, real_array

_AXES = {"l": "left bond", "o": "output", "i": "input", "r": "right bond"}


def from_chain(cores: Iterable[Any], axes: str = "loir") -> tuple[Network, dict[str, NDArray[Any]]]:
    """The Network and the weights of a chain of cores with four axes each.

    With the default axes these are `.cores` of torchTT's matrices and `LinearLayerTT`, and the factors of a BlockTT of
    tltorch. A chain whose ends are bonds of size 1 is an MPO; where the last
    core's right bond meets the first core's left bond, a ring. Arrays (of numpy, torch or jax) are copied to numpy.

    Args:
        cores: of shape (left bond, output mode, input mode, right bond).
        axes: another order of the four axes, by letter: l, o, i, r.

    Raises:
        ShapeError: a core without four axes, bonds that do not meet, complex numbers, no cores.

    Source: tensor-train matrices (Novikov et al. 2015, arXiv:1509.06569); rings (Zhao et al. 2016, arXiv:1606.05535).

    Examples:
        >>> from tn4nn.interop.chain import from_chain
        >>> import numpy as np
        >>> net, weights = from_chain([np.ones((1, 3, 4, 2)), np.ones((2, 5, 4, 1))])
        >>> net.in_features, net.out_features, net.ranks
        (16, 15, {'a0': 2})
    """
    if sorted(axes) != sorted(_AXES):
        raise ShapeError(f"axes must be the letters l, o, i, r in some order, received {axes!r}")
    arrays = [real_array(core, f"core{i}") for i, core in enumerate(cores)]
    for i, array in enumerate(arrays):
        if array.ndim != len(axes):
            expected = ", ".join(_AXES[axis] for axis in axes)
            raise ShapeError(f"core{i}: expected four axes ({expected}), received shape {array.shape}")
    if not arrays:
        raise ShapeError("a chain needs at least one core, received none")
    ordered = [array.transpose([axes.index(axis) for axis in "loir"]) for array in arrays]
    for i, (left, right) in enumerate(zip(ordered, [*ordered[1:], ordered[0]], strict=True)):
        if left.shape[3] != right.shape[0]:
            raise ShapeError(
                f"core{i} has a right bond of size {left.shape[3]}, core{(i + 1) % len(ordered)} a left bond of size "
                f"{right.shape[0]}: they must be equal"
            )
    return _network(ordered)


def _network(ordered: list[NDArray[Any]]) -> tuple[Network, dict[str, NDArray[Any]]]:
    """Cores (left, out, in, right) with legs in the order of the catalogue's mpo: left, x, y, right."""
    count, around = len(ordered), ordered[0].shape[0]
    if around > 1 and count == 1:  # the bond of a ring of one core is a trace
        ordered, around = [ordered[0].trace(axis1=0, axis2=3)[None, ..., None]], 1
    tensors: list[tuple[str, tuple[str, ...]]] = []
    sizes: dict[str, int] = {}
    weights: dict[str, NDArray[Any]] = {}
    for i, array in enumerate(ordered):
        left, right = f"a{i - 1}" if i else f"a{count - 1}", f"a{i}"
        legs, core = [left, f"x{i}", f"y{i}", right], array.transpose(0, 2, 1, 3)
        sizes |= dict(zip(legs, core.shape, strict=True))
        if around == 1 and i == count - 1:
            legs, core = legs[:-1], core[..., 0]
        if around == 1 and i == 0:
            legs, core = legs[1:], core[0]
        tensors.append((f"core{i}", tuple(legs)))
        weights[f"core{i}"] = core.copy()
    if around == 1:
        del sizes[f"a{count - 1}"]
    sides = [f"x{i}" for i in range(count)], [f"y{i}" for i in range(count)]
    return network_of(tensors, sizes, sides, "mpo" if around == 1 else "ring"), weights
