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

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.checks import nearest
from .._base.errors import TN4NNError, TopologyError
from .._base.memory import check_memory
from .._base.seeds import rng_for
from .contract import apply, contract
from .muon import RMS
from .network import Network
from .paths import BATCH, Legs, Path, greedy_path, path_macs
from .topology import Core, Topology, modes_on_cores

_AFFORDABLE = 2e9  # multiply-adds for the norm of W
_ELEMENTS = 2**24  # of the arrays that an estimate may make
_PROBES = 256
_ENTRIES = 1024

SCHEMES = ("normal", "orthogonal", "identity")
OPTIMIZERS = ("sgd", "adam", "adamw", "muon")
STEP = 0.75  # share of its size by which one step of Adam may change the output of a network, all cores together


def fan_ins(network: Network) -> dict[str, int]:
    """Fan-in of each core: the product of the summed legs that no later core holds.

    Examples:
        >>> import tn4nn as tn
        >>> fan_ins(tn.mpo((4, 8), (2, 2)).with_rank(3))
        {'core0': 4, 'core1': 24}
    """
    t, sizes = network.topology, network.sizes
    last = {leg: core.name for core in t.cores for leg in core.legs}
    found = {core.name: 1 for core in t.cores}
    for leg, core in last.items():
        if leg not in t.outputs:  # a batch leg is not summed: W is block-diagonal in it
            found[core] *= sizes[leg]
    return found


def lr_factors(
    network: Network, base: int | None, lr: float | None, optimizer: str, *, gain: float = 1.0, one_hot: bool = False
) -> dict[str, float]:
    """Learning-rate factor of each core; see `Network.lr_factors`.

    `gain` is that of the initial weights. `one_hot` is for embeddings: an input reads one column of W, so no inputs add
    up, and the aim is another: that a step lowers the loss to first order as one of a dense table does. A step of signs
    lowers it by lr * |gradient|_1, and the gradient of a core has the norm of W's, times (its share of the entries of
    W)^(-1/2) by the ratio of their standard deviations. "muon" leaves them to AdamW.
    """
    if optimizer not in OPTIMIZERS:
        raise TN4NNError(f"unknown optimizer {optimizer!r}." + nearest(optimizer, OPTIMIZERS))
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise TN4NNError(f"lr must be finite and above 0, received {lr!r}")
    fans = fan_ins(network)
    count = len(fans)
    of_w = gain / math.sqrt(network.in_features)  # standard deviation of the entries of W, as `init` draws them
    of_core = core_scales(network, gain)
    if optimizer == "sgd":
        largest = _environments(network)
        return {name: (of_core[name] / of_w) ** 2 / (count * largest[name]) for name in fans}
    width = network.in_features if base is None else base
    if one_hot:
        entries = math.prod(network.topology.modes.values())
        shares = {name: math.sqrt(entries / math.prod(shape)) for name, shape in network.shapes.items()}
    elif optimizer == "muon":  # a step changes W, or a core, by lr * RMS over the standard deviation of its entries
        shares = dict.fromkeys(fans, math.sqrt(width / network.in_features))
    else:
        shares = {name: width / math.sqrt(network.in_features * fan) for name, fan in fans.items()}
    found = {name: of_core[name] / of_w * share / count for name, share in shares.items()}
    if lr is None or count == 1:
        return found
    # A core whose entries change by a share s of their size changes its output by as much where the changes add up at
    # random, and by s * sqrt(fan-in) where all agree. The geometric mean of the two is limited.
    # The changes of Muon are alike in all directions: they do not agree.
    agree = {name: RMS if optimizer == "muon" and not one_hot else fan**0.25 for name, fan in fans.items()}
    most = {name: STEP * of_core[name] / (count * agree[name]) for name in fans}
    return {name: min(factor, most[name] / lr) for name, factor in found.items()}


def core_scales(network: Network, gain: float = 1.0) -> dict[str, float]:
    """Standard deviation of the entries of each core, as `init` draws them, but for what brings ||W||_F to its target.

    Examples:
        >>> import tn4nn as tn
        >>> core_scales(tn.mpo((4, 8), (2, 2)).with_rank(2))
        {'core0': 0.5, 'core1': 0.25}
    """
    fans = fan_ins(network)
    return {name: gain ** (1 / len(fans)) / math.sqrt(fan) for name, fan in fans.items()}


def _environments(network: Network) -> dict[str, float]:
    """How much longer a gradient of W may become on its way through a core's environment (the product of the other
    cores) and back, than one entry of it does on average.

    As a matrix from a core's bonds to the other modes, a random environment has min(rows, columns) singular values,
    much alike; the mean of their squares is max(rows, columns) times that of an entry.
    """
    t, sizes = network.topology, network.sizes
    modes = math.prod(t.modes.values())
    found = {}
    for core in t.cores:
        own = math.prod(sizes[leg] for leg in core.legs if leg in t.modes)
        bonds = math.prod(sizes[leg] for leg in core.legs if leg not in t.modes)
        found[core.name] = max(1.0, modes / own / bonds)
    return found


