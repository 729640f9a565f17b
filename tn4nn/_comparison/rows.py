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
        budget: parameters asked for (or multiply-adds); the size of the dense reference.
        params: parameters of the compared layers.
        model_params: parameters of the whole model.
        fill: share of the budget that is used.
        compression: dense parameters / parameters, of the compared layers.
        model_compression: the same of the whole model.
        macs_per_sample: multiply-adds of a forward pass for one sample. This and the next two are of the plan that the
            backend runs for the batch size.
        peak_bytes: most bytes of intermediates alive at once in a layer, for a batch.
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
    """

    topology: str
    budget: int
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


ROW_KEYS = tuple(field.name for field in dataclasses.fields(Row))


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What the training run of a cell gave: the part of its row that is not known before.

    Attributes:
        lr: see `Row`, as are the others.
    """

    lr: float
    status: str = "failed"
    reason: str = ""
    accuracy: float | None = None
    best_validation: float | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Outcome:
        """The outcome out of a row that was stored."""
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})
