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
# # The entanglement of a trained weight
#
# Why can a matrix of a neural network be stored in a few small cores? Because its parts know little of each other.
# Physics has a number for that, the entanglement entropy. This tutorial computes it for a trained weight, compares it
# with chance, and shows what it says about ranks.

# %%
import matplotlib.pyplot as plt
import numpy as np

import tn4nn as tn

# The sizes of this tutorial. Change them and run it again.
EPOCHS = 30
SITES = 6  # 2 * 2 * 2 * 2 * 2 * 2 = 64
MODES = {"inputs": (2,) * SITES, "outputs": (2,) * SITES}
LARGEST = 9  # sites of the largest matrix in the part on the area law

# %% [markdown]
# ## A trained weight
#
# We train a dense layer from 64 pixels to 64 neurons, with strong weight decay, and keep its matrix before and after.

# %%
data = tn.load_data("digits")
model = tn.Sequential(
    tn.Linear(tn.dense(64, 64).with_rank(1)), tn.ReLU(), tn.Linear(64, 10)
)
run = tn.train(
    model,
    data,
    epochs=EPOCHS,
    batch_size=64,
    lr=3e-3,
    optimizer="adamw",
    weight_decay=1.0,
)
print(f"test accuracy {run.test_accuracy:.1f} %")
network = model.networks()["0"]
W0, W = (
    network.to_dense({"core0": weights["0.core0"]})
    for weights in (model.init(0), run.weights)
)
W.shape

# %% [markdown]
# ## One cut is one SVD
#
# Write the index of a pixel as six bits, x0 ... x5, and the index of a neuron as six bits, y0 ... y5. Then W is an
# array with twelve axes. Sort the axes into two groups: those of the first sites on the left, all others on the right.
# Flatten both groups, and W is a matrix again, another one than before. Its singular values say how much left and
# right have to do with each other.

# %%
sites = 3  # the cut in the middle
axes = W.reshape((2,) * (2 * SITES))  # y0 ... y5 x0 ... x5
left = [*range(sites), *range(SITES, SITES + sites)]
right = [axis for axis in range(2 * SITES) if axis not in left]
across = axes.transpose(*left, *right).reshape(4**sites, -1)
values = np.linalg.svd(across, compute_uv=False)
p = values**2 / (values**2).sum()
print(f"S = {-(p * np.log(p)).sum():.4f}")

# %% [markdown]
# The squares of the singular values, divided by their sum, are the weights `p` of the terms. The entropy is `S = -sum
# p ln p`. If one term does it all, S = 0. If all are equal, S is the logarithm of their number. So `exp(S)` is the
# number of terms that matter, the *effective rank*.
#
# `tn.entanglement` does that for every cut.

# %%
entanglement = tn.entanglement(W, **MODES)
entanglement

# %% [markdown]
# What does a cut say about a tensor network? An MPO has one bond at each of these cuts. To hold W exactly, its rank
# there is the number of singular values that are not zero. To hold W approximately, keep the largest ones: the squared
# error is the sum of the `p` that you drop. A small S means that few are enough.

# %%
fig, ax = plt.subplots(figsize=(6, 3))
for name, matrix in {"trained": W, "before training": W0}.items():
    spectrum = tn.entanglement(matrix, **MODES)[2].spectrum
    dropped = 1 - np.cumsum(spectrum**2) / (spectrum**2).sum()
    ax.plot(
        np.arange(1, len(spectrum) + 1), np.sqrt(np.maximum(dropped, 0)), label=name
    )
ax.set_xlabel("rank of the bond in the middle")
ax.set_ylabel("smallest relative error of W")
ax.legend()
ax.grid(alpha=0.3)

# %% [markdown]
# ## Compared with chance
#
# Is that much or little? A number of nats says nothing by itself, so compare with the same cuts of three matrices:
# random entries of the same norm, the entries of W in random places (same values, no structure), and the bound, which
# no matrix of this size exceeds.

# %%
nulls = tn.entanglement_nulls(W, **MODES)
entanglement.draw(nulls=nulls)

# %%
print("cut   initial  trained  shuffled  random")
before = tn.entanglement(W0, **MODES)
for k in range(SITES - 1):
    found = (before[k], entanglement[k], nulls["shuffled"][k], nulls["random"][k])
    print(f"{k + 1:<4}", "".join(f"{cut.entropy:9.3f}" for cut in found))

