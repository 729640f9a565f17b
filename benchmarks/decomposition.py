r"""A matrix onto a network: error and time of ours beside other libraries, at the same number of parameters.

    python benchmarks/decomposition.py --quick
    python benchmarks/decomposition.py --json benchmarks/results/decomposition.json \
        --page docs/pages/benchmarks/decomposition-peers.md

Three matrices of 1024 x 1024: the hidden layer of a 784-1024-1024-10 net trained on MNIST (on scikit-learn's digits
where $TN4NN_DATA has no MNIST), a smooth kernel with 5 % noise, and a random one. Every library gets the same float32
array and the same ranks; ours gets the number of parameters that these have, and chooses. Times are medians of
interleaved calls on one thread. Topologies that no other library decomposes onto stand in rows of their own. A second
table says what gradients (L-BFGS, scipy's, in float64) gain over least squares that go on for the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
from _pages import Page, Table, draw_sorted, made
from rich.console import Console

import tn4nn as tn
from tn4nn._compression.als import Als
from tn4nn._compression.fit import Fitter
from tn4nn._compression.target import Target

SCHEMA = 1
Row = dict[str, Any]
Array = np.ndarray[Any, np.dtype[Any]]
Found = Callable[[], tuple[Array, int]]  # (W', parameters), made after the clock has stopped

BAR_ERROR, BAR_TIME = 1.01, 10.0  # of the best other
ROUNDS = 7


# -- matrices ----------------------------------------------------------------------------------------------------


def kernel(n: int) -> Array:
    """A smooth kernel, and noise of 5 % of its norm."""
    grid, noise = np.linspace(0, 1, n), np.random.default_rng(0).standard_normal((n, n))
    smooth = np.exp(-3 * np.abs(grid[:, None] - grid[None, :]))
    return smooth + 0.05 * np.linalg.norm(smooth) / np.linalg.norm(noise) * noise


def trained(n: int, epochs: int) -> tuple[Array, str]:
    """The hidden n x n layer of a trained net, and what it was trained on."""
    try:
        data, name, features = tn.load_data("mnist"), "MNIST", 784
    except tn.DataError:
        data, name, features = tn.load_data("digits"), "digits", 64
    layers = tn.Linear(features, n), tn.ReLU(), tn.Linear(n, n), tn.ReLU(), tn.Linear(n, 10)
    run = tn.train(tn.Sequential(*layers), data, backend="torch", epochs=epochs, lr=1e-3, seed=0)
    said = f"{name}, {epochs} epochs of Adam, test accuracy {run.test_accuracy:.2f} %"
    return np.asarray(run.weights["2.core0"]).reshape(n, n), said


def matrices(n: int, epochs: int) -> tuple[dict[str, Array], str]:
    """Name -> matrix in float32, and how the trained one was made."""
    layer, said = trained(n, epochs)
    result = {"trained": layer, "kernel": kernel(n), "random": np.random.default_rng(1).standard_normal((n, n))}
    return {name: np.asarray(w, np.float32) for name, w in result.items()}, said


# -- the others --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Format:
    """One format at one rank, as the others take it.

    Attributes:
        name: of the topology.
        topology: ours.
        rank: of every bond.
        others: library -> what decomposes onto it.
    """

    name: str
    topology: tn.Topology
    rank: int
    others: dict[str, Callable[[Array, Format], Found]]

    @property
    def params(self) -> int:
        """Parameters at that rank."""
        return self.topology.with_rank(self.rank, clip=True).num_params

    @property
    def modes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Output and input modes."""
        return tuple(self.topology.outputs.values()), tuple(self.topology.inputs.values())

    def pairs(self, w: Array) -> Array:
        """W over (y0, x0, y1, x1, ...)."""
        outs, ins = self.modes
        n = len(outs)
        return w.reshape(*outs, *ins).transpose([axis for i in range(n) for axis in (i, n + i)])

    def unpaired(self, tensor: Array) -> Array:
        """W of a tensor over (y0, x0, y1, x1, ...)."""
        n = len(self.modes[0])
        return tensor.transpose([*range(0, 2 * n, 2), *range(1, 2 * n, 2)]).reshape(math.prod(self.modes[0]), -1)


def _chain(cores: Sequence[Array]) -> Array:
    """Cores (left, ..., right) one after the other: their open legs, in order."""
    result = cores[0]
    for core in cores[1:]:
        result = np.tensordot(result, core, 1)
    return result.reshape(result.shape[1:-1])


