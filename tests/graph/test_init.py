from __future__ import annotations

import math
import re

import numpy as np
import pytest
from helpers import first_of

import tn4nn as tn
import tn4nn._graph.init as init_module
from tn4nn import TopologyError
from tn4nn._graph.init import fan_ins, mean_square_of
from tn4nn._graph.paths import greedy_path, path_macs
from tn4nn.testing import random_network

# Modes of a site, so that W has at most about 4096 x 4096 entries for up to 12 sites.
SIDE = {2: 32, 3: 10, 4: 6, 5: 4, 6: 4, 8: 2, 10: 2, 12: 2}
HAND = [
    tn.topology("x0 a, a b y0, a b x1 y1", {"x0": 6, "x1": 5}, {"y0": 4, "y1": 3}).with_ranks({"a": 5, "b": 3}),
    tn.topology("k x0 a, a k y0, x1 y1", {"k": 4, "x0": 9, "x1": 5}, {"y1": 6, "k": 4, "y0": 7}).with_rank(3),
    tn.topology("k x a, a y", {"k": 3, "x": 8}, {"k": 3, "y": 9}).with_rank(4),
    tn.topology("x y", {"x": 9, "k": 5}, {"k": 5, "y": 8}).with_rank(1),
    tn.topology("x0 x1 r, x0 r s, s r y x1", {"x0": 8, "x1": 4}, {"y": 9}).with_rank(6),
    tn.topology("x a, a y, b, b", {"x": 20}, {"y": 20}).with_rank(5),
]  # fmt: skip


def std_of_w(net: tn.Network, seed: int, **options) -> float:
    """Root mean square of W's entries, those that are zero by structure counted as if they were not there."""
    w = net.to_dense(net.init(seed, **options)).astype(np.float64)
    kept = math.prod(net.topology.inputs[leg] for leg in net.topology.kept)
    return float(np.sqrt(np.mean(w**2) * kept))


def macs_of_w(net: tn.Network) -> float:
    tensors = [core.legs for core in net.topology.cores]
    modes = tuple(net.topology.modes)
    return path_macs(tensors, modes, net.sizes, greedy_path(tensors, modes, net.sizes))


def target(net: tn.Network) -> float:
    """Each output sums in_features products, of which a kept leg leaves only its own block."""
    kept = math.prod(net.topology.inputs[leg] for leg in net.topology.kept)
    return math.sqrt(kept / net.in_features)


@pytest.mark.slow
@pytest.mark.parametrize("most", [3e7, pytest.param(2e8, marks=pytest.mark.thorough)], ids=["small", "large"])
@pytest.mark.parametrize("name", first_of(sorted(tn.catalogue(), key=["mpo", "btt"].__contains__, reverse=True), 2))
def test_the_spread_of_w_over_the_catalogue(name: str, most: float) -> None:
    tested, spreads = [], {}
    for sites, side in SIDE.items():
        for rank in (1, 2, 4, 7, 64):
            sizes = (side,) * sites
            try:
                t = getattr(tn, name)(sizes, sizes)
            except TopologyError:
                continue  # too few sites for this one
            net = t.with_rank(rank, clip=True)
            if net.num_params > 2e6 or macs_of_w(net) > most:  # W itself would take too long here
                continue
            if net not in spreads:  # ranks are clipped
                spreads[net] = std_of_w(net, seed=sites)
            spread = spreads[net]
            assert abs(spread / target(net) - 1) < 0.1, f"{sites} sites, rank {rank}: {spread} against {target(net)}"
            tested.append((sites, rank))
    assert len({rank for _, rank in tested}) >= 3
    assert len({sites for sites, _ in tested}) >= 2


@pytest.mark.parametrize("net", HAND, ids=range(len(HAND)))
@pytest.mark.parametrize("scheme", ["normal", "orthogonal", "identity"])
def test_the_spread_of_hyperedges_and_kept_legs(net: tn.Network, scheme: str) -> None:
    assert abs(std_of_w(net, 3, scheme=scheme) / target(net) - 1) < 0.1


