"""What a model loses when some of its layers are replaced: it is run with the matrices of their networks in it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tn4nn._compression.decompose import Decomposition

_MOST = 1 << 28  # bytes of the original's outputs that are in memory
_FEW = 3  # calls that are enough to weigh one layer
Call = tuple[tuple[Any, ...], dict[str, Any]]
Change = tuple[nn.Parameter, Callable[[Tensor], Tensor], Decomposition]  # the weight, W in its shape, what replaces it


class Trial:
    """A copy of a model in which weights are exchanged and put back.

    Args:
        model: the original, which is not touched.
        calls: of the model, on which its outputs are compared; of many, those whose outputs fit into memory.
        loss: of a model, smaller is better; in place of comparing outputs.
    """

    def __init__(self, model: nn.Module, calls: Sequence[Call], loss: Callable[[Any], Any] | None) -> None:
        memo: dict[int, Any] = {}
        self.model = copy.deepcopy(model, memo).eval()
        self.memo, self.calls, self.loss = memo, list(calls), loss
        self.wanted: list[list[Tensor]] = []
        self.before = 0.0
        with torch.no_grad():
            if loss is not None:
                self.before = float(loss(self.model))
                return
            occupied = 0
            for args, kwargs in self.calls:
                self.wanted.append(tensors_in(self.model(*args, **kwargs)))
                occupied += sum(t.nbytes for t in self.wanted[-1])
                if occupied > _MOST:
                    break

    @property
    def possible(self) -> bool:
        """Whether there is anything to compare."""
        return self.loss is not None or bool(self.wanted and self.wanted[0])

    def lost(self, changes: Iterable[Change], quick: bool) -> float:
        """What the model loses with these changes: the rise of the loss, or the mean over the outputs of the squared
        error relative to the squared original. `quick` compares fewer calls."""
        saved: list[tuple[Tensor, Tensor]] = []
        try:
            with torch.no_grad():
                for weight, shaped, result in changes:
                    here = self.memo[id(weight)].data
                    saved.append((here, here.clone()))
                    here.copy_(shaped(torch.from_numpy(result.to_dense())))
                if self.loss is not None:
                    return float(self.loss(self.model)) - self.before
                return self._difference(_some(len(self.wanted)) if quick else range(len(self.wanted)))
        finally:
            for here, before in reversed(saved):
                here.copy_(before)

    def _difference(self, chosen: Iterable[int]) -> float:
        off: dict[int, float] = {}
        whole: dict[int, float] = {}
        for i in chosen:
            args, kwargs = self.calls[i]
            for j, (a, b) in enumerate(zip(tensors_in(self.model(*args, **kwargs)), self.wanted[i], strict=True)):
                off[j] = off.get(j, 0.0) + float((a.double() - b.double()).square().sum())
                whole[j] = whole.get(j, 0.0) + float(b.double().square().sum())
        errors = [off[j] / whole[j] for j in off if whole[j] > 0]
        return sum(errors) / len(errors) if errors else math.nan


def _some(count: int) -> list[int]:
    """A few positions, evenly spaced."""
    return sorted({round(i * (count - 1) / (_FEW - 1)) for i in range(_FEW)})


def tensors_in(output: object) -> list[Tensor]:
    """The tensors of floating-point numbers that a model gives, in dicts and sequences too."""
    if isinstance(output, Tensor):
        return [output.detach()] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in tensors_in(value)]
    if isinstance(output, list | tuple):
        return [t for value in output for t in tensors_in(value)]
    return []
