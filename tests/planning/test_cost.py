"""Costs of a network beside dense and other orders."""

import dataclasses

import pytest

import tn4nn as tn
from tn4nn._base.errors import TN4NNError
from tn4nn._runtime import devices as _machine
from tn4nn._runtime import native as _native

NET = tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(3)


def by_way(report):
    return {(row.batch, row.phase, row.way, row.runtime): row for row in report.rows}


def test_multiply_adds_of_every_way():
    rows = by_way(tn.cost(NET, [16]))
    assert len(rows) == 14
    for phase, times in (("forward", 1), ("train", 3)):
        assert rows[16, phase, "dense", "program"].macs == times * 16 * 64 * 64
    # W first: core0 with core1, then core2, then x, or the other way round; both need the same here.
    assert rows[16, "forward", "W first", "native"].macs == 16 * 16 * 9 + 256 * 16 * 3 + 16 * 64 * 64
    # From the left: 16 rows; legs summed and opened one by one.
    left = 16 * (16 * 4 * 4 * 3 + 4 * 4 * 4 * 4 * 3 * 3 + 16 * 4 * 4 * 3)
    assert rows[16, "forward", "left to right", "native"].macs == left
    fewest = rows[16, "forward", "fewest FLOPs", "native"].macs
    assert fewest == min(row.macs for row in rows.values() if row.phase == "forward" and row.way != "dense")


def test_bytes_kept_and_made_on_the_way():
    rows = by_way(tn.cost(NET, [16], itemsize=8))
    assert rows[16, "forward", "W first", "native"].largest == 64 * 64 * 8
    assert rows[16, "forward", "dense", "program"].largest == 0
    assert rows[16, "train", "dense", "program"].saved == 16 * 64 * 8
    assert all(row.saved == 0 for row in rows.values() if row.phase == "forward")
    row = rows[16, "train", "dense", "program"]
    assert row.intensity == row.macs / row.bytes_moved


def test_ours_is_the_plan_and_never_predicted_slower_than_the_other_orders():
    report = tn.cost(NET, [1, 64])
    for (batch, phase, way, runtime), row in by_way(report).items():
        if way == "ours":
            assert row.predicted_s == tn.plan(NET, batch, phase, runtime=runtime).cost.predicted_s
        elif runtime == "native":
            assert row.predicted_s >= by_way(report)[batch, phase, "ours", "native"].predicted_s


def test_the_text_is_the_table():
    report = tn.cost(NET, [16], phases=["train"])
    lines = repr(report).splitlines()
    assert lines[:3] == ["Cost of 'mpo', 64 -> 64, 240 parameters", "", "Training step of 16 rows"]
    assert lines[4].startswith("ours           C runtime")
    assert lines[10].startswith("fewest FLOPs")
    assert "196,608" in lines[6]
    assert str(report) == repr(report)


def test_peaks():
    """Ours is the plan's; cotengra's is its own, of the same path."""
    import cotengra

    report = tn.cost(NET, [16], phases=["forward"])
    row, plan = report.rows[0], tn.plan(NET, 16, runtime="native")
    assert row.peak == plan.cost.peak
    t, sizes = NET.topology, {**NET.sizes, "batch": 16}
    inputs = [*(core.legs for core in t.cores), ("batch", *t.inputs)]
    tree = cotengra.ContractionTree.from_path(inputs, ("batch", *t.outputs), sizes, ssa_path=plan.ssa_path)
    assert row.peak_size == 4 * tree.peak_size()
    dense = next(row for row in report.rows if row.way == "dense")
    assert dense.peak_size == 4 * (16 * 64 + 64 * 64 + 16 * 64)


def test_the_share_of_the_roofline():
    for row in tn.cost(NET, [1, 256]).rows:
        assert 0 < row.roofline < 1
        assert row.roofline == row.roofline_s / row.predicted_s
    machine = tn.Machine(macs_per_s=1e6, tile_macs_per_s=1e6)
    bound = by_way(tn.cost(NET, [16], phases=["forward"], machine=machine))
    assert bound[16, "forward", "dense", "program"].roofline_s == 16 * 64 * 64 / 1e6  # by multiply-adds
    slow = tn.Machine(bytes_per_s=1e3, memory_bytes_per_s=1e3)
    for phase, times in (("forward", 1), ("train", 2)):
        rows = by_way(tn.cost(NET, [16], phases=[phase], machine=slow))
        assert rows[16, phase, "ours", "native"].roofline_s == times * (16 * 128 + 240) * 4 / 1e3  # by bytes
        assert rows[16, phase, "dense", "program"].roofline_s == times * (16 * 128 + 64 * 64) * 4 / 1e3


def test_growth_is_the_slope_in_log_log():
    report = tn.cost(tn.low_rank(64, 64).with_rank(4), [256, 1024, 4096])
    for phase, exponents in report.growth().items():
        assert exponents["MACs"] == pytest.approx(1, abs=1e-3)
        assert 0.8 < exponents["time"] < 1.1
        name = {"forward": "Forward pass", "train": "Training step"}[phase]
        assert f"{name}, ours, C runtime: time ~ batch^" in str(report)
    assert report.to_dict()["growth"] == report.growth()
    assert tn.cost(NET, [16]).growth() == {}


class Module:
    """What `cost` asks of a torch module."""

    def __init__(self, **layers):
        self.layers = layers

    def named_modules(self):
        return [("", self), *self.layers.items()]


