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
# # Plans and costs: why it may be slower than dense
#
# A network with sixty times fewer parameters can be three times faster than the dense layer, or slower. This tutorial
# shows how to find out before you train anything, and what to change.

# %%
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import torch
from tn4nn_torch import TNLinear

import tn4nn as tn

# The sizes of this tutorial. Change them and run it again.
MODES = (8, 16, 8)  # 8 * 16 * 8 = 1,024 features on each side
RANK = 8
BATCHES = (1, 32, 1024)

torch.set_num_threads(1)
network = tn.mpo(MODES, MODES).with_rank(RANK)
network

# %% [markdown]
# ## One layer, many orders
#
# This layer computes y = x W^T, and W is the product of three cores. You can multiply them in any order:
#
# * **W first**: contract the cores to W, then multiply x by it. That costs the dense product and a little more.
# * **Along the chain**: take x through the cores one by one, and never form W.
#
# Which is cheaper depends on the number of rows. W is built once, whatever the batch; the chain is walked for each
# row. A **plan** is the answer for one batch.

# %%
print(tn.plan(network, batch=1, backend="torch"))

# %%
print(tn.plan(network, batch=1024, backend="torch"))

# %% [markdown]
# How to read a plan:
#
# * The first line says for what it was made, and where the order came from.
# * **MACs** are multiply-adds, half the FLOPs. **moved** are the bytes that all steps read and write. **peak** is the
#   most memory that is alive at once. **predicted** is what the cost model says of this machine.
# * Each line below is one matrix product, `h x m x k x n`: h products of an m x k and a k x n matrix.
# * `once` happens once for each call, whatever the batch. `tile` happens for each tile of rows.
#
# For one row the plan walks the chain: a large W would only be used once. For 1,024 rows it builds W first. The cores
# hold 60 times fewer numbers than W, but at this rank the chain needs more multiply-adds than one dense product.

# %% [markdown]
# ## Beside the dense layer
#
# `tn.cost` prices the plan next to the dense layer and next to the orders that you might have picked by hand.

# %%
report = tn.cost(network, BATCHES, phases=["train"])
report

# %% [markdown]
# The row "dense" is the one to beat. `limit` says how near a way comes to the least time that its arithmetic and its
# memory allow: a low figure means that small steps cost more than the arithmetic in them.
#
# Where does the network win? Plot both against the batch.

# %%
growth = tn.growth(network, batch=256)
growth

# %%
growth.draw()

# %% [markdown]
# The exponents in the text are slopes in these plots. The network gains most for few rows, where a dense layer has to
# read all of W for little work. And its cost grows with the rank: at some rank the network is as slow as the dense
# layer.

# %% [markdown]
# ## Prediction and measurement
#
# The cost model predicts. Measure before you believe it. (`tn4nn calibrate` fits the model to your processor in a few
# seconds; without it, the figures are those of an ordinary CPU core.)


# %%
def milliseconds(module, rows, repeat=20):
    """Least time of a training step: forward, and gradients of everything."""
    x = torch.randn(rows, 1024, requires_grad=True)
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        module(x).sum().backward()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


dense, ours = torch.nn.Linear(1024, 1024), TNLinear(network)
predicted = {
    (row.batch, row.way): 1e3 * row.predicted_s for row in reversed(report.rows)
}
measured = {}
print("rows      ours, ms            dense, ms")
print("          predicted measured  predicted measured")
for rows in BATCHES:
    measured[rows] = milliseconds(ours, rows), milliseconds(dense, rows)
    print(
        f"{rows:<9,} {predicted[rows, 'ours']:9.2f} {measured[rows][0]:8.2f}  "
        f"{predicted[rows, 'dense']:9.2f} {measured[rows][1]:8.2f}"
    )

# %%
fig, ax = plt.subplots(figsize=(5, 3))
ax.plot(BATCHES, [b / a for a, b in measured.values()], "o-", color="teal")
ax.axhline(1, color="gray", linestyle=":")
ax.set_xscale("log")
ax.set_xlabel("rows of a batch")
ax.set_ylabel("dense / network")
ax.set_title("how many times faster than dense, measured")
ax.grid(alpha=0.3)

# %% [markdown]
# ## Why it may be slower
#
# 1. **The layer is small.** A dense 64 x 64 product takes microseconds. A network makes several products of it, and
#    each has a fixed price.
# 2. **The rank is high.** The arithmetic of a chain grows with the rank. From some rank on, the network needs more of
#    it than dense.
# 3. **The batch is large.** Building W pays then, and the plan does so: the time comes close to that of dense, and not
#    below. What you save is memory for weights and optimizer, not time.
# 4. **The program runs in single operations.** On a GPU, each small step costs a launch. There, use `tune=True`.
#
# ## What would change it
#
# `tn4nn plan ... --explain` names the step that dominates, and plans the neighbours of your network anew: other ranks,
# modes, orders and batches. Here is the end of what it prints, for a training step of 256 rows.

# %%
arguments = (
    "plan mpo --in 1024 --out 1024 --rank 8 --batch 256 --backend torch --explain"
)
command = [sys.executable, "-m", "tn4nn", *arguments.split()]
explained = subprocess.run(command, capture_output=True, text=True, check=True).stdout
print(explained[explained.index("dominating") :])

# %% [markdown]
# Budgets can be of time or arithmetic instead of parameters. Here is the best network of at most 200,000 multiply-adds
# for each row, a fifth of the dense layer's.

# %%
cheap = tn.mpo(MODES, MODES).with_budget(macs=200_000)
print(cheap)
print(
    f"{tn.plan(cheap, batch=256, minimize='flops').cost.macs / 256:,.0f} multiply-adds per row"
)

# %% [markdown]
# Where to go from here: [the measured step times](../benchmarks/performance.md) of all topologies, next to dense
# layers and other libraries, and [how planning works](../explanation/rooms/planning.md).
