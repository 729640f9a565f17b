"""The same model, thinner: what a person would take instead of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from .._base.errors import ShapeError
from .layers import (
    Attention,
    BatchNorm,
    Block,
    Conv2d,
    Embedding,
    Layer,
    LayerNorm,
    Linear,
    Parallel,
    Positions,
    Residual,
    RMSNorm,
    Sequential,
    Shape,
    Tied,
    Unflatten,
)

_SIZING = (Linear, Conv2d, Embedding, Attention)  # what decides the features of its output


def thinner(model: Layer, share: float, shape: Shape) -> Layer:
    """A model whose hidden layers have a share of their features; input and output stay as they are.

    Layers become dense. Heads of attention stay as many and get smaller; widths are rounded to a multiple of them.

    Args:
        model: of dense layers.
        share: of the features, above 0.
        shape: of one input sample.

    Raises:
        ShapeError: a model whose parts depend on each other's widths in a way that is not known here.

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.presets.gpt(layers=1, width=64, heads=4)
        >>> thinner(model, 0.5, (64,)).networks()["blocks.0.mlp.up"].num_params
        4096
    """
    multiple = max([layer.heads for _, layer in model.walk() if isinstance(layer, Attention)], default=1)

    def scaled(features: int) -> int:
        return max(multiple, round(features * share / multiple) * multiple)

    thin = _thin(model, shape, shape, model.out_shape(shape)[-1], scaled)
    if thin.out_shape(shape) != model.out_shape(shape):
        raise ShapeError(f"this model cannot be made thinner: it would give {thin.out_shape(shape)}")
    return thin


def _thin(layer: Layer, old: Shape, new: Shape, out: int | None, scaled: Callable[[int], int]) -> Layer:
    """A layer for inputs of shape `new` in place of `old`; `out` features come out of it where that is fixed."""
    match layer:
        case Sequential():
            return _sequence(layer, old, new, out, scaled)
        case Linear():
            return Linear(new[-1], _features(layer, out, scaled), layer.bias, init=layer.init_scheme, gain=layer.gain)
        case Conv2d():
            return Conv2d(
                new[0], _features(layer, out, scaled), layer.kernel, layer.stride, layer.padding, layer.bias,
                init=layer.init_scheme, gain=layer.gain,
            )  # fmt: skip
        case Embedding():
            tokens = layer.topology.in_features
            return Embedding(tokens, _features(layer, out, scaled), init=layer.init_scheme, gain=layer.gain)
        case Positions():
            return Positions(layer.context, new[-1])
        case Attention():
            first, last = layer.query, layer.out
            assert isinstance(first, Linear)
            assert isinstance(last, Linear)
            width = new[-1]
            thin_out = Linear(width, width, last.bias, init=last.init_scheme, gain=last.gain)
            return dataclasses.replace(
                layer, width=width, query=None, key=None, value=None, out=thin_out, bias=first.bias
            )
        case LayerNorm() | RMSNorm():
            return dataclasses.replace(layer, features=new[-1])
        case BatchNorm():
            return dataclasses.replace(layer, features=new[0])
        case Unflatten():
            if new != old:
                raise ShapeError("this model cannot be made thinner: an Unflatten follows a layer that gets thinner")
            return layer
        case Block():
            kept: dict[str, int | None] = dict.fromkeys(("attention", "mlp"), new[-1])
            return _rebuilt(layer, old, new, kept, scaled)
        case Residual():
            thin = _thin(layer.body, old, new, None if layer.shortcut else _last(new), scaled)
            shortcut = None if layer.shortcut is None else _thin(layer.shortcut, old, new, None, scaled)
            return Residual(thin, shortcut)
        case Parallel():
            share = out if layer.combine != "concat" else None
            return _rebuilt(layer, old, new, dict.fromkeys(layer.names, share), scaled)
        case Tied():
            table = _thin(layer.embedding, old, new, None, scaled)
            assert isinstance(table, Embedding)
            before, after = layer.embedding.out_shape(old), table.out_shape(new)
            return Tied(table, _thin(layer.body, before, after, after[-1], scaled))
    if layer.children():
        raise ShapeError(f"this model cannot be made thinner: {type(layer).__name__} is not known here")
    return layer


def _features(layer: Linear | Conv2d | Embedding, out: int | None, scaled: Callable[[int], int]) -> int:
    return scaled(layer.topology.out_features) if out is None else out


def _last(shape: Shape) -> int:
    """Features of a sample: the last axis of tokens, the first of an image."""
    return shape[0] if len(shape) == 3 else shape[-1]


def _sequence(layer: Sequential, old: Shape, new: Shape, out: int | None, scaled: Callable[[int], int]) -> Layer:
    sizing = [name for name, child in layer.children() if any(isinstance(one, _SIZING) for _, one in child.walk())]
    children: dict[str, Layer] = {}
    first = None if layer.input_shape is None else new
    for name, child in layer.children():
        fixed = out if sizing and name == sizing[-1] else None
        children[name] = thin = _thin(child, old, new, fixed, scaled)
        old, new = child.out_shape(old), thin.out_shape(new)
    numbered = [child for name, child in children.items() if name.isdigit()]
    named = {name: child for name, child in children.items() if not name.isdigit()}
    return Sequential(*numbered, input_shape=first, **named)


def _rebuilt(
    layer: Layer, old: Shape, new: Shape, outs: Mapping[str, int | None], scaled: Callable[[int], int]
) -> Layer:
    """A layer all of whose children take its input."""
    thin = {name: _thin(child, old, new, outs.get(name), scaled) for name, child in layer.children()}
    return layer.with_children(thin)
