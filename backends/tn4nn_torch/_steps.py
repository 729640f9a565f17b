"""A program as one torch function, with a backward pass of its own.

Autograd has a node for every view and every product. On a GPU a small layer waits for the host, and most of a training
step is spent on these nodes. A program reads each register once, so its backward pass is the same steps in reverse with
no sums between them, and only the operands of products are saved. Where something has to see the single operations
(torch.compile, torch.func, a trace, a dispatch mode, forward-mode derivatives), torch records them itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tn4nn._runtime.program import Program, Step, registers_of, run

from ._memory import ordinary, require_all
from ._native import quiet
from ._ops import OPS, autocast_dtype, second

_PRODUCTS = ("matmul", "multiply")


@dataclasses.dataclass(frozen=True, slots=True)
class Reverse:
    """The backward pass for one choice of inputs whose gradients are wanted.

    Attributes:
        wanted: of every register, whether its gradient is.
        saved: the registers that products need for it.
    """

    wanted: tuple[bool, ...]
    saved: frozenset[int]


@dataclasses.dataclass
class Steps:
    """A program, to be called with its inputs.

    Examples:
        >>> import torch, tn4nn as tn
        >>> net = tn.mpo((4, 4), (4, 4)).with_rank(2)
        >>> cores = [torch.from_numpy(core).requires_grad_(True) for core in net.init(0).values()]
        >>> y = Steps(tn.plan(net, 3, "train").program)([*cores, torch.ones(3, 16)])
        >>> y.shape, y.grad_fn.name()
        (torch.Size([3, 16]), 'StepsFunctionBackward')
    """

    program: Program
    _reverses: dict[tuple[bool, ...], Reverse] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    _at_once: bool = dataclasses.field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Without a product y may be a view of an input.
        self._at_once = any(s.kind in _PRODUCTS for s in self.program.steps) and not self.program.sliced

    def __call__(self, arrays: Sequence[Tensor]) -> Tensor:
        """The result for the inputs in the program's order.

        Raises:
            RuntimeError: the memory of an input was freed.
        """
        if not torch.compiler.is_compiling():  # torch itself does not look before it multiplies elementwise
            require_all("input", arrays)
        y: Tensor = _apply(self, *arrays) if self._own(arrays) else run(OPS, self.program, arrays)
        return y

    def _own(self, arrays: Sequence[Tensor]) -> bool:
        if torch.compiler.is_compiling() or not (self._at_once and torch.is_grad_enabled() and quiet()):
            return False
        if self.program.block and arrays[-1].shape[0] > self.program.block:
            return False
        if not all(map(ordinary, arrays)):
            return False
        return any(t.requires_grad for t in arrays) and autocast_dtype(arrays[0].device.type) is None

    def reverse(self, inputs: tuple[bool, ...]) -> Reverse:
        """The backward pass to the inputs whose gradients are wanted."""
        found = self._reverses.get(inputs)
        if found is None:
            found = self._reverses[inputs] = _reverse(self.program.steps, inputs)
        return found


def _reverse(steps: Sequence[Step], inputs: Sequence[bool]) -> Reverse:
    wanted, saved = list(inputs), set[int]()
    for step in steps:
        for position, register in enumerate(step.args):
            if wanted[register] and step.kind in _PRODUCTS:
                saved.add(step.args[1 - position])
        wanted.append(any(wanted[register] for register in step.args))
    return Reverse(tuple(wanted), frozenset(saved))


class StepsFunction(torch.autograd.Function):
    """All steps of a program."""

    @staticmethod
    def forward(ctx: Any, steps: Steps, *inputs: Tensor) -> Tensor:
        """The result; the operands of products are saved, and the inputs for second derivatives."""
        reverse = steps.reverse(ctx.needs_input_grad[1:])
        ctx.steps, ctx.shapes = steps, []
        registers = registers_of(OPS, steps.program.steps, inputs, saved=reverse.saved, shapes=ctx.shapes)
        ctx.save_for_backward(*inputs, *(registers[i] for i in sorted(reverse.saved)))
        y: Tensor = registers[-1]
        # A view that is made in here may not be written to afterwards, as by an activation in place.
        return y.new_empty(0).set_(y.untyped_storage(), y.storage_offset(), y.shape, y.stride()) if y._is_view() else y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradients that are wanted."""
        steps: Steps = ctx.steps
        inputs, reverse = ctx.needs_input_grad[1:], steps.reverse(ctx.needs_input_grad[1:])
        saved = ctx.saved_tensors
        require_all("gradient", gradients)
        require_all("saved tensor", saved)
        count = len(inputs)
        if torch.is_grad_enabled():
            found = iter(second(lambda *arrays: run(OPS, steps.program, arrays), saved[:count], gradients[0], inputs))
            return (None, *(next(found) if needed else None for needed in inputs))
        operands = dict(zip(sorted(reverse.saved), saved[count:], strict=True))
        return (None, *back(steps.program.steps, reverse.wanted, operands, ctx.shapes, gradients[0])[:count])


def gradients(steps: Steps, inputs: Sequence[Tensor], gy: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients of a program's inputs that are wanted, where autograd does not record: inside an operator."""
    reverse = steps.reverse(tuple(wanted))
    shapes: list[torch.Size] = []
    registers = registers_of(OPS, steps.program.steps, inputs, saved=reverse.saved, shapes=shapes)
    operands = {i: registers[i] for i in reverse.saved}
    return back(steps.program.steps, reverse.wanted, operands, shapes, gy)[: len(inputs)]


def back(
    steps: Sequence[Step],
    wanted: Sequence[bool],
    operands: dict[int, Tensor],
    shapes: Sequence[torch.Size],
    gradient: Tensor,
) -> list[Tensor | None]:
    """The gradients of all registers that are still alive at the end: the inputs that want one."""
    grads: list[Any] = [None] * (len(wanted) - 1) + [gradient]
    for at, step in zip(range(len(wanted) - 1, -1, -1), reversed(steps), strict=False):
        if not wanted[at]:
            continue
        g, grads[at] = grads[at], None
        a = step.args[0]
        if step.kind == "reshape":
            grads[a] = g.reshape(shapes[a])
        elif step.kind == "permute":
            grads[a] = g.permute(_inverse(step.param))
        else:
            b = step.args[1]
            if step.kind == "matmul":
                if wanted[a]:
                    grads[a] = OPS.matmul(g, operands[b].mH)
                if wanted[b]:
                    grads[b] = OPS.matmul(operands[a].mH, g)
            else:
                if wanted[a]:
                    grads[a] = (g * operands[b].conj()).sum_to_size(shapes[a])
                if wanted[b]:
                    grads[b] = (g * operands[a].conj()).sum_to_size(shapes[b])
    return grads


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


# Function.apply looks for torch.func's wrappers, which `quiet` has ruled out: 6 us a call.
_plain_function: Any = super(torch.autograd.Function, StepsFunction)
_apply: Any = _plain_function.apply
