"""The native runtime: the calls of a recipe run by `contract.c`, called through ctypes with addresses.

Nothing here knows a framework: arrays are given by address, float32 or float64, contiguous. All calls of a recipe are
encoded in one array without addresses, the **encoded plan**, which a caller of the C functions may copy and store.
"""

from __future__ import annotations

import array
import ctypes
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.warn import warn_once
from .._graph.paths import Legs
from . import kernels
from .contraction import Contraction, Offsets, View, contraction_of, offsets, shape_of
from .kernels import Kernel
from .processor import vector_bytes
from .recipe import Recipe
from .variants import ITEMSIZES

Encoded = NDArray[np.int64]

_B_VECTORS, _C_VECTORS, _ADDS, _B_COLUMNS, _A_LINES, _ACROSS, _DOTS, _C_FOURS, _A_RUNS, _A_COLUMNS = (
    1 << i for i in range(10)
)
_HEAD, _CALL = 15, 21  # numbers of the head of an encoded plan and of a call in it
_ROWS = {"": 0, "m": 1, "k": 2, "n": 3}


def runtime(itemsize: int) -> ctypes.CDLL | None:
    """The runtime for numbers of this size; None, with one warning, where there is no kernel for this processor."""
    if itemsize not in ITEMSIZES:
        return None
    found = kernel(itemsize)
    if found.library is None:
        warn_once(
            f"no native kernel ({found.why}): layers run in the framework's own operations. `tn4nn build-kernel` "
            "compiles one where there is gcc or clang"
        )
    return found.library


@functools.cache
def kernel(itemsize: int) -> Kernel:
    """The kernel that this process uses for numbers of this size, 4 or 8 bytes, and where it lies."""
    found = kernels.find(itemsize, functools.partial(agrees, itemsize))
    if found.library is not None:
        _Lent.to.append(found.library)
        found.library.lend(_Lent.threads)
    return found


class _Lent:
    """The threads of a host, and the libraries that know them."""

    threads = 0
    to: list[ctypes.CDLL] = []  # noqa: RUF012  (one for the process)


def lend(threads: int) -> None:
    """Lends the runtime the threads of a host; calls that ask for a negative number of threads use them.

    Args:
        threads: address of the host's GOMP_parallel.
    """
    _Lent.threads = threads
    for library in _Lent.to:
        library.lend(threads)


def build_kernel(itemsize: int) -> Kernel:
    """Compiles the kernel for this processor (-march=native), for numbers of this size; this process and later ones use
    it.

    Raises:
        TN4NNError: it cannot be compiled, or what came out gives wrong numbers.
    """
    found = kernels.build(itemsize, functools.partial(agrees, itemsize))
    kernel.cache_clear()
    return found


# -- an encoded plan ----------------------------------------------------------------------------------------------


class _Tables:
    """The tables of an encoded plan, each once, and where they begin, in 4-byte numbers."""

    def __init__(self, start: int) -> None:
        self.length = start
        self.parts: list[Offsets] = []
        self._found: dict[Any, int] = {}

    def of(self, group: Legs, view: View, sizes: Mapping[str, int], rows: int) -> int:
        """Where the offsets of a group of legs in an array lie."""
        key = (group, view.legs, view.row, rows)
        if key not in self._found:
            table = offsets(group, view, sizes, rows)
            padded = np.pad(table, (0, -len(table) % 16))  # to a cache line
            self._found[key] = self.length
            self.parts.append(padded)
            self.length += len(padded)
        return self._found[key]


def encode(
    sections: Sequence[Sequence[Contraction]],
    sizes: Mapping[str, int],
    itemsize: int,
    *,
    block: int,
    cores: int,
    steps: Sequence[int],
    sums: Sequence[int],
    lengths: Sequence[int],
) -> Encoded:
    """A recipe as an encoded plan; `Head` in the C source defines the format.

    Args:
        sections: calls that run once before, of a batch tile forward, of a batch tile backward, and once after.
        sizes: of every leg.
        itemsize: bytes of one number.
        block: rows of a batch tile.
        cores: of the network.
        steps: for each buffer, numbers from one row to the next.
        sums: for each buffer that batch tiles add to, its length; 0 for the others.
        lengths: of what the prologue makes, of the states, and of the gradients of both; of the states of a row that
            the caller saves, and of what it saves of the prologue.
    """
    width = vector_bytes() // itemsize
    first = [0]
    for section in sections:
        first.append(first[-1] + len(section))
    head = [width, len(steps), cores, block, *first, *lengths]
    before = 2 * (_HEAD + 2 * len(steps) + _CALL * first[-1])  # 4-byte numbers
    gap = -before % 16
    tables = _Tables(before + gap)
    flat = [_flat(call, sizes, block, width, tables) for section in sections for call in section]
    numbers = np.array([*head, *steps, *sums, *(n for call in flat for n in call)], np.int64).view(np.int32)
    return np.concatenate([numbers, np.zeros(gap, np.int32), *tables.parts]).view(np.int64)


