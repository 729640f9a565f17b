"""Networks of other libraries: the same numbers on both sides, names kept, and clear answers to what cannot be."""

import sys

import numpy as np
import pytest
from helpers import run_python

import tn4nn as tn
from tn4nn import BackendError, ShapeError, TopologyError
from tn4nn.interop import _tensors
from tn4nn.interop.chain import from_chain
from tn4nn.interop.einsum import from_einsum, to_einsum
from tn4nn.interop.quimb import from_quimb, to_quimb
from tn4nn.interop.tensornetwork import from_tensornetwork, to_tensornetwork
from tn4nn.testing import random_network

CATALOGUE = [tn.build(name, 16, 16).with_rank(2) for name in tn.catalogue()]
NETWORKS = [*CATALOGUE, *(random_network(seed) for seed in range(8))]


def ids(net):
    return f"{net.topology.name}-{net.fingerprint[:4]}"


def whole(net, weights):
    """W of all modes, padding included, as an array with one axis for each output and input leg (batch legs twice)."""
    t = net.topology
    full = tn.Network(tn.Topology(t.cores, t.inputs, t.outputs), net.ranks)
    return full.to_dense(weights).reshape([*t.outputs.values(), *t.inputs.values()])


def diagonal(net, w):
    """W with every kept leg standing once, among the outputs."""
    t = net.topology
    letter = {leg: i for i, leg in enumerate(net.sizes)}
    axes = [letter[leg] for leg in (*t.outputs, *t.inputs)]
    return np.einsum(w, axes, list(dict.fromkeys(axes)))


def placed(net):
    """Whether every kept leg stands on a core."""
    held = {leg for core in net.topology.cores for leg in core.legs}
    return set(net.topology.kept) <= held


ONCE = dict.fromkeys


# -- einsum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETWORKS, ids=ids)
def test_an_equation_is_the_same_w_and_comes_back(net):
    if not placed(net):
        pytest.skip("a kept leg is on no core")
    weights = net.init(0)
    equation, shapes = to_einsum(net)
    assert shapes == list(net.shapes.values())
    w = np.einsum(equation, *(a.astype(float) for a in weights.values()), optimize=True)
    np.testing.assert_allclose(w, diagonal(net, whole(net, weights)), rtol=1e-5, atol=1e-6)
    letters = equation.partition("->")[2]
    legs = list(ONCE([*net.topology.outputs, *net.topology.inputs]))
    named = dict(zip(legs, letters, strict=True))
    sides = [[named[leg] for leg in side] for side in (net.topology.inputs, net.topology.outputs)]
    back = from_einsum(equation, shapes, inputs=sides[0], outputs=sides[1])
    assert to_einsum(back) == (equation, shapes)
    again = whole(back, dict(zip(back.shapes, weights.values(), strict=True)))
    np.testing.assert_allclose(again, whole(net, weights), rtol=1e-6, atol=1e-7)


def test_more_legs_than_numpy_has_letters():
    net = tn.mpo((2,) * 30, (2,) * 30).with_rank(2)
    equation, shapes = to_einsum(net)
    assert len(set(equation) - set(",->")) == 89
    assert len(shapes) == 30


def test_without_an_arrow_and_with_spaces():
    net = from_einsum(" x a , a y ", [(4, 2), (2, 8)], inputs="x")
    assert net == from_einsum("xa,ay->xy", [(4, 2), (2, 8)], inputs=["x"], outputs=["y"])
    assert (net.in_features, net.out_features) == (4, 8)


def test_a_disconnected_equation_is_a_product():
    net = from_einsum("ax,by->abxy", [(2, 3), (4, 5)], inputs="xy", outputs="ab")
    weights = net.init(0)
    np.testing.assert_allclose(net.to_dense(weights), np.kron(*weights.values()), rtol=1e-6)


