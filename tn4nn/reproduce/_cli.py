"""The command `tn4nn reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import DataError
from .._base.stopping import advise
from .._comparison.workers import use_threads
from ._experiment import FAILS
from ._page import write_page
from ._registry import experiment, experiments
from ._run import failed, run

DOES_NOT_HOLD = 3  # exit code
_out = Console()
_err = Console(stderr=True)


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="An experiment; 'all'; or 'page', which makes one page of what --out holds.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer variants and one seed, the same acceptance.")] = False,
    backend: Annotated[str, typer.Option(help="torch or jax.")] = "torch",
    device: Annotated[str | None, typer.Option(help="The framework's word: cpu, cuda, gpu ...")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds.", show_default="the experiment's, 1 with --quick")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of results and figures; what is finished there is not run again.")
    ] = Path("reproduction"),
    listed: Annotated[bool, typer.Option("--list", help="List the experiments, and stop.")] = False,
) -> None:
    """Repeat a published experiment, and say whether it holds (exit code 3 where it does not)."""
    if listed or name is None:
        _list()
        return
    if name == "page":
        _out.print(f"page: {write_page(out)}", highlight=False, soft_wrap=True)
        return
    use_threads(1)  # before a framework is imported: the same numbers on any number of cores
    advise(f"stopped; what is finished is in {out}: the same command goes on from there")
    chosen = experiments() if name == "all" else (name,)
    broken = []
    for one in chosen:
        try:
            record = run(one, quick=quick, backend=backend, device=device, seeds=seeds, out=out, progress=_say)
        except DataError as error:
            if name != "all":
                raise
            _say(f"{one}: left out. {error}")
            continue
        _print(record)
        broken += [one] if failed(record) else []
    _out.print(f"results: {out}", highlight=False, soft_wrap=True)
    if broken:
        _err.print(f"does not hold: {', '.join(broken)}", style="bold red", highlight=False)
        raise typer.Exit(DOES_NOT_HOLD)


def _say(line: str) -> None:
    _err.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)


def _list() -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("name", "what", "source", "data", "cost", "--quick"):
        table.add_column(title)
    for name in experiments():
        one = experiment(name)
        table.add_row(name, one.title, one.source, ", ".join(one.data) or "-", one.cost, one.quick_cost)
    _out.print(table)


def _print(record: dict[str, Any]) -> None:
    table = Table(title=record["title"], box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for title in ("", "published", "ours", "accepted", "verdict"):
        table.add_column(title)
    for line in record["lines"]:
        cells = (line["what"], line["published"] or "-", line["shown"], line["accepted"] or "-", line["verdict"])
        table.add_row(*map(Text, cells), style="bold red" if line["verdict"] == FAILS else None)
    _out.print(table)
    for paragraph in record["text"]:
        _out.print(Text(paragraph))
