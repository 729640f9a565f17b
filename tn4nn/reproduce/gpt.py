"""A small GPT on the characters of Shakespeare: topologies in its layers against dense and thinner dense ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import DataError, language_model, load_text, presets
from .._training.tasks import Task
from . import _models
from ._experiment import Experiment, Line, Row, Settings, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTEXT, BATCH, STEPS, WIDTH = 64, 12, 1_500, 128
RECIPE = _models.Recipe(
    model=functools.partial(presets.gpt, layers=4, heads=4, vocab=65, context=CONTEXT),
    width=WIDTH,
    widths=(64, 96, 128, 192, 256),
    where=("blocks.*",),
    steps=STEPS,
    training={"batch_size": BATCH, "optimizer": "adamw", "warmup": 100, "lr": "auto"},
)
# Those of the dense model's run: two for each multiply-add, three passes, every token.
_LAYERS = 4 * (4 * WIDTH**2 + 8 * WIDTH**2)
FLOPS = 6.0 * STEPS * BATCH * CONTEXT * (_LAYERS + 65 * WIDTH + 4 * 2 * CONTEXT * WIDTH)


def _task() -> Task:
    text = load_text("tinyshakespeare")
    if len(set(text)) != 65:
        raise DataError(f"expected 65 different characters in tiny Shakespeare, received {len(set(text))}")
    return language_model(text, context=CONTEXT, name="tinyshakespeare")


def _units(settings: Settings) -> list[Unit]:
    return _models.units(RECIPE, _task, FLOPS, settings)


def _lines(rows: Sequence[Row]) -> list[Line]:
    found = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        nats: dict[str, Any] = {"unit": "nats", "digits": 3}
        found.append(_models.line(rows, "dense", 0.25, backend, low=1.70, high=2.00, **nats))
        found.append(_models.line(rows, "narrow", 0.25, backend, low=1.85, high=2.10, **nats))
        for topology, least in (("mpo", 0.03), ("btt", 0.03), ("tree", 0.0)):
            found.append(_models.gain_line(rows, topology, 0.25, backend, less=True, low=least, **nats))
        found.append(_models.gain_line(rows, "low_rank", 0.25, backend, less=True, high=0.0, **nats))
        found += _models.ladder_lines(rows, backend, less=True, **nats)
    return found


def _text(rows: Sequence[Row]) -> list[str]:
    return _models.tables(rows, less=True, digits=3)


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    _models.draw(figure, rows, "test loss (nats a character)")


EXPERIMENT = Experiment(
    name="gpt",
    title="Topologies in a small GPT",
    source="tn4nn; the data of Karpathy 2015 (char-rnn)",
    about=(
        "Characters of Shakespeare, 4 blocks of width 128, context 64, batch 12, AdamW, cosine with 100 steps of "
        "warmup: 0.8 million parameters. All matrices of the blocks take each topology in turn, at 1/2, 1/4 and 1/8 of "
        "their weights, for 1,500 steps; beside them dense, and narrow: the same architecture thinner, with as many "
        "weights in these layers. Then all of them on a ladder of widths, trained for the compute of the dense run. "
        "Learning rates by successive halving, the same effort for all. The loss is that of the last twentieth of the "
        "text, in nats."
    ),
    finding=(
        "At a quarter of the layers' weights and after equal steps, the loss of an MPO is {torch: mpo better than "
        "narrow, at 0.25 of the weights} below that of the thinner dense model, a block tensor train's {torch: btt "
        "better than narrow, at 0.25 of the weights}, low rank's {torch: low_rank better than narrow, at 0.25 of the "
        "weights}."
    ),
    cost="a night and a half, both backends",
    quick_cost="30 min",
    units=_units,
    lines=_lines,
    data=("tinyshakespeare",),
    uses=("torch", "jax"),
    recipe={**RECIPE.plain(), "flops": FLOPS},
    text=_text,
    draw=_draw,
    partial=True,
)
