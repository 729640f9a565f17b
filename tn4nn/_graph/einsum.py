"""Einsum equations: what they say about legs and sizes, and the contraction and the layer that follow from that."""

from __future__ import annotations

import dataclasses
import functools
import math
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from .._base.errors import ShapeError, TopologyError
from .._base.hashing import fingerprint_of
from .network import Network
from .paths import Legs, letter
from .topology import MOST_LEGS, Core, Topology

Shape = tuple[int, ...]

DOTS = "..."  # in an equation; the legs that it stands for are called ...0, ...1, from the last axis on
_NO_INDEX = frozenset(",.->")


class Reduction(NamedTuple):
    """What is done to one operand alone, before anything is contracted.

    Attributes:
        shape: without the axes of size 1 that are broadcast; None where there are none.
        diagonals: pairs of axes of one index, one after the other: each pair becomes one axis, the last.
        summed: axes whose index is on no other operand and not in the output.
    """

    shape: Shape | None
    diagonals: tuple[tuple[int, int], ...]
    summed: Shape


@dataclasses.dataclass(frozen=True)
class Equation:
    """An einsum equation for arrays of given shapes.

    Attributes:
        text: the equation, without spaces.
        operands: the legs of each operand, an ellipsis written out.
        output: those of the result, in order.
        shapes: of the operands.
        sizes: of every leg.
    """

    text: str
    operands: tuple[Legs, ...]
    output: Legs
    shapes: tuple[Shape, ...]
    sizes: dict[str, int] = dataclasses.field(hash=False)

    @property
    def output_shape(self) -> Shape:
        """Of the result."""
        return tuple(self.sizes[leg] for leg in self.output)

    @functools.cached_property
    def problem(self) -> EinsumProblem:
        """The contraction of what the reductions leave of the operands."""
        return EinsumProblem(tuple(legs for _, legs in self._reduced), self.output, self.sizes)

    @functools.cached_property
    def reductions(self) -> tuple[Reduction | None, ...]:
        """What is done to each operand first; None where nothing is."""
        return tuple(reduction for reduction, _ in self._reduced)

    @functools.cached_property
    def _reduced(self) -> list[tuple[Reduction | None, Legs]]:
        present = [
            tuple(leg for leg, size in zip(legs, shape, strict=True) if size == self.sizes[leg])
            for legs, shape in zip(self.operands, self.shapes, strict=True)
        ]
        holders = Counter(leg for legs in (*present, self.output) for leg in dict.fromkeys(legs))
        return [
            _reduction(legs, there, self.sizes, {leg for leg in there if holders[leg] == 1})
            for legs, there in zip(self.operands, present, strict=True)
        ]

    @functools.cached_property
    def layer(self) -> LayerForm | None:
        """The equation as a network applied to rows, where it has that form."""
        return _layer(self) if not any(self.reductions) else None


