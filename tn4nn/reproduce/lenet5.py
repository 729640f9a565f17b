"""E2: LeNet-5 with its three last layers as MPOs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .. import presets
from .._drawing.figure import dress, legend, panels, style
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import Variant, accuracy_line, of, units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECIPE = {"batch_size": 100, "lr": 1e-3}
EPOCHS = {True: 8, False: 60}  # by quick


def _units(settings: Settings) -> list[Unit]:
    variants = [Variant("MPO", presets.lenet5()), Variant("dense", presets.lenet5(dense=True))]
    recipe = {**RECIPE, "epochs": EPOCHS[settings.quick]}
    return units(variants[:1] if settings.quick else variants, "mnist", recipe, settings)


def _lines(rows: Sequence[Row]) -> list[Line]:
    epochs = len(rows[0]["by_epoch"])
    full = epochs == EPOCHS[False]
    published = "99.17 % ± 0.08 (best test epoch of 500, as the paper reports)"
    pairs = zip(of(rows, "dense"), of(rows, "MPO"), strict=False)
    return [
        accuracy_line(rows, "MPO", f"MPO, {epochs} epochs", low=98.9 if full else 98.4, published=published),
        accuracy_line(rows, "dense", f"dense, {epochs} epochs"),
        mean_line("dense minus MPO", [a - b for a, b in pairs], high=0.25 if full else None, unit="points"),
    ]


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    [panel] = panels(figure, 1)
    for index, name in enumerate(("MPO", "dense")):
        curves = of(rows, name, "by_epoch")
        if curves:
            mean = np.mean(np.array(curves, dtype=float), axis=0)
            panel.plot(range(1, len(mean) + 1), mean, label=name, **style(index))
    dress(panel, "epoch", "validation accuracy (%)", "LeNet-5 on MNIST, mean over seeds")
    panel.set_ylim(bottom=97)
    legend(panel, loc="lower right")


EXPERIMENT = Experiment(
    name="lenet5",
    title="LeNet-5",
    source="Gao et al. 2020 (arXiv:1904.06194)",
    about=(
        "LeNet-5 on MNIST, 2,860 weights instead of the 58,920 of its last three layers. Adam, cosine, lr 1e-3, "
        "batch 100; the paper's SGD over 500 epochs is not repeated."
    ),
    finding=(
        "LeNet-5 on MPOs reaches {MPO, 60 epochs} after 60 epochs of Adam and its dense twin {dense, 60 epochs}; the "
        "paper trains for 500 epochs."
    ),
    cost="75 min",
    quick_cost="90 s",
    units=_units,
    lines=_lines,
    data=("mnist",),
    recipe={**RECIPE, "epochs": [EPOCHS[True], EPOCHS[False]]},
    draw=_draw,
)
