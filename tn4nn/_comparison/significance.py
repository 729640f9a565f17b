"""Which differences between topologies are more than the spread of the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def welch(one: Sequence[float], other: Sequence[float]) -> float:
    """Two-sided p of equal means, of Welch's t-test: samples that may have different variances.

    NaN for samples of fewer than two values; where neither has any spread, 1 for equal and 0 for unequal means.

    Example:
        >>> round(welch([97.1, 97.3, 97.2], [96.0, 96.4, 96.2]), 4)
        0.0048
    """
    if min(len(one), len(other)) < 2:
        return math.nan
    a, b = (statistics.variance(sample) / len(sample) for sample in (one, other))
    difference = statistics.fmean(one) - statistics.fmean(other)
    if a + b == 0:
        return 1.0 if difference == 0 else 0.0
    freedom = (a + b) ** 2 / (a**2 / (len(one) - 1) + b**2 / (len(other) - 1))
    return _beta(freedom / 2, 0.5, freedom / (freedom + difference**2 / (a + b)))


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): each may be compared with the level as if it were alone. No p
    at all (NaN) counts as 1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    found, most = [0.0] * len(values), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(values) - rank) * values[i]))
        found[i] = most
    return found


def level_with_best(rows: Sequence[Mapping[str, Any]], alpha: float = 0.05) -> dict[str, float]:
    """Topology -> corrected p against the best one, for those of a table's rows that are not significantly below it.

    Args:
        rows: of one budget on one backend, a row for each topology and seed; those without accuracy are left out.
        alpha: level of the test (Welch, Holm-corrected for the number of topologies).

    Example:
        >>> seeds = {"mpo": (97.1, 97.3, 97.2), "ring": (97.0, 97.2, 97.3), "cp": (90.0, 90.4, 90.2)}
        >>> rows = [{"topology": name, "accuracy": a} for name, values in seeds.items() for a in values]
        >>> list(level_with_best(rows))
        ['mpo', 'ring']
    """
    samples: dict[str, list[float]] = {}
    for row in rows:
        if row.get("accuracy") is not None:
            samples.setdefault(str(row["topology"]), []).append(float(row["accuracy"]))
    if not samples:
        return {}
    best = max(samples, key=lambda name: statistics.fmean(samples[name]))
    others = [name for name in samples if name != best]
    corrected = holm([welch(samples[best], samples[name]) for name in others])
    pairs = zip(others, corrected, strict=True)
    return {best: 1.0, **{name: p for name, p in pairs if not p <= alpha}}


def _beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # there the fraction of the mirrored function converges
        return 1 - _beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    value, upper, lower = 1.0, 1.0, 0.0
    for i in range(300):
        m = i // 2
        if i == 0:
            term = 1.0
        elif i % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        lower = 1 / (1 + term * lower or tiny)
        upper = 1 + term / upper or tiny
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-14:
            break
    return front * (value - 1)
