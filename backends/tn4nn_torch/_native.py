"""The native runtime as a differentiable torch function.

It is used in eager mode on the CPU in float32 and float64; under torch.compile, torch.func, autocast and for other
dtypes a layer runs its program in torch's own operations. Kept for the backward pass are x and what the prologue made
out of the cores; the states of x are made again, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tn4nn._native import Native

ITEMSIZE = {torch.float32: 4, torch.float64: 8}
transforming: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_compiling = torch.compiler.is_compiling
_autocasting = torch.is_autocast_enabled


def usable(x: Tensor) -> bool:
    """Whether x is a plain tensor in eager mode that the runtime can read; the cores are of its dtype and device."""
    plain = type(x) is Tensor and x.dtype in ITEMSIZE and x.is_cpu
    return plain and not (_compiling() or transforming() or _autocasting("cpu")) and x.shape[0] > 0


def apply(
    native: Native, cores: Sequence[Tensor], x: Tensor, plain: Callable[[Tensor, Sequence[Tensor]], Tensor]
) -> Tensor:
    """y of shape (rows, product of the output modes) for x of shape (rows, product of the input modes).

    Args:
        native: what runs.
        cores: in the network's order.
        x: the rows.
        plain: the same function in torch's operations, for second derivatives.
    """
    if torch.is_grad_enabled() and (x.requires_grad or any(core.requires_grad for core in cores)):
        made: Tensor = _Native.apply(native, plain, x, *cores)  # type: ignore[no-untyped-call]
        return made
    return _ahead(native, x.contiguous(), [core.contiguous() for core in cores])[0]


def _ahead(native: Native, x: Tensor, cores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """y, and what the prologue made."""
    rows = x.shape[0]
    y, made = x.new_empty((rows, native.outputs)), x.new_empty(native.kept)
    addresses = [core.data_ptr() for core in cores]
    native.forward(rows, addresses, made.data_ptr(), x.data_ptr(), y.data_ptr(), torch.get_num_threads())
    return y, made


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, native: Native, plain: Any, x: Tensor, *cores: Tensor) -> Tensor:
        x, cores = x.contiguous(), tuple(core.contiguous() for core in cores)
        y, made = _ahead(native, x, cores)
        ctx.native, ctx.plain = native, plain
        ctx.save_for_backward(x, made, *cores)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        native: Native = ctx.native
        x, made, *cores = ctx.saved_tensors
        _, _, x_wanted, *wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return (None, None, *_again(ctx.plain, x, cores, gradients[0], [x_wanted, *wanted]))
        gy = gradients[0].contiguous()
        gx = torch.empty_like(x) if x_wanted else None
        slopes = [torch.empty_like(core) if needed else None for core, needed in zip(cores, wanted, strict=True)]
        native.backward(
            x.shape[0], [core.data_ptr() for core in cores], made.data_ptr(), x.data_ptr(), gy.data_ptr(),
            0 if gx is None else gx.data_ptr(), [0 if s is None else s.data_ptr() for s in slopes],
            torch.get_num_threads(),
        )  # fmt: skip
        return (None, None, gx, *slopes)


def _again(plain: Any, x: Tensor, cores: Sequence[Tensor], gy: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Gradients that can be differentiated once more: the same function in torch's own operations."""
    y = plain(x, cores)
    inputs = [t for t, needed in zip((x, *cores), wanted, strict=True) if needed]
    found = iter(torch.autograd.grad(y, inputs, gy, create_graph=True))
    return [next(found) if needed else None for needed in wanted]