def test_the_spread_over_random_graphs() -> None:
    for seed in range(150):
        net = random_network(seed, cores=6)
        assert abs(std_of_w(net, seed) / target(net) - 1) < 0.1, seed


def test_gain_scales_w() -> None:
    net = tn.ring((4, 4, 4), (4, 4, 4)).with_rank(5)
    one, three = net.to_dense(net.init(0)), net.to_dense(net.init(0, gain=3.0))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-4, atol=1e-6)


@pytest.mark.thorough
def test_many_sites_neither_underflow_nor_overflow() -> None:
    for make in (tn.mpo, tn.tree, tn.ring, tn.kronecker, tn.cp):
        for rank in (1, 16 if make is tn.ring else 64):  # each too large for float32 to the power of 40
            net = make((4,) * 40, (4,) * 40).with_rank(rank)
            for array in net.init(0).values():
                rms = float(np.sqrt(np.mean(array.astype(np.float64) ** 2)))
                assert 1e-3 < rms < 10
                assert np.isfinite(array).all()


def test_every_intermediate_keeps_the_scale_of_the_input() -> None:
    net = tn.mpo((4,) * 6, (4,) * 6).with_rank(16)
    state = np.random.default_rng(0).standard_normal((64, 1, 1, 4**6))  # batch, bond, outputs, rest
    first, *middle, last = net.init(0).values()
    for core in (first[None], *middle, last[..., None]):
        split = state.reshape(64, state.shape[1], state.shape[2], 4, -1)
        state = np.einsum("nboir,biyc->ncoyr", split, core, optimize=True)
        state = state.reshape(64, core.shape[3], -1, split.shape[-1])
        assert 0.3 < np.sqrt(np.mean(state**2)) < 3


def test_structural_zeros_count_in_the_mean_square() -> None:
    net = HAND[1]
    weights = net.init(0)
    w = net.to_dense(weights).astype(np.float64)
    assert mean_square_of(net, weights) == pytest.approx(np.mean(w**2), rel=1e-6)


@pytest.mark.thorough
def test_the_estimate_of_large_networks_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (tn.peps, tn.complete):
        net = make((3,) * 4, (3,) * 4).with_rank(24)
        assert 0.9 < std_of_w(net, 0) / target(net) < 1.1
    monkeypatch.setattr(init_module, "_AFFORDABLE", 1e6)
    net = tn.ring((6,) * 4, (6,) * 4).with_rank(24)  # now too large to contract with itself: entries of W are drawn
    assert 0.9 < std_of_w(net, 0) / target(net) < 1.1


@pytest.mark.cases(1)
@pytest.mark.parametrize("scheme", ["normal", "orthogonal", "identity"])
@pytest.mark.parametrize(
    ("make", "inputs", "outputs", "rank"),
    [
        (tn.peps, (4,) * 9, (3,) + (1,) * 8, 7),
        (tn.complete, (4,) * 8, (3,) + (1,) * 7, 2),
        (tn.ring, (4,) * 9, (1,) * 9, 64),
    ],
    ids=["peps", "complete", "ring"],
)
def test_the_spread_of_many_inputs_to_few_outputs(make, inputs, outputs, rank: int, scheme: str) -> None:
    net = make(inputs, outputs).with_rank(rank)  # too dear to contract with itself
    assert abs(std_of_w(net, 0, scheme=scheme) / target(net) - 1) < 0.05


@pytest.mark.slow
def test_layers_whose_w_is_beyond_memory_are_drawn_too() -> None:
    net = tn.ring((4,) * 24, (4,) * 24).with_rank(64)
    cores = net.init(0)
    rng = np.random.default_rng(1)
    entries = []
    for _ in range(150):
        at = rng.integers(0, 4, (24, 2))
        chain = [core[:, x, y] for core, (x, y) in zip(cores.values(), at, strict=True)]
        entries.append(np.trace(np.linalg.multi_dot([m.astype(np.float64) for m in chain])))
    assert 0.75 < np.std(entries) * 4.0**12 < 1.3
    grid = tn.peps((2,) * 36, (2,) * 36).with_rank(6).init(0)  # no entry of this one can be had
    assert all(
        0.1 < np.mean(a.astype(np.float64) ** 2) * f < 10
        for a, f in zip(grid.values(), fan_ins(tn.peps((2,) * 36, (2,) * 36).with_rank(6)).values(), strict=True)
    )


