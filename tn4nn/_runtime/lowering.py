"""From a contraction path to a program: leg orders are chosen everywhere at once so that little is permuted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from .._graph.paths import BATCH, Legs, Path, legs_along
from .._graph.problem import Problem
from .program import Operation, Program, Step


class _Node(NamedTuple):
    legs: frozenset[str]
    natural: Legs  # the leg order in which the node comes where nothing else is wanted
    children: tuple[int, int] | None


class _Choice(NamedTuple):
    cost: float
    summed: Legs
    forms: tuple[Legs, Legs]  # the leg orders in which the operands are wanted
    swap: bool
    product: Legs  # the leg order in which the product comes out


_Option = tuple[Legs, tuple[Legs, Legs], bool, Legs]  # as in a _Choice, without the cost
_WIDTH = 48  # leg orders tried for one node; above it the first is taken
_MANY_LEGS, _NARROW = 64, 4  # legs of a product above which so many are: each takes long to compare
# Of products without a batch leg, measured in torch and numpy, in elements copied in order (0.25 ns):
_APART = 24.0  # for a run of elements that a copy finds apart from the one before
_THIN, _THIN_ROWS, _ROW = 16, 32, 60.0  # columns below which BLAS takes each row so much longer, from so many rows on


class _Lowering:
    """Turns a contraction path over named legs into steps, choosing leg orders so that little is permuted."""

    def __init__(
        self,
        tensors: Sequence[Legs],
        output: Legs,
        sizes: Mapping[str, int],
        path: Sequence[tuple[int, int]],
        flat_input: bool,
        wide: bool,
    ) -> None:
        self.sizes, self.wide = sizes, wide
        real = {leg for leg in sizes if sizes[leg] != 1 or leg == BATCH}  # size-1 legs need no work at all
        self.output = tuple(leg for leg in output if leg in real)
        self.nodes = [_Node(frozenset(t) & real, tuple(leg for leg in t if leg in real), None) for t in tensors]
        self._grow(path)
        self.volumes = [math.prod(sizes[leg] for leg in node.legs) for node in self.nodes]  # elements of each
        self.tried: list[dict[Legs, _Choice]] = [{} for _ in self.nodes]
        self.opened: dict[tuple[int, Legs], list[_Option]] = {}
        self.sides: dict[int, dict[str, int]] = {}
        self.gone: dict[int, list[Legs]] = {}
        self.shapes: list[tuple[int, ...]] = [self._shape(t) for t in tensors]
        if flat_input:
            self.shapes[-1] = (-1, math.prod(sizes[leg] for leg in tensors[-1] if leg != BATCH))
        self.steps: list[Step] = []

    def _grow(self, path: Sequence[tuple[int, int]]) -> None:
        count = len(self.nodes)
        legs_of_products = legs_along([node.legs for node in self.nodes], self.output, tuple(path))[count:]
        for (a, b), legs in zip(path, legs_of_products, strict=True):
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
        if self.wide:
            run = 1
            for leg, there in zip(reversed(have), reversed(want), strict=True):
                if leg != there:
                    break
                run *= self.sizes[leg]
            return self.volumes[node] * (1.0 + _APART / run)
        return self.volumes[node] * (1.0 if have[-1:] == want[-1:] else 4.0)

    def choice(self, node: int, want: Legs) -> _Choice:
        """How a product is best formed when this leg order is wanted of it: dynamic programming over (node, order).

        It goes depth first with a stack of its own, since a tree may be a thousand deep.
        """
        stack = [(node, want)]
        while stack:
            question = stack[-1]
            unknown = self._unknown(question)
            if unknown:
                stack += unknown
                continue
            stack.pop()
            at, order = question
            if order not in self.tried[at]:
                self.tried[at][order] = self._best(at, order)
        return self.tried[node][want]

    def _unknown(self, question: tuple[int, Legs]) -> list[tuple[int, Legs]]:
        """The questions about the operands of a product that have to be answered before its own."""
        node, want = question
        if want in self.tried[node]:
            return []
        children = self._children(node)
        asked = dict.fromkeys(
            (child, form)
            for option in self._opened(node, want)
            for child, form in zip(children, option[1], strict=True)
        )
        return [(child, form) for child, form in asked if self._cost(child, form) is None]

    def _opened(self, node: int, want: Legs) -> list[_Option]:
        """The options of a product; in a deep tree the number of leg orders must not explode."""
        if (node, want) not in self.opened:
            options = self._options(node, want)
            width = _WIDTH if len(self.nodes[node].legs) <= _MANY_LEGS else _NARROW
            self.opened[node, want] = options[:1] if len(self.tried[node]) >= width else options
        return self.opened[node, want]

    def _best(self, node: int, want: Legs) -> _Choice:
        """The cheapest of the options, the costs of both operands being known."""
        left, right = self._children(node)

        def priced(option: _Option) -> _Choice:
            summed, forms, swap, product = option
            cost = self._known(left, forms[0]) + self._known(right, forms[1]) + self._move_cost(node, product, want)
            cost += self._thin_cost(left, right, summed, swap, product) if self.wide else 0.0
            return _Choice(cost, summed, forms, swap, product)

        return min(map(priced, self._opened(node, want)), key=lambda choice: choice.cost)

    def _thin_cost(self, left: int, right: int, summed: Legs, swap: bool, product: Legs) -> float:
        """What a product of many rows and few columns costs beside a few rows times many columns."""
        first, second = (self.nodes[i].legs for i in ((right, left) if swap else (left, right)))
        columns = math.prod(self.sizes[leg] for leg in product if leg in second and leg not in first)
        rows = math.prod(self.sizes[leg] for leg in product if leg in first and leg not in second)
        if not summed or columns >= _THIN or rows < _THIN_ROWS:
            return 0.0
        return _ROW * rows * math.prod(self.sizes[leg] for leg in product if leg in first and leg in second)

    def _cost(self, node: int, want: Legs) -> float | None:
        """The least cost of bringing a node in the wanted leg order; None where it was not worked out yet."""
        if self.nodes[node].children is None:
            return self._move_cost(node, self.nodes[node].natural, want)
        known = self.tried[node].get(want)
        return None if known is None else known.cost

    def _known(self, node: int, want: Legs) -> float:
        cost = self._cost(node, want)
        assert cost is not None
        return cost

    def _children(self, node: int) -> tuple[int, int]:
        children = self.nodes[node].children
        assert children is not None
        return children

    def _options(self, node: int, want: Legs) -> list[_Option]:
        shared, only_a, only_b = self._split(node, want)
        products = {False: (*shared, *only_a, *only_b), True: (*shared, *only_b, *only_a)}
        swaps = (False, True) if self.wide else (want == products[True] and want != products[False],)
        options: list[_Option] = []
        for summed in self._summed(node):
            forms_a = dict.fromkeys([(*shared, *only_a, *summed), (*shared, *summed, *only_a)])
            forms_b = dict.fromkeys([(*shared, *summed, *only_b), (*shared, *only_b, *summed)])
            options += [(summed, (fa, fb), swap, products[swap]) for swap in swaps for fa in forms_a for fb in forms_b]
        return options

    def _split(self, node: int, want: Legs) -> tuple[Legs, Legs, Legs]:
        """The legs of a product in the wanted order: those of both operands, of the left alone, of the right alone."""
        if node not in self.sides:
            left, right = (self.nodes[child].legs for child in self._children(node))
            self.sides[node] = {leg: 0 if leg in left and leg in right else 1 if leg in left else 2 for leg in want}
        side = self.sides[node]
        groups: tuple[list[str], list[str], list[str]] = ([], [], [])
        for leg in want:
            groups[side[leg]].append(leg)
        return tuple(groups[0]), tuple(groups[1]), tuple(groups[2])

    def _summed(self, node: int) -> list[Legs]:
        """Both operands must bring the summed legs in one order: each one's own is tried."""
        if node not in self.gone:
            a, b = (self.nodes[child] for child in self._children(node))
            gone = (a.legs & b.legs) - self.nodes[node].legs
            self.gone[node] = list(dict.fromkeys(tuple(leg for leg in s.natural if leg in gone) for s in (a, b)))
        return self.gone[node]

    # -- the steps ------------------------------------------------------------------------------------------

    def _emit(self, kind: Operation, args: tuple[int, ...], param: tuple[int, ...], shape: tuple[int, ...]) -> int:
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
        choice = self.choice(node, want)
        shared, only_a, only_b = self._split(node, want)
        if choice.swap:
            forms = choice.forms[1], choice.forms[0]
            product = self._multiply(rb, ra, forms, shared, only_b, only_a, choice.summed)
        else:
            product = self._multiply(ra, rb, choice.forms, shared, only_a, only_b, choice.summed)
        return self._permute(product, choice.product, want)

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

    def _matrix(self, register: int, shared: tuple[int, ...], shape: tuple[int, int], transposed: bool) -> int:
        if not transposed:
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
    wide: bool = False,
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
        wide: either operand of a product may come first, and copies and thin products are priced as measured, which
            takes longer; without, as for a batch on the last input.
    """
    lowering = _Lowering(tensors, output, sizes, path, flat_input, wide)
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


class Folded(NamedTuple):
    """A program some of whose inputs never change, in two parts.

    Attributes:
        fixed: the positions of these inputs, in order.
        steps: what is made of them alone, over their registers.
        kept: registers of `steps` that the rest reads.
        varying: the positions of the other inputs, in order.
        rest: the program that remains; its inputs are the varying ones, then what was kept.
    """

    fixed: tuple[int, ...]
    steps: tuple[Step, ...]
    kept: tuple[int, ...]
    varying: tuple[int, ...]
    rest: Program


def folded(program: Program, constants: Collection[int]) -> Folded:
    """Parts what depends on constants alone from the rest of a program.

    Args:
        program: without tiles and slices.
        constants: positions of the inputs that never change; at least one other input does.
    """
    count = len(program.inputs)
    fixed = tuple(i for i in range(count) if i in constants)
    varying = tuple(i for i in range(count) if i not in constants)
    once = {register: i for i, register in enumerate(fixed)}  # register of the program -> of the first part
    first, later = list[Step](), list[tuple[int, Step]]()
    for register, step in enumerate(program.steps, count):
        if all(a in once for a in step.args):
            first.append(Step(step.kind, tuple(once[a] for a in step.args), step.param))
            once[register] = len(once)
        else:
            later.append((register, step))
    kept = tuple(dict.fromkeys(a for _, step in later for a in step.args if a in once))
    number = {register: i for i, register in enumerate((*varying, *kept))}
    rest = list[Step]()
    for register, step in later:
        rest.append(Step(step.kind, tuple(number[a] for a in step.args), step.param))
        number[register] = len(number)
    names = (*(program.inputs[i] for i in varying), *(f"constant{i}" for i in range(len(kept))))
    whole = Program(names, _with_frees(tuple(rest), len(names)))
    return Folded(fixed, tuple(first), tuple(once[a] for a in kept), varying, whole)


def lowered(problem: Problem, path: Path, sliced: Sequence[str] = (), block: int = 0) -> Program:
    """The program of a path through a contraction problem.

    Args:
        problem: what is contracted.
        path: over its tensors.
        sliced: summed legs that are looped over.
        block: rows of a batch tile; 0 for all at once.
    """
    t, sizes = problem.network.topology, problem.sizes
    tensors = [tuple(leg for leg in legs if leg not in sliced) for legs in problem.tensors]
    if BATCH in problem.output:
        shape: tuple[int, ...] = (-1, math.prod(t.outputs.values()))
    elif t.kept:
        shape = tuple(sizes[leg] for leg in problem.output)
    else:
        shape = (math.prod(t.outputs.values()), math.prod(t.inputs.values()))
    program = lower(
        tensors,
        problem.output,
        {**sizes, BATCH: block or problem.batch},
        path,
        names=problem.names,
        output_shape=shape,
        flat_input=problem.form == "apply" and not sliced,
    )
    loops = tuple(
        (sizes[leg], tuple((r, legs.index(leg)) for r, legs in enumerate(problem.tensors) if leg in legs))
        for leg in sliced
    )
    unflatten = (-1, *t.inputs.values()) if sliced and problem.form == "apply" else ()
    gathers = problem.form == "gather"
    return dataclasses.replace(program, sliced=loops, block=block, unflatten=unflatten, gathers=gathers)
