"""Finished rows on disk, so that a sweep that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._base.errors import CheckpointError


class Store:
    """Values by key: one line of JSON each, appended as they come.

    Args:
        path: the file; None stores nothing on disk.
        resume: read the file. Otherwise an old file is renamed, so that no result is lost.

    Raises:
        CheckpointError: a line that cannot be read, unless it is the last one.
    """

    def __init__(self, path: Path | None, resume: bool) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        if path is None or not path.exists():
            return
        if resume:
            self._read(path)
        else:
            path.rename(path.with_name(f"{path.name}.{int(path.stat().st_mtime)}"))

    def _read(self, path: Path) -> None:
        lines = path.read_text(errors="replace").splitlines()
        whole = []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                self.done[entry["key"]] = entry["value"]
                whole.append(line)
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise CheckpointError(
                        f"{path}, line {number} cannot be read ({error}): mend or remove the line, or sweep into "
                        "another folder"
                    ) from error
        if len(whole) < len(lines):  # a last line that was cut off: that cell runs again
            path.write_text("".join(line + "\n" for line in whole))

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        """Stores a row, or a learning rate."""
        self.done[key] = dict(value)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, "value": value}) + "\n")
            file.flush()
