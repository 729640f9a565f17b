"""The native runtime: the oracle's numbers for every topology, order and layout, and a fallback that gives the same."""

import copy
import dataclasses
import pathlib
import pickle
import re
import time
import warnings

import numpy as np
import pytest
from helpers import all_close, close, first_of
from helpers.kernels import compiled_with

import tn4nn as tn
from tn4nn import reference
from tn4nn._base import libraries
from tn4nn._base import private as _private
from tn4nn._graph.candidates import candidate_paths
from tn4nn._graph.problem import Problem
from tn4nn._planning import measure
from tn4nn._planning.plan import Plan
from tn4nn._planning.planner import at_rows, candidates
from tn4nn._planning.request import PlanRequest
from tn4nn._runtime import contraction as _contraction
from tn4nn._runtime import devices as _devices
from tn4nn._runtime import kernels as _kernels
from tn4nn._runtime import native as _native
from tn4nn._runtime import variants
from tn4nn._runtime.cost import Cost
from tn4nn._runtime.recipe import recipe
from tn4nn._runtime.recipe_cost import recipe_cost
from tn4nn._runtime.target import Target

torch = pytest.importorskip("torch")
from tn4nn_torch import TNLinear  # noqa: E402

if _native.runtime(4) is None:
    pytest.skip("there is no native kernel here", allow_module_level=True)

CASES = {
    name: tn.build(name, 36, 24, sites=1 if name == "dense" else 4 if name == "mera" else 2, pad=False)
    for name in tn.catalogue()
} | {
    "mpo-3": tn.mpo((4, 3, 3), (2, 3, 4)),
    "kept": tn.topology("k x0 a, a k y0, x1 y1", {"k": 3, "x0": 3, "x1": 4}, {"y1": 2, "k": 3, "y0": 4}),
    "hyperedge": tn.topology("x0 r, x1 r y0, r y1 s, s", {"x0": 6, "x1": 6}, {"y0": 4, "y1": 6}),
    "padded": tn.build("mpo", 35, 23, sites=2),
    "vectors": tn.mpo((16, 16), (16, 16)),  # legs that fill whole vectors
    "across": tn.btt((16, 16), (16, 16)),  # hyperedges that do
}


def network(name, rank=2):
    return CASES[name].with_rank(1 if name == "dense" else rank, clip=True)


def plain(net, **options):
    """The same layer in torch's own operations."""
    return TNLinear(net, seed=1, executor="program", **options)


def request(net, batch, phase="train", minimize="time", itemsize=4, **options):
    """A question to the native runtime."""
    target = Target(dtype=f"float{8 * itemsize}", executors=("native",))
    return PlanRequest(net, batch, phase, minimize, target=target, **options)


def priced(net, batch, phase="train", minimize="time"):
    """All native candidates, the best first."""
    return candidates(request(net, batch, phase, minimize))


def paths(net, batch):
    return candidate_paths(Problem(net, "apply", batch))


def forced(net, path, block, layouts=(), itemsize=4, save=False):
    """A layer that runs this p whatever the cost model says."""
    nothing = Cost(0, 0, 0, 0, 0.0)
    asked = request(net, block, itemsize=itemsize)
    plan = Plan(asked, "native", "by hand", path, nothing, block=block, layouts=tuple(layouts), save=save)
    return TNLinear(net, seed=1, dtype="float32" if itemsize == 4 else "float64", executor=plan)


def rows_of(net, rows, seed=0, dtype=np.float32):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, net.in_features)).astype(dtype))


def gradients(layer, x, **options):
    value = x.clone().requires_grad_(True)
    wanted = [value, *layer.parameters()]
    return torch.autograd.grad((layer(value) ** 2).sum(), wanted, **options)


@pytest.mark.cases(6)
@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("rows", [1, 16, 45])
def test_values_and_gradients_of_the_plan(name, rows):
    net = network(name)
    layer, other = TNLinear(net, seed=1), plain(net)
    x = rows_of(net, rows)
    weights = {n: p.detach().numpy() for n, p in layer.named_parameters() if n != "bias"}
    expected = x.double() @ torch.from_numpy(net.to_dense(weights)).double().T
    assert close(layer(x), expected)
    assert all_close(gradients(layer, x), gradients(other, x))
    if name != "dense":  # a single core that is the matrix runs as one
        assert layer.plan(rows).executor == "native"


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", list(CASES))
def test_every_order_and_layout_gives_the_same(name):
    net = network(name, 3)
    x, other = rows_of(net, 19), plain(net)
    y, expected = other(x), gradients(other, x)
    for _, path in paths(net, 19):
        for layouts, block, save in (((), 64, True), ((1,) * 9, 4, False), ((2, 3) * 5, 7, False), ((), 5, True)):
            layer = forced(net, path, block, layouts, save=save)
            assert close(layer(x), y)
            assert all_close(gradients(layer, x), expected)


