"""What a recipe costs in the native runtime: kernel calls, the memory of a batch tile, streams of rows."""

from __future__ import annotations

from typing import NamedTuple

from .contraction import Contraction, contraction_bytes, contraction_seconds
from .cost import Cost, NativeMachine
from .recipe import Recipe
from .variants import FETCHED

_UNFETCHED = 3.5  # times as long takes what is not fetched
_AHEAD, _CROWDED = 0.4, 0.65  # share of the cache that rows ahead may fill; power of how much longer they take beyond
_FAR_CACHE, _NEARBY = 24 << 20, 0.25  # bytes that a later cache holds, where they take that share of memory's time


class CallRow(NamedTuple):
    """One line of a printed plan: a kernel call, how often it runs, its sizes, multiply-adds and predicted seconds."""

    when: str  # "once" or "tile"
    text: str
    sizes: str
    macs: int
    seconds: float


def call_rows(recipe: Recipe, phase: str, machine: NativeMachine) -> list[CallRow]:
    """The prologue, one batch tile, and what follows, call by call."""
    before, through, after = recipe.calls(phase)
    named = [("once", before), ("tile", through), ("once", after)]
    return [_row(recipe, when, call, machine) for when, calls in named for call in calls]


def _row(recipe: Recipe, when: str, call: Contraction, machine: NativeMachine) -> CallRow:
    shape = recipe.shape(call, 1 if when == "once" else recipe.block)
    a, b, c = (f"{recipe.buffers.name(v.buffer)}[{' '.join(v.legs)}]" for v in (call.a, call.b, call.c))
    sizes = f"{shape.h} x {shape.m} x {shape.k} x {shape.n}"
    return CallRow(when, f"{c} = {a} * {b}", sizes, shape.macs, contraction_seconds(shape, machine, recipe.itemsize))


def recipe_cost(recipe: Recipe, batch: int, phase: str, machine: NativeMachine) -> Cost:
    """The cost of a recipe.

    Args:
        recipe: what runs.
        batch: rows of x.
        phase: "forward", "train", or "frozen" for a forward pass that finds what the prologue makes ready.
        machine: parameters of the cost model.
    """
    return _Pricing(recipe, batch, phase == "train", machine).cost(phase)


class _Pricing:
    """One recipe at one batch."""

    def __init__(self, recipe: Recipe, batch: int, train: bool, machine: NativeMachine) -> None:
        self.recipe, self.batch, self.train, self.machine = recipe, batch, train, machine
        self.itemsize, self.block = recipe.itemsize, min(recipe.block, batch)
        # Numbers of the states that are saved for a tile, and of all that a tile works on.
        self.tile_saved = recipe.saved_per_row * recipe.block if train else 0
        lengths, buffers = recipe.lengths, recipe.buffers
        self.states = self.tile_saved or lengths[buffers.states]
        self.states += lengths[buffers.state_grads] if train else 0
        rows = recipe.inputs * (2 if train else 1) + recipe.outputs
        self.working_set = (self.states + rows * recipe.block) * self.itemsize  # bytes

    def cost(self, phase: str) -> Cost:
        recipe, machine, item = self.recipe, self.machine, self.itemsize
        before, through, after = recipe.calls(phase)
        tiles, rest = divmod(self.batch, self.block)
        seconds = moved = macs = 0.0
        for calls, rows, times in (
            (before, 1, 2 if self.train and not recipe.saved_prologue else 1),
            (through, self.block, tiles),
            (through, rest, 1 if rest else 0),
            (after, 1, 1),
        ):
            for call in calls if times else ():
                shape = recipe.shape(call, rows)
                touched = contraction_bytes(shape, item)
                macs += times * shape.macs
                moved += times * touched
                seconds += times * contraction_seconds(shape, machine, item)
                seconds += times * self._missed(touched, self.working_set if rows > 1 else 0)
        saved_states = (tiles + (rest > 0)) * self.tile_saved * item
        seconds += self._streams() + machine.call_s
        nearby = _NEARBY if self.block >= self.batch else 1.0  # of one tile `_missed` counts what no cache holds
        seconds += 2 * nearby * saved_states / machine.memory_bytes_per_s  # written by one pass, read by the other
        return Cost(int(macs), int(moved), self._peak(saved_states), self._saved(saved_states), seconds)

    def _peak(self, saved_states: int) -> int:
        recipe, item, buffers = self.recipe, self.itemsize, self.recipe.buffers
        prologue = recipe.lengths[buffers.prologue] + (recipe.lengths[buffers.prologue_grads] if self.train else 0)
        # The backward pass has x and the gradients of x and y, the forward pass x and y.
        ends = self.batch * (recipe.inputs * (2 if self.train else 1) + recipe.outputs)
        return (ends + self.states + prologue - self.tile_saved) * item + saved_states

    def _saved(self, saved_states: int) -> int:
        if not self.train:
            return 0
        return (self.batch * self.recipe.inputs + self.recipe.saved_prologue) * self.itemsize + saved_states

    def _streams(self) -> float:
        """Seconds for x and y to come and go, and for their gradients."""
        inputs, outputs = self.recipe.inputs, self.recipe.outputs
        passes = [inputs + outputs] + ([2 * inputs + outputs] if self.train else [])
        if sum(passes) * self.batch * self.itemsize <= _FAR_CACHE:
            felt = _NEARBY * sum(passes)
        else:
            felt = sum(numbers * self._unfetched(numbers * self.block * self.itemsize) for numbers in passes)
        return felt * self.batch * self.itemsize / self.machine.memory_bytes_per_s

    def _unfetched(self, ahead: int) -> float:
        """How much longer the rows of a tile take to come than where the cache holds these and the next tile's."""
        if self.block >= self.batch or ahead > FETCHED:
            return _UNFETCHED
        crowded: float = max(1.0, ahead / (_AHEAD * self.machine.cache_bytes)) ** _CROWDED
        return min(_UNFETCHED, crowded)

    def _missed(self, touched: int, working_set: int) -> float:
        """Seconds that a call loses since what a tile works on does not fit the cache."""
        size = max(working_set, touched)
        within, far = min(1.0, self.machine.cache_bytes / size), max(0.0, 1 - _FAR_CACHE / size)
        return (1 - within + 2 * far) * touched / self.machine.memory_bytes_per_s
