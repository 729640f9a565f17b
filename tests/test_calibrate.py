"""Figures of the cost model, fitted to what was measured."""

import dataclasses
import json
import sys

import numpy as np
import pytest

import tn4nn as tn
from tn4nn import _calibrate as calibrating
from tn4nn import _native
from tn4nn._calibrate import FIGURES, Sample
from tn4nn._errors import TN4NNError
from tn4nn._native_plan import candidates, ways

TRUE = {
    "tile_macs_per_s": 1.7,
    "tile_s": 0.5,
    "vector_s": 2.0,
    "far_s": 1.5,
    "task_s": 3.0,
    "call_s": 0.7,
    "memory_bytes_per_s": 0.8,
}


@pytest.fixture
def native():
    if _native.runtime(4) is None:
        pytest.skip("there is no native runtime here: no C compiler")


def invented(noise=0.0, count=200):
    """Samples of a machine on which everything takes TRUE times as long as by default."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        times = dict(zip(FIGURES, rng.exponential(1e-4, len(FIGURES)), strict=True))
        seconds = sum(TRUE[name] * times[name] for name in FIGURES) * np.exp(noise * rng.standard_normal())
        made.append(Sample(str(i), times, seconds))
    return made


def test_the_fit_finds_the_machine_that_made_the_times():
    assert calibrating.fitted(invented()) == pytest.approx(TRUE, rel=0.1)
    factors, before, after = calibrating.judged(invented(noise=0.1))
    assert factors == pytest.approx(TRUE, rel=0.25)
    assert after < 0.12 < before


def test_figures_stay_within_ten_times_their_defaults():
    slow = [sample._replace(measured_s=sample.measured_s * 3) for sample in invented()]
    within = {name: min(10, 3 * factor) for name, factor in TRUE.items()}
    assert calibrating.fitted(slow) == pytest.approx(within, rel=0.1)
    far = [sample._replace(measured_s=sample.measured_s * 1e3) for sample in invented()]
    assert set(calibrating.fitted(far).values()) == {10.0}
    near = [sample._replace(measured_s=sample.measured_s / 1e3) for sample in invented()]
    assert set(calibrating.fitted(near).values()) == {0.1}


def test_where_the_fit_is_no_better_the_defaults_stay(monkeypatch):
    monkeypatch.setattr(calibrating, "fitted", lambda samples: dict.fromkeys(FIGURES, 7.0))
    factors, before, after = calibrating.judged(invented())
    assert factors == dict.fromkeys(FIGURES, 1.0)
    assert before == after


def test_a_scaled_machine_takes_so_many_times_as_long():
    machine = calibrating.scaled(tn.Machine(), TRUE)
    assert machine.tile_macs_per_s == tn.Machine().tile_macs_per_s / 1.7
    assert machine.task_s == tn.Machine().task_s * 3
    assert machine.macs_per_s == tn.Machine().macs_per_s


@pytest.mark.parametrize("phase", ["forward", "train"])
def test_the_parts_of_a_prediction_are_the_whole_and_grow_with_their_figures(phase):
    net, machine = tn.mpo((4, 8, 4), (4, 8, 4)).with_rank(4), tn.Machine()
    way = ways(net, 2048, phase, cache=False)[0]
    times = calibrating.times_of(net, way, 2048, phase, 4, machine)
    assert all(seconds > 0 for name, seconds in times.items() if name != "far_s")  # nothing is strided here
    assert sum(times.values()) == pytest.approx(way.cost.predicted_s)
    slow = calibrating.times_of(net, way, 2048, phase, 4, calibrating.scaled(machine, TRUE))
    assert slow == pytest.approx({name: TRUE[name] * times[name] for name in FIGURES})


def test_the_parts_of_a_way_that_keeps_its_states_are_its_whole():
    net, machine = tn.mpo((4, 8, 4), (4, 8, 4)).with_rank(4), tn.Machine()
    way = next(way for way in candidates(net, 16, "train", machine=machine) if way.keep)
    times = calibrating.times_of(net, way, 16, "train", 4, machine)
    assert sum(times.values()) == pytest.approx(way.cost.predicted_s)


def test_calibrate_keeps_what_it_found_for_this_processor(native, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    assert tn.calibrated() is None
    from tn4nn import _cli

    monkeypatch.setattr(sys, "argv", ["tn4nn", "calibrate", "--json", str(tmp_path / "c.json")])
    with pytest.raises(SystemExit) as end:
        _cli.main()
    assert end.value.code == 0
    assert "Calibrated on " in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["seconds"] < 60
    assert found["after"] <= found["before"]
    assert dataclasses.asdict(tn.calibrated()) == found["machine"]
    assert tn.calibrated(itemsize=8) is None
    monkeypatch.setattr(calibrating, "processor", lambda: "another")
    assert tn.calibrated() is None


@pytest.mark.parametrize(
    "text", ["", "{}", '{"schema": 1, "machine": {"tile_s": 0.0}}', '{"schema": 1, "machine": {"speed": 2}}']
)
def test_a_file_that_cannot_be_read_counts_as_absent(monkeypatch, tmp_path, text):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    path = calibrating._file(4)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert tn.calibrated() is None


def test_no_runtime_and_too_little_time_are_told(native, monkeypatch, tmp_path):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    with pytest.raises(TN4NNError, match="needs a C compiler .* itemsize 4 or 8, received itemsize=2"):
        tn.calibrate(itemsize=2)
    with pytest.raises(TN4NNError, match="seconds were enough for 0 ways: allow more time"):
        tn.calibrate(time_limit=-1.0)
    assert list(tmp_path.glob("machines/*")) == []
