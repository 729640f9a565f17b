"""E11: a permuted tensor ring found by structure search."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import search, topology
from .._drawing.figure import GREY, dress, legend, panels, style
from ._experiment import Experiment, Line, Row, Settings, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS, MODE = (3, 2, 2, 4, 3, 2), 3
PARAMS, MOST, RSE, EVALUATIONS = 126, 1.05, 1e-4, 500


def permuted_ring(seed: int) -> NDArray[np.float64]:
    """Normal cores on a ring, the modes in a random order: shape (3,) * 6, 126 parameters in 729 entries."""
    rng, n = np.random.default_rng(seed), len(RANKS)
    order = rng.permutation(n)
    cores = [f"x{order[i]} b{(i - 1) % n} b{i}" + (" y0" if i == 0 else "") for i in range(n)]
    ring = topology(", ".join(cores), {f"x{i}": MODE for i in range(n)}, {"y0": 1})
    net = ring.with_ranks({f"b{i}": rank for i, rank in enumerate(RANKS)})
    tensor: NDArray[np.float64] = net.to_dense({k: rng.standard_normal(shape) for k, shape in net.shapes.items()})
    return tensor.reshape((MODE,) * n)


def _found(seed: int, scratch: Path) -> dict[str, Any]:
    found = search(
        permuted_ring(seed),
        error=RSE,
        evaluations=EVALUATIONS,
        patience=EVALUATIONS,
        seed=seed,
        state=scratch / "state",
    )
    good = [(i, e.params) for i, e in enumerate(found.history, 1) if e.error <= RSE]
    first = next((i for i, params in good if params <= MOST * PARAMS), None)
    best: list[tuple[int, int]] = []
    for i, params in good:
        if not best or params < best[-1][1]:
            best.append((i, params))
    return {
        "params": found.network.num_params, "rse": found.error, "found_at": found.found_at, "within": first,
        "evaluations": found.evaluations, "structure": found.history[found.found_at - 1].structure, "best": best,
    }  # fmt: skip


def _units(settings: Settings) -> list[Unit]:
    return [Unit({"seed": seed}, functools.partial(_found, seed)) for seed in range(settings.seeds)]


def _lines(rows: Sequence[Row]) -> list[Line]:
    lines = []
    for row in rows:
        seed = f"seed {row['seed']}"
        looks: dict[str, Any] = {"unit": "", "digits": 0}
        lines.append(Line(f"{seed}: parameters", row["params"], high=MOST * PARAMS, published=f"{PARAMS}", **looks))
        lines.append(
            Line(f"{seed}: evaluations until within {MOST} x {PARAMS}", row["within"], high=EVALUATIONS, **looks)
        )
        lines.append(Line(f"{seed}: RSE / {RSE:g}", row["rse"] / RSE, high=1, unit="", digits=3))
    return lines


def _text(rows: Sequence[Row]) -> list[str]:
    hits = [row["within"] for row in rows if row["within"] is not None]
    exact = sum(row["params"] <= PARAMS for row in rows)
    middle = f", after {sorted(hits)[len(hits) // 2]} evaluations in the median" if hits else ""
    return [
        f"{len(hits)} of {len(rows)} tensors were found within {MOST} x {PARAMS} parameters{middle}; {exact} with "
        f"{PARAMS} or fewer. An evaluation is one fit of one structure, from a neighbour's weights and two random "
        "starts."
    ]


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    panel = panels(figure, 1)[0]
    for index, row in enumerate(rows):
        if row["best"]:
            xs, ys = zip(*[*row["best"], (row["evaluations"], row["params"])], strict=True)
            panel.step(xs, ys, where="post", label=f"seed {row['seed']}", **style(index))
    panel.axhline(PARAMS, color=GREY, linestyle="--", label=f"{PARAMS}, as made")
    dress(panel, "evaluations", f"parameters at RSE <= {RSE:g}")
    legend(panel, loc="center left", bbox_to_anchor=(1, 0.5))


EXPERIMENT = Experiment(
    name="search",
    title="A permuted ring found by structure search",
    source="Li et al. 2023, TnALE (arXiv:2304.12875)",
    about=(
        f"Tensors of shape 3^6 that are rings with ranks {', '.join(map(str, RANKS))}, {PARAMS} parameters, "
        "normal cores and the modes in a random order. `tn.search` is given the tensor, the error and no structure: it "
        f"begins with six cores and no bonds, and has {EVALUATIONS} evaluations. RSE = ||X - X'|| / ||X||."
    ),
    finding=(
        "Structure search finds a ring whose sites were permuted: {seed 0: parameters} parameters after {seed 0: "
        "evaluations until within 1.05 x 126} evaluations with the first seed, {seed 1: parameters} after {seed 1: "
        "evaluations until within 1.05 x 126} with the second."
    ),
    cost="5 min",
    quick_cost="1 min",
    units=_units,
    lines=_lines,
    seeds=5,
    recipe={
        "ranks": RANKS, "mode": MODE, "params": PARAMS, "most": MOST, "rse": RSE, "evaluations": EVALUATIONS,
    },
    text=_text,
    draw=_draw,
)  # fmt: skip
