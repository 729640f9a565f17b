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
from .._base.notebook import shown
from .._graph.topology import Topology
from .._model.backend import require_one_process
from .._training.data import Dataset
from .._training.tasks import Task
from .cells import Cell, make_cells
from .machine import machine
from .modules import Fit
from .questions import DEFAULT_TOPOLOGIES, Own, Question, of_model, two_layers
from .report import print_table, write_csv, write_html, write_json
from .rows import SCHEMA
from .scaling import ladder_of, scaling
from .settings import Settings
from .significance import level_with_best
from .store import Store
from .summary import metric_of
from .sweep import Sweep
from .topologies import Candidate
from .variants import Subject

__all__ = ["DEFAULT_TOPOLOGIES", "Report", "compare"]


@dataclasses.dataclass(frozen=True)
class Report:
    """What a comparison found. `print(report)` is the table; `save` writes it for people and for programs.

    Attributes:
        results: {"schema", "machine", "config", "rows"}, plain data.

    Examples:
        >>> import tn4nn as tn
        >>> report = tn.compare(["mpo"], budget=600, backends="torch", seeds=1, epochs=1, lr=1e-3)
        >>> [(row["topology"], row["params"], row["status"]) for row in report.rows]
        [('mpo', 600, 'ok')]
    """

    results: Mapping[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One for each (topology, budget, backend, seed)."""
        return list(self.results["rows"])

    def level_with_best(
        self, budget: float, backend: str, alpha: float = 0.05, width: int | None = None
    ) -> dict[str, float]:
        """Topologies whose score on the test split is not significantly worse than the best one's, with their p
        (Welch's t-test over the seeds, Holm-corrected); the dense reference counts only where its size is the budget.

        Args:
            budget: as a row has it.
            backend: as a row has it.
            alpha: level of the test.
            width: on a ladder of widths, which one.

        Raises:
            TN4NNError: rows of several widths, and none is chosen.
        """
        chosen = [row for row in self.rows if row["budget"] == budget and row["backend"] == backend]
        if width is not None:
            chosen = [row for row in chosen if row["width"] == width]
        widths = ladder_of(chosen)
        if widths:
            raise TN4NNError(f"rows of {budget:,} on {backend} have the widths {widths}: give width= as one of them")
        metric = metric_of(self.results)
        return level_with_best(chosen, alpha, metric.name, metric.larger_is_better)

    def scaling(self) -> list[dict[str, Any]]:
        """How the loss of each topology falls with the compute of training, on a ladder of widths (`scale=`).

        The curve is loss = a C^-b + c; C are the floating-point operations of a run (`flops` of a row). Points are
        all widths of a topology, on one backend, at one budget as it was asked for.

        Returns:
            A record for each curve: "topology"; "backend"; "asked" (of several `budget=`); "a", "b", "c", and their
            95 % intervals "a_interval", "b_interval", "c_interval" by a bootstrap over points and seeds, which are too
            narrow for one seed; "points" with "flops", "width", "losses"; "reason". Where points do not tell a curve
            (under four values of compute, a loss that does not fall beyond its spread) the numbers are None, and the
            reason says why. Without a ladder there are no records.

        Examples:
            >>> import tn4nn as tn
            >>> row = {"topology": "mpo", "backend": "torch", "status": "ok"}
            >>> rows = [row | {"width": w, "flops": 1e6 * w**2, "loss": 1 + 9 / w} for w in (8, 16, 32, 64)]
            >>> [mpo] = tn.Report({"schema": 1, "rows": rows}).scaling()
            >>> round(mpo["b"], 2), round(mpo["c"], 2)
            (0.5, 1.0)
        """
        return scaling(self.results)

    def save(self, folder: str | Path) -> Path:
        """Writes results.json, results.csv and report.html into a folder; returns the path of the page."""
        where = Path(folder)
        write_json(where / "results.json", self.results)
        write_csv(where / "results.csv", self.results)
        write_html(where / "report.html", self.results)
        return where / "report.html"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return shown(str(self))

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=150, no_color=True, force_jupyter=False)  # a text, in a notebook too
        with console.capture() as capture:
            print_table(self.results, console)
        return capture.get()


def compare(
    topologies: str | Topology | Candidate | Sequence[str | Topology | Candidate] = DEFAULT_TOPOLOGIES,
    *,
    model: Any = None,
    where: str | Sequence[str] | None = None,
    task: Task | None = None,
    fit: Fit | None = None,
    start: str = "fresh",
    budget: float | Sequence[float] | None = None,
    macs: float | Sequence[float] | None = None,
    bytes: float | Sequence[float] | None = None,  # noqa: A002  (the word of with_budget)
    step_ms: float | Sequence[float] | None = None,
    spread: str = "even",
    scale: Mapping[str, Sequence[int]] | None = None,
    data: str | Dataset = "digits",
    backends: str | Sequence[str] | None = None,
    seeds: int = 3,
    hidden: int | None = None,
    sites: int | None = None,
    head: str = "network",
    epochs: int | None = None,
    steps: int | None = None,
    flops: float | None = None,
    seconds: float | None = None,
    evaluate_every: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "adam",
    lr: float | str = "auto",
    schedule: str = "cosine",
    warmup: int = 0,
    weight_decay: float = 0.0,
    weight_norm: bool = False,
    search_rows: int | None = None,
    precision: str = "float32",
    device: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    jobs: int | str = 1,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Compares topologies on one task under one budget.

    With `model` and `task`, every layer of the model that matches `where` takes each topology in turn, the rest stays,
    and the budget is that of all these layers together. Three rows are always there: "dense"; "narrow", the same dense
    architecture thinner, at the same budget; and "low_rank". Without `model` it is features -> hidden -> classes with
    one ReLU between, both matrices on networks, trained on `data`; there "dense" is the reference alone.

    Args:
        topologies: names of the catalogue, "dense", "narrow", Topologies of your own (one that fits every layer that
            matches; without `model` features -> hidden, and the last layer is then dense for all), or without `model`
            Candidates. Default: nine of the catalogue.
        model: a layer graph of dense layers; a function of `width` that makes one (as `functools.partial(
            tn.presets.gpt, layers=4)`); or a function without arguments that makes an nn.Module, an Equinox module or
            a module of Flax NNX. With `width` as an argument, it can be made thinner; layer graphs can in any case.
        where: patterns of layer names ("blocks.*", "*.mlp.up"); default: all dense layers but embeddings, convolutions
            and the last layer.
        task: what is learnt: `tn.classification`, `tn.regression`, `tn.language_model`.
        fit: (model, cell) -> metrics by name, trains the module in place of `tn.train`. `cell` has .topology, .budget,
            .seed, .backend, .lr.
        start: of the networks in a module: "fresh" weights, or "decompose" for those nearest to its own.
        budget: parameters of the compared layers together, biases left out; below 1 a share of what they have. Several
            give one table each (default: a quarter; without `model` 1,500 for digits, 4,000 otherwise).
        macs: instead, multiply-adds of these layers for one sample, forward, in the order that needs fewest; without
            `model` of the hidden layer, and head="dense" only.
        bytes: instead, of their weights.
        step_ms: instead, milliseconds of these layers in one training step, as the cost model predicts.
        spread: how layers share the budget: "even", each the same share of its own size, or "solver", which grows all
            bonds together.
        scale: a ladder of sizes, {"width": [64, 96, 128]}: everything for each of them, dense and narrow too.
        data: without `model`: "digits" (embedded), "mnist", "fashion-mnist", a path of an .npz file, or a Dataset.
        backends: names (default: all that are installed and train).
        seeds: how many seeds, from 0.
        hidden: without `model`: neurons of the hidden layer (default 64 for digits, 256 otherwise).
        sites: modes on each side (default: the catalogue's choice for each topology).
        head: without `model`: "network" or "dense": the last layer is a network of the same topology, or dense.
        epochs: of a run (default 30 for digits, 6 otherwise).
        steps: of a run, in place of epochs.
        flops: of a run, in place of steps: each model trains as many steps as they pay for (two operations for each
            multiply-add of the plans that run, and in layer graphs of attention).
        seconds: of a run, in place of steps: the same, of the time of its training steps, measured before.
        evaluate_every: steps between two looks at the validation split (default: one at the end of a run of steps).
        batch_size: rows of a step (default 64 for digits, 100 otherwise, with `model` 32).
        optimizer: see `train`.
        lr: a number, or "auto": for each topology and budget the best of four rates on the validation split, by
            successive halving (all four a ninth of the run, the best two a third), on the first backend, with a seed
            that is not reported. Where the largest or the smallest is the best, up to three more beyond it are tried.
        schedule: see `train`.
        warmup: see `train`.
        weight_decay: see `train`.
        weight_norm: see `train`; for layer graphs. A torch module can be given to `tn4nn_torch.weight_norm` in `fit`.
        search_rows: the search sees so many rows of the training data (default: all).
        precision: "float32", "float64" or "bf16".
        device: the framework's own word.
        out: folder for rows that are finished (and nothing else: `Report.save` writes the rest).
        resume: go on with the finished rows in `out`. Otherwise the rows of a sweep that came to its end are moved
            aside (`rows.jsonl.1700000000`), and those of one that did not are an error.
        jobs: processes that train at once, one thread each; times are measured afterwards in any case. Or the workers
            of a Ray cluster: "ray://HOST:PORT", or "ray" for the one in $RAY_ADDRESS, on this machine, or a local one.
        progress: called with a line of text for each finished cell.

    Raises:
        TN4NNError: an unknown name, a topology that does not fit the data, a pattern that matches no layer.
        ShapeError, DataError: a model that does not fit its task.
        CheckpointError: without `resume`, a folder that holds the rows of a sweep that was stopped (resume, or name
            another); rows that were damaged or edited.

    Examples:
        >>> import tn4nn as tn
        >>> report = tn.compare(["mpo", "dense"], budget=600, backends=["torch"], seeds=1, epochs=1, lr=1e-3)
        >>> [(row["topology"], row["params"]) for row in report.rows]
        [('mpo', 600), ('dense', 4736)]
        >>> task = tn.language_model(tn.load_text("shakespeare")[:20000], context=16)
        >>> model = tn.presets.gpt(layers=1, width=16, heads=2, vocab=task.outputs[-1], context=16)
        >>> options = {"backends": "torch", "seeds": 1, "steps": 2, "lr": 1e-3}
        >>> report = tn.compare("mpo", model=model, where="blocks.*", task=task, **options)
        >>> [(row["topology"], row["params"]) for row in report.rows]
        [('dense', 3072), ('narrow', 768), ('low_rank', 736), ('mpo', 768)]
    """
    chosen = {"budget": budget, "macs": macs, "bytes": bytes, "step_ms": step_ms}
    given = [name for name, value in chosen.items() if value is not None]
    if len(given) > 1:
        raise TN4NNError(f"a table has one budget: give one of {', '.join(chosen)}, received {', '.join(given)}")
    unit = given[0] if given else "budget"
    options: dict[str, Any] = {
        "budget_of": "params" if unit == "budget" else unit, "seeds": seeds, "jobs": jobs, "lr": lr,
        "search_rows": search_rows, "precision": precision, "device": device, "steps": steps, "flops": flops,
        "seconds": seconds, "evaluate_every": evaluate_every, "schedule": schedule, "warmup": warmup,
        "weight_decay": weight_decay, "weight_norm": weight_norm, "optimizer": optimizer,
    }  # fmt: skip
    lengths = {"epochs": epochs, "batch_size": batch_size}
    options |= {name: value for name, value in lengths.items() if value is not None}
    question = Question(topologies, chosen[unit], backends, sites)
    if model is None:
        refused = {"task": task, "where": where, "fit": fit, "scale": scale}
        for name, value in refused.items():
            if value is not None:
                raise TN4NNError(f"{name}= is about a model: give model= too, for instance tn.presets.gpt()")
        subject, settings = two_layers(question, data, hidden, head, options)
    else:
        own = Own(model, where, task, fit, start, spread, scale)
        subject, settings = of_model(question, own, options)
    return table_of(subject, settings, out, resume, progress)


def table_of(
    subject: Subject,
    settings: Settings,
    out: str | Path | None,
    resume: bool,
    progress: Callable[[str], None] | None,
) -> Report:
    """Runs everything that is missing, and returns the table."""
    for name in settings.backends:
        require_one_process(name)
    entries = make_cells(subject, settings)
    cells = [entry for entry in entries if isinstance(entry, Cell)]
    store = Store(None if out is None else Path(out) / "rows.jsonl", resume)
    sweep = Sweep(cells, subject, settings, store, progress or (lambda _: None))
    sweep.run()
    rows = [sweep.row(entry) if isinstance(entry, Cell) else entry for entry in entries]
    flat = [row.flat() for row in rows]
    metric, larger = subject.task.metric, subject.task.larger_is_better
    if not subject.task.is_given:  # a person's own training: what it calls accuracy decides, else its loss
        metric = "accuracy" if any(row["accuracy"] is not None for row in flat) else "loss"
        larger = metric == "accuracy"
    return Report(
        {
            "schema": SCHEMA,
            "machine": machine(settings.backends),
            "config": {**settings.config(), "metric": metric, "larger_is_better": larger},
            "rows": flat,
        }
    )
