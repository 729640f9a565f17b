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
# # Compare topologies on your own torch model
#
# Which tensor network suits your model? The honest answer is to try several under the same budget, next to the two
# alternatives that cost nothing to think of: the dense model as it is, and the same dense model made thinner.
# `tn.compare` does that for any `nn.Module`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from tn4nn_torch import parameter_groups
from torch import nn
from torch.nn.functional import cross_entropy

import tn4nn as tn

# The sizes of this tutorial. Change them and run it again.
WIDTH = 64
BUDGET = 0.25  # of the parameters of the compared layers
EPOCHS = 5
SEEDS = 3
TOPOLOGIES = ["mpo", "tree", "btt"]

# %% [markdown]
# ## A function that makes your model
#
# `compare` trains many models, so it needs a function that makes a new one. If the function has an argument `width`,
# the model can also be made thinner, which gives the row "narrow". This one is a small convolutional net for pictures
# of 8 x 8 pixels.


# %%
def make_model(width=WIDTH):
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


for name, module in make_model().named_modules():
    if isinstance(module, nn.Linear):
        print(name, module)

# %% [markdown]
# ## What is learnt
#
# A task is the data, the loss and the score. There are `tn.classification`, `tn.regression` and `tn.language_model`;
# all three take plain arrays.

# %%
data = tn.load_data("digits")
task = tn.classification(data.x_train, data.y_train, test=(data.x_test, data.y_test))
task

# %% [markdown]
# ## Compare
#
# `where` names the layers that go on networks, by their names in the model: here the two hidden linear layers, "5" and
# "7". Patterns such as `"blocks.*.mlp.*"` work too. Together these layers may have a quarter of their parameters.
# Everything else in the model stays as it is.

# %%
report = tn.compare(
    TOPOLOGIES,
    model=make_model,
    where=["5", "7"],
    task=task,
    budget=BUDGET,
    epochs=EPOCHS,
    seeds=SEEDS,
    lr=3e-3,
    backends="torch",
)
report

# %% [markdown]
# ## What the table says
#
# * **dense** is your model, with all parameters. **narrow** is your model with a smaller `width`, so that the same
#   layers have as many parameters as the networks. **low_rank** is there too, because it is the first thing that most
#   people try.
# * **accuracy** is the mean over the seeds, with the standard deviation. A star means "not significantly worse than
#   the best of this budget". Three seeds tell large differences from luck, and small ones not.
# * **params** and **asked** say what was used of the budget. **compr.** is the compression: of the compared layers,
#   and of the whole model, whose convolution and last layer did not shrink.
# * **vs dense** and **step ms** are the measured time of a training step. Layers this small are not faster on
#   networks: a small matrix product is already cheap, and a network makes several smaller ones of it.
# * **MACs** are multiply-adds for one sample.
#
# The line below the table is the one to read first: which networks beat the thinner dense model, and which cannot be
# told apart from it with these seeds. Mind that a few epochs on a small data set favour whatever learns fast. Give
# every row the training that you would give your own model before you believe the order.
#
# `report.rows` has the same numbers, one dictionary for each run.

# %%
names = list(dict.fromkeys(row["topology"] for row in report.rows))
fig, ax = plt.subplots(figsize=(6, 3.2))
for name in names:
    rows = [row for row in report.rows if row["topology"] == name]
    scores = [row["accuracy"] for row in rows]
    ax.errorbar(
        rows[0]["params"],
        np.mean(scores),
        np.std(scores, ddof=1),
        fmt="o",
        capsize=3,
        label=name,
    )
ax.set_xscale("log")
ax.set_xlabel("parameters of the compared layers")
ax.set_ylabel("test accuracy, %")
ax.legend()
ax.grid(alpha=0.3)

# %% [markdown]
# ## With your own training loop
#
# Your model may need augmentation, a scheduler, or a loss that no task has. Then pass `fit`, a function that trains
# one model and returns its scores. `parameter_groups` gives each core of a network its own learning rate, so that one
# `lr` serves dense layers and networks alike. `cell` says which run this is.


# %%
def fit(model, cell):
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=cell.lr))
    generator = torch.Generator().manual_seed(cell.seed)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            noisy = x[rows] + 0.1 * torch.randn(
                x[rows].shape, generator=generator
            )  # augmentation of our own
            loss = cross_entropy(model(noisy), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = model(torch.from_numpy(data.x_test)).argmax(1) == torch.from_numpy(
            data.y_test
        )
    return {"accuracy": 100 * right.float().mean().item()}


own = tn.compare(
    "mpo",
    model=make_model,
    where=["5", "7"],
    fit=fit,
    budget=BUDGET,
    seeds=1,
    lr=3e-3,
    backends="torch",
)
for row in own.rows:
    print(
        f"{row['topology']:9} {row['params']:6,} parameters   {row['accuracy']:.1f} %"
    )

# %% [markdown]
# ## Keep it
#
# `report.save(folder)` writes results.json, results.csv and a self-contained page, report.html. With `out=folder` and
# `resume=True`, a comparison that was interrupted goes on where it stopped. `lr="auto"`, the default, chooses a
# learning rate for each topology on validation data: fairer, and several times as long.
#
# The same works for [Equinox and Flax models](jax_models.py). To read more on the columns that speak of cost, go on to
# [Plans and costs](plans_and_costs.py).
