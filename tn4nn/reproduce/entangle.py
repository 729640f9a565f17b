"""E5: entanglement of trained dense and MPO layers, and whether a trained dense matrix is compressible."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import (
    Dataset,
    Entanglement,
    Epoch,
    Layer,
    decompose,
    entanglement,
    entanglement_nulls,
    low_rank,
    presets,
    train,
)
from .._base.records import read_record, write_record
from .._base.tables import markdown_table
from .._drawing.figure import COLOURS, GREY, LINES, dress, legend, panels, style
from .._model.backend import Trainer
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import dataset, significant
from .fc2 import DENSE_LR
from .fc2 import RECIPE as FC2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

D, RANK, SAMPLE = 16, 14, 5000
# With the L2 of the paper: without it the weights of pixels that are never lit, at the border, stay what they were
# drawn as, and a truncation spends its rank on them.
RECIPE: dict[str, Any] = {**FC2, "weight_decay": 1e-4}
MODES: dict[str, Any] = {"inputs": (4, 7, 7, 4), "outputs": (4, 4, 4, 4)}
MODELS = {"dense": presets.fc2(dense=True), "MPO": presets.fc2(D)}
Weights = Mapping[str, Any]


class _Log:
    """Entropies at every cut after each epoch, on disk by epoch: a run that goes on has those of before the kill."""

    def __init__(self, model: Layer, seed: int, path: Path) -> None:
        self.model, self.path = model, path
        known = read_record(path, 1, "remove it to begin anew")["epochs"] if path.exists() else {}
        self.epochs: dict[str, list[float]] = dict(known)
        self.add(0, model.init(seed))

    def add(self, epoch: int, weights: Weights) -> None:
        self.epochs[str(epoch)] = _cuts(self.model, weights).entropies.tolist()
        write_record(self.path, {"schema": 1, "epochs": self.epochs})

    def __call__(self, epoch: Epoch, trainer: Trainer) -> None:
        self.add(epoch.epoch, trainer.weights())

    @property
    def values(self) -> list[list[float]]:
        """(epochs + 1, cuts), the initial weights first."""
        return [self.epochs[str(epoch)] for epoch in range(len(self.epochs))]


def _first(weights: Weights, shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: weights[f"0.{name}"] for name in shapes}


def _matrix(weights: Weights) -> Any:
    return np.asarray(weights["0.core0"], dtype=np.float64).reshape(256, 784)


def _cuts(model: Layer, weights: Weights) -> Entanglement:
    network = model.networks()["0"]
    if not network.ranks:
        return entanglement(_matrix(weights), **MODES)
    return entanglement(network, _first(weights, network.shapes))


def _nulls(model: Layer, weights: Weights, seed: int) -> dict[str, Entanglement]:
    network = model.networks()["0"]
    if network.ranks:
        return entanglement_nulls(network, _first(weights, network.shapes), seed=seed)
    nulls = entanglement_nulls(_matrix(weights), seed=seed, **MODES)
    return {"init": entanglement(_matrix(model.init(seed)), **MODES), **nulls}


def _unit(name: str, settings: Settings, seed: int, scratch: Path) -> dict[str, Any]:
    data, model = dataset("mnist"), MODELS[name]
    log = _Log(model, seed, scratch / "epochs.json")
    options: dict[str, Any] = {**RECIPE, "lr": DENSE_LR} if name == "dense" else RECIPE
    run = train(
        model, data, backend=settings.backend, device=settings.device, seed=seed,
        checkpoint=scratch / "checkpoint.safetensors", callback=log, **options,
    )  # fmt: skip
    cuts = _cuts(model, run.weights)
    row = {
        "accuracy": run.test_accuracy,
        "by_epoch": log.values,
        "entropy": cuts.entropies.tolist(),
        "bound": [cut.bound for cut in cuts],
        "spectrum": [significant(cut.probabilities) for cut in cuts],
        "nulls": {
            null: {"entropy": found.entropies.tolist(), "spectrum": [significant(cut.probabilities) for cut in found]}
            for null, found in _nulls(model, run.weights, seed).items()
        },
    }
    return row | (_compressed(model, run.weights, data) if name == "dense" else {})


def _compressed(model: Layer, weights: Weights, data: Dataset) -> dict[str, Any]:
    """Test accuracy with the first matrix replaced and nothing trained afterwards."""
    w = _matrix(weights)
    tt = decompose(w, presets.fc2(D).networks()["0"], compare_random=True)
    low = low_rank(784, 256).with_rank(RANK)
    replacements = {
        "tt": tt,
        "plain": decompose(w, low, compare_random=True),
        "whitened": decompose(w, low, inputs=data.x_train[:SAMPLE], compare_random=False),
    }
    found: dict[str, Any] = {}
    for name, replacement in replacements.items():
        replaced = {**weights, "0.core0": replacement.to_dense().reshape(weights["0.core0"].shape).astype(np.float32)}
        y = model.build("numpy", replaced)(data.x_test)
        found[f"{name}_accuracy"] = float(100 * np.mean(np.argmax(y, axis=1) == data.y_test))
        found[f"{name}_error"], found[f"{name}_random_error"] = replacement.error, replacement.random_error
    return found


def _units(settings: Settings) -> list[Unit]:
    return [
        Unit({"layer": name, "seed": seed}, functools.partial(_unit, name, settings, seed))
        for seed in range(settings.seeds)
        for name in MODELS
    ]


def _of(rows: Sequence[Row], layer: str) -> list[Row]:
    return [row for row in rows if row["layer"] == layer]


def _lines(rows: Sequence[Row]) -> list[Line]:
    dense = _of(rows, "dense")
    above = [s - most for row in rows for s, most in zip(row["entropy"], row["bound"], strict=True)]
    gain = [row["whitened_accuracy"] - row["plain_accuracy"] for row in dense]
    return [
        mean_line("dense, trained", [row["accuracy"] for row in dense]),
        mean_line(f"MPO of D = {D}, trained", [row["accuracy"] for row in _of(rows, "MPO")]),
        mean_line(f"dense, then TT-SVD to D = {D}", [row["tt_accuracy"] for row in dense], low=75.0, high=92.0),
        mean_line(f"dense, then SVD to rank {RANK}", [row["plain_accuracy"] for row in dense]),
        mean_line(f"dense, then input-whitened SVD to rank {RANK}", [row["whitened_accuracy"] for row in dense]),
        mean_line("whitened minus plain", gain, low=5.0, unit="points"),
        mean_line("largest S minus its bound, of all cuts", [max(above)], high=1e-9, unit="nats", digits=3),
    ]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _text(rows: Sequence[Row]) -> list[str]:
    """The table of entropies, and the answer that its numbers give."""
    dense, mpo = _of(rows, "dense"), _of(rows, "MPO")
    table = []
    for name, group in (("dense", dense), ("MPO", mpo)):
        for cut in range(3):
            trained = _mean([row["entropy"][cut] for row in group])
            nulls = [_mean([row["nulls"][n]["entropy"][cut] for row in group]) for n in ("init", "shuffled", "random")]
            numbers = [f"{value:.2f}" for value in (trained, *nulls, group[0]["bound"][cut])]
            table.append([name, cut + 1, *numbers, f"{math.exp(trained):.1f}"])
    head = ("layer", "cut", "S trained", "init", "shuffled", "random", "bound", "exp(S)")
    return [_answer(dense, mpo), markdown_table(head, table)]


def _answer(dense: Sequence[Row], mpo: Sequence[Row]) -> str:
    middle = _mean([row["entropy"][1] for row in dense])
    chance = _mean([row["nulls"]["shuffled"]["entropy"][1] for row in dense])
    lost, lost_of_noise = (_mean([row[key] ** 2 for row in dense]) for key in ("tt_error", "tt_random_error"))
    trained = _mean([row["accuracy"] for row in mpo]) - _mean([row["tt_accuracy"] for row in dense])
    gain = _mean([row["whitened_accuracy"] - row["plain_accuracy"] for row in dense])
    used = _mean([max(s / b for s, b in zip(row["entropy"], row["bound"], strict=True)) for row in mpo])
    sentences = [
        "**Why is the weight matrix effectively compressed?**",
        f"At the middle cut the trained dense matrix has S = {middle:.2f} nats, as {math.exp(middle):.0f}",
        "equal Schmidt",
        f"values would have, where the same entries shuffled have {chance:.2f} and D = {D} keeps {D}.",
        f"TT-SVD to D = {D} loses {100 * lost:.0f} % of its squared norm; of a random matrix",
        f"{100 * lost_of_noise:.0f} %.",
        f"The same MPO trained from the start is {_compared(trained)} than the one cut out of the dense",
        "matrix, with S at",
        f"{100 * used:.0f} % of its bound or less at every cut.",
        f"Keeping the directions in which the inputs vary (whitened SVD) is {_compared(gain)} than",
        "keeping the norm of W.",
    ]
    if math.exp(middle) > D and trained > 1 and gain > 1:
        sentences.append(
            "So it is not that a trained dense matrix has little entanglement: it has more than the "
            "network can carry, and "
            "most of it does not matter for the task. What is compressed is the function on the inputs there are: "
            "training under the constraint, or knowing the inputs, finds it, and truncating W does not."
        )
    return " ".join(sentences)


def _compared(points: float) -> str:
    return f"{abs(points):.1f} points {'better' if points > 0 else 'worse'}"


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    spectra, over_epochs, mpo_spectra, mpo_epochs = panels(figure, 4)
    for layer, left, right in (("dense", spectra, over_epochs), ("MPO", mpo_spectra, mpo_epochs)):
        row = _of(rows, layer)[0]
        left.semilogy(range(1, len(row["spectrum"][1]) + 1), row["spectrum"][1], color=COLOURS[0], label="trained")
        for index, null in enumerate(("init", "shuffled", "random")):
            values = row["nulls"][null]["spectrum"][1]
            colour = COLOURS[index + 1]
            left.semilogy(range(1, len(values) + 1), values, color=colour, linestyle=LINES[index + 1], label=null)
        left.set_ylim(bottom=max(1e-7, min(v for v in row["spectrum"][1] if v > 0) / 3))
        dress(left, "index", "p", f"{layer}: middle cut, last epoch")
        for cut in range(3):
            curve = [epoch[cut] for epoch in row["by_epoch"]]
            right.plot(range(len(curve)), curve, label=f"cut {cut + 1}", **style(cut))
            right.axhline(row["bound"][cut], color=style(cut)["color"], linestyle=":", linewidth=1)
        right.plot([], [], color=GREY, linestyle=":", label="bound")
        dress(right, "epoch (0: init)", "S (nats)", f"{layer}: over epochs")
        legend(left)
        legend(right)


EXPERIMENT = Experiment(
    name="entangle",
    title="Entanglement of trained layers",
    source="Gao et al. 2020 (arXiv:1904.06194); Harada 2022",
    about=(
        "The first layer of FC2, dense and as an MPO of D = 16, trained as in `fc2` with the L2 of 1e-4 of "
        "`fc2-paper`: Schmidt spectra and entropies S = -sum p ln p at the three cuts of (4,7,7,4) -> (4,4,4,4), "
        "after every epoch, against the initial weights, the same entries shuffled, and random ones of the same "
        "norm. Then the trained dense matrix is replaced, and nothing is trained afterwards; 5,000 training images "
        "for whitening. The L2 was chosen after a run without it, in which TT-SVD gave 67.8 ± 13.1 % over three "
        "seeds: weights of pixels that are never lit then stay what they were drawn as."
    ),
    finding=(
        "A trained dense layer that is cut to D = 16 by TT-SVD falls from {dense, trained} to {dense, then TT-SVD to "
        "D = 16}; an MPO that was trained at D = 16 reaches {MPO of D = 16, trained}. Whitening by the inputs before "
        "the cut gains {whitened minus plain} at rank 14."
    ),
    cost="3 min",
    quick_cost="30 s",
    units=_units,
    lines=_lines,
    data=("mnist",),
    recipe={**RECIPE, "dense_lr": DENSE_LR, "D": D, "rank": RANK, "sample": SAMPLE},
    text=_text,
    draw=_draw,
)
