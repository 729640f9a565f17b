"""What a comparison found, as a table on the terminal, CSV, JSON or one HTML page."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._base.files import atomic_write
from .._base.records import write_json
from .columns import Column
from .contents import contents_of
from .figure import write_figure
from .html import write_html
from .rows import ROW_KEYS
from .summary import Summary, checked_rows, machine_line, summarise

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Summary", "print_table", "summarise", "write_csv", "write_figure", "write_html", "write_json"]

_FORMULAS = ("=", "+", "-", "@", "\t")  # what a formula begins with, in one spreadsheet or another
_LONGEST = 32  # letters of a topology on a line: an equation may be its name


def print_table(results: Mapping[str, Any], console: Console) -> None:
    """Prints results grouped over seeds, with what the seeds tell, the meaning of the columns and the machine below.

    On a terminal under about 110 columns the least important columns are left out, and it says so. What is always there
    is the topology, the metric that decides, the step time against the dense model, and what went wrong.

    Args:
        results: an object of schema 1, as `compare` returns and `--json` writes it.
        console: where to print.

    Raises:
        CheckpointError: results of another schema.

    Examples:
        >>> from rich.console import Console
        >>> print_table({"schema": 1, "machine": {"cpu": "x"}, "rows": []}, Console(width=120))
        no rows
        machine: cpu x
    """
    from rich.measure import Measurement
    from rich.text import Text

    contents = contents_of(results)
    summaries = contents.summaries
    machine = Text(machine_line(results), style="dim")
    if not summaries:
        console.print("no rows")
        console.print(machine)
        return
    footnotes = _footnotes(summaries)
    columns = contents.columns
    table = _table(summaries, columns, footnotes)
    unbounded = console.options.update(max_width=10_000)
    for drop in sorted({column.drop for column in columns} - {0}):
        if Measurement.get(console, unbounded, table).maximum <= console.width:
            break
        columns = [column for column in columns if column.drop != drop]
        table = _table(summaries, columns, footnotes)
    console.print(table)
    # Text and not markup: a reason may hold square brackets, such as a shape.
    for line in contents.findings:
        console.print(Text(line))
    for reason, mark in footnotes.items():
        console.print(Text(f"[{mark}] {reason}", style="dim"))
    for note in contents.notes:
        console.print(Text(note, style="dim"))
    left_out = len(contents.columns) - len(columns)
    if left_out:
        console.print(Text(f"{left_out} columns do not fit in this width: see the CSV or HTML.", style="dim"))
    console.print(machine)


def _footnotes(summaries: Sequence[Summary]) -> dict[str, int]:
    """The number of the footnote below the table for each different reason."""
    reasons = dict.fromkeys(one.reason for one in summaries if one.reason)
    return {reason: mark for mark, reason in enumerate(reasons, start=1)}


def _table(summaries: Sequence[Summary], columns: Sequence[Column], footnotes: Mapping[str, int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for column in columns:
        title = Text("\n".join(part for part in column.title if part))
        name = column.title[0] == "topology"  # which alone may go on in a second line
        table.add_column(
            title,
            justify="right" if column.numeric else "left",
            no_wrap=not name,
            overflow="fold",
            max_width=_LONGEST if name else None,
        )
    for one in summaries:
        cells = [Text(column.cell(one)) for column in columns]
        if one.reason:
            cells[-1].append(f" [{footnotes[one.reason]}]")
        table.add_row(*cells, style=None if one.status == "ok" else "dim")
    return table


def write_csv(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes one line a row (a seed), in UTF-8: the columns of schema 1, then any others; None is empty.

    Text that a spreadsheet would take for a formula (a topology may be called "=1+1") has an apostrophe before it.

    Raises:
        CheckpointError: results of another schema.
        WriteError: the file cannot be written.
    """
    rows = checked_rows(results)
    extra = dict.fromkeys(key for row in rows for key in row if key not in ROW_KEYS)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*ROW_KEYS, *extra], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    atomic_write(path, text.getvalue().encode())


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # which the csv module leaves as it is, and readers take for the end of a line
    return f"'{text}" if text.startswith(_FORMULAS) else text
