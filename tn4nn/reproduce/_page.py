"""One page out of the results in a folder; no number on it is typed by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import TN4NNError
from .._base.files import atomic_write
from .._base.tables import markdown_table
from .._comparison.summary import machine_line
from ._experiment import FAILS, HOLDS, UNKNOWN
from ._registry import experiment, experiments
from ._run import read_results

_LONG = 24  # rows of a table that is shown at once
_HEAD = """# Reproduction

What the literature claims and what comes out here, one command for each. This page is made by `tn4nn reproduce page`
from the results files beside it and is never edited by hand.

*published* is the published value, under its own name; *ours* is measured at the last epoch, with a validation split
that nothing was trained on and a test split that was looked at once, mean ± sample sd over seeds; *accepted* was fixed
before the run, and the verdict is computed from it. A command that ends in `--quick` has fewer variants and one seed.
"""


def write_page(folder: str | Path, page: str | Path | None = None) -> Path:
    """Writes the page of all results in a folder.

    Args:
        folder: where `run` wrote.
        page: the file to write (default: the folder's name with .md, beside it).

    Returns:
        The page's path.

    Raises:
        TN4NNError: a folder without results.
        CheckpointError: results that cannot be read.
    """
    where = Path(folder)
    target = where.with_name(f"{where.resolve().name}.md") if page is None else Path(page)
    files = {name: where / f"{name}.json" for name in experiments()}
    records = {name: read_results(path) for name, path in files.items() if path.exists()}
    if not records:
        raise TN4NNError(f"{where} holds no results: run `tn4nn reproduce NAME --out {where}` first")
    images = os.path.relpath(where, target.parent)
    parts = [_HEAD, _summary(records), *(_section(records[name], images) for name in records)]
    atomic_write(target, "\n".join(parts).encode())
    return target


def _summary(records: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name in experiments():
        if name in records:
            record = records[name]
            lines.append((f"[{record['title']}](#{name})", _verdict(record), f"`{record['command']}`"))
        else:
            lines.append((experiment(name).title, "not run here", f"`tn4nn reproduce {name}`"))
    return markdown_table(("experiment", "verdict", "command"), lines) + "\n"


def _verdict(record: Mapping[str, Any]) -> str:
    if not record["finished"]:
        return "not finished"
    verdicts = [line["verdict"] for line in record["lines"] if line["verdict"]]
    held = verdicts.count(HOLDS)
    if FAILS in verdicts:
        return f"**does not hold** ({held} of {len(verdicts)} lines hold)"
    if UNKNOWN in verdicts:
        return f"{held} of {len(verdicts)} lines hold, the others are not measured"
    return f"holds ({held} of {len(verdicts)} lines)" if held else "no verdict"


def _section(record: Mapping[str, Any], images: str) -> str:
    name = record["experiment"]
    parts = [f'<a id="{name}"></a>', f"## {record['title']}", f"{record['about']} *Source: {record['source']}.*"]
    parts.append(f"```sh\n{record['command']}\n```")
    if not record["finished"]:
        return "\n\n".join([*parts, "Not finished: the same command goes on where it was stopped."]) + "\n"
    if record["lines"]:
        parts.append(_folded(markdown_table(("", "published", "ours", "accepted", ""), map(_cells, record["lines"]))))
    if record["figure"]:
        parts.append(f"![{record['title']}]({images}/{record['figure']})")
    parts += map(_folded, record["text"])
    return "\n\n".join([*parts, f"<sub>{machine_line(record)}</sub>"]) + "\n"


def _folded(paragraph: str) -> str:
    """A long table behind its first line."""
    rows = paragraph.count("\n") - 1
    if not paragraph.startswith("|") or rows <= _LONG:
        return paragraph
    return f"<details><summary>{rows} rows</summary>\n\n{paragraph}\n\n</details>"


def _cells(line: Mapping[str, Any]) -> list[str]:
    verdict = f"**{FAILS}**" if line["verdict"] == FAILS else line["verdict"]
    return [line["what"], line["published"] or "–", line["shown"], line["accepted"] or "–", verdict]
