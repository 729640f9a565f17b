"""The numpy backend: the oracle. Slow, obvious, and in float64 unless asked otherwise.

It shares nothing with the lowering that the other backends run: a layer is `W = to_dense`, `y = x W^T + b`,
contracted pair by pair with numpy.einsum, and gradients come from one einsum for each core.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._base.errors import BackendError, ShapeError
from ._graph.contract import above_one, contract, cores_of, dense, in_double
from ._graph.contract import apply as apply  # public here
from ._graph.network import Network
from ._graph.paths import BATCH
from ._model import layers
from ._model.backend import Trainer, TrainSpec

__all__ = [
    "NumpyBackend", "NumpyModule", "apply", "backend", "check_tokens", "contract", "dense", "forward", "patches",
]  # fmt: skip

Array = NDArray[Any]
Weights = Mapping[str, Array]


# -- contractions -----------------------------------------------------------------------------------------------


def _core_gradients(network: Network, weights: Weights, x: Array, gy: Array) -> dict[str, Array]:
    """Gradient of sum((x W^T) * gy) by each core: the contraction of everything but that core."""
    t = network.topology
    tensors, arrays = cores_of(network, weights)
    ins, outs = (above_one(side) for side in (t.inputs, t.outputs))
    ends = [(BATCH, *ins), (BATCH, *outs)]
    sides = [x.reshape(len(x), *ins.values()), gy.reshape(len(gy), *outs.values())]
    found = {}
    for i, core in enumerate(t.cores):
        rest = [*tensors[:i], *tensors[i + 1 :], *ends]
        found[core.name] = contract(rest, [*arrays[:i], *arrays[i + 1 :], *sides], core.legs)
    return found


# -- layers -----------------------------------------------------------------------------------------------------


def _below(weights: Weights, prefix: str) -> dict[str, Array]:
    """Weights whose names start with a layer's name, without it."""
    return {n[len(prefix) :]: a for n, a in weights.items() if n.startswith(prefix)}


def _float_input(x: Array, layer: layers.Layer) -> None:
    if not np.issubdtype(x.dtype, np.inexact):
        raise ShapeError(
            f"{layer.describe()} takes floating-point inputs, received {x.dtype}: convert them, or use Embedding"
        )


def _matrix(layer: layers.OnNetwork, w: Weights) -> Array:
    """W of a layer, in float64."""
    net = layer.solid()
    return dense(net, {name: in_double(w[name]) for name in net.shapes})


def _linear(layer: layers.Linear, w: Weights, x: Array) -> Array:
    _float_input(x, layer)
    layer.out_shape(x.shape)
    if layer.ordering is not None:
        x = x[..., layer.ordering.permutation]
    y = x @ _matrix(layer, w).T
    return y + w["bias"] if layer.bias else y


def patches(x: Array, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """The windows of a convolution as rows, as `Conv2d` numbers them.

    Args:
        x: of shape (batch, channels, height, width).
        kernel: (kh, kw).
        stride: of the window, (vertical, horizontal).
        padding: zeros around the image, (vertical, horizontal).

    Returns:
        An array of shape (batch, height', width', channels * kh * kw).

    Examples:
        >>> import numpy as np
        >>> from tn4nn import reference
        >>> reference.patches(np.ones((1, 3, 8, 8)), (3, 3), (1, 1), (1, 1)).shape
        (1, 8, 8, 27)
    """
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1]].transpose(0, 2, 3, 1, 4, 5)
    return windows.reshape(*windows.shape[:3], math.prod(windows.shape[3:]))  # -1 cannot stand for 0 rows


def _conv(layer: layers.Conv2d, w: Weights, x: Array) -> Array:
    _float_input(x, layer)
    layer.out_shape(x.shape[1:])
    rows = patches(x, layer.kernel, layer.stride, layer.padding)
    y = rows @ _matrix(layer, w).T
    y = y + w["bias"] if layer.bias else y
    return y.transpose(0, 3, 1, 2)


