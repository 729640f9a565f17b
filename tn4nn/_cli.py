"""The command line: thin over the library; `tn4nn COMMAND --help` says what each option means.

Exit codes: 0 done, 1 an error, reported in one message, 2 wrong usage, 3 an experiment that does not hold,
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ._base.errors import TN4NNError
from ._base.records import write_json
from ._base.tables import text_table
from ._base.version import installed_version
from ._comparison.compare import DEFAULT_TOPOLOGIES, compare
from ._comparison.report import print_table
from ._comparison.topologies import Candidate, candidates_for, model_for, read_topologies
from ._comparison.workers import use_threads
from ._drawing.figure import new_figure
from ._graph.catalogue import build, catalogue
from ._graph.network import Network
from ._graph.topology import Topology, parse
from ._model.backend import backend, backends
from ._planning.calibrate import calibrate
from ._planning.cost import BATCHES, cost
from ._planning.explain import explain
from ._planning.growth import growth
from ._planning.layer import plan
from ._planning.plan import Plan
from ._training.data import load as load_data
from ._training.train import train
from .interop.einsum import from_einsum
from .reproduce._cli import reproduce

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_out = Console()
_err = Console(stderr=True)

# Options of more than one command.
Data = Annotated[str, typer.Option(help="digits, mnist, fashion-mnist, or the path of an .npz file.")]
Device = Annotated[str | None, typer.Option(help="The framework's word: cpu, cuda, gpu ...")]
Precision = Annotated[str, typer.Option(help="float32, float64 or bf16.")]
Seed = Annotated[int, typer.Option(help="Seed.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this JSON file.")]


def main() -> None:
    """The entry point: errors that tn4nn raises on purpose become one message and an exit code."""
    try:
        app()
    except TN4NNError as error:
        _err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    except OSError as error:
        _err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        _err.print("stopped")
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        _show(f"tn4nn {installed_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Declare tensor-network topologies, fix a budget, plan, train, and compare them."""


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _topologies(text: str) -> list[str | Topology | Candidate]:
    """Names and files, split by commas."""
    found: list[str | Topology | Candidate] = []
    for item in _listed(text):
        if item.endswith((".json", ".toml")):
            found += read_topologies(item)
        else:
            found.append(item)
    return found


def _whole_numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part.replace("_", "")) for part in _listed(text)]
    except ValueError:
        raise typer.BadParameter(f"expected whole numbers split by commas, received {text!r}") from None


def _rate(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected 'auto' or a number, received {text!r}") from None


@app.command("compare")
def _compare(
    topologies: Annotated[
        str, typer.Option(help="Catalogue names, and .json or .toml files of your own, split by commas.")
    ] = ",".join(DEFAULT_TOPOLOGIES),
    data: Data = "digits",
    budget: Annotated[
        str | None, typer.Option(help="Parameters of the compared layers, several split by commas. [1500 for digits]")
    ] = None,
    backends_: Annotated[
        str | None, typer.Option("--backend", help="Backends, split by commas. [all that are installed]")
    ] = None,
    device: Device = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for each cell.")] = 3,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of a run. [30 for digits, else 6]")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows of a step. [64 for digits, else 100]")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Neurons of the hidden layer. [64, else 256]")] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Modes on each side. [by topology]")] = None,
    head: Annotated[str, typer.Option(help="The last layer: network (of the same topology) or dense.")] = "network",
    lr: Annotated[str, typer.Option(help="A learning rate, or auto: a validated one for each topology.")] = "auto",
    precision: Precision = "float32",
    out: Annotated[
        Path, typer.Option(help="Folder for results.json, results.csv, report.html and finished rows.")
    ] = Path("results"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the finished rows in --out.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that train at once, one thread each.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each framework: small layers gain from one.")] = 1,
    json: Json = None,
) -> None:
    """Compare topologies on one task under one parameter budget, and write one honest table."""
    say = _progress()
    use_threads(threads)  # before a framework is imported
    try:
        report = compare(
            _topologies(topologies),
            budget=_whole_numbers(budget),
            data=data,
            backends=_listed(backends_) or None,
            seeds=seeds,
            hidden=hidden,
            sites=sites,
            head=head,
            epochs=epochs,
            batch_size=batch,
            lr=_rate(lr),
            precision=precision,
            device=device,
            out=out,
            resume=resume,
            jobs=jobs,
            progress=say,
        )
    except KeyboardInterrupt:
        _err.print(
            f"stopped; every finished row is in {out / 'rows.jsonl'}: go on with the same command and --resume",
            highlight=False,
        )
        raise typer.Exit(130) from None
    print_table(report.results, _out)
    if json is not None:
        write_json(json, report.results)
    page = report.save(out)
    _show(f"report: {page}")
    if all(row["status"] == "failed" for row in report.rows):
        raise TN4NNError("every cell failed; the reasons are under the table")


