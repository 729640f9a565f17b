"""What more threads bring: one TN layer and the dense one, in torch, at one thread, at two, ... and at all cores.

    python benchmarks/threads.py
    python benchmarks/threads.py --only 1024-chi16/256 --batches 1,256
    python benchmarks/threads.py --json benchmarks/results/threads.json --page docs/pages/benchmarks/threads.md

All numbers of threads take turns in one process, round by round, each with a layer that was planned for it. A ratio is
the median over rounds of the time at that many threads over the time at one.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
import _workset
from _pages import Page, Table, made
from rich.console import Console
from tn4nn_torch import TNLinear

import tn4nn as tn
from tn4nn._runtime.processor import processors

Row = dict[str, Any]
LAYER, DENSE = "layer", "dense"
MOST = 2e11  # multiply-adds of a dense step: cells with more take minutes
SLOT_S = 0.03  # of a timing: OpenMP starts threads anew where their number has changed


class Threaded:
    """A layer that runs on so many threads.

    Args:
        layer: torch module; planned, where it plans, by its first call.
        rows: of x.
        train: forward and backward, in place of forward alone.
        threads: of torch.
    """

    def __init__(self, layer: torch.nn.Module, features: int, rows: int, train: bool, threads: int) -> None:
        generator = torch.Generator().manual_seed(rows)
        self.layer, self.threads, self.train = layer, threads, train
        self.x = torch.randn(rows, features, generator=generator, requires_grad=train)
        self.parameters = list(layer.parameters())
        with torch.no_grad():
            self.gy = torch.ones_like(layer(self.x))

    def run(self, times: int) -> None:
        """See `_measure.Timed`."""
        torch.set_num_threads(self.threads)
        if self.train:
            for _ in range(times):
                torch.autograd.grad(self.layer(self.x), [self.x, *self.parameters], self.gy)
            return
        with torch.no_grad():
            for _ in range(times):
                self.layer(self.x)


def levels() -> list[int]:
    """1, 2, 4, ... and all cores that this process may use."""
    most = processors()
    return sorted({*(1 << i for i in range(most.bit_length()) if 1 << i <= most), most})


def runners(net: tn.Network, rows: int, train: bool, threads: list[int]) -> Iterator[tuple[str, Threaded]]:
    """The layer and the dense one at each number of threads, by "what/threads"."""
    for count in threads:
        torch.set_num_threads(count)  # the layer is planned for as many
        phase = "train" if train else "forward"
        ours = TNLinear(net, bias=False, seed=0, phase=phase)
        dense = torch.nn.Linear(net.in_features, net.out_features, bias=False)
        for kind, layer in ((LAYER, ours), (DENSE, dense)):
            yield f"{kind}/{count}", Threaded(layer, net.in_features, rows, train, count)


def measured(case: _workset.Case, rows: int, phase: str, threads: list[int], settings: _measure.Settings) -> Row:
    """One cell: milliseconds at one thread, and the others relative to it."""
    net = case.network()
    made = dict(runners(net, rows, phase == "train", threads))
    times, _ = _measure.interleaved(made, settings)
    row: Row = {"case": case.name, "batch": rows, "phase": phase, "order": made[f"{LAYER}/1"].layer.plan(rows).order}
    for kind in (LAYER, DENSE):
        one = times[f"{kind}/1"]
        row[kind] = {
            "ms": {str(n): round(1e3 * statistics.median(times[f"{kind}/{n}"]), 4) for n in threads},
            "ratio": {str(n): round(_measure.paired(times[f"{kind}/{n}"], one).median, 4) for n in threads[1:]},
        }
    return row


def over_dense(row: Mapping[str, Any], threads: int) -> float:
    """Time of the layer over the dense one's, both at so many threads."""
    return float(row[LAYER]["ms"][str(threads)] / row[DENSE]["ms"][str(threads)])


def table(rows: list[Row], threads: list[int]) -> tuple[str, list[str], list[list[str]]]:
    """(title, columns, cells)."""
    more = threads[1:]
    columns = ["cell", "order", "ms, 1 thread"]
    columns += [f"{n} threads / 1" for n in more] + [f"dense, {n} / 1" for n in more]
    columns += [f"/ dense, {n}" for n in threads]
    cells = [
        [
            _workset.label(row["case"], row["batch"], row["phase"]),
            row["order"],
            f"{row[LAYER]['ms']['1']:.3g}",
            *(f"{row[kind]['ratio'][str(n)]:.2f}" for kind in (LAYER, DENSE) for n in more),
            *(f"{over_dense(row, n):.2f}" for n in threads),
        ]
        for row in rows
    ]
    return "One layer at several numbers of threads, torch", columns, cells


