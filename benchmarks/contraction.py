r"""Path optimizers over instances: what `find_paths` finds and how fast, beside every optimizer that is installed.

    python benchmarks/contraction.py --json benchmarks/results/contraction.json \
        --page docs/pages/benchmarks/contraction.md

On each instance ours runs first, as the planner calls it; the others get as many seconds as it took. On instances of
`BIG` tensors and more a long run says what is best known. Under a memory cap, paths are sliced: ours by
`slice_legs` and `reordered_slices`, and the best path of the others by the better of cotengra's `slice` and
`slice_and_reconfigure`. One process, one thread.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
import cotengra as ctg
from _instances import Absent, Instance, instances
from _optimizers import Found, Optimizer, long_run, others, ours
from _pages import Page, Table, draw_sorted, made
from _paths import Contraction
from _paths import Path as Tree
from rich.console import Console

from tn4nn._graph.paths import REORDERED, _lettered, legs_along, path_macs, reordered_slices, slice_legs

SCHEMA = 1
BIG = 60  # tensors from which a long run says what is best known
LIMIT_S = 10.0  # the planner's
SMALL_S = ((16, 1.0), (127, 10.0))  # tensors, and seconds within which ours must be done
SAME = 1 + 1e-9  # equal costs differ in the last digits of floats
NEAR = 1.02  # of the best known
SLICED = 16  # the cap is the largest intermediate of our path over this
MOST_TENSORS_SLICED = 70

Row = dict[str, Any]


def measure(found: Iterable[Instance | Absent], others: Sequence[Optimizer], long_s: float) -> Iterator[Row]:
    """A row for each instance: ours, the others, the ratios; or why it is absent."""
    for each in found:
        if isinstance(each, Absent):
            yield {"instance": each.name, "absent": each.reason}
        else:
            yield _row(each, others, long_s)


def _row(instance: Instance, others: Sequence[Optimizer], long_s: float) -> Row:
    problem = instance.problem
    mine = ours(problem, LIMIT_S)
    paths = {"ours": mine.path}
    rows = [_entry("ours", problem, mine)]
    for other in others:
        if other.missing() or len(problem.tensors) > other.most:
            reason = f"needs {other.missing()}" if other.missing() else f"{other.most} tensors at most"
            rows.append({"optimizer": other.name, "status": "not run", "reason": reason})
            continue
        try:
            found = other.run(problem, mine.seconds)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a Rust panic derives from BaseException
            rows.append({"optimizer": other.name, "status": "failed", "reason": f"{type(error).__name__}: {error}"})
            continue
        paths[other.name] = found.path
        rows.append(_entry(other.name, problem, found))
    if long_s and len(problem.tensors) >= BIG:
        rows.append(_entry("best known", problem, long_run(problem, long_s)))
    ran = [row for row in rows if row["status"] == "ok"]
    least = min(row["macs"] for row in ran)
    for row in ran:
        row["ratio"] = row["macs"] / least
    named = {"instance": instance.name, "group": instance.group, "tensors": len(problem.tensors), "rows": rows}
    rivals = {name: path for name, path in paths.items() if name != "ours"}
    return named | {"capped": _capped(problem, mine.path, list(rivals.values()))}


def _entry(name: str, problem: Contraction, found: Found) -> Row:
    macs = path_macs(problem.tensors, problem.output, problem.sizes, found.path)
    return {
        "optimizer": name,
        "status": "ok",
        "macs": macs,
        "log10_macs": round(math.log10(macs), 4),
        "log2_largest": round(math.log2(_largest(problem, found.path)), 2),
        "seconds": float(f"{found.seconds:.4g}"),
        "first_s": float(f"{found.first_s:.4g}"),
    }


def _largest(problem: Contraction, path: Tree, sliced: Sequence[str] = ()) -> int:
    sizes = {**problem.sizes, **dict.fromkeys(sliced, 1)}
    result = legs_along(problem.tensors, problem.output, path)[len(problem.tensors) :]
    return max(math.prod(sizes[leg] for leg in legs) for legs in result)


# -- under a memory cap --------------------------------------------------------------------------------------


def _capped(problem: Contraction, mine: Tree, rivals: Sequence[Tree]) -> Row | None:
    """Multiply-adds with no intermediate above a sixteenth of our path's largest; None where the result is that large,
    for then nothing can be below it."""
    result = math.prod(problem.sizes[leg] for leg in problem.output)
    cap = _largest(problem, mine) // SLICED
    if not rivals or cap < max(2, result) or len(problem.tensors) > MOST_TENSORS_SLICED:
        return None
    theirs = min(rivals, key=lambda path: path_macs(problem.tensors, problem.output, problem.sizes, path))
    start = time.perf_counter()
    ours_macs = _ours_sliced(problem, mine, cap)
    took = time.perf_counter() - start
    start = time.perf_counter()
    cotengra_macs = _cotengra_sliced(problem, theirs, cap)
    return {
        "largest": cap,
        "ours_macs": ours_macs,
        "ours_s": float(f"{took:.4g}"),
        "cotengra_macs": cotengra_macs,
        "cotengra_s": float(f"{time.perf_counter() - start:.4g}"),
    }


def _sliced_macs(problem: Contraction, path: Tree, sliced: Sequence[str] | None) -> int | None:
    """Multiply-adds of all slices together."""
    if sliced is None:
        return None
    sizes = {**problem.sizes, **dict.fromkeys(sliced, 1)}
    return path_macs(problem.tensors, problem.output, sizes, path) * math.prod(problem.sizes[leg] for leg in sliced)


def _ours_sliced(problem: Contraction, path: Tree, cap: int) -> int | None:
    """The least of what the planner tries: the order as it is, and reordered while it is sliced."""
    question = problem.tensors, problem.output, problem.sizes, path
    found = [_sliced_macs(problem, path, slice_legs(*question, cap))]
    for way in REORDERED:
        for order, sliced in reordered_slices(*question, *way):
            if _largest(problem, order, sliced) <= cap:
                found.append(_sliced_macs(problem, order, sliced))
                break
    return min((macs for macs in found if macs is not None), default=None)


def _cotengra_sliced(problem: Contraction, path: Tree, cap: int) -> int | None:
    """The less of cotengra's two ways: the order as it is, and reconfigured while it is sliced."""
    inputs, output, sizes = _lettered(problem.tensors, problem.output, problem.sizes)
    whole = {leg: int(size) for leg, size in sizes.items()}
    tree: Any = ctg.ContractionTree.from_path(inputs, output, whole, ssa_path=path)
    found = []
    for slicing in (lambda: tree.slice(target_size=cap, allow_outer=False, seed=0),
                    lambda: tree.slice_and_reconfigure(cap, allow_outer=False)):  # fmt: skip
        try:
            sliced = slicing()
        except (RuntimeError, ValueError, KeyError):
            continue
        if sliced.max_size() <= cap:
            found.append(int(sliced.total_flops()))
    return min(found, default=None)


