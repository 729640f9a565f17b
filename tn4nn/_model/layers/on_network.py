"""The layers whose weight matrix is a network: linear, convolution, embedding."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..._base.checks import nearest
from ..._base.errors import ShapeError, TopologyError
from ..._graph.catalogue import dense
from ..._graph.init import SCHEMES, lr_factors
from ..._graph.muon import Axes
from ..._graph.network import Network
from ..._graph.ordering import Ordering, ordering_of
from ..._graph.topology import Topology
from .base import OnNetwork
from .shapes import Shape, is_whole, pair, windows


def _network_of(network: object, out_features: object, what: str) -> Network | Topology:
    if isinstance(network, Network | Topology):
        if out_features is not None:
            raise TopologyError(f"{what} on a network takes its sizes from it: leave out_features away")
        return network
    if is_whole(network) and is_whole(out_features):
        return dense(network, out_features).with_rank(1)
    raise TopologyError(
        f"{what} takes a Network or Topology, or in_features and out_features, "
        f"received {type(network).__name__} and {type(out_features).__name__}. For a layer on a network "
        'build a Network first: tn.build("mpo", 64, 64).with_budget(params=1000)'
    )


def _put_init(layer: OnNetwork, scheme: str, gain: float) -> None:
    if scheme not in SCHEMES:
        raise TopologyError(f"unknown init scheme {scheme!r}." + nearest(scheme, SCHEMES))
    if not gain > 0:
        raise TopologyError(f"gain must be above 0, received {gain!r}")
    object.__setattr__(layer, "init_scheme", scheme)
    object.__setattr__(layer, "gain", float(gain))


@dataclasses.dataclass(frozen=True, init=False)
class Linear(OnNetwork):
    """y = x W^T + b with W on a network.

    Input shape: (..., in_features). Output shape: (..., out_features).

    Args:
        network: a Network (or a Topology, for a model that gets its budget as a whole), or in_features for a
            dense layer.
        out_features: of a dense layer.
        bias: whether b is there.
        ordering: how the input neurons are laid out before they are split into modes: an Ordering, its name
            for a square image ("hilbert", "morton", "raster", "random"), or a permutation.
        init: scheme of `Network.init`.
        gain: of `Network.init`.

    Examples:
        >>> import tn4nn as tn
        >>> tn.Linear(tn.ring((4, 4), (2, 2)).with_rank(2)).out_shape((16,))
        (4,)
    """

    bias: bool = True
    ordering: Ordering | None = None
    init_scheme: str = "normal"
    gain: float = 1.0

    def __init__(
        self,
        network: Network | Topology | int,
        out_features: int | None = None,
        bias: bool = True,
        ordering: Ordering | str | Any | None = None,
        *,
        init: str = "normal",
        gain: float = 1.0,
    ) -> None:
        put = object.__setattr__
        put(self, "network", _network_of(network, out_features, "Linear"))
        put(self, "bias", bool(bias))
        put(self, "ordering", ordering_of(ordering, self.topology.in_features))
        _put_init(self, init, gain)

    def out_shape(self, shape: Shape) -> Shape:
        """(..., in_features) -> (..., out_features)."""
        t = self.topology
        if not shape or shape[-1] != t.in_features:
            raise ShapeError(f"{self.describe()}: expected inputs of shape (..., {t.in_features}), received {shape}")
        return (*shape[:-1], t.out_features)


@dataclasses.dataclass(frozen=True, init=False)
class Conv2d(OnNetwork):
    """A 2-D convolution (cross-correlation) whose kernel matrix is a network.

    The matrix has shape (out_channels, in_channels * kh * kw), its columns in the order (channel, row,
    column). That serves both forms of the literature: the kernel as modes of its own (input legs for the
    channels, then one of size kh, one of size kw), and the flattened one (any factors of the product).

    Input shape: (channels, height, width). Output shape: (out_channels, height', width').

    Args:
        network: a Network or Topology with in_features = in_channels * kh * kw, or in_channels for a dense
            kernel.
        out_channels: of a dense kernel.
        kernel: (kh, kw) or one number for both.
        stride: of the window.
        padding: zeros around the image.
        bias: whether b is there.
        init: scheme of `Network.init`.
        gain: of `Network.init`.

    Examples:
        >>> import tn4nn as tn
        >>> t = tn.topology("c a, h w o a", {"c": 8, "h": 3, "w": 3}, {"o": 16})
        >>> tn.Conv2d(t.with_rank(4), kernel=3, padding=1).out_shape((8, 10, 10))
        (16, 10, 10)
    """

    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    bias: bool = True
    init_scheme: str = "normal"
    gain: float = 1.0

    def __init__(
        self,
        network: Network | Topology | int,
        out_channels: int | None = None,
        kernel: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        *,
        init: str = "normal",
        gain: float = 1.0,
    ) -> None:
        put = object.__setattr__
        put(self, "kernel", pair(kernel, "kernel", 1))
        put(self, "stride", pair(stride, "stride", 1))
        put(self, "padding", pair(padding, "padding", 0))
        window = math.prod(self.kernel)
        if is_whole(network):
            network = int(network) * window
        put(self, "network", _network_of(network, out_channels, "Conv2d"))
        if self.topology.in_features % window:
            raise ShapeError(
                f"Conv2d: in_features must be channels * {self.kernel[0]} * {self.kernel[1]}, "
                f"received {self.topology.in_features}"
            )
        put(self, "bias", bool(bias))
        _put_init(self, init, gain)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.topology.in_features // math.prod(self.kernel)

    def out_shape(self, shape: Shape) -> Shape:
        """(channels, height, width) -> (out_channels, height', width')."""
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise ShapeError(
                f"{self.describe()}: expected inputs of shape ({self.in_channels}, height, width), received {shape}"
            )
        sizes = (
            windows(n, k, s, p, self.describe())
            for n, k, s, p in zip(shape[1:], self.kernel, self.stride, self.padding, strict=True)
        )
        return (self.topology.out_features, *sizes)


@dataclasses.dataclass(frozen=True, init=False)
class Embedding(OnNetwork):
    """Row lookup: y = W^T[i] with W on a network of in_features = tokens, out_features = dimensions.

    Input shape: (...), integers from 0 to tokens - 1. Output shape: (..., dimensions).

    Args:
        network: a Network or Topology, or the number of tokens for a dense table.
        dimensions: of a dense table.
        init: scheme of `Network.init`.
        gain: on the standard deviation; the default gives entries of standard deviation 1.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> table = tn.Embedding(tn.mpo((10, 10, 10), (4, 4, 4)).with_rank(4))
        >>> table.num_params  # a dense table has 64,000
        960
        >>> table.build("numpy")(np.array([[3, 1, 999]])).shape
        (1, 3, 64)
    """

    init_scheme: str = "normal"
    gain: float = 1.0

    def __init__(
        self,
        network: Network | Topology | int,
        dimensions: int | None = None,
        *,
        init: str = "normal",
        gain: float | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "network", _network_of(network, dimensions, "Embedding"))
        if self.topology.kept:
            raise TopologyError(f"an embedding cannot have batch legs, received {', '.join(self.topology.kept)}")
        # A row of the table is one column of W, so its entries must not shrink with the number of tokens.
        gain = math.sqrt(self.topology.in_features) if gain is None else gain
        _put_init(self, init, gain)

    def out_shape(self, shape: Shape) -> Shape:
        """(...) -> (..., dimensions)."""
        return (*shape, self.topology.out_features)

    def lr_factors(self, *, lr: float | None = None, optimizer: str = "adam") -> dict[str, float]:
        """Learning-rate factor of each core: those of an input with a single one."""
        return lr_factors(self.solid(), None, lr, optimizer, gain=self.gain, one_hot=True)

    def matrix_axes(self) -> dict[str, Axes]:
        """None: a table is left to AdamW."""
        return {}
