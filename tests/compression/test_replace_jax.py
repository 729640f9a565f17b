"""Layers of jax models replaced by networks with weights that are drawn."""

import math

import numpy as np
import pytest
from helpers import close

import tn4nn as tn

jax = pytest.importorskip("jax")
tj = pytest.importorskip("tn4nn_jax")
jnp = jax.numpy

# -- Equinox ----------------------------------------------------------------------------------------------------


@pytest.fixture
def eqx():
    """Equinox."""
    return pytest.importorskip("equinox")


def dense_of(layer):
    """W of a layer on a network."""
    network = layer.model.solid()
    return network.to_dense({name: np.asarray(layer.weights[name]) for name in network.shapes})


def equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True) if hasattr(x, "shape")
    )


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["mpo", "ring", "tree", "btt", "cp"])
def test_the_variance_is_that_of_the_weight_and_the_source_stays(eqx, topology):
    model = eqx.nn.MLP(64, 10, 64, 2, key=jax.random.key(0))
    before = jax.tree.map(np.array, eqx.filter(model, eqx.is_array))
    small = tj.replace(model, {"layers.0": topology, "layers.1": "mpo"}, 0.3, seed=1)
    for i in (0, 1):
        assert isinstance(small.layers[i], tj.TNLinear)
        assert float(dense_of(small.layers[i]).std()) == pytest.approx(float(model.layers[i].weight.std()), rel=1e-4)
        assert np.array_equal(small.layers[i].weights["bias"], model.layers[i].bias)
    assert sum(small.layers[i].model.num_weights for i in (0, 1)) <= 0.3 * 2 * 64 * 64
    assert type(small.layers[2]) is eqx.nn.Linear
    assert equal(before, eqx.filter(model, eqx.is_array))
    assert jax.vmap(small)(jnp.ones((3, 64))).shape == (3, 10)


def test_a_seed_or_a_key_decides_and_one_of_them_has_to_be_there(eqx):
    model = eqx.nn.MLP(64, 10, 64, 2, key=jax.random.key(0))
    for which in ({"seed": 3}, {"key": jax.random.key(3)}):
        assert equal(tj.replace(model, "mpo", 0.3, **which), tj.replace(model, "mpo", 0.3, **which))
    others = [tj.replace(model, "mpo", 0.3, key=jax.random.key(i)) for i in range(2)]
    assert not np.array_equal(*(one.layers[0].weights["core0"] for one in others))
    with pytest.raises(tn.BackendError, match=r"expected seed= .* or key= .*, received neither"):
        tj.replace(model, "mpo", 0.3)
    with pytest.raises(tn.BackendError, match="received both"):
        tj.replace(model, "mpo", 0.3, seed=0, key=jax.random.key(0))


def test_zeros_get_the_variance_of_their_inputs_and_the_plan_says_so(eqx):
    model = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.layers[0].weight, model, jnp.zeros((64, 64)))
    plan = tj.plan_replacement(model, {"layers.0": "mpo"}, 0.3, seed=0)
    assert plan.notes == ("all numbers are equal, so the networks are drawn with variance 1/in_features: layers.0",)
    assert float(dense_of(plan.run().layers[0]).std()) == pytest.approx(1 / math.sqrt(64), rel=1e-3)


def test_what_does_not_work_says_what_would(eqx):
    model = eqx.nn.MLP(64, 10, 64, 2, key=jax.random.key(0))
    with pytest.raises(tn.TN4NNError, match="'layer.0' matches no layer of this model.*layers.0"):
        tj.replace(model, {"layer.0": "mpo"}, 0.3, seed=0)
    with pytest.raises(tn.BudgetError, match="a budget of 10 parameters cannot be met: the smallest feasible one is"):
        tj.replace(model, "mpo", 10, seed=0)
    with pytest.raises(tn.TN4NNError, match="weights that are drawn keep no error"):
        tj.replace(model, tj.Rule("mpo", error=0.1), seed=0)

    def traced(key, word):
        inner = eqx.nn.MLP(64, 10, 64, 1, key=key)
        return tj.replace(inner, "mpo", 0.3, **{word: {"seed": 0, "key": key}[word]}).layers[0].weights

    for word in ("seed", "key"):
        with pytest.raises(tn.BackendError, match="call it outside of jit"):
            jax.jit(traced, static_argnums=1)(jax.random.key(0), word)


# -- nnx of flax ------------------------------------------------------------------------------------------------


@pytest.fixture
def nnx():
    """flax's nnx."""
    return pytest.importorskip("flax.nnx")


