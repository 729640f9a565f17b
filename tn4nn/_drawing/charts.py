"""Figures of entanglement (entropies along the cuts, spectra over epochs) and of costs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from .._base.errors import TN4NNError
from .._base.fits import exponent
from .figure import BLUE, DARK, GREEN, ORANGE, PINK, YELLOW, dress, legend, new_figure, saved, scale_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Cut(Protocol):
    """One cut of a weight: `tn4nn.Cut`."""

    @property
    def name(self) -> str: ...
    @property
    def bound(self) -> float: ...
    @property
    def entropy(self) -> float: ...
    @property
    def probabilities(self) -> NDArray[Any]: ...


_NULLS = (ORANGE, GREEN, PINK, YELLOW)  # lines differ by their marks too
_MARKS = "s^Dv"
_OUR_LINE: dict[str, Any] = {"color": BLUE, "marker": "o", "markersize": 5, "linewidth": 2.0}
_DENSE_LINE: dict[str, Any] = {"color": ORANGE, "marker": "s", "markersize": 4, "linestyle": "--", "linewidth": 1.4}
_MOST = 12  # panels; more cuts are left out
_FLOOR = 1e-12  # of probabilities, in the figure
_SLANTED = 6  # longer names of cuts are written at a slant


def draw_entropies(found: Sequence[Cut], nulls: Mapping[str, Sequence[Cut]], path: str | None) -> Figure:
    """What `Entanglement.draw` does."""
    names = [cut.name for cut in found]
    for name, null in nulls.items():
        if [cut.name for cut in null] != names:
            raise TN4NNError(
                f"nulls: {name!r} has other cuts than what is drawn: give entanglement_nulls the same cuts= and modes"
            )
    figure = new_figure(path, max(4.5, 1.6 + 0.7 * len(names)), 3.6)
    axes = figure.add_subplot()
    places = range(len(names))
    axes.plot(places, [cut.bound for cut in found], color=DARK, linestyle="--", marker="_", label="bound")
    for (name, null), colour, mark in zip(
        nulls.items(), itertools.cycle(_NULLS), itertools.cycle(_MARKS), strict=False
    ):
        axes.plot(
            places, [cut.entropy for cut in null], color=colour, marker=mark, markersize=5, linewidth=1.2, label=name
        )
    axes.plot(places, [cut.entropy for cut in found], color=BLUE, marker="o", linewidth=2.2, label="S")
    slanted = max(map(len, names)) > _SLANTED
    rotation: dict[str, Any] = {"rotation": 30, "ha": "right"} if slanted else {}
    axes.set_xticks(list(places), [name.removesuffix(" |") for name in names], parse_math=False, **rotation)
    axes.set_ylim(bottom=0)
    dress(axes, "cut: the legs of one side", "entropy S in nats", size=10)
    legend(axes)
    figure.set_layout_engine("constrained")
    return saved(figure, path)


def draw_spectra(epochs: Sequence[Sequence[Cut]], path: str | None) -> Figure:
    """What `EntanglementLog.draw` does."""
    count = min(_MOST, len(epochs[-1]))
    columns = min(4, count)
    rows = -(-count // columns)
    figure = new_figure(path, 3.1 * columns + 0.6, 2.8 * rows + 0.4)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for i, panel in enumerate(panels[:count]):
        for number, found in enumerate(epochs):
            p = found[i].probabilities
            shown = p[p > _FLOOR]
            colour = scale_colour(number / max(1, len(epochs) - 1))
            label = f"epoch {number + 1}" if number in (0, len(epochs) - 1) else None
            panel.semilogy(range(1, len(shown) + 1), shown, color=colour, marker=".", linewidth=1.4, label=label)
        dress(panel, "number of the value", "p = s² / Σ s²" if i % columns == 0 else "", size=10)
        first, last = (found[i].entropy for found in (epochs[0], epochs[-1]))
        title = f"{epochs[-1][i].name.removesuffix(' |')}: S {first:.2f} → {last:.2f}"
        panel.set_title(title, fontsize=9, parse_math=False)
    for panel in panels[count:]:
        panel.set_axis_off()
    legend(panels[0], fontsize=8)
    figure.set_layout_engine("constrained")
    return saved(figure, path)


def draw_growth(
    title: str,
    curves: Mapping[str, tuple[Sequence[int], Mapping[str, Sequence[float]]]],
    fixed: Mapping[str, str],
    path: str | None,
) -> Figure:
    """What `Growth.draw` does.

    Args:
        title: above the picture.
        curves: axis -> (its values, quantity -> one number for each of them).
        fixed: axis -> what does not vary along it, in words.
        path: a .png or .svg file to write.
    """
    columns = max(1, len(curves))
    figure = new_figure(path, 3.6 * columns + 0.4, 5.8)
    panels = figure.subplots(2, columns, squeeze=False, sharex="col", sharey="row")
    rows = (("predicted ms", 1e3, "predicted_s", "dense_s"), ("multiply-adds", 1.0, "macs", "dense_macs"))
    for column, (axis, (at, quantities)) in enumerate(curves.items()):
        for row, (label, unit, ours, theirs) in enumerate(rows):
            axes = panels[row][column]
            for name, of, style in (("dense", theirs, _DENSE_LINE), ("ours", ours, _OUR_LINE)):
                values = [unit * number for number in quantities[of]]
                grown = f"{name} ~ {axis}^{exponent(at, values):.2f}" if len(set(values)) > 1 else name
                axes.loglog(at, values, label=grown, **style)
            dress(axes, axis if row == 1 else "", label if column == 0 else "", size=10)
            axes.set_xticks(at, [f"{number:g}" for number in at])
            axes.minorticks_off()
            legend(axes, fontsize=8, handlelength=2.4)
        panels[0][column].set_title(f"against {axis}{fixed[axis]}", fontsize=9)
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.set_layout_engine("constrained")
    return saved(figure, path)
