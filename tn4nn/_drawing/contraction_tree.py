"""Pictures of contraction trees.

cotengra's own plots go through pyplot, which keeps figures and chooses a backend for the whole process, and have no
words for cores and steps; so these are drawn here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .._graph.paths import legs_along
from .._planning.plan import Plan, problem
from .._runtime.program import BATCH
from .figure import BLUE, DARK, GREEN, ORANGE, new_figure, saved

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The dominating step differs by its size and its words too.
_CORE, _INPUT, _STEP, _MOST, _LINE = BLUE, GREEN, "#ffffff", ORANGE, DARK
_WORDED = 24  # tensors up to which steps are labelled
_WIDEST, _HIGHEST = 16.0, 11.0  # inches


def draw_tree(p: Plan, path: str | None = None) -> Figure:
    """What `Plan.draw` does."""
    tensors, names, output = problem(p.network, p.form)
    sizes, legs = {**p.network.sizes, BATCH: p.batch}, legs_along(tensors, output, p.path)
    macs = [math.prod(sizes[leg] for leg in legs[a] | legs[b]) for a, b in p.path]
    places = _places(p, len(tensors))
    width, height = (max(place[axis] for place in places) for axis in (0, 1))
    few = len(tensors) <= _WORDED
    figure = new_figure(path, min(_WIDEST, 2.2 + 1.05 * width), min(_HIGHEST, 1.8 + 0.72 * height))
    axes = figure.add_subplot()
    for step, pair in enumerate(p.path):
        for child in pair:
            (x0, y0), (x1, y1) = places[child], places[len(tensors) + step]
            heavy = math.log2(1 + math.prod(sizes[leg] for leg in legs[child]))
            axes.plot([x0, x0, x1], [y0, y1, y1], color=_LINE, linewidth=0.4 + 0.16 * heavy, zorder=1, alpha=0.7)
    for number, (x, y) in enumerate(places):
        step = number - len(tensors)
        if step < 0:
            colour = _INPUT if names[number] == "x" else _CORE
            axes.plot(x, y, marker="s", markersize=9, color=colour, zorder=2)
            turn: dict[str, Any] = {"rotation": 90} if not few or max(map(len, names)) > 8 else {}
            axes.text(x, y - 0.22, names[number], ha="center", va="top", fontsize=8, parse_math=False, **turn)
            continue
        most = macs[step] == max(macs)
        marks: dict[str, Any] = {"markersize": 13 if most else 8, "markeredgecolor": _MOST if most else _LINE}
        axes.plot(x, y, marker="o", color=_MOST if most else _STEP, zorder=2, **marks)
        if few or most:
            part = macs[step] / sum(macs)
            share = (f"{part:.0%}" if part >= 0.01 else "<1%") + (" of the multiply-adds" if most else "")
            batch = ["batch"] if BATCH in legs[number] else []
            made = " ".join([*batch, *(leg for leg in p.network.sizes if leg in legs[number])])
            words: dict[str, Any] = {"weight": "bold", "color": _MOST} if most else {"color": _LINE}
            axes.text(
                x + 0.14, y + 0.1, f"{share}\n{made}", fontsize=7, va="bottom", parse_math=False, zorder=3, **words
            )
    t = p.network.topology
    axes.set_title(
        f"{t.name} {t.in_features} -> {t.out_features}, batch {p.batch}, {p.phase}: {p.order}", fontsize=9,
        parse_math=False,
    )  # fmt: skip
    axes.set_xlim(-0.7, width + 1.6)
    axes.set_ylim(-0.9, height + 0.9)
    axes.set_axis_off()
    figure.set_layout_engine("constrained")
    return saved(figure, path)


def _places(p: Plan, tensors: int) -> list[tuple[float, float]]:
    """(x, y) of every tensor and step: the tensors in a row as the tree takes them, each step above its two."""
    places: dict[int, tuple[float, float]] = {}
    waiting, count = [tensors + len(p.path) - 1], 0
    while waiting:  # no recursion: a tree may be a thousand deep
        number = waiting.pop()
        if number < tensors:
            places[number] = float(count), 0.0
            count += 1
        else:
            waiting += reversed(p.path[number - tensors])
    for step, (a, b) in enumerate(p.path):
        (xa, ya), (xb, yb) = places[a], places[b]
        places[tensors + step] = (xa + xb) / 2, 1.0 + max(ya, yb)
    return [places[number] for number in range(tensors + len(p.path))]
