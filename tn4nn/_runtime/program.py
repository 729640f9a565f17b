"""Program: the lowered plan, a flat list of steps over registers, which is all that a backend runs.

Registers are numbered: the inputs first, then one for each step. A step is one of four array operations
that numpy, torch and jax all have (reshape, permute, matmul with one batch axis, broadcast multiply), so a
backend is these four functions and the loop in `run`. The batch axis is -1 in reshapes: a program
found for one batch size runs any other.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Literal, NamedTuple

Operation = Literal["reshape", "permute", "matmul", "multiply"]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One array operation.

    Attributes:
        kind: which one.
        args: the registers that it reads.
        param: the new shape (reshape; -1 where the batch is) or the axes (permute); empty otherwise.
        frees: registers that no later step reads.
    """

    kind: Operation
    args: tuple[int, ...]
    param: tuple[int, ...] = ()
    frees: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """Straight-line code: inputs, then steps; the last register is the result.

    Attributes:
        inputs: names of the input registers: core names, and "x" last where there is one.
        steps: in the order in which they run.
        sliced: (leg size, ((input register, axis), ...)) for each summed leg that is looped over to save memory.
        block: rows of the batch that are run at a time; 0 for all at once.
        unflatten: what x is reshaped to before it is sliced; empty where it is not.
        gathers: the inputs are rows picked from the cores (embedding), not the cores themselves.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    sliced: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = ()
    block: int = 0
    unflatten: tuple[int, ...] = ()
    gathers: bool = False


class Ops(NamedTuple):
    """What a backend brings to run a program, each with the meaning that numpy gives it."""

    reshape: Callable[[Any, tuple[int, ...]], Any]
    permute: Callable[[Any, tuple[int, ...]], Any]
    matmul: Callable[[Any, Any], Any]
    multiply: Callable[[Any, Any], Any]
    select: Callable[[Any, int, int], Any]  # (array, axis, position) -> the array without that axis
    concatenate: Callable[[list[Any]], Any]  # along axis 0


def run(ops: Ops, program: Program, inputs: Sequence[Any]) -> Any:
    """Runs a program.

    Args:
        ops: the backend's array operations.
        program: what to run.
        inputs: the cores in the program's order, then x of shape (batch, product of the input modes).
    """
    if program.block and inputs[-1].shape[0] > program.block:
        *cores, x = inputs
        whole = dataclasses.replace(program, block=0)
        starts = range(0, x.shape[0], program.block)
        return ops.concatenate([run(ops, whole, [*cores, x[i : i + program.block]]) for i in starts])
    if program.sliced:
        return _run_sliced(ops, program, inputs)
    return registers_of(ops, program.steps, inputs)[-1]


def registers_of(
    ops: Ops,
    steps: Iterable[Step],
    inputs: Sequence[Any],
    *,
    saved: Container[int] = (),
    shapes: list[Any] | None = None,
) -> list[Any]:
    """All registers after some steps; None where no later step reads them, unless they are to be saved.

    Args:
        ops: the backend's array operations.
        steps: the first of a program, or all.
        inputs: the first registers.
        saved: registers that stay.
        shapes: takes the shapes of all registers.
    """
    registers: list[Any] = list(inputs)
    if shapes is not None:
        shapes += [array.shape for array in inputs]
    for step in steps:
        kind = step.kind
        if kind == "reshape":
            result = ops.reshape(registers[step.args[0]], step.param)
        elif kind == "permute":
            result = ops.permute(registers[step.args[0]], step.param)
        elif kind == "matmul":
            result = ops.matmul(registers[step.args[0]], registers[step.args[1]])
        else:
            result = ops.multiply(registers[step.args[0]], registers[step.args[1]])
        registers.append(result)
        if shapes is not None:
            shapes.append(result.shape)
        for register in step.frees:
            if register not in saved:
                registers[register] = None
    return registers


def _run_sliced(ops: Ops, program: Program, inputs: Sequence[Any]) -> Any:
    whole = dataclasses.replace(program, sliced=())
    if program.unflatten:
        inputs = [*inputs[:-1], ops.reshape(inputs[-1], program.unflatten)]
    total = None
    for positions in itertools.product(*(range(size) for size, _ in program.sliced)):
        sliced = list(inputs)
        # Later axes first, so that taking one out does not move the others.
        cuts = [(r, axis, p) for (_, axes), p in zip(program.sliced, positions, strict=True) for r, axis in axes]
        for register, axis, position in sorted(cuts, key=lambda cut: -cut[1]):
            sliced[register] = ops.select(sliced[register], axis, position)
        part = run(ops, whole, sliced)
        total = part if total is None else total + part
    return total


class Work(NamedTuple):
    """What one step does at a given batch.

    Attributes:
        shape: of the result.
        macs: multiply-adds.
        moved: elements read and written; 0 for a view.
        gemm: (batch, m, k, n) of a matmul, else zeros.
        copies: whether a permute or reshape has to write memory (its source does not lie in that order).
        run: elements that lie side by side in what is copied.
    """

    shape: tuple[int, ...]
    macs: int
    moved: int
    gemm: tuple[int, int, int, int]
    copies: bool
    run: int = 1


class _Array(NamedTuple):
    """A register while a program is traced: its shape, and its strides in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def trace(program: Program, shapes: Sequence[tuple[int, ...]]) -> list[Work]:
    """The work of each step of one pass through the steps, for inputs of these shapes."""
    registers = [_Array(tuple(shape), _contiguous(tuple(shape))) for shape in shapes]
    done: list[Work] = []
    for step in program.steps:
        array, work = _TRACED[step.kind](step.param, *(registers[a] for a in step.args))
        registers.append(array)
        done.append(work)
    return done


