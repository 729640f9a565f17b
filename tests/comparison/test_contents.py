"""What the report says: which metric decides, in which direction, what the seeds tell, and on how wide a terminal."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from comparison_rows import graph_row, results_of, seeds_of
from rich.console import Console

import tn4nn as tn
from tn4nn._comparison.contents import contents_of
from tn4nn._comparison.report import print_table, summarise
from tn4nn._comparison.summary import Metric

TABLE = [
    *seeds_of("dense", (1.5, 1.52, 1.51), budget=4000, params=4000, step_vs_dense=1.0, layers={"up": 2000}),
    *seeds_of("narrow", (2.0, 2.02, 2.01)),
    *seeds_of("btt", (1.7, 1.71, 1.72)),
    *seeds_of("mpo", (2.01, 2.03, 1.99)),
    *seeds_of("cp", (2.4, 2.42, 2.41)),
]


def printed(results: dict[str, Any], width: int = 150) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_table(results, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cells(text: str) -> dict[str, list[str]]:
    """First word of each line of the table -> the others."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def test_less_loss_is_better() -> None:
    found = contents_of(results_of(TABLE))
    assert {one.topology for one in found.summaries if one.level} == {"btt"}
    report = tn.Report(results_of(TABLE))
    assert list(report.level_with_best(1000, "torch")) == ["btt"]
    upside_down = results_of(TABLE, larger_is_better=True)
    assert {one.topology for one in contents_of(upside_down).summaries if one.level} == {"cp"}
    assert list(tn.Report(upside_down).level_with_best(1000, "torch")) == ["cp"]


def test_what_beats_the_thinner_dense_model_and_what_does_not() -> None:
    [line] = contents_of(results_of(TABLE)).findings
    assert line.startswith("better than the thinner dense model at this budget: btt (p < 0.001); worse: cp (p < 0.001)")
    assert line.endswith("; not told apart: mpo")
    [line] = contents_of(results_of(TABLE, larger_is_better=True)).findings
    assert "budget: cp (p < 0.001); worse: btt (p < 0.001); not told apart: mpo" in line
    other = [*seeds_of("narrow", (2.0, 2.1), budget=500), *seeds_of("btt", (2.1, 2.0), budget=500)]
    lines = contents_of(results_of([*TABLE, *other])).findings
    assert [line.split(":")[0].rpartition("at ")[2] for line in lines] == ["budget 1000", "budget 500"]
    assert lines[1].endswith("budget 500: none; not told apart: btt")


def test_one_seed_tells_nothing_and_the_report_says_so() -> None:
    found = contents_of(results_of([graph_row("narrow"), graph_row("btt", loss=1.0)]))
    assert not any(one.level for one in found.summaries)
    assert found.findings == ["one seed each: nothing tells these differences from noise (seeds=3 or more would)"]


def test_without_scipy_the_table_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    found = contents_of(results_of(TABLE))
    assert not any(one.level for one in found.summaries)
    assert "pip install scipy" in found.findings[0]


def test_results_come_first_and_costs_after() -> None:
    titles = [" ".join(column.title).strip() for column in contents_of(results_of(TABLE)).columns]
    assert titles == [
        "topology", "loss", "vs dense", "params", "asked", "fill %", "compr. layers", "compr. model", "step ms",
        "MACs /sample", "peak KiB", "saved KiB", "lr", "accuracy %", "status",
    ]  # fmt: skip
    ladder = [graph_row("mpo", width=8), graph_row("mpo", width=16, steps=50), graph_row("mpo", backend="jax", width=8)]
    titles = [" ".join(column.title).strip() for column in contents_of(results_of(ladder)).columns]
    assert titles[:5] == ["topology", "width", "backend", "loss", "vs dense"]
    assert titles[-4:-1] == ["steps", "lr", "accuracy %"]


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_keeps_the_topology_the_score_and_the_time(width: int) -> None:
    wide = [one | {"width": at, "budget": at * one["budget"]} for at in (64, 128) for one in TABLE]
    for rows in (TABLE, wide, [*TABLE, graph_row("ring", status="infeasible", reason="too small", loss=None)]):
        text = printed(results_of(rows), width)
        assert max(map(len, text.splitlines())) <= width
        line = next(line for line in text.splitlines() if line.startswith("btt"))
        assert "1.710 ± 0.010 *" in line
        assert "0.65x" in line
    assert "infeasible [1]" in text


