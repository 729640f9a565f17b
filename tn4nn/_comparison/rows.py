"""A row of the table: the result of one (topology, budget, backend, seed)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

SCHEMA = 1  # of results, and of the rows that are stored
STATUSES = ("ok", "infeasible", "failed")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The fields and their order are those of the rows in `results.json`, which scripts rely on.

    Attributes:
        topology: name.
        budget: what was asked for, in the unit of `budget_of`; the size of the dense reference.
        params: parameters of the compared layers.
        model_params: parameters of the whole model.
        fill: share of the budget that is used.
        compression: dense parameters / parameters, of the compared layers.
        model_compression: the same of the whole model.
        macs_per_sample: multiply-adds of a forward pass for one sample. This and the next two are of the plan that the
            backend runs for the batch size.
        peak_bytes: most bytes alive at once in a training step of the layers, for a batch; never below saved_bytes.
        saved_bytes: bytes saved for backward by all layers, for a batch.
        step_ms: median time of a training step, in milliseconds.
        step_vs_dense: that time / the time of the dense model; below 1 is faster.
        backend: name.
        device: the framework's own word.
        dtype: precision of the training.
        seed: of the run.
        lr: learning rate.
        best_validation: best accuracy on the validation split, percent.
        accuracy: on the test split after the last epoch, percent.
        status: one of STATUSES.
        reason: why the status is not "ok".
        role: "topology", "dense" for the reference, "narrow" for the reference with thinner layers.
        width: of the model, on a ladder of widths.
        steps: of the run.
        search_steps: that the search for its learning rate took, all runs together.
        flops: floating-point operations of the run: two for each multiply-add of its training steps, in the layers on
            networks and in attention, by the plans that ran; None where the backend runs no plans.
        layers: parameters of each compared layer, by its name.
        metrics: on the test split after the last step, by name; in a table of results each is a field of the row.
    """

    topology: str
    budget: float
    params: int | None = None
    model_params: int | None = None
    fill: float | None = None
    compression: float | None = None
    model_compression: float | None = None
    macs_per_sample: int | None = None
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    step_ms: float | None = None
    step_vs_dense: float | None = None
    backend: str
    device: str
    dtype: str
    seed: int | None = None
    lr: float | None = None
    best_validation: float | None = None
    accuracy: float | None = None
    status: str
    reason: str
    role: str = "topology"
    width: int | None = None
    steps: int | None = None
    search_steps: int | None = None
    flops: float | None = None
    layers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """The row of a table of results: every metric is a field."""
        found = dataclasses.asdict(self)
        return found | {name: value for name, value in found.pop("metrics").items() if name not in found}


def is_stored(value: object) -> bool:
    """Whether this is what a sweep stores: a row, or the learning rate of a model."""
    if not isinstance(value, Mapping) or not isinstance(value.get("lr"), int | float | None):
        return False
    if {"lr"} <= set(value) <= {"lr", "search_steps"}:
        return isinstance(value.get("search_steps", 0), int)
    metrics = value.get("metrics")
    numbers = [value.get(name) for name in ("best_validation", "steps", "search_steps")]
    numbers += [*metrics.values()] if isinstance(metrics, Mapping) else ["none"]
    return (
        set(value) >= {*_STORED}
        and all(isinstance(number, int | float | None) for number in numbers)
        and value["status"] in STATUSES
        and isinstance(value["reason"], str)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What the training run of a cell gave: the part of its row that is not known before.

    Attributes:
        lr: see `Row`, as are the others.
    """

    lr: float | None
    status: str = "failed"
    reason: str = ""
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    best_validation: float | None = None
    steps: int | None = None
    search_steps: int | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Outcome:
        """The outcome out of a row that was stored."""
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})


_STORED = tuple(field.name for field in dataclasses.fields(Row))
ROW_KEYS = tuple(name for name in _STORED if name != "metrics")
