"""What a comparison is asked to do: the arguments of `compare`, checked, as plain data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from .._base.checks import at_least, checked_size, one_of
from .._base.errors import TN4NNError
from .._graph.budget import checked_budget
from .._graph.init import OPTIMIZERS
from .._model.backend import backend, installed_backends
from .._training.settings import PRECISIONS

# What `lr="auto"` tries for every topology alike: all of these, and while the best is the largest or the smallest of
# what was tried, the next one beyond it.
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
LARGER_RATES = (3e-2, 1e-1, 3e-1)
SMALLER_RATES = (1e-4, 3e-5, 1e-5)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides a comparison, except the topologies and the arrays of the data.

    Attributes:
        data: name or path of the data set, or of the task.
        hidden: neurons of the hidden layer of the model of two layers; None for another model.
        epochs: of a run.
        steps: of a run, in place of epochs.
        evaluate_every: see `train`; by default at the end of a run of steps.
        flops: of a run, in place of steps: each model trains as many steps as they pay for.
        seconds: the same, of the time of its training steps alone.
        search_rows: rows of the training data that the learning-rate search sees, None for all.
        batch_size: rows of a step.
        optimizer: see `train`.
        schedule: see `train`.
        warmup: see `train`.
        weight_decay: see `train`.
        weight_norm: see `train`.
        lr: a number, or "auto".
        precision: see `train`.
        device: see `train`.
        budgets: one table each.
        budget_of: "params", "macs", "bytes" or "step_ms": what the budgets count.
        seeds: how many, from 0.
        jobs: processes that train at once; "ray", or "ray://HOST:PORT".
        head: "network" or "dense": the last layer of every model.
        backends: names; the first one searches the learning rates.

    Raises:
        TN4NNError: a value out of range, or an unknown name.
    """

    data: str
    hidden: int | None
    epochs: int
    search_rows: int | None
    batch_size: int
    optimizer: str
    lr: float | str
    precision: str
    device: str | None
    budgets: tuple[float, ...]
    budget_of: str
    seeds: int
    jobs: int | str
    head: str
    backends: tuple[str, ...]
    steps: int | None = None
    evaluate_every: int | None = None
    flops: float | None = None
    seconds: float | None = None
    schedule: str = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    weight_norm: bool = False

    def __post_init__(self) -> None:
        if self.hidden is not None:
            object.__setattr__(self, "hidden", checked_size(self.hidden, "hidden"))
        if self.search_rows is not None:
            object.__setattr__(self, "search_rows", checked_size(self.search_rows, "search_rows"))
        one_of(self.optimizer, OPTIMIZERS, "optimizer")
        one_of(self.precision, PRECISIONS, "precision")
        _check_jobs(self.jobs)
        at_least(1, seeds=self.seeds, epochs=self.epochs, batch_size=self.batch_size)
        if not (self.lr == "auto" or (isinstance(self.lr, int | float) and self.lr > 0)):
            raise TN4NNError(f"lr must be 'auto' or a number above 0, received {self.lr!r}")
        if self.head not in ("network", "dense"):
            raise TN4NNError(f"head must be 'network' or 'dense', received {self.head!r}")
        given = [name for name in ("steps", "flops", "seconds") if getattr(self, name) is not None]
        if len(given) > 1:
            raise TN4NNError(f"a run has one length: give one of steps=, flops=, seconds=, received {', '.join(given)}")
        for name in given:
            if not getattr(self, name) > 0:
                raise TN4NNError(f"{name} must be above 0, received {getattr(self, name)!r}")
        for name in self.backends:
            backend(name)

    @property
    def macs_batch(self) -> int | None:
        """The batch size for which a budget of multiply-adds is counted; None for a budget of parameters."""
        return self.batch_size if self.budget_of == "macs" else None

    @property
    def dtype(self) -> str:
        """Of the arithmetic, as plans call it."""
        return {"bf16": "bfloat16"}.get(self.precision, self.precision)

    def of_training(self) -> dict[str, Any]:
        """What decides the result of one cell. The keys of stored rows are hashes of it: order matters."""
        names = (
            "data", "hidden", "epochs", "search_rows", "batch_size", "optimizer", "lr", "precision", "device", "steps",
            "evaluate_every", "flops", "seconds", "schedule", "warmup", "weight_decay",
        )  # fmt: skip
        found = {name: getattr(self, name) for name in names}
        return found | ({"weight_norm": True} if self.weight_norm else {})

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
            "learning_rate_bounds": [SMALLER_RATES[-1], LARGER_RATES[-1]] if self.lr == "auto" else None,
        }


def _check_jobs(jobs: int | str) -> None:
    if not isinstance(jobs, str):
        at_least(1, jobs=jobs)
    elif jobs != "ray" and not re.fullmatch(r"ray://[^/:\s]+(:\d+)?", jobs):
        raise TN4NNError(f"jobs: expected a whole number, 'ray', or 'ray://HOST:PORT' of a cluster, received {jobs!r}")


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


def checked_budgets(given: float | Sequence[float] | None, default: float, shares: bool = False) -> tuple[float, ...]:
    """The budgets, each once; with `shares` a number below 1 is one of the dense layers."""
    many = (default,) if given is None else (given,) if isinstance(given, int | float) else tuple(given)
    if not many:
        raise TN4NNError(f"no budgets to compare under: name some, or None for {default:,}")
    return tuple(dict.fromkeys(_budget(budget, shares) for budget in many))


def _budget(given: float, shares: bool) -> float:
    if shares and isinstance(given, float) and given > 0:
        return given
    return checked_budget(given, "weights")


def checked_backends(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The backends, each once (a name given twice would count its seeds twice); by default all that train."""
    named = [given] if isinstance(given, str) else given
    names = tuple(dict.fromkeys(named or [name for name in installed_backends() if name != "numpy"]))
    if not names:
        raise TN4NNError('no backend that trains is installed: pip install "tn4nn[torch]" or "tn4nn[jax]"')
    return names
