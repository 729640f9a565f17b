"""The commands, and what their errors become."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from .._base.errors import TN4NNError
from .._base.records import json_text, write_json
from .._base.stopping import advise
from .._base.tables import text_table
from .._base.version import installed_version
from .._comparison.compare import DEFAULT_TOPOLOGIES, compare
from .._comparison.report import print_table
from .._comparison.topologies import Candidate, candidates_for, model_for
from .._comparison.workers import use_threads
from .._drawing.figure import new_figure
from .._graph.catalogue import catalogue
from .._graph.network import Network
from .._graph.topology import Topology
from .._model.backend import backend, backends, is_absent
from .._planning.calibrate import calibrate
from .._planning.cost import BATCHES, cost
from .._planning.explain import explain
from .._planning.growth import growth
from .._planning.layer import plan
from .._planning.plan import Plan
from .._planning.request import PHASES
from .._runtime.native import build_kernel, kernel
from .._runtime.variants import ITEMSIZES
from .._training.data import load as load_data
from .._training.train import train
from ..reproduce._cli import reproduce
from . import doctor, examples, networks, sweeps
from .usage import epilog

STDOUT = Path("-")


class _Commands(TyperGroup):
    """The commands; a switch that is given a value is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        command = self.get_command(ctx, args[0]) if args else None
        switches = (
            {name for option in command.params if getattr(option, "is_flag", False) for name in option.opts}
            if command
            else {}
        )
        for option, value in itertools.pairwise(args):
            if option in switches and value.lower() in ("true", "false", "yes", "no", "on", "off", "1", "0"):
                raise typer.BadParameter(f"{option} takes no value: leave out {value!r}, or all of it for no", ctx=ctx)
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False)
_out = Console()
_err = Console(stderr=True)

# Options of more than one command.
Data = Annotated[str, typer.Option(help="digits, mnist, fashion-mnist, or the path of an .npz file.")]
Device = Annotated[str | None, typer.Option(help="The framework's word: cpu, cuda, gpu ...")]
Precision = Annotated[str, typer.Option(help="float32, float64 or bf16.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]


def _leaves_stdout(path: Path | None) -> Path | None:
    _out.stderr = path == STDOUT
    return path


Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        help="Also write the result to this JSON file. With - it is all of stdout.",
        callback=_leaves_stdout,
        is_eager=True,
    ),
]


def run() -> None:
    """Runs the command that the arguments name; leaves with an exit code."""
    try:
        app(prog_name="tn4nn")  # however it was started: completion goes by the name
    except TN4NNError as error:
        _err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    except OSError as error:
        _err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:  # where the signals are not ours: in a thread, or a program that calls `main`
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


def _jobs(text: str) -> int | str:
    if text == "ray":
        return text
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"--jobs: expected a whole number of at least 1, or 'ray', received {text!r}")
    return int(text)


