"""Learning rates and decay of networks for optax."""

import numpy as np
import pytest
from helpers import close

import tn4nn as tn

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
tj = pytest.importorskip("tn4nn_jax")
jnp = jax.numpy

NET = tn.mpo((4, 8), (4, 8)).with_rank(3)
NETWORKS = {name: tn.build(name, 64, 64).with_rank(2) for name in ("mpo", "tree", "btt", "cp", "ring", "low_rank")}
LR, DECAY = 1e-2, 0.05


def built():
    """A model of tn4nn with an embedding in it, as one module."""
    table = tn.Embedding(tn.mpo((10, 10), (4, 8)).with_rank(3))
    return tn.Sequential(table, tn.Linear(NET), tn.LayerNorm(32), tn.Linear(32, 2)).build("jax", seed=0)


def factors_of(module, prefix="", **options):
    """Name of a core -> its factor, by the layers themselves."""
    found = {}
    for name, layer in module.model.walk():
        if hasattr(layer, "lr_factors"):
            own = layer.lr_factors(**options)
            found |= {f"{prefix}{name}.{core}".removeprefix("."): factor for core, factor in own.items()}
    return found


@pytest.mark.cases(2)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon", "sgd"])
def test_the_update_of_every_core_is_multiplied_by_its_factor(optimizer):
    module = built()
    transform = tj.scale_by_structure(module, lr=LR, optimizer=optimizer)
    ones = jax.tree.map(jnp.ones_like, module)
    scaled, _ = jax.jit(transform.update)(ones, transform.init(module))
    factors = factors_of(module, lr=LR, optimizer=optimizer)
    assert len(factors) == 5
    for name, array in scaled.weights.items():
        assert close(array, np.full(array.shape, factors.get(name, 1.0)), 1e-6), name


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_without_gradients_decays_w(name):
    with jax.enable_x64(True):
        layer = tj.TNLinear(NETWORKS[name], seed=0, dtype="float64")
        chain = optax.chain(
            optax.scale_by_adam(), tj.scale_by_structure(layer, lr=LR), tj.decay_by_structure(layer, DECAY),
            optax.scale_by_learning_rate(LR),
        )  # fmt: skip
        updates, _ = jax.jit(chain.update)(jax.tree.map(jnp.zeros_like, layer), chain.init(layer), layer)
        after = optax.apply_updates(layer, updates)

        def dense(module):
            return NETWORKS[name].to_dense({core: np.asarray(module.weights[core]) for core in NETWORKS[name].shapes})

        assert close(dense(after), (1 - LR * DECAY) * dense(layer), 1e-6)
        assert not close(dense(after), dense(layer), 1e-4)
        assert np.array_equal(after.weights["bias"], layer.weights["bias"])


@pytest.fixture
def model():
    """An Equinox model with every kind of array."""
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        table: tj.TNEmbedding
        blocks: list
        norm: eqx.nn.LayerNorm
        conv: eqx.nn.Conv2d
        head: eqx.nn.Linear
        name: str

        def __init__(self):
            self.table = tj.TNEmbedding(tn.mpo((10, 10), (4, 8)).with_rank(3), seed=0)
            self.blocks = [tj.TNLinear(NET, seed=i) for i in range(2)]
            self.norm = eqx.nn.LayerNorm((4, 8))
            self.conv = eqx.nn.Conv2d(1, 2, 3, key=jax.random.key(0))
            self.head = eqx.nn.Linear(32, 2, key=jax.random.key(1))
            self.name = "model"

        def __call__(self, tokens):
            x = self.table(tokens).mean(0)
            for block in self.blocks:
                x = jax.nn.relu(block(x))
            x = self.norm(x.reshape(4, 8))
            return self.head(x.reshape(-1)) + self.conv(x[None]).mean()

    return Model()


@pytest.mark.thorough
def test_filtered_arrays_of_an_equinox_model(model):
    import equinox as eqx

    params = eqx.filter(model, eqx.is_inexact_array)
    ones = jax.tree.map(jnp.ones_like, params)
    scale, decay = tj.scale_by_structure(model, lr=LR), tj.decay_by_structure(model, DECAY)
    scaled, _ = scale.update(ones, scale.init(params))
    expected = factors_of(model.table, lr=LR)
    assert {n: float(a.mean()) for n, a in scaled.table.weights.items()} == pytest.approx(expected)
    assert float(scaled.blocks[1].weights["core0"].mean()) == pytest.approx(NET.lr_factors(lr=LR)["core0"])
    assert float(scaled.head.weight.mean()) == 1.0
    zeros = jax.tree.map(jnp.zeros_like, params)
    added, _ = decay.update(zeros, decay.init(params), params)
    assert close(added.blocks[0].weights["core1"], DECAY / 2 * model.blocks[0].weights["core1"])
    assert close(added.head.weight, DECAY * model.head.weight)
    assert close(added.conv.weight, DECAY * model.conv.weight)
    for array in (
        added.norm.weight,
        added.norm.bias,
        added.conv.bias,
        added.head.bias,
        added.blocks[0].weights["bias"],
    ):
        assert not np.any(array)


