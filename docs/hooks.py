"""What the site does to a page before it is rendered."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Fills in what is made of the code; links to files that are no part of the site lead to the repository."""
    if page.file.src_uri == "reference/index.md":
        markdown = markdown.replace("<!-- names -->", names(Path(page.file.abs_src_path).parent, config))
    if page.file.src_uri == "reference/command-line.md":
        markdown = markdown.replace("<!-- commands -->", commands())
    folder = os.path.dirname(page.file.abs_src_path)
    pages = os.path.abspath(config["docs_dir"])
    root = str(ROOT)

    def rewritten(match: re.Match[str]) -> str:
        name, _, anchor = match[1].partition("#")
        target = os.path.abspath(os.path.join(folder, name))
        if not name or target.startswith(pages + os.sep) or not target.startswith(root + os.sep):
            return match[0]
        kind = "tree" if os.path.isdir(target) else "blob"
        address = f"{config['repo_url']}/{kind}/main/{os.path.relpath(target, root)}"
        return f"]({address}{'#' + anchor if anchor else ''})"

    return _LINK.sub(rewritten, markdown)


ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)


def names(reference: Path, config: Any) -> str:
    """All entries of the reference with the first sentences of their docstrings, in the order of the site."""
    text = []
    for name in re.findall(r"'(reference/[\w-]+\.md)'", str(config["nav"])):
        page = (reference.parent / name).read_text()
        entries = ENTRY.findall(page)
        if entries:
            title = re.search(r"^# (.*)$", page, re.MULTILINE)
            assert title is not None
            text.append(f"\n## [{title[1]}]({Path(name).name})\n")
            text += [f"* [`{entry.partition('.')[2]}`][{entry}]: {summary(entry)}" for entry in entries]
    return "\n".join(text)


def summary(entry: str) -> str:
    """The first sentence of the docstring of a public name."""
    docstring = _code()[entry].docstring
    paragraph = " ".join(docstring.value.split("\n\n")[0].split()) if docstring else ""
    return re.split(r"(?<=[^.][.]) (?=[A-Z])", paragraph)[0]


@functools.cache
def _code() -> griffe.ModulesCollection:
    """What griffe reads of our packages: nothing is imported, so no framework has to be there."""
    loader = griffe.GriffeLoader(search_paths=[ROOT, ROOT / "backends"])
    for package in ("tn4nn", "tn4nn_torch", "tn4nn_jax"):
        loader.load(package)
    return loader.modules_collection


def commands() -> str:
    """All commands with their arguments, options and examples, as typer writes them down."""
    command = [sys.executable, "-m", "typer", "tn4nn._cli.commands", "utils", "docs", "--name", "tn4nn"]
    places = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    text = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places})
    _, *parts = re.split(r"^## ", text.stdout, flags=re.MULTILINE)  # what is before them is a shorter list of the same
    return "\n".join("## " + _with_examples(part) for part in parts)


def _with_examples(part: str) -> str:
    """A command with its examples as code, before its many options."""
    text, _, examples = part.partition("For example:\n\n")
    about, usage, options = text.partition("**Usage**:")
    lines = "\n".join(line for line in examples.splitlines() if line)
    return f"{about}```sh\n{lines}\n```\n\n{usage}{options}"
