"""Experiments that compare topologies in a model: at equal parameters and steps, and at equal compute on a ladder of
widths. Each unit of work is one comparison, which goes on from its own finished cells."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import compare, installed_backends
from .._base.tables import markdown_table
from .._comparison.significance import holm, welch
from .._drawing.figure import INK, dress, legend, panels, style
from .._model.layers import Layer
from .._training.tasks import Task
from ._experiment import Line, Row, Settings, Unit, mean_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOPOLOGIES = ("low_rank", "mpo", "tree", "ring", "peps", "btt", "monarch", "cp", "tucker", "kronecker")
QUICK = ("low_rank", "mpo", "tree", "btt")
SHARES = (0.25, 0.5, 0.125)  # in the order in which they are run
_TIMES = ("step_ms", "step_vs_dense")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the models of an experiment are made and trained.

    Attributes:
        model: a function of the width.
        width: of the comparison at equal parameters.
        widths: of the ladder.
        where: patterns of the layers that are compared.
        steps: of a run at equal parameters; those of the dense model at equal compute.
        training: further arguments of `compare`.
    """

    model: Callable[..., Layer]
    width: int
    widths: tuple[int, ...]
    where: tuple[str, ...]
    steps: int
    training: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        model = self.model
        options = model.keywords if isinstance(model, functools.partial) else {}
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "model"}
        return {**found, "model": dict(options), "topologies": TOPOLOGIES, "shares": SHARES}


def units(recipe: Recipe, task: Callable[[], Task], flops: float, settings: Settings) -> list[Unit]:
    """The comparisons: shares of the weights one after the other, then equal compute; on each backend."""
    there = [name for name in ("torch", "jax") if name in installed_backends()]
    backends = [settings.backend] if settings.quick else there
    shares = (0.25,) if settings.quick else SHARES
    found = [
        Unit(
            {"backend": backend, "share": share}, functools.partial(_run, recipe, task, settings, backend, share, None)
        )
        for backend in backends
        for share in shares
    ]
    if not settings.quick:
        found += [
            Unit(
                {"backend": backend, "share": 0.25, "flops": flops},
                functools.partial(_run, recipe, task, settings, backend, 0.25, flops),
            )
            for backend in backends
        ]
    return found


def _run(
    recipe: Recipe,
    task: Callable[[], Task],
    settings: Settings,
    backend: str,
    share: float,
    flops: float | None,
    folder: Path,
) -> dict[str, Any]:
    """One comparison; its rows, their times apart."""
    length: dict[str, Any] = {"steps": recipe.steps}
    if flops is not None:
        length = {"flops": flops, "scale": {"width": list(recipe.widths)}}
    report = compare(
        list(QUICK if settings.quick else TOPOLOGIES),
        model=recipe.model if flops is not None else recipe.model(width=recipe.width),
        where=list(recipe.where), task=task(), budget=share, backends=backend, seeds=settings.seeds, out=folder,
        resume=True, device=settings.device, **length, **recipe.training,
    )  # fmt: skip
    kept, times = [], []
    for row in report.rows:
        times.append({name: row[name] for name in _TIMES})
        kept.append({name: value for name, value in row.items() if name not in (*_TIMES, "layers")})
    return {"cells": kept, "metric": report.results["config"]["metric"], "times": times}


# -- what came out --------------------------------------------------------------------------------------------------


def scores(rows: Sequence[Row], topology: str, share: float, backend: str | None = None, **key: Any) -> list[float]:
    """The scores of a topology over seeds (and backends), at equal parameters unless `flops` is given."""
    found = []
    for row in rows:
        if row["share"] != share or backend not in (None, row["backend"]) or ("flops" in row) != ("flops" in key):
            continue
        for cell in row["cells"]:
            matches = key.get("width") in (None, cell["width"]) and cell["topology"] == topology
            if matches and cell["status"] == "ok":
                found.append(float(cell[row["metric"]]))
    return found


def best_of_ladder(rows: Sequence[Row], topology: str, backend: str, less: bool) -> tuple[int, list[float]] | None:
    """(width, scores) of a topology at the width that is best for it, at equal compute."""
    widths = {cell["width"] for row in rows if "flops" in row for cell in row["cells"]}
    found = {w: scores(rows, topology, 0.25, backend, flops=True, width=w) for w in widths}
    found = {w: values for w, values in found.items() if values}
    if not found:
        return None
    best = (min if less else max)(found, key=lambda w: statistics.fmean(found[w]))
    return best, found[best]


def line(rows: Sequence[Row], topology: str, share: float, backend: str, **band: Any) -> Line:
    """The score of a topology at a share of the weights."""
    name = "dense" if topology == "dense" else f"{topology} at {share:g} of the weights"
    return mean_line(f"{backend}: {name}", scores(rows, topology, share, backend), **band)


