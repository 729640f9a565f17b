"""Does one learning rate serve every topology, from 2 to 16 sites?"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import BudgetError, Linear, Network, ReLU, TopologyError, build, catalogue, presets, train
from .. import Sequential as Model
from .._base.seeds import rng_for
from .._base.tables import markdown_table
from .._drawing.figure import dress, legend, panels, style
from ._experiment import Experiment, Line, Row, Settings, Unit
from ._training import dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS, PIXELS, HIDDEN, CLASSES = (4096, 64, 4), 784, 256, 10
SITES, RANKS = (2, 4, 8, 12, 16), (1, 6, 64)
FIRST_RATES, FIRST_STEPS, FIRST_BATCH = (1e-3, 1e-2), 48, 50
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
NOISE = 0.17  # points: standard error of an accuracy of 97 % on 10,000 images
RECIPE: dict[str, Any] = {"epochs": 2, "batch_size": 100}
WEIGHTS = 4000
NETWORKS = {
    "dense": ("dense", 0), "low_rank": ("low_rank", 0), "mpo, 2 sites": ("mpo", 2), "mpo, 4 sites": ("mpo", 4),
    "mpo, 8 sites": ("mpo", 8), "ring, 4 sites": ("ring", 4), "ring, 8 sites": ("ring", 8),
    "tree, 4 sites": ("tree", 4), "tree, 8 sites": ("tree", 8), "peps": ("peps", 0), "mera": ("mera", 0),
    "tucker": ("tucker", 0), "cp": ("cp", 0),
}  # fmt: skip
SGD_RATES, SGD_RANKS, SGD_TRIES, SGD_STEPS = (0.8, 0.4, 0.2), (4, 10, 16), 3, 100  # of `fc2-paper`, which diverges
WORST = 1.5  # times the largest loss of the dense layer that is accepted
QUICK = ("low_rank", "mpo", "tree", "mera")


# -- the first steps ------------------------------------------------------------------------------------------------


def starts(names: Sequence[str], ranks: Sequence[int]) -> dict[str, Network]:
    """Every topology at every number of sites and rank that it can have with fewer weights than the dense layer."""
    found: dict[str, Network] = {}
    for name in names:
        for sites in SITES:
            for rank in ranks:
                try:
                    network = build(name, *WIDTHS[:2], sites=sites).with_rank(rank)
                except (TopologyError, BudgetError):
                    continue
                if rank > min(ranks) and not network.topology.bonds:
                    continue
                if len(network.topology.cores) > 1 and network.num_params <= WIDTHS[0] * WIDTHS[1]:
                    # Not every topology has as many cores as sites; some are the same at each number of them.
                    found[f"{name}, {len(network.topology.cores)} cores, rank {rank}"] = network
    return found


def largest_losses(network: Network | None, settings: Settings, seed: int) -> list[float]:
    """The largest loss of the first steps of Adam at each rate, on random rows and labels of a linear teacher."""
    rows, width, classes = 8 * FIRST_BATCH, WIDTHS[0], WIDTHS[2]
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    y = (x @ rng.standard_normal((width, classes))).argmax(axis=1)
    first = Linear(*WIDTHS[:2]) if network is None else Linear(network)
    model = Model(first, ReLU(), Linear(*WIDTHS[1:]))
    found = []
    for lr in FIRST_RATES:
        run = train(
            model, (x, y), backend=settings.backend, device=settings.device, seed=seed, lr=lr, schedule="constant",
            epochs=FIRST_STEPS * FIRST_BATCH // rows, batch_size=FIRST_BATCH, validation=None,
        )  # fmt: skip
        found.append(float(np.max(run.losses)))
    return found


def _start(network: Network, settings: Settings, scratch: Path) -> dict[str, Any]:
    dense = _dense_losses(settings)
    ours = [largest_losses(network, settings, seed) for seed in range(settings.seeds)]
    ratios = [
        max(loss[i] / reference[i] for loss, reference in zip(ours, dense, strict=True))
        for i in range(len(FIRST_RATES))
    ]
    return {"ratios": [ratio if math.isfinite(ratio) else None for ratio in ratios]}


@functools.cache
def _dense_losses(settings: Settings) -> list[list[float]]:
    return [largest_losses(None, settings, seed) for seed in range(settings.seeds)]


# -- the best rate --------------------------------------------------------------------------------------------------


def _trained(label: str, lr: float, settings: Settings, seed: int, scratch: Path) -> dict[str, Any]:
    name, sites = NETWORKS[label]
    topology = build(name, PIXELS, HIDDEN, sites=sites) if sites else build(name, PIXELS, HIDDEN)
    network = topology.with_budget(params=WEIGHTS) if topology.bonds else topology.with_rank(1)
    run = train(
        Model(Linear(network), ReLU(), Linear(HIDDEN, CLASSES)), dataset("mnist"), backend=settings.backend,
        device=settings.device, seed=seed, lr=lr, **RECIPE,
    )  # fmt: skip
    finite = math.isfinite(run.history[-1].loss)
    return {"params": network.num_params, "accuracy": run.test_accuracy if finite else None, "validation": run.accuracy}


# -- plain SGD ------------------------------------------------------------------------------------------------------


def _sgd(rank: int, lr: float, settings: Settings, scratch: Path) -> dict[str, Any]:
    """Whether the first steps of FC2 by SGD diverge, for some seeds."""
    model, data, diverged = presets.fc2(rank, bias=False), dataset("mnist"), 0
    for seed in range(SGD_TRIES):
        rows = rng_for(seed, "tries").permutation(len(data.x_train))[: 100 * SGD_STEPS]
        run = train(
            model, (data.x_train[rows], data.y_train[rows]), backend=settings.backend, device=settings.device,
            seed=seed, epochs=1, batch_size=100, validation=None, lr=lr, optimizer="sgd", momentum=0.0,
            schedule="constant", weight_decay=1e-4,
        )  # fmt: skip
        diverged += not math.isfinite(run.losses[-1])
    return {"diverged": diverged}


def _units(settings: Settings) -> list[Unit]:
    names = QUICK if settings.quick else [name for name in catalogue() if name != "dense"]
    found = [
        Unit({"start": label}, functools.partial(_start, network, settings))
        for label, network in starts(names, (6,) if settings.quick else RANKS).items()
    ]
    found += [
        Unit({"sgd": rank, "lr": lr}, functools.partial(_sgd, rank, lr, settings))
        for rank in SGD_RANKS
        for lr in SGD_RATES
    ]
    labels = ("dense", "mpo, 4 sites") if settings.quick else tuple(NETWORKS)
    return found + [
        Unit({"network": label, "lr": lr, "seed": seed}, functools.partial(_trained, label, lr, settings, seed))
        for label in labels
        for lr in RATES
        for seed in range(settings.seeds)
    ]


def _accuracies(rows: Sequence[Row], label: str) -> dict[float, float]:
    """Mean test accuracy at each rate; 0 where a run diverged."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row.get("network") == label:
            found.setdefault(row["lr"], []).append(row["accuracy"] or 0.0)
    return {lr: statistics.fmean(values) for lr, values in found.items()}


