from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import first_of, run_python

import tn4nn as tn
from tn4nn import TN4NNError
from tn4nn._compression.entanglement import bond_shares
from tn4nn._drawing import graph
from tn4nn._drawing.figure import scale_colour
from tn4nn._drawing.graph import draw
from tn4nn.testing import random_network

pytest.importorskip("matplotlib", reason='pictures need pip install "tn4nn[viz]"')

KEPT = tn.topology("k x0 a, a k y0, x1 y1", {"k": 2, "x0": 3, "x1": 2, "w": 2}, {"y1": 2, "k": 2, "y0": 5, "w": 2})


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def centres(figure) -> list[tuple[float, float]]:
    return [tuple(patch.center) for patch in figure.axes[0].patches]


@pytest.mark.cases(9)
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
    assert shown.count("k=2 batch") == 1
    assert shown.count("w=2 batch") == 2  # a wire through, labelled at both ends


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


@pytest.mark.thorough
def test_cores_never_overlap() -> None:
    for seed in range(40):
        places = centres(random_network(seed, cores=7).draw())
        for i, a in enumerate(places):
            for b in places[:i]:
                assert math.dist(a, b) > 0.62, f"random network {seed}"


GRID = (
    "x0 h0 v0",
    "x1 h0 h1 v1",
    "x2 h1 v2",
    "g0 v0 v3",
    "g0 g1 v1 v4",
    "g1 v2 v5",
    "y0 f0 v3",
    "y1 f0 f1 v4",
    "y2 f1 v5",
)


def behind(topology: tn.Topology) -> list[str]:
    """The cores behind which a line runs that does not end there."""
    picture = graph._arranged(topology, None)
    found = []
    for points, _, _ in picture.lines:
        for name, place in picture.cores.items():
            ends = min(math.dist(place, points[0]), math.dist(place, points[-1])) < 1e-9
            if not ends and graph._room(graph._dense(points), [(place, 0.9 * graph._RADIUS)]) < 0:
                found.append(name)
    return found


@pytest.mark.parametrize("leg", first_of(["bond", "input", "output"], 0))
def test_no_line_of_a_hyperedge_runs_behind_another_core(leg: str) -> None:
    sides = {"x0": 2, "x1": 2, "x2": 2}, {"y0": 2, "y1": 2, "y2": 2}
    if leg != "bond":
        sides[leg == "output"]["z"] = 3
    wrong = {}
    for chosen in itertools.combinations(range(9), 3):
        cores = [f"{legs} z" if i in chosen else legs for i, legs in enumerate(GRID)]
        found = behind(tn.topology(", ".join(cores), *sides))
        if found:
            wrong[chosen] = found
    assert wrong == {}


@pytest.mark.thorough
def test_no_line_runs_behind_a_core_of_random_networks() -> None:
    found = [behind(random_network(seed, cores=7).topology) for seed in range(60)]
    assert not any(found)


def test_wider_bonds_for_larger_ranks() -> None:
    t = tn.low_rank(64, 64)
    widths = [max(line.get_linewidth() for line in t.with_rank(r).draw().axes[0].lines) for r in (4, 16, 64)]
    assert widths == sorted(set(widths))


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_files(tmp_path: Path, ending: str, start: bytes) -> None:
    path = tmp_path / f"net{ending}"
    tn.cp((2, 3), (3, 2)).with_rank(4).draw(str(path))
    assert path.read_bytes().startswith(start)


def contrast(colour: str, ground: str) -> float:
    """As WCAG 2 defines it, from 1 to 21."""
    from matplotlib.colors import to_rgb

    linear = [
        [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(of)] for of in (colour, ground)
    ]
    bright = sorted(sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), one, strict=True)) for one in linear)
    return (bright[1] + 0.05) / (bright[0] + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#1e1e1e"])
def test_pictures_can_be_read_on_light_and_dark_pages(ground: str) -> None:
    figure = KEPT.draw()
    assert figure.get_facecolor()[3] == 0
    words = {text.get_color() for text in figure.axes[0].texts} - {"white"}  # white are the names on the cores
    assert len(words) == 4
    assert min(contrast(colour, ground) for colour in words) > 3.8
    assert min(contrast(patch.get_facecolor()[:3], ground) for patch in figure.axes[0].patches) > 3
    assert contrast("#777777", "#777777") == 1


def test_no_line_runs_through_a_label() -> None:
    figure = tn.mpo((4, 4, 4), (4, 4, 4)).draw()
    through = [
        text.get_text()
        for text in figure.axes[0].texts
        if text.get_color() != "white"
        for line in figure.axes[0].lines
        if np.hypot(*(np.array(line.get_data()) - np.array(text.get_position())[:, None])).min() < 0.05
    ]
    assert through == []
    drawn = [np.array(line.get_data()) for line in figure.axes[0].lines]
    assert any(np.isnan(line).any() for line in drawn)  # the gaps at the names of the bonds
    assert all(np.isfinite(line).all(0).sum() > 10 for line in drawn)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TN4NNError, match=r"expected a \.png or \.svg file for a picture, received .*net\.bmp"):
        draw(tn.dense(4, 4), path=str(tmp_path / "net.bmp"))


