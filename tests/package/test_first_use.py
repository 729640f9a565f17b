"""`tn4nn doctor` and `tn4nn init`: what somebody runs on the first day."""

import json
import subprocess

import pytest
from helpers import call

import tn4nn as tn
from tn4nn._cli import doctor, examples, sweeps
from tn4nn._runtime.kernels import Kernel

pytest.importorskip("torch")


def found_by(checks):
    return {check.what: check for check in checks}


def test_doctor_examines_everything_and_compiles_nothing(monkeypatch, tmp_path, capsys):
    started, popen = set(), subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda args, *a, **o: started.add(args[0]) or popen(args, *a, **o))
    assert call(monkeypatch, "doctor", "--json", tmp_path / "d.json") == 0
    record = json.loads((tmp_path / "d.json").read_text())
    rows = {row["what"]: row for row in record["rows"]}
    assert record["faults"] == []
    assert started <= {"uname"}  # Python's own, for the platform
    assert {"machine", "kernel float32", "backend torch", "layer in torch", "cost model", "cache", "ray"} <= set(rows)
    assert rows["layer in torch"]["state"] == "ok"
    assert "agree with the oracle" in rows["layer in torch"]["found"]
    assert "layer in torch" in capsys.readouterr().out


def test_doctor_names_the_executor_that_runs_and_why(monkeypatch):
    net = tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(4)
    runs = tn.plan(net, 256, "train", backend="torch").executor
    found = found_by(doctor.examine())["layer in torch"].found
    assert ("C runtime" if runs == "native" else f"as {runs}") in found
    monkeypatch.setattr(doctor, "kernel", lambda itemsize: Kernel(None, why="no luck"))
    check = found_by(doctor._kernels())["kernel float32"]
    assert (check.state, "no luck" in check.found) == ("note", True)
    assert "build-kernel" in check.advice


def test_doctor_finds_wrong_numbers_and_broken_backends(monkeypatch, capsys):
    torch = tn.backend("torch")
    right = torch.forward
    monkeypatch.setattr(type(torch), "forward", lambda self, module, x: right(module, x) * 1.01)
    check = found_by(doctor._backend("torch"))["layer in torch"]
    assert check.state == "fault"
    assert "differs from the oracle" in check.found
    assert call(monkeypatch, "doctor") == 1
    assert "broken: layer in torch" in capsys.readouterr().err

    def broken(name):
        raise RuntimeError("a plugin of somebody")

    monkeypatch.setattr(doctor, "backend", broken)
    (check,) = doctor._backend("torch")
    assert (check.state, check.advice) == ("fault", "a plugin of somebody")


def test_the_example_of_topologies_can_be_planned_and_compared(monkeypatch, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    assert call(monkeypatch, "init", path) == 0
    assert f"tn4nn compare --topologies {path}" in path.read_text()
    found = {one.name: one for one in tn.read_topologies(path)}
    assert list(found) == ["chain", "star", "sum", "halves"]
    for topology in found.values():
        assert (topology.in_features, topology.out_features) == (64, 64)
        assert topology.with_budget(params=600).num_params <= 600
    assert call(monkeypatch, "plan", f"{path}:star", "--rank", 4, "--batch", 8) == 0


def test_the_example_of_a_comparison_is_whole(monkeypatch, tmp_path):
    path = tmp_path / "sweep.toml"
    assert call(monkeypatch, "init", path, "--sweep") == 0
    given = sweeps.arguments(sweeps.read(path))
    assert given["topologies"] == ["mpo", "tree", "btt"]
    assert given["task"].inputs == (32,)
    assert given["model"]().num_params > 0


def test_init_loses_nothing(monkeypatch, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    path.write_text("mine")
    assert call(monkeypatch, "init", path) == 1
    assert "is there already" in " ".join(capsys.readouterr().err.split())
    assert path.read_text() == "mine"
    assert call(monkeypatch, "init", path, "--replace") == 0
    assert path.read_text() != "mine"
    with pytest.raises(tn.TN4NNError, match="ends in .toml"):
        examples.write_example(tmp_path / "mine.json", examples.TOPOLOGIES, False)
