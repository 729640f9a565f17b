"""The panels of a comparison's figure, as plain data: which points, lines and curves, on which axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .columns import Scale, scale_of_figure, short
from .contents import Contents
from .scaling import curve_of
from .summary import Summary

_COSTS: tuple[tuple[str, Callable[[Summary], float | None]], ...] = (
    ("parameters of the compared layers", lambda one: one.params),
    ("multiply-adds a sample", lambda one: one.macs_per_sample),
    ("training step (ms)", lambda one: one.step_ms),
)


@dataclasses.dataclass(frozen=True)
class Point:
    """A mean over seeds.

    Attributes:
        x: on the horizontal axis.
        y: on the vertical axis.
        sd: of y over the seeds; 0 for one seed.
    """

    x: float
    y: float
    sd: float


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one topology that a line connects.

    Attributes:
        topology: its name.
        backend: its name.
        points: from the smallest width or budget to the largest.
        curve: that was fitted to them; it is drawn in place of the line.
    """

    topology: str
    backend: str
    points: tuple[Point, ...]
    curve: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        x: title of the horizontal axis, which is logarithmic.
        y: title of the vertical axis.
        log_y: whether that is logarithmic too.
        series: what is drawn.
        front: names and places of the points that no other beats in both x and y, from left to right.
        level: height of the dense model, where it is one for all.
    """

    x: str
    y: str
    log_y: bool
    series: tuple[Series, ...]
    front: tuple[tuple[str, float, float], ...] = ()
    level: float | None = None

    @property
    def title(self) -> str:
        """What the plot is."""
        return f"{self.y} against {self.x}"

    @property
    def description(self) -> str:
        """What a picture's reader sees, in words."""
        if not any(one.points for one in self.series):
            return f"{self.title}: not measured."
        names = dict.fromkeys(one.topology for one in self.series)
        text = f"{self.title}, for {', '.join(names)}."
        if self.front:
            places = [f"{name} ({short(x)}, {short(y)})" for name, x, y in self.front]
            text += f" No other is better in both: {', '.join(places)}."
        if any(one.curve for one in self.series):
            text += " Curves a C^-b + c are fitted."
        return text


def panels_of(contents: Contents) -> list[Panel]:
    """All panels: the metric against three costs, then, on a ladder of widths, what compute buys."""
    scale = scale_of_figure(contents.summaries, contents.metric)
    drawn = plottable(contents.summaries)
    found = [_against_cost(drawn, scale, title, value) for title, value in _COSTS]
    found += _at_equal_compute(contents, drawn, scale)
    return found + _of_curves(contents)


def plottable(summaries: Sequence[Summary]) -> list[Summary]:
    """Those with a score."""
    return [one for one in summaries if one.score is not None]


def _against_cost(drawn: Sequence[Summary], scale: Scale, title: str, cost: Callable[[Summary], float | None]) -> Panel:
    series = _series(drawn, scale, cost)
    dense = {one.backend: scale.of(one) for one in drawn if one.role == "dense"}
    alone = len([one for one in drawn if one.role == "dense"]) == len(dense) == 1
    return Panel(
        title, _title(scale), _is_log(series, scale), series, _front(series, scale.larger_is_better),
        next(iter(dense.values())) if alone else None,
    )  # fmt: skip


def _title(scale: Scale) -> str:
    return f"{scale.name} ({scale.unit})" if scale.unit else scale.name


def _is_log(series: Sequence[Series], scale: Scale) -> bool:
    """What is better at less and ends at zero has a logarithmic axis."""
    return not scale.larger_is_better and all(point.y > 0 for one in series for point in one.points)


def _series(drawn: Sequence[Summary], scale: Scale, value: Callable[[Summary], float | None]) -> tuple[Series, ...]:
    found = []
    for (topology, backend, _), group in _grouped(drawn).items():
        ordered = sorted(group, key=lambda one: (one.width or 0, one.budget or 0))
        points = tuple(point for one in ordered if (point := _point(one, scale, value)))
        found.append(Series(topology, backend, points))
    return tuple(found)


def _point(one: Summary, scale: Scale, value: Callable[[Summary], float | None]) -> Point | None:
    x, y = value(one), scale.of(one)
    return None if x is None or y is None else Point(x, y, one.score_sd or 0.0)


def _grouped(drawn: Sequence[Summary]) -> dict[tuple[str, str, int], list[Summary]]:
    """By what a line connects: the budgets of a topology, or on a ladder its widths, for each number of the budget."""
    ladder = len({one.width for one in drawn}) > 1
    budgets: dict[tuple[str, str, float | None], list[float | None]] = {}
    found: dict[tuple[str, str, int], list[Summary]] = {}
    for one in drawn:
        seen = budgets.setdefault((one.topology, one.backend, one.width), [])
        seen.append(one.budget)
        found.setdefault((one.topology, one.backend, len(seen) if ladder else 0), []).append(one)
    return found


def _front(series: Sequence[Series], larger_is_better: bool) -> tuple[tuple[str, float, float], ...]:
    """Points to which no other is at once cheaper and better."""
    points = [(one.topology, point.x, point.y) for one in series for point in one.points]
    sign = -1 if larger_is_better else 1
    found: list[tuple[str, float, float]] = []
    for name, x, y in sorted(points, key=lambda point: (point[1], sign * point[2])):
        if not found or sign * y < sign * found[-1][2]:
            found.append((name, x, y))
    return tuple(found)


def _at_equal_compute(contents: Contents, drawn: Sequence[Summary], scale: Scale) -> list[Panel]:
    """The metric against the size of the model, where all runs had the same compute."""
    flops = contents.config.get("flops")
    if flops is None or len({one.width for one in drawn}) < 2:
        return []
    series = _series(drawn, scale, lambda one: one.model_params)
    title = f"parameters of the model, {short(flops)} FLOPs each"
    return [Panel(title, _title(scale), _is_log(series, scale), series)]


def _of_curves(contents: Contents) -> list[Panel]:
    """The loss against the compute of a run, with the curves."""
    series = []
    for record in contents.curves:
        points = sorted((_of_seeds(point) for point in record["points"]), key=lambda point: point.x)
        curve = curve_of(record)
        line: tuple[tuple[float, float], ...] = ()
        if not curve.reason:
            at = np.geomspace(points[0].x, points[-1].x, 40)
            line = tuple((float(x), float(y)) for x, y in zip(at, curve.at(at), strict=True))
        series.append(Series(record["topology"], record["backend"], tuple(points), line))
    positive = all(point.y > 0 for one in series for point in one.points)
    return [Panel("FLOPs of a training run", "loss", positive, tuple(series))] if series else []


def _of_seeds(point: Mapping[str, object]) -> Point:
    losses = np.asarray(point["losses"], dtype=float)
    sd = float(losses.std(ddof=1)) if len(losses) > 1 else 0.0
    return Point(float(str(point["flops"])), float(losses.mean()), sd)
