"""The sweep: budgets, rows, resuming, failures."""

import dataclasses
import json
import math

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._comparison import cells, runs, settings, timing
from tn4nn._runtime.target import Target

torch = pytest.importorskip("torch")

QUICK = {"backends": ["torch"], "seeds": 2, "epochs": 1, "lr": 1e-3}
KEYS = (
    "topology", "budget", "params", "model_params", "fill", "macs_per_sample", "peak_bytes", "saved_bytes", "step_ms",
    "step_vs_dense", "backend", "device", "dtype", "seed", "lr", "accuracy", "status", "reason",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "STEPS", 2)


def test_rows_hold_what_scripts_rely_on():
    report = tn.compare(["mpo", "dense", "tucker"], budget=[600, 900], **QUICK)
    assert report.results["schema"] == 1
    assert {(row["topology"], row["budget"]) for row in report.rows} == {
        ("mpo", 600), ("mpo", 900), ("tucker", 600), ("tucker", 900), ("dense", 4736)
    }  # fmt: skip
    for row in report.rows:
        assert set(row) >= set(KEYS)
        assert row["status"] == "ok", row["reason"]
        assert row["params"] <= row["budget"]
        assert row["fill"] == row["params"] / row["budget"] >= 0.97
        assert 0 <= row["accuracy"] <= 100
        assert row["step_ms"] > 0
        assert row["step_vs_dense"] > 0
        assert row["lr"] == 1e-3
    assert {row["seed"] for row in report.rows} == {0, 1}
    assert report.results["machine"]["torch"].startswith("2.")
    assert "accuracy" in str(report)


def test_dense_is_the_reference_once():
    report = tn.compare(["dense", "mpo"], budget=[600, 900], **{**QUICK, "seeds": 1})
    assert [row["topology"] for row in report.rows] == ["dense", "mpo", "mpo"]
    assert report.rows[0]["params"] == 64 * 64 + 64 * 10
    assert report.rows[0]["compression"] == 1


def test_keys_of_rows_keep_their_order():
    report = tn.compare(["mpo", "btt"], budget=600, **{**QUICK, "seeds": 1})
    for row in report.rows:
        assert tuple(key for key in row if key in KEYS) == KEYS


def test_budgets_that_give_the_same_model_share_a_run():
    lines = []
    report = tn.compare(
        ["low_rank", "dense"], budget=[300, 301], head="dense", progress=lines.append, **{**QUICK, "seeds": 1}
    )
    one, dense, other = report.rows
    assert [one["budget"], dense["budget"], other["budget"]] == [300, 4096, 301]
    assert {**one, "budget": 301, "fill": other["fill"]} == other
    assert len([line for line in lines if line.startswith("[")]) == 2


@pytest.mark.parametrize(("device", "said"), [(None, "NVIDIA H200"), ("cpu", "cpu")])
def test_a_row_names_the_device_that_the_backend_takes_by_itself(monkeypatch, device, said):
    monkeypatch.setattr(cells, "target_of", lambda name, device, dtype: Target(name, "NVIDIA H200", dtype))
    report = tn.compare(["btt", "low_rank"], budget=400, device=device, **{**QUICK, "seeds": 1})
    assert {row["status"] for row in report.rows} == {"ok", "infeasible"}
    assert {row["device"] for row in report.rows} == {said}


def test_an_infeasible_cell_says_why():
    report = tn.compare(["btt", "low_rank"], budget=400, **{**QUICK, "seeds": 1})
    (btt,) = (row for row in report.rows if row["topology"] == "btt")
    assert btt["status"] == "infeasible"
    assert "the smallest feasible one is 1,232 (rank 1 on every bond)" in btt["reason"]
    assert btt["accuracy"] is None
    assert "smallest feasible one" in str(report)


