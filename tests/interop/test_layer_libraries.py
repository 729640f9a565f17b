"""Layers and networks of torchTT, tltorch and TensorKrowch: the same numbers on both sides.

None of them is in an extra: their tests skip where they are missing.
"""

import numpy as np
import pytest

import tn4nn as tn
from tn4nn import ShapeError, TopologyError
from tn4nn.interop.chain import from_chain
from tn4nn.interop.tensorkrowch import from_tensorkrowch
from tn4nn.interop.tltorch import from_tltorch

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
torch = pytest.importorskip("torch")

INPUTS, OUTPUTS = (2, 5, 3), (3, 2, 4)


@pytest.fixture
def tltorch():
    return pytest.importorskip("tltorch")


@pytest.fixture
def tk():
    return pytest.importorskip("tensorkrowch")


# -- torchTT, tltorch -------------------------------------------------------------------------------------------


def test_torchtt_matrices():
    torchtt = pytest.importorskip("torchtt")
    matrix = torchtt.random([(2, 3), (3, 4), (5, 2)], [1, 2, 3, 1])  # (output, input) for each site
    net, weights = from_chain(matrix.cores)
    np.testing.assert_allclose(net.to_dense(weights), matrix.full().reshape(30, 24).numpy(), rtol=1e-10, atol=1e-12)


