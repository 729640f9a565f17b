"""torch's part in running a program."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tn4nn._program import Ops

OPS = Ops(torch.reshape, torch.permute, torch.matmul, torch.mul, torch.select, torch.cat)


def second(
    plain: Callable[[Tensor, Sequence[Tensor]], Tensor],
    x: Tensor,
    cores: Sequence[Tensor],
    gy: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """The gradients of x and of the cores that are wanted, by a function in torch's own operations: they can be
    differentiated once more, and gy may be a batch of gradients under vmap."""
    inputs, again = [t for t, needed in zip((x, *cores), wanted, strict=True) if needed], torch.is_grad_enabled()
    with torch.enable_grad():
        y = plain(x, cores)
    return list(torch.autograd.grad(y, inputs, gy, create_graph=again))
