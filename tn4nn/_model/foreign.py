"""Modules of a framework that are no layer graphs: what a comparison has to know of them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from .._base.errors import BackendError
from .._graph.network import Network
from .backend import Trainer, TrainSpec, backend


class Foreign(Protocol):
    """What a backend knows of people's own modules; `backend.foreign`, where it knows something."""

    def owns(self, made: object) -> bool:
        """Whether this is a module of the framework."""
        ...

    def seeded(self, seed: int) -> contextlib.AbstractContextManager[object]:
        """While it lasts, the framework's own generator gives the numbers of a seed."""
        ...

    def layers(self, module: Any) -> dict[str, tuple[str, int, int]]:
        """Name -> (kind, in_features, out_features) of every dense layer that can be replaced; kinds that multiply rows
        by a matrix are "Linear" and "Conv1D"."""
        ...

    def num_params(self, module: Any) -> int:
        """Trainable numbers, shared ones once."""
        ...

    def replaced(self, module: Any, networks: Mapping[str, Network], seed: int, start: str) -> Any:
        """The module with layers on networks; `start` "fresh" or "decompose"."""
        ...

    def rows(self, module: Any, x: NDArray[Any]) -> dict[str, int]:
        """Name -> rows that each of these layers sees for one sample of x; empty where it cannot be told."""
        ...

    def outputs(self, module: Any, x: NDArray[Any]) -> tuple[int, ...]:
        """Shape of what the module gives for a batch x."""
        ...

    def trainer(self, module: Any, spec: TrainSpec, lr: float, weight_decay: float) -> Trainer:
        """A trainer of the module, with the rates and the decay that its networks need."""
        ...


def foreign(name: str) -> Foreign:
    """What a backend knows of people's own modules.

    Raises:
        BackendError: nothing.
    """
    found: Foreign | None = getattr(backend(name), "foreign", None)
    if found is None:
        raise BackendError(f"backend {name!r} trains layer graphs alone: give model= as one, as tn.presets.gpt()")
    return found
