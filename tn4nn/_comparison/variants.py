"""What is compared: models that differ in the layers under test alone, and their size."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from .._base.checks import nearest
from .._base.errors import TN4NNError
from .._training.tasks import Task

TOPOLOGY, DENSE, NARROW = ROLES = ("topology", "dense", "narrow")


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model of the table: the same for every backend and seed.

    Attributes:
        topology: name in the table.
        role: "topology", "dense" for the reference, or "narrow" for the reference with thinner layers.
        budget: what was asked for; the size of the dense reference.
        model: with its ranks: a layer graph, or a recipe for a module of a framework.
        layers: parameters of each compared layer.
        used: of the budget, in its own unit.
        dense_params: parameters of the compared layers of the dense reference.
        dense_model_params: parameters of the whole dense reference.
        width: of the model, on a ladder of widths.
    """

    topology: str
    role: str
    budget: float
    model: Any
    layers: Mapping[str, int]
    used: float
    dense_params: int
    dense_model_params: int
    width: int | None = None

    @property
    def params(self) -> int:
        """Parameters of the compared layers."""
        return sum(self.layers.values())

    @property
    def fingerprint(self) -> str:
        """Equal for equal models."""
        return str(self.model.fingerprint)


@dataclasses.dataclass(frozen=True)
class Infeasible:
    """A topology that cannot be had at a budget, and why."""

    topology: str
    role: str
    budget: float
    reason: str
    width: int | None = None


class Subject(Protocol):
    """What a comparison is about: it knows how to make its variants."""

    @property
    def task(self) -> Task:
        """What they learn."""
        ...

    @property
    def reference(self) -> Any:
        """The dense model that step times are compared with."""
        ...

    def variants(self) -> Iterable[Variant | Infeasible]:
        """All models of the table, in its order."""
        ...


def chosen_names(names: Iterable[str], where: Iterable[str]) -> list[str]:
    """The names that match a pattern, in their order; a pattern may name what holds a layer, too.

    Raises:
        TN4NNError: a pattern that matches none.
    """
    known, chosen = list(names), set[str]()
    for pattern in where:
        hits = [name for name in known if any(fnmatch.fnmatchcase(part, pattern) for part in _prefixes(name))]
        if not hits:
            raise TN4NNError(f"where: {pattern!r} matches no dense layer of the model." + nearest(pattern, known))
        chosen.update(hits)
    return [name for name in known if name in chosen]


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
