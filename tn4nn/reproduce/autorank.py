"""E7: ranks that move during training against the best equal rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import AutoRank, Linear, ReLU, Run, Topology, grow, presets, with_budget
from .. import Sequential as Model
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import Variant, accuracy_line, dataset, draw_accuracies, of, units

BUDGETS = (2_000, 5_000, 15_000)
RECIPE = {"epochs": 6, "batch_size": 100, "lr": 8e-3}
STRATEGIES = ("equal ranks", "moving ranks", "ranks of the budget")


def _topologies() -> tuple[Topology, Topology]:
    first, last = (net.topology for net in presets.fc2().networks().values())
    return first, last


def uniform(budget: int) -> Model:
    """The largest equal rank on all bonds of the first layer that fits, lowered where a bond can use no more; the
    second layer has the published rank 4 or that one, whichever is less."""
    first, last = _topologies()
    fitting = None
    for rank in range(1, 64):
        pair = first.with_rank(rank, clip=True), last.with_rank(min(rank, 4), clip=True)
        if sum(net.num_params for net in pair) > budget:
            break
        fitting = Model(Linear(pair[0]), ReLU(), Linear(pair[1]))
    assert fitting is not None
    return fitting


def _variants(budget: int) -> list[Variant]:
    first, last = _topologies()
    filled = with_budget(Model(Linear(first), ReLU(), Linear(last)), params=budget, count="networks")
    assert isinstance(filled, Model)
    models = (uniform(budget), uniform(budget), filled)
    options: tuple[dict[str, Any], ...] = ({}, {"ranks": AutoRank(params=budget)}, {})
    return [
        Variant(f"{budget:,}, {strategy}", model, extra)
        for strategy, model, extra in zip(STRATEGIES, models, options, strict=True)
    ]


def _final(run: Run) -> dict[str, Any]:
    return {"ranks": {layer: dict(net.ranks) for layer, net in run.model.networks().items()}}


def _growth(scratch: Path) -> dict[str, Any]:
    """The change of the loss by growing every bond by half, in float64, over 1,000 test images."""
    model, data = uniform(5_000), dataset("mnist")
    x, y = data.x_test[:1000], data.y_test[:1000]
    before = model.init(0)
    grown: dict[str, Any] = {}
    layers = []
    for layer, net in model.networks().items():
        cores = {name: before[f"{layer}.{name}"] for name in net.shapes}
        larger, weights = grow(net, cores, {bond: rank + max(1, rank // 2) for bond, rank in net.ranks.items()})
        grown |= {f"{layer}.{name}": array for name, array in weights.items()}
        grown[f"{layer}.bias"] = before[f"{layer}.bias"]
        layers.append(Linear(larger))
    after = Model(layers[0], ReLU(), layers[1])
    losses = [_cross_entropy(m.build("numpy", w)(x), y) for m, w in ((model, before), (after, grown))]
    return {"change": abs(losses[1] - losses[0]), "params": [model.num_weights, after.num_weights]}


def _cross_entropy(logits: Any, y: Any) -> float:
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(y)), y]))


def _units(settings: Settings) -> list[Unit]:
    budgets = BUDGETS[1:2] if settings.quick else BUDGETS
    variants = [variant for budget in budgets for variant in _variants(budget)]
    growth = Unit({"what": "growth"}, _growth)
    return [growth, *units(variants, "mnist", RECIPE, settings, _final)]


def _lines(rows: Sequence[Row]) -> list[Line]:
    trained = [row for row in rows if "variant" in row]
    labels = list(dict.fromkeys(row["variant"] for row in trained))
    budgets = [budget for budget in BUDGETS if f"{budget:,}, {STRATEGIES[0]}" in labels]
    means = {label: accuracy_line(trained, label).ours or 0.0 for label in labels}
    won = sum(means[f"{budget:,}, {STRATEGIES[1]}"] >= means[f"{budget:,}, {STRATEGIES[0]}"] for budget in budgets)
    needed = 2 if len(budgets) == len(BUDGETS) else None
    changes = [row["change"] for row in rows if "change" in row]
    what = f"budgets of {len(budgets)} where moving ranks are as good as equal ones, or better"
    return [
        Line(what, float(won), low=needed, unit="", digits=0),
        mean_line("change of the loss by growing", changes, high=1e-6, unit="", digits=7),
        *(accuracy_line(trained, label, _what(trained, label)) for label in labels),
    ]


def _what(rows: Sequence[Row], label: str) -> str:
    params = of(rows, label, "params")
    return f"{label}, {min(params):,} weights" if min(params) == max(params) else f"{label}, up to {max(params):,}"


def _draw(figure: Any, rows: Sequence[Row]) -> None:
    draw_accuracies(figure, [row for row in rows if "variant" in row])


EXPERIMENT = Experiment(
    name="autorank",
    title="Ranks that move during training",
    source="this library: `tn.train(..., ranks=tn.AutoRank(params=))`",
    about=(
        "FC2 on MNIST under a budget of weights for both layers: every bond of the first layer at the largest equal "
        "rank that fits, ranks that move from there, and the ranks that `tn.with_budget` gives to begin with. Recipe "
        "as for `fc2`. Growing a bond must leave the function as it is."
    ),
    finding=(
        "Ranks that move during training are as good as equal ones at {budgets of 3 where moving ranks are as good "
        "as equal ones, or better} of 3 budgets; growing a bond changes the loss by {change of the loss by growing}."
    ),
    cost="5 min",
    quick_cost="30 s",
    units=_units,
    lines=_lines,
    data=("mnist",),
    # "cut": a bond is cut to the rank that it is to have; until then it was cut further, and grown again.
    recipe={**RECIPE, "budgets": BUDGETS, "cut": "once"},
    draw=_draw,
)
