"""Muon for cores of any number of axes, in the form of torch.optim."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tn4nn._graph.muon import COEFFICIENTS, EPS, MOMENTUM, STEPS, Axes, stack_of


class Muon(torch.optim.Optimizer):
    """Muon on layers on networks, and AdamW on what has no matrices.

    torch.optim.Muon takes parameters of two axes. Here each core is a matrix, from the legs that it sums to those that
    it opens, or a stack of such matrices, e.g. of block tensor trains; for a plain matrix the steps are those of
    torch.optim.Muon with adjust_lr_fn="match_rms_adamw", but for the iteration of Newton and Schulz, which runs in the
    parameter's own precision. Entries of a step are of the size of AdamW's, so both take the same rates.

    Args:
        params: groups of `parameter_groups(model, lr, optimizer="muon")`. Groups of one's own have under "axes" the
            pair (axes that are summed, axes that are opened), or None for AdamW.
        lr: of groups that have none of their own.
        weight_decay: of groups that have none of their own; decoupled.
        momentum: of the gradient.
        nesterov: whether to look ahead.
        betas: of AdamW.
        eps: of AdamW.

    Source: K. Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks; J. Liu et al. 2025
    (arXiv:2502.16982) for the size of a step.

    Examples:
        >>> import torch, tn4nn as tn
        >>> from tn4nn_torch import Muon, TNLinear, parameter_groups
        >>> model = TNLinear(tn.mpo((4, 8), (2, 2)).with_rank(2))
        >>> optimizer = Muon(parameter_groups(model, lr=1e-3, optimizer="muon"))
        >>> model(torch.randn(5, 32)).square().mean().backward()
        >>> optimizer.step()
        >>> len(optimizer.state)  # one for each core, and the bias
        3
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        momentum: float = MOMENTUM,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "axes": None}
        super().__init__(params, defaults)
        if any(group["axes"] is not None and parameter.is_complex() for group in self.param_groups
               for parameter in group["params"]):  # fmt: skip
            raise ValueError("Muon takes real parameters, received a complex one: give it to a group without axes")
        rest: list[dict[str, Any]] = [group for group in self.param_groups if group["axes"] is None]
        self._adamw = torch.optim.AdamW(rest or [{"params": [torch.zeros(1)]}], lr=lr, betas=betas, eps=eps)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; `closure` as in torch.optim."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # AdamW works on the groups and the state of this optimizer, which `load_state_dict` replaces.
        self._adamw.param_groups = [group for group in self.param_groups if group["axes"] is None]
        self._adamw.state = self.state
        if self._adamw.param_groups:
            self._adamw.step()
        for group in self.param_groups:
            for parameter in group["params"] if group["axes"] is not None else ():
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(mean, group["momentum"]) if group["nesterov"] else mean
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalized(update, group["axes"]), alpha=-group["lr"])


def orthogonalized(array: Tensor, axes: Axes) -> Tensor:
    """An array whose matrices have singular values of about 1, times RMS * sqrt(the larger of rows and columns)."""
    stack = stack_of(array.shape, axes)
    moved = array.permute(stack.order)
    x, tall = moved.reshape(-1, stack.rows, stack.columns), stack.rows > stack.columns
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.mT if tall else x
    return (x.reshape(moved.shape) * stack.size).permute(stack.inverse)
