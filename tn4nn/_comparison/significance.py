"""Which differences between topologies are more than the spread of the seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .._base.errors import TN4NNError


def welch(one: Sequence[float], other: Sequence[float]) -> float:
    """Two-sided p of equal means, of Welch's t-test: samples that may have different variances.

    NaN for samples of fewer than two values; where neither has any spread, 1 for equal and 0 for unequal means.

    Raises:
        TN4NNError: scipy is not installed (it comes with tn4nn[torch] and tn4nn[jax]).

    Examples:
        >>> round(welch([97.1, 97.3, 97.2], [96.0, 96.4, 96.2]), 4)
        0.0048
    """
    if min(len(one), len(other)) < 2:
        return math.nan
    means = statistics.fmean(one), statistics.fmean(other)
    deviations = statistics.stdev(one), statistics.stdev(other)
    if not any(deviations):
        return float(means[0] == means[1])
    try:
        from scipy.stats import ttest_ind_from_stats
    except ImportError as error:
        raise TN4NNError(f"tests of significance need scipy ({error}): pip install scipy") from error
    # Not ttest_ind, which warns of samples without spread.
    found = ttest_ind_from_stats(
        means[0], deviations[0], len(one), means[1], deviations[1], len(other), equal_var=False
    )
    return float(found.pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): each may be compared with the level as if it were alone. No p
    at all (NaN) counts as 1.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    known = [1.0 if math.isnan(value) else value for value in values]
    order = sorted(range(len(known)), key=lambda i: known[i])
    found, most = [0.0] * len(known), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(known) - rank) * known[i]))
        found[i] = most
    return found


def level_with_best(
    rows: Sequence[Mapping[str, Any]], alpha: float = 0.05, metric: str = "accuracy", larger_is_better: bool = True
) -> dict[str, float]:
    """Topology -> corrected p against the best one, for those of a table's rows that are not significantly worse.

    Args:
        rows: of one budget on one backend, a row for each topology and seed; those without the metric are left out.
        alpha: level of the test (Welch, Holm-corrected for the number of topologies).
        metric: what decides: a field of the rows.
        larger_is_better: its direction.

    Examples:
        >>> seeds = {"mpo": (97.1, 97.3, 97.2), "ring": (97.0, 97.2, 97.3), "cp": (90.0, 90.4, 90.2)}
        >>> rows = [{"topology": name, "accuracy": a} for name, values in seeds.items() for a in values]
        >>> list(level_with_best(rows))
        ['mpo', 'ring']
    """
    samples = samples_of(rows, metric)
    if not samples:
        return {}
    choose = max if larger_is_better else min
    best = choose(samples, key=lambda name: statistics.fmean(samples[name]))
    others = {name: p for name, p in _corrected(samples, best).items() if not p <= alpha}
    return {best: 1.0, **others}


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """How a topology compares with another model.

    Attributes:
        p: of equal means, corrected for the number of topologies.
        better: its mean is.
    """

    p: float
    better: bool


def against(
    rows: Sequence[Mapping[str, Any]], reference: str, metric: str = "accuracy", larger_is_better: bool = True
) -> dict[str, Difference]:
    """Topology -> how it compares with one of them, by Welch's t-test over the seeds, Holm-corrected.

    Args:
        rows: see `level_with_best`.
        reference: the topology that the others are compared with; without rows of it nothing is found.
        metric: see `level_with_best`.
        larger_is_better: see `level_with_best`.

    Examples:
        >>> seeds = {"narrow": (2.1, 2.2, 2.0), "btt": (1.1, 1.2, 1.3), "cp": (2.2, 2.0, 2.1)}
        >>> rows = [{"topology": name, "loss": a} for name, values in seeds.items() for a in values]
        >>> found = against(rows, "narrow", "loss", larger_is_better=False)
        >>> found["btt"].better, found["btt"].p < 0.01, found["cp"].p
        (True, True, 1.0)
    """
    samples = samples_of(rows, metric)
    if reference not in samples:
        return {}
    means = {name: statistics.fmean(values) for name, values in samples.items()}
    return {
        name: Difference(p, means[name] > means[reference] if larger_is_better else means[name] < means[reference])
        for name, p in _corrected(samples, reference).items()
    }


def samples_of(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[float]]:
    """Topology -> the metric of its rows that have a finite one."""
    samples: dict[str, list[float]] = {}
    for row in rows:
        if row.get(metric) is not None and math.isfinite(row[metric]):
            samples.setdefault(str(row["topology"]), []).append(float(row[metric]))
    return samples


def _corrected(samples: Mapping[str, Sequence[float]], reference: str) -> dict[str, float]:
    others = [name for name in samples if name != reference]
    corrected = holm([welch(samples[reference], samples[name]) for name in others])
    return dict(zip(others, corrected, strict=True))
