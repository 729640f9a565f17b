"""Processes that train: how they start, and how they end with the one that started them."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from helpers import environment

from tn4nn._comparison import workers

SCRIPT = """
import sys, time
from tn4nn._comparison.workers import workers

if __name__ == "__main__":
    with workers(2) as each:
        for _, pid in each(__import__("job").pid, [(1,), (2,)]):
            print(pid, flush=True)
        for _ in each(time.sleep, [(600,), (600,)]):
            pass
"""
JOB = "import os, time\ndef pid(_):\n    time.sleep(0.5)\n    return os.getpid()\n"


@pytest.fixture
def started(tmp_path):
    """A script with two workers that sleep for ten minutes, in a group of its own, and their pids."""
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    yield process, [int(process.stdout.readline()) for _ in range(2)]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pids, seconds):
    until = time.monotonic() + seconds
    while any(map(lives, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(lives, pids))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"])
def test_workers_end_with_the_process_that_started_them(started, name):
    process, pids = started
    assert len(set(pids)) == 2
    process.send_signal(getattr(signal, name))
    process.wait(10)
    assert gone(pids, 5)


@pytest.mark.thorough
def test_an_interrupt_does_not_wait_for_what_the_workers_do(started):
    process, pids = started
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=30)[1]
    assert time.monotonic() - begin < 5
    assert gone(pids, 1)
    assert said.count("Traceback") == 1, said  # that of the script, which does not catch it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multiprocessing", "numpy"])
def test_workers_import_nothing_from_the_current_folder(tmp_path, name):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "job.py").write_text(JOB)
    (tmp_path / "scripts" / "script.py").write_text(
        "from tn4nn._comparison.workers import workers\nimport job\nif __name__ == '__main__':\n"
        "    with workers(2) as each:\n        list(each(job.pid, [(1,), (2,)]))\n"
    )
    (tmp_path / "here" / name).mkdir(parents=True)
    mark = f"open({str(tmp_path / 'executed')!r}, 'w').close()"
    (tmp_path / "here" / name / "__init__.py").write_text(mark)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "scripts" / "script.py")],
        cwd=tmp_path / "here", env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not (tmp_path / "executed").exists()
    assert done.returncode == 0, done.stderr


def test_the_environment_is_as_it_was(monkeypatch):
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with workers._quiet_and_safe_start():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert "PYTHONSAFEPATH" not in os.environ
    if hasattr(signal, "pthread_sigmask"):
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_an_interrupt_that_a_framework_drops_is_raised_after_the_cell():
    def drops(cell):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        except KeyboardInterrupt:  # what a callback of a framework makes of it
            raised.append(cell)
        return cell

    raised, done = [], []
    with pytest.raises(KeyboardInterrupt), workers.workers(1) as each:  # noqa: PT012
        for cell, _ in each(drops, [(1,), (2,)]):
            done.append(cell)
    assert (raised, done) == ([1], [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.thorough
def test_python_m_imports_nothing_from_the_current_folder(tmp_path):
    for name in ("typer", "numpy", "cotengra"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()")
    done = subprocess.run(
        [sys.executable, "-m", "tn4nn", "catalogue"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mpo" in done.stdout
    assert not (tmp_path / "executed").exists()


def test_signals_that_are_ignored_stay_so(tmp_path):
    code = textwrap.dedent("""
        import os, signal, time
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        from tn4nn._base.stopping import end_at_signals
        end_at_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.2)
        print("here", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    """)
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("here\n", "stopped\n", 143)


def test_a_signal_at_the_last_lines_of_the_interpreter_changes_no_exit_code():
    code = textwrap.dedent("""
        import os, signal, sys
        from tn4nn._base.stopping import end_at_signals
        class Late:
            def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
                kill(pid, number)
        end_at_signals()
        sys.late = Late()  # it goes when the modules go, after the signal handlers of the interpreter
        sys.exit(3)
    """)
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")
