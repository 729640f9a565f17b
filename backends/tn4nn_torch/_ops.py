"""The torch operations that run a program."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tn4nn._runtime.program import Ops


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    # torch.matmul comes to these two, a microsecond later
    return torch.mm(a, b) if a.dim() == 2 else torch.bmm(a, b)


OPS = Ops(torch.reshape, torch.permute, _matmul, torch.mul, torch.select, torch.cat)


_autograd: Any = getattr(torch._C, "_autograd")  # noqa: B009  (without types)
_hooks: Callable[[bool], object] = getattr(_autograd, "_top_saved_tensors_default_hooks", lambda _: None)


def saving_hooks() -> bool:
    """Whether saved_tensors_hooks are on, such as those of torch.utils.checkpoint."""
    return _hooks(False) is not None


def own_result(y: Tensor) -> Tensor:
    """A result as a tensor of its own, where it is a view of an intermediate that nobody else has.

    What is done to a view in place drops the hooks of FSDP, which warns of it.
    """
    result: Tensor = y
    if not torch.compiler.is_compiling() and y._is_view():
        result = torch.ops.aten._unsafe_view.default(y, y.shape)
    return result


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of autocast on a type of device; None where it is off, or the device knows none (meta)."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


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
