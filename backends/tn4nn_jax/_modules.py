"""Modules: a model and its weights as one pytree."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from tn4nn._base.errors import BackendError, ShapeError
from tn4nn._graph.network import Network
from tn4nn._graph.topology import Topology
from tn4nn._model import layers
from tn4nn._planning.layer import LayerPlanner
from tn4nn._planning.plan import Plan
from tn4nn.interop.engines import check_engine
from tn4nn.reference import check_tokens

from ._apply import State, apply
from ._device import checked_dtype, device_of, to_device, wide
from ._target import target


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """The static half of a module: everything that is no array. Hashable, as jit wants it.

    Attributes:
        model: the layer graph.
        phase: what plans are cheap for.
        minimize: what plans are cheap in.
        plan_batch: samples that plans are made for; None for those that come.
        dtype: of a model that has no weights.
        runtime: "program" for XLA's own operations alone; see `apply`.
        tune: plans are measured; see `apply`.
        engine: another library that contracts; see `apply`.
    """

    model: layers.Layer
    phase: str = "train"
    minimize: str = "time"
    plan_batch: int | None = None
    dtype: str = "float32"
    runtime: str | None = None
    tune: bool = False
    engine: str | None = None

    @property
    def _key(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __post_init__(self) -> None:
        # jit hashes this at every call, and hashing a model serialises its networks.
        object.__setattr__(self, "_hash", hash(self._key))

    def __hash__(self) -> int:
        hashed: int = self.__dict__["_hash"]
        return hashed

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Options) or hash(self) != hash(other):
            return False
        return self._key == other._key

    def __reduce__(self) -> tuple[Any, ...]:  # a hash of text is another one in another process
        return Options, self._key


def run_options(
    options: Options, weights: Mapping[str, Any], x: Any, *, train: bool = False, key: jax.Array | None = None
) -> tuple[jax.Array, State]:
    """`apply` with the options of a module."""
    return apply(
        options.model,
        weights,
        x,
        train=train,
        key=key,
        minimize=options.minimize,
        phase=options.phase,
        plan_batch=options.plan_batch,
        runtime=options.runtime,
        tune=options.tune,
        engine=options.engine,
    )


def _evaluate(options: Options, weights: Mapping[str, Any], x: jax.Array) -> jax.Array:
    return run_options(options, weights, x)[0]


_evaluate_jitted = jax.jit(_evaluate, static_argnums=0)


class JaxModule:
    """A model and its weights: a pytree whose leaves are the weights, and a function of a batch.

    It goes through jit, grad, vmap and sharding as any pytree does: `jax.grad(loss)(module, x)` is a module
    of gradients, `jax.tree.map(lambda w, g: w - lr * g, module, gradients)` the next one. Running statistics
    of BatchNorm get a gradient of zero.

    To shard the batch, take a mesh of automatic axes (`jax.sharding.Mesh`, or `jax.make_mesh` with axis_types
    Auto): under explicit axes jax itself refuses the gradient of `x @ w` by w.

    Attributes:
        weights: full weight name -> jax array.
        options: the model and how it is planned.

    Examples:
        >>> import jax, tn4nn as tn
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (2, 3)).with_rank(2)), tn.ReLU())
        >>> module = model.build("jax", seed=0)
        >>> x = jax.numpy.ones((5, 16))
        >>> module(x).shape
        (5, 6)
        >>> gradients = jax.grad(lambda m: m(x).sum())(module)
        >>> gradients.weights["0.core0"].shape == module.weights["0.core0"].shape
        True
    """

    weights: dict[str, Any]
    options: Options

    def __init__(self, weights: Mapping[str, Any], options: Options) -> None:
        self.weights = dict(weights)
        self.options = options

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _register(cls)

    @property
    def model(self) -> layers.Layer:
        """The layer graph."""
        return self.options.model

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """y for a batch x, in evaluation: no dropout, running statistics.

        Args:
            x: (batch, ...); a lone Linear takes (..., in_features). Floats are brought to the weights' dtype.
                Tokens out of range are an error where x is a numpy array, otherwise NaN rows.
            key: not used; Equinox's containers hand one to every layer.

        Raises:
            ShapeError: x does not fit.
        """
        with self.precision():
            y: jax.Array = _evaluate_jitted(self.options, self.weights, self.cast(x))
        return y

    def apply(
        self, x: Any, *, train: bool = True, key: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """y, and the new running statistics by weight name, for `updated`.

        Args:
            x: as for a call.
            train: dropout is on, and BatchNorm uses the batch.
            key: of dropout.

        Raises:
            ShapeError: x does not fit.
            TN4NNError: dropout without a key.
        """
        with self.precision():
            return run_options(self.options, self.weights, self.cast(x), train=train, key=key)

    def plan(self, rows: int) -> Plan:
        """The plan by which so many rows of its one layer on a network run, and what they cost; `print` shows it.

        Args:
            rows: of x: the product of all axes but the last; of an embedding, tokens; of a convolution, positions of
                its output (images x height' x width').

        Raises:
            BackendError: a model of several such layers, or of none: `tn4nn_jax.plans` has each by its name.

        Examples:
            >>> import tn4nn as tn, tn4nn_jax
            >>> p = tn4nn_jax.TNLinear(tn.low_rank(64, 64).with_rank(4), seed=0).plan(32)
            >>> p.batch, p.cost.macs == 3 * 32 * 4 * 128
            (32, True)
        """
        found = plans(self, rows)
        if len(found) != 1:
            raise BackendError(f"this model has {len(found)} layers on a network: use tn4nn_jax.plans(module, rows)")
        return next(iter(found.values()))

    def updated(self, weights: Mapping[str, Any]) -> Self:
        """The module with some weights or running statistics replaced."""
        changed: Self = _unflatten(type(self), self.options, {**self.weights, **weights})
        return changed

    def _dtype(self) -> Any:
        if not self.weights:
            return np.dtype(jnp.dtype(self.options.dtype))
        if any(array.dtype == np.float64 for array in self.weights.values()):
            return np.dtype(np.float64)  # outside of its context, result_type may call it float32
        return jnp.result_type(*self.weights.values())

    def _check_width(self) -> None:
        """Raises BackendError where float64 weights have become narrower without a word."""
        if self.options.dtype == "float64":
            for name, array in self.weights.items():
                if getattr(array, "dtype", None) == np.float32:
                    raise BackendError(
                        f"this module was built in float64, and its weight {name!r} is float32 now: jax makes float64 "
                        "float32 in everything outside of `with jax.enable_x64(True):`. Call jit and grad and update "
                        'weights in there, or jax.config.update("jax_enable_x64", True) at the start of the program'
                    )

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """The context that its arithmetic needs: 64-bit types for float64 weights, nothing otherwise.

        Raises:
            BackendError: float64 weights that are float32 now.
        """
        self._check_width()
        return wide(self._dtype() == jnp.float64)

    def cast(self, x: Any) -> jax.Array:
        """x as a jax array, floats in the dtype of the weights.

        Raises:
            ShapeError: a numpy array with tokens out of range.
        """
        if not isinstance(x, jax.Array):
            x = np.asarray(x)
            check_host(self.model, x)
        array = jnp.asarray(x)
        return array.astype(self._dtype()) if jnp.issubdtype(array.dtype, jnp.floating) else array

    def __reduce__(self) -> Any:
        # An array of 64 bits that is pickled comes back with 32, unless x64 is on.
        host = {name: np.asarray(array) if _is_wide(array) else array for name, array in self.weights.items()}
        return _restored, (type(self), self.options, host)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.describe()}, {self.model.num_params:,} parameters)"


def plans(module: JaxModule, rows: int) -> dict[str, Plan]:
    """The plan by which each layer of a module runs so many rows, by the layer's name; see `JaxModule.plan`.

    Args:
        module: of any model.
        rows: that each layer sees: of a linear layer rows, of an embedding tokens, of a convolution positions.

    Examples:
        >>> import tn4nn as tn, tn4nn_jax
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(2)), tn.ReLU(), tn.Linear(16, 2))
        >>> sorted(tn4nn_jax.plans(model.build("jax", seed=0), 64))
        ['0', '2']
    """
    options = module.options
    where = target(module._dtype(), runtime=options.runtime, engine=options.engine)
    return {
        name: LayerPlanner(layer, where, options.phase, options.minimize, options.tune, options.plan_batch).plan(rows)
        for name, layer in _on_networks(module.model)
    }


def _on_networks(model: layers.Layer) -> Iterator[tuple[str, layers.OnNetwork]]:
    """The layers on a network by their names, and the second use of a tied table as "head"."""
    for name, layer in model.walk():
        if isinstance(layer, layers.OnNetwork):
            yield name, layer
        elif isinstance(layer, layers.Tied):
            yield f"{name}.head" if name else "head", layer.head


def _unflatten(cls: type[Any], options: Options, weights: dict[str, Any]) -> Any:
    result = object.__new__(cls)  # jax also puts things in that are no arrays: nothing may look at them
    result.weights, result.options = weights, options
    return result


def _is_wide(array: Any) -> bool:
    return isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer) and array.dtype == np.float64


def _restored(cls: type[Any], options: Options, weights: Mapping[str, Any]) -> Any:
    with wide(options.dtype == "float64"):
        turned = {n: jnp.array(a) for n, a in weights.items() if isinstance(a, np.ndarray)}
    return _unflatten(cls, options, {**weights, **turned})


def _register(cls: type[JaxModule]) -> None:
    def flatten(module: JaxModule) -> tuple[tuple[Any], Options]:
        return (module.weights,), module.options

    def flatten_with_keys(module: JaxModule) -> tuple[tuple[tuple[Any, Any]], Options]:
        return ((jax.tree_util.GetAttrKey("weights"), module.weights),), module.options

    def unflatten(options: Options, children: Any) -> Any:
        return _unflatten(cls, options, children[0])

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


_register(JaxModule)


def check_host(model: layers.Layer, x: np.ndarray[Any, Any]) -> None:
    """Raises ShapeError for tokens out of range, which cannot be seen once x is on a device."""
    table = layers.embedding_of(model)
    if table is not None:
        check_tokens(x, table)


def build_module(
    cls: type[Any],
    model: layers.Layer,
    weights: Mapping[str, Any] | None,
    *,
    seed: int | None = None,
    key: Any = None,
    batch: int | None = None,
    phase: str = "train",
    device: str | None = None,
    dtype: str = "float32",
    minimize: str = "time",
    runtime: str | None = None,
    tune: bool = False,
    engine: str | None = None,
) -> Any:
    """A module of class `cls`; see `Layer.build` for the arguments."""
    model.require_ranks()
    drawn = _drawn(model, seed, key) if weights is None else weights
    model.check(drawn)
    checked_dtype(dtype)
    if engine is not None:
        check_engine(engine, model, tune=tune)
    place = device_of(device)
    with wide(dtype == "float64"):
        arrays = {name: to_device(drawn[name], dtype, place) for name in model.specs()}
        module = _unflatten(cls, Options(model, phase, minimize, batch, dtype, runtime, tune, engine), arrays)
        if batch is not None:
            _plan_now(module, batch, dtype)
    return module


def _drawn(model: layers.Layer, seed: int | None, key: Any) -> Mapping[str, Any]:
    """Initial weights from a seed or a key of jax, of which there has to be one."""
    if (seed is None) == (key is None):
        received = "neither, and jax has no generator of its own" if key is None else "both"
        raise BackendError(
            f"{model.describe()}: expected weights=, seed= (as 0) or key= (as jax.random.key(0)), received {received}; "
            "equal layers with equal seeds begin with equal weights, so give each another one"
        )
    if key is None:
        return model.init(seed or 0)

    def init(bits: Any) -> Mapping[str, Any]:
        return model.init(int(bits[0]) << 32 | int(bits[1]))

    bits = jax.random.bits(key, (2,), "uint32")
    if not isinstance(bits, jax.core.Tracer):
        return init(bits)
    # Under jit, vmap (an ensemble) and eval_shape: the same numbers, drawn on the host when it runs.
    shape_of: Any = jax.ShapeDtypeStruct  # without types
    shapes = {name: shape_of(spec.shape, np.float32) for name, spec in model.specs().items()}
    drawn: Mapping[str, Any] = jax.pure_callback(init, shapes, bits, vmap_method="sequential")
    return drawn


def _plan_now(module: JaxModule, batch: int, dtype: str) -> None:
    """Finds the plans by tracing with shapes alone, where the shape of a sample is known."""
    layer, shape = module.model, None
    while isinstance(layer, layers.Sequential):
        shape = layer.input_shape if shape is None else shape
        layer = layer.layers[0]
    kind = dtype
    if layers.embedding_of(module.model) is not None:
        kind = "int32"
        shape = _one_token(module.model) if shape is None else shape
    elif isinstance(layer, layers.Linear) and shape is None:
        shape = (layer.topology.in_features,)
    if shape is not None:
        x = jax.eval_shape(lambda: jnp.zeros((batch, *shape), kind))
        jax.eval_shape(lambda w, x: run_options(module.options, w, x)[0], module.weights, x)


def _one_token(model: layers.Layer) -> tuple[int, ...] | None:
    """The shape of a sample that is one token; None for a model of sequences, whose length is not known."""
    try:
        model.out_shape(())
    except ShapeError:
        return None
    return ()


class TNLinear(JaxModule):
    """y = x W^T + b with W on a network, as a module of its own.

    Args:
        network: a Network (or a Topology without bonds).
        weights: core name -> array, and "bias"; left out, they are drawn from `seed` or `key`.
        bias: whether b is there.
        seed: of the draw; jax has no generator of its own, so without weights there has to be a seed or a key.
        key: of the draw, as `jax.random.key(0)`, instead of a seed.
        ordering: how the input neurons are laid out; see `tn.Linear`.
        **options: `batch`, rows that the plan is made for (left out, those that come); `phase`, "train" or "forward":
            what the plan is cheap for; `device`, e.g. "cpu" or "gpu" (None for jax's default); `dtype`, "float32",
            "float64", "bfloat16" or "float16"; `minimize`, "time", "flops" or "memory".

    Input shape: (..., in_features). Output shape: (..., out_features).

    Raises:
        ShapeError: weights of another network.
        BackendError: no such device or dtype; neither weights nor a seed nor a key, or both of these.

    Examples:
        >>> import jax, tn4nn as tn, tn4nn_jax
        >>> layer = tn4nn_jax.TNLinear(tn.mpo((4, 4), (2, 3)).with_rank(2), seed=0)
        >>> layer(jax.numpy.ones((5, 16))).shape
        (5, 6)
    """

    def __init__(
        self,
        network: Network | Topology,
        weights: Mapping[str, Any] | None = None,
        bias: bool = True,
        seed: int | None = None,
        *,
        key: Any = None,
        ordering: Any = None,
        **options: Any,
    ) -> None:
        model = layers.Linear(network, bias=bias, ordering=ordering)
        self.__dict__.update(build_module(JaxModule, model, weights, seed=seed, key=key, **options).__dict__)


class TNConv2d(JaxModule):
    """A 2-D convolution whose kernel matrix is a network, as a module of its own.

    Args:
        network: a Network with in_features = channels * kh * kw.
        weights: core name -> array, and "bias"; left out, they are drawn from `seed` or `key`.
        kernel: (kh, kw) or one number for both.
        stride: of the window.
        padding: zeros around the image.
        bias: whether b is there.
        seed: of the draw; without weights there has to be a seed or a key.
        key: of the draw, instead of a seed.
        **options: batch, phase, device, dtype, minimize, runtime, tune, engine, as for TNLinear and `apply`.

    Input shape: (batch, channels, height, width). Output shape: (batch, out_channels, height', width'). One image
    alone is taken too, as Equinox's layers take it.

    Raises:
        ShapeError: weights of another network.
        BackendError: no such device or dtype; neither weights nor a seed nor a key, or both of these.

    Examples:
        >>> import jax, tn4nn as tn, tn4nn_jax
        >>> t = tn.topology("c a, h w o a", {"c": 8, "h": 3, "w": 3}, {"o": 16})
        >>> layer = tn4nn_jax.TNConv2d(t.with_rank(4), kernel=3, padding=1, seed=0)
        >>> layer(jax.numpy.ones((2, 8, 10, 10))).shape
        (2, 16, 10, 10)
    """

    def __init__(
        self,
        network: Network | Topology,
        weights: Mapping[str, Any] | None = None,
        kernel: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        seed: int | None = None,
        *,
        key: Any = None,
        **options: Any,
    ) -> None:
        model = layers.Conv2d(network, kernel=kernel, stride=stride, padding=padding, bias=bias)
        self.__dict__.update(build_module(JaxModule, model, weights, seed=seed, key=key, **options).__dict__)

    def __call__(self, x: Any, *, key: Any = None) -> jax.Array:
        """y for a batch of images, or for one."""
        return super().__call__(x) if np.ndim(x) != 3 else super().__call__(jnp.asarray(x)[None])[0]


class TNEmbedding(JaxModule):
    """Row lookup in a table that is a network, as a module of its own.

    Args:
        network: a Network of in_features = tokens and out_features = dimensions.
        weights: core name -> array; left out, they are drawn from `seed` or `key`.
        seed: of the draw; without weights there has to be a seed or a key.
        key: of the draw, instead of a seed.
        **options: batch, phase, device, dtype, minimize, runtime, tune, engine, as for TNLinear and `apply`.

    Input shape: (...), integers from 0 to tokens - 1. Output shape: (..., dimensions).

    Raises:
        ShapeError: weights of another network.
        BackendError: no such device or dtype; neither weights nor a seed nor a key, or both of these.

    Examples:
        >>> import jax, tn4nn as tn, tn4nn_jax
        >>> table = tn4nn_jax.TNEmbedding(tn.mpo((10, 10), (4, 4)).with_rank(3), key=jax.random.key(0))
        >>> table([[1, 99]]).shape
        (1, 2, 16)
    """

    def __init__(
        self,
        network: Network | Topology,
        weights: Mapping[str, Any] | None = None,
        seed: int | None = None,
        *,
        key: Any = None,
        **options: Any,
    ) -> None:
        model = layers.Embedding(network)
        self.__dict__.update(build_module(JaxModule, model, weights, seed=seed, key=key, **options).__dict__)
