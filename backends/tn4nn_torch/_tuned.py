"""The fastest way of a layer on a GPU, measured when a number of rows has come for the second time.

The ways are the programs of two plans, each in single operations and as captured graphs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._device import capturing, graph_dtype, warn_once
from ._graphs import Captured
from ._steps import Steps

if TYPE_CHECKING:
    from ._modules import _Planned

Way = Callable[[Sequence[Tensor], Tensor], Tensor]  # (cores, rows) -> y

_SIZES = 8  # numbers of rows that a layer is tuned for
_TRIES = 16  # times that it is tuned: cores that move about all the time are not worth it
_LARGEST = 1 << 28  # bytes of x and y and their gradients above which single operations are long enough
_WARM, _ROUNDS, _CALLS = 2, 5, 5


class Tuned:
    """The ways that one layer has found. They hold graphs and addresses: a copy of a layer begins with none."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Way | None] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._tries = 0
        self._pool: Any = None

    def __deepcopy__(self, memo: Any) -> Tuned:
        return Tuned()

    def __reduce__(self) -> Any:
        return Tuned, ()

    def way(self, layer: _Planned, rows: Tensor, cores: Sequence[Tensor]) -> Way | None:
        """How to run the layer on these rows; None for its program in single operations."""
        dtype = graph_dtype(rows, cores)
        if dtype is None:
            return None
        graded = torch.is_grad_enabled()
        wanted = tuple(graded and t.requires_grad for t in (*cores, rows))
        key = (rows.shape[0], rows.dtype, dtype, wanted)
        found = self._found.get(key)
        if capturing(rows.device):  # somebody else's graph, which ours cannot be a part of
            return None if isinstance(found, Captured) else found
        if isinstance(found, Captured) and not found.fits(cores):
            del self._found[key]
        if key in self._found:
            return self._found[key]
        if key not in self._seen:
            self._seen.add(key)
        elif len(self._found) < _SIZES and self._tries < _TRIES:
            self._tries += 1
            self._found[key] = self._fastest(layer, rows, cores, dtype, wanted)
            return self._found[key]
        return None

    def _fastest(
        self, layer: _Planned, rows: Tensor, cores: Sequence[Tensor], dtype: torch.dtype, wanted: Sequence[bool]
    ) -> Way | None:
        best, least = None, _seconds(lambda cores, x: layer.run_program(x, cores), rows, cores, wanted)
        for way in self._ways(layer, rows, cores, dtype, wanted):
            seconds = _seconds(way, rows, cores, wanted)
            if seconds < least:
                best, least = way, seconds
        return best

    def _ways(
        self, layer: _Planned, rows: Tensor, cores: Sequence[Tensor], dtype: torch.dtype, wanted: Sequence[bool]
    ) -> Iterator[Way]:
        size, t = layer.planned_for(rows.shape[0]), layer.network.topology
        programs = [layer.program_for(rows.shape[0]), layer.make_program(size, minimize="flops")]
        features = math.prod(t.inputs.values()) + math.prod(t.outputs.values())
        small = 2 * features * rows.shape[0] * dtype.itemsize <= _LARGEST
        for steps in programs[: 1 + (programs[0] != programs[1])] if small else []:
            assert isinstance(steps, Steps)  # no engine is tuned
            try:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                yield Captured(steps, cores, rows, dtype, wanted, self._pool)
            except RuntimeError as error:  # no memory for it, or somebody captures in another thread
                warn_once(f"no CUDA graph for a layer: {str(error)[:300]}")


def _seconds(way: Way, rows: Tensor, cores: Sequence[Tensor], wanted: Sequence[bool]) -> float:
    """The median time of a call, with its backward pass where gradients are wanted. Nothing random is drawn."""
    *held, x = [t.detach().requires_grad_(w) for t, w in zip((*cores, rows), wanted, strict=True)]
    inputs = [t for t in (*held, x) if t.requires_grad]

    def call() -> None:
        y = way(held, x)
        if inputs:
            torch.autograd.grad(y, inputs, torch.ones_like(y))

    taken = []
    with torch.set_grad_enabled(bool(inputs)):
        for _ in range(_WARM):
            call()
        for _ in range(_ROUNDS):
            torch.cuda.synchronize(rows.device)
            start = time.perf_counter()
            for _ in range(_CALLS):
                call()
            torch.cuda.synchronize(rows.device)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)
