"""The kinds of torch layers that a network can replace: one line each in the table at the end."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import tn4nn._model.layers as layers
from tn4nn._graph.network import Network
from tn4nn._graph.ordering import Ordering

from ._modules import TNConv2d, TNEmbedding, TNLinear, _Planned

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """How a kind of layer is read and replaced.

    Attributes:
        name: in tables.
        fits: whether a module is of this kind; a subclass with a forward of its own is not.
        refuses: why a module cannot be replaced, "" where it can.
        transposed: whether the weight is W^T, of shape (in_features, out_features).
        layer: (module, network, ordering) -> the layer graph's word for it.
        make: of that, the new module.
        rows: (module, input of a call) -> what meets W, of shape (rows, in_features); None where that would be too
            large to be of use (a one-hot row for each token).
        keeps: attributes that other code reads, carried over where they are there.
    """

    name: str
    fits: Callable[[nn.Module], bool]
    refuses: Callable[[Any], str]
    transposed: bool
    layer: Callable[[Any, Network, Ordering | None], layers.OnNetwork]
    make: Callable[..., _Planned]
    rows: Callable[[Any, Tensor], Tensor] | None
    keeps: tuple[str, ...]

    def matrix(self, weight: Tensor) -> Tensor:
        """W, of shape (out_features, in_features)."""
        return weight.T if self.transposed else weight.reshape(weight.shape[0], -1)


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a module, or None."""
    return next((kind for kind in KINDS if kind.fits(module)), None)


def why_not(kind: LayerKind, module: nn.Module) -> str:
    """Why a module of a kind cannot be replaced, "" where it can."""
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed (weight_norm, pruning): make it a parameter first"
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return "its weight is not there yet (a lazy layer): call the model once"
    if not weight.is_floating_point() or type(weight.data) is not Tensor:
        return f"its weight is a {type(weight.data).__name__} of {weight.dtype}, not plain floating-point numbers"
    return kind.refuses(module)


def carry_over(old: nn.Module, new: nn.Module, names: tuple[str, ...], memo: dict[int, Any]) -> None:
    """What a layer has beside its weight: mode, hooks, attributes. `memo` is that of the copy of the whole model."""
    new.training = old.training
    for name in _HOOKS:
        setattr(new, name, copy.deepcopy(getattr(old, name), memo))
    for name in names:
        if hasattr(old, name):
            setattr(new, name, getattr(old, name))


def _same_forward(base: type[nn.Module]) -> Callable[[nn.Module], bool]:
    return lambda module: isinstance(module, base) and type(module).forward is base.forward


def _is_hf_conv1d(module: nn.Module) -> bool:
    """Hugging Face's Conv1D, which is y = x W + b with a weight of shape (in, out); known by its looks, so that
    transformers need not be there."""
    weight = getattr(module, "weight", None)
    shaped = isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[1] == getattr(module, "nf", None)
    return type(module).__name__ == "Conv1D" and shaped


def _padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """Zeros on each side, None where the sides differ."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        high, wide = conv.kernel_size
        return ((high - 1) // 2, (wide - 1) // 2) if high % 2 and wide % 2 else None
    sides: Any = conv.padding
    return int(sides[0]), int(sides[1])


def _conv_refuses(conv: nn.Conv2d) -> str:
    if conv.groups != 1:
        return f"groups={conv.groups}: its kernel is no single matrix"
    if conv.dilation != (1, 1):
        return f"dilation={conv.dilation} is not supported"
    if conv.padding_mode != "zeros" or _padding(conv) is None:
        return f"padding={conv.padding!r} with padding_mode={conv.padding_mode!r} is not supported"
    return ""


def _embedding_refuses(table: nn.Embedding) -> str:
    if table.max_norm is not None:
        return "max_norm rewrites the table in place"
    if table.sparse or table.scale_grad_by_freq:
        return "sparse or frequency-scaled gradients have no meaning for cores"
    return ""


def _flat(module: nn.Module, x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    x = x[None] if x.dim() == 3 else x
    pad = _padding(conv)
    assert pad is not None
    stride = (int(conv.stride[0]), int(conv.stride[1]))
    size = (int(conv.kernel_size[0]), int(conv.kernel_size[1]))
    columns = F.unfold(x, size, padding=pad, stride=stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def _linear(module: Any, network: Network, ordering: Ordering | None) -> layers.Linear:
    return layers.Linear(network, None, module.bias is not None, ordering)


def _conv(module: nn.Conv2d, network: Network, ordering: Ordering | None) -> layers.Conv2d:
    kernel, stride, pad = module.kernel_size, module.stride, _padding(module)
    assert pad is not None
    size, step = (int(kernel[0]), int(kernel[1])), (int(stride[0]), int(stride[1]))
    return layers.Conv2d(network, None, size, step, pad, module.bias is not None)


KINDS: tuple[LayerKind, ...] = (
    LayerKind("Linear", _same_forward(nn.Linear), lambda _: "", False, _linear, TNLinear, _flat, ()),
    LayerKind("Conv1D", _is_hf_conv1d, lambda _: "", True, _linear, TNLinear, _flat, ("nf", "nx")),
    LayerKind(
        "Conv2d", _same_forward(nn.Conv2d), _conv_refuses, False, _conv, TNConv2d, _patches,
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    ),
    LayerKind(
        "Embedding", _same_forward(nn.Embedding), _embedding_refuses, True,
        lambda _, network, ordering: layers.Embedding(network), TNEmbedding, None,
        ("num_embeddings", "embedding_dim", "padding_idx"),
    ),
)  # fmt: skip


# -- and back ---------------------------------------------------------------------------------------------------


def dense_module(module: _Planned, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """nn.Linear, nn.Conv2d or nn.Embedding with a given weight, which replaces a layer on a network."""
    layer, has_bias = module.layer, bias is not None
    meta: Any = {"device": "meta"}  # the weight is given: nothing is drawn
    result: nn.Linear | nn.Conv2d | nn.Embedding
    if isinstance(layer, layers.Conv2d):
        sizes = (layer.in_channels, module.out_features, layer.kernel, layer.stride, layer.padding)
        result = nn.Conv2d(*sizes, bias=has_bias, **meta)
    elif isinstance(layer, layers.Embedding):
        result = nn.Embedding(module.in_features, module.out_features, **meta)
        result.padding_idx = getattr(module, "padding_idx", None)
    else:
        result = nn.Linear(module.in_features, module.out_features, bias=has_bias, **meta)
    result.weight = weight
    if bias is not None and not isinstance(result, nn.Embedding):
        result.bias = bias
    return result
