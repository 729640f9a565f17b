"""Spectra and entropies: states that are known, brute force on every graph, bounds, and what is refused."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from helpers import normal

import tn4nn as tn
from tn4nn import testing
from tn4nn._graph.min_cut import min_cut


def random(*shape: int) -> np.ndarray:
    return normal(*shape, seed=3)


def as_matrix(state: np.ndarray, sites: int) -> np.ndarray:
    """A state of 2 * sites qubits, in the order x0 y0 x1 y1 ..., as W of shape (out, in)."""
    axes = [*range(1, 2 * sites, 2), *range(0, 2 * sites, 2)]
    return state.reshape([2] * (2 * sites)).transpose(axes).reshape(2**sites, 2**sites)


def brute(w: np.ndarray, topology: tn.Topology, inside: tuple[str, ...]) -> np.ndarray:
    """Singular values of W between legs, by its definition."""
    legs = (*topology.outputs, *topology.inputs)
    sizes = [*topology.outputs.values(), *topology.inputs.values()]
    rest = [i for i, leg in enumerate(legs) if leg not in inside]
    axes = [i for i, leg in enumerate(legs) if leg in inside]
    rows = math.prod(sizes[i] for i in axes)
    return np.linalg.svd(w.reshape(sizes).transpose(axes + rest).reshape(rows, -1), compute_uv=False)


def same_spectrum(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    n = max(len(found), len(expected))
    a, b = (np.pad(s, (0, n - len(s))) for s in (found, expected))
    np.testing.assert_allclose(a, b, atol=tolerance * expected[0])


# -- known states -----------------------------------------------------------------------------------------------


def test_a_product_has_no_entropy() -> None:
    w = np.kron(np.kron(random(2, 4), random(3, 2)), random(2, 2))
    cuts = tn.entanglement(w, inputs=(4, 2, 2), outputs=(2, 3, 2))
    assert len(cuts) == 2
    np.testing.assert_allclose(cuts.entropies, 0, atol=1e-12)
    assert cuts[0].effective_rank == pytest.approx(1)


def test_ghz_has_one_bit_at_every_cut() -> None:
    ghz = np.zeros(2**8)
    ghz[[0, -1]] = 3.0
    cuts = tn.entanglement(as_matrix(ghz, 4), inputs=(2,) * 4, outputs=(2,) * 4)
    np.testing.assert_allclose(cuts.entropies, math.log(2))
    assert [cut.effective_rank for cut in cuts] == pytest.approx([2.0] * 3)


def test_bell_pairs_between_sites() -> None:
    """Sites 0 and 1 share two Bell pairs (x0 = x1, y0 = y1): ln 4 between them, ln 2 where one is cut."""
    state = np.einsum("xz,yw->xyzw", np.eye(2), np.eye(2)).reshape(-1)
    w = as_matrix(state, 2)
    [whole] = tn.entanglement(w, inputs=(2, 2), outputs=(2, 2))
    assert whole.entropy == pytest.approx(math.log(4))
    [half] = tn.entanglement(w, inputs=(2, 2), outputs=(2, 2), cuts=["x0"])
    assert half.entropy == pytest.approx(math.log(2))
    [none] = tn.entanglement(w, inputs=(2, 2), outputs=(2, 2), cuts=["x0 x1"])
    assert none.entropy == pytest.approx(0, abs=1e-12)


def test_page_value_of_a_random_matrix() -> None:
    """Page 1993: S = sum_{k=n+1}^{mn} 1/k - (m-1)/2n for a random complex state of dimensions m <= n."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 64)) + 1j * rng.standard_normal((64, 64))
    cuts = tn.entanglement(w, inputs=(4, 4, 4), outputs=(4, 4, 4))
    for cut, (m, n) in zip(cuts, [(16, 256), (16, 256)], strict=True):
        page = sum(1 / k for k in range(n + 1, m * n + 1)) - (m - 1) / (2 * n)
        assert cut.entropy == pytest.approx(page, abs=0.01)
        assert cut.entropy < cut.bound == pytest.approx(math.log(16))


