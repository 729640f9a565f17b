"""E13: the embedded digits, on the networks of the command `tn4nn compare`."""

from __future__ import annotations

from collections.abc import Sequence

from .. import load_data
from .._comparison.topologies import candidates_for, model_for
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import Variant, accuracy_line, draw_accuracies, of, units

BUDGET = 600
RECIPE = {"epochs": 30, "batch_size": 64, "lr": 3e-2}


def _units(settings: Settings) -> list[Unit]:
    data = load_data("digits")
    names = ("mpo", "dense") if settings.quick else ("mpo", "tree", "ring", "low_rank", "dense")
    variants = [
        Variant(one.name, model_for(one, BUDGET, data.classes))
        for one in candidates_for(names, data, 64, None, "network")
    ]
    return units(variants, "digits", RECIPE, settings)


def _lines(rows: Sequence[Row]) -> list[Line]:
    names = list(dict.fromkeys(row["variant"] for row in rows))
    weights = [float(n) for n in of(rows, "mpo", "params")]
    return [
        accuracy_line(rows, "mpo", low=93.0),
        mean_line("mpo, weights of both layers", weights[:1], high=BUDGET, unit="", digits=0),
        *(accuracy_line(rows, name) for name in names if name != "mpo"),
    ]


EXPERIMENT = Experiment(
    name="digits",
    title="Digits at 600 weights",
    source="the data of this package's main job",
    about=(
        "64 -> 64 -> 10 on scikit-learn's 8x8 digits, both matrices on one topology within 600 weights, against a "
        "dense model of 4,736. Adam, cosine, 30 epochs."
    ),
    finding=(
        "At 600 weights an MPO classifies {mpo} of the test digits right and low rank {low_rank}; the dense model "
        "reaches {dense}."
    ),
    cost="30 s",
    quick_cost="5 s",
    units=_units,
    lines=_lines,
    data=("digits",),
    recipe={**RECIPE, "budget": BUDGET},
    draw=draw_accuracies,
)
