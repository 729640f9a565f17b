"""The processor at hand: what it is called, and what it can do. No process is started to find out."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from .variants import machine

_DESCRIBED = ("model name", "flags", "Features", "CPU part")  # of the lines of /proc/cpuinfo
_WINDOWS = {40: ("avx2", "fma"), 41: ("avx512f", "avx512bw", "avx512dq", "avx512vl")}  # PF_AVX2_..., PF_AVX512F_...


@functools.cache
def processor() -> str:
    """What the processor can do: a library that was compiled for another one may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    described = {line for line in lines if line.startswith(_DESCRIBED)}
    return "\n".join([machine(), *sorted(described)])


@functools.cache
def features() -> frozenset[str]:
    """The features of the processor that the operating system lets programs use, by Linux' names."""
    if os.name == "nt":
        return _windows_features()
    flags = [line.partition(":")[2].split() for line in processor().splitlines() if line.startswith("flags")]
    return frozenset.intersection(*map(frozenset, flags)) if flags else frozenset()


def _windows_features() -> frozenset[str]:
    present = getattr(ctypes, "windll").kernel32.IsProcessorFeaturePresent  # noqa: B009  (only Windows has it)
    return frozenset(name for number, names in _WINDOWS.items() if present(number) for name in names)


def vector_bytes() -> int:
    """Bytes of the vectors that the C is written for: 64 where the processor has AVX-512, else 32."""
    return 64 if "avx512f" in features() else 32


def processors() -> int:
    """How many of them this process may use.

    Examples:
        >>> processors() >= 1
        True
    """
    allowed = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1
