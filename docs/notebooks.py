"""Runs the tutorials and makes pages of them: the text, the cells, and what the cells print and draw.

The tutorials are notebooks in jupytext's percent format (`docs/pages/tutorials/*.py`). Each becomes one page of
Markdown, so links are checked as on any page and nothing is loaded from elsewhere, and an .ipynb file to download.
With TN4NN_DOCS_EXECUTE=false the cells are shown and not run. What ran is kept in `build/tutorials/`, and runs again
when the notebook or any code of the package changes.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_LOG = logging.getLogger("mkdocs.notebooks")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Runs ahead of the first cell: pictures are drawn as lines, sharp at any size.
_SETUP = """%config InlineBackend.figure_formats = ['svg']
import matplotlib
matplotlib.rcParams["svg.hashsalt"] = "tn4nn"
"""
_done: dict[str, tuple[str, dict[str, bytes]]] = {}  # `mkdocs serve` builds again and again


class Notebook(File):
    """A file that is a page, though its name does not end in .md."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, *, config: Any, **_: Any) -> Files:
    for file in list(files):
        if file.src_uri.startswith("tutorials/") and file.src_uri.endswith(".py"):
            source = file.content_string
            if source not in _done:
                _done[source] = _rendered(source, file.name)
            markdown, beside = _done[source]
            page = Notebook(file.src_uri, file.src_dir, file.dest_dir, file.use_directory_urls)
            page._content = markdown
            files.remove(file)
            files.append(page)
            for name, content in beside.items():
                files.append(File.generated(config, posixpath.join("tutorials", name), content=content))
    return files


def _rendered(source: str, name: str) -> tuple[str, dict[str, bytes]]:
    """Markdown, and the files that it names."""
    import jupytext
    import nbformat

    notebook = jupytext.reads(source, fmt="py:percent")
    if os.environ.get("TN4NN_DOCS_EXECUTE", "true").lower() not in ("false", "0", "no"):
        kept = ROOT / "build" / "tutorials" / f"{name}-{_digest(source)}.ipynb"
        if kept.exists():
            notebook = nbformat.read(kept, as_version=4)
        else:
            _LOG.info("Running %s", name)
            _execute(notebook)
            kept.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, kept)
    beside = {f"{name}.ipynb": nbformat.writes(notebook).encode()}
    note = f"""
!!! note "This page is a notebook"
    [Download it]({name}.ipynb){{: download}}, or run its source, `docs/pages/tutorials/{name}.py`, as a script. The
    output below is what the cells gave when the site was built.
"""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            if note and cell.source.startswith("# "):
                title, _, rest = cell.source.partition("\n")
                parts[-1] = f"{title}\n{note}\n{rest}"
                note = ""
        elif cell.source.strip():
            parts.append(_fenced(cell.source, "python"))
            parts += _outputs(cell.get("outputs", []), name, beside)
    return "\n\n".join(parts) + "\n", beside


def _digest(source: str) -> str:
    """Of all that a tutorial's output comes from."""
    found = hashlib.sha256(source.encode() + Path(__file__).read_bytes())
    for folder in ("tn4nn", "backends"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".c", ".cpp"):
                found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _execute(notebook: Any) -> None:
    import nbformat
    from nbclient import NotebookClient

    paths = [str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    environment.pop("MPLBACKEND", None)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_SETUP))
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(env=environment)
    notebook.cells.pop(0)


def _outputs(outputs: Any, name: str, beside: dict[str, bytes]) -> list[str]:
    """What a cell gave, in order: texts as blocks, pictures as files."""
    texts_and_pictures: list[tuple[str, str]] = []
    for output in outputs:
        data = output.get("data", {})
        if output.output_type == "stream":
            texts_and_pictures.append(("text", output.text))
        elif "image/svg+xml" in data:
            texts_and_pictures.append(("picture", data["image/svg+xml"]))
        elif "text/html" in data:  # of our own values: a text in columns, and perhaps a picture
            text, _, picture = data["text/html"].partition("</pre>")
            texts_and_pictures.append(("text", html.unescape(re.sub("<pre[^>]*>", "", text)) + "\n"))
            if picture:
                texts_and_pictures.append(("picture", picture))
        elif "text/plain" in data:
            texts_and_pictures.append(("text", data["text/plain"] + "\n"))
    found = []
    for kind, together in itertools.groupby(texts_and_pictures, key=lambda pair: pair[0]):
        contents = [content for _, content in together]
        if kind == "text":
            found.append(_fenced("".join(contents), "text", "output"))
        for content in contents if kind == "picture" else ():
            picture = f"{name}-{sum(key.endswith('.svg') for key in beside)}.svg"
            beside[picture] = content.encode()
            found.append(f"![What the cell above draws]({picture}){{: .output}}")
    return found


def _fenced(text: str, language: str, kind: str = "") -> str:
    marks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    text = _COLOUR.sub("", text).rstrip("\n")
    return f"{marks} {{.{language}{' .' + kind if kind else ''}}}\n{text}\n{marks}"
