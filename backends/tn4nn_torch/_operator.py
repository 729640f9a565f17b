"""A layer as one operator of torch, which torch.compile keeps whole.

While a model is traced nothing can be planned, and the runtime reads memory that a trace does not have. So the trace
holds this operator, and the layer is planned for the rows that come when the compiled model runs: it runs as in eager
mode, one trace serves all batch sizes, and there is little to compile. A trace has numbers and tensors, so the operator
finds its layer by a number that the process gave it.

Exported models go to processes without tn4nn, and transforms of torch.func need the single operations: both get array
programs.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._native import DTYPES, transforming
from ._ops import autocast_dtype, of_any_rank, second
from ._runners import LayerRunners, Runners
from ._steps import Steps, gradients
from ._threads import threads

_layers: weakref.WeakValueDictionary[int, LayerRunners] = weakref.WeakValueDictionary()
_known: weakref.WeakKeyDictionary[LayerRunners, int] = weakref.WeakKeyDictionary()
_numbers = itertools.count(1)


def number_of(runners: LayerRunners) -> int:
    """The number by which the operator finds a layer; 0 under a transform of torch.func, which it does not know."""
    if transforming():
        return 0
    if runners not in _known:
        _known[runners] = next(_numbers)
        _layers[_known[runners]] = runners
    return _known[runners]


def can_be_operator(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None) -> bool:
    """Whether a traced layer may be the operator: plain tensors of one dtype on the CPU."""
    arrays = [x, *cores] if bias is None else [x, *cores, bias]
    return (
        x.dtype in DTYPES
        and autocast_dtype("cpu") is None
        and not torch.compiler.is_exporting()
        and all(type(a) in (Tensor, nn.Parameter) and a.device.type == "cpu" and a.dtype == x.dtype for a in arrays)
    )


def operator(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, number: int) -> Tensor:
    """x W^T + bias of shape (..., product of the output modes) for x of shape (..., product of the input modes)."""
    arrays = [x, *cores] if bias is None else [x, *cores, bias]
    trains = torch.is_grad_enabled() and any(array.requires_grad for array in arrays)
    found: Tensor = torch.ops.tn4nn.layer(x, list(cores), bias, number, trains)[0]
    return found


def _runners(number: int, x: Tensor, cores: Sequence[Tensor]) -> tuple[Runners, int]:
    """What runs a layer on these arrays, and for how many rows."""
    found = _layers.get(number)
    if found is None:
        raise RuntimeError("tn4nn: the layer of this compiled model is gone: compile the model that is there")
    return found.at(cores[0]), x.numel() // x.shape[-1]


def _outputs(number: int) -> int:
    return math.prod(_layers[number].layer.topology.outputs.values())


def _forward(
    x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, number: int, trains: bool
) -> tuple[Tensor, Tensor]:
    """y, and what the backward pass needs beside x and the cores."""
    runners, rows = _runners(number, x, cores)
    if not rows:
        return x.new_empty(*x.shape[:-1], _outputs(number)), x.new_empty(0)
    native = runners.native(rows)
    if native is None:
        y = _plain(runners)(x, *cores)
        return y.clone() if bias is None else y + bias, x.new_empty(0)  # a program may give a view of an input
    x, cores = x.contiguous(), [core.contiguous() for core in cores]
    y, saved = x.new_empty(*x.shape[:-1], native.outputs), x.new_empty(native.saved(rows) if trains else 0)
    offset = 0 if bias is None else bias.contiguous().data_ptr()
    at, to = [core.data_ptr() for core in cores], saved.data_ptr() if saved.numel() else 0
    native.forward(rows, at, to, x.data_ptr(), y.data_ptr(), threads(), offset)
    return y, saved


def _backward(
    gy: Tensor, x: Tensor, cores: Sequence[Tensor], saved: Tensor, number: int, wanted: Sequence[bool]
) -> list[Tensor]:
    """The gradients that are wanted, of x and of the cores."""
    runners, rows = _runners(number, x, cores)
    if not rows:
        return [torch.zeros_like(array) for array, needed in zip((x, *cores), wanted, strict=True) if needed]
    native = runners.native(rows)
    if native is None:
        steps = runners.program(rows)
        assert isinstance(steps, Steps)  # other engines are no operator
        of_rows, gy = x.reshape(-1, x.shape[-1]), gy.reshape(-1, gy.shape[-1])
        *of_cores, of_x = gradients(steps, [*cores, of_rows], gy, [*wanted[1:], wanted[0]])
        of_x = None if of_x is None else of_x.reshape(x.shape)
        # Operators own what they give.
        return [found.clone() for found in (of_x, *of_cores) if found is not None]
    x, gy, cores = x.contiguous(), gy.contiguous(), [core.contiguous() for core in cores]
    found = [torch.empty_like(a) if needed else None for a, needed in zip((x, *cores), wanted, strict=True)]
    to = [0 if gradient is None else gradient.data_ptr() for gradient in found]
    at, kept = [core.data_ptr() for core in cores], saved.contiguous()
    if kept.numel() != native.saved(rows):
        raise RuntimeError(
            f"tn4nn: expected {native.saved(rows)} numbers saved by the forward pass, received {kept.numel()}: was the "
            "layer planned anew between the two passes?"
        )
    native.backward(
        rows, at, kept.data_ptr() if kept.numel() else 0, x.data_ptr(), gy.data_ptr(), to[0], to[1:], tuple(wanted),
        threads(),
    )  # fmt: skip
    return [gradient for gradient in found if gradient is not None]


def _plain(runners: Runners) -> Any:
    def apply(x: Tensor, *cores: Tensor) -> Tensor:
        return of_any_rank(lambda rows, cores: runners.program(len(rows))([*cores, rows]), x, cores)

    return apply


def _fake_forward(
    x: Tensor, cores: Sequence[Tensor], bias: Tensor | None, number: int, trains: bool
) -> tuple[Tensor, Tensor]:
    # How much is saved depends on the plan, which is made for the rows that come.
    saved = torch.library.get_ctx().new_dynamic_size() if trains else 0
    return x.new_empty(*x.shape[:-1], _outputs(number)), x.new_empty(saved)


def _fake_backward(
    gy: Tensor, x: Tensor, cores: Sequence[Tensor], saved: Tensor, number: int, wanted: Sequence[bool]
) -> list[Tensor]:
    arrays = zip((x, *cores), wanted, strict=True)
    return [torch.empty_like(a, memory_format=torch.contiguous_format) for a, needed in arrays if needed]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, cores, _, ctx.number, _ = inputs
    ctx.save_for_backward(x, output[1], *cores)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, gy: Tensor, _: Any) -> tuple[Any, ...]:
    x, saved, *cores = ctx.saved_tensors
    of_x, of_cores, of_bias, *_ = ctx.needs_input_grad
    wanted = [of_x, *of_cores]
    found = iter(torch.ops.tn4nn.layer_backward(gy, x, cores, saved, ctx.number, wanted) if any(wanted) else ())
    gx, *grads = [next(found) if needed else None for needed in wanted]
    return gx, grads, gy.sum_to_size(gy.shape[-1]) if of_bias else None, None, None


def _keep_second(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    gy, x, cores, _, ctx.number, ctx.wanted = inputs
    ctx.save_for_backward(gy, x, *cores)


def _second_gradients(ctx: Any, gradients: Sequence[Tensor]) -> tuple[Any, ...]:
    """In torch's own operations, as in eager mode."""
    inputs = [array.detach().requires_grad_() for array in ctx.saved_tensors]
    runners, _ = _runners(ctx.number, inputs[1], inputs[2:])
    with torch.enable_grad():
        gy, x, *cores = inputs
        first = second(_plain(runners), (x, *cores), gy, ctx.wanted)
        found = torch.autograd.grad(first, inputs, gradients, allow_unused=True)
    gg, gx, *grads = found
    return gg, gx, grads, None, None, None


_library: Any = torch.library.Library("tn4nn", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("layer(Tensor x, Tensor[] cores, Tensor? bias, int number, bool trains) -> (Tensor, Tensor)")
_library.define(
    "layer_backward(Tensor gy, Tensor x, Tensor[] cores, Tensor saved, int number, bool[] wanted) -> Tensor[]"
)
_library.impl("layer", _forward, "CPU")
_library.impl("layer_backward", _backward, "CPU")
torch.library.register_fake("tn4nn::layer", _fake_forward)
torch.library.register_fake("tn4nn::layer_backward", _fake_backward)
torch.library.register_autograd("tn4nn::layer", _gradients, setup_context=_keep)
torch.library.register_autograd("tn4nn::layer_backward", _second_gradients, setup_context=_keep_second)
