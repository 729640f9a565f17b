"""The form of a page of results: the finding, one figure, how it was measured, what holds, then the tables, folded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tn4nn._base.tables import folded, markdown_table

RESULTS = "../../../benchmarks/results"  # from where the pages are
LONG = 12  # rows of a table that is shown at once


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a page; a long one is folded behind its title."""

    title: str
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]

    def __str__(self) -> str:
        table = markdown_table(self.columns, self.cells)
        if len(self.cells) <= LONG:
            return f"## {self.title}\n\n{table}"
        return folded(f"{self.title}: {len(self.cells)} rows", table)


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of results.

    Attributes:
        title: of the page.
        finding: what came out, in a sentence or two, with the rows that are lost.
        figure: (file beside the page, text in its place); None where there is none.
        made: by which command, from which file, on what.
        method: how it was measured.
        points: single results, lines of a list.
        tables: the rest.
    """

    title: str
    finding: str
    figure: tuple[str, str] | None
    made: str
    method: str
    points: Sequence[str]
    tables: Sequence[Table]

    def __str__(self) -> str:
        parts = [f"# {self.title}", self.finding]
        if self.figure is not None:
            parts.append(f"![{self.figure[1]}]({self.figure[0]})")
        parts += ["## How it was measured", self.method, self.made]
        if self.points:
            parts += ["## Results", "\n".join(f"* {point}" for point in self.points)]
        return "\n\n".join([*parts, *map(str, self.tables)]) + "\n"


def made(script: str, file: str, data: Mapping[str, Any], *, packages: Sequence[str] | None = None) -> str:
    """By which command and on what a file of results was made."""
    versions = {name: v for name, v in data["versions"].items() if v is not None}
    named = ", ".join(f"{name} {versions[name]}" for name in packages or versions)
    machine, threads = data["machine"], data.get("threads", 1)
    count = (
        f"{threads} thread{'s' if threads != 1 else ''}" if isinstance(threads, int) else f"{machine['cores']} cores"
    )
    return (
        f"Made by `python {script}`; the numbers are in [{file}]({RESULTS}/{file}). {machine['cpu']}, {count}, python "
        f"{machine['python']}; {named}."
    )


def draw_sorted(path: Path, curves: Mapping[str, Sequence[float]], ylabel: str, xlabel: str = "cells, sorted") -> None:
    """Ratios from the smallest to the largest, a curve for each name, with a line at 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(1, color="0.5", lw=0.8)
    for index, (name, values) in enumerate(curves.items()):
        count = max(len(values) - 1, 1)
        at = [100 * n / count for n in range(len(values))]
        axes.plot(at, sorted(values), ("-", "--", "-.", ":")[index % 4], label=f"{name} ({len(values)})")
    axes.set(xlabel=f"{xlabel} (% of them)", ylabel=ylabel)
    axes.set_yscale("log")
    found = [value for values in curves.values() for value in values]
    axes.yaxis.set_major_formatter("{x:g}")
    if max(found) < 20 * min(found):
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
    else:
        axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
