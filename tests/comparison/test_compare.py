"""The sweep: budgets, rows, resuming, failures."""

import dataclasses
import errno
import json
import math
import os

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._base import files as _files
from tn4nn._base.records import sealed
from tn4nn._comparison import cells, runs, settings, timing, workers
from tn4nn._comparison.variants import Variant
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_every_topology_gets_the_same_search(monkeypatch):
    tried = {}
    original = runs.train

    def spy(model, *args, **kwargs):
        if kwargs["seed"] == runs.SEARCH_SEED:
            tried.setdefault(model.fingerprint, []).append((kwargs["lr"], kwargs["epochs"], kwargs["backend"]))
        return original(model, *args, **kwargs)

    monkeypatch.setattr(runs, "train", spy)
    report = tn.compare(["mpo", "cp"], budget=600, backends=["torch"], seeds=1, epochs=9)
    assert len(tried) == 2
    for ran in tried.values():
        assert ran[:4] == [(lr, 1, "torch") for lr in settings.LEARNING_RATES]
        assert [epochs for _, epochs, _ in ran] == [1] * (len(ran) - 2) + [3, 3]  # the best two again, for longer
    steps = -(-round(0.9 * 1438) // 64)
    for row, ran in zip(report.rows, tried.values(), strict=True):
        assert row["search_steps"] == steps * sum(epochs for _, epochs, _ in ran)
        assert row["steps"] == 9 * steps
    assert {row["lr"] for row in report.rows} <= {lr for ran in tried.values() for lr, *_ in ran}


@pytest.mark.parametrize(
    ("best", "found", "further"),
    [
        (3e-3, 3e-3, ()),
        (1e-2, 1e-2, (3e-2,)),
        (3e-2, 3e-2, (3e-2, 1e-1)),
        (0.3, 0.3, (3e-2, 1e-1, 0.3)),
        (10.0, 0.3, (3e-2, 1e-1, 0.3)),  # never further
        (3e-5, 3e-5, (1e-4, 3e-5, 1e-5)),
        (1e-9, 1e-5, (1e-4, 3e-5, 1e-5)),
        (None, 1e-2, ()),  # it fails with every rate
    ],
)
def test_the_search_goes_on_beyond_an_edge_that_wins(monkeypatch, best, found, further):
    tried = []

    def score(cell, task, settings, lr, steps, share):
        tried.append((lr, share))
        return (runs.FAILED if best is None else (50.0, -abs(math.log(lr / best)))), 10

    monkeypatch.setattr(runs, "_score", score)
    task = tn.classification(tn.load_data("digits"))
    auto = settings.Settings("digits", 8, 3, None, 64, "adam", "auto", "float32", None, (600,), "params", 1, 1,
                             "network", ("torch",))  # fmt: skip
    variant = Variant("mpo", "topology", 600, None, {"0": 600}, 600.0, 4736, 4800)
    rate = runs.best_rate(cells.Cell(variant, "torch", 0, "key"), task, auto, None)
    assert rate.lr == found
    first = [lr for lr, share in tried if share == runs.RUNGS[0]]
    assert tuple(first) == (*settings.LEARNING_RATES, *further)
    assert len(tried) - len(first) == (0 if best is None else 2)
    assert rate.search_steps == 10 * len(tried)


@pytest.mark.cases(1)
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
    report = tn.compare(["mpo"], budget=600, optimizer="sgd", **{**QUICK, "seeds": 1, "lr": 1e30})
    assert report.rows[0]["status"] == "failed"
    assert "diverged" in report.rows[0]["reason"]


# -- resuming ---------------------------------------------------------------------------------------------------


def _no_times(rows):
    return [{k: v for k, v in row.items() if not k.startswith("step_")} for row in rows]


@pytest.mark.thorough
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
    *lines, _ = path.read_text().splitlines()
    path.write_text("\n".join(lines)[:-40])
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


def _rows(tmp_path):
    """The finished sweep of one model and two seeds, and its lines."""
    tn.compare(["mpo"], budget=600, out=tmp_path, **QUICK)
    path = tmp_path / "rows.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 4  # a learning rate, two rows, the end
    return path, lines


def _resumed(tmp_path):
    return tn.compare(["mpo"], budget=600, out=tmp_path, resume=True, **QUICK)


def test_a_last_line_without_its_newline_is_kept_and_nothing_is_glued_to_it(tmp_path):
    path, lines = _rows(tmp_path)
    path.write_text("\n".join(lines[:2]))
    _resumed(tmp_path)
    assert path.read_text().splitlines()[:2] == lines[:2]
    assert len(path.read_text().splitlines()) == 4
    _resumed(tmp_path)


@pytest.mark.cases(1)
@pytest.mark.parametrize("line", [0, 2])
def test_a_line_that_was_damaged_or_edited_is_named(tmp_path, line):
    path, lines = _rows(tmp_path)
    entry = json.loads(lines[line])
    damages = {
        "an edited value": json.dumps({**entry, "value": {**entry["value"], "lr": 0.5}}),
        "another key": json.dumps({**entry, "key": "0" * 16}),
        "no digest": json.dumps({key: value for key, value in entry.items() if key != "digest"}),
        "no row": json.dumps(sealed({"key": entry["key"], "value": {"lr": "fast"}})),
        "a flipped bit": lines[line].replace('"value"', '"valud"'),
        "nested without end": "[" * 10**5,
    }
    expected = rf"rows\.jsonl, line {line + 1} (cannot be read|was damaged or edited)"
    for text in damages.values():
        path.write_text("\n".join([*lines[:line], text, *lines[line + 1 :], ""]))
        before = path.read_bytes()
        with pytest.raises(tn.CheckpointError, match=expected):
            _resumed(tmp_path)
        assert path.read_bytes() == before


def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path, monkeypatch):
    path, lines = _rows(tmp_path)
    path.write_text("\n".join([*lines[:2], ""]))
    before, real = path.read_bytes(), os.write

    def full(descriptor, data):
        if len(data) > 9:
            return real(descriptor, bytes(data[:9]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_files.os, "write", full)
    with pytest.raises(tn.WriteError, match=r"rows\.jsonl.*No space left on device.*is unchanged.*free some space"):
        _resumed(tmp_path)
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_a_worker_that_dies_is_told_with_what_would_do(tmp_path):
    with (
        pytest.raises(
            tn.TN4NNError, match=r"a process that trained ended without a word.*fewer jobs=.*__main__.*resume"
        ),
        workers.workers(2) as each,
    ):
        list(each(os._exit, [(3,)]))


def test_without_resume_earlier_rows_are_moved_aside(tmp_path):
    tn.compare(["mpo"], budget=600, out=tmp_path, **{**QUICK, "seeds": 1})
    before = (tmp_path / "rows.jsonl").read_text()
    tn.compare(["mpo"], budget=600, out=tmp_path, **{**QUICK, "seeds": 1})
    kept = [p for p in tmp_path.iterdir() if p.name.startswith("rows.jsonl.")]
    assert len(kept) == 1
    assert kept[0].read_text() == before


@pytest.mark.thorough
def test_without_resume_rows_of_a_sweep_that_was_stopped_are_an_error(tmp_path, monkeypatch):
    original, ran = runs.train, []

    def stops(model, *args, **kwargs):
        if ran:
            raise KeyboardInterrupt
        ran.append(kwargs["seed"])
        return original(model, *args, **kwargs)

    monkeypatch.setattr(runs, "train", stops)
    with pytest.raises(KeyboardInterrupt):
        tn.compare(["mpo"], budget=600, out=tmp_path, **QUICK)
    monkeypatch.undo()
    before = (tmp_path / "rows.jsonl").read_bytes()
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("the work began"))
    for other in ({}, {"seeds": 1}, {"epochs": 2}):  # whatever is asked for now
        with pytest.raises(tn.CheckpointError, match=r"holds 2 lines of a sweep that has not.*resume=True.*another"):
            tn.compare(["mpo"], budget=600, out=tmp_path, **{**QUICK, **other})
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / "rows.jsonl"]
    monkeypatch.undo()
    tn.compare(["mpo"], budget=600, out=tmp_path, resume=True, **QUICK)
    whole = (tmp_path / "rows.jsonl").read_bytes()
    assert whole.startswith(before)
    tn.compare(["mpo"], budget=600, out=tmp_path, resume=True, **QUICK)  # it is through: nothing is added
    assert (tmp_path / "rows.jsonl").read_bytes() == whole
    tn.compare(["mpo"], budget=600, out=tmp_path, **QUICK)
    (aside,) = tmp_path.glob("rows.jsonl.*")
    assert aside.read_bytes() == whole


