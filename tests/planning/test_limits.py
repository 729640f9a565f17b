"""Planning of large networks: how long it takes, what a time limit means, and that it can be interrupted."""

import os
import signal
import threading
import time

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._graph.candidates import candidate_paths
from tn4nn._graph.paths import legs_along
from tn4nn._graph.problem import Problem
from tn4nn._planning.planner import find
from tn4nn._planning.request import PlanRequest
from tn4nn._runtime.target import Target

NATIVE = Target("", "cpu", "float32", ("native", "program"))


def _slowness():
    """How many times longer this core takes than the one that the limits were measured on; at least 1."""
    start = time.process_time()
    for _ in range(5_000_000):
        pass
    return max(1.0, (time.process_time() - start) / 0.1)


SLOW = 2 * _slowness()  # times longer than on a quiet core may these tests take


def chain(count):
    modes = (2,) * 12 + (1,) * (count - 12)
    return tn.mpo(modes, modes).with_rank(2)


def dense_graph(cores=60, degree=40):
    """Every core is joined to `degree` others."""
    joined = [[] for _ in range(cores)]
    for i in range(cores):
        for j in range(1, degree // 2 + 1):
            joined[i].append(f"b{i}_{(i + j) % cores}")
            joined[(i + j) % cores].append(f"b{i}_{(i + j) % cores}")
    legs = [" ".join(bonds) for bonds in joined]
    text = ", ".join([f"x {legs[0]}", *legs[1:-1], f"y {legs[-1]}"])
    return tn.topology(text, {"x": 4}, {"y": 4}).with_rank(2)


def seconds(work):
    """Of this process: how busy the machine is otherwise does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def plan(net, batch=64, **options):
    return find(PlanRequest(net, batch, "train", target=NATIVE, **options), cache=False)


def test_a_chain_of_200_cores_is_planned_in_a_second_or_two(monkeypatch, tmp_path):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    net = chain(200)
    first = seconds(lambda: find(PlanRequest(net, 64, "train", target=NATIVE)))
    others = [seconds(lambda rows=rows: find(PlanRequest(net, rows, "train", target=NATIVE))) for rows in (256, 1024)]
    assert first < 3 * SLOW
    assert max(others) < 0.5 * SLOW


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("net", "limit"),
    [pytest.param(chain(1000), 4.0, marks=pytest.mark.thorough), (dense_graph(), 3.0), (chain(100), 0.5)],
)
def test_a_time_limit_is_kept(net, limit):
    plan(chain(12))  # what is imported and compiled once
    assert seconds(lambda: plan(net, time_limit=limit)) < limit * 1.2 * SLOW


def test_what_is_found_in_little_time_is_right():
    net = chain(40)
    for limit in (0.01, 0.2):
        problem = Problem(net, "apply", 8)
        paths = [path for _, path in candidate_paths(problem, time_limit=limit, cache=False)]
        assert paths
        for path in paths:
            assert legs_along(problem.tensors, problem.output, path)[-1] == set(problem.output)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("net", [chain(1000), dense_graph()])
def test_planning_can_be_interrupted(net):
    timer = threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT])
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  (the timer ends the loop)
        timer.start()
        while True:
            plan(net, time_limit=60.0)
    assert time.monotonic() - start < 1 + 2 * SLOW


def test_a_plan_in_little_time_computes_the_same():
    net = chain(20)
    torch = pytest.importorskip("torch")
    from tn4nn_torch import TNLinear

    x = torch.randn(5, net.in_features)
    layer = TNLinear(net, executor=plan(net, 5, time_limit=0.01), seed=0, bias=False)
    expected = TNLinear(net, seed=0, bias=False)(x)
    assert np.allclose(layer(x).detach(), expected.detach(), rtol=1e-3, atol=1e-4)


def test_arrays_beyond_32_bit_offsets_are_not_run_natively():
    wide = tn.topology("x a, a y", {"x": 2**20}, {"y": 4}).with_rank(2**11)  # a core of 2^31 numbers
    assert find(PlanRequest(wide, 8, target=NATIVE), cache=False).executor == "program"
    with pytest.raises(
        tn.TN4NNError, match="takes cores of at most 2,147,483,647 numbers, received one of 2,147,483,6"
    ):
        find(PlanRequest(wide, 8, target=NATIVE.only("native")), cache=False)
    narrow = tn.topology("x0 y0 a, x1 y1 a", {"x0": 256, "x1": 256}, {"y0": 256, "y1": 256}).with_rank(1)
    found = find(PlanRequest(narrow, 10**6, target=NATIVE), cache=False)  # W would have 2^32 numbers
    assert max(found.recipe.lengths.values()) < 2**31


def test_an_offset_that_does_not_fit_is_an_error():
    from tn4nn._runtime.contraction import View, offsets

    sizes = {"a": 2**16, "b": 2**16}
    assert offsets(("b",), View(0, 0, ("a", "b")), sizes)[-1] == 2**16 - 1
    with pytest.raises(tn.TN4NNError, match="reaches 2,147,483,647 numbers into an array"):
        offsets(("a",), View(0, 0, ("a", "b")), sizes)
    with pytest.raises(tn.TN4NNError, match="reaches"):
        offsets((), View(0, 0, ("b",), 2**16), sizes, rows=2**15 + 2)


@pytest.mark.thorough
def test_where_every_order_is_too_large_for_one_executor_the_next_runs():
    net = dense_graph(60, 24)
    only = PlanRequest(net, 64, target=NATIVE, time_limit=1.0)
    assert find(only, cache=False).executor == "program"
    with pytest.raises(tn.TN4NNError, match="'native' can run none of the orders for 'custom'"):
        find(PlanRequest(net, 64, target=NATIVE.only("native"), time_limit=1.0), cache=False)
