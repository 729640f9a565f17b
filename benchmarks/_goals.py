"""From rows to verdicts: ratios of a cell, geometric means, which goals hold. Plain data in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from _measure import Spread, geometric_mean, paired

Cell = Mapping[str, Any]
Goal = dict[str, Any]

LARGE = 1024 * 1024  # dense parameters from which P2 counts a layer
_WORST = 5  # cells that a failed goal names
_NOISE = 0.05  # within which two medians of one cell are equal; the tables show them as they are


def row(cell: Cell, peer: str) -> Mapping[str, Any] | None:
    """The row of a competitor that was timed, else None."""
    return next((r for r in cell["rows"] if r["peer"] == peer and r["status"] == "ok"), None)


def summarised(rows: list[dict[str, Any]], times: Mapping[str, list[float]]) -> dict[str, Any]:
    """Adds each row's ratio to dense, and returns ours against dense and against the best peer, by framework.

    Ours in torch meets every peer, ours in jax those in jax.
    """
    timed = {r["peer"]: r for r in rows if r["status"] == "ok"}
    found: dict[str, Any] = {}
    for name, r in timed.items():
        dense = f"dense-{r['framework']}"
        r["vs_dense"] = paired(times[name], times[dense]).to_dict() if dense in timed else None
    for framework in ("torch", "jax"):
        ours = f"tn4nn-{framework}"
        if ours not in timed:
            continue
        rivals = [
            n for n, r in timed.items() if r["role"] == "peer" and (framework == "torch" or r["framework"] == "jax")
        ]
        best = min(rivals, key=lambda n: timed[n]["time"]["median"], default=None)
        found[framework] = {
            "vs_dense": timed[ours]["vs_dense"],
            "best_peer": best,
            "peer_vs_ours": None if best is None else paired(times[best], times[ours]).to_dict(),
            "vs_reconstruct": _vs_reconstruct(ours, timed, times),
        }
    return found


def _vs_reconstruct(ours: str, timed: Mapping[str, Any], times: Mapping[str, list[float]]) -> dict[str, float] | None:
    built = [n for n in ("reconstruct", "tltorch-reconstructed") if n in timed and ours == "tn4nn-torch"]
    if not built:
        return None
    best = min(built, key=lambda n: timed[n]["time"]["median"])
    ratio: Spread = paired(times[ours], times[best])
    return ratio.to_dict()


# -- over all cells ------------------------------------------------------------------------------------------


def name_of(cell: Cell) -> str:
    """case/batch/phase."""
    return f"{cell['case']}/{cell['batch']}/{cell['phase']}"


def _ratio(cell: Cell, key: str, framework: str = "torch") -> float | None:
    found = cell["summary"].get(framework, {}).get(key)
    return None if found is None else found["median"]


def _faster(cell: Cell) -> float | None:
    """The best peer's time over that of the faster of ours, in torch or jax each: medians, not paired."""
    times = {role: [r["time"]["median"] for r in cell["rows"] if r["role"] == role and r["status"] == "ok"]
             for role in ("peer", "ours")}  # fmt: skip
    return min(times["peer"]) / min(times["ours"]) if all(times.values()) else None


def _few_bonds(cell: Cell) -> bool:
    return cell["chi"] is not None and 1 < cell["chi"] <= 4 and cell["batch"] >= 32


def means(cells: Iterable[Cell]) -> dict[str, Any]:
    """Geometric means of peer / ours and ours / dense, over all cells and over chi <= 4 at batch >= 32."""
    cells = list(cells)
    result: dict[str, Any] = {}
    groups: dict[str, Callable[[Cell], bool]] = {"all": lambda _: True, "chi<=4, batch>=32": _few_bonds}
    for label, belongs in groups.items():
        for framework in ("torch", "jax"):
            for key in ("peer_vs_ours", "vs_dense"):
                ratios = [r for c in cells if belongs(c) and (r := _ratio(c, key, framework)) is not None]
                result[f"{framework}: {key}, {label}"] = {"mean": geometric_mean(ratios), "cells": len(ratios)}
        ratios = [r for c in cells if belongs(c) and (r := _faster(c)) is not None]
        result[f"the faster of both: peer_vs_ours, {label}"] = {"mean": geometric_mean(ratios), "cells": len(ratios)}
    return result


