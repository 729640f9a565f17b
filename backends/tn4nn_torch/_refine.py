"""After `convert`: layers on networks trained to give again what the layers gave that stood there.

A decomposition makes the error of W small, or with calibration inputs that of W x. What is left is nonlinear in the
cores and depends on the layers before, so a few hundred steps on unlabelled inputs gain much: layer by layer
(`refine`), each against the output of its original, and then all together against the whole model's (`distill`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tn4nn._base.checks import checked_size, nearest
from tn4nn._base.errors import TN4NNError

from ._convert import _batches, _evaluating, input_of
from ._modules import TNConv2d, TNLinear, _Planned


@dataclasses.dataclass(frozen=True)
class Refined:
    """What refining did to one layer.

    Attributes:
        name: of the layer in the model.
        before: ||y - y'|| / ||y||, y being what the original gives and y' what the layer gives to its own inputs.
        after: the same after refining; never larger.

    Examples:
        >>> import torch, tn4nn_torch
        >>> original = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> small = tn4nn_torch.convert(original, {"0": tn4nn_torch.Rule("mpo", rank=2)})
        >>> (first,) = tn4nn_torch.refine(small, original, torch.randn(64, 16), steps=5)
        >>> first.name, first.after <= first.before
        ('0', True)
    """

    name: str
    before: float
    after: float


def refine(
    model: nn.Module,
    original: nn.Module,
    inputs: object,
    *,
    steps: int = 300,
    lr: float = 0.02,
    rows: int = 256,
    seed: int = 0,
) -> list[Refined]:
    """Trains each layer on a network, one after the other, to give what its original gives; changes `model`.

    In the order in which they are called, each layer meets its own inputs, with the errors of the layers before, and
    learns the output of the layer of the same name in `original` by Adam with a cosine schedule. What does not lower
    the error over all rows is taken back. Parameters that need no gradient stay. No labels are used.

    Args:
        model: what `convert` made.
        original: the model that it was made of, or another one with layers of the same names and shapes.
        inputs: as for `convert`: a tensor, a tuple of arguments, a dict of keyword arguments, or a list of these.
        steps: of Adam for each layer.
        lr: its first learning rate, times the root mean square of each core.
        rows: of one step: tokens or samples of a linear layer, images of a convolution.
        seed: of the order of rows.

    Returns:
        the errors of each layer, in the order of the calls.

    Raises:
        TN4NNError: the model has no layer on a network, or the original none of that name, or inputs that are none.
        TopologyError: `rows` below 1.

    Examples:
        >>> from tn4nn_torch import refine
        >>> import torch
        >>> from torch import nn
        >>> from tn4nn_torch import convert
        >>> _ = torch.manual_seed(0)
        >>> original = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> model = convert(original, "mpo", budget=0.3)
        >>> report = refine(model, original, torch.randn(64, 32), steps=100)
        >>> [(row.name, row.after < row.before) for row in report]
        [('0', True)]
    """
    rows = checked_size(rows, "rows of a step")
    originals = dict(original.named_modules())
    found = {name: module for name, module in model.named_modules() if isinstance(module, TNLinear | TNConv2d)}
    if not found:
        raise TN4NNError("this model has no linear layer or convolution on a network: convert it first")
    for name in found:
        if name not in originals or isinstance(originals[name], _Planned):
            dense = [other for other, module in originals.items() if not isinstance(module, _Planned)]
            raise TN4NNError(f"the original has no dense layer {name!r}." + nearest(name, dense))
    calls = _batches(inputs)
    with _evaluating(model), _evaluating(original):
        times = _called(model, found, calls)
        report, ahead = [], dict[str, Tensor]()
        for position, name in enumerate(times):
            if name not in ahead:
                ahead = _outputs(original, originals, list(times)[position:], calls)
            x = _inputs(model, found[name], times[name], calls)
            with torch.enable_grad():
                report.append(Refined(name, *_fitted(found[name], x, ahead.pop(name), steps, lr, rows, seed)))
    return report


def distill(
    model: nn.Module,
    original: nn.Module,
    inputs: object,
    *,
    steps: int = 300,
    lr: float = 3e-4,
    loss: Callable[[Any, Any], Tensor] | None = None,
    seed: int = 0,
) -> list[float]:
    """Trains all of a converted model to give what the original gives (Hinton et al., arXiv:1503.02531).

    Args:
        model: what `convert` made, which is changed; it runs in its own mode, train or eval.
        original: the teacher, in eval mode.
        inputs: as for `refine`; each call of the list is one step's batch, again from the start when all were used.
        steps: of Adam, with a cosine schedule.
        lr: its first learning rate.
        loss: of (output of the model, output of the original); left out, the mean squared difference of two tensors,
            relative to the mean square of the original's.
        seed: of the order of calls.

    Returns:
        the loss of each step.

    Raises:
        TN4NNError: outputs that are no tensors and no `loss` for them.

    Examples:
        >>> from tn4nn_torch import distill
        >>> import torch
        >>> from torch import nn
        >>> from tn4nn_torch import convert
        >>> _ = torch.manual_seed(0)
        >>> original = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
        >>> losses = distill(convert(original, "mpo", budget=0.3), original, torch.randn(64, 32), steps=100)
        >>> losses[-1] < losses[0]
        True
    """
    calls, given = _batches(inputs), loss or _relative
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, schedule = _adam([{"params": parameters, "lr": lr}], steps)
    generator, losses, order = torch.Generator().manual_seed(seed), list[float](), list[int]()
    for _ in range(steps):
        order = order or torch.randperm(len(calls), generator=generator).tolist()
        args, kwargs = calls[order.pop()]
        with _evaluating(original):
            wanted = original(*args, **kwargs)
        optimizer.zero_grad()
        value = given(model(*args, **kwargs), wanted)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(float(value.detach()))
    optimizer.zero_grad()
    return losses


def _relative(found: object, wanted: object) -> Tensor:
    if not isinstance(found, Tensor) or not isinstance(wanted, Tensor):
        raise TN4NNError(
            f"the model gives a {type(found).__name__}, not a tensor: pass loss=, a function of what the model and the "
            "original give"
        )
    return (found - wanted).square().mean() / wanted.square().mean().clamp_min(1e-30)


def _adam(
    groups: list[dict[str, Any]], steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.Adam(groups)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))


# -- one layer --------------------------------------------------------------------------------------------------


_MOST = 1 << 28  # bytes of outputs of the original that are in memory at a time


def _called(model: nn.Module, found: Mapping[str, nn.Module], calls: list[Any]) -> dict[str, int]:
    """How often each layer is called by one call of the model, in the order of their first calls."""
    times: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for name, module in found.items():

            def count(*_: object, name: str = name) -> None:
                times[name] = times.get(name, 0) + 1

            stack.callback(module.register_forward_pre_hook(count).remove)
        args, kwargs = calls[0]
        model(*args, **kwargs)
    return times


class _EnoughError(Exception):
    """The layer that is looked at has been called: the rest of the model need not run."""


def _inputs(model: nn.Module, layer: nn.Module, times: int, calls: list[Any]) -> Tensor:
    """All inputs of a layer."""
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen.append(_samples(input_of(args, kwargs), layer))
        if len(seen) % times == 0:
            raise _EnoughError

    handle = layer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        for args, kwargs in calls:
            with contextlib.suppress(_EnoughError):
                model(*args, **kwargs)
    finally:
        handle.remove()
    return torch.cat(seen)


def _outputs(
    original: nn.Module, modules: Mapping[str, nn.Module], names: list[str], calls: list[Any]
) -> dict[str, Tensor]:
    """All outputs of the first of these layers, and of as many that follow as fit into memory."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = {}
    for name in names:

        def note(module: nn.Module, _: object, result: Tensor, name: str = name) -> None:
            seen[name].append(_samples(result, module))

        handles[name] = modules[name].register_forward_hook(note)
    try:
        for number, (args, kwargs) in enumerate(calls):
            original(*args, **kwargs)
            occupied = 0
            for position, name in enumerate(list(seen)) if not number else ():
                occupied += len(calls) * sum(t.nbytes for t in seen[name])
                if occupied > _MOST and position:
                    handles.pop(name).remove()
                    del seen[name]
    finally:
        for handle in handles.values():
            handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def _samples(t: Tensor, layer: nn.Module) -> Tensor:
    """What counts as one row: a token of a linear layer, for sequences may differ in length; else an image."""
    t = t.detach()
    return t if isinstance(layer, TNConv2d | nn.Conv2d) else t.reshape(-1, t.shape[-1])