@app.command("compare", epilog=epilog("compare"))
def _compare(
    ctx: typer.Context,
    sweep: Annotated[
        Path | None, typer.Argument(help="A TOML file with the arguments of tn.compare; options here come first.")
    ] = None,
    topologies: Annotated[
        str,
        typer.Option(
            help="Each as NETWORK of the other commands, split by commas; by semicolons where an equation or a text is "
            "among them, which have commas of their own. Ranks are those of the budget.",
        ),
    ] = ",".join(DEFAULT_TOPOLOGIES),
    model: Annotated[
        str | None,
        typer.Option(
            help="gpt, vit, mlp, cnn; my.py:make_model; a config.json of transformers.", show_default="two layers"
        ),
    ] = None,
    model_options: Annotated[str | None, typer.Option(help="Of the model, as layers=2,width=64.")] = None,
    where: Annotated[str | None, typer.Option(help="Patterns of the layers to compare, split by commas.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Of a model: digits, mnist, an .npz file; shakespeare, a .txt, .npy or .bin file."),
    ] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of a row of a text.", show_default="64")] = None,
    fit: Annotated[str | None, typer.Option(help="my.py:fit, which trains a module in place of ours.")] = None,
    start: Annotated[str, typer.Option(help="Of networks in a module: fresh or decompose.")] = "fresh",
    data: Data = "digits",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Parameters of the compared layers, several split by commas; below 1 a share.",
            show_default="1500, 0.25",
        ),
    ] = None,
    macs: Annotated[str | None, typer.Option(help="Instead, multiply-adds of a forward pass of one sample.")] = None,
    bytes_: Annotated[str | None, typer.Option("--bytes", help="Instead, bytes of their weights.")] = None,
    step_ms: Annotated[str | None, typer.Option(help="Instead, predicted milliseconds of a training step.")] = None,
    spread: Annotated[str, typer.Option(help="Of the budget over the layers: even or solver.")] = "even",
    scale: Annotated[str | None, typer.Option(help="A ladder, as width=64,96,128.")] = None,
    backends_: Annotated[
        str | None, typer.Option("--backend", help="Backends, split by commas.", show_default="all that are installed")
    ] = None,
    device: Device = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for each cell.")] = 3,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of a run.", show_default="30 for digits, 10 of models")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of a run, in place of epochs.")] = None,
    flops: Annotated[float | None, typer.Option(help="FLOPs of a run, in place of steps.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds of a run, in place of steps.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Rows of a step.", show_default="64 for digits, 32 of models")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="sgd, adam, adamw or muon.")] = "adam",
    schedule: Annotated[str, typer.Option(help="cosine, constant, linear or wsd.")] = "cosine",
    warmup: Annotated[int, typer.Option(min=0, help="Steps in which the rate rises.")] = 0,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of W.")] = 0.0,
    weight_norm: Annotated[bool, typer.Option("--weight-norm", help="Normalize the cores of networks.")] = False,
    hidden: Annotated[
        int | None, typer.Option(min=1, help="Neurons of the hidden layer.", show_default="64, else 256")
    ] = None,
    sites: Annotated[int | None, typer.Option(min=1, help="Modes on each side.", show_default="by topology")] = None,
    head: Annotated[str, typer.Option(help="The last layer: network (of the same topology) or dense.")] = "network",
    lr: Annotated[str, typer.Option(help="A learning rate, or auto: a validated one for each topology.")] = "auto",
    precision: Precision = "float32",
    out: Annotated[
        Path, typer.Option(help="Folder for results.json, results.csv, report.html and finished rows.")
    ] = Path("results"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the finished rows in --out.")] = False,
    jobs: Annotated[
        str, typer.Option(help="Processes that train at once, one thread each; or ray: the workers of a Ray cluster.")
    ] = "1",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A Ray cluster that trains the cells, in place of --jobs.",
            show_default="port 10001",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each framework: small layers gain from one.")] = 1,
    json: Json = None,
) -> None:
    """Compare topologies under one budget, in a model and on a task, and write one honest table."""
    say = _progress()
    use_threads(threads)  # before a framework is imported
    found: dict[str, Any] = {} if sweep is None else sweeps.read(sweep)
    options: dict[str, Any] = {
        "topologies": topologies, "model": _with_options(model, model_options), "where": _listed(where) or None,
        "task": task if context is None else {"name": task or found.get("task"), "context": context}, "fit": fit,
        "start": start, "data": data, "budget": _numbers(budget), "macs": _numbers(macs), "bytes": _numbers(bytes_),
        "step_ms": _numbers(step_ms), "spread": spread, "scale": _scale(scale),
        "backends": _listed(backends_) or None, "device": device, "seeds": seeds, "epochs": epochs, "steps": steps,
        "flops": flops, "seconds": seconds, "batch_size": batch, "optimizer": optimizer, "schedule": schedule,
        "warmup": warmup, "weight_decay": weight_decay, "weight_norm": weight_norm, "hidden": hidden, "sites": sites,
        "head": head, "lr": _rate(lr), "precision": precision, "out": out,
        "jobs": _jobs(jobs) if ray is None else f"ray://{ray.removeprefix('ray://')}",
    }  # fmt: skip
    asked = {name for name in ctx.params if str(ctx.get_parameter_source(name)).endswith("COMMANDLINE")}
    if "ray" in asked:
        asked.add("jobs")
    names = {"backends": "backends_", "bytes": "bytes_", "batch_size": "batch"}
    for name, value in options.items():
        if name not in found or names.get(name, name) in asked:
            found[name] = value
    where_to = Path(found["out"])
    advise(f"stopped; every finished row is in {where_to / 'rows.jsonl'}: go on with the same command and --resume")
    given = sweeps.arguments(found)
    given["topologies"] = [_without_ranks(one) for one in given["topologies"]]
    report = compare(resume=resume, progress=say, **given)
    print_table(report.results, _out)
    _write(json, report.results)
    page = report.save(where_to)
    _show(f"report: {page}")
    if sweep is None and model is None and "data" not in asked:
        _show(
            "these were digits in a model of two layers; your own: --model gpt --task shakespeare, --model vit --task "
            "mnist, --model my.py:make_model --task data.npz, or a sweep file (tn4nn compare --help)"
        )
    if all(row["status"] == "failed" for row in report.rows):
        raise TN4NNError("every cell failed; the reasons are under the table")


