"""The torch operations that run a program."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tn4nn._runtime.program import Ops


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    # torch.matmul comes to these two, a microsecond later
    return torch.mm(a, b) if a.dim() == 2 else torch.bmm(a, b)


OPS = Ops(torch.reshape, torch.permute, _matmul, torch.mul, torch.select, torch.cat)


def of_any_rank(rows: Callable[[Tensor, Sequence[Tensor]], Tensor], x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """What a function of rows and cores gives for x of shape (..., features)."""
    return rows(x.reshape(-1, x.shape[-1]), cores).reshape(*x.shape[:-1], -1)


def second(plain: Callable[..., Tensor], inputs: Sequence[Tensor], gy: Tensor, wanted: Sequence[bool]) -> list[Tensor]:
    """The gradients of the inputs that are wanted, by a function in torch's own operations: they can be differentiated
    once more, and gy may be a batch of gradients under vmap."""
    chosen, graph = [t for t, needed in zip(inputs, wanted, strict=True) if needed], torch.is_grad_enabled()
    with torch.enable_grad():
        y = plain(*inputs)
    return list(torch.autograd.grad(y, chosen, gy, create_graph=graph))
