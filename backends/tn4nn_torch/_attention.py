"""nn.MultiheadAttention with its projections as layers, so that they can be converted like others."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tn4nn._base.errors import TN4NNError

from ._kinds import carry_over


class SplitAttention(nn.Module):
    """What nn.MultiheadAttention computes, by layers of their own: `q_proj`, `k_proj`, `v_proj` and `out_proj`.

    Input and output shapes, masks and arguments are those of nn.MultiheadAttention.

    Args:
        source: the module whose weights are copied.

    Raises:
        TN4NNError: `add_bias_kv` or `add_zero_attn`, which are not supported.

    Examples:
        >>> import torch, tn4nn_torch
        >>> source = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
        >>> split, x = tn4nn_torch.SplitAttention(source), torch.randn(2, 5, 16)
        >>> torch.allclose(split(x, x, x)[0], source(x, x, x)[0], atol=1e-6)
        True
    """

    # What nn.TransformerEncoderLayer asks before it takes a path that reads weights past the layers.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        if source.bias_k is not None or source.add_zero_attn:
            raise TN4NNError("nn.MultiheadAttention with add_bias_kv or add_zero_attn cannot be split")
        self.embed_dim, self.num_heads, self.head_dim = source.embed_dim, source.num_heads, source.head_dim
        self.dropout, self.batch_first = source.dropout, source.batch_first
        packed, bias = source.in_proj_weight, source.in_proj_bias
        apart = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
        weights = apart if packed is None else packed.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        owners = (packed if packed is not None else source.q_proj_weight, bias)
        self.q_proj, self.k_proj, self.v_proj = (_linear(w, b, *owners) for w, b in zip(weights, biases, strict=True))
        out = source.out_proj
        self.out_proj = _linear(out.weight, out.bias, out.weight, out.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See nn.MultiheadAttention; (output, weights), weights None unless `need_weights`."""
        batched = query.dim() == 3
        swap = batched and not self.batch_first  # (length, batch, features)
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        q, k, v = ((t.transpose(0, 1) if swap else t if batched else t[None]) for t in (q, k, v))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        if is_causal and attn_mask is None:
            raise TN4NNError("is_causal needs the attn_mask that it is a hint for, as in nn.MultiheadAttention")
        mask = self._mask(key_padding_mask, attn_mask, q)
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, dim=-1), rate)
            heads = weights @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        y = heads.transpose(1, 2).flatten(-2)  # (batch, length, features)
        y = self.out_proj(y.transpose(0, 1) if swap else y if batched else y[0])
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        return y, weights

    def _mask(self, padding: Tensor | None, attention: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores, of shape (batch or 1, heads or 1, lengths or 1, keys)."""
        found = None
        for mask, is_padding in ((padding, True), (attention, False)):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -math.inf)
            if is_padding:
                mask = mask.reshape(-1, 1, 1, mask.shape[-1])
            elif mask.dim() == 3:
                mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
            found = mask if found is None else found + mask
        return found


def _linear(weight: Tensor, bias: Tensor | None, *owners: Tensor | None) -> nn.Linear:
    """nn.Linear with a copy of a weight and a bias; they need gradients where their owners do."""
    meta: Any = {"device": "meta"}  # nothing is drawn
    result = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, **meta)
    for name, part, owner in zip(("weight", "bias"), (weight, bias), owners, strict=True):
        if part is not None and owner is not None:
            copied = part.detach().clone(memory_format=torch.contiguous_format)
            setattr(result, name, nn.Parameter(copied, requires_grad=owner.requires_grad))
    return result


def split_attention(model: nn.Module) -> nn.Module:
    """A copy of a model in which every nn.MultiheadAttention is a `SplitAttention`, which computes the same.

    nn.MultiheadAttention reads its weights past its layers, so `convert` leaves it alone. In the copy the projections
    are nn.Linear, named `q_proj`, `k_proj`, `v_proj` and `out_proj`: convert it, and give it to `refine` and
    `distill` as the original. The source is not touched.

    Raises:
        TN4NNError: a module with `add_bias_kv` or `add_zero_attn`.

    Examples:
        >>> from tn4nn_torch import split_attention
        >>> import torch
        >>> from torch import nn
        >>> from tn4nn_torch import convert
        >>> model = split_attention(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True))
        >>> small = convert(model, {"self_attn.*_proj": "low_rank"}, budget=0.5, protect_head=False)
        >>> small(torch.zeros(2, 5, 32)).shape, type(small.self_attn.k_proj).__name__
        (torch.Size([2, 5, 32]), 'TNLinear')
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward:
            result = SplitAttention(module)
            carry_over(module, result, (), memo)
            memo[id(module)] = result
    return copy.deepcopy(model, memo)
