"""One call of the native kernel: which arrays it reads and writes, how they lie in memory, and what it costs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._base.errors import TN4NNError
from .._graph.paths import Legs
from .cost import NativeMachine
from .processor import vector_bytes
from .variants import DEPTH, FAR_K, FAR_N

Offsets = NDArray[np.int32]
MOST_NUMBERS = 2**31 - 1
"""Of an array that the kernel reads or writes: its tables of offsets hold 32-bit numbers."""
LAYOUTS = range(5)
"""Leg orders of a new state: 0, the operand's legs innermost; 1, the state's own innermost; 2, as the next
step sums them, the summed ones innermost; 3, the same with the summed ones outermost; 4, the legs that stay of those
that both had, innermost in the operand too."""


class View(NamedTuple):
    """Where an array lies.

    Attributes:
        buffer: number of the memory that holds it (see `Buffers`).
        offset: numbers before it.
        legs: its legs, the last one fastest.
        row: numbers from one row of the batch to the next; 0 where it has no rows.
    """

    buffer: int
    offset: int
    legs: Legs
    row: int = 0


class Buffers:
    """The memories that kernel calls read and write, by number: cores, the ones named here, gradients of cores."""

    def __init__(self, cores: int) -> None:
        self.x, self.y, self.prologue, self.states = range(cores, cores + 4)
        self.y_grad, self.x_grad, self.prologue_grads, self.state_grads = range(cores + 4, cores + 8)
        self.core_grads = range(cores + 8, 2 * cores + 8)
        self.count = 2 * cores + 8

    def name(self, buffer: int, cores: Sequence[str]) -> str:
        """A short name, for reports, with those of the cores; gradients begin with `d`."""
        first, last = self.x, self.core_grads[0]
        if buffer < first or buffer >= last:
            return cores[buffer] if buffer < first else f"d{cores[buffer - last]}"
        return ("x", "y", "prologue", "state", "dy", "dx", "dprologue", "dstate")[buffer - first]


class Contraction(NamedTuple):
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
        along: which group the vectors lie along: "n"; "h" where it is contiguous in all three; "k" where it is
            contiguous in runs of whole vectors in b, and best in a too.
    """

    a: View
    b: View
    c: View
    h: Legs
    m: Legs
    k: Legs
    n: Legs
    rows: str
    adds: bool = False
    along: str = "n"