@pytest.mark.parametrize(
    ("equation", "shapes", "sides", "message"),
    [
        ("x...,...y", [(4, 2), (2, 8)], ("x", "y"), "an equation with an ellipsis does not say its indices"),
        ("xaa,y", [(4, 2, 2), (8,)], ("x", "y"), "index 'a' occurs twice on tensor 'core0' (a trace)"),
        ("xa,y->xy", [(4, 2), (8,)], ("x", "y"), "index 'a' is only on tensor 'core0' and is neither input nor"),
        ("xa,ay->xy", [(4, 2), (3, 8)], ("x", "y"), "index 'a' has size 2 before and 3 on operand 1 ('ay')"),
        ("xa,ay->xy", [(4, 2)], ("x", "y"), "the equation has 2 operands, received 1 shapes"),
        ("xa,ay->xy", [(4,), (2, 8)], ("x", "y"), "operand 0 ('xa') has 2 indices, received shape (4,)"),
        ("xa,ay->x", [(4, 2), (2, 8)], ("x", "y"), "index 'y' is input or output, so it must be right of the arrow"),
        ("xa,ay->xya", [(4, 2), (2, 8)], ("x", "y"), "index 'a' is right of the arrow: name it in inputs= or"),
        ("xa,ay->xxy", [(4, 2), (2, 8)], ("x", "y"), "index 'x' occurs twice right of the arrow"),
        ("xa,ay->x->y", [(4, 2), (2, 8)], ("x", "y"), "expected an equation like 'xa,ay->xy'"),
        ("xa,ay", [(4, 2), (2, 8)], ("z", "y"), "inputs: 'z' is not an index of the network"),
        ("xa,ay", [(4, 2), (2, 8)], ("x", "yy"), "outputs: index 'y' is named twice"),
        ("xa,ay", [(4, 0), (0, 8)], ("x", "y"), "index 'a': the size must be at least 1, received 0"),
        ("xa,ay,", [(4, 2), (2, 8), ()], ("x", "y"), "tensor 'core2' has no indices (a scalar)"),
    ],
)
def test_equations_that_cannot_be(equation, shapes, sides, message):
    with pytest.raises(TopologyError) as error:
        from_einsum(equation, shapes, inputs=sides[0], outputs=sides[1])
    assert message in str(error.value)


# -- quimb ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qtn():
    return pytest.importorskip("quimb.tensor")


def random_quimb(qtn):
    """Name -> (network, inputs, outputs)."""
    mpo = qtn.MPO_rand(4, 3, phys_dim=3, seed=1)
    peps = qtn.PEPS.rand(3, 2, bond_dim=2, seed=2)
    pepo = qtn.PEPO.rand(2, 2, bond_dim=2, seed=3)
    result = {
        "mpo": (mpo, mpo.lower_inds, mpo.upper_inds),
        "peps": (peps, peps.site_inds[:3], peps.site_inds[3:]),
        "pepo": (pepo, pepo.lower_inds, pepo.upper_inds),
    }
    for seed in range(3):
        regular = qtn.TN_rand_reg(6, 3, 2, phys_dim=3, seed=seed)
        tree = qtn.TN_rand_tree(7, 2, phys_dim=2, seed=seed)
        for name, q in (("regular", regular), ("tree", tree)):
            opened = q.outer_inds()
            result[f"{name}{seed}"] = (q, opened[::2], opened[1::2])
    return result


def quimb_dense(q, inputs, outputs):
    t = q.contract(output_inds=[*outputs, *inputs])
    rows = int(np.prod([q.ind_size(ix) for ix in outputs]))
    return np.asarray(t.transpose(*outputs, *inputs).data).reshape(rows, -1)


NAMES = ["mpo", "peps", "pepo", *(f"{n}{s}" for n in ("regular", "tree") for s in range(3))]


@pytest.mark.parametrize("name", NAMES)
def test_random_quimb_networks_are_the_same_numbers(qtn, name):
    q, inputs, outputs = random_quimb(qtn)[name]
    net, weights = from_quimb(q, inputs, outputs)
    expected = quimb_dense(q, inputs, outputs)
    np.testing.assert_allclose(net.to_dense(weights), expected, rtol=1e-10, atol=1e-12 * abs(expected).max())
    index = weights.indices
    sides = [[index[leg] for leg in side] for side in (net.topology.inputs, net.topology.outputs)]
    assert sides == [list(inputs), list(outputs)]


