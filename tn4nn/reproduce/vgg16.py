"""E14: VGG-16 on CIFAR-10. Counts always; training only where there is a CUDA device and the data."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import DataError, load_data, presets
from .._base.files import cache_folder
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import Variant, accuracy_line, of, units

# The paper's but for its crops, flips and averaged weights, which `tn.train` does not have.
RECIPE: dict[str, Any] = {
    "epochs": 100, "batch_size": 100, "optimizer": "sgd", "nesterov": True, "lr": 0.1,
    "schedule": ("step", 16, math.sqrt(0.1)), "weight_decay": 2e-4, "lr_factors": "none",
}  # fmt: skip
FILE = "cifar10.npz"


def _data() -> Path:
    return Path(os.environ.get("TN4NN_DATA") or cache_folder() / "data") / FILE


def _missing(settings: Settings) -> str:
    """Why nothing is trained; empty where it can be."""
    if settings.quick:
        return "--quick counts only"
    if not (settings.device or "").startswith(("cuda", "gpu")):
        return "training needs a GPU: --device cuda (torch) or gpu (jax)"
    try:
        load_data(_data())
    except DataError as error:
        return f"{error} Here: x_train, y_train, x_test, y_test with rows of 3x32x32 from 0 to 1."
    return ""


def _counted(reason: str, scratch: Path) -> dict[str, Any]:
    model, twin = presets.vgg16(), presets.vgg16(dense=True)
    pairs = presets.replaced(model, twin)
    counts = [sum(pair.params for pair in pairs), sum(pair.dense_params for pair in pairs)]
    return {"counts": counts, "whole": [model.num_params, twin.num_params], "not_trained": reason}


def _units(settings: Settings) -> list[Unit]:
    reason = _missing(settings)
    counted = Unit({"what": "counts"}, functools.partial(_counted, reason))
    if reason:
        return [counted]
    variants = [Variant("MPO", presets.vgg16()), Variant("dense", presets.vgg16(dense=True))]
    return [counted, *units(variants, str(_data()), RECIPE, settings)]


def _lines(rows: Sequence[Row]) -> list[Line]:
    trained = [row for row in rows if "variant" in row]
    small, large = rows[0]["counts"]
    exact: dict[str, Any] = {"unit": "", "digits": 0}
    pairs = zip(of(trained, "MPO"), of(trained, "dense"), strict=False)
    gap = [None if None in pair else pair[0] - pair[1] for pair in pairs]
    return [
        Line("replaced layers, weights", small, low=10944, high=10944, published="10,944", **exact),
        Line("replaced layers, weights, dense", large, low=23633920, high=23633920, published="23,633,920", **exact),
        accuracy_line(trained, "MPO", published="93.76 % ± 0.16 (best test epoch, as the paper reports)"),
        accuracy_line(trained, "dense"),
        mean_line("MPO minus dense", gap, low=-0.5, unit="points"),
    ]


def _text(rows: Sequence[Row]) -> list[str]:
    return [] if len(rows) > 1 else [f"Not trained here: {rows[0]['not_trained']}"]


EXPERIMENT = Experiment(
    name="vgg16",
    title="VGG-16 on CIFAR-10",
    source="Gao et al. 2020 (arXiv:1904.06194)",
    about=(
        "VGG-16, configuration C, with MPOs for two convolutions and three linear layers. The paper's SGD (Nesterov "
        "0.9, lr 0.1, L2 of 2e-4, batch 100, dropout 0.2) over 100 epochs instead of 325, without its crops, "
        "flips and averaged weights: MPO against dense under one recipe, and not against the paper's numbers."
    ),
    finding=(
        "Five layers of VGG-16 shrink from {replaced layers, weights, dense} weights to {replaced layers, weights}."
    ),
    cost="1 h on a GPU",
    quick_cost="1 s",
    units=_units,
    lines=_lines,
    data=("cifar10.npz, optional",),
    seeds=1,
    recipe=RECIPE,
    text=_text,
)
