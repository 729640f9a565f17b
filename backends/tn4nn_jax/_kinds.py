"""The kinds of Equinox layers that a network can replace: one line each in the table of `kinds`."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import tn4nn._model.layers as layers
from tn4nn._base.errors import BackendError
from tn4nn._graph.network import Network
from tn4nn._graph.ordering import Ordering

from ._modules import JaxModule, TNConv2d, TNEmbedding, TNLinear

Rows = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """How a kind of layer is read and replaced.

    Attributes:
        name: in tables.
        base: its class; a subclass may compute something else, and is not of the kind.
        refuses: why a layer cannot be replaced, "" where it can.
        transposed: whether the weight is W^T, of shape (in_features, out_features).
        axes: of the weight.
        layer: (module, network, ordering) -> the layer graph's word for it.
        make: class of the new layer.
        rows: (module, inputs of calls along the first axis) -> what meets W, of shape (rows, in_features); None where
            that would be too large to be of use (a one-hot row for each token).
    """

    name: str
    base: type
    refuses: Callable[[Any], str]
    transposed: bool
    axes: int
    layer: Callable[[Any, Network, Ordering | None], layers.OnNetwork]
    make: type[JaxModule]
    rows: Callable[[Any, Rows], Rows] | None

    def matrix(self, weight: Any) -> NDArray[Any]:
        """W on the host in float32, or float64 where the weight is; of shape (out_features, in_features)."""
        host = np.asarray(weight)
        host = host.astype(np.float64 if host.dtype == np.float64 else np.float32)
        return host.T if self.transposed else host.reshape(host.shape[0], -1)

    def features(self, weight: Any) -> tuple[int, int]:
        """(in_features, out_features) of a weight of the right number of axes."""
        out, *ins = weight.shape
        count = int(np.prod(ins))
        return (out, count) if self.transposed else (count, out)


def equinox() -> Any:
    """The library, where it is installed."""
    try:
        return importlib.import_module("equinox")
    except ImportError:
        raise BackendError(
            "converting a jax model needs Equinox, whose layers it replaces: pip install equinox. For a tree of named "
            "arrays, tn4nn_jax.decompose_params needs nothing"
        ) from None


def kind_of(node: Any) -> LayerKind | None:
    """The kind of a layer, or None."""
    return next((kind for kind in kinds() if type(node) is kind.base), None)


def why_not(kind: LayerKind, module: Any) -> str:
    """Why a layer of a kind cannot be replaced, "" where it can."""
    weight = module.weight
    if not isinstance(weight, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return f"its weight is no array but a {type(weight).__name__}"
    if not jnp.issubdtype(weight.dtype, jnp.floating):
        return f"its weight holds {weight.dtype}, not floating-point numbers"
    if len(weight.shape) != kind.axes:
        return f"its weight has shape {weight.shape}: layers that are stacked have no single matrix"
    return kind.refuses(module)


def readers() -> tuple[type, ...]:
    """Containers that read the weights of the layers in them past the layers."""
    nn = equinox().nn
    return nn.WeightNorm, nn.SpectralNorm, nn.Shared


def _linear_refuses(module: Any) -> str:
    return "it takes or gives scalars" if "scalar" in (module.in_features, module.out_features) else ""


def _padding(conv: Any) -> tuple[int, int] | None:
    """Zeros on each side, None where the sides differ."""
    if isinstance(conv.padding, str):
        if conv.padding == "VALID":
            return 0, 0
        odd = all(size % 2 for size in conv.kernel_size) and tuple(conv.stride) == (1, 1)
        return (conv.kernel_size[0] // 2, conv.kernel_size[1] // 2) if odd else None
    (top, bottom), (left, right) = conv.padding
    return (int(top), int(left)) if top == bottom and left == right else None


def _conv_refuses(conv: Any) -> str:
    if conv.groups != 1:
        return f"groups={conv.groups}: its kernel is no single matrix"
    if tuple(conv.dilation) != (1, 1):
        return f"dilation={tuple(conv.dilation)} is not supported"
    if conv.padding_mode != "ZEROS" or _padding(conv) is None:
        return f"padding={conv.padding!r} with padding_mode={conv.padding_mode!r} is not supported"
    return ""


def _flat(module: Any, x: Rows) -> Rows:
    return x.reshape(-1, x.shape[-1])


def _patches(conv: Any, x: Rows) -> Rows:
    pad = _padding(conv)
    assert pad is not None
    images = np.pad(x.reshape(-1, *x.shape[-3:]), ((0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1])))
    windows = np.lib.stride_tricks.sliding_window_view(images, conv.kernel_size, axis=(2, 3))
    windows = windows[:, :, :: conv.stride[0], :: conv.stride[1]].transpose(0, 2, 3, 1, 4, 5)
    return windows.reshape(-1, conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1])


def _linear(module: Any, network: Network, ordering: Ordering | None) -> layers.Linear:
    return layers.Linear(network, None, module.bias is not None, ordering)


def _conv(module: Any, network: Network, ordering: Ordering | None) -> layers.Conv2d:
    pad = _padding(module)
    assert pad is not None
    kernel, stride = tuple(module.kernel_size), tuple(module.stride)
    return layers.Conv2d(network, None, kernel, stride, pad, module.bias is not None)


def _embedding(module: Any, network: Network, ordering: Ordering | None) -> layers.Embedding:
    return layers.Embedding(network)


@functools.cache
def kinds() -> tuple[LayerKind, ...]:
    """All kinds that there are."""
    nn = equinox().nn
    return (
        LayerKind("Linear", nn.Linear, _linear_refuses, False, 2, _linear, TNLinear, _flat),
        LayerKind("Conv2d", nn.Conv2d, _conv_refuses, False, 4, _conv, TNConv2d, _patches),
        LayerKind("Embedding", nn.Embedding, lambda _: "", True, 2, _embedding, TNEmbedding, None),
    )


# -- and back ---------------------------------------------------------------------------------------------------


def dense_module(layer: layers.OnNetwork, weight: Any, bias: Any) -> Any:
    """eqx.nn.Linear, Conv2d or Embedding with a given weight, which replaces a layer on a network."""
    eqx, t = equinox(), layer.topology
    if isinstance(layer, layers.Embedding):
        return eqx.nn.Embedding(weight=weight)
    key, has_bias = jax.random.key(0), bias is not None
    if isinstance(layer, layers.Conv2d):
        sizes = (layer.in_channels, t.out_features, layer.kernel, layer.stride, layer.padding)
        shell = eqx.filter_eval_shape(eqx.nn.Conv2d, *sizes, use_bias=has_bias, key=key)
        bias = None if bias is None else bias[:, None, None]
    else:
        shell = eqx.filter_eval_shape(eqx.nn.Linear, t.in_features, t.out_features, use_bias=has_bias, key=key)
    result = eqx.tree_at(lambda m: m.weight, shell, weight)  # nothing was drawn: the shell has shapes alone
    return result if bias is None else eqx.tree_at(lambda m: m.bias, result, bias)