@pytest.mark.cases(2)
@pytest.mark.parametrize("seed", range(25))
def test_random_graphs(seed):
    from tn4nn.testing import random_network

    net = random_network(seed, cores=6)
    x, other = rows_of(net, 19), plain(net)
    for p in priced(net, 19)[:8]:
        layer = forced(net, p.path, p.block, p.layouts, save=p.save)
        assert close(layer(x), other(x))
        assert all_close(gradients(layer, x), gradients(other, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ring", "cp", "kept", "padded"])
def test_gradcheck_in_float64(name):
    net = network(name)
    layer = TNLinear(net, seed=1, dtype="float64")
    x = rows_of(net, 3, dtype=np.float64).requires_grad_(True)

    def function(value, *parameters):
        return layer(value)

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(function, (x, *layer.parameters()))


def test_second_derivatives():
    net = network("ring")
    layer, other, x = TNLinear(net, seed=1), plain(net), rows_of(net, 5)

    def second(module):
        first = gradients(module, x, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), list(module.parameters())[:2])

    assert all_close(second(layer), second(other))


@pytest.mark.parametrize("name", ["mpo-3", "tree", "btt"])
def test_only_what_is_asked_for_gets_a_gradient(name):
    net = network(name, 3)
    whole = gradients(plain(net), rows_of(net, 20))
    names = [n for n, _ in TNLinear(net, seed=1).named_parameters()]
    for frozen in range(len(names)):
        layer, x = TNLinear(net, seed=1), rows_of(net, 20).requires_grad_(frozen % 2 == 0)
        for position, parameter in enumerate(layer.parameters()):
            parameter.requires_grad_(position != frozen)
        (layer(x) ** 2).sum().backward()
        for position, parameter in enumerate(layer.parameters()):
            expected = None if position == frozen else whole[1 + position]
            assert parameter.grad is None if expected is None else close(parameter.grad, expected)
        assert x.grad is None if frozen % 2 else close(x.grad, whole[0])


def test_states_are_saved_where_they_are_few():
    net = tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4)
    found = priced(net, 32)
    saving = next(p for p in found if p.save)
    recomputing = next(p for p in found if dataclasses.replace(saving, save=False, cost=p.cost) == p)
    assert saving.cost.macs < recomputing.cost.macs
    assert recomputing.cost.saved < saving.cost.saved <= recomputing.cost.saved + 5 * 2**20
    assert not any(p.save and p.path == saving.path for p in priced(net, 2048))
    assert not any(p.save for p in priced(net, 32, "forward"))


def test_little_more_than_the_input_is_saved_for_backward():
    net = tn.mpo((4,) * 5, (4,) * 5).with_rank(4)
    x = rows_of(net, 2048)
    saved = {}

    def pack(t):
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    layer = TNLinear(net, batch=2048)
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x.clone().requires_grad_(True))
    total = sum(size for address, size in saved.items() if address not in parameters)
    assert x.nbytes <= total <= x.nbytes + 2**20


@pytest.mark.thorough
@pytest.mark.parametrize("save", [False, True])
def test_threads_give_the_same_numbers(save, monkeypatch):
    # Whatever the size
    monkeypatch.setattr(_native, "runtime", lambda itemsize: compiled_with(itemsize, "-DSHARE=1", "-DLEAST=1"))
    for name in ("mpo-3", "dense", "ring", "cp"):
        net = network(name, 3)
        layer, x = forced(net, paths(net, 300)[0][1], 16, save=save), rows_of(net, 300)
        alone = (layer(x), *gradients(layer, x))
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            together = (layer(x), *gradients(layer, x))
            assert all_close(alone, together)
            assert all(torch.equal(a, b) for a, b in zip(together, (layer(x), *gradients(layer, x)), strict=True))
        finally:
            torch.set_num_threads(before)


