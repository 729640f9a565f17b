"""What is contracted when a network is applied, and the orders that follow from that alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

from .._base.errors import TN4NNError
from .network import Network
from .paths import BATCH, Legs, Path, PathWork, chain_path, path_macs, path_work, quick_path

Form = Literal["apply", "gather", "dense", "kernel"]
FORMS = ("apply", "gather", "dense", "kernel")
CHAINS = ("left to right", "right to left")
W_FIRST = "W first"
BY_HAND = (*CHAINS, W_FIRST)  # orders that a person would write: of a small network they are in every table


def tensors_of(network: Network, form: Form) -> tuple[list[Legs], tuple[str, ...], Legs]:
    """The tensors to contract, the names of the program's inputs, and the legs of the result.

    "apply" and "gather" have a batch leg; the result of "apply" and "gather" is (batch, outputs...), that of
    "dense" and "kernel" (outputs..., inputs...), batch-like (kept) legs once, among the outputs.

    Raises:
        TN4NNError: an embedding ("gather") with batch legs.
    """
    t = network.topology
    tensors = [core.legs for core in t.cores]
    names = tuple(core.name for core in t.cores)
    outputs = tuple(t.outputs)
    if form in ("dense", "kernel"):
        return tensors, names, (*outputs, *(leg for leg in t.inputs if leg not in t.outputs))
    if form == "gather":
        if t.kept:
            raise TN4NNError(f"an embedding cannot have batch legs, received {', '.join(t.kept)}")
        rows = []
        for legs in tensors:
            inner = tuple(leg for leg in legs if leg not in t.inputs)
            rows.append((BATCH, *inner) if len(inner) < len(legs) else inner)
        return rows, names, (BATCH, *outputs)
    return [*tensors, (BATCH, *t.inputs)], (*names, "x"), (BATCH, *outputs)


class Contracted(Protocol):
    """Any contraction: tensors, the legs of the result, and the sizes of all legs."""

    @property
    def tensors(self) -> Sequence[Legs]:
        """The legs of each tensor."""
        ...

    @property
    def output(self) -> Legs:
        """Legs of the result, in order."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Of every leg."""
        ...


