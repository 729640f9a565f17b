"""Einsums of jax's arrays: compiled as a whole, by the native runtime or by XLA's operations."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tn4nn._planning.einsum_plan import EinsumPlan, prepared
from tn4nn._runtime.arrays import Reducers, all_reduced
from tn4nn._runtime.target import ITEMSIZES, Target

from ._native import apply, native_of
from ._ops import OPS, run
from ._target import target

REDUCERS = Reducers(
    jnp.reshape,
    lambda array, first, second: jnp.diagonal(array, 0, first, second),
    lambda array, axes: jnp.sum(array, axes, dtype=array.dtype),
)


class JaxEinsums:
    """See `tn4nn._planning.einsum.Einsums`."""

    def signature(self, arrays: Sequence[Any]) -> Hashable:
        """See `Einsums`."""
        return tuple([(type(a), a.shape, a.dtype) for a in arrays])

    lookup = signature

    def target(self, arrays: Sequence[Any]) -> Target:
        """See `Einsums`: jax's default device."""
        dtype = jnp.result_type(*arrays)
        return target(dtype if dtype.name in ITEMSIZES else jnp.dtype("float64"), runtime=None)

    def phase(self, arrays: Sequence[Any]) -> str:
        """See `Einsums`: jax does not say it."""
        return "forward"

    def executable(self, plan: EinsumPlan, arrays: Sequence[Any]) -> Callable[[Sequence[Any]], Any]:
        """See `Einsums`."""
        dtype = jnp.result_type(*arrays)
        ready = prepared(plan, [_cast(a, dtype) for a in arrays], OPS, REDUCERS)
        equation, layer = plan.request.equation, plan.request.equation.layer

        @jax.jit
        def contract(given: Sequence[jax.Array]) -> jax.Array:
            given = [_cast(a, dtype) for a in given]
            if plan.layer is not None and layer is not None:
                cores, x = [given[i] for i in layer.cores], given[layer.x].reshape(layer.batch, -1)
                return apply(native_of(plan.layer), cores, x).reshape(equation.output_shape)
            if ready.reductions:
                given = all_reduced(REDUCERS, given, ready.reductions)
            return run(ready.program, [*given, *ready.kept])

        compiled: Callable[[Sequence[Any]], Any] = contract
        return compiled


def _cast(array: jax.Array, dtype: Any) -> jax.Array:
    return array if array.dtype == dtype else array.astype(dtype)
