"""Files that are written whole or not at all, and the cache folder of tn4nn."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from pathlib import Path

from .errors import TN4NNError, WriteError

_ADVICE = {
    errno.ENOSPC: "free some space or name a path on another disk",
    errno.EDQUOT: "free some of your quota or name a path on another disk",
    errno.EACCES: "name a path in a folder you may write to",
    errno.EPERM: "name a path in a folder you may write to",
    errno.EROFS: "name a path on a disk that is not read-only",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "name a path whose parents are folders",
    errno.ENAMETOOLONG: "choose a shorter name",
}


_TEMPORARY = re.compile(r"\.tn4nn-\d+-[0-9a-f]{12}\.tmp")
_OLD_S = 3600.0  # seconds after which a temporary file is one that a killed process has left
_SWEPT: set[Path] = set()  # folders in which this process has looked for those


def cache_folder() -> Path:
    """Where tn4nn stores plans and data: $TN4NN_CACHE, else the user's cache folder.

    That is $XDG_CACHE_HOME/tn4nn or ~/.cache/tn4nn on Linux, ~/Library/Caches/tn4nn on macOS, and
    %LOCALAPPDATA%\\tn4nn\\Cache on Windows.
    """
    own = os.environ.get("TN4NN_CACHE")
    if own:
        return Path(own)
    from platformdirs import user_cache_path  # needed by few runs

    try:
        folder = user_cache_path("tn4nn", appauthor=False)
    except RuntimeError:  # a user whom the system does not know, as in many containers
        folder = Path()
    if not folder.is_absolute():  # platformdirs before 4.14 leaves "~" where it is
        raise TN4NNError("this user has no home folder: set TN4NN_CACHE to a folder that may be written to")
    return folder


def atomic_write(path: str | os.PathLike[str], data: bytes, *, sync: bool = True, private: bool = False) -> None:
    """Writes a file so that a reader sees the old bytes or the new ones, never a part of them.

    The bytes go to a temporary name in the same folder, which is then renamed over the file. Missing folders
    are made, a symbolic link is followed, and a file that is replaced keeps its permissions. A device
    or a pipe (`/dev/stdout`) is written to as it is.

    Args:
        path: the file to write.
        data: all of its bytes.
        sync: whether the bytes must be on the disk before the rename, so that they survive a power cut. False
            is faster, and enough for what can be computed again.
        private: for this user alone, whatever the umask says; a link of that name is replaced, not followed.

    Raises:
        WriteError: the operating system refused, for instance because the disk is full. The temporary file is
            removed and an older file of that name is as it was.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     atomic_write(Path(folder) / "new" / "a.txt", b"whole")
        ...     (Path(folder) / "new" / "a.txt").read_bytes()
        b'whole'
    """
    try:
        _write(Path(path), data, sync, private)
    except OSError as error:
        raise unwritten(path, len(data), error, "An older file of that name, if any, is unchanged.") from error


def append(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes behind the end of a file; where that fails, the file is as it was.

    Raises:
        WriteError: the operating system refused, for instance because the disk is full.
    """
    where = Path(path)
    try:
        make_folder(where.parent)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        descriptor = os.open(where, flags, 0o666)
        try:
            length = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, data)
            except OSError:
                with contextlib.suppress(OSError):  # a device has no length
                    os.ftruncate(descriptor, length)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unwritten(path, len(data), error, "What was in it before is unchanged.") from error


def make_folder(path: Path) -> Path:
    """Makes a folder and those above it; returns it.

    Raises:
        WriteError: the operating system refused.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(path, 0, error, "Nothing was made.") from error
    return path


def unwritten(path: str | os.PathLike[str], count: int, error: OSError, unchanged: str) -> WriteError:
    """The error for a file that the operating system did not let us write."""
    advice = _ADVICE.get(error.errno or 0, "check the path, its permissions and the disk")
    message = (
        f"expected to write {count} bytes to {os.fspath(path)!r}; "
        f"received from the system: {error.strerror or error}. {unchanged} What would do: {advice}."
    )
    return WriteError(error.errno, message, os.fspath(path))


def is_temporary(name: str) -> bool:
    """Whether this is the name of a file that is being written, or was when its process was killed."""
    return _TEMPORARY.fullmatch(name) is not None


def _write(path: Path, data: bytes, sync: bool, private: bool) -> None:
    try:
        old = os.lstat(path) if private else os.stat(path)
    except FileNotFoundError:
        old = None
    if old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if old is not None and not stat.S_ISREG(old.st_mode) and not private:
        # A rename would replace /dev/null or a pipe by a plain file.
        descriptor = os.open(path, os.O_WRONLY)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)
        return
    target = path if private else Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    # Not tempfile: its files are private to the user whatever the umask says, and would stay so after the rename.
    temporary = target.parent / f".tn4nn-{os.getpid()}-{os.urandom(6).hex()}.tmp"
    mode = 0o600 if private else 0o666 if old is None else stat.S_IMODE(old.st_mode)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, mode)
    try:
        try:
            _write_all(descriptor, data)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if old is not None and not private:
            os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sweep(folder: Path) -> None:
    """Removes what killed processes have left in a folder, once a process."""
    if folder in _SWEPT:
        return
    _SWEPT.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_temporary(entry.name):
                with contextlib.suppress(OSError):  # somebody else's, or gone by now
                    found = entry.stat(follow_symlinks=False)
                    if time.time() - found.st_mtime > _OLD_S:
                        os.unlink(entry.path)
