"""Program: the lowered plan, a flat list of steps over registers, which is all that a backend runs.

Registers are numbered: the inputs first, then one for each step. A step is one of four array operations
that numpy, torch and jax all have (reshape, permute, matmul with one batch axis, broadcast multiply), so a
backend is these four functions and the loop in `run`. The batch axis stands as -1 in reshapes: a program
found for one batch size runs any other.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from .._graph.paths import BATCH, Legs, legs_along

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
    kept: Container[int] = (),
    shapes: list[Any] | None = None,
) -> list[Any]:
    """All registers after some steps; None where no later step reads them, unless they are to be kept.

    Args:
        ops: the backend's array operations.
        steps: the first of a program, or all.
        inputs: the first registers.
        kept: registers that stay.
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
            if register not in kept:
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
        cuts = [(r, axis, p) for (_, places), p in zip(program.sliced, positions, strict=True) for r, axis in places]
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
            strides.append(_contiguous(shape))
        known.append(shape)
        done.append(Work(shape, macs, moved, gemm, copies))
    return done


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


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
    held, inner, position = 1, 1, len(axes)  # elements of the old axes at hand, and the step of the last one
    for size in reversed(new):
        if size == 1:
            made.append(inner * held)
            continue
        while held % size and position:
            position -= 1
            length, step = axes[position]
            if held == 1:
                inner = step
            elif step != inner * held:
                return None
            held *= length
        if held % size:
            return None
        made.append(inner)
        held //= size
        inner *= size
    return tuple(reversed(made))


# -- lowering ---------------------------------------------------------------------------------------------------


class _Node(NamedTuple):
    legs: frozenset[str]
    natural: Legs  # the order in which the node comes without being asked
    children: tuple[int, int] | None


class _Choice(NamedTuple):
    cost: float
    summed: Legs
    forms: tuple[Legs, Legs]  # the leg orders in which the operands are wanted
    swap: bool
    made: Legs  # the leg order in which the product comes out


_Option = tuple[Legs, tuple[Legs, Legs], bool, Legs]  # as in a _Choice, without the cost

_WIDTH = 48  # leg orders tried for one node; above it the first is taken


