"""E4: the order in which the pixels are laid out before they are split into modes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import Linear, Ordering, ReLU, presets
from .. import Sequential as Model
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line
from ._training import Variant, accuracy_line, draw_accuracies, of, units
from .fc2 import RECIPE

SHAPE = (28, 28)
D = 4


def nested_blocks() -> Ordering:
    """Rows and columns of 28 = 2 x 7 x 2 taken together scale by scale: the modes 4, 7, 7, 4 are a quarter of the
    image, a row and a column of 2x2 patches in it, and a place in the patch."""
    index = np.arange(28 * 28).reshape(2, 7, 2, 2, 7, 2)
    return Ordering.custom(index.transpose(0, 3, 1, 4, 2, 5).reshape(-1), SHAPE)


def orderings(seed: int) -> dict[str, Ordering | None]:
    """Name -> ordering; the random one is another for each seed."""
    return {
        "raster": None,
        "random": Ordering.random(SHAPE, seed),
        "2-D blocks 14x14": Ordering.block(SHAPE, (14, 14)),
        "2-D blocks, nested": nested_blocks(),
        "Hilbert": Ordering.hilbert(SHAPE),
    }


def _model(order: Ordering | None) -> Model:
    first, _, last = presets.fc2(D).layers
    assert isinstance(first, Linear)
    return Model(Linear(first.network, ordering=order), ReLU(), last)


def _units(settings: Settings) -> list[Unit]:
    result = []
    for seed in range(settings.seeds):
        chosen = orderings(seed)
        names = ("raster", "random") if settings.quick else tuple(chosen)
        variants = [Variant(name, _model(chosen[name])) for name in names]
        result += [unit for unit in units(variants, "mnist", RECIPE, settings) if unit.key["seed"] == seed]
    return result


def _lines(rows: Sequence[Row]) -> list[Line]:
    names = list(dict.fromkeys(row["variant"] for row in rows))
    pairs = zip(of(rows, "raster"), of(rows, "random"), strict=True)
    return [
        mean_line("raster minus random", [a - b for a, b in pairs], low=1.5, unit="points"),
        *(accuracy_line(rows, name) for name in names),
    ]


EXPERIMENT = Experiment(
    name="order",
    title="The order of the pixels",
    source="Harada 2022",
    about=(
        "FC2 with D = 4 on MNIST; the pixels are permuted before they are split into the modes (4, 7, 7, 4). A "
        "random order takes the locality of images away from the network. Recipe as for `fc2`."
    ),
    finding=(
        "An MPO that sees the pixels row by row beats one that sees them in a random order by {raster minus random}."
    ),
    cost="2 min",
    quick_cost="15 s",
    units=_units,
    lines=_lines,
    data=("mnist",),
    recipe={**RECIPE, "D": D},
    draw=draw_accuracies,
)
