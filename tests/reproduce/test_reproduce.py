"""`tn4nn reproduce`: from a name to results, a verdict, a figure and a page."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import environment

import tn4nn as tn
from tn4nn import _cli, reproduce
from tn4nn._base.clock import interleaved
from tn4nn._base.records import plain, write_record
from tn4nn._drawing.figure import new_figure, saved
from tn4nn.reproduce import _page, autorank, coord_check, counts, digits, entangle, order, vgg16
from tn4nn.reproduce._experiment import Line, mean_line
from tn4nn.reproduce._fixed_orders import Cell, calls, costs
from tn4nn.reproduce._training import Variant, accuracy_line, units
from tn4nn.reproduce.fc2_paper import even, xavier

pytest.importorskip("torch")


@pytest.fixture
def shell(monkeypatch, capsys):
    """Runs the command in this process: exit code, stdout, stderr; white space is squeezed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["tn4nn", "reproduce", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            _cli.main()
        shown = capsys.readouterr()
        return end.value.code, " ".join(shown.out.split()), " ".join(shown.err.split())

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of digits; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    reproduce.run("digits", quick=True, out=folder)
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def without_times(path):
    record = json.loads(path.read_text())
    del record["times"], record["digest"]
    return record


def test_every_experiment_is_whole():
    for name in reproduce.experiments():
        one = reproduce.experiment(name)
        assert one.name == name
        assert len(one.about) > 40
        for quick in (True, False):
            settings = reproduce.Settings(quick, "torch", None, 1)
            names = [unit.name for unit in one.units(settings)]
            assert len(set(names)) == len(names) > 0


def test_list(shell):
    code, out, _ = shell("--list")
    assert code == 0
    assert all(name[:11] in out for name in reproduce.experiments())  # a narrow terminal cuts long ones


def test_counts_hold(shell, tmp_path):
    code, out, _ = shell("counts", "--out", tmp_path)
    assert code == 0
    assert "does not hold" not in out
    assert json.loads((tmp_path / "counts.json").read_text())["finished"]


def test_counts_can_fail(shell, tmp_path, monkeypatch):
    monkeypatch.setitem(counts.FC2, 4, (1761, 0.0087))
    code, out, err = shell("counts", "--out", tmp_path)
    assert code == 3
    assert "FC2, D = 4, both layers 1,761 1,760 1,761 does not hold" in out
    assert "does not hold: counts" in err
    code, _, _ = shell("page", "--out", tmp_path)
    assert code == 0
    assert "**does not hold** (75 of 76 lines hold)" in (tmp_path / "index.md").read_text()
    page = (tmp_path / "counts.md").read_text()
    assert "LeNet-5's three hold 2,860 in place of 58,920. All counts" in page
    assert "Verdict: **does not hold** (75 of 76 lines hold)." in page
    assert "| FC2, D = 4, both layers | 1,761 | 1,760 | 1,761 | **does not hold** |" in page


@pytest.mark.slow
def test_digits_from_end_to_end_and_twice_the_same(shell, tmp_path, finished):
    pytest.importorskip("matplotlib")
    code, out, _ = shell("digits", "--quick", "--out", tmp_path / "one")
    assert code == 0
    assert "mpo, weights of both layers - 600 <= 600 holds" in out
    one = without_times(tmp_path / "one" / "digits.json")
    assert one == without_times(finished / "digits.json")
    assert [row["variant"] for row in one["rows"]] == ["mpo", "dense"]
    assert one["settings"] == {"quick": True, "backend": "torch", "device": None, "seeds": 1}
    assert (tmp_path / "one" / one["figure"]).read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["digits.json", "digits.png"]
    assert shell("page", "--out", tmp_path / "one")[0] == 0
    page = (tmp_path / "one" / "digits.md").read_text()
    assert "![Digits at 600 weights](digits.png)" in page
    assert "tn4nn reproduce digits --quick" in page
    page = (tmp_path / "one" / "index.md").read_text()
    assert "| Exact parameter counts | `tn4nn reproduce counts` | not run here |" in page


@pytest.mark.slow
def test_on_jax(tmp_path):
    pytest.importorskip("jax")
    record = reproduce.run("digits", quick=True, backend="jax", out=tmp_path)
    assert not reproduce.failed(record)
    assert record["command"] == "tn4nn reproduce digits --quick --backend jax"


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, finished):
    command = [sys.executable, "-m", "tn4nn", "reproduce", "digits", "--quick", "--out", str(tmp_path / "killed")]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment())
    results = tmp_path / "killed" / "digits.json"
    until = time.monotonic() + 60
    while not results.exists() and time.monotonic() < until:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    lines = []
    record = reproduce.run("digits", quick=True, out=tmp_path / "killed", progress=lines.append)
    assert [line.split(" (")[0] for line in lines] == ["[1/1] digits: variant dense, seed 0"]
    assert without_times(results) == without_times(finished / "digits.json")
    assert record["finished"]