def test_other_dtypes_transforms_and_strides_run_too():
    net = network("mpo-3", 3)
    layer, x = TNLinear(net, seed=1), rows_of(net, 20)
    y = layer(x)
    assert close(torch.vmap(layer)(x), y)
    assert close(layer(torch.stack([x, x], -1)[..., 0]), y)
    assert layer(x[:0]).shape == (0, 24)
    assert close(copy.deepcopy(layer).double()(x.double()), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16 or layer(x).dtype == torch.float32
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)
    assert torch.equal(copy.deepcopy(layer)(x), y)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_what_must_see_single_operations_gets_them():
    from torch.autograd import forward_ad
    from torch.utils.flop_counter import FlopCounterMode

    net = network("mpo-3", 3)
    layer, x, along = TNLinear(net, seed=1), rows_of(net, 20), rows_of(net, 20, seed=1)
    y = layer(x)  # from here on the layer knows that this shape needs the runtime only
    with forward_ad.dual_level():
        pair = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, along)))
        assert close(pair.primal, y)
        assert close(pair.tangent, layer(along) - layer.bias)
    counts = []
    for each in (layer, plain(net)):
        with FlopCounterMode(display=False) as counter:
            each(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 20 * 36
    traced = torch.jit.trace(layer, x)
    assert close(traced(rows_of(net, 7, seed=2)), layer(rows_of(net, 7, seed=2)))


@pytest.mark.parametrize("name", ["core1", "bias"])
def test_a_parametrized_layer_gives_what_its_parameters_say(name):
    net = network("mpo-3", 3)
    layer, x = TNLinear(net, seed=1), rows_of(net, 20)
    with torch.no_grad():
        layer.bias += 1
    y, w = layer(x), getattr(layer, name).detach().clone()

    class Doubled(torch.nn.Module):
        def forward(self, held):
            return 2 * held

    torch.nn.utils.parametrize.register_parametrization(layer, name, Doubled())
    doubled = y + w if name == "bias" else 2 * y - layer.bias
    assert close(layer(x), doubled)
    layer(x).sum().backward()
    assert layer.parametrizations[name].original.grad.abs().sum() > 0
    assert close(layer.merge()(x), doubled)
    torch.nn.utils.parametrize.remove_parametrizations(layer, name)
    assert close(layer(x), doubled)


def test_a_pruned_layer_gives_what_is_left():
    prune = pytest.importorskip("torch.nn.utils.prune")
    net = network("mpo-3", 3)
    layer, other, x = TNLinear(net, seed=1), TNLinear(net, seed=1), rows_of(net, 20)
    prune.l1_unstructured(layer, "core0", amount=0.5)
    with torch.no_grad():
        other.core0.copy_(layer.core0)
    assert (other.core0 == 0).sum() == other.core0.numel() // 2
    assert close(layer(x), other(x))


def test_only_tensors_are_taken():
    with pytest.raises(tn.ShapeError, match="takes a tensor, received ndarray"):
        TNLinear(network("mpo-3"))(np.zeros((3, 48), np.float32))


def test_cores_that_are_not_contiguous():
    net = network("mpo-3", 3)
    layer, x = TNLinear(net, seed=1), rows_of(net, 20)
    y = layer(x)
    core = layer._parameters["core1"]
    layer._parameters["core1"] = torch.nn.Parameter(core.detach().mT.contiguous().mT)
    assert not layer.core1.is_contiguous()
    assert torch.equal(layer(x), y)
    assert all_close(gradients(layer, x), gradients(plain(net), x))


# -- choosing ---------------------------------------------------------------------------------------------------


def test_candidates_come_best_first():
    predicted = [p.cost.predicted_s for p in priced(tn.mpo((4,) * 5, (4,) * 5).with_rank(4), 64)]
    assert predicted == sorted(predicted)


@pytest.mark.thorough
def test_the_search_has_a_seed_a_time_limit_and_progress(monkeypatch):
    net = tn.mpo((2,) * 10, (2,) * 10).with_rank(2)
    asked = {"batch": 16, "phase": "train", "runtime": "native"}
    priced = []
    for seconds in (60.0, 0.0):
        lines = []
        tn.plan(net, **asked, time_limit=seconds, progress=lines.append, cache=False)
        assert lines[0].startswith("path search, tree 1: ")
        priced.append([line for line in lines if re.fullmatch(r"path \d+/\d+ priced: .+, [\d.]+ s", line)])
    assert len(priced[0]) > len(priced[1]) == 1  # what the limit has interrupted still has a plan
    tn.plan(net, **asked)

    def searched(*args, **kwargs):
        raise RuntimeError("a search")

    monkeypatch.setattr("tn4nn._planning.planner.candidate_paths", searched)
    tn.plan(net, **asked)
    for other in ({"seed": 1}, {"time_limit": 9.0}):  # another question
        with pytest.raises(RuntimeError, match="a search"):
            tn.plan(net, **asked, **other)


@pytest.mark.slow
def test_a_chain_of_a_thousand_cores_is_planned_and_right():
    modes = (2,) * 4 + (1,) * 996
    net, lines = tn.mpo(modes, modes).with_rank(2), []
    start = time.perf_counter()
    p = tn.plan(net, 4, "train", runtime="native", time_limit=5.0, progress=lines.append, cache=False)
    assert time.perf_counter() - start < 60  # it ends the step that it is in
    assert lines
    layer, x = forced(net, p.path, p.block, p.layouts), rows_of(net, 4)
    weights = {n: parameter.detach().double().numpy() for n, parameter in layer.named_parameters() if n != "bias"}
    assert close(layer(x), torch.from_numpy(reference.apply(net, weights, x.double().numpy())))


def test_minimize_memory_saves_least():
    net = tn.mpo((4,) * 5, (4,) * 5).with_rank(16)
    least, fast = (priced(net, 256, minimize=what)[0].cost for what in ("memory", "time"))
    assert least.peak + least.saved < fast.peak + fast.saved
    fewest = priced(net, 256, minimize="flops")[0].cost
    assert fewest.macs <= min(p.cost.macs for p in priced(net, 256))


def test_tuning_measures_and_takes_the_fastest():
    net = network("mpo-3")
    found = measure.measured(measure.worth_measuring(priced(net, 16)))
    times = [p.measured_s for p in found]
    assert None not in times
    assert times == sorted(times)
    assert tn.plan(net, 16, "train", runtime="native", tune=True).measured_s > 0
    assert close(TNLinear(net, seed=1, tune=True)(rows_of(net, 16)), plain(net)(rows_of(net, 16)))


def test_of_plans_that_measure_alike_the_prediction_decides():
    found = priced(network("mpo-3"), 16)[:3]
    times = [dataclasses.replace(p, measured_s=s) for p, s in zip(found, (1.02, 1.0, 1.04), strict=True)]
    assert measure.fastest_of(sorted(times, key=lambda p: p.measured_s)) is times[0]
    assert measure.fastest_of(sorted(times[1:], key=lambda p: p.measured_s)) is times[1]


def test_two_of_the_eight_that_are_measured_have_other_blocks():
    net = tn.mpo((4, 8, 8, 8, 4), (1, 10, 1, 1, 1)).with_rank(4)
    every = priced(net, 256)
    chosen = measure.worth_measuring(every)
    assert len(chosen) == 8
    assert chosen[:6] == every[:6]
    assert len({p.block for p in chosen[6:]} - {p.block for p in every[:6]}) == 2
    assert list(chosen) == sorted(chosen, key=lambda p: p.cost.predicted_s)
    same = [p for p in every if p.block == every[0].block]
    assert measure.worth_measuring(same) == same[:8]
    assert measure.worth_measuring(same[:3]) == same[:3]


def test_the_cost_counts_multiply_adds_once_forward_and_four_times_in_training():
    net = tn.low_rank(64, 32).with_rank(4)
    forward = priced(net, 10, "forward")[0]
    train = next(p for p in priced(net, 10) if not p.save)
    assert forward.cost.macs == 10 * 4 * (64 + 32)
    recomputed = 10 * 64 * 4  # the state, but not y
    assert train.cost.macs == 3 * forward.cost.macs + recomputed
    assert train.cost.saved == 4 * 10 * 64


# -- without it -------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_cache_that_cannot_be_written_costs_one_warning_and_no_speed(fresh, monkeypatch):
    (fresh / "file").write_text("in the way")
    monkeypatch.setenv("TN4NN_CACHE", str(fresh / "file" / "below"))
    net = network("mpo-3")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        layers = [TNLinear(net, seed=1), TNLinear(network("ring"), seed=1)]
        for layer in layers:
            for rows in (1, 7, 64):
                layer(rows_of(layer.network, rows))
    assert all(layer.plan(64).executor == "native" for layer in layers)
    assert _native.runtime(4) is not None
    assert len(told) == 1, [str(one.message) for one in told]


@pytest.mark.thorough
def test_a_user_without_a_home_runs_all_the_same(fresh, monkeypatch):
    for module in (_private, libraries):
        monkeypatch.setattr(module, "cache_folder", _no_home)
    with pytest.warns(UserWarning, match="this user has no home folder"):
        TNLinear(network("mpo-3"), seed=1)(rows_of(network("mpo-3"), 5))
    assert _native.runtime(4) is not None


def _no_home():
    raise tn.TN4NNError("this user has no home folder: set TN4NN_CACHE")


def test_without_a_kernel_the_layer_says_so_once_and_runs(fresh, monkeypatch):
    monkeypatch.setattr(_kernels, "AHEAD", fresh / "nothing")
    net = network("mpo-3")
    layer, x = TNLinear(net, seed=1), rows_of(net, 64)
    with pytest.warns(UserWarning, match="no native kernel.*without a compiler.*tn4nn build-kernel"):
        y = layer(x)
    assert close(y, plain(net)(x))
    TNLinear(network("ring"))(x)  # a second one is silent


def test_only_sizes_of_float32_and_float64_are_known():
    assert _native.runtime(2) is None


# -- kernel calls --------------------------------------------------------------------------------------------------


def test_run_length_counts_what_lies_side_by_side():
    sizes = {"a": 2, "b": 3, "c": 4}
    assert _contraction.run_length(("b", "c"), ("a", "b", "c"), sizes) == 12
    assert _contraction.run_length(("a", "c"), ("a", "b", "c"), sizes) == 4
    assert _contraction.run_length(("b",), ("a", "b", "c"), sizes) == 1


def test_offsets_are_those_of_the_array():
    place, sizes = _contraction.View(0, 0, ("a", "b", "c"), 24), {"a": 2, "b": 3, "c": 4}
    expected = np.arange(48).reshape(2, 2, 3, 4)[:, :, 0, :].transpose(0, 2, 1).reshape(-1)
    assert np.array_equal(_contraction.offsets(("c", "a"), place, sizes, rows=2), expected)


# -- plans ------------------------------------------------------------------------------------------------------


def test_a_native_plan_prints_its_calls():
    p = tn.plan(network("mpo-3"), 32, "train", runtime="native")
    text = str(p)
    assert p.runtime == p.executor == "native"
    assert f"native runtime, {p.block} rows at a time; calls are of one tile" in text
    assert ("once: prologue[" in text) == (len(p.recipe.prologue) > 0)
    assert "dcore0[" in text
    assert all(f"{row.when}: {row.text}" in text for row in p.calls())
    tiles, rest = divmod(32, p.block)
    assert not rest
    once, tile = (sum(row.macs for row in p.calls() if row.when == when) for when in ("once", "tile"))
    assert once + tiles * tile == p.cost.macs
    forward = [row for row in at_rows(p, 32, "forward").calls() if row.when == "tile"]
    assert sum(row.macs for row in forward) * tiles < p.cost.macs


@pytest.mark.thorough
def test_a_memory_cap_is_met_or_the_error_names_the_smallest():
    net = tn.mpo((4,) * 5, (4,) * 5).with_rank(16)
    free = tn.plan(net, 256, "train", runtime="native")
    least = tn.plan(net, 256, "train", runtime="native", minimize="memory").cost.peak
    assert least < free.cost.peak
    assert tn.plan(net, 256, "train", runtime="native", memory=least).cost.peak <= least
    with pytest.raises(tn.TN4NNError, match=r"at most 1000 B: the smallest found needs .* \(\d+ bytes\)"):
        tn.plan(net, 256, "train", runtime="native", memory=1000)


def test_what_the_native_runtime_cannot_do_is_an_error():
    net = network("mpo-3")
    with pytest.raises(tn.TN4NNError, match="runtime must be one of program, native, received 'cpu'"):
        tn.plan(net, runtime="cpu")
    with pytest.raises(tn.TN4NNError, match="tune measures the native runtime.*pass runtime='native'"):
        tn.plan(net, tune=True)
    with pytest.raises(tn.TN4NNError, match="float32 and float64 rows.*received form='gather', itemsize=4"):
        tn.plan(net, runtime="native", form="gather")


@pytest.mark.cases(24)
@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("batch", [1, 4096])
def test_merged_cores_give_the_same(name, batch):
    net = network(name, 3)
    layer = TNLinear(net, seed=1, ordering=np.random.default_rng(0).permutation(net.in_features))
    frozen, x = layer.merge(batch), rows_of(net, 9)
    assert close(frozen(x), layer(x))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert frozen.bias.data_ptr() != layer.bias.data_ptr()


def test_a_large_batch_merges_to_the_matrix_itself():
    net = tn.mpo((4,) * 5, (4,) * 5).with_rank(32)
    frozen = TNLinear(net).merge(batch=2048)
    assert frozen.core0.shape == (4,) * 10
    assert frozen.network.num_params == 1024 * 1024


def test_a_plan_of_another_network_is_refused():
    found = priced(network("mpo-3"), 8, "forward")[0]
    with pytest.raises(tn.TN4NNError, match="none over the 2 cores of 'low_rank' and x: was it planned for another"):
        recipe(network("low_rank"), found.path, 8)
    with pytest.raises(tn.BackendError, match="expected a plan of its own network, received one of 'mpo'"):
        TNLinear(network("low_rank"), executor=found)


VECTORS = [("-mno-avx512f", 32), ("-mno-avx", 16)]

ALONG = [  # legs of a, b and c, the group that the vectors lie along
    ("mkh", "nkh", "mnh", "h"),
    ("kmh", "knh", "nmh", "h"),
    ("mkq", "nkq", "mn", "k"),
    ("kmq", "nkq", "nm", "k"),
    ("qkm", "nkq", "mn", "k"),  # a has no vectors
    ("hkmq", "khnq", "hnm", "k"),
    ("mkp", "pkn4", "mn4", "n"),  # pieces of four are written
    ("km", "kn", "mn", "n"),  # a is copied, in pieces where they are multiples of eight
    ("mk", "nk", "mn", "n"),
]


def assert_calls_agree(itemsize):
    rng, dtype = np.random.default_rng(0), np.dtype(f"f{itemsize}")
    library = _native.runtime(itemsize)
    for a, b, c, along in ALONG:
        large = [(104, 210, 1050)] if len(a) == len(b) == 2 else []  # more than is copied at a time
        for m, n, k in ((1, 1, 1), (3, 7, 2), (13, 5, 3), (5, 21, 9), (11, 14, 5), (9, 300, 2), *large):
            sizes = {"m": m, "n": n, "k": k, "h": 21, "q": 32, "p": 3, "4": 4}
            arrays = [rng.standard_normal([sizes[leg] for leg in legs]).astype(dtype) for legs in (a, b)]
            result = np.full([sizes[leg] for leg in c], np.nan, dtype)
            views = [_contraction.View(i, 0, tuple(legs)) for i, legs in enumerate((a, b, c))]
            call = _contraction.contraction_of(*views)._replace(along=along)
            call = call._replace(k=tuple(leg for leg in b if leg in call.k))
            zeros = {"steps": [0] * 10, "sums": [0] * 10, "lengths": [0] * 6}
            encoded = _native.encode(([call], (), (), ()), sizes, itemsize, block=1, cores=1, **zeros)
            given = np.array([*(array.ctypes.data for array in (*arrays, result)), 0, 0])
            library.forward(encoded.ctypes.data, 1, given.ctypes.data, 1)
            expected = np.einsum(f"{a},{b}->{c}".replace("4", "f"), *(array.astype("f8") for array in arrays))
            assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max(), (a, b, c, m, n, k)


@pytest.mark.parametrize("itemsize", [4, 8])
def test_vectors_may_lie_along_every_group(itemsize):
    assert_calls_agree(itemsize)


def test_the_gradient_of_a_small_core_has_its_vectors_along_the_rows(monkeypatch):
    for module in (_devices, _contraction):  # vectors of 64 bytes, which prefer long rows, on any processor
        monkeypatch.setattr(module, "vector_bytes", lambda: 64)
    net = tn.mpo((4, 4, 4, 4, 4), (4, 4, 4, 4, 4)).with_rank(2)
    p = priced(net, 2048, "train")[0]
    result = p.recipe
    back = result.backward(result.steps, True, frozenset(range(5)))
    assert {call.along for call in back if call.rows == "k"} >= {"k"}


def test_what_lies_in_pieces_is_priced_above_what_lies_along_k():
    at = {"h": 1, "m": 8, "k": 4096, "n": 8, "b_run": 1, "c_run": 1, "k_run": 16, "a_run": 16, "m_run": 1, "cm_run": 1}
    at |= {"b_step": 1, "c_step": 1}
    machine = tn.Machine()
    seconds = {
        along: _contraction.contraction_seconds(_contraction.Shape(**at, along=along), machine) for along in "nk"
    }
    assert seconds["k"] < seconds["n"] / 2
    loose = _contraction.contraction_seconds(_contraction.Shape(**at | {"a_run": 1}, along="k"), machine)
    assert loose > seconds["k"]
    whole = _contraction.contraction_seconds(_contraction.Shape(**at | {"c_run": 4}, along="n"), machine)
    assert whole < seconds["n"]


def test_long_outputs_lie_in_large_pages():
    setting = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[madvise]" not in setting.read_text():
        pytest.skip("this kernel gives large pages to all who need them, or to none")
    net = tn.low_rank(4096, 8).with_rank(2)
    layer = TNLinear(net, bias=False)
    assert layer.runners.native(4096) is not None
    x = torch.ones(4096, 4096, requires_grad=True)  # more than an allocator reuses
    (grad,) = torch.autograd.grad(layer(x).sum(), x)
    held = {}
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            low, high = (int(n, 16) for n in line.split()[0].split("-"))
        elif line.startswith("AnonHugePages"):
            held[low, high] = int(line.split()[1]) << 10
    middle = grad.data_ptr() + grad.nbytes // 2
    assert next(size for (low, high), size in held.items() if low <= middle < high) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "width"), VECTORS)