def test_the_spectrum_is_that_of_w() -> None:
    w = random(12, 30)
    cuts = tn.entanglement(w, inputs=(5, 2, 3), outputs=(2, 3, 2), cuts=[1, (0, 2), "y0 y1 y2", ["x1", "y0"]])
    topology = tn.mpo((5, 2, 3), (2, 3, 2))
    for cut, inside in zip(cuts, ["x0 y0", "x0 y0 x2 y2", "y0 y1 y2", "x1 y0"], strict=True):
        s = brute(w, topology, tuple(inside.split()))
        np.testing.assert_allclose(cut.spectrum, s)
        assert set(cut.inside) == set(inside.split())
        assert cut.bound == pytest.approx(math.log(len(s)))
        p = s**2 / np.sum(s**2)
        assert cut.entropy == pytest.approx(-np.sum(p * np.log(p)))
        np.testing.assert_allclose(cut.probabilities, p)


def test_an_ordering_comes_before_the_modes() -> None:
    order = tn.Ordering.hilbert((4, 4))
    w = random(9, 16)
    [one] = tn.entanglement(w, inputs=(4, 4), outputs=(3, 3), ordering="hilbert")
    [two] = tn.entanglement(w[:, order.permutation], inputs=(4, 4), outputs=(3, 3))
    np.testing.assert_allclose(one.spectrum, two.spectrum)


# -- networks ---------------------------------------------------------------------------------------------------


def built(name: str) -> tn.Network:
    sites = 1 if name == "dense" else 2 if name == "tucker" else 4 if name == "mera" else 3
    t = tn.build(name, 24, 18, sites=sites, pad=False)
    return t.with_ranks({bond: 2 + i % 2 for i, bond in enumerate(t.bonds)}, clip=True)


@pytest.mark.parametrize("name", tn.catalogue())
def test_networks_without_forming_w(name: str) -> None:
    net = built(name)
    weights = {n: a.astype(float) for n, a in net.init(1).items()}
    w = net.to_dense(weights)
    every = (*net.topology.outputs, *net.topology.inputs)
    asked = [[every[0]], list(every[1:3]) or [every[0]], [leg for leg in every if leg in net.topology.outputs]]
    cuts = [*asked] if name == "dense" else [*asked, *range(1, len(net.topology.inputs))]
    for cut in tn.entanglement(net, weights, cuts=[c for c in cuts if c != list(every)]):
        same_spectrum(cut.spectrum, brute(w, net.topology, cut.inside), 1e-7)
        assert cut.entropy <= cut.bound + 1e-9


@pytest.mark.cases(39)
@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    """Hyperedges, open legs on several cores, several parts; batch legs are formed."""
    net = testing.random_network(seed)
    t = net.topology
    weights = {n: a.astype(float) + 0.1 for n, a in net.init(1).items()}
    w = net.to_dense(weights)
    legs = [f"{leg}:in" if leg in t.kept else leg for leg in t.inputs]
    sides = [[leg] for leg in (*t.outputs, *legs)]
    if not w.any() or len(sides) < 2:
        return
    renamed = [*t.outputs, *legs]
    sizes = [*t.outputs.values(), *t.inputs.values()]
    for cut in tn.entanglement(net, weights, cuts=sides):
        axes = [renamed.index(leg) for leg in cut.inside]
        rest = [i for i in range(len(sizes)) if i not in axes]
        rows = math.prod(sizes[i] for i in axes)
        expected = np.linalg.svd(w.reshape(sizes).transpose(axes + rest).reshape(rows, -1), compute_uv=False)
        same_spectrum(cut.spectrum, expected, 1e-7)
        assert cut.entropy <= cut.bound + 1e-7


@pytest.mark.parametrize("name", ["mpo", "tree", "tucker", "low_rank"])
def test_bonds_of_trees_to_full_precision(name: str) -> None:
    net = built(name)
    weights = {n: a.astype(float) for n, a in net.init(1).items()}
    w = net.to_dense(weights)
    cuts = tn.entanglement(net, weights, cuts="bonds")
    assert [cut.name for cut in cuts] == [edge for edge in (c.name for c in cuts) if edge in net.ranks]
    assert {cut.name for cut in cuts} == set(net.ranks)
    for cut in cuts:
        same_spectrum(cut.spectrum, brute(w, net.topology, cut.inside), 1e-14)
        assert len(cut.spectrum) <= net.ranks[cut.name]
        assert cut.entropy <= cut.bound <= math.log(net.ranks[cut.name]) + 1e-12


