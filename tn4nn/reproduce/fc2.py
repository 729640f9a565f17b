"""E1: FC2 at several bond dimensions, low rank at the same weights, and dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import Linear, ReLU, low_rank, presets
from .. import Sequential as Model
from .._drawing.figure import INK, dress, legend, panels, style
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import Variant, accuracy_line, of, units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The learning rate is that of 2e-3, 4e-3 and 8e-3 with the best validation accuracy at seed 1000, which is not
# reported: the same for MPOs, low rank and dense.
RECIPE = {"epochs": 6, "batch_size": 100, "lr": 8e-3}
DENSE_LR = 8e-3
LEAST = {4: 96.2, 8: 97.2, 16: 97.4}


def low_rank_fc2(rank: int) -> Model:
    """FC2 with its first layer of low rank, the second as published."""
    return Model(Linear(low_rank(784, 256).with_rank(rank)), ReLU(), presets.fc2().layers[2])


def dense_fc2(label: str = "dense") -> Variant:
    """The dense twin at its own learning rate."""
    return Variant(label, presets.fc2(dense=True), {"lr": DENSE_LR})


def _units(settings: Settings) -> list[Unit]:
    variants = [Variant(f"D = {d}", presets.fc2(d)) for d in ((4, 16) if settings.quick else (1, 2, 4, 8, 16))]
    variants += [Variant(f"low rank {r}", low_rank_fc2(r)) for r in ((1,) if settings.quick else (1, 14))]
    return units([*variants, dense_fc2()], "mnist", RECIPE, settings)


def _lines(rows: Sequence[Row]) -> list[Line]:
    return [
        *(accuracy_line(rows, f"D = {d}", _what(rows, f"D = {d}"), low=LEAST.get(d)) for d in (1, 2, 4, 8, 16)),
        *(accuracy_line(rows, name, _what(rows, name)) for name in ("low rank 1", "low rank 14")),
        accuracy_line(rows, "dense", _what(rows, "dense"), low=98.0),
        _gap(rows),
    ]


def _what(rows: Sequence[Row], label: str) -> str:
    weights = of(rows, label, "params")
    return f"{label}, {weights[0]:,} weights" if weights else label


def _gap(rows: Sequence[Row]) -> Line:
    pairs = zip(of(rows, "D = 4"), of(rows, "low rank 1"), strict=False)
    return mean_line("D = 4 minus low rank at 16 weights more", [a - b for a, b in pairs], unit="points")


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    labels = list(dict.fromkeys(row["variant"] for row in rows))
    dense = accuracy_line(rows, "dense").ours
    for panel, least in zip(panels(figure, 2), (None, 94.5), strict=True):
        for index, (name, start) in enumerate((("MPO", "D"), ("low rank", "low"))):
            group = [label for label in labels if label.startswith(start)]
            lines = [accuracy_line(rows, label) for label in group]
            weights = [of(rows, label, "params")[0] for label in group]
            means, sds = [line.ours for line in lines], [line.sd or 0.0 for line in lines]
            panel.errorbar(weights, means, yerr=sds, label=name, capsize=3, **style(index))
        panel.axhline(dense, color=INK, linestyle=":", label="dense, 203,264 weights")
        panel.set_xscale("log")
        panel.set_ylim(least, None if least is None else 99)
        dress(panel, "weights of both layers", "test accuracy (%)", "FC2 on MNIST" if least is None else "from 94.5 %")
        if least is None:
            legend(panel, loc="lower right")


EXPERIMENT = Experiment(
    name="fc2",
    title="FC2 at several bond dimensions",
    source="Gao et al. 2020 (arXiv:1904.06194); Harada 2022",
    about=(
        "784 -> 256 -> 10 on MNIST, both layers MPOs, against low rank at the same weights and dense. Adam, cosine, "
        "6 epochs, batch 100; one learning rate, 8e-3, out of 2e-3, 4e-3 and 8e-3 by validation accuracy on a seed "
        "that is not reported. The paper's own recipe is `fc2-paper`."
    ),
    finding=(
        "An MPO of 1,760 weights reaches {D = 4, 1,760 weights} on MNIST, one of 15,584 weights {D = 16, 15,584 "
        "weights}, and the dense model of 203,264 weights {dense, 203,264 weights}. Low rank at 1,776 weights "
        "reaches {low rank 1, 1,776 weights}."
    ),
    cost="4 min",
    quick_cost="40 s",
    units=_units,
    lines=_lines,
    data=("mnist",),
    recipe={**RECIPE, "dense_lr": DENSE_LR},
    draw=_draw,
)
