"""Einsums of torch's tensors: by the native runtime where it can read them, else by torch's own operations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from tn4nn._base.errors import ShapeError
from tn4nn._graph.einsum import LayerForm
from tn4nn._planning.einsum_plan import EinsumPlan, prepared
from tn4nn._runtime.arrays import Reducers, all_reduced
from tn4nn._runtime.native import Native, native
from tn4nn._runtime.program import run
from tn4nn._runtime.target import Target

from ._device import target
from ._native import apply, readable_by_address, usable
from ._ops import OPS
from ._steps import Steps

_compiling = torch.compiler.is_compiling
_grad_enabled = torch.is_grad_enabled

REDUCERS = Reducers(
    torch.reshape,
    lambda tensor, first, second: torch.diagonal(tensor, 0, first, second),
    lambda tensor, axes: torch.sum(tensor, axes, dtype=tensor.dtype),
)


class TorchEinsums:
    """See `tn4nn._planning.einsum.Einsums`."""

    def signature(self, arrays: Sequence[Any]) -> Hashable:
        """See `Einsums`; also the device, and whether a backward pass follows."""
        wanted = _grad_enabled() and any(a.requires_grad for a in arrays)
        return wanted, arrays[0].device, tuple([(a.shape, a.dtype) for a in arrays])

    def lookup(self, arrays: Sequence[Any]) -> Hashable:
        """See `Einsums`.

        Raises:
            RuntimeError: torch.compile traces the call, and what it looks up while it does must not change.
        """
        if _compiling():
            raise RuntimeError("traced")
        return self.signature(arrays)

    def target(self, arrays: Sequence[Any]) -> Target:
        """See `Einsums`."""
        devices = {a.device: i for i, a in reversed(list(enumerate(arrays)))}
        if len(devices) > 1:
            here = ", ".join(f"operand {i} on {device}" for device, i in devices.items())
            raise ShapeError(f"expected tensors on one device, received {here}: move them with .to()")
        return target(arrays[0].device, _common(arrays))

    def phase(self, arrays: Sequence[Any]) -> str:
        """See `Einsums`."""
        return "train" if _grad_enabled() and any(a.requires_grad for a in arrays) else "forward"

    def executable(self, plan: EinsumPlan, arrays: Sequence[Any]) -> Callable[[Sequence[Any]], Any]:
        """See `Einsums`."""
        dtype = _common(arrays)
        ready = prepared(plan, [a.to(dtype) for a in arrays], OPS, REDUCERS)
        steps, kept, reductions = Steps(ready.program), ready.kept, ready.reductions
        mixed = any(a.dtype != dtype for a in arrays)

        def contract(given: Sequence[Tensor]) -> Tensor:
            if mixed:
                given = [a.to(dtype) for a in given]
            if reductions:
                given = all_reduced(REDUCERS, given, reductions)
            return steps([*given, *kept])

        layer = plan.request.equation.layer
        runtime = None if plan.layer is None else native(plan.layer.recipe)
        return contract if runtime is None or layer is None or mixed else _rows(plan, layer, runtime, steps, kept)


def _rows(
    plan: EinsumPlan, layer: LayerForm, runtime: Native, steps: Steps, kept: Sequence[Tensor]
) -> Callable[[Sequence[Any]], Any]:
    """The native runtime for a network that is applied to rows; where it cannot read the tensors, the steps."""
    equation = plan.request.equation
    at, cores = layer.x, layer.cores
    image, shape = equation.shapes[at], equation.output_shape
    program = plan.program

    def plain(rows: Tensor, weights: Sequence[Tensor]) -> Tensor:
        operands: list[Any] = [None] * len(equation.shapes)
        for position, core in zip(cores, weights, strict=True):
            operands[position] = core
        operands[at] = rows.reshape(image)
        y: Tensor = run(OPS, program, operands)
        return y.reshape(layer.batch, -1)

    def contract(given: Sequence[Tensor]) -> Tensor:
        x, weights = given[at], [given[i] for i in cores]
        if usable(x) and readable_by_address(weights, None):
            return apply(runtime, weights, x.reshape(layer.batch, -1), None, plain).reshape(shape)
        return steps(given)

    return contract


def _common(arrays: Sequence[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (a.dtype for a in arrays))
