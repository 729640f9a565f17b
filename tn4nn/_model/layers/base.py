"""What every layer is: its arrays, its place in a model, and how it is drawn, checked, built and written as data."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from ..._base.errors import ShapeError, TopologyError
from ..._base.hashing import fingerprint_of
from ..._base.notebook import shown
from ..._graph.init import core_scales, lr_factors
from ..._graph.init import init as init_network
from ..._graph.muon import Axes, matrix_axes
from ..._graph.network import Network, check_arrays
from ..._graph.ordering import Ordering
from ..._graph.topology import Topology
from .shapes import Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backend import Module

T = TypeVar("T")
Role = Literal["core", "bias", "scale", "state"]


@dataclasses.dataclass(frozen=True, slots=True)
class Spec:
    """One array of a layer.

    Attributes:
        name: below the layer's own name, e.g. "core0" or "bias".
        shape: of the array.
        role: "core" (of a network), "bias", "scale" (of a norm), or "state" (running statistics: no gradient).
        start: the value a non-core array starts with.
    """

    name: str
    shape: Shape
    role: Role
    start: float = 0.0


KINDS: dict[str, type[Layer]] = {}


@dataclasses.dataclass(frozen=True)
class Layer:
    """Base of every layer and of every model: a model is a layer.

    It is data without weights, equal where its fields are equal. A layer of your own is a frozen dataclass that
    inherits from it and overrides `out_shape`, and where it has arrays or layers inside `own_specs` and `children`;
    backends must know it to run it.

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(2)), tn.ReLU(), tn.Linear(16, 3))
        >>> model.out_shape((16,)), model.num_params, list(model.networks())
        ((3,), 131, ['0', '2'])
        >>> [name for name, layer in model.walk() if isinstance(layer, tn.Linear)]
        ['0', '2']
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        KINDS[cls.__name__] = cls

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

    def child_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Shape of what goes into each layer inside, for one input sample.

        Here all of them take the input; a layer that does otherwise has a version of its own.
        """
        return {name: shape for name, _ in self.children()}

    def with_children(self, children: Mapping[str, Layer]) -> Layer:
        """The same layer around other layers.

        Here each child that is a field of its own is replaced; a layer that keeps its children otherwise has a version
        of its own.

        Args:
            children: name -> layer, one for each name of `children()`.
        """
        fields = {name: child for name, child in children.items() if isinstance(getattr(self, name, None), Layer)}
        return dataclasses.replace(self, **fields) if fields else self

    # -- the same for all -----------------------------------------------------------------------------------

    def walk(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """(name, layer) of this layer and everything inside; the outermost has the name ""."""
        yield prefix, self
        for name, child in self.children():
            yield from child.walk(f"{prefix}.{name}" if prefix else name)

    def specs(self) -> dict[str, Spec]:
        """Full weight name -> Spec, in order."""
        self.require_ranks()
        return {join(name, spec.name): spec for name, layer in self.walk() for spec in layer.own_specs()}

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

        Examples:
            >>> import tn4nn as tn
            >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2)), tn.ReLU())
            >>> sorted(model.init(0))
            ['0.bias', '0.core0', '0.core1']
        """
        weights: dict[str, NDArray[np.float32]] = {}
        for name, layer in self.walk():
            if isinstance(layer, OnNetwork):
                cores = layer.draw(seed, name)
                weights.update({join(name, core): array for core, array in cores.items()})
            for spec in layer.own_specs():
                if spec.role != "core":
                    weights[join(name, spec.name)] = np.full(spec.shape, spec.start, dtype=np.float32)
        return {name: weights[name] for name in self.specs()}

    def check(self, weights: Mapping[str, Any]) -> None:
        """Raises ShapeError unless the weights are those of this model, each of the right shape."""
        check_arrays(weights, {name: spec.shape for name, spec in self.specs().items()}, "weight", "this model")

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
            weights: what `init` or training gave; left out, they are drawn from `seed`.
            seed: see `weights`; not both. Left out, torch draws one from its generator, jax refuses, and backends
                without a rule of their own take 0.
            batch: plan for this batch now; left out, a plan is made at the first call of each size class.
            phase: "train" or "forward": what the plan is cheap for.
            device: the framework's own word; None for its default.
            dtype: e.g. "float32", "float64", "bfloat16"; left out, the framework's default.
            minimize: "time", "flops" or "memory".
            tune: measure the best few plans and keep the fastest, where the backend can.
            engine: "quimb" or "tensornetwork", to let that library contract along the plan's path instead, for
                comparison; on torch and jax.

        Raises:
            BackendError: an unknown backend or engine, or what it needs is not installed (with the line that installs
                it); neither weights nor a seed on a backend that draws none.
            ShapeError: weights of another model.
        """
        from ..backend import backend as load

        if weights is not None and seed is not None:
            raise ShapeError("build takes weights= or seed=, received both")
        self.require_ranks()
        native = load(backend)
        if weights is None:
            weights = self.init(getattr(native, "fresh_seed", lambda: 0)() if seed is None else seed)
        self.check(weights)
        kind: str = dtype or getattr(native, "default_dtype", lambda: "float32")()
        # A backend that cannot measure, or has no other engines, need not know the words.
        options: dict[str, Any] = {"tune": True} if tune else {}
        if engine is not None:
            options["engine"] = engine
        return native.build(
            self,
            weights,
            batch=batch,
            phase=phase,
            device=device,
            dtype=kind,
            minimize=minimize,
            **options,
        )

    def require_ranks(self) -> None:
        """Raises TopologyError where a layer has a topology without ranks."""
        for name, layer in self.walk():
            if isinstance(layer, OnNetwork):
                layer.solid(name)

    def to_dict(self) -> dict[str, Any]:
        """The model as plain data."""
        data: dict[str, Any] = {"kind": type(self).__name__}
        for field in dataclasses.fields(self):
            data[field.name] = encode(getattr(self, field.name))
        return data

    def to_json(self) -> str:
        """The model as JSON; `tn.model_from_json` reads it back."""
        return json.dumps({"schema": 1, "model": self.to_dict()})

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits, equal for equal models."""
        return fingerprint_of(self.to_dict())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return shown(str(self))

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


