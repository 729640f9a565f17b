"""Finished rows on disk, so that a sweep that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._base.errors import CheckpointError
from .._base.files import append, atomic_write
from .._base.reading import json_of
from .._base.records import sealed, unsealed
from .rows import is_stored

END = "end"  # key of the line that says that the sweep came to its end


class Store:
    """Values by key: one line of JSON each, with a digest, appended as they come.

    Args:
        path: the file; None stores nothing on disk.
        resume: read the file. Otherwise the file of a sweep that came to its end is renamed, so that no result is lost.

    Raises:
        CheckpointError: without `resume`, a file whose sweep has not come to its end; a line that cannot be read, or
            that was damaged or edited; of the last one, only where it was written to its end.
    """

    def __init__(self, path: Path | None, resume: bool) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        self._ended = False  # whether the last line says so
        if path is None or not path.exists():
            return
        if resume:
            self._read(path)
            return
        *lines, last = path.read_bytes().split(b"\n")
        if last or (lines and not _is_end(lines[-1])):
            raise CheckpointError(
                f"{path} holds {len(lines)} lines of a sweep that has not come to its end: go on with it (resume=True; "
                "--resume in a shell), or name another folder"
            )
        if lines:
            path.rename(path.with_name(f"{path.name}.{int(path.stat().st_mtime)}"))

    def _read(self, path: Path) -> None:
        advice = "mend or remove the line, or sweep into another folder"
        try:
            text = path.read_bytes().decode(errors="replace")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error}): sweep into another folder") from error
        *lines, last = text.split("\n")  # the last line is empty where the one before was written to its end
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            try:
                entry = json_of(line)
                key, value = entry["key"], entry["value"]
                if not isinstance(key, str) or not (is_stored(value) or key == END):
                    raise ValueError("it is neither a row nor a learning rate")
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{where} cannot be read ({error}): {advice}") from error
            unsealed(entry, where, advice)
            if key != END:
                self.done[key] = value
        self._ended = bool(lines) and _is_end(lines[-1].encode())
        if not last:
            return
        self._ended = False
        try:  # a kill just before its newline, or in the middle: that cell runs again
            entry = unsealed(json_of(last), "", "")
            if entry["key"] != END:
                self.done[entry["key"]] = entry["value"]
                lines.append(last)
        except (ValueError, KeyError, TypeError, AttributeError, CheckpointError):
            pass
        atomic_write(path, "".join(line + "\n" for line in lines).encode())

    def add(self, key: str, value: Mapping[str, Any]) -> None:
        """Stores a row, or a learning rate.

        Raises:
            WriteError: it cannot be written, for instance because the disk is full; the rows before are whole.
        """
        self.done[key] = dict(value)
        self._append(key, value)
        self._ended = False

    def end(self) -> None:
        """Notes that the sweep has come to its end, as the last line.

        Raises:
            WriteError: it cannot be written.
        """
        if not self._ended:
            self._append(END, {})
        self._ended = True

    def _append(self, key: str, value: Mapping[str, Any]) -> None:
        if self.path is not None:
            append(self.path, (json.dumps(sealed({"key": key, "value": value})) + "\n").encode())


def _is_end(line: bytes) -> bool:
    try:
        return bool(json_of(line.decode(errors="replace"))["key"] == END)
    except (ValueError, KeyError, TypeError):
        return False