def _with_options(model: str | None, text: str | None) -> Any:
    """A model with its options, as in a sweep file."""
    if text is None:
        return model
    if model is None:
        raise typer.BadParameter("--model-options are of a --model")
    options: dict[str, Any] = {"name": model}
    for part in _listed(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected options as layers=2,width=64, received {text!r}")
        options[name.strip()] = _plain(value.strip())
    return options


def _plain(text: str) -> Any:
    """A number, a truth value, or the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _numbers(text: str | None) -> list[float] | None:
    """Whole numbers, and shares below 1."""
    if text is None:
        return None
    found = [_plain(part.replace("_", "")) for part in _listed(text)]
    if not found or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in found):
        raise typer.BadParameter(f"expected whole numbers or shares split by commas, received {text!r}")
    return found


def _scale(text: str | None) -> dict[str, list[int]] | None:
    if text is None:
        return None
    name, _, values = text.partition("=")
    try:
        return {name.strip(): [int(part) for part in _listed(values)]}
    except ValueError:
        raise typer.BadParameter(f"expected a ladder as width=64,96,128, received {text!r}") from None


def _show(result: object) -> None:
    """Prints a result as it is: brackets are no markup, long lines stay whole."""
    _out.print(str(result), highlight=False, markup=False, soft_wrap=True)


def _write(path: Path | None, record: object) -> None:
    """The result as JSON, where it is asked for."""
    if path == STDOUT:
        sys.stdout.write(json_text(record))
    elif path is not None:
        write_json(path, record)


def _progress() -> Callable[[str], None]:
    return lambda line: _err.print(line, style="dim", highlight=False, markup=False)


def _network(name: str, inputs: int, outputs: int, sites: int | None, budget: int | None, rank: int | None) -> Network:
    """The network that a command is asked about, with its ranks."""
    t = networks.network(name, inputs, outputs, sites)
    if isinstance(t, Network):
        _has_ranks(name, budget, rank)
        return t
    if budget is not None:
        return t.with_budget(params=budget)
    return t.with_rank(rank if rank is not None else 4, clip=True)


def _equation(name: str, shapes: str | None, letters: str) -> str:
    return name if shapes is None else f"{''.join(name.split())} {''.join(shapes.split())} {letters}"


def _without_ranks(given: networks.Given) -> str | Topology | Candidate:
    """What is compared or trained: its ranks are those of the budget."""
    return given.topology if isinstance(given, Network) else given


def _has_ranks(name: str, budget: int | None, rank: int | None) -> None:
    """Refuses ranks for a network that has its own: they would be ignored."""
    if budget is not None or rank is not None:
        raise TN4NNError(f"the network {name!r} has ranks of its own: leave out --budget and --rank")


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


_COST_BATCH = 256  # rows that `tn4nn cost` is about, where none are given
Name = Annotated[str, typer.Argument(metavar="NETWORK", help=networks.HELP, autocompletion=networks.complete)]
Shapes = Annotated[
    str | None,
    typer.Option(help="Shapes of the cores of an einsum equation, where they are not in NETWORK: 4x5x3,3x6x2."),
]
InputLegs = Annotated[str, typer.Option(help="With --shapes, the letters of the equation that meet the input.")]
In = Annotated[int, typer.Option("--in", min=1, help="Input features, for a catalogue name.")]
Out = Annotated[int, typer.Option("--out", min=1, help="Output features, for a catalogue name.")]
Budget = Annotated[int | None, typer.Option(min=1, help="Parameters, never more: ranks are chosen to fill them.")]
Sites = Annotated[int | None, typer.Option(min=1, help="Modes on each side.")]
Rank = Annotated[
    int | None, typer.Option(min=1, help="Rank of every bond, where no budget is given.", show_default="4")
]


@app.command("plan", epilog=epilog("plan"))
def _plan(
    network: Name,
    inputs: In = 1024,
    outputs: Out = 1024,
    sites: Sites = None,
    budget: Budget = None,
    rank: Rank = None,
    shapes: Shapes = None,
    input_legs: InputLegs = "",
    batch: Annotated[int, typer.Option(min=1, help="Rows of the batch.")] = 64,
    phase: Annotated[str, typer.Option(help="forward or train.")] = "train",
    minimize: Annotated[str, typer.Option(help="time, flops or memory.")] = "time",
    memory: Annotated[int | None, typer.Option(min=1, help="Cap on the peak, in bytes.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="program, or native: layers on a CPU.", show_default="program")
    ] = None,
    backend_name: Annotated[
        str | None, typer.Option("--backend", help="torch or jax: the plan by which its layers run these rows.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="With --backend, its word for a device.")] = None,
    dtype: Annotated[str | None, typer.Option(help="With --backend, of the numbers.", show_default="float32")] = None,
    explained: Annotated[
        bool, typer.Option("--explain", help="Name the dominating step, and plan anew what could be different.")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the contraction tree to this .png or .svg file.")] = None,
    json: Json = None,
) -> None:
    """Show how a network is applied to a batch: each step with its cost, and what else was considered."""
    net = _network(_equation(network, shapes, input_legs), inputs, outputs, sites, budget, rank)
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
    _write(json, row)


@app.command("cost", epilog=epilog("cost"))
def _cost(
    network: Name,
    inputs: In = 1024,
    outputs: Out = 1024,
    sites: Sites = None,
    budget: Budget = None,
    rank: Rank = None,
    shapes: Shapes = None,
    input_legs: InputLegs = "",
    batches: Annotated[str, typer.Option(help="Batch sizes, split by commas.")] = str(_COST_BATCH),
    phase: Annotated[str, typer.Option(help="forward or train.")] = "train",
    every: Annotated[
        bool, typer.Option("--all", help=f"Batches of {', '.join(map(str, BATCHES))}, forward and training.")
    ] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Also run it on random numbers, in one thread.")] = False,
    device: Annotated[
        str | None, typer.Option(help="A GPU that need not be here: H100, H200, H100 PCIe, A100, or a calibrated one.")
    ] = None,
    itemsize: Annotated[int, typer.Option(help="Bytes of a number: 4 or 8; on a GPU also 2.")] = 4,
    grown: Annotated[
        Path | None,
        typer.Option("--growth", help="Draw the growth with batch, rank and sites, on --device, to this .png or .svg."),
    ] = None,
    json: Json = None,
) -> None:
    """Show what a network costs in a training step, or as asked, beside dense and other orders."""
    sizes, phases = (BATCHES, PHASES) if every else (_whole_numbers(batches) or [], (phase,))
    net = _network(_equation(network, shapes, input_legs), inputs, outputs, sites, budget, rank)
    if grown is not None:
        new_figure(grown)  # an error comes before the work
    _show(net)
    report = cost(net, sizes, phases=phases, measure=measure, device=device, itemsize=itemsize)
    _show(report)
    record = report.to_dict()
    if grown is not None:
        found = growth(net, device=device, itemsize=itemsize, progress=_progress())
        found.draw(str(grown))
        _show(found)
        record["curves"] = found.to_dict()
    _write(json, record)


@app.command("train", epilog=epilog("train"))
def _train(
    topology: Name,
    data: Data = "digits",
    budget: Annotated[int, typer.Option(min=1, help="Parameters of the layers on the topology.")] = 1500,
    hidden: Annotated[int, typer.Option(min=1, help="Neurons of the hidden layer.")] = 64,
    backend_: Annotated[str, typer.Option("--backend", help="torch or jax.")] = "torch",
    device: Device = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs.")] = 30,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 64,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 3e-3,
    optimizer: Annotated[str, typer.Option(help="sgd, adam, adamw or muon.")] = "adam",
    precision: Precision = "float32",
    seed: Seed = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint file; an existing one is resumed.")] = None,
    json: Json = None,
) -> None:
    """Train features -> hidden -> classes on one topology, with a progress bar."""
    loaded = load_data(data)
    given = [_without_ranks(one) for one in networks.several(topology)]
    if len(given) != 1:
        raise TN4NNError(f"expected one topology, received {len(given)} in {topology!r}: name one by FILE:ENTRY")
    candidate = candidates_for(given, loaded, hidden, None, "network")[0]
    model = model_for(candidate, budget, loaded.classes)
    _show(model)
    run = train(
        model, loaded, backend=backend_, device=device, epochs=epochs, batch_size=batch, lr=lr, optimizer=optimizer,
        precision=precision, seed=seed, checkpoint=checkpoint, progress=_err.is_terminal,
    )  # fmt: skip
    _show(run)
    history = [dataclasses.asdict(line) for line in run.history]
    _write(
        json,
            {"schema": 1, "model": model.to_dict(), "history": history, "test_accuracy": run.test_accuracy,
             "losses": run.losses.tolist()},
        )  # fmt: skip


@app.command("decompose", epilog=epilog("decompose"))
def _decompose(
    file: Annotated[Path, typer.Argument(help="W of shape (out, in): a .npy file, or a .safetensors file.")],
    topology: Name,
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
    from .._compression.decompose import decompose
    from .._model.io import read_matrix, save

    w = read_matrix(file, tensor)
    target = networks.network(topology, w.shape[1], w.shape[0], sites)
    batch = None if inputs is None else read_matrix(inputs)
    result = decompose(w, target, rank=rank, params=params, error=error, method=method, inputs=batch, seed=seed)
    _show(result)
    if out is not None:
        save(out, result.network, result.weights)
    _write(json, result.to_dict())


@app.command("calibrate", epilog=epilog("calibrate"))
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
    _write(json, found.to_dict())


@app.command("backends", epilog=epilog("backends"))
def _backends(json: Json = None) -> None:
    """List the backends, whether their framework is installed, and what installs it; and which C kernel runs here."""
    rows = []
    for name in backends():
        try:
            versions = backend(name).versions()
            rows.append({"backend": name, "installed": True, "versions": versions, "advice": ""})
            _show(f"{name:<10} {', '.join(f'{k} {v}' for k, v in versions.items())}")
        except Exception as error:  # whatever a third party's backend raises: the others are listed all the same
            rows.append({"backend": name, "installed": False, "versions": {}, "advice": str(error)})
            _show(f"{name:<10} {'not installed' if is_absent(error) else 'broken'}: {error}")
    kernels = {}
    for itemsize in ITEMSIZES:
        dtype, found = f"float{8 * itemsize}", kernel(itemsize)
        kernels[dtype] = {"variant": found.variant, "path": str(found.path or ""), "why": found.why}
        _show(
            f"{'kernel':<10} {dtype}: " + (f"{found.variant}, {found.path}" if found.library else f"none: {found.why}")
        )
    _write(json, {"schema": 1, "rows": rows, "kernels": kernels})


@app.command("doctor", epilog=epilog("doctor"))
def _doctor(json: Json = None) -> None:
    """Say what is installed, which runtime runs here and why, and whether its numbers are right (exit code 1 where
    something is broken). Nothing is compiled or downloaded."""
    colours = {doctor.OK: "green", doctor.NOTE: "yellow", doctor.FAULT: "bold red"}
    found = []
    for check in doctor.examine():
        found.append(check)
        colour = colours[check.state]
        _out.print(
            f"[{colour}]{check.state:<6}[/]{check.what:<16} {escape(check.found)}", highlight=False, soft_wrap=True
        )
        if check.advice:
            _out.print(f"{'':<22} {escape(check.advice)}", style="dim", highlight=False, soft_wrap=True)
    faults = [check.what for check in found if check.state == doctor.FAULT]
    _write(json, {"schema": 1, "rows": [dataclasses.asdict(check) for check in found], "faults": faults})
    if faults:
        raise TN4NNError(f"broken: {', '.join(faults)}")


@app.command("init", epilog=epilog("init"))
def _init(
    file: Annotated[Path, typer.Argument(help="The file to write, as mytopology.toml.")],
    sweep: Annotated[bool, typer.Option("--sweep", help="A comparison, in place of topologies.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented example to begin with: topologies of your own, or with --sweep a comparison."""
    examples.write_example(file, examples.SWEEP if sweep else examples.TOPOLOGIES, replace)
    if sweep:
        _show(f"{file} is written; next: tn4nn compare {file}")
    else:
        _show(f"{file} is written; next: tn4nn plan {file}:chain --rank 4, or tn4nn compare --topologies {file}")


@app.command("build-kernel", epilog=epilog("build-kernel"))
def _build_kernel(json: Json = None) -> None:
    """Compile the C kernel for this very processor, and the extensions of the backends that are installed. Nothing else
    compiles anything; what the package brings runs without."""
    paths = {f"float{8 * itemsize}": str(build_kernel(itemsize).path) for itemsize in ITEMSIZES}
    for name in backends():
        try:
            extend = getattr(backend(name), "build_extension", None)
        except Exception:  # not installed, or a third party's that raises: `tn4nn backends` says which
            continue
        if extend is not None:
            paths[name] = str(extend())
    for what, path in paths.items():
        _show(f"{what:<10} {path}")
    _write(json, {"schema": 1, "paths": paths})


app.command("reproduce", epilog=epilog("reproduce"))(reproduce)


@app.command("catalogue", epilog=epilog("catalogue"))
def _catalogue() -> None:
    """List the topologies of the catalogue."""
    for name in catalogue():
        _show(name)
