"""Cells on a Ray cluster: the rows of a serial run, whatever happens to the workers."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
from helpers import environment, run_python

import tn4nn as tn

pytest.importorskip("torch")
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason='needs Ray: pip install -c constraints.txt -e ".[ray]"')

SWEEP = """
import os, pathlib, signal, sys, time
import numpy as np, torch, tn4nn as tn

folder, driver = pathlib.Path(sys.argv[1]), os.getpid()
x = np.random.default_rng(0).standard_normal((200, 16)).astype("float32")
task = tn.classification(x, x[:, :3].argmax(1).astype("int64"))


def model(width=32):
    made = len(list(folder.glob("made*")))
    if os.getpid() != driver:
        if made >= 5 and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / f"made{time.time_ns()}").touch()
    layers = torch.nn.Linear(16, width), torch.nn.ReLU(), torch.nn.Linear(width, width), torch.nn.Linear(width, 3)
    return torch.nn.Sequential(*layers)


def sweep(jobs, name=None, **options):
    options = {"model": model, "task": task, "seeds": 4, "steps": 10, "lr": 1e-2, **options}
    out = None if name is None else folder / name
    return tn.compare(["mpo", "cp"], jobs=jobs, out=out, **options)


def rows(report):
    return [{key: value for key, value in row.items() if not key.startswith("step_")} for row in report.rows]


def interrupt(line):
    if line.startswith("[8/"):
        raise KeyboardInterrupt
"""


@pytest.fixture
def script(tmp_path):
    """Runs a program that begins with the functions above; Ray starts a cluster of its own, or takes an address."""

    def run(code, **changes):
        variables = {"OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local", **changes}
        return run_python(SWEEP + code, tmp_path, **variables)

    return run


@needs_ray
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_twenty_cells_with_a_worker_that_is_killed_an_interrupt_and_a_cell_that_kills(script):
    said = script("""
import psutil, ray

try:
    sweep("ray", "a", progress=interrupt)
except KeyboardInterrupt:
    print("interrupted", (folder / "killed").exists(), ray.is_initialized())
print("left", [one.name() for one in psutil.Process().children(recursive=True)])
kept = len((folder / "a" / "rows.jsonl").read_text().splitlines())

ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)  # a program that is connected before
(folder / "killed").unlink()
lines = []
report = sweep("ray", "a", resume=True, progress=lines.append)
print("killed again", (folder / "killed").exists(), ray.is_initialized())
print("resumed", lines[0].split("]")[0], kept)
serial = sweep(1)
print("equal", len(rows(report)), rows(report) == rows(serial), {row["status"] for row in report.rows})


