"""What all figures have in common."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import atomic_write
from .._report_html import _COLOURS as COLOURS
from .._report_html import _INK as INK
from .._report_html import _LINES as LINES
from .._report_html import _MARKERS as MARKERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#8c959f"

__all__ = ["COLOURS", "GREY", "INK", "LINES", "dots", "dress", "legend", "panels", "style", "write_png"]


def write_png(path: Path, draw: Callable[[Figure], None]) -> None:
    """Draws into a new figure and writes it, whole or not at all.

    Raises:
        ImportError: no matplotlib.
    """
    # Figure and not pyplot: pyplot keeps a global list and chooses a backend for the process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.8), layout="constrained", facecolor="white")
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    atomic_write(path, buffer.getvalue())


def panels(figure: Figure, count: int, **options: Any) -> list[Any]:
    """That many panels side by side."""
    found = figure.subplots(1, count, squeeze=False, **options)
    return list(found[0])


def dress(panel: Any, x: str, y: str, title: str = "") -> None:
    """Labels, a light grid, two spines."""
    panel.set_xlabel(x, color=INK, fontsize=11)
    panel.set_ylabel(y, color=INK, fontsize=11)
    if title:
        panel.set_title(title, color=INK, fontsize=11)
    panel.grid(visible=True, color=INK, alpha=0.13, linewidth=0.8)
    panel.tick_params(colors=INK, labelsize=10)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def legend(panel: Any, **options: Any) -> None:
    """A legend without a frame."""
    panel.legend(frameon=False, fontsize=9, **options)


def style(index: int) -> dict[str, Any]:
    """Colour and marker of the series of that number: told by shape as well as by colour."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 6}


def dots(panel: Any, labels: Sequence[str], means: Sequence[float], sds: Sequence[float | None]) -> None:
    """One value with its sd in each row, the first on top."""
    places = list(range(len(labels)))[::-1]
    errors = [sd or 0.0 for sd in sds]
    panel.errorbar(means, places, xerr=errors, fmt="o", color=COLOURS[0], capsize=3)
    panel.set_yticks(places, labels)
    panel.set_ylim(-0.6, len(labels) - 0.4)