def _size(cores: Sequence[Any]) -> int:
    return sum(math.prod(core.shape) for core in cores)


def _tltorch(kind: str) -> Callable[[Array, Format], Found]:
    def run(w: Array, fmt: Format) -> Found:
        import tltorch
        import torch

        outs, ins = fmt.modes
        rank: Any = fmt.rank if kind != "Tucker" else [fmt.rank] * (len(outs) + len(ins))
        if kind == "BlockTT":
            rank = [1, *[fmt.rank] * (len(outs) - 1), 1]
        result = tltorch.TensorizedTensor.from_matrix(torch.from_numpy(w), outs, ins, rank=rank, factorization=kind)

        def found() -> tuple[Array, int]:
            return result.to_matrix().detach().numpy(), sum(p.numel() for p in result.parameters())

        return found

    return run


def _tensorkrowch(w: Array, fmt: Format) -> Found:
    import tensorkrowch as tk
    import torch

    cores = tk.decompositions.mat_to_mpo(torch.from_numpy(fmt.pairs(w)), rank=fmt.rank)

    def found() -> tuple[Array, int]:
        first, *middle, last = cores  # (in, right, out), (left, in, right, out), (left, in, out)
        chain = [first.permute(0, 2, 1)[None], *(c.permute(0, 1, 3, 2) for c in middle), last[..., None]]
        return fmt.unpaired(_chain([c.numpy() for c in chain])), _size(cores)

    return found


def _quimb(w: Array, fmt: Format) -> Found:
    import quimb.tensor as qtn

    result = qtn.MatrixProductOperator.from_dense(w, dims=list(fmt.modes[0]), max_bond=fmt.rank, cutoff=0.0)
    return lambda: (result.to_dense(), _size(result.arrays))


def _torchtt(w: Array, fmt: Format) -> Found:
    import torch
    import torchtt

    outs, ins = fmt.modes
    shape = list(zip(outs, ins, strict=True))
    result = torchtt.TT(torch.from_numpy(w).reshape(*outs, *ins), shape=shape, eps=1e-12, rmax=fmt.rank)
    return lambda: (result.full().reshape(w.shape).numpy(), _size(result.cores))


def _tensorly_ring(w: Array, fmt: Format) -> Found:
    import tensorly as tl
    from tensorly.decomposition import tensor_ring_als

    outs, ins = fmt.modes
    shape = [a * b for a, b in zip(outs, ins, strict=True)]
    tensor = tl.tensor(np.ascontiguousarray(fmt.pairs(w).reshape(shape)))
    result = tensor_ring_als(tensor, [fmt.rank] * (len(outs) + 1), random_state=0)

    def found() -> tuple[Array, int]:
        full = tl.to_numpy(result.to_tensor()).reshape([side for pair in zip(outs, ins, strict=True) for side in pair])
        return fmt.unpaired(full), _size(result.factors)

    return found


def _numpy_svd(w: Array, fmt: Format) -> Found:
    u, s, v = np.linalg.svd(w, full_matrices=False)
    left, right = u[:, : fmt.rank] * s[: fmt.rank], v[: fmt.rank]
    return lambda: (left @ right, _size([left, right]))


NEEDS = {
    "tltorch": "tltorch", "tensorkrowch": "tensorkrowch", "quimb": "quimb", "torchTT": "torchtt",
    "tensorly": "tensorly",
}  # fmt: skip


def formats(
    n: int, sites: tuple[int, ...], thirds: tuple[int, ...], halves: tuple[int, int], params: int
) -> list[Format]:
    """The formats that others have too, at the largest rank that the parameters allow."""
    mpo = {
        "tltorch": _tltorch("BlockTT"), "tensorkrowch": _tensorkrowch, "quimb": _quimb, "torchTT": _torchtt,
    }  # fmt: skip
    found = [
        (tn.low_rank(n, n), {"numpy": _numpy_svd}),
        (tn.mpo(sites, sites), mpo),
        (tn.tucker(halves, halves), {"tltorch": _tltorch("Tucker")}),
        (tn.ring(thirds, thirds), {"tensorly": _tensorly_ring}),
        (tn.cp(halves, halves), {"tltorch": _tltorch("CP")}),
    ]
    return [Format(t.name, t, _rank(t, params), others) for t, others in found]


