"""Folders and files for this user alone, locks, and caches that stay small."""

import dataclasses
import doctest
import os
import stat
import subprocess
import sys
import time
import warnings

import pytest
from helpers import environment

from tn4nn._base import files, libraries, private, warn
from tn4nn._base.cache import PlanCache
from tn4nn._base.private import locked, private_folder, pruned, read_private, write_private

pytestmark = pytest.mark.skipif(os.name != "posix", reason="users and permissions as POSIX has them")


@pytest.fixture(autouse=True)
def _first_warning(monkeypatch):
    monkeypatch.setattr(warn, "_WARNED", set())
    monkeypatch.setattr(private, "_TOLD", set())


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_folders_and_files_are_private_whatever_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        folder = private_folder(tmp_path / "a" / "b")
        write_private(folder / "f", b"x")
    finally:
        os.umask(before)
    assert (mode(folder), mode(folder / "f")) == (0o700, 0o600)
    assert read_private(folder / "f") == b"x"


def test_a_folder_of_ours_is_closed_and_what_others_could_write_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "f").write_bytes(b"x")
    for bits, readable in ((0o600, True), (0o644, True), (0o664, False), (0o606, False)):
        (folder / "f").chmod(bits)
        assert private_folder(folder) == folder
        if readable:
            assert read_private(folder / "f") == b"x"
        else:
            with pytest.raises(PermissionError, match="others can write it"):
                read_private(folder / "f")
    assert mode(folder) == 0o700


def test_nothing_of_another_user_is_read(tmp_path, monkeypatch):
    write_private(tmp_path / "f", b"x")
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(PermissionError, match="it belongs to another user"):
        read_private(tmp_path / "f")
    with pytest.warns(UserWarning, match=r"it belongs to another user.*set TN4NN_CACHE"):
        assert private_folder(tmp_path) != tmp_path


