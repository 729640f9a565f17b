"""E8: topologies under one budget of parameters and under one of multiply-adds."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import Candidate, build, compare
from .._base.tables import markdown_table
from .._comparison.settings import LEARNING_RATES
from .._comparison.significance import level_with_best
from .._drawing.figure import GREY, dress, legend, panels, style
from ._experiment import Experiment, Line, Row, Settings, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMS, MACS = (1_000, 4_000, 15_000, 40_000), (20_000, 60_000)
DATA = ("mnist", "fashion-mnist")
HIDDEN, EPOCHS, BATCH, SEARCH_ROWS = 256, 2, 200, 12_000
FILL = 0.97
BASELINE = "low_rank"

# name -> (catalogue's name, sites); the layer is 784 -> 256.
TOPOLOGIES: dict[str, tuple[str, int | None]] = {
    "low_rank": ("low_rank", None),
    "mpo-4": ("mpo", 4),
    "mpo-6": ("mpo", 6),
    "ring": ("ring", 4),
    "tree": ("tree", 4),
    "peps 2x3": ("peps", 6),
    "mera": ("mera", 4),
    "K4": ("complete", 4),
    "cp": ("cp", 4),
    "tucker": ("tucker", 4),
    "btt": ("btt", None),
}
_KEPT = ("topology", "seed", "params", "fill", "macs_per_sample", "lr", "accuracy", "status", "reason")


def candidates() -> list[Candidate]:
    """The layer 784 -> 256 on every topology, each before a dense layer of 10."""
    return [
        Candidate(name, build(kind, 784, HIDDEN, sites=sites).renamed(name), None)
        for name, (kind, sites) in TOPOLOGIES.items()
    ]


def _table(data: str, unit: str, budget: int, settings: Settings, scratch: Path) -> dict[str, Any]:
    """All topologies at one budget on one data set."""
    asked: dict[str, Any] = {"budget" if unit == "params" else "macs": budget}
    report = compare(
        candidates(), **asked, data=data, backends=[settings.backend], device=settings.device, seeds=settings.seeds,
        hidden=HIDDEN, epochs=EPOCHS, batch_size=BATCH, head="dense", search_rows=SEARCH_ROWS, out=scratch, resume=True,
    )  # fmt: skip
    cells = [{key: row[key] for key in _KEPT} for row in report.rows]
    steps = {f"{row['topology']}, seed {row['seed']}": row["step_ms"] for row in report.rows if row["step_ms"]}
    return {"cells": cells, "times": {"step_ms": steps}}


def _units(settings: Settings) -> list[Unit]:
    asked = [("params", n) for n in PARAMS] + [("macs", n) for n in MACS]
    questions = [("mnist", "params", 4_000)] if settings.quick else [(data, *one) for data in DATA for one in asked]
    return [
        Unit({"data": data, "counted": unit, "budget": budget}, functools.partial(_table, data, unit, budget, settings))
        for data, unit, budget in questions
    ]


def _accuracies(row: Row, topology: str) -> list[float]:
    return [c["accuracy"] for c in row["cells"] if c["topology"] == topology and c["status"] == "ok"]


def _best(row: Row) -> tuple[str, float]:
    means = {name: statistics.fmean(a) for name in TOPOLOGIES if (a := _accuracies(row, name))}
    best = max(means, key=lambda name: means[name])
    return best, means[best]


def _asked(row: Row) -> str:
    word = "parameters" if row["counted"] == "params" else "MACs a sample"
    return f"{row['data']}, {row['budget']:,} {word}"


def _lines(rows: Sequence[Row]) -> list[Line]:
    lines = []
    for row in rows:
        best, mean = _best(row)
        values = _accuracies(row, best)
        sd = statistics.stdev(values) if len(values) > 1 else None
        lines.append(Line(f"{_asked(row)}: best, {best}", mean, sd))
        failed = sum(cell["status"] == "failed" for cell in row["cells"])
        lines.append(Line(f"{_asked(row)}: runs that failed", failed, high=0, unit="", digits=0))
        if row["counted"] == "params":
            # A rank of low rank is 1,040 parameters: between two of them there is nothing to fill a small budget with.
            least = min((c["fill"] for c in row["cells"] if c["fill"] and not _coarse(row, c)), default=None)
            share = None if least is None else 100 * least
            lines.append(Line(f"{_asked(row)}: least fill", share, low=100 * FILL, digits=1))
    return lines


def _coarse(row: Row, cell: Mapping[str, Any]) -> bool:
    """Whether one rank more of a topology with a single bond would leave the budget."""
    topology = next(c.hidden for c in candidates() if c.name == cell["topology"])
    if len(topology.bonds) != 1:
        return False
    one = topology.with_rank(1).num_params
    return bool(cell["params"] + one > row["budget"])


def _text(rows: Sequence[Row]) -> list[str]:
    parts = []
    for row in rows:
        level = level_with_best([cell for cell in row["cells"] if cell["status"] == "ok"])
        table = []
        reasons = []
        for name in TOPOLOGIES:
            cells = [cell for cell in row["cells"] if cell["topology"] == name]
            good = [cell for cell in cells if cell["status"] == "ok"]
            if not good:
                reasons.append(f"{name}: {cells[0]['status']}, {cells[0]['reason']}")
                table.append([name, "–", "–", "–", "–", cells[0]["status"], "–"])
                continue
            values = [cell["accuracy"] for cell in good]
            sd = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            mark = "" if name not in level else "best" if name == _best(row)[0] else f"p = {level[name]:.2f}"
            one = good[0]
            accuracy = f"{statistics.fmean(values):.2f}{sd} %"
            numbers = [f"{one['params']:,}", f"{one['macs_per_sample']:,}", f"{100 * one['fill']:.1f} %"]
            table.append([name, *numbers, f"{one['lr']:g}", accuracy, mark])
        head = (_asked(row), "params", "MACs / sample", "fill", "lr", "test accuracy", "level with the best")
        parts.append(markdown_table(head, table))
        parts += ["; ".join(reasons) + "."] if reasons else []
    return parts


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    shown = list(dict.fromkeys((row["data"], row["counted"]) for row in rows))
    figure.set_size_inches(5.2 * len(shown) + 1.6, 4.4)
    all_panels = panels(figure, len(shown))
    for panel, (data, unit) in zip(all_panels, shown, strict=True):
        chosen = [row for row in rows if (row["data"], row["counted"]) == (data, unit)]
        x_key = "params" if unit == "params" else "macs_per_sample"
        points: list[tuple[float, float]] = []
        for index, name in enumerate(TOPOLOGIES):
            curve = []
            for row in chosen:
                good = [c for c in row["cells"] if c["topology"] == name and c["status"] == "ok"]
                if good:
                    values = [c["accuracy"] for c in good]
                    sd = statistics.stdev(values) if len(values) > 1 else 0.0
                    curve.append((good[0][x_key], statistics.fmean(values), sd))
            if curve:
                xs, ys, sds = zip(*curve, strict=True)
                line = {"linestyle": "-" if index < 6 else "--", "linewidth": 1.1, "capsize": 2}
                panel.errorbar(xs, ys, yerr=sds, label=name, **line, **style(index))
                points += list(zip(xs, ys, strict=True))
        front = pareto(points)
        if front:
            panel.step(
                *zip(*front, strict=True), where="post", color=GREY, linewidth=4, alpha=0.4, label="Pareto front"
            )
        panel.set_xscale("log")
        word = "parameters of the layer" if unit == "params" else "MACs a sample, as planned"
        dress(panel, word, "test accuracy, %" if panel is all_panels[0] else "", data)
    legend(all_panels[-1], loc="center left", bbox_to_anchor=(1, 0.5))


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (cost, accuracy) points that no cheaper one reaches.

    Examples:
        >>> pareto([(1, 90), (2, 89), (3, 95)])
        [(1, 90), (3, 95)]
    """
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


