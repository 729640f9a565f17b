"""Modules of the layers that are not on a network themselves: norms, containers, attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tn4nn._model.layers as layers

Children = Iterable[tuple[str, nn.Module]]


class TNBatchNorm(nn.Module):
    """Batch normalisation over the first axis of a sample; torch's arithmetic, tn4nn's names."""

    def __init__(self, layer: layers.BatchNorm, weights: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.scale, self.bias = nn.Parameter(weights["scale"]), nn.Parameter(weights["bias"])
        self.register_buffer("mean", weights["mean"])
        self.register_buffer("var", weights["var"])

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        mean: Any = self.mean
        var: Any = self.var
        layer = self.layer
        return F.batch_norm(x, mean, var, self.scale, self.bias, self.training, layer.momentum, layer.eps)


class TNLayerNorm(nn.Module):
    """Layer normalisation over the last axis, with tn4nn's names."""

    def __init__(self, layer: layers.LayerNorm, weights: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.scale, self.bias = nn.Parameter(weights["scale"]), nn.Parameter(weights["bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return F.layer_norm(x, (self.layer.features,), self.scale, self.bias, self.layer.eps)


class TNRMSNorm(nn.Module):
    """Division by the root of the mean square over the last axis, with tn4nn's names."""

    def __init__(self, layer: layers.RMSNorm, weights: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(weights["scale"])

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        # Under autocast x may be of 16 bits where the scale is wide.
        y = F.rms_norm(x.to(self.scale.dtype), (self.layer.features,), self.scale, self.layer.eps)
        return y.to(x.dtype)


class _Around(nn.Module):
    """A module around others, which have the names of the layer graph."""

    def __init__(self, children: Children) -> None:
        super().__init__()
        for name, child in children:
            self.add_module(name, child)


class ResidualModule(_Around):
    """body(x) + shortcut(x)."""

    body: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        shortcut = self._modules.get("shortcut")
        side: Tensor = x if shortcut is None else shortcut(x)
        result: Tensor = self.body(x)
        return result + side


class ParallelModule(_Around):
    """The same input through several branches."""

    def __init__(self, branches: Children, combine: str) -> None:
        super().__init__(branches)
        self.combine = combine

    def forward(self, x: Tensor) -> Tensor:
        """The sum or the product, or the branches side by side."""
        result = [branch(x) for branch in self.children()]
        if self.combine == "concat":
            return torch.cat(result, dim=1)
        stacked = torch.stack(result)
        return stacked.sum(0) if self.combine == "sum" else stacked.prod(0)


class BlockModule(_Around):
    """x + attention(norm1(x)), then the same with the MLP."""

    norm1: nn.Module
    attention: nn.Module
    norm2: nn.Module
    mlp: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width), unchanged."""
        half: Tensor = x + self._dropped(self.attention(self.norm1(x)))
        return half + self._dropped(self.mlp(self.norm2(half)))

    def _dropped(self, x: Tensor) -> Tensor:
        dropout = self._modules.get("dropout")
        y: Tensor = x if dropout is None else dropout(x)
        return y


class AttentionModule(_Around):
    """Multi-head attention by torch's own kernel, its projections layers of their own."""

    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module

    def __init__(self, layer: layers.Attention, projections: Children) -> None:
        super().__init__(projections)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width), unchanged."""
        layer = self.layer
        layer.out_shape(tuple(x.shape[1:]))
        q = self._heads(self.query(x), layer.heads)
        k, v = self._heads(self.key(x), layer.groups), self._heads(self.value(x), layer.groups)
        if layer.rotary:
            q, k = self._turned(q), self._turned(k)
        rate = layer.dropout if self.training else 0.0
        grouped = layer.groups != layer.heads
        y = F.scaled_dot_product_attention(q, k, v, None, rate, layer.causal, enable_gqa=grouped)
        result: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return result

    def _heads(self, x: Tensor, count: int) -> Tensor:
        """(batch, tokens, features) -> (batch, count, tokens, size of a head)."""
        return x.reshape(*x.shape[:2], count, self.layer.head_size).transpose(1, 2)

    def _turned(self, x: Tensor) -> Tensor:
        """Rotary positions on the heads."""
        # Angles in float64: at position n float32 is off by n * 6e-8. Made where x is, so that a graph can capture it.
        half = self.layer.head_size // 2
        places, pairs = (torch.arange(n, device=x.device, dtype=torch.float64) for n in (x.shape[2], half))
        angles = places[:, None] * float(self.layer.rotary) ** (-pairs / half)
        wide = torch.promote_types(x.dtype, torch.float32)
        cos, sin = angles.cos().to(wide), angles.sin().to(wide)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class PositionsModule(_Around):
    """x + the first rows of a table."""

    table: nn.Module

    def __init__(self, layer: layers.Positions, table: Children) -> None:
        super().__init__(table)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width), unchanged."""
        self.layer.out_shape(tuple(x.shape[1:]))
        rows: Tensor = self.table(torch.arange(x.shape[1], device=x.device))
        return x + rows


class TiedModule(nn.Module):
    """Tokens to logits with one table for both ends."""

    def __init__(self, layer: layers.Tied, embedding: nn.Module, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.embedding, self.body, self.head = embedding, body, head
        self.scale = layer.scale

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens) -> (batch, tokens, size of the vocabulary)."""
        logits: Tensor = self.head(self.body(self.embedding(x)))
        return logits * self.scale


class TokensModule(nn.Module):
    """(batch, channels, height, width) -> (batch, height * width, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        """The places of an image, row by row."""
        layers.Tokens().out_shape(tuple(x.shape[1:]))
        return x.flatten(2).transpose(1, 2)


class MeanPoolModule(nn.Module):
    """(batch, tokens, width) -> (batch, width)."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over tokens."""
        layers.MeanPool().out_shape(tuple(x.shape[1:]))
        return x.mean(1)
