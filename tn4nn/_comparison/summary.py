"""Results of a comparison, grouped over seeds, and the columns in which people read them."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .._base.errors import CheckpointError
from .._base.records import check_schema
from .rows import SCHEMA, STATUSES

NOTES = tuple(
    """\
asked, params = parameters of the replaced layers; fill = params / asked; compression = dense / params
MACs, peak, saved = those of the plan that this backend runs for the batch size
MACs = multiply-adds of one forward pass per sample
peak = most bytes of intermediates alive at once in a layer, saved = bytes saved for backward, both per batch
step = median time of one training step; vs dense below 1 is faster than the dense layer
accuracy = percent right on the test split at the last epoch, mean ± sample sd over seeds""".splitlines()
)


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """All seeds of one topology at one budget on one backend.

    Attributes:
        topology: name.
        backend: name.
        budget: parameters asked for, or None.
        params: parameters of the replaced layers.
        model_params: parameters of the whole model.
        fill: params / budget, a fraction.
        compression: dense parameters / params, of the replaced layers.
        model_compression: the same of the whole model.
        macs_per_sample: multiply-adds of one forward pass of one sample.
        peak_bytes: most bytes of intermediates alive at once in a layer, for a batch.
        saved_bytes: bytes saved for backward by all layers, for a batch.
        step_ms: median over seeds of the time of one training step, in milliseconds.
        step_vs_dense: median over seeds of that time / the dense layer's; below 1 is faster.
        accuracy: mean over seeds, percent on the test split.
        accuracy_sd: sample standard deviation of it, None for fewer than two seeds.
        seeds: rows in the group.
        failed: rows whose status is "failed".
        status: "ok" where one seed is, else "infeasible" where one is, else "failed".
        reason: the distinct reasons of the rows that are not ok.
    """

    topology: str
    backend: str
    budget: float | None
    params: float | None
    model_params: float | None
    fill: float | None
    compression: float | None
    model_compression: float | None
    macs_per_sample: float | None
    peak_bytes: float | None
    saved_bytes: float | None
    step_ms: float | None
    step_vs_dense: float | None
    accuracy: float | None
    accuracy_sd: float | None
    seeds: int
    failed: int
    status: str
    reason: str


def checked_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of results that can be reported.

    Raises:
        CheckpointError: another schema, or rows without a topology, backend or known status.
    """
    check_schema(results, SCHEMA, "the object of results", "give the object or the --json file that compare makes")
    rows = results.get("rows")
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise CheckpointError(f"expected a list of rows in the results; received {type(rows).__name__}.")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping) or not {"topology", "backend", "status"} <= row.keys():
            raise CheckpointError(
                f"expected rows with topology, backend and status; received {row!r:.200} as row {index}."
            )
        if row["status"] not in STATUSES:
            raise CheckpointError(
                f"expected the status of row {index} among {', '.join(STATUSES)}; received {row['status']!r}."
            )
    return [dict(row) for row in rows]


def number(value: Any) -> float | None:
    """A finite number as it is, anything else as None."""
    if isinstance(value, bool):
        return None
    try:
        return value if math.isfinite(value) else None
    except TypeError:
        return None


