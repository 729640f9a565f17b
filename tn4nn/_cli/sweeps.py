"""Sweep files: all that `tn4nn compare` is asked, as TOML.

topologies = ["mpo", "btt", "tree"]
budget = [0.25, 0.5]
where = "blocks.*"
steps = 1500

[model]
name = "gpt"
layers = 4
width = 128

[task]
name = "shakespeare"
context = 64
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._base.checks import nearest
from .._base.errors import TN4NNError
from .._base.reading import toml_of
from .._comparison.compare import compare
from . import networks
from .subjects import FromFile, model_of, task_of

_NOT_IN_FILES = ("progress", "resume")  # of one run of the command, not of the sweep


def read(path: Path) -> dict[str, Any]:
    """The arguments in a sweep file, as they stand there.

    Raises:
        TN4NNError: a file that cannot be read, or a word that is no argument of `tn.compare`.
    """
    try:
        found = toml_of(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TN4NNError(f"the sweep file {path} cannot be read: {error}") from error
    known = [name for name in inspect.signature(compare).parameters if name not in _NOT_IN_FILES]
    for word in found:
        if word not in known:
            raise TN4NNError(f"the sweep file {path}: {word!r} is no argument of a comparison." + nearest(word, known))
    return found


def arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `tn.compare`, with models and tasks in place of their names.

    Raises:
        TN4NNError: a name of nothing.
    """
    found = dict(given)
    name, options = _named(found.pop("task", None), "task")
    if name is not None:
        context = options.pop("context", None)
        if options:
            raise TN4NNError(
                f"task: {next(iter(options))!r} is no setting of a task." + nearest("", ["context", "name"])
            )
        found["task"] = task_of(name, context)
    name, options = _named(found.pop("model", None), "model")
    if name is not None:
        found["model"] = model_of(name, options, found.get("task"))
    if isinstance(found.get("fit"), str):
        path, _, function = found["fit"].rpartition(":")
        found["fit"] = FromFile(Path(path), function, {})
    if "topologies" in found:
        listed = found["topologies"]
        texts = [listed] if isinstance(listed, str) else listed
        found["topologies"] = [one for text in texts for one in networks.listed(text)]
    return found


def _named(given: Any, what: str) -> tuple[str | None, dict[str, Any]]:
    """(name, options) of a name, or of a table with one."""
    if given is None or isinstance(given, str):
        return given, {}
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise TN4NNError(f"{what}: expected a name, or a table with name=, received {given!r:.200}")
    return given["name"], {key: value for key, value in given.items() if key != "name"}
