"""The figure of a comparison: what decides against each cost, and what compute buys."""

from __future__ import annotations

import io
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from .._base.errors import TN4NNError
from .._base.files import atomic_write
from .._drawing.figure import COLOURS, INK, LINES, MARKERS, NEEDS, ending
from .._drawing.figure import svg_of as _figure_svg
from .columns import short
from .contents import Contents, contents_of
from .labels import Label, Place, place
from .panels import Panel, Series, panels_of, plottable
from .summary import Summary
from .variants import DENSE, NARROW

_INK_IN_SVG = "#010203"  # a colour that nothing else has, replaced by currentColor
_COLUMNS = 3  # panels side by side
_WIDTH, _HEIGHT = 4.1, 3.5  # inches of a panel


def write_figure(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes what decides against parameters, MACs and step time as a picture, for instance for a README.

    On a ladder of widths the scaling curves are drawn too.

    Args:
        path: ends in .png (white ground, 150 dpi) or .svg (no ground, the text in the page's colour).
        results: an object of schema 1.

    Raises:
        CheckpointError: results of another schema.
        TN4NNError: another ending, no row with a score, or no matplotlib.
        WriteError: the file cannot be written.
    """
    kind = ending(path)
    if kind not in (".png", ".svg"):
        raise TN4NNError(f"expected a figure's path to end in .png or .svg; received {os.fspath(path)!r}.")
    contents = contents_of(results)
    drawn = plottable(contents.summaries)
    if not drawn:
        raise TN4NNError(f"expected at least one row with {_a(contents.metric.name)} to draw; received none.")
    panels = panels_of(contents)
    try:
        if kind == ".svg":
            data = _svg(_figure(panels, drawn, _INK_IN_SVG, "none"), _alternative(panels)).encode()
        else:
            data = _png(_figure(panels, drawn, INK, "white"))
    except ImportError as error:
        raise TN4NNError(f"expected matplotlib for figures; received {error}. What would do: {NEEDS}") from error
    atomic_write(path, data)


def svgs_of(contents: Contents) -> list[tuple[str, str]]:
    """For a page: (caption, <svg> element) of the key of colours and of each panel, their text in the page's colour.

    Raises:
        ImportError: no matplotlib.
    """
    drawn, found = plottable(contents.summaries), []
    names = ", ".join(dict.fromkeys(one.topology for one in drawn))
    pictures = [("", f"Key: {names}.", _key(drawn, _INK_IN_SVG))]
    for panel in panels_of(contents):
        figure = _figure([panel], drawn, _INK_IN_SVG, "none", key=False)
        pictures.append((panel.title, panel.description, figure))
    for number, (caption, description, figure) in enumerate(pictures):
        # Each picture counts its parts from one: on a page their ids must differ.
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{number}-", _svg(figure, description))
        found.append((caption, svg))
    return found


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _alternative(panels: Sequence[Panel]) -> str:
    return " ".join(panel.description for panel in panels)


# ---------------------------------------------------------------------------------------------- styles


def _styles(summaries: Sequence[Summary], ink: str) -> dict[str, dict[str, Any]]:
    """Colour and marker of each topology, the same in every panel. Dense models have the colour of the text."""
    roles = {one.topology: one.role for one in summaries}
    fixed: dict[str, dict[str, Any]] = {
        DENSE: {"color": ink, "marker": "*", "markersize": 11, "markeredgecolor": ink},
        NARROW: {"color": ink, "marker": "d", "markersize": 7, "markeredgecolor": ink},
    }
    styles: dict[str, dict[str, Any]] = {}
    index = 0
    for name, role in roles.items():
        if role in fixed:
            styles[name] = fixed[role]
            continue
        styles[name] = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 7,
            # A colour that is used again has edged markers, so that more than their shape tells them apart.
            "markeredgecolor": COLOURS[index] if index < len(COLOURS) else ink,
        }
        index += 1
    return styles


def _line(topology: str, turn: int, roles: Mapping[str, str]) -> Any:
    """The line of a series: of the first backend whole, of the thinner dense model broken."""
    return "--" if roles.get(topology) == NARROW and turn == 0 else LINES[turn % len(LINES)]


def _label(name: str) -> str:
    # A dollar sign would start mathematics, and matplotlib hides labels that start with an underscore.
    safe = name.replace("$", r"\$")
    return f" {safe}" if safe.startswith("_") else safe


def _handles(summaries: Sequence[Summary], ink: str) -> list[Any]:
    from matplotlib.lines import Line2D

    styles = _styles(summaries, ink)
    roles = {one.topology: one.role for one in summaries}
    handles = [
        Line2D([], [], linestyle=_line(name, 0, roles), label=_label(name), **style) for name, style in styles.items()
    ]
    backends = list(dict.fromkeys(one.backend for one in summaries))
    if len(backends) > 1:
        handles += [
            Line2D(
                [],
                [],
                color=ink,
                marker="o",
                markersize=6,
                linestyle=LINES[turn % len(LINES)],
                markerfacecolor=ink if turn == 0 else "none",
                label=_label(backend),
            )
            for turn, backend in enumerate(backends)
        ]
    return [*handles, Line2D([], [], color=ink, linewidth=5, alpha=0.2, label="Pareto front")]


# ---------------------------------------------------------------------------------------------- drawing


def _key(summaries: Sequence[Summary], ink: str) -> Any:
    """Which colour and marker is which topology, as a picture of its own."""
    from matplotlib.figure import Figure

    handles = _handles(summaries, ink)
    rows = -(-len(handles) // 4)
    figure = Figure(figsize=(6.4, 0.1 + 0.24 * rows), facecolor="none")
    figure.legend(handles=handles, loc="center", ncols=4, frameon=False, fontsize=10, labelcolor=ink)
    return figure


def _figure(panels: Sequence[Panel], summaries: Sequence[Summary], ink: str, ground: str, key: bool = True) -> Any:
    # Figure and not pyplot: pyplot keeps a global list and chooses a backend for the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    handles = _handles(summaries, ink) if key else []
    legend_rows = -(-len(handles) // 8)
    size = (_WIDTH * columns, _HEIGHT * rows + 0.24 * legend_rows)
    figure = Figure(figsize=size, layout="constrained", facecolor=ground)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    styles, backends = _styles(summaries, ink), list(dict.fromkeys(one.backend for one in summaries))
    roles = {one.topology: one.role for one in summaries}
    for number, (panel, plot) in enumerate(zip(panels, axes, strict=False)):
        _draw(plot, panel, styles, backends, roles, ink, number)
    for plot in axes[len(panels) :]:
        plot.set_axis_off()
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=-(-len(handles) // legend_rows),
            frameon=False,
            fontsize=10,
            labelcolor=ink,
        )
    # Where the labels have room is known when everything else has its place.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for panel, plot in zip(panels, axes, strict=False):
        _write_names(plot, panel, backends, ink)
    return figure


def _draw(
    plot: Any,
    panel: Panel,
    styles: Mapping[str, Mapping[str, Any]],
    backends: Sequence[str],
    roles: Mapping[str, str],
    ink: str,
    number: int,
) -> None:
    points = [point for one in panel.series for point in one.points]
    _dress(plot, panel, ink)
    if panel.level is not None:
        plot.axhline(panel.level, color=ink, linewidth=1, linestyle=(0, (1, 2)), alpha=0.8, zorder=1)
    if len(panel.front) > 1:
        (front,) = plot.plot(
            [x for _, x, _ in panel.front], [y for _, _, y in panel.front], color=ink, linewidth=5, alpha=0.2, zorder=2
        )
        front.set_gid(f"panel{number}-front")
    names = list(styles)
    for line, one in enumerate(panel.series):
        if not one.points:
            continue
        turn, style = backends.index(one.backend), styles[one.topology]
        kind = _line(one.topology, turn, roles)
        drawn = plot.errorbar(
            [point.x for point in one.points],
            [point.y for point in one.points],
            yerr=[point.sd for point in one.points],
            **style,
            linestyle="none" if one.curve else kind,
            linewidth=1.4,
            elinewidth=1.2,
            capsize=2.5,
            markerfacecolor=style["color"] if turn == 0 else "none",
            markeredgewidth=1.3,
            zorder=3,
        )
        drawn.lines[0].set_gid(f"panel{number}-line{line}-topology{names.index(one.topology)}")
        if one.curve:
            plot.plot(*zip(*one.curve, strict=True), color=style["color"], linestyle=kind, linewidth=1.4, zorder=2)
    if panel.log_y and points:
        plot.set_yscale("log")
    _mark_axes(plot, panel)


def _dress(plot: Any, panel: Panel, ink: str) -> None:
    plot.set_xlabel(panel.x, color=ink, fontsize=11)
    plot.set_ylabel(panel.y, color=ink, fontsize=11, parse_math=False)
    plot.set_facecolor("none")
    plot.grid(visible=True, color=ink, alpha=0.13, linewidth=0.8)
    plot.tick_params(colors=ink, labelsize=10)
    for side, spine in plot.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)
    if not any(one.points for one in panel.series):
        plot.text(0.5, 0.5, "not measured", transform=plot.transAxes, ha="center", color=ink, fontsize=10)
        plot.set_xticks([])
        plot.set_yticks([])


def _mark_axes(plot: Any, panel: Panel) -> None:
    """Limits and ticks."""
    points = [point for one in panel.series for point in one.points]
    if not points:
        return
    xs, ys = [point.x for point in points], [point.y for point in points]
    if min(xs) > 0:
        plot.set_xscale("log")
        _log_ticks(plot.xaxis, min(xs), max(xs))
        # Room for names at both sides.
        wide = max(max(xs) / min(xs), 1.5) ** 0.16
        plot.set_xlim(min(xs) / wide, max(xs) * wide)
    else:
        plot.margins(x=0.16)
    if panel.log_y:
        _log_ticks(plot.yaxis, min(ys), max(ys))
    low, high = plot.get_ylim()
    if panel.log_y:
        room = (high / low) ** 0.08
        plot.set_ylim(low / room, high * room)
    else:
        room = 0.08 * (high - low)
        plot.set_ylim(low - room, high + room)


def _log_ticks(axis: Any, low: float, high: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if high / low > 3:
        subs = (1.0,) if high / low > 100 else (1.0, 3.0) if high / low > 10 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs, numticks=6))
    else:  # a decade has too few ticks
        axis.set_major_locator(MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(float(value))))


def _tick(value: float) -> str:
    return f"{value / 1000:.3g}k" if 1000 <= value < 10_000 else short(value)


def _write_names(plot: Any, panel: Panel, backends: Sequence[str], ink: str) -> None:
    """The name of each topology beside one of its points, where there is room for it."""
    named: dict[str, Series] = {}
    for one in panel.series:
        if one.points and one.backend == backends[0]:
            named.setdefault(one.topology, one)
    if not named:
        return
    bounds = plot.get_window_extent()
    inside = (bounds.x0, bounds.y0, bounds.x1, bounds.y1)

    def at(x: float, y: float) -> Place:
        across, up = plot.transData.transform((x, y))
        return float(across), float(up)

    places = {
        name: [at(point.x, point.y) for point in (one.points[-1], *one.points[:-1])] for name, one in named.items()
    }
    taken = [at(point.x, point.y) for one in panel.series for point in one.points]
    lines = _along([at(x, y) for _, x, y in panel.front])
    for one in panel.series:
        path = one.curve or tuple((point.x, point.y) for point in one.points)
        lines += _along([at(x, y) for x, y in path])
        for point in one.points:
            low = max(point.y - point.sd, plot.get_ylim()[0])
            lines += _along([at(point.x, low), at(point.x, point.y + point.sd)])
    if panel.level is not None:
        lines += _along([at(x, panel.level) for x in plot.get_xlim()])
    dots = plot.figure.dpi / 72
    for label in place(places, taken, lines, inside, dots):
        _write(plot, label, dots, ink)


def _along(path: Sequence[Place]) -> list[Place]:
    """Places along a line, a few pixels apart."""
    found: list[Place] = []
    for start, end in itertools.pairwise(path):
        count = max(2, int(math.dist(start, end) / 5))
        shares = [i / (count - 1) for i in range(count)]
        found += [(start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1])) for s in shares]
    return found


def _write(plot: Any, label: Label, dots: float, ink: str) -> None:
    plot.annotate(
        label.text,
        plot.transData.inverted().transform(label.point),
        xytext=(label.dx / dots, label.dy / dots),
        textcoords="offset points",
        color=ink,
        fontsize=label.size,
        ha="left",
        va="bottom",
        zorder=5,
        parse_math=False,
        arrowprops={"arrowstyle": "-", "color": ink, "alpha": 0.5, "linewidth": 0.7} if label.far else None,
    )


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _svg(figure: Any, description: str) -> str:
    """The picture as an <svg> element with its description in words, its text in the colour of the page."""
    svg = _figure_svg(figure).replace(_INK_IN_SVG, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label={quoteattr(description)} ', 1)
