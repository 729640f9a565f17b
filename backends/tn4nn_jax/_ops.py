"""jax's part in running a program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from tn4nn._runtime.program import Ops


def precision(*arrays: jax.Array) -> lax.Precision | None:
    """What a product of float32 needs to be one."""
    # Left alone, jax multiplies float32 in TF32 or bfloat16 on accelerators, which is 1e-3 and not 1e-6. Who
    # wants that says so with jax.default_matmul_precision.
    chosen = getattr(jax.config, "jax_default_matmul_precision", None)
    if chosen is not None or any(a.dtype != jnp.float32 for a in arrays):
        return None
    return lax.Precision.HIGHEST


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b, in full precision."""
    return jnp.matmul(a, b, precision=precision(a, b))


def _index(array: jax.Array, axis: int, position: int) -> jax.Array:
    return lax.index_in_dim(array, position, axis, keepdims=False)


OPS = Ops(
    reshape=jnp.reshape,
    permute=jnp.transpose,
    matmul=matmul,
    multiply=jnp.multiply,
    select=_index,
    concatenate=jnp.concatenate,
)
