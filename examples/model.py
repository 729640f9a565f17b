"""The model, the data and the arguments of the examples beside this file: a topology, and a file for the weights."""

import json
import sys

import numpy as np

import tn4nn as tn

CONTEXT, BATCH, STEPS, LR, DECAY = 16, 16, 12, 3e-3, 0.1


def on_networks(layer, topology):
    """A layer graph whose linear layers are networks of a topology, a quarter of the size."""
    if isinstance(layer, tn.Linear):
        dense = layer.topology
        network = tn.build(topology, dense.in_features, dense.out_features).with_budget(
            params=dense.in_features * dense.out_features // 4
        )
        return tn.Linear(network)
    return layer.with_children({name: on_networks(child, topology) for name, child in layer.children()})


def small_gpt(topology, vocabulary):
    """A language model of one block; its head stays dense."""
    dense = tn.presets.gpt(layers=1, width=32, heads=2, vocab=vocabulary, context=CONTEXT)
    parts = dict(dense.children())
    return dense.with_children({**parts, "blocks": on_networks(parts["blocks"], topology)})


def text():
    """A task: the next character."""
    return tn.language_model(tn.load_text("shakespeare")[:20_000], context=CONTEXT)


def batches(task):
    """(x, y) of every step, as arrays: the same in every process, which then takes its own rows."""
    numbers = task.train.numbers(np.random.default_rng(0))
    for step in range(STEPS):
        yield task.train.take(numbers[step * BATCH : (step + 1) * BATCH])


def topology():
    """The first argument."""
    return sys.argv[1] if len(sys.argv) > 1 else "mpo"


def keep(losses, weights):
    """Prints the loss of every step; writes the weights to the .npz file that the second argument names."""
    print(json.dumps(losses))
    if len(sys.argv) > 2:
        np.savez(sys.argv[2], **weights)