def init(
    network: Network, seed: int, *, scheme: str = "normal", gain: float = 1.0, name: str = ""
) -> dict[str, NDArray[np.float32]]:
    """Draws the cores of a network; see `Network.init`. `name` makes layers of one model differ."""
    if scheme not in SCHEMES:
        raise TopologyError(f"unknown init scheme {scheme!r}." + nearest(scheme, SCHEMES))
    if not (math.isfinite(gain) and gain > 0):
        raise TopologyError(f"gain must be finite and above 0, received {gain!r}")
    numbers = network.num_params + max(math.prod(shape) for shape in network.shapes.values())
    check_memory(8 * numbers, f"drawing the cores of {network.topology.name!r}", "ask for smaller ranks")
    draw = {"normal": _normal, "orthogonal": _orthogonal, "identity": _identity}[scheme]
    fans = fan_ins(network)
    cores: dict[str, NDArray[np.float64]] = {}
    shapes = network.shapes
    for core in network.topology.cores:
        rng = rng_for(seed, name, core.name)
        array = draw(network.topology, core, shapes[core.name], rng)
        # Exactly its mean square: a core of few numbers is off by much, and the offs multiply over sites.
        mean_square = float(np.mean(array**2))
        cores[core.name] = array / math.sqrt(mean_square * fans[core.name]) if mean_square else array
    wanted = gain**2 * network.in_features**-1.0
    achieved = mean_square_of(network, cores, seed, diagonal=scheme == "identity")
    factor = (wanted / achieved) ** (0.5 / len(cores)) if achieved > 0 else 1.0
    return {key: np.ascontiguousarray(array * factor, dtype=np.float32) for key, array in cores.items()}


# -- the mean square of W ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Weighted:
    """A network with its cores in float64, as the estimates of the mean square read it."""

    network: Network
    cores: Mapping[str, NDArray[np.float64]]
    seed: int

    @property
    def tensors(self) -> list[Legs]:
        """The legs of each core."""
        return [core.legs for core in self.network.topology.cores]

    @property
    def arrays(self) -> list[NDArray[np.float64]]:
        """The array of each core."""
        return [self.cores[core.name] for core in self.network.topology.cores]

    @property
    def ins(self) -> int:
        """Values of all input modes together; padding included."""
        return math.prod(self.network.topology.inputs.values())

    @property
    def outs(self) -> int:
        """Values of all output modes together; padding included."""
        return math.prod(self.network.topology.outputs.values())

    @property
    def blocks(self) -> int:
        """Blocks on the diagonal of W: the values of all batch legs together. Outside of them W is zero."""
        t = self.network.topology
        return math.prod(t.inputs[leg] for leg in t.kept)

    @property
    def repeats(self) -> int:
        """How often each block occurs: the values of the batch legs that no core holds."""
        t = self.network.topology
        return math.prod(t.inputs[leg] for leg in t.kept if not t.holders[leg])


def mean_square_of(
    network: Network, cores: Mapping[str, NDArray[Any]], seed: int = 0, *, diagonal: bool = False
) -> float:
    """The mean of the squared entries of W, structural zeros included.

    The first strategy that is affordable is taken. `diagonal` tells that few entries hold nearly all of W, each of
    them in one term of its sum over bonds: random samples would miss them.
    """
    wide = {name: np.asarray(array, dtype=np.float64) for name, array in cores.items()}
    weighted = _Weighted(network, wide, seed)
    found = (strategy(weighted) for strategy in (_OF_DIAGONAL if diagonal else _OF_ALL))
    return next(value for value in found if value is not None)


def _by_norm(w: _Weighted) -> float | None:
    """Exactly: the network is contracted with a copy of itself that has bonds of its own."""
    modes, sizes = w.network.topology.modes, w.network.sizes

    def copied(legs: Legs) -> Legs:
        return tuple(leg if leg in modes else leg + ":" for leg in legs)

    tensors: list[Legs] = []
    arrays: list[NDArray[np.float64]] = []
    for legs, array in zip(w.tensors, w.arrays, strict=True):
        if copied(legs) == legs:  # no bonds: core and copy are one tensor
            tensors.append(legs)
            arrays.append(array**2)
        else:
            tensors += [legs, copied(legs)]
            arrays += [array, array]
    path = _affordable(tensors, (), {**sizes, **{leg + ":": size for leg, size in sizes.items()}}, _AFFORDABLE)
    return None if path is None else float(contract(tensors, arrays, (), path)) * w.repeats / (w.ins * w.outs)


def _by_forming(w: _Weighted) -> float | None:
    """Exactly: W is formed."""
    sizes, legs = w.network.sizes, modes_on_cores(w.network.topology)
    if math.prod(sizes[leg] for leg in legs) > _ELEMENTS:
        return None
    path = _affordable(w.tensors, legs, sizes, 16 * _AFFORDABLE)
    if path is None:
        return None
    return float(np.sum(contract(w.tensors, w.arrays, legs, path) ** 2)) * w.repeats / (w.ins * w.outs)


