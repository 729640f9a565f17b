"""Comparing topologies in people's models: layer graphs, modules of torch and jax, loops of their own."""

import functools
import json
import re

import numpy as np
import pytest
from helpers import first_of

import tn4nn as tn
from tn4nn._comparison import timing
from tn4nn._comparison.layer_graphs import default_where
from tn4nn._model.rows import attention_macs, rows_of
from tn4nn._model.thin import thinner

torch = pytest.importorskip("torch")
nn = torch.nn

TASK = tn.language_model(tn.load_text("shakespeare")[:6000], context=8)
SIZES = {"layers": 1, "heads": 2, "vocab": TASK.outputs[-1], "context": 8}
GPT = functools.partial(tn.presets.gpt, width=16, **SIZES)
DIGITS = tn.classification(tn.load_data("digits").subset(300, 100))
QUICK = {"backends": ["torch"], "seeds": 1, "steps": 2, "lr": 1e-3, "batch_size": 4}


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "STEPS", 1)


class Net(nn.Module):
    """An MLP whose width can be chosen."""

    def __init__(self, width=32):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


def by_name(report):
    return {row["topology"]: row for row in report.rows}


# -- layer graphs ---------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_three_rows_are_always_there_and_the_rest_of_the_model_stays():
    report = tn.compare("mpo", model=GPT(), where="blocks.*", task=TASK, budget=0.5, **QUICK)
    rows = by_name(report)
    assert list(rows) == ["dense", "narrow", "low_rank", "mpo"]
    assert [row["role"] for row in report.rows] == ["dense", "narrow", "topology", "topology"]
    dense = rows["dense"]["params"]
    assert dense == 4 * 16 * 16 + 2 * 16 * 64
    for name in ("narrow", "low_rank", "mpo"):
        row = rows[name]
        least = 0.6 if name == "narrow" else 0.85  # widths are multiples of the heads
        assert least * dense / 2 < row["params"] <= dense / 2 == row["budget"]
        assert sum(row["layers"].values()) == row["params"]
        assert set(row["layers"]) == set(rows["dense"]["layers"])
        assert np.isfinite(row["loss"])
        assert row["steps"] == 2
    assert rows["mpo"]["model_params"] - rows["mpo"]["params"] == rows["dense"]["model_params"] - dense
    assert report.results["config"]["metric"] == "loss"
    json.dumps(report.results)


@pytest.mark.thorough
def test_dense_is_the_same_training_as_without_compare():
    report = tn.compare("mpo", model=GPT(), where="blocks.*", task=TASK, **QUICK)
    run = tn.train(GPT(), TASK, seed=0, steps=2, lr=1e-3, batch_size=4, optimizer="adam")
    assert by_name(report)["dense"]["loss"] == run.test_loss


@pytest.mark.thorough
@pytest.mark.parametrize("spread", first_of(["even", "solver"]))
def test_one_budget_for_all_layers(spread):
    report = tn.compare(
        ["mpo", "tree"], model=GPT(), where="blocks.*", task=TASK, budget=[0.25, 0.6], spread=spread, **QUICK
    )
    dense = by_name(report)["dense"]
    for row in report.rows:
        if row["role"] == "dense" or row["status"] != "ok":
            continue
        assert row["params"] <= row["budget"]
        if spread == "even":
            for name, params in row["layers"].items():
                if row["role"] == "topology":
                    assert params <= row["budget"] * dense["layers"][name] / dense["params"] + 1


@pytest.mark.cases(1)
@pytest.mark.parametrize(("unit", "share"), [("macs", 0.6), ("bytes", 0.5)])
def test_budgets_of_other_things(unit, share):
    report = tn.compare("low_rank", model=GPT(), where="blocks.*", task=TASK, **{unit: share}, **QUICK)
    rows = by_name(report)
    assert rows["dense"]["budget"] == (4 if unit == "bytes" else 8) * rows["dense"]["params"]
    for row in rows.values():
        assert row["fill"] <= 1
        assert row["fill"] > 0.8


