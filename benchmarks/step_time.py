"""The time of one TN layer, forward and training step, against dense and against every other way to run it.

    python benchmarks/step_time.py --quick
    python benchmarks/step_time.py --only 1024-chi4/256 --peers tn4nn-torch,dense-torch,cotengra
    python benchmarks/step_time.py --threads 2 --json results.json

See benchmarks/README.md for what is measured and how.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
import _workset
from _cell import ITEM, CannotExpressError, CaseData, Cell, SkippedError, WrongError
from _goals import goals, means, name_of, summarised
from _peers import PEERS, Peer
from _runners import Runner
from rich.console import Console
from rich.table import Table

SCHEMA = 1
SHORT = "With --short: at least 7 rounds a cell, 3 where 7 would take more than 6 s."


def limit_threads(threads: int) -> None:
    """Holds every framework to that many threads; before torch, jax or numpy's BLAS is first used."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)
    flags = [f"--xla_cpu_multi_thread_eigen={'false' if threads == 1 else 'true'}"]
    flags.append(f"intra_op_parallelism_threads={threads}")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler and allocator write to stderr otherwise
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if hasattr(os, "sched_setaffinity"):  # XLA runs independent products on as many threads as it sees cores
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:threads])
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(threads)


def full_precision() -> None:
    """Products of float32 in float32: jax's are TF32 on a GPU if it is not told."""
    try:
        import jax
    except ImportError:
        return
    jax.config.update("jax_default_matmul_precision", "highest")


# -- one cell ------------------------------------------------------------------------------------------------


def measure_cell(cell: Cell, peers: list[Peer], settings: _measure.Settings) -> dict[str, Any]:
    """All rows of one cell, and ours against the others."""
    rows, runners = [], {}
    for peer in peers:
        result, runner = _prepared(peer, cell)
        rows.append(result)
        if runner is not None:
            runners[peer.name] = runner
    times: dict[str, list[float]] = {}
    if runners:
        times, repeats = _measure.interleaved(runners, settings)
        for result in rows:
            if result["peer"] in runners:
                _fill(result, cell, runners[result["peer"]], times[result["peer"]], repeats[result["peer"]])
    network, case = cell.network, cell.data.case
    return {
        "case": case.name,
        "topology": network.topology.name,
        "chi": case.chi,
        "params": network.num_params,
        "dense_params": network.dense_params,
        "in_features": network.in_features,
        "out_features": network.out_features,
        "batch": cell.batch,
        "phase": cell.phase,
        "least_bytes": cell.least_bytes,
        "summary": summarised(rows, times),
        "rows": rows,
    }


def _prepared(peer: Peer, cell: Cell) -> tuple[dict[str, Any], Runner | None]:
    """A row, and a runner whose values were found right, where there is one."""
    result: dict[str, Any] = {"peer": peer.name, "framework": peer.framework, "role": peer.role, "reason": ""}
    missing = peer.missing()
    if missing:
        return {**result, "status": "not installed", "reason": f"needs {', '.join(missing)}"}, None
    if cell.device != "cpu" and peer.framework == "jax" and not _jax_has(cell.device):
        return {**result, "status": "skipped", "reason": f"jax has no device {cell.device}"}, None
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runner = peer.make(cell)
            runner.check()
    except CannotExpressError as error:
        return {**result, "status": "cannot express", "reason": str(error)}, None
    except SkippedError as error:
        return {**result, "status": "skipped", "reason": str(error)}, None
    except WrongError as error:
        return {**result, "status": "wrong", "reason": str(error)}, None
    except Exception as error:  # a competitor that breaks is a row, not the end of the run
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return {**result, "status": "failed", "reason": reason[:200]}, None
    return {**result, "status": "ok", "setup_s": round(time.perf_counter() - start, 3)}, runner


def _jax_has(device: str) -> bool:
    import jax

    return bool(jax.default_backend() == {"cuda": "gpu"}.get(device.split(":")[0], device))


def _fill(row: dict[str, Any], cell: Cell, runner: Runner, times: list[float], repeats: int) -> None:
    row["time"] = _measure.spread(times).to_dict()
    row["rounds"], row["repeats"] = len(times), repeats
    row["macs"] = runner.macs
    limit = None if runner.macs is None else cell.limits.seconds(runner.macs, cell.least_bytes)
    row["limit_s"] = limit
    row["share_of_limit"] = None if limit is None else limit / row["time"]["median"]
    row["notes"] = runner.notes
    for name in ("saved_bytes", "peak_bytes"):
        try:
            row[name] = getattr(runner, name)()
        except Exception as error:  # a figure that cannot be had is no reason to lose the times
            row[name], row["notes"] = (
                None,
                {**row["notes"], name: f"{type(error).__name__}: {error}"[:200]},
            )


