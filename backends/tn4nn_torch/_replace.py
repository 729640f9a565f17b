"""Layers on networks in place of dense ones, with weights that are drawn: for models that are trained by loops of
one's own, from the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from torch import nn

from tn4nn._compression.convert import ConversionPlan
from tn4nn._compression.rules import Given, fresh

from ._convert import plan_conversion
from ._modules import fresh_seed

_Model = TypeVar("_Model", bound=nn.Module)


def plan_replacement(
    model: nn.Module,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    seed: int | None = None,
    *,
    batch: int = 32,
    protect_head: bool = True,
    phase: str = "train",
    max_time: float | None = None,
) -> ConversionPlan[nn.Module]:
    """The dry run of `replace`, which says what the arguments are: the same work and the same errors, but for copying
    the model. `print` shows a table, `.run()` makes the model.

    Examples:
        >>> from tn4nn_torch import plan_replacement
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> [(row.name, row.before, row.after) for row in plan_replacement(model, {"0": "low_rank"}, 0.25).rows]
        [('0', 2048, 480), ('2', 320, 320)]
    """
    own = fresh_seed() if seed is None else seed
    options: dict[str, Any] = {"batch": batch, "protect_head": protect_head, "phase": phase, "max_time": max_time}
    return plan_conversion(model, fresh(rules), budget, seed=own, **options)


def replace(
    model: _Model,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    seed: int | None = None,
    *,
    batch: int = 32,
    protect_head: bool = True,
    phase: str = "train",
    max_time: float | None = None,
) -> _Model:
    """A copy of a model whose layers are replaced by tensor networks with new weights, to be trained from the start.

    The layers are those of `convert`, and what is kept is the same: device, dtype, biases, hooks, modes, requires_grad,
    shared modules and tied weights. Nothing is fitted: the cores are drawn so that W, of shape (out_features,
    in_features), has the variance of the weight that it replaces, and the model begins at the scale that its author
    chose. A weight whose numbers are all equal (zero, for instance) has no variance to go by: it gets 1/in_features,
    and the table says so.

    Args:
        model: any module.
        rules: as for `convert`, patterns of layer names to what they are put on. A rule has no `error` here, and no
            `method`. Of a weight that several layers hold, one name that matches is enough, and all of its layers are
            replaced; one that is "skip" keeps all of them.
        budget: parameters that all layers with a rule may have together, counted once where they share, biases left
            out; or a share below 1 of what they have now. Drawn weights say nothing of which layer needs more: each
            gets an equal share of its own size, and where that is more than it has, it stays dense.
        seed: of the weights: with one, the result is the same to the bit. Left out, it comes from torch's generator,
            which torch.manual_seed governs.
        batch: rows that the table counts multiply-adds for.
        protect_head: leave the head alone, unless a rule names it in full.
        phase: "train" or "forward": what the new layers plan for.
        max_time: as for `convert`.

    See also:
        `plan_replacement`, with the same arguments, for a table of what this would do; `parameter_groups`, for the
        optimizer.

    Raises:
        TN4NNError: a pattern that matches nothing, with the nearest names; a rule that is none, or that asks for a fit.
        BackendError: a layer on the meta device.
        BudgetError: a budget that cannot be met, with the smallest that can, or a layer that nothing gives a size.
        ShapeError: a topology of another size than its layer.
        DataError: weights that are NaN or infinite, where no layer is left to replace.

    Examples:
        >>> from tn4nn_torch import replace
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = replace(model, {"0": "mpo"}, budget=0.25, seed=0)
        >>> type(small[0]).__name__, small(torch.ones(3, 64)).shape
        ('TNLinear', torch.Size([3, 10]))
    """
    options: dict[str, Any] = {"batch": batch, "protect_head": protect_head, "phase": phase, "max_time": max_time}
    return cast(_Model, plan_replacement(model, rules, budget, seed, **options).run())
