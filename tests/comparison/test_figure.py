"""The figure and the page, as their readers see them: colours, axes, fronts, words, tables."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from comparison_rows import graph_row, results_of, seeds_of

from tn4nn._comparison.contents import contents_of
from tn4nn._comparison.figure import svgs_of, write_figure
from tn4nn._comparison.labels import place
from tn4nn._comparison.panels import panels_of
from tn4nn._comparison.report import write_html

pytest.importorskip("matplotlib", reason="figures need matplotlib")

TABLE = [
    *seeds_of("dense", (1.5, 1.52), budget=4000, params=4000, macs_per_sample=8000, step_ms=2.0),
    *seeds_of("narrow", (2.0, 2.02), params=900, macs_per_sample=2000, step_ms=0.8),
    *seeds_of("btt", (1.7, 1.71), params=950, macs_per_sample=3000, step_ms=1.1),
    *seeds_of("mpo", (2.1, 2.13), params=1000, macs_per_sample=4000, step_ms=1.3),
]
LADDER = [
    graph_row(
        name, seed, width=width, budget=10 * width, params=10 * width, model_params=30 * width**2, flops=1e5 * width**2,
        loss=(1.5 + 60 * (1e5 * width**2) ** -0.15) * scale * (1 + 0.002 * (-1) ** (seed + width // 8)),
    )
    for name, scale in (("dense", 0.95), ("narrow", 1.05), ("mpo", 1.0), ("btt", 0.9))
    for width in (8, 16, 32, 64, 128)
    for seed in (0, 1)
]  # fmt: skip


def colours(svg: str) -> dict[str, set[str]]:
    """Number of each topology -> the colours that its lines and marks have in a picture."""
    found: dict[str, set[str]] = {}
    for group in ElementTree.fromstring(svg).iter():
        match = re.search(r"topology(\d+)$", group.get("id", ""))
        if match:
            styles = " ".join(part.get("style", "") for part in group.iter())
            used = set(re.findall(r"(?:stroke|fill): (#[0-9a-f]{6}|currentColor)", styles))
            found.setdefault(match[1], set()).update(used)
    return found


@pytest.mark.thorough
def test_a_topology_has_one_colour_in_every_panel() -> None:
    _, *panels = [svg for _, svg in svgs_of(contents_of(results_of(LADDER)))]
    assert len(panels) == 4
    first, *others = map(colours, panels)
    assert {name: len(used) for name, used in first.items()} == dict.fromkeys("0123", 1)
    assert all(one == first for one in others)
    # The dense models have that of the text; topologies have colours of their own.
    assert (first["0"], first["1"]) == ({"currentColor"}, {"currentColor"})
    assert len(first["2"] | first["3"] | {"currentColor"}) == 3


def test_colours_do_not_change_with_the_order_of_the_dense_models(tmp_path: Path) -> None:
    one = [row for row in TABLE if row["role"] == "topology"]
    with_dense = colours(svgs_of(contents_of(results_of(TABLE)))[1][1])
    alone = colours(svgs_of(contents_of(results_of(one)))[1][1])
    assert [with_dense["2"], with_dense["3"]] == [alone["0"], alone["1"]]


def test_axes_of_losses_and_errors_are_logarithmic_and_accuracies_are_not() -> None:
    assert all(panel.log_y for panel in panels_of(contents_of(results_of(TABLE))))
    for accuracy, log in ((98.0, True), (60.0, False)):
        rows = [row | {"accuracy": accuracy} for row in TABLE]
        panels = panels_of(contents_of(results_of(rows, metric="accuracy", larger_is_better=True)))
        assert [panel.log_y for panel in panels] == [log] * 3
        assert {panel.y for panel in panels} == {"error (%)" if log else "accuracy (%)"}


def test_one_poor_topology_does_not_squeeze_the_others() -> None:
    poor = [row | {"accuracy": 40.0 if row["topology"] == TABLE[-1]["topology"] else 98.0} for row in TABLE]
    panels = panels_of(contents_of(results_of(poor, metric="accuracy", larger_is_better=True)))
    assert {(panel.y, panel.log_y) for panel in panels} == {("error (%)", True)}


def test_the_front_has_what_no_other_beats() -> None:
    params, macs, _ = panels_of(contents_of(results_of(TABLE)))
    assert [name for name, _, _ in params.front] == ["narrow", "btt", "dense"]
    assert [name for name, _, _ in macs.front] == ["narrow", "btt", "dense"]
    reversed_ = panels_of(contents_of(results_of(TABLE, larger_is_better=True)))
    assert [name for name, _, _ in reversed_[0].front] == ["narrow", "mpo"]


def test_pictures_are_described_in_words() -> None:
    key, *panels = svgs_of(contents_of(results_of(TABLE)))
    assert 'aria-label="Key: dense, narrow, btt, mpo."' in key[1]
    label = re.search(r'role="img" aria-label="([^"]*)"', panels[0][1])
    assert label
    assert label[1].startswith("loss against parameters of the compared layers, for dense, narrow, btt, mpo.")
    assert "No other is better in both: narrow (900, 2.01), btt (950, 1.71), dense (4000, 1.51)." in label[1]


def test_panels_of_compute() -> None:
    assert [panel.x for panel in panels_of(contents_of(results_of(TABLE)))][3:] == []
    curves = panels_of(contents_of(results_of(LADDER)))[3]
    assert (curves.x, curves.y, curves.log_y) == ("FLOPs of a training run", "loss", True)
    assert [len(one.curve) for one in curves.series] == [40] * 4
    equal = [row | {"flops": 1e9} for row in LADDER]
    panels = panels_of(contents_of(results_of(equal, flops=1e9)))[3:]
    assert [panel.x for panel in panels] == ["parameters of the model, 1G FLOPs each"]
    assert [point.x for point in panels[0].series[0].points] == [30 * width**2 for width in (8, 16, 32, 64, 128)]


def test_names_cover_neither_points_nor_one_another() -> None:
    points = {f"name{i}": [(100.0 + 12 * i, 100.0 + 6 * i)] for i in range(8)}
    taken = [point for places in points.values() for point in places]
    labels = place(points, taken, [], (0.0, 0.0, 400.0, 300.0), 1.0)
    assert len(labels) == 8
    boxes = []
    for label in labels:
        left, low = label.point[0] + label.dx, label.point[1] + label.dy
        boxes.append((left, low, left + 0.62 * 9 * len(label.text), low + 1.25 * 9))
    for i, one in enumerate(boxes):
        assert not any(one[0] < x < one[2] and one[1] < y < one[3] for x, y in taken)
        for other in boxes[:i]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert place({"a": [(5.0, 5.0)]}, [(5.0, 5.0)], [], (0.0, 0.0, 10.0, 10.0), 1.0) == []


def page(results: dict[str, Any], where: Path) -> str:
    write_html(where / "a.html", results)
    return (where / "a.html").read_text("utf-8")


def rows_of(table: str) -> list[list[str]]:
    """The text of the cells of a table."""
    rows = re.findall(r"<tr.*?>(.*?)</tr>", table, re.DOTALL)
    return [
        [html.unescape(re.sub(r"<.*?>", " ", cell)).strip() for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row)]
        for row in rows
    ]


def test_the_page_says_what_every_layer_has(tmp_path: Path) -> None:
    rows = [
        graph_row("dense", budget=4000, layers={"up": 2000, "down": 2000}),
        graph_row("mpo", layers={"up": 500, "down": 490}),
        graph_row("mpo", 1, layers={"up": 500, "down": 490}),
        graph_row("mpo", budget=500, layers={"up": 250, "down": 240}),
        graph_row("cp", status="infeasible", reason="too small", layers={}, loss=None),
    ]
    text = page(results_of(rows), tmp_path)
    [table] = re.findall(r'<table class="layers">.*?</table>', text, re.DOTALL)
    head, *body = rows_of(table)
    assert [cell.split()[:3] for cell in head[1:]] == [
        ["dense", "asked", "4000"], ["mpo", "asked", "1000"], ["mpo", "asked", "500"]
    ]  # fmt: skip
    assert body == [["up", "2000", "500", "250"], ["down", "2000", "490", "240"]]
    assert re.search(r"<details><summary>What each layer has \(2 layers\)</summary>", text)
    assert re.search(r"<details><summary>Every seed \(5 rows\)</summary>", text)


def test_the_page_asks_nothing_of_the_net_and_every_table_scrolls_by_itself(tmp_path: Path) -> None:
    text = page(results_of(LADDER), tmp_path)
    addresses = set(re.findall(r"https?://[^\"' ]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in text
    assert not re.search(r"<(link|img|iframe|object|embed)\b|@import|<script[^>]+src|url\((?!#)", text)
    assert text.count("<table") == text.count('<div class="wide"><table') > 2
    assert text.count("<svg") == text.count('<svg role="img" aria-label="') == 5
    assert "scaling: loss = a C^-b + c" in text
    first = rows_of(text[text.index('<table class="sortable">') :])[0]
    assert first[:4] == ["topology", "width", "loss", "vs dense"]


@pytest.mark.thorough
def test_a_picture_of_a_ladder_is_written(tmp_path: Path) -> None:
    write_figure(tmp_path / "a.png", results_of(LADDER))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    write_figure(tmp_path / "a.svg", results_of(LADDER))
    assert "Curves a C^-b + c are fitted." in (tmp_path / "a.svg").read_text("utf-8")
