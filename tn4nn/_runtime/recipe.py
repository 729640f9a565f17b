"""A contraction path as kernel calls: every contraction, forward and backward, with the offsets of its legs in memory.

The path says which two arrays are contracted when. Each such step becomes one kernel call of the native runtime,
c[h, m, n] = sum_k a[h, m, k] * b[h, k, n], where h, m, k, n are groups of legs. No array is ever permuted: the order
of an array's legs shows only in the offsets. What has no batch (the **prologue**: cores among themselves) runs once;
what holds x runs one batch tile after the other, and the backward pass recomputes the states of a tile unless they are
saved.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .._base.errors import TN4NNError
from .._graph.network import Network
from .._graph.paths import BATCH, Legs, Path, legs_along
from .._graph.problem import chain_along_x, is_path, tensors_of
from .contraction import Buffers, Contraction, Shape, View, best_contraction, cached_shape

_SAVED_PROLOGUE = 10**6  # bytes of what the prologue makes that are saved for backward; more is recomputed
_ALIGNED = 16  # numbers: every intermediate begins at a multiple of so many


class RecipeStep(NamedTuple):
    """One contraction of a path: the two arrays that it reads, what it writes, and the gradients of all three."""

    reads: tuple[View, View]
    writes: View
    read_grads: tuple[View, View]
    write_grad: View
    cores: tuple[frozenset[int], frozenset[int]]  # of which each of the two is made


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All kernel calls of a path.

    Attributes:
        network: what it applies.
        path: the contraction path over (cores..., x).
        block: rows of a batch tile.
        itemsize: bytes of one number.
        sizes: of every leg.
        buffers: the numbers of the buffers.
        prologue: steps among cores.
        steps: steps of x, in order, for a forward pass that saves its states.
        streamed_steps: the same for one that does not: two states take turns in memory.
        lengths: numbers in each buffer that is not the caller's, by buffer.
        layouts: as requested.
        saved_per_row: numbers of the states of a row that a training step saves; 0 where it recomputes them.
        save_states: a training step saves all that it can read later on.
    """

    network: Network
    path: Path
    block: int
    itemsize: int
    sizes: Mapping[str, int]
    buffers: Buffers
    prologue: tuple[RecipeStep, ...]
    steps: tuple[RecipeStep, ...]
    streamed_steps: tuple[RecipeStep, ...]
    lengths: Mapping[int, int]
    layouts: tuple[int, ...]
    saved_per_row: int
    save_states: bool

    @property
    def inputs(self) -> int:
        """Numbers of a row of x."""
        return max(view.row for view in self.steps[0].reads)

    @property
    def outputs(self) -> int:
        """Numbers of a row of y."""
        return self.steps[-1].writes.row

    @property
    def saved_prologue(self) -> int:
        """Numbers of what the prologue makes that a training step saves; 0 where there are so many that the backward
        pass recomputes them."""
        result = self.lengths[self.buffers.prologue]
        return result if self.save_states or result * self.itemsize <= _SAVED_PROLOGUE else 0

    @functools.cached_property
    def sums(self) -> tuple[int, ...]:
        """Numbers in each buffer that rows add to; 0 for the others."""
        written = {view.buffer: view for step in self.steps for view in step.read_grads if not view.row}
        return tuple(
            (self.lengths.get(buffer) or math.prod(self.sizes[leg] for leg in written[buffer].legs))
            if buffer in written
            else 0
            for buffer in range(self.buffers.count)
        )

    def forward(self, train: bool) -> tuple[Contraction, ...]:
        """The kernel calls of a batch tile forward."""
        return self.contractions(self.steps if train and self.saved_per_row else self.streamed_steps)

    def recompute(self) -> tuple[Contraction, ...]:
        """What the backward pass of a batch tile makes once more before it begins."""
        return () if self.saved_per_row else self.contractions(self.steps[:-1])

    def contractions(self, steps: Iterable[RecipeStep]) -> tuple[Contraction, ...]:
        """The forward kernel calls of some steps."""
        return tuple(self._contraction(*step.reads, step.writes) for step in steps)

    def backward(self, steps: Sequence[RecipeStep], x: bool, cores: frozenset[int]) -> tuple[Contraction, ...]:
        """The backward kernel calls of some steps, for the gradients of x (if wanted) and of some cores."""
        return tuple(self._backward(steps, x, cores))

    def _backward(self, steps: Sequence[RecipeStep], x: bool, cores: frozenset[int]) -> Iterator[Contraction]:
        for step in reversed(steps):
            (a, b), g = step.reads, step.write_grad
            sides = ((a, b, step.read_grads[0], step.cores[0]), (b, a, step.read_grads[1], step.cores[1]))
            for this, other, grad, made_of in sides:
                if made_of & cores or (x and this.row):
                    yield self._contraction(g, other, grad, adds=bool(g.row) and not grad.row)

    def calls(self, phase: str) -> tuple[tuple[Contraction, ...], tuple[Contraction, ...], tuple[Contraction, ...]]:
        """The kernel calls that run once before, for each batch tile, and once after.

        Args:
            phase: "forward", "train", or "frozen" for a forward pass that finds what the prologue makes ready.
        """
        before, through = self.contractions(self.prologue), self.forward(phase == "train")
        if phase != "train":
            return before if phase == "forward" else (), through, ()
        cores = frozenset(range(len(self.buffers.core_grads)))
        backward = (*self.recompute(), *self.backward(self.steps, True, cores))
        return before, (*through, *backward), self.backward(self.prologue, False, cores)

    def shape(self, call: Contraction, rows: int) -> Shape:
        """The shape of one of its kernel calls; many recipes share a call."""
        return cached_shape(call, self._sized, rows)

    def _contraction(self, a: View, b: View, c: View, adds: bool = False) -> Contraction:
        rows = self.block if a.row or b.row else 1
        return best_contraction(a, b, c, adds, self._sized, rows, self.itemsize)

    @functools.cached_property
    def _sized(self) -> frozenset[tuple[str, int]]:
        return frozenset(self.sizes.items())