def test_small_singular_values_at_bonds_are_right() -> None:
    """A Gram matrix would lose what is below 1e-8 of the largest."""
    net = tn.mpo((4, 4), (4, 4)).with_rank(3)
    cores = {n: a.astype(float) for n, a in net.init(0).items()}
    q, _ = np.linalg.qr(cores["core0"].reshape(16, 3))
    r, _ = np.linalg.qr(cores["core1"].reshape(3, 16).T)
    cores = {"core0": (q * [1, 1e-5, 1e-12]).reshape(4, 4, 3), "core1": r.T.reshape(3, 4, 4)}
    [cut] = tn.entanglement(net, cores)
    np.testing.assert_allclose(cut.spectrum, [1, 1e-5, 1e-12], rtol=1e-3)


def test_the_default_cuts_of_a_network_are_the_chain_of_sites() -> None:
    net = built("mpo")
    weights = net.init(0)
    found = tn.entanglement(net, weights)
    w = net.to_dense(weights)
    expected = tn.entanglement(
        w, inputs=tuple(net.topology.inputs.values()), outputs=tuple(net.topology.outputs.values())
    )
    assert len(found) == 2
    np.testing.assert_allclose(found.entropies, expected.entropies, atol=1e-5)
    assert [c.bound for c in found] == pytest.approx([math.log(2), math.log(3)])
    [only] = tn.entanglement(tn.low_rank(6, 4).with_rank(2), tn.low_rank(6, 4).with_rank(2).init(0))
    assert only.name == "a0"


def test_large_networks_are_never_formed() -> None:
    net = tn.ring((8,) * 8, (8,) * 8).with_rank(4)  # W would have 2^48 entries
    cuts = tn.entanglement(net, net.init(0))
    assert len(cuts) == 7
    assert [cut.bound for cut in cuts] == pytest.approx([math.log(16)] * 7)
    assert all(0 < cut.entropy <= cut.bound for cut in cuts)
    chain = tn.mpo((8,) * 8, (8,) * 8).with_rank(4)
    assert all(0 < cut.entropy <= math.log(4) for cut in tn.entanglement(chain, chain.init(0)))


# -- the bound --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_min_cut_against_all_cuts(seed: int) -> None:
    """Every way to put the cores inside or outside, a leg counted once where it joins both."""
    rng = np.random.default_rng(seed)
    count, legs = int(rng.integers(2, 6)), {}
    for i in range(int(rng.integers(2, 8))):
        members = rng.permutation(count)[: int(rng.integers(2, count + 1))].tolist()
        legs[f"b{i}"] = members
    for i in range(4):
        legs[f"o{i}"] = [int(rng.integers(count))]
    sizes = {leg: int(rng.integers(1, 6)) for leg in legs}
    tensors = [tuple(leg for leg, members in legs.items() if i in members) for i in range(count)]
    inside = {"o0", "o1"}

    def cost(part: tuple[bool, ...]) -> float:
        total = 0.0
        for leg, members in legs.items():
            ends = {part[m] for m in members} | ({leg in inside} if leg[0] == "o" else set())
            total += math.log(sizes[leg]) if len(ends) > 1 else 0.0
        return total

    best = min(cost(part) for part in itertools.product([True, False], repeat=count))
    value, part = min_cut(tensors, sizes, inside)
    assert value == pytest.approx(best, abs=1e-9)
    assert cost(tuple(i in part for i in range(count))) == pytest.approx(best, abs=1e-9)


def test_a_ring_is_cut_twice() -> None:
    net = tn.ring((4, 4, 4), (4, 4, 4)).with_ranks({"a0": 2, "a1": 3, "a2": 2})
    first, second = tn.entanglement(net, net.init(0))
    assert first.bound == pytest.approx(math.log(4))  # a2 and a0
    assert second.bound == pytest.approx(math.log(6))  # a2 and a1


# -- nulls, table, errors ---------------------------------------------------------------------------------------


def test_nulls() -> None:
    w = np.outer(np.arange(1.0, 65), np.arange(1.0, 65)) ** 0.5
    options = {"inputs": (4, 4, 4), "outputs": (4, 4, 4)}
    structured = tn.entanglement(w, **options)
    nulls = tn.entanglement_nulls(w, **options, seed=3)
    assert set(nulls) == {"shuffled", "random"}
    assert all((null.entropies > structured.entropies).all() for null in nulls.values())
    for null in nulls.values():  # of the same norm
        assert np.linalg.norm(null[0].spectrum) == pytest.approx(np.linalg.norm(w))
    again = tn.entanglement_nulls(w, **options, seed=3)
    np.testing.assert_array_equal(again["shuffled"].entropies, nulls["shuffled"].entropies)
    assert (tn.entanglement_nulls(w, **options, seed=4)["random"].entropies != nulls["random"].entropies).all()


