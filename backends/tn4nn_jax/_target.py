"""Where jax's layers run, and by which executors."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from tn4nn._runtime.devices import machine_for
from tn4nn._runtime.target import CPU, Target

from ._native import available


def target(dtype: Any, device: Any = None, *, runtime: str | None = None, engine: str | None = None) -> Target:
    """Where a layer in a dtype runs, and by which executors.

    Args:
        dtype: of the arrays.
        device: a jax device; None for jax's default.
        runtime: "program" for XLA's own operations alone.
        engine: another library that contracts.

    Example:
        >>> target("bfloat16").executors
        ('dense', 'program')
    """
    kind, where = np.dtype(dtype), jax.devices()[0] if device is None else device
    name = where.device_kind if where.platform == "gpu" else CPU
    machine = machine_for("jax", name, kind.name, compiled=True)
    if engine is not None:
        return Target("jax", name, kind.name, ("dense", engine), machine)
    native = runtime != "program" and name == CPU and available(kind)
    return Target("jax", name, kind.name, ("dense", *(("native",) if native else ()), "program"), machine)
