"""Curves of loss against compute: what is recovered, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comparison_rows import graph_row, results_of

import tn4nn as tn
from tn4nn._comparison.cells import Cell, make_cells, row_of
from tn4nn._comparison.contents import contents_of
from tn4nn._comparison.questions import Question, two_layers
from tn4nn._comparison.rows import Outcome
from tn4nn._comparison.scaling import Curve, Point, fit

A, B, C = 60.0, 0.15, 1.5


def points_of(count: int, seeds: int, noise: float, seed: int) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [
        Point(at, 0, tuple(float(loss) for loss in (C + A * at**-B) * (1 + noise * rng.normal(size=seeds))))
        for at in np.geomspace(1e9, 1e13, count)
    ]


def holds(curve: Curve) -> list[bool]:
    intervals = zip((A, B, C), (curve.a_interval, curve.b_interval, curve.c_interval), strict=True)
    return [interval is not None and interval[0] <= value <= interval[1] for value, interval in intervals]


def test_without_noise_the_curve_is_found_exactly() -> None:
    curve = fit(points_of(6, 1, 0.0, 0))
    assert (curve.a, curve.b, curve.c) == pytest.approx((A, B, C), rel=2e-2)
    assert curve.at(np.array([1e11])) == pytest.approx(C + A * 1e11**-B, rel=1e-4)


@pytest.mark.thorough
def test_the_intervals_hold_what_the_points_were_made_of() -> None:
    found = [fit(points_of(6, 3, 0.005, seed)) for seed in range(20)]
    assert all(not curve.reason for curve in found)
    # 95 % each: of 20, fewer than 17 hold with a probability under 2 %.
    assert all(count >= 17 for count in np.sum([holds(curve) for curve in found], 0))
    # And they are no wider than they need to be.
    assert all(curve.b_interval and curve.b_interval[1] - curve.b_interval[0] < B for curve in found)


def test_equal_points_give_equal_intervals() -> None:
    assert fit(points_of(5, 2, 0.01, 1)) == fit(points_of(5, 2, 0.01, 1))


@pytest.mark.parametrize("seeds", [1, 3])
def test_flat_losses_have_no_curve(seeds: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        curve = fit([Point(at, 0, tuple(3 + 0.02 * rng.normal(size=seeds))) for at in np.geomspace(1e9, 1e12, 6)])
        assert curve.a is None
        assert "fall" in curve.reason or "equally well" in curve.reason
    curve = fit([Point(at, 0, (3.0,)) for at in (1e9, 1e10, 1e11, 1e12)])
    assert (curve.b, curve.reason) == (None, "the loss does not fall with compute")


def test_what_else_is_refused() -> None:
    rising = [Point(at, 0, (2.0 + i,)) for i, at in enumerate((1e9, 1e10, 1e11, 1e12))]
    assert fit(rising).reason == "the loss does not fall with compute"
    assert fit(points_of(3, 3, 0.0, 0)).reason == "3 values of compute, a curve of three parameters needs at least 4"
    equal = [Point(1e9 * (1 + 0.001 * i), 0, (2.0 - i,)) for i in range(2)]
    assert fit(equal * 3).reason.startswith("1 value of compute")
    assert "not above 0" in fit([Point(at, 0, (0.0,)) for at in (1e9, 1e10, 1e11, 1e12)]).reason
    assert str(fit(rising)) == "not identified: the loss does not fall with compute"


def ladder(widths: tuple[int, ...] = (8, 16, 32, 64, 128), **changes: Any) -> list[dict[str, Any]]:
    return [
        graph_row(name, seed, width=width, budget=budget * width, flops=flops, **changes)
        | {"loss": (1.5 + 60 * flops**-0.15) * scale * (1 + 0.002 * (-1) ** (seed + width // 8))}
        for name, scale in (("mpo", 1.0), ("btt", 0.9))
        for width in widths
        for budget in (10, 20)
        for seed in (0, 1)
        for flops in [budget * 1e5 * width**2]
    ]


def test_a_record_for_each_topology_and_budget() -> None:
    found = tn.Report(results_of(ladder(), budgets=[0.1, 0.2])).scaling()
    assert [(one["topology"], one["backend"], one["asked"]) for one in found] == [
        ("mpo", "torch", 0.1), ("mpo", "torch", 0.2), ("btt", "torch", 0.1), ("btt", "torch", 0.2)
    ]  # fmt: skip
    for one in found:
        assert [point["width"] for point in one["points"]] == [8, 16, 32, 64, 128]
        assert all(len(point["losses"]) == 2 for point in one["points"])
        assert one["b_interval"][0] <= 0.15 <= one["b_interval"][1]
    assert tn.Report(results_of(ladder((8,)))).scaling() == []


def test_the_table_has_curves_from_four_values_of_compute_on() -> None:
    lines = contents_of(results_of(ladder(), budgets=[0.1, 0.2])).findings
    assert lines[0].startswith("scaling: loss = a C^-b + c")
    assert lines[1].startswith("mpo asked 0.1: a = ")
    assert len(lines) == 5
    assert contents_of(results_of(ladder((8, 16, 32)), budgets=[0.1, 0.2])).findings == []


def test_rows_without_compute_say_so() -> None:
    rows = [row | {"flops": None} for row in ladder()]
    found = tn.Report(results_of(rows, budgets=[0.1, 0.2])).scaling()
    assert {one["reason"] for one in found} == {"rows without flops"}
    assert contents_of(results_of(rows)).findings == []


def test_the_compute_of_a_run_is_that_of_its_plans() -> None:
    pytest.importorskip("torch")
    options: dict[str, Any] = {
        "budget_of": "params", "seeds": 1, "jobs": 1, "lr": 1e-3, "search_rows": None, "precision": "float32",
        "device": None, "optimizer": "adam",
    }  # fmt: skip
    question = Question(("low_rank", "dense"), 600, "torch", None)
    subject, settings = two_layers(question, "digits", None, "dense", options)
    rows = {}
    for cell in make_cells(subject, settings):
        assert isinstance(cell, Cell)
        rows[cell.topology] = row_of(cell, settings, Outcome(1e-3, "ok", steps=3), {}, subject.task)
        assert row_of(cell, settings, Outcome(1e-3), {}, subject.task).flops is None
    # Two operations for each multiply-add; a step takes those of the forward pass three times, for 64 samples. The last
    # layer, which stays dense, is counted too.
    assert rows["dense"].flops == 3 * 2 * 3 * 64 * (64 * 64 + 64 * 10)
    macs = rows["low_rank"].macs_per_sample
    assert macs is not None
    assert rows["low_rank"].flops == pytest.approx(3 * 2 * 3 * 64 * macs, rel=1e-3)