def _show(result: object) -> None:
    """Prints a result as it is: brackets are no markup, long lines stay whole."""
    _out.print(str(result), highlight=False, markup=False, soft_wrap=True)


def _progress() -> Callable[[str], None]:
    return lambda line: _err.print(line, style="dim", highlight=False, markup=False)


def _network(name: str, inputs: int, outputs: int, sites: int | None, budget: int | None, rank: int | None) -> Network:
    """A network from a catalogue name, a .json file, or the text notation with sizes in it."""
    t = _declared(name, inputs, outputs, sites)
    if isinstance(t, Network):
        _has_ranks(name, budget, rank)
        return t
    if budget is not None:
        return t.with_budget(params=budget)
    return t.with_rank(rank if rank is not None else 4, clip=True)


def _has_ranks(name: str, budget: int | None, rank: int | None) -> None:
    """Refuses ranks for a network that has its own: they would be ignored."""
    if budget is not None or rank is not None:
        raise TN4NNError(f"the network {name!r} has ranks of its own: leave out --budget and --rank")


def _declared(name: str, inputs: int, outputs: int, sites: int | None) -> Network | Topology:
    if name.endswith(".json"):
        return Network.from_json(Path(name).read_text("utf-8", errors="replace"))
    return _from_text(name) if "=" in name else build(name, inputs, outputs, sites=sites)


def _from_text(text: str) -> Topology:
    """ "x0=4 x1=8 -> y0=4 : x0 y0 a, x1 a" as a Topology."""
    head, _, cores = text.partition(":")
    sides = head.split("->")
    try:
        pairs = [[(leg, int(n)) for leg, n in (item.split("=") for item in side.split())] for side in sides]
        inputs, outputs = map(dict, pairs)
    except ValueError:
        raise TN4NNError(f"expected 'x0=4 x1=8 -> y0=4 : x0 y0 a, x1 a', received {text!r}") from None
    for side in pairs:
        legs = [leg for leg, _ in side]
        for leg in legs:
            if legs.count(leg) > 1:
                raise TN4NNError(f"leg {leg!r} has a size twice on one side of {text!r}: give each leg one")
    return Topology(parse(cores), inputs, outputs)


def _cost_row(p: Plan) -> dict[str, Any]:
    return {
        "topology": p.network.topology.name,
        "params": p.network.num_params,
        "batch": p.batch,
        "phase": p.phase,
        "executor": p.executor,
        "order": p.order,
        **dataclasses.asdict(p.cost),
    }


Name = Annotated[
    str, typer.Argument(help="A catalogue name, a .json file of a network, or 'x0=4 -> y0=4 : x0 a, a y0'.")
]
In = Annotated[int, typer.Option("--in", min=1, help="Input features, for a catalogue name.")]
Out = Annotated[int, typer.Option("--out", min=1, help="Output features, for a catalogue name.")]
Budget = Annotated[int | None, typer.Option(min=1, help="Parameters.")]
Sites = Annotated[int | None, typer.Option(min=1, help="Modes on each side.")]
Rank = Annotated[int | None, typer.Option(min=1, help="Rank of every bond, where no budget is given. [4]")]