def _flat(call: Contraction, sizes: Mapping[str, int], block: int, width: int, tables: _Tables) -> list[int]:
    one = shape_of(call, sizes, 1)
    flags = (
        (_B_VECTORS, one.b_run % width == 0),
        (_C_VECTORS, one.c_run % width == 0),
        (_ADDS, call.adds),
        (_B_COLUMNS, one.k_run % width == 0),
        (_A_LINES, one.a_run == one.k and call.rows != "k"),
        (_ACROSS, call.along == "h"),
        (_DOTS, call.along == "k"),
        (_C_FOURS, one.c_run % 4 == 0),
        (_A_RUNS, one.a_run % width == 0),
        (_A_COLUMNS, one.m_run % 8 == 0),  # in runs of MR, which is 8 or 4
    )
    found = [one.h, one.m, one.n, one.k, _ROWS[call.rows], sum(flag for flag, there in flags if there)]
    found += [n for view in (call.a, call.b, call.c) for n in (view.buffer, view.offset)]
    for name, groups in (("a", "hmk"), ("b", "hkn"), ("c", "hmn")):
        view: View = getattr(call, name)
        for group in groups:
            rows = block if call.rows == group else 1
            found.append(tables.of(getattr(call, group), view, sizes, rows))
    return found


class Native:
    """A recipe with its runtime.

    Attributes:
        recipe: what is run.
        inputs: numbers of one row of x.
        outputs: numbers of one row of y.
        numbers: of each core.
        host: what a framework has made of it; a copy starts without.
    """

    def __init__(self, recipe: Recipe, library: ctypes.CDLL) -> None:
        self.recipe, self.library = recipe, library
        self.inputs, self.outputs = recipe.inputs, recipe.outputs
        sizes, topology = recipe.network.sizes, recipe.network.topology
        self.numbers = tuple(math.prod(sizes[leg] for leg in core.legs) for core in topology.cores)
        self.host: Any = None
        self._encodings: dict[tuple[bool, ...], Encoded] = {}
        everything = (True,) * (1 + len(self.numbers))
        self.training = self.encoded(everything if recipe.saved_per_row else ())
        self._addresses = self.encoded().ctypes.data, self.training.ctypes.data

    def __reduce__(self) -> tuple[Any, ...]:  # a copy is the same runtime; another process finds its own
        return native, (self.recipe,)

    def saved(self, rows: int) -> int:
        """Numbers that a training step saves beside x: what the prologue makes, and states."""
        prologue, block = self.recipe.saved_prologue, self.recipe.block
        return -(-prologue // 16) * 16 + -(-rows // block) * block * self.recipe.saved_per_row

    def encoded(self, wanted: tuple[bool, ...] = ()) -> Encoded:
        """All calls for the gradients of x and of the cores that are wanted, forward pass included: one that saves
        what these need, where any are wanted."""
        found = self._encodings.get(wanted)
        if found is None:
            found = self._encodings[wanted] = self._encode(wanted)
        return found

    def _encode(self, wanted: tuple[bool, ...]) -> Encoded:
        recipe, x = self.recipe, any(wanted[:1])
        buffers = recipe.buffers
        cores = frozenset(i for i, needed in enumerate(wanted[1:]) if needed)
        recomputed = recipe.recompute() if cores else ()
        back = recipe.backward(recipe.steps, x, cores) if any(wanted) else ()
        after = recipe.backward(recipe.prologue, False, cores)
        rows = {
            buffers.x: self.inputs,
            buffers.x_grad: self.inputs,
            buffers.y: self.outputs,
            buffers.y_grad: self.outputs,
        }
        rows[buffers.states] = recipe.saved_per_row if any(wanted) else 0
        memories = (buffers.prologue, buffers.states, buffers.prologue_grads, buffers.state_grads)
        return encode(
            (recipe.contractions(recipe.prologue), recipe.forward(any(wanted)), (*recomputed, *back), after),
            recipe.sizes,
            recipe.itemsize,
            block=recipe.block,
            cores=len(buffers.core_grads),
            steps=[rows.get(buffer, 0) for buffer in range(buffers.count)],
            sums=recipe.sums,
            lengths=[
                *(recipe.lengths[buffer] for buffer in memories),
                recipe.saved_per_row if any(wanted) else 0,
                recipe.saved_prologue,
            ],
        )

    def forward(
        self, rows: int, cores: Sequence[int], saved: int, x: int, y: int, threads: int = 1, bias: int = 0
    ) -> None:
        """y = x W^T + bias, all by address; fills `saved` with `saved(rows)` numbers for the backward pass; 0:
        none follows, or nothing is saved. The bias has as many numbers as a row of y; 0: there is none. A negative
        number of threads stands for those of a host; see `lend`."""
        given = array.array("q", (*cores, x, y, saved, bias))
        _ended(self.library.forward(self._addresses[saved != 0], rows, given.buffer_info()[0], threads))

    def backward(
        self, rows: int, cores: Sequence[int], saved: int, x: int, gy: int, gx: int, grads: Sequence[int],
        wanted: tuple[bool, ...], threads: int = 1,
    ) -> None:  # fmt: skip
        """The gradients of x and of the cores that are `wanted`; the addresses of the others are 0.

        `saved` is as `forward` has filled it.
        """
        given = array.array("q", (*cores, x, 0, saved, 0, gy, gx, 0, 0, *grads))
        at = self.encoded(wanted).ctypes.data
        _ended(self.library.backward(at, rows, given.buffer_info()[0], threads))


def address_of(library: ctypes.CDLL, function: str) -> int:
    """Where a function of a library lies."""
    return int(ctypes.cast(getattr(library, function), ctypes.c_void_p).value or 0)


def native(recipe: Recipe) -> Native | None:
    """A recipe that can be run; None where there is no kernel."""
    found = runtime(recipe.itemsize)
    return None if found is None else Native(recipe, found)


def _ended(status: int) -> None:
    if status:
        raise MemoryError("tn4nn: out of memory for the states of a batch tile: give fewer rows at a time")


# -- the self-check ---------------------------------------------------------------------------------------------

_SIZES = {"h": 21, "m": 5, "p": 16, "k": 6, "q": 32, "n": 16, "o": 3, "f": 4}
_CHECKS = (
    ("hmpk", "hkn", "hmpn"),
    ("kmp", "kno", "mpno"),
    ("mqk", "nkq", "nm"),
    ("pmq", "kmpn", "qkn"),
    ("mn", "po", "monp"),
    ("mkh", "onkh", "mnoh"),
    ("hmkq", "nkhq", "hmn"),
    ("kmq", "nkq", "nm"),
    ("qmk", "nkq", "nm"),
    ("kp", "km", "mp"),
    ("kof", "kn", "onf"),
)


def agrees(itemsize: int, found: ctypes.CDLL) -> bool:
    """Whether the runtime gives numpy's numbers, in both roles of the two arrays."""
    rng, dtype = np.random.default_rng(0), np.dtype(f"f{itemsize}")
    whole, address = ctypes.c_int64, ctypes.c_void_p
    for function in (found.forward, found.backward):
        function.argtypes, function.restype = (address, whole, address, whole), ctypes.c_int
    found.lend.argtypes, found.lend.restype = (address,), None
    found.vector_width.restype = whole
    if vector_bytes() % (found.vector_width() * itemsize):  # encoded plans are for vectors of that many bytes
        return False
    for a_legs, b_legs, c_legs in _CHECKS:
        a, b = (rng.standard_normal([_SIZES[leg] for leg in legs]).astype(dtype) for legs in (a_legs, b_legs))
        expected = np.einsum(f"{a_legs},{b_legs}->{c_legs}", a.astype("f8"), b.astype("f8"))
        # Buffers are cores, x, y: here a core, x and y stand for a, b and c.
        views = [View(i, 0, tuple(legs)) for i, legs in enumerate((a_legs, b_legs, c_legs))]
        result = np.empty(expected.shape, dtype)
        for call in _roles(views, (a_legs, b_legs, c_legs)):
            encoded = encode(
                ([call], (), (), ()), _SIZES, itemsize, block=1, cores=1, steps=[0] * 10, sums=[0] * 10, lengths=[0] * 6
            )
            given = (address * 5)(a.ctypes.data, b.ctypes.data, result.ctypes.data, None, None)
            result[:] = np.nan
            found.forward(encoded.ctypes.data, 1, ctypes.addressof(given), 1)
            if not np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max():
                return False
    return True


def _roles(views: Sequence[View], legs: Sequence[str]) -> Iterable[Contraction]:
    call = contraction_of(views[0], views[1], views[2])
    yield call
    yield contraction_of(views[1], views[0], views[2])
    if all(each.endswith("h") for each in legs):
        yield call._replace(along="h")
    if all(each.endswith("q") for each in legs[:2]):
        yield call._replace(along="k")
