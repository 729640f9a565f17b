"""Scaling curves: how the loss of each topology falls with the compute that it is trained with.

The curve is loss = a C^-b + c: C the floating-point operations of a training run, c what no compute removes (Hoffmann
et al. 2022, arXiv:2203.15556). Deviations count relative to the loss. For a given b the best a and c solve a linear
problem, so that a search along b finds the least deviation of all, from no start.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEAST = 4  # compute values: one more than a curve has parameters
_SAME = 0.05  # runs whose compute differs by less are at one value
_EXPONENTS = np.geomspace(0.005, 8.0, 160)  # a fit at either end says nothing
_RESAMPLED = 500
_SEED = 0  # equal rows give equal intervals
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Point:
    """All seeds of a topology at one width.

    Attributes:
        flops: floating-point operations of a training run.
        width: of the model.
        losses: on the test split, of each seed.
    """

    flops: float
    width: float
    losses: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Curve:
    """loss = a C^-b + c through points, or why there is none.

    Attributes:
        a: loss that one floating-point operation would leave above c; None where there is no curve.
        b: exponent of the compute.
        c: loss that no compute removes.
        a_interval: 95 % interval.
        b_interval: likewise.
        c_interval: likewise.
        reason: why there is no curve.
    """

    a: float | None = None
    b: float | None = None
    c: float | None = None
    a_interval: Interval | None = None
    b_interval: Interval | None = None
    c_interval: Interval | None = None
    reason: str = ""

    def at(self, flops: Array) -> Array:
        """The loss after so much compute."""
        assert self.a is not None
        assert self.b is not None
        assert self.c is not None
        return self.c + np.exp(math.log(self.a) - self.b * np.log(flops))

    def __str__(self) -> str:
        if self.reason:
            return f"not identified: {self.reason}"
        return ", ".join(
            f"{name} = {value:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"
            for name, value, interval in (
                ("a", self.a, self.a_interval),
                ("b", self.b, self.b_interval),
                ("c", self.c, self.c_interval),
            )
            if value is not None and interval is not None
        )


def fit(points: Sequence[Point]) -> Curve:
    """The curve through points, with 95 % intervals.

    The intervals are those of a bootstrap: losses are drawn again around the curve, with the deviations of the points
    from it and those of the seeds from their points, both enlarged for the parameters that they were fitted with.

    Examples:
        >>> points = [Point(c, 0, (2 + 30 * c**-0.2,)) for c in (1e6, 1e7, 1e8, 1e9, 1e10)]
        >>> curve = fit(points)
        >>> round(curve.a, 1), round(curve.b, 3), round(curve.c, 3)
        (30.0, 0.2, 2.0)
    """
    levels = _levels(points)
    if len(levels) < LEAST:
        return Curve(reason=f"{_counted(len(levels))}, a curve of three parameters needs at least {LEAST}")
    flops = np.array([point.flops for point in points])
    means = np.array([statistics.fmean(point.losses) for point in points])
    if not (means > 0).all():
        return Curve(reason="a loss that is not above 0 has no power law")
    middle = float(np.exp(np.log(flops).mean()))
    scaled = flops / middle
    found = _fitted(scaled, means[None])[0]
    if not _falls(found):
        return Curve(reason="the loss does not fall with compute")
    drawn = _fitted(scaled, _drawn(scaled, points, means, found))
    # Where more than a few of the draws do not fall, or may take any exponent, the points do not tell the curve.
    if np.mean([not _falls(one) for one in drawn]) > 0.025:
        return Curve(reason="the loss falls no more than its spread")
    drawn = drawn[[_falls(one) for one in drawn]]
    low, high = np.quantile(drawn[:, 1], (0.025, 0.975))
    if low <= _EXPONENTS[1] or high >= _EXPONENTS[-2]:
        return Curve(reason=f"exponents from {low:.2g} to {high:.2g} fit equally well")
    a, b, c = map(float, found)
    return Curve(
        a * middle**b,
        b,
        c,
        a_interval=_interval(drawn[:, 0] * middle ** drawn[:, 1]),
        b_interval=_interval(drawn[:, 1]),
        c_interval=_interval(drawn[:, 2]),
    )


def _counted(count: int) -> str:
    return f"{count} value{'' if count == 1 else 's'} of compute"


def _levels(points: Sequence[Point]) -> list[float]:
    """The values of compute that differ."""
    found: list[float] = []
    for value in sorted(point.flops for point in points):
        if not found or value > found[-1] * (1 + _SAME):
            found.append(value)
    return found


def _falls(one: Array) -> bool:
    """Whether a fit (a, b, c) falls, by an exponent inside of the range of the search."""
    return bool(one[0] > 0 and _EXPONENTS[0] < one[1] < _EXPONENTS[-1])


def _interval(values: Array) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _fitted(flops: Array, losses: Array) -> Array:
    """(a, b, c) for each row of losses, none below 0: least squares of the relative deviations."""
    coarse = _best(flops, losses, np.broadcast_to(_EXPONENTS, (len(losses), len(_EXPONENTS))))
    step = math.log(_EXPONENTS[1] / _EXPONENTS[0])
    around = coarse[:, 1:2] * np.exp(np.linspace(-step, step, 41))
    return _best(flops, losses, np.clip(around, _EXPONENTS[0], _EXPONENTS[-1]))


def _best(flops: Array, losses: Array, exponents: Array) -> Array:
    """The fits at the best of some exponents, for each row of losses."""
    x = np.exp(-exponents[:, :, None] * np.log(flops))  # of shape (rows, exponents, points)
    weights = 1 / losses[:, None, :]
    u, v = x * weights, np.broadcast_to(weights, x.shape)  # minimise |a u + c v - 1|
    uu, uv, vv = (u * u).sum(-1), (u * v).sum(-1), (v * v).sum(-1)
    u1, v1 = u.sum(-1), v.sum(-1)
    det = uu * vv - uv * uv
    with np.errstate(divide="ignore", invalid="ignore"):
        a, c = (vv * u1 - uv * v1) / det, (uu * v1 - uv * u1) / det
    singular = det <= 1e-12 * uu * vv
    below = (c < 0) | singular  # then c is 0
    a, c = np.where(below, u1 / uu, a), np.where(below, 0.0, c)
    rises = a < 0  # then the loss is c
    a, c = np.where(rises, 0.0, a), np.where(rises, v1 / vv, c)
    left = ((a[:, :, None] * u + c[:, :, None] * v - 1) ** 2).sum(-1)
    at = left.argmin(-1)[:, None]
    taken = [np.take_along_axis(part, at, 1)[:, 0] for part in (a, exponents, c)]
    return np.stack(taken, -1)


def _drawn(scaled: Array, points: Sequence[Point], means: Array, found: Array) -> Array:
    """Means of the points, drawn again around their curve."""
    rng = np.random.default_rng(_SEED)
    curve = found[2] + found[0] * scaled ** -found[1]
    deviations = (means / curve - 1) * math.sqrt(len(points) / (len(points) - 3))
    drawn = rng.choice(deviations, (_RESAMPLED, len(points)))
    seeds = [
        (loss / mean - 1) * math.sqrt(len(point.losses) / (len(point.losses) - 1))
        for point, mean in zip(points, means, strict=True)
        if len(point.losses) > 1
        for loss in point.losses
    ]
    if seeds:
        for i, point in enumerate(points):
            drawn[:, i] += rng.choice(seeds, (_RESAMPLED, len(point.losses))).mean(-1)
    return np.asarray(curve * np.maximum(1 + drawn, 1e-3))


# ------------------------------------------------------------------------------------------- of results


def ladder_of(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The widths of rows that are on a ladder of them; none where there is one width."""
    widths = list(dict.fromkeys(row.get("width") for row in rows if row.get("width") is not None))
    return widths if len(widths) > 1 else []


