"""The layers of layers: one after the other, around, and side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..._base.errors import ShapeError
from ..._graph.network import Network
from .base import Layer, OnNetwork, join
from .on_network import Linear
from .shapes import Shape


@dataclasses.dataclass(frozen=True, init=False)
class Sequential(Layer):
    """One layer after the other.

    Args:
        layers: named "0", "1", ... in order.
        input_shape: of one sample; given, every layer is checked against it now. Left out, neighbours are
            checked as far as their sizes are known.
        named: further layers with names of their own, after the others.

    Example:
        >>> import tn4nn as tn
        >>> tn.Sequential(tn.Linear(8, 4), tn.ReLU(), tn.Linear(5, 2))
        Traceback (most recent call last):
            ...
        tn4nn.ShapeError: layer '2': Linear 5 -> 2 on 'dense' (10 weights): expected ... (4,)
    """

    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    input_shape: Shape | None

    def __init__(self, *layers: Layer, input_shape: Shape | None = None, **named: Layer) -> None:
        names = [str(i) for i in range(len(layers))] + list(named)
        everything = (*layers, *named.values())
        for name, layer in zip(names, everything, strict=True):
            if not isinstance(layer, Layer):
                raise ShapeError(f"layer {name!r} must be a tn4nn layer, received {type(layer).__name__}")
        for name in named:
            if not name.isidentifier():  # digits are positions, a dot leads into a layer
                raise ShapeError(
                    f"{name!r} is not a name for a layer: expected a letter, then letters, digits, underscores"
                )
        put = object.__setattr__
        put(self, "layers", everything)
        put(self, "names", tuple(names))
        put(self, "input_shape", None if input_shape is None else tuple(input_shape))
        if not everything:
            raise ShapeError("Sequential needs at least one layer, received none")
        shape = self.input_shape
        for name, layer in self.children():
            shape = _propagate(name, layer, shape)

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """The layers in order."""
        return tuple(zip(self.names, self.layers, strict=True))

    def out_shape(self, shape: Shape) -> Shape:
        """Through all layers."""
        for name, layer in self.children():
            try:
                shape = layer.out_shape(shape)
            except ShapeError as error:
                raise ShapeError(f"layer {name!r}: {error}") from None
        return shape

    def describe(self) -> str:
        """One line."""
        return f"Sequential of {len(self.layers)}"


def _propagate(name: str, layer: Layer, shape: Shape | None) -> Shape | None:
    """Checks one layer against a shape that may be unknown; returns what follows, as far as it is known."""
    if shape is None:
        if isinstance(layer, Linear):
            return (layer.topology.out_features,)
        return None
    try:
        return layer.out_shape(shape)
    except ShapeError as error:
        raise ShapeError(f"layer {name!r}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Residual(Layer):
    """body(x) + shortcut(x); the shortcut is the identity unless given.

    Args:
        body: the layer that is bridged.
        shortcut: e.g. a Linear that brings x to the shape of the body's output.
    """

    body: Layer
    shortcut: Layer | None = None

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """body, then shortcut."""
        rest = () if self.shortcut is None else (("shortcut", self.shortcut),)
        return (("body", self.body), *rest)

    def out_shape(self, shape: Shape) -> Shape:
        """That of the body, which the shortcut must have too."""
        body = self.body.out_shape(shape)
        other = shape if self.shortcut is None else self.shortcut.out_shape(shape)
        if body != other:
            raise ShapeError(f"Residual: the body makes {body}, the shortcut {other}: they must agree")
        return body

    def describe(self) -> str:
        """One line."""
        return "Residual"


@dataclasses.dataclass(frozen=True, init=False)
class Parallel(Layer):
    """The same input through several branches.

    Args:
        branches: named "0", "1", ... in order.
        combine: "sum", or "concat" along the first axis of a sample (features or channels).
    """

    branches: tuple[Layer, ...]
    combine: str

    def __init__(self, *branches: Layer, combine: str = "sum") -> None:
        if not branches or not all(isinstance(b, Layer) for b in branches):
            raise ShapeError(f"Parallel takes at least one tn4nn layer, received {branches!r}")
        if combine not in ("sum", "concat"):
            raise ShapeError(f"Parallel: combine must be 'sum' or 'concat', received {combine!r}")
        object.__setattr__(self, "branches", tuple(branches))
        object.__setattr__(self, "combine", combine)

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """The branches in order."""
        return tuple((str(i), branch) for i, branch in enumerate(self.branches))

    def out_shape(self, shape: Shape) -> Shape:
        """The common shape, or the first axes added up."""
        shapes = [branch.out_shape(shape) for branch in self.branches]
        if self.combine == "concat":
            if len({s[1:] for s in shapes}) > 1:
                raise ShapeError(f"Parallel: branches to concatenate differ beyond the first axis: {shapes}")
            return (sum(s[0] for s in shapes), *shapes[0][1:])
        if len(set(shapes)) > 1:
            raise ShapeError(f"Parallel: branches to add differ in shape: {shapes}")
        return shapes[0]

    def describe(self) -> str:
        """One line."""
        return f"Parallel ({self.combine}) of {len(self.branches)}"


def replace_networks(model: Layer, networks: Mapping[str, Network]) -> Layer:
    """The same model with other networks under the given layer names."""

    def rebuilt(layer: Layer, prefix: str) -> Layer:
        if isinstance(layer, OnNetwork):
            if prefix not in networks:
                return layer
            copy = object.__new__(type(layer))
            for field in dataclasses.fields(layer):
                object.__setattr__(copy, field.name, getattr(layer, field.name))
            object.__setattr__(copy, "network", networks[prefix])
            return copy
        children = {name: rebuilt(child, join(prefix, name)) for name, child in layer.children()}
        if isinstance(layer, Sequential):
            numbered = [children[n] for n in layer.names if n.isdigit()]
            return Sequential(
                *numbered, input_shape=layer.input_shape, **{n: children[n] for n in layer.names if not n.isdigit()}
            )
        if isinstance(layer, Parallel):
            return Parallel(*children.values(), combine=layer.combine)
        if isinstance(layer, Residual):
            return Residual(children["body"], children.get("shortcut"))
        return layer

    return rebuilt(model, "")
