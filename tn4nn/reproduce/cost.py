"""E3: what the published layers cost in the papers' orders, with W built first, and planned."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import Network, installed_backends, presets
from .._base.clock import interleaved, ratio
from .._base.tables import markdown_table
from .._drawing.figure import COLOURS, INK, dress, legend, panels
from ._experiment import Experiment, Line, Row, Settings, Unit
from ._fixed_orders import ORDERS, Cell, calls, costs, names_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES, PHASES = (1, 100, 1000), ("forward", "train")
VGG_LAST = "VGG 4096 -> 10"


def layers() -> dict[str, Network]:
    """Every published layer under a name."""
    fc2 = presets.fc2(16).networks()
    lenet, vgg = presets.lenet5().networks(), presets.vgg16().networks()
    found = {f"FC2 784 -> 256, D = {d}": presets.fc2(d).networks()["0"] for d in (4, 16)}
    found |= {"FC2 256 -> 10": fc2["2"]}
    found |= {"LeNet-5 400 -> 120": lenet["conv3"], "LeNet-5 120 -> 84": lenet["fc1"], "LeNet-5 84 -> 10": lenet["fc2"]}
    found |= {"VGG 2048 -> 2048": vgg["conv5_1.1"], "VGG 512 -> 4096": vgg["fc1"], "VGG 4096 -> 4096": vgg["fc2"]}
    found |= {VGG_LAST: vgg["fc3"]}
    found |= {"WRN 16384 -> 16384": presets.wrn20_4().networks()["block3_3.body.2.1"]}
    found |= {"DenseNet 448 -> 10": presets.densenet40().networks()["fc"]}
    found |= {f"TNN 1024 -> 625, r = {r}": presets.tnn_novikov(r).networks()["0"] for r in (2, 8)}
    return found | {f"MPO + FC, chi = {chi}": presets.mpo_fc(chi).networks()["0"] for chi in (4, 16)}


_QUICK = ("FC2 784 -> 256, D = 16", "LeNet-5 400 -> 120", VGG_LAST, "TNN 1024 -> 625, r = 8")


def _measured(network: Network, backend: str, quick: bool, scratch: Path) -> dict[str, Any]:
    cells, times = {}, {}
    for batch in BATCHES:
        for phase in PHASES:
            cell = Cell(network, batch, phase, backend)
            found = costs(cell)
            runs = calls(cell, names_of(found))
            seconds = interleaved(runs, rounds=7 if quick else 15, most_s=1.0 if quick else 3.0)
            times[cell.name] = {
                "seconds": {order: statistics.median(taken) for order, taken in seconds.items()},
                "ours_over": {
                    order: ratio(seconds["ours"], taken) for order, taken in seconds.items() if order != "ours"
                },
            }
            cells[cell.name] = found
    return {"cells": cells, "times": {"cells": times}}


def _units(settings: Settings) -> list[Unit]:
    there = [settings.backend] if settings.quick else [n for n in ("torch", "jax") if n in installed_backends()]
    return [
        Unit({"layer": name, "backend": backend}, functools.partial(_measured, network, backend, settings.quick))
        for backend in there
        for name, network in layers().items()
        if name in _QUICK or not settings.quick
    ]


def _best_fixed(cell: Row) -> str | None:
    """The fixed order that ours compares worst with; None where all are too large to be run."""
    over: dict[str, Sequence[float]] = cell["ours_over"]
    return max((order for order in over if order in ORDERS), key=lambda order: over[order][1], default=None)


def _cells(rows: Sequence[Row], backend: str) -> list[Row]:
    return [cell for row in rows if row["backend"] == backend for cell in row["times"]["cells"].values()]


def _lines(rows: Sequence[Row]) -> list[Line]:
    looks: dict[str, Any] = {"unit": "", "digits": 2}
    found = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        cells = _cells(rows, backend)
        against = [cell["ours_over"][best] for cell in cells if (best := _best_fixed(cell)) is not None]
        # Slower beyond the clock's noise: three quarters of the rounds say so.
        slower = sum(low > 1 for low, _, _ in against)
        name = f"{backend}: of {len(against)} cells, ours is slower than the best fixed order in"
        found.append(Line(name, float(slower), high=0, unit="", digits=0))
        geometric = statistics.geometric_mean(middle for _, middle, _ in against)
        found.append(Line(f"{backend}: time of ours over the best fixed order, geometric mean", geometric, **looks))
        dense = [cell["ours_over"]["dense"][1] for cell in cells if "dense" in cell["ours_over"]]
        found.append(
            Line(f"{backend}: time of ours over dense, geometric mean", statistics.geometric_mean(dense), **looks)
        )
    last = [row["cells"]["batch 100, forward"] for row in rows if row["layer"] == VGG_LAST]
    fewer = last[0]["left to right"]["macs"] / last[0]["ours"]["macs"] if last else None
    found.append(
        Line(f"{VGG_LAST}: multiply-adds left to right over ours, batch 100", fewer, low=10, unit="x", digits=1)
    )
    return found


def _text(rows: Sequence[Row]) -> list[str]:
    table = []
    for row in rows:
        for name in ("batch 1, forward", "batch 100, train", "batch 1000, train"):
            costs_of, over = row["cells"][name], row["times"]["cells"][name]["ours_over"]
            shown = [f"{1 / over[order][1]:.2g}x" if order in over else "–" for order in (*ORDERS, "dense")]
            work = [f"{costs_of['left to right'][of] / costs_of['ours'][of]:.2g}x" for of in ("macs", "bytes")]
            table.append([row["layer"], row["backend"], name, *work, *shown])
    head = (
        "layer", "backend", "batch, phase", "MACs, left to right", "bytes, left to right", "time, left to right",
        "right to left", "W first", "dense",
    )  # fmt: skip
    worst, where = max(
        (cell["ours_over"][best][1], f"{row['layer']}, {row['backend']}, {name}, against {best}")
        for row in rows
        for name, cell in row["times"]["cells"].items()
        if (best := _best_fixed(cell)) is not None
    )
    return [
        "Multiply-adds, bytes moved and times over those of ours; of times the medians of the ratios "
        "within the rounds: above 1x, ours needs less. – : too large to be run.",
        markdown_table(head, table),
        f"The cell where ours compares worst: {worst:.2f} of the time of the best fixed order ({where}).",
    ]


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    both = panels(figure, len(backends), sharey=True)
    for panel, backend in zip(both, backends, strict=True):
        group = [row for row in rows if row["backend"] == backend]
        for index, order in enumerate((*ORDERS, "dense")):
            for place, row in enumerate(group):
                over = [cell["ours_over"] for cell in row["times"]["cells"].values()]
                values = [1 / one[order][1] for one in over if order in one]
                x = [place + (index - 1.5) * 0.18] * len(values)
                panel.plot(x, values, "_", color=INK if order == "dense" else COLOURS[index], markersize=6)
            panel.plot([], [], "_", color=INK if order == "dense" else COLOURS[index], markersize=9, label=order)
        panel.axhline(1, color=INK, linewidth=1)
        panel.set_yscale("log")
        panel.set_xticks(range(len(group)), [row["layer"] for row in group], rotation=60, ha="right")
        dress(panel, "", "time / time of ours" if panel is both[0] else "", f"{backend}: 6 cells a layer")
        panel.tick_params(labelsize=7)
    legend(both[0], ncols=4, loc="upper left")


EXPERIMENT = Experiment(
    name="cost",
    title="What the published layers cost",
    source="the claim of low computational cost in Harada 2022; shapes of Gao et al. 2020 and Novikov et al. 2015",
    about=(
        "Every published layer, batch 1, 100 and 1000, forward and training step (gradients of the input and of all "
        "cores), one thread: in the papers' order from left to right, from right to left, with W built first (each "
        "step one tensordot of the framework, compiled by jax), dense, and as tn4nn runs it. Interleaved rounds; a "
        "cell counts as slower where the lower quartile of the ratios within the rounds is above 1."
    ),
    finding=(
        "In torch, a training step takes {torch: time of ours over the best fixed order, geometric mean} of the time "
        "of the best fixed order and {torch: time of ours over dense, geometric mean} of the time of dense, in the "
        "geometric mean over 94 layers and batches."
    ),
    cost="12 min",
    quick_cost="30 s",
    units=_units,
    lines=_lines,
    uses=("torch", "jax"),
    seeds=1,
    recipe={"batches": BATCHES, "phases": PHASES},
    text=_text,
    draw=_draw,
)