def goals(cells: Iterable[Cell]) -> dict[str, Goal]:
    """P1 to P5 for the torch backend; each with whether it holds, the figure, and the cells that break it.

    P1 once more for the faster of ours, as the best peer is the fastest of both frameworks too.
    """
    cells = [c for c in cells if "torch" in c["summary"]]
    train = [c for c in cells if c["phase"] == "train"]
    few = [c for c in train if _few_bonds(c)]
    large = [c for c in train if c["dense_params"] >= LARGE and c["batch"] >= 32]
    return {
        "P1 train step never slower than the best peer, beyond 5%": _slower(train, _torch_alone),
        "P1 best peer / ours, geometric mean >= 1.6": _mean(cells, 1.6),
        "P1 the same over chi <= 4 and batch >= 32, forward and train, >= 2.5": _mean(filter(_few_bonds, cells), 2.5),
        "P1 the same over chi <= 4 and batch >= 32, train alone, >= 2.5": _mean(few, 2.5),
        "P1 the faster of ours in torch and jax, never slower either": _slower(train, _faster),
        "P1 the faster of ours over chi <= 4 and batch >= 32, train alone, >= 2.5": _mean(few, 2.5, _faster),
        "P2 ours / dense <= 0.35 at chi <= 4, batch >= 32, 1024 and up": _each(
            [c for c in large if _few_bonds(c)], "vs_dense", most=0.35
        ),
        "P2 ours / dense <= 0.8 at chi = 8": _each([c for c in large if c["chi"] == 8], "vs_dense", most=0.8),
        "P2 ours / dense <= 0.15 for BTT 4096": _each(
            [c for c in large if c["topology"] == "btt"], "vs_dense", most=0.15
        ),
        "P3 ours <= 1.05 of W built, then dense": _each(cells, "vs_reconstruct", most=1.05),
        "P4 saved <= x + y + 1 MB where a plan runs in blocks": _saved(train),
        "P5 share of the limit >= 0.5 at batch >= 256": _share([c for c in cells if c["batch"] >= 256]),
    }


def _verdict(values: Mapping[str, float], broken: Mapping[str, float], reverse: bool) -> Goal:
    worst = sorted(broken, key=lambda name: broken[name], reverse=reverse)[:_WORST]
    return {
        "holds": None if not values else not broken,
        "cells": len(values),
        "broken": len(broken),
        "worst": {name: broken[name] for name in worst},
    }


def _each(cells: Iterable[Cell], key: str, *, most: float) -> Goal:
    timed = {name_of(c): (c, r) for c in cells if (r := _ratio(c, key)) is not None}
    broken = {name: ratio for name, (_, ratio) in timed.items() if ratio > most}
    goal = _verdict({name: ratio for name, (_, ratio) in timed.items()}, broken, reverse=True)
    if key == "vs_dense":  # no speed helps where the plan computes more than the layer that it is to beat
        found = {name: _macs_over_dense(timed[name][0]) for name in goal["worst"]}
        goal["macs_over_dense"] = {name: ratio for name, ratio in found.items() if ratio is not None and ratio > most}
    return goal


def _macs_over_dense(cell: Cell) -> float | None:
    ours, dense = row(cell, "tn4nn-torch"), row(cell, "dense-torch")
    return None if ours is None or dense is None else float(ours["macs"] / dense["macs"])


def _torch_alone(cell: Cell) -> float | None:
    return _ratio(cell, "peer_vs_ours")


def _slower(cells: Iterable[Cell], ratio: Callable[[Cell], float | None]) -> Goal:
    timed = {name_of(c): r for c in cells if (r := ratio(c)) is not None}
    return _verdict(timed, {name: r for name, r in timed.items() if r < 1 - _NOISE}, reverse=False)


def _mean(cells: Iterable[Cell], least: float, ratio: Callable[[Cell], float | None] = _torch_alone) -> Goal:
    ratios = [r for c in cells if (r := ratio(c)) is not None]
    mean = geometric_mean(ratios)
    return {"holds": None if mean is None else mean >= least, "cells": len(ratios), "mean": mean}


def _saved(cells: Iterable[Cell]) -> Goal:
    excess = {}
    for cell in cells:
        ours = row(cell, "tn4nn-torch")
        if ours is None or ours["saved_bytes"] is None or not 0 < ours["notes"].get("block", 0) < cell["batch"]:
            continue
        allowed = 4 * cell["batch"] * (cell["in_features"] + cell["out_features"]) + 10**6
        excess[name_of(cell)] = ours["saved_bytes"] / allowed
    return _verdict(excess, {n: v for n, v in excess.items() if v > 1}, reverse=True)


def _share(cells: Iterable[Cell]) -> Goal:
    shares = {name_of(c): r["share_of_limit"] for c in cells if (r := row(c, "tn4nn-torch")) is not None}
    return _verdict(shares, {n: v for n, v in shares.items() if v < 0.5}, reverse=False)
