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
# # Convert a trained transformer and refine it
#
# You have a trained model and want a smaller one that does the same. This tutorial trains a small transformer on text,
# puts its matrices on tensor networks, repairs what that broke, and writes the result to one file that another process
# reads. No step but the first uses labels.

# %%
import inspect
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tn4nn_torch import Rule, convert, distill, plan_conversion, refine, save
from torch.nn.functional import cross_entropy, kl_div, log_softmax

import tn4nn as tn

# The sizes of this tutorial. Change them and run it again.
CONTEXT, WIDTH, HEADS, LAYERS = 32, 64, 4, 2
TRAINING_STEPS = 300
BUDGET = 0.4  # of the parameters of the converted layers
CALIBRATION = 64  # windows of text that the conversion looks at
REFINE_STEPS, DISTILL_STEPS = 50, 150

# %% [markdown]
# ## A transformer in plain torch
#
# Nothing in it knows of tn4nn. (Models of Hugging Face work the same way: [Hugging Face](../how-to/hugging-face.md).)
# One function makes the model, imports and all, so that another process can make it again.


# %%
def make_transformer(vocabulary, context, width, heads, layers):
    import torch
    from torch import nn
    from torch.nn.functional import gelu, scaled_dot_product_attention

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.query, self.key, self.value = (
                nn.Linear(width, width) for _ in range(3)
            )
            self.out = nn.Linear(width, width)
            self.up, self.down = (
                nn.Linear(width, 4 * width),
                nn.Linear(4 * width, width),
            )

        def forward(self, x):
            h = self.norm1(x)
            q, k, v = (
                f(h).unflatten(-1, (heads, -1)).transpose(1, 2)
                for f in (self.query, self.key, self.value)
            )
            x = x + self.out(
                scaled_dot_product_attention(q, k, v, is_causal=True)
                .transpose(1, 2)
                .flatten(2)
            )
            return x + self.down(gelu(self.up(self.norm2(x))))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(vocabulary, width)
            self.positions = nn.Parameter(0.02 * torch.randn(context, width))
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocabulary)

        def forward(self, ids):
            x = self.tokens(ids) + self.positions[: ids.shape[-1]]
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))

    return Transformer()


# %% [markdown]
# The text is the first quarter of "tiny Shakespeare", and comes with tn4nn. The model learns to predict the next
# character.

# %%
text = tn.load_text("shakespeare")
characters = sorted(set(text))
ids = torch.tensor([characters.index(character) for character in text])
train_ids, test_ids = ids[:-20_000], ids[-20_000:]
generator = torch.Generator().manual_seed(0)


