"""Einsums of numpy's arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._runtime.arrays import OPS, REDUCERS, all_reduced
from .._runtime.program import registers_of
from .._runtime.target import CPU, Target
from .einsum_plan import EinsumPlan, prepared

_FLOATS = {1: "float16", 2: "float16", 4: "float32"}  # bytes of a number -> a dtype of that size that plans know


class NumpyEinsums:
    """See `Einsums`."""

    def signature(self, arrays: Sequence[Any]) -> Hashable:
        """See `Einsums`."""
        return tuple([(type(a), a.shape, a.dtype) for a in arrays])

    lookup = signature

    def target(self, arrays: Sequence[Any]) -> Target:
        """See `Einsums`."""
        return Target("numpy", CPU, _FLOATS.get(np.result_type(*arrays).itemsize, "float64"))

    def phase(self, arrays: Sequence[Any]) -> str:
        """See `Einsums`: numpy has no gradients."""
        return "forward"

    def executable(self, plan: EinsumPlan, arrays: Sequence[Any]) -> Callable[[Sequence[Any]], Any]:
        """See `Einsums`."""
        dtype = np.result_type(*(a.dtype for a in arrays))
        ready = prepared(plan, [np.asarray(a, dtype) for a in arrays], OPS, REDUCERS)
        steps, kept, reductions = ready.program.steps, ready.kept, ready.reductions
        mixed = any(a.dtype != dtype for a in arrays)

        def run(given: Sequence[Any]) -> NDArray[Any]:
            if mixed:
                given = [np.asarray(a, dtype) for a in given]
            if reductions:
                given = all_reduced(REDUCERS, given, reductions)
            result: NDArray[Any] = registers_of(OPS, steps, [*given, *kept])[-1][()]
            return result

        return run