def test_one_name_is_a_list_of_one():
    options = {"budget": 600, "seeds": 1, "epochs": 1, "lr": 1e-3}
    report = tn.compare("mpo", backends="torch", **options)
    assert [(row["topology"], row["backend"]) for row in report.rows] == [("mpo", "torch")]
    named = tn.build("mpo", 64, 64)
    assert [row["topology"] for row in tn.compare(named, backends="torch", **options).rows] == ["mpo"]


def test_seeds_and_backends_give_the_same_weights_and_different_runs():
    report = tn.compare(["mpo"], budget=600, **QUICK)
    assert len({row["accuracy"] for row in report.rows}) == 2


def test_every_topology_gets_the_same_search(monkeypatch):
    tried = {}
    original = runs.train

    def spy(model, *args, **kwargs):
        if kwargs["seed"] == runs.SEARCH_SEED:
            tried.setdefault(model.fingerprint, []).append((kwargs["lr"], kwargs["epochs"], kwargs["backend"]))
        return original(model, *args, **kwargs)

    monkeypatch.setattr(runs, "train", spy)
    report = tn.compare(["mpo", "cp"], budget=600, backends=["torch"], seeds=1, epochs=3)
    assert len(tried) == 2
    assert all(runs == [(lr, 1, "torch") for lr in settings.LEARNING_RATES] for runs in tried.values())
    assert all(row["lr"] in settings.LEARNING_RATES for row in report.rows)


@pytest.mark.parametrize("lr", [1e-3, "auto"])
def test_a_cell_that_fails_is_a_row_and_the_sweep_goes_on(monkeypatch, lr):
    from tn4nn_torch._trainer import TorchTrainer

    original = TorchTrainer.steps

    def fails(self, *given):  # in training, in the search for a learning rate and where steps are timed
        if len(self.names) == 6:
            raise RuntimeError("out of something")
        return original(self, *given)

    monkeypatch.setattr(TorchTrainer, "steps", fails)
    report = tn.compare(["low_rank", "mpo"], budget=600, **{**QUICK, "seeds": 1, "lr": lr})
    assert [row["status"] for row in report.rows] == ["failed", "ok"]
    assert report.rows[0]["reason"] == "RuntimeError: out of something"


def test_where_every_cell_fails_all_rows_say_so(monkeypatch):
    def fails(*given, **options):
        raise RuntimeError("out of something")

    monkeypatch.setattr(runs, "train", fails)
    report = tn.compare(["low_rank", "mpo"], budget=600, **{**QUICK, "seeds": 1})
    assert [row["status"] for row in report.rows] == ["failed", "failed"]


def test_a_backend_named_twice_counts_once():
    report = tn.compare(["mpo"], budget=600, **{**QUICK, "seeds": 1, "backends": ["torch", "torch"]})
    assert len(report.rows) == 1


def test_a_run_that_diverges_is_failed():
    report = tn.compare(["mpo"], budget=600, **{**QUICK, "seeds": 1, "lr": 1e30})
    assert report.rows[0]["status"] == "failed"
    assert "diverged" in report.rows[0]["reason"]


# -- resuming ---------------------------------------------------------------------------------------------------


def _no_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("step_")} for row in rows]


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = tn.compare(["mpo", "cp"], budget=600, out=tmp_path / "whole", **QUICK)
    original, ran = runs.train, []

    def stops(model, *args, **kwargs):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(kwargs["seed"])
        return original(model, *args, **kwargs)

    monkeypatch.setattr(runs, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        tn.compare(["mpo", "cp"], budget=600, out=tmp_path / "part", **QUICK)
    again = []
    monkeypatch.setattr(runs, "train", lambda m, *a, **k: again.append(k["seed"]) or original(m, *a, **k))
    rest = tn.compare(["mpo", "cp"], budget=600, out=tmp_path / "part", resume=True, **QUICK)
    assert len(again) == 2
    assert _no_times(rest.rows) == _no_times(whole.rows)


def test_a_line_that_was_cut_off_runs_again(tmp_path, monkeypatch):
    first = tn.compare(["mpo"], budget=600, out=tmp_path, **QUICK)
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text()[:-40])
    again = []
    original = runs.train
    monkeypatch.setattr(runs, "train", lambda m, *a, **k: again.append(k["seed"]) or original(m, *a, **k))
    rest = tn.compare(["mpo"], budget=600, out=tmp_path, resume=True, **QUICK)
    assert again == [1]
    assert _no_times(rest.rows) == _no_times(first.rows)


