"""The native runtime as a differentiable torch function.

It is used in eager mode on the CPU in float32 and float64; under torch.compile, torch.func, autocast, in a trace or a
dispatch mode, and for other dtypes a layer runs its program in torch's own operations. Saved for the backward pass are
x and what the prologue made of the cores; the states of x are recomputed tile by tile, or saved where they are few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tn4nn._base.errors import ShapeError
from tn4nn._runtime.native import Native

from ._calls import call, quick
from ._memory import as_it_is, ordinary, require
from ._ops import of_any_rank, second
from ._threads import threads

DTYPES = (torch.float32, torch.float64)
transforming: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)
_compiling = torch.compiler.is_compiling
_autocasting = torch.is_autocast_enabled
_grad_enabled = torch.is_grad_enabled
_traced = torch._C._get_tracing_state
_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack


def usable(x: Tensor) -> bool:
    """Whether x is what the runtime can read, in eager mode; the cores are of its dtype and device."""
    return not _compiling() and x.dtype in DTYPES and x.numel() > 0 and unwatched(x)


def unwatched(x: Tensor) -> bool:
    """Whether x is a plain tensor on the CPU, and nothing must see the single operations on it."""
    return (
        type(x) is Tensor
        and x.is_cpu
        # What `quiet` checks, without another call
        and not (transforming() or _modes() or forward_ad._current_level >= 0 or _autocasting("cpu"))
        and _traced() is None
        and as_it_is(x)
    )


def quiet() -> bool:
    """Whether no transform of torch.func, no dispatch mode such as FlopCounterMode, no forward-mode derivatives and no
    trace is on."""
    return not (transforming() or _modes() or forward_ad._current_level >= 0) and _traced() is None


def readable_by_address(cores: Sequence[Tensor], bias: Tensor | None) -> bool:
    """Whether cores and bias are plain tensors whose numbers lie in memory as they are, if it was not freed."""
    return all(ordinary(t) and as_it_is(t) for t in cores) and (bias is None or (ordinary(bias) and as_it_is(bias)))


def readable(x: Tensor) -> bool:
    """Whether the numbers of x can be looked at here: a plain tensor in eager mode on the CPU, and no trace."""
    return type(x) is Tensor and x.is_cpu and not (_compiling() or transforming() or _traced() is not None)


def apply(
    native: Native,
    cores: Sequence[Tensor],
    x: Tensor,
    bias: Tensor | None,
    plain: Callable[[Tensor, Sequence[Tensor]], Tensor],
) -> Tensor:
    """x W^T + bias of shape (..., product of the output modes) for x of shape (..., product of the input modes).

    Args:
        native: what runs.
        cores: in the network's order.
        x: the rows.
        bias: of shape (product of the output modes,), or None.
        plain: rows W^T in torch's operations, for second derivatives.

    Raises:
        ShapeError: cores or bias of another size, dtype or device.
        RuntimeError: the memory of x, a core or the bias was freed.
    """
    y = call(native, x, cores, bias)
    if y is not None:
        return y
    _check(native, x, cores)
    if bias is not None:
        if bias.shape != (native.outputs,) or bias.dtype is not x.dtype or not bias.is_cpu:
            raise ShapeError(
                f"bias: expected {native.outputs} numbers of the input's dtype, {x.dtype}, on the CPU, received "
                f"{list(bias.shape)} of {bias.dtype} on {bias.device}"
            )
        require("bias", bias)
    # Here and not in the function: second derivatives go through what it saves.
    x, cores = x.contiguous(), [core.contiguous() for core in cores]
    bias = None if bias is None else bias.contiguous()
    if _grad_enabled() and any(t is not None and t.requires_grad for t in (x, bias, *cores)):
        result: Tensor = _apply(native, plain, x, bias, *cores)
        return result
    return _forward(native, x, cores, bias, 0)


def _check(native: Native, x: Tensor, cores: Sequence[Tensor]) -> None:
    """Memory is read by address, so that it has to be there and hold what is expected."""
    require("x", x)
    for position, (core, numbers) in enumerate(zip(cores, native.numbers, strict=True)):
        if core.numel() != numbers or core.dtype is not x.dtype or not core.is_cpu:
            raise ShapeError(
                f"core {position}: expected {numbers} numbers of the input's dtype, {x.dtype}, on the CPU, received "
                f"{core.numel()} of {core.dtype} on {core.device}: give the cores that the layer was built with, or "
                "others like them"
            )
        require(f"core {position}", core)


def _forward(native: Native, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, saved: int) -> Tensor:
    """y; what the backward pass needs is saved at an address."""
    y = x.new_empty(*x.shape[:-1], native.outputs)
    at, offset = [core.data_ptr() for core in cores], 0 if bias is None else bias.data_ptr()
    native.forward(_rows(x), at, saved, x.data_ptr(), y.data_ptr(), threads(), offset)
    return y


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def apply_own(
    native: Native,
    x: Tensor,
    parameters: Mapping[str, Tensor | None],
    names: tuple[str, ...],
    own: tuple[Tensor | None, ...],
    plain: Callable[[Tensor, Sequence[Tensor]], Tensor],
) -> Tensor | None:
    """`apply` with a layer's own cores, whose shapes need no look; None where they have been replaced, or x is watched.

    Args:
        native: what runs.
        x: of shape (..., product of the input modes).
        parameters: of the layer, by name; "bias" is added.
        names: of the cores, in the network's order.
        own: the cores that the layer knows.
        plain: as for `apply`.
    """
    if _compiling():  # forward was not, but a frame of its own may be, after a graph break
        return None
    if native.host is not None:
        return quick(native.host, x, parameters, names, own) if forward_ad._current_level < 0 else None
    if not unwatched(x):
        return None
    try:
        # The same objects are equal without a look at their numbers; others have none or several truth values.
        cores: Any = tuple(map(parameters.__getitem__, names))
        bias = parameters["bias"]
        if cores != own or not readable_by_address((), bias):
            return None
    except (KeyError, RuntimeError):
        return None
    return apply(native, cores, x, bias, plain)


def _changed(what: str, numbers: int, like: Tensor, received: Tensor) -> ShapeError:
    return ShapeError(
        f"{what} in the backward pass: expected {numbers} contiguous numbers of {like.dtype} on the CPU, received "
        f"{list(received.shape)} of {received.dtype} on {received.device}: saved_tensors_hooks have to give back what "
        "they took"
    )


class _Native(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, native: Native, plain: Any, x: Tensor, bias: Tensor | None, *cores: Tensor) -> Tensor:
        numbers = native.saved(_rows(x))
        saved = x.new_empty(numbers) if numbers else None
        ctx.native, ctx.plain = native, plain
        # The same tensors in the same order as in C++: torch.utils.checkpoint compares them, and the second of its two
        # calls may be the first that finds the extension.
        ctx.save_for_backward(x, saved, *cores)
        return _forward(native, x, cores, bias, 0 if saved is None else saved.data_ptr())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        native: Native = ctx.native
        x, saved, *cores = ctx.saved_tensors
        _, _, of_x, of_bias, *of_cores = ctx.needs_input_grad
        wanted, gy = (of_x, *of_cores), gradients[0]
        in_memory = ordinary(gy) and as_it_is(gy)
        if in_memory:
            require("the gradient of y", gy)
        offset = gy.sum_to_size(native.outputs) if of_bias else None
        if not any(wanted):
            return (None, None, None, offset, *(None for _ in cores))
        if _grad_enabled() or not in_memory:
            found = iter(second(lambda x, *cores: of_any_rank(ctx.plain, x, cores), (x, *cores), gy, wanted))
            grads = [next(found) if needed else None for needed in wanted]
        else:
            # Hooks may have brought back other tensors than they were given.
            if x.numel() * native.outputs != gy.numel() * native.inputs or x.dtype is not gy.dtype or not x.is_cpu:
                raise _changed("x", gy.numel() // native.outputs * native.inputs, gy, x)
            _check(native, x, cores)
            x, gy, cores = x.contiguous(), gy.contiguous(), [core.contiguous() for core in cores]
            at_saved = 0 if saved is None else _address_of(saved, native.saved(_rows(x)), x)
            grads = [torch.empty_like(t) if needed else None for t, needed in zip((x, *cores), wanted, strict=True)]
            to = [0 if grad is None else grad.data_ptr() for grad in grads]
            at = [core.data_ptr() for core in cores]
            native.backward(_rows(x), at, at_saved, x.data_ptr(), gy.data_ptr(), to[0], to[1:], wanted, threads())
        return (None, None, grads[0], offset, *grads[1:])


def _address_of(saved: Tensor, numbers: int, x: Tensor) -> int:
    if saved.numel() != numbers or saved.dtype is not x.dtype or not (saved.is_cpu and saved.is_contiguous()):
        raise _changed("what was saved", numbers, x, saved)
    require("what was saved", saved)
    return saved.data_ptr()


# Function.apply looks for torch.func's wrappers, which `unwatched` has ruled out: 6 us a call.
_plain_function: Any = super(torch.autograd.Function, _Native)
_apply: Any = _plain_function.apply
