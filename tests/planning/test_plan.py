from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import first_of

import tn4nn as tn
from tn4nn import reference
from tn4nn._base.cache import PlanCache
from tn4nn._base.errors import TN4NNError
from tn4nn._base.records import sealed
from tn4nn._graph.candidates import candidate_paths
from tn4nn._graph.paths import BATCH, find_paths, path_macs
from tn4nn._graph.problem import Problem, is_path
from tn4nn._planning.plan import Plan
from tn4nn._planning.request import bucket
from tn4nn._runtime.cost import Machine
from tn4nn._runtime.lowering import lowered
from tn4nn._runtime.program import Ops, run
from tn4nn.testing import random_network

OPS = Ops(np.reshape, np.transpose, np.matmul, np.multiply, lambda a, axis, i: np.take(a, i, axis), np.concatenate)
CATALOGUE = {
    name: tn.build(name, 24, 18, sites={"dense": 1, "tucker": 2, "mera": 4}.get(name, 3), pad=False).with_rank(3)
    for name in tn.catalogue()
}
FC2 = tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4)
RING = tn.ring((4,) * 4, (4,) * 4).with_rank(8)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanCache:
    """An empty cache for each test."""
    fresh = PlanCache(tmp_path / "plans")
    use(fresh, monkeypatch)
    return fresh