def test_a_long_name_goes_on_in_a_second_line() -> None:
    name = "abcdef,adgh,begi,cfhi->" * 3
    text = printed(results_of([*TABLE, *seeds_of(name, (1.9, 1.8))]), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert name in "".join(line[:32].strip() for line in text.splitlines())
    assert "1.850 ± 0.071" in text


def test_errors_are_shown_where_all_are_nearly_right() -> None:
    def table(worst: float) -> dict[str, Any]:
        rows = [graph_row("mpo", accuracy=99.5), graph_row("mpo", 1, accuracy=99.3), graph_row("cp", accuracy=worst)]
        return results_of(rows, metric="accuracy", larger_is_better=True)

    text = printed(table(97.5))
    assert text.splitlines()[0].split()[0] == "error"
    assert cells(text)["mpo"][:3] == ["0.60", "±", "0.14"]
    assert cells(text)["cp"][0] == "2.50"
    assert "error = percent that are wrong" in text
    text = printed(table(97.0))
    assert text.splitlines()[0].split()[0] == "accuracy"
    assert cells(text)["mpo"][0] == "99.40"
    assert "error" not in text


@pytest.mark.parametrize(
    ("budget_of", "words"),
    [
        ("params", "asked, params = parameters of the compared layers, without biases;"),
        ("macs", "asked = multiply-adds of one forward pass of one sample"),
        ("bytes", "asked = bytes of the weights of the compared layers;"),
        ("step_ms", "asked = milliseconds of the compared layers in one training step, as the cost model predicts;"),
    ],
)
def test_notes_say_what_was_asked_for(budget_of: str, words: str) -> None:
    notes = contents_of(results_of(TABLE, budget_of=budget_of)).notes
    assert len([note for note in notes if words in note]) == 1
    assert any("params = parameters of the compared layers" in note for note in notes)
    assert any("less is better" in note for note in notes)


def test_metrics_of_a_fit_of_ones_own_have_columns() -> None:
    rows = [graph_row("mpo", seed, f1=f1) for seed, f1 in enumerate((0.5, 0.7))]
    found = contents_of(results_of(rows, metric="f1", larger_is_better=True))
    [one] = found.summaries
    assert (one.metric, one.larger_is_better, one.score) == ("f1", True, pytest.approx(0.6))
    assert one.metrics == {"accuracy": (30.0, 0.0), "loss": (2.0, 0.0)}
    assert "f1 = as the fit that was given returned it" in found.notes
    assert "0.6000 ± 0.14" in printed(results_of(rows, metric="f1", larger_is_better=True))


def test_old_results_are_those_of_accuracies() -> None:
    new = ("role", "width", "steps", "search_steps", "flops", "layers", "loss")
    rows = [
        {name: value for name, value in row.items() if name not in new}
        for row in (graph_row("dense", accuracy=91.0), graph_row("mpo", accuracy=80.0), graph_row("cp", accuracy=90.0))
    ]
    old: dict[str, Any] = {"schema": 1, "rows": rows, "config": {"epochs": 3}}
    found = contents_of(old)
    assert [(one.role, one.score, one.larger_is_better) for one in found.summaries] == [
        ("dense", 91.0, True), ("topology", 80.0, True), ("topology", 90.0, True)
    ]  # fmt: skip
    assert [one.accuracy for one in found.summaries] == [91.0, 80.0, 90.0]
    assert cells(printed(old))["cp"][0] == "90.00"
    assert tn.Report(old).scaling() == []
    assert set(tn.Report(old).level_with_best(1000, "torch")) == {"dense", "mpo", "cp"}


def test_widths_are_not_seeds_of_one_another() -> None:
    rows = [*seeds_of("mpo", (2.0, 2.1), width=8), *seeds_of("mpo", (1.0, 1.1), width=16)]
    assert [(one.width, one.score) for one in summarise(rows, Metric("loss", False))] == [
        (8, pytest.approx(2.05)), (16, pytest.approx(1.05))
    ]  # fmt: skip
    report = tn.Report(results_of(rows))
    with pytest.raises(tn.TN4NNError, match=r"widths \[8, 16\]: give width= as one of them"):
        report.level_with_best(1000, "torch")
    assert report.level_with_best(1000, "torch", width=8) == {"mpo": 1.0}
