"""Parameters of the cost model for devices: those that a calibration has stored, else those of the GPUs' data sheets.

The shares of a data sheet that a program reaches were measured on an H100 SXM (torch 2.11, CUDA 13); of the other GPUs
only the data sheets are known. The CPU's parameters are the defaults of `Machine`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

from .._base.errors import CheckpointError, TN4NNError
from .._base.hashing import fingerprint_of
from .._base.private import private_cache, private_folder, read_private, write_private
from .._base.reading import json_of
from .._base.records import plain, sealed, unsealed
from .cost import Machine
from .processor import processor, vector_bytes
from .target import CPU, ITEMSIZES

SCHEMA = 1  # of the files that a calibration writes

_REACHED = 0.75  # of the peak of matrix products, by a large one of the vendor's library
_STREAMED = 0.85  # of the peak of memory
_OP = 10e-6  # seconds of one operation of an eager framework: 7 for a sum, 13 for a product
_NODE = 3e-6  # of one in a program that is compiled or captured
_TILED = 0.12  # of the peak, by the small tiles of a fused kernel


@dataclasses.dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, by its data sheet.

    Attributes:
        float32_macs_per_s: multiply-adds in IEEE float32, without TF32.
        half_macs_per_s: in bfloat16 and float16, on the matrix units, without sparsity.
        bytes_per_s: of its memory.
        cache_bytes: of the second-level cache.
        cache_bytes_per_s: of that cache: no data sheet has it, an estimate.
        units: multiprocessors.
    """

    float32_macs_per_s: float
    half_macs_per_s: float
    bytes_per_s: float
    cache_bytes: int
    cache_bytes_per_s: float
    units: int

    def macs_per_s(self, itemsize: int) -> float:
        """The peak for numbers of that many bytes."""
        return self.half_macs_per_s if itemsize <= 2 else self.float32_macs_per_s

    def machine(self, itemsize: int, *, compiled: bool = False) -> Machine:
        """Parameters of the cost model for numbers of that many bytes.

        Args:
            itemsize: bytes of one number.
            compiled: the program is launched as a whole, not operation by operation.
        """
        op_s = _NODE if compiled else _OP
        return Machine(
            macs_per_s=_REACHED * self.macs_per_s(itemsize),
            bytes_per_s=_STREAMED * self.bytes_per_s,
            strided=2.0 if itemsize <= 2 else 1.3,  # legs of 4 to 64 that change places
            op_s=op_s,
            matrix_s=1e-9,  # batched products run side by side
            edge=64.0 if itemsize <= 2 else 24.0,
            pass_s=op_s,
            step_s=op_s,
            kernel_macs_per_s=_TILED * self.macs_per_s(itemsize),
        )


_H100 = Gpu(33.5e12, 495e12, 3.35e12, 50 << 20, 5.5e12, 132)
GPUS = {
    "H200": dataclasses.replace(_H100, bytes_per_s=4.8e12),
    "H100 PCIe": Gpu(25.5e12, 378e12, 2.0e12, 50 << 20, 3.8e12, 114),
    "H100": _H100,
    "A100": Gpu(9.75e12, 156e12, 1.9e12, 40 << 20, 4.0e12, 108),
}


def gpu(name: str) -> Gpu:
    """The first GPU whose name is part of the device's; an H100 for all that are not in the table.

    Examples:
        >>> gpu("NVIDIA H200").bytes_per_s
        4800000000000.0
    """
    return next((card for part, card in GPUS.items() if part in name), _H100)


def machine_of(name: str, itemsize: int) -> Machine:
    """Parameters of a GPU that need not be here, for programs that run operation by operation: those that a calibration
    with torch has stored under this name, else those of its data sheet.

    Raises:
        TN4NNError: neither.

    Examples:
        >>> machine_of("H100", 2).macs_per_s > 5 * machine_of("A100", 4).macs_per_s
        True
    """
    dtype = "bfloat16" if itemsize == 2 else f"float{8 * itemsize}"
    found = stored("torch", name, dtype)
    if found is None and not any(part in name for part in GPUS):
        raise TN4NNError(f"unknown GPU {name!r}: expected one of {', '.join(GPUS)}, or one that was calibrated")
    return found or gpu(name).machine(itemsize)


def machine_for(backend: str, name: str, dtype: str, *, compiled: bool = False) -> Machine | None:
    """Parameters of the cost model for the programs that a backend runs on a device.

    Args:
        backend: whose programs.
        name: of the GPU, or "cpu".
        dtype: of the numbers.
        compiled: see `Gpu.machine`.

    Returns:
        What `calibrate` has stored, else those of the GPU's data sheet; None for a CPU that was not calibrated, whose
        parameters are the defaults.
    """
    machine = stored(backend, name, dtype)
    if machine is None and name != CPU:
        return gpu(name).machine(ITEMSIZES[dtype], compiled=compiled)
    return machine


def stored(runtime: str, name: str, dtype: str) -> Machine | None:
    """The parameters that a calibration has stored for a runtime ("native", or a backend), a device and a dtype; None
    where there are none that can be read. The disk is read once a process."""
    return _read(_file(runtime, name, dtype))


def store(runtime: str, name: str, dtype: str, found: Mapping[str, Any]) -> None:
    """Writes a calibration, as plain data, to disk."""
    file = _file(runtime, name, dtype)
    write_private(private_folder(file.parent) / file.name, json.dumps(sealed(plain(found))).encode())
    _read.cache_clear()


def _file(runtime: str, name: str, dtype: str) -> File:
    device = processor() if name == CPU else name
    return private_cache("machines") / f"{fingerprint_of([runtime, device, dtype])}.json"


@functools.cache
def _read(path: File) -> Machine | None:
    try:
        data = unsealed(json_of(read_private(path)), str(path), "calibrate again")
        machine = Machine(**data["machine"])
        sound = data["schema"] == SCHEMA and all(0 < number < math.inf for number in dataclasses.astuple(machine))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CheckpointError):
        return None
    return machine if sound else None


def native_machine(itemsize: int = 4) -> Machine:
    """Parameters of this processor for the native runtime: those that a calibration has stored, else the defaults with
    its vectors."""
    return stored("native", CPU, f"float{8 * itemsize}") or Machine(vector_bytes=vector_bytes())
