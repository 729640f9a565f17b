from __future__ import annotations

import doctest
import errno
import os
import stat
import sys
import threading
from pathlib import Path

import platformdirs.macos
import pytest

import tn4nn._base.files as files
from tn4nn import TN4NNError, WriteError
from tn4nn._base.files import atomic_write, cache_folder


def test_it_writes_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "out.bin"
    atomic_write(target, b"one")
    assert target.read_bytes() == b"one"
    atomic_write(str(target), b"", sync=False)
    assert target.read_bytes() == b""
    assert [entry.name for entry in target.parent.iterdir()] == ["out.bin"]


def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "results.json"
    target.write_bytes(b"the old results")
    real = os.write

    def half_then_full(descriptor: int, data: bytes) -> int:
        if len(data) > 5:
            return real(descriptor, bytes(data[:5]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(WriteError) as caught:
        atomic_write(target, b"0123456789")
    monkeypatch.undo()
    assert target.read_bytes() == b"the old results"
    assert list(tmp_path.iterdir()) == [target]
    text = str(caught.value)
    assert "results.json" in text
    assert "No space left on device" in text
    assert "unchanged" in text
    assert "free some space" in text
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(target)
    assert isinstance(caught.value, TN4NNError)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_late_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(WriteError, match=r"What would do: check the path"):
        atomic_write(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interrupt_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="name a file, not a folder"):
        atomic_write(tmp_path, b"x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="whose parents are folders"):
        atomic_write(tmp_path / "file" / "below", b"x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_device_is_written_to_and_never_replaced() -> None:
    atomic_write("/dev/null", b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(WriteError, match="No space left"):
        atomic_write("/dev/full", b"x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.skipif(os.name != "posix", reason="permissions and links as POSIX has them")
def test_permissions_follow_the_umask_and_links_stay(tmp_path: Path) -> None:
    fresh, plain = tmp_path / "fresh", tmp_path / "plain"
    plain.touch()
    atomic_write(fresh, b"x")
    assert fresh.stat().st_mode == plain.stat().st_mode
    fresh.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(fresh)
    atomic_write(link, b"y")
    assert link.is_symlink()
    assert fresh.read_bytes() == b"y"
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o600


def test_concurrent_writers_leave_one_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "shared"
    contents = [bytes([i]) * 50_000 for i in range(6)]
    threads = [threading.Thread(target=atomic_write, args=(target, c)) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("TN4NN_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "tn4nn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tn4nn"


def test_the_cache_folder_is_that_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "PlatformDirs", platformdirs.macos.MacOS)
    for name in ("TN4NN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "Library" / "Caches" / "tn4nn"


def test_a_user_without_a_home_is_told_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pwd = pytest.importorskip("pwd", reason="users as POSIX has them")

    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("TN4NN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(TN4NNError, match="this user has no home folder: set TN4NN_CACHE"):
        cache_folder()


def test_the_examples_run() -> None:
    assert doctest.testmod(files).failed == 0
