"""The comparison: topologies under one budget, the same effort for each, one honest table.

A cell is one (topology, budget, backend, seed). Finished cells are appended to a file one line at a time, so
a sweep that is stopped goes on where it was. Times are measured afterwards, all models in turn, in one
process in which nothing else runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .._base.errors import TN4NNError
from .._graph.topology import Topology
from .._training.data import Dataset
from .._training.data import load as load_data
from .cells import Cell, make_cells
from .machine import machine
from .report import print_table, write_csv, write_html, write_json
from .rows import SCHEMA
from .settings import Settings, checked_backends, checked_budgets, defaults_for
from .significance import level_with_best
from .store import Store
from .sweep import Sweep
from .topologies import Candidate, candidates_for

DEFAULT_TOPOLOGIES = ("dense", "low_rank", "mpo", "ring", "tree", "peps", "tucker", "cp", "btt")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a comparison found. `print(report)` is the table; `save` writes it for people and for programs.

    Attributes:
        results: {"schema", "machine", "config", "rows"}, plain data.
    """

    results: Mapping[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One for each (topology, budget, backend, seed)."""
        return list(self.results["rows"])

    def level_with_best(self, budget: int, backend: str, alpha: float = 0.05) -> dict[str, float]:
        """Topologies whose test accuracy is not significantly below the best one's, with their p (Welch's t-test over
        the seeds, Holm-corrected); the dense reference counts only where its size is the budget."""
        chosen = [row for row in self.rows if row["budget"] == budget and row["backend"] == backend]
        return level_with_best(chosen, alpha)

    def save(self, folder: str | Path) -> Path:
        """Writes results.json, results.csv and report.html into a folder; returns the path of the page."""
        where = Path(folder)
        write_json(where / "results.json", self.results)
        write_csv(where / "results.csv", self.results)
        write_html(where / "report.html", self.results)
        return where / "report.html"

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=150, no_color=True)
        with console.capture() as capture:
            print_table(self.results, console)
        return capture.get()


def compare(
    topologies: str | Topology | Candidate | Sequence[str | Topology | Candidate] = DEFAULT_TOPOLOGIES,
    *,
    budget: int | Sequence[int] | None = None,
    macs: int | Sequence[int] | None = None,
    data: str | Dataset = "digits",
    backends: str | Sequence[str] | None = None,
    seeds: int = 3,
    hidden: int | None = None,
    sites: int | None = None,
    head: str = "network",
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "adam",
    lr: float | str = "auto",
    search_rows: int | None = None,
    precision: str = "float32",
    device: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    jobs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Compares topologies on one task under one budget, of parameters or of multiply-adds.

    The model is features -> hidden -> classes with one ReLU between. Both matrices are networks of the topology and
    share the budget, which counts their parameters and no biases. "dense" is the reference: its budget is its size.

    Args:
        topologies: names of the catalogue, Topologies of your own (features -> hidden; the last layer is then
            dense, for every candidate), or Candidates.
        budget: parameters of the compared layers; several give one table each (default 1,500 for digits, 4,000
            otherwise).
        macs: instead of `budget`, multiply-adds for each sample of the hidden layer, forward, in the order that
            needs fewest for a batch; head="dense" only.
        data: "digits" (embedded), "mnist", "fashion-mnist", a path of an .npz file, or a Dataset.
        backends: names (default: all that are installed and train).
        seeds: how many seeds, from 0.
        hidden: neurons of the hidden layer (default 64 for digits, 256 otherwise).
        sites: modes on each side (default: the catalogue's choice for each topology).
        head: "network" or "dense": the last layer is a network of the same topology, or dense.
        epochs: of a run (default 30 for digits, 6 otherwise).
        batch_size: rows of a step (default 64 for digits, 100 otherwise).
        optimizer: see `train`.
        lr: a number, or "auto": for each topology and budget the best of four rates on the validation split, a
            third of the epochs each, on the first backend, with a seed that is not reported.
        search_rows: the search sees so many rows of the training data (default: all).
        precision: "float32", "float64" or "bf16".
        device: the framework's own word.
        out: folder for rows that are finished (and nothing else: `Report.save` writes the rest).
        resume: go on with the finished rows in `out`.
        jobs: processes that train at once, one thread each; times are measured afterwards in any case.
        progress: called with a line of text for each finished cell.

    Raises:
        TN4NNError: an unknown name, a topology that does not fit the data, a folder that holds an unfinished
            sweep (resume, or name another).

    Example:
        >>> import tn4nn as tn
        >>> report = tn.compare(["mpo", "dense"], budget=600, backends=["torch"], seeds=1, epochs=1, lr=1e-3)
        >>> [(row["topology"], row["params"]) for row in report.rows]
        [('mpo', 600), ('dense', 4736)]
    """
    loaded = data if isinstance(data, Dataset) else load_data(data)
    default = defaults_for(loaded.name)
    settings = Settings(
        data=data if isinstance(data, str) else loaded.name,
        hidden=default.hidden if hidden is None else hidden,
        epochs=default.epochs if epochs is None else epochs,
        search_rows=search_rows,
        batch_size=default.batch_size if batch_size is None else batch_size,
        optimizer=optimizer,
        lr=lr,
        precision=precision,
        device=device,
        budgets=checked_budgets(budget if macs is None else macs, default.budget),
        budget_of="params" if macs is None else "macs",
        seeds=seeds,
        jobs=jobs,
        head=head,
        backends=checked_backends(backends),
    )
    candidates = candidates_for(topologies, loaded, settings.hidden, sites, head)
    if any(c.head is None for c in candidates):
        settings = dataclasses.replace(settings, head="dense")
    if macs is not None and (budget is not None or settings.head != "dense"):
        raise TN4NNError("macs= counts those of the hidden layer alone: give head='dense', and no budget=")
    entries = make_cells(candidates, loaded, settings)
    cells = [entry for entry in entries if isinstance(entry, Cell)]
    store = Store(None if out is None else Path(out) / "rows.jsonl", resume)
    sweep = Sweep(cells, loaded, settings, store, progress or (lambda _: None))
    sweep.run()
    rows = [sweep.row(entry) if isinstance(entry, Cell) else entry for entry in entries]
    return Report(
        {
            "schema": SCHEMA,
            "machine": machine(settings.backends),
            "config": settings.config(),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
    )
