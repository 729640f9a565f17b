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
# # Your own topology, from text to a trained layer
#
# A tensor network stores a large matrix as a few small arrays. In this tutorial you draw one for pictures of 8 x 8
# pixels, give it a budget, train it, and look at what it learnt. You need to know what a linear layer is. You do not
# need to have seen a tensor network.

# %%
import matplotlib.pyplot as plt
import numpy as np

import tn4nn as tn

# The sizes of this tutorial. Change them and run it again.
BUDGET = 600  # parameters of the first matrix; the dense one has 4,096
EPOCHS = 20
SEEDS = 3

# %% [markdown]
# The data are 1,797 handwritten digits that come with tn4nn.

# %%
data = tn.load_data("digits")
data

# %% [markdown]
# ## Say what the axes mean
#
# The first layer of our model maps 64 pixels to 64 neurons, so its matrix W has 64 x 64 entries. A pixel has a row and
# a column. So instead of one axis of length 64 we can give the input two axes of length 8: `row` and `col`. We split
# the 64 neurons into three axes of length 4: `y0`, `y1` and `y2`. These named axes are called **legs**.
#
# Now write down some small arrays, the **cores**. Commas separate cores, spaces separate the legs of one core. A name
# in front of a colon names the core.

# %%
topology = tn.topology(
    "rows: row y0 a, columns: col y1 b, middle: a b y2",
    inputs={"row": 8, "col": 8},
    outputs={"y0": 4, "y1": 4, "y2": 4},
    name="crossing",
)
topology

# %% [markdown]
# One core sees the row of a pixel, one sees its column, and a third one joins them. The legs `a` and `b` are neither
# inputs nor outputs. They are **bonds**: they carry what one core tells another, and they are summed over. In index
# notation,
#
# ```text
# W[y0 y1 y2, row col] =
#     sum over a, b of  rows[row, y0, a] * columns[col, y1, b] * middle[a, b, y2]
# ```
#
# A typo gets an error that names the leg.

# %%
try:
    tn.topology(
        "rows: row y0 a, columns: col y1",
        inputs={"row": 8, "col": 8},
        outputs={"y0": 8, "y1": 8},
    )
except tn.TopologyError as error:
    print(error)

# %% [markdown]
# ## Give it a budget
#
# The size of a bond is its **rank**. Large ranks can express more and cost more. You do not have to pick them: name
# the number of parameters that you can spend, and tn4nn spends them without going over.

# %%
network = topology.with_budget(params=BUDGET)
network

# %% [markdown]
# A notebook draws the graph below the text. Open ends are the legs of the input and of the output, and each bond
# carries its rank.
#
# A budget that is too small is an error, too, and it names the smallest one that works.

# %%
try:
    topology.with_budget(params=50)
except tn.BudgetError as error:
    print(error)

# %% [markdown]
# ## Look at the plan
#
# The same product can be computed in many orders. You could build W and then multiply, or pass x through the cores one
# after the other. A **plan** is the order that is predicted to be fastest for a given number of rows, here for 64.

# %%
print(tn.plan(network, batch=64, backend="torch"))

# %% [markdown]
# `MACs` are multiply-adds. Each line of the table is one call of a matrix product, with its sizes. Plans number the
# cores in the order of your text, so `core0` is `rows`. Another tutorial, [Plans and costs](plans_and_costs.py), reads
# such tables line by line.

# %% [markdown]
# ## Train it
#
# `tn.Linear` makes a layer of the network. `tn.Sequential` makes a model of layers. `tn.train` draws the weights, at a
# scale that suits the graph, and trains them. The same model trains on jax with `backend="jax"`.

# %%
model = tn.Sequential(tn.Linear(network), tn.ReLU(), tn.Linear(64, 10))
run = tn.train(model, data, epochs=EPOCHS, batch_size=64, lr=3e-3)
run

# %% [markdown]
# Is that good? Compare it with a dense layer, and with two networks of the catalogue at the same budget. Several seeds
# tell you how much of a difference is luck.


# %%
def accuracies(first_layer):
    """Test accuracy for each seed."""
    model = tn.Sequential(tn.Linear(first_layer), tn.ReLU(), tn.Linear(64, 10))
    runs = [
        tn.train(model, data, epochs=EPOCHS, batch_size=64, lr=3e-3, seed=seed)
        for seed in range(SEEDS)
    ]
    return [run.test_accuracy for run in runs]


layers = {
    "dense": tn.dense(64, 64).with_rank(1),
    "low rank": tn.low_rank(64, 64).with_budget(params=BUDGET),
    "mpo": tn.mpo((4, 4, 4), (4, 4, 4)).with_budget(params=BUDGET),
    "crossing": network,
}
results = {name: accuracies(layer) for name, layer in layers.items()}
for name, values in results.items():
    print(
        f"{name:10} {layers[name].num_params:5,} parameters   {np.mean(values):.1f} ± {np.std(values, ddof=1):.1f} %"
    )

# %%
fig, ax = plt.subplots(figsize=(5, 3))
for place, values in enumerate(results.values()):
    ax.plot([place] * len(values), values, "o", color="teal", alpha=0.6)
ax.set_xticks(
    range(len(results)), [f"{name}\n{layers[name].num_params:,}" for name in results]
)
ax.set_ylabel("test accuracy, %")
ax.set_xlabel("first layer, with its parameters")
ax.grid(axis="y", alpha=0.3)

# %% [markdown]
# ## Look at what it learnt
#
# `to_dense` gives W, the matrix that the cores stand for. Each of its 64 rows belongs to one neuron and has one number
# for each pixel, so it can be shown as a picture.

# %%
cores = {core.name: run.weights[f"0.{core.name}"] for core in network.topology.cores}
W = network.to_dense(cores)
fig, axes = plt.subplots(4, 8, figsize=(8, 4))
for ax, row in zip(axes.flat, W, strict=False):
    ax.imshow(
        row.reshape(8, 8), cmap="RdBu", vmin=-np.abs(W).max(), vmax=np.abs(W).max()
    )
    ax.axis("off")
_ = fig.suptitle("what the first 32 neurons look for: blue adds, red subtracts")
# %% [markdown]
# The structure shows. A neuron's picture is a sum of a few products of a pattern of rows and a pattern of columns, so
# you see stripes and blocks rather than single pixels.
#
# How much does each bond carry? The **entanglement entropy** S of a bond is zero where the two sides have nothing to
# do with each other, and ln(rank) where the bond is full. exp(S) says how many of its values do the work.

# %%
tn.entanglement(network, cores)

# %% [markdown]
# `draw` with the weights puts the same into the picture: each bond has the colour of S / ln(rank).

# %%
network.draw(weights=cores)

# %% [markdown]
# ## Where to go from here
#
# * Change the text of the topology and run the notebook again. Give the first core `y2` as well, or remove `middle`.
# * Put your topology into a file, and `tn4nn compare --topologies mine.toml,mpo,tree` compares it in a shell
#   ([Topologies](../reference/topologies.md#your-own)).
# * [Compare topologies on your own torch model](compare_on_your_model.py).
