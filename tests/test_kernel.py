"""The native kernel: the oracle's numbers for every topology, and a fallback that gives the same."""

import copy
import pickle

import numpy as np
import pytest

import tn4nn as tn
from tn4nn import _kernel, _plan
from tn4nn._stream import stream

torch = pytest.importorskip("torch")
from tn4nn_torch import TNLinear  # noqa: E402

if _kernel.kernel(stream(tn.low_rank(8, 8).with_rank(2), ((0, 2), (1, 3)))) is None:
    pytest.skip("no C compiler on this machine", allow_module_level=True)

CASES = {
    name: tn.build(name, 36, 24, sites=1 if name == "dense" else 4 if name == "mera" else 2, pad=False)
    for name in tn.catalogue()
} | {
    "mpo-3": tn.mpo((4, 3, 3), (2, 3, 4)),
    "kept": tn.topology("k x0 a, a k y0, x1 y1", {"k": 3, "x0": 3, "x1": 4}, {"y1": 2, "k": 3, "y0": 4}),
    "hyperedge": tn.topology("x0 r, x1 r y0, r y1 s, s", {"x0": 6, "x1": 6}, {"y0": 4, "y1": 6}),
    "padded": tn.build("mpo", 35, 23, sites=2),
}


def forced(net, path=None):
    """A layer that runs in the kernel whatever the cost model says."""
    layer = TNLinear(net, seed=1)
    path = path or tn.plan(net, 64, "train", minimize="flops").path
    made = _kernel.kernel(stream(net, path))
    assert made is not None
    layer._kernels = dict.fromkeys((4**i for i in range(8)), made)
    return layer


def rows_of(net, rows, seed=0):
    x = np.random.default_rng(seed).standard_normal((rows, net.in_features)).astype(np.float32)
    return torch.from_numpy(x)


def close(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max()) <= 1e-5 * max(float(b.abs().max()), 1e-30)


def slopes(layer, x, **options):
    value = x.clone().requires_grad_(True)
    wanted = [value, *layer.parameters()]
    return torch.autograd.grad((layer(value) ** 2).sum(), wanted, **options)


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("rows", [1, 16, 45])
def test_values_and_gradients(name, rows):
    net = CASES[name].with_rank(2, clip=True) if name != "dense" else CASES[name].with_rank(1)
    layer, plain = forced(net), TNLinear(net, seed=1)
    plain._kernels = dict.fromkeys(layer._kernels)
    x = rows_of(net, rows)
    weights = {n: p.detach().numpy() for n, p in layer.named_parameters() if n != "bias"}
    expected = x.double() @ torch.from_numpy(net.to_dense(weights)).double().T
    assert close(layer(x), expected)
    assert all(close(a, b) for a, b in zip(slopes(layer, x), slopes(plain, x), strict=True))


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_and_every_order(seed):
    from tn4nn.testing import random_network

    net = random_network(seed, cores=6)
    x = rows_of(net, 19)
    plain = TNLinear(net, seed=1)
    plain._kernels = dict.fromkeys(4**i for i in range(8))
    search = _plan._Search(net, 19, "train", "time", "apply", 4, _plan.Machine())
    for _, path in search.candidates(0, 1.0, None):
        layer = forced(net, path)
        assert close(layer(x), plain(x))
        assert all(close(a, b) for a, b in zip(slopes(layer, x), slopes(plain, x), strict=True))


def test_second_derivatives():
    net = CASES["ring"].with_rank(2)
    layer, plain = forced(net), TNLinear(net, seed=1)
    plain._kernels = dict.fromkeys(layer._kernels)
    x = rows_of(net, 5)

    def second(module):
        first = slopes(module, x, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), list(module.parameters())[:2])

    assert all(close(a, b) for a, b in zip(second(layer), second(plain), strict=True))


def test_only_what_is_asked_for_gets_a_gradient():
    net = CASES["mpo-3"].with_rank(3)
    layer = forced(net)
    layer.core1.requires_grad_(False)
    x = rows_of(net, 20)
    (layer(x) ** 2).sum().backward()
    assert layer.core1.grad is None
    whole = slopes(forced(net), x)
    assert close(layer.core0.grad, whole[1])


