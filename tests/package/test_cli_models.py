"""Models, tasks and sweeps, as the command names them."""

import inspect
import json
import pickle
import re

import pytest
from typer.testing import CliRunner

import tn4nn as tn
from tn4nn._cli import sweeps
from tn4nn._cli.commands import app
from tn4nn._cli.subjects import FromFile, model_of, task_of

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)
    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))

def make_model(width=24):
    return Net(width)

def fit(model, cell):
    return {"loss": 1.5, "f1": 0.25}
"""
TEXT = "to be or not to be, that is the question; " * 40


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a person's files, in which the command runs."""
    (tmp_path / "my.py").write_text(SOURCE)
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tn4nn._comparison.timing.ROUNDS", 2)
    monkeypatch.setattr("tn4nn._comparison.timing.STEPS", 1)
    return tmp_path


def rows_of(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--json", "found.json"])
    assert result.exit_code == 0, (result.output, result.exception)
    with open("found.json") as file:
        return {row["topology"]: row for row in json.load(file)["rows"]}, result.output


def test_a_function_in_a_file_goes_to_other_processes_and_knows_when_it_was_edited(folder):
    pytest.importorskip("torch")
    make = FromFile(folder / "my.py", "make_model", {"width": 8})
    again = pickle.loads(pickle.dumps(make))
    assert again().first.out_features == 8
    assert again(width=5).first.out_features == 5
    assert inspect.signature(again).parameters["width"].default == 8
    before = repr(make)
    (folder / "my.py").write_text(SOURCE + "# edited")
    assert repr(FromFile(folder / "my.py", "make_model", {"width": 8})) != before
    with pytest.raises(tn.TN4NNError, match="Did you mean 'make_model'"):
        FromFile(folder / "my.py", "make_modl", {})
    with pytest.raises(tn.TN4NNError, match="takes no 'depth'"):
        FromFile(folder / "my.py", "make_model", {"depth": 8})
    (folder / "my.py").write_text("1 / 0")
    with pytest.raises(tn.TN4NNError, match="cannot be run: ZeroDivisionError"):
        FromFile(folder / "my.py", "make_model", {})


@pytest.mark.parametrize("name", ["gpt", "vit", "cnn", "mlp"])
def test_presets_take_the_sizes_of_the_task(folder, name):
    task = task_of("text.txt", 16) if name == "gpt" else task_of("digits", None)
    make = model_of(name, {"width": 16}, task)
    for width in (16, 8):
        model = make(width=width)
        assert model.out_shape(task.inputs) == task.outputs
    assert inspect.signature(make).parameters["width"].default == 16
    with pytest.raises(tn.TN4NNError, match="has no option 'depth'"):
        model_of(name, {"depth": 3}, task)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model_of("gtp", {}, None), "no model is called 'gtp'"),
        (lambda: model_of("gpt", {}, None), "the model 'gpt' needs a task"),
        (lambda: model_of("gpt", {}, task_of("digits", None)), "expected a text as the task"),
        (lambda: model_of("vit", {}, task_of("text.txt", 8)), "has one answer for a row"),
        (lambda: model_of("none.json", {}, None), "none.json cannot be read"),
        (lambda: task_of("digits", 8), "context= is for texts"),
        (lambda: sweeps.arguments({"task": {"name": "digits", "contxt": 8}}), "'contxt' is no setting of a task"),
        (lambda: sweeps.arguments({"model": {"layers": 8}}), "model: expected a name, or a table with name="),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(folder, call, message):
    with pytest.raises(tn.TN4NNError, match=re.escape(message)):
        call()


@pytest.mark.thorough
def test_a_sweep_file_holds_all_of_it_and_options_come_first(folder):
    pytest.importorskip("torch")
    (folder / "sweep.toml").write_text(
        """
        topologies = ["mpo"]
        budget = [0.5]
        where = "blocks.*"
        steps = 9
        seeds = 1
        lr = 1e-3
        backends = ["torch"]
        batch_size = 4
        [model]
        name = "gpt"
        layers = 1
        width = 16
        heads = 2
        [task]
        name = "text.txt"
        context = 8
        """
    )
    rows, _ = rows_of("compare", "sweep.toml", "--steps", 2, "--out", "out")
    assert list(rows) == ["dense", "narrow", "low_rank", "mpo"]
    assert rows["mpo"]["steps"] == 2
    assert rows["mpo"]["budget"] == rows["dense"]["params"] / 2
    assert (folder / "out" / "report.html").exists()
    (folder / "sweep.toml").write_text("topologes = ['mpo']")
    result = CliRunner().invoke(app, ["compare", "sweep.toml"])
    assert "'topologes' is no argument of a comparison. Did you mean 'topologies'" in str(result.exception)


@pytest.mark.thorough
def test_a_module_from_a_file_and_a_fit_of_ones_own(folder):
    pytest.importorskip("torch")
    rows, said = rows_of("compare", "--model", "my.py:make_model", "--task", "digits", "--topologies", "mpo", "--lr",
                         "0.01", "--budget", "0.4", "--epochs", 1, "--seeds", 1, "--out", "a")  # fmt: skip
    assert all(row["status"] == "ok" for row in rows.values())
    assert "your own:" not in said
    rows, _ = rows_of("compare", "--model", "my.py:make_model", "--fit", "my.py:fit", "--where", "first,second",
                      "--topologies", "mpo", "--seeds", 1, "--out", "b")  # fmt: skip
    assert {row["f1"] for row in rows.values()} == {0.25}


@pytest.mark.thorough
def test_the_plain_command_says_what_else_there_is(folder):
    pytest.importorskip("torch")
    _, said = rows_of("compare", "--topologies", "mpo", "--backend", "torch", "--seeds", 1, "--epochs", 1, "--lr",
                      "0.001")  # fmt: skip
    assert "--model gpt --task shakespeare" in re.sub(r"\s+", " ", said)


def test_a_model_of_transformers_from_its_configuration(folder):
    pytest.importorskip("transformers")
    settings = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 20, "n_positions": 16}
    (folder / "config.json").write_text(json.dumps(settings))
    model = model_of("config.json", {"n_layer": 2}, None)()
    assert len(model.transformer.h) == 2
    (folder / "config.json").write_text("{}")
    with pytest.raises(tn.TN4NNError, match="lacks 'model_type'"):
        model_of("config.json", {}, None)
