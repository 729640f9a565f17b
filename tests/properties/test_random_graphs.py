"""Random graphs: every backend against ONE einsum over everything, values and gradients."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tn4nn as tn
from tn4nn.testing import random_network

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def one_einsum(net, cores, x):
    """y and the gradients of sum(y * gy), each as a single numpy.einsum over all tensors at once."""
    t = net.topology
    legs = list(dict.fromkeys([*t.inputs, *t.outputs, *(leg for core in t.cores for leg in core.legs)]))
    letter = dict(zip(["batch", *legs], LETTERS, strict=False))
    terms = ["".join(letter[leg] for leg in core.legs) for core in t.cores]
    ends = ["".join(letter[leg] for leg in ("batch", *side)) for side in (t.inputs, t.outputs)]
    arrays = [cores[core.name].astype(np.float64) for core in t.cores]
    rows = len(x)
    image = x.reshape(rows, *t.inputs.values())
    y = np.einsum(f"{','.join([*terms, ends[0]])}->{ends[1]}", *arrays, image, optimize="greedy")
    gy = np.random.default_rng(1).standard_normal(y.shape)
    gradients = {}
    for i, core in enumerate(t.cores):
        rest, others = [*terms[:i], *terms[i + 1 :], *ends], [*arrays[:i], *arrays[i + 1 :], image, gy]
        gradients[core.name] = np.einsum(f"{','.join(rest)}->{terms[i]}", *others, optimize="greedy")
    gx = np.einsum(f"{','.join([*terms, ends[1]])}->{ends[0]}", *arrays, gy, optimize="greedy")
    return y.reshape(rows, -1), gy.reshape(rows, -1), gradients, gx.reshape(rows, -1)


def check_graph(name, seed, cores):
    net = random_network(seed, cores=cores)
    layer = tn.Linear(net, bias=False)
    weights = layer.init(seed)
    backend = tn.backend(name)
    module = backend.build(layer, weights, batch=None, phase="train", device=None, dtype="float64", minimize="time")
    rows = seed % 4 + 1
    x = np.random.default_rng(0).standard_normal((rows, math.prod(net.topology.inputs.values())))
    y, gy, gradients, gx = one_einsum(net, weights, x)

    def close(received, expected):
        scale = max(float(np.abs(expected).max()), 1e-30)
        assert np.abs(received - expected).max() <= 1e-5 * scale, f"{net}"

    close(backend.forward(module, x), y)
    found, found_x = backend.gradients(module, x, gy)
    for core, gradient in gradients.items():
        close(found[core], gradient)
    close(found_x, gx)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), cores=st.integers(1, 6))
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_graphs(name, seed, cores):
    if name != "numpy":
        pytest.importorskip(name)
    check_graph(name, seed, cores)


@settings(max_examples=8, deadline=None, derandomize=True)  # jax compiles each graph
@given(seed=st.integers(0, 10**6), cores=st.integers(1, 6))
def test_graphs_in_jax(seed, cores):
    pytest.importorskip("jax")
    check_graph("jax", seed, cores)


def test_the_generator_reaches_what_it_promises():
    nets = [random_network(seed) for seed in range(200)]
    seen = set()
    for net in nets:
        t = net.topology
        where = {}
        for core in t.cores:
            for leg in core.legs:
                where.setdefault(leg, []).append(core.name)
            if not set(core.legs) & set(t.modes):
                seen.add("a core without open legs")
            if len(core.legs) == 1:
                seen.add("a core of one leg")
        seen |= {"a bond of three" for bond in t.bonds if len(where[bond]) == 3}
        seen |= {"an open leg on two cores" for leg in t.modes if len(where.get(leg, ())) == 2}
        seen |= {"a mode of size 1" for size in t.modes.values() if size == 1}
        seen |= {"a kept leg" for _ in t.kept}
        seen |= {"a bond of size 1" for rank in net.ranks.values() if rank == 1}
    assert len(seen) == 7, seen


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_thousand_graphs(name):
    if name != "numpy":
        pytest.importorskip(name)
    for seed in range(1000):
        check_graph(name, seed, seed % 7 + 1)
