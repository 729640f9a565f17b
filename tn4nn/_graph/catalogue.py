"""The catalogue: each topology a small pure function from mode sizes to a Topology.

To add one, write a function and add it to the table at the end of this file.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._base.checks import nearest
from .._base.errors import TopologyError
from .modes import Pairing, grid_of, modes_for
from .topology import Core, Topology

Modes = int | Sequence[int]
Legs = tuple[str, ...]
Wire = tuple[str, ...]  # the legs below one site of a coarse-graining


def _modes(sizes: Modes) -> tuple[int, ...]:
    return (int(sizes),) if isinstance(sizes, int | np.integer) else tuple(sizes)


def _named(letter: str, sizes: Sequence[int]) -> dict[str, int]:
    return {f"{letter}{i}": size for i, size in enumerate(sizes)}


def _topology(name: str, cores: Sequence[Legs], inputs: Modes, outputs: Modes) -> Topology:
    numbered = tuple(Core(f"core{i}", tuple(legs)) for i, legs in enumerate(cores))
    return Topology(numbered, _named("x", _modes(inputs)), _named("y", _modes(outputs)), name=name)


def _paired(inputs: Modes, outputs: Modes, name: str, least: int = 1) -> int:
    """The number of sites, where each site has one input and one output mode."""
    ins, outs = _modes(inputs), _modes(outputs)
    if len(ins) != len(outs):
        raise TopologyError(
            f"{name} needs one output mode for each input mode: received {len(ins)} input modes {ins} and "
            f"{len(outs)} output modes {outs}. Fill the shorter side up with modes of size 1"
        )
    if len(ins) < least:
        raise TopologyError(f"{name} needs at least {least} sites, received {len(ins)}")
    return len(ins)


def dense(inputs: Modes, outputs: Modes) -> Topology:
    """One core with every leg: W itself, of shape (outputs..., inputs...).

    Args:
        inputs: sizes of the input modes; their product is the number of input features.
        outputs: sizes of the output modes; there may be more or fewer of them.

    Raises:
        TopologyError: a size below 1.

    Examples:
        >>> import tn4nn as tn
        >>> t = tn.dense((4, 8), (2, 3))
        >>> print(t.text)
        core0: y0 y1 x0 x1
        >>> t.with_ranks({}).num_params
        192
    """
    ins, outs = _modes(inputs), _modes(outputs)
    legs = (*(f"y{i}" for i in range(len(outs))), *(f"x{i}" for i in range(len(ins))))
    return _topology("dense", [legs], ins, outs)


def low_rank(inputs: Modes, outputs: Modes) -> Topology:
    """Two factors joined by one bond: `W = B A`, A of shape (rank, in_features) and B of shape (out_features, rank).

    Args:
        inputs: sizes of the input modes; their product is the number of input features.
        outputs: sizes of the output modes; there may be more or fewer of them.

    Raises:
        TopologyError: a size below 1.

    Examples:
        >>> from tn4nn import low_rank
        >>> print(low_rank(6, 4).text)
        core0: x0 a0, core1: a0 y0
    """
    ins, outs = _modes(inputs), _modes(outputs)
    first = (*(f"x{i}" for i in range(len(ins))), "a0")
    return _topology("low_rank", [first, ("a0", *(f"y{i}" for i in range(len(outs))))], ins, outs)


def mpo(inputs: Modes, outputs: Modes) -> Topology:
    """Matrix product operator (tensor-train matrix, block TT): a chain of cores, each with an input and an output mode.

    `W[y, x] = sum_a prod_i core_i[a_(i-1), x_i, y_i, a_i]`, the first core without a bond to its left, the last without
    one to its right.

    Args:
        inputs: sizes of the input modes, one for each site; their product is the number of input features.
        outputs: sizes of the output modes, as many as there are input modes.

    Raises:
        TopologyError: sides of different lengths, or a size below 1.

    Source: Novikov et al. 2015, Tensorizing Neural Networks (arXiv:1509.06569).

    Examples:
        >>> from tn4nn import mpo
        >>> mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4).num_params
        1024
    """
    n = _paired(inputs, outputs, "mpo")
    cores = []
    for i in range(n):
        left = (f"a{i - 1}",) if i else ()
        right = (f"a{i}",) if i < n - 1 else ()
        cores.append((*left, f"x{i}", f"y{i}", *right))
    return _topology("mpo", cores, inputs, outputs)


def ring(inputs: Modes, outputs: Modes) -> Topology:
    """Tensor ring: an MPO whose last core shares a bond with the first.

    `W[y, x] = sum_a prod_i core_i[a_(i-1), x_i, y_i, a_i]`, where the bond left of the first core is that right of the
    last.

    Args:
        inputs: sizes of the input modes, one for each site; their product is the number of input features.
        outputs: sizes of the output modes, as many as there are input modes.

    Raises:
        TopologyError: fewer than two sites, sides of different lengths, or a size below 1.

    Source: Zhao et al. 2016, Tensor Ring Decomposition (arXiv:1606.05535).

    Examples:
        >>> import tn4nn as tn
        >>> print(tn.ring((4, 4, 4), (2, 2, 2)).text)
        core0: a2 x0 y0 a0, core1: a0 x1 y1 a1, core2: a1 x2 y2 a2
    """
    n = _paired(inputs, outputs, "ring", 2)
    return _topology("ring", [(f"a{(i - 1) % n}", f"x{i}", f"y{i}", f"a{i}") for i in range(n)], inputs, outputs)


Nest = int | tuple["Nest", ...]


def tree(inputs: Modes, outputs: Modes, arity: int | Sequence[Any] = 2) -> Topology:
    """Tree tensor network (hierarchical Tucker): sites are leaves, inner cores have bonds alone.

    A root that would join only two children is left out: its two bonds become one.

    Args:
        inputs: sizes of the input modes, one for each site; their product is the number of input features.
        outputs: sizes of the output modes, as many as there are input modes.
        arity: children of each inner core (the last may have fewer), or the tree itself as nested sequences of site
            numbers, e.g. ((0, 1), (2, (3, 4))).

    Raises:
        TopologyError: fewer than two sites, sides of different lengths, a size below 1, an arity below 2, or nested
            sequences that do not hold each site once.

    Source: Shi et al. 2006 (quant-ph/0511070); Grasedyck 2010, Hierarchical Singular Value Decomposition of Tensors
    (SIAM J. Matrix Anal. Appl. 31).

    Examples:
        >>> import tn4nn as tn
        >>> print(tn.tree((4, 4, 4, 4), (2, 2, 2, 2)).text)
        core0: x0 y0 a1, core1: x1 y1 a2, core2: x2 y2 a3, core3: x3 y3 a4, core4: a1 a2 a0, core5: a3 a4 a0
        >>> print(tn.tree((4, 4, 4), (2, 2, 2), arity=((0, 1), 2)).text)
        core0: x0 y0 a1, core1: x1 y1 a2, core2: x2 y2 a0, core3: a1 a2 a0
    """
    n = _paired(inputs, outputs, "tree", 2)
    nest = _grouped(n, arity) if isinstance(arity, int) else _frozen(arity)
    leaves = sorted(_leaves(nest))
    if leaves != list(range(n)):
        raise TopologyError(f"tree: the nested sequences must hold each of the sites 0..{n - 1} once, hold {leaves}")
    cores: list[Legs] = [()] * n
    bonds = (f"a{i}" for i in itertools.count())

    def grow(node: Nest, up: str) -> None:
        if isinstance(node, int):
            cores[node] = (f"x{node}", f"y{node}", up)
            return
        if len(node) == 1:
            grow(node[0], up)
            return
        below = [next(bonds) for _ in node]
        for child, bond in zip(node, below, strict=True):
            grow(child, bond)
        cores.append((*below, up))

    while not isinstance(nest, int) and len(nest) == 1:
        nest = nest[0]
    assert not isinstance(nest, int)
    if len(nest) == 2:
        bond = next(bonds)
        for child in nest:
            grow(child, bond)
    else:
        below = [next(bonds) for _ in nest]
        for child, bond in zip(nest, below, strict=True):
            grow(child, bond)
        cores.append(tuple(below))
    return _topology("tree", cores, inputs, outputs)


def _grouped(sites: int, arity: int) -> Nest:
    if arity < 2:
        raise TopologyError(f"tree: arity must be at least 2, received {arity}")
    level: list[Nest] = list(range(sites))
    while len(level) > arity:
        level = [tuple(level[i : i + arity]) for i in range(0, len(level), arity)]
    return tuple(level)


def _frozen(nest: Any) -> Nest:
    return int(nest) if isinstance(nest, int) else tuple(_frozen(child) for child in nest)


def _leaves(nest: Nest) -> list[int]:
    return [nest] if isinstance(nest, int) else [leaf for child in nest for leaf in _leaves(child)]


def peps(inputs: Modes, outputs: Modes, grid: tuple[int, int] | None = None) -> Topology:
    """PEPS-like grid: sites row by row, each with a bond to its right and one to its lower neighbour.

    Args:
        inputs: sizes of the input modes, one for each site; their product is the number of input features.
        outputs: sizes of the output modes, as many as there are input modes.
        grid: (rows, columns); left out, the squarest grid of that many sites.

    Raises:
        TopologyError: sides of different lengths, a size below 1, or a grid of another number of sites.

    Source: Verstraete and Cirac 2004 (cond-mat/0407066).

    Examples:
        >>> import tn4nn as tn
        >>> print(tn.peps((4,) * 4, (2,) * 4).text)
        core0: x0 y0 h0_0 v0_0, core1: h0_0 x1 y1 v0_1, core2: v0_0 x2 y2 h1_0, core3: v0_1 h1_0 x3 y3
        >>> tn.peps((2,) * 6, (2,) * 6, grid=(2, 3)).with_rank(2).num_params
        128
    """
    n = _paired(inputs, outputs, "peps")
    rows, columns = grid_of(n) if grid is None else (int(grid[0]), int(grid[1]))
    if rows < 1 or columns < 1 or rows * columns != n:
        raise TopologyError(f"peps: a grid of {rows} x {columns} has {rows * columns} sites, received {n} modes")
    cores = []
    for i in range(n):
        r, c = divmod(i, columns)
        legs = [f"v{r - 1}_{c}"] if r else []
        legs += [f"h{r}_{c - 1}"] if c else []
        legs += [f"x{i}", f"y{i}"]
        legs += [f"h{r}_{c}"] if c < columns - 1 else []
        legs += [f"v{r}_{c}"] if r < rows - 1 else []
        cores.append(tuple(legs))
    return _topology("peps", cores, inputs, outputs)


def mera(inputs: Modes, outputs: Modes) -> Topology:
    """Binary MERA with open boundary: levels of disentanglers and of isometries.

    At each level disentanglers act across the pairs (1, 2), (3, 4), ..., then isometries join (0, 1), (2, 3), ...; the
    top core joins the last two.

    Args:
        inputs: sizes of the input modes, one for each site; their product is the number of input features.
        outputs: sizes of the output modes, as many as there are input modes.

    Raises:
        TopologyError: fewer than three sites, sides of different lengths, or a size below 1.

    Source: Vidal 2007, Entanglement Renormalization (cond-mat/0512165).

    Examples:
        >>> import tn4nn as tn
        >>> print(tn.mera((4, 4, 4), (2, 2, 2)).text)
        core0: x1 y1 x2 y2 a0 a1, core1: x0 y0 a0 a2, core2: a2 a1
    """
    n = _paired(inputs, outputs, "mera", 3)
    wires: list[Wire] = [(f"x{i}", f"y{i}") for i in range(n)]
    cores: list[Legs] = []
    bonds = (f"a{i}" for i in itertools.count())
    while len(wires) > 2:
        for i in range(1, len(wires) - 1, 2):
            up = (next(bonds), next(bonds))
            cores.append((*wires[i], *wires[i + 1], *up))
            wires[i], wires[i + 1] = (up[0],), (up[1],)
        joined: list[Wire] = []
        for i in range(0, len(wires) - 1, 2):
            up_bond = next(bonds)
            cores.append((*wires[i], *wires[i + 1], up_bond))
            joined.append((up_bond,))
        wires = joined + (wires[-1:] if len(wires) % 2 else [])
    cores.append((*wires[0], *wires[1]))
    return _topology("mera", cores, inputs, outputs)


def tucker(inputs: Modes, outputs: Modes) -> Topology:
    """Tucker: one factor for each mode, around a central core that has bonds alone.

    `W[y, x] = sum_ab core[a, b] prod_i A_i[x_i, a_i] prod_j B_j[b_j, y_j]`. The central core grows with the rank to the
    power of the number of modes.

    Args:
        inputs: sizes of the input modes; their product is the number of input features.
        outputs: sizes of the output modes; there may be more or fewer of them.

    Raises:
        TopologyError: a size below 1.

    Source: Tucker 1966, Some mathematical notes on three-mode factor analysis (Psychometrika 31).

    Examples:
        >>> import tn4nn as tn
        >>> print(tn.tucker((8, 8), (4, 4)).text)
        core0: x0 a0, core1: x1 a1, core2: a0 a1 b0 b1, core3: b0 y0, core4: b1 y1
    """
    ins, outs = _modes(inputs), _modes(outputs)
    factors: list[Legs] = [(f"x{i}", f"a{i}") for i in range(len(ins))]
    ends = [(f"b{i}", f"y{i}") for i in range(len(outs))]
    middle = (*(f"a{i}" for i in range(len(ins))), *(f"b{i}" for i in range(len(outs))))
    return _topology("tucker", [*factors, middle, *ends], ins, outs)


def cp(inputs: Modes, outputs: Modes) -> Topology:
    """CP (canonical polyadic): one factor for each mode, all on one hyperedge.

    `W[y, x] = sum_r prod_i A_i[x_i, r] prod_j B_j[y_j, r]`: a sum of outer products, one for each value of r.

    Args:
        inputs: sizes of the input modes; their product is the number of input features.
        outputs: sizes of the output modes; there may be more or fewer of them.

    Raises:
        TopologyError: a size below 1.

    Source: Kolda and Bader 2009, Tensor Decompositions and Applications (SIAM Review 51).

    Examples:
        >>> import tn4nn as tn
        >>> t = tn.cp((8, 8), (4, 4))
        >>> print(t.text)
        core0: x0 r, core1: x1 r, core2: y0 r, core3: y1 r
        >>> t.with_rank(10).num_params  # (8 + 8 + 4 + 4) * 10
        240
    """
    ins, outs = _modes(inputs), _modes(outputs)
    cores = [(f"x{i}", "r") for i in range(len(ins))] + [(f"y{i}", "r") for i in range(len(outs))]
    return _topology("cp", cores, ins, outs)


def block_term(inputs: Modes, outputs: Modes) -> Topology:
    """Block term: a sum of Tucker terms whose factors take an input and an output mode of a site each.

    `W[y, x] = sum_k sum_a core[k, a] prod_i A_i[k, x_i, y_i, a_i]`. The number of terms is the size of the hyperedge k:
    fix it by `with_budget(fixed={"k": 4})`.

    Args:
        inputs: sizes of the input modes, one for each site; their product is the number of input features.
        outputs: sizes of the output modes, as many as there are input modes.

    Raises:
        TopologyError: sides of different lengths, or a size below 1.

    Source: Ye et al. 2018, Learning Compact Recurrent Neural Networks with Block-Term Tensor Decomposition
    (arXiv:1712.05134).

    Examples:
        >>> import tn4nn as tn
        >>> t = tn.block_term((8, 8), (4, 4))
        >>> print(t.text)
        core0: k x0 y0 a0, core1: k x1 y1 a1, core2: k a0 a1
        >>> t.with_budget(params=1000, fixed={"k": 4}).ranks
        {'k': 4, 'a0': 4, 'a1': 3}
    """
    n = _paired(inputs, outputs, "block_term")
    factors: list[Legs] = [("k", f"x{i}", f"y{i}", f"a{i}") for i in range(n)]
    return _topology("block_term", [*factors, ("k", *(f"a{i}" for i in range(n)))], inputs, outputs)


def btt(inputs: Modes, outputs: Modes) -> Topology:
    """Block tensor train: step by step the last input mode becomes the last output mode.

    Each core has all modes that wait or are done as hyperedges, and so other weights for each of their values.

    Args:
        inputs: sizes of the input modes, one for each site; their product is the number of input features.
        outputs: sizes of the output modes, as many as there are input modes.

    Raises:
        TopologyError: fewer than two sites, sides of different lengths, or a size below 1.

    Source: Qiu et al. 2024, Compute Better Spent (arXiv:2406.06248).

    Examples:
        >>> from tn4nn import btt
        >>> print(btt((8, 8), (4, 4)).text)
        core0: x0 x1 y1 r0, core1: r0 x0 y0 y1
    """
    n = _paired(inputs, outputs, "btt", 2)
    return _topology("btt", _block_chain(n, ranked=True), inputs, outputs)


def monarch(inputs: Modes, outputs: Modes) -> Topology:
    """Monarch: block diagonal, a permutation, block diagonal; a BTT without bonds.

    Args:
        inputs: sizes of the input modes, one for each site; their product is the number of input features.
        outputs: sizes of the output modes, as many as there are input modes.

    Raises:
        TopologyError: fewer than two sites, sides of different lengths, or a size below 1.

    Source: Dao et al. 2022, Monarch: Expressive Structured Matrices (arXiv:2204.00595).

    Examples:
        >>> import tn4nn as tn
        >>> t = tn.monarch((8, 8), (8, 8))
        >>> print(t.text)
        core0: x0 x1 y1, core1: x0 y0 y1
        >>> t.with_ranks({}).num_params  # of 4,096 dense
        1024
    """
    n = _paired(inputs, outputs, "monarch", 2)
    return _topology("monarch", _block_chain(n, ranked=False), inputs, outputs)


def _block_chain(n: int, *, ranked: bool) -> list[Legs]:
    cores = []
    for step in range(n):
        site = n - 1 - step
        waiting = [f"x{i}" for i in range(site)]
        done = [f"y{i}" for i in range(site + 1, n)]
        before = [f"r{step - 1}"] if ranked and step else []
        after = [f"r{step}"] if ranked and step < n - 1 else []
        cores.append((*before, *waiting, f"x{site}", f"y{site}", *done, *after))
    return cores


def kronecker(inputs: Modes, outputs: Modes) -> Topology:
    """Kronecker product of one small matrix for each site, without bonds.

    `W = M_0 (x) M_1 (x) ...`, M_i of shape (outputs[i], inputs[i]); the core holds its transpose.

    Args:
        inputs: sizes of the input modes, one for each site; their product is the number of input features.
        outputs: sizes of the output modes, as many as there are input modes.

    Raises:
        TopologyError: sides of different lengths, or a size below 1.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.kronecker((2, 3), (2, 2)).with_ranks({})
        >>> weights = net.init(0)
        >>> bool(np.allclose(net.to_dense(weights), np.kron(weights["core0"].T, weights["core1"].T)))
        True
    """
    n = _paired(inputs, outputs, "kronecker")
    return _topology("kronecker", [(f"x{i}", f"y{i}") for i in range(n)], inputs, outputs)


def complete(inputs: Modes, outputs: Modes) -> Topology:
    """Complete graph K_n: every two sites share a bond, so each core has n - 1 of them.

    Args:
        inputs: sizes of the input modes, one for each site; their product is the number of input features.
        outputs: sizes of the output modes, as many as there are input modes.

    Raises:
        TopologyError: fewer than two sites, sides of different lengths, or a size below 1.

    Source: Zheng et al. 2021, Fully-Connected Tensor Network Decomposition (AAAI).

    Examples:
        >>> import tn4nn as tn
        >>> print(tn.complete((4, 4, 4), (2, 2, 2)).text)
        core0: x0 y0 a0_1 a0_2, core1: x1 y1 a0_1 a1_2, core2: x2 y2 a0_2 a1_2
    """
    n = _paired(inputs, outputs, "complete", 2)
    cores = [(f"x{i}", f"y{i}", *(f"a{min(i, j)}_{max(i, j)}" for j in range(n) if j != i)) for i in range(n)]
    return _topology("complete", cores, inputs, outputs)


_TABLE: dict[str, Callable[..., Topology]] = {
    f.__name__: f
    for f in (
        dense, low_rank, mpo, ring, tree, peps, mera, tucker, cp, block_term, btt, monarch, kronecker, complete,
    )
}  # fmt: skip

_SYNONYMS = {
    "linear": "dense", "lowrank": "low_rank", "svd": "low_rank", "tt": "mpo", "ttm": "mpo", "tt_matrix": "mpo",
    "tensor_train": "mpo", "blocktt": "mpo", "block_tt": "mpo", "mps": "mpo", "tr": "ring", "tensor_ring": "ring",
    "ttn": "tree", "ht": "tree", "hierarchical_tucker": "tree", "grid": "peps", "canonical": "cp", "parafac": "cp",
    "bt": "block_term", "block_tensor_train": "btt", "k_n": "complete", "kn": "complete", "kron": "kronecker",
}  # fmt: skip

# How many sites `build` takes by default: as few as show what the topology is.
_SITES = {"dense": 1, "low_rank": 1, "tucker": 2, "cp": 2, "btt": 2, "monarch": 2, "kronecker": 2, "complete": 3}


def catalogue() -> tuple[str, ...]:
    """Names that `build` takes.

    Examples:
        >>> import tn4nn as tn
        >>> "peps" in tn.catalogue()
        True
    """
    return tuple(_TABLE)


def like(topology: Topology, inputs: Sequence[int], outputs: Sequence[int]) -> Topology | None:
    """The same kind of topology over other modes, or None: where the catalogue makes this one with other options than
    its defaults or not at all, and where it cannot take these modes.

    Examples:
        >>> like(mpo((4, 4), (2, 2)), (2, 2, 4), (1, 2, 2)).bonds
        ('a0', 'a1')
        >>> like(tree((2,) * 9, (2,) * 9, arity=3), (4, 4), (4, 4)) is None
        True
    """
    make = _TABLE.get(topology.name)
    if make is None:
        return None
    try:
        if make(tuple(topology.inputs.values()), tuple(topology.outputs.values())).cores != topology.cores:
            return None
        return make(tuple(inputs), tuple(outputs))
    except TopologyError:
        return None


def canonical_name(name: str) -> str:
    """The catalogue's name for a name or synonym; TopologyError with the nearest names otherwise."""
    key = name.strip().lower().replace("-", "_")
    key = _SYNONYMS.get(key, key)
    if key not in _TABLE:
        raise TopologyError(f"unknown topology {name!r}." + nearest(key, [*_TABLE, *_SYNONYMS]))
    return key


