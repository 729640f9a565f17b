"""The cells of a table: one model, on one backend, with one seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from .._base.errors import BackendError
from .._base.hashing import fingerprint_of
from .._model.backend import backend, target_of
from .._model.layers import Layer, OnNetwork
from .._model.rows import attention_macs, rows_of
from .._planning.layer import LayerPlanner
from .._runtime.cost import Cost, peak_in_turn
from .._runtime.target import CPU
from .._training.tasks import Task
from .modules import Fit, Recipe, layers_of
from .rows import SCHEMA, Outcome, Row
from .settings import Settings
from .variants import Infeasible, Subject, Variant


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of the table.

    Attributes:
        variant: what is trained.
        backend: name.
        seed: of the run.
        key: hash of everything that decides the result.
    """

    variant: Variant
    backend: str
    seed: int
    key: str

    @property
    def topology(self) -> str:
        """Name in the table."""
        return self.variant.topology

    @property
    def budget(self) -> float:
        """What was asked for."""
        return self.variant.budget

    @property
    def own_fit(self) -> Fit | None:
        """A person's own training, in place of ours."""
        model = self.variant.model
        return model.fit if isinstance(model, Recipe) else None

    @property
    def title(self) -> str:
        """The cell in progress lines, without its seed."""
        width = "" if self.variant.width is None else f", width {self.variant.width}"
        return f"{self.topology} at {self.budget:,}{width}"


def make_cells(subject: Subject, settings: Settings) -> list[Cell | Row]:
    """The cells to run, in the order of the table; a row in place of those whose budget no ranks can meet."""
    task_key, found = subject.task.fingerprint, list[Cell | Row]()
    for variant in subject.variants():
        if isinstance(variant, Infeasible):
            found.append(_infeasible(variant, settings))
            continue
        decides = [SCHEMA, settings.of_training(), variant.fingerprint, task_key]
        found += [
            Cell(variant, backend, seed, fingerprint_of([*decides, backend, seed]))
            for backend in settings.backends
            for seed in range(settings.seeds)
        ]
    return found


def _infeasible(found: Infeasible, settings: Settings) -> Row:
    return Row(
        topology=found.topology, role=found.role, budget=found.budget, width=found.width, backend=settings.backends[0],
        device=_device(settings.backends[0], settings), dtype=settings.precision, status="infeasible",
        reason=found.reason,
    )  # fmt: skip


def _device(name: str, settings: Settings) -> str:
    """What a row says that it ran on: the device asked for, or the one that the backend takes by itself."""
    if settings.device is not None:
        return settings.device
    return target_of(name, None, settings.dtype).device if _plans(name) else CPU


def _plans(name: str) -> bool:
    """Whether a backend runs plans; one of somebody else's need not."""
    return hasattr(backend(name), "target")


def row_costs(cell: Cell, settings: Settings, task: Task) -> list[Cost]:
    """What a training step of a cell costs, layer by layer, by the plans that its backend runs; empty where it runs
    none, or where it is not known what the layers of a module see."""
    if not _plans(cell.backend):
        return []
    key = fingerprint_of([cell.variant.fingerprint, cell.backend, settings.of_training(), list(task.inputs)])
    if key not in _costs:  # the seeds of a cell ask the same
        target = target_of(cell.backend, settings.device, settings.dtype)
        _costs[key] = [
            LayerPlanner(layer, target).plan(rows * settings.batch_size).cost
            for layer, rows in _seen(cell.variant.model, task)
        ]
    return _costs[key]


_costs: dict[str, list[Cost]] = {}


def _seen(model: Layer | Recipe, task: Task) -> Iterable[tuple[OnNetwork, int]]:
    """(layer, rows that it sees for one sample)."""
    if isinstance(model, Layer):
        return [(layer, rows) for _, layer, rows in rows_of(model, task.inputs)]
    return layers_of(model, task) if task.is_given else []


def step_flops(cell: Cell, settings: Settings, task: Task) -> float:
    """Floating-point operations of a training step: two for each multiply-add of the layers on networks and of
    attention, by the plans that run.

    Raises:
        BackendError: the backend runs no plans, so that nothing is known.
    """
    if not _plans(cell.backend):
        raise BackendError(f"a budget of FLOPs needs plans, and backend {cell.backend!r} runs none: give steps=")
    model, macs = cell.variant.model, sum(cost.macs for cost in row_costs(cell, settings, task))
    if isinstance(model, Layer):
        macs += 3 * settings.batch_size * attention_macs(model, task.inputs)  # forward, and twice that backward
    if not macs:
        raise BackendError("a budget of FLOPs needs to know what the layers of a module see, which is not known here")
    return 2.0 * macs


def row_of(cell: Cell, settings: Settings, outcome: Outcome, times: Mapping[str, float], task: Task) -> Row:
    """The row of a cell that has run; `times` holds "step_ms" and "step_vs_dense", or nothing."""
    variant = cell.variant
    costs = row_costs(cell, settings, task)
    model_params = variant.model.num_params
    return Row(
        topology=cell.topology,
        budget=cell.budget,
        params=variant.params,
        model_params=model_params,
        fill=variant.used / cell.budget,
        compression=variant.dense_params / variant.params,
        model_compression=variant.dense_model_params / model_params,
        macs_per_sample=round(sum(c.macs for c in costs) / 3 / settings.batch_size) if costs else None,
        peak_bytes=peak_in_turn(costs) if costs else None,
        saved_bytes=sum(cost.saved for cost in costs) if costs else None,
        step_ms=times.get("step_ms"),
        step_vs_dense=times.get("step_vs_dense"),
        backend=cell.backend,
        device=_device(cell.backend, settings),
        dtype=settings.precision,
        seed=cell.seed,
        lr=outcome.lr,
        best_validation=outcome.best_validation,
        accuracy=outcome.metrics.get("accuracy"),
        status=outcome.status,
        reason=outcome.reason,
        role=variant.role,
        width=variant.width,
        steps=outcome.steps,
        search_steps=outcome.search_steps,
        flops=outcome.steps * step_flops(cell, settings, task) if costs and outcome.steps else None,
        layers=dict(variant.layers),
        metrics=dict(outcome.metrics),
    )
