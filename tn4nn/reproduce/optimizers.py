"""AdamW, AdamW with weight normalization, and Muon, from small to large learning rates in a small GPT."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import Layer, build, language_model, load_text, presets, train
from .._base.tables import markdown_table
from .._drawing.figure import dress, legend, panels, style
from .._model.layers import replace_networks
from .._training.tasks import Task
from ._experiment import Experiment, Line, Row, Settings, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, CONTEXT, STEPS, SHARE = 64, 32, 300, 0.25
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TOPOLOGIES = ("dense", "btt")
ADAMW, NORMALIZED, MUON = "AdamW", "AdamW, cores normalized", "Muon"
OPTIMIZERS: dict[str, dict[str, Any]] = {
    ADAMW: {"optimizer": "adamw"},
    NORMALIZED: {"optimizer": "adamw", "weight_norm": True},
    MUON: {"optimizer": "muon"},
}
# A dense model has no cores to normalize, and none with a rate of their own.
RUNS = (
    ("dense", ADAMW, "structure"), ("dense", MUON, "structure"),
    ("btt", ADAMW, "structure"), ("btt", NORMALIZED, "structure"), ("btt", MUON, "structure"),
    ("btt", ADAMW, "none"), ("btt", NORMALIZED, "none"),
)  # fmt: skip
RECIPE: dict[str, Any] = {"steps": STEPS, "batch_size": 12, "warmup": 30, "schedule": "cosine"}
BAND = 0.05  # nats that count as the same


@functools.cache
def _model(topology: str) -> tuple[Layer, Task]:
    """The GPT whose matrices of the blocks lie on a topology, each at a share of its weights, and its task."""
    task = language_model(load_text("shakespeare"), context=CONTEXT)
    model = presets.gpt(layers=2, width=WIDTH, heads=2, vocab=task.outputs[-1], context=CONTEXT)
    networks = {}
    for name, net in model.networks().items() if topology != "dense" else ():
        if name.startswith("blocks"):
            size = net.topology.in_features, net.topology.out_features
            networks[name] = build(topology, *size).with_budget(params=round(SHARE * net.num_params))
    return replace_networks(model, networks), task


def _trained(
    topology: str, optimizer: str, factors: str, lr: float, seed: int, settings: Settings, scratch: Path
) -> dict[str, Any]:
    model, task = _model(topology)
    run = train(
        model, task, backend=settings.backend, device=settings.device, seed=seed, lr=lr, lr_factors=factors,
        **RECIPE, **OPTIMIZERS[optimizer],
    )  # fmt: skip
    finite = math.isfinite(run.test_loss)
    times = {"seconds": sum(line.seconds for line in run.history)}
    return {"params": model.num_weights, "loss": run.test_loss if finite else None, "times": times}


def _units(settings: Settings) -> list[Unit]:
    rates = RATES[::2] if settings.quick else RATES
    return [
        Unit(
            {"topology": topology, "optimizer": name, "factors": factors, "lr": lr, "seed": seed},
            functools.partial(_trained, topology, name, factors, lr, seed, settings),
        )
        for topology, name, factors in RUNS
        for lr in rates
        for seed in range(settings.seeds)
    ]


def _losses(rows: Sequence[Row], topology: str, optimizer: str, factors: str = "structure") -> dict[float, float]:
    """Mean test loss at each rate; infinite where a run diverged."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if (row["topology"], row["optimizer"], row["factors"]) == (topology, optimizer, factors):
            found.setdefault(row["lr"], []).append(math.inf if row["loss"] is None else row["loss"])
    return {lr: statistics.fmean(values) for lr, values in found.items()}


def _lines(rows: Sequence[Row]) -> list[Line]:
    found = []
    options: dict[str, Any] = {"unit": "nats", "digits": 3}
    for topology in TOPOLOGIES[1:]:
        plain, normal = (_losses(rows, topology, name) for name in (ADAMW, NORMALIZED))
        raw, held = (_losses(rows, topology, name, "none") for name in (ADAMW, NORMALIZED))
        muon = _losses(rows, topology, MUON)
        if not all((plain, normal, raw, held, muon)):
            continue
        last = max(raw)
        gain = raw[last] - held[last] if math.isfinite(held[last]) else -math.inf
        what = f"{topology}: what normalized cores gain at lr {last:g}, one rate for all cores"
        found.append(Line(what, gain, low=0.0, **options))
        for name, losses in ((NORMALIZED, normal), (MUON, muon)):
            more = min(losses.values()) - min(plain.values())
            found.append(Line(f"{topology}: {name} over AdamW, each at its best rate", more, high=BAND, **options))
    return found


def _text(rows: Sequence[Row]) -> list[str]:
    table = []
    for topology in TOPOLOGIES:
        for factors in ("structure", "none"):
            for name in OPTIMIZERS:
                losses = _losses(rows, topology, name, factors)
                if losses:
                    params = next(row["params"] for row in rows if row["topology"] == topology)
                    cells = ("diverged" if math.isinf(loss) else f"{loss:.3f}" for loss in losses.values())
                    table.append([topology, f"{params:,}", name, factors, *cells])
    rates = sorted({row["lr"] for row in rows})
    return [
        "Test loss (nats a character) at each rate, mean over seeds:",
        markdown_table(("topology", "weights", "optimizer", "rates of cores", *(f"{lr:g}" for lr in rates)), table),
    ]


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    found = panels(figure, len(TOPOLOGIES))
    for panel, topology in zip(found, TOPOLOGIES, strict=True):
        for index, name in enumerate(OPTIMIZERS):
            for factors, line in (("structure", "-"), ("none", ":")):
                losses = _losses(rows, topology, name, factors)
                if losses:
                    label = f"{name}{'' if factors == 'structure' else ', one rate for all cores'}"
                    panel.semilogx(list(losses), list(losses.values()), label=label, linestyle=line, **style(index))
        panel.set_ylim(2.2, 3.1)
        dress(panel, "learning rate", "test loss (nats)", topology)
    legend(found[-1])


EXPERIMENT = Experiment(
    name="optimizers",
    title="AdamW, normalized cores, and Muon",
    source="Qiu et al. 2024, Compute Better Spent (arXiv:2406.06248): normalized cores; Jordan et al. 2024: Muon",
    about=(
        "Characters of Shakespeare (the embedded excerpt), 2 blocks of width 64, context 32, batch 12, 300 steps, 30 "
        "of warmup, cosine; the matrices of the blocks dense, and on a block tensor train at a quarter of their "
        "weights. Each optimizer at five rates, with the rates of cores that `Network.lr_factors` gives and with one "
        "rate for all cores. Accepted: with one rate for all cores, normalized cores are no worse at the largest rate; "
        "at their best rates, normalized cores and Muon are at most 0.05 nats worse than AdamW."
    ),
    finding=(
        "Normalized cores change the test loss of a block tensor train by {btt: AdamW, cores normalized over AdamW, "
        "each at its best rate} against AdamW, and Muon by {btt: Muon over AdamW, each at its best rate}, each at "
        "its best rate."
    ),
    cost="30 min",
    quick_cost="5 min",
    units=_units,
    lines=_lines,
    seeds=2,
    recipe={**RECIPE, "rates": RATES, "width": WIDTH, "context": CONTEXT, "share": SHARE},
    text=_text,
    draw=_draw,
)
