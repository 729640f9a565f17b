"""Programs in torch, forward and for a training step, as `tn4nn.calibrate` runs them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tn4nn._base.errors import BackendError
from tn4nn._model.backend import Place
from tn4nn._runtime.program import Program
from tn4nn._runtime.target import CPU

from ._steps import Steps


def place(device: torch.device, dtype: torch.dtype) -> Place:
    """Where torch runs programs, operation by operation.

    Raises:
        BackendError: a device without parameters of the cost model, or a GPU that is not there.
    """
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"calibrated are the devices 'cpu' and 'cuda', received device={str(device)!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(f"torch sees {torch.cuda.device_count()} CUDA devices here, received {str(device)!r}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else CPU
    kind, run_of = str(dtype).removeprefix("torch."), functools.partial(_run_of, device, dtype)
    return Place(name, kind, dtype.itemsize, False, run_of, functools.partial(_wait, device))


def _run_of(
    device: torch.device, dtype: torch.dtype, program: Program, shapes: Sequence[tuple[int, ...]], phase: str
) -> Callable[[], Any]:
    draw = torch.Generator().manual_seed(0)
    arrays = [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]
    steps = Steps(program)
    if phase == "forward":
        return functools.partial(steps, arrays)
    gy = torch.ones_like(steps(arrays))
    for array in arrays:
        array.requires_grad_(True)
    return lambda: torch.autograd.grad(steps(arrays), arrays, gy)


def _wait(device: torch.device, result: object) -> None:
    if device.type == "cuda":  # on the CPU everything is there when a call returns
        torch.cuda.synchronize(device)
