"""The native runtime: tasks of `_tasks` run by `_contract.c`, called through ctypes with addresses.

Nothing here knows torch: arrays are given by address, float32 or float64, contiguous. One call runs all tasks of a
pass, block of rows by block of rows.
"""

from __future__ import annotations

import array
import concurrent.futures
import ctypes
import dataclasses
import functools
import importlib.resources
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._compiled import library, vector_bytes
from ._tasks import Offsets, Place, Recipe, Task, contracted, offsets, shape_of

_LETTERS = {4: ("float", "int"), 8: ("double", "long")}
_B_VECTORS, _C_VECTORS, _ADDS, _B_COLUMNS, _A_LINES, _ACROSS = 1, 2, 4, 8, 16, 32
_TABLES = ("ah", "am", "ak", "bh", "bk", "bn", "ch", "cm", "cn")
_EXTRA: tuple[str, ...] = ()  # flags of the compiler, for tests of other vectors than this processor's
_ROWS = {"": 0, "m": 1, "k": 2, "n": 3}


class _CTask(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_long) for name in ("h", "m", "n", "k", "rows", "flags")]
        + [("at", ctypes.c_long * 6)]
        + [(name, ctypes.c_void_p) for name in _TABLES]
    )


_TASK_BYTES = ctypes.sizeof(_CTask)


@functools.cache
def runtime(itemsize: int) -> ctypes.CDLL | None:
    """The compiled runtime for numbers of this size; None where there is no compiler."""
    if itemsize not in _LETTERS:
        return None
    text = (importlib.resources.files("tn4nn") / "_contract.c").read_text()
    real, whole = _LETTERS[itemsize]
    return library(text, functools.partial(_agrees, itemsize), (f"-DREAL={real}", f"-DWHOLE={whole}", *_EXTRA))


class Tasks:
    """Tasks, ready to run: their tables, and the C structures that point to them.

    Attributes:
        counts: how many run once before, for each block of rows, and once after.
        address: of the C structures.
    """

    def __init__(
        self, tasks: Sequence[Task], counts: tuple[int, int, int], sizes: Mapping[str, int], rows: int, itemsize: int
    ) -> None:
        self._tables: dict[Any, Offsets] = {}
        self.counts = counts
        self._array = (_CTask * max(1, len(tasks)))(*(self._made(task, sizes, rows, itemsize) for task in tasks))
        self.address = ctypes.addressof(self._array)

    def _made(self, task: Task, sizes: Mapping[str, int], rows: int, itemsize: int) -> _CTask:
        width = vector_bytes() // itemsize
        one, real = shape_of(task, sizes, 1), _CTask()
        real.h, real.m, real.n, real.k = one.h, one.m, one.n, one.k
        real.rows = _ROWS[task.rows]
        flags = (
            (_B_VECTORS, one.b_run % width == 0),
            (_C_VECTORS, one.c_run % width == 0),
            (_ADDS, task.adds),
            (_B_COLUMNS, one.k_run % width == 0),
            (_A_LINES, one.a_run == one.k and task.rows != "k"),
            (_ACROSS, task.across),
        )
        real.flags = sum(flag for flag, there in flags if there)
        real.at = (ctypes.c_long * 6)(*(n for p in (task.a, task.b, task.c) for n in (p.base, p.offset)))
        for name, groups in (("a", "hmk"), ("b", "hkn"), ("c", "hmn")):
            place: Place = getattr(task, name)
            for group in groups:
                legs = getattr(task, group)
                key = (legs, place.legs, place.row, rows if task.rows == group else 1)
                if key not in self._tables:
                    self._tables[key] = offsets(legs, place, sizes, key[-1])
                setattr(real, name + group, self._tables[key].ctypes.data)
        return real


