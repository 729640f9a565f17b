"""The layer graph: a model as data.

Layers are frozen dataclasses that check themselves at birth. They hold no numbers and know no framework;
each backend has one table from these classes to what it runs.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np

from .._base.checks import check_schema, nearest, read_json
from .._base.errors import ShapeError, TopologyError
from .._base.hashing import fingerprint_of
from .._graph.init import SCHEMES
from .._graph.init import init as init_network
from .._graph.network import Network, shape_of
from .._graph.ordering import Ordering
from .._graph.ordering import ordering as named_ordering
from .._graph.topology import Topology

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .backend import Module

Shape = tuple[int, ...]
Role = Literal["core", "bias", "scale", "state"]


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """One array of a layer.

    Attributes:
        name: below the layer's own name, e.g. "core0" or "bias".
        shape: of the array.
        role: "core" (of a network), "bias", "scale" (of a norm), or "state" (running statistics: no gradient).
        start: the value a non-core array starts with.
        lr_factor: learning-rate factor of the array (1 for everything but cores).
    """

    name: str
    shape: Shape
    role: Role
    start: float = 0.0
    lr_factor: float = 1.0


_KINDS: dict[str, type[Layer]] = {}


@dataclasses.dataclass(frozen=True)
class Layer:
    """Base of every layer and of every model: a model is a layer."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _KINDS[cls.__name__] = cls

    # -- what a kind of layer says of itself ----------------------------------------------------------------

    def out_shape(self, shape: Shape) -> Shape:
        """Shape of one output sample for one input sample; raises ShapeError where it does not fit."""
        return shape

    def own_specs(self) -> tuple[Spec, ...]:
        """The layer's own arrays, those of its children left out."""
        return ()

    def children(self) -> tuple[tuple[str, Layer], ...]:
        """(name, layer) of the layers inside."""
        return ()

    # -- the same for all -----------------------------------------------------------------------------------

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """(name, layer) of this layer and everything inside; the outermost has the name ""."""
        yield prefix, self
        for name, child in self.children():
            yield from child.walk(f"{prefix}.{name}" if prefix else name)

    def specs(self) -> dict[str, Spec]:
        """Full weight name -> Spec, in order."""
        self.require_ranks()
        return {_join(name, spec.name): spec for name, layer in self.walk() for spec in layer.own_specs()}

    @property
    def num_params(self) -> int:
        """Trainable numbers of the whole model: cores, biases, scales."""
        return sum(math.prod(spec.shape) for spec in self.specs().values() if spec.role != "state")

    @property
    def num_weights(self) -> int:
        """Numbers in the cores of the whole model: no biases, no scales."""
        return sum(math.prod(spec.shape) for spec in self.specs().values() if spec.role == "core")

    def networks(self) -> dict[str, Network]:
        """Layer name -> Network of every layer that has one."""
        return {n: layer.solid(n) for n, layer in self.walk() if isinstance(layer, OnNetwork)}

    def init(self, seed: int = 0) -> dict[str, NDArray[np.float32]]:
        """Draws all weights: name -> float32 array; equal on every backend and machine.

        Example:
            >>> import tn4nn as tn
            >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2)), tn.ReLU())
            >>> sorted(model.init(0))
            ['0.bias', '0.core0', '0.core1']
        """
        weights: dict[str, NDArray[np.float32]] = {}
        for name, layer in self.walk():
            if isinstance(layer, OnNetwork):
                cores = layer.draw(seed, name)
                weights.update({_join(name, core): array for core, array in cores.items()})
            for spec in layer.own_specs():
                if spec.role != "core":
                    weights[_join(name, spec.name)] = np.full(spec.shape, spec.start, dtype=np.float32)
        return {name: weights[name] for name in self.specs()}

    def check(self, weights: Mapping[str, Any]) -> None:
        """Raises ShapeError unless the weights are those of this model, each of the right shape."""
        specs = self.specs()
        for name in weights:
            if name not in specs:
                raise ShapeError(f"{name!r} is no weight of this model." + nearest(name, specs))
        for name, spec in specs.items():
            if name not in weights:
                raise ShapeError(f"weight {name!r} of shape {spec.shape} is missing")
            received = shape_of(weights[name], repr(name))
            if received != spec.shape:
                raise ShapeError(f"{name!r}: expected shape {spec.shape}, received {received}")

    def build(
        self,
        backend: str = "torch",
        weights: Mapping[str, NDArray[Any]] | None = None,
        seed: int | None = None,
        batch: int | None = None,
        phase: str = "train",
        device: str | None = None,
        dtype: str | None = None,
        minimize: str = "time",
        tune: bool = False,
        engine: str | None = None,
    ) -> Module:
        """Makes the native module of a backend: an nn.Module for "torch", a pytree for "jax".

        Args:
            backend: a name out of `tn.backends()`.
            weights: what `init` or training gave; left out, they are drawn from `seed` (default 0).
            seed: see `weights`; not both.
            batch: plan for this batch now; left out, a plan is made at the first call of each size class.
            phase: "train" or "forward": what the plan is cheap for.
            device: the framework's own word; None for its default.
            dtype: e.g. "float32" (default), "float64", "bfloat16".
            minimize: "time", "flops" or "memory".
            tune: measure the best few plans and keep the fastest, where the backend can.
            engine: "quimb" or "tensornetwork", to let that library contract along the plan's path instead, for
                comparison; on torch and jax.

        Raises:
            BackendError: an unknown backend or engine, or what it needs is not installed (with the line that installs
                it).
            ShapeError: weights of another model.
        """
        from .backend import backend as load

        if weights is not None and seed is not None:
            raise ShapeError("build takes weights= or seed=, received both")
        self.require_ranks()
        made = load(backend)
        weights = self.init(seed or 0) if weights is None else weights
        self.check(weights)
        # A backend that cannot measure, or has no other engines, need not know the words.
        options: dict[str, Any] = {"tune": True} if tune else {}
        if engine is not None:
            options["engine"] = engine
        return made.build(
            self,
            weights,
            batch=batch,
            phase=phase,
            device=device,
            dtype=dtype or "float32",
            minimize=minimize,
            **options,
        )

    def require_ranks(self) -> None:
        """Raises TopologyError where a layer still stands on a topology without ranks."""
        for name, layer in self.walk():
            if isinstance(layer, OnNetwork):
                layer.solid(name)

    def to_dict(self) -> dict[str, Any]:
        """The model as plain data."""
        data: dict[str, Any] = {"kind": type(self).__name__}
        for field in dataclasses.fields(self):
            data[field.name] = _encode(getattr(self, field.name))
        return data

    def to_json(self) -> str:
        """The model as JSON; `tn.model_from_json` reads it back."""
        return json.dumps({"schema": 1, "model": self.to_dict()})

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, equal for equal models."""
        return fingerprint_of(self.to_dict())

    def __str__(self) -> str:
        lines = []
        for name, layer in self.walk():
            indent = "  " * (name.count(".") + 1 if name else 0)
            lines.append(f"{indent}{name or 'model'}: {layer.describe()}")
        if any(isinstance(layer, OnNetwork) and not layer.has_ranks for _, layer in self.walk()):
            return "\n".join([*lines, "parameters: not known before every layer has ranks"])
        return "\n".join([*lines, f"{self.num_params:,} parameters, {self.num_weights:,} of them in cores"])

    def describe(self) -> str:
        """One line."""
        plain = [f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self)]
        return f"{type(self).__name__}({', '.join(plain)})"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


# -- layers on a network ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OnNetwork(Layer):
    """A layer whose weight matrix is a network (a dense one is the network of one core).

    `network` may be a Topology that has no ranks yet: `tn.with_budget(model, params=...)` gives it some.
    """

    network: Network | Topology

    @property
    def has_ranks(self) -> bool:
        """Whether the size of every bond is known."""
        return isinstance(self.network, Network) or not self.network.bonds

    def solid(self, name: str = "") -> Network:
        """The network, or an error where ranks are still missing."""
        if isinstance(self.network, Topology):
            if not self.has_ranks:
                raise TopologyError(
                    f"layer {name or type(self).__name__!r} stands on a topology without ranks: give it a Network "
                    "(with_rank, with_budget), or the whole model a budget (tn.with_budget)"
                )
            return Network(self.network, {})
        return self.network

    @property
    def topology(self) -> Topology:
        """The graph, with or without ranks."""
        return self.network if isinstance(self.network, Topology) else self.network.topology

    @property
    def is_dense(self) -> bool:
        """One core with all legs: an ordinary matrix of shape (out_features, in_features)."""
        t = self.topology
        return len(t.cores) == 1 and t.cores[0].legs == (*t.outputs, *t.inputs) and not t.is_padded

    def draw(self, seed: int, name: str) -> dict[str, NDArray[np.float32]]:
        """The cores of this layer."""
        scheme, gain = getattr(self, "init_scheme", "normal"), getattr(self, "gain", 1.0)
        return init_network(self.solid(name), seed, scheme=scheme, gain=gain, name=name)

    def core_specs(self) -> tuple[Spec, ...]:
        """Specs of the cores."""
        net = self.solid()
        factors = net.lr_factors()
        return tuple(Spec(n, shape, "core", lr_factor=factors[n]) for n, shape in net.shapes.items())

    def bias_spec(self, bias: bool) -> tuple[Spec, ...]:
        """Spec of the bias, where there is one."""
        return (Spec("bias", (self.topology.out_features,), "bias"),) if bias else ()

    def describe(self) -> str:
        """One line."""
        t = self.topology
        count = f"{self.network.num_params:,} weights" if isinstance(self.network, Network) else "no ranks yet"
        return f"{type(self).__name__} {t.in_features} -> {t.out_features} on {t.name!r} ({count})"


def _is_whole(number: object) -> TypeGuard[int]:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def _network_of(network: object, out_features: object, what: str) -> Network | Topology:
    if isinstance(network, Network | Topology):
        if out_features is not None:
            raise TopologyError(f"{what} on a network takes its sizes from it: leave out_features away")
        return network
    if _is_whole(network) and _is_whole(out_features):
        from .._graph.catalogue import dense

        return dense(network, out_features).with_rank(1)
    raise TopologyError(
        f"{what} takes a Network or Topology, or in_features and out_features, "
        f"received {type(network).__name__} and {type(out_features).__name__}"
    )


def _check_init(scheme: str, gain: float) -> None:
    if scheme not in SCHEMES:
        raise TopologyError(f"unknown init scheme {scheme!r}." + nearest(scheme, SCHEMES))
    if not gain > 0:
        raise TopologyError(f"gain must be above 0, received {gain!r}")


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

    Example:
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
        _check_init(init, gain)
        put(self, "init_scheme", init)
        put(self, "gain", float(gain))

    def out_shape(self, shape: Shape) -> Shape:
        """(..., in_features) -> (..., out_features)."""
        t = self.topology
        if not shape or shape[-1] != t.in_features:
            raise ShapeError(f"{self.describe()}: expected inputs of shape (..., {t.in_features}), received {shape}")
        return (*shape[:-1], t.out_features)

    def own_specs(self) -> tuple[Spec, ...]:
        """Cores, then the bias."""
        return self.core_specs() + self.bias_spec(self.bias)


def ordering_of(given: object, features: int) -> Ordering | None:
    if given is None:
        return None
    if isinstance(given, str):
        side = math.isqrt(features)
        if side * side != features:
            raise TopologyError(
                f"ordering={given!r} by name needs a square image, received {features} features: "
                "use tn.Ordering with the shape"
            )
        found = named_ordering(given, (side, side))
    elif isinstance(given, Ordering):
        found = given
    else:
        found = Ordering.custom(given)  # type: ignore[arg-type]
    if found.size != features:
        raise TopologyError(f"the ordering permutes {found.size} neurons, the layer has {features}")
    return found


def _pair(value: int | tuple[int, int], what: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int | np.integer) else tuple(value)
    if len(pair) != 2 or any(not _is_whole(n) or n < least for n in pair):
        raise ShapeError(f"{what} must be one or two whole numbers of at least {least}, received {value!r}")
    return int(pair[0]), int(pair[1])


def _slide(size: int, kernel: int, stride: int, padding: int, what: str) -> int:
    count = (size + 2 * padding - kernel) // stride + 1
    if count < 1:
        raise ShapeError(f"{what}: a window of {kernel} does not fit into {size} with padding {padding}")
    return count


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

    Example:
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
        put(self, "kernel", _pair(kernel, "kernel", 1))
        put(self, "stride", _pair(stride, "stride", 1))
        put(self, "padding", _pair(padding, "padding", 0))
        window = math.prod(self.kernel)
        if _is_whole(network):
            network = int(network) * window
        put(self, "network", _network_of(network, out_channels, "Conv2d"))
        if self.topology.in_features % window:
            raise ShapeError(
                f"Conv2d: in_features must be channels * {self.kernel[0]} * {self.kernel[1]}, "
                f"received {self.topology.in_features}"
            )
        put(self, "bias", bool(bias))
        _check_init(init, gain)
        put(self, "init_scheme", init)
        put(self, "gain", float(gain))

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
            _slide(n, k, s, p, self.describe())
            for n, k, s, p in zip(shape[1:], self.kernel, self.stride, self.padding, strict=True)
        )
        return (self.topology.out_features, *sizes)

    def own_specs(self) -> tuple[Spec, ...]:
        """Cores, then the bias."""
        return self.core_specs() + self.bias_spec(self.bias)


@dataclasses.dataclass(frozen=True, init=False)
class Embedding(OnNetwork):
    """Row lookup: y = W^T[i] with W on a network of in_features = tokens, out_features = dimensions.

    Input shape: (...), integers from 0 to tokens - 1. Output shape: (..., dimensions).

    Args:
        network: a Network or Topology, or the number of tokens for a dense table.
        dimensions: of a dense table.
        init: scheme of `Network.init`.
        gain: on the standard deviation; the default gives entries of standard deviation 1.
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
            raise TopologyError(f"an embedding cannot have kept legs, received {', '.join(self.topology.kept)}")
        # A row of the table is one column of W, so its entries must not shrink with the number of tokens.
        gain = math.sqrt(self.topology.in_features) if gain is None else gain
        _check_init(init, gain)
        put(self, "init_scheme", init)
        put(self, "gain", float(gain))

    def out_shape(self, shape: Shape) -> Shape:
        """(...) -> (..., dimensions)."""
        return (*shape, self.topology.out_features)

    def own_specs(self) -> tuple[Spec, ...]:
        """The cores."""
        return self.core_specs()