@dataclasses.dataclass(frozen=True)
class Problem:
    """One contraction: a network in a form, for a number of rows.

    Attributes:
        network: what is applied.
        form: "apply", "gather", "dense" or "kernel"; see `tensors_of`.
        batch: rows of x.

    Examples:
        >>> import tn4nn as tn
        >>> problem = Problem(tn.low_rank(6, 5).with_rank(2), "apply", 10)
        >>> problem.names, problem.macs(problem.chains()[0])
        (('core0', 'core1', 'x'), 220)
    """

    network: Network
    form: Form
    batch: int

    @functools.cached_property
    def _parts(self) -> tuple[list[Legs], tuple[str, ...], Legs]:
        return tensors_of(self.network, self.form)

    @property
    def tensors(self) -> list[Legs]:
        """The legs of each tensor: the cores, and x last where the form has one."""
        return self._parts[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors."""
        return self._parts[1]

    @property
    def output(self) -> Legs:
        """Legs of the result, in order."""
        return self._parts[2]

    @property
    def summed(self) -> frozenset[str]:
        """Legs that are not of the result."""
        return frozenset(leg for legs in self.tensors for leg in legs) - frozenset(self.output)

    @property
    def sizes(self) -> dict[str, int]:
        """Of every leg, the batch leg included."""
        return self._sizes

    @functools.cached_property
    def _sizes(self) -> dict[str, int]:
        return {**self.network.sizes, BATCH: self.batch}

    def at(self, batch: int) -> Problem:
        """The same for another number of rows."""
        return self if batch == self.batch else Problem(self.network, self.form, batch)

    def macs(self, path: Path) -> int:
        """Multiply-adds of a path, without lowering it."""
        return path_macs(self.tensors, self.output, self.sizes, path)

    def work(self, path: Path) -> PathWork:
        """What a path computes and writes."""
        return path_work(self.tensors, self.output, self.sizes, path)

    def dense_first(self) -> Path:
        """The cores among themselves, then x."""
        cores = self.tensors[:-1]
        t = self.network.topology
        on_cores = {leg for legs in cores for leg in legs}
        output = tuple(leg for leg in dict.fromkeys([*t.outputs, *t.inputs]) if leg in on_cores)
        inner = quick_path(cores, output, self.network.sizes)
        n = len(cores)
        # x takes number n, so what the cores make moves up by one.
        shifted = [tuple(i if i < n else i + 1 for i in pair) for pair in inner]
        result = n + len(inner) if inner else 0
        return tuple([(a, b) for a, b in shifted] + [(result, n)])

    def chains(self) -> list[Path]:
        """x through the cores in their order, and in the reverse order."""
        n = len(self.tensors)
        order = range(n - 1)
        return [chain_path(order, n - 1, n), chain_path(order[::-1], n - 1, n)]

    def merges(self) -> Iterator[tuple[str, Path]]:
        """Neighbouring cores merged, then x through what they make, from either side."""
        cores = len(self.tensors) - 1
        for groups in _groupings(cores):
            for order, name in zip((groups, groups[::-1]), CHAINS, strict=True):
                path: list[tuple[int, int]] = []
                current = cores
                result = [self._merged(group, path) for group in order]
                for operand in result:
                    path.append((current, operand))
                    current = cores + len(path)
                merged = "+".join(str(len(group)) for group in groups)
                single = len(groups) == cores
                yield name if single else f"{name}, cores merged by {merged}", tuple(path)

    def _merged(self, group: Sequence[int], path: list[tuple[int, int]]) -> int:
        """Contracts a group of cores from left to right; returns the number of what they make."""
        current = group[0]
        for other in group[1:]:
            path.append((current, other))
            current = len(self.tensors) - 1 + len(path)
        return current


def _groupings(cores: int) -> Iterator[list[list[int]]]:
    """Ways to cut a row of cores into groups: all of them for a short row, else groups of one size."""
    if cores <= 7:
        for cuts in range(1 << (cores - 1)):
            groups = [[0]]
            for core in range(1, cores):
                if cuts >> (core - 1) & 1:
                    groups.append([core])
                else:
                    groups[-1].append(core)
            if len(groups) > 1:
                yield groups
        return
    for size in range(1, 5):
        yield [list(range(low, min(cores, low + size))) for low in range(0, cores, size)]


def stored_path(data: object, tensors: int) -> Path | None:
    """A path out of plain data that anybody may have written; None where it is none over so many tensors."""
    if not isinstance(data, list) or len(data) > tensors:
        return None
    for pair in data:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)):
            return None
    path = tuple((int(a), int(b)) for a, b in data)
    return path if is_path(path, tensors) else None


def is_path(path: Path, tensors: int) -> bool:
    """Whether this is a path over so many tensors."""
    free = set(range(tensors))
    for step, (a, b) in enumerate(path):
        if a == b or a not in free or b not in free:
            return False
        free -= {a, b}
        free.add(tensors + step)
    return len(free) == 1


def linear_path(path: Path) -> Path:
    """A path in opt_einsum's form: each pair counts the tensors that are left, and what it makes goes to their end.

    Examples:
        >>> linear_path(((0, 1), (2, 3)))
        ((0, 1), (0, 1))
    """
    tensors = len(path) + 1
    left, found = list(range(tensors)), list[tuple[int, int]]()
    for step, pair in enumerate(path):
        i, j = sorted(left.index(node) for node in pair)
        found.append((i, j))
        left = [*left[:i], *left[i + 1 : j], *left[j + 1 :], tensors + step]
    return tuple(found)


def tree_of_path(path: Path, tensors: int) -> frozenset[frozenset[int]]:
    """The tensors below each contraction: the same for all orders in which one tree can be written down."""
    below = [frozenset([i]) for i in range(tensors)]
    for a, b in path:
        below.append(below[a] | below[b])
    return frozenset(below[tensors:])


def x_first(path: Path, tensors: int) -> Path:
    """The same path with what holds x, the last tensor, first in each pair: a lowered product then needs no transpose.

    Examples:
        >>> x_first(((0, 2), (1, 3)), 3)
        ((2, 0), (3, 1))
    """
    chain = dict(chain_along_x(path, tensors))
    return tuple(chain.get(node, pair) for node, pair in enumerate(path, tensors))


def chain_along_x(path: Path, tensors: int) -> list[tuple[int, tuple[int, int]]]:
    """The contractions that hold x, the last tensor: (node, (what x has become, what joins it)) of each, in order.

    The batch is on x alone, so in any contraction tree these form a chain, and what joins it is made of cores.

    Examples:
        >>> chain_along_x(((0, 1), (2, 3)), 3)
        [(4, (2, 3))]
    """
    spine, chain = {tensors - 1}, []
    for node, pair in enumerate(path, tensors):
        if spine & set(pair):
            spine.add(node)
            chain.append((node, pair if pair[0] in spine else pair[::-1]))
    return chain


def min_macs(network: Network, batch: int) -> int:
    """The fewest multiply-adds of one forward pass that the exhaustive or greedy search finds, at once."""
    problem = Problem(network, "apply", batch)
    path = quick_path(problem.tensors, problem.output, problem.sizes)
    return min(problem.macs(path) for path in (path, problem.dense_first(), *problem.chains()))
