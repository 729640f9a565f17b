"""The layers of layers: one after the other, around, and side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from ..._base.errors import ShapeError
from ..._graph.network import Network, transposed
from .base import Layer, OnNetwork, join
from .on_network import Embedding, Linear
from .plain import dropouts
from .shapes import Shape

COMBINES = ("sum", "product", "concat")


def _names(count: int, named: Mapping[str, Layer]) -> tuple[str, ...]:
    """Positions of the layers without a name, then the names of the others."""
    for name in named:
        if not name.isidentifier():  # digits are positions, a dot leads into a layer
            raise ShapeError(
                f"{name!r} is not a name for a layer: expected a letter, then letters, digits, underscores"
            )
    return (*map(str, range(count)), *named)


@dataclasses.dataclass(frozen=True, init=False)
class Sequential(Layer):
    """One layer after the other.

    Args:
        layers: named "0", "1", ... in order.
        input_shape: of one sample; given, every layer is checked against it now. Left out, neighbours are
            checked as far as their sizes are known.
        named: further layers with names of their own, after the others.

    Examples:
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
        everything = (*layers, *named.values())
        for name, layer in zip([*map(str, range(len(layers))), *named], everything, strict=True):
            if not isinstance(layer, Layer):
                raise ShapeError(f"layer {name!r} must be a tn4nn layer, received {type(layer).__name__}")
        put = object.__setattr__
        put(self, "layers", everything)
        put(self, "names", _names(len(layers), named))
        put(self, "input_shape", None if input_shape is None else tuple(input_shape))
        if not everything:
            raise ShapeError("Sequential needs at least one layer, received none")
        shape = self.input_shape
        for name, layer in self.children():
            shape = _propagate(name, layer, shape, self.input_shape is not None)

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """The layers in order."""
        return tuple(zip(self.names, self.layers, strict=True))

    def with_children(self, children: Mapping[str, Layer]) -> Sequential:
        """The same sequence of other layers."""
        numbered = [children[name] for name in self.names if name.isdigit()]
        named = {name: children[name] for name in self.names if not name.isdigit()}
        return Sequential(*numbered, input_shape=self.input_shape, **named)

    def child_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Each takes what the one before makes."""
        found = {}
        for name, layer in self.children():
            found[name], shape = shape, layer.out_shape(shape)
        return found

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


def _propagate(name: str, layer: Layer, shape: Shape | None, certain: bool) -> Shape | None:
    """Checks one layer against a shape that may be unknown; returns what follows, as far as it is known.

    A shape that is not certain may lack leading axes: that of the rows which a Linear layer gives.
    """
    if shape is None:
        if isinstance(layer, Linear):
            return (layer.topology.out_features,)
        return None
    try:
        return layer.out_shape(shape)
    except ShapeError as error:
        if not certain and _takes(layer, (1, *shape)):  # the rows of one sample: how many is not known
            return None
        raise ShapeError(f"layer {name!r}: {error}") from None


def _takes(layer: Layer, shape: Shape) -> bool:
    try:
        layer.out_shape(shape)
    except ShapeError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Residual(Layer):
    """body(x) + shortcut(x); the shortcut is the identity unless given.

    Args:
        body: the layer that is bridged.
        shortcut: e.g. a Linear that brings x to the shape of the body's output.

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.Residual(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(2)))
        >>> model.out_shape((16,)), list(model.networks())
        ((16,), ['body'])
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


@dataclasses.dataclass(frozen=True)
class Block(Layer):
    """One block of a transformer, normalised before each half: x + attention(norm1(x)), then the same with the MLP.

    Its weights are named by the fields, as "attention.query.core0" and "mlp.down.bias".

    Input shape: what `norm1` and `attention` take, (tokens, width). Output shape: the same.

    Args:
        norm1: before the attention.
        attention: what mixes the tokens.
        norm2: before the MLP.
        mlp: what works on each token.
        dropout: rate, on what each half adds to x.

    Raises:
        ShapeError: halves that change the shape, a rate outside of [0, 1).

    Source: Vaswani et al. 2017, Attention Is All You Need (arXiv:1706.03762); norms first: Xiong et al. 2020
    (arXiv:2002.04745).

    Examples:
        >>> import tn4nn as tn
        >>> mlp = tn.Sequential(up=tn.Linear(16, 64), act=tn.GELU(), down=tn.Linear(64, 16))
        >>> tn.Block(tn.LayerNorm(16), tn.Attention(16, 4, causal=True), tn.LayerNorm(16), mlp).out_shape((7, 16))
        (7, 16)
    """

    norm1: Layer
    attention: Layer
    norm2: Layer
    mlp: Layer
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("norm1", "attention", "norm2", "mlp"):
            if not isinstance(getattr(self, name), Layer):
                raise ShapeError(f"Block: {name} must be a tn4nn layer, received {type(getattr(self, name)).__name__}")
        dropouts(self.dropout)

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """norm1, attention, norm2, mlp; then dropout, where there is some."""
        halves = (("norm1", self.norm1), ("attention", self.attention), ("norm2", self.norm2), ("mlp", self.mlp))
        return (*halves, *dropouts(self.dropout))

    def out_shape(self, shape: Shape) -> Shape:
        """Unchanged."""
        for norm, half in ((self.norm1, self.attention), (self.norm2, self.mlp)):
            made = half.out_shape(norm.out_shape(shape))
            if made != shape:
                raise ShapeError(f"Block: {half.describe()} makes {made} of {shape}: it must keep the shape")
        return shape

    def describe(self) -> str:
        """One line."""
        return "Block" + (f" with dropout {self.dropout}" if self.dropout else "")


