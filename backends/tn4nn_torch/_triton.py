"""A stream as one Triton kernel: blocks of rows through all operands, forward and backward, float32 and bfloat16.

Only the input and the operands are kept for the backward pass, which runs each block forward again. Every size is
known when the kernel is compiled, the number of rows alone is not; nothing that is launched or allocated depends on
values, and the host waits for nothing, so that a call can be captured in a CUDA graph once the kernel is there. What
a program sums up over its blocks for the operands it writes to a place of its own, and torch adds these up in order:
the same call gives the same bits.

Triton is imported where the tensors are on a CUDA device, or are on the CPU and TRITON_INTERPRET=1 asks for Triton's
interpreter, which is how these kernels are tested without a GPU. Without Triton the layers run their program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import itertools
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tn4nn._machine import CPU, Gpu, fused_path, gpu, known
from tn4nn._network import Network
from tn4nn._program import run
from tn4nn._stream import Pass, Stream, stream

from ._native import transforming
from ._ops import OPS

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_DTYPES = (torch.float32, torch.bfloat16)
_ROWS = 16  # of a block: the columns that a matrix instruction takes at the least, and a sector of memory in bfloat16
_COLUMNS = 128  # of a tile: values of m times rows
_DEEP = 32  # the largest tile along k and n
_TILE = 64  # numbers of a row that are taken from the batch at a time
_SLOPES = 1 << 26  # bytes of the sums of all programs, at most
_SCRATCH = 1 << 28  # bytes of the states of all programs, at most
_CPU_PROGRAMS = 3  # in the interpreter: enough that programs differ and each has several blocks

Spec = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Fused:
    """A stream, ready for a device.

    Attributes:
        stream: what it runs.
        dtype: of states and operands; sums are float32.
        table: all offsets of all passes, on the device.
        forward: the passes of the forward kernel, as its docstring has them; states take turns in two places.
        again: the same for the backward kernel, where each state has a place of its own.
        back: those passes turned round.
        forward_size: numbers of one row in the forward kernel's scratch.
        back_size: likewise in the backward kernel's.
        programs: at most; each goes through every so many blocks.
    """

    stream: Stream
    dtype: torch.dtype
    table: Tensor
    forward: tuple[Spec, ...]
    again: tuple[Spec, ...]
    back: tuple[Spec, ...]
    forward_size: int
    back_size: int
    programs: int

    @property
    def operand_size(self) -> int:
        """Numbers in all operands."""
        return sum(_operand_sizes(self.stream))

    def __call__(self, cores: dict[str, Tensor], x: Tensor) -> Tensor:
        """y of shape (rows, product of the output modes) for x of shape (rows, product of the input modes)."""
        dtype = self.dtype
        held = {name: core.to(dtype) for name, core in cores.items()}
        operands = [run(OPS, program, [held[n] for n in program.inputs]) for program in self.stream.operands]
        made: Tensor = _Apply.apply(self, x.to(dtype), *operands)  # type: ignore[no-untyped-call]
        return made


def dtype_for(x: Tensor, cores: Sequence[Tensor]) -> torch.dtype | None:
    """The dtype in which a Triton kernel takes these tensors, autocast's where that is on; None where none can:
    it takes plain tensors in eager mode."""
    kind = x.device.type
    if kind != "cuda" and not (_INTERPRETED and kind == "cpu"):
        return None
    if torch.compiler.is_compiling() or transforming() or type(x) is not Tensor or not x.shape[0]:
        return None
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    plain = all(type(core) in (Tensor, torch.nn.Parameter) for core in cores)
    return dtype if plain and dtype in _DTYPES else None


def gpu_of(device: torch.device) -> Gpu | None:
    """The figures of a CUDA device; None for others."""
    return gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def figures(core: Tensor) -> dict[str, Any]:
    """What a plan for this core's device and dtype is told; nothing on a CPU that was not calibrated."""
    return figures_of(core.device, core.dtype)