def build(
    name: str,
    in_features: int,
    out_features: int,
    *,
    sites: int | None = None,
    pairing: Pairing = "opposed",
    pad: bool = True,
    **options: Any,
) -> Topology:
    """A topology of the catalogue with mode sizes chosen.

    Each side is split into `sites` factors as equal as can be; see `tn.modes_for` for the rule, for what happens to
    primes and to small sizes, and for when a side is padded.

    Args:
        name: of the catalogue, or a synonym ("tt", "tensor_ring", ...).
        in_features: neurons of the input.
        out_features: neurons of the output.
        sites: number of modes on each side (default 4, or fewer where the topology is about few).
        pairing: "opposed" (large input modes meet small output modes: sites of equal size), "aligned" (large with
            large), or "palindrome" (large modes in the middle on both sides, as in the published layers).
        pad: whether a side may be padded; False keeps it whole.
        options: of the topology, e.g. grid= or arity=.

    Raises:
        TopologyError: an unknown name (the nearest are given), a size below 1, or an option that the topology does not
            have.

    Examples:
        >>> import tn4nn as tn
        >>> t = tn.build("mpo", 784, 256, pairing="palindrome")
        >>> tuple(t.inputs.values()), tuple(t.outputs.values())
        ((4, 7, 7, 4), (4, 4, 4, 4))
    """
    key = canonical_name(name)
    count = _SITES.get(key, 4) if sites is None else sites
    if key == "peps" and "grid" in options and sites is None:
        count = options["grid"][0] * options["grid"][1]
    inputs, outputs = modes_for(in_features, out_features, count, pairing=pairing, pad=pad)
    try:
        topology = _TABLE[key](inputs, outputs, **options)
    except TypeError as error:
        raise TopologyError(f"{key} does not take {', '.join(sorted(options))}: {error}") from None
    return dataclasses.replace(topology, in_features=in_features, out_features=out_features)
