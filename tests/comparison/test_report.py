from __future__ import annotations

import csv
import dataclasses
import doctest
import errno
import html.parser
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run_python
from rich.console import Console

import tn4nn._comparison.columns as columns_module
import tn4nn._comparison.report as module
import tn4nn._comparison.summary as summary_module
from tn4nn import CheckpointError, TN4NNError, WriteError
from tn4nn._comparison.columns import short
from tn4nn._comparison.report import print_table, summarise, write_csv, write_figure, write_html, write_json
from tn4nn._comparison.rows import ROW_KEYS


def row(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "topology": "mpo",
        "budget": 1000,
        "params": 985,
        "model_params": 3555,
        "fill": 0.985,
        "compression": 206.4,
        "model_compression": 57.9,
        "macs_per_sample": 8865,
        "peak_bytes": 2_048_000,
        "saved_bytes": 102_400,
        "step_ms": 1.5,
        "step_vs_dense": 0.65,
        "backend": "torch",
        "device": "cpu",
        "dtype": "float32",
        "seed": 0,
        "lr": 0.003,
        "best_validation": 95.5,
        "accuracy": 94.0,
        "status": "ok",
        "reason": None,
    }
    return {**fields, **changes}


NOTHING = dict.fromkeys((*ROW_KEYS[2:12], "accuracy", "best_validation", "lr"))
EVIL = '<script>alert("x")</script>&'
RESULTS: dict[str, Any] = {
    "schema": 1,
    "machine": {"cpu": f"Xeon {EVIL}", "cores": 2},
    "versions": {"torch": "2.13.0"},
    "config": {"data": "mnist", "epochs": 6, "hidden": [256, 10]},
    "date": "2026-01-02",
    "rows": [
        row(
            topology="dense",
            budget=None,
            fill=None,
            params=203264,
            step_ms=2.3,
            step_vs_dense=1,
            accuracy=98.2,
        ),
        row(seed=0, accuracy=94.0, step_ms=1.0),
        row(seed=1, accuracy=95.0, step_ms=9.0),
        row(seed=2, accuracy=96.0, step_ms=2.0),
        row(budget=4000, params=3940, accuracy=97.0),
        row(budget=4000, seed=1, status="failed", reason="loss is NaN", **NOTHING),
        row(topology=f"low_$rank {EVIL}", status="infeasible", reason="smallest is 1040 [rank 1]", **NOTHING),
        row(backend="jax", accuracy=95.5, peak_bytes=None, step_ms=None),
    ],
}


