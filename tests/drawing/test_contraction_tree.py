"""Pictures of contraction trees: every tensor and step is there, and the dearest step is marked."""

import math

import pytest

import tn4nn as tn
from tn4nn._base.errors import TN4NNError
from tn4nn._drawing.contraction_tree import _places

pytest.importorskip("matplotlib")


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.cases(10)
@pytest.mark.parametrize("form", ["apply", "gather", "dense"])
@pytest.mark.parametrize("name", ["mpo", "tree", "peps", "cp", "btt", "dense"])
def test_every_tensor_and_step_is_named(name, form):
    p = tn.plan(tn.build(name, 64, 64).with_rank(2, clip=True), 16, form=form)
    shown = texts(p.draw())
    cores = [core.name for core in p.network.topology.cores]
    assert [text for text in shown if "\n" not in text] == [*cores, *(["x"] if form == "apply" else [])]
    steps = [text for text in shown if "\n" in text]
    assert len(steps) == len(p.path)
    assert any("of the multiply-adds" in text for text in steps) or not p.path
    legs = " ".join([*(["batch"] if form != "dense" else []), *dict.fromkeys([*p.network.topology.outputs])])
    assert not steps or form == "dense" or steps[-1].endswith("\n" + legs)


def test_the_dearest_step_is_marked():
    p = tn.plan(tn.low_rank(2048, 64).with_rank(16), 64)
    shown = [text for text in texts(p.draw()) if "of the" in text]
    assert shown == [f"{2048 / 2112:.0%} of the multiply-adds\nbatch a0"]


def test_steps_stand_above_what_they_contract():
    p = tn.plan(tn.build("mera", 256, 256).with_rank(2), 16)
    tensors = len(p.network.topology.cores) + 1
    places = _places(p.picture())
    assert sorted(x for x, y in places if y == 0) == list(range(tensors))
    for step, (a, b) in enumerate(p.path):
        x, y = places[tensors + step]
        assert y > max(places[a][1], places[b][1])
        assert x == (places[a][0] + places[b][0]) / 2


@pytest.mark.thorough
def test_native_plans_and_large_ones():
    p = tn.plan(tn.mpo((4, 4), (4, 4)).with_rank(2), 16, "train", runtime="native")
    assert len(p.draw().axes[0].texts) == 5
    chain = tn.mpo((2,) * 40, (2,) * 40).with_rank(2)
    figure = tn.plan(chain, 2, minimize="flops", time_limit=1.0).draw()
    assert len([text for text in texts(figure) if "\n" in text]) < 40  # the others would lie on top of each other
    assert max(figure.get_size_inches()) <= 16
    assert all(math.isfinite(n) for line in figure.axes[0].get_lines() for n in line.get_xdata())


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_files(tmp_path, ending):
    p, file = tn.plan(tn.ring((4, 4), (4, 4)).with_rank(2), 16), tmp_path / f"t.{ending}"
    p.draw(str(file))
    first = file.read_bytes()
    assert first[:5] == (b"\x89PNG\r" if ending == "png" else b"<?xml")
    with pytest.raises(TN4NNError, match=r"expected a .png or .svg file for a picture, received 't.pdf'"):
        p.draw("t.pdf")
