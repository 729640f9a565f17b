"""Results of a comparison, grouped over seeds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._base.errors import CheckpointError
from .._base.records import check_schema
from .rows import ROW_KEYS, SCHEMA, STATUSES
from .variants import DENSE, TOPOLOGY


@dataclasses.dataclass(frozen=True, slots=True)
class Metric:
    """What decides between models.

    Attributes:
        name: the field of the rows that holds it.
        larger_is_better: its direction.
    """

    name: str = "accuracy"
    larger_is_better: bool = True


def metric_of(results: Mapping[str, Any]) -> Metric:
    """The metric of results; of those that were written before there was a choice, the accuracy."""
    config = results.get("config") or {}
    name = str(config.get("metric") or "accuracy")
    return Metric(name, bool(config.get("larger_is_better", name == "accuracy")))


Key = tuple[str, float | None, str, float | None]  # topology, budget, backend, width


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """All seeds of one topology at one budget on one backend, at one width of a ladder.

    Attributes:
        topology: name.
        backend: name.
        budget: what was asked for, or None.
        params: parameters of the compared layers.
        model_params: parameters of the whole model.
        fill: params / budget, a fraction.
        compression: dense parameters / params, of the compared layers.
        model_compression: the same of the whole model.
        macs_per_sample: multiply-adds of one forward pass of one sample.
        peak_bytes: most bytes alive at once in a training step of the layers, for a batch; never below saved_bytes.
        saved_bytes: bytes saved for backward by all layers, for a batch.
        lr: learning rate, the same for all seeds.
        step_ms: median over seeds of the time of one training step, in milliseconds.
        step_vs_dense: median over seeds of that time / the dense layer's; below 1 is faster.
        accuracy: mean over seeds, percent on the test split.
        accuracy_sd: sample standard deviation of it, None for fewer than two seeds.
        seeds: rows in the group.
        failed: rows whose status is "failed".
        status: "ok" where one seed is, else "infeasible" where one is, else "failed".
        reason: the distinct reasons of the rows that are not ok.
        role: "topology", "dense" for the reference, "narrow" for the reference with thinner layers.
        width: of the model, on a ladder of widths.
        steps: of a run.
        flops: floating-point operations of a run.
        metric: name of what decides.
        larger_is_better: its direction.
        score: mean over seeds of what decides.
        score_sd: sample standard deviation of it, None for fewer than two seeds.
        metrics: mean and standard deviation of the other metrics, by name.
        layers: parameters of each compared layer, by its name.
        level: not significantly worse than the best of its budget, backend and width.
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
    lr: float | None
    step_ms: float | None
    step_vs_dense: float | None
    accuracy: float | None
    accuracy_sd: float | None
    seeds: int
    failed: int
    status: str
    reason: str
    role: str = TOPOLOGY
    width: float | None = None
    steps: float | None = None
    flops: float | None = None
    metric: str = "accuracy"
    larger_is_better: bool = True
    score: float | None = None
    score_sd: float | None = None
    metrics: Mapping[str, tuple[float, float | None]] = dataclasses.field(default_factory=dict)
    layers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    level: bool = False

    @property
    def key(self) -> Key:
        """What the rows of the group have in common."""
        return self.topology, self.budget, self.backend, self.width


def key_of(row: Mapping[str, Any]) -> Key:
    """The group of a row."""
    return str(row["topology"]), number(row.get("budget")), str(row["backend"]), number(row.get("width"))


def role_of(row: Mapping[str, Any]) -> str:
    """The role of a row; those that were written before there were roles are topologies and the dense reference."""
    return str(row.get("role") or (DENSE if row["topology"] == DENSE else TOPOLOGY))


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


def summarise(rows: Iterable[Mapping[str, Any]], metric: Metric = Metric()) -> list[Summary]:
    """Groups rows over seeds by (topology, budget, backend, width), in the order of first appearance.

    Numbers come from the rows whose status is "ok"; a group without one takes them from its other rows.

    Args:
        rows: of results.
        metric: what decides.

    Examples:
        >>> row = {"topology": "mpo", "budget": 500, "backend": "torch", "status": "ok"}
        >>> [one] = summarise([{**row, "seed": 0, "accuracy": 94.0}, {**row, "seed": 1, "accuracy": 95.0}])
        >>> one.score, round(one.score_sd, 2), one.seeds
        (94.5, 0.71, 2)
    """
    groups: dict[Key, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key_of(row), []).append(row)
    return [_summary(key, group, metric) for key, group in groups.items()]


def _summary(key: Key, rows: list[Mapping[str, Any]], metric: Metric) -> Summary:
    topology, budget, backend, width = key
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

    def over_seeds(key: str) -> tuple[float | None, float | None]:
        found = values(key) if done else []
        return statistics.fmean(found) if found else None, statistics.stdev(found) if len(found) > 1 else None

    # Whatever else is a number in a row is a metric: of `tn.train`, or of a person's own fit.
    named = dict.fromkeys(["accuracy", *(name for row in done for name in row if name not in ROW_KEYS)])
    others = {name: over_seeds(name) for name in named if name != metric.name}
    score, accuracy = over_seeds(metric.name), over_seeds("accuracy")
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
        lr=first("lr"),
        step_ms=median("step_ms"),
        step_vs_dense=median("step_vs_dense"),
        accuracy=accuracy[0],
        accuracy_sd=accuracy[1],
        seeds=len(rows),
        failed=sum(row["status"] == "failed" for row in rows),
        status=next(status for status in STATUSES if status in statuses),
        reason="; ".join(reasons),
        role=role_of(rows[0]),
        width=width,
        steps=first("steps"),
        flops=first("flops"),
        metric=metric.name,
        larger_is_better=metric.larger_is_better,
        score=score[0],
        score_sd=score[1],
        metrics={name: (mean, sd) for name, (mean, sd) in others.items() if mean is not None},
        layers=next((dict(row["layers"]) for row in rows if row.get("layers")), {}),
    )


def machine_line(results: Mapping[str, Any]) -> str:
    """The machine in one line, for instance `machine: cpu Xeon, cores 2, torch 2.13.0`."""
    machine = results.get("machine") or {}
    return "machine: " + (", ".join(f"{key} {value}" for key, value in machine.items()) or "not recorded")
