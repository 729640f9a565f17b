"""Folders and files that only this user can have written: the cache, which is executed and believed.

Compiled libraries lie there, and whoever can write them can run code in our process. So a folder is ours, closed to
others, and no link; a file too. Where that cannot be had, a temporary folder takes its place for this process.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import TN4NNError
from .files import atomic_write, cache_folder
from .warn import warn_once

_POSIX = os.name == "posix"
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_STANDINS: dict[Path, Path] = {}  # folders that cannot be used -> temporary ones
_TOLD: set[Path] = set()  # what has been warned of: the folders that these should lie in
_LOCK = threading.Lock()


def private_cache(name: str) -> Path:
    """Where a part of the cache should be: for a user without a home, a temporary folder."""
    try:
        return cache_folder() / name
    except TN4NNError as error:
        return stand_in(Path(name), str(error))


def private_folder(path: Path) -> Path:
    """A folder that this user alone can write to, made where it is missing.

    A folder of ours that others could write to is closed to them; what they may have put there is refused file by file
    (`read_private`). A folder of somebody else, a link, or a place that cannot be written gives a temporary folder
    for this process, with one warning.

    Args:
        path: where it should be.

    Examples:
        >>> folder = Path(tempfile.mkdtemp()) / "a" / "b"
        >>> private_folder(folder) == folder, oct(folder.stat().st_mode)[-3:]
        (True, '700')
    """
    with _LOCK:
        if path in _STANDINS:
            return _STANDINS[path]
        try:
            _make(path)
        except OSError as error:
            _STANDINS[path] = _standin(path, error.strerror or str(error))
            return _STANDINS[path]
        return path


def stand_in(path: Path, reason: str) -> Path:
    """A temporary folder in place of one that turned out not to take files (a full disk, for instance)."""
    with _LOCK:
        if path in _STANDINS.values():  # nor does the temporary one: it is the best there is
            return path
        if path not in _STANDINS:
            _STANDINS[path] = _standin(path, reason)
        return _STANDINS[path]


def _make(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.ENOTDIR, "it is a link or no folder")
    if not _POSIX:
        return
    if found.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "it belongs to another user")
    if found.st_mode & 0o777 != 0o700:
        os.chmod(path, 0o700)
    if not os.access(path, os.W_OK | os.X_OK):  # a disk that is read-only
        raise OSError(errno.EACCES, "it cannot be written to")


def _standin(path: Path, reason: str) -> Path:
    folder, pid = Path(tempfile.mkdtemp(prefix="tn4nn-")), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == pid else None)
    if path.parent not in _TOLD:  # of plans and of kernels together once
        _TOLD.add(path.parent)
        warn_once(
            f"tn4nn's cache folder {str(path)!r} cannot be used ({reason}): a temporary one takes its place for this "
            "process, so later ones plan and compile again. What would do: set TN4NN_CACHE to a folder of your own"
        )
    return folder


def read_private(path: Path) -> bytes:
    """The bytes of a file that this user alone can have written.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: it is a link, belongs to another user, or others can write it.
    """
    # Nothing is opened that could block, and what is checked is what is read.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise PermissionError(errno.EPERM, "it is a link", os.fspath(path)) from None
        raise
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError(errno.EPERM, "it is no file", os.fspath(path))
        if _POSIX and found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", os.fspath(path))
        if _POSIX and found.st_mode & _OTHERS:
            raise PermissionError(errno.EPERM, "others can write it", os.fspath(path))
        return file.read()


def write_private(path: Path, data: bytes) -> None:
    """Writes a file for this user alone, whole or not at all; a link of that name is replaced, never followed.

    Raises:
        WriteError: see `atomic_write`.
    """
    atomic_write(path, data, sync=False, private=True)


def pruned(folder: Path, most_bytes: int, most_files: int) -> int:
    """Removes the files that were not used for longest, until a folder holds at most so much. Returns how many went.

    Only for caches: nothing depends on what is removed, and what is needed is made again.
    """
    files = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # another process removes too
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    files.append((found.st_mtime, found.st_size, entry.path))
    gone, size, count = 0, sum(file[1] for file in files), len(files)
    for _, length, path in sorted(files):
        if size <= most_bytes and count <= most_files:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)
            gone, size, count = gone + 1, size - length, count - 1
    return gone


@contextlib.contextmanager
def locked(path: Path, limit: float) -> Iterator[bool]:
    """Holds a lock among processes while the block runs; it ends with the process that holds it, even a killed one.

    Args:
        path: of the file that is locked; it is made, and stays.
        limit: seconds to wait for it.

    Yields:
        Whether it was had. False after the limit, and where the system has no such locks: the block runs all the same,
        so what it does must be right (if perhaps done twice) without.
    """
    descriptor = _opened(path)
    try:
        yield descriptor is not None and _acquired(descriptor, limit)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _opened(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    return None


def _acquired(descriptor: int, limit: float) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    end = time.monotonic() + limit
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        except OSError:  # a disk without locks
            return False
        else:
            return True
