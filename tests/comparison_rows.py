"""Rows of a comparison of layer graphs, made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def graph_row(topology: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of a table in which the loss decides, with a field for each metric."""
    role = topology if topology in ("dense", "narrow") else "topology"
    fields: dict[str, Any] = {
        "topology": topology, "budget": 1000, "params": 990, "model_params": 5000, "fill": 0.99, "compression": 4.0,
        "model_compression": 2.0, "macs_per_sample": 9000, "peak_bytes": 2_048_000, "saved_bytes": 102_400,
        "step_ms": 1.5, "step_vs_dense": 0.65, "backend": "torch", "device": "cpu", "dtype": "float32", "seed": seed,
        "lr": 0.003, "best_validation": 2.1, "accuracy": 30.0, "status": "ok", "reason": "", "role": role,
        "width": None, "steps": 100, "search_steps": 0, "flops": 1e9, "layers": {"up": 500, "down": 490}, "loss": 2.0,
    }  # fmt: skip
    return fields | changes


def seeds_of(topology: str, losses: Sequence[float], **changes: Any) -> list[dict[str, Any]]:
    """A row for each loss."""
    return [graph_row(topology, seed, loss=loss, **changes) for seed, loss in enumerate(losses)]


def results_of(rows: Sequence[dict[str, Any]], **config: Any) -> dict[str, Any]:
    """Results in which the loss decides."""
    settings = {"data": "text", "budgets": [1000], "budget_of": "params", "metric": "loss", "larger_is_better": False}
    return {"schema": 1, "machine": {"cpu": "Xeon"}, "config": settings | config, "rows": list(rows)}