# %% [markdown]
# A random matrix has nearly the largest entropy that it could have: it cannot be compressed. Training lowers the
# entropy, and shuffling the entries of the trained matrix brings it back. So it is the *arrangement* of the entries
# that is compressible, not their values. But mind the scale. The trained matrix is much nearer to chance than to zero.
# That is why a model that was converted has to be [refined](convert_a_transformer.py) afterwards.
#
# ## Area law and volume law
#
# In physics, ground states of chains with local interactions obey an *area law*: the entropy of a cut does not grow
# with the number of sites, because the border between both sides is one point however long the chain is. Random states
# obey a *volume law*: the entropy grows with the number of sites. Tensor networks with small ranks can hold the first,
# and not the second.
#
# Matrices show the same. Take a smooth kernel, `1 / (0.1 + |x - y|)`, on finer and finer grids, and a random matrix.

# %%
numbers = range(3, LARGEST + 1)
kernel, noise = [], []
for n in numbers:
    grid = np.linspace(0, 1, 2**n)
    options = {"inputs": (2,) * n, "outputs": (2,) * n, "cuts": [n // 2]}
    kernel.append(
        tn.entanglement(1 / (0.1 + np.abs(grid[:, None] - grid)), **options)[0].entropy
    )
    noise.append(
        tn.entanglement(np.random.default_rng(0).normal(size=(2**n, 2**n)), **options)[
            0
        ].entropy
    )

fig, ax = plt.subplots(figsize=(6, 3))
ax.plot(numbers, noise, "o-", label="random matrix")
ax.plot(numbers, kernel, "o-", label="smooth kernel")
ax.set_xlabel("sites n of a matrix of 2^n x 2^n")
ax.set_ylabel("S of the cut in the middle, nats")
ax.legend()
ax.grid(alpha=0.3)

# %% [markdown]
# At 512 x 512 the kernel has 262,144 entries and still needs a handful of terms at each cut. That is what an MPO is
# made for:

# %%
grid = np.linspace(0, 1, 2**LARGEST)
tn.decompose(
    1 / (0.1 + np.abs(grid[:, None] - grid)),
    tn.mpo((2,) * LARGEST, (2,) * LARGEST),
    error=0.01,
)

# %% [markdown]
# ## The order of the pixels
#
# Entanglement depends on which pixels sit together in a mode. `ordering=` permutes the inputs before they are split:
# by rows ("raster"), along a Hilbert curve, which keeps neighbours together, or at random.

# %%
for name, ordering in {
    "raster": "raster",
    "hilbert": "hilbert",
    "random": tn.Ordering.random(64, seed=0),
}.items():
    found = tn.entanglement(W, **MODES, ordering=ordering)
    print(f"{name:8} sum of S over the cuts {found.entropies.sum():.3f}")

# %% [markdown]
# On the neurons of one trained layer the differences are small, but a random order is the worst of them. The same
# holds for which sites are neighbours in the network. `tn.reconnect` and `tn.search` look for better ones ([Ranks that
# move](ranks_that_move.py)).
#
# ## Watch it during training
#
# `EntanglementLog` records the entropies after each epoch. Here the layer is an MPO with bonds of rank 8.

# %%
chain = tn.Sequential(
    tn.Linear(tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(8)), tn.ReLU(), tn.Linear(64, 10)
)
log = tn.EntanglementLog(chain)
tn.train(chain, data, epochs=EPOCHS // 2, batch_size=64, lr=3e-3, callback=log)
fig, ax = plt.subplots(figsize=(6, 3))
ax.plot(np.arange(1, EPOCHS // 2 + 1), log.entropies("0"))
ax.axhline(np.log(8), color="gray", linestyle=":")
ax.set_xlabel("epoch")
ax.set_ylabel("S, nats (dotted: full bond)")
ax.grid(alpha=0.3)

# %% [markdown]
# The entropies fall: training puts more and more of W into fewer terms. Where a curve stays near the dotted line, the
# bond is full and a larger rank could help. Where it falls far below, you pay for rank that does little. The next
# tutorial lets tn4nn act on that: [Ranks that move](ranks_that_move.py).
