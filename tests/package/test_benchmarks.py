"""The step-time benchmark: a tiny run, the check of values, the page, and the check against older results."""

import copy
import dataclasses
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import tn4nn as tn
from tn4nn._planning.planner import candidates
from tn4nn._planning.request import PlanRequest
from tn4nn._runtime.native import runtime
from tn4nn._runtime.target import Target

pytest.importorskip("torch", reason="the benchmark's dense row needs torch")

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = (
    "_cell",
    "_einsums",
    "_goals",
    "_instances",
    "_measure",
    "_optimizers",
    "_pages",
    "_paths",
    "_peers",
    "_runners",
    "_workset",
    "contraction",
    "einsum",
    "prediction",
    "decoding",
    "decomposition",
    "minilm",
    "plan_choice",
    "compiled_model",
    "replaced_layer",
    "ill_conditioned",
    "step_time",
    "render_performance",
    "render_pages",
    "threads",
)

if not FOLDER.is_dir():  # the wheel, tested from outside the tree
    pytest.skip("benchmarks/ is not part of the wheel", allow_module_level=True)


@pytest.fixture(scope="module")
def bench():
    """The benchmark's modules by name; taken out again, for their names are no package's."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def settings(bench):
    return bench["_measure"].Settings(slot_s=1e-4, rounds=2, most_rounds=2, cell_s=0.01)


@pytest.fixture(scope="module")
def data(bench):
    case = bench["_workset"].Case("tiny", 2, lambda: tn.mpo((2, 3, 2), (2, 2, 3)).with_rank(2))
    return bench["_cell"].CaseData(case)


def _cell(bench, data, settings, batch=5, phase="train"):
    return bench["_cell"].Cell(data, batch, phase, "cpu", settings, bench["_measure"].Limits(1e9, 1e9))


@pytest.fixture(scope="module")
def results(bench, data, settings):
    """A whole results file: two phases, ours, dense and torch.einsum."""
    peers = [bench["_peers"].PEERS[name] for name in ("tn4nn-torch", "dense-torch", "torch-einsum")]
    questions = [(data.case, 5, phase) for phase in ("forward", "train")]
    best = bench["_measure"].best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench["_measure"], "best", lambda call, times: best(call, 2))
        patch.setattr("tn4nn_torch.build_extension", lambda: None)  # it takes half a minute, and has tests of its own
        limits = bench["_measure"].probe("cpu")
        cells = list(bench["step_time"].measure(questions, peers, settings, limits))
    script = bench["step_time"].report(cells, limits, 1, "cpu", True, 0.0)
    return json.loads(json.dumps(script))


def test_results(results):
    assert results["schema"] == 1
    assert {"machine", "versions", "threads", "device", "date", "limits", "means", "goals"} < set(results)
    assert [cell["phase"] for cell in results["cells"]] == ["forward", "train"]
    for cell in results["cells"]:
        rows = {row["peer"]: row for row in cell["rows"]}
        assert set(rows) == {"tn4nn-torch", "dense-torch", "torch-einsum"}
        ours, dense = rows["tn4nn-torch"], rows["dense-torch"]
        assert ours["status"] == dense["status"] == "ok"
        assert ours["rounds"] == 2
        assert ours["time"]["q1"] <= ours["time"]["median"] <= ours["time"]["q3"]
        assert dense["vs_dense"]["median"] == 1.0
        assert dense["macs"] == 5 * 144 * (3 if cell["phase"] == "train" else 1)
        assert cell["summary"]["torch"]["vs_dense"] == ours["vs_dense"]


def test_saved_bytes_leave_the_parameters_out(results):
    forward, train = ({row["peer"]: row for row in cell["rows"]} for cell in results["cells"])
    assert forward["dense-torch"]["saved_bytes"] == 0
    assert train["dense-torch"]["saved_bytes"] == 4 * 5 * 12  # x alone


@pytest.mark.cases(13)
@pytest.mark.parametrize("name", ["reconstruct", "cotengra", "opt-einsum", "jax-einsum", "tn4nn-jax", "dense-jax"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_competitors_are_right(bench, data, settings, name, batch):
    peer = bench["_peers"].PEERS[name]
    if peer.missing():
        pytest.skip(f"{name} needs {', '.join(peer.missing())}")
    peer.make(_cell(bench, data, settings, batch)).check()


@pytest.mark.parametrize(
    "name", ["quimb", "tensornetwork", "tltorch-factorized", "tltorch-reconstructed", "torchtt", "tensorkrowch"]
)
@pytest.mark.parametrize("topology", ["mpo", "ring", "cp", "tucker", "btt", "peps"])
def test_other_libraries_are_right_or_say_why_not(bench, settings, name, topology):
    peer = bench["_peers"].PEERS[name]
    if peer.missing():
        pytest.skip(f"{name} needs {', '.join(peer.missing())}")
    result = tn.build(topology, 16, 16, sites=2 if topology in ("btt", "tucker") else 4).with_rank(2)
    data = bench["_cell"].CaseData(bench["_workset"].Case(topology, 2, lambda: result))
    made_row, runner = bench["step_time"]._prepared(peer, _cell(bench, data, settings))
    assert made_row["status"] in ("ok", "cannot express"), made_row
    assert (runner is None) == (made_row["status"] == "cannot express")
    assert runner is not None or topology not in ("mpo",)


def _row(bench, data, settings, make, phase="train"):
    peer = bench["_peers"].Peer("mine", "torch", "peer", (), make)
    return bench["step_time"]._prepared(peer, _cell(bench, data, settings, phase=phase))


def test_wrong_values_are_caught(bench, data, settings):
    def make(cell):
        runner = bench["_peers"].PEERS["dense-torch"].make(cell)
        right = runner.apply
        runner.apply = lambda x: right(x).flip(0)  # rows in another order
        return runner

    result, runner = _row(bench, data, settings, make, "forward")
    assert runner is None
    assert result["status"] == "wrong"
    assert "differs from the oracle" in result["reason"]


def test_wrong_gradients_are_caught(bench, data, settings):
    def make(cell):
        runner = bench["_peers"].PEERS["dense-torch"].make(cell)
        weight, right = runner.parameters[0], runner.apply
        runner.apply = lambda x: right(x).detach() + 0.5 * (right(x) - right(x).detach()) + 0 * weight.sum()
        return runner

    result, _ = _row(bench, data, settings, make)
    assert result["status"] == "wrong"
    assert "Euler" in result["reason"]


def test_absent_and_broken_competitors_are_rows(bench, data, settings):
    def make(cell):
        raise ZeroDivisionError("no\nmore")

    result, runner = _row(bench, data, settings, make)
    assert (result["status"], result["reason"], runner) == ("failed", "ZeroDivisionError: no", None)
    absent = bench["_peers"].Peer("gone", "torch", "peer", ("no_such_package_here",), make)
    result, runner = bench["step_time"]._prepared(absent, _cell(bench, data, settings))
    assert (result["status"], result["reason"]) == ("not installed", "needs no_such_package_here")


def test_caps_are_stated(bench, data, settings):
    small = dataclasses.replace(settings, memory=100)
    result, _ = _row(bench, data, small, bench["_peers"].PEERS["torch-einsum"].make)
    assert result["status"] == "skipped"
    assert "the cap is" in result["reason"]


def test_expected_rows_are_the_oracles(bench, data, settings):
    cell = _cell(bench, data, settings, 5)
    rows, expected = data.expected(5)
    assert sorted(rows) == [0, 1, 3, 4]
    np.testing.assert_allclose(
        expected, cell.x[rows].astype(np.float64) @ data.dense.T.astype(np.float64), rtol=1e-5, atol=1e-6
    )


def test_path_costs(bench):
    net = tn.low_rank(8, 4).with_rank(2)
    problem = bench["_paths"].of_layer(net, 10)
    cost = problem.cost(problem.chain_path())
    assert (cost.macs, cost.intermediates, cost.largest) == (10 * 8 * 2 + 10 * 2 * 4, 10 * 2 + 10 * 4, 60)
    assert problem.cost(problem.best_path()).macs <= cost.macs
    assert problem.equation == "ab,bc,da->dc"


def test_work_set(bench):
    workset = bench["_workset"]
    params = {name: case.network().num_params for name, case in workset.CASES.items()}
    # Counts that were published with the layers.
    assert params["fc2-chi4"] == 1024
    assert (params["lenet-400x120"], params["lenet-84x10"]) == (1792, 124)
    assert (params["vgg-512x4096"], params["vgg-4096x4096"], params["vgg-4096x10"]) == (1376, 2432, 928)
    assert (params["tnn-1024x625-chi2"], params["tnn-1024x625-chi8"]) == (400, 5440)
    assert (params["1024-chi32"], params["btt-4096"]) == (33280, 524288)
    assert all(0.97 * 5000 <= params[name] <= 5000 for name in ("tree5", "tree8", "mera", "cp", "tucker"))
    assert len(workset.questions(False, None)) == len(params) * 8
    assert {name for name, _, _ in workset.QUICK} <= set(params)
    assert [c.name for c, _, _ in workset.questions(False, "btt-4096/32/train")] == ["btt-4096"]
    assert [rows for _, rows, _ in workset.questions(False, "cp/1024/train", (32, 1024))] == [1024]


def test_batches_of_ones_own_are_whole_numbers(bench):
    numbers = bench["step_time"]._numbers
    assert numbers("1024, 3") == (1024, 3)
    assert numbers(None) == (1, 32, 256, 2048)
    for wrong in ("", "0", "1,-2", "many", "1.5"):
        with pytest.raises(typer.BadParameter, match="expected whole numbers"):
            numbers(wrong)


def test_page(bench, results, tmp_path):
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib")
    source, out = tmp_path / "a.json", tmp_path / "performance.md"
    bench["step_time"].write(source, results)
    app = _app(bench)
    done = CliRunner().invoke(app, [str(source), "--out", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "| tiny | 5 |" in text
    assert "## Training step" in text
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_plans_that_differ_in_what_they_save_are_measured_apart(bench):
    network = tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(4)
    every = candidates(PlanRequest(network, 16, "train", target=Target(executors=("native",))))
    assert {p.save for p in every} == {True, False}
    key = bench["plan_choice"]._key
    assert len({key(p) for p in every}) > len({key(p)[:3] for p in every})


def test_the_choice_of_plans_is_measured(bench, monkeypatch):
    if runtime(4) is None:
        pytest.skip("no native runtime")
    module = bench["plan_choice"]
    monkeypatch.setattr(module, "MOST", 12)
    monkeypatch.setattr(module, "PLACEMENTS", 2)
    case = bench["_workset"].Case("tiny", 2, lambda: tn.mpo((2, 3, 2), (2, 2, 3)).with_rank(2))
    result = module.cell(case, 8, "train")
    assert result["candidates"] == len(result["predicted_s"]) == len(result["measured_s"]) <= 12
    assert result["predicted_s"] == sorted(result["predicted_s"])
    assert result["first"] >= result["tuned"] >= 1
    assert result["seconds"] == min(result["measured_s"]) > 0
    assert module.summary([result])["tuned"]["worst"] == result["tuned"]


def test_a_goal_says_where_the_plan_computes_more_than_the_dense_layer(bench, results):
    module = bench["step_time"]
    cell = copy.deepcopy(next(c for c in results["cells"] if c["phase"] == "train"))
    cell |= {"chi": 8, "batch": 32, "dense_params": 1 << 20}
    cell["summary"]["torch"]["vs_dense"]["median"] = 2.5
    label = "P2 ours / dense <= 0.8 at chi = 8"
    for ours, end in ((300, "2.50; of these, multiply-adds over dense's: tiny/32/train 3.00)"), (70, "32/train 2.50)")):
        for r in cell["rows"]:
            r["macs"] = ours if r["peer"] == "tn4nn-torch" else 100
        assert module.goal_line(label, module.goals([cell])[label]).endswith(end)


def test_the_best_peer_meets_the_faster_of_ours(bench, results):
    module = bench["step_time"]
    cell = copy.deepcopy(next(c for c in results["cells"] if c["phase"] == "train"))
    cell |= {"chi": 4, "batch": 32}
    ours = next(r for r in cell["rows"] if r["peer"] == "tn4nn-torch")
    cell["rows"] = [r for r in cell["rows"] if r["role"] != "ours"] + [ours, {**ours, "peer": "tn4nn-jax"}]
    seconds = {"tn4nn-torch": 0.4, "tn4nn-jax": 0.1, "dense-torch": 0.01}
    for r in cell["rows"]:
        r.update(time={"median": seconds.get(r["peer"], 0.2)}, status="ok")
    mean = "P1 the faster of ours over chi <= 4 and batch >= 32, train alone, >= 2.5"
    never = "P1 the faster of ours in torch and jax, never slower either"
    found = module.goals([cell])
    assert found[mean] == {"holds": False, "cells": 1, "mean": pytest.approx(2)}
    assert found[never]["holds"]
    ours["time"] = cell["rows"][-1]["time"] = {"median": 0.4}
    assert module.goals([cell])[never] == {"holds": False, "cells": 1, "broken": 1, "worst": {"tiny/32/train": 0.5}}


def _app(bench):
    app = typer.Typer()
    app.command()(bench["render_performance"].main)
    return app


@pytest.mark.parametrize(("factor", "exit_code"), [(1.0, 0), (1.1, 0), (1.2, 1), (0.5, 0)])
def test_check(bench, results, tmp_path, factor, exit_code):
    slower = copy.deepcopy(results)
    for cell in slower["cells"]:
        cell["summary"]["torch"]["vs_dense"]["median"] *= factor
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    bench["step_time"].write(old, results)
    bench["step_time"].write(new, slower)
    done = CliRunner().invoke(_app(bench), ["--check", str(old), str(new)])
    assert done.exit_code == exit_code, done.output
    assert ("geometric mean (torch)" in done.output) == bool(exit_code)


def test_check_of_one_cell(bench, results):
    slower = copy.deepcopy(results)
    slower["cells"][0]["summary"]["torch"]["vs_dense"]["median"] *= 1.4
    slower["cells"][1]["summary"]["torch"]["vs_dense"]["median"] *= 0.7
    too_slow, _ = bench["render_performance"].regressions(results, slower)
    assert len(too_slow) == 1
    assert too_slow[0].startswith("tiny/5/forward (torch)")


def test_check_refuses_what_cannot_be_compared(bench, results):
    other = {**results, "threads": 2}
    with pytest.raises(bench["render_performance"].ResultsError, match="other threads: 1 and 2"):
        bench["render_performance"].regressions(results, other)
    with pytest.raises(bench["render_performance"].ResultsError, match="no cell in common"):
        bench["render_performance"].regressions(results, {**results, "cells": []})


# -- path optimizers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contraction(bench):
    """A whole results file of three tiny instances."""
    script = bench["_instances"]
    chosen = [
        script.Instance("tiny", "catalogue", bench["_paths"].of_layer(tn.mpo((2, 3, 2), (2, 2, 3)).with_rank(2), 5)),
        script.Absent("gone", "it is not there"),
    ]
    chosen += [found for found in [script.random_regular(10, 3, 0)] if isinstance(found, script.Instance)]
    names = ("greedy (cotengrust)", "optimal (cotengrust)", "hyper (greedy, sbplx)")
    others = [other for other in bench["_optimizers"].others() if other.name in names]
    others.append(bench["_optimizers"].Optimizer("absent", None, "no_such_package_here"))
    rows = list(bench["contraction"].measure(chosen, others, 0.1))
    return json.loads(json.dumps(bench["contraction"].report(rows, 0.1)))


def test_path_optimizers(contraction):
    tiny, gone, *_ = contraction["instances"]
    assert gone == {"instance": "gone", "absent": "it is not there"}
    rows = {row["optimizer"]: row for row in tiny["rows"]}
    assert rows["absent"]["reason"] == "needs no_such_package_here"
    assert rows["ours"]["macs"] == rows["optimal (cotengrust)"]["macs"] <= rows["greedy (cotengrust)"]["macs"]
    assert rows["ours"]["ratio"] == 1
    assert 0 < rows["ours"]["first_s"] <= rows["ours"]["seconds"]
    first = contraction["verdicts"][0]
    assert first["holds"] == first["instances"] == len(contraction["instances"]) - 1


def test_path_optimizers_search_in_several_processes(bench):
    optimizers = bench["_optimizers"]
    (problem,) = [one.problem for one in bench["_instances"].instances(True) if one.name == "mpo-16"]
    (searched,) = [one for one in optimizers.others(2) if one.name == "hyper (greedy, sbplx)"]
    least = problem.cost(optimizers.ours(problem, 5).path).macs
    assert problem.cost(searched.run(problem, 0.5).path).macs >= least
    (searched,) = [one for one in optimizers.others("abacus") if one.name == "hyper (greedy, sbplx)"]
    with pytest.raises(ValueError, match="abacus"):
        searched.run(problem, 0.5)


def test_einsums_next_to_others(bench, monkeypatch):
    module, cases = bench["einsum"], bench["_einsums"]
    monkeypatch.setattr(module, "_extension", lambda: None)
    quick = bench["_measure"].Settings(slot_s=1e-4, rounds=3, most_rounds=3, cell_s=0.01)
    monkeypatch.setattr(module, "SETTINGS", quick)
    tiny = cases.Einsum("tiny", "classics", cases.mps_norm(4, 3))
    assert cases.is_runnable(tiny)
    monkeypatch.setitem(module.COMPETITORS, "wrong", lambda each, arrays: lambda: np.float32(7))
    monkeypatch.setitem(module.COMPETITORS, "gone", lambda each, arrays: __import__("no_such_library"))
    names = ["tn4nn torch", "torch.einsum", "wrong", "gone"]
    row = module.measured(tiny, names)
    assert [r["status"] for r in row["rows"]] == ["ok", "ok", "wrong", "absent"]
    assert row["summary"]["best_other"] == "torch.einsum"
    data = json.loads(json.dumps(module.report([row], 1, {"huge": "a call takes too long"})))
    (mean,) = {v["mean"] for v in data["verdicts"]}
    assert mean == pytest.approx(row["summary"]["ratio"], rel=1e-3)
    page = module.page(data)
    assert "absent: huge: a call takes too long" in page
    assert "| tiny | 8 |" in page


def test_path_optimizers_lose_in_words(bench, contraction):
    worse = copy.deepcopy(contraction["instances"])
    worse[0]["rows"][0]["macs"] *= 2
    first = bench["contraction"].verdicts(worse)[0]
    assert first["fails"] == ["tiny"]
    assert any("not on tiny" in line for line in bench["contraction"].lines({**contraction, "verdicts": [first]}))


def test_page_of_path_optimizers(bench, contraction):
    text = bench["contraction"].page(contraction)
    assert "| tiny | 4 |" in text
    assert "* absent: gone: it is not there" in text


def test_instances_of_path_optimizers(bench):
    result = {each.name: each for each in bench["_instances"].instances(False)}
    assert {"mpo-64", "complete-16", "wrn-16384x16384", "regular-64-3-0"} <= set(result)
    assert "numbers" in result["tucker-16"].reason
    assert len(result["tree-64"].problem.tensors) == 127
    assert len(list(bench["_instances"].instances(True))) < len(result)


# -- prediction ----------------------------------------------------------------------------------------------------


def test_predictions_are_of_what_is_run(bench, monkeypatch):
    prediction = bench["prediction"]
    monkeypatch.setattr(prediction, "FEATURES", 64)
    monkeypatch.setattr(prediction, "BATCHES", (4,))
    monkeypatch.setattr(prediction, "CELL_S", 0.01)
    asked = list(prediction.questions(["mpo", "kronecker"]))
    # At rank 32 the mpo has more parameters than the dense layer; a Kronecker product has no bonds.
    assert [(net.topology.name, rank) for net, rank, _, _ in asked[::2]] == [("mpo", 2), ("mpo", 8), ("kronecker", 2)]
    assert [phase for *_, phase in asked] == ["forward", "train"] * 3
    machines = {"default": tn.Machine(), "slow": tn.Machine(tile_macs_per_s=1e6)}
    if runtime(4) is None:
        pytest.skip("no native runtime")
    cells = [prediction.cell(question, machines) for question in asked]
    for one, (net, _, batch, phase) in zip(cells, asked, strict=True):
        assert (
            one["default"]["predicted_s"]
            == tn.plan(net, batch, phase, runtime="native", machine=machines["default"]).cost.predicted_s
        )
        assert 0 < one["default"]["measured_s"] < 1
        assert one["slow"]["figure"] == "tile_macs_per_s"
    found = prediction.summary(cells, list(machines))
    assert found["default"]["cells"] == len(cells)
    assert found["slow"]["median_ratio"] > 1 < found["slow"]["median_error"]
    assert set(found["default"]["by"]["topology"]) == {"mpo", "kronecker"}


def test_predictions_of_programs_are_of_what_is_run(bench, monkeypatch):
    prediction = bench["prediction"]
    pytest.importorskip("torch")
    monkeypatch.setattr(prediction, "FEATURES", 64)
    monkeypatch.setattr(prediction, "BATCHES", (4,))
    place = prediction.place_of("torch", None, "float32")
    machines = {"default": tn.Machine(), "slow": tn.Machine(op_s=1e-2)}
    for question in prediction.questions(["mpo"]):
        net, _, batch, phase = question
        one = prediction.cell(question, machines, place)
        assert one["default"]["predicted_s"] == tn.plan(net, batch, phase).cost.predicted_s
        assert 0 < one["default"]["measured_s"] < one["slow"]["predicted_s"]
        assert one["slow"]["figure"] == "op_s"


def test_rank_correlation(bench):
    spearman = bench["prediction"].spearman
    assert spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [2, 1, 3]) == pytest.approx(0.5)


def test_the_page_has_the_predictions(bench, tmp_path):
    one = {"cells": 3, "spearman": 0.9, "median_error": 0.2, "median_ratio": 1.1}
    by = {"topology": {"mpo": one}, "phase": {"forward": one, "train": one}}
    by["batch"] = {str(batch): one for batch in (1, 32, 256, 2048)}
    summary = {"default": {**one, "by": {**by, "figure": {"call_s": one}}}}
    summary["calibrated"] = {**one, "by": {**by, "figure": {}}}
    data = {"machine": {"cpu": "C", "load": [0.5]}, "summary": summary}
    (tmp_path / "prediction.json").write_text(json.dumps(data))
    page = bench["render_performance"].plans_page(tmp_path)
    assert "| default | 0.900 | 20% | 1.10 | 1.10 |" in page
    assert "| mpo | 3 | 20% | 1.10 | 3 | 20% | 1.10 |" in page
    assert "| call_s | 3 | 20% | 1.10 | 0 | - | - |" in page


# -- decompositions ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decompositions(bench):
    """A whole results file of tiny matrices, and a library that fails."""
    script = bench["decomposition"]

    def fails(w, fmt):
        raise ValueError("it cannot")

    shared = script.formats(16, (4, 4), (2, 2, 4), (4, 4), 120)
    shared[0] = dataclasses.replace(shared[0], others={**shared[0].others, "broken": fails})
    w = {"kernel": script.kernel(16).astype(np.float32)}
    entries = list(script.measure(w, shared, script.alone((2, 2, 2, 2))[:2], 0.1))
    refined = [script.refinement("kernel", w["kernel"], tn.cp((4, 4), (4, 4)), 64, 0.05)]
    return json.loads(json.dumps(script.report(entries, refined, 16, "nothing")))


@pytest.mark.thorough
def test_decompositions(bench, decompositions):
    entries = {entry["topology"]: entry for entry in decompositions["entries"]}
    assert {"low_rank", "mpo", "tucker", "ring", "cp", "tree", "peps"} == set(entries)
    for entry in entries.values():
        for row in entry["rows"]:
            assert row["status"] in ("ok", "absent") or row["library"] == "broken", row
            if row["status"] == "ok":
                assert row["params"] <= entry["params"] + (row["library"] == "tltorch") * 30  # CP's weights beside
                assert 0 < row["error"] < 1
                assert row["rounds"] >= 1
    rows = {row["library"]: row for row in entries["low_rank"]["rows"]}
    assert rows["broken"]["reason"] == "ValueError: it cannot"
    assert rows["tn4nn"]["error"] == pytest.approx(rows["numpy"]["error"], rel=1e-5)
    (refined,) = decompositions["refinement"]
    assert refined["lbfgs"] <= refined["als"] * (1 + 1e-6)


def test_decompositions_lose_in_words(bench, decompositions):
    script = bench["decomposition"]
    entries = copy.deepcopy(decompositions["entries"])
    ours, numpy_row = entries[0]["rows"][:2]
    ours["error"] = 1.5 * numpy_row["error"]
    first = script.verdicts(entries)[0]
    assert not first["holds"]
    data = {**decompositions, "verdicts": [first]}
    assert any(
        line.startswith("not on kernel, low_rank: 1.500 times the error of numpy") for line in script.lines(data)
    )
    assert "| kernel | low_rank | broken | ValueError: it cannot |" in script.page(data)


def test_steps_after_least_squares(bench):
    script = bench["ill_conditioned"]
    names = [f"{name}, {net.topology.name}" for name, _, net in script.problems()]
    assert len(names) == 26
    net = script.cp3(3, 2)
    row = script.measure(script.exact(net, 0) + 0.1 * np.random.default_rng(0).standard_normal((3, 9)), net)
    assert 0 < row["steps"] <= row["als"] * (1 + 1e-9)
    assert row["als_on"] <= row["als"] * (1 + 1e-9)


@pytest.mark.thorough
def test_models_under_torch_compile(bench):
    script = bench["compiled_model"]
    torch = pytest.importorskip("torch")
    for kind in script.KINDS:
        module = script.model(kind)
        assert module(torch.zeros(2, script.WIDTH)).shape == (2, script.WIDTH)
        dense = 2 * script.BLOCKS * script.WIDTH * script.HIDDEN
        matrices = sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)
        assert matrices == dense if kind == "dense" else matrices <= script.SHARE * dense
    row = {"params": 1000, "compile_s": 20.0, "eager_ms": 5.0, "compiled_over_eager": 0.9, "traces": 2}
    _, _, cells = script.table({"threads": 1, "rows": {"dense": row, "mpo": {**row, "compile_s": 25.0}}})
    assert cells[1] == ["mpo", "1,000", "25.0", "1.25", "5.0", "0.90", "2"]


def test_several_threads(bench, tmp_path):
    script, torch = bench["threads"], pytest.importorskip("torch")
    before, case = torch.get_num_threads(), bench["_workset"].CASES["fc2-chi4"]
    try:
        row = script.measured(case, 64, "train", [1, 2], bench["_measure"].Settings(slot_s=1e-3, cell_s=0.02))
    finally:
        torch.set_num_threads(before)
    assert row["layer"]["ms"].keys() == row["dense"]["ms"].keys() == {"1", "2"}
    assert row["layer"]["ratio"]["2"] > 0
    assert script.levels()[0] == 1
    row = {"case": "mpo", "batch": 256, "phase": "train", "order": "W first"}
    row["layer"] = {"ms": {"1": 8.0, "2": 6.0}, "ratio": {"2": 0.75}}
    row["dense"] = {"ms": {"1": 4.0, "2": 2.0}, "ratio": {"2": 0.5}}
    _, _, cells = script.table([row], [1, 2])
    assert cells == [["mpo/256/train", "W first", "8", "0.75", "0.50", "2.00", "3.00"]]
    assert list(script.summary([row], [1, 2]))[-1] == "(layer / dense at 2) / (at 1): median 1.50, worst 1.50"
    data = {"machine": {"cpu": "a processor", "cores": 2, "python": "3.11"}, "threads": [1, 2], "rows": [row]}
    shown = script.page({**data, "versions": {"tn4nn": "0.1.0", "torch": "2.13.0"}})
    assert "| mpo/256/train | W first | 8 | 0.75 | 0.50 | 2.00 | 3.00 |" in shown
    pytest.importorskip("matplotlib")
    script.draw(data, tmp_path / "threads.png")
    assert (tmp_path / "threads.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_pages_are_those_of_the_committed_results(bench, tmp_path):
    root = Path(__file__).parents[2]
    committed = root / "docs" / "pages" / "benchmarks"
    if not committed.is_dir():
        pytest.skip("docs/ is not part of the wheel")
    written = bench["render_pages"].pages(root / "benchmarks" / "results", tmp_path, figures=False)
    assert {page.name for page in written} == {page.name for page in committed.glob("*.md")} - {"index.md"}
    for page in written:
        assert page.read_text() == (committed / page.name).read_text(), page.name


def test_a_long_table_is_folded(bench):
    table = bench["_pages"].Table
    assert str(table("One", ("a",), [["1"]] * 3)).startswith("## One")
    assert "<summary>One: 13 rows</summary>" in str(table("One", ("a",), [["1"]] * 13))


def test_a_few_rows(bench):
    script, torch = bench["decoding"], pytest.importorskip("torch")
    before = torch.get_num_threads()
    name, net = next(script.networks(256))
    assert net.num_params <= 256 * 256 / script.SHARE
    try:
        row = script.cell(net, 2, 1, bench["_measure"].Settings(slot_s=1e-4, cell_s=0.01))
    finally:
        torch.set_num_threads(before)
    assert min(row["us"].values()) > 0
    us, over = {"dense": 100.0, "layer": 50.0, "merged": 200.0}, {"layer": 0.5, "merged": 2.0}
    data = {"threads": [1], "rows": [{"topology": name, "width": 256, **row, "us": us, "over_dense": over}]}
    assert script.cells(data)[0][-2:] == ["0.50", "2.00"]
    assert list(script.summary(data)) == [
        "layer, 1 thread: faster than dense in 1 of 1, median 0.50, worst 0.50",
        "merged, 1 thread: faster than dense in 0 of 1, median 2.00, worst 2.00",
    ]


def test_a_layer_replaced(bench):
    script = bench["replaced_layer"]
    assert list(script.onto()) == ["low rank", "mpo, D = 16", "mpo", "tree", "ring", "peps", "cp"]
    figures = {"seconds": 1.0, "converted": 90.0, "trained on": 95.0}
    row = {"params": 15_000, "plain": figures, "inputs": {**figures, "converted": 93.0}}
    title, _, cells = script.table({"dense": 98.0, "rows": {"mpo": row}})
    assert title == "Test accuracy, dense 98.00 %"
    assert cells == [["mpo", "15,000", "90.0", "95.0", "93.0", "95.0"]]


# -- a transformer ---------------------------------------------------------------------------------------------------


def sentence_row(topology, share, cosine):
    stages = ("weights only", "calibrated", "refined", "distilled")
    figures = {stage: {"cosine": cosine, "least": 0.1, "ranks": 0.5} for stage in stages}
    sizes = {"params": 2000, "dense_params": 8000, "all_params": 9000, "converted": 2, "layers": 3}
    return {"topology": topology, "share": share, **sizes, **figures}


def test_the_page_of_the_transformer(bench, tmp_path, monkeypatch):
    result, path = bench["minilm"], tmp_path / "rows.json"
    monkeypatch.setattr(result, "Embedder", lambda: None)
    measured = []

    def measure(_, name, share, steps, distilled):
        measured.append((name, share))
        return sentence_row(name, share, 0.8 if name == "mpo" else 0.7)

    monkeypatch.setattr(result, "measured", measure)
    options = {"json_file": path, "page_file": tmp_path / "page.md", "steps": 5, "distilled": 5}
    result.main(only="mpo,tree", shares="0.25", **options)
    result.main(only="tree,mpo", shares="0.5,0.25", **options)
    assert measured == [("mpo", 0.25), ("tree", 0.25), ("tree", 0.5), ("mpo", 0.5)]  # no row twice
    assert [(row["topology"], row["share"]) for row in json.loads(path.read_text())["rows"]] == [
        ("mpo", 0.5), ("mpo", 0.25), ("tree", 0.5), ("tree", 0.25)
    ]  # fmt: skip
    text = options["page_file"].read_text()
    assert "| mpo | 0.25 | 2 of 3 | 2,000 | 1,000 | 0.800 | 0.800 | 0.800 | 0.800 | 0.500 |" in text
    assert "* a share of 0.5, distilled: mpo 0.800, tree 0.700" in text
    assert "not measured: low_rank at 0.5, low_rank at 0.25, low_rank at 0.125, mpo at 0.125" in text
    data = json.loads(path.read_text())
    data["rows"][0]["remark"] = "of another year"
    assert "* mpo at 0.5: of another year\n" in result.page(data)
    options["page_file"].unlink()
    result.main(only="mpo", shares="0.5", **options)  # nothing to measure: the page of what is there
    assert options["page_file"].read_text() == text
    with pytest.raises(typer.BadParameter, match="rows of other settings"):
        result.main(**{**options, "steps": 6})