def check_tokens(x: Array, layer: layers.Embedding) -> None:
    """Refuses what an embedding cannot look up.

    Args:
        x: of any shape.
        layer: which has the number of tokens.

    Raises:
        ShapeError: x does not hold integers from 0 to tokens - 1.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> from tn4nn import reference
        >>> reference.check_tokens(np.array([0, 9]), tn.Embedding(10, 4))
        >>> reference.check_tokens(np.array([0, 10]), tn.Embedding(10, 4))
        Traceback (most recent call last):
            ...
        tn4nn.ShapeError: Embedding 10 -> 4 on 'dense' (40 weights): expected tokens from 0 to 9, received 0..10
    """
    tokens = layer.topology.in_features
    if not np.issubdtype(x.dtype, np.integer):
        raise ShapeError(f"{layer.describe()} takes integers, received {x.dtype}")
    if x.size and (x.min() < 0 or x.max() >= tokens):
        raise ShapeError(f"{layer.describe()}: expected tokens from 0 to {tokens - 1}, received {x.min()}..{x.max()}")


def _embedding(layer: layers.Embedding, w: Weights, x: Array) -> Array:
    check_tokens(x, layer)
    return _matrix(layer, w).T[x]


def _pool(layer: layers.MaxPool | layers.AvgPool, x: Array, reduce: Callable[..., Array]) -> Array:
    layer.out_shape(x.shape[1:])
    kernel, stride = layer.window
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(2, 3))
    return reduce(windows[:, :, :: stride[0], :: stride[1]], axis=(-2, -1))


def _batch_norm(layer: layers.BatchNorm, w: Weights, x: Array) -> Array:
    layer.out_shape(x.shape[1:])
    axes = (slice(None), *([None] * (x.ndim - 2)))
    scale = w["scale"] / np.sqrt(w["var"] + layer.eps)
    shifted = (x - w["mean"][axes]) * scale[axes]
    return np.asarray(shifted + w["bias"][axes])


def _layer_norm(layer: layers.LayerNorm, w: Weights, x: Array) -> Array:
    layer.out_shape(x.shape[1:])
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt(centred.var(-1, keepdims=True) + layer.eps) * w["scale"] + w["bias"])


def _rms_norm(layer: layers.RMSNorm, w: Weights, x: Array) -> Array:
    layer.out_shape(x.shape[1:])
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + layer.eps) * w["scale"])