def test_cores_that_are_frozen_leave_the_decay_to_the_others(model):
    import equinox as eqx

    trained = eqx.tree_at(lambda m: m.blocks[0].weights["core0"], eqx.filter(model, eqx.is_inexact_array), None)
    decay = tj.decay_by_structure(model, DECAY)
    added, _ = decay.update(jax.tree.map(jnp.zeros_like, trained), decay.init(trained), trained)
    assert close(added.blocks[0].weights["core1"], DECAY * model.blocks[0].weights["core1"])
    assert close(added.blocks[1].weights["core1"], DECAY / 2 * model.blocks[1].weights["core1"])


@pytest.mark.thorough
def test_a_jitted_loop_on_an_equinox_model(model):
    import equinox as eqx

    chain = optax.chain(
        optax.scale_by_adam(), tj.scale_by_structure(model, lr=LR), tj.decay_by_structure(model, DECAY),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(LR, 100)),
    )  # fmt: skip
    tokens = jax.random.randint(jax.random.key(0), (32, 6), 0, 100)
    labels = tokens[:, 0] % 2

    def loss_of(m):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(m)(tokens), labels).mean()

    @eqx.filter_jit
    def step(m, state):
        loss, gradients = eqx.filter_value_and_grad(loss_of)(m)
        updates, state = chain.update(gradients, state, eqx.filter(m, eqx.is_inexact_array))
        return eqx.apply_updates(m, updates), state, loss

    state, losses = chain.init(eqx.filter(model, eqx.is_inexact_array)), []
    for _ in range(20):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_a_jitted_loop_on_a_module_of_nnx():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    dense = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 64, rngs=rngs), nnx.relu,
                           nnx.Linear(64, 2, rngs=rngs))  # fmt: skip
    model = tj.replace(dense, "mpo", 0.3, seed=0)
    chain = optax.chain(
        optax.scale_by_adam(), tj.scale_by_structure(model, lr=LR), tj.decay_by_structure(model, DECAY),
        optax.scale_by_learning_rate(LR),
    )  # fmt: skip
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    first = model.layers[0]
    for tree in (params, nnx.state(model, nnx.Param)):  # arrays, and variables
        scaled, _ = tj.scale_by_structure(model, lr=LR).update(jax.tree.map(jnp.ones_like, tree), optax.EmptyState())
        cores = nnx.as_pure(scaled)["layers"][0]["weights"]
        for core, factor in first.module().model.lr_factors(lr=LR).items():
            assert close(cores[core], np.full(cores[core].shape, factor), 1e-6)
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (64, 64))
    labels = (x[:, 0] > 0).astype(int)

    @nnx.jit
    def step(model, optimizer):
        def loss_of(m):
            return optax.softmax_cross_entropy_with_integer_labels(m(x), labels).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_factors_at_the_end_of_a_chain_are_those_after_the_direction():
    module = built()
    gradients = jax.tree.map(lambda w: jnp.cos(jnp.arange(w.size, dtype=w.dtype)).reshape(w.shape), module)
    scale = tj.scale_by_structure(module)
    chains = (optax.chain(optax.scale_by_adam(), scale, optax.scale_by_learning_rate(LR)),
              optax.chain(optax.adam(LR), scale))  # fmt: skip
    first, second = (chain.update(gradients, chain.init(module), module)[0] for chain in chains)
    assert all(close(first.weights[name], second.weights[name]) for name in module.weights)


def test_what_does_not_work_says_what_would():
    module = built()
    for make in (tj.scale_by_structure, lambda m: tj.decay_by_structure(m, 0.1)):
        with pytest.raises(tn.BackendError, match=r"e.g. 'weights.0.core0', received 'params.weights"):
            make(module).init({"params": module})
    decay = tj.decay_by_structure(module, 0.1)
    with pytest.raises(tn.BackendError, match=r"call update\(updates, state, params\)"):
        decay.update(module, decay.init(module))
    for nothing in (module, {"w": jnp.ones(3)}):
        with pytest.raises(tn.TN4NNError, match="unknown optimizer 'adamv'"):
            tj.scale_by_structure(nothing, optimizer="adamv")
        with pytest.raises(tn.TN4NNError, match="lr must be finite and above 0"):
            tj.scale_by_structure(nothing, lr=0.0)
    with pytest.raises(tn.TN4NNError, match="weight_decay must be finite and at least 0, received -1"):
        tj.decay_by_structure(module, -1)
