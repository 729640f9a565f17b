"""How costs grow: the points are plans, the exponents are slopes, the figure shows both."""

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._base.errors import TN4NNError
from tn4nn._base.fits import exponent
from tn4nn._graph.catalogue import like
from tn4nn._planning import growth as _growth


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(_growth, "BATCHES", (1, 16, 256))
    monkeypatch.setattr(_growth, "RANKS", (1, 2, 4, 8))
    monkeypatch.setattr(_growth, "SITES", (2, 3, 4))


NET = tn.mpo((4, 4, 4), (4, 4, 4)).with_ranks({"a0": 2, "a1": 8})


def test_every_point_is_the_plan_of_its_network(short):
    found = tn.growth(NET, batch=32)
    assert list(found.curves) == ["batch", "rank", "sites"]
    assert found.rank == 4  # the geometric mean of 2 and 8
    for axis, points in found.curves.items():
        for point in points:
            net = {
                "batch": NET,
                "rank": NET.topology.with_rank(point.at, clip=True),
                "sites": tn.build("mpo", 64, 64, sites=point.at).with_rank(4, clip=True),
            }[axis]
            rows = point.at if axis == "batch" else 32
            cost = tn.plan(net, rows, "train", runtime="native").cost
            assert (point.macs, point.saved, point.predicted_s) == (cost.macs, cost.saved, cost.predicted_s)
            assert point.params == net.num_params
            assert point.dense_macs == 3 * rows * 64 * 64


def test_exponents_are_slopes_in_log_log(short):
    found = tn.growth(tn.low_rank(64, 64).with_rank(4), batch=64, phase="forward")
    assert list(found.curves) == ["batch", "rank"]  # of low rank there is one kind of site
    e = found.exponents()
    assert e["batch"]["MACs"] == e["rank"]["MACs"] == pytest.approx(1.0, abs=1e-3)
    assert "dense time" not in e["rank"]  # it does not depend on the rank
    at, seconds = zip(*((p.at, p.predicted_s) for p in found.curves["batch"]), strict=True)
    assert e["batch"]["time"] == pytest.approx(np.polyfit(np.log(at), np.log(seconds), 1)[0], abs=1e-3)
    assert found.to_dict()["exponents"] == e
    assert f"time batch^{e['batch']['time']:.2f}" in str(found)
    assert exponent([1, 10], [5, 500]) == 2


def test_ranks_end_at_the_dense_layer():
    ranks = [point.at for point in tn.growth(tn.mpo((4, 4), (4, 4)).with_rank(2), batch=4).curves["rank"]]
    assert ranks == [1, 2, 4, 8]  # which has 256 numbers, as many as W
    assert "rank" not in tn.growth(tn.kronecker((4, 4), (4, 4)).with_ranks({}), batch=4).curves


def test_no_sites_where_the_catalogue_does_not_make_it():
    own = tn.topology("x0 y0 a, x1 y1 a", {"x0": 4, "x1": 4}, {"y0": 4, "y1": 4}).with_rank(2)
    assert list(tn.growth(own, batch=4).curves) == ["batch", "rank"]


@pytest.mark.parametrize("name", tn.catalogue())
def test_the_same_kind_of_topology_over_other_modes(name):
    t = tn.build(name, 64, 64)
    result = like(t, tuple(t.inputs.values()), tuple(t.outputs.values()))
    assert result is not None
    assert result.cores == t.cores
    assert (result.inputs, result.outputs) == (t.inputs, t.outputs)


def test_another_kind_of_the_same_name_is_not_remade():
    assert like(tn.build("tree", 64, 64, sites=6, arity=3), (4, 4), (4, 4)) is None
    assert like(tn.build("mera", 64, 64), (8, 8, 1), (8, 8)) is None  # these modes it cannot take


@pytest.mark.cases(1)
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_figure(short, tmp_path, ending):
    pytest.importorskip("matplotlib")
    found = tn.growth(NET, batch=32)
    file = tmp_path / f"g.{ending}"
    figure = found.draw(str(file))
    assert file.read_bytes()[:5] == (b"\x89PNG\r" if ending == "png" else b"<?xml")
    assert len(figure.axes) == 6
    top = figure.axes[0]
    dense, ours = top.get_lines()
    np.testing.assert_allclose(ours.get_ydata(), [1e3 * p.predicted_s for p in found.curves["batch"]])
    np.testing.assert_allclose(dense.get_ydata(), [1e3 * p.dense_s for p in found.curves["batch"]])
    assert ours.get_label() == f"ours ~ batch^{found.exponents()['batch']['time']:.2f}"
    assert figure.axes[1].get_lines()[0].get_label() == "dense"  # it does not grow with the rank
    assert (top.get_xscale(), top.get_yscale()) == ("log", "log")


def test_questions_that_cannot_be(short):
    with pytest.raises(TN4NNError, match="phase must be one of forward, train, received 'back'"):
        tn.growth(NET, phase="back")
    with pytest.raises(TN4NNError, match=r"expected a .png or .svg file for a picture, received 'g.pdf'"):
        tn.growth(NET, batch=4).draw("g.pdf")


def test_curves_of_a_device_are_its_own_and_say_so(tmp_path):
    pytest.importorskip("matplotlib")
    net = tn.low_rank(64, 64).with_rank(4)
    here, there = tn.growth(net, batch=64), tn.growth(net, batch=64, device="H100", itemsize=2)
    assert (here.device, there.device) == ("cpu", "H100")
    for axis, points in there.curves.items():
        for point, other in zip(points, here.curves[axis], strict=True):
            assert point.predicted_s != other.predicted_s
    priced = {(r.batch, r.phase, r.way): r for r in tn.cost(net, [64], device="H100", itemsize=2).rows}
    (point,) = (point for point in there.curves["batch"] if point.at == 64)
    assert point.predicted_s == priced[64, "train", "ours"].predicted_s
    assert point.dense_s == pytest.approx(priced[64, "train", "dense"].predicted_s)
    assert there.draw(str(tmp_path / "g.svg")).get_suptitle().endswith("train, H100")
    assert "H100" in str(there)
    assert there.to_dict()["device"] == "H100"
    with pytest.raises(tn.TN4NNError, match="unknown GPU 'Z80'"):
        tn.growth(net, device="Z80")
    with pytest.raises(tn.TN4NNError, match="leave out machine="):
        tn.growth(net, device="H100", machine=tn.Machine())