def text_of(results: dict[str, Any], width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_table(results, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# -------------------------------------------------------------------------------------------- summaries


def test_summaries_group_over_seeds() -> None:
    groups = {(one.topology, one.budget, one.backend): one for one in summarise(RESULTS["rows"])}
    assert len(groups) == 5
    one = groups["mpo", 1000, "torch"]
    assert (one.accuracy, one.accuracy_sd, one.step_ms) == (95.0, 1.0, 2.0)
    assert (one.seeds, one.failed, one.status, one.reason) == (3, 0, "ok", "")
    mixed = groups["mpo", 4000, "torch"]
    assert (mixed.accuracy, mixed.accuracy_sd, mixed.seeds, mixed.failed) == (97.0, None, 2, 1)
    assert (mixed.status, mixed.reason) == ("ok", "loss is NaN")
    [absent] = [one for one in groups.values() if one.status == "infeasible"]
    assert (absent.accuracy, absent.params, absent.reason) == (None, None, "smallest is 1040 [rank 1]")
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.seeds = 4  # type: ignore[misc]


def test_numbers_that_are_none_count_as_absent() -> None:
    [one] = summarise([row(accuracy=float("nan"), step_ms=float("inf"), fill="much"), row(seed=1, step_ms=3)])
    assert (one.accuracy, one.accuracy_sd, one.step_ms, one.fill) == (94.0, None, 3, 0.985)
    [bare] = summarise([{"topology": "mpo", "backend": "torch", "status": "failed"}])
    assert (bare.status, bare.failed, bare.params, bare.reason) == ("failed", 1, None, "")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.00123, "0.00123"),
        (9.5, "9.5"),
        (999.7, "1000"),
        (9999, "9999"),
        (9999.6, "10k"),
        (999_499, "999k"),
        (999_950, "1M"),
        (1_048_576, "1.05M"),
        (5e15, "5e+03T"),
        (-20_000, "-20k"),
        (None, "–"),
    ],
)
def test_short_numbers(value: float | None, shown: str) -> None:
    assert short(value) == shown


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({}, "schema None"),
        ([], "received list"),
        ({"schema": 2, "rows": []}, "schema 2"),
        ({"schema": 1}, "received NoneType"),
        ({"schema": 1, "rows": [{"topology": "mpo"}]}, "as row 0"),
        (
            {"schema": 1, "rows": [row(), row(status="fine")]},
            "row 1 among ok, infeasible, failed; received 'fine'",
        ),
    ],
)
def test_results_of_another_kind_are_refused(results: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        print_table(results, Console(file=io.StringIO()))
    for name, write in (("a.csv", write_csv), ("a.html", write_html), ("a.png", write_figure)):
        with pytest.raises(CheckpointError, match=words):
            write(tmp_path / name, results)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------- terminal


def test_the_table_fits_120_columns_and_holds_everything() -> None:
    results = {**RESULTS, "rows": [one for one in RESULTS["rows"] if EVIL not in one["topology"]]}
    results["rows"].append(row(topology="low_rank", status="infeasible", reason="smallest [rank 1]", **NOTHING))
    text = text_of(results, 120)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    cells = next(line for line in lines if line.startswith("mpo")).split()
    expected = "mpo torch 95.00 ± 1.00 0.65x 985 1000 98.5 206x 57.9x 2 8865 2000 100 0.003 ok"
    assert cells == expected.split()
    assert "ok 1/2 [1]" in text
    assert "[1] loss is NaN" in text
    assert "infeasible [2]" in text
    assert "[2] smallest [rank 1]" in text
    assert "MACs = multiply-adds of one forward pass per sample" in text
    assert "accuracy: on the test split, or the validation split of a task without one, after the last step" in text
    assert "do not fit" not in text
    assert "machine: cpu Xeon" in text


@pytest.mark.thorough
def test_a_learning_rate_at_the_end_of_what_was_tried_is_said(tmp_path: Path) -> None:
    rows = [row(), row(topology="ring", lr=0.3), row(topology="cp", lr=1e-5)]
    config = {"learning_rates": [0.0003, 0.01], "learning_rate_bounds": [1e-5, 0.3]}
    results = {"schema": 1, "config": config, "rows": rows}
    said = "the best learning rate is the last that was tried, another may be better: ring, cp"
    assert said in text_of(results, 120)
    write_html(tmp_path / "a.html", results)
    assert said in (tmp_path / "a.html").read_text()
    for other in ({**config, "learning_rate_bounds": None}, {}, None):
        assert "was tried" not in text_of({**results, "config": other}, 120)


def test_a_narrow_terminal_loses_columns_and_says_so() -> None:
    results = {**RESULTS, "rows": RESULTS["rows"][:4]}
    text = text_of(results, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "95.00 ± 1.00" in text
    assert "asked" in text
    assert "saved  " not in text
    assert re.search(r"\d columns do not fit in this width", text)


# -------------------------------------------------------------------------------------------- CSV, JSON


def test_csv_has_a_line_a_row(tmp_path: Path) -> None:
    results = {**RESULTS, "rows": [*RESULTS["rows"], row(note="Zürich, 1")]}
    write_csv(tmp_path / "a.csv", results)
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        back = list(csv.DictReader(file))
    assert tuple(back[0]) == (*ROW_KEYS, "note")
    assert len(back) == len(results["rows"])
    assert (back[0]["budget"], back[0]["params"], back[0]["note"]) == ("", "203264", "")
    assert back[6]["reason"] == "smallest is 1040 [rank 1]"
    assert back[-1]["note"] == "Zürich, 1"


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1"])
def test_no_cell_of_a_csv_is_a_formula(text: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", {**RESULTS, "rows": [row(topology=text, accuracy=-1.5, note=text)]})
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        (back,) = csv.DictReader(file)
    assert (back["topology"], back["note"]) == (f"'{text}", f"'{text}")
    assert back["accuracy"] == "-1.5"
    write_csv(tmp_path / "a.csv", {**RESULTS, "rows": [row(topology="a\r=1")]})
    assert len((tmp_path / "a.csv").read_text("utf-8").splitlines()) == 2


def test_json_is_strict_and_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(
        path,
        {
            "nan": float("nan"),
            "numpy": [np.float32("inf"), np.int64(3), np.bool_(True), np.float64(0.5)],
            "array": np.array([[1.0, np.nan]]),
            "zero": np.array(2.0),
            "tuple": (1, None, "é"),
            "path": Path("a") / "b",
            3: dataclasses.replace(summarise(RESULTS["rows"])[0], accuracy=float("-inf")),
        },
    )
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    back = json.loads(text)
    assert back["nan"] is None
    assert back["numpy"] == [None, 3, True, 0.5]
    assert (back["array"], back["zero"], back["tuple"]) == ([[1.0, None]], 2.0, [1, None, "é"])
    assert (back["3"]["topology"], back["3"]["accuracy"]) == ("dense", None)


def test_json_says_where_a_value_is_that_has_no_form(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"received set at \$\.rows\[1\]\.x"):
        write_json(tmp_path / "a.json", {"rows": [{}, {"x": {1}}]})
    with pytest.raises(CheckpointError, match=r"received \(1, 2\) in \$"):
        write_json(tmp_path / "a.json", {(1, 2): 3})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_every_writer_leaves_the_old_file_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writers = {"a.csv": write_csv, "a.json": write_json, "a.html": write_html, "a.svg": write_figure}
    for name in writers:
        (tmp_path / name).write_bytes(b"old")
    monkeypatch.setattr(os, "write", full)
    for name, write in writers.items():
        with pytest.raises(WriteError, match="No space left"):
            write(tmp_path / name, RESULTS)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(writers)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"old"}


# -------------------------------------------------------------------------------------------- HTML


class Page(html.parser.HTMLParser):
    """Tags with their attributes, the visible words, and a check that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def page_of(results: dict[str, Any], tmp_path: Path) -> tuple[str, Page]:
    write_html(tmp_path / "a.html", results)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_is_whole_escaped_and_asks_for_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    text, page = page_of(RESULTS, tmp_path)
    assert "<script>alert" not in text
    assert f"low_$rank {EVIL}" in page.words
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert sum(tag == "svg" for tag, _ in page.tags) == 4  # the key, and three panels
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "image")
        for key in ("src", "href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#")
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    for word in (
        "95.00 ± 1.00",
        "smallest is 1040 [rank 1]",
        "2.13.0",
        "2026-01-02",
        "[256, 10]",
        "Every seed",
    ):
        assert word in page.words
    assert "currentColor" in text
    assert "#010203" not in text
    assert "prefers-color-scheme: dark" in text


def test_every_cell_has_a_key_to_sort_by(tmp_path: Path) -> None:
    _, page = page_of(RESULTS, tmp_path)
    keys = [attributes["data-v"] for tag, attributes in page.tags if "data-v" in attributes]
    heads = [tag for tag, attributes in page.tags if tag == "th" and attributes.get("scope") == "col"]
    assert len(keys) == 5 * 15
    assert len(heads) == 15 + len(ROW_KEYS) - 1  # the table, and that of the seeds
    assert keys[:5] == ["dense", "torch", "98.2", "1", "203264"]


def test_without_matplotlib_the_page_comes_without_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    _, page = page_of(RESULTS, tmp_path)
    assert 'pip install "tn4nn[viz]"' in page.words
    assert "95.00 ± 1.00" in page.words
    assert not any(tag == "svg" for tag, _ in page.tags)
    with pytest.raises(TN4NNError, match=r'pip install "tn4nn\[viz\]"'):
        write_figure(tmp_path / "a.png", RESULTS)


@pytest.mark.parametrize("rows", [[], [row(accuracy=None)]])
def test_without_accuracies_there_is_no_figure(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    _, page = page_of({"schema": 1, "rows": rows}, tmp_path)
    assert "there is no figure" in page.words
    with pytest.raises(TN4NNError, match="at least one row with an accuracy"):
        write_figure(tmp_path / "a.png", {"schema": 1, "rows": rows})


@pytest.mark.slow
def test_figures_of_every_size(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    many = [
        row(topology=f"_t{i}", budget=b, params=b, accuracy=90 + i, step_ms=None, backend=backend)
        for i in range(14)
        for b in (10, 100_000)
        for backend in ("torch", "jax", "numpy")
    ]
    for rows in (RESULTS["rows"], [row()], many, [row(params=0, macs_per_sample=0)]):
        write_figure(tmp_path / "a.png", {"schema": 1, "rows": rows})
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        write_figure(tmp_path / "a.svg", {"schema": 1, "rows": rows})
        assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<svg")
    with pytest.raises(TN4NNError, match=r"\.png or \.svg"):
        write_figure(tmp_path / "a.gif", RESULTS)


def test_reports_import_nothing_heavy() -> None:
    code = (
        "import sys, tn4nn._comparison.report, tn4nn._training.data, tn4nn._graph.ordering\n"
        "heavy = {'torch', 'jax', 'matplotlib', 'sklearn', 'scipy', 'rich', 'jinja2', 'pooch', 'requests'}\n"
        "heavy &= set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    assert run_python(code).strip() == "[]"


def test_the_examples_run() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(summary_module).failed == 0
    assert doctest.testmod(columns_module).failed == 0
