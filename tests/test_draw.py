from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

import tn4nn as tn
from tn4nn._draw import draw
from tn4nn._errors import TN4NNError
from tn4nn.testing import random_network

pytest.importorskip("matplotlib", reason='pictures need pip install "tn4nn[viz]"')

KEPT = tn.topology("k x0 a, a k y0, x1 y1", {"k": 2, "x0": 3, "x1": 2, "w": 2}, {"y1": 2, "k": 2, "y0": 5, "w": 2})


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def centres(figure) -> list[tuple[float, float]]:
    return [tuple(patch.center) for patch in figure.axes[0].patches]


@pytest.mark.parametrize("name", tn.catalogue())
def test_every_core_leg_and_rank_is_named(name: str) -> None:
    net = tn.build(name, 64, 16, sites=3).with_rank(11)
    shown = texts(net.draw())
    for core in net.topology.cores:
        assert shown.count(core.name) == 1
    for leg, size in net.topology.modes.items():
        assert shown.count(f"{leg}={size}") == 1
    assert shown.count("11") == len(net.ranks)


def test_without_ranks_bonds_show_their_names() -> None:
    assert {"a0", "a1"} < set(texts(tn.mpo((2, 2, 2), (2, 2, 2)).draw()))


def test_kept_legs_are_marked() -> None:
    shown = texts(KEPT.draw())
    assert shown.count("k=2 kept") == 1
    assert shown.count("w=2 kept") == 2  # a wire through, labelled at both ends


def test_a_chain_is_a_row_a_grid_has_rows_a_tree_has_its_leaves_below() -> None:
    chain = centres(tn.mpo((2,) * 5, (2,) * 5).draw())
    assert {y for _, y in chain} == {0.0}
    assert [x for x, _ in chain] == sorted({x for x, _ in chain})
    grid = centres(tn.peps((2,) * 6, (2,) * 6, grid=(2, 3)).draw())
    assert len({y for _, y in grid}) == 2
    assert len({round(y, 6) for _, y in grid[:3]}) == 1
    tree = centres(tn.tree((2,) * 4, (2,) * 4).draw())
    assert len({y for _, y in tree[:4]}) == 1
    assert min(y for _, y in tree[4:]) > tree[0][1]
    ring = centres(tn.ring((2,) * 5, (2,) * 5).draw())
    x, y = (sum(axis) / 5 for axis in zip(*ring, strict=True))
    assert len({round(math.dist(at, (x, y)), 6) for at in ring}) == 1


def test_cores_never_overlap() -> None:
    for seed in range(40):
        places = centres(random_network(seed, cores=7).draw())
        for i, a in enumerate(places):
            for b in places[:i]:
                assert math.dist(a, b) > 0.62, f"random network {seed}"


def test_wider_bonds_for_larger_ranks() -> None:
    t = tn.low_rank(64, 64)
    widths = [max(line.get_linewidth() for line in t.with_rank(r).draw().axes[0].lines) for r in (4, 16, 64)]
    assert widths == sorted(set(widths))


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_files(tmp_path: Path, ending: str, start: bytes) -> None:
    path = tmp_path / f"net{ending}"
    tn.cp((2, 3), (3, 2)).with_rank(4).draw(str(path))
    assert path.read_bytes().startswith(start)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TN4NNError, match=r"expected a \.png or \.svg file for a picture, received .*net\.bmp"):
        draw(tn.dense(4, 4), path=str(tmp_path / "net.bmp"))


def test_without_matplotlib_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(TN4NNError, match=r'pip install "tn4nn\[viz\]"'):
        tn.dense(4, 4).draw()


def test_no_pyplot() -> None:
    code = "import sys, tn4nn as tn; tn.dense(4, 4).draw(); print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
