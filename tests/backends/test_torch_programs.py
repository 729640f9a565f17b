"""Programs in torch: a backward pass of our own, and the same as captured graphs, with a stand-in for CUDA's."""

import copy
import pickle
import threading

import numpy as np
import pytest
from helpers import all_close

import tn4nn as tn
from tn4nn._base import warn as _warn
from tn4nn._runtime.program import run
from tn4nn.testing import random_network

torch = pytest.importorskip("torch")
from tn4nn_torch import TNLinear, _tuned  # noqa: E402
from tn4nn_torch._graphs import Captured  # noqa: E402
from tn4nn_torch._ops import OPS  # noqa: E402
from tn4nn_torch._steps import Steps  # noqa: E402

CPU = torch.device("cpu")
NETWORKS = {
    "mpo": tn.mpo((4, 3, 2), (2, 3, 2)).with_rank(3),
    "tree": tn.tree((4, 3, 2), (2, 3, 2)).with_rank(3),
    "cp": tn.cp((4, 6), (4, 3)).with_rank(5),
    "btt": tn.btt((4, 6), (4, 3)).with_rank(2),
    "low_rank": tn.low_rank(24, 12).with_rank(2),
} | {f"random{seed}": random_network(seed, cores=5) for seed in range(8)}


def arrays_of(net, rows=5, dtype=torch.float64, seed=0):
    """Cores and x, all of which want gradients."""
    rng = np.random.default_rng(seed)
    features = int(np.prod(list(net.topology.inputs.values())))
    shapes = [*(net.shapes[core.name] for core in net.topology.cores), (rows, features)]
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype).requires_grad_(True) for shape in shapes]


def program(net, **options):
    return tn.plan(net, 5, "train", **options).program


def gradients(y, arrays, **options):
    gy = torch.from_numpy(np.random.default_rng(1).standard_normal(tuple(y.shape))).to(y.dtype)
    return torch.autograd.grad(y, [t for t in arrays if t.requires_grad], gy, **options)


def close(a, b, tolerance=1e-10):
    return all_close(a, b, tolerance)


