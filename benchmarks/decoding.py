"""Latency of a forward pass of a few rows, as a decoder makes it token by token: layers, merged layers, and dense.

    python benchmarks/decoding.py
    python benchmarks/decoding.py --only 4096 --rows 1
    python benchmarks/decoding.py --json benchmarks/results/decoding.json --page docs/pages/benchmarks/decoding.md

Square layers in torch, float32, without gradients. All competitors of a cell take turns; a ratio is the median over
rounds. A merged layer is `layer.merge(batch=rows)`: what is made of cores alone is ready.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
from _pages import Page, Table, draw_sorted, made
from rich.console import Console
from threads import Threaded, levels
from tn4nn_torch import TNLinear

import tn4nn as tn

Row = dict[str, Any]
WIDTHS = (1024, 2048, 4096)
SHARE = 16  # of the dense parameters, one in so many
COLUMNS = ("layer", "rows", "threads", "params", "dense us", "layer us", "merged us", "layer / dense", "merged / dense")


def networks(width: int) -> Iterator[tuple[str, tn.Network]]:
    """Square layers of a sixteenth of the dense parameters, or of as many as the format can use."""
    budget = width * width // SHARE
    makers: dict[str, Callable[[], tn.Network]] = {
        "low_rank": lambda: tn.low_rank(width, width).with_budget(params=budget),
        "mpo": lambda: tn.build("mpo", width, width, sites=3, pad=False).with_budget(params=budget),
        "btt": lambda: tn.build("btt", width, width, sites=2, pad=False).with_budget(params=budget),
        "tree": lambda: tn.build("tree", width, width, sites=4, pad=False).with_budget(params=budget),
    }
    for name, make in makers.items():
        yield name, make()


def cell(net: tn.Network, rows: int, threads: int, settings: _measure.Settings) -> Row:
    """Microseconds of a call."""
    torch.set_num_threads(threads)
    layer = TNLinear(net, bias=False, seed=0, phase="forward")
    dense = torch.nn.Linear(net.in_features, net.out_features, bias=False)
    made = {"dense": dense, "layer": layer, "merged": layer.merge(batch=rows)}
    runners = {name: Threaded(module, net.in_features, rows, False, threads) for name, module in made.items()}
    times, _ = _measure.interleaved(runners, settings)
    row: Row = {"rows": rows, "threads": threads, "params": net.num_params}
    row["us"] = {name: round(1e6 * statistics.median(of), 2) for name, of in times.items()}
    row["over_dense"] = {
        name: round(_measure.paired(times[name], times["dense"]).median, 4) for name in ("layer", "merged")
    }
    return row


def cells(data: Row) -> list[list[str]]:
    """Of the table."""
    return [
        [
            f"{row['topology']} {row['width']}",
            *(f"{row[key]:,}" for key in ("rows", "threads", "params")),
            *(f"{row['us'][name]:.3g}" for name in ("dense", "layer", "merged")),
            *(f"{row['over_dense'][name]:.2f}" for name in ("layer", "merged")),
        ]
        for row in data["rows"]
    ]


def summary(data: Row) -> Iterator[str]:
    """How often a layer is faster than the dense one."""
    for threads in data["threads"]:
        for name in ("layer", "merged"):
            ratios = sorted(row["over_dense"][name] for row in data["rows"] if row["threads"] == threads)
            faster = sum(ratio < 1 for ratio in ratios)
            best = f"faster than dense in {faster} of {len(ratios)}"
            rest = f"median {statistics.median(ratios):.2f}, worst {ratios[-1]:.2f}"
            yield f"{name}, {threads} thread{'s' if threads > 1 else ''}: {best}, {rest}"


def page(data: Row) -> str:
    """The page of docs; its figure lies beside it."""
    most = data["threads"][-1]
    ratios = [row["over_dense"]["merged"] for row in data["rows"] if row["threads"] == most]
    slower = sum(ratio > 1 for ratio in ratios)
    return str(
        Page(
            title="A few rows at a time",
            finding=f"With 1 to 8 rows, as a decoder has them, a merged layer of 1/{SHARE} of the weights takes "
            f"{statistics.median(ratios):.2f} of the time of a dense layer in the median on {most} threads, and is "
            f"slower in {slower} of {len(ratios)} cases.",
            figure=("decoding.png", "Time of layers and merged layers over the time of dense ones"),
            made=made("benchmarks/decoding.py", "decoding.json", data, packages=("tn4nn", "torch")),
            method=f"Square layers with at most 1/{SHARE} of the dense parameters, float32, forward without gradients, "
            "as a decoder calls them token by token. A merged layer is `layer.merge(batch=rows)`. Competitors take "
            "turns; a ratio is the median over rounds.",
            points=list(summary(data)),
            tables=[Table("Times", COLUMNS, cells(data))],
        )
    )


def draw(data: Row, path: Path) -> None:
    """Times over dense, from the best cell to the worst."""
    curves = {
        f"{name}, {threads} thread{'s' if threads > 1 else ''}": [
            row["over_dense"][name] for row in data["rows"] if row["threads"] == threads
        ]
        for name in ("layer", "merged")
        for threads in data["threads"]
    }
    draw_sorted(path, curves, "time / dense")


def main(
    only: Annotated[str | None, typer.Option(help='Parts of "topology width", by commas.')] = None,
    rows: Annotated[str, typer.Option(help="By commas.")] = "1,2,4,8",
    cell_s: Annotated[float, typer.Option(help="Seconds for a cell.")] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results here.")] = None,
    page_file: Annotated[Path | None, typer.Option("--page", help="Write the page of docs here.")] = None,
) -> None:
    """Times forward passes of a few rows."""
    threads, settings, found = levels(), _measure.Settings(cell_s=cell_s, hard_s=4 * cell_s), list[Row]()
    for width in WIDTHS:
        for name, net in networks(width):
            if only is not None and not any(part in f"{name} {width}" for part in only.split(",")):
                continue
            for count in map(int, rows.split(",")):
                found += [
                    {"topology": name, "width": width, **cell(net, count, n, settings)}
                    for n in sorted({1, threads[-1]})
                ]
            typer.echo(f"{name} {width}", err=True)
    data: Row = {"benchmark": "decoding", "schema": 1, "machine": _measure.machine()}
    data |= {"threads": sorted({1, threads[-1]}), "versions": _measure.versions(), "rows": found}
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1) + "\n")
    if page_file is not None:
        page_file.write_text(page(data))
        draw(data, page_file.with_suffix(".png"))
    console = Console()
    shown = [("A few rows at a time, torch", COLUMNS, cells(data))]
    _measure.show(console if console.is_terminal else Console(width=140), shown, summary(data))


if __name__ == "__main__":
    typer.run(main)