def summarise(rows: Iterable[Mapping[str, Any]]) -> list[Summary]:
    """Groups rows over seeds by (topology, budget, backend), in the order of first appearance.

    Numbers come from the rows whose status is "ok"; a group without one takes them from its other rows.

    Example:
        >>> row = {"topology": "mpo", "budget": 500, "backend": "torch", "status": "ok"}
        >>> [one] = summarise([{**row, "seed": 0, "accuracy": 94.0}, {**row, "seed": 1, "accuracy": 95.0}])
        >>> one.accuracy, round(one.accuracy_sd, 2), one.seeds
        (94.5, 0.71, 2)
    """
    groups: dict[tuple[str, float | None, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (str(row["topology"]), number(row.get("budget")), str(row["backend"]))
        groups.setdefault(key, []).append(row)
    return [_summary(*key, group) for key, group in groups.items()]


def _summary(topology: str, budget: float | None, backend: str, rows: list[Mapping[str, Any]]) -> Summary:
    done = [row for row in rows if row["status"] == "ok"]
    statuses = {row["status"] for row in rows}
    reasons = dict.fromkeys(str(row["reason"]) for row in rows if row["status"] != "ok" and row.get("reason"))

    def values(key: str) -> list[float]:
        found = [number(row.get(key)) for row in done or rows]
        return [value for value in found if value is not None]

    def first(key: str) -> float | None:
        return next(iter(values(key)), None)

    def median(key: str) -> float | None:
        return statistics.median(values(key)) if values(key) else None

    accuracies = values("accuracy") if done else []
    return Summary(
        topology=topology,
        backend=backend,
        budget=budget,
        params=first("params"),
        model_params=first("model_params"),
        fill=first("fill"),
        compression=first("compression"),
        model_compression=first("model_compression"),
        macs_per_sample=first("macs_per_sample"),
        peak_bytes=first("peak_bytes"),
        saved_bytes=first("saved_bytes"),
        step_ms=median("step_ms"),
        step_vs_dense=median("step_vs_dense"),
        accuracy=statistics.fmean(accuracies) if accuracies else None,
        accuracy_sd=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        seeds=len(rows),
        failed=sum(row["status"] == "failed" for row in rows),
        status=next(status for status in STATUSES if status in statuses),
        reason="; ".join(reasons),
    )


# -------------------------------------------------------------------------------------------- columns


def short(value: float | None, digits: int = 3) -> str:
    """A number at a glance: 3 significant digits and k, M, G, T from ten thousand on.

    Example:
        >>> short(0.4567), short(8321), short(1048576), short(None)
        ('0.457', '8321', '1.05M', '–')
    """
    if value is None:
        return "–"
    if abs(value) < 9999.5:
        return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.{digits}g}"
    power = min(4, int(math.log10(abs(value)) + 1e-9) // 3)
    # 999,950 would be printed as 1e+03k.
    if power < 4 and abs(value) / 1000**power >= 999.5:
        power += 1
    return f"{value / 1000**power:.{digits}g}{' kMGT'[power]}"


def _exact(value: float | None) -> str:
    return f"{value:.0f}" if value is not None and abs(value) < 1e6 else short(value)


def _times(value: float | None) -> str:
    return "–" if value is None else f"{short(value)}x"


def _kib(value: float | None) -> str:
    return short(None if value is None else value / 1024)


def _fill(one: Summary) -> str:
    return "–" if one.fill is None else f"{100 * one.fill:.1f}"


def _ratio(one: Summary) -> str:
    return "–" if one.step_vs_dense is None else f"{one.step_vs_dense:.2f}x"


def _accuracy(one: Summary) -> str:
    if one.accuracy is None:
        return "–"
    return f"{one.accuracy:.2f}" + ("" if one.accuracy_sd is None else f" ± {one.accuracy_sd:.2f}")


def _status(one: Summary) -> str:
    return f"ok {one.seeds - one.failed}/{one.seeds}" if one.status == "ok" and one.failed else one.status


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of every table: its title, the text of a cell, and the value to sort by."""

    title: tuple[str, str]
    cell: Callable[[Summary], str]
    value: Callable[[Summary], float | str | None]
    numeric: bool = True


COLUMNS = (
    Column(("topology", ""), lambda s: s.topology, lambda s: s.topology, numeric=False),
    Column(("backend", ""), lambda s: s.backend, lambda s: s.backend, numeric=False),
    Column(("asked", ""), lambda s: _exact(s.budget), lambda s: s.budget),
    Column(("params", ""), lambda s: _exact(s.params), lambda s: s.params),
    Column(("fill", "%"), _fill, lambda s: s.fill),
    Column(("compr.", "layers"), lambda s: _times(s.compression), lambda s: s.compression),
    Column(("compr.", "model"), lambda s: _times(s.model_compression), lambda s: s.model_compression),
    Column(("MACs", "/sample"), lambda s: short(s.macs_per_sample), lambda s: s.macs_per_sample),
    Column(("peak", "KiB"), lambda s: _kib(s.peak_bytes), lambda s: s.peak_bytes),
    Column(("saved", "KiB"), lambda s: _kib(s.saved_bytes), lambda s: s.saved_bytes),
    Column(("step", "ms"), lambda s: short(s.step_ms), lambda s: s.step_ms),
    Column(("vs", "dense"), _ratio, lambda s: s.step_vs_dense),
    Column(("accuracy", "%"), _accuracy, lambda s: s.accuracy),
    Column(("status", ""), _status, lambda s: s.status, numeric=False),
)


def machine_line(results: Mapping[str, Any]) -> str:
    """The machine in one line, for instance `machine: cpu Xeon, cores 2, torch 2.13.0`."""
    machine = results.get("machine") or {}
    return "machine: " + (", ".join(f"{key} {value}" for key, value in machine.items()) or "not recorded")