# -- seeds -------------------------------------------------------------------------------------------------


def test_one_seed_one_draw() -> None:
    net = tn.mera((2, 3, 2), (3, 2, 2)).with_rank(3)
    first, again, other = net.init(7), net.init(7), net.init(8)
    for name, shape in net.shapes.items():
        assert first[name].shape == shape
        assert first[name].dtype == np.float32
        assert first[name].flags.c_contiguous
        assert np.array_equal(first[name], again[name])
        assert not np.isclose(first[name], other[name]).any()


def test_the_numbers_are_pinned() -> None:
    """Other numbers here mean that every seed of every user draws other weights than before."""
    (core,) = tn.dense(2, 2).with_rank(1).init(0).values()
    np.testing.assert_allclose(core.ravel(), PINNED, rtol=1e-6)


PINNED = [1.0515785, 0.24851263, 0.6744753, -0.6144162]


def test_cores_and_layers_differ() -> None:
    net = tn.mpo((4, 4), (4, 4)).with_rank(4)
    cores = net.init(0)
    assert not np.isclose(cores["core0"].ravel(), cores["core1"].ravel()).any()
    model = tn.Sequential(tn.Linear(net), tn.Linear(net)).init(0)
    assert not np.isclose(model["0.core0"], model["1.core0"]).any()


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    tn.mpo((4, 4), (4, 4)).with_rank(4).init(0)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[arg-type]


# -- schemes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [tn.mpo((4, 6, 3), (5, 2, 4)).with_rank(5), HAND[0], tn.dense(8, 5).with_rank(1)],
                         ids=["mpo", "hyperedge", "dense"])  # fmt: skip
def test_orthogonal_cores_are_isometries_up_to_scale(net: tn.Network) -> None:
    t = net.topology
    last = {leg: core.name for core in t.cores for leg in core.legs}
    for core in t.cores:
        array = net.init(0, scheme="orthogonal")[core.name].astype(np.float64)
        summed = [i for i, leg in enumerate(core.legs) if leg not in t.outputs and last[leg] == core.name]
        rest = [i for i in range(array.ndim) if i not in summed]
        matrix = array.transpose(summed + rest).reshape(fan_ins(net)[core.name], -1)
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        np.testing.assert_allclose(gram, gram[0, 0] * np.eye(len(gram)), atol=1e-5 * gram[0, 0])


def test_identity_is_near_the_identity() -> None:
    net = tn.mpo((3, 4), (3, 4)).with_rank(3)
    w = net.to_dense(net.init(0, scheme="identity"))
    unit = w / w[0, 0]
    np.testing.assert_allclose(unit, np.eye(12), atol=0.15)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"scheme": "orthogonl"}, "unknown init scheme 'orthogonl'. Did you mean 'orthogonal'?"),
        ({"gain": 0.0}, "gain must be finite and above 0, received 0.0"),
        ({"gain": math.inf}, "gain must be finite and above 0, received inf"),
    ],
)
def test_errors(options: dict, expected: str) -> None:
    with pytest.raises(TopologyError, match=re.escape(expected)):
        tn.dense(4, 4).with_rank(1).init(0, **options)


# -- learning rates ----------------------------------------------------------------------------------------


def test_fan_ins_by_hand() -> None:
    assert fan_ins(tn.mpo((4, 8, 2), (3, 3, 3)).with_ranks({"a0": 5, "a1": 7})) == {
        "core0": 4, "core1": 8 * 5, "core2": 2 * 7,
    }  # fmt: skip
    assert fan_ins(tn.cp((2, 3), (4, 5)).with_rank(7)) == {"core0": 2, "core1": 3, "core2": 1, "core3": 7}
    assert fan_ins(tn.btt((2, 3), (4, 5)).with_rank(7)) == {"core0": 3, "core1": 7 * 2}
    assert fan_ins(HAND[1]) == {"core0": 9, "core1": 3, "core2": 5}


