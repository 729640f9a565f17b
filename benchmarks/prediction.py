"""Predicted against measured time over the whole catalogue, of the native runtime or of a backend's programs.

    python benchmarks/prediction.py --json benchmarks/results/prediction.json
    python benchmarks/prediction.py --runtime program --backend torch --device cuda --dtype bfloat16

A cell is a topology of the catalogue, 1024 -> 1024, with all bonds at one rank, a batch and a phase. It is planned
twice, with the cost model's default parameters and with those of a calibration that is made first (none of whose
networks is a cell), and the plan is run on random numbers, on the CPU in one thread. The clock counts the thread's own
CPU seconds, the least of some rounds: what else runs on the core does not count, what it does to caches and memory
does. Of programs it is the calibration's clock, which is the same on the CPU and counts all seconds on a GPU. Reported
are Spearman's rank correlation and the median of |predicted / measured - 1|, over all cells and by kind.
"""
# ruff: noqa: E402  numpy reads the number of threads when it is imported

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is imported
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np
import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
from rich.console import Console
from rich.table import Table

import tn4nn as tn
from tn4nn._model.backend import Place, place_of
from tn4nn._planning.calibrate import clocked, native_times, program_times
from tn4nn._planning.measure import runs_of

FEATURES = 1024
RANKS = (2, 8, 32)
BATCHES = (1, 32, 256, 2048)
PHASES = ("forward", "train")
LONGEST = 1.0  # predicted seconds above which a cell is not run
ROUNDS, LEAST_S, CELL_S = 7, 2e-3, 0.5

Question = tuple[tn.Network, int, int, str]  # network, rank, batch, phase


def questions(only: Sequence[str]) -> Iterator[Question]:
    """The cells; networks with more parameters than the dense layer, or the same as at a lower rank, are left out."""
    for name in only:
        seen = set()
        for rank in RANKS:
            net = tn.build(name, FEATURES, FEATURES, pad=False).with_rank(rank, clip=True)
            if net.fingerprint in seen or (seen and net.num_params > net.dense_params):
                continue
            seen.add(net.fingerprint)
            yield from ((net, rank, batch, phase) for batch in BATCHES for phase in PHASES)


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call, the least of some rounds."""
    run()
    start = time.thread_time()
    run()
    once = max(1e-7, time.thread_time() - start)
    calls, best = max(1, int(LEAST_S / once)), math.inf
    for _ in range(max(3, min(ROUNDS, int(CELL_S / (calls * once))))):
        start = time.thread_time()
        for _ in range(calls):
            run()
        best = min(best, (time.thread_time() - start) / calls)
    return best


def cell(question: Question, machines: dict[str, tn.Machine], place: Place | None = None) -> dict[str, Any] | None:
    """Predicted and measured seconds by machine, in the native runtime or as programs at a place, and the figure that
    most of the prediction comes from; None where that takes too long."""
    net, rank, batch, phase = question
    result: dict[str, Any] = {"topology": net.topology.name, "rank": rank, "params": net.num_params}
    result |= {"batch": batch, "phase": phase}
    found: dict[Any, float] = {}
    for name, machine in machines.items():
        if place is None:
            p = tn.plan(net, batch, phase, runtime="native", machine=machine)
            key: Any = p.path, p.layouts, p.block, p.save
            parts = native_times(p, machine)
        else:
            p = tn.plan(net, batch, phase, machine=machine, itemsize=place.itemsize)
            key, parts = p.path, program_times(p, machine)
        if p.cost.predicted_s > LONGEST:
            return None
        if key not in found:
            if place is None:
                runs = runs_of([p])
                assert runs is not None, "the native runtime needs a C compiler"
                found[key] = seconds(runs[0])
            else:
                [found[key]] = clocked([place.run_of(p.program, p.input_shapes(), phase)], place)
        result[name] = {
            "predicted_s": p.cost.predicted_s,
            "measured_s": found[key],
            "figure": max(parts, key=lambda figure: parts[figure]),
        }
    return result


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation of two sequences without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def judged(found: list[dict[str, float]]) -> dict[str, Any]:
    """Rank correlation, median error, and the median of predicted / measured."""
    predicted, clocked = ([one[name] for one in found] for name in ("predicted_s", "measured_s"))
    ratios = [p / m for p, m in zip(predicted, clocked, strict=True)]
    return {
        "cells": len(found),
        "spearman": spearman(predicted, clocked) if len(found) > 2 else None,
        "median_error": statistics.median(abs(ratio - 1) for ratio in ratios),
        "median_ratio": statistics.median(ratios),
    }


def summary(cells: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """By machine: over all cells, and by topology, batch, phase, and the figure that dominates the prediction."""
    result: dict[str, Any] = {}
    for name in names:
        kinds: dict[str, dict[str, list[dict[str, float]]]] = {}
        for one in cells:
            for kind in ("topology", "batch", "phase"):
                kinds.setdefault(kind, {}).setdefault(str(one[kind]), []).append(one[name])
            kinds.setdefault("figure", {}).setdefault(one[name]["figure"], []).append(one[name])
        result[name] = judged([one[name] for one in cells])
        result[name]["by"] = {
            kind: {value: judged(found) for value, found in groups.items()} for kind, groups in kinds.items()
        }
    return result


def main(
    only: Annotated[str | None, typer.Option(help="Topologies, by commas.")] = None,
    runtime: Annotated[str, typer.Option(help="native or program.")] = "native",
    backend: Annotated[str, typer.Option(help="Whose programs.")] = "torch",
    device: Annotated[str | None, typer.Option(help="Of the programs.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the programs.")] = "float32",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
) -> None:
    """Compares predictions with the clock."""
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TN4NN_CACHE"] = folder  # the calibration is this run's own
        asked: Any = {"device": device, "backend": backend, "dtype": dtype} if runtime == "program" else {}
        place = place_of(backend, device, dtype) if asked else None
        calibration = tn.calibrate(**asked, progress=lambda line: console.print(line, highlight=False))
        machines = {"default": calibration.default, "calibrated": calibration.machine}
        cells: list[dict[str, Any]] = []
        left_out = 0
        for question in questions(tn.catalogue() if only is None else only.split(",")):
            result = cell(question, machines, place)
            if result is None:
                left_out += 1
                continue
            cells.append(result)
            told = "  ".join(
                f"{name} {result[name]['predicted_s'] * 1e3:9.4g} / {result[name]['measured_s'] * 1e3:9.4g} ms"
                for name in machines
            )
            title = f"{result['topology']} rank {result['rank']}, batch {result['batch']}, {result['phase']}"
            console.print(f"{title:44} {told}", highlight=False)
    found = summary(cells, list(machines))
    table = Table(title=f"Predicted against measured: {calibration.what}")
    for column in ("figures", "cells", "rank correlation", "median error", "median predicted / measured"):
        table.add_column(column)
    for name, all_of in found.items():
        table.add_row(
            name, str(all_of["cells"]), f"{all_of['spearman']:.3f}", f"{all_of['median_error']:.0%}",
            f"{all_of['median_ratio']:.2f}",
        )  # fmt: skip
    console.print(table)
    if json_file is not None:
        data = {
            "schema": 1, "benchmark": "prediction", "machine": _measure.machine(), "versions": _measure.versions(),
            "calibration": calibration.to_dict(), "too_long": left_out, "summary": found, "cells": cells,
        }  # fmt: skip
        json_file.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
