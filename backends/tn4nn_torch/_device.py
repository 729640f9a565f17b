"""What torch can say of a device before anything runs on it: cost-model parameters, dtypes, CUDA graph capture."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tn4nn._runtime.devices import CPU, known

from ._native import transforming

_GRAPH_DTYPES = (torch.float32, torch.bfloat16)


def graph_dtype(x: Tensor, cores: Sequence[Tensor]) -> torch.dtype | None:
    """The dtype in which a captured graph would take these tensors (autocast's where it is on), or None where none can:
    graphs take plain CUDA tensors in eager mode."""
    if not x.is_cuda or torch.compiler.is_compiling() or transforming() or type(x) is not Tensor or not x.shape[0]:
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    plain = all(type(core) in (Tensor, torch.nn.Parameter) for core in cores)
    return dtype if plain and dtype in _GRAPH_DTYPES else None


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


@functools.cache
def warn_once(text: str) -> None:
    """Warns once a process."""
    warnings.warn(text, stacklevel=4)