def _rank(topology: tn.Topology, params: int) -> int:
    rank = 1
    while topology.with_rank(rank + 1, clip=True).num_params <= params:
        rank += 1
    return rank


def alone(sites: tuple[int, ...]) -> list[tn.Topology]:
    """Topologies that only ours decomposes onto."""
    makers = (tn.tree, tn.peps, tn.mera, tn.block_term, tn.complete)
    return [make(sites, sites) for make in makers]


# -- measuring ---------------------------------------------------------------------------------------------------


def _ours(w: Array, topology: tn.Topology, params: int) -> Found:
    result = tn.decompose(w, topology, params=params, compare_random=False)
    return lambda: (result.to_dense(), result.network.num_params)


def _error(w: Array, other: Array) -> float:
    wide = w.astype(float)
    return float(np.linalg.norm(wide - other) / np.linalg.norm(wide))


def _clock(call: Callable[[], Found]) -> tuple[float, Found]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def _timed(w: Array, calls: dict[str, Callable[[], Found]], seconds: float) -> list[Row]:
    """A row for each library: the first call warms up and says what is found, the rounds after it are timed."""
    rows: list[Row] = []
    found: dict[str, Found] = {}
    total = 0.0
    for name, call in calls.items():
        need = NEEDS.get(name)
        if need is not None and importlib.util.find_spec(need) is None:
            rows.append({"library": name, "status": "absent", "reason": f"needs {name}"})
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what others say when they are imported
                took, found[name] = _clock(call)
            total += took
        except Exception as error:  # what another library does not do is a row
            rows.append({"library": name, "status": "failed", "reason": f"{type(error).__name__}: {error}"})
    times: dict[str, list[float]] = {name: [] for name in found}
    names = list(found)
    for turn in range(max(1, min(ROUNDS, int(seconds / max(total, 1e-9))))):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(_clock(calls[name])[0])
    for name, result in found.items():
        dense, params = result()
        took_by = _measure.spread(times[name]).to_dict()
        figures = {"params": params, "error": _error(w, dense), "rounds": len(times[name]), "seconds": took_by}
        rows.append({"library": name, "status": "ok", **figures})
    return sorted(rows, key=lambda row: list(calls).index(row["library"]))


def measure(
    matrices: dict[str, Array], shared: Sequence[Format], own: Sequence[tn.Topology], seconds: float
) -> Iterator[Row]:
    """One entry for each matrix and topology."""
    for name, w in matrices.items():
        for fmt in shared:
            calls: dict[str, Callable[[], Found]] = {"tn4nn": lambda w=w, f=fmt: _ours(w, f.topology, f.params)}
            for other, call in fmt.others.items():
                calls[other] = lambda w=w, f=fmt, call=call: call(w, f)
            rows = _timed(w, calls, seconds)
            yield {"matrix": name, "topology": fmt.name, "params": fmt.params, "rows": rows}
        most = max(fmt.params for fmt in shared)
        for topology in own:
            rows = _timed(w, {"tn4nn": lambda w=w, t=topology, most=most: _ours(w, t, most)}, seconds)
            yield {"matrix": name, "topology": topology.name, "params": most, "rows": rows}


# -- gradients after least squares -------------------------------------------------------------------------------


def refinement(name: str, w: Array, topology: tn.Topology, params: int, least_s: float) -> Row:
    """Errors of least squares as they end, going on for the same time again, and of L-BFGS for that time from there."""
    net = topology.with_budget(params=params)
    target = Target(topology, w.astype(float), None)
    start = time.perf_counter()
    weights = Fitter(target, None, "als", 0, 2**33).fit(net)
    seconds = max(time.perf_counter() - start, least_s)
    further, als, end = dict(weights), Als(target, net), time.perf_counter() + seconds
    while time.perf_counter() < end:
        further, _ = als.sweep(further)
    errors = [_error(w, net.to_dense(found)) for found in (weights, further, _lbfgs(net, weights, w, seconds))]
    figures = dict(zip(("als", "als_on", "lbfgs"), errors, strict=True))
    return {"matrix": name, "topology": topology.name, "params": net.num_params, "seconds": seconds, **figures}