def scaling(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record for each topology, backend and budget as it was asked for, of results on a ladder of widths: see
    `Report.scaling`."""
    rows = [row for row in results["rows"] if row["status"] == "ok"]
    if not ladder_of(rows):
        return []
    asked = list((results.get("config") or {}).get("budgets") or ())
    groups: dict[tuple[str, str, float | None], list[Mapping[str, Any]]] = {}
    for (name, backend), some in _grouped(rows, "topology", "backend").items():
        for of_width in _grouped(some, "width").values():
            budgets = list(dict.fromkeys(row.get("budget") for row in of_width))
            known = budgets if len(budgets) != len(asked) or len(asked) < 2 else asked
            for budget, shown in zip(budgets, known, strict=True):
                key = (name, backend, shown if known is asked else None)
                groups.setdefault(key, []).extend(row for row in of_width if row.get("budget") == budget)
    return [_record(*key, group) for key, group in groups.items()]


def _grouped(rows: Sequence[Mapping[str, Any]], *names: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return found


def _record(topology: str, backend: str, asked: float | None, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"topology": topology, "backend": backend, "asked": asked}
    lacking = [name for name in ("flops", "loss") if any(row.get(name) is None for row in rows)]
    points: list[Point] = []
    if not lacking:
        for (width,), some in _grouped(rows, "width").items():
            points.append(Point(float(some[0]["flops"]), width, tuple(float(row["loss"]) for row in some)))
    curve = Curve(reason=f"rows without {' and '.join(lacking)}") if lacking else fit(points)
    return found | dataclasses.asdict(curve) | {"points": [dataclasses.asdict(point) for point in points]}


def curve_of(record: Mapping[str, Any]) -> Curve:
    """The curve of a record."""
    return Curve(**{field.name: record[field.name] for field in dataclasses.fields(Curve)})


def compute_values(record: Mapping[str, Any]) -> int:
    """How many values of compute the points of a record have."""
    return len(_levels([Point(**point) for point in record["points"]]))
