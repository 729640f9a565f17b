# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# %% [markdown]
# # Equinox and Flax models
#
# In jax a layer on a network is a pytree like any other. So `jit`, `grad`, `vmap` and optax work as they always do.
# This tutorial trains an Equinox model on networks from the start, converts a trained one, and does the first again
# with Flax NNX.

# %%
import importlib.util
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tn4nn_jax

import tn4nn as tn

# The sizes of this tutorial. Change them and run it again.
WIDTH, DEPTH = 64, 2
BUDGET = 0.2  # of the parameters of the replaced layers
EPOCHS, ROWS, LR = 12, 64, 3e-3

data = tn.load_data("digits")
x_train, y_train, x_test, y_test = (
    jnp.asarray(a) for a in (data.x_train, data.y_train, data.x_test, data.y_test)
)

# %% [markdown]
# ## Networks from the start
#
# `replace` puts networks with new weights in the place of an Equinox model's layers. The rule here is one topology for
# all layers. The last layer is left alone unless you name it. `plan_replacement` shows first what would happen.

# %%
dense = eqx.nn.MLP(64, 10, WIDTH, DEPTH, key=jax.random.key(0))
tn4nn_jax.plan_replacement(
    dense, "mpo", budget=BUDGET, key=jax.random.key(1), batch=ROWS
)

# %%
small = tn4nn_jax.replace(
    dense, "mpo", budget=BUDGET, key=jax.random.key(1), batch=ROWS
)
small

# %% [markdown]
# ## Train by optax
#
# The cores of a network have a learning rate of their own: one step should move W as it would move a dense W. Two
# transformations take care of that, in any chain of optax. On a dense model they change nothing.


# %%
def optimizer_for(model):
    return optax.chain(
        optax.scale_by_adam(),
        tn4nn_jax.scale_by_structure(
            model, lr=LR
        ),  # the factors of the cores: after the direction
        tn4nn_jax.decay_by_structure(
            model, 0.01
        ),  # weight decay of W: after the factors
        optax.scale_by_learning_rate(LR),
    )


def loss_of(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def train(model):
    optimizer = optimizer_for(model)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, x, y):
        loss, gradients = eqx.filter_value_and_grad(loss_of)(model, x, y)
        parameters = eqx.filter(model, eqx.is_inexact_array)
        updates, state = optimizer.update(gradients, state, parameters)
        return eqx.apply_updates(model, updates), state, loss

    rng, losses = np.random.default_rng(0), []
    for _ in range(EPOCHS):
        order = rng.permutation(len(x_train))
        for first in range(0, len(order) - ROWS + 1, ROWS):
            rows = order[first : first + ROWS]
            model, state, loss = step(model, state, x_train[rows], y_train[rows])
            losses.append(loss)
    return model, np.array(losses)


@eqx.filter_jit
def accuracy(model):
    return 100 * (jax.vmap(model)(x_test).argmax(-1) == y_test).mean()


trained_dense, dense_losses = train(dense)
trained_small, small_losses = train(small)


def size(model):
    return sum(
        array.size for array in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    )


for name, model in {"dense": trained_dense, "mpo": trained_small}.items():
    print(f"{name:6} {size(model):6,} parameters   {accuracy(model):.1f} %")

# %%
fig, ax = plt.subplots(figsize=(6, 3))
ax.semilogy(dense_losses, label="dense")
ax.semilogy(small_losses, label="mpo")
ax.set_xlabel("step")
ax.set_ylabel("training loss")
ax.legend()
ax.grid(alpha=0.3)

# %% [markdown]
# ## Convert a trained model
#
# `convert` is for models that are trained already: each network is fitted to the matrix that it replaces. `inputs` are
# rows on which the outputs should agree. Rules map patterns of names to topologies, and you can give each layer
# another one.

# %%
plan = tn4nn_jax.plan_conversion(
    trained_dense,
    {"layers.0": "tree", "layers.1": "mpo"},
    budget=BUDGET,
    inputs=x_train[:500],
    batch=ROWS,
)
plan

# %%
converted = plan.run()
print(f"dense {accuracy(trained_dense):.1f} %   converted {accuracy(converted):.1f} %")
tuned, _ = train(converted)
print(f"and trained for {EPOCHS} epochs more: {accuracy(tuned):.1f} %")

# %% [markdown]
# ## Save and load
#
# One safetensors file holds all arrays to the bit. To load it, give the architecture as it was before the conversion;
# shapes alone are enough.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "small.safetensors"
    tn4nn_jax.save(path, tuned)
    again = tn4nn_jax.load(
        path, lambda: eqx.nn.MLP(64, 10, WIDTH, DEPTH, key=jax.random.key(7))
    )
bool((jax.vmap(again)(x_test) == jax.vmap(tuned)(x_test)).all())

# %% [markdown]
# ## The same in Flax NNX
#
# `replace` takes a module of NNX too, and the layers that it puts in hold `nnx.Param`s. The rest is Flax as usual.
# (The cell below needs `pip install "tn4nn[flax]"`.) `convert` is for Equinox only: for a trained Flax model, use
# `decompose_params` on its tree of arrays ([how](../how-to/convert.md#in-jax)).

# %%
if importlib.util.find_spec("flax") is None:
    print("flax is not installed, so this cell has nothing to show")
else:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.List(
                [nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, 64, rngs=rngs)]
            )
            self.head = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x):
            for layer in self.hidden:
                x = nnx.relu(layer(x))
            return self.head(x)

    net = tn4nn_jax.replace(Net(nnx.Rngs(0)), "mpo", budget=BUDGET, seed=1)
    nnx_optimizer = nnx.Optimizer(net, optimizer_for(net), wrt=nnx.Param)

    @nnx.jit
    def nnx_step(net, optimizer, x, y):
        def loss(net):
            return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()

        value, gradients = nnx.value_and_grad(loss)(net)
        optimizer.update(net, gradients)
        return value

    rng = np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x_train))
        for first in range(0, len(order) - ROWS + 1, ROWS):
            rows = order[first : first + ROWS]
            nnx_step(net, nnx_optimizer, x_train[rows], y_train[rows])
    print([type(layer).__name__ for layer in net.hidden], type(net.head).__name__)
    print(
        f"test accuracy {100 * float((net(x_test).argmax(-1) == y_test).mean()):.1f} %"
    )

# %% [markdown]
# Where to go from here: `tn.compare` takes Equinox and NNX models as it takes torch's ([Compare topologies on your own
# model](compare_on_your_model.py)), and [Training on several devices](../how-to/several-devices.md) shards a model
# over a mesh.
