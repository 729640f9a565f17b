"""One competitor in one cell, ready to run: a torch function or a jax function of x and parameters.

A forward call runs without gradients. A training call is forward, then gradients of x and of every parameter
for a given cotangent of y, by torch.autograd.grad or jax.vjp; nothing is accumulated, no optimizer runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from _cell import Array, Cell
from _measure import synchronise


class Runner(Protocol):
    """What can be checked, timed and weighed."""

    macs: int | None
    notes: dict[str, Any]

    def run(self, times: int) -> None:
        """Runs that often, and returns when all is done."""

    def check(self) -> None:
        """Raises WrongError unless outputs and gradients are right."""

    def saved_bytes(self) -> int | None:
        """Bytes kept for backward, without the parameters, x included; None for what cannot be seen."""

    def peak_bytes(self) -> int | None:
        """The most bytes alive at once that a call takes itself; None for what cannot be seen."""


class TorchRunner:
    """`apply(x)` of shape (batch, out_features), and the parameters that it reads.

    Attributes:
        macs: multiply-adds of a call; counted by torch's FlopCounterMode where not given.
        notes: shown with the row.
    """

    def __init__(
        self,
        cell: Cell,
        apply: Callable[[Any], Any],
        parameters: Sequence[Any],
        macs: int | None = None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        import torch

        self.cell, self.apply, self.parameters = cell, apply, list(parameters)
        self.x = torch.tensor(cell.x, requires_grad=cell.train, **cell.on_torch)
        self.gy = torch.tensor(cell.gy, **cell.on_torch) if cell.train else None
        self.sync = synchronise(cell.device)
        self.notes = notes or {}
        self.macs = self._counted() if macs is None else macs

    def _gradients(self) -> Any:
        import torch

        return torch.autograd.grad(self.apply(self.x), [self.x, *self.parameters], self.gy)

    def run(self, times: int) -> None:
        """See Runner."""
        import torch

        if self.cell.train:
            for _ in range(times):
                self._gradients()
        else:
            with torch.no_grad():
                for _ in range(times):
                    self.apply(self.x)
        self.sync()

    def check(self) -> None:
        """See Runner."""
        import torch

        with torch.no_grad():
            y = self.apply(self.x).float().cpu().numpy()
        self.cell.check_output(y)
        if self.cell.train:
            values = [self.x, *self.parameters]
            pairs = [
                (g.float().cpu().numpy(), p.detach().float().cpu().numpy())
                for g, p in zip(self._gradients(), values, strict=True)
            ]
            self.cell.check_gradients(y, pairs)

    def saved_bytes(self) -> int | None:
        """What autograd keeps, each storage once; not what a custom function hides from autograd."""
        if not self.cell.train:
            return 0
        import torch

        own = {p.untyped_storage().data_ptr() for p in self.parameters}
        kept: dict[int, int] = {}

        def pack(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = self.apply(self.x)
        del y  # until here everything saved is alive, so no address stands for two storages
        return sum(kept.values())

    def peak_bytes(self) -> int | None:
        """Allocations of one call as torch's profiler (CPU) or allocator (CUDA) sees them."""
        import torch

        if self.cell.device.startswith("cuda"):
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.run(1)
            return int(torch.cuda.max_memory_allocated() - before)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p:
            self.run(1)
        results = getattr(p.profiler, "kineto_results", None)
        if results is None:
            return None
        events = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
        alive = peak = 0
        for _, change in sorted(events, key=lambda event: event[0]):
            alive += change
            peak = max(peak, alive)
        return peak

    def _counted(self) -> int:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(self.cell.train):
            y = self.apply(self.x)
            if self.cell.train:
                y.backward(self.gy)  # the counter's hooks on modules do not work under autograd.grad
        for tensor in [self.x, *self.parameters]:
            tensor.grad = None
        return counter.get_total_flops() // 2


class JaxRunner:
    """`function(parameters, x)` of shape (batch, out_features); parameters are any pytree."""

    def __init__(
        self,
        cell: Cell,
        function: Callable[[Any, Any], Any],
        parameters: Any,
        macs: int | None = None,
        notes: dict[str, Any] | None = None,
    ) -> None:
        import jax

        self.cell, self.function, self.macs, self.notes = cell, function, macs, notes or {}

        def placed(array: Any) -> Any:
            return jax.numpy.asarray(array, dtype=cell.dtype)

        self.arguments = (jax.tree.map(placed, parameters), placed(cell.x))
        if cell.train:
            self.arguments += (placed(cell.gy),)

        def train(parameters: Any, x: Any, gy: Any) -> Any:
            y, back = jax.vjp(function, parameters, x)
            return y, back(gy)  # y is returned so that XLA cannot leave the forward pass out

        self.call = jax.jit(train if cell.train else function)

    def run(self, times: int) -> None:
        """See Runner."""
        import jax

        result = None
        for _ in range(times):
            result = self.call(*self.arguments)
            if self.cell.device == "cpu":  # a GPU is given the next call before it has done this one, as torch does
                jax.block_until_ready(result)
        jax.block_until_ready(result)

    def check(self) -> None:
        """See Runner."""
        import jax

        result = self.call(*self.arguments)
        y = _single(result[0] if self.cell.train else result)
        self.cell.check_output(y)
        if self.cell.train:
            by_parameters, by_x = result[1]
            values = [self.arguments[1], *jax.tree.leaves(self.arguments[0])]
            gradients = [by_x, *jax.tree.leaves(by_parameters)]
            pairs: list[tuple[Array, Array]] = [
                (_single(g), _single(v)) for g, v in zip(gradients, values, strict=True)
            ]
            self.cell.check_gradients(y, pairs)

    def saved_bytes(self) -> int | None:
        """The residuals of jax.vjp, as they are when forward and backward are two calls."""
        if not self.cell.train:
            return 0
        import jax

        own = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(self.arguments[0])}
        _, back = jax.vjp(self.function, *self.arguments[:2])
        kept = {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.tree.leaves(back)}
        return sum(size for place, size in kept.items() if place not in own)

    def peak_bytes(self) -> int | None:
        """Temporary and output buffers of the compiled call, by XLA's own count."""
        with contextlib.suppress(Exception):  # not every jaxlib and platform has the analysis
            found = self.call.lower(*self.arguments).compile().memory_analysis()
            return int(found.temp_size_in_bytes + found.output_size_in_bytes)
        return None


def _single(array: Any) -> Array:
    """An array of jax in float32, which numpy knows."""
    return np.asarray(array).astype(np.float32)
