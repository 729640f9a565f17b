"""Compiled programs in jax, forward and for a training step, as `tn4nn.calibrate` runs them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tn4nn._base.errors import BackendError
from tn4nn._model.backend import Place
from tn4nn._runtime.program import Program, run
from tn4nn._runtime.target import CPU

from ._device import Device, to_device, wide
from ._ops import OPS


def place(device: Device | None, dtype: str) -> Place:
    """Where jax runs programs, each compiled as a whole.

    Raises:
        BackendError: a device without parameters of the cost model.
    """
    where: Device = jax.devices()[0] if device is None else device
    if where.platform not in ("cpu", "gpu"):
        raise BackendError(f"calibrated are the devices 'cpu' and 'gpu', received {where.platform!r}")
    name = where.device_kind if where.platform == "gpu" else CPU
    run_of = functools.partial(_run_of, where, dtype)
    return Place(name, dtype, jnp.dtype(dtype).itemsize, True, run_of, jax.block_until_ready)


def _run_of(
    device: Device, dtype: str, program: Program, shapes: Sequence[tuple[int, ...]], phase: str
) -> Callable[[], Any]:
    rng = np.random.default_rng(0)

    def forward(*arrays: Any) -> Any:
        return run(OPS, program, arrays)

    def step(gy: Any, *arrays: Any) -> Any:
        y, pull = jax.vjp(forward, *arrays)
        return y, pull(gy)

    with wide(dtype == "float64"):
        arrays = [to_device(rng.standard_normal(shape), dtype, device) for shape in shapes]
        if phase == "train":
            result = jax.eval_shape(forward, *arrays)
            arrays.insert(0, to_device(np.ones(result.shape), dtype, device))
    compiled = jax.jit(step if phase == "train" else forward)

    def call() -> Any:
        with wide(dtype == "float64"):
            return compiled(*arrays)

    return call