class _Lowering:
    """Turns a contraction path over named legs into steps, choosing leg orders so that little is permuted."""

    def __init__(
        self,
        tensors: Sequence[Legs],
        output: Legs,
        sizes: Mapping[str, int],
        path: Sequence[tuple[int, int]],
        flat_input: bool,
    ) -> None:
        self.sizes = sizes
        keep = {leg for leg in sizes if sizes[leg] != 1 or leg == BATCH}  # size-1 legs need no work at all
        self.output = tuple(leg for leg in output if leg in keep)
        self.nodes = [_Node(frozenset(t) & keep, tuple(leg for leg in t if leg in keep), None) for t in tensors]
        self._grow(path)
        self.volumes = [math.prod(sizes[leg] for leg in node.legs) for node in self.nodes]  # elements of each
        self.tried: list[dict[Legs, _Choice]] = [{} for _ in self.nodes]
        self.shapes: list[tuple[int, ...]] = [self._shape(t) for t in tensors]
        if flat_input:
            self.shapes[-1] = (-1, math.prod(sizes[leg] for leg in tensors[-1] if leg != BATCH))
        self.steps: list[Step] = []

    def _grow(self, path: Sequence[tuple[int, int]]) -> None:
        count = len(self.nodes)
        made = legs_along([node.legs for node in self.nodes], self.output, tuple(path))[count:]
        for (a, b), legs in zip(path, made, strict=True):
            left, right = self.nodes[a], self.nodes[b]
            both = left.legs & right.legs
            natural = (
                *(leg for leg in left.natural if leg in both and leg in legs),
                *(leg for leg in left.natural if leg not in both),
                *(leg for leg in right.natural if leg not in both),
            )
            self.nodes.append(_Node(legs, natural, (a, b)))

    def _shape(self, legs: Iterable[str]) -> tuple[int, ...]:
        return tuple(-1 if leg == BATCH else self.sizes[leg] for leg in legs)

    def _size(self, legs: Iterable[str]) -> int:
        """Elements along these legs: -1 where the batch is among them, for a reshape."""
        legs = tuple(legs)
        return -1 if BATCH in legs else math.prod(self.sizes[leg] for leg in legs)

    # -- which leg order, everywhere ------------------------------------------------------------------------

    def _move_cost(self, node: int, have: Legs, want: Legs) -> float:
        """Elements moved by a permutation, more where the last axis moves and memory is read in strides."""
        if have == want:
            return 0.0
        return self.volumes[node] * (1.0 if have[-1:] == want[-1:] else 4.0)

    def cost(self, node: int, want: Legs) -> float | None:
        """The least cost of bringing a node in the wanted leg order; None where it was not worked out yet."""
        if self.nodes[node].children is None:
            return self._move_cost(node, self.nodes[node].natural, want)
        known = self.tried[node].get(want)
        return None if known is None else known.cost

    def choice(self, node: int, want: Legs) -> _Choice:
        """How a product is best formed when this leg order is wanted of it."""
        waiting, opened = [(node, want)], dict[tuple[int, Legs], list[_Option]]()
        while waiting:  # no recursion: a tree may be a thousand deep
            at, order = waiting[-1]
            if order in self.tried[at]:
                waiting.pop()
                continue
            if (at, order) not in opened:
                options = self._options(at, order)
                # In a deep tree the number of orders must not explode.
                opened[at, order] = options[:1] if len(self.tried[at]) >= _WIDTH else options
            found = self._best(at, order, opened[at, order])
            if isinstance(found, _Choice):
                self.tried[at][order] = found
            else:
                waiting.append(found)
        return self.tried[node][want]

    def _best(self, node: int, want: Legs, options: Sequence[_Option]) -> _Choice | tuple[int, Legs]:
        """The best of the options, or a child and its order whose cost must be known first."""
        best: _Choice | None = None
        left, right = self._children(node)
        for summed, forms, swap, made in options:
            costs = self.cost(left, forms[0]), self.cost(right, forms[1])
            if costs[0] is None:
                return left, forms[0]
            if costs[1] is None:
                return right, forms[1]
            cost = self._move_cost(node, made, want) + costs[0] + costs[1]
            if best is None or cost < best.cost:
                best = _Choice(cost, summed, forms, swap, made)
        assert best is not None
        return best

    def _children(self, node: int) -> tuple[int, int]:
        children = self.nodes[node].children
        assert children is not None
        return children

    def _options(self, node: int, want: Legs) -> list[_Option]:
        left, right = self._children(node)
        a, b, legs = self.nodes[left], self.nodes[right], self.nodes[node].legs
        shared = tuple(leg for leg in want if leg in a.legs and leg in b.legs)
        only_a = tuple(leg for leg in want if leg in a.legs and leg not in b.legs)
        only_b = tuple(leg for leg in want if leg in b.legs and leg not in a.legs)
        gone = (a.legs & b.legs) - legs
        # Both operands must bring the summed legs in one order: try each one's own.
        orders = dict.fromkeys(tuple(leg for leg in side.natural if leg in gone) for side in (a, b))
        swap = want == (*shared, *only_b, *only_a) and want != (*shared, *only_a, *only_b)
        made = (*shared, *only_b, *only_a) if swap else (*shared, *only_a, *only_b)
        options = []
        for summed in orders:
            forms_a = dict.fromkeys([(*shared, *only_a, *summed), (*shared, *summed, *only_a)])
            forms_b = dict.fromkeys([(*shared, *summed, *only_b), (*shared, *only_b, *summed)])
            options += [(summed, (fa, fb), swap, made) for fa in forms_a for fb in forms_b]
        return options

    # -- the steps ------------------------------------------------------------------------------------------

    def _emit(self, kind: Kind, args: tuple[int, ...], param: tuple[int, ...], shape: tuple[int, ...]) -> int:
        self.steps.append(Step(kind, args, param))
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def _reshape(self, register: int, shape: tuple[int, ...]) -> int:
        return register if self.shapes[register] == shape else self._emit("reshape", (register,), shape, shape)

    def _permute(self, register: int, have: Legs, want: Legs) -> int:
        if have == want:
            return register
        runs: list[list[str]] = []  # legs that stay together move together
        for leg in have:
            previous = runs[-1][-1] if runs else None
            if previous is not None and want.index(leg) == want.index(previous) + 1:
                runs[-1].append(leg)
            else:
                runs.append([leg])
        order = sorted(range(len(runs)), key=lambda i: want.index(runs[i][0]))
        shape = tuple(self._size(run) for run in runs)
        register = self._reshape(register, shape)
        return self._emit("permute", (register,), tuple(order), tuple(shape[i] for i in order))

    def bring(self, node: int, want: Legs) -> int:
        """Emits the steps that bring a node in the wanted leg order; returns its register."""
        registers, waiting = list[int](), [(node, want, False)]
        while waiting:
            at, order, ready = waiting.pop()
            if self.nodes[at].children is None:
                registers.append(self._permute(at, self.nodes[at].natural, order))
            elif ready:  # both operands are there
                rb, ra = registers.pop(), registers.pop()
                registers.append(self._product(at, order, ra, rb))
            else:
                (left, right), forms = self._children(at), self.choice(at, order).forms
                waiting += [(at, order, True), (right, forms[1], False), (left, forms[0], False)]
        return registers.pop()

    def _product(self, node: int, want: Legs, ra: int, rb: int) -> int:
        """Emits the product of the two operands, in the wanted leg order."""
        left, right = self._children(node)
        a, b = self.nodes[left].legs, self.nodes[right].legs
        choice = self.choice(node, want)
        shared = tuple(leg for leg in want if leg in a and leg in b)
        groups = {
            side: tuple(leg for leg in want if leg in legs and leg not in shared) for side, legs in (("a", a), ("b", b))
        }
        if choice.swap:
            made = self._multiply(
                rb, ra, (choice.forms[1], choice.forms[0]), shared, groups["b"], groups["a"], choice.summed
            )
        else:
            made = self._multiply(ra, rb, choice.forms, shared, groups["a"], groups["b"], choice.summed)
        return self._permute(made, choice.made, want)

    def _multiply(
        self, ra: int, rb: int, forms: tuple[Legs, Legs], shared: Legs, rows: Legs, columns: Legs, summed: Legs
    ) -> int:
        """The product of two registers in forms (shared, rows, summed) and (shared, summed, columns), each
        with its last two groups in either order."""
        s = (self._size(shared),) if shared else ()
        m, n, k = self._size(rows), self._size(columns), self._size(summed)
        if not summed:
            if rows and columns:
                ra, rb, shape = self._reshape(ra, (*s, m, 1)), self._reshape(rb, (*s, 1, n)), (*s, m, n)
            elif rows or columns:
                ra = self._reshape(ra, (*s, m) if rows else (*s, 1))
                rb = self._reshape(rb, (*s, n) if columns else (*s, 1))
                shape = (*s, m) if rows else (*s, n)
            else:
                ra, rb, shape = self._reshape(ra, s), self._reshape(rb, s), s
            return self._emit("multiply", (ra, rb), (), shape)
        ra = self._matrix(ra, s, (m, k), forms[0] != (*shared, *rows, *summed))
        rb = self._matrix(rb, s, (k, n), forms[1] != (*shared, *summed, *columns))
        return self._emit("matmul", (ra, rb), (), (*s, m, n))

    def _matrix(self, register: int, shared: tuple[int, ...], shape: tuple[int, int], turned: bool) -> int:
        if not turned:
            return self._reshape(register, (*shared, *shape))
        register = self._reshape(register, (*shared, *shape[::-1]))
        axes = (0, 2, 1) if shared else (1, 0)
        return self._emit("permute", (register,), axes, (*shared, *shape))