EXPERIMENT = Experiment(
    name="topology",
    title="Topologies under one budget",
    source="this project: no fair table was published",
    about=(
        f"784 -> {HIDDEN} -> 10 with one ReLU; the first layer is a network of the topology with the budget, of "
        f"parameters or of multiply-adds a sample (forward, in the order that needs fewest at batch {BATCH}), the last "
        f"is dense for all. {EPOCHS} epochs of Adam, cosine, batch {BATCH}. For each topology and budget the best of "
        f"{len(LEARNING_RATES)} learning rates by validation, after an epoch of {SEARCH_ROWS:,} rows with a seed "
        "that is not reported. *Level with the best*: not significantly below it (Welch's t-test over the seeds, "
        "Holm-corrected, 5 %). With few seeds a wide spread hides differences: level does not mean equal."
    ),
    finding=(
        "The best network on MNIST is {mnist, 1,000 parameters: best} at 1,000 weights, {mnist, 15,000 parameters: "
        "best} at 15,000 and {mnist, 40,000 parameters: best} at 40,000. At 20,000 multiply-adds a sample it is "
        "{mnist, 20,000 MACs a sample: best}."
    ),
    cost="60 min",
    quick_cost="2 min",
    units=_units,
    lines=_lines,
    data=DATA,
    recipe={
        "params": PARAMS, "macs": MACS, "hidden": HIDDEN, "epochs": EPOCHS, "batch": BATCH, "search_rows": SEARCH_ROWS,
        "rates": LEARNING_RATES, "topologies": {name: list(value) for name, value in TOPOLOGIES.items()},
    },
    text=_text,
    draw=_draw,
)  # fmt: skip