@pytest.mark.cases(8)
@pytest.mark.parametrize("name", NAMES)
def test_random_quimb_networks_run_as_layers(qtn, trained_backend, name):
    q, inputs, outputs = random_quimb(qtn)[name]
    net, weights = from_quimb(q, inputs, outputs)
    expected = quimb_dense(q, inputs, outputs)
    x = np.random.default_rng(0).standard_normal((5, net.in_features)).astype(np.float32)
    model = tn.Linear(net, bias=False)
    backend = tn.backend(trained_backend)
    y = backend.forward(model.build(trained_backend, weights=weights, batch=5, phase="forward"), x)
    scale = abs(expected).max() * np.sqrt(x.shape[1])
    np.testing.assert_allclose(y, x @ expected.T, rtol=1e-4, atol=1e-5 * scale)


def test_quimb_networks_in_pieces_are_a_product(qtn):
    regular, tree = qtn.TN_rand_reg(4, 3, 2, phys_dim=2, seed=0), qtn.TN_rand_tree(3, 2, phys_dim=3, seed=1)
    tree = tree.reindex({index: f"t{index}" for index in tree.outer_inds()})
    q = regular | tree
    a, b = regular.outer_inds(), tree.outer_inds()
    inputs, outputs = [*a[:2], b[0]], [*a[2:], *b[1:]]
    net, weights = from_quimb(q, inputs, outputs)
    w = np.kron(quimb_dense(regular, a[:2], a[2:]), quimb_dense(tree, b[:1], b[1:]))
    np.testing.assert_allclose(net.to_dense(weights), w, rtol=1e-10, atol=1e-12 * abs(w).max())
    x = np.random.default_rng(0).standard_normal((2, net.in_features)).astype(np.float32)
    y = tn.Linear(net, bias=False).build("numpy", weights=weights, dtype="float64")(x)
    np.testing.assert_allclose(y, x @ w.T, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_quimb_tags_and_indices_come_back(qtn, name):
    q, inputs, outputs = random_quimb(qtn)[name]
    back = to_quimb(*from_quimb(q, inputs, outputs))
    assert [t.inds for t in back.tensors] == [t.inds for t in q.tensors]
    assert [tuple(t.tags) for t in back.tensors] == [tuple(t.tags) for t in q.tensors]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(back.tensors, q.tensors, strict=True))


@pytest.mark.parametrize("net", NETWORKS, ids=ids)
def test_our_networks_contract_in_quimb_and_come_back(qtn, net):
    weights = {name: array.astype(np.float64) for name, array in net.init(0).items()}
    t = net.topology
    if not placed(net):
        with pytest.raises(TopologyError, match="is on no core: a quimb network cannot hold it"):
            to_quimb(net, weights)
        return
    q = to_quimb(net, weights)
    legs = list(ONCE([*t.outputs, *t.inputs]))
    found = q.contract(output_inds=legs)
    array = found.transpose(*legs).data if legs else found
    np.testing.assert_allclose(array, diagonal(net, whole(net, weights)), rtol=1e-8, atol=1e-10)
    back, again = from_quimb(q, t.inputs, t.outputs)
    assert [core.legs for core in back.topology.cores] == [core.legs for core in t.cores]
    assert dict(back.ranks) == dict(net.ranks)
    assert list(again) == [core.name for core in t.cores]
    assert again.tags == {core.name: (core.name,) for core in t.cores}


def test_a_core_is_named_after_its_own_tag(qtn):
    a = qtn.Tensor(np.ones((2, 3)), ("x", "_1f2e3dAAAAB"), tags=("ALL", "I0,1"))
    b = qtn.Tensor(np.ones((3, 2)), ("_1f2e3dAAAAB", "k0,1"), tags=("ALL",))
    net, weights = from_quimb(a & b, inputs=["x"], outputs=["k0,1"])
    assert list(weights) == ["I0_1", "core1"]
    assert weights.tags == {"I0_1": ("ALL", "I0,1"), "core1": ("ALL",)}
    assert [core.legs for core in net.topology.cores] == [("x", "bond0"), ("bond0", "k0_1")]
    tagged = to_quimb(net, dict(weights), tags={"core1": ["mine"]}, indices={"x": "mine too"})
    assert [tuple(t.tags) for t in tagged.tensors] == [("I0_1",), ("mine",)]
    assert tagged.tensors[0].inds == ("mine too", "bond0")


