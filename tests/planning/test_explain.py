"""What a plan spends its time on, and what would change it."""

import dataclasses

import pytest

import tn4nn as tn
from tn4nn._planning import explain as _explain
from tn4nn._planning.explain import explain

NET = tn.mpo((4, 8, 4), (4, 8, 4)).with_ranks({"a0": 6, "a1": 2})


@pytest.mark.cases(1)
@pytest.mark.parametrize("runtime", ["program", "native"])
def test_every_change_is_the_plan_of_what_it_says(runtime):
    p = tn.plan(NET, 64, "train", runtime=runtime)
    told = {change.what: change for change in explain(p).changes}
    again = {
        "bond a0: rank 5 for 6": (
            tn.plan(NET.topology.with_ranks({"a0": 5, "a1": 2}), 64, "train", runtime=runtime),
            1,
        ),
        "bond a0: rank 1 for 6": (
            tn.plan(NET.topology.with_ranks({"a0": 1, "a1": 2}), 64, "train", runtime=runtime),
            1,
        ),
        "batch 256, for 64 rows of it": (tn.plan(NET, 256, "train", runtime=runtime), 4),
        "least memory": (tn.plan(NET, 64, "train", runtime=runtime, minimize="memory"), 1),
    }
    for what, (other, rows) in again.items():
        assert told[what].predicted_s == pytest.approx(other.cost.predicted_s / rows)
        assert told[what].params == other.network.num_params
        assert told[what].ratio == pytest.approx(told[what].predicted_s / p.cost.predicted_s)
    other = "native" if runtime == "program" else "program"
    assert f"{other} runtime" in told
    assert [what for what in told if "a1" in what] == ["bond a1: rank 1 for 2"]  # one lower is 1
    assert any(what.startswith("order: ") for what in told)


def test_the_fastest_change_stands_first():
    changes = explain(tn.plan(NET, 64, "train")).changes
    assert [c.predicted_s for c in changes] == sorted(c.predicted_s for c in changes)


@pytest.mark.parametrize("runtime", ["program", "native"])
def test_the_dearest_step_is_named(runtime):
    told = explain(tn.plan(tn.low_rank(2048, 64).with_rank(16), 64, "forward", runtime=runtime))
    assert "core0" in told.parts[0].text  # 2048 of the 2048 + 64 products of a row and rank
    assert 0.8 < told.share < 1
    assert told.to_dict()["dominating"] == told.parts[0].text
    assert f"dominating: {told.parts[0].text}" in str(told)


def test_the_figures_of_the_machine_are_those_given():
    slow = dataclasses.replace(tn.Machine(), macs_per_s=1e6)
    p = tn.plan(NET, 64, machine=slow)
    told = explain(p, machine=slow)
    assert {change.what: change for change in told.changes}["least memory"].predicted_s > 0.9 * p.cost.predicted_s


def test_no_bond_and_a_batch_of_one():
    p = tn.plan(tn.dense((4,), (4,)).with_rank(1), 1, "forward")
    assert [c.what for c in explain(p).changes if "bond" in c.what or "batch" in c.what] == [
        "batch 4, for 1 rows of it"
    ]


def told_modes(net, **options):
    p = tn.plan(net, 64, "train", **options)
    return p, {c.what: c for c in explain(p).changes if c.what.startswith("modes ")}


def test_other_modes_are_planned_anew_at_no_more_parameters():
    net = NET.topology.with_ranks({"a0": 8, "a1": 4})
    p, told = told_modes(net, runtime="native")
    assert set(told) == {
        "modes 32x4 -> 32x4", "modes 4x32 -> 4x32",  # neighbours joined
        "modes 2x2x8x4 -> 2x2x8x4", "modes 4x2x4x4 -> 4x4x2x4", "modes 4x8x2x2 -> 4x8x2x2",  # a site cut in two
    }  # fmt: skip
    again = tn.mpo((4, 2, 4, 4), (4, 4, 2, 4)).with_budget(params=net.num_params)
    found = told["modes 4x2x4x4 -> 4x4x2x4"]
    assert found.predicted_s == tn.plan(again, 64, "train", runtime="native").cost.predicted_s
    assert found.params == again.num_params
    assert found.ratio == found.predicted_s / p.cost.predicted_s
    assert all(change.params <= net.num_params for change in told.values())
    # Joined sites need 1,040 parameters at rank 1.
    assert set(told_modes(NET)[1]) == {what for what in told if what.count("x") > 2}


@pytest.mark.parametrize("name", tn.catalogue())
def test_other_modes_keep_the_features(name):
    net = tn.build(name, 60, 64).with_rank(3, clip=True)  # padded, for some
    found = list(_explain._other_modes(net))
    for other in found:
        assert (other.in_features, other.out_features) == (net.in_features, net.out_features)
        assert other.topology.name == name
        assert other.num_params <= net.num_params
    assert bool(found) != (name in ("dense", "low_rank"))


def test_no_other_modes_of_what_the_catalogue_does_not_make():
    own = tn.topology("x0 y0 a, x1 y1 a", {"x0": 4, "x1": 4}, {"y0": 4, "y1": 4}).with_rank(2)
    assert told_modes(own)[1] == {}
    one_more = tn.topology("x0 y0 a, x1 a", {"x0": 4, "x1": 4}, {"y0": 4}).with_rank(2)
    assert told_modes(one_more)[1] == {}