def _by_probes(w: _Weighted) -> float | None:
    """About: W is applied to random signs, whose outputs have the squared norm of W on average."""
    t = w.network.topology
    if _PROBES * max(w.ins, w.outs) > _ELEMENTS:
        return None
    tensors = [*w.tensors, (BATCH, *t.inputs)]
    if _affordable(tensors, (BATCH, *t.outputs), {**w.network.sizes, BATCH: _PROBES}, 16 * _AFFORDABLE) is None:
        return None
    signs = rng_for(w.seed, "probe").choice([-1.0, 1.0], size=(_PROBES, w.ins))
    return float(np.mean(np.sum(apply(w.network, w.cores, signs) ** 2, axis=1))) / (w.ins * w.outs)


def _by_entries(w: _Weighted) -> float | None:
    """About: the mean over random entries of W, none of them zero by structure."""
    t, sizes = w.network.topology, w.network.sizes
    bonds_of = [tuple(leg for leg in legs if leg not in t.modes) for legs in w.tensors]
    count = min(_ENTRIES, _ELEMENTS // max(math.prod(sizes[leg] for leg in bonds) for bonds in bonds_of))
    if count < 1:
        return None
    rng = rng_for(w.seed, "entries")
    picked = {leg: rng.integers(0, size, count) for leg, size in t.modes.items()}
    tensors: list[Legs] = [(BATCH,)]
    arrays: list[NDArray[np.float64]] = [np.ones(count)]
    for legs, array, bonds in zip(w.tensors, w.arrays, bonds_of, strict=True):
        modes = [leg for leg in legs if leg in t.modes]
        modes_first = array.transpose([legs.index(leg) for leg in (*modes, *bonds)])
        tensors.append((BATCH, *bonds) if modes else bonds)
        arrays.append(modes_first[tuple(picked[leg] for leg in modes)])  # (count, *bonds), or the core itself
    path = _affordable(tensors, (BATCH,), {**sizes, BATCH: count}, 64 * _AFFORDABLE)
    return None if path is None else float(np.mean(contract(tensors, arrays, (BATCH,), path) ** 2)) / w.blocks


def _by_cores(w: _Weighted) -> float:
    """Expected of independent entries: one entry alone is too dear, and so is any use of the network."""
    squares = (float(np.mean(array**2)) for array in w.cores.values())
    return math.prod(squares) * math.prod(float(rank) for rank in w.network.ranks.values()) / w.blocks


def _by_terms(w: _Weighted) -> float:
    """The mean over entries of W of the squares of the terms that each is a sum of: where all but one term are small
    noise, the square of the entry itself."""
    t = w.network.topology
    alone = {leg for leg in t.modes if len(t.holders[leg]) == 1}
    tensors = [tuple(leg for leg in legs if leg not in alone) for legs in w.tensors]
    arrays = [
        (array**2).mean(axis=tuple(axis for axis, leg in enumerate(legs) if leg in alone))
        for legs, array in zip(w.tensors, w.arrays, strict=True)
    ]
    shared = {leg for legs in tensors for leg in legs if leg in t.modes}
    path = greedy_path(tensors, (), w.network.sizes)
    return float(contract(tensors, arrays, (), path)) / math.prod(t.modes[leg] for leg in shared) / w.blocks


# Each gives the mean square, or None where it would cost too much; the last one always answers.
_Strategy = Callable[[_Weighted], float | None]
_OF_ALL: tuple[_Strategy, ...] = (_by_norm, _by_forming, _by_probes, _by_entries, _by_cores)
_OF_DIAGONAL: tuple[_Strategy, ...] = (_by_norm, _by_terms)


def _affordable(tensors: Sequence[Legs], output: Legs, sizes: Mapping[str, int], macs: float) -> Path | None:
    """A path of at most so many multiply-adds, or None."""
    path = greedy_path(tensors, output, sizes)
    return path if path_macs(tensors, output, sizes, path) <= macs else None


# -- draws ------------------------------------------------------------------------------------------------------


def _normal(topology: Topology, core: Core, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.standard_normal(shape)


def _split(t: Topology, core: Core) -> tuple[list[int], list[int]]:
    """Axes of a core that it sums (charged to it by `fan_ins`), and the others."""
    position = t.cores.index(core)
    last = [t.holders[leg][-1] == position for leg in core.legs]
    summed = [i for i, leg in enumerate(core.legs) if leg not in t.outputs and last[i]]
    return summed, [i for i in range(len(core.legs)) if i not in summed]


def _orthogonal(t: Topology, core: Core, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    rows, columns = _split(t, core)
    m, n = (math.prod(shape[i] for i in axes) for axes in (rows, columns))
    tall = rng.standard_normal((max(m, n), min(m, n)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))  # uniform over isometries (Mezzadri 2007)
    matrix = q if m >= n else q.T
    order = rows + columns
    return np.ascontiguousarray(matrix.reshape([shape[i] for i in order]).transpose(np.argsort(order)))


def _identity(t: Topology, core: Core, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Ones where the core's input index equals its output index (and its bonds' first values), plus noise."""
    legs = core.legs
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