def test_links_are_neither_read_nor_followed(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    with pytest.raises(PermissionError, match="it is a link"):
        read_private(link)
    write_private(link, b"x")
    assert victim.read_bytes() == b"precious"
    assert not link.is_symlink()
    assert read_private(link) == b"x"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    write_private(tmp_path / "dangling", b"x")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_is_not_waited_for(kind, tmp_path):
    path = tmp_path / "f"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(OSError, match=r"."):
        read_private(path)


def test_a_place_that_cannot_be_written_is_told_once(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = {name: private_folder(tmp_path / "file" / name) for name in ("plans", "kernels", "plans")}
        again = private_folder(tmp_path / "file" / "plans")
    assert len(told) == 1
    assert found["plans"] == again != found["kernels"]
    assert all(folder.is_dir() and mode(folder) == 0o700 for folder in found.values())


def test_the_temporary_folder_goes_with_the_process(tmp_path):
    (tmp_path / "file").write_text("in the way")
    code = (
        "import sys, pathlib; from tn4nn._base.private import private_folder\n"
        f"print(private_folder(pathlib.Path({str(tmp_path / 'file' / 'plans')!r})))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert "tn4nn-" in done.stdout
    assert not os.path.exists(done.stdout.strip())


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path):
    code = (
        "import sys, time, pathlib; from tn4nn._base.private import locked\n"
        f"with locked(pathlib.Path({str(tmp_path / 'lock')!r}), 1) as had:\n"
        "    print(had, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "True\n"
    with locked(tmp_path / "lock", 0.2) as had:
        assert not had
    child.kill()
    child.wait()
    child.stdout.close()
    with locked(tmp_path / "lock", 5.0) as had:
        assert had
    with locked(tmp_path / "no folder" / "lock", 1.0) as had:
        assert not had


def test_what_was_used_longest_ago_goes_first(tmp_path):
    for number in range(6):
        (tmp_path / f"f{number}").write_bytes(bytes(100))
        os.utime(tmp_path / f"f{number}", (number, number))
    assert pruned(tmp_path, 1000, 6) == 0
    assert pruned(tmp_path, 1000, 4) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f2", "f3", "f4", "f5"]
    assert pruned(tmp_path, 250, 10) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f4", "f5"]
    assert pruned(tmp_path / "missing", 1, 1) == 0


def test_the_plans_on_disk_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("tn4nn._base.cache._FILES", 20)
    monkeypatch.setattr("tn4nn._base.cache._OFTEN", 5)
    cache = PlanCache(tmp_path / "plans")
    for number in range(100):
        cache.put(f"k{number}", {"n": number})
    assert len(list((tmp_path / "plans").iterdir())) <= 25
    assert PlanCache(tmp_path / "plans").get("k99") == {"n": 99}


def test_what_killed_processes_have_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SWEPT", set())
    names = [".tn4nn-1-0123456789ab.tmp", ".tn4nn-2-0123456789ab.tmp", ".tn4nn-mine.tmp", "a.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    long_ago = time.time() - 7200
    for name in names[:1] + names[2:]:
        os.utime(tmp_path / name, (long_ago, long_ago))
    files.atomic_write(tmp_path / "new", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "new"])


# -- libraries ----------------------------------------------------------------------------------------------------


def build(path, text="hello", command=("cp", libraries.SOURCE, libraries.RESULT), limit=20.0):
    return libraries.Build(str(path), text, ".txt", tuple(command), limit)


def test_a_library_lies_beside_its_digest(tmp_path):
    path = build(tmp_path / "a.so").run()
    assert libraries.is_whole(path)
    assert path.read_bytes() == b"hello"
    done = subprocess.run(["sha256sum", "-c", "a.sha256"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "a.so: OK\n"
    assert build(path, "another").run().read_bytes() == b"hello"  # it is there


def started(one):
    """A process that builds."""
    code = f"from tn4nn._base.libraries import Build; Build(*{dataclasses.astuple(one)!r}).run()"
    return subprocess.Popen([sys.executable, "-c", code], env=environment(), start_new_session=True)


def test_a_failed_build_is_told_and_may_be_tried_again(tmp_path):
    path = tmp_path / "a.so"
    with pytest.raises(RuntimeError, match="failed: .*no-such-option"):
        build(path, command=("cp", "--no-such-option", libraries.SOURCE, libraries.RESULT)).run()
    assert libraries.is_whole(build(path).run())


def test_builds_at_once_compile_once(tmp_path):
    """Each compiler that runs leaves a line."""
    script = f"sleep 0.5; echo x >> {tmp_path}/runs; cp {{source}} {{result}}"
    command = ("sh", "-c", script.replace("{source}", '"$0"').replace("{result}", '"$1"'))
    one = build(tmp_path / "a.so", command=(*command, libraries.SOURCE, libraries.RESULT))
    processes = [started(one) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6
    assert (tmp_path / "runs").read_text() == "x\n"
    assert libraries.is_whole(tmp_path / "a.so")


def test_a_build_that_was_killed_stops_nobody(tmp_path):
    slow = build(tmp_path / "a.so", command=("sh", "-c", "sleep 60"))
    process = started(slow)
    end = time.monotonic() + 30
    while not (tmp_path / "a.lock").exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, 9)
    process.wait()
    assert libraries.is_whole(build(tmp_path / "a.so").run())


def test_the_examples_run():
    assert doctest.testmod(private).failed == 0


@pytest.mark.thorough
def test_a_compiler_that_takes_too_long_is_ended_with_its_children(tmp_path):
    command = ("sh", "-c", f"(echo $BASHPID$PPID > {tmp_path}/begun; sleep 5; touch {tmp_path}/went_on) & wait")
    with pytest.raises(subprocess.TimeoutExpired):
        build(tmp_path / "a.so", command=command, limit=1.0).run()
    assert (tmp_path / "begun").exists()
    time.sleep(5)
    assert not (tmp_path / "went_on").exists()