def test_names_drawn_at_random_are_the_same_in_every_process(qtn):
    nets = []
    for _ in range(2):
        q = qtn.TN_rand_reg(6, 3, 2, phys_dim=3, seed=0)
        bonds = [ix for ix in q.ind_map if ix.startswith("_")]
        nets.append((bonds, from_quimb(q, q.outer_inds()[:3], q.outer_inds()[3:])[0]))
    assert nets[0][0] != nets[1][0]
    assert nets[0][1].fingerprint == nets[1][1].fingerprint


def test_the_factor_that_quimb_keeps_aside_is_in_the_weights(qtn):
    q = qtn.MPO_rand(3, 2, phys_dim=2, seed=4)
    expected = q.to_dense()
    q.equalize_norms_(1.0)
    assert q.exponent != 0.0
    net, weights = from_quimb(q, q.lower_inds, q.upper_inds)
    np.testing.assert_allclose(net.to_dense(weights), expected, rtol=1e-10)


def test_a_single_tensor_is_a_network_of_one(qtn):
    tensor = qtn.Tensor(np.arange(6.0).reshape(2, 3), ("x", "y"), tags="T")
    net, weights = from_quimb(tensor, ["x"], ["y"])
    np.testing.assert_array_equal(net.to_dense(weights), tensor.data.T)


def test_weights_are_copies(qtn):
    q = qtn.MPO_rand(3, 2, phys_dim=2, seed=4)
    net, weights = from_quimb(q, q.lower_inds, q.upper_inds)
    before = net.to_dense(weights)
    for t in q.tensors:
        t.data[...] = 0.0
    np.testing.assert_array_equal(net.to_dense(weights), before)


def test_what_quimb_holds_and_a_layer_cannot(qtn):
    q = qtn.MPO_rand(3, 2, phys_dim=2, seed=0)
    with pytest.raises(TopologyError) as error:
        from_quimb(q, q.lower_inds[:2], q.upper_inds)
    assert "index 'b2' is only on tensor 'I2' and is neither input nor output" in str(error.value)
    with pytest.raises(TopologyError, match="inputs: 'lower2' is not an index of the network. Known: 'b0'"):
        from_quimb(q, ["lower2"], q.upper_inds)
    z = qtn.MPO_rand(3, 2, phys_dim=2, seed=0, dtype=complex)
    with pytest.raises(ShapeError, match="tensor 'I0': expected real numbers, received complex128"):
        from_quimb(z, z.lower_inds, z.upper_inds)
    trace = qtn.TensorNetwork([qtn.Tensor(np.ones((2, 2, 3, 4)), ("a", "a", "x", "y"), tags="T")])
    with pytest.raises(TopologyError, match="index 'a' occurs twice on tensor 'T'"):
        from_quimb(trace, ["x"], ["y"])
    empty = qtn.TensorNetwork([qtn.Tensor(np.ones((0, 3)), ("x", "y"), tags="T")])
    with pytest.raises(TopologyError, match="index 'x': the size must be at least 1, received 0"):
        from_quimb(empty, ["x"], ["y"])
    with pytest.raises(TopologyError, match="outputs must map at least one leg to its size"):
        from_quimb(q, [*q.lower_inds, *q.upper_inds], [])


# -- TensorNetwork ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def google():
    return pytest.importorskip("tensornetwork")


@pytest.mark.parametrize("net", NETWORKS, ids=ids)
def test_our_networks_contract_in_tensornetwork_and_come_back(google, net):
    weights = {name: array.astype(np.float64) for name, array in net.init(0).items()}
    nodes, inputs, outputs = to_tensornetwork(net, weights)
    back, again = from_tensornetwork(nodes, inputs, outputs)  # contracting consumes the nodes
    expected = whole(net, weights)
    np.testing.assert_allclose(whole(back, again), expected, rtol=1e-8, atol=1e-10)
    assert list(again) == list(weights)
    assert sorted(back.ranks.values()) == sorted(net.ranks.values())
    w = google.contractors.greedy(nodes, output_edge_order=[*outputs, *inputs]).tensor
    np.testing.assert_allclose(w, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", ["numpy", "pytorch", "jax"])
def test_nodes_of_every_backend(google, backend):
    library = pytest.importorskip({"numpy": "numpy", "pytorch": "torch", "jax": "jax.numpy"}[backend])
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((4, 2), (2, 3, 5), (5, 2))]
    make = library.from_numpy if backend == "pytorch" else library.asarray
    a, b, c = (google.Node(make(array), name=f"n{i}", backend=backend) for i, array in enumerate(arrays))
    google.connect(a[1], b[0], name="r")
    google.connect(b[2], c[0])
    net, weights = from_tensornetwork([a, b, c], inputs=[a[0], c[1]], outputs=[b[1]])
    assert list(weights) == ["n0", "n1", "n2"]
    assert net.ranks["r"] == 2
    w = np.einsum("xa,ayb,bz->yxz", *arrays).reshape(3, 8)
    np.testing.assert_allclose(net.to_dense(weights), w, rtol=1e-5)


