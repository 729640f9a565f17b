"""What is not arithmetic: the overhead of a call at batch 1, the time to plan, the time to import.

    python benchmarks/overhead.py --json benchmarks/results/overhead.json

Calls are of layers so small that only the call counts, forward without gradients and a training step, beside nn.Linear
in the same process and thread, torch's extension built. Plans are of the native runtime and of programs, without any
cache and from the disk in a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
from rich.console import Console
from rich.table import Table

import tn4nn as tn

LIMITS = {2: 1.5, 5: 3.0}  # of nn.Linear's call, by the number of cores


def call_seconds(call: Callable[[], object], times: int = 2000, rounds: int = 9) -> float:
    """The least of some rounds."""
    call()
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(times):
            call()
        best = min(best, (time.perf_counter() - start) / times)
    return best


def calls() -> list[dict[str, Any]]:
    """A row for each number of cores, with and without a bias, and phase."""
    import torch
    from tn4nn_torch import TNLinear, build_extension

    torch.set_num_threads(1)
    build_extension()
    rows = []
    for cores, bias in itertools.product(LIMITS, (False, True)):
        net = tn.mpo((2,) * cores, (2,) * cores).with_rank(2)
        width = net.in_features
        ours, dense = TNLinear(net, bias=bias, batch=1), torch.nn.Linear(width, width, bias=bias)
        for phase in ("forward", "train"):
            seconds = [_layer_seconds(layer, width, phase) for layer in (ours, dense)]
            rows.append({"cores": cores, "bias": bias, "phase": phase, "ours_s": seconds[0], "dense_s": seconds[1]})
    return rows


def _layer_seconds(layer: Any, width: int, phase: str) -> float:
    import torch

    x, gy = torch.ones(1, width), torch.ones(1, width)
    if phase == "forward":
        with torch.no_grad():
            return call_seconds(lambda: layer(x))
    x.requires_grad_(True)
    wanted = [x, *layer.parameters()]
    return call_seconds(lambda: torch.autograd.grad(layer(x), wanted, gy))


_CHILD = """
import sys, time
start = time.perf_counter()
import tn4nn as tn
imported = time.perf_counter() - start
net = tn.Network.from_json(sys.stdin.read())
small = tn.low_rank(4, 4).with_rank(1)
tn.plan(small, 2, runtime=sys.argv[1], cache=False)  # what only the first plan imports
start = time.perf_counter()
tn.plan(net, 256, "train", runtime=sys.argv[1])
print(imported, time.perf_counter() - start)
"""


def plans() -> list[dict[str, Any]]:
    """A row for each network: planned anew, then from the disk, each in a process of its own."""
    networks = {
        "mpo, 5 cores": tn.mpo((4,) * 5, (4,) * 5).with_rank(4),
        "tree, 16 sites": tn.build("tree", 2**16, 2**16, sites=16, pad=False).with_rank(4),
        "peps 4x4": tn.build("peps", 2**16, 2**16, grid=(4, 4), pad=False).with_rank(2),
        "mpo, 64 cores": tn.mpo((2,) * 20 + (1,) * 44, (2,) * 20 + (1,) * 44).with_rank(3),
    }
    rows = []
    for name, net in networks.items():
        for runtime in ("program", "native"):
            with tempfile.TemporaryDirectory() as folder:
                environment = {**os.environ, "TN4NN_CACHE": folder}
                command = [sys.executable, "-c", _CHILD, runtime]
                found = []
                for _ in range(2):
                    done = subprocess.run(
                        command, input=net.to_json(), capture_output=True, text=True, env=environment, check=True
                    )
                    found.append([float(part) for part in done.stdout.split()])
            rows.append(
                {
                    "what": name,
                    "runtime": runtime,
                    "cold_s": found[0][1],
                    "warm_s": found[1][1],
                    "import_s": min(found[0][0], found[1][0]),
                }
            )
    return rows


def main(json_file: Annotated[Path | None, typer.Option("--json", help="Write everything here.")] = None) -> None:
    """Measures overheads."""
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    result = {"calls": calls(), "plans": plans()}
    table = Table(title="A call at batch 1")
    for name in ("layer", "phase", "us", "nn.Linear us", "ratio", "goal"):
        table.add_column(name)
    for row in result["calls"]:
        ratio, limit = row["ours_s"] / row["dense_s"], LIMITS[row["cores"]]
        verdict = f"<= {limit}: {'holds' if ratio <= limit else 'DOES NOT HOLD'}" if row["phase"] == "forward" else ""
        table.add_row(
            f"{row['cores']} cores{', bias' * row['bias']}",
            row["phase"],
            f"{row['ours_s'] * 1e6:.1f}",
            f"{row['dense_s'] * 1e6:.1f}",
            f"{ratio:.2f}",
            verdict,
        )
    console.print(table)
    table = Table(title="Planning a training step at batch 256")
    for name in ("network", "runtime", "cold s", "warm ms", "import s"):
        table.add_column(name)
    for row in result["plans"]:
        figures = (f"{row['cold_s']:.2f}", f"{row['warm_s'] * 1e3:.2f}", f"{row['import_s']:.2f}")
        table.add_row(row["what"], row["runtime"], *figures)
    console.print(table)
    if json_file is not None:
        data = {"machine": _measure.machine(), "versions": _measure.versions(), **result}
        json_file.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
