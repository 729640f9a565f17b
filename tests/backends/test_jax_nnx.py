"""Modules of flax's nnx."""

import numpy as np
import pytest
from helpers import close, run_python

import tn4nn as tn

jax = pytest.importorskip("jax")
tj = pytest.importorskip("tn4nn_jax")

NET = tn.mpo((4, 4), (4, 4)).with_rank(3)


@pytest.mark.thorough
def test_without_flax_there_is_an_error_that_says_so():
    code = """
        import sys
        sys.modules["flax"] = sys.modules["flax.nnx"] = None
        import tn4nn_jax
        try:
            import tn4nn_jax.nnx
        except RuntimeError as error:
            print(type(error).__name__, error)
    """
    assert "BackendError tn4nn_jax.nnx needs flax" in run_python(code)


@pytest.fixture
def nnx():
    """flax's nnx."""
    return pytest.importorskip("flax.nnx")


@pytest.fixture
def ours(nnx):
    """The modules for it."""
    from tn4nn_jax import nnx as tn_nnx

    return tn_nnx


def test_a_layer_is_a_part_of_a_module_of_flax(nnx, ours):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = ours.TNLinear(NET, rngs=rngs)
            self.second = ours.TNLinear(NET, rngs=rngs)
            self.head = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(jax.nn.relu(self.second(jax.nn.relu(self.first(x)))))

    net, x = Net(nnx.Rngs(0)), jax.numpy.ones((5, 16))
    state = nnx.state(net, nnx.Param)
    assert state["first"]["weights"]["core0"].shape == (4, 4, 3)
    assert not np.array_equal(net.first.weights["core0"][...], net.second.weights["core0"][...])
    gradients = nnx.grad(lambda m: (m(x) ** 2).sum())(net)
    right = jax.grad(lambda m: (jax.nn.relu(net.second(jax.nn.relu(m(x)))) @ net.head.kernel[...]).sum())
    assert jax.tree.structure(gradients) == jax.tree.structure(state)
    assert right(net.first.module()).weights["core0"].shape == (4, 4, 3)
    step = nnx.jit(lambda m: nnx.update(m, jax.tree.map(lambda w, g: w - 0.01 * g, nnx.state(m, nnx.Param),
                                                        nnx.grad(lambda n: (n(x) ** 2).sum())(m))))  # fmt: skip
    before = float((net(x) ** 2).sum())
    for _ in range(3):
        step(net)
    assert float((net(x) ** 2).sum()) < before
    graph, split = nnx.split(net)
    assert close(nnx.merge(graph, split)(x), net(x))


def test_values_and_gradients_are_those_of_the_layer(nnx, ours):
    conv = tn.mpo((8, 9), (4, 4)).with_rank(3)
    table = tn.mpo((10, 10), (4, 4)).with_rank(3)
    for make, plain, net, x in (
        (ours.TNLinear, tj.TNLinear, NET, np.ones((2, 3, 16), np.float32)),
        (ours.TNConv2d, tj.TNConv2d, conv, np.ones((2, 8, 5, 5), np.float32)),
        (ours.TNEmbedding, tj.TNEmbedding, table, np.arange(6)),
    ):
        layer, expected = make(net, seed=3), plain(net, seed=3)
        assert close(layer(x), expected(x))
        found = nnx.grad(lambda m, x=x: (m(x) ** 2).sum())(layer)
        right = jax.grad(lambda m, x=x: (m(x) ** 2).sum())(expected).weights
        assert all(close(found["weights"][name][...], right[name], 1e-4) for name in right)
        with pytest.raises(tn.BackendError, match="expected weights=, seed="):
            make(net)


def test_running_statistics_are_no_parameters(nnx, ours):
    model = tn.Sequential(tn.Linear(NET), tn.BatchNorm(16), tn.Dropout(0.5))
    module = ours.Module(model.build("jax", seed=0))
    assert sorted(nnx.state(module, nnx.BatchStat)["weights"]) == ["1.mean", "1.var"]
    assert "1.mean" not in nnx.state(module, nnx.Param)["weights"]
    x = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    before = np.asarray(module.weights["1.mean"][...])
    nnx.jit(lambda m, key: m(x, train=True, key=key))(module, jax.random.key(0))
    _, state = model.build("jax", seed=0).apply(x, key=jax.random.key(0))
    assert not np.array_equal(before, module.weights["1.mean"][...])
    assert close(module.weights["1.mean"][...], state["1.mean"])