@pytest.mark.thorough
def test_what_cannot_take_its_share_is_said_layer_by_layer():
    report = tn.compare("btt", model=GPT(), where=["*.query", "*.up"], task=TASK, budget=0.2, **QUICK)
    row = by_name(report)["btt"]
    assert row["status"] == "infeasible"
    for text in ("blocks.0.attention.query has 51 of its 256, the smallest is", "blocks.0.mlp.up has 204 of its 1,024"):
        assert text in row["reason"]


@pytest.mark.slow
def test_a_topology_of_ones_own_has_to_fit_every_layer():
    mine = tn.mpo((4, 4), (4, 4))
    report = tn.compare(mine, model=GPT(), where="blocks.*", task=TASK, **QUICK)
    row = by_name(report)[mine.name]
    assert row["status"] == "infeasible"
    assert "blocks.0.mlp.up is 16 -> 64, the topology 16 -> 16" in row["reason"]
    report = tn.compare(mine, model=GPT(), where="*.attention", task=TASK, budget=0.5, **QUICK)
    assert by_name(report)[mine.name]["status"] == "ok"


@pytest.mark.slow
def test_a_ladder_of_widths_and_runs_of_equal_compute():
    model = functools.partial(tn.presets.gpt, **SIZES)
    options = {**QUICK, "steps": None}
    report = tn.compare("mpo", model=model, where="blocks.*", task=TASK, scale={"width": [8, 16]}, flops=2e7, **options)
    assert [row["width"] for row in report.rows] == [8] * 4 + [16] * 4
    steps = {(row["topology"], row["width"]): row["steps"] for row in report.rows}
    assert steps["dense", 8] > 2 * steps["dense", 16]
    batch = 4
    for width in (8, 16):  # dense: two operations for each multiply-add, forward and twice that backward
        dense = model(width=width)
        macs = sum(layer.solid().num_params * rows for _, layer, rows in rows_of(dense, (8,)) if "table" not in _)
        macs = 3 * batch * (macs - dense.networks()["embedding"].num_params * 8 + attention_macs(dense, (8,)))
        assert steps["dense", width] == pytest.approx(2e7 / 2 / macs, abs=0.6)


@pytest.mark.thorough
def test_runs_of_equal_time(monkeypatch):
    monkeypatch.setattr("tn4nn._comparison.sweep.step_times", lambda backend, models, *rest: {
        name: {"step_ms": 10.0 * (i + 1), "step_vs_dense": 1.0} for i, name in enumerate(models)})  # fmt: skip
    report = tn.compare("mpo", model=GPT(), where="blocks.*", task=TASK, seconds=0.12, **{**QUICK, "steps": None})
    assert [row["steps"] for row in report.rows] == [12, 6, 4, 3]


@pytest.mark.thorough
def test_results_are_the_same_in_two_processes_and_after_a_stop(tmp_path):
    options = {"model": GPT(), "where": "blocks.*", "task": TASK, **QUICK}
    serial = tn.compare("mpo", **options)
    parallel = tn.compare("mpo", jobs=2, out=tmp_path, **options)
    again = tn.compare("mpo", out=tmp_path, resume=True, **options)
    losses = [[row["loss"] for row in report.rows] for report in (serial, parallel, again)]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.slow
