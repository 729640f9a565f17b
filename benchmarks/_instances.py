"""Contractions over which path optimizers are compared: layers with a batch, random graphs, generated einsums."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from _paths import Contraction, of_layer
from _workset import CASES

import tn4nn as tn

BATCH = 64
LARGEST_CORE = 1 << 26  # numbers; a layer with a larger core is no layer anybody runs
_LOW = ("peps", "mera", "complete", "tucker")  # cores of many bonds: rank 2 instead of 4


@dataclasses.dataclass(frozen=True)
class Instance:
    """One contraction; `group` is "catalogue", "published", "random regular" or "einsum-benchmark"."""

    name: str
    group: str
    problem: Contraction


@dataclasses.dataclass(frozen=True)
class Absent:
    """An instance that is not there, and why."""

    name: str
    reason: str


Found = Iterator[Instance | Absent]


def instances(quick: bool) -> Found:
    """All of them; the quick ones have about 16 tensors, and one has 64."""
    yield from published()
    for sites in (4, 16):
        yield from catalogue(sites)
    for tensors, degree, seed in ((16, 3, 0), (16, 4, 0), (64, 3, 0)) if quick else _GRAPHS:
        yield random_regular(tensors, degree, seed)
    if not quick:
        yield from generated()
        yield from catalogue(64)


_GRAPHS = ((16, 3, 0), (16, 4, 0), (64, 3, 0), (64, 3, 1), (64, 4, 0))


def catalogue(sites: int) -> Found:
    """The catalogue on so many sites. With 64 of them every fourth has modes of size 2, so that x fits in memory."""
    modes = {4: (4,) * 4, 16: (2,) * 16, 64: (2, 1, 1, 1) * 16}[sites]
    for name in tn.catalogue():
        if name in ("dense", "low_rank") or (name in ("monarch", "kronecker") and sites == 64):
            continue  # two cores at most; without bonds every optimizer finds the same
        label = f"{name}-{sites}"
        try:
            net = getattr(tn, name)(modes, modes).with_rank(2 if name in _LOW else 4, clip=True)
        except tn.TN4NNError as error:
            yield Absent(label, str(error))
            continue
        largest = max(net.topology.cores, key=lambda core: _numbers(net, core.legs))
        if _numbers(net, largest.legs) > LARGEST_CORE:
            yield Absent(label, f"core {largest.name} would have {_numbers(net, largest.legs):.1e} numbers")
        else:
            yield Instance(label, "catalogue", of_layer(net, BATCH))


def _numbers(net: tn.Network, legs: tuple[str, ...]) -> int:
    product = 1
    for leg in legs:
        product *= net.sizes[leg]
    return product


def published() -> Found:
    """The published layers of the work set."""
    for name, case in CASES.items():
        if case.why.startswith("arXiv"):
            yield Instance(name, "published", of_layer(case.network(), BATCH))


def random_regular(tensors: int, degree: int, seed: int) -> Instance | Absent:
    """A closed network on a random regular graph, bonds of size 2."""
    name = f"regular-{tensors}-{degree}-{seed}"
    try:
        import networkx
    except ImportError:
        return Absent(name, "needs networkx")
    graph = networkx.random_regular_graph(degree, tensors, seed=seed)
    edges = sorted(tuple(sorted(edge)) for edge in graph.edges)
    legs = [tuple(f"b{i}" for i, edge in enumerate(edges) if node in edge) for node in range(tensors)]
    return Instance(name, "random regular", Contraction(tuple(legs), (), {f"b{i}": 2 for i in range(len(edges))}))


def generated() -> Found:
    """From the generators of the package einsum-benchmark: its instances themselves are not part of the wheel."""
    yield Absent("einsum-benchmark's 168 instances", "they are downloaded on first use, not shipped in the wheel")
    try:
        from einsum_benchmark import generators as result
    except ImportError as error:
        yield Absent("einsum-benchmark's generators", f"needs {error.name}")
        return
    yield _of_text("lattice-4x4", *result.structured.lattice((4, 4), d_min=2))
    yield _of_text("lattice-4x4x4", *result.structured.lattice((4, 4, 4), d_min=2))
    yield _of_text("lattice-8x8-cyclic", *result.structured.lattice((8, 8), cyclic=True, d_min=2))
    yield _of_text("einsum-tree-64", *result.structured.tree(n=64, d_min=2, d_max=4, seed=1))


def _of_text(name: str, equation: str, shapes: Any) -> Instance:
    left, _, output = equation.replace(" ", "").partition("->")
    tensors = tuple(tuple(term) for term in left.split(","))
    sizes = {
        leg: int(n) for legs, shape in zip(tensors, shapes, strict=True) for leg, n in zip(legs, shape, strict=True)
    }
    return Instance(name, "einsum-benchmark", Contraction(tensors, tuple(output), sizes))