# -- layers without weights -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ReLU(Layer):
    """max(x, 0), entry by entry."""


@dataclasses.dataclass(frozen=True)
class GELU(Layer):
    """x * Phi(x), the exact form with the error function."""


@dataclasses.dataclass(frozen=True)
class Tanh(Layer):
    """The hyperbolic tangent, entry by entry."""


@dataclasses.dataclass(frozen=True)
class Sigmoid(Layer):
    """1 / (1 + exp(-x)), entry by entry."""


@dataclasses.dataclass(frozen=True)
class SiLU(Layer):
    """x / (1 + exp(-x)), entry by entry."""


@dataclasses.dataclass(frozen=True)
class Flatten(Layer):
    """All axes of a sample in one."""

    def out_shape(self, shape: Shape) -> Shape:
        """(...) -> (product,)."""
        return (math.prod(shape),)


@dataclasses.dataclass(frozen=True)
class Unflatten(Layer):
    """A flat sample as an image or any other shape.

    Args:
        shape: of one sample.
    """

    shape: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or any(n < 1 for n in self.shape):
            raise ShapeError(f"Unflatten: expected sizes of at least 1, received {self.shape}")

    def out_shape(self, shape: Shape) -> Shape:
        """(..., product) -> shape."""
        if math.prod(shape) != math.prod(self.shape):
            raise ShapeError(
                f"Unflatten: {shape} has {math.prod(shape)} numbers, {self.shape} needs {math.prod(self.shape)}"
            )
        return self.shape


