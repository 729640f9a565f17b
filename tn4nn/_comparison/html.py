"""One self-contained HTML page, and the figure in it, from the results of a comparison."""

from __future__ import annotations

import datetime
import html
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._base.errors import TN4NNError
from .._base.files import atomic_write
from .._drawing.figure import COLOURS, INK, LINES, MARKERS, NEEDS, ending
from .rows import ROW_KEYS
from .summary import COLUMNS, NOTES, Summary, checked_rows, short, summarise

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
    summaries = _plottable(summarise(checked_rows(results)))
    if not summaries:
        raise TN4NNError("expected at least one row with an accuracy to draw; received none.")
    try:
        data = _svg(summaries).encode() if kind == ".svg" else _png(summaries)
    except ImportError as error:
        raise TN4NNError(f"expected matplotlib for figures; received {error}. What would do: {NEEDS}") from error
    atomic_write(path, data)


def write_html(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes one HTML file that needs no other: figures, a table to sort, every seed, machine and settings.

    Without matplotlib the page comes without figures, and says how to get them.

    Args:
        path: the file.
        results: an object of schema 1; "versions" and "date" are shown where it has them.

    Raises:
        CheckpointError: results of another schema.
        WriteError: the file cannot be written.
    """
    atomic_write(path, _page(results).encode())


# -------------------------------------------------------------------------------------------- figure


def _plottable(summaries: Sequence[Summary]) -> list[Summary]:
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
            # A colour that comes again has its markers edged, so that it is told by more than their shape.
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


def _svg(summaries: Sequence[Summary]) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    _figure(summaries, _INK_IN_SVG, "none").savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    # Without the XML head, which has no place inside a page, and which names an address.
    return text[text.index("<svg") :].replace(_INK_IN_SVG, "currentColor")


# -------------------------------------------------------------------------------------------- page

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; }
}
body { background: var(--ground); color: var(--ink); margin: 2rem auto; max-width: 90rem; padding: 0 1rem;
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.note, ul.note { color: var(--soft); font-size: 0.9rem; }
.wide { overflow-x: auto; }
.wide > svg { width: 100%; min-width: 44rem; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; }
th, td { white-space: nowrap; }
.n { text-align: right; }
tr.off { color: var(--soft); }
td.reason { white-space: normal; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid currentColor; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
summary { cursor: pointer; }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.v;
    const number = head.classList.contains("n");
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      return (down ? -1 : 1) * (number ? x - y : x.localeCompare(y));
    });
    body.append(...rows);
  }));
}
"""


def _escape(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        value = json.dumps(value, default=str, ensure_ascii=False)
    return html.escape(str(value))


def _page(results: Mapping[str, Any]) -> str:
    rows = checked_rows(results)
    summaries = summarise(rows)
    config = results.get("config") or {}
    subject = config.get("data") or config.get("dataset")
    title = "tn4nn compare" + (f": {_escape(subject)}" if subject else "")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    dated = f"Measured {_escape(results['date'])}. " if results.get("date") else ""
    blocks = [
        f"<h1>{title}</h1>",
        f'<p class="note">{dated}Page written {now}.</p>',
        _figure_block(summaries),
        "<h2>Table</h2>",
        _summary_table(summaries),
        '<ul class="note">' + "".join(f"<li>{_escape(note)}</li>" for note in NOTES) + "</ul>",
        _reasons(summaries),
        *(
            f"<h2>{heading}</h2>{_pairs(results[key])}"
            for heading, key in (("Machine", "machine"), ("Versions", "versions"), ("Settings", "config"))
            if results.get(key)
        ),
        f"<details><summary>Every seed ({len(rows)} rows)</summary>{_row_table(rows)}</details>",
    ]
    # The policy makes "no external requests" something the browser holds the page to.
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(block for block in blocks if block)
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _figure_block(summaries: Sequence[Summary]) -> str:
    drawn = _plottable(summaries)
    if not drawn:
        return '<p class="note">No row has an accuracy, so there is no figure.</p>'
    try:
        picture = _svg(drawn)
    except ImportError:
        return f'<p class="note">Figures need matplotlib: <code>{_escape(NEEDS)}</code></p>'
    caption = "Mean over seeds; bars are one sample standard deviation."
    if any(one.topology == "dense" for one in drawn):
        caption += " The dotted line is the dense model."
    return f'<div class="wide">{picture}</div><p class="note">{caption}</p>'


def _summary_table(summaries: Sequence[Summary]) -> str:
    heads = "".join(
        f'<th scope="col"{_n(column.numeric)}><button type="button">{_escape(" ".join(column.title).strip())}'
        "</button></th>"
        for column in COLUMNS
    )
    body = []
    for one in summaries:
        cells = []
        for column in COLUMNS:
            value = column.value(one)
            key = "" if value is None else _escape(value)
            cells.append(f'<td{_n(column.numeric)} data-v="{key}">{_escape(column.cell(one))}</td>')
        off = "" if one.status == "ok" else ' class="off"'
        body.append(f"<tr{off}>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _n(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _reasons(summaries: Sequence[Summary]) -> str:
    items = [
        f"<li>{_escape(one.topology)}, {_escape(one.backend)}, asked {_escape(short(one.budget))}: "
        f"{_escape(one.reason)}</li>"
        for one in summaries
        if one.reason
    ]
    return f'<h2>Not measured, and why</h2><ul class="note">{"".join(items)}</ul>' if items else ""


def _pairs(mapping: Mapping[str, Any]) -> str:
    lines = (
        f'<tr><th scope="row">{_escape(key)}</th><td class="reason">{_escape(value)}</td></tr>'
        for key, value in mapping.items()
    )
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _row_table(rows: Sequence[Mapping[str, Any]]) -> str:
    keys = list(dict.fromkeys([*ROW_KEYS, *(key for row in rows for key in row)]))
    heads = "".join(f'<th scope="col">{_escape(key)}</th>' for key in keys)
    body = "".join(
        "<tr>" + "".join(f"<td>{_escape('' if row.get(key) is None else row[key])}</td>" for key in keys) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
