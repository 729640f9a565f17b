"""E9: TensorNet of Novikov et al."""

from __future__ import annotations

from collections.abc import Sequence

from .. import presets
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import Variant, draw_accuracies, of, units

RECIPE = {"epochs": 15, "batch_size": 100, "lr": 8e-3}


def _units(settings: Settings) -> list[Unit]:
    variants = [Variant(f"r = {r}", presets.tnn_novikov(r)) for r in ((8,) if settings.quick else (2, 8))]
    return units(variants, "mnist-32", RECIPE, settings)


def _error(rows: Sequence[Row], label: str, **band: object) -> Line:
    values = [None if accuracy is None else 100 - accuracy for accuracy in of(rows, label)]
    return mean_line(f"test error, {label}", values, **band)


def _lines(rows: Sequence[Row]) -> list[Line]:
    return [
        _error(rows, "r = 8", high=2.3, published="1.8 to 1.9 % (test error, best of the paper)"),
        _error(rows, "r = 2"),
    ]


EXPERIMENT = Experiment(
    name="tnn",
    title="Tensorizing neural networks",
    source="Novikov et al. 2015 (arXiv:1509.06569)",
    about=(
        "MNIST in 32x32: a TT-matrix (4, 8, 8, 4) -> (5, 5, 5, 5) of 5,440 weights at rank 8 instead of a dense "
        "layer of 640,000, then dense 625 -> 10. Adam, cosine, 15 epochs, lr 8e-3."
    ),
    finding=(
        "The network of Novikov et al. has a test error of {test error, r = 8} at rank 8 and {test error, r = 2} at "
        "rank 2."
    ),
    cost="2 min",
    quick_cost="30 s",
    units=_units,
    lines=_lines,
    data=("mnist",),
    recipe=RECIPE,
    draw=draw_accuracies,
)