def gain_line(rows: Sequence[Row], topology: str, share: float, backend: str, less: bool, **band: Any) -> Line:
    """By how much a topology is better than the thinner dense model, seed by seed."""
    pairs = zip(scores(rows, "narrow", share, backend), scores(rows, topology, share, backend), strict=False)
    gains = [(a - b) if less else (b - a) for a, b in pairs]
    return mean_line(f"{backend}: {topology} better than narrow, at {share:g} of the weights", gains, **band)


def ladder_lines(rows: Sequence[Row], backend: str, less: bool, **band: Any) -> list[Line]:
    """What each topology reaches at equal compute, at the width that suits it; dense and thinner dense among them."""
    found = []
    for topology in ("dense", "narrow", *TOPOLOGIES):
        best = best_of_ladder(rows, topology, backend, less)
        if best is not None:
            what = f"{backend}, equal compute: {topology} at its best width, {best[0]}"
            found.append(mean_line(what, best[1], **band))
    return found


def tables(rows: Sequence[Row], less: bool, digits: int) -> list[str]:
    """A table for each backend and regime, and which topologies beat the thinner dense model beyond the noise."""
    found = []
    for row in rows:
        named = dict.fromkeys(cell["topology"] for cell in row["cells"])
        if "flops" in row:
            continue
        times = dict(zip((cell["topology"] for cell in row["cells"]), row["times"], strict=True))
        lines = []
        for topology in named:
            values = scores([row], topology, row["share"])
            cell = next(cell for cell in row["cells"] if cell["topology"] == topology)
            if not values:
                lines.append([topology, "–", cell["status"], "–", "–", "–"])
                continue
            sd = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            lines.append(
                [topology, f"{cell['params']:,}", f"{statistics.fmean(values):.{digits}f}{sd}", f"{cell['lr']:g}",
                 _text(cell["macs_per_sample"], ","), _text(times[topology]["step_vs_dense"], ".2f")]
            )  # fmt: skip
        found.append(f"At {row['share']:g} of the layers' weights, equal steps, {row['backend']}:")
        found.append(
            markdown_table(("topology", "weights", row["metric"], "lr", "MACs a sample", "step / dense"), lines)
        )
        found.append(_against_narrow([row], row["share"], less))
    return found


def _text(value: float | None, form: str) -> str:
    """A number, or a dash where it was not measured."""
    return "–" if value is None else format(value, form)


def _against_narrow(rows: Sequence[Row], share: float, less: bool) -> str:
    narrow = scores(rows, "narrow", share)
    names = [n for n in dict.fromkeys(cell["topology"] for row in rows for cell in row["cells"])
             if n not in ("dense", "narrow") and scores(rows, n, share)]  # fmt: skip
    if len(narrow) < 2:
        return "One seed: no differences can be told from noise."
    values = holm([welch(narrow, scores(rows, name, share)) for name in names])
    sure = [name for name, p in zip(names, values, strict=True) if p < 0.05]
    better = [n for n in sure if (statistics.fmean(scores(rows, n, share)) < statistics.fmean(narrow)) == less]
    worse = [n for n in sure if n not in better]
    level = [n for n in names if n not in sure]
    said = [
        f"{what}: {', '.join(which)}"
        for what, which in (("better", better), ("level with it within noise", level), ("worse", worse))
        if which
    ]
    return "Against the thinner dense model at this budget (Welch, Holm-corrected, p < 0.05): " + "; ".join(said) + "."


def draw(figure: Figure, rows: Sequence[Row], metric: str) -> None:
    """Score against weights at equal steps, and against width at equal compute."""
    equal = [row for row in rows if "flops" not in row]
    ladder = [row for row in rows if "flops" in row]
    found = panels(figure, 2 if ladder else 1)
    names = [n for n in dict.fromkeys(cell["topology"] for row in rows for cell in row["cells"]) if n != "dense"]
    looks = {name: style(index) for index, name in enumerate(names)} | {"dense": {"color": INK, "linestyle": ":"}}
    for name in names:
        points: dict[int, list[float]] = {}
        for row in equal:
            for cell in row["cells"]:
                if cell["topology"] == name and cell["status"] == "ok":
                    points.setdefault(cell["params"], []).append(cell[row["metric"]])
        if points:
            at = sorted(points)
            found[0].plot(at, [statistics.fmean(points[n]) for n in at], label=name, **looks[name])
    dense = [cell[row["metric"]] for row in equal for cell in row["cells"] if cell["topology"] == "dense"]
    if dense:
        found[0].axhline(statistics.fmean(dense), label="dense", **looks["dense"])
    found[0].set_xscale("log")
    dress(found[0], "weights of the compared layers", metric, "equal steps")
    legend(found[0])
    if ladder:
        for name in looks:
            widths: dict[int, list[float]] = {}
            for row in ladder:
                for cell in row["cells"]:
                    if cell["topology"] == name and cell["status"] == "ok":
                        widths.setdefault(cell["width"], []).append(cell[row["metric"]])
            at = sorted(widths)
            found[1].plot(at, [statistics.fmean(widths[w]) for w in at], label=name, **looks[name])
        found[1].set_xscale("log")
        dress(found[1], "width", metric, "equal compute")
