"""A matrix onto every topology: the formulas, brute force, and what is refused."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
from helpers import normal, relative_error

import tn4nn as tn
import tn4nn._compression.als as als
import tn4nn._compression.fit as fit
import tn4nn._compression.tree_svd as tree_svd
from tn4nn import testing
from tn4nn._compression.fit import Fitter
from tn4nn._compression.gauss_newton import GaussNewton, refined
from tn4nn._compression.svd import left_svd, rank_for, singular_values
from tn4nn._compression.target import target_of
from tn4nn._compression.tree_svd import full_ranks, grown
from tn4nn._graph.tree import tree_of


def random(*shape: int) -> np.ndarray:
    return normal(*shape, seed=3)


def smooth(m: int, n: int) -> np.ndarray:
    """A matrix whose spectrum falls quickly."""
    return np.exp(-3 * np.abs(np.linspace(0, 1, m)[:, None] - np.linspace(0, 1, n)[None, :]))


def built(name: str) -> tn.Topology:
    sites = 1 if name == "dense" else 2 if name == "tucker" else 4 if name == "mera" else 3
    return tn.build(name, 24, 18, sites=sites, pad=False)


# -- two factors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_square_roots_on_both_sides(kind: str) -> None:
    m = random(7, 5) + (1j * np.random.default_rng(1).standard_normal((7, 5)) if kind == "complex" else 0)
    f = tn.low_rank_factors(m, rank=3)
    diagonal = np.diag(f.spectrum)
    np.testing.assert_allclose(f.left.conj().T @ f.left, diagonal, atol=1e-12)
    np.testing.assert_allclose(f.right @ f.right.conj().T, diagonal, atol=1e-12)
    s = np.linalg.svd(m, compute_uv=False)
    np.testing.assert_allclose(f.spectrum, s[:3])
    np.testing.assert_allclose(np.linalg.norm(m - f.left @ f.right), math.sqrt(np.sum(s[3:] ** 2)))
    assert f.error == pytest.approx(relative_error(f.left @ f.right, m))


@pytest.mark.parametrize(("split", "isometry"), [("left", "right"), ("right", "left")])
def test_one_side_takes_the_spectrum(split: str, isometry: str) -> None:
    f = tn.low_rank_factors(random(6, 6), rank=4, split=split)  # type: ignore[arg-type]
    factor = f.right.T if isometry == "right" else f.left
    np.testing.assert_allclose(factor.T @ factor, np.eye(4), atol=1e-12)
    both = tn.low_rank_factors(random(6, 6), rank=4)
    np.testing.assert_allclose(f.left @ f.right, both.left @ both.right, atol=1e-12)


def test_rank_by_error_and_by_kept_weight() -> None:
    m = np.diag([4.0, 2.0, 1.0, 0.5])
    total = 16 + 4 + 1 + 0.25
    assert tn.low_rank_factors(m, error=math.sqrt(1.25 / total) + 1e-9).rank == 2
    assert tn.low_rank_factors(m, error=math.sqrt(1.25 / total) - 1e-9).rank == 3
    assert tn.low_rank_factors(m, kept=20 / total - 1e-9).rank == 2
    assert tn.low_rank_factors(m, kept=20 / total + 1e-9).rank == 3
    assert tn.low_rank_factors(m, error=0.0).rank == 4
    assert rank_for(np.array([1.0, 0.0]), 0.0) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, tn.TopologyError, "low_rank_factors takes exactly one of rank=, error=, kept=, received none"),
        ({"rank": 1, "kept": 0.5}, tn.TopologyError, "received rank, kept"),
        ({"rank": 4}, tn.TopologyError, "rank must be a whole number from 1 to 3 (the smaller side of M), received 4"),
        ({"rank": 0}, tn.TopologyError, "received 0"),
        ({"error": 1.0}, tn.TopologyError, "error must be a relative error from 0 to below 1, received 1.0"),
        ({"kept": 0.0}, tn.TopologyError, "kept must be a share above 0 and at most 1, received 0.0"),
        ({"rank": 1, "split": "up"}, tn.TopologyError, "unknown split 'up'"),
    ],
)
def test_wrong_two_factor_arguments(arguments: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        tn.low_rank_factors(random(3, 5), **arguments)


# -- every topology ---------------------------------------------------------------------------------------------


@pytest.mark.cases(10)
@pytest.mark.parametrize("name", tn.catalogue())
def test_a_network_is_found_again(name: str) -> None:
    net = built(name).with_rank(2, clip=True)
    w = net.to_dense({n: a.astype(float) for n, a in net.init(1).items()})
    result = tn.decompose(w, net, dtype="float64")
    assert result.error < 1e-6
    assert relative_error(net.to_dense(result.weights), w) == pytest.approx(result.error, abs=1e-12)
    assert result.network == net


@pytest.mark.cases(7)
@pytest.mark.parametrize("name", tn.catalogue())
def test_the_error_is_that_of_the_weights(name: str) -> None:
    w = random(18, 24).astype(np.float32)
    before = w.copy()
    result = tn.decompose(w, built(name), rank=2, compare_random=False)
    assert {a.dtype for a in result.weights.values()} == {np.dtype("float32")}
    assert all(a.flags.c_contiguous and not np.shares_memory(a, w) for a in result.weights.values())
    assert relative_error(result.network.to_dense(result.weights), w) == pytest.approx(result.error, rel=1e-5, abs=1e-6)
    np.testing.assert_array_equal(w, before)
    if name != "dense":
        assert 0.3 < result.error < 1


@pytest.mark.cases(9)
@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_never_get_worse_than_nothing(seed: int) -> None:
    """Hyperedges, batch legs, cores without open legs, several parts: least squares ends at a stationary point."""
    net = testing.random_network(seed)
    w = np.random.default_rng(seed).standard_normal((net.out_features, net.in_features))
    result = tn.decompose(w, net, dtype="float64", compare_random=False)
    fitted = net.to_dense(result.weights)
    # At a least-squares solution the residual is orthogonal to what is fitted (its scale is free).
    assert abs(np.vdot(w - fitted, fitted)) < 1e-6 * np.linalg.norm(w) ** 2
    assert result.error <= 1 + 1e-9
    assert result.error == pytest.approx(relative_error(fitted, w))


@pytest.mark.cases(1)
@pytest.mark.parametrize("scale", [1e-15, 1e-5, 1e15])
@pytest.mark.parametrize("name", ["block_term", "cp", "ring"])
def test_the_unit_of_w_changes_nothing(name: str, scale: float) -> None:
    topology = tn.build(name, 16, 4, sites=4)
    full = tn.Network(topology, tn.rank_caps(topology))  # systems that leave much undetermined
    W = np.random.default_rng(0).standard_normal((4, 16))
    one, other = (tn.decompose(w, full, method="als", compare_random=False).error for w in (W, scale * W))
    assert other < max(1.5 * one, 1e-5)


@pytest.mark.cases(9)
@pytest.mark.parametrize("name", tn.catalogue())
def test_least_squares_never_lose_to_the_sweep(name: str) -> None:
    w = smooth(18, 24) + 0.1 * random(18, 24)
    net = built(name).with_rank(2, clip=True)
    if tree_of(net.topology) is None:
        with pytest.raises(tn.TopologyError, match="method='svd' needs a tree of cores"):
            tn.decompose(w, net, method="svd")
        return
    swept = tn.decompose(w, net, method="svd", dtype="float64")
    if name == "dense":
        assert swept.error == 0
        return
    polished = tn.decompose(w, net, method="als", dtype="float64", compare_random=False)
    assert polished.error <= swept.error * (1 + 1e-9) + 1e-12
    assert swept.least <= polished.error + 1e-9
    assert swept.error <= swept.bound + 1e-12


def test_which_graphs_are_trees() -> None:
    trees = {name for name in tn.catalogue() if tree_of(built(name)) is not None}
    assert trees == {"dense", "low_rank", "mpo", "tree", "tucker", "btt", "monarch", "kronecker", "peps"}
    assert tree_of(tn.peps((2,) * 4, (2,) * 4)) is None  # 1 x 3 above, 2 x 2 here
    assert tree_of(tn.ring((2, 2), (2, 2))) is not None  # two bonds between two cores


# -- trees: the formulas ----------------------------------------------------------------------------------------


def dropped(w: np.ndarray, modes: tuple[int, ...], cut: int, rank: int) -> float:
    """Relative tail of the spectrum of W across a cut of a chain of site pairs."""
    n = len(modes) // 2
    pairs = [axis for site in range(n) for axis in (site, n + site)]
    rows = math.prod(modes[axis] for axis in pairs[: 2 * cut])
    s = np.linalg.svd(w.reshape(modes).transpose(pairs).reshape(rows, -1), compute_uv=False)
    return math.sqrt(np.sum(s[rank:] ** 2) / np.sum(s**2))


def test_bond_errors_are_the_tails_of_the_spectra() -> None:
    w = smooth(12, 30) + 0.05 * random(12, 30)
    net = tn.mpo((5, 2, 3), (2, 3, 2)).with_ranks({"a0": 3, "a1": 4})
    result = tn.decompose(w, net, compare_random=False)
    modes = (2, 3, 2, 5, 2, 3)
    assert result.bond_errors["a0"] == pytest.approx(dropped(w, modes, 1, 3))
    assert result.bond_errors["a1"] == pytest.approx(dropped(w, modes, 2, 4))
    assert result.bound == pytest.approx(math.hypot(*result.bond_errors.values()))
    assert result.least == max(result.bond_errors.values())
    assert result.least <= result.error <= result.bound


@pytest.mark.parametrize("m", [1, 2])
def test_two_cores_are_optimal(m: int) -> None:
    """Of low rank the theorem of Eckart and Young; of BTT the same, block by block."""
    w = random(12, 12)
    s = np.linalg.svd(w, compute_uv=False)
    found = tn.decompose(w, tn.low_rank(12, 12), rank=3 * m).error
    assert found == pytest.approx(math.sqrt(np.sum(s[3 * m :] ** 2) / np.sum(s**2)), rel=1e-6)
    t = w.reshape(3, 4, 4, 3)  # y0 y1 x0 x1 of btt: for each (x0, y1) a matrix between x1 and y0
    lost = sum(np.sum(np.linalg.svd(t[:, y1, x0, :], compute_uv=False)[m:] ** 2) for y1 in range(4) for x0 in range(4))
    assert tn.decompose(w, tn.btt((4, 3), (3, 4)), rank=m).error == pytest.approx(math.sqrt(lost / np.sum(s**2)))


def test_kronecker_is_the_nearest_product() -> None:
    """Van Loan and Pitsianis: the nearest product is the first singular triple of W rearranged."""
    w = random(6, 8)
    rearranged = w.reshape(3, 2, 4, 2).transpose(0, 2, 1, 3).reshape(12, 4)
    s = np.linalg.svd(rearranged, compute_uv=False)
    result = tn.decompose(w, tn.kronecker((4, 2), (3, 2)))
    assert result.error == pytest.approx(math.sqrt(1 - s[0] ** 2 / np.sum(s**2)))


@pytest.mark.parametrize("name", ["mpo", "tree", "tucker", "low_rank"])
@pytest.mark.parametrize("error", [0.0, 1e-6, 0.01, 0.2])
def test_an_error_is_kept(name: str, error: float) -> None:
    w = smooth(18, 24) + 0.01 * random(18, 24)
    result = tn.decompose(w, built(name), error=error, dtype="float64", compare_random=False)
    assert result.error <= error + 1e-12
    if error > 0.1:
        assert result.network.num_params < 200


@pytest.mark.thorough
def test_an_error_is_kept_on_loops_or_refused_with_the_best() -> None:
    w = smooth(18, 24)
    for name, error in (("ring", 0.05), ("cp", 0.15), ("block_term", 0.1), ("complete", 0.05)):
        result = tn.decompose(w, built(name), error=error, compare_random=False)
        assert result.error <= error
        fewer = math.floor(0.75 * result.network.num_params)  # a fit of far fewer does not keep it
        assert tn.decompose(w, built(name), params=fewer, compare_random=False).error > error
    x = correlated(400, 24)
    aware = tn.decompose(random(18, 24), built("ring"), error=0.3, inputs=x, compare_random=False)
    assert aware.output_error <= 0.3 < aware.error
    blocks = tn.topology("k x a c, a m b, b c y k", {"k": 3, "x": 4, "m": 2}, {"k": 3, "y": 6}, name="blocks")
    with pytest.raises(tn.BudgetError, match=r"an error of 0.5 was not reached on 'blocks': the best was 0\.[78]\d+"):
        tn.decompose(random(18, 24), blocks, error=0.5)
    with pytest.raises(tn.BudgetError, match=r"an error of 0.01 was not reached on 'monarch': the best was 0\.\d+"):
        tn.decompose(random(18, 24), built("monarch"), error=0.01)


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["ring", "cp", "complete"])
@pytest.mark.parametrize("error", [0.0, 1e-9])
def test_no_error_on_loops_finds_the_network_that_is_there(name: str, error: float) -> None:
    net = built(name).with_rank(2, clip=True)
    w = net.to_dense({n: a.astype(float) for n, a in net.init(1).items()})
    result = tn.decompose(w, net.topology, error=error, dtype="float64", compare_random=False)
    assert result.error < 1e-7
    assert result.network.num_params <= 1.3 * net.num_params


@pytest.mark.cases(2)
@pytest.mark.parametrize("topology", [tn.mpo((3, 2, 2), (2, 3, 2)), tn.tree((3, 2, 2), (2, 3, 2))], ids=["mpo", "tree"])
@pytest.mark.parametrize("budget", [60, 90, 140])
def test_ranks_by_budget_against_all_ranks(topology: tn.Topology, budget: int) -> None:
    """The greedy choice is within 3 % of the best of all ranks under the budget."""
    w = smooth(12, 12) + 0.02 * random(12, 12)
    caps = tn.rank_caps(topology)
    best = min(
        tn.decompose(w, net, compare_random=False).error
        for ranks in itertools.product(*(range(1, min(cap, 8) + 1) for cap in caps.values()))
        if (net := topology.with_ranks(dict(zip(caps, ranks, strict=True)))).num_params <= budget
    )
    result = tn.decompose(w, topology, params=budget)
    assert result.network.num_params <= budget
    assert result.error <= 1.03 * best


@pytest.mark.parametrize("budget", [1000, 3000])
def test_ranks_grown_on_a_tree_of_many_bonds(budget: int) -> None:
    """On noise all bonds drop nearly everything at first: their sum is far above the norm of W and says little."""
    w, topology = random(64, 64), tn.build("tree", 64, 64, sites=4)
    fitter = Fitter(target_of(w, topology, None, None), tree_of(topology), "svd", 0, 2**30)
    most = full_ranks(fitter.tree, fitter.tails, tn.rank_caps(topology))
    found = [
        tn.decompose(w, net, compare_random=False).error ** 2
        for net in (
            topology.with_ranks(grown(topology, fitter.tails, most, budget, 0.0)),
            topology.with_budget(params=budget),
        )
    ]
    assert 1 - found[0] > 0.9 * (1 - found[1])  # what is kept


def test_a_budget_is_spent_where_it_matters() -> None:
    """W is a product of sites 0, 1 and sites 2, 3: the bond between needs rank 1 only, and even ranks waste it."""
    left, right = random(16, 16), np.random.default_rng(5).standard_normal((16, 16))
    result = tn.decompose(np.kron(left, right), tn.mpo((4,) * 4, (4,) * 4), params=1100)
    assert result.network.ranks["a1"] == 1
    assert result.error < 1e-6
    assert tn.decompose(np.kron(left, right), tn.mpo((4,) * 4, (4,) * 4).with_budget(params=1100)).error > 0.3


# -- not compressible -------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_noise_is_called_incompressible() -> None:
    result = tn.decompose(random(256, 784), tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)), rank=10)
    assert result.error > 0.97
    assert not result.compressible
    assert "NOT compressible at this budget: a random matrix of this shape has error 0.9" in str(result)
    ring = tn.decompose(random(256, 256), tn.ring((4,) * 4, (4,) * 4), rank=4)
    assert not ring.compressible


def test_structure_is_called_compressible() -> None:
    result = tn.decompose(smooth(256, 256), tn.mpo((4,) * 4, (4,) * 4), rank=10)
    assert result.compressible
    assert "\n  compressible: a random matrix" in str(result)
    assert repr(result) == str(result)
    assert tn.decompose(random(4, 4), tn.dense(4, 4)).compressible  # nothing is lost


# -- half precision ---------------------------------------------------------------------------------------------


def test_half_precision_is_decomposed_as_the_numbers_it_holds() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for kind in (np.float16, ml_dtypes.bfloat16):
        w = random(18, 24).astype(kind)
        result = tn.decompose(w, built("ring"), rank=2, compare_random=False)
        wide = tn.decompose(w.astype(np.float64), built("ring"), rank=2, compare_random=False)
        assert result.error == wide.error
        assert {a.dtype for a in result.weights.values()} == {np.dtype("float32")}
    assert tn.entanglement(np.eye(4).astype(ml_dtypes.bfloat16), inputs=(2, 2), outputs=(2, 2))[0].entropy < 1e-6


def test_torch_tensors_that_numpy_cannot_read_are_errors_that_help() -> None:
    torch = pytest.importorskip("torch")
    w = torch.ones(18, 24)
    assert tn.decompose(w, tn.low_rank(24, 18), rank=1).error < 1e-6
    for tensor in (w.bfloat16(), torch.nn.Parameter(w), w.to("meta")):
        with pytest.raises(tn.ShapeError, match=r"of a torch tensor, give tensor.detach\(\).float\(\).cpu\(\).numpy"):
            tn.decompose(tensor, tn.low_rank(24, 18), rank=1)


# -- inputs -----------------------------------------------------------------------------------------------------


def correlated(rows: int, features: int) -> np.ndarray:
    mix = np.random.default_rng(9).standard_normal((features, features)) * np.arange(1, features + 1) ** -1.5
    return np.random.default_rng(8).standard_normal((rows, features)) @ mix.T


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", tn.catalogue())
def test_calibration_lowers_the_error_of_the_outputs(name: str) -> None:
    w, x = random(18, 24), correlated(400, 24)
    net = built(name).with_rank(2, clip=True)
    plain = tn.decompose(w, net, compare_random=False)
    aware = tn.decompose(w, net, inputs=x, compare_random=False)
    y = x @ w.T

    def off(result: tn.Decomposition) -> float:
        return relative_error(x @ net.to_dense(result.weights).T, y)

    assert plain.output_error is None
    assert aware.output_error == pytest.approx(off(aware), rel=1e-4, abs=1e-6)
    if name != "dense":
        assert off(aware) < off(plain) - 0.005
        assert aware.error >= plain.error - 0.03
        assert "of the outputs on the calibration inputs" in str(aware)


def test_the_verdict_on_calibration_inputs_is_about_the_outputs() -> None:
    x = correlated(400, 96)
    noise = tn.decompose(random(256, 96), tn.low_rank(96, 256), rank=4, inputs=x)
    assert noise.random_error < 0.3  # far below what it is on white inputs
    assert noise.bound is None
    assert not noise.compressible
    along = np.outer(np.ones(256), np.linalg.svd(x, full_matrices=False)[2][0])  # sees what varies most
    assert tn.decompose(along + 0.01 * random(256, 96), tn.low_rank(96, 256), rank=4, inputs=x).compressible


@pytest.mark.thorough
def test_a_covariance_is_as_good_as_the_batch() -> None:
    w, x = random(18, 24), correlated(400, 24)
    for name in ("low_rank", "ring"):
        batch = tn.decompose(w, built(name), rank=2, inputs=x, compare_random=False)
        covariance = tn.decompose(w, built(name), rank=2, inputs=x.T @ x / 400, compare_random=False)
        assert covariance.output_error == pytest.approx(batch.output_error, rel=1e-5)


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["tucker", "mpo", "tree"])
def test_ranks_follow_what_the_outputs_see(name: str) -> None:
    """Inputs of which some hardly vary, as the border of an image: their bonds need little."""
    w, x = random(64, 64), np.random.default_rng(1).standard_normal((400, 64)) * np.exp(-np.arange(64) / 8)
    topology = tn.build(name, 64, 64, sites=3)
    plain = tn.decompose(w, topology, params=600, compare_random=False)
    aware = tn.decompose(w, topology, params=600, inputs=x, compare_random=False)
    same_ranks = tn.decompose(w, plain.network, inputs=x, compare_random=False)
    assert aware.network.num_params <= 600
    assert aware.output_error < same_ranks.output_error < 1
    assert aware.bond_errors == {}
    within = tn.decompose(w, topology, error=0.3, inputs=x, compare_random=False)
    assert within.output_error <= 0.3
    assert within.network.num_params < tn.decompose(w, topology, error=0.3, compare_random=False).network.num_params


def test_calibrated_low_rank_is_optimal() -> None:
    """The best rank-r fit of the outputs on a batch is the truncated SVD of the outputs."""
    w, x = random(18, 24), correlated(400, 24)
    y = x @ w.T
    s = np.linalg.svd(y, compute_uv=False)
    best = math.sqrt(np.sum(s[4:] ** 2) / np.sum(s**2))
    result = tn.decompose(w, tn.low_rank(24, 18), rank=4, inputs=x)
    assert best - 1e-9 <= result.output_error <= 1.02 * best  # the ridge costs a little


# -- orderings, padding, dtypes, vectors ------------------------------------------------------------------------


def test_an_ordering_belongs_to_the_layer() -> None:
    w, bias = random(9, 16).astype(np.float32), random(9)[:9].astype(np.float32)
    result = tn.decompose(w, tn.mpo((4, 4), (3, 3)), error=1e-6, ordering="hilbert")
    assert relative_error(result.to_dense(), w) < 1e-5
    assert relative_error(result.network.to_dense(result.weights), w) > 0.5
    x = random(5, 16)
    module = result.linear().build("numpy", {**result.weights, "bias": bias})
    np.testing.assert_allclose(module(x), x @ w.T + bias, atol=1e-4)


def test_padded_features() -> None:
    w = smooth(29, 23)
    topology = tn.build("mpo", 23, 29, sites=2)
    assert topology.is_padded
    result = tn.decompose(w, topology, error=1e-5)
    assert result.network.to_dense(result.weights).shape == (29, 23)
    assert relative_error(result.network.to_dense(result.weights), w) <= 1.1e-5
    assert "W is filled up with zeros from 29 x 23 to the modes" in str(result)
    assert tn.decompose(w, topology, rank=1, inputs=correlated(50, 23)).output_error < 0.9


def test_a_kept_leg_keeps_its_blocks() -> None:
    """W is block diagonal in it: what stands outside of the blocks is lost, and counted."""
    topology = tn.topology("k x a, a k y", {"k": 2, "x": 3}, {"k": 2, "y": 3})
    w = random(6, 6)
    inside = np.zeros_like(w)
    inside[:3, :3], inside[3:, 3:] = w[:3, :3], w[3:, 3:]
    result = tn.decompose(w, topology, rank=3, dtype="float64")
    np.testing.assert_allclose(topology.with_rank(3).to_dense(result.weights), inside, atol=1e-10)
    assert result.least == pytest.approx(result.error)
    assert result.bound == pytest.approx(result.error)
    free = tn.topology("x y", {"x": 3, "k": 2}, {"k": 2, "y": 4})  # W repeats along k
    block = random(4, 3)
    w = np.einsum("yx,kl->kyxl", block, np.eye(2)).reshape(8, 6)
    for inputs in (None, correlated(40, 6)):
        assert tn.decompose(w, free, inputs=inputs, dtype="float64").error < 1e-6


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", ["mpo", "ring", "btt", "cp"])
def test_complex_matrices(name: str) -> None:
    net = built(name).with_rank(2, clip=True)
    cores = {n: a + 1j * np.random.default_rng(2).standard_normal(a.shape) for n, a in net.init(0).items()}
    w = net.to_dense(cores)
    result = tn.decompose(w, net)
    assert {a.dtype for a in result.weights.values()} == {np.dtype("complex64")}
    assert result.error < 1e-5
    x = correlated(60, 24) + 1j * correlated(60, 24)[::-1]
    aware = tn.decompose(random(18, 24) * (1 + 2j), net, inputs=x, compare_random=False)
    y = x @ (random(18, 24) * (1 + 2j)).T
    assert aware.output_error == pytest.approx(relative_error(x @ net.to_dense(aware.weights).T, y), rel=1e-4)


def test_half_precision_and_integers_are_taken() -> None:
    w = smooth(8, 8).astype(np.float16)
    assert tn.decompose(w, tn.low_rank(8, 8), rank=8).error < 1e-6
    assert tn.decompose(np.eye(4, dtype=int), tn.kronecker((2, 2), (2, 2))).error < 1e-6


@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("eps", [0.3, 0.05, 1e-9])
def test_a_vector_as_a_matrix_product_state(kind: str, eps: float) -> None:
    v = random(24) + (1j * np.arange(24) if kind == "complex" else 0)
    state = tn.mps(v, (2, 3, 2, 2), error=eps, dtype="complex128" if kind == "complex" else "float64")
    found = state.network.to_dense(state.weights)[0]
    assert np.linalg.norm(v - found) <= eps * np.linalg.norm(v) * (1 + 1e-9)
    with pytest.raises(tn.ShapeError, match=re.escape("a vector of modes (2, 3) has 6 entries, received shape (24,)")):
        tn.mps(v, (2, 3), rank=1)
    assert tn.mps(v, (24,), rank=1).error < 1e-6


def test_the_seed_decides_and_nothing_else() -> None:
    w = random(18, 24)
    one, two = (tn.decompose(w, built("cp"), rank=3, seed=4, compare_random=False) for _ in range(2))
    assert all(np.array_equal(one.weights[n], two.weights[n]) for n in one.weights)


def test_large_systems_go_by_conjugate_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = smooth(18, 24) + 0.1 * random(18, 24), correlated(100, 24)
    for name, inputs in (("ring", None), ("mpo", x)):
        direct = tn.decompose(w, built(name), rank=2, inputs=inputs, compare_random=False)
        with monkeypatch.context() as patch:
            patch.setattr(als, "_EXACTNESS", 0)
            steps = tn.decompose(w, built(name), rank=2, inputs=inputs, compare_random=False)
        measure = "error" if inputs is None else "output_error"
        assert getattr(steps, measure) == pytest.approx(getattr(direct, measure), rel=0.1, abs=0.01)


# -- all cores at once -----------------------------------------------------------------------------------------


@pytest.mark.cases(12)
@pytest.mark.parametrize("kind", ["real", "complex", "weighed"])
@pytest.mark.parametrize("name", tn.catalogue())
def test_what_steps_are_made_of(name: str, kind: str) -> None:
    """J^H J and the error, against derivatives of W by every parameter."""
    net = built(name).with_rank(2, clip=True)
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> np.ndarray:
        result = rng.standard_normal(shape)
        return result + 1j * rng.standard_normal(shape) if kind == "complex" else result

    w, weights = numbers(18, 24), {core: numbers(*shape) for core, shape in net.shapes.items()}
    x = numbers(40, 24) if kind == "weighed" else None
    target = target_of(w, net.topology, x, None)
    steps = GaussNewton(als.Als(target, net))
    flat = np.concatenate([weights[core].ravel() for core in net.shapes])
    columns = []
    for core, shape in net.shapes.items():
        columns += [net.to_dense({**weights, core: one.reshape(shape)}) for one in np.eye(math.prod(shape))]
    jacobian = np.stack(columns)
    metric = np.eye(24) if x is None else target.ridged
    wanted = np.einsum("aoi,boi->ab", jacobian.conj() @ metric, jacobian)
    np.testing.assert_allclose(steps._gram(steps._arrays(flat), flat.dtype), wanted, atol=1e-12 * abs(wanted).max())
    off = w - net.to_dense(weights)
    lost, whole = (np.vdot(m, m @ metric).real for m in (off, w))
    assert steps._lost(flat) == pytest.approx(lost / whole)


def nearly_collinear() -> tuple[np.ndarray, tn.Network]:
    """Six terms of CP whose factors have cosines of 0.9."""
    net = tn.topology("y r, a r, b r", {"a": 12, "b": 12}, {"y": 12}).with_rank(6)
    mixing = np.linalg.cholesky(0.9 + 0.1 * np.eye(6)).T
    rng = np.random.default_rng(1)
    weights = {core: np.linalg.qr(rng.standard_normal(shape))[0] @ mixing for core, shape in net.shapes.items()}
    return net.to_dense(weights), net


def product_of_matrices() -> tuple[np.ndarray, tn.Network]:
    """The tensor of 2 x 2 times 2 x 2 matrices, of rank 7 (Strassen 1969)."""
    one = np.eye(2)
    tensor = np.einsum("iI,jJ,kK->ijJkKI", one, one, one).reshape(4, 16)
    return tensor, tn.topology("y r, a r, b r", {"a": 4, "b": 4}, {"y": 4}).with_rank(7)


def inverse_distance() -> np.ndarray:
    grid = np.linspace(0, 1, 64)
    return 1 / (0.1 + np.abs(grid[:, None] - grid[None, :]))


def hilbert(n: int) -> np.ndarray:
    return 1 / (1 + np.add.outer(np.arange(n), np.arange(n)))


ILL_CONDITIONED = {
    # (W, network), the seed, the error that is reached, and one that least squares alone stay above
    "collinear": (nearly_collinear(), 0, 1e-8, 1e-6),
    # From seed 0 the sweeps alone come to 3e-8, where they stop for good, or not, as the BLAS rounds.
    "product": (product_of_matrices(), 6, 1e-9, 3e-8),
    "ring": ((inverse_distance(), tn.ring((4,) * 3, (4,) * 3).with_rank(3)), 0, 6e-4, 1.4e-3),
    "complete": ((hilbert(81), tn.complete((3,) * 4, (3,) * 4).with_rank(2)), 0, 6e-4, 2e-3),
    "cp": ((hilbert(64), tn.cp((4,) * 3, (4,) * 3).with_rank(6)), 0, 2e-4, 4e-4),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["collinear", "product", "ring", "cp", pytest.param("complete", marks=pytest.mark.thorough)],  # the slowest
)
def test_cores_that_have_to_change_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (w, net), seed, reached, above = ILL_CONDITIONED[name]

    def error() -> float:
        return tn.decompose(w, net, seed=seed, dtype="float64", compare_random=False).error

    assert error() < reached
    monkeypatch.setattr(fit, "refined", lambda als, weights, memory: weights)
    assert error() > above


@pytest.mark.thorough
def test_steps_are_for_small_networks_and_enough_memory() -> None:
    (w, net), _, reached, above = ILL_CONDITIONED["collinear"]
    target = target_of(w, net.topology, None, None)
    steps = GaussNewton(als.Als(target, net))
    room = steps.als.bytes + steps.bytes
    assert room > 3 * 8 * net.num_params**2
    # Memory that least squares fit in, and steps do not: W is 12 x 144.
    assert tn.decompose(w, net, dtype="float64", compare_random=False, memory=room).error < reached
    assert tn.decompose(w, net, dtype="float64", compare_random=False, memory=room - 1).error > above
    large = tn.ring((4,) * 3, (4,) * 3).with_rank(16)
    start = {core: array.astype(float) for core, array in large.init(0).items()}
    assert refined(als.Als(target_of(random(64, 64), large.topology, None, None), large), start, 2**40) is start


@pytest.mark.cases(16)
@pytest.mark.parametrize("seed", range(20))
def test_programs_and_einsum_contract_alike(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(als, "_QUICK", math.inf)
    net, rng = testing.random_network(seed), np.random.default_rng(seed)
    w = rng.standard_normal((net.out_features, net.in_features))
    x = None if seed % 2 else correlated(60, net.in_features)
    fit = als.Als(target_of(w, net.topology, x, None), net)
    jobs = [job for update in fit.updates for job in (update.normal, update.right) if job.program is not None]
    assert jobs or len(net.topology.cores) == 1
    for job in jobs:
        given = [rng.standard_normal([fit.sizes[leg] for leg in legs]) for legs in job.tensors]
        found = als.run(als._OPS, job.program, given)
        np.testing.assert_allclose(found, als.contract(job.tensors, given, job.output, job.path), atol=1e-9)


# -- gauge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mpo", "tree", "tucker", "low_rank"])
def test_canonical_forms_about_every_core(name: str) -> None:
    net = built(name).with_rank(3, clip=True)
    weights = {n: a.astype(float) for n, a in net.init(2).items()}
    for center in net.shapes:
        result = tn.canonicalise(net, weights, center)
        assert tn.gauge_error(net, weights, result) < 1e-12
        np.testing.assert_allclose(net.to_dense(result), net.to_dense(weights), atol=1e-12)
        tree = tree_of(net.topology, list(net.shapes).index(center))
        for edge in tree.edges:
            core = net.topology.cores[edge.core]
            axes = [i for i, leg in enumerate(core.legs) if leg != edge.bonds[0]]
            gram = np.tensordot(result[core.name].conj(), result[core.name], axes=(axes, axes))
            np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12)
        # So the norm of W is that of the center.
        assert np.linalg.norm(result[center]) == pytest.approx(np.linalg.norm(net.to_dense(weights)))


def test_left_and_right_canonical_chains() -> None:
    net = tn.mpo((3, 2, 2), (2, 3, 2)).with_rank(2)
    left, right = (tn.canonicalise(net, net.init(0), c) for c in ("core2", "core0"))
    a = left["core0"].reshape(-1, 2)
    np.testing.assert_allclose(a.T @ a, np.eye(2), atol=1e-6)
    b = right["core2"].reshape(2, -1)
    np.testing.assert_allclose(b @ b.T, np.eye(2), atol=1e-6)
    assert np.abs(right["core0"].reshape(-1, 2).T @ right["core0"].reshape(-1, 2) - np.eye(2)).max() > 0.01


def test_a_bond_wider_than_its_core() -> None:
    net = tn.low_rank(2, 5).with_rank(4)
    weights = net.init(0)
    assert tn.gauge_error(net, weights, tn.canonicalise(net, weights)) < 1e-6


@pytest.mark.parametrize("name", tn.catalogue())
def test_balance_moves_no_w(name: str) -> None:
    net = built(name).with_rank(2, clip=True)
    weights = {n: a.astype(float) for n, a in net.init(0).items()}
    first = next(iter(weights))
    weights[first] = weights[first] * 1e6
    result = tn.balance(net, weights)
    np.testing.assert_allclose(net.to_dense(result), net.to_dense(weights), rtol=1e-9, atol=1e-9)
    before, after = ([np.linalg.norm(a) for a in w.values()] for w in (weights, result))
    if net.ranks:
        assert max(after) / min(after) < 0.02 * max(before) / min(before)


def test_balance_gives_square_roots_to_both_sides() -> None:
    net = tn.low_rank(6, 5).with_rank(3)
    result = tn.decompose(random(5, 6), net, dtype="float64")
    a, b = result.weights["core0"], result.weights["core1"]
    s = np.linalg.svd(random(5, 6), compute_uv=False)[:3]
    np.testing.assert_allclose(a.T @ a, np.diag(s), atol=1e-9)
    np.testing.assert_allclose(b @ b.T, np.diag(s), atol=1e-9)


def test_gauge_error_sees_a_change_of_w() -> None:
    net = tn.ring((3, 2), (2, 2)).with_rank(2)
    weights = net.init(0)
    other = {**weights, "core0": weights["core0"] * 1.01}
    assert tn.gauge_error(net, weights, other) == pytest.approx(0.01, rel=1e-3)
    zero = {n: a * 0 for n, a in weights.items()}
    assert tn.gauge_error(net, zero, weights) == 1.0
    assert tn.gauge_error(net, zero, zero) == 0.0


def test_a_canonical_form_needs_a_tree() -> None:
    for topology in (tn.ring((2, 2, 2), (2, 2, 2)), tn.btt((2, 2), (2, 2)), tn.kronecker((2, 2), (2, 2))):
        net = topology.with_rank(1)
        with pytest.raises(tn.TopologyError, match="a canonical form needs a tree of cores without loops"):
            tn.canonicalise(net, net.init(0))
    net = tn.mpo((2, 2), (2, 2)).with_rank(2)
    with pytest.raises(tn.TopologyError, match=re.escape("'core9' is not a core of 'mpo'. Did you mean 'core")):
        tn.canonicalise(net, net.init(0), "core9")
    with pytest.raises(tn.ShapeError, match="is missing"):
        tn.canonicalise(net, {})


@pytest.mark.parametrize("asked", [{"rank": 3}, {"params": 100}, {"error": 0.5}])
def test_the_first_decomposition_is_made_once(asked: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spectra and every sweep start with it, and with two cores it is all there is."""
    calls = []
    monkeypatch.setattr(tree_svd, "left_svd", lambda matrix: calls.append(1) or left_svd(matrix))
    monkeypatch.setattr(tree_svd, "singular_values", lambda matrix: calls.append(1) or singular_values(matrix))
    result = tn.decompose(random(18, 24), tn.low_rank(24, 18), compare_random=False, **asked)
    assert len(calls) == 1
    spectrum = np.linalg.svd(random(18, 24), compute_uv=False)
    rank = result.network.ranks["a0"]
    assert result.error == pytest.approx(np.linalg.norm(spectrum[rank:]) / np.linalg.norm(spectrum), rel=1e-5)