def _turned(layer: layers.Attention, x: Array) -> Array:
    """Rotary positions on x of shape (batch, heads, tokens, size of a head)."""
    angles = np.arange(x.shape[2])[:, None] * layer.frequencies
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attention(layer: layers.Attention, x: Array, inner: Callable[[str, layers.Layer, Array], Array]) -> Array:
    layer.out_shape(x.shape[1:])
    projections = dict(layer.children())

    def heads(name: str, count: int) -> Array:  # (batch, heads, tokens, size of a head)
        y = inner(name, projections[name], x)
        return y.reshape(*y.shape[:2], count, layer.head_size).transpose(0, 2, 1, 3)

    q, k, v = heads("query", layer.heads), heads("key", layer.groups), heads("value", layer.groups)
    if layer.rotary:
        q, k = _turned(layer, q), _turned(layer, k)
    k, v = (np.repeat(part, layer.heads // layer.groups, axis=1) for part in (k, v))
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(layer.head_size)
    if layer.causal:
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = shares / shares.sum(-1, keepdims=True) @ v
    return inner("out", projections["out"], mixed.transpose(0, 2, 1, 3).reshape(x.shape))


def _sigmoid(x: Array) -> Array:
    half: Array = np.tanh(x / 2)  # no overflow, unlike exp
    return (1 + half) / 2


_erf = np.vectorize(math.erf, otypes=[np.float64])

_POINTWISE: dict[type[layers.Layer], Callable[[Array], Array]] = {
    layers.ReLU: lambda x: np.maximum(x, 0),
    layers.GELU: lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2 if x.size else x,
    layers.Tanh: np.tanh,
    layers.Sigmoid: _sigmoid,
    layers.SiLU: lambda x: x * _sigmoid(x),
    layers.Dropout: lambda x: x,
    layers.Flatten: lambda x: x.reshape(len(x), math.prod(x.shape[1:])),
}


_COMBINE: dict[str, Callable[[list[Array]], Array]] = {
    "sum": lambda parts: np.sum(parts, axis=0),
    "product": lambda parts: np.prod(parts, axis=0),
    "concat": lambda parts: np.concatenate(parts, axis=1),
}


def forward(layer: layers.Layer, weights: Weights, x: Array, prefix: str = "") -> Array:
    """y of a layer or model in evaluation mode, by the formula of each layer.

    Args:
        layer: of any kind, also a model.
        weights: full weight name -> array.
        x: with a batch axis first; y has the dtype of the arrays.
        prefix: of the names of the layer's weights, with its dot.

    Raises:
        ShapeError: x does not fit.
        BackendError: a kind of layer that is unknown here.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> from tn4nn import reference
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2)), tn.ReLU())
        >>> reference.forward(model, model.init(0), np.ones((3, 16))).shape
        (3, 4)
    """
    w = _below(weights, prefix)

    def inner(name: str, child: layers.Layer, value: Array) -> Array:
        return forward(child, weights, value, f"{prefix}{name}.")

    if type(layer) in _POINTWISE:
        return _POINTWISE[type(layer)](x)
    match layer:
        case layers.Linear():
            return _linear(layer, w, x)
        case layers.Conv2d():
            return _conv(layer, w, x)
        case layers.Embedding():
            return _embedding(layer, w, x)
        case layers.MaxPool():
            return _pool(layer, x, np.max)
        case layers.AvgPool():
            return _pool(layer, x, np.mean)
        case layers.Unflatten():
            return x.reshape(len(x), *layer.out_shape(x.shape[1:]))
        case layers.BatchNorm():
            return _batch_norm(layer, w, x)
        case layers.LayerNorm():
            return _layer_norm(layer, w, x)
        case layers.Sequential():
            for name, child in layer.children():
                x = inner(name, child, x)
            return x
        case layers.Residual():
            side = x if layer.shortcut is None else inner("shortcut", layer.shortcut, x)
            return inner("body", layer.body, x) + side
        case layers.Parallel():
            return _COMBINE[layer.combine]([inner(name, child, x) for name, child in layer.children()])
        case layers.RMSNorm():
            return _rms_norm(layer, w, x)
        case layers.Attention():
            return _attention(layer, x, inner)
        case layers.Positions():
            layer.out_shape(x.shape[1:])
            ((name, table),) = layer.children()
            return x + inner(name, table, np.arange(x.shape[1]))
        case layers.Block():
            x = x + inner("attention", layer.attention, inner("norm1", layer.norm1, x))
            return x + inner("mlp", layer.mlp, inner("norm2", layer.norm2, x))
        case layers.Tied():
            y = inner("body", layer.body, inner("embedding", layer.embedding, x))
            return y @ _matrix(layer.embedding, _below(w, "embedding.")) * layer.scale
        case layers.Tokens():
            return x.reshape(len(x), *layer.out_shape(x.shape[1:])[::-1]).transpose(0, 2, 1)
        case layers.MeanPool():
            layer.out_shape(x.shape[1:])
            return np.asarray(x.mean(1))
    raise BackendError(f"the numpy backend does not know the layer {type(layer).__name__}")


# -- the backend ------------------------------------------------------------------------------------------------


class NumpyModule:
    """A model and its weights; called with an array.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> module = tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2)).build("numpy", seed=0)
        >>> module(np.ones((3, 16))).shape, sorted(module.arrays)
        ((3, 4), ['bias', 'core0', 'core1'])
    """

    def __init__(self, model: layers.Layer, weights: Weights, dtype: str) -> None:
        self.model = model
        self.arrays = {name: np.array(array, dtype=dtype) for name, array in weights.items()}

    def __call__(self, x: Array) -> Array:
        """y for a batch x, in evaluation mode."""
        return forward(self.model, self.arrays, np.asarray(x))


class NumpyBackend:
    """The oracle as a backend: it runs models and gives gradients of single layers on a network.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> from tn4nn import reference
        >>> layer = tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2))
        >>> module = reference.backend.build(layer, layer.init(0))
        >>> gradients, gx = reference.backend.gradients(module, np.ones((3, 16)), np.ones((3, 4)))
        >>> gradients["core0"].shape, gx.shape
        ((4, 2, 2), (3, 16))
    """

    name = "numpy"

    def build(
        self,
        model: layers.Layer,
        weights: Weights,
        *,
        batch: int | None = None,
        phase: str = "forward",
        device: str | None = None,
        dtype: str = "float64",
        minimize: str = "time",
        tune: bool = False,
        engine: str | None = None,
    ) -> NumpyModule:
        """See `Backend.build`; plans play no part."""
        if engine is not None:
            raise BackendError(f"the numpy backend forms W and has no engines, received {engine!r}: use torch or jax")
        if device not in (None, "cpu"):
            raise BackendError(f"the numpy backend runs on 'cpu' only, received device {device!r}")
        if dtype not in ("float32", "float64"):
            raise BackendError(f"the numpy backend computes in float32 or float64, received {dtype!r}")
        return NumpyModule(model, weights, dtype)

    def forward(self, module: NumpyModule, x: Array) -> Array:
        """y for x."""
        return module(x)

    def gradients(self, module: NumpyModule, x: Array, gy: Array) -> tuple[dict[str, Array], Array | None]:
        """Gradients of one Linear or Embedding layer, by its formula; other models have none here."""
        layer, arrays = module.model, module.arrays
        if not isinstance(layer, layers.Linear | layers.Embedding):
            raise BackendError(
                f"the numpy backend has gradients of Linear and Embedding only, received {type(layer).__name__}: "
                "use torch or jax"
            )
        net = layer.solid()
        t = net.topology
        cores = {name: arrays[name] for name in net.shapes}
        ins, outs = math.prod(t.inputs.values()), math.prod(t.outputs.values())
        dy = np.zeros((gy.size // t.out_features, outs))
        dy[:, : t.out_features] = gy.reshape(-1, t.out_features)
        rows = np.zeros((len(dy), ins))
        if isinstance(layer, layers.Embedding):
            rows[np.arange(len(dy)), x.reshape(-1)] = 1.0
            return _core_gradients(net, cores, rows, dy), None
        order = slice(None) if layer.ordering is None else layer.ordering.permutation
        rows[:, : t.in_features] = x.reshape(-1, t.in_features)[:, order]
        found = _core_gradients(net, cores, rows, dy)
        gx = np.zeros((len(dy), t.in_features))
        gx[:, order] = dy[:, : t.out_features] @ _matrix(layer, cores)
        if layer.bias:
            found["bias"] = dy[:, : t.out_features].sum(0)
        return found, gx.reshape(x.shape)

    def weights(self, module: NumpyModule) -> dict[str, Array]:
        """Copies of all weights."""
        return {name: array.copy() for name, array in module.arrays.items()}

    def trainer(self, model: layers.Layer, weights: Weights, spec: TrainSpec) -> Trainer:
        """Always an error: the oracle does not train."""
        raise BackendError(
            'the numpy backend does not train: use backend="torch" (pip install "tn4nn[torch]") or '
            'backend="jax" (pip install "tn4nn[jax]")'
        )

    def versions(self) -> dict[str, str]:
        """numpy's version."""
        return {"numpy": np.__version__}


backend = NumpyBackend()
"""The numpy backend, as `tn.backend("numpy")` gives it."""
