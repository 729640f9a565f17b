"""All that is said about results, for the terminal and for the page alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .._base.errors import TN4NNError
from .columns import Column, columns_for, notes_on, short
from .scaling import LEAST, compute_values, curve_of, scaling
from .significance import Difference, against, level_with_best, samples_of
from .summary import Key, Metric, Summary, checked_rows, key_of, metric_of, role_of, summarise
from .variants import DENSE, NARROW, TOPOLOGY

ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a report says.

    Attributes:
        config: settings of the comparison.
        metric: what decides.
        rows: one for each seed.
        summaries: one for each row of the table.
        columns: of the table.
        findings: sentences below the table, about what the seeds tell.
        curves: see `scaling`; none where no topology has enough values of compute.
        notes: the meaning of the columns.
    """

    config: Mapping[str, Any]
    metric: Metric
    rows: Sequence[Mapping[str, Any]]
    summaries: Sequence[Summary]
    columns: Sequence[Column]
    findings: Sequence[str]
    curves: Sequence[Mapping[str, Any]]
    notes: Sequence[str]


def contents_of(results: Mapping[str, Any]) -> Contents:
    """What a report says about results.

    Raises:
        CheckpointError: results of another schema.
    """
    rows, metric = checked_rows(results), metric_of(results)
    tables = _tables(rows)
    try:
        level = {key for some in tables.values() for key in _level(some, metric)}
        findings = _against_narrow(tables, metric)
    except TN4NNError as error:  # no scipy
        level, findings = set(), [str(error)]
    summaries = [dataclasses.replace(one, level=one.key in level) for one in summarise(rows, metric)]
    columns = columns_for(summaries, metric)
    curves = [one for one in scaling({**results, "rows": rows}) if one["points"]]
    if not any(compute_values(one) >= LEAST for one in curves):
        curves = []
    return Contents(
        config=results.get("config") or {},
        metric=metric,
        rows=rows,
        summaries=summaries,
        columns=columns,
        findings=[*findings, *_scaling_lines(curves)],
        curves=curves,
        notes=notes_on(results, summaries, columns),
    )


Rows = Sequence[Mapping[str, Any]]


def _tables(rows: Rows) -> dict[Key, list[Mapping[str, Any]]]:
    """The rows that compete: those of one budget, backend and width. The dense reference has a budget of its own."""
    found: dict[Key, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["status"] == "ok":
            found.setdefault(("", *key_of(row)[1:]), []).append(row)
    return found


def _level(rows: Rows, metric: Metric) -> list[Key]:
    """The groups of a table that are level with its best, as far as seeds can tell."""
    samples = samples_of(rows, metric.name)
    names = level_with_best(rows, ALPHA, metric.name, metric.larger_is_better)
    told = [name for name in names if len(samples[name]) > 1]
    if len(samples) < 2 or next(iter(names)) not in told:
        return []
    return list(dict.fromkeys(key_of(row) for row in rows if row["topology"] in told))


def _against_narrow(tables: Mapping[Key, Rows], metric: Metric) -> list[str]:
    """A sentence for each table that has a thinner dense model."""
    compared = {key: rows for key, rows in tables.items() if any(role_of(row) == NARROW for row in rows)}
    found = []
    for key, rows in compared.items():
        some = [row for row in rows if role_of(row) != DENSE]
        [name] = {str(row["topology"]) for row in some if role_of(row) == NARROW}
        differences = against(some, name, metric.name, metric.larger_is_better)
        if not any(role_of(row) == TOPOLOGY for row in some):
            continue
        if all(len(values) < 2 for values in samples_of(some, metric.name).values()):
            return ["one seed each: nothing tells these differences from noise (seeds=3 or more would)"]
        found.append(f"better than the thinner dense model at {_where(key, compared)}: {_sentence(differences)}")
    return found


def _where(key: Key, tables: Mapping[Key, Any]) -> str:
    """What tells a table from the others."""
    parts = ["budget", "on", "width"]
    said = [
        f"{word} {value if isinstance(value, str) else short(value)}"
        for number, (word, value) in enumerate(zip(parts, key[1:], strict=True), 1)
        if len({other[number] for other in tables}) > 1
    ]
    return ", ".join(said) or "this budget"


def _sentence(differences: Mapping[str, Difference]) -> str:
    clear = {name: one for name, one in differences.items() if one.p <= ALPHA}

    def listed(better: bool) -> str:
        return ", ".join(f"{name} ({_p(one.p)})" for name, one in clear.items() if one.better == better)

    parts = [listed(True) or "none"]
    if listed(False):
        parts.append(f"worse: {listed(False)}")
    if len(clear) < len(differences):
        parts.append(f"not told apart: {', '.join(name for name in differences if name not in clear)}")
    return "; ".join(parts)


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _scaling_lines(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    if not curves:
        return []
    lines = ["scaling: loss = a C^-b + c, C = floating-point operations of a training run, with 95 % intervals"]
    backends = len({one["backend"] for one in curves})
    for one in curves:
        named = [one["topology"], *([one["backend"]] if backends > 1 else [])]
        asked = "" if one["asked"] is None else f" asked {one['asked']:g}"
        lines.append(f"{' on '.join(named)}{asked}: {curve_of(one)}")
    return lines