def test_a_line_that_is_broken_in_the_middle_is_named(tmp_path):
    tn.compare(["mpo"], budget=600, out=tmp_path, **QUICK)
    path = tmp_path / "rows.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{oops", *lines[1:]]))
    with pytest.raises(tn.CheckpointError, match=r"rows\.jsonl, line 2 cannot be read"):
        tn.compare(["mpo"], budget=600, out=tmp_path, resume=True, **QUICK)


def test_without_resume_earlier_rows_are_moved_aside(tmp_path):
    tn.compare(["mpo"], budget=600, out=tmp_path, **{**QUICK, "seeds": 1})
    before = (tmp_path / "rows.jsonl").read_text()
    tn.compare(["mpo"], budget=600, out=tmp_path, **{**QUICK, "seeds": 1})
    kept = [p for p in tmp_path.iterdir() if p.name.startswith("rows.jsonl.")]
    assert len(kept) == 1
    assert kept[0].read_text() == before


def test_other_settings_do_not_take_up_old_rows(tmp_path):
    tn.compare(["mpo"], budget=600, out=tmp_path, **{**QUICK, "seeds": 1})
    more = tn.compare(["mpo"], budget=600, out=tmp_path, resume=True, **{**QUICK, "seeds": 1, "epochs": 2})
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "status" in line["value"]]) == 2
    assert more.rows[0]["status"] == "ok"


@pytest.mark.parametrize("changed", ["y_train", "x_train", "y_test"])
def test_other_data_do_not_take_up_old_rows(tmp_path, changed):
    data = tn.load_data("digits")
    array = getattr(data, changed).copy()
    array[-1] = array[-2]  # far behind the first rows
    other = dataclasses.replace(data, **{changed: array})
    options = {**QUICK, "seeds": 1}
    tn.compare(["mpo"], budget=600, data=data, out=tmp_path, **options)
    tn.compare(["mpo"], budget=600, data=other, out=tmp_path, resume=True, **options)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len([line for line in lines if "accuracy" in line]) == 2


def test_two_processes_give_the_same_rows():
    alone = tn.compare(["mpo", "cp"], budget=600, **{**QUICK, "seeds": 1})
    pair = tn.compare(["mpo", "cp"], budget=600, jobs=2, **{**QUICK, "seeds": 1})
    for one, other in zip(_no_times(alone.rows), _no_times(pair.rows), strict=True):
        assert one["accuracy"] == pytest.approx(other["accuracy"], abs=0.5)
        assert {k: v for k, v in one.items() if "acc" not in k and "best" not in k} == {
            k: v for k, v in other.items() if "acc" not in k and "best" not in k
        }


# -- topologies of one's own ------------------------------------------------------------------------------------

OWN = """
[grid]
cores = "x0 y0 h v, x1 y1 h w, x2 y2 v u, x3 y3 w u"
inputs = {x0 = 2, x1 = 4, x2 = 2, x3 = 4}
outputs = {y0 = 4, y1 = 2, y2 = 4, y3 = 2}
"""

HEAD = """
[grid.head]
cores = "x0 y0 a, x1 y1 a"
inputs = {x0 = 8, x1 = 8}
outputs = {y0 = 2, y1 = 5}
"""


