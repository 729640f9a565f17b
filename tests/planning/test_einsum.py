"""tn.einsum and tn.contract_expression next to numpy.einsum and opt_einsum, in numpy, torch and jax."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._graph import candidates
from tn4nn._graph.einsum import interleaved, read
from tn4nn._graph.problem import is_path
from tn4nn._planning import einsum as einsum_module
from tn4nn._planning.einsum_plan import EinsumRequest, find_einsum

oe = pytest.importorskip("opt_einsum")

FRAMEWORKS = ("numpy", "torch", "jax")
EQUATIONS = (
    "ij,jk->ik", "ij,jk", "ba", "ii", "ii->i", "iij,jk->ki", "iijj->ij", "iii->i", "abc->cab", "ab->", "->", ",->",
    "a,b->ab", "a,a->a", "a,a", "ab,ab->a", "ab,ac,ad->bcd", "ab,ac,ad->abcd", "ab,ac,ad->", "...ij,...jk->...ik",
    "i...,...j", "...i->i", "...,...", "ab,bc,cd,de,ef->af", "ab,bc,cd,de,ea->", ",ij->ij", "ij,kl->", "ij,j,k->i",
    "Zbxy,xap,yapc->Zbc", "bxy,xyp,pq->b", "aab,bcc,cdd->ad", "abc,abd,abe->cde", "abc,abd,abe->bcde", "é日,日x->éx",
    "ab,ab,ab,ab->b", "abx,bcx,cdx,dax->", "abx,bcx,cdx,dax->x",
)  # fmt: skip
SIZES = dict(zip("abcdefijklxypqZé日", (2, 3, 4, 5, 2, 3, 4, 3, 2, 5, 3, 4, 2, 3, 4, 2, 3), strict=True))


@pytest.fixture(params=FRAMEWORKS)
def framework(request):
    """The name of each framework whose arrays are taken."""
    pytest.importorskip(request.param)
    return request.param


def converted(framework, array):
    """A numpy array as one of a framework."""
    if framework == "numpy":
        return array
    if framework == "torch":
        return pytest.importorskip("torch").from_numpy(np.array(array))
    return pytest.importorskip("jax.numpy").asarray(array)


def operands_of(equation, rng, dots=(6, 2)):
    """Random arrays for an equation; those of an ellipsis have one axis less on each further operand."""
    found = []
    for position, term in enumerate(equation.split("->")[0].split(",")):
        shape = [SIZES[leg] for leg in term.replace("...", "")]
        if "..." in term:
            shape[term.index(".") : term.index(".")] = dots[position:]
        found.append(np.asarray(rng.standard_normal(shape), np.float32))
    return found


IN_JAX = (
    "iij,jk->ki",
    "ab->",
    "ab,ac,ad->bcd",
    "...ij,...jk->...ik",
    "ab,bc,cd,de,ea->",
    ",ij->ij",
    "Zbxy,xap,yapc->Zbc",
)
BOTH = [
    pytest.param(framework, equation, marks=[pytest.mark.thorough] * (framework == "jax" and equation not in IN_JAX))
    for framework, equation in itertools.product(FRAMEWORKS, EQUATIONS)
]


@pytest.mark.parametrize(("framework", "equation"), BOTH)
def test_it_contracts_as_opt_einsum_does(equation, framework):
    pytest.importorskip(framework)
    arrays = operands_of(equation, np.random.default_rng(0))
    wanted = oe.contract(equation, *[a.astype(np.float64) for a in arrays])
    found = tn.einsum(equation, *[converted(framework, a) for a in arrays])
    assert str(found.dtype).removeprefix("torch.") == "float32"
    assert tuple(found.shape) == np.shape(wanted)
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-4, atol=1e-4)


def random_equation(seed):
    """A connected or unconnected equation of 1 to 7 operands: traces, hyperedges, batch legs, sums, a scalar maybe."""
    rng = np.random.default_rng(seed)
    letters = "abcdefghij"[: rng.integers(2, 10)]
    sizes = {leg: int(rng.integers(1, 4)) for leg in letters}
    terms = ["".join(rng.choice(list(letters), rng.integers(0, 4))) for _ in range(rng.integers(1, 8))]
    there = sorted({leg for term in terms for leg in term})
    output = "".join(rng.permutation([leg for leg in there if rng.random() < 0.4]))
    arrays = [rng.standard_normal([sizes[leg] for leg in term]).astype(np.float32) for term in terms]
    # An axis of size 1 on one of several operands is broadcast; not beside its twin.
    for i, term in enumerate(terms):
        for axis, leg in enumerate(term):
            if rng.random() < 0.1 and term.count(leg) == 1:
                arrays[i] = arrays[i].take([0], axis)
    return ",".join(terms) + (f"->{output}" if rng.random() < 0.8 else ""), arrays


@pytest.mark.parametrize("seed", [*range(40), *(pytest.param(s, marks=pytest.mark.thorough) for s in range(40, 400))])
def test_random_equations_have_the_numbers_of_numpy(seed):
    equation, arrays = random_equation(seed)
    wanted = np.einsum(equation, *[a.astype(np.float64) for a in arrays])
    for framework in ("numpy", "torch"):
        found = tn.einsum(equation, *[converted(framework, a) for a in arrays])
        assert tuple(found.shape) == np.shape(wanted), equation
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-4, atol=1e-4, err_msg=equation)


@pytest.mark.parametrize("seed", range(200, 203))
def test_random_equations_in_jax(seed):
    equation, arrays = random_equation(seed)
    found = tn.einsum(equation, *[converted("jax", a) for a in arrays])
    wanted = np.einsum(equation, *[a.astype(np.float64) for a in arrays])
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-4, atol=1e-4, err_msg=equation)


DTYPES = ("int8", "int32", "int64", "float16", "float32", "float64", "complex64", "complex128")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("equation", ["ij->j", "ij,ik,il->jkl"])
def test_dtypes_stay(equation, dtype, framework):
    if framework == "jax" and dtype in ("int64", "float64", "complex128"):
        pytest.skip("jax without x64 has none")
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 5, [3] * len(term)).astype(dtype) for term in equation.split("->")[0].split(",")]
    found = tn.einsum(equation, *[converted(framework, a) for a in arrays])
    wanted = np.einsum(equation, *arrays)
    assert str(found.dtype).removeprefix("torch.") == dtype == str(wanted.dtype)
    np.testing.assert_array_equal(np.asarray(found), wanted)


def test_bfloat16():
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    a = np.arange(6.0).reshape(2, 3)
    for one in (torch.from_numpy(a).bfloat16(), jnp.asarray(a, jnp.bfloat16)):
        found = tn.einsum("ij,kj->ik", one, one)
        assert "bfloat16" in str(found.dtype)
        np.testing.assert_array_equal(np.asarray(found.tolist(), np.float64), a @ a.T)


def test_dtypes_are_promoted_as_the_framework_does(framework):
    a, b = np.ones((2, 3), np.int32), np.ones((3, 2), np.float32)
    found = tn.einsum("ij,jk->ik", converted(framework, a), converted(framework, b))
    wanted = {"numpy": "float64", "torch": "torch.float32", "jax": "float32"}[framework]
    assert str(found.dtype) == wanted
    np.testing.assert_array_equal(np.asarray(found), np.full((2, 2), 3.0))


def test_sizes_of_nothing_and_of_one(framework):
    a, b = np.ones((2, 0), np.float32), np.ones((0, 3), np.float32)
    found = tn.einsum("ij,jk->ik", converted(framework, a), converted(framework, b))
    np.testing.assert_array_equal(np.asarray(found), np.zeros((2, 3)))
    found = tn.einsum("ij,jk,kl->il", *(converted(framework, x) for x in (a, b, b.T)))
    np.testing.assert_array_equal(np.asarray(found), np.zeros((2, 0)))
    one = converted(framework, np.full((2, 1), 2.0, np.float32))
    found = tn.einsum("ij,jk->ik", one, converted(framework, np.ones((4, 3), np.float32)))
    np.testing.assert_array_equal(np.asarray(found), np.full((2, 3), 8.0))


# -- equations ---------------------------------------------------------------------------------------------------


def test_lists_of_labels():
    a, b = np.ones((2, 3)), np.ones((3, 4))
    np.testing.assert_array_equal(tn.einsum(a, [0, 1], b, [1, 2], [2, 0]), np.full((4, 2), 3.0))
    np.testing.assert_array_equal(tn.einsum(a, [0, 1], b, [1, 2]), np.einsum(a, [0, 1], b, [1, 2]))
    np.testing.assert_array_equal(tn.einsum(a, ["in", 1], b, [1, "out"], ["out", "in"]), np.full((4, 2), 3.0))
    np.testing.assert_array_equal(tn.einsum(a, [..., 1], b, [1, 2], [..., 2]), a @ b)
    expression = tn.contract_expression((2, 3), [0, 1], (3, 4), [1, 2], [0, 2])
    np.testing.assert_array_equal(expression(a, b), a @ b)


def test_more_indices_than_letters():
    chain = [x for i in range(70) for x in (np.full((2, 2), 0.5), [i, i + 1])]
    np.testing.assert_allclose(tn.einsum(*chain, [0, 70]), np.full((2, 2), 0.5))
    text, _ = interleaved(chain)
    assert len({c for c in text if c not in ",->"}) == 71


def test_equations_say_what_they_mean():
    assert read(" i j , j k ", [(2, 3), (3, 4)]).output == ("i", "k")
    assert read("ba", [(2, 3)]).output == ("a", "b")
    assert read("...i,i", [(7, 8, 3), (3,)]).output_shape == (7, 8)
    assert read("ij,jk->ik", [(2, 1), (5, 4)]).sizes["j"] == 5
    assert read("ij,jk->ik", [(2, 3), (3, 4)]).layer is None  # two operands are one product
    layer = read("Zbxy,xap,yapc->Zbc", [(3, 4, 5, 6), (5, 7, 2), (6, 7, 2, 9)]).layer
    assert (layer.x, layer.cores, layer.batch) == (0, (1, 2), 12)
    assert layer.network.topology.in_features == 30
    assert read("xap,yapc,Zxy->cZ", [(5, 7, 2), (6, 7, 2, 9), (3, 5, 6)]).layer is None  # its rows do not lead


ERRORS = (
    (("ij,jk->ik", np.ones((2, 3))), tn.TopologyError, "has 2 operands, received 1"),
    (("ij->k", np.ones((2, 3))), tn.TopologyError, "index 'k' is right of the arrow of 'ij->k', but on no operand"),
    (("ij->ii", np.ones((2, 3))), tn.TopologyError, "index 'i' is 2 times right of the arrow"),
    (("ij,jk", np.ones((2, 3)), np.ones((4, 5))), tn.ShapeError,
     "index 'j' has size 3 on operand 0 ('ij', shape (2, 3)) and 4 on operand 1 ('jk', shape (4, 5))"),
    (("ii", np.ones((2, 3))), tn.ShapeError, "twice on operand 0 ('ii', shape (2, 3))"),
    (("ijk", np.ones((2, 3))), tn.ShapeError, "operand 0 ('ijk'): expected 3 axes, received shape (2, 3)"),
    (("...ijk", np.ones((2, 3))), tn.ShapeError, "expected 3 or more axes"),
    (("i->j->k", np.ones(2)), tn.TopologyError, "one arrow at most"),
    (("i..j", np.ones((2, 3))), tn.TopologyError, "one ellipsis (...) in each operand"),
    (("......", np.ones((2, 3))), tn.TopologyError, "one ellipsis (...) in each operand"),
    (("ij", [[1.0, 2.0]]), tn.ShapeError, "operand 0: expected an array of numpy, torch or jax, received list"),
    (("ij,jk", np.ones((2, 3)), 1.0), tn.ShapeError, "operand 1: expected an array of numpy, torch or jax"),
    (("ij",), tn.TopologyError, "has 1 operand, received 0"),
    ((np.ones(2),), tn.TopologyError, "received 1 arguments"),
    ((np.ones(2), "i"), tn.TopologyError, "received str in place of a list"),
    ((np.ones(2), [[0]]), tn.TopologyError, "labels of axes"),
)  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "text"), ERRORS, ids=[text for *_, text in ERRORS])
def test_errors(given, kind, text):
    with pytest.raises(kind) as error:
        tn.einsum(*given)
    assert text in str(error.value)


def test_frameworks_are_not_mixed():
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    mine = {"numpy": np.ones((2, 2)), "torch": torch.ones(2, 2), "jax": jnp.ones((2, 2))}
    for a, b in itertools.permutations(mine, 2):
        tn.einsum("ij,jk->ik", mine[a], mine[a])
        with pytest.raises(tn.ShapeError, match=f"operand 0 of {a}, operand 1 of {b}: convert them to one"):
            tn.einsum("ij,jk->ik", mine[a], mine[b])


def test_no_framework_is_imported_for_the_arrays_of_another():
    code = (
        "import sys, numpy as np, tn4nn as tn; tn.einsum('ij,jk,kl->il', *[np.ones((2, 2))] * 3); "
        "assert not {'torch', 'jax', 'quimb', 'opt_einsum'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# -- gradients and transformations -------------------------------------------------------------------------------


CURVED = ("Zxy,xap,yapc->Zc", "iij,jk->ki", "ab,ac,ad->bcd", "ij,ij->", "ij,jk->ik", "ijk->kj")


@pytest.mark.parametrize("equation", CURVED)
def test_gradients_in_torch(equation):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    arrays = [torch.from_numpy(a.astype("f8")).requires_grad_(True) for a in operands_of(equation, rng)]

    def derivatives(contract):
        y = contract(equation, *arrays)
        first = torch.autograd.grad((y**3).sum(), arrays, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), arrays)
        return [y, *first, *second]

    for mine, theirs in zip(derivatives(tn.einsum), derivatives(torch.einsum), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_torch_transformations():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    arrays = [torch.from_numpy(a) for a in operands_of(CURVED[0], rng)]
    many = [torch.stack([a, 2 * a, -a]) for a in arrays]
    found = torch.func.vmap(lambda *a: tn.einsum(CURVED[0], *a))(*many)
    torch.testing.assert_close(found, torch.stack([s * torch.einsum(CURVED[0], *arrays) for s in (1, 8, -1)]))
    mine, theirs = (torch.func.jacrev(lambda x, f=f: f(CURVED[0], x, *arrays[1:]))(arrays[0])
                    for f in (tn.einsum, torch.einsum))  # fmt: skip
    torch.testing.assert_close(mine, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        assert tn.einsum(CURVED[0], *arrays).dtype is torch.bfloat16


def test_torch_compile_without_an_eager_call_before():
    torch = pytest.importorskip("torch")
    arrays = [torch.from_numpy(a) for a in operands_of("Zxy,xap,yapc->Zc", np.random.default_rng(5))]
    expression = tn.contract_expression("Zc,cy->Zy", (4, 4), (4, 4))

    def both(x, *cores):
        z = tn.einsum("Zxy,xap,yapc->Zc", x, *cores)
        return expression(z, cores[1][:, 0, 0, :]), tn.einsum("Zxx->Z", x[:, :, :3])

    compiled = torch.compile(both, backend="eager", fullgraph=True)
    for _ in range(2):
        for mine, theirs in zip(compiled(*arrays), both(*arrays), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_jax_transformations():
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    arrays = [jnp.asarray(a) for a in operands_of(CURVED[0], np.random.default_rng(6))]

    def loss(contract, *given):
        return (contract(CURVED[0], *given) ** 2).sum()

    mine = jax.grad(lambda *a: loss(tn.einsum, *a), (0, 1, 2))(*arrays)
    theirs = jax.grad(lambda *a: loss(jnp.einsum, *a), (0, 1, 2))(*arrays)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
    many = [jnp.stack([a, 2 * a]) for a in arrays]
    found = jax.jit(jax.vmap(lambda *a: tn.einsum(CURVED[0], *a)))(*many)
    np.testing.assert_allclose(found[1], 8 * jnp.einsum(CURVED[0], *arrays), rtol=1e-4, atol=1e-3)


# -- plans -------------------------------------------------------------------------------------------------------


@pytest.fixture
def searches(monkeypatch):
    """Counts path searches."""
    calls = []
    search = candidates.einsum_paths

    def counted(*args, **options):
        calls.append(args)
        return search(*args, **options)

    monkeypatch.setattr("tn4nn._planning.einsum_plan.einsum_paths", counted)
    einsum_module._FOUND.clear()
    return calls


def test_an_equation_is_planned_once(searches, framework):
    arrays = [converted(framework, a) for a in operands_of("ab,bc,cd,de->ae", np.random.default_rng(7))]
    for _ in range(3):
        tn.einsum("ab,bc,cd,de->ae", *arrays)
    assert len(searches) == 1
    tn.einsum("ab,bc,cd,de->ea", *arrays)
    assert len(searches) == 2


def test_an_expression_is_planned_once_for_each_dtype(searches):
    expression = tn.contract_expression("ab,bc,cd->ad", (2, 3), (3, 4), (4, 5))
    for dtype in ("f4", "f4", "f8", "f4", "f8"):
        expression(*(np.ones(shape, dtype) for shape in expression.shapes))
    assert len(searches) == 2


def test_what_a_search_finds_for_a_large_network_is_stored(monkeypatch):
    rng = np.random.default_rng(8)
    terms = [tuple(sorted({i, (i + 1) % 20, int(rng.integers(20))})) for i in range(20)]
    given = [x for legs in terms for x in ((2,) * len(legs), list(legs))]
    first = tn.contract_expression(*given, []).plan()
    monkeypatch.setattr(candidates, "search_paths", None)
    assert tn.contract_expression(*given, []).plan().path == first.path


def test_very_many_tensors_are_searched_from_many_starts():
    pytest.importorskip("networkx")
    import networkx

    edges = [tuple(sorted(e)) for e in networkx.random_regular_graph(3, 104, seed=0).edges]
    legs = [[i for i, e in enumerate(edges) if node in e] for node in range(104)]
    expression = tn.contract_expression(*(x for each in legs for x in ((2,) * 3, each)), [], time_limit=0.5)
    assert is_path(expression.plan().path, 104)


def test_plans_show_what_runs():
    expression = tn.contract_expression("Zxy,xap,yapc->Zc", (64, 4, 4), (4, 3, 5), (4, 3, 5, 6))
    p = expression.plan()
    assert p.executor == "program"
    assert p.cost.macs == oe.contract_path(
        p.request.equation.text, *p.request.equation.shapes, shapes=True, optimize="optimal"
    )[1].opt_cost / 2  # fmt: skip
    text = str(expression)
    assert "3 operands -> 64x6" in text
    assert "matmul" in text
    assert "Zxy,xap,yapc->Zc" in repr(expression)
    with pytest.raises(tn.TN4NNError, match="phase must be one of"):
        expression.plan(phase="backward")
    with pytest.raises(tn.TN4NNError, match="minimize must be one of"):
        tn.einsum("ii", np.ones((2, 2)), minimize="speed")


def test_paths_run_in_opt_einsum_and_cotengra():
    import cotengra

    expression = tn.contract_expression("abx,bcx,cdx,dax->x", (2, 3, 4), (3, 5, 4), (5, 6, 4), (6, 2, 4))
    p = expression.plan()
    e = p.request.equation
    arrays = operands_of("abx,bcx,cdx,dax->x", np.random.default_rng(9))
    wanted = np.einsum(e.text, *arrays)
    np.testing.assert_allclose(oe.contract(e.text, *arrays, optimize=list(p.linear_path)), wanted, rtol=1e-4, atol=1e-5)
    for path in ({"ssa_path": p.ssa_path}, {"path": p.linear_path}):
        tree = cotengra.ContractionTree.from_path([*e.operands], e.output, dict(e.sizes), **path)
        assert int(tree.total_flops()) == p.cost.macs


def test_rows_of_a_network_run_in_the_native_runtime():
    torch = pytest.importorskip("torch")
    net = tn.mpo((4, 4, 4, 4), (4, 4, 4, 4)).with_rank(8)
    t = net.topology
    legs = dict(zip((leg for core in t.cores for leg in core.legs), itertools.repeat(None)))
    name = {leg: chr(ord("a") + i) for i, leg in enumerate(legs)}
    cores = ["".join(name[leg] for leg in core.legs) for core in t.cores]
    equation = (
        ",".join(["Z" + "".join(name[leg] for leg in t.inputs), *cores])
        + "->Z"
        + "".join(name[leg] for leg in t.outputs)
    )
    weights = [torch.from_numpy(w).requires_grad_(True) for w in net.init(0).values()]
    x = torch.randn(512, 4, 4, 4, 4, requires_grad=True)
    expression = tn.contract_expression(equation, x.shape, *(w.shape for w in weights))
    if tn.plan(net, 512, backend="torch").executor != "native":
        pytest.skip("there is no compiler")
    assert expression.plan("torch").executor == "native"
    assert "native runtime" in str(expression.plan("torch"))
    assert is_path(expression.plan("torch").path, 5)
    y = expression(x, *weights)
    assert "Native" in y.grad_fn.next_functions[0][0].name() or "Native" in str(y.grad_fn)
    torch.testing.assert_close(y, torch.einsum(equation, x, *weights))
    mine = torch.autograd.grad(y.sum(), [x, *weights])
    theirs = torch.autograd.grad(torch.einsum(equation, x, *weights).sum(), [x, *weights])
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# -- constants ---------------------------------------------------------------------------------------------------


def test_constants_are_contracted_once(framework, monkeypatch):
    rng = np.random.default_rng(10)
    w, v, x = (rng.standard_normal(s).astype("f4") for s in ((6, 6), (6, 6), (50, 6)))
    expression = tn.contract_expression(
        "ab,bc,cd->ad", x.shape, converted(framework, w), converted(framework, v), constants=[1, 2]
    )
    np.testing.assert_allclose(expression(converted(framework, x)), x @ w @ v, rtol=1e-4, atol=1e-4)
    p = expression.plan()
    assert p.path[0] == (1, 2)  # W is built, which costs a call nothing
    assert p.cost.macs == 50 * 6 * 6
    assert "constants: operand1, operand2" in str(p)
    assert [step.kind for step in p.folded.rest.steps].count("matmul") == 1
    np.testing.assert_allclose(expression(converted(framework, 2 * x)), 2 * x @ w @ v, rtol=1e-4, atol=1e-4)


def test_constants_first_is_an_order():
    w, v = np.ones((64, 4)), np.ones((4, 64))
    assert tn.contract_expression("ab,bc,cd->ad", (5, 64), (64, 4), (4, 64)).plan().cost.macs == 2 * 5 * 64 * 4
    few = tn.contract_expression("ab,bc,cd->ad", (5, 64), w, v, constants=[1, 2], minimize="flops").plan()
    assert few.path == ((0, 1), (2, 3))  # W has more numbers than both
    # Fewest in all is x through both, fewest in a call is W first.
    shapes = [(60, 6), np.ones((6, 30)), np.ones((30, 6))]
    p = tn.contract_expression("ab,bc,cd->ad", *shapes, constants=[1, 2], minimize="flops").plan()
    assert (p.path, p.cost.macs) == (((1, 2), (0, 3)), 60 * 6 * 6)
    wide = [(2, 6), np.ones((6, 5)), np.ones((5, 6)), (6, 2)]
    p = tn.contract_expression("ab,bc,cd,de->ae", *wide, constants=[1, 2], minimize="flops").plan()
    assert p.order == "constants first"


def test_constants_with_traces_and_hyperedges():
    rng = np.random.default_rng(11)
    a, b, c, d = rng.standard_normal((3, 3, 4)), rng.standard_normal((4, 5)), rng.standard_normal((5, 4)), np.ones(4)
    expression = tn.contract_expression("iij,jk,kl,j->jl", a, (4, 5), c, d, constants=(0, 2, 3))
    np.testing.assert_allclose(expression(b), np.einsum("iij,jk,kl,j->jl", a, b, c, d))


def test_errors_of_expressions():
    a = np.ones((2, 3))
    expression = tn.contract_expression("ij,jk->ik", (2, 3), (3, 4))
    with pytest.raises(tn.ShapeError, match=r"operand 1 of 'ij,jk->ik': expected shape \(3, 4\), received \(3, 5\)"):
        expression(a, np.ones((3, 5)))
    with pytest.raises(tn.ShapeError, match="expected 2 arrays, received 1"):
        expression(a)
    with pytest.raises(tn.ShapeError, match="operand 1: expected a shape, a tuple of whole numbers, received ndarray"):
        tn.contract_expression("ij,jk->ik", (2, 3), np.ones((3, 4)))
    with pytest.raises(tn.TopologyError, match="from 0 to 1, received 2"):
        tn.contract_expression("ij,jk->ik", (2, 3), (3, 4), constants=[2])
    with pytest.raises(tn.ShapeError, match="operand 0 is a constant: expected its array, received tuple"):
        tn.contract_expression("ij,jk->ik", (2, 3), (3, 4), constants=[0])
    with pytest.raises(tn.TopologyError, match="all operands are constants"):
        tn.contract_expression("ij->", a, constants=[0])


def test_a_constant_wants_no_gradient():
    torch = pytest.importorskip("torch")
    with pytest.raises(tn.ShapeError, match="no gradient reaches constants"):
        tn.contract_expression("ij,jk->ik", (2, 3), torch.ones(3, 4, requires_grad=True), constants=[1])


def test_objectives():
    shapes = [(2, 30), (30, 4), (4, 20), (20, 3)]
    e = read("ab,bc,cd,de->ae", shapes)
    costs = {m: find_einsum(EinsumRequest(e, minimize=m)).cost for m in ("time", "flops", "memory")}
    assert costs["flops"].macs == min(cost.macs for cost in costs.values())
    assert costs["memory"].peak == min(cost.peak for cost in costs.values())
    assert find_einsum(EinsumRequest(e, phase="train")).cost.macs == 3 * find_einsum(EinsumRequest(e)).cost.macs