def recipe(
    network: Network, path: Path, block: int, *, itemsize: int = 4, layouts: Sequence[int] = (), save: bool = False
) -> Recipe:
    """The kernel calls of a path.

    Args:
        network: what is applied.
        path: over (cores..., x), as in a `Plan` of form "apply".
        block: rows of a batch tile.
        itemsize: bytes of one number.
        layouts: for each step of x but the last, how the new state lies, one of `contraction.LAYOUTS`; left out, 0.
        save: a training step saves the states of all rows.

    Raises:
        TN4NNError: the path is of another network.

    Examples:
        >>> import tn4nn as tn
        >>> lowered = recipe(tn.low_rank(64, 64).with_rank(4), ((0, 2), (1, 3)), 32)
        >>> len(lowered.prologue), len(lowered.steps), lowered.inputs, lowered.outputs
        (0, 2, 64, 64)
    """
    tensors, _, output = tensors_of(network, "apply")
    if not is_path(path, len(tensors)):
        raise TN4NNError(
            f"this path has {len(path)} steps and is none over the {len(tensors) - 1} cores of "
            f"{network.topology.name!r} and x: was it planned for another network?"
        )
    sizes = {leg: size for leg, size in {**network.sizes, BATCH: 1}.items() if size != 1 and leg != BATCH}
    legs = [tuple(leg for leg in on if leg in sizes) for on in tensors]
    final = tuple(leg for leg in output if leg in sizes)
    arrays = _Arrays(legs, final, sizes, path, block)
    chain = chain_along_x(path, len(tensors))
    chosen = _layouts(arrays, chain, final, tuple(layouts))
    prologue = _prologue(arrays, chain, chosen)
    steps = _chain_steps(arrays, chain, chosen, all_states=True, save=save)
    streamed = _chain_steps(arrays, chain, chosen, all_states=False, save=save)
    saved = sum(arrays.numbers(chosen[node]) for node, _ in chain[:-1]) if save else 0
    return Recipe(
        network, path, block, itemsize, sizes, arrays.buffers, prologue, steps, streamed, arrays.lengths,
        tuple(layouts), saved, save,
    )  # fmt: skip