def _lbfgs(net: tn.Network, start: dict[str, Array], w: Array, seconds: float) -> dict[str, Array]:
    """The best weights that L-BFGS finds in some seconds."""
    import torch
    from opt_einsum import contract_expression, get_symbol
    from scipy.optimize import minimize

    t = net.topology
    legs = dict.fromkeys([*t.outputs, *t.inputs, *(leg for core in t.cores for leg in core.legs)])
    letter = {leg: get_symbol(i) for i, leg in enumerate(legs)}
    terms = ["".join(letter[leg] for leg in core.legs) for core in t.cores]
    shapes = [net.shapes[core.name] for core in t.cores]
    out = "".join(letter[leg] for leg in (*t.outputs, *t.inputs))
    dense = contract_expression(",".join(terms) + "->" + out, *shapes)
    wanted, cuts = torch.tensor(w, dtype=torch.float64), np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    best: list[Any] = [math.inf, None]
    end = time.perf_counter() + seconds

    def loss(flat: Array) -> tuple[float, Array]:
        if time.perf_counter() > end:
            raise TimeoutError
        cores = [
            torch.tensor(a.reshape(s), requires_grad=True) for a, s in zip(np.split(flat, cuts), shapes, strict=True)
        ]
        lost = ((dense(*cores, backend="torch").reshape(wanted.shape) - wanted) ** 2).sum() / (wanted**2).sum()
        slopes = torch.autograd.grad(lost, cores)
        if lost.item() < best[0]:
            best[:] = lost.item(), flat.copy()
        return lost.item(), np.concatenate([slope.numpy().ravel() for slope in slopes])

    flat = np.concatenate([start[core.name].astype(float).ravel() for core in t.cores])
    options: dict[str, Any] = {"maxiter": 10**6, "maxfun": 10**6, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-12}
    with contextlib.suppress(TimeoutError):
        minimize(loss, flat, jac=True, method="L-BFGS-B", options=options)
    parts = zip(t.cores, np.split(best[1], cuts), shapes, strict=True)
    return {core.name: part.reshape(shape) for core, part, shape in parts}


# -- what it says ------------------------------------------------------------------------------------------------


def verdicts(entries: Sequence[Row]) -> list[Row]:
    """Ours beside the best of the others: error within 1 %, time within a factor of ten of the one with that error."""
    found = []
    for entry in entries:
        done = {row["library"]: row for row in entry["rows"] if row["status"] == "ok"}
        others = [row for name, row in done.items() if name != "tn4nn"]
        if not others or "tn4nn" not in done:
            continue
        best = min(others, key=lambda row: row["error"])
        quickest = min(others, key=lambda row: row["seconds"]["median"])
        ours = done["tn4nn"]
        error = ours["error"] / best["error"]
        slower = ours["seconds"]["median"] / quickest["seconds"]["median"]
        found.append(
            {"matrix": entry["matrix"], "topology": entry["topology"], "best": best["library"], "error_ratio": error}
            | {"quickest": quickest["library"], "time_ratio": slower}
            | {"holds": error <= BAR_ERROR and slower <= BAR_TIME}
        )
    return found


COLUMNS = ("matrix", "topology", "library", "parameters", "error", "seconds")
REFINED = ("matrix", "topology", "parameters", "seconds", "least squares", "as long again", "L-BFGS instead")


def tables(data: Row) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """(title, columns, cells) of all that is shown."""
    cells = []
    for entry in data["entries"]:
        for row in entry["rows"]:
            head = [entry["matrix"], entry["topology"], row["library"]]
            if row["status"] == "ok":
                figures = [f"{row['params']:,}", f"{row['error']:.5f}", f"{row['seconds']['median']:.3g}"]
            else:
                figures = [row["reason"], "", ""]
            cells.append(head + figures)
    yield "Error and time", COLUMNS, cells
    refined = [
        [row["matrix"], row["topology"], f"{row['params']:,}", f"{row['seconds']:.1f}"]
        + [f"{row[key]:.5f}" for key in ("als", "als_on", "lbfgs")]
        for row in data["refinement"]
    ]
    yield "Gradients after least squares", REFINED, refined


