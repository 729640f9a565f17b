"""The page of step times and its figure from a results file of step_time.py; and the check against an older one.

python benchmarks/render_performance.py benchmarks/results/step_time.json
python benchmarks/render_performance.py --check OLD.json NEW.json
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

from _goals import name_of, row
from _measure import geometric_mean
from _pages import Page, Table
from step_time import SCHEMA, goal_line

MEAN_LIMIT = 1.15  # geometric mean of new / old that is still accepted
CELL_LIMIT = 1.30  # the same for one cell
COLOURS = {
    "orange": "#E69F00",
    "blue": "#0072B2",
    "green": "#009E73",
    "red": "#D55E00",
    "grey": "#999999",
}  # Okabe-Ito
MARKERS = {1: "o", 32: "s", 256: "^", 2048: "D"}

_COLUMNS = (
    "layer", "batch", "torch ms", "/ dense", "best peer", "peer / torch", "limit", "saved MiB",
    "jax ms", "/ dense", "peer / jax",
)  # fmt: skip

Results = Mapping[str, Any]


class ResultsError(ValueError):
    """A results file that cannot be read, or two that cannot be compared."""


def read(path: Path) -> dict[str, Any]:
    """A results file of step_time.py."""
    try:
        data = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: {error}") from error
    if data.get("benchmark") != "step_time" or data.get("schema") != SCHEMA:
        raise ResultsError(f"{path}: expected results of step_time.py, schema {SCHEMA}")
    return dict(data)


# -- the check -----------------------------------------------------------------------------------------------


def ratios(data: Results) -> dict[tuple[str, str], float]:
    """(cell, framework) -> ours / dense, paired within rounds; ours / best peer where there is no dense."""
    found = {}
    for cell in data["cells"]:
        for framework, summary in cell["summary"].items():
            if summary["vs_dense"] is not None:
                found[name_of(cell), framework] = summary["vs_dense"]["median"]
            elif summary["peer_vs_ours"] is not None:
                found[name_of(cell), framework] = 1 / summary["peer_vs_ours"]["median"]
    return found


def regressions(old: Results, new: Results) -> tuple[list[str], list[str]]:
    """(what is too slow, what else is to be known) of new against old.

    Raises:
        ResultsError: other threads or another device, or no cell in common.
    """
    for key in ("threads", "device"):
        if old[key] != new[key]:
            raise ResultsError(f"measured with other {key}: {old[key]} and {new[key]}")
    before, after = ratios(old), ratios(new)
    common = sorted(before.keys() & after.keys())
    if not common:
        raise ResultsError("the two have no cell in common")
    changes = {key: after[key] / before[key] for key in common}
    too_slow = [
        f"{cell} ({framework}): {before[cell, framework]:.2f} of dense was, {after[cell, framework]:.2f} is: "
        f"{change:.2f}x, the limit is {CELL_LIMIT}x"
        for (cell, framework), change in changes.items()
        if change > CELL_LIMIT
    ]
    for framework in sorted({framework for _, framework in common}):
        mean = geometric_mean([change for (_, of), change in changes.items() if of == framework])
        if mean is not None and mean > MEAN_LIMIT:
            too_slow.append(f"geometric mean ({framework}): {mean:.2f}x, the limit is {MEAN_LIMIT}x")
    gone = sorted({cell for cell, _ in before.keys() - after.keys()})
    notes = [f"{len(common)} ratios compared"]
    if gone:
        notes.append(f"not in the new file: {', '.join(gone[:10])}{' ...' if len(gone) > 10 else ''}")
    return too_slow, notes


# -- the page ------------------------------------------------------------------------------------------------


def page(data: Results, source: str, figure: str) -> str:
    """The page of step times: the finding, the figure, how it was measured, the goals, and the tables."""
    machine, limits = data["machine"], data["limits"]
    packages = ", ".join(f"{name} {v}" for name, v in data["versions"].items() if v is not None)
    absent = ", ".join(name for name, v in data["versions"].items() if v is None)
    gpu = data["device"] != "cpu"
    where = f"an {data['device_name']}" if gpu else f"{data['threads']} thread{'s' if data['threads'] > 1 else ''}"
    points = [data["note"]] if data.get("note") else []
    points += [goal_line(label, goal) for label, goal in data["goals"].items()]
    points += [
        f"geometric mean, {label}: {found['mean']:.3f} ({found['cells']} cells)"
        for label, found in data["means"].items()
        if found["mean"] is not None
    ]
    cells = {phase: [cell for cell in data["cells"] if cell["phase"] == phase] for phase in ("train", "forward")}
    titles = {"train": "Training step", "forward": "Forward"}
    tables = [_table(cells[phase], title) for phase, title in titles.items() if cells[phase]]
    return str(
        Page(
            title=f"Speed on {where}" + ("" if data.get("dtype", "float32") == "float32" else f", {data['dtype']}"),
            finding=" ".join(_finding(data)),
            figure=(figure, "Time of a training step next to dense and to the best other library"),
            made=f"Made by `python benchmarks/render_performance.py {source}` from a run of `benchmarks/step_time.py` "
            f"of {data['date'][:10]}{' (--quick)' if data['quick'] else ''} on {machine['cpu']}, {machine['cores']} "
            f"cores; device {data.get('device_name', data['device'])}; {data.get('dtype', 'float32')}; "
            f"{data['threads']} thread(s). Measured limits: {limits['macs_per_s'] / 1e9:.0f}e9 multiply-adds and "
            f"{limits['bytes_per_s'] / 1e9:.0f}e9 bytes a second; load when it ended: {machine['load']}. Versions: "
            f"{packages}" + (f"; not installed: {absent}" if absent else "") + ".",
            method="Times are medians of interleaved rounds; ratios are paired within rounds. How cells and "
            'competitors are chosen: [benchmarks/README.md](../../../benchmarks/README.md). Above 1 in "/ dense" and '
            'below 1 in "peer /" we lose; those figures are bold.',
            points=[*points, *_without_graphed(data["cells"])],
            tables=[*tables, *_refusals(data)],
        )
    )


def _finding(data: Results) -> Iterator[str]:
    for name in ("torch", "jax"):
        dense, peer = (data["means"].get(f"{name}: {what}, all") for what in ("vs_dense", "peer_vs_ours"))
        if dense is None or peer is None or dense["mean"] is None or peer["mean"] is None:
            continue
        ratios = [
            cell["summary"][name]["vs_dense"]["median"]
            for cell in data["cells"]
            if cell["summary"].get(name, {}).get("vs_dense")
        ]
        slower = sum(ratio > 1 for ratio in ratios)
        yield (
            f"In {name}, a layer takes {dense['mean']:.2f} of the time of a dense one in the geometric mean and is "
            f"slower in {slower} of {len(ratios)} cells; the best other library takes {peer['mean']:.2f} times as long "
            "as ours."
        )


def _without_graphed(cells: list[dict[str, Any]]) -> Iterator[str]:
    """The mean over the ways that some library documents, where another way is among the competitors."""
    ratios = []
    for cell in cells:
        times = {
            r["peer"]: r["time"]["median"] for r in cell["rows"] if r["status"] == "ok" and r["framework"] == "torch"
        }
        mine = times.pop("tn4nn-torch", None)
        graphed, _ = times.pop("cotengra-graphed", None), times.pop("dense-torch", None)
        if mine and graphed and times:
            ratios.append(min(times.values()) / mine)
    if ratios:
        slower = sum(ratio < 1 for ratio in ratios)
        yield (
            f"geometric mean, torch: peer_vs_ours, cotengra-graphed left out: {geometric_mean(ratios):.3f} "
            f"({len(ratios)} cells, {slower} of them below 1)"
        )


def _table(cells: list[dict[str, Any]], title: str) -> Table:
    lines = []
    for cell in cells:
        torch, jax = row(cell, "tn4nn-torch"), row(cell, "tn4nn-jax")
        by_torch, by_jax = (cell["summary"].get(name, {}) for name in ("torch", "jax"))
        share = "-" if torch is None or torch["share_of_limit"] is None else f"{torch['share_of_limit']:.0%}"
        saved = "-" if torch is None or torch["saved_bytes"] is None else f"{torch['saved_bytes'] / 2**20:.2f}"
        entries = [cell["case"], str(cell["batch"]), _ms(torch), _lost_above(by_torch.get("vs_dense"))]
        entries += [by_torch.get("best_peer") or "-", _lost_below(by_torch.get("peer_vs_ours")), share, saved]
        entries += [_ms(jax), _lost_above(by_jax.get("vs_dense")), _lost_below(by_jax.get("peer_vs_ours"))]
        lines.append(entries)
    return Table(title, _COLUMNS, lines)


def _ms(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['time']['median'] * 1e3:.3g}"


def _lost_above(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else _figure(found["median"], found["median"] > 1)


def _lost_below(found: Mapping[str, float] | None) -> str:
    return "-" if found is None else _figure(found["median"], found["median"] < 1)


def _figure(value: float, lost: bool) -> str:
    return f"**{value:.2f}**" if lost else f"{value:.2f}"


def _refusals(data: Results) -> list[Table]:
    """Why competitors are missing: each reason once, with the number of cells."""
    counts: dict[tuple[str, str, str], int] = {}
    for cell in data["cells"]:
        for r in cell["rows"]:
            if r["status"] != "ok":
                key = (r["peer"], r["status"], r["reason"])
                counts[key] = counts.get(key, 0) + 1
    cells = [[peer, status, str(count), reason] for (peer, status, reason), count in sorted(counts.items())]
    return [Table("What was not timed, and why", ("competitor", "status", "cells", "reason"), cells)] if cells else []


# -- the choice of plans, predictions, and scaling: the parts of another page -----------------------------------


def plans_page(folder: Path) -> str:
    """What plan_choice.json, prediction.json and scaling.json in a folder of results say, as far as they are there."""
    parts = [
        part
        for file, part_of in (("plan_choice", _choice), ("prediction", _prediction), ("scaling", _scaling))
        if (folder / f"{file}.json").exists()
        for part in part_of(json.loads((folder / f"{file}.json").read_text()))
    ]
    return "\n\n".join(["# How well plans are chosen and costs predicted", *parts]) + "\n"


def _choice(data: Results) -> Iterator[str]:
    found = data["summary"]
    first = found["first"]
    yield (
        f"The plan that the cost model picks takes {first['mean']:.3f} of the time of the fastest one in the geometric "
        f"mean over {found['cells']} cells; it is within 10 % of it in {first['within_10_percent']:.0%} of them, and "
        f"{first['worst']:.2f} times as slow in the worst."
    )
    cells = []
    for name, label in (("first", "predicted"), ("tuned", "tune=True, eight measured")):
        r = found[name]
        shares = [f"{r['within_10_percent']:.0%}", f"{r['within_30_percent']:.0%}"]
        cells.append([label, *shares, f"{r['mean']:.3f}", f"{r['worst']:.2f}"])
    yield str(Table("Choice", ("choice", "within 10%", "within 30%", "geometric mean", "worst"), cells))
    yield (
        f"All candidates of {found['cells']} cells, measured in the native runtime (`benchmarks/plan_choice.py`, "
        f"{data['machine']['cpu']}); time of the chosen one over that of the fastest. Median error of the predicted "
        f"time: {found['median_error']:.0%}. {data.get('note', '')}".rstrip()
    )


def _prediction(data: Results) -> Iterator[str]:
    found, machine = data["summary"], data["machine"]
    head = ("parameters", "rank correlation", "median error", "ratio", "forward", "training")
    cells = []
    for name, all_of in found.items():
        by = all_of["by"]
        parts = [by["phase"][phase] for phase in ("forward", "train")]
        parts += [by["batch"][batch] for batch in ("1", "32", "256", "2048")]
        ratios = [f"{part['median_ratio']:.2f}" for part in (all_of, *parts)]
        cells.append([name, f"{all_of['spearman']:.3f}", f"{all_of['median_error']:.0%}", *ratios])
    yield str(Table("Predicted against measured", (*head, "batch 1", "32", "256", "2048"), cells))
    yield (
        f"{found['default']['cells']} cells over the whole catalogue, 1024 -> 1024, three ranks, four batches, forward "
        "and training, in CPU seconds of the native runtime (`benchmarks/prediction.py`, "
        f"{machine['cpu']}, load {machine['load'][0]}), with the cost model's default parameters and with those of a "
        "calibration made in the same run. Aimed at on a quiet machine: a rank correlation of 0.95, a median error of "
        "25%. Ratios are predicted over measured, medians."
    )
    columns = ("kind", "cells", "median error, default", "ratio", "cells", "median error, calibrated", "ratio")
    cells = []
    for kind in ("topology", "figure"):
        both = [found[name]["by"][kind] for name in ("default", "calibrated")]
        for value in dict.fromkeys(value for groups in both for value in groups):
            cells.append([value, *(entry for groups in both for entry in _predicted(groups.get(value)))])
    yield str(Table("By topology, and by the parameter that most of the predicted time comes from", columns, cells))


def _predicted(part: dict[str, Any] | None) -> list[str]:
    if part is None:
        return ["0", "-", "-"]
    return [str(part["cells"]), f"{part['median_error']:.0%}", f"{part['median_ratio']:.2f}"]


def _scaling(data: Results) -> Iterator[str]:
    axes = list(dict.fromkeys(found["axis"] for found in data["rows"]))
    rows = {(found["topology"], found["axis"]): found for found in data["rows"]}
    cells = []
    for topology in dict.fromkeys(found["topology"] for found in data["rows"]):
        saved = rows.get((topology, "batch"), {}).get("saved")
        grown = [_grown(rows.get((topology, axis))) for axis in axes]
        cells.append([topology, *grown, "-" if saved is None else f"{saved:.2f}"])
    columns = ("topology", *(f"time ~ {axis} (faster up to)" for axis in axes), "saved ~ batch")
    yield str(Table("How costs grow", columns, cells))
    yield (
        "Slopes in log-log of a training step in the native runtime (`benchmarks/scaling.py`), one quantity varied, "
        "the others at batch 256, chi 4, 5 sites, 1024 -> 1024; in brackets the last value at which the layer is "
        "faster than dense."
    )


def _grown(found: Mapping[str, Any] | None) -> str:
    if found is None or found["seconds"] is None:
        return "-"
    return f"{found['seconds']:.2f} ({found['worth_up_to'] or 'never'})"


# -- the figure ----------------------------------------------------------------------------------------------


def draw(data: Results, path: Path) -> None:
    """Ours against dense and the best peer against ours, one mark a cell."""
    from matplotlib.figure import Figure

    cells = [cell for cell in data["cells"] if "torch" in cell["summary"]]
    figure = Figure(figsize=(10, 0.9 + 0.32 * max(4, len({cell["case"] for cell in cells}))), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, cells, "vs_dense", "ours / dense (left of 1: we are faster)")
    _panel(right, cells, "peer_vs_ours", "best peer / ours (right of 1: we are faster)")
    left.invert_yaxis()
    handles, labels = left.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _panel(axes: Any, cells: list[dict[str, Any]], key: str, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    names = list(dict.fromkeys(cell["case"] for cell in cells))
    for phase, colour in (("train", COLOURS["blue"]), ("forward", COLOURS["orange"])):
        for batch, marker in MARKERS.items():
            marks = [
                (cell["summary"]["torch"][key]["median"], names.index(cell["case"]))
                for cell in cells
                if cell["phase"] == phase and cell["batch"] == batch and cell["summary"]["torch"][key] is not None
            ]
            if marks:
                x, y = zip(*marks, strict=True)
                axes.scatter(x, y, marker=marker, s=26, color=colour, alpha=0.85, label=f"{phase}, batch {batch}")
    axes.axvline(1.0, color=COLOURS["grey"], linewidth=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 50 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(label)
    axes.grid(axis="x", which="major", alpha=0.3)
    low, high = axes.get_xlim()
    if math.isclose(low, high):
        axes.set_xlim(low / 2, high * 2)


# -- the command ---------------------------------------------------------------------------------------------


def main(
    files: Annotated[list[Path], typer.Argument(help="One results file; with --check the old one and the new one.")],
    check: Annotated[bool, typer.Option("--check", help="Compare two files; exit 1 on a regression.")] = False,
    out: Annotated[Path, typer.Option(help="The page; its figure stands beside it.")] = Path(
        "docs/pages/benchmarks/performance.md"
    ),
) -> None:
    """Renders docs/pages/benchmarks/performance.md, or checks new results against old ones."""
    wanted = 2 if check else 1
    if len(files) != wanted:
        raise typer.BadParameter(f"expected {wanted} file(s), received {len(files)}")
    try:
        data = [read(path) for path in files]
        if check:
            raise typer.Exit(_checked(*data))
    except ResultsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    figure = out.with_suffix(".png")
    draw(data[0], figure)
    out.write_text(page(data[0], files[0].as_posix(), figure.name))
    typer.echo(f"{out}, {figure}")


def _checked(old: Results, new: Results) -> int:
    too_slow, notes = regressions(old, new)
    for line in [*notes, *(f"REGRESSION {line}" for line in too_slow)]:
        typer.echo(line)
    if not too_slow:
        typer.echo("no regression")
    return 1 if too_slow else 0


if __name__ == "__main__":
    typer.run(main)