# -- what it shows -------------------------------------------------------------------------------------------


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """Each goal: on how many instances it holds, and where it does not."""
    there = [row for row in rows if "rows" in row]
    found = [_verdict("cost <= the best of all others in the same time", there, lambda row: _against(row) <= SAME)]
    for most, seconds in SMALL_S:
        some = [row for row in there if row["tensors"] <= most]
        goal = f"found in <= {seconds:g} s with <= {most} tensors"
        found.append(_verdict(goal, some, lambda row, limit=seconds: _of(row, "ours")["seconds"] <= limit))
    big = [row for row in there if _of(row, "best known")]
    near = "within 2 % of the best known cost"
    return [*found, _verdict(near, big, lambda row: _of(row, "ours")["ratio"] <= NEAR)]


def _verdict(goal: str, rows: Sequence[Row], holds: Any) -> Row:
    fails = [row["instance"] for row in rows if not holds(row)]
    return {"goal": goal, "instances": len(rows), "holds": len(rows) - len(fails), "fails": fails}


def _of(row: Row, name: str) -> Row:
    return next((entry for entry in row["rows"] if entry["optimizer"] == name and entry["status"] == "ok"), {})


def _best_other(row: Row) -> Row:
    """The cheapest of the others in the same time; the faster of equal ones."""
    ran = [e for e in row["rows"] if e["status"] == "ok" and e["optimizer"] not in ("ours", "best known")]
    return min(ran, key=lambda entry: (entry["macs"], entry["seconds"]))