Chain = Sequence[tuple[int, tuple[int, int]]]  # (node, (state, operand)) of each step of x


class _Arrays:
    """The arrays of a recipe so far: a view of every tensor and node, and of its gradient."""

    def __init__(self, tensors: Sequence[Legs], final: Legs, sizes: Mapping[str, int], path: Path, block: int) -> None:
        cores = len(tensors) - 1
        self.path, self.block, self.sizes, self.x = path, block, sizes, cores
        self.buffers = Buffers(cores)
        self.legs = legs_along(tensors, final, path)  # of every node, in no order
        self.views = {i: View(i, 0, tensors[i]) for i in range(cores)}
        self.grads = {i: View(self.buffers.core_grads[i], 0, tensors[i]) for i in range(cores)}
        self.views[cores] = View(self.buffers.x, 0, tensors[cores], self.numbers(tensors[cores]))
        self.grads[cores] = self.views[cores]._replace(buffer=self.buffers.x_grad)
        self.made_of = {i: frozenset([i]) if i < cores else frozenset[int]() for i in range(cores + 1)}
        for node, (a, b) in enumerate(path, cores + 1):
            self.made_of[node] = self.made_of[a] | self.made_of[b]
        buffers = self.buffers
        self.lengths = dict.fromkeys((buffers.prologue, buffers.states, buffers.prologue_grads, buffers.state_grads), 0)

    def numbers(self, legs: Iterable[str]) -> int:
        """In an array over some legs."""
        return math.prod(self.sizes[leg] for leg in legs)

    def append(self, buffer: int, legs: Legs) -> View:
        """A new array without rows at the end of a buffer."""
        offset = self.lengths[buffer]
        self.lengths[buffer] += _aligned(self.numbers(legs))
        return View(buffer, offset, legs)

    def step(self, node: int, pair: tuple[int, int]) -> RecipeStep:
        """The contraction that makes a node, once its views are there."""
        a, b = pair
        return RecipeStep(
            (self.views[a], self.views[b]),
            self.views[node],
            (self.grads[a], self.grads[b]),
            self.grads[node],
            (self.made_of[a], self.made_of[b]),
        )


