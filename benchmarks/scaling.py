"""How a layer's time and memory grow with batch, bond dimension, sites and width, for each topology.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json

One quantity varies, the others stay: batch 256, chi 4, 5 sites (4 for MERA, 2x3 for PEPS), 1024 -> 1024, a training
step in one thread in the native runtime, beside a dense layer's three matrix products in numpy. Slopes are fitted in
log-log; "faster than dense up to" is the last such point.
"""
# ruff: noqa: E402  numpy reads the number of threads when it is imported

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy is imported

import numpy as np
import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
from rich.console import Console
from rich.table import Table

import tn4nn as tn
from tn4nn._planning.measure import measured

TOPOLOGIES = ("mpo", "ring", "tree", "peps", "mera", "cp", "tucker", "btt", "low_rank")
AXES = {
    "batch": (1, 4, 16, 64, 256, 1024, 4096),
    "chi": (1, 2, 4, 8, 16, 32),
    "sites": (2, 3, 4, 5, 6, 8, 10),
    "features": (64, 256, 1024, 4096),
}
BATCH, CHI, SITES, FEATURES = 256, 4, 5, 1024


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement."""

    topology: str
    axis: str
    value: int
    params: int
    macs: int
    seconds: float
    saved: int
    peak: int
    dense_seconds: float


def network(topology: str, sites: int, features: int, chi: int) -> tn.Network | None:
    """The network, or None where the topology has no such sites."""
    fixed = {"btt": 2, "low_rank": 1}
    if topology in fixed and sites not in (fixed[topology], SITES):
        return None
    options: dict[str, Any] = {"sites": fixed.get(topology, sites), "pad": False}
    if topology == "peps":
        rows = max((r for r in range(1, int(math.sqrt(sites)) + 1) if sites % r == 0), default=1)
        if rows == 1:
            options["sites"] = sites = 6 if sites == SITES else sites
            rows = 2 if sites % 2 == 0 else 1
        if rows == 1:
            return None
        options |= {"grid": (rows, sites // rows)}
        del options["sites"]
    if topology == "mera":
        options["sites"] = 4 if sites == SITES else sites
    try:
        return tn.build(topology, features, features, **options).with_rank(chi, clip=True)
    except tn.TN4NNError:
        return None


def dense_seconds(features: int, batch: int) -> float:
    """A dense layer's training step: three matrix products."""
    rng = np.random.default_rng(0)
    x, gy = (rng.standard_normal((batch, features), dtype=np.float32) for _ in range(2))
    w = rng.standard_normal((features, features), dtype=np.float32)
    y, gx, gw = np.empty_like(x), np.empty_like(x), np.empty_like(w)

    def step() -> None:
        np.matmul(x, w.T, out=y)
        np.matmul(gy, w, out=gx)
        np.matmul(gy.T, x, out=gw)

    step()
    return _measure.best(step, 5)


def points(topology: str, axis: str) -> Iterator[Point]:
    """The measurements along one axis."""
    if axis == "sites" and topology in ("btt", "low_rank"):
        return  # they have theirs
    for value in AXES[axis]:
        given = {"batch": BATCH, "chi": CHI, "sites": SITES, "features": FEATURES} | {axis: value}
        net = network(topology, given["sites"], given["features"], given["chi"])
        if net is None:
            continue
        batch = given["batch"]
        p = tn.plan(net, batch, "train", runtime="native")
        if p.cost.predicted_s > 2:
            continue
        seconds, cost = measured([p])[0].measured_s or math.nan, p.cost
        dense = dense_seconds(given["features"], batch)
        yield Point(topology, axis, value, net.num_params, cost.macs, seconds, cost.saved, cost.peak, dense)


def slope(found: list[Point], of: str) -> float | None:
    """The exponent of a quantity in the upper half of an axis."""
    half = found[len(found) // 2 - 1 :] if len(found) > 3 else found
    if len(half) < 2 or any(getattr(p, of) <= 0 for p in half):
        return None
    x, y = np.log([p.value for p in half]), np.log([getattr(p, of) for p in half])
    return float(np.polyfit(x, y, 1)[0])


def worth(found: list[Point]) -> int | None:
    """The last value at which the layer is faster than dense."""
    return max((p.value for p in found if p.seconds < p.dense_seconds), default=None)


def main(
    only: Annotated[str | None, typer.Option(help="Topologies, by commas.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all points here.")] = None,
) -> None:
    """Measures how layers scale."""
    chosen = TOPOLOGIES if only is None else tuple(only.split(","))
    unknown = [name for name in chosen if name not in TOPOLOGIES]
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; there are {', '.join(TOPOLOGIES)}")
    console, every, rows = Console(), [], []
    console = console if console.is_terminal else Console(width=120)
    for axis in AXES:
        table = Table(title=f"against {axis} (training step)")
        for name in (
            "topology",
            "time ~",
            "saved ~",
            "MACs ~",
            "first ms",
            "last ms",
            "/ dense, last",
            "faster than dense up to",
        ):
            table.add_column(name)
        for topology in chosen:
            found = list(points(topology, axis))
            every += found
            if len(found) < 2:
                continue
            row = {"topology": topology, "axis": axis, "worth_up_to": worth(found)}
            row |= {of: slope(found, of) for of in ("seconds", "saved", "macs")}
            rows.append(row)
            shown = ["-" if row[of] is None else f"{axis}^{row[of]:.2f}" for of in ("seconds", "saved", "macs")]
            first, last = found[0], found[-1]
            table.add_row(
                topology, *shown, f"{first.seconds * 1e3:.3g}", f"{last.seconds * 1e3:.3g}",
                f"{last.seconds / last.dense_seconds:.2f}", str(row["worth_up_to"] or "never"),
            )  # fmt: skip
        console.print(table)
    if json_file is not None:
        data = {"machine": _measure.machine(), "versions": _measure.versions(), "threads": 1, "rows": rows}
        data["points"] = [dataclasses.asdict(p) for p in every]
        json_file.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