def join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def of_cores(model: Layer, what: Callable[[OnNetwork], Mapping[str, T]]) -> dict[str, T]:
    """What the layers on networks in a model say of their cores, by the full names of these."""
    return {
        join(name, core): found
        for name, layer in model.walk()
        if isinstance(layer, OnNetwork)
        for core, found in what(layer).items()
    }


def encode(value: Any) -> Any:
    if isinstance(value, Layer):
        return value.to_dict()
    if isinstance(value, Network):
        return {"network": value.to_dict()}
    if isinstance(value, Topology):
        return {"topology": value.to_dict()}
    if isinstance(value, Ordering):
        return {"ordering": value.to_json_dict()}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


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
                    f"layer {name or type(self).__name__!r} has a topology without ranks: give it a Network "
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
        """One core with all legs: an ordinary matrix, W or W^T."""
        return self.topology.is_matrix

    def matrix(self, core: Any) -> Any:
        """W of shape (out_features, in_features), of the one core of a dense layer; an array of any library."""
        t = self.topology
        if t.cores[0].legs == (*t.outputs, *t.inputs):
            return core.reshape(t.out_features, t.in_features)
        return core.reshape(t.in_features, t.out_features).T

    def draw(self, seed: int, name: str) -> dict[str, NDArray[np.float32]]:
        """The cores of this layer."""
        scheme, gain = getattr(self, "init_scheme", "normal"), getattr(self, "gain", 1.0)
        return init_network(self.solid(name), seed, scheme=scheme, gain=gain, name=name)

    def own_specs(self) -> tuple[Spec, ...]:
        """Cores, then the bias, where there is one."""
        return self.core_specs() + self.bias_spec(bool(getattr(self, "bias", False)))

    def core_specs(self) -> tuple[Spec, ...]:
        """Specs of the cores."""
        return tuple(Spec(name, shape, "core") for name, shape in self.solid().shapes.items())

    def lr_factors(self, *, lr: float | None = None, optimizer: str = "adam") -> dict[str, float]:
        """Learning-rate factor of each core of this layer, by its name; see `Network.lr_factors`."""
        return lr_factors(self.solid(), None, lr, optimizer, gain=getattr(self, "gain", 1.0))

    def core_scales(self) -> dict[str, float]:
        """Standard deviation of the initial entries of each core, of a network of two cores or more."""
        return {} if self.is_dense else core_scales(self.solid(), getattr(self, "gain", 1.0))

    def matrix_axes(self) -> dict[str, Axes]:
        """(axes that are summed, axes that are opened) of each core that Muon trains; see `tn4nn._graph.muon`."""
        return matrix_axes(self.topology)

    def bias_spec(self, bias: bool) -> tuple[Spec, ...]:
        """Spec of the bias, where there is one."""
        return (Spec("bias", (self.topology.out_features,), "bias"),) if bias else ()

    def describe(self) -> str:
        """One line."""
        t = self.topology
        count = f"{self.network.num_params:,} weights" if isinstance(self.network, Network) else "no ranks yet"
        return f"{type(self).__name__} {t.in_features} -> {t.out_features} on {t.name!r} ({count})"