def test_nulls_of_a_network() -> None:
    net = built("ring")
    weights = {n: np.ones_like(a) for n, a in net.init(0).items()}  # a product
    nulls = tn.entanglement_nulls(net, weights, seed=1)
    assert set(nulls) == {"init", "shuffled", "random"}
    np.testing.assert_allclose(nulls["shuffled"].entropies, 0, atol=1e-6)  # all entries are equal
    assert (nulls["random"].entropies > 0.1).all()
    np.testing.assert_allclose(nulls["init"].entropies, tn.entanglement(net, net.init(1)).entropies)


def test_the_table() -> None:
    text = str(tn.entanglement(np.eye(4), inputs=(2, 2), outputs=(2, 2)))
    assert text.splitlines()[0] == "cut      S (nats)   bound  S/bound  exp(S)"
    assert text.splitlines()[1] == "y0 x0 |    0.0000  1.3863    0.000    1.00"


NET = tn.mpo((2, 3), (3, 2)).with_rank(2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((random(6, 6),), {}, tn.TopologyError, "takes a matrix with inputs= and outputs="),
        ((NET,), {}, tn.TopologyError, "takes a Network with its weights"),
        ((NET, {}), {}, tn.ShapeError, "core 'core0' of shape ("),
        ((NET, NET.init(0)), {"inputs": (2, 3)}, tn.TopologyError, "nothing of inputs=, outputs=, ordering="),
        ((random(6, 6),), {"inputs": (2, 2), "outputs": (3, 2)}, tn.ShapeError, "W has shape (6, 6), and the modes"),
        ((random(6, 6),), {"inputs": (6,), "outputs": (6,)}, tn.TopologyError, "name the cuts, e.g. cuts=['x0']"),
        ((random(6, 6),), {"inputs": (2, 3), "outputs": (6,)}, tn.TopologyError, "2 input and 1 output modes are"),
        ((np.zeros((6, 6)),), {"inputs": (2, 3), "outputs": (2, 3)}, tn.DataError, "W is zero everywhere"),
        ((np.full((6, 6), np.nan),), {"inputs": (2, 3), "outputs": (2, 3)}, tn.DataError, "36 entries that are NaN"),
        (
            (NET, NET.init(0)),
            {"cuts": ["x9"]},
            tn.TopologyError,
            "cut 'x9': 'x9' is not an open leg. Known: 'a0', 'x0'",
        ),
        ((NET, NET.init(0)), {"cuts": [3]}, tn.TopologyError, "cut 3: site 2 is none of the 2 site pairs"),
        ((NET, NET.init(0)), {"cuts": [2]}, tn.TopologyError, "cut 2 leaves one side empty"),
        ((NET, NET.init(0)), {"cuts": [()]}, tn.TopologyError, "cut () leaves one side empty"),
        ((NET, NET.init(0)), {"cuts": "x0"}, tn.TopologyError, "or a sequence of cuts, received 'x0'"),
        ((np.eye(4),), {"inputs": (2, 2), "outputs": (2, 2), "cuts": "bonds"}, tn.TopologyError, "needs a tree"),
    ],
)  # fmt: skip
def test_bad_input(arguments: tuple, options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        tn.entanglement(*arguments, **options)


def test_zero_and_broken_weights_of_a_network() -> None:
    weights = NET.init(0)
    with pytest.raises(tn.DataError, match="core 'core1' is zero everywhere"):
        tn.entanglement(NET, {**weights, "core1": weights["core1"] * 0})
    weights["core0"][0, 0, 0] = np.nan
    with pytest.raises(tn.DataError, match="core 'core0' has 1 entries that are NaN or infinite"):
        tn.entanglement(NET, weights)


@pytest.mark.thorough
def test_a_cut_that_is_too_wide() -> None:
    net = tn.complete((16,) * 4, (16,) * 4).with_rank(12)
    with pytest.raises(tn.BudgetError, match="values together, and up to 8,192 can be done"):
        tn.entanglement(net, net.init(0), cuts=[2])