def test_without_matplotlib_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(TN4NNError, match=r'pip install "tn4nn\[viz\]"'):
        tn.dense(4, 4).draw()


@pytest.mark.thorough
def test_no_pyplot() -> None:
    code = "import sys, tn4nn as tn; tn.dense(4, 4).draw(); print('matplotlib.pyplot' in sys.modules)"
    assert run_python(code).strip() == "False"


# -- entanglement -----------------------------------------------------------------------------------------------


def test_bonds_are_coloured_by_their_share_of_the_entropy() -> None:
    net = tn.mpo((4, 4, 4), (4, 4, 4)).with_ranks({"a0": 8, "a1": 2})
    weights = net.init(0)
    weights["core2"][1:] = 0  # nothing passes the second bond but one value
    shares = bond_shares(net, weights)
    assert shares["a1"] == pytest.approx(0, abs=1e-6)
    assert shares["a0"] == pytest.approx(tn.entanglement(net, weights)[0].entropy / math.log(8))
    figure = net.draw(weights=weights)
    colours = {line.get_color() for line in figure.axes[0].lines}
    assert {scale_colour(0.0), scale_colour(shares["a0"])} <= colours
    assert "S / ln χ = 0" in texts(figure)


@pytest.mark.cases(5)
@pytest.mark.parametrize("name", tn.catalogue())
def test_every_topology_is_drawn_with_its_weights(name: str) -> None:
    net = tn.build(name, 64, 16, sites=3).with_rank(3)
    shares = bond_shares(net, net.init(0))
    assert set(shares) == set(net.ranks)
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares.values())
    assert len(net.draw(weights=net.init(0)).axes[0].patches) == len(net.topology.cores)


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_entropies_beside_bound_and_nulls(tmp_path: Path, ending: str, start: bytes) -> None:
    W = np.random.default_rng(0).normal(size=(64, 64))
    modes = {"inputs": (4, 4, 4), "outputs": (4, 4, 4)}
    found = tn.entanglement(W, **modes)
    path = tmp_path / f"entropies{ending}"
    figure = found.draw(str(path), nulls=tn.entanglement_nulls(W, **modes))
    assert path.read_bytes().startswith(start)
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert list(drawn["S"]) == list(found.entropies)
    assert list(drawn["bound"]) == [cut.bound for cut in found]
    assert {"shuffled", "random"} < set(drawn)
    with pytest.raises(TN4NNError, match="nulls: 'one' has other cuts"):
        found.draw(nulls={"one": tn.entanglement(W, cuts=[1], **modes)})


@pytest.mark.thorough
def test_spectra_over_epochs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(60, 64)).astype(np.float32)
    model = tn.Sequential(tn.Linear(tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(4)), tn.ReLU(), tn.Linear(64, 2))
    log = tn.EntanglementLog(model)
    with pytest.raises(TN4NNError, match="nothing is recorded yet"):
        log.draw("0")
    tn.train(model, (x, (x[:, 0] > 0).astype(np.int64)), epochs=3, callback=log)
    figure = log.draw("0", str(tmp_path / "spectra.svg"))
    assert len(figure.axes) == 2
    for i, panel in enumerate(figure.axes):
        lines = [list(line.get_ydata()) for line in panel.lines]
        assert lines == [pytest.approx(list(epoch["0"][i].probabilities)) for epoch in log.epochs]
    with pytest.raises(TN4NNError, match="'1' is not a layer with bonds"):
        log.draw("1")
