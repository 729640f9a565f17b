"""Cost-model parameters of GPUs: which plans they make, and how a torch layer gets them."""

import dataclasses

import pytest

import tn4nn as tn
from tn4nn._planning import layer as _layer
from tn4nn._planning.layer import LayerPlanner
from tn4nn._planning.planner import candidates
from tn4nn._planning.request import PlanRequest
from tn4nn._runtime.cost import Machine
from tn4nn._runtime.devices import GPUS, gpu
from tn4nn._runtime.target import Target

H100 = gpu("NVIDIA H100 80GB HBM3")
MPO = tn.mpo((4,) * 5, (4,) * 5).with_rank(4)


def test_devices_by_name():
    assert gpu("NVIDIA H200").bytes_per_s > H100.bytes_per_s
    assert gpu("NVIDIA H100 PCIe").units < H100.units
    assert gpu("NVIDIA A100-SXM4-80GB") == GPUS["A100"]
    assert gpu("some card of tomorrow") == H100


def test_half_precision_is_faster_and_no_peak_is_exceeded():
    for card in GPUS.values():
        assert card.machine(2).macs_per_s > 5 * card.machine(4).macs_per_s
        assert card.machine(2).macs_per_s < card.half_macs_per_s
        assert card.machine(4).bytes_per_s < card.bytes_per_s


def test_a_gpu_counts_calls_where_a_cpu_counts_work():
    on_cpu = tn.plan(MPO, 2048, "train").cost.predicted_s
    on_gpu = tn.plan(MPO, 2048, "train", machine=H100.machine(4)).cost.predicted_s
    assert on_gpu < on_cpu / 20
    assert tn.plan(MPO, 1, machine=H100.machine(4)).cost.predicted_s > tn.plan(MPO, 1).cost.predicted_s
    plans = candidates(PlanRequest(MPO, 1, machine=H100.machine(4)))
    working = [sum(1 for work in p.work() if work.macs or work.moved) for p in plans]
    assert working[0] == min(working)  # at one row the fewest calls win


def test_a_convolution_is_priced_with_the_same_parameters():
    layer = tn.Conv2d(tn.mpo((8, 9), (4, 4)).with_rank(3), kernel=3, padding=1)
    default, given = (LayerPlanner(layer, Target(machine=m)).plan(64 * 16 * 16) for m in (None, H100.machine(4)))
    assert given.cost.predicted_s != default.cost.predicted_s


def test_a_torch_layer_plans_for_its_device_and_again_when_it_moves(monkeypatch):
    torch = pytest.importorskip("torch")
    from tn4nn_torch import TNConv2d, TNLinear, _runners

    asked = []
    find, target = _layer.find, _runners.target

    def watched(request):
        asked.append((request.target.machine, request.itemsize))
        return find(request)

    # A device that is not here: bfloat16 stands for "on the GPU".
    def elsewhere(device, dtype, **options):
        found = target(device, dtype, **options)
        return dataclasses.replace(found, machine=H100.machine(2)) if dtype is torch.bfloat16 else found

    monkeypatch.setattr(_layer, "find", watched)
    monkeypatch.setattr(_runners, "target", elsewhere)
    layer, x = TNLinear(MPO, seed=1), torch.ones(3, 1024)
    assert asked == []  # nothing is planned that does not run
    layer(x)
    assert set(asked) == {(None, 4)}
    layer.to(torch.bfloat16)(x.bfloat16())
    assert asked[-1] == (H100.machine(2), 2)
    layer.to_dense()
    assert asked[-1] == (H100.machine(2), 2)
    assert layer.plan(3).request.target.machine == H100.machine(2)
    count = len(asked)
    layer.to(torch.bfloat16)(x.bfloat16())  # no move, no plan
    assert len(asked) == count
    layer.float()(x)
    assert layer.plan(3).request.target.machine is None
    conv, image = TNConv2d(tn.mpo((8, 9), (4, 4)).with_rank(3), kernel=3, padding=1), torch.ones(1, 8, 4, 4)
    conv(image)
    assert asked[-1] == (None, 4)
    conv.to(torch.bfloat16)(image.bfloat16())
    assert asked[-1] == (H100.machine(2), 2)
    assert conv.plan(16).request.target.machine == H100.machine(2)


def test_the_cpu_is_priced_as_before():
    assert tn.plan(MPO, 64).cost == tn.plan(MPO, 64, machine=Machine()).cost