def test_every_layer_of_a_module():
    layer = Module()
    layer.network = NET
    found = tn.cost(Module(first=layer, act=Module(), second=layer), [4], phases=["forward"])
    assert list(found.reports) == ["first", "second"]
    assert found.reports["first"].rows == tn.cost(NET, [4], phases=["forward"]).rows
    assert str(found).startswith("first: Cost of 'mpo', 64 -> 64")
    assert set(found.to_dict()["layers"]) == {"first", "second"}


def test_every_layer_of_a_torch_module():
    torch = pytest.importorskip("torch")
    from tn4nn_torch import TNEmbedding, TNLinear

    rows = TNEmbedding(tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(3))
    module = torch.nn.Sequential(TNLinear(NET), rows, torch.nn.Sequential(TNLinear(NET)))
    assert list(tn.cost(module, [4], phases=["forward"]).reports) == ["0", "2.0"]


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (3, "a cost is of a Network or of a torch module, received int"),
        (Module(act=Module()), "no linear layer or convolution of this Module is on a network: put TNLinear"),
    ],
)
def test_subjects_without_a_network(subject, message):
    with pytest.raises(TN4NNError, match=message):
        tn.cost(subject, [4])


def test_measured_where_there_is_something_to_run():
    report = tn.cost(NET, [16], phases=["train"], measure=True)
    for row in report.rows:
        runs = row.way == "dense" or (row.runtime == "native" and _native.runtime(4) is not None)
        assert (row.measured_s is not None) == runs
        assert row.measured_s is None or 0 < row.measured_s < 1


def test_what_would_take_too_long_is_not_measured(monkeypatch):
    monkeypatch.setattr("tn4nn._planning.cost._LONGEST", 0.0)
    report = tn.cost(NET, [16], phases=["forward"], measure=True)
    assert {row.measured_s for row in report.rows} == {None}


def test_the_machine_is_the_one_given():
    slow = tn.cost(NET, [64], phases=["forward"], machine=tn.Machine(macs_per_s=1e6, tile_macs_per_s=1e6))
    assert all(row.predicted_s > 0.9 * row.macs / 1e6 for row in slow.rows)


def test_on_a_gpu_that_is_not_here():
    wide = tn.cost(NET, [16, 4096], device="H100")
    assert {row.runtime for row in wide.rows} == {"program"}
    assert len(wide.rows) == 24
    assert "Training step, ours, array program: time ~ batch^" in str(wide)
    half, old = tn.cost(NET, [4096], device="H100", itemsize=2), tn.cost(NET, [4096], device="A100")
    of = {name: by_way(report)[4096, "train", "dense", "program"] for name, report in (("h", half), ("a", old))}
    dense = by_way(wide)[4096, "train", "dense", "program"]
    assert of["h"].predicted_s < dense.predicted_s < of["a"].predicted_s
    assert of["h"].roofline_s < dense.roofline_s
    assert of["h"].bytes_moved == dense.bytes_moved / 2


def test_on_a_gpu_that_was_calibrated(monkeypatch, tmp_path):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    slow = dataclasses.replace(tn.Machine(), macs_per_s=1e9)
    _machine.store("torch", "Voodoo 2", "float32", {"schema": _machine.SCHEMA, "machine": dataclasses.asdict(slow)})
    report = tn.cost(NET, [64], device="Voodoo 2", cache=False)
    assert by_way(report)[64, "forward", "dense", "program"].predicted_s > 64 * 64 * 64 / 1e9
    with pytest.raises(TN4NNError, match="unknown GPU 'Voodoo 2': expected one of H200, .*or one that was calibrated"):
        tn.cost(NET, [64], device="Voodoo 2", itemsize=8)


@pytest.mark.parametrize("more", [{"measure": True}, {"machine": tn.Machine()}])
def test_a_gpu_is_priced_with_its_own_parameters_and_not_measured(more):
    with pytest.raises(TN4NNError, match="device='H100' is priced, with its own parameters, and not measured"):
        tn.cost(NET, [16], device="H100", **more)


def test_hyperedges_and_kept_legs_have_a_cost_too():
    for name in ("btt", "cp", "block_term"):
        rows = by_way(tn.cost(tn.build(name, 64, 64).with_rank(2), [8], phases=["forward"]))
        assert rows[8, "forward", "dense", "program"].macs == 8 * 64 * 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "a cost needs at least one batch, received none"),
        ({"batches": [0]}, "a plan needs a batch of at least 1 row, received 0"),
        ({"phases": ["back"]}, "phase must be one of forward, train, received 'back'"),
        ({"itemsize": 2}, "itemsize 4 or 8"),
    ],
)
def test_questions_that_cannot_be(arguments, message):
    with pytest.raises(TN4NNError, match=message):
        tn.cost(NET, **{"batches": [4], **arguments})


@pytest.mark.parametrize(
    ("name", "rank", "batch"), [("mpo", 4, 2048), ("ring", 16, 64), ("peps", 4, 2048), ("btt", 4, 64)]
)
def test_the_cheapest_priced_order_wins_whatever_its_name(name, rank, batch):
    net = tn.build(name, 1024, 1024).with_rank(rank, clip=True)
    for device in ("H100", None):
        rows = [row for row in tn.cost(net, [batch], device=device).rows if row.way != "dense"]
        for phase in ("forward", "train"):
            for runtime in {row.runtime for row in rows}:
                times = {r.way: r.predicted_s for r in rows if (r.phase, r.runtime) == (phase, runtime)}
                assert times["ours"] <= min(times.values()) * (1 + 1e-9), (device, phase, runtime, times)
