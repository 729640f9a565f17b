"""Random graphs: every plan that may be chosen gives the oracle's numbers, under every transform of torch and jax."""

import numpy as np
import pytest
from helpers import all_close, normal, oracle

from tn4nn._planning.planner import candidates
from tn4nn._planning.request import PlanRequest
from tn4nn._runtime import native as _native
from tn4nn._runtime.target import Target
from tn4nn.testing import random_network

FEW = range(4)
MANY = range(4, 200)
ROWS = 19


def problem(seed):
    """(network, cores, x, gy) and, in float64, (y, gradient of x, gradients of the cores)."""
    net = random_network(seed, cores=1 + seed % 6)
    cores = net.init(seed)
    x = normal(ROWS, net.in_features, seed=seed, dtype=np.float32)
    gy = normal(ROWS, net.out_features, seed=seed + 1, dtype=np.float32)
    y, gradients, gx = oracle(net, cores, x, gy)
    return net, cores, x, gy, [y, gx, *gradients.values()]


def check_every_plan(seed):
    net, cores, x, gy, expected = problem(seed)
    arrays = [np.ascontiguousarray(core) for core in cores.values()]
    for phase in ("forward", "train"):
        for p in candidates(PlanRequest(net, ROWS, phase, target=Target(executors=("native",)))):
            result = _native.native(p.recipe)
            y, gx = np.full((ROWS, result.outputs), np.nan, np.float32), np.full_like(x, np.nan)
            saved = np.full(max(1, result.saved(ROWS)), np.nan, np.float32)
            gradients = [np.full_like(a, np.nan) for a in arrays]
            at, to = [a.ctypes.data for a in arrays], [g.ctypes.data for g in gradients]
            result.forward(ROWS, at, saved.ctypes.data, x.ctypes.data, y.ctypes.data)
            everything = (True,) * (1 + len(to))
            result.backward(
                ROWS, at, saved.ctypes.data, x.ctypes.data, gy.ctypes.data, gx.ctypes.data, to, everything
            )  # fmt: skip
            assert all_close([y, gx, *gradients], expected)


def check_torch(seed):
    torch = pytest.importorskip("torch")
    from tn4nn_torch import TNLinear

    net, cores, x_, gy_, expected = problem(seed)
    layer = TNLinear(net, bias=False, weights=cores)
    x, gy = torch.from_numpy(x_), torch.from_numpy(gy_)

    def everything(function, value=x):
        value = value.detach().requires_grad_(True)
        y = function(value)
        return [t.detach() for t in (y, *torch.autograd.grad(y, [value, *layer.parameters()], gy))]

    assert all_close(everything(layer), expected)
    strided = torch.stack([x, x], -1)[..., 0]
    assert all_close(everything(layer, strided), expected)
    torch.compiler.reset()
    assert all_close(everything(torch.compile(layer, fullgraph=True, backend="aot_eager")), expected)
    assert all_close(everything(lambda value: torch.vmap(layer)(value)), expected)
    held = dict(layer.named_parameters())

    def loss(held, value):
        return (torch.func.functional_call(layer, held, (value,)) * gy).sum()

    gradients, gx = torch.func.grad(loss, argnums=(0, 1))({n: p.detach() for n, p in held.items()}, x)
    assert all_close([gx, *gradients.values()], expected[1:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all_close([layer(x).detach().float()], expected[:1], 0.06)
    value = x.clone().requires_grad_(True)
    first = torch.autograd.grad((layer(value) ** 2).sum(), value, create_graph=True)[0]
    second = torch.autograd.grad((first * gy.sum()).sum(), value)[0]  # 2 W^T W, on ones
    weight = layer.to_dense().detach()
    assert all_close([second], [2 * (torch.ones_like(x) @ weight.T @ weight) * gy.sum()], 1e-4)
    assert layer(x[:0]).shape == (0, net.out_features)


def check_jax(seed):
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp
    import tn4nn_jax

    net, cores_, x_, gy_, expected = problem(seed)
    names = [core.name for core in net.topology.cores]
    cores, x, gy = [jnp.asarray(cores_[name]) for name in names], jnp.asarray(x_), jnp.asarray(gy_)

    def function(cores, x):
        return tn4nn_jax.linear(net, dict(zip(names, cores, strict=True)), x)

    def everything(function):
        y, pull = jax.vjp(function, cores, x)
        gradients, gx = pull(gy)
        return [y, gx, *gradients]

    assert all_close(jax.jit(lambda: everything(function))(), expected)
    by_rows = jax.vmap(function, in_axes=(None, 0))
    assert all_close(jax.jit(lambda: everything(by_rows))(), expected)
    along = jax.jit(lambda: jax.jvp(lambda x: function(cores, x), (x,), (2 * x,))[1])()
    assert all_close([along], [2 * expected[0]])
    assert function(cores, x[:0]).shape == (0, net.out_features)


CHECKS = {"plans": check_every_plan, "torch": check_torch, "jax": check_jax}


def check(name, seed):
    if name == "plans" and _native.runtime(4) is None:
        pytest.skip("no C compiler on this machine")
    CHECKS[name](seed)


@pytest.mark.cases(1)
@pytest.mark.parametrize("seed", FEW)
@pytest.mark.parametrize("name", CHECKS)
def test_graphs(name, seed):
    check(name, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY)
@pytest.mark.parametrize("name", CHECKS)
def test_many_graphs(name, seed):
    check(name, seed)
