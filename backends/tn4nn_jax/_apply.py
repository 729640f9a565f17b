"""Pure functions: layers and models applied to a dict of weights.

Shapes are static while jax traces, so plans are found in Python, once for each shape that is traced, and
what is compiled is the straight-line code of the plan's program. Nothing here holds arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tn4nn._base.errors import BackendError, ShapeError, TN4NNError
from tn4nn._graph.network import Network
from tn4nn._model import layers
from tn4nn._planning.layer import LayerPlanner
from tn4nn._planning.plan import Plan
from tn4nn.interop.engines import check_engine, engine

from ._native import apply as apply_native
from ._native import native_of
from ._ops import known, matmul, planned, precision, run
from ._target import target

Weights = Mapping[str, Any]
State = dict[str, jax.Array]


# -- one call --------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Call:
    """What all layers of one call share. It lives for one trace.

    Attributes:
        weights: full name -> array.
        train: dropout is on, and BatchNorm uses and records the batch.
        key: of dropout.
        phase: what plans are cheap for.
        minimize: what plans are cheap in.
        plan_batch: samples that plans are made for; None for those that come, in buckets.
        compute: dtype of matrix products; None for that of weights and inputs.
        runtime: "program" for XLA's own operations throughout; None for the native runtime where it can.
        tune: plans of the native runtime are measured.
        engine: the library that contracts; None for the native runtime and XLA's operations.
        state: new running statistics, by full name.
        draws: how many dropouts have drawn.
    """

    weights: Weights
    train: bool
    key: jax.Array | None
    phase: str
    minimize: str
    plan_batch: int | None
    compute: Any
    runtime: str | None = None
    tune: bool = False
    engine: str | None = None
    state: State = dataclasses.field(default_factory=dict)
    draws: int = 0

    def get(self, prefix: str, name: str) -> jax.Array:
        """A weight as it is."""
        return jnp.asarray(self.weights[_join(prefix, name)])

    def cast(self, array: jax.Array) -> jax.Array:
        """An operand of a matrix product."""
        return array if self.compute is None else array.astype(self.compute)

    def cores(self, prefix: str, net: Network) -> dict[str, jax.Array]:
        """The cores of a layer, as operands."""
        return {core.name: self.cast(self.get(prefix, core.name)) for core in net.topology.cores}

    def planner(self, layer: layers.OnNetwork, dtype: Any, samples: int, rows: int, *, program: bool) -> LayerPlanner:
        """What plans a layer for rows that came with so many samples; numbers, as `planned` gives them."""
        batch = None if self.plan_batch is None else max(1, self.plan_batch * (rows // max(1, samples)))
        where = target(dtype, runtime="program" if program else self.runtime, engine=self.engine)
        return LayerPlanner(layer, where, self.phase, self.minimize, self.tune, batch)

    def run(self, p: Plan, cores: Mapping[str, jax.Array], *x: jax.Array) -> jax.Array:
        """What a plan says, on the cores and the rows."""
        arrays = [*(cores[core.name] for core in p.network.topology.cores), *x]
        if p.executor == "native":
            return apply_native(native_of(p), arrays[:-1], arrays[-1])
        y: jax.Array = run(p.program, arrays) if self.engine is None else engine(self.engine, p)(arrays)
        return y


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


# -- layers on a network ---------------------------------------------------------------------------


def _float_input(layer: layers.Layer, x: jax.Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ShapeError(
            f"{layer.describe()} takes floating-point inputs, received {x.dtype}: convert them, or use Embedding"
        )


def _pad(rows: jax.Array, width: int) -> jax.Array:
    missing = width - rows.shape[-1]
    return jnp.pad(rows, ((0, 0), (0, missing))) if missing else rows


def _rows(call: _Call, layer: layers.OnNetwork, prefix: str, rows: jax.Array, axes: Sequence[int]) -> jax.Array:
    """x W^T for x of shape (rows, in_features); no bias. The axes that the rows came with are (samples, ...)."""
    t = layer.topology
    net = layer.solid(prefix)
    cores = call.cores(prefix, net)
    if not rows.shape[0]:
        return jnp.zeros((0, t.out_features), jnp.result_type(rows, *cores.values()))
    if layer.is_dense:
        return matmul(rows, layer.matrix(cores[t.cores[0].name]).T)
    # Custom calls are for shapes of numbers.
    program = any(core.dtype != rows.dtype for core in cores.values()) or not known(rows.shape)
    count = planned(axes)
    plan = call.planner(layer, rows.dtype, planned(axes[:1]), count, program=program).rows_plan(count)
    return call.run(plan, cores, _pad(rows, math.prod(t.inputs.values())))[:, : t.out_features]


def _linear(call: _Call, layer: layers.Linear, prefix: str, x: jax.Array) -> jax.Array:
    _float_input(layer, x)
    shape = layer.out_shape(x.shape)
    x = call.cast(x)
    if layer.ordering is not None:
        x = _permuted(x, layer.ordering.permutation)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = _rows(call, layer, prefix, rows, x.shape[:-1])
    if layer.bias:
        y = y + call.cast(call.get(prefix, "bias"))
    return y.reshape(shape)


def _permuted(x: jax.Array, permutation: np.ndarray[Any, Any]) -> jax.Array:
    if np.array_equal(permutation, np.arange(len(permutation))):
        return x
    order = permutation.astype(np.int32)
    # Each index occurs once: the gradient is a plain scatter, not a sum.
    return x.at[..., order].get(mode="promise_in_bounds", unique_indices=True)


def _digits(layer: layers.Embedding, ids: jax.Array) -> dict[str, jax.Array]:
    """Input leg -> its digit of each id, big-endian. An id out of range gets a first digit out of range."""
    t = layer.topology
    total = math.prod(t.inputs.values())
    ids = jnp.where((ids >= 0) & (ids < t.in_features), ids, total)
    found, stride = {}, total
    for position, (leg, size) in enumerate(t.inputs.items()):
        stride //= size
        digit = ids // stride
        found[leg] = digit if position == 0 else digit % size
    return found


def _picked(
    legs: Sequence[str], core: jax.Array, sizes: Mapping[str, int], digits: Mapping[str, jax.Array]
) -> jax.Array:
    """A core at the tokens: (tokens, other legs...); as it is where it has no input leg."""
    mine = [leg for leg in sizes if leg in legs]
    if not mine:
        return core
    others = [axis for axis, leg in enumerate(legs) if leg not in sizes]
    table = core.transpose(*(legs.index(leg) for leg in mine), *others)
    place = jnp.zeros_like(digits[mine[0]])
    for leg in mine:
        place = place * sizes[leg] + digits[leg]
    table = table.reshape(math.prod(sizes[leg] for leg in mine), *(core.shape[axis] for axis in others))
    return jnp.take(table, place, axis=0, mode="fill", fill_value=jnp.nan)


def _embedding(call: _Call, layer: layers.Embedding, prefix: str, x: jax.Array) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ShapeError(f"{layer.describe()} takes integers, received {x.dtype}")
    t, net = layer.topology, layer.solid(prefix)
    cores = call.cores(prefix, net)
    shape = layer.out_shape(x.shape)
    if not x.size:
        return jnp.zeros(shape, jnp.result_type(*cores.values()))
    digits = _digits(layer, x.reshape(-1).astype(jnp.int32))
    dtype = next(iter(cores.values())).dtype
    tokens = planned(x.shape)
    plan = call.planner(layer, dtype, planned(x.shape[:1]), tokens, program=True).class_plan(tokens)
    picked = {core.name: _picked(core.legs, cores[core.name], t.inputs, digits) for core in t.cores}
    y = call.run(plan, picked)
    return y[:, : t.out_features].reshape(shape)


def _patches(layer: layers.Conv2d, x: jax.Array, out: tuple[int, ...]) -> jax.Array:
    """(batch, channels, height, width) -> (batch * height' * width', channels * kh * kw)."""
    (kh, kw), (sh, sw) = layer.kernel, layer.stride
    # Slices, not lax.conv_general_dilated_patches, which convolves with an identity: its gradient takes 28
    # times as long on a CPU, and it rounds where convolutions do.
    windows = [
        x[:, :, i : i + sh * (out[1] - 1) + 1 : sh, j : j + sw * (out[2] - 1) + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    stacked = jnp.stack(windows, axis=-1)  # batch, channels, height', width', kh * kw
    rows = x.shape[0] * out[1] * out[2]
    return stacked.transpose(0, 2, 3, 1, 4).reshape(rows, layer.topology.in_features)


def _kernel(call: _Call, layer: layers.Conv2d, prefix: str, plan: Plan | None) -> jax.Array:
    """W as a kernel of shape (out_channels, channels, kh, kw); no plan for a dense layer."""
    t = layer.topology
    cores = call.cores(prefix, layer.solid(prefix))
    w = layer.matrix(cores[t.cores[0].name]) if plan is None else call.run(plan, cores)
    w = w.reshape(math.prod(t.outputs.values()), math.prod(t.inputs.values()))[: t.out_features, : t.in_features]
    return jnp.reshape(w, (t.out_features, layer.in_channels, *layer.kernel))


def _conv2d(call: _Call, layer: layers.Conv2d, prefix: str, x: jax.Array) -> jax.Array:
    _float_input(layer, x)
    out = layer.out_shape(x.shape[1:])
    x = call.cast(x)
    batch = x.shape[0]
    if not batch:
        return jnp.zeros((0, *out), x.dtype)
    axes = (batch, *out[1:])
    positions = planned(axes)
    planner = call.planner(layer, x.dtype, planned(axes[:1]), positions, program=not known(axes))
    if not layer.is_dense and planner.class_plan(positions).form == "apply":
        (ph, pw), t = layer.padding, layer.topology
        rows = _patches(layer, jnp.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw))), out)
        y = _rows(call, layer, prefix, rows, axes).reshape(batch, *out[1:], t.out_features)
        y = y.transpose(0, 3, 1, 2)
    else:
        kernel = _kernel(call, layer, prefix, None if layer.is_dense else planner.class_plan(positions))
        x, kernel = x.astype(common := jnp.result_type(x, kernel)), kernel.astype(common)
        padding = [(p, p) for p in layer.padding]
        y = lax.conv_general_dilated(x, kernel, layer.stride, padding, precision=precision(x, kernel))
    if layer.bias:
        y = y + call.cast(call.get(prefix, "bias"))[:, None, None]
    return y


# -- the other layers ------------------------------------------------------------------------------


def _max_pool(call: _Call, layer: layers.MaxPool, prefix: str, x: jax.Array) -> jax.Array:
    return _pool(layer, x, -jnp.inf, lax.max)


def _avg_pool(call: _Call, layer: layers.AvgPool, prefix: str, x: jax.Array) -> jax.Array:
    return _pool(layer, x, 0.0, lax.add) / math.prod(layer.window[0])


def _pool(layer: layers.MaxPool | layers.AvgPool, x: jax.Array, start: float, reduce: Any) -> jax.Array:
    _float_input(layer, x)
    layer.out_shape(x.shape[1:])
    kernel, stride = layer.window
    result: jax.Array = lax.reduce_window(x, start, reduce, (1, 1, *kernel), (1, 1, *stride), "VALID")
    return result


def _flatten(call: _Call, layer: layers.Flatten, prefix: str, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], *layer.out_shape(x.shape[1:]))


def _unflatten(call: _Call, layer: layers.Unflatten, prefix: str, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], *layer.out_shape(x.shape[1:]))


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))  # 8 bits of mantissa are too few for statistics


def _batch_norm(call: _Call, layer: layers.BatchNorm, prefix: str, x: jax.Array) -> jax.Array:
    layer.out_shape(x.shape[1:])
    value = _at_least_float32(x)
    shape = (-1, *[1] * (x.ndim - 2))
    # jax.grad over a whole module must leave running statistics alone.
    mean, var = (lax.stop_gradient(call.get(prefix, name)) for name in ("mean", "var"))
    if call.train:
        axes = (0, *range(2, x.ndim))
        count = x.size // layer.features
        if count < 2:
            raise ShapeError(f"BatchNorm: training needs at least 2 values of each feature, received {count}")
        here, spread = value.mean(axes), value.var(axes)
        share = layer.momentum
        call.state[_join(prefix, "mean")] = (1 - share) * mean + share * lax.stop_gradient(here)
        unbiased = lax.stop_gradient(spread) * (count / (count - 1))
        call.state[_join(prefix, "var")] = (1 - share) * var + share * unbiased
        mean, var = here, spread
    scale = call.get(prefix, "scale") * lax.rsqrt(var + layer.eps)
    shifted = (value - mean.reshape(shape)) * scale.reshape(shape) + call.get(prefix, "bias").reshape(shape)
    return shifted.astype(x.dtype)


def _layer_norm(call: _Call, layer: layers.LayerNorm, prefix: str, x: jax.Array) -> jax.Array:
    layer.out_shape(x.shape[1:])
    value = _at_least_float32(x)
    centred = value - value.mean(-1, keepdims=True)
    normal = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + layer.eps)
    return (normal * call.get(prefix, "scale") + call.get(prefix, "bias")).astype(x.dtype)


def _rms_norm(call: _Call, layer: layers.RMSNorm, prefix: str, x: jax.Array) -> jax.Array:
    layer.out_shape(x.shape[1:])
    value = _at_least_float32(x)
    normal = value * lax.rsqrt(jnp.square(value).mean(-1, keepdims=True) + layer.eps)
    return (normal * call.get(prefix, "scale")).astype(x.dtype)


def _dropout(call: _Call, layer: layers.Dropout, prefix: str, x: jax.Array) -> jax.Array:
    if not call.train or layer.rate == 0:
        return x
    if call.key is None:
        raise TN4NNError("Dropout in training needs randomness: pass key=jax.random.key(seed)")
    stays = jax.random.bernoulli(jax.random.fold_in(call.key, call.draws), 1 - layer.rate, x.shape)
    call.draws += 1
    return jnp.where(stays, x / (1 - layer.rate), jnp.zeros((), x.dtype))


def _sequential(call: _Call, layer: layers.Sequential, prefix: str, x: jax.Array) -> jax.Array:
    for name, child in layer.children():
        x = _forward(call, child, _join(prefix, name), x)
    return x


def _residual(call: _Call, layer: layers.Residual, prefix: str, x: jax.Array) -> jax.Array:
    side = x
    if layer.shortcut is not None:
        side = _forward(call, layer.shortcut, _join(prefix, "shortcut"), x)
    y = _forward(call, layer.body, _join(prefix, "body"), x)
    if y.shape != side.shape:  # adding would broadcast without a word
        raise ShapeError(f"Residual: the body makes {y.shape}, the shortcut {side.shape}: they must agree")
    return y + side


def _parallel(call: _Call, layer: layers.Parallel, prefix: str, x: jax.Array) -> jax.Array:
    result = [_forward(call, child, _join(prefix, name), x) for name, child in layer.children()]
    if layer.combine == "concat":
        return jnp.concatenate(result, axis=1)
    layers.check_branches(layer, [y.shape for y in result])  # otherwise they would broadcast without a word
    return functools.reduce(jnp.add if layer.combine == "sum" else jnp.multiply, result)


def _block(call: _Call, layer: layers.Block, prefix: str, x: jax.Array) -> jax.Array:
    child = {name: functools.partial(_forward, call, inner, _join(prefix, name)) for name, inner in layer.children()}
    dropped = child.get("dropout", lambda y: y)
    x = x + dropped(child["attention"](child["norm1"](x)))
    return x + dropped(child["mlp"](child["norm2"](x)))


def _attention(call: _Call, layer: layers.Attention, prefix: str, x: jax.Array) -> jax.Array:
    layer.out_shape(x.shape[1:])
    child = dict(layer.children())

    def heads(name: str, count: int) -> jax.Array:  # (batch, tokens, count, size of a head), as jax's kernel takes them
        y = _forward(call, child[name], _join(prefix, name), x)
        return y.reshape(*y.shape[:2], count, layer.head_size)

    q, k, v = heads("query", layer.heads), heads("key", layer.groups), heads("value", layer.groups)
    if layer.rotary:
        q, k = _turned(layer, q), _turned(layer, k)
    if (call.train and layer.dropout) or v.dtype == jnp.float64:
        mixed = _mixed(call, layer, prefix, q, k, v)
    else:
        with jax.default_matmul_precision(_named_precision(q, k, v)):
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=layer.causal)
    return _forward(call, child["out"], _join(prefix, "out"), mixed.reshape(x.shape))


def _named_precision(*arrays: jax.Array) -> str | None:
    """For the products of a kernel that takes no precision: what `precision` says."""
    asked = getattr(jax.config, "jax_default_matmul_precision", None)
    return asked if precision(*arrays) is None else "highest"


def _mixed(call: _Call, layer: layers.Attention, prefix: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention step by step: jax's kernel has no dropout, and its softmax is float32 whatever it is given."""
    k, v = (jnp.repeat(part, layer.heads // layer.groups, axis=2) for part in (k, v))
    chosen = precision(q, k, v)
    scores = _at_least_float32(jnp.einsum("bqhd,bkhd->bhqk", q, k, precision=chosen)) * layer.head_size**-0.5
    if layer.causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    shares = _dropout(call, layers.Dropout(layer.dropout), prefix, jax.nn.softmax(scores))
    return jnp.einsum("bhqk,bkhd->bqhd", shares.astype(v.dtype), v, precision=chosen)


def _turned(layer: layers.Attention, x: jax.Array) -> jax.Array:
    """Rotary positions on heads of shape (batch, tokens, heads, size of a head)."""
    tokens = x.shape[1]
    if known((tokens,)):  # in float64, which jax may not have: at position n float32 is off by n * 6e-8
        angles: Any = np.arange(tokens)[:, None] * layer.frequencies
        cos, sin = np.cos(angles), np.sin(angles)
    else:
        angles = jnp.arange(tokens)[:, None] * layer.frequencies
        cos, sin = jnp.cos(angles), jnp.sin(angles)
    wide = _at_least_float32(x)
    cos, sin = (jnp.asarray(part, wide.dtype)[:, None] for part in (cos, sin))
    first, second = jnp.split(wide, 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _positions(call: _Call, layer: layers.Positions, prefix: str, x: jax.Array) -> jax.Array:
    _float_input(layer, x)
    layer.out_shape(x.shape[1:])
    ((name, table),) = layer.children()
    return x + _forward(call, table, _join(prefix, name), jnp.arange(x.shape[1]))


def _tied(call: _Call, layer: layers.Tied, prefix: str, x: jax.Array) -> jax.Array:
    table = _join(prefix, "embedding")
    y = call.cast(_forward(call, layer.body, _join(prefix, "body"), _forward(call, layer.embedding, table, x)))
    rows = y.reshape(math.prod(y.shape[:-1]), y.shape[-1])
    logits = _rows(call, layer.head, table, rows, y.shape[:-1])
    return logits.reshape(*y.shape[:-1], logits.shape[-1]) * layer.scale


def _tokens(call: _Call, layer: layers.Tokens, prefix: str, x: jax.Array) -> jax.Array:
    places, channels = layer.out_shape(x.shape[1:])
    return x.reshape(x.shape[0], channels, places).transpose(0, 2, 1)


def _mean_pool(call: _Call, layer: layers.MeanPool, prefix: str, x: jax.Array) -> jax.Array:
    layer.out_shape(x.shape[1:])
    return _at_least_float32(x).mean(1).astype(x.dtype)


def _pointwise(function: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    return lambda call, layer, prefix, x: function(x)


_TABLE: dict[type[layers.Layer], Callable[..., jax.Array]] = {
    layers.Linear: _linear,
    layers.Conv2d: _conv2d,
    layers.Embedding: _embedding,
    layers.ReLU: _pointwise(jax.nn.relu),
    layers.GELU: _pointwise(lambda x: jax.nn.gelu(x, approximate=False)),
    layers.Tanh: _pointwise(jnp.tanh),
    layers.Sigmoid: _pointwise(jax.nn.sigmoid),
    layers.SiLU: _pointwise(jax.nn.silu),
    layers.Flatten: _flatten,
    layers.Unflatten: _unflatten,
    layers.MaxPool: _max_pool,
    layers.AvgPool: _avg_pool,
    layers.Dropout: _dropout,
    layers.BatchNorm: _batch_norm,
    layers.LayerNorm: _layer_norm,
    layers.Sequential: _sequential,
    layers.Residual: _residual,
    layers.Parallel: _parallel,
    layers.RMSNorm: _rms_norm,
    layers.Attention: _attention,
    layers.Positions: _positions,
    layers.Block: _block,
    layers.Tied: _tied,
    layers.Tokens: _tokens,
    layers.MeanPool: _mean_pool,
}


def _forward(call: _Call, layer: layers.Layer, prefix: str, x: jax.Array) -> jax.Array:
    function = _TABLE.get(type(layer))
    if function is None:
        raise BackendError(f"the jax backend does not know the layer {type(layer).__name__}")
    return function(call, layer, prefix, x)


# -- public ----------------------------------------------------------------------------------------


def apply(
    model: layers.Layer,
    weights: Weights,
    x: Any,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    minimize: str = "time",
    phase: str = "train",
    plan_batch: int | None = None,
    compute_dtype: Any = None,
    runtime: str | None = None,
    tune: bool = False,
    engine: str | None = None,
) -> tuple[jax.Array, State]:
    """Applies a model; a pure function for jit, grad, vmap and sharding.

    Args:
        model: a layer or a model of layers; static under jit.
        weights: full weight name -> array, those of `model.specs()`.
        x: (batch, ...); a lone Linear takes (..., in_features), an Embedding integers of any shape. A token
            out of range cannot be an error under jit: its row is NaN.
        train: dropout is on, and BatchNorm uses the batch and returns new running statistics.
        key: of dropout, e.g. `jax.random.key(0)`.
        minimize: "time", "flops" or "memory".
        phase: "train" or "forward": what plans are cheap for.
        plan_batch: samples that plans are made for; left out, those of x, rounded up to a power of four.
        compute_dtype: e.g. `jnp.bfloat16` for the matrix products alone, the weights and norms staying wide.
        runtime: "program" for XLA's own operations alone, as `jax.export` and several devices need them; left out, the
            native runtime where jax has one CPU and nothing else, and float32 or float64 arrays.
        tune: measure the native runtime's best few plans, once for each size, and take the fastest.
        engine: "quimb" or "tensornetwork", to let that library contract while jax traces, for comparison.

    Returns:
        y, and the new values of the running statistics by weight name (empty unless `train`).

    Raises:
        ShapeError: weights of another model, or x of the wrong shape or dtype.
        BackendError: an unknown engine, or one that cannot run this model.

    Examples:
        >>> import jax, tn4nn as tn, tn4nn_jax
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (2, 3)).with_rank(2)), tn.BatchNorm(6))
        >>> y, state = tn4nn_jax.apply(model, model.init(0), jax.numpy.ones((5, 16)), train=True)
        >>> y.shape, sorted(state)
        ((5, 6), ['1.mean', '1.var'])
    """
    model.check(weights)
    if runtime not in (None, "program"):
        raise BackendError(f"runtime must be 'program' or None, received {runtime!r}")
    if engine is not None:
        check_engine(engine, model, tune=tune)
    call = _Call(weights, train, key, phase, minimize, plan_batch, compute_dtype, runtime, tune, engine)
    return _forward(call, model, "", jnp.asarray(x)), call.state


def linear(
    layer: layers.Linear | Network,
    weights: Weights,
    x: Any,
    *,
    bias: Any = None,
    minimize: str = "time",
    phase: str = "train",
    plan_batch: int | None = None,
    runtime: str | None = None,
    tune: bool = False,
) -> jax.Array:
    """y = x W^T + b with W on a network.

    Args:
        layer: a Network, or a Linear (with its ordering).
        weights: core name -> array; "bias" too for a Linear that has one, unless `bias` gives it.
        x: (..., in_features), floating-point.
        bias: (out_features,), or None.
        minimize: "time", "flops" or "memory".
        phase: "train" or "forward".
        plan_batch: length of x's first axis that the plan is made for.
        runtime: see `apply`.
        tune: see `apply`.

    Returns:
        y of shape (..., out_features).

    Raises:
        ShapeError: weights or x of the wrong shape, or x of integers.

    Examples:
        >>> import jax, tn4nn as tn, tn4nn_jax
        >>> net = tn.ring((4, 4), (2, 3)).with_rank(2)
        >>> tn4nn_jax.linear(net, net.init(0), jax.numpy.ones((5, 7, 16))).shape
        (5, 7, 6)
    """
    if isinstance(layer, Network):
        layer = layers.Linear(layer, bias=bias is not None)
    if bias is not None:
        weights = {**weights, "bias": bias}
    y, _ = apply(layer, weights, x, minimize=minimize, phase=phase, plan_batch=plan_batch, runtime=runtime, tune=tune)
    return y


def conv2d(
    layer: layers.Conv2d | Network,
    weights: Weights,
    x: Any,
    *,
    kernel: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    bias: Any = None,
    minimize: str = "time",
    phase: str = "train",
    plan_batch: int | None = None,
) -> jax.Array:
    """A 2-D convolution whose kernel matrix (out_channels, channels * kh * kw) is a network.

    Args:
        layer: a Network, or a Conv2d (then kernel, stride and padding are its own).
        weights: core name -> array; "bias" too for a Conv2d that has one, unless `bias` gives it.
        x: (batch, channels, height, width), floating-point.
        kernel: (kh, kw) or one number for both.
        stride: of the window.
        padding: zeros around the image.
        bias: (out_channels,), or None.
        minimize: "time", "flops" or "memory".
        phase: "train" or "forward".
        plan_batch: images that the plan is made for.

    Returns:
        y of shape (batch, out_channels, height', width').

    Raises:
        ShapeError: weights or x of the wrong shape, or x of integers.

    Examples:
        >>> import jax, tn4nn as tn, tn4nn_jax
        >>> net = tn.topology("c a, h w o a", {"c": 8, "h": 3, "w": 3}, {"o": 16}).with_rank(4)
        >>> tn4nn_jax.conv2d(net, net.init(0), jax.numpy.ones((2, 8, 10, 10)), padding=1).shape
        (2, 16, 10, 10)
    """
    if isinstance(layer, Network):
        layer = layers.Conv2d(layer, kernel=kernel, stride=stride, padding=padding, bias=bias is not None)
    if bias is not None:
        weights = {**weights, "bias": bias}
    return apply(layer, weights, x, minimize=minimize, phase=phase, plan_batch=plan_batch)[0]


def embedding(
    layer: layers.Embedding | Network,
    weights: Weights,
    ids: Any,
    *,
    minimize: str = "time",
    phase: str = "train",
    plan_batch: int | None = None,
) -> jax.Array:
    """Rows of W^T, without W: each core gives the slice that the token's digits name.

    Args:
        layer: a Network of in_features = tokens and out_features = dimensions, or an Embedding.
        weights: core name -> array.
        ids: (...), integers from 0 to tokens - 1. Under jit an id out of range cannot be an error: its row
            is NaN.
        minimize: "time", "flops" or "memory".
        phase: "train" or "forward".
        plan_batch: length of ids' first axis that the plan is made for.

    Returns:
        y of shape (..., dimensions).

    Raises:
        ShapeError: weights of the wrong shape, or ids that are no integers.

    Examples:
        >>> import tn4nn as tn, tn4nn_jax
        >>> net = tn.mpo((10, 10), (4, 4)).with_rank(3)
        >>> tn4nn_jax.embedding(net, net.init(0), [[1, 99]]).shape
        (1, 2, 16)
    """
    if isinstance(layer, Network):
        layer = layers.Embedding(layer)
    ids = jnp.asarray(ids)
    return apply(layer, weights, ids, minimize=minimize, phase=phase, plan_batch=plan_batch)[0]
