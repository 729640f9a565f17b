"""The builds of the C kernel that a wheel brings, next to one compiled with -march=native: the same plans, interleaved.

    python benchmarks/kernel_builds.py --json benchmarks/results/kernel_builds.json
    python benchmarks/kernel_builds.py --libraries unpacked/tn4nn/_runtime/kernels --variants avx2,sse2

A training step of a layer of the work set, in one thread. Each round runs all builds in another order; times are those
of the processor, and ratios are paired within a round.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import typer
from _measure import machine
from _workset import CASES as KNOWN
from rich.console import Console
from rich.table import Table

import tn4nn as tn
from tn4nn._runtime import compiled, kernels, native
from tn4nn._runtime.native import Native
from tn4nn._runtime.variants import file_name

CASES = ("1024-chi4", "1024-chi16", "btt-4096", "cp", "tree5", "fc2-chi16")
ROWS = (32, 256)


def ready(path: Path) -> ctypes.CDLL:
    """A library that gives numpy's numbers."""
    library = ctypes.CDLL(str(path))
    if not native.agrees(4, library):
        raise RuntimeError(f"{path} failed its self-check")
    return library


def step_of(plan: tn.Plan, library: ctypes.CDLL) -> Callable[[], None]:
    """A training step, by that library."""
    runtime, net, rows = Native(plan.recipe, library), plan.network, plan.request.batch
    cores = [np.ascontiguousarray(core) for core in net.init(0).values()]
    rng = np.random.default_rng(0)
    x, gy = (rng.standard_normal((rows, n)).astype(np.float32) for n in (net.in_features, net.out_features))
    y, gx, grads = np.empty_like(gy), np.empty_like(x), [np.empty_like(core) for core in cores]
    saved = np.empty(max(1, runtime.saved(rows)), np.float32)
    at, to, wanted = [c.ctypes.data for c in cores], [grad.ctypes.data for grad in grads], (True,) * (1 + len(cores))
    saves = bool(runtime.saved(rows))

    def step() -> None:
        given = rows, at, saved.ctypes.data if saves else 0, x.ctypes.data
        runtime.forward(*given, y.ctypes.data)
        runtime.backward(*given, gy.ctypes.data, gx.ctypes.data, to, wanted)

    step.arrays = cores, grads  # type: ignore[attr-defined]  # the others are the function's own

    return step


def times(steps: list[Callable[[], None]], rounds: int) -> list[list[float]]:
    """Seconds of the processor for each build, round by round."""
    for step in steps:
        step()
    start = time.thread_time()
    steps[0]()
    repeats, order = max(1, round(0.01 / max(time.thread_time() - start, 1e-6))), list(range(len(steps)))
    found: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        random.shuffle(order)
        for i in order:
            start = time.thread_time()
            for _ in range(repeats):
                steps[i]()
            found[i].append((time.thread_time() - start) / repeats)
    return found


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None,
    libraries: Annotated[Path, typer.Option(help="The folder with the builds.")] = kernels.AHEAD,
    variants: Annotated[str, typer.Option(help="Of these vectors, with commas.")] = "avx2",
    cases: Annotated[str, typer.Option(help="Of the work set, with commas.")] = ",".join(CASES),
    rounds: Annotated[int, typer.Option(help="Of all builds.")] = 60,
) -> None:
    """Measures the builds."""
    names = variants.split(",")
    built = [ready(compiled.build(4)), *(ready(libraries / file_name(name, 4)) for name in names)]
    rows = []
    for name in cases.split(","):
        for batch in ROWS:
            plan = tn.plan(KNOWN[name].network(), batch, "train", runtime="native")
            found = times([step_of(plan, library) for library in built], rounds)
            ratios = {
                variant: statistics.median(b / a for a, b in zip(found[0], ours, strict=True))
                for variant, ours in zip(names, found[1:], strict=True)
            }
            rows.append({"case": name, "batch": batch, "native_s": statistics.median(found[0]), "ratios": ratios})
    table = Table(title="A training step, next to -march=native")
    for column in ("layer", "batch", "native, us", *names):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row["case"], str(row["batch"]), f"{row['native_s'] * 1e6:.0f}", *(f"{row['ratios'][n]:.3f}" for n in names)
        )
    Console().print(table)
    if json_file is not None:
        compiler = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=False).stdout
        record = {
            "schema": 1,
            "machine": machine(),
            "threads": 1,
            "gcc": compiler.strip(),
            "rounds": rounds,
            "rows": rows,
        }
        json_file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