def contraction_of(a: View, b: View, c: View, adds: bool = False) -> Contraction:
    """The contraction of a and b to c, with a in the first role."""
    in_a, in_b, in_c = set(a.legs), set(b.legs), set(c.legs)
    both, rows = in_a & in_b, "m" if a.row and c.row else "n" if b.row and c.row else "k" if a.row and b.row else ""
    return Contraction(
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


def offsets(group: Legs, view: View, sizes: Mapping[str, int], rows: int = 1) -> Offsets:
    """Offset in an array of every value of a group; with rows, those are slowest."""
    strides = {}
    stride = 1
    for leg in reversed(view.legs):
        strides[leg] = stride
        stride *= sizes[leg]
    reach = (rows - 1) * view.row + sum((sizes[leg] - 1) * strides[leg] for leg in group)
    if reach > MOST_NUMBERS:
        raise TN4NNError(
            f"the native runtime reaches {MOST_NUMBERS:,} numbers into an array, received legs {' '.join(group)} that "
            f"reach {reach:,}: pass executor='program'"
        )
    found = np.arange(rows, dtype=np.int32) * np.int32(view.row)
    for leg in group:
        found = (found[:, None] + np.arange(sizes[leg], dtype=np.int32) * np.int32(strides[leg])).reshape(-1)
    return found


class Shape(NamedTuple):
    """The sizes of a call at some rows, and how its arrays lie."""

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


def shape_of(call: Contraction, sizes: Mapping[str, int], rows: int) -> Shape:
    """The shape of a call for that many rows."""
    a, b, c = call.a, call.b, call.c
    h, m, k, n = (math.prod(sizes[leg] for leg in group) for group in (call.h, call.m, call.k, call.n))
    count = {"m": (rows, 1, 1), "k": (1, rows, 1), "n": (1, 1, rows), "": (1, 1, 1)}[call.rows]
    return Shape(
        h,
        m * count[0],
        k * count[1],
        n * count[2],
        run_length(call.n, b.legs, sizes),
        run_length(call.n, c.legs, sizes),
        run_length(call.k, b.legs, sizes),
        run_length(call.k, a.legs, sizes),
        run_length(call.m, a.legs, sizes),
        run_length(call.m, c.legs, sizes),
        min(_step(call.k, b, sizes), _step(call.n, b, sizes)),
        _step(call.n, c, sizes),
        call.along,
    )


def _step(group: Legs, view: View, sizes: Mapping[str, int]) -> int:
    """Numbers from one value of a group to the next; those of a row where it has no legs."""
    if not group:
        return view.row
    return math.prod(sizes[leg] for leg in view.legs[view.legs.index(group[-1]) + 1 :])


def contraction_seconds(shape: Shape, machine: NativeMachine, itemsize: int = 4) -> float:
    """Predicted seconds of a call of the native kernel, its arrays in the second-level cache."""
    width = machine.vector_bytes // itemsize
    if shape.along != "n":
        return _across_seconds(shape, machine, width) + machine.task_s
    seconds = _tiles_s(shape, machine, width) + _b_s(shape, machine, width, itemsize)
    seconds += _a_s(shape, machine, width) + _c_s(shape, machine, width, itemsize)
    return shape.h * (seconds + 3 * machine.tile_s) + machine.task_s


def _panels(n: int, width: int) -> int:
    """Panels of three vectors that hold n columns."""
    return -(-n // (3 * width))


def _tiles_s(shape: Shape, machine: NativeMachine, width: int) -> float:
    """Multiplying, in tiles of 8 rows and 3 vectors."""
    m, k, vectors = shape.m, shape.k, -(-shape.n // width)
    panels = _panels(shape.n, width)
    seconds = m * vectors * k * width / machine.tile_macs_per_s + -(-m // 8) * panels * machine.tile_s
    idle = _IN_FLIGHT - m * min(vectors, 3)  # products that could have begun
    return seconds + (panels * k * idle * width / machine.tile_macs_per_s if idle > 0 else 0.0)


def _b_s(shape: Shape, machine: NativeMachine, width: int, itemsize: int) -> float:
    """Packing b, where its vectors are not read as they lie."""
    m, k, n = shape.m, shape.k, shape.n
    whole = shape.b_run % width == 0
    if whole and (m < 64 or k * n * itemsize <= 1 << 15):
        return 0.0
    each = 1.0 if whole else machine.columns if shape.k_run % width == 0 and n >= width else width
    if not whole and shape.b_step * itemsize >= _LINE:
        each *= 1.6
    return -(-n // width) * k * each * machine.vector_s


def _a_s(shape: Shape, machine: NativeMachine, width: int) -> float:
    """Reading a number by number from far apart, or copying it."""
    m, k, n = shape.m, shape.k, shape.n
    seconds = 0.0
    if shape.a_run == shape.m_run == 1 < m * k:
        seconds += m * k * _panels(n, width) * machine.far_s
    if n > 12 * width and k >= 16:
        seconds += m * k * machine.vector_s * (2 / width if shape.a_run == k else 1 / 4 if shape.m_run % 8 == 0 else 1)
    return seconds


def _c_s(shape: Shape, machine: NativeMachine, width: int, itemsize: int) -> float:
    """Writing c, in vectors or number by number."""
    stores = -(-shape.k // DEPTH) if shape.n > 12 * width else 1
    number_s = machine.vector_s / width  # for writing a number
    if shape.c_run % width:
        beside = next((lines for lines in (8, 4) if shape.cm_run % lines == 0), 1)
        number_s = machine.scatter * machine.vector_s * (0.6 if shape.c_run % 4 == 0 or beside > 1 else 1)
        if shape.c_step and shape.c_step * itemsize % _PAGE == 0 and shape.n > width:  # all in one set of a cache
            number_s = max(number_s, 2 * machine.far_s / beside)
    return shape.m * -(-shape.n // width) * width * number_s * stores


_IN_FLIGHT = 4  # products that a processor begins before the first is done
_EVICTED = 9e-8  # seconds for a line of c that left the cache before the next tile came to it: few sets hold them all
_LINE, _PAGE = 64, 4096  # bytes of a cache line, and between lines that share a set of the first-level cache


def _across_seconds(shape: Shape, machine: NativeMachine, width: int) -> float:
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
    if dots and apart % _PAGE == 0 and min(n, FAR_N) * apart > machine.cache_bytes:
        seconds += tiles * -(-deep // FAR_K) * 4 * _EVICTED
    return times * seconds


def contraction_bytes(shape: Shape, itemsize: int) -> int:
    """Bytes of the three arrays of a call."""
    h, m, k, n = shape[:4]
    return h * (m * k + k * n + m * n) * itemsize


@functools.lru_cache(maxsize=1 << 14)
def cached_shape(call: Contraction, sizes: frozenset[tuple[str, int]], rows: int) -> Shape:
    """`shape_of`, remembered: many recipes share a call."""
    return shape_of(call, dict(sizes), rows)


@functools.lru_cache(maxsize=1 << 14)
def best_contraction(
    a: View, b: View, c: View, adds: bool, sizes: frozenset[tuple[str, int]], rows: int, item: int
) -> Contraction:
    """The contraction of a and b to c in the roles and along the group that are fastest by the cost model."""
    known, machine = dict(sizes), NativeMachine(vector_bytes=vector_bytes())
    width, options = machine.vector_bytes // item, list[Contraction]()
    for first, second in ((a, b), (b, a)):
        call = contraction_of(first, second, c, adds)
        ks = dict.fromkeys((call.k, tuple(leg for leg in second.legs if leg in call.k)))
        ns = dict.fromkeys((call.n, tuple(leg for leg in second.legs if leg in call.n)))
        options += [call._replace(k=k, n=n) for k in ks for n in ns]
        for k in ks:
            if run_length(k, second.legs, known) % width == 0:
                options.append(call._replace(k=k, along="k"))
        last = len(call.h)
        if last and len({p.legs[-last:] for p in (a, b, c)}) == 1 and call.rows != "n":
            options.append(call._replace(h=c.legs[-last:], along="h"))
    return min(options, key=lambda t: contraction_seconds(shape_of(t, known, rows), machine, item))