@pytest.mark.cases(2)
@pytest.mark.parametrize("ending", ["", '{"key": "half', "no JSON\n"])
def test_a_file_that_cannot_be_read_is_not_moved_aside(tmp_path, ending):
    tn.compare(["mpo"], budget=600, out=tmp_path, **{**QUICK, "seeds": 1})
    path = tmp_path / "rows.jsonl"
    *lines, _ = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in lines) + ending)
    before = path.read_bytes()
    with pytest.raises(tn.CheckpointError, match="another folder"):
        tn.compare(["mpo"], budget=600, out=tmp_path, **{**QUICK, "seeds": 1})
    assert path.read_bytes() == before


@pytest.mark.thorough
def test_other_settings_do_not_take_up_old_rows(tmp_path):
    tn.compare(["mpo"], budget=600, out=tmp_path, **{**QUICK, "seeds": 1})
    more = tn.compare(["mpo"], budget=600, out=tmp_path, resume=True, **{**QUICK, "seeds": 1, "epochs": 2})
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "status" in line["value"]]) == 2
    assert more.rows[0]["status"] == "ok"


@pytest.mark.cases(1)
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_own_topology_from_a_file_gets_a_dense_head_for_all(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    report = tn.compare([*tn.read_topologies(path), "mpo"], budget=300, **{**QUICK, "seeds": 1})
    assert report.results["config"]["head"] == "dense"
    assert [row["topology"] for row in report.rows] == ["grid", "mpo"]
    assert all(row["params"] <= 300 for row in report.rows)
    assert all(row["model_params"] == row["params"] + 64 + 640 + 10 for row in report.rows)


@pytest.mark.thorough
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
        ("a.toml", "x = " + "[" * 5000 + "]" * 5000, "is not TOML: nested more than 200 deep"),
        ("a.json", "[" * 10**5, "nested more than 200 deep"),
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
        (["mpo"], {"optimizer": "adma"}, "optimizer must be one of sgd, adam, adamw, muon, received 'adma'"),
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


@pytest.mark.thorough
def test_save_writes_the_three_files(tmp_path):
    report = tn.compare(["mpo"], budget=600, **{**QUICK, "seeds": 1})
    page = report.save(tmp_path / "new")
    assert {p.name for p in page.parent.iterdir()} == {"results.json", "results.csv", "report.html"}
    assert json.loads((page.parent / "results.json").read_text())["rows"] == report.rows


@pytest.mark.slow
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