def summary(rows: list[Row], threads: list[int]) -> Iterator[str]:
    """What is claimed of two threads and more."""
    for n in threads[1:]:
        for kind in (LAYER, DENSE):
            ratios = sorted(row[kind]["ratio"][str(n)] for row in rows)
            yield f"{kind}, {n} threads / 1: median {statistics.median(ratios):.2f}, worst {ratios[-1]:.2f}"
        loss = sorted(over_dense(row, n) / over_dense(row, 1) for row in rows)
        yield f"(layer / dense at {n}) / (at 1): median {statistics.median(loss):.2f}, worst {loss[-1]:.2f}"


def page(data: Row) -> str:
    """The page of docs; its figure lies beside it."""
    rows, threads = data["rows"], data["threads"]
    most = threads[-1]
    layer, dense = ([row[kind]["ratio"][str(most)] for row in rows] for kind in (LAYER, DENSE))
    worse = sum(ratio > 1 for ratio in layer)
    title, columns, cells = table(rows, threads)
    return str(
        Page(
            title="More threads",
            finding=f"On {most} threads a training step takes {statistics.median(layer):.2f} of the time of one thread "
            f"in the median of {len(rows)} layers and batches; a dense layer takes {statistics.median(dense):.2f}. "
            + (f"Of our layers, {worse} gain nothing." if worse else "Every layer of ours gains."),
            figure=("threads.png", "Time at several threads over the time at one"),
            made=made("benchmarks/threads.py", "threads.json", data, packages=("tn4nn", "torch")),
            method="One layer in torch, a training step (gradients of the input and of every core, no optimizer), "
            "float32. All numbers of threads take turns, round by round, each with a layer planned for it; a ratio is "
            "the median over rounds. How the work is shared: [runtime](../explanation/rooms/runtime.md#threads). "
            f"Layers whose dense step is above {MOST:.0e} multiply-adds are left out.",
            points=list(summary(rows, threads)),
            tables=[Table(title, columns, cells)],
        )
    )


def draw(data: Row, path: Path) -> None:
    """Time at n threads over the time at one, the work set from the best cell to the worst, layer and dense."""
    from matplotlib.figure import Figure

    threads = data["threads"]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for n in threads[1:]:
        for kind, style in ((LAYER, "-"), (DENSE, "--")):
            ratios = sorted(row[kind]["ratio"][str(n)] for row in data["rows"])
            axes.plot(range(1, len(ratios) + 1), ratios, style, label=f"{kind}, {n} threads")
        axes.axhline(1 / n, color="0.7", lw=0.8)
    axes.set(xlabel="cells of the work set, sorted", ylabel="time / time at one thread", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(
    only: Annotated[str | None, typer.Option(help='Parts of "case/batch/phase", by commas.')] = None,
    batches: Annotated[str, typer.Option(help="By commas.")] = "256,2048",
    phases: Annotated[str, typer.Option(help="By commas.")] = "train",
    cell_s: Annotated[float, typer.Option(help="Seconds for a cell.")] = 3.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results here.")] = None,
    page_file: Annotated[
        Path | None, typer.Option("--page", help="Write the page of docs here, and its figure.")
    ] = None,
) -> None:
    """Times layers at several numbers of threads."""
    threads, settings = levels(), _measure.Settings(slot_s=SLOT_S, cell_s=cell_s, hard_s=4 * cell_s)
    wanted = [int(part) for part in batches.split(",")]
    asked = [cell for cell in _workset.questions(False, only, wanted) if cell[2] in phases.split(",")]
    cells = [cell for cell in asked if 3 * cell[1] * cell[0].network().dense_params <= MOST]
    rows = []
    for number, (case, batch, phase) in enumerate(cells, 1):
        rows.append(measured(case, batch, phase, threads, settings))
        typer.echo(f"{number}/{len(cells)} {_workset.label(case.name, batch, phase)}", err=True)
    data: Row = {"benchmark": "threads", "schema": 1, "machine": _measure.machine(), "threads": threads}
    data |= {"versions": _measure.versions(), "rows": rows}
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1) + "\n")
    if page_file is not None:
        page_file.write_text(page(data))
        draw(data, page_file.with_suffix(".png"))
    console = Console()
    show = [table(rows, threads)]
    _measure.show(console if console.is_terminal else Console(width=160), show, summary(rows, threads))


if __name__ == "__main__":
    typer.run(main)
