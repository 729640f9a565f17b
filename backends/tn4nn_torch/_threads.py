"""The threads of the native runtime in torch: torch's own, from its OpenMP pool.

Threads of another pool would get no core for the milliseconds that OpenMP's spin after each of torch's parallel
operations, and a model has such operations between its layers.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from tn4nn._runtime.native import lend

_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")


def threads() -> int:
    """How many threads a call of the native runtime may use, as it wants to know it: torch's, so with a minus."""
    return -torch.get_num_threads()


def _openmp() -> int:
    """Where GOMP_parallel lies that torch itself calls; 0 where it has another way. LLVM's and Intel's OpenMP have this
    function too."""
    for name in _LIBRARIES:
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            try:
                return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value or 0
            except (OSError, AttributeError):
                return 0
    return 0


lend(_openmp())