_NO_GEMM = (0, 0, 0, 0)


def _reshaped(param: tuple[int, ...], a: _Array) -> tuple[_Array, Work]:
    rest = math.prod(n for n in param if n != -1)
    shape = tuple(a.numbers // rest if n == -1 else n for n in param)
    strides = view_strides(a.shape, a.strides, shape)
    if strides is not None:
        return _Array(shape, strides), Work(shape, 0, 0, _NO_GEMM, False)
    last = _runs([(size, step) for size, step in zip(a.shape, a.strides, strict=True) if size != 1])[-1:]
    run = next((size for size, step in last if step == 1), 1)
    return _Array(shape, _contiguous(shape)), Work(shape, 0, 2 * math.prod(shape), _NO_GEMM, True, run)


def _permuted(param: tuple[int, ...], a: _Array) -> tuple[_Array, Work]:
    """A view: whoever reads it next pays."""
    result = _Array(tuple(a.shape[axis] for axis in param), tuple(a.strides[axis] for axis in param))
    return result, Work(result.shape, 0, 0, _NO_GEMM, False)


def _matrix_product(param: tuple[int, ...], a: _Array, b: _Array) -> tuple[_Array, Work]:
    (m, k), n, batch = a.shape[-2:], b.shape[-1], math.prod(a.shape[:-2])
    shape = (*a.shape[:-2], m, n)
    copied = sum(side.numbers for side in (a, b) if not _is_matrix(side.shape, side.strides))
    moved = a.numbers + b.numbers + math.prod(shape) + 2 * copied
    return _Array(shape, _contiguous(shape)), Work(shape, batch * m * k * n, moved, (batch, m, k, n), copied > 0)


def _multiplied(param: tuple[int, ...], a: _Array, b: _Array) -> tuple[_Array, Work]:
    shape = tuple(max(m, n) if m and n else 0 for m, n in zip(a.shape, b.shape, strict=True))
    macs = math.prod(shape)
    strides = _laid_out(shape, [_stepping(*side) for side in (a, b)])
    return _Array(shape, strides), Work(shape, macs, a.numbers + b.numbers + macs, _NO_GEMM, False)


_TRACED: dict[Operation, Callable[..., tuple[_Array, Work]]] = {
    "reshape": _reshaped,
    "permute": _permuted,
    "matmul": _matrix_product,
    "multiply": _multiplied,
}


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _stepping(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides with 0 where an axis is broadcast."""
    return tuple(stride if size != 1 else 0 for size, stride in zip(shape, strides, strict=True))


def _laid_out(shape: tuple[int, ...], sides: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Strides of an elementwise result: its axes lie as those of the operands do (numpy's order "K", torch's too)."""
    order: list[int] = []  # axes from the innermost to the outermost
    for axis in reversed(range(len(shape))):
        position = len(order)
        while position and _inside(axis, order[position - 1], sides):
            position -= 1
        order.insert(position, axis)
    strides, step = [0] * len(shape), 1
    for axis in order:
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def _inside(axis: int, other: int, sides: Sequence[tuple[int, ...]]) -> bool:
    """Whether an axis has smaller strides than another one in all operands that say anything about both."""
    pairs = [(side[axis], side[other]) for side in sides if side[axis] and side[other]]
    return bool(pairs) and all(mine < theirs for mine, theirs in pairs)


def _is_matrix(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a product reads the last two axes as they lie: a matrix or its transpose."""
    (rows, columns), (down, across) = shape[-2:], strides[-2:]
    return across == 1 or down == 1 or rows == 1 or columns == 1


def view_strides(shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of an array seen in a new shape; None where it has to be copied (numpy's rule and torch's).

    A new axis can be a view of old ones where these lie behind one another without a gap.

    Examples:
        >>> view_strides((4, 6), (6, 1), (2, 2, 6)), view_strides((6, 4), (1, 6), (24,))
        ((12, 6, 1), None)
    """
    if 0 in shape:
        return _contiguous(new)
    old = _runs([(size, step) for size, step in zip(shape, strides, strict=True) if size != 1])
    result: list[int] = []
    left, step = 1, 1  # elements of the innermost run that are not yet on a new axis, and their stride
    for size in reversed(new):
        if size == 1:
            result.append(step * left)
            continue
        if left == 1:
            left, step = old.pop()
        if left % size:
            return None  # this axis would lie across a gap
        result.append(step)
        left, step = left // size, step * size
    return tuple(reversed(result))


def _runs(axes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(size, stride) of axes, those joined that lie behind one another without a gap."""
    runs: list[tuple[int, int]] = []
    for size, step in axes:
        if runs and runs[-1][1] == step * size:
            runs[-1] = (runs[-1][0] * size, step)
        else:
            runs.append((size, step))
    return runs


# -- lowering ---------------------------------------------------------------------------------------------------
