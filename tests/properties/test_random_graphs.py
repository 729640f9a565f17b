"""Random graphs: every backend against ONE einsum over everything, values and gradients."""

import pytest
from helpers import FLOAT64, all_close, close, normal, oracle
from hypothesis import given, settings
from hypothesis import strategies as st

import tn4nn as tn
from tn4nn.testing import random_network


def check_graph(name, seed, cores):
    net = random_network(seed, cores=cores)
    layer = tn.Linear(net, bias=False)
    weights = layer.init(seed)
    backend = tn.backend(name)
    module = backend.build(layer, weights, batch=None, phase="train", device=None, dtype="float64", minimize="time")
    rows = seed % 4 + 1
    x = normal(rows, net.in_features)
    gy = normal(rows, net.out_features, seed=1)
    y, gradients, gx = oracle(net, weights, x, gy)
    assert close(backend.forward(module, x), y, FLOAT64), net
    found, found_x = backend.gradients(module, x, gy)
    assert all_close(found, gradients, FLOAT64), net
    assert close(found_x, gx, FLOAT64), net


@pytest.mark.thorough
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), cores=st.integers(1, 6))
@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_graphs(name, seed, cores):
    if name != "numpy":
        pytest.importorskip(name)
    check_graph(name, seed, cores)


@pytest.mark.thorough
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
