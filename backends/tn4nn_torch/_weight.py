"""For code that asks a layer for a parameter `weight`, which a layer on a network computes from its cores.

weight_norm, spectral_norm and pruning replace a parameter by others. Without this they would end in a KeyError, or in
an error that says only that there is no such parameter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tn4nn._base.errors import BackendError

_NAME = "weight"


def no_parameter(names: Iterable[str]) -> BackendError:
    """The error that says what to do instead.

    Args:
        names: of the layer's parameters.
    """
    cores = [name for name in names if name != "bias"]
    return BackendError(
        f"expected the name of a parameter, received 'weight', which this layer computes from its cores "
        f"({', '.join(cores)}): normalise or prune a core, for example name={cores[0]!r}, or make the layer dense "
        "first, with tn4nn_torch.undo(layer)"
    )


class Parameters(dict[str, Any]):
    """The parameters of a layer by name. Without a core of that name, `weight` can be neither read nor deleted."""

    def __missing__(self, name: str) -> Any:
        raise no_parameter(self) if name == _NAME else KeyError(name)

    def __delitem__(self, name: str) -> None:
        if name == _NAME and name not in self:
            raise no_parameter(self)
        super().__delitem__(name)


class NoParametrizations(nn.ModuleDict):
    """The parametrizations of a layer that has none: a new one of `weight` is an error.

    Args:
        names: of the layer's parameters.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._names = tuple(names)

    def __contains__(self, key: str) -> bool:
        if key == _NAME and key not in self._names:
            raise no_parameter(self._names)
        return False
