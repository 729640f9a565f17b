"""Pages out of the results in a folder; no number on them is typed by hand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import TN4NNError
from .._base.files import atomic_write
from .._base.tables import folded, markdown_table
from .._comparison.summary import machine_line
from ._experiment import FAILS, HOLDS, UNKNOWN
from ._registry import experiment, experiments
from ._run import read_results

_LONG = 12  # rows of a table that is shown at once
_HEAD = """# Reproduction

What the literature claims and what comes out here, a page for each experiment and one command that repeats it. These
pages are made by `tn4nn reproduce page` from the results files beside them and are never edited by hand.
"""
_READING = """
*Published* is the published value, under its own name. *Ours* is measured at the last epoch, with a validation split
that nothing was trained on and a test split that was looked at once: mean ± sample sd over seeds. *Accepted* was fixed
before the run, and the verdict is computed from it. A command that ends in `--quick` has fewer variants and one seed.
"""


def write_page(folder: str | Path, page: str | Path | None = None) -> Path:
    """Writes a page for each experiment that has results in a folder, and one that lists them all.

    Args:
        folder: where `run` wrote.
        page: the file that lists them (default: index.md in the folder); the others are written beside it.

    Returns:
        The path of that file.

    Raises:
        TN4NNError: a folder without results.
        CheckpointError: results that cannot be read.

    Examples:
        >>> import pathlib, tempfile
        >>> from tn4nn import reproduce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = reproduce.run("counts", out=pathlib.Path(folder))
        ...     reproduce.write_page(pathlib.Path(folder)).name
        'index.md'
    """
    where = Path(folder)
    target = where / "index.md" if page is None else Path(page)
    files = {name: where / f"{name}.json" for name in experiments()}
    records = {name: read_results(path) for name, path in files.items() if path.exists()}
    if not records:
        raise TN4NNError(f"{where} holds no results: run `tn4nn reproduce NAME --out {where}` first")
    images = "" if where.resolve() == target.parent.resolve() else f"{os.path.relpath(where, target.parent)}/"
    for name, record in records.items():
        atomic_write(target.with_name(f"{name}.md"), _page(record, images, target.name).encode())
    atomic_write(target, "\n".join([_HEAD, _summary(records), _READING]).encode())
    return target


def _summary(records: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name in experiments():
        if name in records:
            record = records[name]
            lines.append((f"[{record['title']}]({name}.md)", finding(record), _verdict(record)))
        else:
            lines.append((experiment(name).title, f"`tn4nn reproduce {name}`", "not run here"))
    return markdown_table(("experiment", "what came out", "verdict"), lines) + "\n"


def finding(record: Mapping[str, Any]) -> str:
    """What came out, in words; "" where the record lacks a line that the sentence needs."""
    text = experiment(record["experiment"]).finding
    try:
        return re.sub(r"\{([^}]+)\}", lambda match: _shown(record["lines"], match[1]), text)
    except KeyError:  # a run with fewer variants, or one that is not finished
        return ""


def _shown(lines: Sequence[Mapping[str, Any]], name: str) -> str:
    for line in lines:
        if line["what"] == name:
            return str(line["shown"])
    for line in lines:
        if line["what"].startswith(f"{name}, "):
            return f"{line['what'].removeprefix(f'{name}, ')} ({line['shown']})"
    raise KeyError(name)


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


def _page(record: Mapping[str, Any], images: str, index: str) -> str:
    """The finding and the figure first; then how it was done, and the tables."""
    parts = [f"# {record['title']}", f"{finding(record)} Verdict: {_verdict(record)}.".strip()]
    if record["figure"]:
        parts.append(f"![{record['title']}]({images}{record['figure']})")
    parts.append(f"```sh\n{record['command']}\n```")
    parts.append(f"{record['about']} *Source: {record['source']}.*")
    if not record["finished"]:
        parts.append("Not finished: the same command goes on where it was stopped.")
    if record["lines"]:
        parts += ["## Lines", f"[How to read them]({index})."]
        parts.append(_folded(markdown_table(("", "published", "ours", "accepted", ""), map(_cells, record["lines"]))))
    if record["text"]:
        parts += ["## More", *map(_folded, record["text"])]
    return "\n\n".join([*parts, f"<sub>{machine_line(record)}</sub>"]) + "\n"


def _folded(paragraph: str) -> str:
    """A long table behind its first line."""
    rows = paragraph.count("\n") - 1
    if not paragraph.startswith("|") or rows <= _LONG:
        return paragraph
    return folded(f"{rows} rows", paragraph)


def _cells(line: Mapping[str, Any]) -> list[str]:
    verdict = f"**{FAILS}**" if line["verdict"] == FAILS else line["verdict"]
    return [line["what"], line["published"] or "–", line["shown"], line["accepted"] or "–", verdict]
