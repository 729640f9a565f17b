"""Devices, dtypes and the way to and from the host, none of which touches jax's global configuration."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from numpy.typing import NDArray

from tn4nn._base.errors import BackendError

Device = Any  # jax.Device, which type checkers take for a variable
DTYPES = ("float32", "float64", "bfloat16", "float16")


def wide(active: bool) -> contextlib.AbstractContextManager[Any]:
    """A context in which jax has 64-bit types, where `active`; otherwise one that does nothing."""
    if not active:
        return contextlib.nullcontext()
    # It moved from jax.experimental to jax, and each of the two places is missing in some versions.
    place = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    context: contextlib.AbstractContextManager[Any] = getattr(place, "enable_x64")(True)  # noqa: B009
    return context


def checked_dtype(dtype: str) -> str:
    """The name itself, or an error that lists the names there are."""
    if dtype not in DTYPES:
        raise BackendError(f"the jax backend computes in {', '.join(DTYPES)}; received dtype {dtype!r}")
    return dtype


def _platforms() -> list[str]:
    found = {device.platform: None for device in jax.devices()}
    return [*found, *(["cpu"] if "cpu" not in found else [])]


def device_of(name: str | None) -> Device | None:
    """The device of a word like "cpu", "gpu", "cuda" or "gpu:1"; None stays None, jax's own default.

    Raises:
        BackendError: there is no such device; the message lists those there are.

    Examples:
        >>> device_of("cpu").platform
        'cpu'
    """
    if name is None:
        return None
    kind, _, number = name.partition(":")
    try:
        return jax.devices(kind)[int(number or 0)]
    except (RuntimeError, IndexError, ValueError):
        there = ", ".join(repr(platform) for platform in _platforms())
        raise BackendError(f"jax has no device {name!r} here: use one of {there}, or None") from None


def to_device(array: Any, dtype: Any, device: Device | None) -> jax.Array:
    """A copy on the device. Never an alias: jax may otherwise share the memory of a numpy array."""
    if device is None:
        return jnp.array(array, dtype=dtype)
    with jax.default_device(device):
        placed: jax.Array = jax.device_put(jnp.array(array, dtype=dtype), device)
    return placed


def to_host(array: Any) -> NDArray[Any]:
    """A copy on the host; 16-bit floats come as float32, which holds them exactly."""
    host = np.array(array)
    # numpy itself has no bfloat16, and what it does not know cannot be saved.
    return host.astype(np.float32) if host.dtype.itemsize == 2 and jnp.issubdtype(host.dtype, jnp.floating) else host


def dtype_of(weight: Any) -> np.dtype[Any]:
    """The dtype in which jax computes with a weight: numpy's float64 are float32 to it, unless x64 is on."""
    dtype = weight.dtype if isinstance(weight, jax.Array) else jax.dtypes.canonicalize_dtype(weight.dtype)
    return np.dtype(dtype)


def beside(core: jax.Array, weight: Any) -> jax.Array:
    """A core where the weight lies; on all of its devices where it is spread over several."""
    if not isinstance(weight, jax.Array) or core.devices() == weight.devices():
        return core
    if len(weight.devices()) == 1:
        place: Any = next(iter(weight.devices()))
    elif isinstance(weight.sharding, NamedSharding):
        every: Any = PartitionSpec  # without types
        place = NamedSharding(weight.sharding.mesh, every())
    else:
        return core
    with wide(core.dtype == np.float64):
        moved: jax.Array = jax.device_put(core, place)
    return moved