@pytest.fixture
def net(nnx):
    """A model with layers at every depth, one of them twice, and a convolution, which stays."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Embed(64, 32, rngs=rngs)
            self.blocks = nnx.List([nnx.Sequential(nnx.Linear(32, 32, rngs=rngs), nnx.relu) for _ in range(2)])
            self.again = self.blocks[0]
            self.named = nnx.Dict(middle=nnx.Linear(32, 32, use_bias=False, rngs=rngs))
            self.conv = nnx.Conv(32, 32, (3,), rngs=rngs)
            self.a_head = nnx.Linear(32, 5, rngs=rngs)  # the first of the alphabet, and the last that is made

        def __call__(self, x):
            x = self.table(x)
            for block in (*self.blocks, self.again):
                x = block(x)
            return self.a_head(self.conv(self.named.middle(x)))

    return Net(nnx.Rngs(0))


def test_a_module_of_nnx_is_copied_with_networks_in_it(nnx, net):
    from tn4nn_jax import nnx as ours

    before = jax.tree.map(np.array, nnx.as_pure(nnx.state(net)))
    plan = tj.plan_replacement(net, "mpo", 0.5, seed=0)
    small = plan.run()
    outcome = {row.name: row.converted for row in plan.rows}
    replaced = ["table", "blocks.0.layers.0 = again.layers.0", "blocks.1.layers.0", "named.middle"]
    assert outcome == {**dict.fromkeys(replaced, True), "a_head": False}
    assert plan.rows[-1].reason.startswith("the head is protected")
    assert {other.name for other in plan.others} >= {"conv.kernel", "conv.bias", "a_head.bias"}
    assert isinstance(small.table, ours.TNEmbedding)
    assert isinstance(small.named.middle, ours.TNLinear)
    assert small.again is small.blocks[0]
    assert isinstance(small.again.layers[0], ours.TNLinear)
    assert type(small.conv) is nnx.Conv
    old, new = net.blocks[1].layers[0], small.blocks[1].layers[0]
    assert float(dense_of(new.module()).std()) == pytest.approx(float(old.kernel[...].std()), rel=1e-4)
    assert float(dense_of(small.table.module()).std()) == pytest.approx(float(net.table.embedding[...].std()), rel=1e-4)
    assert np.array_equal(new.weights["bias"][...], old.bias[...])
    assert small(jnp.arange(8)[None]).shape == (1, 8, 5)
    assert equal(before, nnx.as_pure(nnx.state(net)))
    assert equal(nnx.as_pure(nnx.state(small)), nnx.as_pure(nnx.state(tj.replace(net, "mpo", 0.5, seed=0))))
    counted = sum(array.size for array in jax.tree.leaves(nnx.as_pure(nnx.state(small, nnx.Param))))
    assert counted == plan.model_params_after


def test_rules_and_refusals_in_nnx(nnx, net):
    small = tj.replace(net, {"again.*": "mpo", "table": "low_rank"}, 0.5, seed=0)  # any of its names is enough
    assert small.again.layers[0] is small.blocks[0].layers[0]
    assert not hasattr(small.again.layers[0], "kernel")
    assert type(small.blocks[1].layers[0]) is nnx.Linear
    with pytest.raises(tn.TN4NNError, match="'tabel' matches no layer of this model.*table"):
        tj.replace(net, {"tabel": "mpo"}, 0.5, seed=0)
    with pytest.raises(tn.TN4NNError, match="'conv' matches no layer that can be converted: 'conv' is a Conv"):
        tj.replace(net, {"conv": "mpo"}, 0.5, seed=0)
    with pytest.raises(tn.BudgetError, match="the smallest feasible one is"):
        tj.replace(net, "mpo", 10, seed=0)
    with pytest.raises(tn.TN4NNError, match="no layer that can be converted: nnx.Linear and nnx.Embed can"):
        tj.replace(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), "mpo", 0.5, seed=0)
    lower = nnx.Linear(32, 32, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    plan = tj.plan_replacement(nnx.List([lower, net.a_head]), "mpo", 0.5, seed=0)
    assert plan.rows[0].reason == "it computes in bfloat16, and its weight is float32"
    with pytest.raises(tn.BackendError, match="call it outside of jit"):
        nnx.jit(lambda m: tj.replace(m, "mpo", 0.5, seed=0)(jnp.arange(8)))(net)
    lone = tj.replace(nnx.Linear(32, 32, rngs=nnx.Rngs(0)), "mpo", 0.5, seed=0)
    assert lone(jnp.ones((2, 32))).shape == (2, 32)


def test_weights_of_nnx_that_are_tied_share_their_cores(nnx):
    rngs = nnx.Rngs(0)
    first, second = nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, 32, rngs=rngs)
    second.kernel = first.kernel
    plan = tj.plan_replacement(nnx.List([first, second]), "mpo", 0.5, seed=0, protect_head=False)
    assert [row.name for row in plan.rows] == ["0 = 1"]
    a, b = plan.run()
    assert a is not b
    assert all(a.weights[name] is b.weights[name] for name in a.weights if name != "bias")
    assert a.weights["bias"] is not b.weights["bias"]
    second.bias[...] += 1
    assert close(plan.run()[1].weights["bias"][...], second.bias[...])
