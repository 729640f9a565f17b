"""One self-contained HTML page from the results of a comparison: `report.html`, filled in."""

from __future__ import annotations

import datetime
import importlib.resources
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._base.files import atomic_write
from .._drawing.figure import NEEDS
from .columns import short
from .contents import contents_of
from .figure import svgs_of
from .panels import plottable
from .rows import ROW_KEYS
from .variants import DENSE

if TYPE_CHECKING:
    from jinja2 import Template


def write_html(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes one HTML file that needs no other: figures, a table to sort, what each layer has, every seed, machine
    and settings.

    Without matplotlib the page comes without figures, and says how to get them.

    Args:
        path: the file.
        results: an object of schema 1; "versions" and "date" are shown where it has them.

    Raises:
        CheckpointError: results of another schema.
        WriteError: the file cannot be written.
    """
    atomic_write(path, _page(results).encode())


def _page(results: Mapping[str, Any]) -> str:
    from markupsafe import Markup

    contents = contents_of(results)
    drawn = plottable(contents.summaries)
    try:
        figures = [(caption, Markup(svg)) for caption, svg in svgs_of(contents)] if drawn else []
    except ImportError:
        figures = []
    config, rows = contents.config, contents.rows
    subject = config.get("data") or config.get("dataset")
    return _template().render(
        title=f"tn4nn compare: {subject}" if subject else "tn4nn compare",
        date=results.get("date"),
        now=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        key=figures[:1],
        figures=figures[1:],
        needs=NEEDS,
        metric=contents.metric.name,
        has_scores=bool(drawn),
        has_dense=any(one.role == DENSE for one in drawn),
        columns=contents.columns,
        summaries=contents.summaries,
        findings=contents.findings,
        notes=contents.notes,
        layers=list(dict.fromkeys(name for one in contents.summaries for name in one.layers)),
        chosen=[one for one in contents.summaries if one.layers],
        sections=[
            ("Machine", results.get("machine")),
            ("Versions", results.get("versions")),
            ("Settings", config),
        ],
        # What each layer has is in a table of its own.
        keys=[key for key in dict.fromkeys([*ROW_KEYS, *(key for row in rows for key in row)]) if key != "layers"],
        rows=rows,
    )


def _template() -> Template:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"text": _text, "short": short}
    source = importlib.resources.files("tn4nn._comparison").joinpath("report.html").read_text("utf-8")
    return environment.from_string(source)


def _text(value: Any) -> str:
    """A value as the page shows it: nothing for None, JSON for what holds other values."""
    if value is None:
        return ""
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)
