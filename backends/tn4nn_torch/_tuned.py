"""The fastest runner of a layer on a GPU, measured when a number of rows comes for the second time.

The candidates are the programs of two plans, each in single operations and as captured graphs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tn4nn._base.warn import warn_once

from ._device import capturing, graph_dtype
from ._graphs import Captured
from ._memory import require_all
from ._runners import Runners
from ._steps import Steps

Runner = Callable[[Sequence[Tensor], Tensor], Tensor]  # (cores, rows) -> y
Run = Callable[[Tensor, Sequence[Tensor]], Tensor]  # (rows, cores) -> y

_SIZES = 8  # numbers of rows that a layer is tuned for
_TRIES = 16  # times that it is tuned: cores that move about all the time are not worth it
_LARGEST = 1 << 28  # bytes of x and y and their gradients above which single operations are long enough
_WARM, _ROUNDS, _CALLS = 2, 5, 5


class Tuned:
    """What was measured to be fastest for one layer. A copy of a layer begins with none: it has other addresses."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Runner | None] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._tries = 0
        self._pool: Any = None

    def __deepcopy__(self, memo: Any) -> Tuned:
        return Tuned()

    def __reduce__(self) -> Any:
        return Tuned, ()

    def known(self, rows: int) -> str | None:
        """The executor that was found to be fastest for a number of rows; None where that is the plan's own."""
        found = [runner for key, runner in self._found.items() if key[0] == rows]
        return "graph" if any(isinstance(runner, Captured) for runner in found) else None

    def runner(self, runners: Runners, features: int, rows: Tensor, cores: Sequence[Tensor], run: Run) -> Runner | None:
        """How to run a layer on these rows; None for its program in single operations.

        Args:
            runners: of the layer.
            features: numbers of a row of x and of y together.
            rows: of shape (rows, product of the input modes).
            cores: in the network's order.
            run: the layer's program in single operations.
        """
        dtype = graph_dtype(rows, cores)
        if dtype is None:
            return None
        require_all("core", cores)  # a graph reads addresses
        graded = torch.is_grad_enabled()
        wanted = tuple(graded and t.requires_grad for t in (*cores, rows))
        key = (rows.shape[0], rows.dtype, dtype, wanted)
        found = self._found.get(key)
        if capturing(rows.device):  # another graph, which ours cannot be a part of
            return None if isinstance(found, Captured) else found
        if isinstance(found, Captured) and not found.fits(cores):
            del self._found[key]
        if key in self._found:
            return self._found[key]
        if key not in self._seen:
            self._seen.add(key)
        elif len(self._found) < _SIZES and self._tries < _TRIES:
            self._tries += 1
            small = 2 * features * rows.shape[0] * dtype.itemsize <= _LARGEST
            candidates = self._candidates(runners, rows, cores, dtype, wanted) if small else iter(())
            self._found[key] = _fastest(candidates, run, rows, cores, wanted)
            return self._found[key]
        return None

    def _candidates(
        self, runners: Runners, rows: Tensor, cores: Sequence[Tensor], dtype: torch.dtype, wanted: Sequence[bool]
    ) -> Iterator[Runner]:
        fastest, fewest = runners.program(rows.shape[0]), runners.lowered(rows.shape[0], "flops")
        for steps in (fastest,) if fastest == fewest else (fastest, fewest):
            assert isinstance(steps, Steps)  # no engine is tuned
            try:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                yield Captured(steps, cores, rows, dtype, wanted, self._pool)
            except RuntimeError as error:  # no memory for it, or another thread captures
                warn_once(f"tn4nn: no CUDA graph for a layer ({str(error)[:300]}); it runs in single operations")


def _fastest(
    candidates: Iterator[Runner], run: Run, rows: Tensor, cores: Sequence[Tensor], wanted: Sequence[bool]
) -> Runner | None:
    best, least = None, _seconds(lambda cores, x: run(x, cores), rows, cores, wanted)
    for runner in candidates:
        seconds = _seconds(runner, rows, cores, wanted)
        if seconds < least:
            best, least = runner, seconds
    return best


def _seconds(runner: Runner, rows: Tensor, cores: Sequence[Tensor], wanted: Sequence[bool]) -> float:
    """The median time of a call, with its backward pass where gradients are wanted. Nothing random is drawn."""
    *own, x = [t.detach().requires_grad_(w) for t, w in zip((*cores, rows), wanted, strict=True)]
    inputs = [t for t in (*own, x) if t.requires_grad]

    def call() -> None:
        y = runner(own, x)
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
