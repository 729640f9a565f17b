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

Kind = Literal["reshape", "permute", "matmul", "multiply"]


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One array operation.

    Attributes:
        kind: which one.
        args: the registers that it reads.
        param: the new shape (reshape; -1 where the batch is) or the axes (permute); empty otherwise.
        frees: registers that no later step reads.
    """

    kind: Kind
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
            made = ops.reshape(registers[step.args[0]], step.param)
        elif kind == "permute":
            made = ops.permute(registers[step.args[0]], step.param)
        elif kind == "matmul":
            made = ops.matmul(registers[step.args[0]], registers[step.args[1]])
        else:
            made = ops.multiply(registers[step.args[0]], registers[step.args[1]])
        registers.append(made)
        if shapes is not None:
            shapes.append(made.shape)
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
    """

    shape: tuple[int, ...]
    macs: int
    moved: int
    gemm: tuple[int, int, int, int]
    copies: bool


def trace(program: Program, shapes: Sequence[tuple[int, ...]]) -> list[Work]:
    """The work of each step of one pass through the steps, for inputs of these shapes."""
    known: list[tuple[int, ...]] = list(shapes)
    strides = [_contiguous(shape) for shape in known]  # in elements
    done: list[Work] = []
    for step in program.steps:
        first = known[step.args[0]]
        macs, moved, gemm, copies = 0, 0, (0, 0, 0, 0), False
        if step.kind == "reshape":
            rest = math.prod(n for n in step.param if n != -1)
            shape = tuple(math.prod(first) // rest if n == -1 else n for n in step.param)
            viewed = _viewed(first, strides[step.args[0]], shape)
            copies = viewed is None
            moved = 2 * math.prod(shape) if copies else 0
            strides.append(_contiguous(shape) if viewed is None else viewed)
        elif step.kind == "permute":
            shape = tuple(first[axis] for axis in step.param)
            strides.append(tuple(strides[step.args[0]][axis] for axis in step.param))  # paid for by the next
        elif step.kind == "matmul":
            second = known[step.args[1]]
            (m, k), n = first[-2:], second[-1]
            batch = math.prod(first[:-2])
            shape = (*first[:-2], m, n)
            macs = batch * m * k * n
            copied = sum(math.prod(known[a]) for a in step.args if not _is_matrix(known[a], strides[a]))
            moved = math.prod(first) + math.prod(second) + math.prod(shape) + 2 * copied
            copies, gemm = copied > 0, (batch, m, k, n)
            strides.append(_contiguous(shape))
        else:
            second = known[step.args[1]]
            shape = tuple(max(a, b) if a and b else 0 for a, b in zip(first, second, strict=True))
            macs = math.prod(shape)
            moved = math.prod(first) + math.prod(second) + macs
            sides = [_stepping(known[a], strides[a]) for a in step.args]
            strides.append(_laid_out(shape, sides))
        known.append(shape)
        done.append(Work(shape, macs, moved, gemm, copies))
    return done


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


def _viewed(shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides of the array seen in the new shape; None where it has to be copied (numpy's rule and torch's)."""
    if 0 in shape:
        return _contiguous(new)
    axes = [(size, step) for size, step in zip(shape, strides, strict=True) if size != 1]
    made: list[int] = []
    group, inner, position = 1, 1, len(axes)  # elements of the old axes so far, and the step of the last one
    for size in reversed(new):
        if size == 1:
            made.append(inner * group)
            continue
        while group % size and position:
            position -= 1
            length, step = axes[position]
            if group == 1:
                inner = step
            elif step != inner * group:
                return None
            group *= length
        if group % size:
            return None
        made.append(inner)
        group //= size
        inner *= size
    return tuple(reversed(made))


# -- lowering ---------------------------------------------------------------------------------------------------
