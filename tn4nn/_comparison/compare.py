"""The comparison: topologies under one budget, the same effort for each, one honest table.

A cell is one (topology, budget, backend, seed). Finished cells are appended to a file one line at a time, so
a sweep that is stopped goes on where it was. Times are measured afterwards, all candidates in turn, in one
process in which nothing else runs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import platform
import signal
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._base.checks import at_least, checked_size, one_of, read_json
from .._base.errors import BudgetError, CheckpointError, TN4NNError, TopologyError
from .._base.hashing import digest, fingerprint_of
from .._base.version import installed_version
from .._graph.budget import checked_budget
from .._graph.catalogue import build, canonical_name, catalogue
from .._graph.network import Network
from .._graph.problem import min_macs
from .._graph.topology import Topology
from .._model.backend import TrainSpec, backend, installed_backends
from .._model.budget import with_budget
from .._model.layers import Layer, Linear, ReLU, Sequential
from .._planning.layer import plan
from .._planning.request import bucket
from .._training.data import Dataset
from .._training.data import load as load_data
from .._training.train import OPTIMIZERS, PRECISIONS, Pair, Run, train
from .report import print_table, write_csv, write_html, write_json
from .significance import level_with_best

SCHEMA = 1
DEFAULT_TOPOLOGIES = ("dense", "low_rank", "mpo", "ring", "tree", "peps", "tucker", "cp", "btt")
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # what `lr="auto"` tries for every topology alike
_SEARCH_SEED = 1_000  # of the learning-rate search: no seed that is reported
_FAILURES = (TN4NNError, RuntimeError, ValueError, MemoryError)  # of one cell, which end no sweep
_ROUNDS, _STEPS = 7, 8  # of the timing: rounds through all candidates, steps of each in a round


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is compared under one name.

    Attributes:
        name: in the table.
        hidden: of the hidden layer.
        head: of the last layer; None for a dense one.
    """

    name: str
    hidden: Topology
    head: Topology | None


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a cell's result, as plain data.

    Attributes:
        data: name or path of the data set.
        hidden: neurons of the hidden layer.
        epochs: of a run.
        search_epochs: of a run of the learning-rate search.
        search_rows: of the training data that the search sees, None for all.
        batch_size: rows of a step.
        optimizer: see `train`.
        lr: a number, or "auto".
        precision: see `train`.
        device: see `train`.
    """

    data: str
    hidden: int
    epochs: int
    search_epochs: int
    search_rows: int | None
    batch_size: int
    optimizer: str
    lr: float | str
    precision: str
    device: str | None


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

    The model is features -> hidden -> classes with one ReLU between. Both matrices stand on the topology and
    share the budget, which counts their weights and no biases. "dense" is the reference: it has the size it
    has, and its budget is that size.

    Args:
        topologies: names of the catalogue, Topologies of your own (features -> hidden; the last layer is then
            dense, for every candidate), or Candidates.
        budget: weights of the layers compared; several give one table each (default 1,500 for digits, 4,000
            otherwise).
        macs: in the place of `budget`, multiply-adds for each sample of the hidden layer, forward, in the order that
            needs fewest for a batch; head="dense" only.
        data: "digits" (embedded), "mnist", "fashion-mnist", a path of an .npz file, or a Dataset.
        backends: names (default: all that are installed and train).
        seeds: how many seeds, from 0.
        hidden: neurons of the hidden layer (default 64 for digits, 256 otherwise).
        sites: modes on each side (default: the catalogue's choice for each topology).
        head: "network" or "dense": what the last layer stands on.
        epochs: of a run (default 30 for digits, 6 otherwise).
        batch_size: rows of a step (default 64 for digits, 100 otherwise).
        optimizer: see `train`.
        lr: a number, or "auto": for each topology and budget the best of four rates on the validation split, a
            third of the epochs each, on the first backend, with a seed that is not reported.
        search_rows: the search sees so many rows of the training data (default: all).
        precision: "float32", "float64" or "bf16".
        device: the framework's own word.
        out: folder for rows that are finished (and nothing else: `Report.save` writes the rest).
        resume: take up the finished rows in `out`.
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
    small = loaded.name == "digits"
    hidden = (64 if small else 256) if hidden is None else checked_size(hidden, "hidden")
    epochs = (30 if small else 6) if epochs is None else epochs
    batch_size = (64 if small else 100) if batch_size is None else batch_size
    one_of(optimizer, OPTIMIZERS, "optimizer")
    one_of(precision, PRECISIONS, "precision")
    at_least(1, seeds=seeds, jobs=jobs, epochs=epochs, batch_size=batch_size)
    settings = Settings(
        data=data if isinstance(data, str) else loaded.name,
        hidden=hidden,
        epochs=epochs,
        search_epochs=max(1, epochs // 3),
        search_rows=None if search_rows is None else checked_size(search_rows, "search_rows"),
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        precision=precision,
        device=device,
    )
    if not (lr == "auto" or (isinstance(lr, int | float) and lr > 0)):
        raise TN4NNError(f"lr must be 'auto' or a number above 0, received {lr!r}")
    backends = [backends] if isinstance(backends, str) else backends
    wanted = backends or [name for name in installed_backends() if name != "numpy"]
    names = tuple(dict.fromkeys(wanted))  # a name given twice would count its seeds twice
    if not names:
        raise TN4NNError('no backend that trains is installed: pip install "tn4nn[torch]" or "tn4nn[jax]"')
    for name in names:
        backend(name)
    candidates = candidates_for(topologies, loaded, hidden, sites, head)
    if macs is not None and (budget is not None or any(c.head is not None for c in candidates)):
        raise TN4NNError("macs= counts those of the hidden layer alone: give head='dense', and no budget=")
    asked = _budgets(budget if macs is None else macs, 1_500 if small else 4_000)
    cells, dropped = _cells(candidates, asked, loaded, settings, names, seeds, "params" if macs is None else "macs")
    store = _Store(None if out is None else Path(out) / "rows.jsonl", resume)
    sweep = _Sweep(cells, loaded, settings, store, progress or (lambda _: None))
    sweep.run(jobs)
    rows = [*sweep.rows(), *dropped]
    order = [(c.name, b) for b in asked for c in candidates]
    rows.sort(key=lambda row: _place(row, order, names))
    return Report(
        {
            "schema": SCHEMA,
            "machine": machine(names),
            "config": {**dataclasses.asdict(settings), "budgets": list(asked),
                       "budget_of": "params" if macs is None else "macs", "seeds": seeds, "jobs": jobs,
                       "head": "dense" if any(c.head is None for c in candidates) else "network",
                       "learning_rates": list(LEARNING_RATES) if lr == "auto" else [lr]},
            "rows": rows,
        }
    )  # fmt: skip


def machine(names: Sequence[str]) -> dict[str, str | int]:
    """What the results were made on."""
    found: dict[str, str | int] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "tn4nn": installed_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    for name in ("numpy", *names):
        found |= backend(name).versions()
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# -- what is compared -------------------------------------------------------------------------------------------


def candidates_for(
    topologies: str | Topology | Candidate | Sequence[str | Topology | Candidate],
    data: Dataset,
    hidden: int,
    sites: int | None,
    head: str,
) -> list[Candidate]:
    """The candidates, checked against the data; one dense head for all where one candidate has none."""
    if head not in ("network", "dense"):
        raise TN4NNError(f"head must be 'network' or 'dense', received {head!r}")
    found: list[Candidate] = []
    for item in [topologies] if isinstance(topologies, str | Topology | Candidate) else topologies:
        if isinstance(item, Candidate):
            found.append(item)
        elif isinstance(item, Topology):
            found.append(Candidate(item.name, item, None))
        else:
            name = canonical_name(item)
            count = None if name in ("dense", "low_rank") else sites
            parts = [
                build(name, n_in, n_out, sites=count)
                for n_in, n_out in ((data.features, hidden), (hidden, data.classes))
            ]
            found.append(Candidate(name, parts[0], parts[1]))
    if not found:
        raise TN4NNError(f"no topologies to compare: name some of {', '.join(catalogue())}")
    names = [c.name for c in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise TN4NNError(f"topology names must be unique in a table, received twice: {', '.join(sorted(twice))}")
    for c in found:
        if c.hidden.in_features != data.features or c.hidden.out_features != hidden:
            raise TopologyError(
                f"topology {c.name!r} maps {c.hidden.in_features} -> {c.hidden.out_features}, but the hidden layer "
                f"maps {data.features} -> {hidden} (choose the latter with hidden=)"
            )
        if c.head is not None and (c.head.in_features, c.head.out_features) != (hidden, data.classes):
            raise TopologyError(
                f"the head of {c.name!r} maps {c.head.in_features} -> {c.head.out_features}, but the last layer maps "
                f"{hidden} -> {data.classes}"
            )
    if head == "dense" or any(c.head is None for c in found):
        found = [dataclasses.replace(c, head=None) for c in found]
    return found


def read_topologies(path: str | Path) -> list[Topology | Candidate]:
    """Topologies out of a .json or .toml file.

    Each entry has a name, `cores` (the text notation), `inputs`, `outputs`, and may have a `head` of the same
    form for the last layer. In TOML::

        [mine]
        cores = "x0 y0 a, x1 y1 a"
        inputs = {x0 = 8, x1 = 8}
        outputs = {y0 = 8, y1 = 8}

    Raises:
        TopologyError: a file that cannot be read, or an entry that is wrong, by its name.
    """
    where = Path(path)
    try:
        text = where.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(f"topologies file {where} cannot be read: {error}") from error
    if where.suffix == ".toml":
        try:
            entries = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise TopologyError(f"topologies file {where} is no TOML: {error}") from error
    else:
        entries = read_json(text, f"file of topologies ({where})")
    found: list[Topology | Candidate] = []
    for name, entry in entries.items():
        try:
            hidden = Topology.from_dict({**entry, "name": name})
            found.append(Candidate(name, hidden, Topology.from_dict(entry["head"])) if "head" in entry else hidden)
        except (TopologyError, TypeError, AttributeError, ValueError) as error:
            raise TopologyError(f"topologies file {where}, entry {name!r}: {error}") from None
    return found


def _budgets(given: int | Sequence[int] | None, default: int) -> tuple[int, ...]:
    many = (default,) if given is None else (given,) if isinstance(given, int) else tuple(given)
    if not many:
        raise TN4NNError(f"no budgets to compare under: name some, or None for {default:,}")
    return tuple(dict.fromkeys(checked_budget(budget, "weights") for budget in many))


def model_for(candidate: Candidate, budget: int | None, classes: int, macs_at: int | None = None) -> Layer:
    """The model of a candidate with its ranks chosen; None for the dense reference, which has no choice. With
    `macs_at`, a batch size, the budget is one of multiply-adds for each sample of the hidden layer."""
    hidden: Topology | Network = candidate.hidden
    if macs_at is not None and budget is not None:
        hidden = candidate.hidden.with_budget(macs=budget * macs_at, batch=macs_at)
        budget = None
    last = Linear(hidden.out_features, classes) if candidate.head is None else Linear(candidate.head)
    model = Sequential(Linear(hidden), ReLU(), last)
    return model if budget is None else with_budget(model, params=budget, count="networks")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of the table.

    Attributes:
        topology: name.
        budget: weights asked for.
        model: with its ranks.
        params: weights of the compared layers.
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


def _cells(
    candidates: Sequence[Candidate],
    budgets: Sequence[int],
    data: Dataset,
    settings: Settings,
    names: Sequence[str],
    seeds: int,
    unit: str,
) -> tuple[list[Cell], list[dict[str, Any]]]:
    """The cells to run, and the rows of those that no ranks can meet; `unit` of the budgets: "params" or "macs"."""
    batch = settings.batch_size if unit == "macs" else None
    cells: list[Cell] = []
    dropped: list[dict[str, Any]] = []
    told = [digest(data.x_train, data.y_train, data.x_test, data.y_test), data.classes]
    for c in candidates:
        dense = not c.hidden.bonds and len(c.hidden.cores) == 1
        for asked in budgets[:1] if dense else budgets:
            try:
                model = model_for(c, None if dense else asked, data.classes, batch)
            except BudgetError as error:
                dropped.append(_empty(c.name, asked, names[0], settings, "infeasible", str(error)))
                continue
            compared = {n: net for n, net in model.networks().items() if c.head is not None or n == "0"}
            params = sum(net.num_params for net in compared.values())
            whole = sum(net.dense_params for net in compared.values())
            used = params if batch is None else min_macs(compared["0"], batch) / batch
            budget = round(used) if dense else asked
            for name in names:
                for seed in range(seeds):
                    key = fingerprint_of([SCHEMA, dataclasses.asdict(settings), model.fingerprint, name, seed, *told])
                    cells.append(Cell(c.name, budget, model, params, whole, used / budget, name, seed, key))
    return cells, dropped


def _empty(topology: str, budget: int, name: str, settings: Settings, status: str, reason: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(
        ("params", "model_params", "fill", "compression", "model_compression", "macs_per_sample", "peak_bytes",
         "saved_bytes", "step_ms", "step_vs_dense", "seed", "lr", "accuracy", "best_validation")
    )  # fmt: skip
    row |= {"topology": topology, "budget": budget, "backend": name, "device": settings.device or "cpu"}
    return row | {"dtype": settings.precision, "status": status, "reason": reason}


def _place(row: Mapping[str, Any], order: list[tuple[str, int]], names: Sequence[str]) -> tuple[int, int, int]:
    where = next((i for i, (t, b) in enumerate(order) if t == row["topology"] and b == row["budget"]), None)
    if where is None:  # the dense reference, whose budget is its own
        where = next(i for i, (t, _) in enumerate(order) if t == row["topology"])
    return where, names.index(row["backend"]), -1 if row["seed"] is None else row["seed"]


# -- one cell ---------------------------------------------------------------------------------------------------


def _row(cell: Cell, settings: Settings) -> dict[str, Any]:
    """What is known of a cell before it has run."""
    costs = [plan(net, bucket(settings.batch_size), "train").cost for net in cell.model.networks().values()]
    row = _empty(cell.topology, cell.budget, cell.backend, settings, "failed", "")
    everything = cell.model.num_params
    spared = cell.dense_params - cell.params
    return row | {
        "params": cell.params,
        "model_params": everything,
        "fill": cell.fill,
        "compression": cell.dense_params / cell.params,
        "model_compression": (everything + spared) / everything,
        "macs_per_sample": round(sum(cost.macs for cost in costs) / 3 / bucket(settings.batch_size)),
        "peak_bytes": max(cost.peak for cost in costs),
        "saved_bytes": sum(cost.saved for cost in costs),
        "seed": cell.seed,
    }


def _trained(cell: Cell, data: Dataset, settings: Settings, lr: float) -> dict[str, Any]:
    """Runs one cell; a failure is a row too."""
    row = _row(cell, settings) | {"lr": lr}
    try:
        run = _run(cell, data, settings, lr, cell.seed, settings.epochs)
    except _FAILURES as error:
        return row | {"reason": f"{type(error).__name__}: {error}"}
    if not math.isfinite(float(run.losses[-1])):
        return row | {"reason": f"the loss is {run.losses[-1]} at the last step: diverged"}
    return row | {"status": "ok", "accuracy": run.test_accuracy, "best_validation": run.best_accuracy}


def _best_rate(cell: Cell, data: Dataset, settings: Settings) -> float:
    """The learning rate with the best validation accuracy (ties: lower validation loss), on a seed of its own."""
    if isinstance(settings.lr, int | float):
        return float(settings.lr)
    scores = []
    rows = slice(settings.search_rows)
    some = data.x_train[rows], data.y_train[rows]
    for lr in LEARNING_RATES:
        try:
            run = _run(cell, some, settings, lr, _SEARCH_SEED, settings.search_epochs)
        except _FAILURES:  # the cell itself will say what is wrong
            scores.append((-1.0, -math.inf, lr))
            continue
        last = run.history[-1]
        good = math.isfinite(last.validation_loss)
        scores.append((last.accuracy if good else -1.0, -last.validation_loss if good else -math.inf, lr))
    return max(scores)[2]


def _run(cell: Cell, data: Dataset | Pair, settings: Settings, lr: float, seed: int, epochs: int) -> Run:
    return train(
        cell.model, data, backend=cell.backend, seed=seed, epochs=epochs, batch_size=settings.batch_size,
        optimizer=settings.optimizer, lr=lr, precision=settings.precision, device=settings.device,
    )  # fmt: skip


# -- the sweep --------------------------------------------------------------------------------------------------


class _Store:
    """Finished rows, one line of JSON each, appended as they come."""

    def __init__(self, path: Path | None, resume: bool) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        if path is None or not path.exists():
            return
        if resume:
            self._read(path)
            return
        kept = path.with_name(f"{path.name}.{int(path.stat().st_mtime)}")
        path.rename(kept)  # nothing that was computed is thrown away

    def _read(self, path: Path) -> None:
        lines = path.read_text(errors="replace").splitlines()
        whole = []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                self.done[entry["key"]] = entry["value"]
                whole.append(line)
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise CheckpointError(
                        f"{path}, line {number} cannot be read ({error}): mend or remove the line, or sweep into "
                        "another folder"
                    ) from error
        if len(whole) < len(lines):  # a last line that was cut off: that cell runs again
            path.write_text("".join(line + "\n" for line in whole))

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        """Keeps a row (or a learning rate) for good."""
        self.done[key] = dict(value)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, "value": value}) + "\n")
            file.flush()


class _Sweep:
    """Runs the cells that are not done: first learning rates, then training, then times."""

    def __init__(
        self, cells: Sequence[Cell], data: Dataset, settings: Settings, store: _Store, say: Callable[[str], None]
    ) -> None:
        self.cells, self.data, self.settings, self.store, self.say = cells, data, settings, store, say
        self.times: dict[str, dict[str, float]] = {}
        # The cell of each model whose backend searches the learning rate for all.
        self._first = {cell.model.fingerprint: cell for cell in reversed(cells)}

    def run(self, jobs: int) -> None:
        """Everything that is missing."""
        waiting = [cell for cell in self.cells if self.store.done.get(cell.key, {}).get("status") != "ok"]
        first = {cell.model.fingerprint: self._first[cell.model.fingerprint] for cell in waiting}
        search = [cell for cell in first.values() if self._rate_key(cell) not in self.store.done]
        with _workers(jobs) as each:
            for cell, lr in each(_best_rate, [(cell, self.data, self.settings) for cell in search]):
                self.store.add(self._rate_key(cell), {"lr": lr})
                if self.settings.lr == "auto":
                    self.say(f"{cell.topology} at {cell.budget:,}: learning rate {lr:g}")
            questions = [(cell, self.data, self.settings, self._rate(cell)) for cell in waiting]
            for number, (cell, row) in enumerate(each(_trained, questions), 1):
                self.store.add(cell.key, row)
                end = f"{row['accuracy']:.2f} %" if row["status"] == "ok" else f"failed: {row['reason']}"
                self.say(
                    f"[{number}/{len(questions)}] {cell.topology} at {cell.budget:,}, {cell.backend}, "
                    f"seed {cell.seed}: {end}"
                )
        for name in dict.fromkeys(cell.backend for cell in self.cells):
            self._time(name)

    def _rate_key(self, cell: Cell) -> str:
        return "lr-" + self._first[cell.model.fingerprint].key

    def _rate(self, cell: Cell) -> float:
        return float(self.store.done[self._rate_key(cell)]["lr"])

    def _time(self, name: str) -> None:
        """Median seconds of a training step of each model, and its ratio to the dense one, all in turn."""
        ran = [c for c in self.cells if c.backend == name and self.store.done[c.key]["status"] == "ok"]
        models = {cell.model.fingerprint: cell.model for cell in ran}
        if not models:
            return
        dense = Sequential(
            Linear(self.data.features, self.settings.hidden), ReLU(), Linear(self.settings.hidden, self.data.classes)
        )
        self.say(f"timing {len(models)} models on {name}")
        seconds = _step_seconds(name, {"": dense, **models}, self.data, self.settings)
        for key, taken in seconds.items():
            ratio = [mine / base for mine, base in zip(taken, seconds[""], strict=True)]
            self.times[f"{name}/{key}"] = {
                "step_ms": 1e3 * float(np.median(taken)), "step_vs_dense": float(np.median(ratio)),
            }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """The rows of all cells, times included."""
        found = []
        for cell in self.cells:
            row = dict(self.store.done[cell.key])
            if row["status"] == "ok":
                row |= self.times[f"{cell.backend}/{cell.model.fingerprint}"]
            found.append(row | {"topology": cell.topology, "budget": cell.budget})
        return found


def _step_seconds(name: str, models: Mapping[str, Layer], data: Dataset, settings: Settings) -> dict[str, list[float]]:
    """Seconds of one training step of each model, a value for each round; the rounds go through all models."""
    rows = np.arange(settings.batch_size * _STEPS) % len(data.x_train)
    index = rows.reshape(_STEPS, settings.batch_size)
    trainers = {}
    for key, model in models.items():
        spec = TrainSpec(
            loss="cross_entropy", optimizer=settings.optimizer, momentum=0.9, nesterov=False, betas=(0.9, 0.999),
            eps=1e-8, lr_factors={}, decay={}, precision=settings.precision, device=settings.device, seed=0,
            batch_size=settings.batch_size,
        )  # fmt: skip
        trainer = backend(name).trainer(model, model.init(0), spec)
        x, y = trainer.put(data.x_train), trainer.put(data.y_train)
        trainer.read(trainer.steps(x, y, index, [0.0] * _STEPS, 0))  # compile and warm up
        trainers[key] = (trainer, x, y)
    found: dict[str, list[float]] = {key: [] for key in models}
    for _ in range(_ROUNDS):
        for key, (trainer, x, y) in trainers.items():
            trainer.sync()
            begin = time.perf_counter()
            trainer.read(trainer.steps(x, y, index, [0.0] * _STEPS, 0))
            trainer.sync()
            found[key].append((time.perf_counter() - begin) / _STEPS)
    return found


Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[tuple[Cell, Any]]]


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[Each]:
    """`each(f, questions)` gives (first item of the question, f(*question)) as the answers come: one after the
    other in this process, or from several."""
    if jobs == 1:
        yield lambda f, questions: ((question[0], f(*question)) for question in questions)
        return
    # Never fork once a framework is imported; one thread for each worker.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker)

    def each(f: Callable[..., Any], questions: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Cell, Any]]:
        asked = {pool.submit(f, *question): question[0] for question in questions}
        for done in concurrent.futures.as_completed(asked):
            yield asked[done], done.result()

    try:
        yield each
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that keeps the rows
    use_threads(1)


def use_threads(count: int) -> None:
    """Sets how many threads the frameworks of this process will use, where none is imported yet.

    For programs, which own their process: the library itself never calls it, but in its worker processes.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if count == 1 and "multi_thread_eigen" not in os.environ.get("XLA_FLAGS", ""):
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".strip()