# -- what is refused --------------------------------------------------------------------------------------------

MPO = tn.mpo((2, 3), (3, 2))


def holed(value: float) -> np.ndarray:
    w = random(6, 6)
    w[2, 4] = value
    return w


@pytest.mark.parametrize(
    ("w", "onto", "options", "error", "text"),
    [
        (holed(np.nan), MPO, {"rank": 1}, tn.DataError, "W has 1 entries that are NaN or infinite, the first"),
        (holed(np.inf), MPO, {"rank": 1}, tn.DataError, "the first at (2, 4)"),
        (np.zeros((6, 6)), MPO, {"rank": 1}, tn.DataError, "W is zero everywhere: there is nothing to decompose"),
        (random(6, 5), MPO, {"rank": 1}, tn.ShapeError, "W must have shape (6, 6), (out_features, in_features)"),
        (random(8, 6), tn.mpo((4, 2), (3, 2)), {"rank": 1}, tn.ShapeError, "it is transposed, give W.T"),
        (random(6), MPO, {"rank": 1}, tn.ShapeError, "W must have 2 axes and at least one entry, received shape (6,)"),
        ([["a"] * 6] * 6, MPO, {"rank": 1}, tn.ShapeError, "W must hold numbers that numpy has, received <U1"),
        (random(6, 6), MPO, {}, tn.TopologyError, "exactly one of rank=, params=, error=, received none"),
        (random(6, 6), MPO, {"rank": 1, "params": 9}, tn.TopologyError, "received rank, params"),
        (random(6, 6), MPO.with_rank(2), {"rank": 1}, tn.TopologyError, "a Network has its ranks: leave rank= away"),
        (random(6, 6), MPO, {"rank": 0}, tn.TopologyError, "rank must be a whole number from 1"),
        (random(6, 6), MPO, {"error": -0.1}, tn.TopologyError, "received -0.1"),
        (random(6, 6), MPO, {"params": 5}, tn.BudgetError, "the smallest feasible one is 12"),
        (random(6, 6), MPO, {"rank": 1, "method": "svdd"}, tn.TopologyError, "unknown method 'svdd'. Did you mean"),
        (random(6, 6), "mpo", {"rank": 1}, tn.TopologyError, "a Topology or a Network after W, received str"),
        (random(6, 6), MPO, {"rank": 1, "inputs": random(5, 4)}, tn.ShapeError, "inputs must be a batch of shape"),
        (random(6, 6), MPO, {"rank": 1, "inputs": -np.eye(6)}, tn.DataError, "negative eigenvalues"),
        (random(6, 6), MPO, {"rank": 1, "ordering": [0, 1]}, tn.TopologyError, "permutes 2 neurons, the layer has 6"),
        (random(6, 6), MPO, {"rank": 1, "dtype": "complex64"}, tn.ShapeError, "'float32' or 'float64', received"),
        (random(6, 6), MPO, {"rank": 1, "inputs": np.zeros((5, 6))}, tn.DataError, "everywhere: give some that vary"),
        (None, MPO, {"rank": 1}, tn.ShapeError, "W must hold numbers that numpy has, received NoneType"),
        (1e200 * random(6, 6), MPO, {"rank": 1}, tn.DataError, "in magnitude, whose square is out of range: scale W"),
        (1e-200 * random(6, 6), MPO, {"rank": 1}, tn.DataError, "scale W to between 1e-120 and 1e+120"),
        (1e100 * random(6, 6), MPO, {"rank": 1}, tn.DataError, "out of the range of float32, with entries up to"),
        (1e-100 * random(6, 6), MPO, {"rank": 1}, tn.DataError, "scale W, or take dtype='float64'"),
        (random(6, 6), MPO, {"rank": 1, "memory": 100}, tn.BudgetError, "100 may be used: ask for smaller ranks"),
    ],
)  # fmt: skip
def test_bad_input(w: object, onto: object, options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        tn.decompose(w, onto, **options)  # type: ignore[arg-type]


def test_complex_inputs_make_complex_weights() -> None:
    """They were cut down to their real parts."""
    x = random(40, 6) + 1j * np.random.default_rng(1).standard_normal((40, 6)) * [1, 2, 3, 4, 5, 6]
    net = tn.low_rank(6, 6).with_rank(2)
    result = tn.decompose(random(6, 6), net, inputs=x, compare_random=False)
    assert {array.dtype for array in result.weights.values()} == {np.dtype("complex64")}
    values, vectors = np.linalg.eigh(x.T @ x.conj() / len(x))
    weighed = random(6, 6) @ (vectors * np.sqrt(values))
    spectrum = np.linalg.svd(weighed, compute_uv=False)
    assert result.output_error == pytest.approx(np.linalg.norm(spectrum[2:]) / np.linalg.norm(spectrum), rel=1e-3)


def test_memory_is_refused_for_loops_too() -> None:
    with pytest.raises(tn.BudgetError, match="needs about") as caught:
        tn.decompose(random(256, 256), tn.ring((4,) * 4, (4,) * 4), rank=4, memory=100_000)
    assert caught.value.smallest > 100_000
    assert tn.decompose(random(256, 256), tn.ring((4,) * 4, (4,) * 4), rank=1, memory=caught.value.smallest).error < 1


def test_a_rank_above_the_useful_one_is_lowered_and_told() -> None:
    result = tn.decompose(random(6, 6), MPO, rank=20)
    assert result.network.ranks == {"a0": 6}
    assert "rank 20 was lowered to the largest useful one at a0=6" in result.notes
    kept = tn.decompose(random(6, 6), MPO.with_rank(20))  # a Network's ranks are kept, the rest is zero
    assert kept.network.ranks == {"a0": 20}
    assert kept.error < 1e-6


# -- rounding ---------------------------------------------------------------------------------------------------


def redundant(name: str, kind: str = "float64") -> tuple[tn.Network, dict[str, np.ndarray], np.ndarray]:
    """A network whose ranks are larger than its W needs, beside a little noise."""
    w = smooth(18, 24) + 0.01 * random(18, 24) + (1j * random(18, 24) * 0.01 if kind == "complex128" else 0)
    result = tn.decompose(w, built(name), rank=6, dtype=kind, compare_random=False)
    return result.network, dict(result.weights), result.network.to_dense(result.weights)


@pytest.mark.cases(3)
@pytest.mark.parametrize("kind", ["float64", "complex128"])
@pytest.mark.parametrize("name", ["mpo", "tree", "tucker", "low_rank"])
def test_rounding_is_decomposing_w(name: str, kind: str) -> None:
    net, weights, w = redundant(name, kind)
    for options in ({"rank": 2}, {"params": int(0.6 * net.num_params)}, {"error": 0.05}, {"error": 0.0}):
        result = tn.rounded(net, weights, **options)
        fitted = result.network.to_dense(result.weights)
        assert relative_error(fitted, w) == pytest.approx(result.error, abs=1e-9)
        other = tn.decompose(w, result.network, dtype=kind, compare_random=False)
        assert result.bond_errors == pytest.approx(dict(other.bond_errors), abs=1e-7)
        assert result.error == pytest.approx(other.error, rel=0.05, abs=1e-9)  # another order of the bonds
        assert result.least - 1e-9 <= result.error <= result.bound + 1e-9
    assert result.error < 1e-12
    assert tn.rounded(net, weights, error=0.05).error <= 0.05


def test_rounding_never_forms_w() -> None:
    net = tn.mpo((8,) * 8, (8,) * 8).with_rank(4)  # W would have 2^48 entries
    result = tn.rounded(net, net.init(0), params=4000)
    assert 0 < result.error < 1
    assert result.network.num_params <= 4000
    assert {a.dtype for a in result.weights.values()} == {np.dtype("float32")}


def test_what_cannot_be_rounded() -> None:
    ring = tn.ring((2, 2, 2), (2, 2, 2)).with_rank(2)
    with pytest.raises(tn.TopologyError, match="rounding needs a tree of cores without loops"):
        tn.rounded(ring, ring.init(0), rank=1)
    net = tn.mpo((2, 2), (2, 2)).with_rank(2)
    with pytest.raises(tn.TopologyError, match="exactly one of rank=, params=, error=, received none"):
        tn.rounded(net, net.init(0))
    with pytest.raises(tn.DataError, match="W of this network is zero everywhere"):
        tn.rounded(net, {n: a * 0 for n, a in net.init(0).items()}, rank=1)
    kept = tn.rounded(net, net.init(0), rank=9)
    assert kept.network == net
    assert kept.error < 1e-6


def test_rows_of_different_lengths_are_no_matrix():
    with pytest.raises(tn.ShapeError, match="received list .*: give rows of one length"):
        tn.decompose([[1.0, 2.0], [3.0]], tn.low_rank(2, 2), rank=1)