@dataclasses.dataclass(frozen=True)
class Tied(Layer):
    """Tokens to logits, with one table for both ends: y = body(E[x]) E^T / sqrt(width).

    With entries of E of standard deviation 1, the default of an Embedding, and a body that ends in a norm, the logits
    have standard deviation 1 at the start whatever the width. On a network, E^T is the same cores with inputs and
    outputs exchanged, planned and run as a Linear layer is.

    Input shape: (tokens,), integers. Output shape: (tokens, size of the vocabulary).

    Args:
        embedding: of the tokens, (...) -> (..., width).
        body: what is between the two ends, (..., width) -> (..., width).

    Raises:
        ShapeError: an embedding or a body that is none.

    Source: Press & Wolf 2017, Using the Output Embedding to Improve Language Models (arXiv:1608.05859); the scale:
    Raffel et al. 2020 (arXiv:1910.10683).

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.Tied(tn.Embedding(65, 16), tn.Sequential(tn.Linear(16, 16), tn.LayerNorm(16)))
        >>> model.out_shape((7,)), model.num_weights
        ((7, 65), 1296)
    """

    embedding: Embedding
    body: Layer

    def __post_init__(self) -> None:
        if not isinstance(self.embedding, Embedding) or not isinstance(self.body, Layer):
            raise ShapeError(
                "Tied takes an Embedding and a tn4nn layer, received "
                f"{type(self.embedding).__name__} and {type(self.body).__name__}"
            )

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """embedding, then body."""
        return ("embedding", self.embedding), ("body", self.body)

    @property
    def head(self) -> Linear:
        """E^T as a layer; its cores are those of the embedding."""
        return Linear(transposed(self.embedding.solid("embedding")), bias=False)

    @property
    def scale(self) -> float:
        """1 / sqrt(width)."""
        return 1 / math.sqrt(self.embedding.topology.out_features)

    def child_shapes(self, shape: Shape) -> dict[str, Shape]:
        """The body takes rows of the table."""
        return {"embedding": shape, "body": self.embedding.out_shape(shape)}

    def out_shape(self, shape: Shape) -> Shape:
        """(tokens,) -> (tokens, size of the vocabulary)."""
        t = self.embedding.topology
        made = self.body.out_shape(self.embedding.out_shape(shape))
        if not made or made[-1] != t.out_features:
            raise ShapeError(
                f"Tied: the body must give (..., {t.out_features}), the width of the table, received {made}"
            )
        return (*made[:-1], t.in_features)

    def describe(self) -> str:
        """One line."""
        return "Tied"


@dataclasses.dataclass(frozen=True, init=False)
class Parallel(Layer):
    """The same input through several branches.

    Args:
        branches: named "0", "1", ... in order.
        combine: "sum", "product" (entry by entry), or "concat" along the first axis of a sample (features or channels).
        named: further branches with names of their own, after the others.

    Source: Shazeer 2020, GLU Variants Improve Transformer (arXiv:2002.05202), for the product: a gated MLP.

    Examples:
        >>> import tn4nn as tn
        >>> gate = tn.Sequential(tn.Linear(8, 32), tn.SiLU())
        >>> hidden = tn.Parallel(gate=gate, up=tn.Linear(8, 32), combine="product")
        >>> tn.Sequential(hidden=hidden, down=tn.Linear(32, 8)).out_shape((5, 8))
        (5, 8)
    """

    branches: tuple[Layer, ...]
    combine: str
    names: tuple[str, ...]

    def __init__(self, *branches: Layer, combine: str = "sum", **named: Layer) -> None:
        everything = (*branches, *named.values())
        if not everything or not all(isinstance(b, Layer) for b in everything):
            raise ShapeError(f"Parallel takes at least one tn4nn layer, received {everything!r}")
        if combine not in COMBINES:
            raise ShapeError(f"Parallel: combine must be 'sum', 'product' or 'concat', received {combine!r}")
        object.__setattr__(self, "branches", everything)
        object.__setattr__(self, "combine", combine)
        object.__setattr__(self, "names", _names(len(branches), named))

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """The branches in order."""
        return tuple(zip(self.names, self.branches, strict=True))

    def with_children(self, children: Mapping[str, Layer]) -> Parallel:
        """The same with other branches."""
        numbered = [children[name] for name in self.names if name.isdigit()]
        named = {name: children[name] for name in self.names if not name.isdigit()}
        return Parallel(*numbered, combine=self.combine, **named)

    def out_shape(self, shape: Shape) -> Shape:
        """The common shape, or the first axes added up."""
        shapes = [branch.out_shape(shape) for branch in self.branches]
        if self.combine == "concat":
            if len({s[1:] for s in shapes}) > 1:
                raise ShapeError(f"Parallel: branches to concatenate differ beyond the first axis: {shapes}")
            return (sum(s[0] for s in shapes), *shapes[0][1:])
        check_branches(self, shapes)
        return shapes[0]

    def describe(self) -> str:
        """One line."""
        return f"Parallel ({self.combine}) of {len(self.branches)}"


def check_branches(layer: Parallel, shapes: Sequence[Shape]) -> None:
    """Raises ShapeError unless branches that are added or multiplied have one shape."""
    if len(set(shapes)) > 1:
        verb = "add" if layer.combine == "sum" else "multiply"
        raise ShapeError(f"Parallel: branches to {verb} differ in shape: {list(shapes)}")


def embedding_of(model: Layer) -> Embedding | None:
    """The embedding that x goes into; None for a model that does not begin with one."""
    while isinstance(model, Sequential | Tied):
        model = model.layers[0] if isinstance(model, Sequential) else model.embedding
    return model if isinstance(model, Embedding) else None


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
        return layer.with_children(children) if children else layer

    return rebuilt(model, "")
