"""A trained layer on networks of every kind: test accuracy after decomposing, with and without inputs, and trained on.

    python benchmarks/replaced_layer.py --json benchmarks/results/replaced_layer.json

The dense 784-256-10 net trained on MNIST (as `tn4nn reproduce fc2` does), its first layer on networks of 15,584 weights
or fewer: as W alone has it, and calibrated on 5,000 training images; each before and after two epochs of Adam. One
seed; `tn4nn reproduce recover` has three for some of them. The table stands in docs/pages/how-to/decompose.md. --quick
is one epoch each and three topologies.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parent))

import _measure
from rich.console import Console

import tn4nn as tn
from tn4nn.reproduce.fc2 import DENSE_LR, RECIPE
from tn4nn.reproduce.recover import EPOCHS, PARAMS, SAMPLE, accuracy, train_on

Row = dict[str, Any]

MODES = (4, 7, 7, 4), (4, 4, 4, 4)
COLUMNS = ("topology", "weights", "W alone", "trained on", "with inputs=", "trained on")


def onto() -> dict[str, Row]:
    """Name of a row -> rule of `tn4nn_torch.convert` for the first layer."""
    chosen = {make.__name__: make(*MODES) for make in (tn.mpo, tn.tree, tn.ring, tn.peps, tn.cp)}
    rules: dict[str, Row] = {"low rank": {"topology": "low_rank", "params": PARAMS}}
    rules["mpo, D = 16"] = {"topology": tn.mpo(*MODES).with_rank(16, clip=True)}
    return rules | {name: {"topology": topology, "params": PARAMS} for name, topology in chosen.items()}


def measure(original: Any, rule: Row, data: tn.Dataset, epochs: int) -> Row:
    """Accuracies, in percent, with the first layer put on a network."""
    import torch
    from tn4nn_torch import convert

    found: Row = {}
    for name, sample in (("plain", None), ("inputs", torch.as_tensor(data.x_train[:SAMPLE]))):
        start = time.perf_counter()
        result = convert(original, {"0": rule}, inputs=sample)
        layer: Any = result.get_submodule("0")
        figures: Row = {"seconds": time.perf_counter() - start, "converted": accuracy(result, data)}
        train_on(result, data, 0, epochs)
        found |= {"params": layer.network.num_params, name: figures | {"trained on": accuracy(result, data)}}
    return found


def table(data: Row) -> tuple[str, tuple[str, ...], list[list[str]]]:
    """(title, columns, cells)."""
    cells = []
    for name, row in data["rows"].items():
        figures = [row[kind][stage] for kind in ("plain", "inputs") for stage in ("converted", "trained on")]
        cells.append([name, f"{row['params']:,}", *(f"{value:.1f}" for value in figures)])
    return f"Test accuracy, dense {data['dense']:.2f} %", COLUMNS, cells


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One epoch each, three topologies.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results here.")] = None,
) -> None:
    """Replaces the first layer of a trained net."""
    import torch
    from tn4nn_torch import undo

    torch.set_num_threads(1)
    console = Console()
    console = console if console.is_terminal else Console(width=140)
    images = tn.load_data("mnist")
    recipe: Row = {**RECIPE, "lr": DENSE_LR} | ({"epochs": 1} if quick else {})
    run = tn.train(tn.presets.fc2(dense=True), images, backend="torch", seed=0, **recipe)
    trained: Any = run.module
    original, rows = undo(trained), {}
    rules = onto()
    for name in list(rules)[:3] if quick else rules:
        rows[name] = measure(original, rules[name], images, 1 if quick else EPOCHS)
        console.print(f"{name}: {rows[name]}", style="dim", markup=False)
    data: Row = {"benchmark": "replaced_layer", "schema": 1, "machine": _measure.machine(), "threads": 1}
    data |= {"versions": _measure.versions(), "quick": quick, "dense": run.test_accuracy, "rows": rows}
    if json_file is not None:
        json_file.write_text(json.dumps(data, indent=1) + "\n")
    _measure.show(console, [table(data)], [])


if __name__ == "__main__":
    typer.run(main)
