"""How well the native runtime's plans are chosen: predicted against measured, over all candidates of a cell.

    python benchmarks/plan_choice.py --only 1024-chi4,tree --json choice.json

A cell is a network of the work set, a batch and a phase. All candidates are run, interleaved, in one thread; reported
are the time of the plan that is predicted fastest and of the best of those that tune=True measures, each over
that of the fastest of all, and the median of |predicted / measured - 1|. Where its arrays happen to lie in memory
changes the time of a short call by up to a quarter, so of cells below 10 ms it is the median over three placements.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
import _workset
from rich.console import Console
from rich.table import Table

import tn4nn as tn
from tn4nn._planning.measure import measured, runs_of, worth_measuring
from tn4nn._planning.planner import candidates
from tn4nn._planning.request import PlanRequest
from tn4nn._runtime.target import Target

MOST = 40  # candidates of a cell
SLOW = 3.0  # candidates predicted that many times slower than the first are not run
SHORT = 1e-2  # seconds: a cell predicted to be shorter is measured at several placements
PLACEMENTS = 3


def cell(case: _workset.Case, batch: int, phase: str) -> dict[str, Any]:
    """One cell: ratios, and every candidate."""
    every = candidates(PlanRequest(case.network(), batch, phase, target=Target(executors=("native",))))
    plans = [p for p in every if p.cost.predicted_s <= SLOW * every[0].cost.predicted_s][:MOST]
    occupied, runs = [], []
    for _ in range(PLACEMENTS if every[0].cost.predicted_s < SHORT else 1):
        times = {_key(p): p.measured_s or math.nan for p in measured(plans)}
        runs.append([times[_key(p)] for p in plans])
        occupied.append(runs_of(plans[:1]))  # memory that the next one cannot take
    found = [statistics.median(times) for times in zip(*runs, strict=True)]
    errors = [abs(p.cost.predicted_s / seconds - 1) for p, seconds in zip(plans, found, strict=True)]
    return {
        "case": case.name,
        "batch": batch,
        "phase": phase,
        "candidates": len(plans),
        "first": found[0] / min(found),
        "tuned": min(found[plans.index(p)] for p in worth_measuring(plans)) / min(found),
        "error": statistics.median(errors),
        "seconds": min(found),
        "predicted_s": [p.cost.predicted_s for p in plans],
        "measured_s": found,
    }


def _key(p: tn.Plan) -> tuple[Any, ...]:
    return p.path, p.layouts, p.block, p.save


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all cells: how often a choice is within 10% and 30% of the best, and the worst."""
    result: dict[str, Any] = {"cells": len(cells), "median_error": statistics.median(c["error"] for c in cells)}
    for name in ("first", "tuned"):
        ratios = [c[name] for c in cells]
        result[name] = {
            "within_10_percent": sum(r <= 1.1 for r in ratios) / len(ratios),
            "within_30_percent": sum(r <= 1.3 for r in ratios) / len(ratios),
            "mean": _measure.geometric_mean(ratios),
            "worst": max(ratios),
        }
    return result


def main(
    only: Annotated[str | None, typer.Option(help="Parts of case/batch/phase, by commas.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The cells of step_time.py --quick.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
) -> None:
    """Measures how well plans are chosen."""
    console, cells = Console(), []
    console = console if console.is_terminal else Console(width=120)
    for case, batch, phase in _workset.questions(quick, only):
        result = cell(case, batch, phase)
        cells.append(result)
        console.print(
            f"{_workset.label(case.name, batch, phase):32} {result['candidates']:3} candidates, "
            f"best {result['seconds'] * 1e3:9.3f} ms: first {result['first']:.2f}, "
            f"tuned {result['tuned']:.2f}, error {result['error']:.0%}",
            highlight=False,
        )
        if json_file is not None:
            data = {
                "machine": _measure.machine(),
                "versions": _measure.versions(),
                "summary": summary(cells),
                "cells": cells,
            }
            json_file.write_text(json.dumps(data, indent=1) + "\n")
    table = Table(title="Choice of plans, over the best candidate")
    for name in ("", "within 10%", "within 30%", "geometric mean", "worst"):
        table.add_column(name)
    found = summary(cells)
    for name in ("first", "tuned"):
        row = found[name]
        table.add_row(
            name,
            f"{row['within_10_percent']:.0%}",
            f"{row['within_30_percent']:.0%}",
            f"{row['mean']:.3f}",
            f"{row['worst']:.2f}",
        )
    console.print(table)
    console.print(f"{found['cells']} cells, median error of predictions {found['median_error']:.0%}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
