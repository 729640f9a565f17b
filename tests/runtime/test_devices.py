"""Figures of GPUs: which plans they make, and how a torch layer comes by them."""

import pytest
from tn4nn._planning.conv import conv_plan

import tn4nn as tn
from tn4nn._planning.plan import Search
from tn4nn._runtime.cost import Machine
from tn4nn._runtime.devices import GPUS, gpu

H100 = gpu("NVIDIA H100 80GB HBM3")
MPO = tn.mpo((4,) * 5, (4,) * 5).with_rank(4)


def test_devices_by_name():
    assert gpu("NVIDIA H200").bytes_per_s > H100.bytes_per_s
    assert gpu("NVIDIA H100 PCIe").units < H100.units
    assert gpu("NVIDIA A100-SXM4-80GB") == GPUS["A100"]
    assert gpu("some card of tomorrow") == H100


def test_half_precision_is_faster_and_no_peak_is_exceeded():
    for figures in GPUS.values():
        assert figures.machine(2).macs_per_s > 5 * figures.machine(4).macs_per_s
        assert figures.machine(2).macs_per_s < figures.half_macs_per_s
        assert figures.machine(4).bytes_per_s < figures.bytes_per_s


def test_a_gpu_counts_calls_where_a_cpu_counts_work():
    on_cpu = tn.plan(MPO, 2048, "train").cost.predicted_s
    on_gpu = tn.plan(MPO, 2048, "train", machine=H100.machine(4)).cost.predicted_s
    assert on_gpu < on_cpu / 20
    assert tn.plan(MPO, 1, machine=H100.machine(4)).cost.predicted_s > tn.plan(MPO, 1).cost.predicted_s
    search = Search(MPO, 1, "forward", "time", "apply", 4, H100.machine(4))
    plans = search.ranked(search.candidates(0, 1.0, None))
    working = [sum(1 for work in p.work() if work.macs or work.moved) for p in plans]
    assert working[0] == min(working)  # at one row the fewest calls win


def test_a_convolution_is_priced_with_the_same_figures():
    layer = tn.Conv2d(tn.mpo((8, 9), (4, 4)).with_rank(3), kernel=3, padding=1)
    given = conv_plan(layer, 64, (8, 16, 16), machine=H100.machine(4)).plan.cost.predicted_s
    assert given != conv_plan(layer, 64, (8, 16, 16)).plan.cost.predicted_s


def test_a_torch_layer_plans_for_its_device_and_again_when_it_moves(monkeypatch):
    torch = pytest.importorskip("torch")
    from tn4nn_torch import TNConv2d, TNLinear, _modules

    asked = []
    right = _modules.plan

    def watched(*args, **options):
        asked.append((options.get("machine"), options.get("itemsize", 4)))
        return right(*args, **options)

    # A device that is not here: bfloat16 stands for "on the GPU".
    def figures(core):
        there = core.dtype is torch.bfloat16
        return {"machine": H100.machine(2), "itemsize": 2} if there else {}

    monkeypatch.setattr(_modules, "plan", watched)
    monkeypatch.setattr(_modules, "figures", figures)
    layer = TNLinear(MPO, seed=1)
    assert asked == [(None, 4)]
    layer(torch.ones(3, 1024))
    layer.to(torch.bfloat16)
    assert asked[-1] == (H100.machine(2), 2)
    assert not layer._programs
    layer(torch.ones(3, 1024, dtype=torch.bfloat16))
    layer.to_dense()
    assert asked[-1] == (H100.machine(2), 2)
    count = len(asked)
    layer.to(torch.bfloat16)  # no move, no plan
    assert len(asked) == count
    layer.float()
    assert asked[-1] == (None, 4)
    conv = TNConv2d(tn.mpo((8, 9), (4, 4)).with_rank(3), kernel=3, padding=1)
    conv(torch.ones(1, 8, 4, 4))
    conv.to(torch.bfloat16)
    assert not conv._plans  # what was found for the old device is forgotten


def test_the_cpu_is_priced_as_before():
    assert tn.plan(MPO, 64).cost == tn.plan(MPO, 64, machine=Machine()).cost
