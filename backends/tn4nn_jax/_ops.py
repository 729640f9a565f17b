"""jax's part in running a program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from tn4nn._runtime import program as _program
from tn4nn._runtime.program import Ops, Program

_UNSEEN = 64  # what a size of jax.export that has no number yet is planned as


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


def known(shape: Sequence[object]) -> bool:
    """Whether all sizes of a shape are numbers: `jax.export.symbolic_shape` makes others, which cannot be compared."""
    return all(isinstance(size, int) for size in shape)


def planned(shape: Sequence[object]) -> int:
    """The product of the sizes of a shape for which is planned, where jax.export does not know them.

    Examples:
        >>> import jax
        >>> planned((3, 5)), planned((3, *jax.export.symbolic_shape("b")))
        (15, 192)
    """
    return math.prod(size if isinstance(size, int) else _UNSEEN for size in shape)


def run(program: Program, arrays: Sequence[jax.Array]) -> jax.Array:
    """Runs a program on its inputs."""
    if program.block and not known(arrays[-1].shape):  # how many blocks there are is not known
        program = dataclasses.replace(program, block=0)
    y: jax.Array = _program.run(OPS, program, arrays)
    return y