# -- all cells -----------------------------------------------------------------------------------------------


def measure(
    questions: list[tuple[_workset.Case, int, str]],
    peers: list[Peer],
    settings: _measure.Settings,
    limits: _measure.Limits,
    device: str = "cpu",
    dtype: str = "float32",
) -> Iterator[dict[str, Any]]:
    """Cells one by one, those of a case sharing its numbers."""
    data: CaseData | None = None
    for case, batch, phase in questions:
        if data is None or data.case is not case:
            data = CaseData(case)
        yield measure_cell(Cell(data, batch, phase, device, settings, limits, dtype), peers, settings)


def report(
    cells: list[dict[str, Any]],
    limits: _measure.Limits,
    threads: int,
    device: str,
    quick: bool,
    started: float,
    dtype: str = "float32",
    note: str = "",
) -> dict[str, Any]:
    """Everything as plain data; `note`: what a reader of the figures should know."""
    return {
        "schema": SCHEMA,
        "benchmark": "step_time",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started, 1),
        "machine": _measure.machine(),
        "versions": _measure.versions(),
        "threads": threads,
        "device": device,
        "device_name": _measure.device_name(device),
        "dtype": dtype,
        "quick": quick,
        "note": note,
        "limits": {"macs_per_s": limits.macs_per_s, "bytes_per_s": limits.bytes_per_s},
        "means": means(cells),
        "goals": goals(cells),
        "cells": cells,
    }


def write(path: Path, data: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(temporary, path)


# -- what is printed -----------------------------------------------------------------------------------------


def _ms(value: float) -> str:
    return f"{value * 1e3:.3g}"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value / 2**20:.2f}"


def refusals(cell: dict[str, Any]) -> list[str]:
    """A line for each competitor that was not timed, with the reason."""
    return [f"  {r['peer']}: {r['status']}: {r['reason']}" for r in cell["rows"] if r["status"] != "ok"]


def cell_table(cell: dict[str, Any]) -> Table:
    """One cell: a line for each competitor that was timed, losses among them."""
    title = f"{name_of(cell)}  {cell['in_features']}->{cell['out_features']}, {cell['params']:,} params"
    table = Table(title=title)
    for name in ("competitor", "ms", "quartiles", "/ dense", "MMACs", "limit", "saved MiB", "peak MiB"):
        table.add_column(name, no_wrap=name in ("competitor", "quartiles"))
    for r in cell["rows"]:
        if r["status"] != "ok":
            continue
        t, style = r["time"], "bold" if r["role"] == "ours" else ""
        table.add_row(
            r["peer"],
            _ms(t["median"]),
            f"{_ms(t['q1'])}..{_ms(t['q3'])}",
            "-" if r["vs_dense"] is None else f"{r['vs_dense']['median']:.2f}",
            "-" if r["macs"] is None else f"{r['macs'] / 1e6:.3g}",
            "-" if r["share_of_limit"] is None else f"{r['share_of_limit']:.0%}",
            _mib(r["saved_bytes"]),
            _mib(r["peak_bytes"]),
            style=style,
        )
    return table


def summary_table(cells: list[dict[str, Any]]) -> Table:
    """One line a cell: ours against dense and against the best peer."""
    table = Table(title="Summary")
    for name in ("cell", "torch / dense", "best peer", "peer / torch", "jax / dense", "peer / jax"):
        table.add_column(name, no_wrap=name in ("cell", "best peer"))
    for cell in cells:
        torch, jax = (cell["summary"].get(name, {}) for name in ("torch", "jax"))
        entries = [
            _figure(torch, "vs_dense", 1),
            torch.get("best_peer") or "-",
            _figure(torch, "peer_vs_ours", -1),
        ]
        table.add_row(name_of(cell), *entries, _figure(jax, "vs_dense", 1), _figure(jax, "peer_vs_ours", -1))
    return table


def _figure(summary: dict[str, Any], key: str, better: int) -> str:
    """A ratio, red where we lose; `better` is 1 where small is good."""
    found = summary.get(key)
    if found is None:
        return "-"
    lost = found["median"] > 1 if better > 0 else found["median"] < 1
    text = f"{found['median']:.2f}"
    return f"[red]{text}[/]" if lost else text


