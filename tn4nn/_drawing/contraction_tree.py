"""Pictures of contraction trees.

cotengra's own plots go through pyplot, which keeps figures and chooses a backend for the whole process, and have no
labels for cores and steps, so trees are drawn here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .figure import BLUE, DARK, GREEN, ORANGE, new_figure, saved

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The dominating step differs by its size and its words too.
_CORE, _INPUT, _STEP, _MOST, _LINE = BLUE, GREEN, "#ffffff", ORANGE, DARK
_WORDED = 24  # tensors up to which steps are labelled
_WIDEST, _HIGHEST = 16.0, 11.0  # inches


@dataclasses.dataclass(frozen=True)
class ContractionTree:
    """What is drawn of a contraction.

    Attributes:
        title: above the picture.
        names: of the tensors; "x" is the input.
        path: pairs in single static assignment form.
        macs: multiply-adds of each pair.
        numbers: in each tensor and in what each pair makes.
        labels: legs of what each pair makes, in words.
    """

    title: str
    names: Sequence[str]
    path: Sequence[tuple[int, int]]
    macs: Sequence[int]
    numbers: Sequence[int]
    labels: Sequence[str]


def draw_tree(tree: ContractionTree, path: str | None = None) -> Figure:
    """What `Plan.draw` does."""
    names, macs, count = tree.names, tree.macs, len(tree.names)
    places = _places(tree)
    width, height = (max(place[axis] for place in places) for axis in (0, 1))
    few = count <= _WORDED
    figure = new_figure(path, min(_WIDEST, 2.2 + 1.05 * width), min(_HIGHEST, 1.8 + 0.72 * height))
    axes = figure.add_subplot()
    for step, pair in enumerate(tree.path):
        for child in pair:
            (x0, y0), (x1, y1) = places[child], places[count + step]
            heavy = math.log2(1 + tree.numbers[child])
            axes.plot([x0, x0, x1], [y0, y1, y1], color=_LINE, linewidth=0.4 + 0.16 * heavy, zorder=1, alpha=0.7)
    for number, (x, y) in enumerate(places):
        step = number - count
        if step < 0:
            colour = _INPUT if names[number] == "x" else _CORE
            axes.plot(x, y, marker="s", markersize=9, color=colour, zorder=2)
            rotation: dict[str, Any] = {"rotation": 90} if not few or max(map(len, names)) > 8 else {}
            axes.text(x, y - 0.22, names[number], ha="center", va="top", fontsize=8, parse_math=False, **rotation)
            continue
        most = macs[step] == max(macs)
        marks: dict[str, Any] = {"markersize": 13 if most else 8, "markeredgecolor": _MOST if most else _LINE}
        axes.plot(x, y, marker="o", color=_MOST if most else _STEP, zorder=2, **marks)
        if few or most:
            part = macs[step] / sum(macs)
            share = (f"{part:.0%}" if part >= 0.01 else "<1%") + (" of the multiply-adds" if most else "")
            words: dict[str, Any] = {"weight": "bold", "color": _MOST} if most else {"color": _LINE}
            axes.text(
                x + 0.14,
                y + 0.1,
                f"{share}\n{tree.labels[step]}",
                fontsize=7,
                va="bottom",
                parse_math=False,
                zorder=3,
                **words,
            )
    axes.set_title(tree.title, fontsize=9, parse_math=False)
    axes.set_xlim(-0.7, width + 1.6)
    axes.set_ylim(-0.9, height + 0.9)
    axes.set_axis_off()
    figure.set_layout_engine("constrained")
    return saved(figure, path)


def _places(tree: ContractionTree) -> list[tuple[float, float]]:
    """(x, y) of every tensor and step: the tensors in a row as the tree takes them, each step above its two."""
    count = len(tree.names)
    places: dict[int, tuple[float, float]] = {}
    waiting, column = [count + len(tree.path) - 1], 0
    while waiting:  # no recursion: a tree may be a thousand deep
        number = waiting.pop()
        if number < count:
            places[number] = float(column), 0.0
            column += 1
        else:
            waiting += reversed(tree.path[number - count])
    for step, (a, b) in enumerate(tree.path):
        (xa, ya), (xb, yb) = places[a], places[b]
        places[count + step] = (xa + xb) / 2, 1.0 + max(ya, yb)
    return [places[number] for number in range(count + len(tree.path))]