def test_fan_ins_multiply_to_everything_that_is_summed() -> None:
    for seed in range(50):
        net = random_network(seed)
        summed = [leg for leg in net.sizes if leg not in net.topology.outputs]
        assert math.prod(fan_ins(net).values()) == math.prod(net.sizes[leg] for leg in summed)


def test_learning_rate_factors_of_adam() -> None:
    net = tn.mpo((4, 8), (3, 3)).with_rank(5)
    assert net.lr_factors() == pytest.approx({"core0": 8.0 / 2, "core1": 0.8 / 2})
    assert net.lr_factors(base=16) == pytest.approx({"core0": 4.0 / 2, "core1": 0.4 / 2})
    assert tn.dense(32, 8).with_rank(1).lr_factors(lr=10.0) == {"core0": 1.0}
    assert net.lr_factors(lr=1e-3) == net.lr_factors()
    # A large step: 0.75 / 2 of a core's output, between changes at random and changes that agree.
    assert net.lr_factors(lr=1.0) == pytest.approx({"core0": 0.375 / 4**0.75, "core1": 0.375 / 40**0.75})


def test_learning_rate_factors_of_sgd() -> None:
    net = tn.low_rank(64, 16).with_rank(4)
    # The environment of the first core is the second one, 16 x 4; that of the second, 4 x 64, keeps lengths.
    first, second = net.lr_factors(optimizer="sgd").values()
    assert (first, second) == pytest.approx((1 / 2 / (16 / 4), 1 / 2))
    assert tn.dense(32, 8).with_rank(1).lr_factors(optimizer="sgd") == {"core0": 1.0}


@pytest.mark.thorough
def test_a_step_of_sgd_is_stable_where_that_of_the_dense_layer_is() -> None:
    # The largest curvature of |W|^2 / 2 along all cores at once, each by its factor: 1 for a dense layer.
    for name in ("low_rank", "mpo", "ring", "tree", "peps", "mera", "tucker", "cp"):
        net = tn.build(name, 64, 64).with_rank(3)
        cores = {key: core.astype("f8") for key, core in net.init(0).items()}
        factors = net.lr_factors(optimizer="sgd")
        columns = []
        for key, core in cores.items():
            for i in range(core.size):
                unit = np.zeros(core.size)
                unit[i] = math.sqrt(factors[key])
                columns.append(net.to_dense({**cores, key: unit.reshape(core.shape)}).ravel())
        largest = np.linalg.norm(np.array(columns), 2) ** 2
        assert 0.1 < largest < 4, (name, largest)


def test_a_step_of_adam_lowers_the_loss_of_an_embedding_as_that_of_a_dense_table() -> None:
    gradient = np.random.default_rng(0).standard_normal((16, 64))
    for name in ("low_rank", "mpo", "tree", "ring", "peps", "mera", "tucker", "cp"):
        layer = tn.Embedding(tn.build(name, 64, 16).with_rank(3))
        cores = {key: core.astype("f8") for key, core in layer.init(0).items()}
        lowered = 0.0
        for key, factor in layer.lr_factors().items():
            units = np.eye(cores[key].size).reshape(-1, *cores[key].shape)
            of_core = [np.sum(gradient * layer.solid().to_dense({**cores, key: unit})) for unit in units]
            lowered += factor * np.abs(of_core).sum()
        assert lowered / np.abs(gradient).sum() == pytest.approx(1, rel=0.4), name
    assert tn.Embedding(64, 16).lr_factors(lr=1.0) == {"core0": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adma"}, r"unknown optimizer 'adma'\. Did you mean"),
        ({"lr": 0.0}, "lr must be finite and above 0, received 0.0"),
        ({"lr": float("nan")}, "lr must be finite and above 0, received nan"),
    ],
)
def test_learning_rate_factors_refuse(options, message) -> None:
    with pytest.raises(tn.TN4NNError, match=message):
        tn.low_rank(4, 4).with_rank(1).lr_factors(**options)