@pytest.mark.parametrize("minimize", ["time", "flops"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_values_and_gradients_are_autograds_whatever_is_wanted(name, minimize):
    arrays, result = arrays_of(NETWORKS[name]), program(NETWORKS[name], minimize=minimize)
    for frozen in (None, *range(len(arrays))):
        for i, t in enumerate(arrays):
            t.requires_grad_(i != frozen)
        y, right = Steps(result)(arrays), run(OPS, result, arrays)
        assert y.grad_fn.name() == "StepsFunctionBackward"
        assert torch.equal(y, right)
        assert close(gradients(y, arrays), gradients(right, arrays))


def test_complex_numbers():
    arrays, result = arrays_of(NETWORKS["cp"], dtype=torch.complex128), program(NETWORKS["cp"])
    with torch.no_grad():
        for t in arrays:
            t.imag.copy_(t.real.flip(0))
    assert close(gradients(Steps(result)(arrays), arrays), gradients(run(OPS, result, arrays), arrays))


def test_what_comes_after_may_write_into_the_result():
    arrays, result = arrays_of(NETWORKS["mpo"]), program(NETWORKS["mpo"])
    found, right = torch.relu_(Steps(result)(arrays)), torch.relu(run(OPS, result, arrays))
    assert torch.equal(found, right)
    assert close(gradients(found, arrays), gradients(right, arrays))


def test_second_derivatives_and_batches_of_gradients():
    arrays, result = arrays_of(NETWORKS["tree"]), program(NETWORKS["tree"])
    steps = Steps(result)
    assert torch.autograd.gradgradcheck(lambda *t: steps(t), arrays)
    y = steps(arrays)
    many = torch.eye(y.numel(), dtype=y.dtype).reshape(-1, *y.shape)
    found = torch.autograd.grad(y, arrays, many, is_grads_batched=True, retain_graph=True)
    one = torch.autograd.grad(y, arrays, many[7])
    assert close([t[7] for t in found], one)


def test_no_more_is_saved_than_autograd_saves():
    def saved(function, arrays):
        own = {t.untyped_storage().data_ptr() for t in arrays}
        found = {}

        def pack(t):
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = function(arrays)
        del y
        return sum(size for at, size in found.items() if at not in own)

    for name, net in NETWORKS.items():
        arrays, result = arrays_of(net, rows=50), program(net, minimize="flops")
        assert saved(Steps(result), arrays) <= saved(lambda t, p=result: run(OPS, p, t), arrays), name


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, in forward_ad
def test_single_operations_are_seen_where_something_looks():
    arrays, steps = arrays_of(NETWORKS["mpo"]), Steps(program(NETWORKS["mpo"]))
    assert torch.func.vmap(lambda x: steps([*arrays[:-1], x[None]]))(arrays[-1]).shape == (5, 1, 12)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(arrays[-1].detach(), torch.ones_like(arrays[-1]))
        y = steps([*arrays[:-1], dual])
        assert torch.autograd.forward_ad.unpack_dual(y).tangent is not None
    with torch.no_grad():
        assert steps(arrays).grad_fn is None


# -- as graphs, with a stand-in ---------------------------------------------------------------------------------


class Replayed:
    """What a CUDA graph does: the same work again, on the same memory."""

    def __init__(self, function):
        self.function, self.results = function, function()

    def replay(self):
        again = self.function()
        for old, new in zip(*(r if isinstance(r, tuple) else (r,) for r in (self.results, again)), strict=True):
            if old is not None:
                old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """Lets graphs be captured on the CPU."""

    def captured(self, function, pool):
        result = Replayed(function)
        return result, result.results

    monkeypatch.setattr(Captured, "_captured", captured)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the only one")


def capture(net, arrays, dtype=torch.float64):
    *cores, x = arrays
    return Captured(Steps(program(net)), cores, x, dtype, [t.requires_grad for t in arrays], None)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_graphs_give_values_and_gradients_of_later_inputs(name, graphs):
    net = NETWORKS[name]
    arrays = arrays_of(net)
    held = capture(net, arrays)
    *cores, _ = arrays
    with torch.no_grad():  # an optimizer's step: the graphs read the cores where they lie
        for core in cores:
            core.mul_(0.9)
    x = arrays_of(net, seed=1)[-1]
    again = [*cores, x]
    y, right = held(cores, x), run(OPS, program(net), again)
    assert close([y], [right])
    assert close(gradients(y, again), gradients(right, again))


def test_two_calls_may_wait_for_their_backward_pass(graphs):
    net = NETWORKS["mpo"]
    *cores, x = arrays_of(net)
    held, other = capture(net, [*cores, x]), arrays_of(net, seed=1)[-1]
    first, second = held(cores, x), held(cores, other)
    assert close(gradients(first, [*cores, x]), gradients(run(OPS, program(net), [*cores, x]), [*cores, x]))
    assert close(gradients(second, [other]), gradients(run(OPS, program(net), [*cores, other]), [other]))


def test_only_what_is_wanted_and_second_derivatives(graphs):
    net = NETWORKS["tree"]
    arrays = arrays_of(net)
    for i in (0, len(arrays) - 1):
        arrays[i].requires_grad_(False)
    held = capture(net, arrays)
    *cores, x = arrays
    y, right = held(cores, x), run(OPS, program(net), arrays)
    assert close(gradients(y, arrays), gradients(right, arrays))
    assert torch.autograd.gradgradcheck(lambda *t: held(cores, x), [t for t in arrays if t.requires_grad])


def test_rows_and_cores_of_another_dtype_are_converted_and_get_gradients_of_their_own(graphs):
    net = NETWORKS["mpo"]
    *cores, x = arrays_of(net, dtype=torch.float32)
    held = capture(net, [*cores, x], dtype=torch.bfloat16)
    y = held(cores, x)
    assert y.dtype == torch.bfloat16
    found = gradients(y, [*cores, x])
    assert {t.dtype for t in found} == {torch.float32}
    assert close(found, gradients(run(OPS, program(net), [*cores, x]).bfloat16(), [*cores, x]), 0.05)


def test_results_are_not_the_graphs_memory(graphs):
    net = NETWORKS["mpo"]
    *cores, x = arrays_of(net)
    held = capture(net, [*cores, x])
    first = held(cores, x)
    before = first.clone()
    held(cores, 2 * x.detach())
    assert torch.equal(first, before)


class _Rows:
    """Rows that say they are on a GPU."""

    is_cuda = True
    device = CPU
    requires_grad = True
    dtype = torch.float32

    def __init__(self, rows):
        self.shape = (rows, 24)


@pytest.fixture
def tuned(monkeypatch):
    """A layer's `Tuned` that takes the runner "fast" without measuring, and the numbers of rows it was asked for."""
    asked = []
    monkeypatch.setattr(_tuned, "graph_dtype", lambda rows, cores: torch.float32)
    monkeypatch.setattr(_tuned, "capturing", lambda device: False)

    def fastest(candidates, run, rows, cores, wanted):
        asked.append(rows.shape[0])
        return "fast"

    monkeypatch.setattr(_tuned, "_fastest", fastest)
    return _tuned.Tuned(), asked


def runner(found, layer, rows):
    """What is found for a layer and rows on a GPU."""
    return found.runner(layer.runners, 36, _Rows(rows), layer.cores(), layer.run_program)


def test_a_size_is_measured_when_it_comes_again_and_so_many_sizes_are(tuned):
    found, asked = tuned
    layer = TNLinear(NETWORKS["mpo"])
    assert runner(found, layer, 5) is None
    assert [runner(found, layer, 5) for _ in range(3)] == ["fast"] * 3
    assert asked == [5]
    with torch.no_grad():
        assert runner(found, layer, 5) is None  # no gradients: another question
    for rows in range(6, 30):
        runner(found, layer, rows)
        runner(found, layer, rows)
    assert asked == list(range(5, 13))
    assert runner(found, layer, 29) is None


def test_graphs_are_made_anew_where_the_cores_have_moved_but_not_for_ever(tuned, graphs, monkeypatch):
    found, asked = tuned
    net = NETWORKS["mpo"]
    layer = TNLinear(net)

    def fastest(candidates, run, rows, cores, wanted):
        asked.append(0)
        return capture(net, [*cores, torch.ones(5, 24)], torch.float32)

    monkeypatch.setattr(_tuned, "_fastest", fastest)
    runner(found, layer, 5)
    first = runner(found, layer, 5)
    assert runner(found, layer, 5) is first
    alive = []  # so that no memory is used twice
    for _ in range(100):
        alive.append(layer.core1.data)
        layer.core1.data = layer.core1.data.clone()
        runner(found, layer, 5)
    assert 1 < len(asked) <= _tuned._TRIES


def test_no_graph_of_ours_goes_into_somebody_elses(tuned, graphs, monkeypatch):
    found, _ = tuned
    net = NETWORKS["mpo"]
    layer = TNLinear(net)
    held = capture(net, [*layer.cores(), torch.ones(5, 24)], torch.float32)
    monkeypatch.setattr(_tuned, "_fastest", lambda *_: held)
    runner(found, layer, 5)
    assert runner(found, layer, 5) is held
    monkeypatch.setattr(_tuned, "capturing", lambda device: True)
    assert runner(found, layer, 5) is None


def test_a_copy_of_a_layer_begins_with_no_graphs():
    layer = TNLinear(NETWORKS["mpo"], tune=True)
    layer._tuned._found["key"] = threading.Lock()  # like a graph, it cannot be copied
    for result in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not result._tuned._found
        x = torch.ones(3, 24)
        assert torch.equal(result(x), layer(x))
    assert not layer.double()._tuned._found  # and the cores have moved here


def test_what_cannot_be_captured_is_a_warning_once_and_the_steps_run(monkeypatch):
    def refuse(*_):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(_tuned, "Captured", refuse)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(_warn, "_WARNED", set())
    layer = TNLinear(NETWORKS["mpo"])
    found = _tuned.Tuned()._candidates(layer.runners, torch.ones(5, 24), layer.cores(), torch.float32, [True] * 4)
    with pytest.warns(UserWarning, match=r"no CUDA graph for a layer \(CUDA error: operation not permitted"):
        assert list(found) == []


def test_the_runner_that_is_measured_fastest_is_taken(monkeypatch):
    candidates, times = ["slow graph", "fast graph", "another"], iter([5.0, 6.0, 1.0, 2.0])
    monkeypatch.setattr(_tuned, "_seconds", lambda *_: next(times))
    layer = TNLinear(NETWORKS["mpo"])
    asked = layer.run_program, torch.ones(5, 24), layer.cores(), (False,)
    assert _tuned._fastest(iter(candidates), *asked) == "fast graph"
    times = iter([1.0, 6.0, 2.0, 3.0])
    assert _tuned._fastest(iter(candidates), *asked) is None