@dataclasses.dataclass(frozen=True)
class _Pool(Layer):
    kernel: int | tuple[int, int] = 2
    stride: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        kernel = _pair(self.kernel, "kernel", 1)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "stride", kernel if self.stride is None else _pair(self.stride, "stride", 1))

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(kernel, stride), each a pair."""
        assert isinstance(self.kernel, tuple)
        assert isinstance(self.stride, tuple)
        return self.kernel, self.stride

    def out_shape(self, shape: Shape) -> Shape:
        """(channels, height, width) -> (channels, height', width')."""
        if len(shape) != 3:
            raise ShapeError(f"{type(self).__name__}: expected (channels, height, width), received {shape}")
        kernel, stride = self.window
        sizes = (_slide(n, k, s, 0, type(self).__name__) for n, k, s in zip(shape[1:], kernel, stride, strict=True))
        return (shape[0], *sizes)


@dataclasses.dataclass(frozen=True)
class MaxPool(_Pool):
    """Largest value of each window of a (channels, height, width) image; stride defaults to the kernel."""


@dataclasses.dataclass(frozen=True)
class AvgPool(_Pool):
    """Mean of each window of a (channels, height, width) image; stride defaults to the kernel."""


@dataclasses.dataclass(frozen=True)
class Dropout(Layer):
    """Zeroes entries with probability `rate` in training and scales the others by 1 / (1 - rate)."""

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ShapeError(f"Dropout: the rate must be at least 0 and below 1, received {self.rate!r}")


@dataclasses.dataclass(frozen=True)
class BatchNorm(Layer):
    """Normalises each feature (or channel) over the batch, as torch's BatchNorm1d and BatchNorm2d do.

    Input shape: (features,) or (features, height, width).

    Args:
        features: length of the first axis of a sample.
        momentum: share of the new batch in the running statistics.
        eps: added to the variance.
    """

    features: int
    momentum: float = 0.1
    eps: float = 1e-5

    def out_shape(self, shape: Shape) -> Shape:
        """Unchanged."""
        if len(shape) not in (1, 3) or shape[0] != self.features:
            raise ShapeError(
                f"BatchNorm: expected ({self.features},) or ({self.features}, height, width), received {shape}"
            )
        return shape

    def own_specs(self) -> tuple[Spec, ...]:
        """scale, bias, running mean, running variance."""
        n = (self.features,)
        return (
            Spec("scale", n, "scale", 1.0),
            Spec("bias", n, "bias"),
            Spec("mean", n, "state"),
            Spec("var", n, "state", 1.0),
        )


@dataclasses.dataclass(frozen=True)
class LayerNorm(Layer):
    """Normalises over the last axis.

    Args:
        features: length of the last axis.
        eps: added to the variance.
    """

    features: int
    eps: float = 1e-5

    def out_shape(self, shape: Shape) -> Shape:
        """Unchanged."""
        if not shape or shape[-1] != self.features:
            raise ShapeError(f"LayerNorm: expected (..., {self.features}), received {shape}")
        return shape

    def own_specs(self) -> tuple[Spec, ...]:
        """scale and bias."""
        return Spec("scale", (self.features,), "scale", 1.0), Spec("bias", (self.features,), "bias")


# -- layers of layers -------------------------------------------------------------------------------------------


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
                    f"{name!r} is no name for a layer: expected a letter, then letters, digits, underscores"
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
        made = self.body.out_shape(shape)
        other = shape if self.shortcut is None else self.shortcut.out_shape(shape)
        if made != other:
            raise ShapeError(f"Residual: the body makes {made}, the shortcut {other}: they must agree")
        return made

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
        made = [branch.out_shape(shape) for branch in self.branches]
        if self.combine == "concat":
            if len({s[1:] for s in made}) > 1:
                raise ShapeError(f"Parallel: branches to concatenate differ beyond the first axis: {made}")
            return (sum(s[0] for s in made), *made[0][1:])
        if len(set(made)) > 1:
            raise ShapeError(f"Parallel: branches to add differ in shape: {made}")
        return made[0]

    def describe(self) -> str:
        """One line."""
        return f"Parallel ({self.combine}) of {len(self.branches)}"


# -- as data ----------------------------------------------------------------------------------------------------


def _encode(value: Any) -> Any:
    if isinstance(value, Layer):
        return value.to_dict()
    if isinstance(value, Network):
        return {"network": value.to_dict()}
    if isinstance(value, Topology):
        return {"topology": value.to_dict()}
    if isinstance(value, Ordering):
        return {"ordering": value.to_json_dict()}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "kind" in value:
            return layer_from_dict(value)
        if "network" in value:
            return Network.from_dict(value["network"])
        if "topology" in value:
            return Topology.from_dict(value["topology"])
        if "ordering" in value:
            return Ordering.from_json_dict(value["ordering"])
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    return value


def layer_from_dict(data: Mapping[str, Any]) -> Layer:
    """Reads what `Layer.to_dict` gave."""
    if not isinstance(data, Mapping):
        raise TopologyError(f"a layer is an object in model data, received {data!r}")
    kind = data.get("kind")
    if kind not in _KINDS:
        raise TopologyError(f"unknown kind of layer {kind!r}." + nearest(str(kind), _KINDS))
    cls = _KINDS[kind]
    fields = {key: _decode(value) for key, value in data.items() if key != "kind"}
    try:
        if cls is Sequential:
            numbered = [layer for n, layer in zip(fields["names"], fields["layers"], strict=True) if n.isdigit()]
            named = {n: layer for n, layer in zip(fields["names"], fields["layers"], strict=True) if not n.isdigit()}
            return Sequential(*numbered, input_shape=fields["input_shape"], **named)
        if cls is Parallel:
            return Parallel(*fields["branches"], combine=fields["combine"])
        if issubclass(cls, OnNetwork):
            fields["init"] = fields.pop("init_scheme")
        return cls(**fields)
    except (KeyError, TypeError) as error:
        raise TopologyError(f"data of a {kind} layer does not fit: {error}") from error


def model_from_json(text: str) -> Layer:
    """Reads what `Layer.to_json` wrote.

    Example:
        >>> import tn4nn as tn
        >>> model = tn.Sequential(tn.Linear(8, 4), tn.ReLU())
        >>> tn.model_from_json(model.to_json()) == model
        True
    """
    data = read_json(text, "model")
    check_schema(data, "model", ("model",))
    return layer_from_dict(data["model"])


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
        made = {name: rebuilt(child, _join(prefix, name)) for name, child in layer.children()}
        if isinstance(layer, Sequential):
            numbered = [made[n] for n in layer.names if n.isdigit()]
            return Sequential(
                *numbered, input_shape=layer.input_shape, **{n: made[n] for n in layer.names if not n.isdigit()}
            )
        if isinstance(layer, Parallel):
            return Parallel(*made.values(), combine=layer.combine)
        if isinstance(layer, Residual):
            return Residual(made["body"], made.get("shortcut"))
        return layer

    return rebuilt(model, "")
