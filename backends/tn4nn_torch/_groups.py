"""Parameter groups for torch.optim: the learning rate and the weight decay of each parameter of any model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from tn4nn._base.checks import nearest
from tn4nn._base.errors import BackendError, TN4NNError
from tn4nn._graph.decay import checked_decay, decay_of_cores
from tn4nn._graph.init import OPTIMIZERS
from tn4nn._graph.muon import Axes

from ._modules import _Planned

_NORMS = (
    nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase,
)  # fmt: skip
_TABLES = (nn.Embedding, nn.EmbeddingBag)


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float = 0.0, optimizer: str = "adamw"
) -> list[dict[str, Any]]:
    """Groups for any optimizer of torch: one learning rate and one weight decay then serve dense layers and networks.

    A core learns at lr * factor, with the factor of `Network.lr_factors` for its layer: one step then moves W as it
    moves that of a dense layer. All else learns at lr. Give the optimizer its other settings; schedules that multiply
    the rate of each group (all of torch's) keep the factors.

    The decay acts on W, not on each core: one step of AdamW takes W to (1 - lr * weight_decay) W, whatever the
    topology, as it does a dense weight. Each of the N cores of a layer that are trained shrinks by lr * weight_decay /
    N. The optimizer multiplies the decay of a group by the group's own rate, so it is weight_decay / (N * factor). With
    SGD the decay passes through the momentum, as for a dense weight. torch.optim.Adam is another matter: it divides the
    decay of each number by the size of its gradients, so no decay of cores is one of W, and "adam" takes none.

    With optimizer="muon" the groups are for `tn4nn_torch.Muon`: under "axes" they tell what makes a matrix of a core;
    parameters of two axes that no embedding holds are matrices too, and None says that AdamW trains the group.

    Biases, the parameters of norms and all others of fewer than two axes do not decay. Frozen parameters are in no
    group. A parameter that stands in several places is in one group, with the least rate of these, and the least of
    what decays W there. A core that a parametrization makes out of other parameters has none of its own: those are as
    any others.

    Args:
        model: any module, with layers on networks anywhere in it. Freeze and tie before.
        lr: learning rate of dense layers, above 0. A schedule that goes above it may make steps of networks too large:
            give the highest.
        weight_decay: of W, at least 0.
        optimizer: "adamw", "adam", "muon" or "sgd": whose steps the factors are for. For others of Adam's kind with
            decoupled decay, "adamw".

    Returns:
        a list of dicts of "params", "lr", "weight_decay", and "names" of the parameters in the same order; for "muon"
        also of "axes".

    Raises:
        TN4NNError: an unknown optimizer, a rate or a decay out of range, or "adam" with a decay.
        BackendError: the model is no module.

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization (arXiv:1711.05101), for the decay of dense
    weights; that of cores follows from it, see tn4nn/_graph/decay.py.

    Examples:
        >>> import torch, tn4nn as tn
        >>> from tn4nn_torch import TNLinear, parameter_groups
        >>> model = torch.nn.Sequential(TNLinear(tn.mpo((4, 8), (2, 2)).with_rank(2)), torch.nn.Linear(4, 2))
        >>> groups = parameter_groups(model, lr=1e-4, weight_decay=0.1)
        >>> [(group["names"], group["weight_decay"]) for group in groups]
        [(['0.core0'], 0.0125), (['0.core1'], 0.05), (['0.bias', '1.bias'], 0.0), (['1.weight'], 0.1)]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    if not isinstance(model, nn.Module):
        raise BackendError(
            f"expected an nn.Module, received {type(model).__name__}: give the model, not its parameters"
        )
    if optimizer not in OPTIMIZERS:
        raise TN4NNError(f"unknown optimizer {optimizer!r}." + nearest(str(optimizer), OPTIMIZERS))
    if not (math.isfinite(lr) and lr > 0):
        raise TN4NNError(f"lr must be finite and above 0, received {lr!r}")
    if checked_decay(weight_decay) and optimizer == "adam":
        raise TN4NNError(
            f"expected weight_decay=0 with optimizer='adam', received {weight_decay!r}: Adam scales the decay of each "
            "number by its gradients, so that it is no decay of W: take torch.optim.AdamW and optimizer='adamw'"
        )
    found: dict[nn.Parameter, _Settings] = {}
    for parameter, own in _settings(model, lr, weight_decay, optimizer):
        if parameter in found:
            found[parameter] = found[parameter].shared_with(own)
        elif parameter.requires_grad:
            found[parameter] = own
    groups: dict[tuple[float, float, Axes | None], dict[str, Any]] = {}
    for parameter, own in found.items():
        axes = {"axes": own.axes} if optimizer == "muon" else {}
        new: dict[str, Any] = {
            "params": [],
            "lr": lr * own.factor,
            "weight_decay": own.decay / own.factor,
            "names": [],
            **axes,
        }
        group = groups.setdefault((own.factor, own.decay, own.axes), new)
        group["params"].append(parameter)
        group["names"].append(own.name)
    return list(groups.values())


class _Settings(NamedTuple):
    """Of one parameter: its name, its factor, what one step takes off it, over lr, and the axes of its matrices."""

    name: str
    factor: float
    decay: float
    axes: Axes | None

    def shared_with(self, other: _Settings) -> _Settings:
        """Those of a parameter that stands in two places."""
        axes = self.axes if self.axes == other.axes else None
        return _Settings(self.name, min(self.factor, other.factor), min(self.decay, other.decay), axes)


def _settings(
    model: nn.Module, lr: float, weight_decay: float, optimizer: str
) -> Iterator[tuple[nn.Parameter, _Settings]]:
    """The settings of a parameter for every place in which it stands."""
    by_muon = optimizer == "muon"
    for prefix, module in model.named_modules():
        cores: dict[str, float] = {}
        matrices: dict[str, Axes] = {}
        if isinstance(module, _Planned):
            matrices = module.layer.matrix_axes() if by_muon else {}
            factors = module.layer.lr_factors(lr=lr, optimizer=optimizer)
            own = {name: module._parameters.get(name) for name in module.names}
            cores = {name: factors[name] for name, core in own.items() if core is not None and core.requires_grad}
        decays = decay_of_cores(weight_decay, cores)
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            if name in cores:
                yield parameter, _Settings(full, cores[name], decays[name] * cores[name], matrices.get(name))
            else:
                decayed = parameter.dim() > 1 and name != "bias" and not isinstance(module, _NORMS)
                is_matrix = decayed and parameter.dim() == 2 and not isinstance(module, _TABLES)
                axes = ((1,), (0,)) if by_muon and is_matrix else None
                yield parameter, _Settings(full, 1.0, weight_decay if decayed else 0.0, axes)