class _Memory(threading.local):
    """Memory for each thread and use that the next call overwrites: fresh memory costs more than a small batch does."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[int, int, NDArray[np.uint8]]] = {}

    def address(self, use: int, length: int) -> int:
        """Address of at least `length` bytes, on a cache line."""
        found = self.held.get(use)
        if found is None or found[0] < length:
            raw = np.empty(length + 64, dtype=np.uint8)
            place = int(raw.ctypes.data)
            found = self.held[use] = length, place + -place % 64, raw
        return found[1]


_memory = _Memory()
_PACKING, _STATES, _SUMS, _STATE_SLOPES, _MADE = range(5)


class Native:
    """A recipe with its runtime.

    Attributes:
        recipe: what is run.
        kept: numbers that the prologue makes and the passes read.
        outputs: numbers of one row of y.
    """

    def __init__(self, recipe: Recipe, library: ctypes.CDLL) -> None:
        self.recipe = recipe
        self._call, self._packing = library.run, int(library.scratch_size()) * recipe.itemsize
        before = recipe.ahead(recipe.prologue)
        self._ahead = self._tasks(before, recipe.ahead(recipe.stream))
        self._back: dict[tuple[bool, ...], Tasks] = {}
        bases, first, last = recipe.bases, recipe.passes[0], recipe.passes[-1]
        rows_in = max(place.row for place in first.reads)
        rows = {bases.x: rows_in, bases.gx: rows_in, bases.y: last.makes.row, bases.gy: last.makes.row}
        self._steps = (ctypes.c_long * bases.count)(*(rows.get(i, 0) for i in range(bases.count)))
        self._steps_at = ctypes.addressof(self._steps)
        self._moved = rows_in * recipe.itemsize, last.makes.row * recipe.itemsize  # bytes of a row of x and of y
        lengths = recipe.lengths
        self.kept, self.outputs = lengths[bases.made], last.makes.row
        self._states, self._state_slopes, self._made_slopes, self._made = (
            lengths[base] * recipe.itemsize
            for base in (bases.states, bases.state_slopes, bases.made_slopes, bases.made)
        )

    def __reduce__(self) -> tuple[Any, ...]:  # a copy is the same runtime; another process finds its own
        return native, (self.recipe,)

    def forward(self, rows: int, cores: Sequence[int], made: int, x: int, y: int, threads: int = 1) -> None:
        """y = x W^T, all by address; fills `made` with `kept` numbers, for the backward pass."""
        tasks = self._ahead
        if threads == 1 or rows < 2 * _SHARE:
            return self._run(tasks, tasks.counts, rows, [*cores, x, y, made, _memory.address(_STATES, self._states)])
        self._run(tasks, (tasks.counts[0], 0, 0), 1, [*cores, x, y, made, 0])
        x_row, y_row = self._moved

        def part(low: int, high: int) -> None:
            given = [*cores, x + low * x_row, y + low * y_row, made, _memory.address(_STATES, self._states)]
            self._run(tasks, (0, tasks.counts[1], 0), high - low, given, tasks.counts[0])

        _spread(part, rows, threads)
        return None

    def spare(self) -> int:
        """Address for what `forward` makes where no backward pass follows."""
        return _memory.address(_MADE, self._made)

    def backward(
        self, rows: int, cores: Sequence[int], made: int, x: int, gy: int, gx: int, slopes: Sequence[int],
        wanted: tuple[bool, ...], threads: int = 1,
    ) -> None:  # fmt: skip
        """The gradients of x and of the cores that are `wanted`; the addresses of the others are 0.

        `made` is as `forward` has filled it.
        """
        tasks = self._back.get(wanted) or self._tasks_back(wanted)
        sums = _memory.address(_SUMS, self._made_slopes)
        if threads == 1 or rows < 2 * _SHARE:
            given = [*cores, x, 0, made, _memory.address(_STATES, self._states), gy, gx, sums]
            return self._run(
                tasks, tasks.counts, rows, [*given, _memory.address(_STATE_SLOPES, self._state_slopes), *slopes]
            )
        x_row, y_row = self._moved
        ctypes.memset(sums, 0, self._made_slopes)  # what no pass writes is added up all the same

        def part(low: int, high: int) -> list[tuple[int, NDArray[Any]]]:
            own = [(address, self._zeros(base)) for base, address in self._sums(sums, slopes)] if low else []
            mine = {address: array.ctypes.data for address, array in own}
            states = _memory.address(_STATES, self._states)
            given = [*cores, x + low * x_row, 0, made, states, gy + low * y_row, gx and gx + low * x_row]
            given += [mine.get(sums, sums), _memory.address(_STATE_SLOPES, self._state_slopes)]
            given += [mine.get(address, address) for address in slopes]
            self._run(tasks, (0, tasks.counts[1], 0), high - low, given)
            return own

        for own in _spread(part, rows, threads):
            for address, mine in own:
                _view(address, mine)[:] += mine
        given = [*cores, x, 0, made, 0, gy, gx, sums, 0, *slopes]
        return self._run(tasks, (0, 0, tasks.counts[2]), 1, given, tasks.counts[1])

    # -- calls ----------------------------------------------------------------------------------------------

    def _tasks(self, before: Sequence[Task], through: Sequence[Task], after: Sequence[Task] = ()) -> Tasks:
        recipe = self.recipe
        counts = len(before), len(through), len(after)
        return Tasks((*before, *through, *after), counts, recipe.sizes, recipe.block, recipe.itemsize)

    def _tasks_back(self, wanted: tuple[bool, ...]) -> Tasks:
        recipe, x = self.recipe, wanted[0]
        cores = frozenset(i for i, needed in enumerate(wanted[1:]) if needed)
        again = recipe.ahead(recipe.passes[:-1]) if cores else ()
        through = (*again, *recipe.back(recipe.passes, x, cores))
        made = self._back[wanted] = self._tasks((), through, recipe.back(recipe.prologue, False, cores))
        return made

    def _run(self, tasks: Tasks, counts: tuple[int, int, int], rows: int, addresses: list[int], skip: int = 0) -> None:
        given, recipe = array.array("q", addresses), self.recipe
        first, packing = tasks.address + skip * _TASK_BYTES, _memory.address(_PACKING, self._packing)
        at = given.buffer_info()[0]
        self._call(first, *counts, rows, recipe.block, at, self._steps_at, len(addresses), packing)

    # -- sums of several threads ----------------------------------------------------------------------------

    def _sums(self, made_slopes: int, slopes: Sequence[int]) -> list[tuple[int, int]]:
        """(base, address) of everything that rows add to."""
        bases = self.recipe.bases
        written = {place.base for step in self.recipe.passes for place in step.read_slopes if not place.row}
        found = [(bases.made_slopes, made_slopes), *zip(bases.slopes, slopes, strict=True)]
        return [(base, address) for base, address in found if address and base in written]

    def _zeros(self, base: int) -> NDArray[Any]:
        recipe = self.recipe
        if base == recipe.bases.made_slopes:
            length = recipe.lengths[base]
        else:
            legs = recipe.network.topology.cores[base - recipe.bases.slopes[0]].legs
            length = math.prod(recipe.network.sizes[leg] for leg in legs)
        return np.zeros(max(1, length), f"f{recipe.itemsize}")


def native(recipe: Recipe) -> Native | None:
    """A recipe that can be run; None where there is no compiler."""
    found = runtime(recipe.itemsize)
    return None if found is None else Native(recipe, found)


_SHARE = 32  # rows below which a thread of its own does not pay


def _spread(part: Callable[[int, int], Any], rows: int, threads: int) -> list[Any]:
    """part(low, high) over all rows, in threads; results in order."""
    count = min(threads, rows // _SHARE)
    step = -(-rows // count)
    waiting = [_pool(count).submit(part, low, min(rows, low + step)) for low in range(0, rows, step)]
    return [each.result() for each in waiting]


def _view(address: int, like: NDArray[Any]) -> NDArray[Any]:
    """The numbers at an address."""
    kind = ctypes.c_float if like.itemsize == 4 else ctypes.c_double
    return np.ctypeslib.as_array((kind * like.size).from_address(address))


@functools.cache
def _pool(count: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="tn4nn")


# -- the self-check ---------------------------------------------------------------------------------------------

_SIZES = {"h": 21, "m": 5, "p": 16, "k": 6, "q": 32, "n": 16, "o": 3}
_CHECKS = (
    ("hmpk", "hkn", "hmpn"),
    ("kmp", "kno", "mpno"),
    ("mqk", "nkq", "nm"),
    ("pmq", "kmpn", "qkn"),
    ("mn", "po", "monp"),
    ("mkh", "onkh", "mnoh"),
)


def _agrees(itemsize: int, found: ctypes.CDLL) -> bool:
    """Whether the runtime gives numpy's numbers, in both roles of the two arrays."""
    rng, dtype = np.random.default_rng(0), np.dtype(f"f{itemsize}")
    long, address = ctypes.c_long, ctypes.c_void_p
    found.scratch_size.restype = long
    found.run.argtypes = (address, *[long] * 5, address, address, long, address)
    found.run.restype = None
    packing = _memory.address(_PACKING, int(found.scratch_size()) * itemsize)
    for a_legs, b_legs, c_legs in _CHECKS:
        a, b = (rng.standard_normal([_SIZES[leg] for leg in legs]).astype(dtype) for legs in (a_legs, b_legs))
        expected = np.einsum(f"{a_legs},{b_legs}->{c_legs}", a.astype("f8"), b.astype("f8"))
        places = [Place(i, 0, tuple(legs)) for i, legs in enumerate((a_legs, b_legs, c_legs))]
        for first, second, across in ((0, 1, False), (1, 0, False), (0, 1, True)):
            made = np.empty(expected.shape, dtype)
            task = contracted(places[first], places[second], places[2])
            if across and not all(legs.endswith("h") for legs in (a_legs, b_legs, c_legs)):
                continue
            task = dataclasses.replace(task, across=across)
            tasks = Tasks([task], (1, 0, 0), _SIZES, 1, itemsize)
            addresses = (ctypes.c_void_p * 3)(a.ctypes.data, b.ctypes.data, made.ctypes.data)
            found.run(tasks.address, 1, 0, 0, 1, 1, addresses, (long * 3)(), 3, packing)
            if not np.abs(made - expected).max() <= 1e-5 * np.abs(expected).max():
                return False
    return True
