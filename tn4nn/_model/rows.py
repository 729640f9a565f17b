"""What each layer of a model sees of one sample: rows of its matrix, and products of attention."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .layers import Attention, Conv2d, Embedding, Layer, OnNetwork, Shape, Tied
from .layers.base import join


def traced(model: Layer, shape: Shape, prefix: str = "") -> Iterator[tuple[str, Layer, Shape]]:
    """(name, layer, shape of what goes into it) of a model and everything inside, for one input sample."""
    yield prefix, model, shape
    shapes = model.child_shapes(shape)
    for name, child in model.children():
        yield from traced(child, shapes[name], join(prefix, name))


def rows_of(model: Layer, shape: Shape) -> list[tuple[str, OnNetwork, int]]:
    """(name, layer, rows) of every layer on a network, for one sample of a shape.

    Rows are those of x of a linear layer, the tokens of an embedding, the positions of a convolution. A table that is
    the head of its model too (`Tied`) stands there twice, the second time as the linear layer that it is.

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.Sequential(tn.Conv2d(1, 4, kernel=3), tn.Flatten(), tn.Linear(144, 10))
        >>> [(name, rows) for name, _, rows in rows_of(model, (1, 8, 8))]
        [('0', 36), ('2', 1)]
    """
    found: list[tuple[str, OnNetwork, int]] = []
    for name, layer, seen in traced(model, shape):
        if isinstance(layer, Conv2d):
            found.append((name, layer, math.prod(layer.out_shape(seen)[1:])))
        elif isinstance(layer, Embedding):
            found.append((name, layer, math.prod(seen)))
        elif isinstance(layer, OnNetwork):
            found.append((name, layer, math.prod(seen[:-1])))
        elif isinstance(layer, Tied):
            found.append((join(name, "head"), layer.head, math.prod(seen)))
    return found


def attention_macs(model: Layer, shape: Shape) -> int:
    """Multiply-adds of the products of attention, q k^T and those with v, forward for one sample; causal ones are
    counted in full."""
    return sum(
        2 * seen[0] ** 2 * layer.width for _, layer, seen in traced(model, shape) if isinstance(layer, Attention)
    )