def fit(module, cell):
    if os.getpid() != driver and (cell.topology, cell.seed) == ("mpo", 1):
        (folder / f"try{time.time_ns()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"loss": float(cell.seed)}


report = tn.compare(["mpo"], model=model, fit=fit, seeds=2, jobs="ray")
bad = [row for row in report.rows if row["status"] != "ok"]
print("bad", [(row["topology"], row["seed"]) for row in bad], len(list(folder.glob("try*"))), bad[0]["reason"])

from tn4nn._comparison import ray_cluster

ray_cluster.installed_version = lambda: "9.9"
try:
    sweep("ray")
except tn.TN4NNError as error:
    print(error)
""")
    assert "interrupted True False\nleft []\n" in said
    assert "killed again True True\n" in said
    assert "resumed [1/12 " in said  # 8 of 20 rows were there
    assert "equal 20 True {'ok'}" in said
    assert "bad [('mpo', 1)] 3 its worker died 3 times" in said
    assert re.search(r"the workers of the Ray cluster have tn4nn .*, this process has 9\.9: install the same", said)


@pytest.fixture
def cluster(tmp_path):
    """The address of a cluster that is there, and its processes."""
    psutil = pytest.importorskip("psutil")
    ports = []
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            free = stack.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", f"--port={ports[0]}",
        f"--ray-client-server-port={ports[1]}", "--include-dashboard=false", "--disable-usage-stats",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=environment(OMP_NUM_THREADS="1", RAY_AUTH_MODE="token"), cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", ports[1]), 1).close()
            break
        time.sleep(0.5)
    everything = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    yield f"ray://127.0.0.1:{ports[1]}", process
    for one in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in one.children(recursive=True):
                child.kill()
            one.kill()
    process.wait(60)


@needs_ray
@pytest.mark.thorough
@pytest.mark.timeout(900)
def test_a_cluster_that_is_there_is_left_and_its_loss_keeps_the_rows(script, cluster):
    address, process = cluster
    code = f"""
address, head = {address!r}, {process.pid}
(folder / "killed").touch()
report = sweep(address)
print("equal", rows(report) == rows(sweep(1)))
"""
    assert "equal True" in script(code, RAY_ADDRESS="", RAY_AUTH_MODE="token")
    assert process.poll() is None
    code += """
import psutil
def lose(line):
    if line.startswith("[8/"):
        for one in psutil.Process(head).children(recursive=True):
            one.kill()
try:
    sweep(address, "lost", progress=lose)
except tn.TN4NNError as error:
    print(error)
print("kept", len((folder / "lost" / "rows.jsonl").read_text().splitlines()) >= 8)
"""
    said = script(code, RAY_ADDRESS="", RAY_AUTH_MODE="token")
    assert re.search(r"the Ray cluster at 127\.0\.0\.1:\d+ is lost .*Rows that were finished are kept: resume", said)
    assert "kept True" in said


@pytest.mark.slow
@needs_ray
def test_an_address_at_which_nothing_answers_is_told_soon():
    code = """
        import time, ray, torch, tn4nn as tn
        begin = time.monotonic()
        try:
            tn.compare(["mpo"], budget=600, backends="torch", seeds=1, epochs=1, lr=1e-3, jobs="ray://127.0.0.1:1")
        except tn.TN4NNError as error:
            print(time.monotonic() - begin < 60, error)
    """
    said = run_python(code)
    assert re.match(r"True no Ray cluster answers at 'ray://127.0.0.1:1' within 10 s .*start one there", said)


def test_without_ray_the_line_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(tn.TN4NNError, match=r'which is not installed: pip install "tn4nn\[ray\]"'):
        tn.compare(["mpo"], budget=600, backends="torch", seeds=1, epochs=1, lr=1e-3, jobs="ray")


@pytest.mark.parametrize("jobs", ["rya", "ray://", "ray://host:port", "ray:host", ""])
def test_words_that_are_no_jobs(jobs):
    with pytest.raises(tn.TN4NNError, match=r"jobs: expected a whole number, 'ray', or 'ray://HOST:PORT'.*received"):
        tn.compare(["mpo"], budget=600, backends="torch", jobs=jobs)


# -- what processes can be sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["model", "fit"])
def test_functions_that_a_process_cannot_find_are_refused_before_anything_starts(what, tmp_path):
    import torch

    made = {"model": _model, "fit": _fit}
    made[what] = lambda *_: _model()
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(
        tn.TN4NNError, match=rf"{what}: <function .* cannot be sent.*lambda.*top of a module.*jobs=1, or jobs=\"ray\""
    ):
        tn.compare(["mpo"], **made, jobs=2, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert isinstance(_model(), torch.nn.Module)


def _model():
    import torch

    return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 3))


def _fit(module, cell):
    return {"loss": float(np.mean(cell.seed))}


@pytest.mark.slow
def test_a_function_that_was_typed_in_is_refused():
    code = """
        import torch, tn4nn as tn
        def model():
            return torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 3))
        try:
            tn.compare(["mpo"], model=model, fit=print, jobs=2)
        except tn.TN4NNError as error:
            print(error)
    """
    assert re.search(r"model: .* cannot be sent to another process \(it was typed in", run_python(code))
