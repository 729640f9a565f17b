"""What all figures have in common: colours that every kind of colour vision tells apart, and how a file is written."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .._base.errors import TN4NNError
from .._base.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDS = 'pip install "tn4nn[viz]"'

# Okabe and Ito's colours, without the yellow that cannot be seen on white.
COLOURS = BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, DARK, GREY = "#1f2328", "#4d4d4d", "#8c959f"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", ">")
LINES = ("-", "--", ":", "-.")


def new_figure(path: str | os.PathLike[str] | None, width: float = 6.0, height: float = 4.0) -> Figure:
    """An empty figure of so many inches, that will be written to `path`.

    Raises:
        TN4NNError: a path that ends neither in .png nor in .svg, or matplotlib is not installed.
    """
    if path is not None and ending(path) not in (".png", ".svg"):
        raise TN4NNError(f"expected a .png or .svg file for a picture, received {os.fspath(path)!r}")
    try:
        # No pyplot: it keeps a global list of figures and chooses a backend for the process.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        message = f"expected matplotlib for pictures; received {error}. What would do: {NEEDS}"
        raise TN4NNError(message) from error
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.set_layout_engine("none")  # whatever a person's settings say
    FigureCanvasAgg(figure)
    # A notebook shows figures that pyplot made, and others only after pyplot was used; ours it shows by this.
    setattr(figure, "_repr_svg_", functools.partial(svg_of, figure))  # noqa: B010  (mypy knows no such attribute)
    return figure


def saved(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """The figure, written to a file where one is named, whole or not at all."""
    if path is not None:
        buffer, kind = io.BytesIO(), ending(path)
        metadata = {"Date": None} if kind == ".svg" else {"Software": None}  # equal pictures, equal bytes
        with _fixed_names():
            figure.savefig(buffer, format=kind[1:], dpi=160, metadata=metadata)
        atomic_write(path, buffer.getvalue())
    return figure


def svg_of(figure: Figure, title: str | None = None) -> str:
    """The figure as one <svg> element, for a page; `title` says in words what it shows."""
    buffer = io.StringIO()
    with _fixed_names():
        left_out = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=left_out if title is None else {**left_out, "Title": title})
    text = buffer.getvalue()
    # Without the XML declaration, which is not allowed inside a page, and which names an address.
    return text[text.index("<svg") :]


def _fixed_names() -> AbstractContextManager[None]:
    """The names in an SVG follow from what is drawn: else they are random."""
    from matplotlib import rc_context

    return rc_context({"svg.hashsalt": "tn4nn"})


def ending(path: str | os.PathLike[str]) -> str:
    """Of a file's name, with its dot, in small letters."""
    return os.path.splitext(path)[1].lower()


def scale_colour(share: float) -> str:
    """A colour from light (0) to dark (1) that every kind of colour vision can tell apart, and that works in grey."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return str(to_hex(colormaps["cividis_r"](0.08 + 0.92 * min(1.0, max(0.0, share)))))


# -- panels -----------------------------------------------------------------------------------------------------


def panels(figure: Figure, count: int, **options: Any) -> list[Any]:
    """That many panels side by side."""
    found = figure.subplots(1, count, squeeze=False, **options)
    return list(found[0])


def dress(panel: Any, x: str, y: str, title: str = "", *, size: float = 11) -> None:
    """Labels, a light grid, two spines."""
    panel.set_xlabel(x, color=INK, fontsize=size)
    panel.set_ylabel(y, color=INK, fontsize=size)
    if title:
        panel.set_title(title, color=INK, fontsize=size, parse_math=False)
    panel.grid(visible=True, color=INK, alpha=0.13, linewidth=0.8)
    panel.tick_params(colors=INK, labelsize=size - 1)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def legend(panel: Any, **options: Any) -> None:
    """A legend without a frame."""
    panel.legend(**{"frameon": False, "fontsize": 9, **options})


def style(index: int) -> dict[str, Any]:
    """Colour and marker of the series of that number: the shape tells series apart as well as the colour."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 6}


def dots(panel: Any, labels: Sequence[str], means: Sequence[float], sds: Sequence[float | None]) -> None:
    """One value with its sd in each row, the first on top."""
    places = list(range(len(labels)))[::-1]
    errors = [sd or 0.0 for sd in sds]
    panel.errorbar(means, places, xerr=errors, fmt="o", color=COLOURS[0], capsize=3)
    panel.set_yticks(places, labels)
    panel.set_ylim(-0.6, len(labels) - 0.4)
