"""Contraction paths: what a path costs, before anything is run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import cotengra as ctg

from tn4nn import Network
from tn4nn._graph.paths import legs_along, path_macs

BATCH = "batch"
Legs = tuple[str, ...]
Path = tuple[tuple[int, int], ...]  # ssa: inputs are numbered first, then each product

_OPTIMAL = 16  # tensors up to which cotengra's optimal search takes well under a second


@dataclasses.dataclass(frozen=True)
class PathCost:
    """Multiply-adds, elements of all intermediates together, and of the two largest."""

    macs: int
    intermediates: int
    largest: int


@dataclasses.dataclass(frozen=True)
class Contraction:
    """The einsum of a layer: cores and x, in that order.

    Attributes:
        tensors: legs of each.
        output: legs of y, the batch first.
        sizes: of every leg, the batch among them.
    """

    tensors: tuple[Legs, ...]
    output: Legs
    sizes: Mapping[str, int]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each tensor."""
        return [tuple(self.sizes[leg] for leg in legs) for legs in self.tensors]

    @property
    def equation(self) -> str:
        """As einsum text; one letter a leg, 52 at most."""
        legs = dict.fromkeys(leg for legs in self.tensors for leg in legs)
        letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        name = dict(zip(legs, letters, strict=False))
        terms = ["".join(name[leg] for leg in legs) for legs in (*self.tensors, self.output)]
        return ",".join(terms[:-1]) + "->" + terms[-1]

    def tree(self) -> ctg.ContractionTree:
        """The tree with the fewest multiply-adds that cotengra finds at once."""
        search = "optimal" if len(self.tensors) <= _OPTIMAL else "auto-hq"
        return ctg.array_contract_tree(list(self.tensors), self.output, size_dict=dict(self.sizes), optimize=search)

    def best_path(self) -> Path:
        """That tree's path."""
        return tuple((int(a), int(b)) for a, b in self.tree().get_ssa_path())

    def chain_path(self) -> Path:
        """x through the cores from left to right, as hand-written layers do."""
        n = len(self.tensors) - 1
        return tuple((n + step, step) for step in range(n))

    def cost(self, path: Path) -> PathCost:
        """What a path costs."""
        result = [self._elements(legs) for legs in legs_along(self.tensors, self.output, path)[len(self.tensors) :]]
        macs = path_macs(self.tensors, self.output, self.sizes, path)
        return PathCost(macs, sum(result), sum(sorted(result)[-2:]))

    def _elements(self, legs: frozenset[str]) -> int:
        return math.prod(self.sizes[leg] for leg in legs)


def of_layer(network: Network, batch: int) -> Contraction:
    """y = x W^T as one einsum."""
    t = network.topology
    tensors: Sequence[Legs] = [*(core.legs for core in t.cores), (BATCH, *t.inputs)]
    return Contraction(tuple(tensors), (BATCH, *t.outputs), {**network.sizes, BATCH: batch})


def of_matrix(network: Network) -> Contraction:
    """W as one einsum over the cores, outputs first."""
    t = network.topology
    return Contraction(tuple(core.legs for core in t.cores), (*t.outputs, *t.inputs), network.sizes)