def _fitted(layer: nn.Module, x: Tensor, y: Tensor, steps: int, lr: float, rows: int, seed: int) -> tuple[float, float]:
    """(error before, error after); trains the layer."""
    before = _error(layer, x, y, rows)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    if not parameters or before == 0 or not steps:
        return before, before
    groups = [
        {"params": [p], "lr": lr * max(float(p.detach().float().square().mean().sqrt()), 1e-3)} for p in parameters
    ]
    optimizer, schedule = _adam(groups, steps)
    scale = y.float().square().mean()
    for chosen in _chosen(len(x), rows, steps, seed):
        optimizer.zero_grad()
        loss = (layer(x[chosen]) - y[chosen]).float().square().mean() / scale
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    after = _error(layer, x, y, rows)
    if not after < before:  # nan too
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        after = before
    return before, after


def _chosen(count: int, rows: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Positions for each step: all rows once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < min(rows, count):
            order = torch.randperm(count, generator=generator)
        yield order[:rows]
        order = order[rows:]


def _error(layer: nn.Module, x: Tensor, y: Tensor, rows: int) -> float:
    """||y - layer(x)|| / ||y||."""
    wrong = 0.0
    with torch.no_grad():
        for low in range(0, len(x), 8 * rows):
            part = slice(low, low + 8 * rows)
            wrong += float((layer(x[part]) - y[part]).float().square().sum())
    return math.sqrt(wrong / max(float(y.float().square().sum()), 1e-30))