def test_both_backends():
    pytest.importorskip("jax")
    report = tn.compare("mpo", model=GPT(), where="blocks.*", task=TASK, **{**QUICK, "backends": ["torch", "jax"]})
    losses = {(row["topology"], row["backend"]): row["loss"] for row in report.rows}
    for name in ("dense", "narrow", "low_rank", "mpo"):
        assert losses[name, "torch"] == pytest.approx(losses[name, "jax"], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"where": "block.*"}, tn.TN4NNError, "where: 'block.*' matches no dense layer of the model. "),
        ({"task": None}, tn.TN4NNError, "expected task= as a Task, received NoneType"),
        ({"task": DIGITS}, tn.ShapeError, "the model does not take the task's rows of shape (64,)"),
        ({"model": 7}, tn.TN4NNError, "model: expected a layer graph (as tn.presets.gpt()), or a function"),
        ({"model": lambda: 7}, tn.TN4NNError, "the function made a int, expected a layer graph"),
        ({"budget": 0.5, "macs": 0.5}, tn.TN4NNError, "a table has one budget: give one of budget, macs, bytes,"),
        ({"spread": "odd"}, tn.TN4NNError, "spread must be one of even, solver, received 'odd'"),
        ({"scale": {"width": [8]}}, tn.TN4NNError, "a ladder of widths needs a function of width"),
        ({"scale": {"depth": [8]}, "model": GPT}, tn.TN4NNError, "'depth' cannot be a ladder"),
        ({"flops": 1e9}, tn.TN4NNError, "a run has one length: give one of steps=, flops=, seconds="),
        ({"fit": print}, tn.TN4NNError, "fit= trains a module"),
    ],
)  # fmt: skip
def test_bad_questions(options, error, message):
    given = {"model": GPT(), "where": "blocks.*", "task": TASK, **QUICK, **options}
    with pytest.raises(error, match=re.escape(message)):
        tn.compare("mpo", **given)


def test_a_model_with_too_few_outputs_is_refused():
    model = tn.presets.gpt(width=16, **{**SIZES, "vocab": TASK.outputs[-1] - 1})
    with pytest.raises(tn.DataError, match="the model gives .* for a row of the task, which needs"):
        tn.compare("mpo", model=model, task=TASK, **QUICK)


def test_words_about_a_model_need_one():
    with pytest.raises(tn.TN4NNError, match="where= is about a model"):
        tn.compare("mpo", where="blocks.*")


# -- what a model is made of ----------------------------------------------------------------------------------------


def test_layers_are_chosen_without_patterns_too():
    assert default_where(GPT()) == tuple(n for n in GPT().networks() if n.startswith("blocks"))
    assert default_where(tn.presets.cnn()) == ("fc",)


THICK = {
    "gpt": tn.presets.gpt(layers=2, width=32, heads=4, dropout=0.1),
    "gated": tn.presets.gpt(layers=1, width=32, gated=True, rotary=True),
    "tied": tn.presets.gpt(layers=1, width=32, tied=True, kv_heads=2),
    "vit": tn.presets.vit(layers=1, width=32),
    "cnn": tn.presets.cnn(),
    "mlp": tn.presets.mlp(),
    "wrn": tn.presets.wrn20_4(dense=True),
    "lenet5": tn.presets.lenet5(dense=True),
}


@pytest.mark.parametrize("share", [0.25, 0.75])
@pytest.mark.parametrize("name", THICK)
def test_a_thinner_model_takes_and_gives_the_same_with_fewer_weights(name, share):
    model = THICK[name]
    shape = getattr(model, "input_shape", None) or (64,)
    thin = thinner(model, share, shape)
    assert thin.out_shape(shape) == model.out_shape(shape)
    assert thin.num_weights < model.num_weights
    assert set(thin.networks()) == set(model.networks())


def test_a_model_whose_parts_know_each_others_widths_cannot_be_made_thinner():
    with pytest.raises(tn.ShapeError, match="cannot be made thinner: an Unflatten follows"):
        thinner(tn.presets.densenet40(dense=True), 0.5, (3072,))


