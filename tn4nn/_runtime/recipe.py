"""A plan as tasks: every contraction, forward and backward, with the offsets of its legs in memory.

The path says which two arrays are contracted when. Here each such step becomes one task of the native runtime,
c[h, m, n] = sum_k a[h, m, k] * b[h, k, n], where h, m, k, n are groups of legs: no array is ever permuted, the order
of an array's legs shows only in the offsets. What has no batch (the **prologue**: cores among themselves) runs once;
what holds x runs block of rows by block of rows, and the backward pass runs it forward once more instead of keeping it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._base.errors import TN4NNError
from .._graph.network import Network
from .._graph.paths import BATCH, Legs, Path, legs_along
from .._graph.problem import is_path, tensors_of
from .compiled import vector_bytes
from .cost import Machine

Offsets = NDArray[np.int32]


LAYOUTS = range(5)
"""Leg orders of a new state: 0, the operand's legs innermost; 1, those that the state keeps innermost; 2, as the next
pass sums them, the summed ones innermost; 3, the same with the summed ones outermost; 4, the legs that stay of
those that both had, innermost in the operand too."""


_HELD = 10**6  # bytes of what the prologue makes that are kept beside x


class Place(NamedTuple):
    """Where an array lies.

    Attributes:
        base: number of the memory that holds it (see `Bases`).
        offset: numbers before it.
        legs: its legs, the last one fastest.
        row: numbers from one row of the batch to the next; 0 where it has no rows.
    """

    base: int
    offset: int
    legs: Legs
    row: int = 0


class Bases:
    """The memories that tasks read and write, by number: cores, then the ones named here, then gradients of cores."""

    def __init__(self, cores: int) -> None:
        self.x, self.y, self.made, self.states = range(cores, cores + 4)
        self.gy, self.gx, self.made_slopes, self.state_slopes = range(cores + 4, cores + 8)
        self.slopes = range(cores + 8, 2 * cores + 8)
        self.count = 2 * cores + 8

    def name(self, base: int) -> str:
        """A short name, for reports; `d` stands before gradients."""
        first, last = self.x, self.slopes[0]
        if base < first or base >= last:
            return f"core{base}" if base < first else f"dcore{base - last}"
        return ("x", "y", "made", "state", "dy", "dx", "dmade", "dstate")[base - first]


class Task(NamedTuple):
    """c[h, m, n] = sum_k a[h, m, k] * b[h, k, n].

    Attributes:
        a: read number by number.
        b: read in vectors along n.
        c: written in vectors along n.
        h: legs of all three; likewise
        m: of a and c,
        k: of a and b, summed, and
        n: of b and c.
        rows: which group counts the rows of the batch, as its slowest leg: "m", "k", "n", or "".
        adds: later blocks of rows add to c instead of writing it.
        along: which group the vectors lie along: "n"; "h" where it lies in one piece in all three; "k" where it lies in
            pieces of whole vectors in b, and best in a too.
    """

    a: Place
    b: Place
    c: Place
    h: Legs
    m: Legs
    k: Legs
    n: Legs
    rows: str
    adds: bool = False
    along: str = "n"


def contracted(a: Place, b: Place, c: Place, adds: bool = False) -> Task:
    """The task that contracts a and b to c, with a in the first role."""

    in_a, in_b, in_c = set(a.legs), set(b.legs), set(c.legs)
    both, rows = in_a & in_b, "m" if a.row and c.row else "n" if b.row and c.row else "k" if a.row and b.row else ""
    return Task(
        a,
        b,
        c,
        tuple(leg for leg in c.legs if leg in both),
        tuple(leg for leg in c.legs if leg in in_a and leg not in in_b),
        tuple(leg for leg in a.legs if leg in both and leg not in in_c),
        tuple(leg for leg in c.legs if leg in in_b and leg not in in_a),
        rows,
        adds,
    )


def run_length(group: Legs, layout: Legs, sizes: Mapping[str, int]) -> int:
    """How many values of a group, the last leg fastest, lie side by side in an array."""
    length = 1
    for leg, there in zip(reversed(group), reversed(layout), strict=False):
        if leg != there:
            break
        length *= sizes[leg]
    return length


def offsets(group: Legs, place: Place, sizes: Mapping[str, int], rows: int = 1) -> Offsets:
    """Offset in an array of every value of a group; with rows, those are slowest."""
    strides = {}
    stride = 1
    for leg in reversed(place.legs):
        strides[leg] = stride
        stride *= sizes[leg]
    found = np.arange(rows, dtype=np.int32) * np.int32(place.row)
    for leg in group:
        found = (found[:, None] + np.arange(sizes[leg], dtype=np.int32) * np.int32(strides[leg])).reshape(-1)
    return found


# -- what a task costs ------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """The sizes of a task at some rows, and how its arrays lie."""

    h: int
    m: int
    k: int
    n: int
    b_run: int
    c_run: int
    k_run: int
    a_run: int
    m_run: int
    cm_run: int  # of m in c
    b_step: int  # numbers from one to the next along k or n in b, whichever is less
    c_step: int  # the same along n in c
    along: str

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return self.h * self.m * self.k * self.n


def shape_of(task: Task, sizes: Mapping[str, int], rows: int) -> Shape:
    """The shape of a task for that many rows."""
    a, b, c = task.a, task.b, task.c
    h, m, k, n = (math.prod(sizes[leg] for leg in group) for group in (task.h, task.m, task.k, task.n))
    count = {"m": (rows, 1, 1), "k": (1, rows, 1), "n": (1, 1, rows), "": (1, 1, 1)}[task.rows]
    return Shape(
        h,
        m * count[0],
        k * count[1],
        n * count[2],
        run_length(task.n, b.legs, sizes),
        run_length(task.n, c.legs, sizes),
        run_length(task.k, b.legs, sizes),
        run_length(task.k, a.legs, sizes),
        run_length(task.m, a.legs, sizes),
        run_length(task.m, c.legs, sizes),
        min(_step(task.k, b, sizes), _step(task.n, b, sizes)),
        _step(task.n, c, sizes),
        task.along,
    )


def _step(group: Legs, place: Place, sizes: Mapping[str, int]) -> int:
    """Numbers from one value of a group to the next; those of a row where it has no legs."""
    if not group:
        return place.row
    return math.prod(sizes[leg] for leg in place.legs[place.legs.index(group[-1]) + 1 :])


def task_seconds(shape: Shape, machine: Machine, itemsize: int = 4) -> float:
    """Predicted seconds of a task in the native runtime, its arrays in the second-level cache."""
    h, m, k, n, b_run, c_run, k_run, a_run, m_run, cm_run, b_step, c_step, along = shape
    width = machine.vector_bytes // itemsize
    if along != "n":
        return _across_seconds(shape, machine, width) + machine.task_s
    vectors = -(-n // width)
    b_vectors, c_vectors = b_run % width == 0, c_run % width == 0
    panels = -(-vectors // 3)
    seconds = m * vectors * k * width / machine.tile_macs_per_s + -(-m // 8) * panels * machine.tile_s
    if m * min(vectors, 3) < _IN_FLIGHT:
        seconds += panels * k * (_IN_FLIGHT - m * min(vectors, 3)) * width / machine.tile_macs_per_s
    if not (b_vectors and (m < 64 or k * n * itemsize <= 1 << 15)):
        each = 1.0 if b_vectors else machine.columns if k_run % width == 0 and n >= width else width
        if not b_vectors and b_step * itemsize >= _LINE:
            each *= 1.6
        seconds += vectors * k * each * machine.vector_s
    if a_run == m_run == 1 < m * k:
        seconds += m * k * panels * machine.far_s
    if n > 12 * width and k >= 16:
        seconds += m * k * machine.vector_s * (2 / width if a_run == k else 1 / 4 if m_run % 8 == 0 else 1)
    stores = -(-k // _DEPTH) if n > 12 * width else 1
    number_s = machine.vector_s / width  # for writing a number
    if not c_vectors:
        beside = next((lines for lines in (8, 4) if cm_run % lines == 0), 1)
        number_s = machine.scatter * machine.vector_s * (0.6 if c_run % 4 == 0 or beside > 1 else 1)
        if c_step and c_step * itemsize % _PAGE == 0 and n > width:  # all in one set of a cache
            number_s = max(number_s, 2 * machine.far_s / beside)
    seconds += m * vectors * width * number_s * stores
    return h * (seconds + 3 * machine.tile_s) + machine.task_s


_IN_FLIGHT = 4  # products that a processor begins before the first is done
_DEPTH = 512  # of k at a time, where a or b is copied: as in `contract.c`, like the next two
_FAR_K, _FAR_N = 64, 256  # vectors along k, columns of c, that are taken at a time
_EVICTED = 9e-8  # seconds for a line of c that left the cache before the next tile came to it: few sets hold them all
_LINE, _PAGE = 64, 4096  # bytes of a cache line, and between lines that share a set of the first-level cache


def _across_seconds(shape: Shape, machine: Machine, width: int) -> float:
    """The same for vectors along h or k, in tiles of 4 x 4 of them: what they compute, read and write."""
    m, n, dots = shape.m, shape.n, shape.along == "k"
    times, deep = (shape.h, shape.k // width) if dots else (-(-shape.h // width), shape.k)
    tiles = -(-m // 4) * -(-n // 4)
    bare = max(0.0, m * -(-n // 4) + n * -(-m // 4) - m * n / 2)  # loads that no multiplication hides
    seconds = m * n * deep * width * machine.across / machine.tile_macs_per_s
    seconds += deep * (m + n + 1.2 * bare) * machine.vector_s
    if dots and shape.a_run % width:
        seconds += m * shape.k * machine.vector_s
    seconds += tiles * machine.tile_s * (6 if dots else 1) + (0 if dots else 4 * m * n * machine.vector_s)
    apart = shape.c_step * machine.vector_bytes // width  # bytes between the columns of c
    if dots and apart % _PAGE == 0 and min(n, _FAR_N) * apart > machine.cache_bytes:
        seconds += tiles * -(-deep // _FAR_K) * 4 * _EVICTED
    return times * seconds


def task_bytes(shape: Shape, itemsize: int) -> int:
    """Bytes of the three arrays of a task."""
    h, m, k, n = shape[:4]
    return h * (m * k + k * n + m * n) * itemsize


@functools.lru_cache(maxsize=1 << 14)
def _shape(task: Task, sizes: frozenset[tuple[str, int]], rows: int) -> Shape:
    return shape_of(task, dict(sizes), rows)


@functools.lru_cache(maxsize=1 << 14)
def _best(a: Place, b: Place, c: Place, adds: bool, sizes: frozenset[tuple[str, int]], rows: int, item: int) -> Task:
    known, machine = dict(sizes), Machine(vector_bytes=vector_bytes())
    width, options = machine.vector_bytes // item, list[Task]()
    for first, second in ((a, b), (b, a)):
        task = contracted(first, second, c, adds)
        ks = dict.fromkeys((task.k, tuple(leg for leg in second.legs if leg in task.k)))
        ns = dict.fromkeys((task.n, tuple(leg for leg in second.legs if leg in task.n)))
        options += [task._replace(k=k, n=n) for k in ks for n in ns]
        for k in ks:
            if run_length(k, second.legs, known) % width == 0:
                options.append(task._replace(k=k, along="k"))
        last = len(task.h)
        if last and len({p.legs[-last:] for p in (a, b, c)}) == 1 and task.rows != "n":
            options.append(task._replace(h=c.legs[-last:], along="h"))
    return min(options, key=lambda t: task_seconds(shape_of(t, known, rows), machine, item))


# -- from a path to tasks ---------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One contraction of a path: the two arrays that it reads, what it makes, and the gradients of all three."""

    reads: tuple[Place, Place]
    makes: Place
    read_slopes: tuple[Place, Place]
    made_slope: Place
    cores: tuple[frozenset[int], frozenset[int]]  # below each of the two


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All tasks of a path.

    Attributes:
        network: what it applies.
        path: the contraction path over (cores..., x).
        block: rows that pass through at a time.
        itemsize: bytes of one number.
        sizes: of every leg.
        bases: the numbers of the memories.
        prologue: steps among cores.
        passes: steps of x, in order, for a pass that keeps its states.
        stream: the same for a pass that does not.
        lengths: numbers in each memory that is not the caller's, by base.
        layouts: as they were asked for.
        kept: numbers of the states of a row that a training step keeps; 0 where it makes them again.
        keep: a training step keeps all that it can read later on.
    """

    network: Network
    path: Path
    block: int
    itemsize: int
    sizes: Mapping[str, int]
    bases: Bases
    prologue: tuple[Step, ...]
    passes: tuple[Step, ...]
    stream: tuple[Step, ...]
    lengths: Mapping[int, int]
    layouts: tuple[int, ...]
    kept: int
    keep: bool

    @property
    def inputs(self) -> int:
        """Numbers of a row of x."""
        return max(place.row for place in self.passes[0].reads)

    @property
    def outputs(self) -> int:
        """Numbers of a row of y."""
        return self.passes[-1].makes.row

    @property
    def held(self) -> int:
        """Numbers of what the prologue makes that a training step keeps; 0 where there are so many that the backward
        pass makes them again."""
        made = self.lengths[self.bases.made]
        return made if self.keep or made * self.itemsize <= _HELD else 0

    def forth(self, train: bool) -> tuple[Task, ...]:
        """The tasks of a block of rows forward."""
        return self.ahead(self.passes if train and self.kept else self.stream)

    def again(self) -> tuple[Task, ...]:
        """What the backward pass makes once more before it begins."""
        return () if self.kept else self.ahead(self.passes[:-1])

    def _task(self, a: Place, b: Place, c: Place, adds: bool = False) -> Task:
        rows = self.block if a.row or b.row else 1
        return _best(a, b, c, adds, self._sized, rows, self.itemsize)

    @functools.cached_property
    def _sized(self) -> frozenset[tuple[str, int]]:
        return frozenset(self.sizes.items())

    def shape(self, task: Task, rows: int) -> Shape:
        """The shape of one of its tasks; many recipes share a task."""
        return _shape(task, self._sized, rows)

    def ahead(self, steps: Iterable[Step]) -> tuple[Task, ...]:
        """The forward tasks of some steps."""
        return tuple(self._task(*step.reads, step.makes) for step in steps)

    def back(self, steps: Sequence[Step], x: bool, cores: frozenset[int]) -> tuple[Task, ...]:
        """The backward tasks of some steps, for gradients of x (if wanted) and of some cores."""
        return tuple(self._back(steps, x, cores))

    def _back(self, steps: Sequence[Step], x: bool, cores: frozenset[int]) -> Iterator[Task]:
        for step in reversed(steps):
            (a, b), g = step.reads, step.made_slope
            for this, other, slope, below in ((a, b, step.read_slopes[0], 0), (b, a, step.read_slopes[1], 1)):
                held = step.cores[below]
                if held & cores or (x and this.row):
                    yield self._task(g, other, slope, adds=bool(g.row) and not slope.row)


def recipe(
    network: Network, path: Path, block: int, *, itemsize: int = 4, layouts: Sequence[int] = (), keep: bool = False
) -> Recipe:
    """The tasks of a path.

    Args:
        network: what is applied.
        path: over (cores..., x), as in a `Plan` of form "apply".
        block: rows at a time.
        itemsize: bytes of one number.
        layouts: for each pass but the last, how the new state lies, one of `LAYOUTS`; left out, 0.
        keep: a training step keeps the states of all rows.

    Raises:
        TN4NNError: the path is of another network.
    """
    tensors, _, output = tensors_of(network, "apply")
    cores = len(tensors) - 1
    if not is_path(path, len(tensors)):
        raise TN4NNError(
            f"this path has {len(path)} steps and is none over the {cores} cores of {network.topology.name!r} and x: "
            "was it planned for another network?"
        )
    sizes = {leg: size for leg, size in {**network.sizes, BATCH: 1}.items() if size != 1 and leg != BATCH}
    kept = [tuple(leg for leg in legs if leg in sizes) for legs in tensors]
    final = tuple(leg for leg in output if leg in sizes)
    return _Builder(network, path, block, itemsize, sizes, kept, final, cores, tuple(layouts), keep).built()


Chain = Sequence[tuple[int, tuple[int, int]]]  # (node, (state, operand)) of each pass


class _Builder:
    def __init__(
        self,
        network: Network,
        path: Path,
        block: int,
        itemsize: int,
        sizes: Mapping[str, int],
        tensors: Sequence[Legs],
        final: Legs,
        cores: int,
        layouts: tuple[int, ...],
        keep: bool,
    ) -> None:
        self.network, self.path, self.block, self.itemsize = network, path, block, itemsize
        self.sizes, self.final, self.layouts, self.keep = sizes, final, layouts, keep
        self.bases = Bases(cores)
        self.legs = legs_along(tensors, final, path)
        self.places = {i: Place(i, 0, tensors[i]) for i in range(cores)}
        self.slopes = {i: Place(self.bases.slopes[i], 0, tensors[i]) for i in range(cores)}
        x = cores
        self.places[x] = Place(self.bases.x, 0, tensors[x], self._numbers(tensors[x]))
        self.slopes[x] = self.places[x]._replace(base=self.bases.gx)
        self.below = {i: frozenset([i]) if i < cores else frozenset[int]() for i in range(cores + 1)}
        self.lengths = dict.fromkeys(
            (self.bases.made, self.bases.states, self.bases.made_slopes, self.bases.state_slopes), 0
        )

    def _numbers(self, legs: Iterable[str]) -> int:
        return math.prod(self.sizes[leg] for leg in legs)

    def _made(self, base: int, legs: Legs, rows: int = 0) -> Place:
        """A new place at the end of a memory."""
        row = self._numbers(legs)
        offset = self.lengths[base]
        self.lengths[base] += -(-row * max(rows, 1) // 16) * 16
        return Place(base, offset, legs, row if rows else 0)

    def built(self) -> Recipe:
        x = len(self.bases.slopes)
        spine = {x}
        prologue, chain = [], []
        for node, pair in enumerate(self.path, x + 1):
            self.below[node] = self.below[pair[0]] | self.below[pair[1]]
            if spine & set(pair):
                spine.add(node)
                chain.append((node, pair if pair[0] in spine else pair[::-1]))
        # The order of an operand's legs is set by the pass that takes it in.
        layouts = self._spine_layouts(chain)
        for node, pair in enumerate(self.path, x + 1):
            if node not in spine:
                legs = layouts.get(node) or self._natural(node, pair)
                self.places[node] = self._made(self.bases.made, legs)
                self.slopes[node] = self._made(self.bases.made_slopes, legs)
                prologue.append(self._step(node, pair))
        passes = self._passes(chain, layouts, all_states=True)
        stream = self._passes(chain, layouts, all_states=False)
        kept = sum(self._numbers(layouts[node]) for node, _ in chain[:-1]) if self.keep else 0
        return Recipe(
            self.network, self.path, self.block, self.itemsize, self.sizes, self.bases, tuple(prologue), passes, stream,
            self.lengths, self.layouts, kept, self.keep,
        )  # fmt: skip

    def _natural(self, node: int, pair: tuple[int, int]) -> Legs:
        a, b = (self.places[i].legs for i in pair)
        made = self.legs[node]
        return tuple(dict.fromkeys(leg for leg in (*(leg for leg in a if leg in b), *a, *b) if leg in made))

    def _spine_layouts(self, chain: Chain) -> dict[int, Legs]:
        found: dict[int, Legs] = {}
        state = self.places[len(self.bases.slopes)].legs
        order = list(self.sizes)
        for position, (node, (_, operand)) in enumerate(chain):
            held, made = self.legs[operand], self.legs[node]
            h = tuple(leg for leg in state if leg in held and leg in made)
            k = tuple(leg for leg in state if leg in held and leg not in made)
            m = tuple(leg for leg in state if leg not in held)
            n = tuple(sorted(held - set(state), key=order.index))
            state = self.final if position == len(chain) - 1 else self._layout(position, (h, m, n), chain)
            found[operand] = (*k, *n, *h) if self._code(position) == 4 else (*h, *k, *n)
            found[node] = state
        return found

    def _code(self, position: int) -> int:
        return self.layouts[position] if position < len(self.layouts) else 0

    def _layout(self, position: int, groups: tuple[Legs, Legs, Legs], chain: Chain) -> Legs:
        """The leg order of a new state; see LAYOUTS."""
        h, m, n = groups
        code = self._code(position)
        if code < 2:
            return (*h, *m, *n) if code == 0 else (*h, *n, *m)
        if code == 4:
            return (*m, *n, *h)
        node, (_, operand) = chain[position + 1]
        held, made = self.legs[operand], self.legs[node]
        state = (*h, *m, *n)
        both = tuple(leg for leg in state if leg in held and leg in made)
        stays = tuple(leg for leg in state if leg not in held)
        summed = tuple(leg for leg in state if leg in held and leg not in made)
        return (*both, *stays, *summed) if code == 2 else (*both, *summed, *stays)

    def _passes(self, chain: Chain, layouts: dict[int, Legs], *, all_states: bool) -> tuple[Step, ...]:
        numbers = [self._numbers(layouts[node]) for node, _ in chain[:-1]]
        starts = self._starts(self.bases.states, numbers, all_states=all_states)
        slope_starts = self._starts(self.bases.state_slopes, numbers, all_states=False)
        steps = []
        for position, (node, pair) in enumerate(chain):
            legs = layouts[node]
            if position == len(chain) - 1:
                row = self._numbers(legs)
                place, slope = Place(self.bases.y, 0, legs, row), Place(self.bases.gy, 0, legs, row)
            else:
                place = Place(self.bases.states, starts[position], legs, numbers[position])
                slope = Place(self.bases.state_slopes, slope_starts[position], legs, numbers[position])
            self.places[node], self.slopes[node] = place, slope
            steps.append(self._step(node, pair))
        return tuple(steps)

    def _starts(self, base: int, numbers: Sequence[int], *, all_states: bool) -> list[int]:
        """Where each state lies: behind the earlier ones, or where the one before the last has lain."""
        spaces = [-(-n * self.block // 16) * 16 for n in numbers]
        if all_states and self.keep:  # in the caller's memory, one block behind the other
            spaces = [n * self.block for n in numbers]
            length = 0
        else:
            length = sum(spaces) if all_states else max(spaces, default=0) * min(2, len(spaces))
        self.lengths[base] = max(self.lengths[base], length)
        if all_states:
            return list(itertools.accumulate(spaces, initial=0))[:-1]
        return [position % 2 * max(spaces) for position in range(len(spaces))]

    def _step(self, node: int, pair: tuple[int, int]) -> Step:
        a, b = pair
        return Step(
            (self.places[a], self.places[b]),
            self.places[node],
            (self.slopes[a], self.slopes[b]),
            self.slopes[node],
            (self.below[a], self.below[b]),
        )
