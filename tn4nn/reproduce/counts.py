"""E0: the exact parameter counts of the published layers, computed from the presets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import Sequential, presets
from .._base.tables import markdown_table
from ._experiment import Experiment, Line, Row, Settings, Unit

# Published, or counted by hand from the published shapes: D -> (both layers, rho).
FC2 = {
    1: (824, 0.0041), 2: (1024, 0.0050), 4: (1760, 0.0087), 8: (4576, 0.0225), 10: (6656, 0.0327),
    16: (15584, 0.0767), 20: (23776, 0.1170), 32: (59104, 0.2908),
}  # fmt: skip
MPO_FC = {1: 80, 2: 256, 4: 896, 8: 3328, 16: 12800, 32: 33280}
TNN = {2: 400, 8: 5440}

# Preset -> (layer -> (network, dense)).
LAYERS: dict[str, dict[str, tuple[int, int]]] = {
    "lenet5": {"conv3": (1792, 48000), "fc1": (944, 10080), "fc2": (124, 840)},
    "vgg16": {
        "conv5_1": (3104, 2359296), "conv5_2": (3104, 2359296), "fc1": (1376, 2097152), "fc2": (2432, 16777216),
        "fc3": (928, 40960),
    },
    "vgg19": {
        "conv5_3": (3104, 2359296), "conv5_4": (3104, 2359296), "fc1": (1376, 2097152), "fc2": (2432, 16777216),
        "fc3": (928, 40960),
    },
    "wrn20_4": {"block3_3.body.2": (1568, 589824), "block3_3.body.5": (1568, 589824)},
    "densenet40": {"fc": (576, 4480)},
}  # fmt: skip

# Preset -> (network, dense, their ratio to 3 digits or None) over the replaced layers.
TOTALS: dict[str, tuple[int, int, float | None]] = {
    "lenet5": (2860, 58920, 0.0485), "vgg16": (10944, 23633920, 0.000463), "vgg19": (10944, 23633920, 0.000463),
}  # fmt: skip
KEPT = {"vgg16": 5273280, "vgg19": 15300288}  # weights of the layers that stay, in both twins
WHOLE = {"lenet5": (5646, 61612)}  # whole models, biases included


def rows() -> list[dict[str, Any]]:
    """Every count: what it is of, expected, and counted from the graph."""
    found: list[dict[str, Any]] = []

    def add(what: str, expected: float, counted: float, digits: int = 0) -> None:
        found.append({"what": what, "expected": expected, "counted": round(counted, digits), "digits": digits})

    for d, (weights, rho) in FC2.items():
        model, twin = presets.fc2(d), presets.fc2(dense=True)
        add(f"FC2, D = {d}, both layers", weights, model.num_weights)
        add(f"FC2, D = {d}, rho of {twin.num_weights:,}", rho, _rho(model, twin), 4)
    for preset, layers in LAYERS.items():
        make: Callable[..., Sequential] = getattr(presets, preset)
        model, twin = make(), make(dense=True)
        pairs = {pair.name: pair for pair in presets.replaced(model, twin)}
        add(f"{preset}, replaced layers", len(layers), len(pairs))
        for name, (small, large) in layers.items():
            add(f"{preset}, {name}", small, pairs[name].params)
            add(f"{preset}, {name}, dense", large, pairs[name].dense_params)
        if preset in TOTALS:
            total, dense, ratio = TOTALS[preset]
            add(f"{preset}, all replaced layers", total, sum(pair.params for pair in pairs.values()))
            add(f"{preset}, all replaced layers, dense", dense, sum(pair.dense_params for pair in pairs.values()))
            if ratio is not None:
                add(f"{preset}, rho", ratio, _rho(model, twin), 4 if ratio > 0.001 else 6)
        if preset in KEPT:
            add(f"{preset}, weights that stay", KEPT[preset], twin.num_weights - TOTALS[preset][1])
        if preset in WHOLE:
            add(f"{preset}, whole model", WHOLE[preset][0], model.num_params)
            add(f"{preset}, whole model, dense", WHOLE[preset][1], twin.num_params)
    for chi, count in MPO_FC.items():
        add(f"MPO + FC, chi = {chi}, clipped", count, _first(presets.mpo_fc(chi)))
    add("MPO + FC, dense", 1048576, _first(presets.mpo_fc(dense=True)))
    for r, count in TNN.items():
        add(f"TNN, r = {r}", count, _first(presets.tnn_novikov(r)))
    add("TNN, dense", 640000, _first(presets.tnn_novikov(dense=True)))
    return found


def _first(model: Sequential) -> int:
    return model.networks()["0"].num_params


def _rho(model: Sequential, twin: Sequential) -> float:
    pairs = presets.replaced(model, twin)
    return sum(pair.params for pair in pairs) / sum(pair.dense_params for pair in pairs)


def ratios() -> list[dict[str, Any]]:
    """Beside rho, which looks at the replaced layers alone: the whole model, biases and norms included."""
    result = []
    for name in ("fc2", "lenet5", "vgg16", "vgg19", "wrn20_4", "densenet40", "mpo_fc", "tnn_novikov"):
        model, twin = getattr(presets, name)(), getattr(presets, name)(dense=True)
        whole = model.num_params / twin.num_params
        result.append({"preset": name, "rho": _rho(model, twin), "whole": whole, "params": model.num_params})
    return result


def _units(settings: Settings) -> list[Unit]:
    def run(scratch: Path) -> dict[str, Any]:
        return {"counts": rows(), "ratios": ratios()}

    return [Unit({"what": "every row"}, run)]


def _lines(found: Sequence[Row]) -> list[Line]:
    return [
        Line(
            c["what"],
            c["counted"],
            low=c["expected"],
            high=c["expected"],
            published=f"{c['expected']:,.{c['digits']}f}",
            unit="",
            digits=c["digits"],
        )
        for row in found
        for c in row["counts"]
    ]


def _text(found: Sequence[Row]) -> list[str]:
    table = [
        (f"`{one['preset']}`", f"{one['rho']:.3g}", f"{one['whole']:.3g}", f"{one['params']:,}")
        for row in found
        for one in row["ratios"]
    ]
    return [
        "The ratio of the whole model, layers that are not replaced included, beside rho:",
        markdown_table(("model", "rho, replaced layers", "whole model", "parameters left"), table),
    ]


EXPERIMENT = Experiment(
    name="counts",
    title="Exact parameter counts",
    source="Gao et al. 2020 (arXiv:1904.06194), Novikov et al. 2015 (arXiv:1509.06569), Harada 2022",
    about=(
        "Every published layer is built from `tn.presets` and its numbers are counted in the graph. rho is the "
        "number of parameters of the replaced layers, network over dense, weights only."
    ),
    finding=(
        "VGG-16's five replaced layers hold {vgg16, all replaced layers} weights in place of {vgg16, all replaced "
        "layers, dense}; LeNet-5's three hold {lenet5, all replaced layers} in place of {lenet5, all replaced "
        "layers, dense}. All counts of the papers are checked."
    ),
    cost="1 s",
    quick_cost="1 s",
    units=_units,
    lines=_lines,
    text=_text,
    seeds=1,
)
