"""The native kernel as a differentiable torch function.

A stream runs block by block in `tn4nn._kernel`; only its input is kept for the backward pass. It is used in eager
mode on the CPU in float32; under torch.compile, torch.func, autocast and other dtypes the layer runs its program.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
from typing import Any

import torch
from torch import Tensor

from tn4nn._kernel import Kernel
from tn4nn._program import Program, registers_of, run
from tn4nn._stream import Pass, Stream

from ._ops import OPS

_SHARE = 64  # rows below which a thread of its own does not pay


def usable(x: Tensor, cores: list[Tensor]) -> bool:
    """Whether these tensors can go through the kernel: plain float32 CPU tensors in eager mode."""
    if x.dtype is not torch.float32 or x.device.type != "cpu" or type(x) is not Tensor:
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or _in_transform():
        return False
    return x.shape[0] > 0 and all(type(core) in (Tensor, torch.nn.Parameter) for core in cores)


def _in_transform() -> bool:
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return True if active is None else bool(active())


def blocked(kernel: Kernel, cores: dict[str, Tensor], x: Tensor) -> Tensor:
    """y of shape (rows, product of the output modes) for x of shape (rows, product of the input modes)."""
    made: Tensor = _Blocked.apply(kernel, tuple(cores), x, *cores.values())  # type: ignore[no-untyped-call]
    return made


class _Blocked(torch.autograd.Function):
    """The operands are made, and their gradients pulled back to the cores, without a graph of small nodes."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, names: tuple[str, ...], x: Tensor, *cores: Tensor) -> Tensor:
        x, held = x.contiguous(), dict(zip(names, cores, strict=True))
        made = [
            registers_of(OPS, program, [held[n] for n in program.inputs], keep=True)
            for program in kernel.stream.operands
        ]
        operands = [registers[-1].contiguous() for registers in made]
        ctx.kernel, ctx.names, ctx.made, ctx.operands = kernel, names, made, operands
        ctx.save_for_backward(x, *cores)
        y = x.new_empty(x.shape[0], kernel.stream.outputs)
        addresses = [operand.data_ptr() for operand in operands]

        def part(low: int, high: int) -> None:
            kernel.forward(high - low, _row(x, low), _row(y, low), addresses)

        _spread(part, x.shape[0])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        kernel: Kernel = ctx.kernel
        x, *cores = ctx.saved_tensors
        gy = gradients[0]
        if torch.is_grad_enabled():  # second derivatives: the same sums in torch's own operations
            held = dict(zip(ctx.names, cores, strict=True))
            operands = [run(OPS, program, [held[n] for n in program.inputs]) for program in kernel.stream.operands]
            y = _in_torch(kernel.stream, x, operands)
            wanted = [t for t in (x, *cores) if t.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, gy, create_graph=True))
            return (None, None, *(next(found) if t.requires_grad else None for t in (x, *cores)))
        gy, operands = gy.contiguous(), ctx.operands
        gx = torch.empty_like(x) if ctx.needs_input_grad[2] else None
        turned = [operand.transpose(1, 2).contiguous() for operand in operands]
        straight, swapped = [t.data_ptr() for t in operands], [t.data_ptr() for t in turned]

        def part(low: int, high: int) -> list[Tensor]:
            slopes = [torch.empty_like(operand) for operand in operands]
            to = 0 if gx is None else _row(gx, low)
            kernel.backward(
                high - low, _row(x, low), _row(gy, low), to, straight, swapped, [s.data_ptr() for s in slopes]
            )
            return slopes

        parts = _spread(part, x.shape[0])
        by_name: dict[str, Tensor] = {}
        for program, registers, slopes in zip(kernel.stream.operands, ctx.made, zip(*parts, strict=True), strict=True):
            slope = functools.reduce(torch.add, slopes)
            by_name.update(zip(program.inputs, pull_back(program, registers, slope), strict=True))
        return (None, None, gx, *(by_name[name] for name in ctx.names))


def pull_back(program: Program, registers: list[Tensor], slope: Tensor) -> list[Tensor]:
    """Gradients of the inputs, from that of the last register: each register is read by one step."""
    count = len(program.inputs)
    slopes: dict[int, Tensor] = {len(registers) - 1: slope}
    for position in reversed(range(len(program.steps))):
        step, g = program.steps[position], slopes.pop(count + position)
        first = registers[step.args[0]]
        if step.kind == "reshape":
            slopes[step.args[0]] = g.reshape(first.shape)
        elif step.kind == "permute":
            slopes[step.args[0]] = g.permute(sorted(range(g.dim()), key=step.param.__getitem__))
        else:
            second = registers[step.args[1]]
            if step.kind == "matmul":
                slopes[step.args[0]], slopes[step.args[1]] = g @ second.mT, first.mT @ g
            else:
                slopes[step.args[0]] = (g * second).sum_to_size(first.shape)
                slopes[step.args[1]] = (g * first).sum_to_size(second.shape)
    return [slopes[i] for i in range(count)]


def _row(array: Tensor, row: int) -> int:
    """Address of a row."""
    return array.data_ptr() + row * array.shape[1] * array.element_size()


def _spread(part: Any, rows: int) -> list[Any]:
    """part(low, high) over all rows, in as many threads as torch uses; results in order."""
    count = max(1, min(torch.get_num_threads(), rows // _SHARE))
    if count == 1:
        return [part(0, rows)]
    step = 16 * math.ceil(rows / count / 16)
    waiting = [_pool(count).submit(part, low, min(rows, low + step)) for low in range(0, rows, step)]
    return [each.result() for each in waiting]


@functools.cache
def _pool(count: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="tn4nn")


def _in_torch(stream: Stream, x: Tensor, operands: list[Tensor]) -> Tensor:
    """The stream in differentiable torch operations: clear, and slow."""
    state = x
    for step, operand in zip(stream.passes, operands, strict=True):
        picked, made_at = (places.to(state.device) for places in _places(step))
        made = torch.einsum("rhmk,hkn->rhmn", state[:, picked], operand).reshape(len(state), -1)
        state = torch.zeros_like(made).index_copy(1, made_at.reshape(-1), made)
    return state


def _places(step: Pass) -> tuple[Tensor, Tensor]:
    h, m, k, ch, cm, cn = (
        torch.tensor(t) for t in (step.state_h, step.state_m, step.state_k, step.made_h, step.made_m, step.made_n)
    )
    picked = h[:, None, None] + m[None, :, None] + k[None, None, :]
    return picked, ch[:, None, None] + cm[None, :, None] + cn[None, None, :]
