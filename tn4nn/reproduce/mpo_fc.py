"""E6: MPO + FC at several bond dimensions, and the entanglement of what was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import Run, entanglement, presets
from .._base.tables import markdown_table
from .._drawing.figure import GREY, INK, dress, legend, panels, style
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import Variant, accuracy_line, of, significant, units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECIPE = {"epochs": 6, "batch_size": 100, "lr": 8e-3}
CHIS = (1, 2, 4, 8, 16, 32)


def _measured(run: Run) -> Mapping[str, Any]:
    """Entropy, bound and spectrum at every bond of the trained MPO."""
    network = run.model.networks()["0"]
    cuts = entanglement(network, {name: run.weights[f"0.{name}"] for name in network.shapes})
    return {
        "entropy": [cut.entropy for cut in cuts],
        "bound": [cut.bound for cut in cuts],
        "spectrum": [significant(cut.probabilities) for cut in cuts],
    }


def _units(settings: Settings) -> list[Unit]:
    chosen = (4, 16) if settings.quick else CHIS
    variants = [Variant(f"chi = {chi}", presets.mpo_fc(chi)) for chi in chosen]
    return units(variants, "mnist-32", RECIPE, settings, _measured)


def _lines(rows: Sequence[Row]) -> list[Line]:
    # Without bonds of size 1, where both are 0.
    above = [s - most for row in rows for s, most in zip(row["entropy"], row["bound"], strict=True) if most > 0]
    accuracies = [accuracy_line(rows, f"chi = {chi}", low=97.0 if chi == 4 else None) for chi in CHIS]
    return [
        *(line for line in accuracies if line.ours is not None),
        # 1e-9: the rounding of a singular value decomposition.
        mean_line("largest S minus its bound, of all bonds", [max(above)], high=1e-9, unit="nats", digits=3),
    ]


def _text(rows: Sequence[Row]) -> list[str]:
    table = []
    for row in rows:
        if row["seed"] == 0:
            shares = [s / most for s, most in zip(row["entropy"], row["bound"], strict=True) if most > 0]
            share = f"{max(shares):.2f}" if shares else "–"
            entropies = ", ".join(f"{s:.2f}" for s in row["entropy"])
            widest = math.exp(max(row["entropy"]))
            table.append([row["variant"].removeprefix("chi = "), entropies, share, f"{widest:.1f}"])
    head = ("chi", "S at the four bonds (nats), seed 0", "S / bound, largest", "exp(S), largest")
    return [markdown_table(head, table)]


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    left, middle, right = panels(figure, 3)
    first = [row for row in rows if row["seed"] == 0]
    for index, row in enumerate(first):
        bonds = range(1, len(row["entropy"]) + 1)
        left.plot(bonds, row["entropy"], label=row["variant"], **style(index))
        left.plot(bonds, row["bound"], color=style(index)["color"], linestyle=":", linewidth=1)
        middle_bond = row["spectrum"][len(row["spectrum"]) // 2 - 1]
        middle.semilogy(range(1, len(middle_bond) + 1), middle_bond, label=row["variant"], **style(index))
    middle.plot([], [], color=GREY, linestyle=":", label="left: bound")
    legend(middle)
    dress(left, "bond", "S (nats)", "entropy of the trained MPO")
    left.set_xticks(range(1, 5))
    dress(middle, "index", "p", "Schmidt spectrum at the second bond")
    lines = [accuracy_line(rows, row["variant"]) for row in first]
    weights = [of(rows, row["variant"], "params")[0] for row in first]
    means, sds = [line.ours for line in lines], [line.sd or 0.0 for line in lines]
    right.errorbar(weights, means, yerr=sds, capsize=3, **style(0))
    for row, count, mean in zip(first, weights, means, strict=True):
        right.annotate(
            row["variant"], (count, mean), xytext=(4, -11), textcoords="offset points", color=INK, fontsize=8
        )
    right.set_xscale("log")
    right.set_xticks([10_000, 20_000, 40_000], ["10k", "20k", "40k"])
    right.minorticks_off()
    dress(right, "weights, with those of FC", "test accuracy (%)", "mean ± sd over seeds")


EXPERIMENT = Experiment(
    name="mpo-fc",
    title="MPO + FC, and the entanglement of a trained MPO",
    source="Harada 2022",
    about=(
        "MNIST in 32x32, an MPO 4^5 -> 4^5 instead of a dense 1024 -> 1024, then dense 1024 -> 10. Adam, "
        "cosine, 6 epochs, lr 8e-3. After training, the Schmidt spectrum and the entropy S at every bond, which "
        "cannot exceed ln chi."
    ),
    finding=(
        "An MPO of chi = 4 in place of a matrix of a million weights reaches {chi = 4}; one of chi = 32 reaches "
        "{chi = 32}."
    ),
    cost="12 min",
    quick_cost="60 s",
    units=_units,
    lines=_lines,
    data=("mnist",),
    recipe=RECIPE,
    text=_text,
    draw=_draw,
)