def test_rows_are_those_that_layers_see():
    model = tn.Sequential(tn.presets.vit(layers=1, width=16), tn.ReLU())
    seen = {}
    module = model.build("torch", seed=0)
    for name, layer in module.named_modules():
        if hasattr(layer, "apply_to") and type(layer).__name__ == "TNLinear":
            layer.register_forward_pre_hook(
                lambda _, args, name=name: seen.__setitem__(name, args[0][..., 0].numel() // 3)
            )
    module(torch.zeros(3, 784))
    found = {name: rows for name, layer, rows in rows_of(model, (784,)) if isinstance(layer, tn.Linear)}
    assert found == seen


# -- modules of frameworks ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_torch_module_gets_the_same_table():
    report = tn.compare(["mpo"], model=Net, task=DIGITS, budget=0.3, **{**QUICK, "steps": 30})
    rows = by_name(report)
    assert list(rows) == ["dense", "narrow", "low_rank", "mpo"]
    assert rows["dense"]["layers"] == {"first": 64 * 32, "second": 32 * 32}
    assert rows["dense"]["macs_per_sample"] == 64 * 32 + 32 * 32 + 320
    for row in report.rows:
        assert row["status"] == "ok"
        assert row["params"] <= row["budget"]
        assert 0 <= row["accuracy"] <= 100
        assert row["step_ms"] > 0
    width = rows["narrow"]["layers"]["first"] // 64
    assert rows["narrow"]["layers"] == {"first": 64 * width, "second": width * width}
    assert 64 * (width + 1) + (width + 1) ** 2 > rows["narrow"]["budget"] >= 64 * width + width**2


@pytest.mark.slow
def test_networks_can_begin_with_what_the_module_has():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="untrained"):
        report = tn.compare("mpo", model=Net, task=DIGITS, budget=0.9, start="decompose", **QUICK)
    assert by_name(report)["mpo"]["status"] == "ok"


@pytest.mark.slow
def test_a_function_without_width_has_no_narrow_row_and_says_why():
    report = tn.compare("mpo", model=lambda: Net(16), task=DIGITS, **QUICK)
    row = by_name(report)["narrow"]
    assert (row["status"], row["role"]) == ("infeasible", "narrow")
    assert "takes no width=" in row["reason"]


@pytest.mark.slow
def test_a_fit_of_ones_own_and_what_may_go_wrong_in_it():
    told = []

    def fit(model, cell):
        told.append((cell.topology, cell.role, cell.seed, cell.backend, cell.lr, type(model.first).__name__))
        if cell.topology == "mpo":
            raise KeyError("no such thing")
        if cell.role == "narrow":
            return {"loss": float("nan")}
        return None if cell.topology == "tree" else {"loss": 1.0 + cell.seed, "f1": 0.5}

    report = tn.compare(["mpo", "tree"], model=Net, where=["first", "second"], fit=fit, seeds=2, budget=0.4)
    rows = [(row["topology"], row["seed"], row["status"], row["reason"]) for row in report.rows]
    assert [row[2] for row in rows] == ["ok"] * 2 + ["failed"] * 2 + ["ok"] * 2 + ["failed"] * 4
    assert {row["f1"] for row in report.rows if row["status"] == "ok"} == {0.5}
    assert [row["loss"] for row in report.rows if row["status"] == "ok"] == [1.0, 2.0, 1.0, 2.0]
    reasons = {row[0]: row[3] for row in rows if row[2] == "failed"}
    assert reasons["narrow"] == "DataError: fit returned nan for 'loss': diverged"
    assert reasons["mpo"] == "KeyError: 'no such thing'"
    assert reasons["tree"].startswith("DataError: fit returned None: expected metrics by name")
    assert told[0] == ("dense", "dense", 0, "torch", None, "Linear")
    assert ("mpo", "topology", 1, "torch", None, "TNLinear") in told


@pytest.mark.slow
def test_seeds_draw_the_weights_of_a_module():
    seen = {}

    def fit(model, cell):
        seen[cell.topology, cell.seed] = model.head.weight.detach().clone()
        return {"loss": float(torch.rand(()))}

    first = tn.compare("mpo", model=Net, fit=fit, seeds=2)
    before = dict(seen)
    again = tn.compare("mpo", model=Net, fit=fit, seeds=2)
    assert not torch.equal(seen["dense", 0], seen["dense", 1])
    assert torch.equal(seen["dense", 0], before["dense", 0])
    assert torch.equal(seen["dense", 0], seen["mpo", 0])
    assert [row["loss"] for row in first.rows] == [row["loss"] for row in again.rows]


@pytest.mark.slow
def test_tied_layers_are_replaced_together():
    class Shared(Net):
        def __init__(self, width=32):
            super().__init__(width)
            self.third = nn.Linear(width, width)
            self.third.weight = self.second.weight

        def forward(self, x):
            return self.head(torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)))))))

    report = tn.compare("mpo", model=Shared, where="second", task=DIGITS, budget=0.5, **QUICK)
    rows = by_name(report)
    assert rows["dense"]["layers"] == {"second": 1024}  # once
    assert rows["mpo"]["status"] == "ok"


