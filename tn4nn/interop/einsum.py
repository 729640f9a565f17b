"""Einsum equations as networks, and back. An equation is over the cores alone: the input x is not an operand."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable, Sequence

from .._base.errors import TopologyError
from .._graph.network import Network
from .._graph.paths import letter
from ._tensors import check_on_cores, core_names, network_of

Shape = tuple[int, ...]


def from_einsum(
    equation: str,
    shapes: Sequence[Sequence[int]],
    *,
    inputs: Iterable[str],
    outputs: Iterable[str] | None = None,
    name: str = "einsum",
) -> Network:
    """The Network of an einsum over cores.

    Args:
        equation: e.g. ``"xab,byc->..."`` without dots: one letter for each axis, operands split by commas. What is
            right of the arrow is open; without an arrow, every index that occurs once.
        shapes: of the operands, in order.
        inputs: the indices that meet the layer's input, in mode order: a string of letters or a sequence.
        outputs: the indices that form its output, in mode order (default: the open ones that are not inputs, in
            the order right of the arrow). An index in both is a batch leg.
        name: what tables call it.

    Raises:
        TopologyError: an ellipsis, an index twice on one operand (a trace) or of two sizes, an index on one operand
            alone that is neither input nor output, shapes that do not fit.

    Source: the notation of numpy.einsum.

    Examples:
        >>> from tn4nn.interop.einsum import from_einsum
        >>> net = from_einsum("xab,byc->xayc", [(4, 5, 3), (3, 6, 2)], inputs="xy")
        >>> net.in_features, net.out_features, net.ranks
        (24, 10, {'b': 3})
    """
    operands, result = _split(equation)
    sizes = _sizes(operands, shapes)
    counted = "".join(operands)
    opened = result if result is not None else tuple(sorted(leg for leg in sizes if counted.count(leg) == 1))
    inputs = tuple(inputs)
    outputs = tuple(leg for leg in opened if leg not in inputs) if outputs is None else tuple(outputs)
    if result is not None:
        _check_opened(result, inputs, outputs)
    names = core_names([None] * len(operands))
    return network_of([(n, tuple(o)) for n, o in zip(names, operands, strict=True)], sizes, (inputs, outputs), name)


def _split(equation: str) -> tuple[list[str], tuple[str, ...] | None]:
    """The operands, and the indices right of the arrow where there is one."""
    text = "".join(equation.split())
    if "." in text:
        raise TopologyError(
            f"an equation with an ellipsis does not say its indices: write out every one in {equation!r}"
        )
    left, arrow, right = text.partition("->")
    if "-" in left or ">" in left or set(right) & set(",->"):
        raise TopologyError(f"expected an equation like 'xa,ay->xy', received {equation!r}")
    return left.split(","), tuple(right) if arrow else None


def _sizes(operands: Sequence[str], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    if len(operands) != len(shapes):
        raise TopologyError(f"the equation has {len(operands)} operands, received {len(shapes)} shapes")
    sizes: dict[str, int] = {}
    for position, (legs, shape) in enumerate(zip(operands, shapes, strict=True)):
        if len(legs) != len(shape):
            raise TopologyError(f"operand {position} ({legs!r}) has {len(legs)} indices, received shape {tuple(shape)}")
        for leg, size in zip(legs, shape, strict=True):
            if sizes.setdefault(leg, size) != size:
                raise TopologyError(
                    f"index {leg!r} has size {sizes[leg]} before and {size} on operand {position} ({legs!r})"
                )
    return sizes


def _check_opened(result: Sequence[str], inputs: Sequence[str], outputs: Sequence[str]) -> None:
    for leg in (*inputs, *outputs):
        if leg not in result:
            raise TopologyError(f"index {leg!r} is input or output, so it must be right of the arrow")
    for leg in result:
        if result.count(leg) > 1:
            raise TopologyError(f"index {leg!r} occurs twice right of the arrow")
        if leg not in inputs and leg not in outputs:
            raise TopologyError(f"index {leg!r} is right of the arrow: name it in inputs= or outputs=")


def to_einsum(network: Network) -> tuple[str, list[Shape]]:
    """The equation of W and the shapes of the cores: the result's axes are the output legs, then the input legs.

    A leg of one letter keeps it; the others get letters, and Chinese characters after the 52 that numpy.einsum takes
    (opt_einsum and cotengra take them). A batch leg occurs once, among the outputs.

    Raises:
        TopologyError: a batch leg is on no core.

    Source: the notation of numpy.einsum.

    Examples:
        >>> from tn4nn.interop.einsum import to_einsum
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.low_rank(6, 4).with_rank(2)
        >>> equation, shapes = to_einsum(net)
        >>> equation, shapes
        ('ab,bc->ca', [(6, 2), (2, 4)])
        >>> weights = net.init(0)
        >>> np.allclose(np.einsum(equation, *weights.values()), net.to_dense(weights))
        True
    """
    check_on_cores(network, "an einsum over cores")
    t = network.topology
    legs = dict.fromkeys(leg for core in t.cores for leg in core.legs)
    own = {leg for leg in legs if len(leg) == 1 and leg in string.ascii_letters}
    spare = (one for one in _letters() if one not in own)
    letters = {leg: leg if leg in own else next(spare) for leg in legs}
    left = ",".join("".join(letters[leg] for leg in core.legs) for core in t.cores)
    right = "".join(letters[leg] for leg in dict.fromkeys([*t.outputs, *t.inputs]))
    return f"{left}->{right}", list(network.shapes.values())


def _letters() -> Iterable[str]:
    yield from string.ascii_letters
    yield from map(letter, itertools.count())