def _against(row: Row) -> float:
    return float(_of(row, "ours")["macs"] / _best_other(row)["macs"])


COLUMNS = (
    "instance", "tensors", "s", "first s", "log10 MACs", "log2 largest", "best other", "its log10", "ours / it",
    "ours / best known",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    mine, other, known = _of(row, "ours"), _best_other(row), _of(row, "best known")
    return [
        row["instance"], str(row["tensors"]), f"{mine['seconds']:.3g}", f"{mine['first_s']:.2g}",
        f"{mine['log10_macs']:.3f}", f"{mine['log2_largest']:.1f}", other["optimizer"], f"{other['log10_macs']:.3f}",
        f"{_against(row):.3f}", f"{mine['macs'] / known['macs']:.3f}" if known else "-",
    ]  # fmt: skip


CAP_COLUMNS = ("instance", "cap, log2", "ours, log10 MACs", "cotengra, log10 MACs", "ours s", "cotengra s")


def _cap_cells(row: Row) -> list[str]:
    capped = row["capped"]
    macs = ["none" if capped[k] is None else f"{math.log10(capped[k]):.3f}" for k in ("ours_macs", "cotengra_macs")]
    return [
        row["instance"], f"{math.log2(capped['largest']):.1f}", *macs, f"{capped['ours_s']:.2g}",
        f"{capped['cotengra_s']:.2g}",
    ]  # fmt: skip


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """For each optimizer: instances it ran on, geometric mean and worst of its cost over the best, total seconds."""
    names = dict.fromkeys(entry["optimizer"] for row in rows if "rows" in row for entry in row["rows"])
    found = []
    for name in names:
        ran = [_of(row, name) for row in rows if "rows" in row and _of(row, name)]
        mean = _measure.geometric_mean([entry["ratio"] for entry in ran])
        if mean is not None:
            worst, seconds = max(entry["ratio"] for entry in ran), sum(entry["seconds"] for entry in ran)
            found.append([name, str(len(ran)), f"{mean:.3f}", f"{worst:.3g}", f"{seconds:.1f}"])
    return found


SUMMARY_COLUMNS = ("optimizer", "instances", "cost / best, geometric mean", "worst", "s in all")


def tables(data: Row) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """(title, columns, cells) of all that is shown."""
    there = [row for row in data["instances"] if "rows" in row]
    yield "Optimizers over all instances", SUMMARY_COLUMNS, summary(there)
    yield "Ours beside the best other in the same time", COLUMNS, [_cells(row) for row in there]
    capped = [row for row in there if row["capped"]]
    yield f"Sliced to a largest intermediate {SLICED} times smaller", CAP_COLUMNS, [_cap_cells(row) for row in capped]


def lines(data: Row) -> Iterator[str]:
    """The verdicts, what is absent, and what took part, in words."""
    for v in data["verdicts"]:
        fails = f"; not on {', '.join(v['fails'])}" if v["fails"] else ""
        yield f"{v['goal']}: holds on {v['holds']} of {v['instances']}{fails}"
    for row in data["instances"]:
        if "absent" in row:
            yield f"absent: {row['instance']}: {row['absent']}"
    if data["left"]:
        yield f"not run in this file: {', '.join(data['left'])}; `--resume` goes on with them"


def page(data: Row) -> str:
    """The page of docs; its figure lies beside it."""
    first = data["verdicts"][0]
    return str(
        Page(
            title="Contraction paths",
            finding=f"Of {first['instances']} networks, our search finds a path that costs no more than the best of "
            f"all others in the same time on {first['holds']}.",
            figure=("contraction.png", "Cost of the best path of the others over the cost of ours"),
            made=made("benchmarks/contraction.py", "contraction.json", data),
            method="Ours is the search that the planner calls, up to its own end; each of the others got as many "
            "seconds on that instance, and at least one trial. Costs are multiply-adds of a forward pass at batch 64. "
            "Best known is the cheapest of everything here and a run of cotengra's hyper-optimizer of "
            f"{data['long_s']:g} s, half with reconfigured subtrees, half annealed, with partitions where kahypar is "
            "installed. Hyper-searches are not reproducible: their figures move from run to run, ours do not.",
            points=list(lines(data)),
            tables=[Table(title, columns, cells) for title, columns, cells in tables(data)],
        )
    )


def draw(data: Row, path: Path) -> None:
    """How many times as much as ours the path of each kind of other optimizer costs."""
    curves: dict[str, list[float]] = {}
    for instance in data["instances"]:
        for row in instance.get("rows", []):
            if row["status"] == "ok" and row["optimizer"] != "ours" and row.get("ratio"):
                curves.setdefault(row["optimizer"], []).append(row["ratio"])
    most = sorted(curves, key=lambda name: -len(curves[name]))[:8]
    draw_sorted(path, {name: curves[name] for name in most}, "cost / ours", "instances, sorted")


def report(rows: list[Row], long_s: float, left: Sequence[str] = (), parallel: bool | int | str = False) -> Row:
    """All results, as they are written; `left`: instances that were not reached."""
    versions = _measure.versions(("kahypar", "optuna", "cmaes", "networkx", "einsum-benchmark"))
    head = {"benchmark": "contraction", "schema": SCHEMA, "machine": _measure.machine(), "versions": versions}
    return head | {
        "long_s": long_s,
        "parallel": parallel,
        "verdicts": verdicts(rows),
        "instances": rows,
        "left": list(left),
    }


def main(
    quick: Annotated[bool, typer.Option("--quick", help="4 and 16 sites and one graph of 64 tensors.")] = False,
    only: Annotated[str | None, typer.Option(help="Parts of instance names, by commas.")] = None,
    long_s: Annotated[float, typer.Option("--long", help="Seconds of the run for the best known cost.")] = 20.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results here.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the instances that are in --json.")] = False,
    page_file: Annotated[Path | None, typer.Option("--page", help="Write the page of docs here.")] = None,
    parallel: Annotated[
        str | None,
        typer.Option(
            help="Processes of cotengra's hyper-optimizers, or what runs them: concurrent.futures, dask, ray."
        ),
    ] = None,
) -> None:
    """Compares path optimizers."""
    how = False if parallel is None else int(parallel) if parallel.isdigit() else parallel
    parts = None if only is None else only.split(",")
    long_s = min(long_s, 5.0) if quick else long_s
    chosen = [each for each in instances(quick) if parts is None or any(part in each.name for part in parts)]
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    rows: list[Row] = []
    if resume and json_file is not None and json_file.exists():
        rows = json.loads(json_file.read_text())["instances"]
    done = {row["instance"] for row in rows}
    left = [each for each in chosen if each.name not in done]
    data = report(rows, long_s, [each.name for each in left], how)
    for row in measure(left, others(how), long_s):
        rows.append(row)
        said = row.get("absent") or f"{_against(row):.3f} of the best other, {_of(row, 'ours')['seconds']:.2f} s"
        console.print(f"[{len(rows)}/{len(chosen)}] {row['instance']}: {said}", style="dim", markup=False)
        data = report(rows, long_s, [each.name for each in left[len(rows) - len(done) :]], how)
        if json_file is not None:  # a run that is stopped keeps what it has
            json_file.write_text(json.dumps(data, indent=1) + "\n")
        if page_file is not None:
            page_file.write_text(page(data))
            draw(data, page_file.with_suffix(".png"))
    _measure.show(console, tables(data), lines(data))


if __name__ == "__main__":
    typer.run(main)
