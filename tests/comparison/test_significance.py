"""Tests of significance against scipy, and a comparison under a budget of multiply-adds."""

import math
import sys

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._comparison.significance import holm, level_with_best, welch
from tn4nn._graph.problem import min_macs


def test_welch_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = rng.normal(size=rng.integers(2, 6)), rng.normal(1, 2, size=rng.integers(2, 6))
        assert welch(list(a), list(b)) == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, abs=1e-12)


def test_welch_without_spread_or_samples() -> None:
    assert welch([1.0, 1.0], [1.0, 1.0]) == 1
    assert welch([1.0, 1.0], [2.0, 2.0]) == 0
    assert math.isnan(welch([1.0], [2.0, 3.0]))


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(tn.TN4NNError, match="need scipy.*pip install scipy"):
        welch([1.0, 2.0], [2.0, 3.0])


def test_one_sample_without_spread() -> None:
    assert 0 < welch([1.0, 1.0, 1.0], [2.0, 3.0, 2.5]) < 0.1


def test_holm_is_monotone_and_at_most_one() -> None:
    assert holm([]) == []
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.001, 0.02, 0.019]) == pytest.approx([0.003, 0.038, 0.038])


def test_one_seed_tells_no_difference() -> None:
    rows = [{"topology": name, "accuracy": a} for name, a in (("mpo", 97.0), ("cp", 50.0))]
    level = level_with_best(rows)
    assert level["mpo"] == 1
    assert level["cp"] == 1
    assert level_with_best([{"topology": "mpo", "accuracy": None}]) == {}


@pytest.mark.thorough
def test_a_budget_of_multiply_adds() -> None:
    pytest.importorskip("torch")
    report = tn.compare(
        ["low_rank", "btt", "dense"], macs=1_500, backends=["torch"], seeds=2, epochs=1, head="dense", lr=1e-3,
    )  # fmt: skip
    assert report.results["config"]["budget_of"] == "macs"
    rows = {row["topology"]: row for row in report.rows}
    assert rows["low_rank"]["fill"] == pytest.approx(11 * 128 / 1500)  # rank 11: x A, then B
    assert rows["dense"]["budget"] == 64 * 64
    assert min_macs(tn.low_rank(64, 64).with_rank(11), 64) == 64 * 11 * 128
    assert set(report.level_with_best(1_500, "torch")) <= {"low_rank", "btt"}
    with pytest.raises(tn.TN4NNError, match="give head='dense', and no budget="):
        tn.compare(["mpo"], macs=1_500)
    with pytest.raises(tn.TopologyError, match="search_rows: the size must be at least 1"):
        tn.compare(["mpo"], search_rows=0)
