"""Weight normalization of cores: the stabilizer of block tensor trains, for any network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tn4nn._base.errors import BackendError

from ._modules import _Planned

GAIN = ":gain"  # after the name of a core: that of its gain


class CappedRMS(nn.Module):
    """A core with its root mean square held below a cap, times a gain that is trained.

    core -> gain * core / max(1, rms(core) / cap). The gain starts where the core is what it was.

    Args:
        cap: of the root mean square of the entries.
        core: whose values are kept.
    """

    def __init__(self, cap: float, core: Tensor) -> None:
        super().__init__()
        self.cap = cap
        with torch.no_grad():
            self.gain = nn.Parameter(self._excess(core.detach()))

    def _excess(self, core: Tensor) -> Tensor:
        return (core.square().mean().sqrt() / self.cap).clamp(min=1.0)

    def forward(self, core: Tensor) -> Tensor:
        """The core that the layer computes with."""
        return core * (self.gain / self._excess(core))


def weight_norm(model: nn.Module) -> nn.Module:
    """Normalizes the cores of every layer on a network of two cores or more, while the model is trained.

    Each core C is made out of two parameters: C = gain * V / max(1, rms(V) / s), with s the standard deviation that its
    initial entries have. So the entries of V may grow without the output growing with them, which is what makes block
    tensor trains diverge at large learning rates; the gain still lets the layer grow. The model computes what it did.

    It is torch's own parametrization: `torch.nn.utils.parametrize.remove_parametrizations(layer, "core0")` makes C a
    parameter again. Make the optimizer afterwards.

    Args:
        model: any module; changed in place.

    Returns:
        the model.

    Raises:
        BackendError: a core is a parametrization already, or has a name with a dot.

    Source: Qiu et al. 2024, Compute Better Spent (arXiv:2406.06248), for block tensor trains of two cores, where s is
    that of their initialization.

    Examples:
        >>> import torch, tn4nn as tn
        >>> from tn4nn_torch import TNLinear, weight_norm
        >>> layer = weight_norm(TNLinear(tn.btt((4, 8), (4, 8)).with_rank(2), bias=False))
        >>> sorted(name for name, _ in layer.named_parameters())[:2]
        ['parametrizations.core0.0.gain', 'parametrizations.core0.original']
    """
    for module in list(model.modules()):
        if isinstance(module, _Planned):
            for name, cap in module.layer.core_scales().items():
                cap_core(module, name, cap)
    return model


def cap_core(module: nn.Module, name: str, cap: float) -> None:
    """Normalizes one core of a layer."""
    if "." in name or parametrize.is_parametrized(module, name):
        why = "has a dot in its name" if "." in name else "is a parametrization already"
        raise BackendError(f"weight_norm: core {name!r} {why}, and torch parametrizes none such: rename or remove it")
    core = getattr(module, name)
    parametrize.register_parametrization(module, name, CappedRMS(cap, core))


def plain_name(name: str) -> str:
    """The name of a core, or of its gain, in a model without parametrizations, by the name of the parameter."""
    head, found, tail = name.rpartition("parametrizations.")
    if not found:
        return name
    if tail.endswith(".original"):
        return head + tail.removesuffix(".original")
    return head + tail.removesuffix(".0.gain") + GAIN


def without(model: nn.Module, names: list[str]) -> None:
    """Makes the cores of these names parameters again, as they are now."""
    for name in names:
        owner, _, core = name.rpartition(".")
        parametrize.remove_parametrizations(model.get_submodule(owner), core, leave_parametrized=True)
