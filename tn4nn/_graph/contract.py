"""Contraction with numpy, pair by pair: slow, obvious, and in float64."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.memory import check_memory
from .network import Network
from .paths import BATCH, Legs, Path, greedy_path

Array = NDArray[Any]
Weights = Mapping[str, Array]


def contract(tensors: Sequence[Legs], arrays: Sequence[Array], output: Legs, path: Path | None = None) -> Array:
    """Contracts a network pair by pair with numpy.einsum.

    Args:
        tensors: the legs of each array.
        arrays: of matching shapes.
        output: legs of the result, in order; each of a size above 1 is on some tensor.
        path: pairs in single static assignment form; found greedily where left out.

    Examples:
        >>> import numpy as np
        >>> from tn4nn import reference
        >>> a, b = np.arange(6.0).reshape(2, 3), np.ones((3, 2))
        >>> reference.contract([("i", "k"), ("k", "j")], [a, b], ("j", "i"))
        array([[ 3., 12.],
               [ 3., 12.]])
    """
    sizes = sizes_of(tensors, arrays)
    if path is None:
        path = greedy_path(tensors, tuple(leg for leg in output if leg in sizes), sizes)
    # numpy.einsum has 52 letters: legs of size 1 take none.
    legs = [tuple(leg for leg in t if sizes[leg] != 1) for t in tensors]
    known = [a.reshape([sizes[leg] for leg in t]) for a, t in zip(arrays, legs, strict=True)]
    holders = Counter(leg for t in (*legs, output) for leg in t)  # tensors that are still there, and the output
    for a, b in path:
        holders.subtract((*legs[a], *legs[b]))
        both = (*legs[a], *(leg for leg in legs[b] if leg not in legs[a]))
        result_legs = tuple(leg for leg in both if holders[leg])
        holders.update(result_legs)
        known.append(_pair(known[a], legs[a], known[b], legs[b], result_legs))
        legs.append(result_legs)
    number = {leg: i for i, leg in enumerate(legs[-1])}
    result: Array = np.einsum(known[-1], list(range(len(legs[-1]))), [number[leg] for leg in output if leg in number])
    return result.reshape([sizes.get(leg, 1) for leg in output])


def _pair(a: Array, legs_a: Legs, b: Array, legs_b: Legs, output: Legs) -> Array:
    """Two tensors through BLAS; `output` has legs of the first, then those of the second that the first lacks."""
    shared = [leg for leg in legs_a if leg in legs_b]
    if output == tuple(leg for leg in (*legs_a, *legs_b) if leg not in shared):  # without einsum's parser
        axes = [legs_a.index(leg) for leg in shared], [legs_b.index(leg) for leg in shared]
        return np.tensordot(a, b, axes)
    number = {leg: i for i, leg in enumerate(dict.fromkeys((*legs_a, *legs_b)))}
    axes_a, axes_b, axes_out = ([number[leg] for leg in t] for t in (legs_a, legs_b, output))
    return np.asarray(np.einsum(a, axes_a, b, axes_b, axes_out, optimize=True))


def sizes_of(tensors: Sequence[Legs], arrays: Sequence[Array]) -> dict[str, int]:
    """Leg -> its size, read from the shapes of arrays."""
    return {leg: n for legs, a in zip(tensors, arrays, strict=True) for leg, n in zip(legs, a.shape, strict=True)}


def in_double(array: Array) -> Array:
    """An array in float64 or complex128."""
    return np.asarray(array, dtype=np.complex128 if np.iscomplexobj(array) else np.float64)


def cores_of(network: Network, weights: Weights) -> tuple[list[Legs], list[Array]]:
    """The legs and the arrays of all cores, in float64 or complex128; ShapeError for weights of another network."""
    network.check(weights)
    t = network.topology
    return [core.legs for core in t.cores], [in_double(weights[core.name]) for core in t.cores]


def dense(network: Network, weights: Weights) -> Array:
    """W of shape (out_features, in_features); see `Network.to_dense`.

    Examples:
        >>> import tn4nn as tn
        >>> from tn4nn import reference
        >>> net = tn.mpo((4, 4), (2, 2)).with_rank(2)
        >>> reference.dense(net, net.init(0)).shape
        (4, 16)
    """
    t = network.topology
    numbers = math.prod(t.outputs.values()) * math.prod(t.inputs.values())
    advice = "apply it to rows instead, as a layer does, or look at single entries"
    check_memory(8 * numbers, f"W of {t.name!r}, {t.out_features} x {t.in_features},", advice)
    tensors, arrays = cores_of(network, weights)
    # A batch leg makes W block-diagonal, as an identity between its input and its output does.
    for leg in t.kept:
        tensors = [*tensors, (leg, leg + ":out", leg + ":in")]
        size = t.inputs[leg]
        identity = np.zeros((size, size, size))
        identity[(np.arange(size),) * 3] = 1.0
        arrays = [*arrays, identity]
    outs = tuple(leg + ":out" if leg in t.kept else leg for leg in t.outputs)
    ins = tuple(leg + ":in" if leg in t.kept else leg for leg in t.inputs)
    sizes = sizes_of(tensors, arrays)
    w = contract(tensors, arrays, tuple(leg for leg in (*outs, *ins) if sizes[leg] != 1))
    w = w.reshape(math.prod(t.outputs.values()), math.prod(t.inputs.values()))
    kind = np.result_type(*(np.asarray(weights[core.name]).dtype for core in t.cores))
    return np.ascontiguousarray(w[: t.out_features, : t.in_features]).astype(kind)


def apply(network: Network, weights: Weights, x: Array) -> Array:
    """x W^T without forming W, for x of shape (rows, product of the input modes); no cropping of outputs.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> from tn4nn import reference
        >>> net = tn.mpo((4, 4), (2, 2)).with_rank(2)
        >>> weights, x = net.init(0), np.ones((3, 16))
        >>> bool(np.allclose(reference.apply(net, weights, x), x @ net.to_dense(weights).T))
        True
    """
    t = network.topology
    tensors, arrays = cores_of(network, weights)
    ins, outs = (above_one(side) for side in (t.inputs, t.outputs))
    image = in_double(x).reshape(len(x), *ins.values())
    y = contract([*tensors, (BATCH, *ins)], [*arrays, image], (BATCH, *outs))
    return y.reshape(len(x), math.prod(t.outputs.values()))


def above_one(sizes: Mapping[str, int]) -> dict[str, int]:
    """Without the legs of size 1: numpy's arrays have at most 64 axes."""
    return {leg: size for leg, size in sizes.items() if size != 1}