def test_copy_nodes_that_meet_are_one_leg(google):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((size, 3)) for size in (2, 4, 5)]
    a, b, c = (google.Node(array, name=name) for array, name in zip(arrays, "abc", strict=True))
    left, right = google.CopyNode(3, 3, name="left"), google.CopyNode(3, 3, name="right")
    for end, hub in ((a[1], left[0]), (b[1], left[1]), (left[2], right[0]), (c[1], right[1])):
        google.connect(end, hub)
    net, weights = from_tensornetwork([a, left, b, right, c], inputs=[a[0], b[0]], outputs=[c[0], right[2]])
    assert list(weights) == ["a", "b", "c"]
    assert net.topology.bonds == ()  # the leg of both CopyNodes is open at right[2]
    w = np.einsum("xr,yr,zr->zrxy", *arrays).reshape(15, 8)
    np.testing.assert_allclose(net.to_dense(weights), w, rtol=1e-12)


def test_two_inputs_on_one_copy_node_are_refused(google):
    a, hub = google.Node(np.ones((3, 4)), "a"), google.CopyNode(3, 3)
    google.connect(a[0], hub[0])
    with pytest.raises(TopologyError, match="inputs: two of the edges are one leg"):
        from_tensornetwork([a, hub], inputs=[hub[1], hub[2]], outputs=[a[1]])


def test_what_tensornetwork_holds_and_a_layer_cannot(google):
    a, b = google.Node(np.ones((4, 2)), "a"), google.Node(np.ones((2, 3)), "b")
    google.connect(a[1], b[0], name="r")
    with pytest.raises(TopologyError, match="edge 'r' leads to node 'b', which is not among the given ones"):
        from_tensornetwork([a], inputs=[a[0]], outputs=[])
    with pytest.raises(TopologyError, match="dangling edge .* of node 'b' is neither input nor output"):
        from_tensornetwork([a, b], inputs=[a[0]], outputs=[])
    with pytest.raises(TopologyError, match="outputs: expected dangling edges of the nodes given"):
        from_tensornetwork([a, b], inputs=[a[0]], outputs=[b[1], a[1]])
    with pytest.raises(TopologyError, match="inputs: two of the edges are one leg"):
        from_tensornetwork([a, b], inputs=[a[0], a[0]], outputs=[b[1]])
    t = google.Node(np.ones((2, 2, 3, 4)), "t")
    google.connect(t[0], t[1], name="loop")
    with pytest.raises(TopologyError, match="index 'loop' occurs twice on tensor 't'"):
        from_tensornetwork([t], inputs=[t[2]], outputs=[t[3]])
    z = google.Node(np.ones((2, 3), complex), "z")
    with pytest.raises(ShapeError, match="tensor 'z': expected real numbers, received complex128"):
        from_tensornetwork([z], inputs=[z[0]], outputs=[z[1]])
    empty = google.Node(np.ones((0, 3)), "empty")
    with pytest.raises(TopologyError, match="the size must be at least 1, received 0"):
        from_tensornetwork([empty], inputs=[empty[0]], outputs=[empty[1]])


def test_tensornetwork_nodes_in_pieces_are_a_product(google):
    rng = np.random.default_rng(0)
    a, b = (google.Node(rng.standard_normal(shape), name) for shape, name in (((2, 3), "a"), ((4, 5), "b")))
    net, weights = from_tensornetwork([a, b], inputs=[a[1], b[1]], outputs=[a[0], b[0]])
    np.testing.assert_allclose(net.to_dense(weights), np.kron(a.tensor, b.tensor), rtol=1e-12)


