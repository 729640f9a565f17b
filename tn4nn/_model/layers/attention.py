"""The layers that know an order of tokens: attention and positions."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from ..._base.errors import ShapeError
from ..._graph.network import Network
from ..._graph.topology import Topology
from .base import Layer
from .on_network import Embedding, Linear
from .plain import dropouts
from .shapes import Shape, is_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BASE = 10000.0  # of rotary positions, as in their paper
_STD = 0.02  # of learned positions, as in GPT-2
PROJECTIONS = ("query", "key", "value", "out")


@dataclasses.dataclass(frozen=True)
class Attention(Layer):
    """Multi-head self-attention: softmax(q k^T / sqrt(size of a head)) v for each head, then the output projection.

    Each projection is a Linear layer, so each may be on a network. They are named "query", "key", "value" and "out".
    With fewer `kv_heads` than `heads`, head h reads keys and values of head h // (heads / kv_heads).

    Rotary positions turn q and k by angles position * base^(-2 j / d), for a head of size d. Entry j is turned with
    entry j + d / 2 (the two halves of a head, as in Llama and GPT-NeoX; the paper turns neighbours).

    Input shape: (tokens, width). Output shape: the same.

    Args:
        width: of a token; a multiple of `heads`.
        heads: of the queries, each of width / heads.
        kv_heads: of keys and values, a divisor of `heads`; left out, as many. 1 is multi-query attention.
        causal: a token sees itself and those before it alone.
        rotary: True for rotary positions of base 10000, or their base.
        query: width -> width, a Linear, Network or Topology; left out, dense. So are the three that follow.
        key: width -> kv_heads * size of a head.
        value: width -> kv_heads * size of a head.
        out: width -> width.
        bias: of the projections that are no Linear layers already.
        dropout: rate, on the weights of the softmax.

    Raises:
        ShapeError: heads that do not divide the width, kv_heads that do not divide heads, rotary positions for heads of
            odd size, a projection of other sizes, a rate outside of [0, 1).

    Source: Vaswani et al. 2017, Attention Is All You Need (arXiv:1706.03762); one head of keys: Shazeer 2019
    (arXiv:1911.02150); groups: Ainslie et al. 2023, GQA (arXiv:2305.13245); rotary positions: Su et al. 2021, RoFormer
    (arXiv:2104.09864).

    Examples:
        >>> import tn4nn as tn
        >>> layer = tn.Attention(16, 4, kv_heads=2, causal=True, rotary=True, out=tn.mpo((4, 4), (4, 4)).with_rank(3))
        >>> layer.out_shape((7, 16)), list(layer.networks())
        ((7, 16), ['query', 'key', 'value', 'out'])
    """

    width: int
    heads: int
    _: dataclasses.KW_ONLY
    kv_heads: int | None = None
    causal: bool = False
    rotary: bool | float = False
    query: Linear | Network | Topology | None = None
    key: Linear | Network | Topology | None = None
    value: Linear | Network | Topology | None = None
    out: Linear | Network | Topology | None = None
    bias: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "heads", "kv_heads"):
            number = getattr(self, name)
            if name == "kv_heads" and number is None:
                number = self.heads
            if not is_whole(number) or number < 1:
                raise ShapeError(f"Attention: {name} must be a whole number of at least 1, received {number!r}")
            object.__setattr__(self, name, int(number))
        for name, whole, parts in (("width", self.width, "heads"), ("heads", self.heads, "kv_heads")):
            if whole % getattr(self, parts):
                raise ShapeError(
                    f"Attention: {name} must be a multiple of {parts}, received {name}={whole} and "
                    f"{parts}={getattr(self, parts)}"
                )
        self._check_rotary()
        dropouts(self.dropout)
        for name, (into, outof) in self._sizes().items():
            layer = getattr(self, name)
            if layer is None:
                layer = Linear(into, outof, bias=self.bias)
            elif isinstance(layer, Network | Topology):
                layer = Linear(layer, bias=self.bias)
            if not isinstance(layer, Linear):
                raise ShapeError(
                    f"Attention: {name} must be a Linear, Network or Topology, received {type(layer).__name__}"
                )
            t = layer.topology
            if (t.in_features, t.out_features) != (into, outof):
                raise ShapeError(
                    f"Attention: {name} must map {into} to {outof} features, received {t.in_features} to "
                    f"{t.out_features}"
                )
            object.__setattr__(self, name, layer)

    def _check_rotary(self) -> None:
        if self.rotary is False:
            return
        base = _BASE if self.rotary is True else self.rotary
        if not (isinstance(base, int | float) and math.isfinite(base) and base > 1):
            raise ShapeError(f"Attention: rotary must be True, False or a base above 1, received {self.rotary!r}")
        if self.head_size % 2:
            raise ShapeError(
                f"Attention: rotary positions turn pairs, so a head must have an even size, received {self.head_size} "
                f"(width={self.width}, heads={self.heads})"
            )
        object.__setattr__(self, "rotary", float(base))

    @property
    def head_size(self) -> int:
        """Numbers in one head of q, k or v."""
        return self.width // self.heads

    @property
    def groups(self) -> int:
        """Heads of keys and values, as a number."""
        assert self.kv_heads is not None
        return self.kv_heads

    def _sizes(self) -> dict[str, tuple[int, int]]:
        narrow = self.groups * self.head_size
        return {
            "query": (self.width, self.width), "key": (self.width, narrow), "value": (self.width, narrow),
            "out": (self.width, self.width),
        }  # fmt: skip

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """Angle of each pair of a head at position 1, shape (size of a head / 2,), for rotary positions."""
        half = self.head_size // 2
        frequencies: NDArray[np.float64] = float(self.rotary) ** (-np.arange(half) / half)
        return frequencies

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """query, key, value, out; then dropout, where there is some."""
        return (*((name, getattr(self, name)) for name in PROJECTIONS), *dropouts(self.dropout))

    def out_shape(self, shape: Shape) -> Shape:
        """Unchanged."""
        if len(shape) != 2 or shape[1] != self.width:
            raise ShapeError(f"{self.describe()}: expected inputs of shape (tokens, {self.width}), received {shape}")
        return shape

    def describe(self) -> str:
        """One line."""
        notes = [f"{self.heads} heads"]
        if self.groups != self.heads:
            notes.append(f"{self.groups} of keys and values")
        notes += [word for word, there in (("causal", self.causal), (f"rotary {self.rotary:g}", self.rotary)) if there]
        return f"Attention {self.width} ({', '.join(notes)})"


@dataclasses.dataclass(frozen=True)
class Positions(Layer):
    """Adds a learned vector for each position, the rows of a table of `context` rows.

    The table is an Embedding of positions, named "table": it is drawn, decayed and given learning rates as one, and may
    be on a network.

    Input shape: (tokens, width), at most `context` tokens. Output shape: the same.

    Args:
        context: the most tokens.
        width: of a token.
        table: an Embedding, Network or Topology of context -> width; left out, dense. Unless it is an Embedding
            already, its entries begin with standard deviation 0.02.

    Raises:
        ShapeError: a table of other sizes.

    Source: Gehring et al. 2017, Convolutional Sequence to Sequence Learning (arXiv:1705.03122); the start: GPT-2.

    Examples:
        >>> import tn4nn as tn
        >>> layer = tn.Positions(64, 16)
        >>> layer.out_shape((7, 16)), layer.init(0)["table.core0"].std().round(3)
        ((7, 16), np.float32(0.02))
    """

    context: int
    width: int
    table: Embedding | Network | Topology | None = None

    def __post_init__(self) -> None:
        for name in ("context", "width"):
            number = getattr(self, name)
            if not is_whole(number) or number < 1:
                raise ShapeError(f"Positions: {name} must be a whole number of at least 1, received {number!r}")
            object.__setattr__(self, name, int(number))
        table = self.table
        gain = _STD * math.sqrt(self.context)
        if table is None:
            table = Embedding(self.context, self.width, gain=gain)
        elif isinstance(table, Network | Topology):
            table = Embedding(table, gain=gain)
        if not isinstance(table, Embedding):
            raise ShapeError(
                f"Positions: table must be an Embedding, Network or Topology, received {type(table).__name__}"
            )
        t = table.topology
        if (t.in_features, t.out_features) != (self.context, self.width):
            raise ShapeError(
                f"Positions: the table must map {self.context} to {self.width} features, received {t.in_features} to "
                f"{t.out_features}"
            )
        object.__setattr__(self, "table", table)

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """table."""
        assert isinstance(self.table, Embedding)
        return (("table", self.table),)

    def child_shapes(self, shape: Shape) -> dict[str, Shape]:
        """The table takes one number for each token."""
        return {"table": shape[:1]}

    def out_shape(self, shape: Shape) -> Shape:
        """Unchanged."""
        if len(shape) != 2 or shape[1] != self.width or shape[0] > self.context:
            raise ShapeError(
                f"{self.describe()}: expected inputs of shape (tokens, {self.width}) with at most {self.context} "
                f"tokens, received {shape}"
            )
        return shape

    def describe(self) -> str:
        """One line."""
        return f"Positions {self.context} of {self.width}"