def test_torchtt_layers():
    torchtt = pytest.importorskip("torchtt")
    layer = torchtt.nn.LinearLayerTT(list(INPUTS), list(OUTPUTS), [1, 3, 2, 1], dtype=torch.float32)
    x = torch.randn(7, 30)
    net, weights = from_chain(layer.cores)
    y = layer(x.reshape(7, *INPUTS)).reshape(7, 24) - layer.bias.reshape(-1)
    torch.testing.assert_close(x @ torch.from_numpy(net.to_dense(weights)).T, y.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("factorization", "rank"), [("blocktt", (1, 3, 2, 1)), ("cp", 4), ("tucker", (2, 2, 3, 2, 3, 2)), ("cp", 1)]
)
def test_tltorch_layers(tltorch, factorization, rank):
    layer = tltorch.FactorizedLinear(INPUTS, OUTPUTS, bias=True, rank=rank, factorization=factorization)
    layer.weight.normal_(0.0, 0.3)
    if factorization == "cp":
        torch.nn.init.normal_(layer.weight.weights)  # ones so far
    net, weights = from_tltorch(layer.weight)
    assert (net.in_features, net.out_features) == (30, 24)
    assert net.num_params == sum(p.numel() for p in layer.weight.parameters())
    w, x = torch.from_numpy(net.to_dense(weights)), torch.randn(7, 30)
    torch.testing.assert_close(w, layer.weight.to_matrix().detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(x @ w.T + layer.bias.detach(), layer(x).detach(), rtol=1e-4, atol=1e-5)


def test_what_of_tltorch_is_no_matrix(tltorch):
    tensor = tltorch.FactorizedTensor.new((3, 4, 5), rank=2, factorization="cp")
    with pytest.raises(ShapeError, match=r"as layer.weight of a FactorizedLinear, received CPTensor with modes \(\)"):
        from_tltorch(tensor)


def test_no_tltorch_at_all():
    with pytest.raises(ShapeError, match="expected a tensorized matrix of tltorch .* received ndarray with modes"):
        from_tltorch(np.ones((3, 4)))


# -- TensorKrowch -----------------------------------------------------------------------------------------------


def dense_of(tk, nodes, inputs, outputs):
    """W by TensorKrowch's own contractions, pair by pair."""
    outputs, inputs = [[(edge.node1, edge.axis1) for edge in side] for side in (outputs, inputs)]
    order = [(node.name, axis.name) for node, axis in (*outputs, *inputs)]
    letters = {}
    for node in nodes:
        for edge in node.edges:
            letters.setdefault(edge, chr(ord("a") + len(letters)))
    equation = ",".join("".join(letters[edge] for edge in node.edges) for node in nodes)
    named = {
        (node.name, axis): letters[edge]
        for node in nodes
        for axis, edge in zip(node.axes_names, node.edges, strict=True)
    }
    result = tk.einsum(f"{equation}->{''.join(named[key] for key in order)}", *nodes)
    rows = int(np.prod([node.shape[node.get_axis_num(axis)] for node, axis in outputs]))
    return result.tensor.detach().numpy().reshape(rows, -1)


def mpo(tk, boundary):
    model = tk.models.MPO(n_features=3, in_dim=[2, 3, 2], out_dim=[3, 2, 2], bond_dim=3, boundary=boundary)
    return model, [n["input"] for n in model.mats_env], [n["output"] for n in model.mats_env]


def graph(tk, seed):
    """A random graph of five nodes with three open edges on either side."""
    rng, network = np.random.default_rng(seed), tk.TensorNetwork()
    pairs = [(i, int(rng.integers(0, i))) for i in range(1, 5)] + [(0, 4), (1, 3)]
    axes = [[] for _ in range(5)]
    for number, (a, b) in enumerate(pairs):
        axes[a].append((f"bond{number}", 2))
        axes[b].append((f"bond{number}", 2))
    for side in ("in", "out"):
        for number in range(3):
            axes[int(rng.integers(5))].append((f"{side}{number}", int(rng.integers(1, 4))))
    nodes = [
        tk.ParamNode(
            axes_names=[axis for axis, _ in found], shape=[size for _, size in found], name=f"n{i}", network=network,
            init_method="randn",
        )
        for i, found in enumerate(axes)
    ]  # fmt: skip
    for number, (a, b) in enumerate(pairs):
        _ = nodes[a][f"bond{number}"] ^ nodes[b][f"bond{number}"]
    at = {axis: node[axis] for node, found in zip(nodes, axes, strict=True) for axis, _ in found}
    return network, [at[f"in{i}"] for i in range(3)], [at[f"out{i}"] for i in range(3)]


def peps(tk):
    model = tk.models.PEPS(3, 3, 2, [3, 2])
    opened = [node["input"] for node in model.leaf_nodes.values()]
    return model, opened[:4], opened[4:]


def tree(tk):
    model = tk.models.Tree([2, 1], [(2, 3, 3), (3, 3, 4)])
    nodes = model.leaf_nodes
    inputs = [node[axis] for node in list(nodes.values())[:2] for axis in ("input_0", "input_1")]
    return model, inputs, [nodes["tree_node_(1,0)"]["output"]]


def uniform(tk):
    model = tk.models.UMPO(n_features=3, in_dim=2, out_dim=3, bond_dim=3)
    return model, [n["input"] for n in model.mats_env], [n["output"] for n in model.mats_env]


NETWORKS = {
    "mpo": lambda tk: mpo(tk, "obc"),
    "mpo around": lambda tk: mpo(tk, "pbc"),
    "peps": peps,
    "tree": tree,
    "uniform": uniform,
    **{f"graph{seed}": lambda tk, seed=seed: graph(tk, seed) for seed in range(4)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_tensorkrowch_networks_are_the_same_numbers(tk, name):
    model, inputs, outputs = NETWORKS[name](tk)
    net, weights = from_tensorkrowch(model, inputs, outputs)
    expected = dense_of(tk, list(model.leaf_nodes.values()), inputs, outputs)
    w = net.to_dense(weights)
    assert w.shape == expected.shape
    np.testing.assert_allclose(w, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
    model.reset()
    again, _ = from_tensorkrowch(list(model.leaf_nodes.values()), inputs, outputs)
    assert again == net


def test_a_trained_mpo_is_the_same_function(tk):
    """With its data nodes in place; the MPO itself takes a product of vectors."""
    model, inputs, outputs = mpo(tk, "obc")
    vectors = [torch.randn(1, size) for size in (2, 3, 2)]
    y = model(vectors).detach().reshape(1, -1)
    inputs, outputs = [n["input"] for n in model.mats_env], [n["output"] for n in model.mats_env]
    net, weights = from_tensorkrowch(model, inputs, outputs)
    assert list(weights)[:3] == ["left_node", "right_node", "mats_env_node__0"]
    x = torch.einsum("bi,bj,bk->bijk", *vectors).reshape(1, -1)
    layer = tn.Linear(net, bias=False).build("torch", weights=weights)
    torch.testing.assert_close(layer(x), y, rtol=1e-4, atol=1e-5)


def test_names_of_legs(tk):
    model, inputs, outputs = graph(tk, 0)
    net, _ = from_tensorkrowch(model, inputs, outputs)
    assert list(net.topology.inputs) == ["in0", "in1", "in2"]
    assert set(net.ranks) == {f"e{i}" for i in range(6)}


def test_what_tensorkrowch_holds_and_a_layer_cannot(tk):
    model, inputs, outputs = mpo(tk, "obc")
    with pytest.raises(TopologyError, match=r"open edge 'input' of node 'mats_env_node_\(0\)' is neither input nor"):
        from_tensorkrowch(model, inputs[1:], outputs)
    with pytest.raises(TopologyError, match="leads to a node that is not among the given ones"):
        from_tensorkrowch(model.mats_env, inputs, outputs)
    with pytest.raises(TopologyError, match="inputs: expected open edges of the nodes given, received"):
        from_tensorkrowch(model, [*inputs, model.mats_env[0]["right"]], outputs)
    with pytest.raises(TopologyError, match="inputs: index 'e.' is named twice"):
        from_tensorkrowch(model, [inputs[0], *inputs], outputs)
    node = tk.Node(shape=(2, 3), axes_names=("a", "b"), init_method="ones", dtype=torch.complex64)
    with pytest.raises(ShapeError, match="expected real numbers, received complex64"):
        from_tensorkrowch([node], [node["a"]], [node["b"]])