def _aligned(numbers: int) -> int:
    return -(-numbers // _ALIGNED) * _ALIGNED


def _prologue(arrays: _Arrays, chain: Chain, layouts: Mapping[int, Legs]) -> tuple[RecipeStep, ...]:
    """The steps among cores. The step of x that reads an operand has set the order of its legs."""
    of_x, steps = {node for node, _ in chain}, []
    for node, pair in enumerate(arrays.path, arrays.x + 1):
        if node not in of_x:
            legs = layouts.get(node) or _natural(arrays, node, pair)
            arrays.views[node] = arrays.append(arrays.buffers.prologue, legs)
            arrays.grads[node] = arrays.append(arrays.buffers.prologue_grads, legs)
            steps.append(arrays.step(node, pair))
    return tuple(steps)


def _natural(arrays: _Arrays, node: int, pair: tuple[int, int]) -> Legs:
    """The order of the legs of a product where nothing else is wanted: shared ones, those of a, those of b."""
    a, b = (arrays.views[i].legs for i in pair)
    result = arrays.legs[node]
    return tuple(dict.fromkeys(leg for leg in (*(leg for leg in a if leg in b), *a, *b) if leg in result))


class _Groups(NamedTuple):
    """The legs of a step of x, state[h, m, k] * operand[h, k, n] -> state[h, m, n]."""

    h: Legs
    m: Legs
    k: Legs
    n: Legs


def _layouts(arrays: _Arrays, chain: Chain, final: Legs, codes: tuple[int, ...]) -> dict[int, Legs]:
    """The leg orders of all states and of the operands that join them, by node; see `contraction.LAYOUTS`."""
    found: dict[int, Legs] = {}
    state, order = arrays.views[arrays.x].legs, list(arrays.sizes)
    for position, (node, (_, operand)) in enumerate(chain):
        code = codes[position] if position < len(codes) else 0
        joined, result = arrays.legs[operand], arrays.legs[node]
        groups = _Groups(
            tuple(leg for leg in state if leg in joined and leg in result),
            tuple(leg for leg in state if leg not in joined),
            tuple(leg for leg in state if leg in joined and leg not in result),
            tuple(sorted(joined - set(state), key=order.index)),
        )
        if position == len(chain) - 1:
            state = final
        else:
            following, (_, joins) = chain[position + 1]
            state = _state_layout(code, groups, arrays.legs[joins], arrays.legs[following])
        h, k, n = groups.h, groups.k, groups.n
        found[operand] = (*k, *n, *h) if code == 4 else (*h, *k, *n)
        found[node] = state
    return found


def _state_layout(code: int, groups: _Groups, joins: frozenset[str], produced: frozenset[str]) -> Legs:
    """The leg order of a new state; `joins`: legs of the next operand, `produced`: of their product."""
    h, m, _, n = groups
    if code in (0, 1):
        return (*h, *m, *n) if code == 0 else (*h, *n, *m)
    if code == 4:
        return (*m, *n, *h)
    state = (*h, *m, *n)
    both = tuple(leg for leg in state if leg in joins and leg in produced)
    stays = tuple(leg for leg in state if leg not in joins)
    summed = tuple(leg for leg in state if leg in joins and leg not in produced)
    return (*both, *stays, *summed) if code == 2 else (*both, *summed, *stays)


def _chain_steps(
    arrays: _Arrays, chain: Chain, layouts: Mapping[int, Legs], *, all_states: bool, save: bool
) -> tuple[RecipeStep, ...]:
    """The steps of x, with all states side by side in memory or two that take turns."""
    buffers, steps = arrays.buffers, []
    numbers = [arrays.numbers(layouts[node]) for node, _ in chain[:-1]]
    starts = _starts(arrays, buffers.states, numbers, all_states=all_states, save=save)
    grad_starts = _starts(arrays, buffers.state_grads, numbers, all_states=False, save=save)
    for position, (node, pair) in enumerate(chain):
        legs = layouts[node]
        if position == len(chain) - 1:
            row = arrays.numbers(legs)
            arrays.views[node], arrays.grads[node] = View(buffers.y, 0, legs, row), View(buffers.y_grad, 0, legs, row)
        else:
            row = numbers[position]
            arrays.views[node] = View(buffers.states, starts[position], legs, row)
            arrays.grads[node] = View(buffers.state_grads, grad_starts[position], legs, row)
        steps.append(arrays.step(node, pair))
    return tuple(steps)


def _starts(arrays: _Arrays, buffer: int, numbers: Sequence[int], *, all_states: bool, save: bool) -> list[int]:
    """Where each state begins: behind the earlier ones, or where the one before the last was."""
    spaces = [_aligned(n * arrays.block) for n in numbers]
    if all_states and save:  # in the caller's memory, one tile behind the other
        spaces = [n * arrays.block for n in numbers]
        length = 0
    else:
        length = sum(spaces) if all_states else max(spaces, default=0) * min(2, len(spaces))
    arrays.lengths[buffer] = max(arrays.lengths[buffer], length)
    if all_states:
        return list(itertools.accumulate(spaces, initial=0))[:-1]
    return [position % 2 * max(spaces) for position in range(len(spaces))]
