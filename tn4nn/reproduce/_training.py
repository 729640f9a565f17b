"""Experiments that train models: one unit for each (variant, seed), and the table of their accuracies."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import Dataset, Epoch, Layer, Run, load_data, train
from .._drawing.figure import dots, dress, panels
from .._model.backend import Trainer
from ._experiment import Line, Row, Settings, Unit, mean_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model under a name.

    Attributes:
        label: in the table.
        model: the layer graph.
        options: of `train`, over those of the recipe.
    """

    label: str
    model: Layer
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@functools.lru_cache(maxsize=2)
def dataset(name: str) -> Dataset:
    """A data set by name; "mnist-32" is MNIST in 32x32, zeros around."""
    base, _, side = name.rpartition("-")
    return load_data(base).padded(32) if side == "32" else load_data(name)


def units(
    variants: Sequence[Variant],
    data: str,
    recipe: Mapping[str, Any],
    settings: Settings,
    more: Callable[[Run], Mapping[str, Any]] | None = None,
) -> list[Unit]:
    """A unit for each seed and variant; `more` adds values of the finished run to its row."""
    return [
        Unit(
            {"variant": variant.label, "seed": seed},
            functools.partial(_trained, variant, data, recipe, settings, seed, more),
        )
        for seed in range(settings.seeds)
        for variant in variants
    ]


class _DivergedError(Exception):
    """The loss of an epoch is not finite: what follows cannot be."""


def _stop_when_diverged(epoch: Epoch, trainer: Trainer) -> None:
    if not math.isfinite(epoch.loss):
        raise _DivergedError


def _trained(
    variant: Variant,
    data: str,
    recipe: Mapping[str, Any],
    settings: Settings,
    seed: int,
    more: Callable[[Run], Mapping[str, Any]] | None,
    scratch: Path,
) -> dict[str, Any]:
    options = {**recipe, **variant.options}
    # Ranks that move are not in a checkpoint: such a unit starts again.
    checkpoint = None if "ranks" in options else scratch / "checkpoint.safetensors"
    try:
        run = train(
            variant.model,
            dataset(data),
            backend=settings.backend,
            device=settings.device,
            seed=seed,
            checkpoint=checkpoint,
            callback=_stop_when_diverged,
            **options,
        )
    except _DivergedError:
        model = variant.model
        return {"params": model.num_weights, "model_params": model.num_params, "accuracy": None, "diverged": True}
    return {
        "params": run.model.num_weights,
        "model_params": run.model.num_params,
        "accuracy": run.test_accuracy,
        "validation": run.accuracy,
        "loss": run.history[-1].loss,
        "by_epoch": [line.accuracy for line in run.history],
        "times": {"samples_per_s": round(run.samples_per_s)},
        **({} if more is None else more(run)),
    }


def significant(values: Iterable[float], digits: int = 6) -> list[float]:
    """Rounded for a file that people keep.

    Examples:
        >>> significant([1 / 3, 2e-9 / 3])
        [0.333333, 6.66667e-10]
    """
    return [float(f"{value:.{digits}g}") for value in values]


def of(rows: Sequence[Row], label: str, key: str = "accuracy") -> list[Any]:
    """The values of one variant, a seed each."""
    return [row[key] for row in rows if row["variant"] == label]


def accuracy_line(rows: Sequence[Row], label: str, what: str | None = None, **band: Any) -> Line:
    """Test accuracy of a variant at the last epoch."""
    return mean_line(what or label, of(rows, label), **band)


def draw_accuracies(figure: Figure, rows: Sequence[Row]) -> None:
    """Test accuracy of every variant, mean ± sd."""
    labels = list(dict.fromkeys(row["variant"] for row in rows))
    values = [[v for v in of(rows, label) if v is not None] or [float("nan")] for label in labels]
    [panel] = panels(figure, 1)
    dots(
        panel,
        labels,
        [statistics.fmean(v) for v in values],
        [statistics.stdev(v) if len(v) > 1 else None for v in values],
    )
    dress(panel, "test accuracy at the last epoch (%), mean ± sd over seeds", "")