def batch(ids, rows):
    """Windows of the text, and the same windows one character later."""
    starts = torch.randint(len(ids) - CONTEXT, (rows,), generator=generator)
    windows = ids[starts[:, None] + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


def loss_of(model, x, y):
    return cross_entropy(model(x).flatten(0, -2), y.flatten())


torch.set_num_threads(1)
torch.manual_seed(0)
sizes = {
    "vocabulary": len(characters),
    "context": CONTEXT,
    "width": WIDTH,
    "heads": HEADS,
    "layers": LAYERS,
}
original = make_transformer(**sizes)
optimizer = torch.optim.AdamW(original.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TRAINING_STEPS)
for _ in range(TRAINING_STEPS):
    loss = loss_of(original, *batch(train_ids, 32))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
original.eval()

held_out = batch(test_ids, 400)


def score(model):
    """Mean loss on held-out text, in nats per character."""
    with torch.no_grad():
        return loss_of(model, *held_out).item()


print(
    f"original: {score(original):.3f} (a guess at random: {np.log(len(characters)):.3f})"
)

# %% [markdown]
# ## Plan first
#
# `plan_conversion` is the dry run. You give it rules, which map patterns of layer names to topologies, and one budget
# for all layers. The table says what each layer would get, what stays, and why.
#
# The `inputs` are a calibration batch. With it, tn4nn makes the errors of the layers' *outputs* small instead of those
# of their weights, and it gives more parameters to the layers that the model depends on.

# %%
calibration, _ = batch(train_ids, CALIBRATION)
rule = Rule("mpo", method="svd")
plan = plan_conversion(
    original,
    {"blocks.*": rule},
    budget=BUDGET,
    inputs=calibration,
    batch=CALIBRATION * CONTEXT,
)
plan

# %% [markdown]
# ## Convert
#
# `run()` does what the table says. It makes a copy, and the original is not touched.

# %%
converted = plan.run()
scores = {"original": score(original), "converted": score(converted)}
scores

# %% [markdown]
# The loss rose. That is normal: trained matrices are compressible, but not that much, and errors add up from layer to
# layer. The next two steps need no labels. They only ask the original.
#
# ## Refine, then distill
#
# `refine` goes through the layers in the order in which they are called. Each one learns to give the output of its
# original on the inputs that it really gets. A change that does not help is taken back.

# %%
texts = [batch(train_ids, CALIBRATION)[0] for _ in range(2)]
for row in refine(converted, original, texts, steps=REFINE_STEPS):
    print(f"{row.name:18} error {row.before:.3f} -> {row.after:.3f}")
scores["refined"] = score(converted)

# %% [markdown]
# `distill` then trains all layers together, so that the outputs of the whole model agree. For a classifier or a
# language model, compare the predicted distributions.


# %%
def divergence(ours, theirs):
    ours, theirs = (log_softmax(logits.flatten(0, -2), -1) for logits in (ours, theirs))
    return kl_div(ours, theirs, log_target=True, reduction="batchmean")


many = [batch(train_ids, 32)[0] for _ in range(DISTILL_STEPS)]
losses = distill(
    converted, original, many, steps=DISTILL_STEPS, lr=1e-3, loss=divergence
)
scores["distilled"] = score(converted)

# %% [markdown]
# How far did we get? Compare with what else you could do with the same budget: low rank, with the same two steps after
# it.

# %%
other = convert(original, {"blocks.*": "low_rank"}, budget=BUDGET, inputs=calibration)
low_rank = {"original": scores["original"], "converted": score(other)}
refine(other, original, texts, steps=REFINE_STEPS)
low_rank["refined"] = score(other)
distill(other, original, many, steps=DISTILL_STEPS, lr=1e-3, loss=divergence)
low_rank["distilled"] = score(other)

fig, ax = plt.subplots(figsize=(6, 3.2))
for name, values in {"mpo": scores, "low rank": low_rank}.items():
    ax.plot(list(values), list(values.values()), "o-", label=name)
ax.axhline(scores["original"], color="gray", linestyle=":")
ax.set_ylabel("loss on held-out text")
ax.legend()
ax.grid(alpha=0.3)
for name, values in {"mpo": scores, "low rank": low_rank}.items():
    print(
        f"{name:9}", "   ".join(f"{step} {value:.3f}" for step, value in values.items())
    )

# %% [markdown]
# ## Save it, and load it in a new process
#
# `tn4nn_torch.save` writes one safetensors file: all numbers to the bit, and which layer is on which network. To load
# it, give the architecture as it was before the conversion. The file holds no code. Here a second Python process reads
# it.

# %%
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "small.safetensors"
save(path, converted)
sample = held_out[0][:2]
program = f"""
{inspect.getsource(make_transformer)}
import torch
from tn4nn_torch import load

model = load({str(path)!r}, make_transformer(**{sizes}))
print(model(torch.tensor({sample.tolist()})).sum().item())
"""
printed = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=True
).stdout
with torch.no_grad():
    print("there:", printed.strip(), " here:", converted(sample).sum().item())
folder.cleanup()

# %% [markdown]
# ## What it costs in time
#
# The file is smaller by the same factor as the model. A forward pass is not: at 64 x 64 a network saves little
# arithmetic, or none.


# %%
def milliseconds(model, ids, repeat=5):
    times = []
    with torch.no_grad():
        for _ in range(repeat + 1):
            start = time.perf_counter()
            model(ids)
            times.append(time.perf_counter() - start)
    return 1e3 * min(times[1:])


for name, model in {"original": original, "mpo": converted, "low rank": other}.items():
    print(
        f"{name:9} {milliseconds(model, calibration):.1f} ms for {CALIBRATION} windows"
    )

# %% [markdown]
# `max_time=1.0` in `convert` leaves those layers dense that are predicted to be slower on this machine. [Plans and
# costs](plans_and_costs.py) says when networks are fast.
#
# ## What to take away
#
# * Convert, refine, distill: each step is one call, and the loss on held-out data says whether it helped.
# * Compare with low rank at the same budget. On some models it is the better choice, and then you should take it.
# * [Convert a model](../how-to/convert.md) has every rule and setting, and [the page on
#   MiniLM](../benchmarks/minilm.md) does this to a sentence transformer with 36 linear layers.
