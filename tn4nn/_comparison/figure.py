"""The figure of a comparison: accuracy against parameters, multiply-adds and step time."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._base.errors import TN4NNError
from .._base.files import atomic_write
from .._drawing.figure import COLOURS, INK, LINES, MARKERS, NEEDS, ending
from .summary import Summary, checked_rows, short, summarise

_INK_IN_SVG = "#010203"  # a colour that nothing else has, replaced by currentColor

_PANELS: tuple[tuple[str, Callable[[Summary], float | None]], ...] = (
    ("parameters of the replaced layers", lambda one: one.params),
    ("multiply-adds a sample", lambda one: one.macs_per_sample),
    ("training step (ms)", lambda one: one.step_ms),
)


def write_figure(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes accuracy against parameters, MACs and step time as a picture, for instance for a README.

    Args:
        path: ends in .png (white ground, 150 dpi) or .svg (no ground, the text in the page's colour).
        results: an object of schema 1.

    Raises:
        CheckpointError: results of another schema.
        TN4NNError: another ending, no row with an accuracy, or no matplotlib.
        WriteError: the file cannot be written.
    """
    kind = ending(path)
    if kind not in (".png", ".svg"):
        raise TN4NNError(f"expected a figure's path to end in .png or .svg; received {os.fspath(path)!r}.")
    summaries = plottable(summarise(checked_rows(results)))
    if not summaries:
        raise TN4NNError("expected at least one row with an accuracy to draw; received none.")
    try:
        data = svg_of(summaries).encode() if kind == ".svg" else _png(summaries)
    except ImportError as error:
        raise TN4NNError(f"expected matplotlib for figures; received {error}. What would do: {NEEDS}") from error
    atomic_write(path, data)


def plottable(summaries: Sequence[Summary]) -> list[Summary]:
    """Those with an accuracy."""
    return [one for one in summaries if one.accuracy is not None]


def _styles(summaries: Sequence[Summary], ink: str) -> dict[str, dict[str, Any]]:
    """Colour and marker of each topology."""
    names = [name for name in dict.fromkeys(one.topology for one in summaries) if name != "dense"]
    styles: dict[str, dict[str, Any]] = {
        "dense": {"color": ink, "marker": "*", "markersize": 11, "markeredgecolor": ink}
    }
    for index, name in enumerate(names):
        styles[name] = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 7,
            # A colour that is used again has edged markers, so that more than their shape tells them apart.
            "markeredgecolor": COLOURS[index] if index < len(COLOURS) else ink,
        }
    return styles


def _label(name: str) -> str:
    # A dollar sign would start mathematics, and matplotlib hides labels that start with an underscore.
    safe = name.replace("$", r"\$")
    return f" {safe}" if safe.startswith("_") else safe


def _figure(summaries: Sequence[Summary], ink: str, ground: str) -> Any:
    # Figure and not pyplot: pyplot keeps a global list and chooses a backend for the process.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    styles = _styles(summaries, ink)
    backends = list(dict.fromkeys(one.backend for one in summaries))
    groups: dict[tuple[str, str], list[Summary]] = {}
    for one in summaries:
        groups.setdefault((one.topology, one.backend), []).append(one)
    names = list(dict.fromkeys(one.topology for one in summaries))
    entries = len(names) + (len(backends) if len(backends) > 1 else 0)
    legend_rows = -(-entries // 8)
    height = 3.6 + 0.22 * legend_rows
    figure = Figure(figsize=(10.5, height), layout="constrained", facecolor=ground)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for panel, (title, value) in zip(panels, _PANELS, strict=True):
        xs = [x for one in summaries if (x := value(one)) is not None]
        _dress(panel, title, xs, ink)
        dense = [one.accuracy for one in summaries if one.topology == "dense" and one.accuracy is not None]
        if dense:
            mean = sum(dense) / len(dense)
            panel.axhline(mean, color=ink, linewidth=1, linestyle=(0, (1, 2)), alpha=0.8, zorder=1)
        for (topology, backend), group in groups.items():
            points = sorted(
                (x, one.accuracy, one.accuracy_sd or 0.0)
                for one in group
                if (x := value(one)) is not None and one.accuracy is not None
            )
            if not points:
                continue
            style, turn = styles[topology], backends.index(backend)
            panel.errorbar(
                [point[0] for point in points],
                [point[1] for point in points],
                yerr=[point[2] for point in points],
                **style,
                linestyle=LINES[turn % len(LINES)],
                linewidth=1.4,
                elinewidth=1.2,
                capsize=2.5,
                markerfacecolor=style["color"] if turn == 0 else "none",
                markeredgewidth=1.3,
                zorder=3,
            )
    panels[0].set_ylabel("test accuracy (%)", color=ink, fontsize=11)
    handles = [Line2D([], [], linestyle="-", label=_label(name), **styles[name]) for name in names]
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
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=-(-entries // legend_rows),
        frameon=False,
        fontsize=10,
        labelcolor=ink,
    )
    return figure


def _dress(panel: Any, title: str, xs: Sequence[float], ink: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    panel.set_xlabel(title, color=ink, fontsize=11)
    panel.set_facecolor("none")
    panel.grid(visible=True, color=ink, alpha=0.13, linewidth=0.8)
    panel.tick_params(colors=ink, labelsize=10)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)
    if not xs:
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color=ink, fontsize=10)
        panel.set_xticks([])
        return
    low, high = min(xs), max(xs)
    if low > 0 and high / low > 3:
        panel.set_xscale("log")
        subs = (1.0,) if high / low > 100 else (1.0, 3.0) if high / low > 10 else (1.0, 2.0, 5.0)
        panel.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlim(low / (high / low) ** 0.07, high * (high / low) ** 0.07)
    else:
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.margins(x=0.12)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(float(x))))


def _tick(x: float) -> str:
    return f"{x / 1000:.3g}k" if 1000 <= x < 10_000 else short(x)


def _png(summaries: Sequence[Summary]) -> bytes:
    buffer = io.BytesIO()
    _figure(summaries, INK, "white").savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def svg_of(summaries: Sequence[Summary]) -> str:
    """The picture as an <svg> element, its text in the colour of the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    _figure(summaries, _INK_IN_SVG, "none").savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    # Without the XML declaration, which is not allowed inside a page, and which names an address.
    return text[text.index("<svg") :].replace(_INK_IN_SVG, "currentColor")