def _best(rows: Sequence[Row], label: str, near: float | None = None) -> float | None:
    """The best rate; with `near`, of all rates that are as good within noise the one nearest to it."""
    accuracies = _accuracies(rows, label)
    if near is None or not accuracies:
        return max(accuracies, key=lambda lr: accuracies[lr], default=None)
    good = [lr for lr in accuracies if accuracies[lr] >= max(accuracies.values()) - NOISE]
    return min(good, key=lambda lr: abs(math.log(lr / near)))


def _lines(rows: Sequence[Row]) -> list[Line]:
    found = []
    for i, lr in enumerate(FIRST_RATES):
        ratios = [row["ratios"][i] for row in rows if "start" in row]
        worst = max((math.inf if ratio is None else ratio for ratio in ratios), default=None)
        what = f"largest loss of {FIRST_STEPS} steps over dense's, the worst of {len(ratios)} networks, lr {lr:g}"
        found.append(Line(what, worst, high=WORST, unit="times"))
    dense = _best(rows, "dense")
    for label in NETWORKS:
        best = _best(rows, label, dense)
        if best is not None and dense is not None:
            what = f"{label}: best rate, within noise, over dense's best, {dense:g}"
            band: dict[str, Any] = {} if label == "dense" else {"low": 0.5, "high": 2.0}
            found.append(Line(what, best / dense, unit="times", **band))
    for lr in SGD_RATES:
        counts = [row["diverged"] for row in rows if "sgd" in row and row["lr"] == lr]
        what = f"FC2 by plain SGD, lr {lr}: diverged within {SGD_STEPS} steps, of {SGD_TRIES * len(counts)} tries"
        found.append(Line(what, float(sum(counts)) if counts else None, high=0, unit="", digits=0))
    return found


