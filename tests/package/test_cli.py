"""The command line as a shell meets it: exit codes, messages, files."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import call, environment, first_of

import tn4nn as tn
from tn4nn._base import files as _files
from tn4nn._cli import commands

pytest.importorskip("torch")

QUICK = ["compare", "--topologies", "mpo,dense", "--budget", "600", "--backend", "torch", "--seeds", "1",
         "--epochs", "1", "--lr", "0.001"]  # fmt: skip


@pytest.mark.thorough
def test_compare_writes_everything(monkeypatch, tmp_path, capsys):
    code = call(monkeypatch, *QUICK, "--out", tmp_path / "out", "--json", tmp_path / "out.json")
    assert code == 0
    shown = capsys.readouterr().out
    assert "mpo" in shown
    assert "report.html" in shown
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["topology"] for row in rows] == ["mpo", "dense"]
    assert (tmp_path / "out" / "results.csv").exists()


def test_plan_and_cost(monkeypatch, tmp_path, capsys):
    assert call(monkeypatch, "plan", "mpo", "--rank", 4, "--batch", 8, "--json", tmp_path / "p.json") == 0
    shown = capsys.readouterr().out
    assert "largest intermediate" in shown
    assert "W first" in shown
    assert json.loads((tmp_path / "p.json").read_text())["batch"] == 8
    network = "x0=4 x1=8 -> y0=4 : x0 y0 a, x1 a"
    assert call(monkeypatch, "cost", network, "--json", tmp_path / "one.json") == 0
    shown = capsys.readouterr().out
    assert "Training step of 256 rows" in shown
    assert shown.count("fewest FLOPs") == 1
    rows = json.loads((tmp_path / "one.json").read_text())["rows"]
    assert {(row["batch"], row["phase"]) for row in rows} == {(256, "train")}
    assert call(monkeypatch, "cost", network, "--all", "--json", tmp_path / "c.json") == 0
    assert capsys.readouterr().out.count("fewest FLOPs") == 8
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    assert [(row["batch"], row["phase"]) for row in rows[::7][:3]] == [(1, "forward"), (1, "train"), (32, "forward")]
    assert rows[2]["way"] == "dense"
    assert rows[2]["macs"] == 128


def test_plan_explained(monkeypatch, tmp_path, capsys):
    arguments = ["plan", "mpo", "--rank", 4, "--batch", 8, "--runtime", "native", "--explain"]
    assert call(monkeypatch, *arguments, "--json", tmp_path / "p.json") == 0
    shown = capsys.readouterr().out
    assert "dominating: " in shown
    assert "bond a1: rank 3 for 4" in shown
    told = json.loads((tmp_path / "p.json").read_text())["explained"]
    assert 0 < told["share"] <= 1
    assert {change["what"] for change in told["changes"]} >= {"program runtime", "bond a0: rank 1 for 4"}


def test_cost_of_an_equation_and_of_a_file(monkeypatch, tmp_path, capsys):
    equation = ["cost", "xa,ay->xy", "--shapes", "4x2,2x8", "--input-legs", "x", "--batches", "3"]
    assert call(monkeypatch, *equation, "--json", tmp_path / "e.json") == 0
    record = json.loads((tmp_path / "e.json").read_text())
    net = tn.Network.from_dict(record["network"])
    assert (net.in_features, net.out_features, net.num_params) == (4, 8, 24)
    assert {row["measured_s"] for row in record["rows"]} == {None}
    (tmp_path / "net.json").write_text(net.to_json())
    assert call(monkeypatch, "cost", tmp_path / "net.json", "--batches", "3", "--json", tmp_path / "f.json") == 0
    assert json.loads((tmp_path / "f.json").read_text()) == record
    gpu = ["cost", tmp_path / "net.json", "--batches", "3", "--device", "H100", "--itemsize", "2"]
    assert call(monkeypatch, *gpu, "--json", tmp_path / "g.json") == 0
    rows = json.loads((tmp_path / "g.json").read_text())["rows"]
    assert [row["runtime"] for row in rows] == ["program"] * 6
    capsys.readouterr()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    assert call(monkeypatch, "plan", tmp_path / "binary.json") == 1
    assert "this is not JSON of a network" in capsys.readouterr().err
    for option in ("--rank", "--budget"):  # neither would be heard
        assert call(monkeypatch, "plan", tmp_path / "net.json", option, "100") == 1
        assert "has ranks of its own: leave out --budget and --rank" in " ".join(capsys.readouterr().err.split())
    assert call(monkeypatch, "cost", "xa,ay->xy", "--shapes", "4,by") == 1
    assert "expected an einsum as 'xa,ay->xy 4x2,2x8 x'" in " ".join(capsys.readouterr().err.split())


TOML = """
[grid]
cores = "x0 y0 h v, x1 y1 h w, x2 y2 v u, x3 y3 w u"
inputs = {x0 = 2, x1 = 4, x2 = 2, x3 = 4}
outputs = {y0 = 4, y1 = 2, y2 = 4, y3 = 2}
[two]
cores = "x0 y0 a, x1 y1 a"
inputs = {x0 = 8, x1 = 8}
outputs = {y0 = 8, y1 = 8}
"""
FORMS = {
    "name": "mpo",
    "toml": "{folder}/one.toml",
    "entry": "{folder}/mine.toml:two",
    "json": "{folder}/net.json",
    "json of topologies": "{folder}/mine.json:two",
    "topology": "{folder}/topology.json",
    "text": "x0=8 x1=8 -> y0=8 y1=8 : x0 y0 a, x1 y1 a",
    "einsum": "xya,zwa->xzyw 8x8x3,8x8x3 xz",
}


@pytest.fixture
def forms(tmp_path):
    """One network of 64 features on each side, in every form that the command line takes."""
    net = tn.topology("x0 y0 a, x1 y1 a", {"x0": 8, "x1": 8}, {"y0": 8, "y1": 8}).with_rank(3)
    entry = {"cores": "x0 y0 a, x1 y1 a", "inputs": {"x0": 8, "x1": 8}, "outputs": {"y0": 8, "y1": 8}}
    (tmp_path / "mine.toml").write_text(TOML)
    (tmp_path / "one.toml").write_text(TOML[TOML.index("[two]") :])
    (tmp_path / "mine.json").write_text(json.dumps({"one": entry, "two": entry}))
    (tmp_path / "net.json").write_text(net.to_json())
    (tmp_path / "topology.json").write_text(net.topology.to_json())
    np.save(tmp_path / "w.npy", np.eye(64))
    return {name: form.format(folder=tmp_path) for name, form in FORMS.items()}


@pytest.mark.cases(6)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("command", ["plan", "cost", "train", "decompose", "compare"])
def test_every_command_takes_a_network_in_every_form(monkeypatch, tmp_path, capsys, forms, command, form):
    text, out = forms[form], ["--json", tmp_path / "out.json"]
    ranks = [] if form in ("json", "einsum") else ["--rank", 3]
    arguments = {
        "plan": ["plan", text, "--in", 64, "--out", 64, "--batch", 4, *ranks],
        "cost": ["cost", text, "--in", 64, "--out", 64, "--batches", 4, *ranks],
        "train": ["train", text, "--epochs", 1, "--budget", 600],
        "decompose": ["decompose", tmp_path / "w.npy", text, *ranks],
        "compare": ["compare", "--topologies", text, "--budget", 600, "--seeds", 1, "--epochs", 1, "--lr", 0.001,
                    "--backend", "torch", "--out", tmp_path / "out"],
    }  # fmt: skip
    assert call(monkeypatch, *arguments[command], *out) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "out.json").read_text())
    if command == "plan" and form != "name":
        assert found["params"] == 2 * 8 * 8 * 3
    if command == "compare":
        assert [row["status"] for row in found["rows"]] == ["ok"]


@pytest.mark.thorough
def test_several_networks_and_entries_of_files(monkeypatch, tmp_path, capsys, forms):
    assert call(monkeypatch, "plan", tmp_path / "mine.toml") == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "expected one network, received 2: grid, two. Name one of a file by FILE:ENTRY" in shown
    assert call(monkeypatch, "plan", f"{tmp_path}/mine.toml:grod") == 1
    assert "has no entry 'grod': expected one of grid, two" in " ".join(capsys.readouterr().err.split())
    several = ";".join(["low_rank", f"{tmp_path}/mine.toml", forms["text"], forms["einsum"]])
    arguments = ["compare", "--topologies", several, "--budget", 900, "--seeds", 1, "--epochs", 1, "--lr", 0.001,
                 "--backend", "torch", "--out", tmp_path / "out", "--json", tmp_path / "out.json"]  # fmt: skip
    assert call(monkeypatch, *arguments) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["topology"] for row in rows] == ["low_rank", "grid", "two", "x0 y0 a, x1 y1 a", "xya,zwa->xzyw"]


@pytest.mark.parametrize("command", [["plan", "mpo", "--batch", "4"], ["cost", "mpo", "--batches", "4"], ["backends"]])
def test_json_to_stdout_is_all_of_stdout(monkeypatch, tmp_path, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *command, "--json", "-") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)
    assert len(shown.err) > 100
    assert list(tmp_path.iterdir()) == []
    assert call(monkeypatch, *command) == 0
    assert len(capsys.readouterr().out) > 100


def test_shells_complete_names(monkeypatch, capsys):
    for _ in range(2):
        monkeypatch.setenv("_TN4NN_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "tn4nn plan mp")
        monkeypatch.setenv("COMP_CWORD", "2")
        assert call(monkeypatch, "plan", "mp") == 0
        assert capsys.readouterr().out.split() == ["mpo"]


def test_plan_and_its_picture(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    assert call(monkeypatch, "plan", "mpo", "--in", 64, "--out", 64, "--picture", tmp_path / "t.svg") == 0
    assert (tmp_path / "t.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize("command", [["plan", "--picture"], ["cost", "--growth"]])
def test_what_cannot_be_drawn_is_said_before_the_work(monkeypatch, tmp_path, capsys, command):
    def worked(*_, **__):
        raise AssertionError("the work began")

    monkeypatch.setattr(commands, command[0], worked)
    assert call(monkeypatch, command[0], "mpo", "--in", 64, "--out", 64, command[1], tmp_path / "a.pdf") == 1
    assert "expected a .png or .svg file" in capsys.readouterr().err


def test_cost_and_its_growth(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    result = [tmp_path / "g.svg", tmp_path / "c.json"]
    arguments = [
        "cost",
        "low_rank",
        "--in",
        64,
        "--out",
        64,
        "--batches",
        "4",
        "--growth",
        result[0],
        "--json",
        result[1],
    ]
    assert call(monkeypatch, *arguments) == 0
    assert "rank^" in capsys.readouterr().out
    assert result[0].read_text().startswith("<?xml")
    assert set(json.loads(result[1].read_text())["curves"]["curves"]) == {"batch", "rank"}


def test_train_and_its_checkpoint(monkeypatch, tmp_path, capsys):
    arguments = ["train", "tree", "--epochs", 1, "--checkpoint", tmp_path / "c.st", "--json", tmp_path / "t.json"]
    assert call(monkeypatch, *arguments) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert json.loads((tmp_path / "t.json").read_text())["test_accuracy"] > 10
    assert (tmp_path / "c.st").exists()


def test_decompose(monkeypatch, tmp_path, capsys):
    w = np.kron(np.arange(1.0, 5).reshape(2, 2), np.eye(4))
    np.save(tmp_path / "w.npy", w)
    result = [tmp_path / "n.safetensors", tmp_path / "d.json"]
    arguments = ["decompose", tmp_path / "w.npy", "mpo", "--params", 60, "--out", result[0], "--json", result[1]]
    assert call(monkeypatch, *arguments) == 0
    assert "compressible: a random matrix of this shape has error" in capsys.readouterr().out
    record = json.loads(result[1].read_text())
    assert record["params"] <= 60
    assert record["error"] < 1e-6
    assert record["compressible"]
    net, weights = tn.load(result[0])
    assert net.to_dict() == record["network"]
    np.testing.assert_allclose(net.to_dense(weights), w, atol=1e-5)


def test_decompose_a_tensor_of_a_model_on_calibration_inputs(monkeypatch, tmp_path, capsys):
    model = tn.Sequential(first=tn.Linear(6, 4))
    tn.save(tmp_path / "m.safetensors", model, model.init(0))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((20, 6)))
    text = "x=6 -> y=4 : x a, a y"
    arguments = ["decompose", tmp_path / "m.safetensors", text, "--rank", 1, "--inputs", tmp_path / "x.npy"]
    assert call(monkeypatch, *arguments, "--tensor", "first.core0") == 0
    assert "of the outputs on the calibration inputs" in capsys.readouterr().out
    assert call(monkeypatch, *arguments) == 1
    assert "expected the name of a tensor (tensor=; --tensor in a shell), received None. Known: 'first" in " ".join(
        capsys.readouterr().err.split()
    )
    for name, word in (("missing.npy", "cannot be read as a .npy file"), ("missing", "cannot be read as a .npy or")):
        assert call(monkeypatch, "decompose", tmp_path / name, "mpo", "--rank", 1) == 1
        assert word in " ".join(capsys.readouterr().err.split())


def test_backends_lists_ours(monkeypatch, tmp_path, capsys):
    assert call(monkeypatch, "backends", "--json", tmp_path / "b.json") == 0
    rows = {row["backend"]: row for row in json.loads((tmp_path / "b.json").read_text())["rows"]}
    assert set(rows) >= {"numpy", "torch", "jax"}
    assert rows["torch"]["installed"]
    assert "torch 2." in capsys.readouterr().out


def test_catalogue_and_version(monkeypatch, capsys):
    assert call(monkeypatch, "catalogue") == 0
    assert "block_term" in capsys.readouterr().out
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("tn4nn ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare", "--topologies", "mpoo"], 1, "unknown topology 'mpoo'. Did you mean 'mpo'"),
        (["compare", "--data", "nope"], 1, "nope"),
        (["compare", "--budget", "many"], 2, "whole numbers"),
        (["compare", "--budget", "0"], 1, "must be at least 1, received 0"),
        (["compare", "--lr", "fast"], 2, "'auto' or a number"),
        (["compare", "--backend", "toch"], 1, "unknown backend 'toch'"),
        (["compare", "--topologies", "missing.toml"], 1, "missing.toml cannot be read"),
        (["compare", "--seeds", "0"], 2, "--seeds"),
        (["plan", "x0=4 -> y0 : x0 y0"], 1, "expected 'x0=4 x1=8 -> y0=4 : x0 y0 a, x1 a'"),
        (["plan", "x0=4 x0=8 -> y0=4 : x0 a, a y0"], 1, "leg 'x0' has a size twice on one side"),
        (["plan", "missing.json"], 1, "missing.json"),
        (
            ["cost", "xa,ay", "--shapes", "4x2,2x8", "--input-legs", "x", "--rank", "3"],
            1,
            "has ranks of its own: leave",
        ),
        (["cost", "mpo", "--device", "Z80", "--batches", "4"], 1, "unknown GPU 'Z80': expected one of H200, H100"),
        (
            ["cost", "mpo", "--device", "H100", "--measure"],
            1,
            "device='H100' is priced, with its own parameters, and",
        ),
        (["plan", "mpo", "--runtime", "fast"], 1, "runtime must be one of program, native, received 'fast'"),
        (["plan", "mpo", "--memory", "10"], 1, "no plan of 'mpo'"),
        (["cost", "x...a,ay", "--shapes", "4x2,2x8", "--input-legs", "x"], 1, "an equation with an ellipsis does not"),
        (["cost", "xaa,ay", "--shapes", "4x2x2,2x8", "--input-legs", "x"], 1, "index 'a' occurs twice on tensor"),
        (["plan", "mpo", "--picture", "tree.pdf"], 1, "expected a .png or .svg file for a picture"),
        (["plan", "mpo", "--budget", "10"], 1, "the smallest feasible one is 128"),
        (["nonsense"], 2, "No such command"),
        (["plan", "mpo", "--explain", "true"], 2, "--explain takes no value: leave out 'true'"),
        (["compare", "--resume", "yes"], 2, "--resume takes no value: leave out 'yes'"),
        (["plan", "mpo", "--rnak", "3"], 2, "--rank"),
        (["plan", "xa,ay->xy 4x2 x"], 1, "the equation has 2 operands, received 1 shapes"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(monkeypatch, tmp_path, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == code
    shown = " ".join(capsys.readouterr().err.split()).replace("│ ", "").replace(" │", "")
    assert message in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_writing_results_keeps_the_old_ones(monkeypatch, tmp_path, capsys):
    import errno

    out = tmp_path / "out"
    assert call(monkeypatch, *QUICK, "--out", out) == 0
    before = (out / "results.json").read_bytes()

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "_write_all", full)
    assert call(monkeypatch, *QUICK, "--out", out, "--resume") == 1
    shown = capsys.readouterr().err
    assert "No space left on device" in shown
    assert (out / "results.json").read_bytes() == before


@pytest.mark.parametrize("jobs", first_of(["2", "1"], 0))
def test_ctrl_c_in_the_middle_of_a_sweep(monkeypatch, tmp_path, capsys, jobs):
    arguments = ["compare", "--topologies", "mpo,ring", "--backend", "torch", "--epochs", "20", "--lr", "0.001",
                 "--seeds", "4", "--out", str(tmp_path / "out")]  # fmt: skip
    command = [sys.executable, "-m", "tn4nn", *arguments, "--jobs", jobs]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    for line in child.stderr:
        if line.startswith("[2/8]"):
            break
    child.send_signal(signal.SIGINT)
    rest = child.communicate(timeout=60)[1]
    assert child.returncode == 130, rest
    assert "--resume" in rest
    assert "Traceback" not in rest
    kept = [json.loads(line) for line in Path(tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    done = sum(line["value"].get("status") == "ok" for line in kept)
    assert 2 <= done < 8
    assert call(monkeypatch, *arguments, "--resume") == 0
    assert f"[{8 - done}/{8 - done}]" in capsys.readouterr().err
