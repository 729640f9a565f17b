"""Calls and rows shared among threads: right numbers, the same bits for a number of threads, and what plans say."""

import contextlib
import ctypes
import dataclasses
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from helpers import close
from helpers.kernels import compiled_with

import tn4nn as tn
from tn4nn._planning.planner import candidates, find
from tn4nn._planning.request import PlanRequest
from tn4nn._runtime import native as _native
from tn4nn._runtime.processor import processors
from tn4nn._runtime.recipe_cost import recipe_cost
from tn4nn._runtime.target import Target

if _native.runtime(4) is None:
    pytest.skip("there is no native kernel here", allow_module_level=True)

NETWORKS = {
    "two cores": tn.mpo((16, 16), (16, 16)).with_rank(8),
    "five cores": tn.mpo((4,) * 4, (4,) * 4).with_rank(8),
    "hyperedges": tn.btt((16, 16), (16, 16)).with_rank(4),
    "cp": tn.cp((16, 16), (16, 16)).with_rank(64),
    "tucker": tn.tucker((8, 8, 4), (8, 8, 4)).with_rank(8),
    "odd": tn.mpo((7, 5, 6), (5, 9, 4)).with_rank(11),
    "W": tn.mpo((16, 16), (16, 16)).with_rank(64),
}
_RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_START = ctypes.CFUNCTYPE(None, _RUN, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


def target(threads=1, itemsize=4):
    return Target(dtype=f"float{8 * itemsize}", executors=("native",), threads=threads)


def plans(net, rows, threads=1, itemsize=4, phase="train"):
    return candidates(PlanRequest(net, rows, phase, target=target(threads, itemsize)))


def step(plan, rows, threads):
    """y, the gradient of x, and those of the cores."""
    net, kind = plan.network, np.dtype(f"f{plan.itemsize}")
    runtime, rng = _native.native(plan.recipe), np.random.default_rng(0)
    cores = [rng.standard_normal([net.sizes[leg] for leg in core.legs]).astype(kind) / 8 for core in net.topology.cores]
    x, gy = (rng.standard_normal((rows, n)).astype(kind) for n in (net.in_features, net.out_features))
    y, gx, grads = np.full_like(gy, np.nan), np.full_like(x, np.nan), [np.full_like(core, np.nan) for core in cores]
    saved = np.full(runtime.saved(rows), np.nan, kind)
    given = rows, [c.ctypes.data for c in cores], saved.ctypes.data if saved.size else 0, x.ctypes.data
    to, wanted = [g.ctypes.data for g in grads], (True,) * (1 + len(cores))
    runtime.forward(*given, y.ctypes.data, threads)
    runtime.backward(*given, gy.ctypes.data, gx.ctypes.data, to, wanted, threads)
    return [y, gx, *grads]


def same(found, expected):
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def near(found, expected, itemsize=4):
    return all(close(a, b, 1e-5 if itemsize == 4 else 1e-13) for a, b in zip(found, expected, strict=True))


@contextlib.contextmanager
def host(times):
    """A host that lends its threads: as many as `times` of those that are asked for."""

    def start(run, data, threads, flags):
        asked.append(threads)
        for _ in range(times(threads)):
            run(data)

    asked, function = [], _START(start)
    before = _native._Lent.threads
    _native.lend(ctypes.cast(function, ctypes.c_void_p).value)
    try:
        yield asked
    finally:
        _native.lend(before)


@pytest.mark.cases(4)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", [1, 37, 256, 600])
def test_threads_give_right_numbers_and_always_the_same(name, rows):
    net = NETWORKS[name]
    every = plans(net, rows)
    for plan in [*every[:2], every[-1], *(p for p in every if p.order == "W first")][:4]:
        alone = step(plan, rows, 1)
        for threads in (2, 7):
            together = step(plan, rows, threads)
            assert near(together, alone), (plan.order, threads)
            assert same(step(plan, rows, threads), together)


@pytest.mark.thorough
@pytest.mark.cases(4)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("rows", [5, 70])
def test_every_call_shared(name, itemsize, rows, monkeypatch):
    library = compiled_with(itemsize, "-DSHARE=1", "-DLEAST=1")
    monkeypatch.setattr(_native, "runtime", lambda itemsize: library)
    for plan in plans(NETWORKS[name], rows, itemsize=itemsize)[:8]:
        alone = step(plan, rows, 1)
        for threads in (2, 5):
            together = step(plan, rows, threads)
            assert near(together, alone, itemsize), (plan.order, threads)
            assert same(step(plan, rows, threads), together)


@pytest.mark.parametrize("name", ["W", "two cores"])
@pytest.mark.parametrize("come", ["one", "all", "more"])
def test_the_threads_of_a_host(name, come):
    net = NETWORKS[name]
    times = {"one": lambda asked: 1, "all": lambda asked: asked, "more": lambda asked: asked + 2}[come]
    for plan in plans(net, 256)[:2]:
        own = step(plan, 256, 4)
        with host(times) as asked:
            assert same(step(plan, 256, -4), own)
            assert set(asked) == {4}
            del asked[:]
            assert same(step(plan, 256, 4), own)
            assert same(step(plan, 256, -1), step(plan, 256, 1))
            assert not asked  # they were not wanted
    assert same(step(plan, 256, -4), own)  # nobody lends: the runtime's own


def test_torch_lends_its_threads():
    torch = pytest.importorskip("torch")
    pytest.importorskip("tn4nn_torch")
    if not torch.backends.openmp.is_available():
        pytest.skip("this torch has no OpenMP")
    assert _native._Lent.threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_of_a_process_whose_threads_were_lent():
    pytest.importorskip("tn4nn_torch")
    code = """
    import os, torch, tn4nn as tn, tn4nn_torch
    torch.set_num_threads(2)
    layer, x = tn4nn_torch.TNLinear(tn.mpo((16, 16), (16, 16)).with_rank(64), seed=0), torch.ones(256, 256)
    with torch.no_grad():
        expected = layer(x).numpy()
        child = os.fork()
        if not child:
            os._exit(int((layer(x).numpy() != expected).any()))
    print(os.waitpid(child, 0)[1], tn4nn_torch._native.threads())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["0", "-2"], done.stderr


# -- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", [1, 256, 2048])
@pytest.mark.parametrize("phase", ["forward", "train"])
def test_more_threads_are_predicted_to_take_no_longer_and_not_less_than_their_share(name, rows, phase):
    for plan in plans(NETWORKS[name], rows, phase=phase)[:3]:
        seconds = [recipe_cost(plan.recipe, rows, phase, tn.Machine(), n).predicted_s for n in (1, 2, 4, 64)]
        for threads, found in zip((2, 4, 64), seconds[1:], strict=True):
            assert seconds[0] / threads <= found <= seconds[0] + 50e-6  # sharing a call may not pay
        assert recipe_cost(plan.recipe, rows, phase, tn.Machine(), 4).macs == plan.cost.macs


def test_a_plan_is_one_for_its_number_of_threads():
    net = NETWORKS["W"]
    one, four = (find(PlanRequest(net, 2048, "train", target=target(n))) for n in (1, 4))
    assert four.cost.predicted_s < 0.5 * one.cost.predicted_s
    assert find(dataclasses.replace(one.request, target=target(4))).cost == four.cost


def test_each_part_has_states_of_its_own():
    net = NETWORKS["two cores"]
    plan = next(p for p in plans(net, 2048) if p.block <= 64 and not p.save)
    one, four = (recipe_cost(plan.recipe, 2048, "train", tn.Machine(), n) for n in (1, 4))
    lengths, buffers = plan.recipe.lengths, plan.recipe.buffers
    own = lengths[buffers.states] + lengths[buffers.state_grads] + sum(plan.recipe.sums)
    assert own > plan.block * 16 * 16 * 8
    assert four.peak == one.peak + 3 * 4 * own
    assert four.saved == one.saved


def test_layers_are_planned_for_the_threads_that_there_are():
    torch = pytest.importorskip("torch")
    tn4nn_torch = pytest.importorskip("tn4nn_torch")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        layer = tn4nn_torch.TNLinear(NETWORKS["W"], seed=0)
        assert layer.plan(2048).request.target.threads == 3
        shown = tn.plan(NETWORKS["W"], 2048, "train", backend="torch")
        assert shown.cost == layer.plan(2048).cost
    finally:
        torch.set_num_threads(before)


def test_jax_says_how_many_threads_it_has(monkeypatch):
    pytest.importorskip("jax")
    target_module = pytest.importorskip("tn4nn_jax._target")
    for flags, count, expected in (
        ("", "", processors()),
        ("", "7", 7),
        ("", "many", processors()),
        ("--xla_cpu_multi_thread_eigen=false", "7", 1),
    ):
        monkeypatch.setenv("XLA_FLAGS", flags)
        monkeypatch.setenv("NPROC", count)
        assert target_module.threads() == expected
