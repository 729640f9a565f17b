"""A small vision transformer on Fashion-MNIST: topologies in its layers against dense and thinner dense ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import classification, load_data, presets
from .._training.tasks import Task
from . import _models
from ._experiment import Experiment, Line, Row, Settings, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH, STEPS, WIDTH, TOKENS = 100, 1_500, 64, 16
RECIPE = _models.Recipe(
    model=functools.partial(presets.vit, layers=4, heads=4, patch=7),
    width=WIDTH,
    widths=(32, 48, 64, 96, 128),
    where=("blocks.*",),
    steps=STEPS,
    training={"batch_size": BATCH, "optimizer": "adamw", "warmup": 100, "lr": "auto"},
)
FLOPS = 6.0 * STEPS * BATCH * TOKENS * (4 * 12 * WIDTH**2 + 49 * WIDTH + 4 * 2 * TOKENS * WIDTH)


def _task() -> Task:
    return classification(load_data("fashion-mnist"))


def _units(settings: Settings) -> list[Unit]:
    return _models.units(RECIPE, _task, FLOPS, settings)


def _lines(rows: Sequence[Row]) -> list[Line]:
    found = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        found.append(_models.line(rows, "dense", 0.25, backend, low=86.0, high=91.0))
        found.append(_models.line(rows, "narrow", 0.25, backend, low=84.0, high=90.0))
        found += [
            _models.gain_line(rows, topology, 0.25, backend, less=False, unit="points")
            for topology in ("mpo", "btt", "tree", "low_rank")
        ]
        found += _models.ladder_lines(rows, backend, less=False)
    return found


def _text(rows: Sequence[Row]) -> list[str]:
    return _models.tables(rows, less=False, digits=2)


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    _models.draw(figure, rows, "test accuracy (%)")


EXPERIMENT = Experiment(
    name="vit",
    title="Topologies in a small vision transformer",
    source="tn4nn; the data of Xiao et al. 2017 (arXiv:1708.07747)",
    about=(
        "Fashion-MNIST, patches of 7x7, 4 blocks of width 64, batch 100, AdamW, cosine with 100 steps of warmup. All "
        "matrices of the blocks take each topology in turn, at 1/2, 1/4 and 1/8 of their weights, for 1,500 steps; "
        "beside them dense, and narrow: the same architecture thinner, with as many weights in these layers. Then all "
        "of them on a ladder of widths, each trained for the compute of the dense run. Learning rates by successive "
        "halving, the same effort for all."
    ),
    finding=(
        "At a quarter of the layers' weights and after equal steps, the accuracy of an MPO is {torch: mpo better "
        "than narrow, at 0.25 of the weights} above that of the thinner dense model, low rank's {torch: low_rank "
        "better than narrow, at 0.25 of the weights}."
    ),
    cost="a night, both backends",
    quick_cost="25 min",
    units=_units,
    lines=_lines,
    data=("fashion-mnist",),
    uses=("torch", "jax"),
    recipe={**RECIPE.plain(), "flops": FLOPS},
    text=_text,
    draw=_draw,
    partial=True,
)
