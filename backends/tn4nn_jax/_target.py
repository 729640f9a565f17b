"""Where jax's layers run, and by which executors."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np

from tn4nn._runtime.devices import machine_for
from tn4nn._runtime.processor import processors
from tn4nn._runtime.target import CPU, Target

from ._native import available


def target(dtype: Any, device: Any = None, *, runtime: str | None = None, engine: str | None = None) -> Target:
    """Where a layer in a dtype runs, and by which executors.

    Args:
        dtype: of the arrays.
        device: a jax device; None for jax's default.
        runtime: "program" for XLA's own operations alone.
        engine: another library that contracts.

    Examples:
        >>> target("bfloat16").executors
        ('dense', 'program')
    """
    kind, where = np.dtype(dtype), jax.devices()[0] if device is None else device
    name = where.device_kind if where.platform == "gpu" else CPU
    machine = machine_for("jax", name, kind.name, compiled=True)
    if engine is not None:
        return Target("jax", name, kind.name, ("dense", engine), machine)
    native = runtime != "program" and name == CPU and available(kind)
    executors = ("dense", *(("native",) if native else ()), "program")
    return Target("jax", name, kind.name, executors, machine, threads() if native else 1)


def threads() -> int:
    """How many threads XLA's pool has on a CPU: NPROC, else the processors that this process may use; one where a flag
    of XLA says so. XLA tells it only to what it runs, and a plan comes before."""
    if "xla_cpu_multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", ""):
        return 1
    try:
        return max(1, int(os.environ["NPROC"]))
    except (KeyError, ValueError):
        return processors()