def test_own_topology_from_a_file_gets_a_dense_head_for_all(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    report = tn.compare([*tn.read_topologies(path), "mpo"], budget=300, **{**QUICK, "seeds": 1})
    assert report.results["config"]["head"] == "dense"
    assert [row["topology"] for row in report.rows] == ["grid", "mpo"]
    assert all(row["params"] <= 300 for row in report.rows)
    assert all(row["model_params"] == row["params"] + 64 + 640 + 10 for row in report.rows)


def test_own_topology_with_a_head(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN + HEAD)
    report = tn.compare([*tn.read_topologies(path), "mpo"], budget=500, **{**QUICK, "seeds": 1})
    assert report.results["config"]["head"] == "network"
    assert all(row["params"] <= 500 for row in report.rows)


def test_own_topology_in_json(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"mine": {"cores": "x a, a y", "inputs": {"x": 64}, "outputs": {"y": 64}}}))
    (mine,) = tn.read_topologies(path)
    assert mine == tn.topology("x a, a y", {"x": 64}, {"y": 64}, name="mine")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "[x", "is not TOML"),
        ("a.json", "{", "is not JSON"),
        (
            "a.toml",
            "[x]\ncores = 'x a'\ninputs = {x = 2}\noutputs = {y = 2}",
            "entry 'x': output leg 'y' is on no core",
        ),
        ("a.toml", "x = 3", "entry 'x'"),
        ("a.toml", "[x]\ncores = 'x y'\ninputs = {x = 2}", "entry 'x': topology data lacks outputs"),
    ],
)
def test_a_bad_file_of_topologies_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(tn.TopologyError, match=message):
        tn.read_topologies(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["mpoo"], {}, "unknown topology 'mpoo'. Did you mean 'mpo'"),
        (["mpo", "tt"], {}, "received twice: mpo"),
        ([], {}, "no topologies to compare"),
        (["mpo"], {"budget": 0}, "a budget of weights must be at least 1, received 0"),
        (["mpo"], {"lr": "best"}, "lr must be 'auto' or a number above 0, received 'best'"),
        (["mpo"], {"head": "tail"}, "head must be 'network' or 'dense'"),
        (["mpo"], {"seeds": 0}, "seeds must be a whole number of at least 1, received 0"),
        (["mpo"], {"jobs": 1.5}, r"jobs must be a whole number of at least 1, received 1\.5"),
        (["mpo"], {"epochs": 0}, "epochs must be a whole number of at least 1, received 0"),
        (["mpo"], {"batch_size": 0}, "batch_size must be a whole number of at least 1, received 0"),
        (["mpo"], {"hidden": 0}, "hidden"),
        (["mpo"], {"optimizer": "adma"}, "optimizer must be one of sgd, adam, adamw, received 'adma'"),
        (["mpo"], {"precision": "fp32"}, "precision must be one of float32, float64, bf16, received 'fp32'"),
        (["mpo"], {"budget": []}, "no budgets to compare under"),
        (["mpo"], {"backends": ["torhc"]}, "unknown backend 'torhc'"),
        ([tn.low_rank(64, 32)], {}, "maps 64 -> 32, but the hidden layer maps 64 -> 64"),
        (["mpo"], {"data": "digit"}, "digit"),
    ],
)
def test_bad_questions(arguments, options, message):
    with pytest.raises(tn.TN4NNError, match=message):
        tn.compare(arguments, **{**QUICK, **options})


def test_save_writes_the_three_files(tmp_path):
    report = tn.compare(["mpo"], budget=600, **{**QUICK, "seeds": 1})
    page = report.save(tmp_path / "new")
    assert {p.name for p in page.parent.iterdir()} == {"results.json", "results.csv", "report.html"}
    assert json.loads((page.parent / "results.json").read_text())["rows"] == report.rows


def test_digits_at_600_weights():
    """E13: an MPO with at most 600 weights reaches 93 % on the embedded digits."""
    report = tn.compare(["mpo"], budget=600, backends=["torch"], seeds=3)
    assert all(row["params"] <= 600 for row in report.rows)
    assert np.mean([row["accuracy"] for row in report.rows]) >= 93


def test_macs_are_those_of_the_plan():
    report = tn.compare(["low_rank"], budget=600, **{**QUICK, "seeds": 1})
    row = report.rows[0]
    assert row["macs_per_sample"] == row["params"]
    assert math.isclose(row["compression"], 4736 / row["params"])