def show(console: Console, data: dict[str, Any]) -> None:
    """The summary, the means and the goals."""
    console.print(summary_table(data["cells"]))
    for label, found in data["means"].items():
        if found["mean"] is not None:
            console.print(f"geometric mean, {label}: {found['mean']:.3f} ({found['cells']} cells)", highlight=False)
    for label, goal in data["goals"].items():
        console.print(goal_line(label, goal), highlight=False)


def goal_line(label: str, goal: dict[str, Any]) -> str:
    """A goal, its verdict, and what breaks it most."""
    verdict = {None: "no cells", True: "holds", False: "DOES NOT HOLD"}[goal["holds"]]
    if "mean" in goal:
        return f"{label}: {verdict}" + ("" if goal["mean"] is None else f" ({goal['mean']:.2f}, {goal['cells']} cells)")
    worst = ", ".join(f"{name} {value:.2f}" for name, value in goal["worst"].items())
    more = ", ".join(f"{name} {value:.2f}" for name, value in goal.get("macs_over_dense", {}).items())
    more = f"; of these, multiply-adds over dense's: {more}" if more else ""
    return f"{label}: {verdict} ({goal['broken']} of {goal['cells']} break it{': ' + worst if worst else ''}{more})"


# -- the command ---------------------------------------------------------------------------------------------


def _chosen(names: str | None) -> list[Peer]:
    if names is None:
        return list(PEERS.values())
    unknown = [name for name in names.split(",") if name not in PEERS]
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return [PEERS[name] for name in names.split(",")]


def _numbers(batches: str | None) -> tuple[int, ...]:
    if batches is None:
        return _workset.BATCHES
    found = [batch.strip() for batch in batches.split(",")]
    if not all(batch.isdecimal() and int(batch) for batch in found):
        raise typer.BadParameter(f"expected whole numbers by commas, received {batches!r}", param_hint="--batches")
    return tuple(map(int, found))


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A few cells, under 3 minutes.")] = False,
    short: Annotated[bool, typer.Option("--short", help="The rounds of --quick for all cells.")] = False,
    only: Annotated[str | None, typer.Option(help="Parts of case/batch/phase, by commas.")] = None,
    batches: Annotated[str | None, typer.Option(help="Other batches than 1,32,256,2048.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every framework.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all rows here.")] = None,
    peers: Annotated[str | None, typer.Option(help="Competitors, by commas; default all.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 (on a GPU).")] = "float32",
    limit_s: Annotated[
        float, typer.Option("--limit", min=0, help="Seconds after which no cell is begun; 0: none.")
    ] = 0,
) -> None:
    """Times TN layers against dense layers and against every other way to run them."""
    chosen, cells = _chosen(peers), []
    questions = _workset.questions(quick, only, _numbers(batches))
    if dtype not in ITEM or (dtype != "float32" and device == "cpu"):
        raise typer.BadParameter("expected float32, or on a GPU bfloat16", param_hint="--dtype")
    if not questions:
        raise typer.BadParameter(f"no cell matches {only!r}; a cell is case/batch/phase", param_hint="--only")
    limit_threads(threads)
    if device != "cpu":
        full_precision()
    started = time.perf_counter()
    settings = _measure.QUICK if quick or short else _measure.Settings()
    limits, console = _measure.probe(device, dtype), Console()
    console = console if console.is_terminal else Console(width=120)
    console.print(
        f"{limits.macs_per_s / 1e9:.0f} GMAC/s, {limits.bytes_per_s / 1e9:.0f} GB/s, {threads} thread(s), {device}, "
        f"{dtype}",
        highlight=False,
    )
    for cell in measure(questions, chosen, settings, limits, device, dtype):
        cells.append(cell)
        console.print(cell_table(cell))
        for line in refusals(cell):
            console.print(line, style="dim", highlight=False, markup=False)
        data = report(cells, limits, threads, device, quick, started, dtype, SHORT if short else "")
        if json_file is not None:
            write(json_file, data)
        if limit_s and time.perf_counter() - started > limit_s:
            console.print(f"{len(questions) - len(cells)} cells were not begun: --limit {limit_s:g}")
            break
    show(console, data)
    console.print(f"{data['seconds']:.0f} s", highlight=False)


if __name__ == "__main__":
    typer.run(main)
