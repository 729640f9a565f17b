"""A layer on a GPU as two captured CUDA graphs: one that gives y, one that gives all gradients.

A layer of some twenty small operations costs the host ten times what it costs the GPU. A graph is one launch. Both
graphs read the cores in their own memory, and x (and the gradient of y) from a buffer of the graph; the second
recomputes the states of x. So nothing but x is saved between two calls, and any number of calls may wait for their
backward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from tn4nn._runtime.program import registers_of, run

from ._memory import require_all
from ._ops import OPS, second
from ._steps import Steps, back

_WARM = 2  # runs before the capture, in which libraries find their kernels and their memory


class Captured:
    """A program for one number of rows, as graphs.

    Args:
        steps: the program.
        cores: in the program's order; the graphs read the memory of these.
        x: rows like those that will come.
        dtype: in which it runs; cores and rows of another are converted.
        wanted: which gradients are wanted, of the cores and of x.
        pool: memory for intermediates, shared by graphs of which one runs at a time.
    """

    def __init__(
        self,
        steps: Steps,
        cores: Sequence[Tensor],
        x: Tensor,
        dtype: torch.dtype,
        wanted: Sequence[bool],
        pool: Any,
    ) -> None:
        self._steps, self._wanted = steps, tuple(wanted)
        self._cores = [core.detach() for core in cores]
        self._at = _addresses(cores)
        self._lock = threading.Lock()
        self._current: object = None  # the call whose x is in the buffer
        self._stream = torch.cuda.current_stream(x.device)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cuda", enabled=False):
            self._x = torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format).copy_(x)
            self._forward, self._y = self._captured(self._run, pool)
            if any(self._wanted):
                self._gy = torch.ones_like(self._y)
                self._reverse = steps.reverse(self._wanted)
                self._shapes: list[torch.Size] = []
                registers_of(OPS, steps.program.steps, self._inputs(), shapes=self._shapes)
                self._backward, (self._gx, self._grads) = self._captured(self._back, pool)

    def fits(self, cores: Sequence[Tensor]) -> bool:
        """Whether these cores lie where the graphs read them."""
        return self._at == _addresses(cores)

    def __call__(self, cores: Sequence[Tensor], x: Tensor) -> Tensor:
        """y of shape (rows, product of the output modes)."""
        if torch.is_grad_enabled() and any(self._wanted):
            y: Tensor = _Replay.apply(self, x, *cores)  # type: ignore[no-untyped-call]
            return y
        return self.forward(x)[0]

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        """y, in memory of its own; and a token by which `back` sees whether x is still in the buffer."""
        with self._lock:
            self._follow()
            self._x.copy_(x)
            self._forward.replay()
            self._current = object()
            return self._y.clone(), self._current

    def back(self, x: Tensor, token: object, gy: Tensor) -> list[Tensor | None]:
        """The gradients of the cores and of x that are wanted, in memory of their own."""
        with self._lock:
            self._follow()
            if self._current is not token:
                self._x.copy_(x)
                self._current = token
            self._gy.copy_(gy)
            self._backward.replay()
            gx = None if self._gx is None else self._gx.to(x.dtype, copy=True)
            grads = None if self._grads is None else self._grads.clone()
        wanted = self._wanted[:-1]
        like = [core for core, needed in zip(self._cores, wanted, strict=True) if needed]
        found: Any = iter(() if grads is None else _unflatten_dense_tensors(grads, like))  # type: ignore[no-untyped-call]
        return [*(next(found) if needed else None for needed in wanted), gx]

    def plain(self, x: Tensor, *cores: Tensor) -> Tensor:
        """The same in torch's own operations, differentiable any number of times."""
        dtype = self._x.dtype
        y: Tensor = run(OPS, self._steps.program, [*(core.to(dtype) for core in cores), x.to(dtype)])
        return y

    def _follow(self) -> None:
        """On another stream than the last call: after it."""
        now = torch.cuda.current_stream(self._x.device)
        if now != self._stream:
            now.wait_stream(self._stream)
            self._stream = now

    def _inputs(self) -> list[Tensor]:
        return [*(core.to(self._x.dtype) for core in self._cores), self._x]

    def _run(self) -> Tensor:
        y: Tensor = run(OPS, self._steps.program, self._inputs())
        return y.contiguous()

    def _back(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradient of x, and those of the cores in one array, which is one copy afterwards."""
        steps, saved, inputs = self._steps.program.steps, self._reverse.saved, self._inputs()
        needed = max(max(saved) - len(inputs) + 1, 0)  # y itself is not
        registers = registers_of(OPS, steps[:needed], inputs, saved=saved)
        grads = back(steps, self._reverse.wanted, {i: registers[i] for i in saved}, self._shapes, self._gy)
        flat = [
            grad.reshape(-1).to(core.dtype)
            for grad, core, wanted in zip(grads, self._cores, self._wanted, strict=False)
            if wanted and grad is not None
        ]
        gx = grads[len(self._cores)]
        return None if gx is None else gx.contiguous(), torch.cat(flat) if flat else None

    def _captured(self, function: Any, pool: Any) -> tuple[Any, Any]:
        """A graph of a function, and what it writes its results to."""
        aside: Any = torch.cuda.Stream(self._x.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(self._stream)
        with torch.cuda.stream(aside):
            for _ in range(_WARM):
                function()
        self._stream.wait_stream(aside)
        graph: Any = torch.cuda.CUDAGraph()
        # Other threads, such as those that load data, go on allocating.
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            results = function()
        return graph, results


def _addresses(cores: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(core.data_ptr() for core in cores)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: Captured, x: Tensor, *cores: Tensor) -> Tensor:
        ctx.captured = captured
        ctx.save_for_backward(x, *cores)
        y, ctx.token = captured.forward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        captured: Captured = ctx.captured
        x, *cores = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        require_all("saved tensor", (x, *cores))
        plain = type(gradients[0]) is Tensor and gradients[0].is_cuda
        # Cores may have moved since: freed and filled again, or brought back by hooks.
        if torch.is_grad_enabled() or not plain or not captured.fits(cores):
            found = iter(second(captured.plain, (x, *cores), gradients[0], wanted))
            return (None, *(next(found) if needed else None for needed in wanted))
        *grads, gx = captured.back(x, ctx.token, gradients[0])
        return (None, gx, *grads)