@dataclasses.dataclass(frozen=True)
class EinsumProblem:
    """One contraction of any tensors: each leg is on two tensors or more, or on one and in the output.

    Attributes:
        tensors: the legs of each.
        output: legs of the result, in order.
        sizes: of every leg.

    Examples:
        >>> read("ij,jk", [(2, 3), (3, 4)]).problem.fingerprint == read("ab,bc", [(2, 3), (3, 4)]).problem.fingerprint
        True
    """

    tensors: tuple[Legs, ...]
    output: Legs
    sizes: dict[str, int] = dataclasses.field(hash=False)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that are equal for equal contractions, whatever their legs are called."""
        number = {leg: i for i, leg in enumerate(dict.fromkeys(leg for legs in self.tensors for leg in legs))}
        tensors = [[number[leg] for leg in legs] for legs in self.tensors]
        return fingerprint_of(
            [tensors, [number[leg] for leg in self.output if leg in number], [self.sizes[leg] for leg in number]]
        )


class LayerForm(NamedTuple):
    """An equation as y = x W^T: one operand has leading legs that no other has, and the result begins with them.

    Attributes:
        network: W; its cores are the other operands.
        cores: their positions among the operands.
        x: the position of the operand that is applied to.
        batch: the product of the leading sizes.
    """

    network: Network
    cores: tuple[int, ...]
    x: int
    batch: int

    def over_operands(self, path: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """A path over the cores and x, in that order, as one over the operands."""
        number = {**dict(enumerate(self.cores)), len(self.cores): self.x}
        return tuple((number.get(a, a), number.get(b, b)) for a, b in path)


def read(text: str, shapes: Sequence[Sequence[int]]) -> Equation:
    """Reads an equation for operands of these shapes.

    Args:
        text: as of numpy.einsum: operands split by commas, a character for each axis, then an arrow and the indices of
            the result; without an arrow, those that occur once, in alphabetical order, behind the axes of an ellipsis.
            Any character is an index but a comma, a dot, an arrow or a space.
        shapes: of the operands. An axis of size 1 fits an index of any size.

    Raises:
        TopologyError: no such equation, another number of operands, an index of the result that is on no operand or
            twice in it.
        ShapeError: another number of axes, or an index of two sizes.

    Examples:
        >>> e = read("ij,jk", [(2, 3), (3, 4)])
        >>> e.output, e.output_shape
        (('i', 'k'), (2, 4))
    """
    if not isinstance(text, str):
        raise TopologyError(f"an equation is text like 'ij,jk->ik', received {type(text).__name__}")
    text = "".join(text.split())
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    for term in (*terms, right):
        _check_term(term, text)
    if len(terms) != len(shapes):
        raise TopologyError(f"equation {text!r} has {_counted(len(terms), 'operand')}, received {len(shapes)}")
    whole = tuple(tuple(int(size) for size in shape) for shape in shapes)
    operands = tuple(_legs(i, term, shape) for i, (term, shape) in enumerate(zip(terms, whole, strict=True)))
    sizes = _sizes(terms, operands, whole)
    dots = max((tuple(leg for leg in legs if leg.startswith(DOTS)) for legs in operands), key=len)
    if arrow:
        output = _expanded(right, dots)
        _check_output(text, right, output, sizes)
    else:
        once = Counter(leg for legs in operands for leg in legs)
        output = (*dots, *sorted(leg for leg, count in once.items() if count == 1 and leg not in dots))
    return Equation(text, operands, output, whole, sizes)


def _check_term(term: str, text: str) -> None:
    bare = term.replace(DOTS, "", 1)
    if not _NO_INDEX.isdisjoint(bare):
        raise TopologyError(
            f"expected an equation like 'ij,jk->ik', with one arrow at most and one ellipsis (...) in each operand, "
            f"received {text!r}"
        )


def _legs(position: int, term: str, shape: Shape) -> Legs:
    letters = len(term) - len(DOTS) * (DOTS in term)
    dots = len(shape) - letters
    if dots < 0 or (dots and DOTS not in term):
        expected = f"{letters} or more" if DOTS in term else str(letters)
        raise ShapeError(f"operand {position} ({term!r}): expected {expected} axes, received shape {shape}")
    return _expanded(term, tuple(f"{DOTS}{i}" for i in reversed(range(dots))))


def _expanded(term: str, dots: Legs) -> Legs:
    before, ellipsis, after = term.partition(DOTS)
    return (*before, *(dots if ellipsis else ()), *after)


def _sizes(terms: Sequence[str], operands: Sequence[Legs], shapes: Sequence[Shape]) -> dict[str, int]:
    """Leg -> its size, which is above 1 where it is on any operand; ShapeError where two of those differ."""
    sizes: dict[str, int] = {}
    where: dict[str, int] = {}
    for position, (legs, shape) in enumerate(zip(operands, shapes, strict=True)):
        mine: dict[str, int] = {}
        for leg, size in zip(legs, shape, strict=True):
            if mine.setdefault(leg, size) != size:
                raise ShapeError(
                    f"index {leg!r} is twice on operand {position} ({terms[position]!r}, shape {shape}), so the two "
                    f"axes must be equally long, received {mine[leg]} and {size}"
                )
            if sizes.get(leg, 1) == 1:
                sizes[leg], where[leg] = size, position
            elif size not in (1, sizes[leg]):
                other = where[leg]
                raise ShapeError(
                    f"index {leg!r} has size {sizes[leg]} on operand {other} ({terms[other]!r}, shape {shapes[other]}) "
                    f"and {size} on operand {position} ({terms[position]!r}, shape {shape})"
                )
    return sizes


def _check_output(text: str, right: str, output: Legs, sizes: dict[str, int]) -> None:
    for leg in output:
        if leg not in sizes:
            raise TopologyError(f"index {leg!r} is right of the arrow of {text!r}, but on no operand")
        if output.count(leg) > 1:
            raise TopologyError(f"index {leg!r} is {output.count(leg)} times right of the arrow of {text!r}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _reduction(legs: Legs, there: Legs, sizes: dict[str, int], alone: set[str]) -> tuple[Reduction | None, Legs]:
    """What is done to an operand of these legs, and the legs that stay.

    Args:
        legs: of the operand.
        there: those that are not broadcast.
        sizes: of every leg.
        alone: those that nothing else holds.
    """
    shape = tuple(sizes[leg] for leg in there) if there != legs else None
    left, diagonals = list(there), []
    for leg in dict.fromkeys(there):
        while left.count(leg) > 1:
            first = left.index(leg)
            second = left.index(leg, first + 1)
            diagonals.append((first, second))
            left = [*left[:first], *left[first + 1 : second], *left[second + 1 :], leg]
    summed = tuple(axis for axis, leg in enumerate(left) if leg in alone)
    rest = tuple(leg for leg in left if leg not in alone)
    if shape is None and not diagonals and not summed:
        return None, rest
    return Reduction(shape, tuple(diagonals), summed), rest


def _layer(equation: Equation) -> LayerForm | None:
    """The operand that alone holds the first leg of the result is x, where all legs that are its own lead in both."""
    operands, output, sizes = equation.operands, equation.output, equation.sizes
    if len(operands) < 3 or not output or 0 in sizes.values():
        return None
    holders = Counter(leg for legs in operands for leg in legs)
    x = next(i for i, legs in enumerate(operands) if output[0] in legs)
    own = sum(holders[leg] == 1 for leg in operands[x])
    batch, inputs, outputs = operands[x][:own], operands[x][own:], output[own:]
    if not own or batch != output[:own] or any(holders[leg] > 1 for leg in batch) or not inputs or not outputs:
        return None
    cores = [(i, legs) for i, legs in enumerate(operands) if i != x]
    if not all(legs and len(legs) <= MOST_LEGS for _, legs in cores):
        return None
    name = {leg: f"l{i}" for i, leg in enumerate(sizes)}  # any character may be an index, but not a name of a leg
    named = [Core(f"core{i}", tuple(name[leg] for leg in legs)) for i, (_, legs) in enumerate(cores)]
    before, after = ({name[leg]: sizes[leg] for leg in side} for side in (inputs, outputs))
    topology = Topology(tuple(named), before, after, name=equation.text)
    network = Network(topology, {name[leg]: sizes[leg] for leg in sizes if name[leg] in topology.bonds})
    return LayerForm(network, tuple(i for i, _ in cores), x, math.prod(sizes[leg] for leg in batch))


# -- the form with lists of labels ---------------------------------------------------------------------------------


def interleaved(given: Sequence[Any]) -> tuple[str, list[Any]]:
    """The equation and the operands of `operand, labels, operand, labels, ..., labels of the result`.

    Labels are whole numbers or other values that can be hashed, and Ellipsis; the last list may be left out.

    Raises:
        TopologyError: labels that are no list.

    Examples:
        >>> interleaved(["A", [0, 1], "B", [1, 2], [0, 2]])
        ('AB,BC->AC', ['A', 'B'])
    """
    arrays, lists = list(given[:-1:2]), list(given[1::2])
    if len(given) % 2:
        lists.append(given[-1])
    for labels in lists:
        if not isinstance(labels, list | tuple):
            raise TopologyError(
                "expected an equation and arrays, or arrays each with a list of labels and a list for the result, like "
                f"einsum(a, [0, 1], b, [1, 2], [0, 2]); received {type(labels).__name__} in place of a list"
            )
    try:
        text = _lettered(tuple(map(tuple, lists)), len(arrays))
    except TypeError as error:
        raise TopologyError(f"labels of axes are whole numbers or other values that can be hashed: {error}") from error
    return text, arrays


@functools.lru_cache(maxsize=1024)
def _lettered(lists: tuple[tuple[Hashable, ...], ...], count: int) -> str:
    labels = {label for each in lists for label in each if label is not Ellipsis}
    try:
        ordered = sorted(labels)  # type: ignore[type-var]
    except TypeError:  # of several kinds
        ordered = sorted(labels, key=lambda label: (type(label).__name__, str(label)))
    few = string.ascii_uppercase + string.ascii_lowercase
    name = {label: few[i] if len(ordered) <= len(few) else letter(i) for i, label in enumerate(ordered)}
    terms = ["".join(DOTS if label is Ellipsis else name[label] for label in each) for each in lists]
    return ",".join(terms[:count]) + "".join(f"->{term}" for term in terms[count:])
