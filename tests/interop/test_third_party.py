"""Third-party topologies, given as nothing but text, on every backend against the oracle."""

import itertools

import pytest

import tn4nn as tn
from tn4nn import testing

networkx = pytest.importorskip("networkx")

BACKENDS = ["torch", "jax"]


def run(name, t, ranks):
    pytest.importorskip(name)
    case = testing.Case(t.text, tn.Linear(t.with_ranks(ranks)), (t.in_features,), (1, 5))
    testing.check(tn.backend(name), case)


# The two-factor einsum space (arXiv:2410.02117): each of seven kinds of index is there or not. The letter says which
# of the input X, the factors A and B, and the output Y hold it.
KINDS = {"XA": "A", "XB": "B", "XAB": "AB", "YA": "A", "YB": "B", "YAB": "AB", "AB": "AB"}


def einsum_space():
    for chosen in itertools.product([False, True], repeat=7):
        kinds = [kind for kind, there in zip(KINDS, chosen, strict=True) if there]
        inputs = {kind: size for kind, size in zip(("XA", "XB", "XAB"), (2, 3, 2), strict=True) if kind in kinds}
        outputs = {kind: size for kind, size in zip(("YA", "YB", "YAB"), (3, 2, 2), strict=True) if kind in kinds}
        factors = [" ".join(kind for kind in kinds if factor in KINDS[kind]) for factor in "AB"]
        if inputs and outputs and all(factors):
            yield pytest.param(", ".join(factors), inputs, outputs, id="-".join(kinds))


SPACE = list(einsum_space())


def test_the_space_is_as_large_as_it_should_be():
    # 2^7 choices less those without input, without output, or with an empty factor.
    assert len(SPACE) == 96


@pytest.mark.cases(11)
@pytest.mark.parametrize(("text", "inputs", "outputs"), SPACE)
def test_einsum_space_in_torch(text, inputs, outputs):
    t = tn.topology(text, inputs, outputs)
    run("torch", t, dict.fromkeys(t.bonds, 3))


@pytest.mark.cases(1)
@pytest.mark.parametrize(("text", "inputs", "outputs"), SPACE[::12])
def test_einsum_space_in_jax(text, inputs, outputs):
    t = tn.topology(text, inputs, outputs)
    run("jax", t, dict.fromkeys(t.bonds, 3))


def as_text(graph):
    """A graph as text: each node a core with its edges, and an input and an output leg on every other one."""
    cores, inputs, outputs = [], {}, {}
    for node in sorted(graph.nodes):
        legs = [f"e{min(edge)}_{max(edge)}" for edge in sorted(graph.edges(node), key=sorted)]
        if node % 2 == 0:
            legs += [f"x{node}", f"y{node}"]
            inputs[f"x{node}"], outputs[f"y{node}"] = 2, 2
        cores.append(" ".join(legs))
    return ", ".join(cores), inputs, outputs


@pytest.mark.cases(1)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BACKENDS)
def test_random_3_regular_graphs_of_12_cores(name, seed):
    t = tn.topology(*as_text(networkx.random_regular_graph(3, 12, seed=seed)))
    assert len(t.bonds) == 18
    run(name, t, dict.fromkeys(t.bonds, 2))


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_3x3_grid(name):
    graph = networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(3, 3))
    t = tn.topology(*as_text(graph))
    assert len(t.bonds) == 12
    run(name, t, dict.fromkeys(t.bonds, 3))


@pytest.mark.parametrize("name", BACKENDS)
def test_disconnected_pieces_and_cores_of_one_leg(name):
    run(
        name,
        tn.topology("x0 y0, x1 a, a, y1 b, b c, c", {"x0": 3, "x1": 4}, {"y0": 2, "y1": 3}),
        {"a": 2, "b": 3, "c": 2},
    )
