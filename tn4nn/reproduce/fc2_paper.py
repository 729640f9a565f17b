"""E1b: FC2 by the paper's own recipe, and how often it diverges."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import Layer, presets, train
from .._base.seeds import rng_for
from .._base.tables import markdown_table
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import Variant, accuracy_line, dataset, draw_accuracies, of, units

# L2 of 1e-4 * sum w^2 / 2 adds 1e-4 * w to the gradient.
RECIPE: dict[str, Any] = {
    "batch_size": 100, "optimizer": "sgd", "momentum": 0.0, "schedule": ("exponential", 0.99), "weight_decay": 1e-4,
    "lr_factors": "none",
}  # fmt: skip
EPOCHS, STEPS = 500, 100
DIMENSIONS, TRIES = (4, 10, 16), 3
RATES = (0.8, 0.4, 0.2)
PAPER, OURS, EVEN = "the paper's init", "our init", "all cores of one variance, W 0.3 times as large"


def xavier(model: Layer, seed: int) -> dict[str, Any]:
    """Xavier normal for each core of an MPO, as the paper's code draws it: the core as a matrix from (left bond, input
    mode) to (output mode, right bond)."""
    weights: dict[str, Any] = {}
    for layer, network in model.networks().items():
        sizes, before = network.sizes, set()
        for core in network.topology.cores:
            summed = [leg for leg in core.legs if leg in network.topology.inputs or leg in before]
            rows = math.prod(sizes[leg] for leg in summed)
            columns = math.prod(network.shapes[core.name]) // rows
            drawn = rng_for(seed, "xavier", layer, core.name).standard_normal(network.shapes[core.name])
            weights[f"{layer}.{core.name}"] = (drawn * math.sqrt(2 / (rows + columns))).astype(np.float32)
            before |= set(core.legs)
    return weights


def even(model: Layer, seed: int) -> dict[str, Any]:
    """Our init with one variance for all cores of a layer, which makes the changes of W in one step smallest, and a W
    of 0.3 times the size: what else might make the rate bearable."""
    weights = dict(model.init(seed))
    for layer, network in model.networks().items():
        names = [f"{layer}.{core.name}" for core in network.topology.cores]
        spreads = [float(np.std(weights[name])) for name in names]
        common = (0.3 * math.prod(spreads)) ** (1 / len(names))
        for name, spread in zip(names, spreads, strict=True):
            weights[name] = (weights[name] * (common / spread)).astype(np.float32)
    return weights


INITS: dict[str, Callable[[Layer, int], dict[str, Any]] | None] = {PAPER: xavier, OURS: None, EVEN: even}


def _tries(init: str, d: int, lr: float, settings: Settings, scratch: Path) -> dict[str, Any]:
    """The first steps of some seeds: the loss of the last one, None where it is not finite."""
    model, data = presets.fc2(d, bias=False), dataset("mnist")
    losses, drawn = [], INITS[init]
    for seed in range(TRIES):
        rows = rng_for(seed, "tries").permutation(len(data.x_train))[: STEPS * RECIPE["batch_size"]]
        run = train(
            model, (data.x_train[rows], data.y_train[rows]), backend=settings.backend, device=settings.device,
            seed=seed, epochs=1, validation=None, lr=lr, weights=drawn and drawn(model, seed),
            **RECIPE,
        )  # fmt: skip
        losses.append(float(run.losses[-1]))
    return {"losses": losses, "diverged": sum(not math.isfinite(loss) for loss in losses)}


def _units(settings: Settings) -> list[Unit]:
    tries = [
        Unit({"init": init, "D": d, "lr": lr}, functools.partial(_tries, init, d, lr, settings))
        for init in INITS
        for lr in RATES
        for d in DIMENSIONS
    ]
    if settings.quick:
        return tries
    variants = [
        Variant(f"{name}, lr {lr}", presets.fc2(16, dense=name == "dense", bias=False), {"lr": lr})
        for name in ("D = 16", "dense")
        for lr in RATES[:2]
    ]
    return [*tries, *units(variants, "mnist", {**RECIPE, "epochs": EPOCHS}, settings)]


def _trained(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "variant" in row]


def _lines(rows: Sequence[Row]) -> list[Line]:
    found = []
    for init in INITS:
        for lr in RATES:
            counts = [row["diverged"] for row in rows if row.get("init") == init and row["lr"] == lr]
            band: dict[str, Any] = {"high": 0} if (init, lr) == (OURS, 0.8) else {}
            what = f"diverged within {STEPS} steps, of {TRIES * len(DIMENSIONS)} tries: lr {lr}, {init}"
            found.append(Line(what, float(sum(counts)), unit="", digits=0, **band))
    trained = _trained(rows)
    for lr in RATES[:2]:
        found += [accuracy_line(trained, f"{name}, lr {lr}") for name in ("D = 16", "dense") if trained]
        pairs = zip(of(trained, f"dense, lr {lr}"), of(trained, f"D = 16, lr {lr}"), strict=False)
        gap = [None if None in pair else pair[0] - pair[1] for pair in pairs]
        found.append(mean_line(f"dense minus D = 16, lr {lr}", gap, high=0.4, unit="points"))
    return found


def _text(rows: Sequence[Row]) -> list[str]:
    table = []
    for row in rows:
        if "init" in row:
            losses = ", ".join("diverged" if loss is None else f"{loss:.2f}" for loss in row["losses"])
            table.append([row["lr"], row["init"], row["D"], losses])
    return [markdown_table(("lr", "init", "D", "loss after the last step, each try"), table)]


def _draw(figure: Any, rows: Sequence[Row]) -> None:
    trained = _trained(rows)
    if trained:
        draw_accuracies(figure, trained)


EXPERIMENT = Experiment(
    name="fc2-paper",
    title="FC2 by the paper's recipe",
    source="Gao et al. 2020 (arXiv:1904.06194), recipe as in its released code",
    about=(
        "Plain SGD, lr 0.8 times 0.99 each epoch, batch 100, L2 of 1e-4, no biases, one rate for all cores. First, "
        "how many of nine tries (D = 4, 10, 16, three seeds each) diverge in the first 100 steps, by the paper's "
        "Xavier normal for each core, by our init, and by a smaller and more even one; a try has diverged when its "
        "loss is not finite. Then D = 16 and dense over 500 epochs."
    ),
    finding=(
        "By the paper's recipe, SGD at a learning rate of 0.8, {diverged within 100 steps, of 9 tries: lr 0.8, our "
        "init} of 9 runs diverge from our initial weights and {diverged within 100 steps, of 9 tries: lr 0.8, the "
        "paper's init} from the paper's. At 0.4 the MPO ends {dense minus D = 16, lr 0.4} below dense."
    ),
    cost="2 h",
    quick_cost="25 s",
    units=_units,
    lines=_lines,
    data=("mnist",),
    recipe={**RECIPE, "epochs": EPOCHS, "steps": STEPS, "rates": RATES},
    text=_text,
    draw=_draw,
)
