"""Compiled libraries in the cache folder: ours, whole, and compiled once however many processes start.

Loading a library executes it. So it lies in a folder that this user alone can write to, and beside it lies its SHA-256
(as `sha256sum -c` reads it), which is compared before the library is loaded: one that was cut short by a full disk
would end the process with a signal. Sources are compiled in a private temporary folder and moved into place whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path

from .errors import TN4NNError, WriteError
from .files import cache_folder
from .private import locked, private_cache, private_folder, pruned, read_private, stand_in, write_private

SOURCE, RESULT = "{source}", "{result}"  # in a command: the file to compile, and the library to write
_FOLDER = "kernels"  # of the cache folder
_BYTES, _FILES = 1 << 29, 256  # of the folder


@dataclasses.dataclass(frozen=True)
class Build:
    """How a library is made.

    Attributes:
        path: where it will be.
        text: its source.
        suffix: of the source's name.
        command: that compiles SOURCE to RESULT.
        limit: seconds that the compiler may take, and that others wait for it.
    """

    path: str
    text: str
    suffix: str
    command: tuple[str, ...]
    limit: float

    def run(self) -> Path:
        """Compiles the library, or waits for the process that does; returns where it is.

        Raises:
            RuntimeError: the compiler says no.
            OSError: there is no compiler, or nowhere to write.
            subprocess.SubprocessError: it took too long.
        """
        path = Path(self.path)
        with locked(path.with_suffix(".lock"), self.limit):
            if is_whole(path):  # another process has made it
                return path
            return _stored(path, self._compiled())

    def _compiled(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="tn4nn-") as folder:
            source, result = Path(folder) / f"source{self.suffix}", Path(folder) / "library.so"
            source.write_text(self.text, encoding="utf-8")
            places = {SOURCE: str(source), RESULT: str(result)}
            command = [places.get(word, word) for word in self.command]
            # A session of its own: the compiler has children, which must not go on when it is given up.
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                errors="replace", start_new_session=True,
            ) as process:  # fmt: skip
                try:
                    _, said = process.communicate(timeout=self.limit)
                except BaseException:
                    _kill_all(process)
                    raise
            if process.returncode:
                raise RuntimeError(f"{os.path.basename(command[0])} failed: {said[:300]}")
            return result.read_bytes()


def _kill_all(process: subprocess.Popen[str]) -> None:
    """Ends a process that leads a session, and its children."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def library_path(name: str) -> Path:
    """Where a library of that name is or will be: in a folder that this user alone can write to."""
    return private_folder(private_cache(_FOLDER)) / name


def is_whole(path: Path) -> bool:
    """Whether a library is there, as it was compiled, and nobody else can have written it."""
    try:
        data, digest = read_private(path), read_private(_digest(path))
    except OSError:
        return False
    if digest != _digest_line(path, data):
        return False
    for file in (path, _digest(path)):  # what is used stays when the folder is pruned
        with contextlib.suppress(OSError):
            os.utime(file)
    return True


def existing(name: str) -> Path | None:
    """The library of that name that is there, as it was compiled; None where there is none. No folder is made."""
    try:
        if not os.path.lexists(cache_folder() / _FOLDER / name):
            return None
    except TN4NNError:  # this user has no home folder
        return None
    path = library_path(name)
    return path if is_whole(path) else None


def discard(path: Path) -> None:
    """Removes a library that does not load here, so that it is compiled again."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _stored(path: Path, data: bytes) -> Path:
    try:
        write_private(path, data)
        write_private(_digest(path), _digest_line(path, data))
    except WriteError as error:  # the work is done: it serves this process
        path = stand_in(path.parent, error.strerror or str(error)) / path.name
        write_private(path, data)
        write_private(_digest(path), _digest_line(path, data))
    pruned(path.parent, _BYTES, _FILES)
    return path


def _digest(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _digest_line(path: Path, data: bytes) -> bytes:
    return f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode()
