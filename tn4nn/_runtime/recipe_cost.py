"""What a recipe costs in the native runtime: kernel calls, the memory of a batch tile, streams of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .contraction import Contraction, contraction_bytes, contraction_seconds
from .cost import Cost, NativeMachine
from .recipe import Recipe
from .variants import FETCHED, LEAST, SHARE

_UNFETCHED = 3.5  # times as long takes what is not fetched
_AHEAD, _CROWDED = 0.4, 0.65  # share of the cache that rows ahead may fill; power of how much longer they take beyond
_FAR_CACHE, _NEARBY = 24 << 20, 0.25  # bytes that a later cache holds, where they take that share of memory's time

Calls = Sequence[Contraction]


class CallRow(NamedTuple):
    """One line of a printed plan: a kernel call, how often it runs, its sizes, multiply-adds and predicted seconds."""

    when: str  # "once" or "tile"
    text: str
    sizes: str
    macs: int
    seconds: float


def call_rows(recipe: Recipe, phase: str, machine: NativeMachine, cores: Sequence[str]) -> list[CallRow]:
    """The prologue, one batch tile, and what follows, call by call; `cores` has the names of the cores, in order."""
    before, through, after = recipe.calls(phase)
    named = [("once", before), ("tile", through), ("once", after)]
    return [_row(recipe, when, call, machine, cores) for when, calls in named for call in calls]


def _row(recipe: Recipe, when: str, call: Contraction, machine: NativeMachine, cores: Sequence[str]) -> CallRow:
    shape = recipe.shape(call, 1 if when == "once" else recipe.block)
    a, b, c = (f"{recipe.buffers.name(v.buffer, cores)}[{' '.join(v.legs)}]" for v in (call.a, call.b, call.c))
    sizes = f"{shape.h} x {shape.m} x {shape.k} x {shape.n}"
    return CallRow(when, f"{c} = {a} * {b}", sizes, shape.macs, contraction_seconds(shape, machine, recipe.itemsize))


def recipe_cost(recipe: Recipe, batch: int, phase: str, machine: NativeMachine, threads: int = 1) -> Cost:
    """The cost of a recipe.

    Args:
        recipe: what runs.
        batch: rows of x.
        phase: "forward", "train", or "frozen" for a forward pass that finds what the prologue makes ready.
        machine: parameters of the cost model.
        threads: that share the work.
    """
    return min(
        (_Pricing(recipe, batch, phase, machine, threads, parts) for parts in _parts(recipe, batch, phase, threads)),
        key=lambda pricing: pricing.seconds,
    ).cost()


def _parts(recipe: Recipe, batch: int, phase: str, threads: int) -> list[int]:
    """Over how many threads the rows may be spread; 1: all threads share the calls of every tile."""
    if threads == 1:
        return [1]
    through = recipe.calls(phase)[1]
    whole = sum(recipe.shape(call, 1).macs for call in through) * batch
    most = min(threads, batch // SHARE, whole // LEAST)
    return [1, most] if most > 1 else [1]


class _Pricing:
    """One recipe at one batch, its rows spread over `parts` threads; with one part, calls are shared by all threads."""

    def __init__(
        self, recipe: Recipe, batch: int, phase: str, machine: NativeMachine, threads: int, parts: int
    ) -> None:
        self.recipe, self.batch, self.train, self.machine = recipe, batch, phase == "train", machine
        self.threads, self.parts = threads, parts
        self.itemsize = recipe.itemsize
        self.rows = -(-batch // parts)  # of a part
        self.block = min(recipe.block, self.rows)
        # Numbers of the states that are saved for a tile, and of all that a tile works on.
        self.tile_saved = recipe.saved_per_row * recipe.block if self.train else 0
        lengths, buffers = recipe.lengths, recipe.buffers
        self.states = self.tile_saved or lengths[buffers.states]
        self.states += lengths[buffers.state_grads] if self.train else 0
        rows = recipe.inputs * (2 if self.train else 1) + recipe.outputs
        self.working_set = (self.states + rows * recipe.block) * self.itemsize  # bytes
        # Numbers that a part adds up for itself.
        self.sums = sum(recipe.sums) if self.train and parts > 1 else 0
        self.bandwidth = machine.memory_bytes_per_s * min(threads, machine.streams)
        self.macs = self.moved = 0
        self.seconds = self._seconds(*recipe.calls(phase))

    def _seconds(self, before: Calls, through: Calls, after: Calls) -> float:
        """Counts what all calls do, and how long they take."""
        recipe, machine = self.recipe, self.machine
        tiles, rest = divmod(self.rows, self.block)
        seconds = machine.call_s + (2 if self.train else 1) * (self.parts > 1) * machine.team_s
        seconds += self._all(before, 1, 2 if self.train and not recipe.saved_prologue else 1)
        seconds += self._all(through, self.block, tiles, self.parts)
        seconds += self._all(through, rest, 1 if rest else 0, self.parts)
        seconds += self._all(after, 1, 1) + self._streams()
        seconds += 3 * self.sums * (self.parts - 1) * self.itemsize / self.bandwidth
        # Written by one pass, read by the other; of one tile `_missed` counts what no cache holds.
        nearby = _NEARBY if self.block >= self.rows else 1.0
        return seconds + 2 * nearby * self.saved_states / self.bandwidth

    def _all(self, calls: Calls, rows: int, times: int, parts: int = 1) -> float:
        """Seconds of calls that run so often, on every one of some parts."""
        seconds = 0.0
        for call in calls if times else ():
            shape = self.recipe.shape(call, rows)
            touched = contraction_bytes(shape, self.itemsize)
            self.macs += parts * times * shape.macs
            self.moved += parts * times * touched
            each = contraction_seconds(shape, self.machine, self.itemsize)
            each += self._missed(touched, self.working_set if rows > 1 else 0)
            sharing = min(self.threads, shape.macs // LEAST) if self.parts == 1 or parts == 1 else 1
            seconds += times * (each / sharing + self.machine.team_s if sharing > 1 else each)
        return seconds

    @property
    def saved_states(self) -> int:
        """Bytes of the states that are saved."""
        return -(-self.batch // self.recipe.block) * self.tile_saved * self.itemsize

    def cost(self) -> Cost:
        """All of it."""
        saved = self.saved_states
        return Cost(int(self.macs), int(self.moved), self._peak(saved), self._saved(saved), self.seconds)

    def _peak(self, saved_states: int) -> int:
        recipe, item, buffers = self.recipe, self.itemsize, self.recipe.buffers
        prologue = recipe.lengths[buffers.prologue] + (recipe.lengths[buffers.prologue_grads] if self.train else 0)
        # The backward pass has x and the gradients of x and y, the forward pass x and y.
        ends = self.batch * (recipe.inputs * (2 if self.train else 1) + recipe.outputs)
        own = self.states - self.tile_saved + self.sums  # of each part, but for the first one's sums
        return (ends + self.parts * own - self.sums + prologue) * item + saved_states

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
        return felt * self.batch * self.itemsize / self.bandwidth

    def _unfetched(self, ahead: int) -> float:
        """How much longer the rows of a tile take to come than where the cache holds these and the next tile's."""
        if self.block >= self.rows or ahead > FETCHED:
            return _UNFETCHED
        crowded: float = max(1.0, ahead / (_AHEAD * self.machine.cache_bytes)) ** _CROWDED
        return min(_UNFETCHED, crowded)

    def _missed(self, touched: int, working_set: int) -> float:
        """Seconds that a call loses since what a tile works on does not fit the cache."""
        size = max(working_set, touched)
        within, far = min(1.0, self.machine.cache_bytes / size), max(0.0, 1 - _FAR_CACHE / size)
        return (1 - within + 2 * far) * touched / self.machine.memory_bytes_per_s