@pytest.mark.parametrize("itemsize", first_of([4, 8]))
def test_other_vectors_give_the_same(flag, width, itemsize, monkeypatch):
    if variants.machine() != "x86_64":
        pytest.skip("these flags are x86's")
    monkeypatch.setattr(_native, "vector_bytes", lambda: width)
    monkeypatch.setattr(_native, "runtime", lambda itemsize: compiled_with(itemsize, flag))
    for name in ("mpo-3", "ring", "cp", "vectors", "across"):
        net = network(name, 3)
        dtype = np.float32 if itemsize == 4 else np.float64
        layer, other = forced(net, paths(net, 21)[0][1], 8, itemsize=itemsize), plain(net)
        x = rows_of(net, 21, dtype=dtype)
        expected = (other.to(x.dtype)(x), *gradients(other, x))
        assert all_close((layer(x), *gradients(layer, x)), expected)
    assert_calls_agree(itemsize)


@pytest.mark.thorough
@pytest.mark.parametrize("itemsize", first_of([4, 8]))
@pytest.mark.parametrize("threads", first_of([2, 1]))
def test_a_large_prologue_is_recomputed_instead_of_saved(itemsize, threads):
    net = tn.mpo((8, 8, 8, 8), (8, 8, 8, 8)).with_rank(64)
    path = next(path for order, path in paths(net, 64) if order == "left to right, cores merged by 2+2")
    layer, other = forced(net, path, 16, itemsize=itemsize), plain(net)
    result = layer.runners.native(64)
    assert result.recipe.lengths[result.recipe.buffers.prologue] * itemsize > 10**6
    assert result.saved(64) == result.recipe.saved_prologue == 0
    assert _native.native(recipe(net, path, 16, itemsize=itemsize, save=True)).recipe.saved_prologue > 0
    x = rows_of(net, 64 * threads, dtype=np.float32 if itemsize == 4 else np.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, expected = (layer(x), *gradients(layer, x)), (other.to(x.dtype)(x), *gradients(other, x))
        assert all_close(found, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.thorough
def test_a_plan_in_tiles_saves_at_most_a_million_bytes_beside_x_and_y():
    seen = set()
    for features, rank, rows in ((8, 64, 32), (4, 4, 32), (4, 2, 256), (4, 4, 256)):
        net = tn.mpo((features,) * 4, (features,) * 4).with_rank(rank)
        for p in priced(net, rows):
            seen.add((p.block < rows, p.save))
            if p.block < rows:
                assert p.cost.saved <= 4 * 2 * rows * features**4 + 10**6
    assert len(seen) == 4


def test_states_of_all_rows_at_once_are_saved_up_to_five_mebibytes():
    net = tn.mpo((8, 8, 8, 8), (8, 8, 8, 8)).with_rank(64)
    saving = [p for p in priced(net, 1) if p.save and p.cost.saved > 3 * 2**20]
    assert saving[0].cost.macs < 4 * 67108864  # nothing is recomputed
    assert not any(p.save for p in priced(net, 32) if p.path == saving[0].path)
    layer, other, x = forced(net, saving[0].path, 1, saving[0].layouts, save=True), plain(net), rows_of(net, 1)
    assert all_close(gradients(layer, x), gradients(other, x))


def test_one_bad_measurement_does_not_rule_a_candidate_out():
    calls = 0

    def disturbed():
        nonlocal calls
        calls += 1
        time.sleep(0.03 if calls == 3 else 0.002)  # the first that counts

    steady, found = measure.interleaved([lambda: time.sleep(0.004), disturbed])
    assert found < steady


def test_all_rows_at_once_may_save_the_prologue():
    net = tn.ring((4, 4, 4, 4, 4), (4, 4, 4, 4, 4)).with_rank(8)
    every = [p for p in priced(net, 32) if p.order == "W first"]
    at_once = {p.save: p for p in every if p.block == 32}
    assert at_once[True].cost.saved - at_once[False].cost.saved > 4 * 1024**2  # W, and what it was made of
    assert at_once[True].cost.predicted_s < at_once[False].cost.predicted_s
    assert {p.save for p in every if p.block < 32} == {False}
    layer, other = forced(net, at_once[True].path, 32, save=True), plain(net)
    x = rows_of(net, 32)
    assert layer.runners.native(32).saved(32) > 1024**2
    assert all_close(gradients(layer, x), gradients(other, x))


def test_the_first_call_does_not_say_how_often_a_candidate_is_run():
    calls = 0

    def first_is_slow():
        nonlocal calls
        calls += 1
        time.sleep(0.01 if calls == 1 else 0.0002)

    measure.interleaved([first_is_slow], least=2e-3, rounds=2)
    assert calls > 6


@pytest.mark.parametrize("batch", [40, 4096])
def test_rows_that_memory_has_to_bring_are_priced_by_what_is_fetched(batch):
    net = tn.mpo((8, 8, 8, 8), (1, 2, 5, 1)).with_rank(4)
    path, machine = paths(net, batch)[0][1], tn.Machine()
    slow = dataclasses.replace(machine, memory_bytes_per_s=machine.memory_bytes_per_s / 1000)

    def streams(block):
        """Seconds per row that slower memory adds."""
        result = recipe(net, path, block)
        costs = [recipe_cost(result, batch, "forward", m).predicted_s for m in (machine, slow)]
        return costs[1] - costs[0]

    few, some, many = map(streams, (16, 64, 512))
    assert few < some < many if batch == 4096 else few <= some


def test_numbers_a_page_apart_cost_more_to_write():
    at = {
        "h": 1,
        "m": 8,
        "k": 16,
        "n": 64,
        "b_run": 64,
        "c_run": 1,
        "k_run": 1,
        "a_run": 16,
        "m_run": 1,
        "cm_run": 1,
        "b_step": 1,
        "along": "n",
    }
    machine = tn.Machine()
    near, apart = (
        _contraction.contraction_seconds(_contraction.Shape(**at, c_step=step), machine) for step in (1000, 1024)
    )
    beside = _contraction.contraction_seconds(_contraction.Shape(**at | {"cm_run": 8}, c_step=1024), machine)
    assert apart > near
    assert apart > beside


@pytest.mark.thorough
def test_paths_whose_products_alone_take_too_long_are_not_priced():
    net = tn.build("peps", 2**12, 2**12, grid=(3, 4), pad=False).with_rank(2)
    found = paths(net, 256)
    orders = {p.order for p in priced(net, 256)}
    assert any(order == "W first" for order, _ in found)
    assert "W first" not in orders
    assert {p.order for p in priced(net, 256, minimize="memory")} > orders