def test_only_the_input_is_kept_for_backward():
    net = tn.mpo((4,) * 5, (4,) * 5).with_rank(4)
    x = rows_of(net, 256)
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    layer = forced(net)
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x.clone().requires_grad_(True))
    total = sum(size for place, size in kept.items() if place not in parameters)
    assert total <= 2 * x.nbytes + 2**20


def test_threads_give_the_same_numbers():
    net = CASES["mpo-3"].with_rank(3)
    layer, x = forced(net), rows_of(net, 300)
    alone = (layer(x), *slopes(layer, x))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = (layer(x), *slopes(layer, x))
        assert all(close(a, b) for a, b in zip(alone, together, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(together, (layer(x), *slopes(layer, x)), strict=True))
    finally:
        torch.set_num_threads(before)


def test_other_dtypes_transforms_and_strides_run_too():
    net = CASES["mpo-3"].with_rank(3)
    layer, x = forced(net), rows_of(net, 20)
    y = layer(x)
    assert close(torch.vmap(layer)(x), y)
    assert close(layer(torch.stack([x, x], -1)[..., 0]), y)
    assert layer(x[:0]).shape == (0, 24)
    assert close(copy.deepcopy(layer).double()(x.double()), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16 or layer(x).dtype == torch.float32
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)
    assert torch.equal(copy.deepcopy(layer)(x), y)


def test_the_cost_model_takes_it_where_it_pays():
    small, large = tn.mpo((4,) * 5, (4,) * 5).with_rank(4), tn.mpo((4,) * 5, (4,) * 5).with_rank(16)
    assert TNLinear(small).kernel_for(2048) is not None
    assert TNLinear(large).kernel_for(2048) is None
    assert TNLinear(small, minimize="flops").kernel_for(2048) is None
    assert TNLinear(CASES["mpo-3"].with_rank(2)).kernel_for(4) is None  # too small to compile for


def test_without_a_compiler_the_layer_says_so_once_and_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    monkeypatch.setattr(_kernel, "_built", {})
    monkeypatch.setattr(_kernel, "_told", False)
    monkeypatch.setattr(_kernel.shutil, "which", lambda name: None)
    net = tn.mpo((4,) * 5, (4,) * 5).with_rank(2)
    layer, x = TNLinear(net, seed=1), rows_of(net, 64)
    with pytest.warns(UserWarning, match="no native kernel.*install gcc"):
        y = layer(x)
    assert close(y, forced_elsewhere(net, x))
    TNLinear(tn.mpo((4,) * 5, (4,) * 5).with_rank(3))(x)  # a second one is silent


def forced_elsewhere(net, x):
    layer = TNLinear(net, seed=1)
    layer._kernels = dict.fromkeys(4**i for i in range(8))
    return layer(x)


def test_a_kernel_that_fails_its_self_check_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    monkeypatch.setattr(_kernel, "_built", {})
    monkeypatch.setattr(_kernel, "_told", False)
    monkeypatch.setattr(_kernel, "_HEAD", _kernel._HEAD.replace("acc[i][j] += a * bk[j]", "acc[i][j] += a * bk[0]"))
    with pytest.warns(UserWarning, match="failed its self-check"):
        assert _kernel.kernel(stream(CASES["mpo-3"].with_rank(2), ((0, 3), (1, 4), (2, 5)))) is None


def test_a_broken_library_on_disk_is_built_again(monkeypatch, tmp_path):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    monkeypatch.setattr(_kernel, "_built", {})
    monkeypatch.setattr(_kernel, "_told", False)
    rows = stream(CASES["mpo-3"].with_rank(2), ((0, 3), (1, 4), (2, 5)))
    assert _kernel.kernel(rows) is not None
    (library,) = (tmp_path / "kernels").iterdir()
    other = tmp_path / "other" / "kernels" / library.name
    other.parent.mkdir(parents=True)
    other.write_bytes(b"no library")
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(_kernel, "_built", {})
    assert _kernel.kernel(rows) is not None
    assert other.stat().st_size > 1000
