"""What a comparison is asked to do: the arguments of `compare`, checked, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from .._base.checks import at_least, checked_size, one_of
from .._base.errors import TN4NNError
from .._graph.budget import checked_budget
from .._model.backend import backend, installed_backends
from .._training.settings import OPTIMIZERS, PRECISIONS

LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # what `lr="auto"` tries for every topology alike


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides a comparison, except the topologies and the arrays of the data.

    Attributes:
        data: name or path of the data set.
        hidden: neurons of the hidden layer.
        epochs: of a run.
        search_rows: rows of the training data that the learning-rate search sees, None for all.
        batch_size: rows of a step.
        optimizer: see `train`.
        lr: a number, or "auto".
        precision: see `train`.
        device: see `train`.
        budgets: one table each.
        budget_of: "params" or "macs": what the budgets count.
        seeds: how many, from 0.
        jobs: processes that train at once.
        head: "network" or "dense": the last layer of every model.
        backends: names; the first one searches the learning rates.

    Raises:
        TN4NNError: a value out of range, or an unknown name.
    """

    data: str
    hidden: int
    epochs: int
    search_rows: int | None
    batch_size: int
    optimizer: str
    lr: float | str
    precision: str
    device: str | None
    budgets: tuple[int, ...]
    budget_of: str
    seeds: int
    jobs: int
    head: str
    backends: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", checked_size(self.hidden, "hidden"))
        if self.search_rows is not None:
            object.__setattr__(self, "search_rows", checked_size(self.search_rows, "search_rows"))
        one_of(self.optimizer, OPTIMIZERS, "optimizer")
        one_of(self.precision, PRECISIONS, "precision")
        at_least(1, seeds=self.seeds, jobs=self.jobs, epochs=self.epochs, batch_size=self.batch_size)
        if not (self.lr == "auto" or (isinstance(self.lr, int | float) and self.lr > 0)):
            raise TN4NNError(f"lr must be 'auto' or a number above 0, received {self.lr!r}")
        if self.head not in ("network", "dense"):
            raise TN4NNError(f"head must be 'network' or 'dense', received {self.head!r}")
        for name in self.backends:
            backend(name)

    @property
    def search_epochs(self) -> int:
        """Epochs of a run of the learning-rate search: a third."""
        return max(1, self.epochs // 3)

    @property
    def macs_batch(self) -> int | None:
        """The batch size for which a budget of multiply-adds is counted; None for a budget of parameters."""
        return self.batch_size if self.budget_of == "macs" else None

    def of_training(self) -> dict[str, Any]:
        """What decides the result of one cell. The keys of stored rows are hashes of it: order matters."""
        names = (
            "data", "hidden", "epochs", "search_epochs", "search_rows", "batch_size", "optimizer", "lr", "precision",
            "device",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def config(self) -> dict[str, Any]:
        """What results say about how they were made."""
        return {
            **self.of_training(),
            "budgets": list(self.budgets),
            "budget_of": self.budget_of,
            "seeds": self.seeds,
            "jobs": self.jobs,
            "head": self.head,
            "learning_rates": list(LEARNING_RATES) if self.lr == "auto" else [self.lr],
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Defaults:
    """What `compare` takes for arguments that are left out: less for a small data set."""

    budget: int
    hidden: int
    epochs: int
    batch_size: int


def defaults_for(data: str) -> Defaults:
    """The defaults for a data set, by its name."""
    return Defaults(1_500, 64, 30, 64) if data == "digits" else Defaults(4_000, 256, 6, 100)


def checked_budgets(given: int | Sequence[int] | None, default: int) -> tuple[int, ...]:
    """The budgets, each once."""
    many = (default,) if given is None else (given,) if isinstance(given, int) else tuple(given)
    if not many:
        raise TN4NNError(f"no budgets to compare under: name some, or None for {default:,}")
    return tuple(dict.fromkeys(checked_budget(budget, "weights") for budget in many))


def checked_backends(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The backends, each once (a name given twice would count its seeds twice); by default all that train."""
    named = [given] if isinstance(given, str) else given
    names = tuple(dict.fromkeys(named or [name for name in installed_backends() if name != "numpy"]))
    if not names:
        raise TN4NNError('no backend that trains is installed: pip install "tn4nn[torch]" or "tn4nn[jax]"')
    return names