def figures_of(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The same for any device and dtype."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else CPU
    return known("torch", name, str(dtype).removeprefix("torch."), dtype.itemsize)


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: nothing may be compiled, checked or copied to the device then."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


# -- making one -------------------------------------------------------------------------------------------------


def chosen(
    network: Network, batch: int, phase: str, minimize: str, device: torch.device, dtype: torch.dtype
) -> Fused | None:
    """The kernel for a network, where the cost model prefers it to the program; None on the CPU."""
    card = gpu_of(device)
    if card is None:
        return None
    machine = figures_of(device, dtype)["machine"]
    path = fused_path(network, batch, phase, minimize, dtype.itemsize, card, machine)
    return fused(stream(network, path), device, dtype) if path else None


def fused(rows: Stream, device: torch.device, dtype: torch.dtype) -> Fused | None:
    """The kernel of a stream, checked on the device; None (and said once) where there is none."""
    try:
        _kernels()
        made = _made(rows, device, dtype)
        if made is not None:
            _check(made, device, dtype)
    except ImportError:
        tell("no Triton kernels: Triton is not installed (pip install 'tn4nn[gpu]')")
    except Exception as error:  # a compiler, driver or card that cannot: the program can
        tell(f"no Triton kernel for a layer: {type(error).__name__}: {str(error)[:300]}")
    else:
        return made
    return None


@functools.cache
def _kernels() -> Any:
    return importlib.import_module("tn4nn_torch._triton_kernels")


@functools.cache
def tell(message: str) -> None:
    """Says once why layers go another way than they could."""
    warnings.warn(f"tn4nn: {message}; layers run in torch's own operations", stacklevel=3)


def _made(rows: Stream, device: torch.device, dtype: torch.dtype) -> Fused | None:
    """None where the states of a block or the sums for the operands are so large that few programs could run."""
    there = [_offsets(p) for p in rows.passes]
    back = [_offsets(p, turned=True) for p in rows.passes]
    tables = _starts([*map(len, there), *map(len, back)])
    at, places = _starts(_operand_sizes(rows)), _starts(rows.states)
    even, odd = max(rows.states[::2]), max(rows.states[1::2])
    turns = [even * (i % 2) for i in range(len(rows.states))]
    each = list(enumerate(rows.passes))
    units = _units(device)
    programs = min(units, _SCRATCH // (_ROWS * dtype.itemsize * places[-1]), _SLOPES // (4 * at[-1]))
    if 4 * programs < units:
        return None
    return Fused(
        rows,
        dtype,
        torch.tensor([*itertools.chain(*there, *back)], dtype=torch.int32, device=device),
        tuple(_spec(p, at[i], turns[i], turns[i + 1], tables[i]) for i, p in each),
        tuple(_spec(p, at[i], places[i], places[i + 1], tables[i]) for i, p in each),
        tuple(_turned(p, at[i], places[i + 1], places[i], tables[len(each) + i]) for i, p in each),
        even + odd,
        places[-1],
        programs,
    )


def _offsets(p: Pass, *, turned: bool = False) -> tuple[int, ...]:
    """The six lists that a pass reads; turned round, it goes from what was made to the state."""
    state, made = (p.state_h, p.state_m, p.state_k), (p.made_h, p.made_m, p.made_n)
    return tuple(itertools.chain(*made, *state) if turned else itertools.chain(*state, *made))


def _operand_sizes(rows: Stream) -> list[int]:
    return [len(p.state_h) * len(p.state_k) * len(p.made_n) for p in rows.passes]


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(sizes)]


def _spec(p: Pass, at: int, source: int, target: int, table: int) -> Spec:
    """A pass as `_product` takes it: from the state, summed over k, to n."""
    h, m, k, n = len(p.state_h), len(p.state_m), len(p.state_k), len(p.made_n)
    return (h, m, k, n, at, 1, n, source, target, table, *_tile(m, k, n))


def _turned(p: Pass, at: int, source: int, target: int, table: int) -> Spec:
    """The same from the gradient of what was made, summed over n, to that of the state, k."""
    h, m, k, n = len(p.state_h), len(p.state_m), len(p.state_k), len(p.made_n)
    return (h, m, n, k, at, n, 1, source, target, table, *_tile(m, n, k))


def _tile(m: int, s: int, n: int) -> tuple[int, int, int]:
    columns = min(_COLUMNS // _ROWS, _power(m))
    return columns, min(_DEEP, max(16, _power(s))), min(_DEEP, max(16, _power(n)))


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _units(device: torch.device) -> int:
    """Programs that run side by side: one for each multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _CPU_PROGRAMS


def _check(made: Fused, device: torch.device, dtype: torch.dtype) -> None:
    """Values and gradients against the same sums in torch's own operations, once, on 37 rows of noise: three blocks,
    for two programs at most, so that one has to take two."""
    made = dataclasses.replace(made, programs=min(2, made.programs))
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device=device, dtype=dtype)

    passes = made.stream.passes
    x = noise(37, made.stream.inputs)
    gy = noise(37, made.stream.outputs)
    operands = [noise(len(p.state_h), len(p.state_k), len(p.made_n)) * len(p.state_k) ** -0.5 for p in passes]
    inputs = [t.requires_grad_(True) for t in (x, *(t.detach() for t in operands))]
    wide = [t.detach().double().requires_grad_(True) for t in inputs]
    y = _Apply.apply(made, *inputs)  # type: ignore[no-untyped-call]
    expected = _in_torch(made.stream, wide[0], wide[1:])
    found = (y.detach(), *torch.autograd.grad(y, inputs, gy))
    right = (expected.detach(), *torch.autograd.grad(expected, wide, gy.double()))
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    for a, b in zip(found, right, strict=True):
        if not float((a.double() - b).abs().max()) <= tolerance * float(b.abs().max()):
            raise ArithmeticError("failed its self-check")


# -- running it -------------------------------------------------------------------------------------------------


class _Apply(torch.autograd.Function):
    """Operands and x in, y out."""

    @staticmethod
    def forward(ctx: Any, kernel: Fused, x: Tensor, *operands: Tensor) -> Tensor:
        ctx.kernel = kernel
        ctx.save_for_backward(x, *operands)
        x, rows = x.contiguous(), x.shape[0]
        y = x.new_empty(rows, kernel.stream.outputs)
        programs = min(kernel.programs, -(-rows // _ROWS))
        scratch = x.new_empty(programs * kernel.forward_size * _ROWS)
        with _current(x.device):
            _kernels().forward[(programs,)](
                x, y, scratch, _flat(operands), kernel.table, rows,
                PASSES=kernel.forward, SIZE=kernel.forward_size, **_options(kernel),
            )  # fmt: skip
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        kernel: Fused = ctx.kernel
        x, *operands = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives: the same sums in torch's own operations
            y = _in_torch(kernel.stream, x, operands)
            wanted = [t for t in (x, *operands) if t.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, gradients[0], create_graph=True))
            return (None, *(next(found) if t.requires_grad else None for t in (x, *operands)))
        gx, slopes = _backward(kernel, x.contiguous(), gradients[0].contiguous(), operands, ctx.needs_input_grad[1:])
        return (None, gx, *slopes)


def _backward(
    kernel: Fused, x: Tensor, gy: Tensor, operands: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, list[Tensor | None]]:
    for_x, for_operands = wanted[0], any(wanted[1:])
    rows, size = x.shape[0], kernel.operand_size
    programs = min(kernel.programs, -(-rows // _ROWS))
    gx = torch.empty_like(x) if for_x else None
    slopes = x.new_zeros((programs, size) if for_operands else (1, 1), dtype=torch.float32)
    scratch = x.new_empty(programs * kernel.back_size * _ROWS)
    with _current(x.device):
        _kernels().backward[(programs,)](
            x, gy, x if gx is None else gx, slopes, scratch, _flat(operands), kernel.table, rows,
            PASSES=kernel.again, BACK=kernel.back, OPERANDS=size, SIZE=kernel.back_size,
            FOR_X=for_x, FOR_OPERANDS=for_operands, **_options(kernel),
        )  # fmt: skip
    if not for_operands:
        return gx, [None] * len(operands)
    parts = torch.split(slopes.sum(0).to(x.dtype), [math.prod(t.shape) for t in operands])
    return gx, [p.view_as(t) if w else None for p, t, w in zip(parts, operands, wanted[1:], strict=True)]


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _flat(operands: Sequence[Tensor]) -> Tensor:
    return torch.cat([operand.reshape(-1) for operand in operands])


def _options(kernel: Fused) -> dict[str, Any]:
    return {
        "INPUTS": kernel.stream.inputs,
        "OUTPUTS": kernel.stream.outputs,
        "ROWS": _ROWS,
        "TILE": _TILE,
        "WIDE": _INTERPRETED,
        "num_warps": 4,
        "num_stages": 2,
    }


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