def lower(
    tensors: Sequence[Legs],
    output: Legs,
    sizes: Mapping[str, int],
    path: Sequence[tuple[int, int]],
    *,
    names: Sequence[str],
    output_shape: tuple[int, ...],
    flat_input: bool = False,
) -> Program:
    """The program of a contraction path.

    Args:
        tensors: the legs of each input register.
        output: legs of the result, in order.
        sizes: size of every leg; that of the batch leg only weighs the choice.
        path: pairs of registers in single static assignment form: the i-th pair makes register n + i.
        names: of the input registers.
        output_shape: what the last step reshapes the result to (-1 for the batch).
        flat_input: the last input comes as (batch, everything else in one).
    """
    lowering = _Lowering(tensors, output, sizes, path, flat_input)
    register = lowering.bring(len(lowering.nodes) - 1, lowering.output)
    register = lowering._reshape(register, output_shape)
    if register < len(tensors):  # nothing to do at all: a program still has one step
        lowering._emit("reshape", (register,), output_shape, output_shape)
    return Program(tuple(names), _with_frees(tuple(lowering.steps), len(tensors)))


def _with_frees(steps: tuple[Step, ...], inputs: int) -> tuple[Step, ...]:
    last: dict[int, int] = {}
    for position, step in enumerate(steps):
        for register in step.args:
            last[register] = position
    freed: dict[int, list[int]] = {}
    for register, position in last.items():
        if register >= inputs:  # the caller holds the inputs in any case
            freed.setdefault(position, []).append(register)
    return tuple(
        dataclasses.replace(step, frees=tuple(sorted(freed.get(position, ())))) for position, step in enumerate(steps)
    )