@app.command("plan")
def _plan(
    network: Name,
    inputs: In = 1024,
    outputs: Out = 1024,
    sites: Sites = None,
    budget: Budget = None,
    rank: Rank = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows.")] = 64,
    phase: Annotated[str, typer.Option(help="forward or train.")] = "train",
    minimize: Annotated[str, typer.Option(help="time, flops or memory.")] = "time",
    memory: Annotated[int | None, typer.Option(min=1, help="Cap on the peak, in bytes.")] = None,
    runtime: Annotated[str | None, typer.Option(help="program [default], or native: layers on a CPU.")] = None,
    backend_name: Annotated[
        str | None, typer.Option("--backend", help="torch or jax: the plan by which its layers run these rows.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="With --backend, its word for a device.")] = None,
    dtype: Annotated[str | None, typer.Option(help="With --backend, of the numbers. [float32]")] = None,
    explained: Annotated[
        bool, typer.Option("--explain", help="Name the dominating step, and plan anew what could be different.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the contraction tree to this .png or .svg file.")] = None,
    json: Json = None,
) -> None:
    """Show how a network is applied to a batch: each step with its cost, and what else was considered."""
    net = _network(network, inputs, outputs, sites, budget, rank)
    if picture is not None:
        new_figure(picture)  # an error comes before the work
    say = _progress()
    where: dict[str, Any] = {"runtime": runtime, "backend": backend_name, "device": device, "dtype": dtype}
    p = plan(net, batch, phase, minimize=minimize, memory=memory, progress=say, **where)
    _show(p)
    considered = [(order, f"{of.macs:,}", f"{of.predicted_s * 1e3:.3g}") for order, of in p.candidates]
    _show(text_table(("considered", "MACs", "predicted ms"), considered))
    row = _cost_row(p)
    if picture is not None:
        p.draw(str(picture))
    if explained:
        explanation = explain(p)
        _show(explanation)
        row["explained"] = explanation.to_dict()
    if json is not None:
        write_json(json, row)


@app.command("cost")
def _cost(
    network: Name,
    inputs: In = 1024,
    outputs: Out = 1024,
    sites: Sites = None,
    budget: Budget = None,
    rank: Rank = None,
    shapes: Annotated[
        str | None, typer.Option(help="Shapes of the operands of an einsum equation: 4x5x3,3x6x2.")
    ] = None,
    input_legs: Annotated[str, typer.Option(help="The letters of an einsum equation that meet the input.")] = "",
    batches: Annotated[str, typer.Option(help="Batch sizes, split by commas.")] = ",".join(map(str, BATCHES)),
    measure: Annotated[bool, typer.Option("--measure", help="Also run it on random numbers, in one thread.")] = False,
    device: Annotated[
        str | None, typer.Option(help="A GPU that need not be here: H100, H200, H100 PCIe, A100, or a calibrated one.")
    ] = None,
    itemsize: Annotated[int, typer.Option(help="Bytes of a number: 4 or 8; on a GPU also 2.")] = 4,
    grown: Annotated[
        Path | None, typer.Option("--growth", help="Draw the growth with batch, rank and sites to this .png or .svg.")
    ] = None,
    json: Json = None,
) -> None:
    """Show what a network costs for several batches, forward and training, beside dense and other orders."""
    if shapes is None:
        net = _network(network, inputs, outputs, sites, budget, rank)
    else:
        _has_ranks(network, budget, rank)
        net = from_einsum(network, _shapes(shapes), inputs=input_legs)
    if grown is not None:
        new_figure(grown)  # an error comes before the work
    _show(net)
    report = cost(net, _whole_numbers(batches) or [], measure=measure, device=device, itemsize=itemsize)
    _show(report)
    record = report.to_dict()
    if grown is not None:
        found = growth(net, progress=_progress())
        found.draw(str(grown))
        _show(found)
        record["curves"] = found.to_dict()
    if json is not None:
        write_json(json, record)


def _shapes(text: str) -> list[tuple[int, ...]]:
    try:
        return [tuple(int(size) for size in part.split("x")) for part in _listed(text)]
    except ValueError:
        raise typer.BadParameter(f"expected shapes like 4x5x3,3x6x2, received {text!r}") from None


@app.command("train")
def _train(
    topology: Annotated[str, typer.Argument(help="A catalogue name, or a .json or .toml file with one entry.")],
    data: Data = "digits",
    budget: Annotated[int, typer.Option(min=1, help="Parameters of the layers on the topology.")] = 1500,
    hidden: Annotated[int, typer.Option(min=1, help="Neurons of the hidden layer.")] = 64,
    backend_: Annotated[str, typer.Option("--backend", help="torch or jax.")] = "torch",
    device: Device = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs.")] = 30,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 3e-3,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adam",
    precision: Precision = "float32",
    seed: Seed = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file; an existing one is resumed.")] = None,
    json: Json = None,
) -> None:
    """Train features -> hidden -> classes on one topology, with a progress bar."""
    loaded = load_data(data)
    candidate = candidates_for(_topologies(topology), loaded, hidden, None, "network")[0]
    model = model_for(candidate, budget, loaded.classes)
    _show(model)
    run = train(
        model, loaded, backend=backend_, device=device, epochs=epochs, batch_size=batch, lr=lr, optimizer=optimizer,
        precision=precision, seed=seed, checkpoint=checkpoint, progress=_err.is_terminal,
    )  # fmt: skip
    _show(run)
    if json is not None:
        history = [dataclasses.asdict(line) for line in run.history]
        write_json(
            json,
            {"schema": 1, "model": model.to_dict(), "history": history, "test_accuracy": run.test_accuracy,
             "losses": run.losses.tolist()},
        )  # fmt: skip


@app.command("decompose")
def _decompose(
    file: Annotated[Path, typer.Argument(help="W of shape (out, in): a .npy file, or a .safetensors file.")],
    topology: Annotated[str, typer.Argument(help="As for plan; the features are those of W.")],
    params: Annotated[int | None, typer.Option(min=1, help="Parameters, never more.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of every bond.")] = None,
    error: Annotated[float | None, typer.Option(help="Largest relative error.")] = None,
    tensor: Annotated[str | None, typer.Option(help="Which tensor of a .safetensors file.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="A .npy file of calibration inputs, (rows, in).")] = None,
    sites: Sites = None,
    method: Annotated[str, typer.Option(help="auto, svd or als.")] = "auto",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Also save the network and its weights to this file.")] = None,
    json: Json = None,
) -> None:
    """Replace a trained matrix by a network, and report what is lost."""
    from ._compression.decompose import decompose
    from ._model.io import read_matrix, save

    w = read_matrix(file, tensor)
    target = _declared(topology, w.shape[1], w.shape[0], sites)
    batch = None if inputs is None else read_matrix(inputs)
    result = decompose(w, target, rank=rank, params=params, error=error, method=method, inputs=batch, seed=seed)
    _show(result)
    if out is not None:
        save(out, result.network, result.weights)
    if json is not None:
        write_json(json, result.to_dict())


@app.command("calibrate")
def _calibrate(
    device: Annotated[str | None, typer.Option(help="cpu, or the backend's word: cuda, gpu ...")] = None,
    backend_: Annotated[
        str | None, typer.Option("--backend", help="torch or jax: measure its programs, not the native runtime.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, float64; with a backend bfloat16 and float16 too.")] = "float32",
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds after which nothing new is run.")] = 40.0,
    json: Json = None,
) -> None:
    """Measure the parameters of the cost model on a device, and store them: for the native runtime of this processor,
    in one thread, or for a backend's programs."""
    found = calibrate(device, backend=backend_, dtype=dtype, time_limit=time_limit, progress=_progress())
    _show(found)
    if json is not None:
        write_json(json, found.to_dict())


@app.command("backends")
def _backends(json: Json = None) -> None:
    """List the backends, whether their framework is installed, and what installs it."""
    rows = []
    for name in backends():
        try:
            versions = backend(name).versions()
            rows.append({"backend": name, "installed": True, "versions": versions, "advice": ""})
            _show(f"{name:<10} {', '.join(f'{k} {v}' for k, v in versions.items())}")
        except TN4NNError as error:
            rows.append({"backend": name, "installed": False, "versions": {}, "advice": str(error)})
            _show(f"{name:<10} not installed: {error}")
    if json is not None:
        write_json(json, {"schema": 1, "rows": rows})


app.command("reproduce")(reproduce)


@app.command("catalogue")
def _catalogue() -> None:
    """List the topologies of the catalogue."""
    for name in catalogue():
        _show(name)


if __name__ == "__main__":
    main()