def use(store: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tn4nn._planning.planner", "tn4nn._graph.candidates"):
        monkeypatch.setattr(f"{module}._store", store)


def forgotten(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the next process: the memory is empty, the files are there."""
    use(PlanCache(cache.folder), monkeypatch)


def arrays(net: tn.Network, rows: int) -> tuple[dict, np.ndarray]:
    weights = {name: a.astype(np.float64) for name, a in net.init(1).items()}
    x = np.random.default_rng(0).standard_normal((rows, math.prod(net.topology.inputs.values())))
    return weights, x


def outcome(net: tn.Network, program, rows: int) -> tuple[np.ndarray, np.ndarray]:
    weights, x = arrays(net, rows)
    return run(OPS, program, [*weights.values(), x]), reference.apply(net, weights, x)


# -- the numbers -------------------------------------------------------------------------------------------


def every_order_is_right(net: tn.Network, batch: int, rows: int) -> set[str]:
    problem = Problem(net, "apply", batch)
    options = candidate_paths(problem, time_limit=1.0)
    for _, path in options:
        received, expected = outcome(net, lowered(problem, path), rows)
        np.testing.assert_allclose(received, expected, rtol=1e-9, atol=1e-9)
    return {order for order, _ in options}


@pytest.mark.parametrize("name", tn.catalogue())
def test_every_order_gives_the_oracles_numbers(name: str) -> None:
    orders = every_order_is_right(CATALOGUE[name], batch=8, rows=8)
    assert len(orders) >= 1
    every_order_is_right(CATALOGUE[name], batch=64, rows=3)  # planned for one batch, run with another


@pytest.mark.thorough
def test_every_order_gives_the_oracles_numbers_on_random_graphs() -> None:
    seen: set[str] = set()
    for seed in range(100):
        seen |= every_order_is_right(random_network(seed, cores=6), batch=4, rows=2)
    assert seen >= {
        "fewest MACs found", "fewest MACs and writes found", "smallest intermediate found", "W first",
        "left to right", "right to left", "fewest MACs at batch 16",
    }  # fmt: skip
    assert any("cores merged by" in name for name in seen)


@pytest.mark.parametrize("name", tn.catalogue())
def test_the_dense_form_builds_w(name: str) -> None:
    net = CATALOGUE[name]
    weights, _ = arrays(net, 1)
    p = tn.plan(net, form="dense")
    assert p.program.inputs == tuple(weights)
    np.testing.assert_allclose(run(OPS, p.program, [*weights.values()]), net.to_dense(weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", tn.catalogue())
def test_the_gather_form_picks_rows(name: str) -> None:
    net = CATALOGUE[name]
    weights, _ = arrays(net, 1)
    p = tn.plan(net, batch=5, form="gather")
    tokens = np.array([0, 23, 7, 7, 12])
    index = dict(zip(net.topology.inputs, np.unravel_index(tokens, tuple(net.topology.inputs.values())), strict=True))
    rows = []
    for core in net.topology.cores:
        array, legs = weights[core.name], core.legs
        mine = [i for i, leg in enumerate(legs) if leg in index]
        front = array.transpose(mine + [i for i in range(array.ndim) if i not in mine])
        rows.append(front[tuple(index[legs[i]] for i in mine)])
    np.testing.assert_allclose(run(OPS, p.program, rows), net.to_dense(weights).T[tokens], rtol=1e-9, atol=1e-9)


# -- the cost ----------------------------------------------------------------------------------------------


def test_macs_by_hand_and_the_batch_is_part_of_the_problem() -> None:
    net = tn.low_rank(6, 4).with_rank(2)  # x A: 12 a row, then B: 8 a row; W: 48, then 24 a row
    few = tn.plan(net, batch=3, minimize="flops")
    assert few.cost.macs == 3 * (12 + 8)
    wide = tn.low_rank(6, 4).with_rank(20)  # x A: 120 a row, then B: 80 a row; W: 480, then 24 a row
    one, three = (tn.plan(wide, batch=n, minimize="flops") for n in (1, 3))
    assert one.cost.macs == 120 + 80
    assert three.cost.macs == 480 + 3 * 24
    assert one.order != "W first"
    assert dict(three.candidates).keys() >= {"left to right"}
    assert three.path != one.path


def test_bytes_by_hand() -> None:
    p = tn.plan(tn.low_rank(6, 4).with_rank(2), batch=3, minimize="flops")
    # x (18), x A (6), y (12) are read or written; A (12) and B (8) are read: floats of 4 bytes.
    assert p.cost.bytes_moved == 4 * ((18 + 12 + 6) + (6 + 8 + 12))
    assert p.cost.peak == 4 * (18 + 6 + 12)
    assert p.cost.saved == 0
    train = tn.plan(tn.low_rank(6, 4).with_rank(2), batch=3, phase="train", minimize="flops")
    assert train.cost.saved == 4 * (18 + 6)
    assert tn.plan(tn.low_rank(6, 4).with_rank(2), 3, minimize="flops", itemsize=8).cost.peak == 2 * p.cost.peak


def test_a_training_step_is_three_forward_passes() -> None:
    for net in (FC2, RING, CATALOGUE["cp"]):
        forward, train = (tn.plan(net, 32, phase, minimize="flops").cost for phase in ("forward", "train"))
        assert train.macs == 3 * forward.macs
        assert train.bytes_moved == 3 * forward.bytes_moved
        once = forward.predicted_s - Machine().pass_s
        assert train.predicted_s == pytest.approx(3 * once + Machine().step_s)
        assert train.saved > 0 == forward.saved


def test_fewest_macs_are_fewer_than_left_to_right() -> None:
    net = tn.mpo((4, 4, 8, 8, 4), (1, 10, 1, 1, 1)).with_rank(4)  # the last layer of a VGG
    p = tn.plan(net, batch=100, minimize="flops")
    assert dict(p.candidates)["left to right"].macs > 10 * p.cost.macs


def test_each_objective_is_least_in_its_own() -> None:
    for net in (FC2, RING, CATALOGUE["peps"]):
        p = {goal: tn.plan(net, 64, "train", minimize=goal) for goal in ("time", "flops", "memory")}
        for goal, of in (
            ("time", lambda c: c.predicted_s), ("flops", lambda c: c.macs), ("memory", lambda c: c.peak),
        ):  # fmt: skip
            assert of(p[goal].cost) == min(of(cost) for _, cost in p[goal].candidates)
            assert p[goal].candidates[0] == (p[goal].order, p[goal].cost)


def test_building_w_wins_where_it_is_cheap() -> None:
    net = tn.mpo((4,) * 4, (4,) * 4).with_rank(16)
    p = tn.plan(net, batch=4096)
    problem = Problem(net, "apply", 4096)
    assert p.cost.macs < problem.macs(problem.chains()[0])
    assert p.path[-1] == (max(p.path[-1]), 4)[::-1] or 4 in p.path[-1]  # x comes last


def test_the_machine_decides() -> None:
    slow_ops = Machine(op_s=1.0)
    p = tn.plan(FC2, 64, machine=slow_ops)
    assert p.cost.predicted_s > 1
    assert len(p.program.steps) <= len(tn.plan(FC2, 64, machine=Machine(op_s=0.0)).program.steps)


# -- memory ------------------------------------------------------------------------------------------------


def used(net: tn.Network, p: Plan) -> int:
    """Bytes of the buffers that are alive at once when numpy runs the steps, cores left out."""
    weights, x = arrays(net, p.batch)
    registers: list = [*weights.values(), x]
    cores = {id(array) for array in weights.values()}
    peak = 0

    def owner(array: np.ndarray) -> np.ndarray:
        while array.base is not None:
            array = array.base
        return array

    def alive() -> int:
        owners = {id(owner(r)): owner(r).nbytes for r in registers if r is not None}
        return sum(n for key, n in owners.items() if key not in cores)

    for step in p.program.steps:
        result = getattr(OPS, step.kind)(
            *(registers[a] for a in step.args), *([step.param] if step.kind in ("reshape", "permute") else [])
        )
        registers.append(result)
        peak = max(peak, alive())
        for register in step.frees:
            registers[register] = None
    return peak


def test_the_peak_is_what_a_run_holds() -> None:
    nets = [*CATALOGUE.values(), FC2, RING, *(random_network(seed, cores=6) for seed in range(40))]
    for net in nets:
        p = tn.plan(net, 16, itemsize=8)
        assert used(net, p) <= p.cost.peak, net.topology.name


@pytest.mark.thorough
@pytest.mark.parametrize("runtime", first_of(["program", "native"]))
def test_the_peak_of_a_training_step_is_that_of_both_passes(runtime: str) -> None:
    """All that is saved is there when the backward pass begins, with the gradient of y, and at its end that of x."""
    nets = [*CATALOGUE.values(), FC2, RING, *(random_network(seed, cores=6) for seed in range(40))]
    for net in nets:
        for batch in (1, 16, 300):
            step = tn.plan(net, batch, "train", runtime=runtime)
            forward = tn.plan(net, batch, runtime=runtime)
            x, y = (math.prod(side.values()) * batch * 4 for side in (net.topology.inputs, net.topology.outputs))
            assert step.cost.peak >= step.cost.saved + max(x, net.out_features * batch * 4), net.topology.name
            assert step.cost.peak >= x + min(y, net.out_features * batch * 4)
            assert forward.cost.saved == 0 < forward.cost.peak


@pytest.mark.parametrize("minimize", ["time", "memory"])
@pytest.mark.parametrize("name", ["mpo", "ring", "tree", "tucker", "cp", "btt", "low_rank"])
def test_the_peak_of_a_training_step_is_what_torch_holds(name: str, minimize: str) -> None:
    torch = pytest.importorskip("torch")
    from tn4nn_torch._steps import Steps

    net, batch = tn.build(name, 256, 256).with_rank(6, clip=True), 512
    p = tn.plan(net, batch, "train", minimize=minimize)
    step = Steps(p.program)
    inputs = [torch.from_numpy(core).requires_grad_(True) for core in net.init(0).values()]
    inputs.append(torch.ones(batch, 256, requires_grad=True))
    gy = torch.ones(batch, 256)

    def run() -> None:
        step(inputs).backward(gy)
        for tensor in inputs:
            tensor.grad = None

    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    held = inputs[-1].nbytes + gy.nbytes
    most = held
    for change in changes:
        held += change
        most = max(most, held)
    cores = 4 * net.num_params  # their gradients
    most -= 4 * batch * 256  # y, which a layer behind it would save and not this one
    assert 0.95 * p.cost.peak <= most <= 1.05 * p.cost.peak + 2 * cores


@pytest.mark.cases(1)
@pytest.mark.parametrize("batch", [1, 6, 64])
@pytest.mark.parametrize(
    "net", [RING, tn.complete((3,) * 4, (3,) * 4).with_rank(4), FC2], ids=lambda n: n.topology.name
)
def test_a_cap_is_obeyed_in_blocks_and_slices(net: tn.Network, batch: int) -> None:
    free = tn.plan(net, batch, minimize="memory")
    with pytest.raises(TN4NNError, match=r"at batch \d+ has a peak of at most 1 B: the smallest found needs") as caught:
        tn.plan(net, batch, memory=1)
    smallest = int(re.search(r"\((\d+) bytes\)", str(caught.value))[1])  # type: ignore[index]
    assert smallest < free.cost.peak
    for cap in (smallest, (2 * smallest + free.cost.peak) // 3, free.cost.peak):
        p = tn.plan(net, batch, memory=cap)
        assert p.cost.peak <= cap
        received, expected = outcome(net, p.program, batch)
        np.testing.assert_allclose(received, expected, rtol=1e-9, atol=1e-9)
        if cap < free.cost.peak:
            assert p.program.block or p.program.sliced
    with pytest.raises(TN4NNError, match=f"{smallest} bytes"):
        tn.plan(net, batch, memory=smallest - 1)


def test_both_ways_to_save_memory_are_taken() -> None:
    sliced = tn.plan(RING, 1, memory=20_000)
    assert sliced.program.sliced
    wide = tn.mpo((16, 16), (16, 16)).with_rank(64)
    blocks = tn.plan(wide, 1024, memory=2_300_000)  # x and y take 2,097,152 and W 262,144
    assert 0 < blocks.program.block < 1024
    for net, p, rows in ((RING, sliced, 5), (wide, blocks, 1000), (wide, blocks, 3)):
        received, expected = outcome(net, p.program, rows)
        np.testing.assert_allclose(received, expected, rtol=1e-9, atol=1e-9)


def test_a_cap_above_every_need_changes_nothing() -> None:
    assert tn.plan(RING, 64, memory=10**12).program == tn.plan(RING, 64).program


# -- as text -----------------------------------------------------------------------------------------------


def test_print_shows_the_cost_and_every_step() -> None:
    p = tn.plan(tn.low_rank(6, 4).with_rank(2), batch=3, phase="train", minimize="flops")
    text = str(p)
    assert text.startswith("Plan for 'low_rank' 6 -> 4, batch 3, train, least flops: ")
    assert "180 MACs, 744 B moved, peak 240 B, saved 96 B, predicted " in text
    assert "t0 = matmul(x, core0)                  3x2                              36      144 B" in text
    assert "t1 = matmul(t0, core1)                 3x4                              24      104 B  <- largest" in text
    assert text.endswith("largest intermediate 48 B")


def test_print_says_where_it_runs_in_parts() -> None:
    assert re.search(r"runs \d+ slices; the steps are of one pass", str(tn.plan(RING, 1, memory=20_000)))
    wide = tn.mpo((16, 16), (16, 16)).with_rank(64)
    assert re.search(r"runs \d+ rows at a time", str(tn.plan(wide, 1024, memory=2_300_000)))


def test_buckets() -> None:
    assert [bucket(n) for n in (0, 1, 2, 4, 5, 16, 17, 1000)] == [1, 1, 4, 4, 16, 16, 64, 1024]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"phase": "backward"}, "phase must be one of forward, train, received 'backward'"),
        ({"minimize": "joy"}, "minimize must be one of time, flops, memory, received 'joy'"),
        ({"batch": 0}, "a plan needs a batch of at least 1 row, received 0"),
    ],
)
def test_errors(options: dict, expected: str) -> None:
    with pytest.raises(TN4NNError, match=re.escape(expected)):
        tn.plan(FC2, **options)


def test_a_model_or_a_topology_is_no_network() -> None:
    for given, what in ((tn.Sequential(tn.Linear(FC2)), "Sequential"), (FC2.topology, "Topology")):
        with pytest.raises(TN4NNError, match=f"plan takes a Network, received {what}: give a topology ranks"):
            tn.plan(given)  # type: ignore[arg-type]


def test_kept_legs_cannot_be_gathered() -> None:
    net = tn.topology("k x y", {"k": 2, "x": 2}, {"k": 2, "y": 2}).with_rank(1)
    with pytest.raises(TN4NNError, match="an embedding cannot have batch legs, received k"):
        tn.plan(net, form="gather")


# -- the search --------------------------------------------------------------------------------------------


def grid_of_64() -> tn.Network:
    """64 cores, of which the first eight have modes."""
    sizes = (2,) * 8 + (1,) * 56
    return tn.peps(sizes, sizes, grid=(8, 8)).with_rank(2)


def test_64_cores_within_the_time_limit() -> None:
    lines: list[str] = []
    start = time.perf_counter()
    p = tn.plan(grid_of_64(), 4, time_limit=1.0, progress=lines.append, cache=False)
    assert time.perf_counter() - start < 15  # two searches end the round they are in, then it is priced
    assert re.fullmatch(r"path search, tree 1: best [\d.e+]+, [\d.]+ s", lines[0])
    received, expected = outcome(grid_of_64(), p.program, 3)
    np.testing.assert_allclose(received, expected, rtol=1e-8, atol=1e-10)


def random_tree(cores: int) -> tn.Network:
    """A tree in no order, with two modes on either side at its first and last cores."""
    rng = np.random.default_rng(0)
    legs: list[list[str]] = [[] for _ in range(cores)]
    for core in range(1, cores):
        for end in (core, int(rng.integers(core))):
            legs[end].append(f"a{core}")
    for core, leg in ((0, "x0"), (1, "x1"), (-1, "y0"), (-2, "y1")):
        legs[core].append(leg)
    return tn.topology(", ".join(map(" ".join, legs)), {"x0": 2, "x1": 3}, {"y0": 3, "y1": 2}).with_rank(2)


def test_a_random_tree_of_150_cores_is_planned_within_the_time_limit_and_right() -> None:
    """From left to right, hundreds of legs would be held at once: such an order is not even lowered."""
    net, lines = random_tree(150), list[str]()
    start = time.perf_counter()
    p = tn.plan(net, 4, time_limit=1.0, progress=lines.append, cache=False)
    assert time.perf_counter() - start < 30  # two searches end the round they are in, then it is priced
    assert lines
    found = {"fewest MACs found", "fewest MACs and writes found", "smallest intermediate found", "greedy", "W first"}
    assert {order for order, _ in p.candidates} <= found
    received, expected = outcome(net, p.program, 3)
    np.testing.assert_allclose(received, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_a_random_tree_of_a_thousand_cores_is_planned() -> None:
    net = random_tree(1000)
    p = tn.plan(net, 4, time_limit=5.0, cache=False)
    received, expected = outcome(net, p.program, 3)
    np.testing.assert_allclose(received, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_the_search_over_a_thousand_cores_ends_with_its_time_limit() -> None:
    modes = (2,) * 4 + (1,) * 996
    net = tn.mpo(modes, modes).with_rank(2)
    problem = Problem(net, "apply", 64)
    tensors, output = problem.tensors, problem.output
    lines: list[str] = []
    start = time.perf_counter()
    path = find_paths(tensors, output, {**net.sizes, BATCH: 4}, time_limit=5.0, progress=lines.append)[0]
    assert time.perf_counter() - start < 20  # it ends the round that it is in
    assert lines
    assert is_path(path, 1001)


def einsum_tree() -> tuple[list[tuple[str, ...]], tuple[str, ...], dict[str, int]]:
    """The tree of 64 tensors that einsum-benchmark's generator makes with d_min=2, d_max=4, seed=1."""
    rng, tensors, sizes = random.Random(1), list[list[str]]([[]]), dict[str, int]()
    for i in range(63):
        sizes[f"l{i}"] = rng.randint(2, 4)
        tensors[rng.randint(0, i)].append(f"l{i}")
        tensors.append([f"l{i}"])
    return [tuple(legs) for legs in tensors], tuple(rng.sample(list(sizes), 2)), sizes


def test_products_without_a_common_leg_are_searched_where_they_save() -> None:
    tensors, output, sizes = einsum_tree()
    # 25,882 is the best that other optimizers find in the same time; without such products it is 32,747.
    assert path_macs(tensors, output, sizes, find_paths(tensors, output, sizes, time_limit=60)[0]) <= 25_882


@pytest.mark.parametrize(("name", "rank", "least"), [("peps", 2, 7_247_757_824), ("cp", 4, 33_596_240)])
def test_16_sites_cost_no_more_than_the_best_of_other_optimizers(name: str, rank: int, least: int) -> None:
    net = getattr(tn, name)((2,) * 16, (2,) * 16).with_rank(rank, clip=True)
    problem = Problem(net, "apply", 64)
    tensors, output = problem.tensors, problem.output
    sizes = {**net.sizes, BATCH: 64}
    assert path_macs(tensors, output, sizes, find_paths(tensors, output, sizes, time_limit=60)[0]) <= least


def test_fewest_multiply_adds_and_elements_written_take_less_time_than_fewest_multiply_adds() -> None:
    net = tn.ring((2,) * 16, (2,) * 16).with_rank(4)
    p = tn.plan(net, 16, time_limit=60, cache=False)
    least = {order: min(c.predicted_s for name, c in p.candidates if name == order) for order, _ in p.candidates}
    macs = {order: min(c.macs for name, c in p.candidates if name == order) for order, _ in p.candidates}
    assert p.order == "fewest MACs and writes found"
    assert least[p.order] < 0.7 * least["fewest MACs found"]
    assert macs[p.order] > macs["fewest MACs found"]


@pytest.mark.thorough
def test_slices_are_the_same_in_every_process() -> None:
    """Whatever the order in which sets of strings are iterated."""
    code = (
        "import tn4nn as tn\n"
        "net = tn.peps((2,) * 6, (3,) * 6).with_rank(3)\n"
        "peak = tn.plan(net, 1, cache=False).cost.peak\n"
        "plans = [tn.plan(net, 1, memory=peak * part // 8, cache=False) for part in (3, 4)]\n"
        "print([(p.sliced, p.path, p.block) for p in plans])"
    )
    said = []
    for seed in ("1", "2", "3"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        said.append(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True).stdout
        )
    assert len(set(said)) == 1
    assert re.search(r"\(\('\w+', '\w+'", said[0])  # two legs at least are sliced: they have an order


@pytest.mark.thorough
def test_one_question_has_one_plan_in_every_process() -> None:
    net = tn.peps((2,) * 12, (2,) * 12).with_rank(2)  # searched at random, with a seed
    mine = tn.plan(net, 16, cache=False, time_limit=100)
    assert tn.plan(net, 16, cache=False, time_limit=100) == mine
    code = (
        "import tn4nn as tn; net = tn.peps((2,) * 12, (2,) * 12).with_rank(2); "
        "print(tn.plan(net, 16, cache=False, time_limit=100).program)"
    )
    env = {**os.environ, "PYTHONHASHSEED": "99"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == str(mine.program)


# -- the cache ---------------------------------------------------------------------------------------------


def test_found_once(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {memory: tn.plan(RING, 64, "train", memory=memory) for memory in (None, 1_200_000)}

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr("tn4nn._planning.planner.candidate_paths", fail)
    for memory, p in first.items():
        assert tn.plan(RING, 64, "train", memory=memory) == p
    forgotten(cache, monkeypatch)
    for memory, p in first.items():
        assert tn.plan(RING, 64, "train", memory=memory) == p
    for other in ({"batch": 65}, {"phase": "forward"}, {"minimize": "flops"}, {"itemsize": 8}, {"seed": 1}):
        with pytest.raises(AssertionError, match="searched again"):
            tn.plan(RING, **{"batch": 64, "phase": "train", **other})
    with pytest.raises(AssertionError, match="searched again"):
        tn.plan(RING, 64, "train", machine=Machine(op_s=1.0))
    with pytest.raises(AssertionError, match="searched again"):
        tn.plan(RING, 64, "train", cache=False)


def test_without_cache_nothing_is_written(cache: PlanCache) -> None:
    tn.plan(RING, 64, cache=False)
    assert not cache.folder.exists()


def the_file(cache: PlanCache) -> Path:
    (path,) = cache.folder.iterdir()
    return path


BREAKS = {
    "empty": lambda text: b"",
    "half-written": lambda text: text[: len(text) // 2],
    "no text": lambda text: b"\x80\xff\x00",
    "no object": lambda text: b"[1, 2]",
    "no value": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "value"}).encode(),
    "value of another kind": lambda text: json.dumps(sealed({**json.loads(text), "value": 3})).encode(),
    "an edited cost": lambda text: re.sub(rb'"cost": \[\d', b'"cost": [7', text),
    "no digest": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "digest"}).encode(),
    "nested without end": lambda text: b"[" * 10**5,
    "another entry": lambda text: text.replace(json.loads(text)["key"].encode(), b"0" * 16),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_file_is_told_and_written_again(how: str, cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    p = tn.plan(RING, 64)
    path = the_file(cache)
    whole = path.read_bytes()
    path.write_bytes(BREAKS[how](whole))
    forgotten(cache, monkeypatch)
    with pytest.warns(UserWarning, match=r"plan cache file .* cannot be read .*: planning again"):
        assert tn.plan(RING, 64) == p
    assert path.read_bytes() == whole


@pytest.mark.cases(19)
@pytest.mark.parametrize(
    "wrong",
    [{"path": [[0, 0]]}, {"path": [[0, 99]]}, {"path": [[-1, 0]]}, {"path": []}, {"path": "x"}, {"block": "x"},
     {"sliced": ["no leg"]}, {"cost": [1]}, {"cost": ["x"] * 5},
     {"sliced": ["nothing"]}, {"sliced": 3}, {"layouts": [9]}, {"block": -1}, {"measured_s": "x"}, {"cost": None},
     {"candidates": [["a", 1]]}, {"order": None, "path": None}, {"path": [[0, math.inf]]}, {"path": [[0.0, 1]]},
     {"path": [[True, 0]]}, {"block": math.inf}, {"sliced": ["y0"]}, {"sliced": ["batch"]}, {"block": 10**9},
     {"layouts": [math.nan]}, {"save": 1}, {"order": "x" * 10**6}, {"order": "\x1b[2J"}],
    ids=str,
)  # fmt: skip
def test_an_entry_that_does_not_fit_is_planned_anew(
    wrong: dict, cache: PlanCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = tn.plan(RING, 64)
    path = the_file(cache)
    entry = json.loads(path.read_bytes())
    path.write_text(json.dumps(sealed({**entry, "value": {**entry["value"], **wrong}})))
    forgotten(cache, monkeypatch)
    again = tn.plan(RING, 64)
    received, expected = outcome(RING, again.program, 3)
    np.testing.assert_allclose(received, expected, rtol=1e-9, atol=1e-9)
    assert again == p
    assert json.loads(path.read_bytes()) == entry


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tn.plan(RING, 64)
    (tmp_path / "file").write_text("in the way")
    use(PlanCache(tmp_path / "file" / "plans"), monkeypatch)
    with pytest.warns(UserWarning, match=r"cache folder .* cannot be used .*: a temporary one takes its place"):
        assert tn.plan(RING, 64) == expected
    assert tn.plan(RING, 64) == expected  # out of memory, without a word
    for rows in range(1, 20):  # once is enough
        tn.plan(RING, rows)


@pytest.mark.thorough
def test_eight_processes_start_at_once_on_an_empty_folder(tmp_path: Path) -> None:
    code = (
        "import tn4nn as tn; net = tn.ring((4,) * 4, (4,) * 4).with_rank(8); "
        "print([tn.plan(net, n).program for n in (1, 4, 16)])"
    )
    env = {**os.environ, "TN4NN_CACHE": str(tmp_path / "new")}
    runs = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    said = {process.communicate(timeout=120)[0] for process in runs}
    assert [process.returncode for process in runs] == [0] * 8
    assert said == {f"{[tn.plan(RING, n).program for n in (1, 4, 16)]}\n"}
    names = [path.name for path in (tmp_path / "new" / "plans").iterdir()]
    assert len(names) == 3
    assert all(re.fullmatch(r"[0-9a-f]{16}\.json", name) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["program", "native"])
def test_a_second_start_finds_its_plans_on_disk_within_2_ms(tmp_path: Path, runtime: str) -> None:
    """The least of ten networks' times: another process on the core costs the others a slice of 4 ms."""
    code = (
        "import sys, time, tn4nn as tn; nets = [tn.build(n, 2**8, 2**8, sites=8).with_rank(r) for r in range(2, 7) "
        f"for n in ('mpo', 'ring')]; tn.plan(tn.dense((4,), (4,)).with_rank(1), 1, runtime={runtime!r})\n"
        "for net in nets:\n    start = time.perf_counter()\n"
        f"    tn.plan(net, 16, 'train', runtime={runtime!r})\n    print(time.perf_counter() - start)"
    )
    env = {**os.environ, "TN4NN_CACHE": str(tmp_path)}
    runs = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True) for _ in range(2)]
    assert [done.returncode for done in runs] == [0, 0], runs[-1].stderr
    first, second = ([float(line) for line in done.stdout.split()] for done in runs)
    assert len(second) == 10
    assert min(first) > 2e-3
    assert sorted(second)[5] < 2e-3


def test_the_memory_of_the_cache_is_bounded(cache: PlanCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tn4nn._base.cache._LIMIT", 3)
    for i in range(10):
        cache.put(f"k{i}", {"i": i})
    assert len(cache._memory) <= 3
    assert [cache.get(f"k{i}") for i in range(10)] == [{"i": i} for i in range(10)]


def test_a_chain_of_a_thousand_cores_is_lowered_and_right() -> None:
    n = 1000
    net = tn.mpo((2,) + (1,) * (n - 1), (3,) + (1,) * (n - 1)).with_rank(2)
    problem = Problem(net, "apply", 4)
    cores = {name: array.astype(np.float64) for name, array in net.init(0).items()}
    row = np.ones(1)
    for core in reversed(net.topology.cores[1:]):
        row = cores[core.name].reshape(2, -1) @ row
    first = np.moveaxis(
        cores["core0"], [net.topology.cores[0].legs.index(leg) for leg in ("x0", "y0", "a0")], [0, 1, 2]
    )
    x = np.random.default_rng(0).standard_normal((4, 2))
    for path in problem.chains():
        y = run(OPS, lowered(problem, path), [*cores.values(), x])
        np.testing.assert_allclose(y, np.einsum("bx,xya,a->by", x, first, row), rtol=1e-9)


def _on_two_hyperedges(sites: int) -> tn.Topology:
    legs = range(sites)
    text = ", ".join(f"x{i} y{i} r s" for i in legs)
    return tn.topology(text, {f"x{i}": 2 for i in legs}, {f"y{i}": 2 for i in legs})


@pytest.mark.cases(1)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("sites", [7, 8, 12])
@pytest.mark.parametrize("topology", [lambda n: tn.cp((2,) * n, (2,) * n), _on_two_hyperedges], ids=["cp", "two"])
def test_hyperedges_on_many_cores_are_planned_in_no_time(topology: Callable[[int], tn.Topology], sites: int) -> None:
    """Every core is a neighbour of every other there: what tries all orders never comes back."""
    net = topology(sites).with_rank(2)
    p = tn.plan(net, 100, "forward", minimize="flops")
    assert is_path(p.path, len(net.topology.cores) + 1)
    assert p.cost.macs < 100 * 2**sites * 2**sites


def test_printed_calls_have_the_names_of_the_cores():
    pytest.importorskip("torch")
    net = tn.topology("left: x0 y1 a, right: a x1 y0", {"x0": 4, "x1": 4}, {"y0": 8, "y1": 4}).with_rank(2)
    plan = tn.plan(net, 8, "train", backend="torch")
    if plan.executor != "native":
        pytest.skip("there is no C runtime here")
    texts = "\n".join(row.text for row in plan.calls())
    assert "left[x0 y1 a] * right[a x1 y0]" in texts
    assert {"dleft[", "dright["} <= {word.partition("[")[0] + "[" for word in texts.split() if "[" in word}
    assert "core" not in texts
