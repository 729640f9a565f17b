"""`tn.einsum` beside torch.einsum, jnp.einsum, opt_einsum, cotengra and quimb, over layers, networks and classics.

    python benchmarks/einsum.py --json benchmarks/results/einsum.json --page docs/pages/benchmarks/einsum-peers.md

A contraction is a forward pass without gradients, called as each library's users would: paths, expressions and compiled
functions are made before, and tn.einsum has seen the equation. All results are compared before anything is timed. One
process; the rounds go through all competitors in another order each time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
import numpy as np
from _einsums import Absent, Einsum, einsums, is_runnable
from _pages import Page, Table, draw_sorted, made
from rich.console import Console

from tn4nn import BackendError

SCHEMA = 1
SEARCH_S = 3.0  # seconds of path search, for all who can be told
SETTINGS = _measure.Settings(rounds=5, most_rounds=21, cell_s=0.5, hard_s=5.0)
GOALS = {"layers": 1.3, "networks": 1.0, "classics": 1.0}  # geometric means of best other / ours
LEAST = 0.9  # of any case
CLOSE = 2e-3  # relative to the largest number of the result; sums of millions of float32
OURS = ("tn4nn torch", "tn4nn jax", "tn4nn numpy")

Row = dict[str, Any]
Call = Callable[[], Any]


class Timed:
    """A call that can be repeated."""

    def __init__(self, call: Call, wait: Callable[[Any], object]) -> None:
        self.call, self.wait = call, wait

    def run(self, times: int) -> None:
        """See _measure.Timed."""
        result = None
        for _ in range(times):
            result = self.call()
        self.wait(result)


# -- the competitors -----------------------------------------------------------------------------------------


@functools.cache
def _extension() -> None:
    """Compiles now what a process that makes many calls compiles in the background."""
    from tn4nn_torch import build_extension

    with contextlib.suppress(BackendError):
        build_extension()


def _ours_torch(each: Einsum, arrays: Any) -> Call:
    import tn4nn as tn

    _extension()
    equation, given = each.equation, arrays["torch"]
    return lambda: tn.einsum(equation, *given, time_limit=SEARCH_S)


def _ours_numpy(each: Einsum, arrays: Any) -> Call:
    import tn4nn as tn

    equation, given = each.equation, arrays["numpy"]
    return lambda: tn.einsum(equation, *given, time_limit=SEARCH_S)


def _ours_jax(each: Einsum, arrays: Any) -> Call:
    import tn4nn as tn

    equation, given = each.equation, arrays["jax"]
    return lambda: tn.einsum(equation, *given, time_limit=SEARCH_S)


def _torch_einsum(each: Einsum, arrays: Any) -> Call:
    import torch

    equation, given = each.equation, arrays["torch"]
    if not equation.isascii():
        raise ValueError("torch.einsum has 52 letters")
    return lambda: torch.einsum(equation, *given)


def _opt_einsum(each: Einsum, arrays: Any) -> Call:
    import opt_einsum

    expression = opt_einsum.contract_expression(each.equation, *each.problem.shapes, optimize=_oe_path(each))
    given = arrays["torch"]
    return lambda: expression(*given, backend="torch")


@functools.cache
def _oe_path(each: Einsum) -> Any:
    import opt_einsum

    path, _ = opt_einsum.contract_path(each.equation, *each.problem.shapes, shapes=True, optimize="auto-hq")
    return path


@functools.cache
def _tree(each: Einsum) -> Any:
    """What cotengra finds in the time: the optimum of few tensors, else its hyper-optimizer."""
    import cotengra as ctg

    problem = each.problem
    search: Any = "optimal"
    if len(problem.tensors) > 16:
        search = ctg.HyperOptimizer(
            methods=["greedy"], minimize="combo", max_time=SEARCH_S, max_repeats=10_000, parallel=False,
            optlib="sbplx", reconf_opts={}, progbar=False,
        )  # fmt: skip
    return ctg.array_contract_tree(
        list(problem.tensors), problem.output, size_dict=dict(problem.sizes), optimize=search
    )


def _cotengra(each: Einsum, arrays: Any, framework: str = "torch", **options: Any) -> Call:
    import cotengra as ctg

    problem, given = each.problem, arrays[framework]
    path = _tree(each).get_path()
    expression = ctg.array_contract_expression(
        list(problem.tensors), problem.output, size_dict=dict(problem.sizes), optimize=path, **options
    )
    return lambda: expression(*given)


def _cotengra_numpy(each: Einsum, arrays: Any) -> Call:
    return _cotengra(each, arrays, "numpy")


def _cotengra_pytblis(each: Einsum, arrays: Any) -> Call:
    import pytblis  # noqa: F401

    return _cotengra(each, arrays, "numpy", implementation="pytblis")


def _quimb(each: Einsum, arrays: Any) -> Call:
    import quimb.tensor as qtn

    problem = each.problem
    tensors = [qtn.Tensor(a, legs) for a, legs in zip(arrays["torch"], problem.tensors, strict=True)]
    network, path = qtn.TensorNetwork(tensors), tuple(_tree(each).get_path())

    def call() -> Any:
        found = network.contract(all, output_inds=problem.output, optimize=path)
        return found.data if hasattr(found, "data") and hasattr(found, "inds") else found

    return call


def _jnp_einsum(each: Einsum, arrays: Any) -> Call:
    import jax
    import jax.numpy as jnp

    equation, path, given = each.equation, _oe_path(each), arrays["jax"]
    compiled = jax.jit(lambda *operands: jnp.einsum(equation, *operands, optimize=path, precision="highest"))
    return lambda: compiled(*given)


COMPETITORS: dict[str, Callable[[Einsum, Any], Call]] = {
    "tn4nn torch": _ours_torch,
    "tn4nn jax": _ours_jax,
    "tn4nn numpy": _ours_numpy,
    "torch.einsum": _torch_einsum,
    "opt_einsum": _opt_einsum,
    "cotengra": _cotengra,
    "cotengra numpy": _cotengra_numpy,
    "cotengra pytblis": _cotengra_pytblis,
    "quimb": _quimb,
    "jnp.einsum": _jnp_einsum,
}


# -- one case ------------------------------------------------------------------------------------------------


def _wait(result: Any) -> object:
    return result.block_until_ready() if hasattr(result, "block_until_ready") else result


def _arrays(each: Einsum) -> dict[str, Any]:
    import jax.numpy as jnp
    import torch

    values: list[Any] = each.arrays()
    on = {"numpy": values, "torch": [torch.from_numpy(np.array(a)) for a in values]}
    return on | {"jax": [jnp.asarray(a) for a in values]}


def measured(each: Einsum, names: Sequence[str]) -> Row:
    """All competitors on one contraction."""
    import torch

    arrays = _arrays(each)
    rows: list[Row] = []
    runners: dict[str, Timed] = {}
    reference: Any = None
    with torch.no_grad():
        for name in names:
            start = time.perf_counter()
            try:
                call = COMPETITORS[name](each, arrays)
                found = np.asarray(call())
            except ImportError as error:
                rows.append({"peer": name, "status": "absent", "reason": f"needs {error.name}"})
                continue
            except (Exception, RuntimeError) as error:
                rows.append({"peer": name, "status": "failed", "reason": f"{type(error).__name__}: {error}"[:200]})
                continue
            setup = time.perf_counter() - start
            reference = found if reference is None else reference
            worst = float(np.abs(found - reference).max(initial=0) / max(np.abs(reference).max(initial=0), 1e-30))
            if worst > CLOSE or found.shape != reference.shape:
                rows.append({"peer": name, "status": "wrong", "reason": f"differs by {worst:.2g} of the largest"})
                continue
            runners[name] = Timed(call, _wait)
            rows.append({"peer": name, "status": "ok", "setup_s": float(f"{setup:.3g}")})
        times, _ = _measure.interleaved(runners, SETTINGS)
    for row in rows:
        if row["status"] == "ok":
            row["time"] = _measure.spread(times[row["peer"]]).to_dict()
    return {
        "case": each.name,
        "group": each.group,
        "tensors": len(each.problem.tensors),
        "rows": rows,
        "summary": _summary(rows, times),
    }


def _summary(rows: Sequence[Row], times: Any) -> Row:
    """Best other / ours, paired: of torch and of the fastest of ours; the best other is that with the least median."""
    timed = {row["peer"]: row["time"]["median"] for row in rows if row["status"] == "ok"}
    others, mine = [n for n in timed if n not in OURS], [n for n in timed if n in OURS]
    if not others or not mine:
        return {}
    best = min(others, key=timed.__getitem__)
    ours = min(mine, key=timed.__getitem__)
    found = {name: _measure.paired(times[best], times[name]).to_dict() for name in mine}
    return {"best_other": best, "fastest_of_ours": ours, "other_over": found, "ratio": found[ours]["median"]}


# -- over all cases ------------------------------------------------------------------------------------------


def verdicts(cases: Sequence[Row]) -> Iterator[Row]:
    """The geometric mean of each group and its worst cases, for torch and for the fastest of ours."""
    for group, goal in GOALS.items():
        for name in (*OURS, "the fastest of ours"):
            ratios = {}
            for case in cases:
                over = case["summary"].get("other_over", {})
                key = case["summary"].get("fastest_of_ours") if name == "the fastest of ours" else name
                if case["group"] == group and key in over:
                    ratios[case["case"]] = over[key]["median"]
            if ratios:
                mean = _measure.geometric_mean(list(ratios.values()))
                low = {case: r for case, r in sorted(ratios.items(), key=lambda item: item[1]) if r < LEAST}
                yield {"group": group, "ours": name, "cases": len(ratios), "mean": mean, "goal": goal, "below": low}


def lines(data: Row) -> Iterator[str]:
    """The verdicts in words."""
    for v in data["verdicts"]:
        below = ", ".join(f"{case} {ratio:.2f}" for case, ratio in v["below"].items()) or "none"
        yield (
            f"{v['group']}, {v['ours']}: best other / ours {v['mean']:.2f} over {v['cases']} cases "
            f"(goal {v['goal']:g}); below {LEAST:g}: {below}"
        )
    for name, reason in data["absent"].items():
        yield f"absent: {name}: {reason}"


def tables(data: Row) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """(title, columns, cells): a table for each group, times in ms."""
    names = list(COMPETITORS)
    for group in GOALS:
        cells = []
        for case in data["cases"]:
            if case["group"] != group:
                continue
            rows = {row["peer"]: row for row in case["rows"]}
            ms = [_ms(rows.get(name)) for name in names]
            over = case["summary"].get("other_over", {})
            ratios = [f"{over[name]['median']:.2f}" if name in over else "-" for name in OURS]
            cells.append([case["case"], str(case["tensors"]), *ms, *ratios])
        if cells:
            ratio_names = [f"best other / {name}" for name in OURS]
            yield f"{group}: ms of a call", ("case", "tensors", *names, *ratio_names), cells


def _ms(row: Row | None) -> str:
    return "-" if row is None or row["status"] != "ok" else f"{1e3 * row['time']['median']:.3g}"


def page(data: Row) -> str:
    """The page of docs; its figure lies beside it."""
    file = "einsum.json" if data["threads"] == 1 else f"einsum_{data['threads']}_threads.json"
    load, cores = data["machine"]["load"] or [0.0], data["machine"]["cores"]
    busy = f"Other work disturbed the run (a load of {load[0]:g} on {cores} cores at its end): take ratios, not times; "
    busy += "single ratios moved by a third and more between runs. "
    fastest = {v["group"]: v for v in data["verdicts"] if v["ours"] == "the fastest of ours"}
    said = "; ".join(
        f"{group} {v['mean']:.2f} ({len(v['below'])} of {v['cases']} below {LEAST:g})" for group, v in fastest.items()
    )
    command = f"benchmarks/einsum.py --threads {data['threads']}"
    return str(
        Page(
            title=f"Einsum next to other libraries, {data['threads']} thread{'s' if data['threads'] > 1 else ''}",
            finding=f"How many times as long the fastest other library takes, geometric means: {said}.",
            figure=(f"{page_name(data)}.png", "Time of the fastest other library over ours, sorted"),
            made=f"{made(command, file, data)} Load when it ended: {load}.",
            method="One call, forward, float32 (circuits: complex64), the path and the compiled function ready; ours "
            "through `tn.einsum`. Rounds are interleaved; a ratio is the median of ratios within rounds, above 1 where "
            f"ours is faster than the fastest other of any framework. {busy if load[0] > data['threads'] else ''}"
            f"Searches for a path got {SEARCH_S:g} s. {data.get('note', '')}".rstrip(),
            points=list(lines(data)),
            tables=[Table(title.capitalize(), columns, cells) for title, columns, cells in tables(data)],
        )
    )


def page_name(data: Row) -> str:
    """Of the page and its figure."""
    return "einsum-peers" if data["threads"] == 1 else f"einsum-peers-{data['threads']}-threads"


def draw(data: Row, path: Path) -> None:
    """The fastest other over the fastest of ours, a curve for each group."""
    curves: dict[str, list[float]] = {}
    for case in data["cases"]:
        if case["summary"].get("ratio"):
            curves.setdefault(case["group"], []).append(case["summary"]["ratio"])
    draw_sorted(path, curves, "best other / ours", "cases, sorted")


def report(cases: list[Row], threads: int, absent: dict[str, str]) -> Row:
    """All results, as they are written."""
    head = {"benchmark": "einsum", "schema": SCHEMA, "machine": _measure.machine(), "threads": threads}
    versions = _measure.versions(("pytblis", "networkx"))
    return head | {"versions": versions, "verdicts": list(verdicts(cases)), "absent": absent, "cases": cases}


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One batch of each layer, small networks.")] = False,
    only: Annotated[str | None, typer.Option(help="Parts of group/case, by commas.")] = None,
    peers: Annotated[str | None, typer.Option(help="Competitors, by commas.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch, BLAS and XLA.")] = 1,
    limit: Annotated[float, typer.Option(help="Seconds after which no further case is begun.")] = 1e9,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results here.")] = None,
    page_file: Annotated[Path | None, typer.Option("--page", help="Write the page of docs here.")] = None,
) -> None:
    """Compares einsums."""
    _bind(threads)
    import torch

    torch.set_num_threads(threads)
    parts = None if only is None else only.split(",")
    names = list(COMPETITORS) if peers is None else peers.split(",")
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    rows: list[Row] = []
    absent: dict[str, str] = {}
    start = time.monotonic()
    for each in _chosen(einsums(quick), parts):
        if isinstance(each, Absent):
            absent[each.name] = each.reason
        elif not is_runnable(each):
            absent[each.name] = "a call takes too long or too much memory"
        elif time.monotonic() - start < limit:
            rows.append(measured(each, names))
            said = rows[-1]["summary"]
            ratios = {k.split()[1]: round(v["median"], 2) for k, v in said.get("other_over", {}).items()}
            console.print(f"{each.group}/{each.name}: {said.get('best_other')} / ours {ratios}", markup=False)
        else:
            absent[each.name] = "the time was over"
        if json_file is not None:  # a run that is stopped keeps what it has
            json_file.write_text(json.dumps(report(rows, threads, absent), indent=1) + "\n")
    data = report(rows, threads, absent)
    if page_file is not None:
        page_file.write_text(page(data))
        draw(data, page_file.with_suffix(".png"))
    _measure.show(console, tables(data), lines(data))


def _chosen(found: Iterable[Einsum | Absent], parts: Sequence[str] | None) -> Iterator[Einsum | Absent]:
    for each in found:
        name = each.name if isinstance(each, Absent) else f"{each.group}/{each.name}"
        if parts is None or any(part in name for part in parts):
            yield each


def _bind(threads: int) -> None:
    """So many threads and cores; begins again where numpy's BLAS was loaded with another number."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    eigen = str(threads > 1).lower()
    wanted = dict.fromkeys(names, str(threads)) | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_cpu_multi_thread_eigen={eigen} intra_op_parallelism_threads={threads}",
    }
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


if __name__ == "__main__":
    typer.run(main)