@pytest.mark.thorough
def test_an_equinox_module():
    jax, eqx = pytest.importorskip("jax"), pytest.importorskip("equinox")

    def make(width=32):
        return eqx.nn.MLP(64, 10, width, 2, key=jax.random.key(0))

    report = tn.compare("mpo", model=make, task=DIGITS, budget=0.3, **{**QUICK, "backends": None})
    rows = by_name(report)
    assert {row["backend"] for row in report.rows} == {"jax"}
    assert rows["dense"]["layers"] == {"layers.0": 64 * 32, "layers.1": 32 * 32}
    assert rows["dense"]["macs_per_sample"] == 64 * 32 + 32 * 32 + 320
    assert all(row["status"] == "ok" for row in report.rows)
    with pytest.raises(tn.TN4NNError, match=re.escape("the model is a module of jax: expected backends=['jax']")):
        tn.compare("mpo", model=make, task=DIGITS, backends=["torch"])


def test_a_module_of_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, width):
            rngs = nnx.Rngs(0)
            self.first, self.head = nnx.Linear(64, width, rngs=rngs), nnx.Linear(width, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.first(x)))

    report = tn.compare(
        "mpo", model=lambda width=32: Model(width), task=DIGITS, budget=0.5, **{**QUICK, "backends": None}
    )
    assert [row["status"] for row in report.rows] == ["ok"] * 4


def test_labels_that_a_module_cannot_give_are_told():
    with pytest.raises(tn.DataError, match="the model gives"):
        tn.compare("mpo", model=Net, task=tn.classification(np.zeros((20, 64), "f"), np.arange(20)), macs=0.5, **QUICK)


@pytest.mark.slow
def test_rows_of_an_edited_function_are_not_taken_up(tmp_path):
    pytest.importorskip("torch")
    calls = []

    def one(model, cell):
        calls.append(1)
        return {"loss": 1.0}

    def two(model, cell):
        calls.append(2)
        return {"loss": 2.0}

    two.__qualname__ = one.__qualname__  # the same place in a file that was edited
    options = {"model": Net, "where": "first", "seeds": 1, "out": tmp_path, "resume": True}
    for fit, expected in ((one, 1.0), (one, 1.0), (two, 2.0)):
        report = tn.compare("mpo", fit=fit, **options)
        assert {row["loss"] for row in report.rows} == {expected}
    assert calls == [1] * 4 + [2] * 4


@pytest.mark.slow
def test_a_module_that_raises_in_training_is_a_failed_row_and_the_rest_goes_on():
    class Broken(Net):
        def forward(self, x):
            if self.training and type(self.first).__name__ == "TNLinear":
                raise KeyError("in the middle")
            return super().forward(x)

    options = {**QUICK, "lr": "auto", "steps": 9}
    report = tn.compare("mpo", model=Broken, where=["first", "second"], task=DIGITS, budget=0.4, **options)
    rows = [(row["topology"], row["status"], row["reason"]) for row in report.rows]
    failed = "KeyError: 'in the middle'"
    assert rows == [
        ("dense", "ok", ""),
        ("narrow", "ok", ""),
        ("low_rank", "failed", failed),
        ("mpo", "failed", failed),
    ]


@pytest.mark.slow
def test_times_of_models_that_fail_are_left_out():
    class Broken(Net):
        def forward(self, x):
            if self.training and type(self.first).__name__ == "Linear":
                raise KeyError("in the middle")
            return super().forward(x)

    report = tn.compare("mpo", model=Broken, where=["first", "second"], task=DIGITS, budget=0.4, **QUICK)
    rows = by_name(report)
    assert rows["dense"]["status"] == "failed"
    assert rows["mpo"]["status"] == "ok"
    assert rows["mpo"]["step_ms"] > 0
    assert rows["mpo"]["step_vs_dense"] is None
