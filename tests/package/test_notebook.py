"""What a notebook and an editor see."""

import dataclasses
import inspect
import sys
import xml.etree.ElementTree as ElementTree

import pytest

import tn4nn as tn


@pytest.fixture
def values():
    net = tn.ring((4, 4), (4, 4)).with_rank(3)
    return {"topology": net.topology, "network": net, "plan": tn.plan(net, 8)}


def test_values_show_their_text_and_a_picture(values):
    pytest.importorskip("matplotlib")
    for name, value in values.items():
        page = value._repr_html_()
        ElementTree.fromstring(f"<div>{page}</div>")  # it is whole
        assert ("<svg" in page) == (name != "plan")
        assert "<pre" in page
        assert "&gt;" in page or "->" not in str(value)
    large = tn.mpo((2,) * 61, (2,) * 61)
    assert large._repr_svg_() is None
    assert "<svg" not in large._repr_html_()
    assert "<svg" not in large.with_rank(2)._repr_html_()


def test_pictures_have_no_ground_and_say_what_they_show(values):
    pytest.importorskip("matplotlib")
    for name in ("topology", "network"):
        svg = values[name]._repr_svg_()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert "<title>ring of 2 cores</title>" in svg
        assert "#ffffff; " not in svg.split('id="axes_1"')[0]  # what lies behind the axes
        assert svg == values[name]._repr_svg_()  # its names are not random
    named = dataclasses.replace(values["topology"], name="<b>")
    assert "<b>" not in named._repr_svg_()
    assert "<b>" not in named._repr_html_()


def test_without_matplotlib_the_text_is_shown(values, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert values["topology"]._repr_svg_() is None
    assert values["network"]._repr_svg_() is None
    page = values["network"]._repr_html_()
    assert "Network" in page
    assert "<svg" not in page


def test_a_report_shows_its_table(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)  # there rich would show a second table by itself
    monkeypatch.setattr("rich.jupyter.display", lambda *_: pytest.fail("rich wrote to the notebook"))
    report = tn.compare(["low_rank"], budget=600, backends="torch", seeds=1, epochs=1, lr=1e-3)
    assert "low_rank" in report._repr_html_()


def test_a_plan_of_a_conversion_shows_its_table():
    torch, module = pytest.importorskip("torch"), pytest.importorskip("tn4nn_torch")
    model = torch.nn.ModuleDict({"<one>": torch.nn.Linear(64, 64)})
    page = module.plan_conversion(model, module.Rule("mpo", rank=2))._repr_html_()
    assert "&lt;one&gt;" in page
    assert "<one>" not in page
    assert page.count("\n") > 2


def test_a_plan_of_a_conversion_in_jax_shows_its_table():
    module, np = pytest.importorskip("tn4nn_jax"), pytest.importorskip("numpy")
    page = module.plan_params({"<one>": np.eye(64)}, module.Rule("mpo", rank=2), layout="in_out")._repr_html_()
    assert "&lt;one&gt;" in page
    assert "<one>" not in page


def test_a_model_and_its_training_show_no_arrays():
    pytest.importorskip("torch")
    model = tn.Sequential(tn.Linear(tn.mpo((8, 8), (4, 4)).with_rank(2)), tn.ReLU(), tn.Linear(16, 10))
    run = tn.train(model, tn.load_data("digits"), epochs=1, lr=1e-3)
    assert str(run).splitlines()[-1] in run._repr_html_()
    assert "array(" not in run._repr_html_()
    assert f"{model.num_params:,} parameters" in model._repr_html_()


def test_only_public_names_are_seen():
    assert set(dir(tn)) == {*tn.__all__, "__version__"}
    assert not hasattr(tn, "Any")
    assert not hasattr(tn, "TYPE_CHECKING")
    assert [name for name in vars(tn) if not name.startswith("_") and name not in tn.__all__
            and not inspect.ismodule(getattr(tn, name))] == []  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_layer_of_two_numbers_says_what_to_build(backend):
    module = pytest.importorskip(f"tn4nn_{backend}")
    for make in (lambda: module.TNLinear(64, 64), lambda: module.TNConv2d(64, 64), lambda: module.TNEmbedding(64)):
        with pytest.raises(tn.TopologyError, match=r"build a Network first: tn\.build\(.mpo., 64, 64\)\.with_budget"):
            make()


def test_pictures_do_not_mind_the_layout_that_a_person_set():
    matplotlib = pytest.importorskip("matplotlib")
    network = tn.ring((4, 4), (4, 4)).with_rank(3)
    with matplotlib.rc_context({"figure.constrained_layout.use": True}):
        assert "<svg" in network._repr_html_()  # a warning would be an error


def test_a_figure_shows_itself_before_pyplot_was_used():
    pytest.importorskip("matplotlib")
    import copy

    figure = tn.ring((4, 4), (4, 4)).with_rank(3).draw()
    assert figure._repr_svg_().startswith("<svg")
    assert copy.deepcopy(figure)._repr_svg_.args[0] is not figure
