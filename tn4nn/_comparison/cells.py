"""The cells of a table: one model, on one backend, with one seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .._base.errors import BudgetError
from .._base.hashing import digest, fingerprint_of
from .._graph.problem import min_macs
from .._model.backend import backend, target_of
from .._model.layers import Layer
from .._planning.layer import plan
from .._runtime.cost import Cost
from .._runtime.target import CPU
from .._training.data import Dataset
from .rows import SCHEMA, Outcome, Row
from .settings import Settings
from .topologies import Candidate, is_dense, model_for


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of the table.

    Attributes:
        topology: name.
        budget: what was asked for; the size of the dense reference.
        model: with its ranks.
        params: parameters of the compared layers.
        dense_params: of dense layers of the same shape.
        fill: share of the budget that is used.
        backend: name.
        seed: of the run.
        key: hash of everything that decides the result.
    """

    topology: str
    budget: int
    model: Layer
    params: int
    dense_params: int
    fill: float
    backend: str
    seed: int
    key: str


def make_cells(candidates: Sequence[Candidate], data: Dataset, settings: Settings) -> list[Cell | Row]:
    """The cells to run, in the order of the table; a row in place of those whose budget no ranks can meet."""
    found: list[Cell | Row] = []
    data_key: list[str | int] = [digest(data.x_train, data.y_train, data.x_test, data.y_test), data.classes]
    for number, budget in enumerate(settings.budgets):
        for candidate in candidates:
            if is_dense(candidate) and number > 0:  # it is the same for every budget
                continue
            try:
                model = model_for(candidate, budget, data.classes, settings.macs_batch)
            except BudgetError as error:
                found.append(_infeasible(candidate.name, budget, settings, str(error)))
            else:
                found += _cells_of(candidate, model, budget, settings, data_key)
    return found


def _cells_of(
    candidate: Candidate, model: Layer, budget: int, settings: Settings, data_key: list[str | int]
) -> list[Cell]:
    """A model on every backend, with every seed."""
    networks = model.networks()
    compared = [networks["0"]] if candidate.head is None else list(networks.values())
    params = sum(net.num_params for net in compared)
    used: float = params
    if settings.macs_batch is not None:
        used = min_macs(compared[0], settings.macs_batch) / settings.macs_batch
    if is_dense(candidate):
        budget = round(used)
    return [
        Cell(
            topology=candidate.name,
            budget=budget,
            model=model,
            params=params,
            dense_params=sum(net.dense_params for net in compared),
            fill=used / budget,
            backend=backend,
            seed=seed,
            key=fingerprint_of([SCHEMA, settings.of_training(), model.fingerprint, backend, seed, *data_key]),
        )
        for backend in settings.backends
        for seed in range(settings.seeds)
    ]


def _infeasible(topology: str, budget: int, settings: Settings, reason: str) -> Row:
    return Row(
        topology=topology, budget=budget, backend=settings.backends[0], device=_device(settings.backends[0], settings),
        dtype=settings.precision, status="infeasible", reason=reason,
    )  # fmt: skip


def _dtype(settings: Settings) -> str:
    return {"bf16": "bfloat16"}.get(settings.precision, settings.precision)


def _device(name: str, settings: Settings) -> str:
    """What a row says that it ran on: the device asked for, or the one that the backend takes by itself."""
    if settings.device is not None:
        return settings.device
    return target_of(name, None, _dtype(settings)).device if _plans(name) else CPU


def _plans(name: str) -> bool:
    """Whether a backend runs plans; one of somebody else's need not."""
    return hasattr(backend(name), "target")


def row_costs(cell: Cell, settings: Settings) -> list[Cost]:
    """What a training step of a cell costs, layer by layer, by the plans that its backend runs; empty where it runs
    none."""
    if not _plans(cell.backend):
        return []
    where: dict[str, Any] = {"backend": cell.backend, "device": settings.device, "dtype": _dtype(settings)}
    return [plan(net, settings.batch_size, "train", **where).cost for net in cell.model.networks().values()]


def row_of(cell: Cell, settings: Settings, outcome: Outcome, times: Mapping[str, float]) -> Row:
    """The row of a cell that has run; `times` holds "step_ms" and "step_vs_dense", or nothing."""
    costs = row_costs(cell, settings)
    model_params = cell.model.num_params
    return Row(
        topology=cell.topology,
        budget=cell.budget,
        params=cell.params,
        model_params=model_params,
        fill=cell.fill,
        compression=cell.dense_params / cell.params,
        model_compression=(model_params + cell.dense_params - cell.params) / model_params,
        macs_per_sample=round(sum(c.macs for c in costs) / 3 / settings.batch_size) if costs else None,
        peak_bytes=max((cost.peak for cost in costs), default=None),
        saved_bytes=sum(cost.saved for cost in costs) if costs else None,
        step_ms=times.get("step_ms"),
        step_vs_dense=times.get("step_vs_dense"),
        backend=cell.backend,
        device=_device(cell.backend, settings),
        dtype=settings.precision,
        seed=cell.seed,
        lr=outcome.lr,
        best_validation=outcome.best_validation,
        accuracy=outcome.accuracy,
        status=outcome.status,
        reason=outcome.reason,
    )
