"""What is known about a torch device before anything runs on it: cost-model parameters, dtypes, graph capture."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from tn4nn._runtime.devices import machine_for
from tn4nn._runtime.native import runtime
from tn4nn._runtime.target import CPU, ITEMSIZES, Target

from ._native import DTYPES, transforming

_GRAPH_DTYPES = (torch.float32, torch.bfloat16)


def graph_dtype(x: Tensor, cores: Sequence[Tensor]) -> torch.dtype | None:
    """The dtype in which a captured graph would take these tensors (autocast's where it is on), or None where none can:
    graphs take plain CUDA tensors in eager mode."""
    if not x.is_cuda or torch.compiler.is_compiling() or transforming() or type(x) is not Tensor or not x.shape[0]:
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    plain = all(type(core) in (Tensor, torch.nn.Parameter) for core in cores)
    return dtype if plain and dtype in _GRAPH_DTYPES else None


def target(device: torch.device | str, dtype: torch.dtype, *, engine: str | None = None) -> Target:
    """Where a layer on this device and in this dtype runs, and by which executors.

    Args:
        device: torch device.
        dtype: torch dtype; a complex one is planned as reals of its size.
        engine: another library that contracts instead.
    """
    where, name = torch.device(device), str(dtype).removeprefix("torch.")
    if name not in ITEMSIZES:
        name = "float64"
    device_name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    machine = machine_for("torch", device_name, name) if where.type in ("cpu", "cuda") else None
    native = where.type == CPU and dtype in DTYPES and runtime(dtype.itemsize) is not None
    executors = ("dense", *(("native",) if native else ()), "program") if engine is None else ("dense", engine)
    threads = torch.get_num_threads() if where.type == CPU else 1
    return Target("torch", device_name, name, executors, machine, threads)


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: nothing may be compiled, checked or copied to the device then."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def processes() -> int:
    """How many processes this one is one of: of its process group, or by `torchrun` before there is one."""
    if not dist.is_available():
        return 1
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1
