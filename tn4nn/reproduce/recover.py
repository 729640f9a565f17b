"""A trained dense layer replaced by networks: what refining on unlabelled inputs and two epochs recover."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import Dataset, backend, presets, train
from .._drawing.figure import GREY, LINES, dress, legend, panels, style
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import dataset
from .fc2 import DENSE_LR
from .fc2 import RECIPE as FC2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMS, SAMPLE, STEPS, EPOCHS, LR, BATCH = 15_584, 5000, 300, 2, 1e-3, 100
RULES: dict[str, dict[str, Any]] = {
    "low rank": {"topology": "low_rank"},
    "MPO": {"topology": "mpo", "sites": 4},
    "tree": {"topology": "tree", "sites": 4},
    "ring": {"topology": "ring", "sites": 4},
}
REFERENCE = "low rank"  # what the others are compared with; it has no acceptance band
STAGES = ("converted", "refined", "trained on")


def _unit(settings: Settings, seed: int, scratch: Path) -> dict[str, Any]:
    backend("torch")  # says what to install where it is missing
    from tn4nn_torch import undo

    data, model = dataset("mnist"), presets.fc2(dense=True)
    options: dict[str, Any] = {**FC2, "lr": DENSE_LR, "checkpoint": scratch / "checkpoint.safetensors"}
    run = train(model, data, backend="torch", device=settings.device, seed=seed, **options)
    trained: Any = run.module
    original = undo(trained)
    result = {name: _recovered(original, rule, data, seed) for name, rule in RULES.items()}
    return {"dense": run.test_accuracy, "onto": result}


def _recovered(original: Any, rule: dict[str, Any], data: Dataset, seed: int) -> dict[str, Any]:
    """Test accuracies with the first layer on a network."""
    import torch
    from tn4nn_torch import convert, refine

    sample = torch.as_tensor(data.x_train[:SAMPLE], device=next(original.parameters()).device)
    result = convert(original, {"0": {**rule, "params": PARAMS}}, inputs=sample)
    layer: Any = result.get_submodule("0")
    row: dict[str, Any] = {"params": layer.network.num_params, "converted": accuracy(result, data)}
    (refined,) = refine(result, original, sample, steps=STEPS, seed=seed)
    row |= {"error": refined.before, "refined_error": refined.after, "refined": accuracy(result, data)}
    train_on(result, data, seed)
    return row | {"trained on": accuracy(result, data)}


def train_on(module: Any, data: Dataset, seed: int, epochs: int = EPOCHS) -> None:
    """An ordinary loop over an ordinary module."""
    import torch

    device = next(module.parameters()).device
    x, y = (torch.as_tensor(array, device=device) for array in (data.x_train, data.y_train.astype(np.int64)))
    loss: Any = torch.nn.functional.cross_entropy
    generator, optimizer = torch.Generator().manual_seed(seed), torch.optim.Adam(module.parameters(), lr=LR)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for low in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[low : low + BATCH]
            optimizer.zero_grad()
            loss(module(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()


def accuracy(module: Any, data: Dataset) -> float:
    """On the test split, in percent."""
    import torch

    with torch.no_grad():
        found = module(torch.as_tensor(data.x_test, device=next(module.parameters()).device)).argmax(1).cpu().numpy()
    return float(100 * np.mean(found == data.y_test))


def _units(settings: Settings) -> list[Unit]:
    return [Unit({"seed": seed}, functools.partial(_unit, settings, seed)) for seed in range(settings.seeds)]


def _lines(rows: Sequence[Row]) -> list[Line]:
    lines = [mean_line("dense", [row["dense"] for row in rows])]
    for name in RULES:
        lines += [mean_line(f"{name}, {stage}", [row["onto"][name][stage] for row in rows]) for stage in STAGES]
        lost = [row["dense"] - row["onto"][name]["trained on"] for row in rows]
        accepted = {} if name == REFERENCE else {"high": 1.0}
        lines.append(mean_line(f"dense minus {name}, in the end", lost, unit="points", **accepted))
    return lines


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    [panel] = panels(figure, 1)
    for index, name in enumerate(RULES):
        means = [float(np.mean([row["onto"][name][stage] for row in rows])) for stage in STAGES]
        panel.plot(STAGES, means, label=name, **style(index))
    panel.axhline(float(np.mean([row["dense"] for row in rows])), color=GREY, linestyle=LINES[1], label="dense")
    dress(panel, "", "test accuracy (%)")
    legend(panel)


EXPERIMENT = Experiment(
    name="recover",
    title="A trained layer replaced by networks, and what recovers its accuracy",
    source="of our own; the layer of Gao et al. 2020 (arXiv:1904.06194)",
    about=(
        f"FC2, dense, trained as in `fc2`; its first layer is then replaced by networks of at most {PARAMS:,} weights, "
        f"calibrated on {SAMPLE:,} training images (`tn4nn_torch.convert`), refined against its own outputs on the "
        f"same images without labels (`refine`), and the whole model trained for {EPOCHS} more epochs."
    ),
    finding=(
        "A trained layer of 200,704 weights, replaced by 15,584 and trained for two more epochs, ends {dense minus "
        "ring, in the end} below dense as a ring, {dense minus MPO, in the end} as an MPO and {dense minus low rank, "
        "in the end} as low rank."
    ),
    cost="6 min",
    quick_cost="90 s",
    units=_units,
    lines=_lines,
    data=("mnist",),
    uses=("torch",),
    recipe={**FC2, "dense_lr": DENSE_LR, "params": PARAMS, "sample": SAMPLE, "steps": STEPS, "rules": RULES,
            "epochs_on": EPOCHS, "lr_on": LR, "batch": BATCH},
    draw=_draw,
)  # fmt: skip
