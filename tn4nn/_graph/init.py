"""Initial weights and learning-rate factors, computed from the graph.

W is a sum over bond values of products of core entries. With independent entries of mean 0 each term is
uncorrelated with every other, so Var(W) = prod(bond sizes) * prod(core variances), hyperedges included.
The input is taken through the cores in their declared order; every leg that is summed (input or bond) is
charged to the last core that holds it, its fan-in, and a core of fan-in f gets variance 1/f. So each
intermediate keeps the scale of the input, nothing under- or overflows at any number of sites, and
prod(1/f) = 1/(in_features * prod(bonds)), which makes Var(W) = 1/in_features.

A draw differs from its expectation, much so for rank 1 over many sites. So each core is brought to its exact
mean square, and then ||W||_F is computed and all cores are scaled alike to bring it to the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.checks import nearest
from .._base.errors import TopologyError
from .._base.seeds import rng_for
from .network import Network
from .paths import BATCH, Legs, greedy_path, path_macs
from .topology import modes_on_cores

_AFFORDABLE = 2e9  # multiply-adds for the norm of W
_ELEMENTS = 2**24  # of the arrays that an estimate may make
_PROBES = 256
_ENTRIES = 1024

SCHEMES = ("normal", "orthogonal", "identity")


def fan_ins(network: Network) -> dict[str, int]:
    """Fan-in of each core: the product of the summed legs that no later core holds.

    Example:
        >>> import tn4nn as tn
        >>> fan_ins(tn.mpo((4, 8), (2, 2)).with_rank(3))
        {'core0': 4, 'core1': 24}
    """
    t, sizes = network.topology, network.sizes
    last = {leg: core.name for core in t.cores for leg in core.legs}
    found = {core.name: 1 for core in t.cores}
    for leg, core in last.items():
        if leg not in t.outputs:  # a kept leg is no sum: W is block diagonal in it
            found[core] *= sizes[leg]
    return found


def lr_factors(network: Network, base: int | None) -> dict[str, float]:
    """base / fan-in for each core; see `Network.lr_factors`."""
    width = network.in_features if base is None else base
    return {name: width / fan for name, fan in fan_ins(network).items()}


def init(
    network: Network, seed: int, *, scheme: str = "normal", gain: float = 1.0, name: str = ""
) -> dict[str, NDArray[np.float32]]:
    """Draws the cores of a network; see `Network.init`. `name` makes layers of one model differ."""
    if scheme not in SCHEMES:
        raise TopologyError(f"unknown init scheme {scheme!r}." + nearest(scheme, SCHEMES))
    if not (math.isfinite(gain) and gain > 0):
        raise TopologyError(f"gain must be finite and above 0, received {gain!r}")
    draw = {"normal": _normal, "orthogonal": _orthogonal, "identity": _identity}[scheme]
    fans = fan_ins(network)
    cores: dict[str, NDArray[np.float64]] = {}
    for core in network.topology.cores:
        rng = rng_for(seed, name, core.name)
        array = draw(network, core.name, core.legs, rng)
        # Exactly its mean square: a core of few numbers is off by much, and the offs multiply over sites.
        mean_square = float(np.mean(array**2))
        cores[core.name] = array / math.sqrt(mean_square * fans[core.name]) if mean_square else array
    wanted = gain**2 * network.in_features**-1.0
    achieved = mean_square_of(network, cores, seed, diagonal=scheme == "identity")
    factor = (wanted / achieved) ** (0.5 / len(cores)) if achieved > 0 else 1.0
    return {key: np.ascontiguousarray(array * factor, dtype=np.float32) for key, array in cores.items()}


def mean_square_of(
    network: Network, cores: Mapping[str, NDArray[Any]], seed: int = 0, *, diagonal: bool = False
) -> float:
    """The mean of the squared entries of W, structural zeros included.

    The network is contracted with itself. Where that costs too much, W is formed; where it is too large, it is
    applied to random signs; where that costs too much too, random entries of W are computed; and where one entry
    alone is too dear (and so is any use of the network), the mean square is taken from those of the cores, as for
    independent entries. `diagonal` tells that few entries hold nearly all of W, which random ones would miss, each
    of them in one term of its sum over bonds.
    """
    from .contract import apply, contract

    t, sizes = network.topology, network.sizes
    open_legs = set(t.modes)
    whole = math.prod(t.inputs.values()) * math.prod(t.outputs.values())

    def twin(legs: Legs) -> Legs:
        return tuple(leg if leg in open_legs else leg + ":" for leg in legs)

    tensors: list[Legs] = []
    arrays: list[NDArray[Any]] = []
    for core in t.cores:
        inner = twin(core.legs)
        array = np.asarray(cores[core.name], dtype=np.float64)
        if inner == core.legs:
            tensors.append(core.legs)
            arrays.append(array**2)
        else:
            tensors += [core.legs, inner]
            arrays += [array, array]
    both = {**sizes, **{leg + ":": size for leg, size in sizes.items()}}
    path = greedy_path(tensors, (), both)
    # A kept leg on no core: W repeats along it, one block for each value.
    repeats = math.prod(t.inputs[leg] for leg in t.kept if not t.holders[leg])
    if path_macs(tensors, (), both, path) <= _AFFORDABLE:
        return float(contract(tensors, arrays, (), path)) * repeats / whole
    if diagonal:
        return _mean_square_of_terms(network, cores) / math.prod(t.inputs[leg] for leg in t.kept)
    single = [core.legs for core in t.cores]
    held = modes_on_cores(t)
    path = greedy_path(single, held, sizes)
    if math.prod(sizes[leg] for leg in held) <= _ELEMENTS and path_macs(single, held, sizes, path) <= 16 * _AFFORDABLE:
        wide = [np.asarray(cores[core.name], dtype=np.float64) for core in t.cores]
        return float(np.sum(contract(single, wide, held, path) ** 2)) * repeats / whole
    probed: list[Legs] = [*single, (BATCH, *t.inputs)]
    many = {**sizes, BATCH: _PROBES}
    path = greedy_path(probed, (BATCH, *t.outputs), many)
    elements = _PROBES * max(math.prod(t.inputs.values()), math.prod(t.outputs.values()))
    if elements <= _ELEMENTS and path_macs(probed, (BATCH, *t.outputs), many, path) <= 16 * _AFFORDABLE:
        signs = rng_for(seed, "probe").choice([-1.0, 1.0], size=(_PROBES, math.prod(t.inputs.values())))
        return float(np.mean(np.sum(apply(network, cores, signs) ** 2, axis=1))) / whole
    return _mean_square_of_entries(network, cores, seed) / math.prod(t.inputs[leg] for leg in t.kept)


def _mean_square_of_terms(network: Network, cores: Mapping[str, NDArray[Any]]) -> float:
    """The mean over entries of W, those that are zero by structure left out, of the squares of the terms that each is
    a sum of: where all but one term are small noise, the square of the entry itself."""
    from .contract import contract

    t = network.topology
    arrays = [np.asarray(cores[core.name], dtype=np.float64) ** 2 for core in t.cores]
    alone = {leg for leg in t.modes if len(t.holders[leg]) == 1}
    tensors: list[Legs] = []
    for i, core in enumerate(t.cores):
        arrays[i] = arrays[i].mean(axis=tuple(axis for axis, leg in enumerate(core.legs) if leg in alone))
        tensors.append(tuple(leg for leg in core.legs if leg not in alone))
    path = greedy_path(tensors, (), network.sizes)
    shared = {leg for legs in tensors for leg in legs if leg in t.modes}
    return float(contract(tensors, arrays, (), path)) / math.prod(t.modes[leg] for leg in shared)


def _mean_square_of_entries(network: Network, cores: Mapping[str, NDArray[Any]], seed: int) -> float:
    """The mean of the squares of some entries of W, none of them zero by structure."""
    from .contract import contract

    t, sizes = network.topology, network.sizes
    inner = {core.name: tuple(leg for leg in core.legs if leg not in t.modes) for core in t.cores}
    count = min(_ENTRIES, _ELEMENTS // max(math.prod(sizes[leg] for leg in legs) for legs in inner.values()))
    rng = rng_for(seed, "entries")
    picked = {leg: rng.integers(0, size, count) for leg, size in t.modes.items()}
    tensors: list[Legs] = [(BATCH,)]
    arrays: list[NDArray[Any]] = [np.ones(count)]
    for core in t.cores:
        index = tuple(picked[leg] for leg in core.legs if leg in t.modes)
        bonds = [i for i, leg in enumerate(core.legs) if leg not in t.modes]
        array = np.asarray(cores[core.name], dtype=np.float64)
        front = array.transpose([i for i in range(array.ndim) if i not in bonds] + bonds)
        tensors.append((BATCH, *inner[core.name]) if index else inner[core.name])
        arrays.append(front[index])
    many = {**sizes, BATCH: count}
    path = greedy_path(tensors, (BATCH,), many)
    if count < 1 or path_macs(tensors, (BATCH,), many, path) > 64 * _AFFORDABLE:
        squares = (float(np.mean(np.asarray(array, dtype=np.float64) ** 2)) for array in cores.values())
        return math.prod(squares) * math.prod(float(rank) for rank in network.ranks.values())
    return float(np.mean(contract(tensors, arrays, (BATCH,), path) ** 2))


def _normal(network: Network, name: str, legs: Legs, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_normal(network.shapes[name])


def _split(network: Network, name: str, legs: Legs) -> tuple[list[int], list[int]]:
    """Axes of a core that it sums (charged to it by `fan_ins`), and the others."""
    t = network.topology
    last = {leg: core.name for core in t.cores for leg in core.legs}
    summed = [i for i, leg in enumerate(legs) if leg not in t.outputs and last[leg] == name]
    return summed, [i for i in range(len(legs)) if i not in summed]


def _orthogonal(network: Network, name: str, legs: Legs, rng: np.random.Generator) -> NDArray[np.float64]:
    shape = network.shapes[name]
    rows, columns = _split(network, name, legs)
    m, n = (math.prod(shape[i] for i in axes) for axes in (rows, columns))
    tall = rng.standard_normal((max(m, n), min(m, n)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))  # uniform over isometries (Mezzadri 2007)
    matrix = q if m >= n else q.T
    order = rows + columns
    return np.ascontiguousarray(matrix.reshape([shape[i] for i in order]).transpose(np.argsort(order)))


def _identity(network: Network, name: str, legs: Legs, rng: np.random.Generator) -> NDArray[np.float64]:
    """Ones where the core's input index equals its output index (and its bonds' first values), plus noise."""
    t, shape = network.topology, network.shapes[name]
    grids = np.indices(shape)
    same = np.ones(shape, dtype=bool)
    ins = [i for i, leg in enumerate(legs) if leg in t.inputs and leg not in t.outputs]
    outs = [i for i, leg in enumerate(legs) if leg in t.outputs and leg not in t.inputs]
    for i, o in zip(ins, outs, strict=False):
        same &= grids[i] == grids[o]
    for i, leg in enumerate(legs):
        if leg not in t.modes:
            same &= grids[i] == 0
    return same + 0.01 * rng.standard_normal(shape)
