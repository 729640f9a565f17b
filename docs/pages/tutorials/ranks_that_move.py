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
# # Ranks that move
#
# A budget says how many parameters a network has. Which bonds get them is another question, and the answer may only
# show during training. This tutorial makes bonds larger and smaller without losing what was learnt, lets `tn.train` do
# it by itself, and searches for other topologies.

# %%
import matplotlib.pyplot as plt
import numpy as np

import tn4nn as tn

# The sizes of this tutorial. Change them and run it again.
EPOCHS = 20
BUDGET = 700  # parameters of the first layer
SEEDS = 2
SEARCH = 40  # structures that the search may fit

data = tn.load_data("digits")


def model_with(network):
    return tn.Sequential(tn.Linear(network), tn.ReLU(), tn.Linear(64, 10))


# %% [markdown]
# ## Grow a bond
#
# `tn.grow` makes a bond larger and leaves W as it is. The new slices are zero on one side and random on the other, so
# nothing changes at first, and gradients flow.

# %%
network = tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(3)
first = tn.train(model_with(network), data, epochs=EPOCHS // 2, batch_size=64, lr=3e-3)
cores = {name: first.weights[f"0.{name}"] for name in network.shapes}

larger, grown = tn.grow(network, cores, {"a0": 6, "a1": 6})
change = np.abs(larger.to_dense(grown) - network.to_dense(cores)).max()
print(
    f"{network.num_params} -> {larger.num_params} parameters, W changed by {change:.1e}"
)

# %% [markdown]
# Training goes on from there. The accuracy does not fall back to the start.

# %%
weights = {**first.weights, **{f"0.{name}": core for name, core in grown.items()}}
second = tn.train(
    model_with(larger),
    data,
    epochs=EPOCHS // 2,
    batch_size=64,
    lr=3e-3,
    weights=weights,
)
print(
    f"before {first.test_accuracy:.1f} %, after growing and training on {second.test_accuracy:.1f} %"
)
print(f"loss of the first step after growing: {second.losses[0]:.3f}")

# %% [markdown]
# ## Shrink it again
#
# `tn.rounded` goes the other way: it drops the smallest Schmidt values of each bond, by a rank, a number of
# parameters, or an error. It works on the cores alone and never forms W.

# %%
cores = {name: second.weights[f"0.{name}"] for name in larger.shapes}
tn.rounded(larger, cores, error=0.3)

# %% [markdown]
# How much accuracy does an error cost? Round to several errors and look. No training in between.


# %%
def test_accuracy(network, cores):
    module = model_with(network).build(
        "numpy", weights={**second.weights, **{f"0.{n}": c for n, c in cores.items()}}
    )
    return 100 * (np.asarray(module(data.x_test)).argmax(1) == data.y_test).mean()


fig, ax = plt.subplots(figsize=(6, 3))
for error in (0.001, 0.05, 0.1, 0.2, 0.5):
    result = tn.rounded(larger, cores, error=error)
    place = result.network.num_params, test_accuracy(result.network, result.weights)
    ax.plot(*place, "o", color="teal")
    ax.annotate(f"  {error:g}", place)
ax.set_xlabel("parameters after rounding (the labels are the errors)")
ax.set_ylabel("test accuracy, %")
ax.grid(alpha=0.3)

# %% [markdown]
# ## Let the training move them
#
# `tn.AutoRank` does both at the ends of epochs, under one budget for all layers. It cuts the Schmidt values that carry
# least for their parameters, and spends what is free on the bonds whose values carry most. Start small, with ranks of
# 2, and compare with a network that has the whole budget from the start.

# %%
small, full = network.topology.with_rank(2), network.topology.with_budget(params=BUDGET)
options = {"epochs": EPOCHS, "batch_size": 64, "lr": 3e-3}
for seed in range(SEEDS):
    fixed = tn.train(model_with(full), data, seed=seed, **options)
    moved = tn.train(
        model_with(small), data, seed=seed, ranks=tn.AutoRank(params=BUDGET), **options
    )
    print(
        f"seed {seed}: ranks stay {fixed.test_accuracy:.1f} %, ranks move {moved.test_accuracy:.1f} %"
    )
print("stay:", full.ranks, " moved:", moved.model.networks()["0"].ranks)

# %% [markdown]
# The two are about level here, and you did not have to know the ranks. `run.model` is the model that came out, and
# `run.ranks` says what changed when.

# %%
epochs = sorted(moved.ranks)
fig, ax = plt.subplots(figsize=(6, 3))
for bond, start in small.ranks.items():
    ax.step(
        [0, *epochs],
        [start, *(moved.ranks[epoch]["0"][bond] for epoch in epochs)],
        where="post",
        label=bond,
    )
ax.set_xlabel("epoch")
ax.set_ylabel("rank")
ax.legend()
ax.grid(alpha=0.3)

# %% [markdown]
# ## Reconnect a tree
#
# Ranks are half of the question; the graph is the other half. On a tree, three branches can be joined around a bond in
# several ways. `tn.reconnect` takes the way with the least entanglement, bond by bond. Here is a matrix whose sites
# belong together in pairs that the tree does not know: 0 with 3, 1 with 2.

# %%
rng = np.random.default_rng(0)
A, B = (
    np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(2)
)  # on sites 0 and 3, and on sites 1 and 2
W = np.einsum(
    "adeh,bcfg->abcdefgh", A.reshape(4, 4, 4, 4), B.reshape(4, 4, 4, 4)
).reshape(256, 256)
tree = tn.tree((4, 4, 4, 4), (4, 4, 4, 4))
found = tn.reconnect(W, tree)
found

# %% [markdown]
# The sum of the entropies fell. What does that buy? The same error with fewer parameters.

# %%
for name, topology in {"as it was": tree, "reconnected": found.topology}.items():
    result = tn.decompose(W, topology, error=1e-3)
    print(
        f"{name:12} {result.network.num_params:7,} parameters for an error of {result.error:.1e}"
    )

# %% [markdown]
# ## Search for a topology
#
# `tn.search` tries more: bonds grow, shrink, appear and vanish, and legs change places. Given an error it looks for
# the fewest parameters. Each evaluation is one fit, so start small.

# %%
hidden = tn.ring((3, 3, 3), (3, 3, 3)).with_rank(2)
target = hidden.to_dense(hidden.init(1))
search = tn.search(
    target, error=1e-4, inputs=(3, 3, 3), outputs=(3, 3, 3), evaluations=SEARCH
)
search

# %% [markdown]
# The matrix came from a ring with ranks of 2. The search was told nothing of that. Compare its number of parameters
# with those of the ring, and with the MPO that has the same error.

# %%
chain = tn.decompose(target, tn.mpo((3, 3, 3), (3, 3, 3)), error=1e-4)
print(
    f"hidden ring {hidden.num_params}, found {search.network.num_params}, mpo {chain.network.num_params} parameters"
)

# %% [markdown]
# Where to go from here: [Structure search](../how-to/search.md) has all moves and how to search by training instead of
# by error, and `tn4nn reproduce autorank` compares moving ranks with the best equal rank.