@pytest.mark.thorough
def test_a_unit_that_was_stopped_loses_one_epoch_at_most(tmp_path, monkeypatch):
    seen = []
    train = tn.train

    def stopped(model, data, **options):
        def callback(epoch, trainer):
            seen.append(epoch.epoch)
            if len(seen) == 10:
                raise KeyboardInterrupt

        return train(model, data, **{**options, "callback": callback})

    monkeypatch.setattr("tn4nn.reproduce._training.train", stopped)
    with pytest.raises(KeyboardInterrupt):
        reproduce.run("digits", quick=True, out=tmp_path)
    reproduce.run("digits", quick=True, out=tmp_path)
    assert seen[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 11]


def test_results_of_others_are_not_mixed(shell, copied, pretend_version):
    before = (copied / "digits.json").read_bytes()
    code, _, err = shell("digits", "--out", copied)
    assert code == 1
    assert "holds other results (settings.quick, settings.seeds differ)" in err
    assert "write to another folder (--out), or move the file away" in err
    pretend_version("9.9")
    code, _, err = shell("digits", "--quick", "--out", copied)
    assert code == 1
    assert "(machine.tn4nn differ)" in err
    assert (copied / "digits.json").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ('{"schema": 0}', "has schema 0"), ("[]", "list"), ("[" * 10**5, "nested more than")],
)
def test_results_that_cannot_be_read(tmp_path, text, message):
    (tmp_path / "counts.json").write_text(text)
    with pytest.raises(tn.CheckpointError, match=message):
        reproduce.run("counts", out=tmp_path)
    assert (tmp_path / "counts.json").read_text() == text


def test_an_unknown_name(shell, tmp_path):
    code, _, err = shell("count", "--out", tmp_path / "none")
    assert code == 1
    assert "unknown experiment 'count'. Did you mean 'counts'" in err
    assert not (tmp_path / "none").exists()


def test_data_that_is_absent(shell, tmp_path, monkeypatch):
    def absent(name):
        raise tn.DataError("expected the files of 'mnist'. What would do: put them there")

    monkeypatch.setattr(digits, "load_data", absent)
    code, _, err = shell("digits", "--quick", "--out", tmp_path)
    assert code == 1
    assert "What would do: put them there" in err
    monkeypatch.setattr("tn4nn.reproduce._cli.experiments", lambda: ("digits", "counts"))
    code, _, err = shell("all", "--quick", "--out", tmp_path)
    assert code == 0
    assert "digits: left out. expected the files of 'mnist'" in err
    assert (tmp_path / "counts.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["rows"][0].update(accuracy=99.9),
        lambda record: record["lines"][0].update(verdict="holds", ours=99.9),
        lambda record: record["rows"].pop(),
        lambda record: record["times"]["units"].clear(),
        lambda record: record.pop("digest"),
    ],
)
def test_results_that_were_edited_are_neither_continued_nor_shown(copied, change):
    record = json.loads((copied / "digits.json").read_text())
    change(record)
    (copied / "digits.json").write_text(json.dumps(record))
    for use in (lambda: reproduce.run("digits", quick=True, out=copied), lambda: reproduce.write_page(copied)):
        with pytest.raises(tn.CheckpointError, match=r"digits\.json was damaged or edited after it was written"):
            use()


def test_results_of_another_form_are_refused(copied):
    record = json.loads((copied / "digits.json").read_text())
    del record["lines"]
    write_record(copied / "digits.json", record)
    with pytest.raises(tn.CheckpointError, match=r"digits\.json lacks lines"):
        reproduce.write_page(copied)
    write_record(copied / "digits.json", {**record, "lines": [], "rows": [{"no": "unit"}]})
    with pytest.raises(tn.CheckpointError, match="holds no rows that can be read"):
        reproduce.run("digits", quick=True, out=copied)


