"""torch.compile on a CPU: the time of compilation and of a training step, on networks and dense.

    python benchmarks/compiled_model.py --json benchmarks/results/compiled_model.json

Twelve layers in six residual blocks (LayerNorm, 256 -> 1024, GELU, 1024 -> 256), 256 rows: dense, and on MPOs and
block tensor trains at a quarter of the weights. Each model compiles in a process of its own with an empty cache
(inductor, one compile thread), in turns; a step is timed eager and compiled in the same process, in turns. Traces are
counted over six batch sizes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
from rich.console import Console

import tn4nn as tn

Row = dict[str, Any]

WIDTH, HIDDEN, BLOCKS, ROWS, SHARE = 256, 1024, 6, 256, 0.25
KINDS = ("dense", "mpo", "btt")
BATCHES = (256, 100, 7, 64, 300, 31)
COLUMNS = ("layers", "weights", "compile s", "over dense", "eager ms", "compiled / eager", "traces")


def model(kind: str) -> Any:
    """The model of one kind of layer."""
    import torch
    from tn4nn_torch import TNLinear

    def layer(ins: int, outs: int, seed: int) -> Any:
        if kind == "dense":
            return torch.nn.Linear(ins, outs)
        return TNLinear(tn.build(kind, ins, outs).with_budget(params=round(SHARE * ins * outs)), seed=seed)

    class Residual(torch.nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            parts = torch.nn.LayerNorm(WIDTH), layer(WIDTH, HIDDEN, seed), torch.nn.GELU(), layer(HIDDEN, WIDTH, seed)
            self.inner = torch.nn.Sequential(*parts)

        def forward(self, x: Any) -> Any:
            return x + self.inner(x)

    return torch.nn.Sequential(*(Residual(seed) for seed in range(BLOCKS)))


def step(call: Any, module: Any, x: Any) -> None:
    """Forward and backward pass."""
    module.zero_grad()
    call(x).square().mean().backward()


def measure(kind: str, rounds: int, threads: int) -> Row:
    """One process: what compiling takes, then steps in turns."""
    import torch
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module, x = model(kind), torch.randn(ROWS, WIDTH)
    step(module, module, x)  # layers are planned
    start = time.perf_counter()
    compiled = torch.compile(module, fullgraph=True)
    step(compiled, module, x)
    seconds = time.perf_counter() - start
    times: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(rounds):
        for name, call in (("eager", module), ("compiled", compiled)):
            start = time.perf_counter()
            step(call, module, x)
            times[name].append(time.perf_counter() - start)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    traced = torch.compile(module, fullgraph=True, backend=counter)
    for rows in BATCHES:
        traced(torch.randn(rows, WIDTH))
    ratios = [b / a for a, b in zip(times["eager"], times["compiled"], strict=True)]
    return {
        "params": sum(parameter.numel() for parameter in module.parameters()),
        "compile_s": seconds,
        "eager_ms": 1e3 * statistics.median(times["eager"]),
        "compiled_over_eager": statistics.median(ratios),
        "traces": counter.frame_count,
    }


def in_a_process(kind: str, rounds: int, threads: int) -> Row:
    """`measure` in a process of its own, without what others have compiled."""
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        command = [sys.executable, __file__, "--one", kind, "--rounds", str(rounds), "--threads", str(threads)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def table(data: Row) -> tuple[str, tuple[str, ...], list[list[str]]]:
    """(title, columns, cells)."""
    dense = data["rows"]["dense"]["compile_s"]
    cells = [
        [
            kind, f"{row['params']:,}", f"{row['compile_s']:.1f}", f"{row['compile_s'] / dense:.2f}",
            f"{row['eager_ms']:.1f}", f"{row['compiled_over_eager']:.2f}", str(row["traces"]),
        ]
        for kind, row in data["rows"].items()
    ]  # fmt: skip
    return f"torch.compile, {data['threads']} thread(s)", COLUMNS, cells


def main(
    one: Annotated[str | None, typer.Option(help="Measure this kind alone, and print it as JSON.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of steps.")] = 31,
    repeats: Annotated[int, typer.Option(min=1, help="Processes of each kind, in turns.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results here.")] = None,
) -> None:
    """Times torch.compile."""
    if one is not None:
        typer.echo(json.dumps(measure(one, rounds, threads)))
        return
    found: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind in KINDS:
            found[kind].append(in_a_process(kind, rounds, threads))
    rows = {kind: {key: statistics.median(row[key] for row in each) for key in each[0]} for kind, each in found.items()}
    data: Row = {"benchmark": "compiled_model", "schema": 1, "machine": _measure.machine(), "threads": threads}
    data |= {"versions": _measure.versions(), "rows": rows}
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1) + "\n")
    console = Console()
    _measure.show(console if console.is_terminal else Console(width=140), [table(data)], [])


if __name__ == "__main__":
    typer.run(main)
