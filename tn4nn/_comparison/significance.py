"""Which differences between topologies are more than the spread of the seeds."""

from __future__ import annotations

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

    Example:
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