def lines(data: Row) -> Iterator[str]:
    """The verdicts in words."""
    found = data["verdicts"]
    holds = sum(v["holds"] for v in found)
    yield (
        "error at most 1 % above the best other's and time at most 10 times the quickest other's: "
        f"{holds} of {len(found)}"
    )
    for v in found:
        if not v["holds"]:
            yield (
                f"not on {v['matrix']}, {v['topology']}: {v['error_ratio']:.3f} times the error of {v['best']}, "
                f"{v['time_ratio']:.3g} times the time of {v['quickest']}"
            )
    refined = data["refinement"]
    if refined:
        better = sum(row["lbfgs"] < row["als_on"] * (1 - 1e-4) for row in refined)
        most = max(1 - row["lbfgs"] / row["als"] for row in refined)
        yield (
            f"L-BFGS is below least squares of the same time by more than 0.01 % on {better} of {len(refined)}; it "
            f"lowers the error where they ended by at most {100 * most:.2f} %"
        )


def page(data: Row) -> str:
    """The page of docs; its figure lies beside it."""
    found = data["verdicts"]
    holds = sum(v["holds"] for v in found)
    return str(
        Page(
            title="Decomposition next to other libraries",
            finding=f"In {holds} of {len(found)} cases our error is at most 1 % above that of the best other library, "
            "with as many parameters or fewer, in at most 10 times the time of the quickest.",
            figure=("decomposition-peers.png", "Our error and time over those of the best and the quickest other"),
            made=made(data["command"].removeprefix("python "), "decomposition.json", data),
            method=f"Matrices of {data['features']} x {data['features']}: the hidden layer of a net trained on "
            f"{data['trained']}; a smooth kernel with 5 % noise; a random one. The other libraries get ranks; ours "
            "gets the number of parameters that those have, and uses as many or fewer in every row. Errors are "
            "relative, in the Frobenius norm; seconds are medians of interleaved calls. tltorch's CP is tensorly's "
            "parafac.",
            points=list(lines(data)),
            tables=[Table(title, columns, cells) for title, columns, cells in tables(data)],
        )
    )


def draw(data: Row, path: Path) -> None:
    """Error and time over the others'."""
    curves = {
        "error / best other's": [v["error_ratio"] for v in data["verdicts"]],
        "time / quickest other's": [v["time_ratio"] for v in data["verdicts"]],
    }
    draw_sorted(path, curves, "ours / other", "matrices and topologies, sorted")


def report(entries: list[Row], refined: list[Row], features: int, said: str) -> Row:
    """All results, as they are written."""
    head = {"benchmark": "decomposition", "schema": SCHEMA, "machine": _measure.machine(), "threads": 1}
    head |= {"versions": _measure.versions(("scipy",)), "command": "python benchmarks/decomposition.py"}
    head |= {"features": features, "trained": said}
    return head | {"verdicts": verdicts(entries), "entries": entries, "refinement": refined}


def main(
    quick: Annotated[bool, typer.Option("--quick", help="64 x 64, one epoch, few rounds.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results here.")] = None,
    page_file: Annotated[Path | None, typer.Option("--page", help="Write the page of docs here.")] = None,
    refine: Annotated[bool, typer.Option(help="Also what gradients gain after least squares.")] = True,
) -> None:
    """Compares decompositions."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    n, params = (64, 600) if quick else (1024, 12_800)
    sites, thirds, halves = ((4,) * 3, (4,) * 3, (8, 8)) if quick else ((4,) * 5, (8, 8, 16), (32, 32))
    result, said = matrices(n, 1 if quick else 3)
    entries: list[Row] = []
    for entry in measure(result, formats(n, sites, thirds, halves, params), alone(sites), 1.0 if quick else 20.0):
        entries.append(entry)
        took = {row["library"]: row["seconds"]["median"] for row in entry["rows"] if row["status"] == "ok"}
        console.print(f"{entry['matrix']}, {entry['topology']}: {took}", style="dim", markup=False)
    refined: list[Row] = []
    if refine:
        side, modes = (64, (4,) * 3) if quick else (256, (4,) * 4)
        small = {
            "trained": result["trained"][:side, :side],
            "kernel": kernel(side),
            "random": result["random"][:side, :side],
        }
        makers = (tn.ring, tn.peps, tn.mera, tn.cp, tn.complete)
        least_s = 0.2 if quick else 2.0
        for name, w in small.items():
            topologies = [make(modes, modes) for make in makers]
            refined += [refinement(name, w, t, 3000 * side // 256, least_s) for t in topologies]
    data = report(entries, refined, n, said)
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1) + "\n")
    if page_file is not None:
        page_file.write_text(page(data))
        draw(data, page_file.with_suffix(".png"))
    _measure.show(console, tables(data), lines(data))


if __name__ == "__main__":
    typer.run(main)
