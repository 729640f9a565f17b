"""Where least squares core by core are stuck: the same time again, and steps of all cores at once instead.

    python benchmarks/ill_conditioned.py --json benchmarks/results/ill_conditioned.json

Small problems on networks that are no trees: tensors of an exact rank, smooth kernels, noise. The steps are those that
`tn.decompose` takes after least squares (tn4nn/_compression/gauss_newton.py). Seconds are of the processor, not of the
clock. The table stands in docs/pages/how-to/decompose.md.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
from rich.console import Console

import tn4nn as tn
from tn4nn._compression import fit as _fit
from tn4nn._compression.als import Als
from tn4nn._compression.gauss_newton import refined
from tn4nn._compression.target import Target

Array = np.ndarray[Any, np.dtype[Any]]
Row = dict[str, Any]
COLUMNS = ("matrix", "topology", "parameters", "least squares", "as long again", "all cores at once", "seconds", "and")
MEMORY = 2**33


def cp3(size: int, rank: int) -> tn.Network:
    """CP of a tensor of three axes."""
    return tn.topology("y r, a r, b r", {"a": size, "b": size}, {"y": size}, name="cp").with_rank(rank)


def product(n: int) -> Array:
    """The tensor of n x n times n x n matrices."""
    one = np.eye(n)
    return np.einsum("iI,jJ,kK->ijJkKI", one, one, one).reshape(n * n, -1)


def collinear(cosine: float) -> tuple[Array, tn.Network]:
    """Six terms of CP whose factors have one cosine."""
    net, rng = cp3(12, 6), np.random.default_rng(1)
    mixing = np.linalg.cholesky(cosine + (1 - cosine) * np.eye(6)).T
    return net.to_dense({n: np.linalg.qr(rng.standard_normal(s))[0] @ mixing for n, s in net.shapes.items()}), net


def exact(net: tn.Network, seed: int) -> Array:
    """A network of random cores."""
    rng = np.random.default_rng(seed)
    return net.to_dense({name: rng.standard_normal(shape) for name, shape in net.shapes.items()})


def problems() -> Iterator[tuple[str, Array, tn.Network]]:
    """(what it is, W, network)."""
    for n, rank in ((2, 7), (3, 23)):
        yield f"product of {n} x {n} matrices", product(n), cp3(n * n, rank)
    for cosine in (0.5, 0.9, 0.99):
        yield f"factors with cosine {cosine}", *collinear(cosine)
    threes, fours = (3,) * 4, (4,) * 3
    for seed, make, modes, rank in (
        (3, tn.ring, fours, 4), (4, tn.peps, threes, 2), (5, tn.complete, threes, 2), (6, tn.mera, threes, 2),
        (2, tn.cp, fours, 8), (7, tn.block_term, fours, 2),
    ):  # fmt: skip
        net = make(modes, modes).with_rank(rank, clip=True)
        yield "of that rank", exact(net, seed), net
    grid, counts = np.linspace(0, 1, 64), np.arange(81)
    apart = np.abs(grid[:, None] - grid[None, :])
    hilbert = 1 / (1 + np.add.outer(counts, counts))
    for name, w in (
        ("1 / (1 + i + j)", hilbert[:64, :64]), ("1 / (0.1 + |x - y|)", 1 / (0.1 + apart)),
        ("exp(-3 |x - y|)", np.exp(-3 * apart)), ("random", np.random.default_rng(9).standard_normal((64, 64))),
    ):  # fmt: skip
        for make, rank in ((tn.ring, 3), (tn.cp, 6), (tn.block_term, 2)):
            yield name, w, make(fours, fours).with_rank(rank)
    for make in (tn.peps, tn.mera, tn.complete):
        yield "1 / (1 + i + j)", hilbert, make(threes, threes).with_rank(2)


def measure(w: Array, net: tn.Network) -> Row:
    """Errors of least squares as they end, of as many seconds again, and of steps from there; seconds of both."""
    target, clock = Target(net.topology, w, None), time.process_time
    als, start = Als(target, net), clock()
    fitter = _fit.Fitter(target, None, "als", 0, MEMORY)
    weights = als.run(list(fitter._starts(net)))
    seconds, further, begun = clock() - start, dict(weights), clock()
    while clock() - begun < seconds:
        further, _ = als.sweep(further)
    start = clock()
    steps = refined(als, weights, MEMORY)
    took = clock() - start
    errors = [target.error(net.to_dense(found)) for found in (weights, further, steps)]
    figures = dict(zip(("als", "als_on", "steps"), errors, strict=True))
    return {"topology": net.topology.name, "params": net.num_params, **figures, "als_s": seconds, "steps_s": took}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results here.")] = None,
) -> None:
    """Compares ways to go on."""
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    rows = [{"matrix": name, **measure(w, net)} for name, w, net in problems()]
    head: Row = {
        "benchmark": "ill_conditioned",
        "schema": 1,
        "machine": _measure.machine(),
        "versions": _measure.versions(),
    }
    if json_file is not None:
        json_file.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
    cells = [
        [row["matrix"], row["topology"], str(row["params"])]
        + [f"{row[key]:.2e}" for key in ("als", "als_on", "steps")]
        + [f"{row[key]:.2f}" for key in ("als_s", "steps_s")]
        for row in rows
    ]
    _measure.show(console, [("After least squares", COLUMNS, cells)], [])


if __name__ == "__main__":
    typer.run(main)