def _text(rows: Sequence[Row]) -> list[str]:
    table = []
    for label in NETWORKS:
        accuracies = _accuracies(rows, label)
        if accuracies:
            params = next(row["params"] for row in rows if row.get("network") == label)
            table.append([label, f"{params:,}", *(f"{accuracies[lr]:.2f}" for lr in RATES if lr in accuracies)])
    first: dict[str, list[list[float]]] = {}
    for row in rows:
        if "start" in row:
            name = row["start"].partition(",")[0]
            first.setdefault(name, []).append([math.inf if ratio is None else ratio for ratio in row["ratios"]])
    worst = [
        [name, len(ratios), *(f"{max(each):.2f}" for each in zip(*ratios, strict=True))]
        for name, ratios in first.items()
    ]
    return [
        "Test accuracy (%) on MNIST at each rate, mean over seeds:",
        markdown_table(("first layer", "its weights", *(f"{lr:g}" for lr in RATES)), table),
        f"Largest loss of the first {FIRST_STEPS} steps, as a multiple of the dense layer's: the worst number of "
        "sites, rank and seed.",
        markdown_table(("first layer", "networks", *(f"lr {lr:g}" for lr in FIRST_RATES)), worst),
    ]


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    [panel] = panels(figure, 1)
    for index, label in enumerate(NETWORKS):
        accuracies = _accuracies(rows, label)
        if accuracies:
            lrs = sorted(accuracies)
            errors = [100 - accuracies[lr] for lr in lrs]
            panel.loglog(lrs, errors, label=label, linestyle="-" if index < 6 else "--", **style(index))
    panel.set_xticks(RATES, [f"{lr:g}" for lr in RATES])
    panel.minorticks_off()
    dress(panel, "learning rate", "test error (%)", "")
    legend(panel, ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))


EXPERIMENT = Experiment(
    name="learning-rates",
    title="One learning rate for every topology",
    source="tn4nn: the factors of `Network.lr_factors`",
    about=(
        "Adam with structure-aware learning rates. First, 4096 -> 64 -> 4 on random rows, batch 50: the largest loss "
        "of the first 48 steps, for the whole catalogue at 2 to 16 sites and ranks 1, 6 and 64 (all with fewer weights "
        "than the dense layer). Then 784 -> 256 -> 10 on MNIST, two epochs, the first layer with 4,000 weights: the "
        "best of seven rates, a factor of 2 apart, for each topology. Rates whose accuracy is at most 0.17 points "
        "below the best, the standard error of such an accuracy, are as good; of these the one nearest to dense's best "
        "counts. Last, FC2 at D = 4, 10 and 16 by plain SGD, with the factors of SGD: at one rate for all cores, "
        "`fc2-paper`, most of these tries diverge."
    ),
    finding=(
        "At dense's learning rate, the largest loss of any of 116 networks in 48 steps is {largest loss of 48 steps "
        "over dense's, the worst of 116 networks, lr 0.001} that of dense at 0.001 and {largest loss of 48 steps "
        "over dense's, the worst of 116 networks, lr 0.01} at 0.01. Dense's best rate, and how many times as large "
        "that of an MPO of 8 sites is: {mpo, 8 sites: best rate, within noise, over dense's best}."
    ),
    cost="25 min",
    quick_cost="2 min",
    units=_units,
    lines=_lines,
    seeds=2,
    data=("mnist",),
    recipe={**RECIPE, "rates": RATES, "first_rates": FIRST_RATES, "steps": FIRST_STEPS, "weights": WEIGHTS},
    text=_text,
    draw=_draw,
)