# -- the door ---------------------------------------------------------------------------------------------------


def test_importing_the_modules_imports_no_library():
    code = (
        "import sys, tn4nn.interop.quimb, tn4nn.interop.tensornetwork, tn4nn.interop.einsum; "
        "print([m for m in ('quimb', 'tensornetwork', 'torch', 'jax') if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("name", ["quimb.tensor", "tensornetwork"])
def test_a_missing_library_gives_the_pip_line(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    net = tn.low_rank(4, 4).with_rank(1)
    call = to_quimb if name.startswith("quimb") else to_tensornetwork
    with pytest.raises(BackendError) as error:
        call(net, net.init(0))
    assert str(error.value) == f'{name.partition(".")[0]} is not installed: pip install "tn4nn[interop]"'


def test_core_names_are_unique():
    assert _tensors.core_names(["core1", None, "a b", "a_b", "bias"]) == ["core1", "core1_", "a_b", "core3", "core4"]


# -- chains -----------------------------------------------------------------------------------------------------


def chain(ranks, outputs=(3, 2, 4), inputs=(2, 5, 3)):
    rng = np.random.default_rng(0)
    ends = zip(ranks, outputs, inputs, [*ranks[1:], ranks[0]], strict=True)
    return [rng.standard_normal(shape) for shape in ends]


@pytest.mark.parametrize("ranks", [(1, 3, 2), (2, 3, 4)])
def test_a_chain_is_the_matrix_of_its_cores(ranks):
    cores = chain(ranks)
    net, weights = from_chain(cores)
    w = np.einsum("aoib,bpjc,cqka->opqijk", *cores).reshape(24, 30)
    np.testing.assert_allclose(net.to_dense(weights), w, rtol=1e-12, atol=1e-12)
    assert net.topology.name == ("mpo" if ranks[0] == 1 else "ring")
    turned, others = from_chain([core.transpose(2, 0, 3, 1) for core in cores], axes="ilro")
    assert turned == net
    assert all(np.array_equal(others[name], weights[name]) for name in weights)


def test_an_open_chain_is_the_mpo_of_the_catalogue():
    net, _ = from_chain(chain((1, 3, 2)))
    assert net == tn.mpo((2, 5, 3), (3, 2, 4)).with_ranks({"a0": 3, "a1": 2})


@pytest.mark.parametrize("rank", [1, 3])
def test_a_chain_of_one_core(rank):
    (core,) = chain((rank,), (4,), (5,))
    net, weights = from_chain([core])
    np.testing.assert_allclose(net.to_dense(weights), np.einsum("aoia->oi", core), rtol=1e-12)


@pytest.mark.parametrize(
    ("cores", "axes", "message"),
    [
        ([], "loir", "a chain needs at least one core, received none"),
        ([np.ones((1, 2, 1))], "loir", "core0: expected four axes (left bond, output, input, right bond), received"),
        ([np.ones((1, 2, 2, 3)), np.ones((2, 2, 2, 1))], "loir", "core0 has a right bond of size 3, core1 a left bond"),
        ([np.ones((1, 2, 2, 3))], "loir", "core0 has a right bond of size 3, core0 a left bond of size 1"),
        ([np.ones((1, 2, 2, 1), complex)], "loir", "expected real numbers, received complex128"),
        ([np.ones((1, 2, 2, 1))], "lior.", "axes must be the letters l, o, i, r in some order, received 'lior.'"),
    ],
)
def test_chains_that_cannot_be(cores, axes, message):
    with pytest.raises(ShapeError) as error:
        from_chain(cores, axes)
    assert message in str(error.value)


def test_every_leg_of_a_large_network_has_a_letter_of_its_own():
    net = tn.mpo((1,) * 13_000, (1,) * 13_000).with_rank(1)  # 38,999 legs: past the halves of surrogate pairs
    equation, shapes = to_einsum(net)
    equation.encode()
    assert len(set(equation) - set(",->")) == 38_999
    assert len(shapes) == 13_000