def test_published_results_have_their_digests():
    files = sorted((Path(__file__).parents[2] / "docs" / "pages" / "reproduction").glob("*.json"))
    assert len(files) > 10
    for path in files:
        reproduce.read_results(path)


def test_without_matplotlib_there_is_no_figure(copied, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    lines = []
    record = reproduce.run("digits", quick=True, out=copied, progress=lines.append)
    assert record["figure"] is None
    assert 'pip install "tn4nn[viz]"' in lines[-1]


def test_no_results_no_page(tmp_path):
    with pytest.raises(tn.TN4NNError, match="holds no results: run `tn4nn reproduce NAME"):
        reproduce.write_page(tmp_path)


def test_at_least_one_seed(tmp_path):
    with pytest.raises(tn.TN4NNError, match="seeds must be at least 1, received 0"):
        reproduce.run("counts", seeds=0, out=tmp_path)


@pytest.mark.parametrize(
    ("line", "shown", "accepted", "verdict"),
    [
        (Line("a", 96.7, 0.2, low=96.2), "96.70 ± 0.20 %", ">= 96.20 %", "holds"),
        (Line("a", 96.0, low=96.2), "96.00 %", ">= 96.20 %", "does not hold"),
        (Line("a", 2.4, high=2.3), "2.40 %", "<= 2.30 %", "does not hold"),
        (Line("a", 80.0, low=75, high=92), "80.00 %", "75.00 to 92.00 %", "holds"),
        (Line("a", None, low=1), "–", ">= 1.00 %", "not measured"),
        (Line("a", 1.0), "1.00 %", "", ""),
        (mean_line("a", [97.0, None], low=1), "diverged", ">= 1.00 %", "does not hold"),
        (mean_line("a", [], low=1), "–", ">= 1.00 %", "not measured"),
    ],
)
def test_a_line_and_its_verdict(line, shown, accepted, verdict):
    assert (line.shown, line.accepted, line.verdict) == (shown, accepted, verdict)


# -- the experiments themselves ---------------------------------------------------------------------------------

QUICK = reproduce.Settings(quick=True, backend="torch", device=None, seeds=1)
COMMITTED = sorted((Path(__file__).parents[2] / "docs" / "pages" / "reproduction").glob("*.json"))


def timed(record):
    times = record["times"]["units"]
    return [{**row, "times": times[row["unit"]]} for row in record["rows"]]


@pytest.mark.cases(2)
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_what_is_committed_follows_from_its_rows(path, tmp_path):
    """Tables, verdicts and words are those that the rows give, and the figure can be drawn from them."""
    pytest.importorskip("matplotlib")
    record = reproduce.read_results(path)
    one = reproduce.experiment(record["experiment"])
    assert record["finished"] or one.partial
    assert _page.finding(record)
    assert record["lines"] == plain([line.to_dict() for line in one.lines(timed(record))])
    assert record["text"] == list(one.text(timed(record)))
    assert (record["title"], record["about"], record["source"]) == (one.title, one.about, one.source)
    assert record["recipe"] == plain(one.recipe)
    if one.draw is not None:
        figure = new_figure(tmp_path / "figure.png")
        one.draw(figure, timed(record))
        saved(figure, tmp_path / "figure.png")
        assert path.with_suffix(".png").exists()


def test_the_committed_page_is_that_of_the_committed_results(tmp_path):
    if not COMMITTED:
        pytest.skip("no results here")
    folder = COMMITTED[0].parent
    reproduce.write_page(folder, tmp_path / "index.md")
    pages = sorted(tmp_path.glob("*.md"))
    assert [page.name for page in pages] == sorted(page.name for page in folder.glob("*.md"))
    images = f"]({os.path.relpath(folder, tmp_path)}/"
    for page in pages:
        assert (folder / page.name).read_text("utf-8") == page.read_text("utf-8").replace(images, "](")


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_fixed_orders_give_the_numbers_of_ours(backend):
    pytest.importorskip(backend)
    for phase in ("forward", "train"):
        cell = Cell(tn.presets.fc2(4).networks()["0"], 3, phase, backend)
        found = costs(cell)
        assert list(found) == ["ours", "left to right", "right to left", "W first", "dense"]
        assert found["dense"]["macs"] == 3 * 784 * 256 * (3 if phase == "train" else 1)
        runs = calls(cell, list(found))  # compares their outputs
        seconds = interleaved(runs, rounds=3, slot_s=0.0)
        assert all(len(taken) == 3 for taken in seconds.values())


def test_a_way_that_is_too_large_says_so():
    network = tn.presets.wrn20_4().networks()["block3_3.body.2.1"]
    assert costs(Cell(network, 1, "forward", "torch"))["dense"]["reason"] == "a matrix of more than 256 MiB"


def test_the_paper_s_init_is_xavier_for_each_core():
    model = tn.presets.fc2(16, bias=False)
    weights = xavier(model, 0)
    model.check(weights)
    shapes = {"0.core0": (4, 64), "0.core1": (112, 64), "0.core3": (64, 4), "2.core2": (16, 40)}
    for name, (rows, columns) in shapes.items():
        assert weights[name].size == rows * columns
        assert weights[name].std() == pytest.approx((2 / (rows + columns)) ** 0.5, rel=0.2)


@pytest.mark.thorough
def test_the_even_init_has_one_variance_and_a_smaller_w():
    model = tn.presets.fc2(16, bias=False)
    weights, ours = even(model, 0), model.init(0)
    model.check(weights)
    for layer, network in model.networks().items():
        names = [core.name for core in network.topology.cores]
        assert np.ptp([weights[f"{layer}.{name}"].std() for name in names]) < 1e-6
        small, large = (network.to_dense({name: w[f"{layer}.{name}"] for name in names}) for w in (weights, ours))
        assert small == pytest.approx(0.3 * large, rel=1e-4, abs=1e-6)


def test_nested_blocks_are_quarters_rows_columns_and_places():
    places = order.nested_blocks().permutation.reshape(4, 7, 7, 4)
    assert places[0].max() == 13 * 28 + 13
    assert sorted(places[0, 0, 0]) == [0, 1, 28, 29]
    assert places[0, 1, 0, 0] == 2 * 28


def test_equal_ranks_fit_the_budget():
    for budget in autorank.BUDGETS:
        equal, moving, filled = autorank._variants(budget)
        assert equal.model == moving.model
        assert equal.model.num_weights <= filled.model.num_weights <= budget


@pytest.mark.thorough
def test_one_step_moves_a_layer_alike_at_every_width_by_structure_aware_rates():
    pytest.importorskip("torch")

    def moved(width, rule):
        return coord_check.moved(coord_check.network("mpo", width), rule, QUICK, 0)

    ratio = {rule: moved(1024, rule) / moved(16, rule) for rule in coord_check.RULES}
    assert 0.5 < ratio["structure"] < 2 < ratio["one lr"]


def test_a_run_that_diverges_is_stopped_and_said(tmp_path):
    model = tn.Sequential(tn.Linear(tn.mpo((8, 8), (8, 8)).with_rank(8)), tn.Linear(64, 10))
    wild = Variant("wild", model, {"optimizer": "sgd", "lr": 1e4, "epochs": 500, "schedule": "constant"})
    [unit] = units([wild], "digits", {}, QUICK)
    row = unit.run(tmp_path)
    assert row["diverged"]
    assert accuracy_line([{**row, **unit.key}], "wild", low=1).shown == "diverged"


def test_entropies_of_all_epochs_outlive_a_kill(tmp_path):
    model = entangle.MODELS["MPO"]
    log = entangle._Log(model, 0, tmp_path / "log.json")
    log.add(1, model.init(1))
    again = entangle._Log(model, 0, tmp_path / "log.json")
    again.add(2, model.init(2))
    assert again.values[:2] == log.values
    assert len(again.values) == 3
    assert all(len(cuts) == 3 for cuts in again.values)


def test_vgg16_says_why_it_is_not_trained():
    [unit] = reproduce.experiment("vgg16").units(QUICK)
    assert unit.run(None)["not_trained"] == "--quick counts only"
    on_cpu = reproduce.Settings(quick=False, backend="torch", device=None, seeds=1)
    [unit] = reproduce.experiment("vgg16").units(on_cpu)
    assert "needs a GPU: --device cuda" in unit.run(None)["not_trained"]
    on_gpu = reproduce.Settings(quick=False, backend="torch", device="cuda", seeds=1)
    assert "cifar10.npz" in vgg16._missing(on_gpu)
