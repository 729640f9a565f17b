"""NaN and infinity are refused at every door of compression, with the core and the place."""

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._compression.entanglement import bond_shares

TREE = tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(3)
LOOP = tn.ring((4, 4, 4), (4, 4, 4)).with_rank(3)
MODES = {"inputs": (4, 4), "outputs": (4, 4)}

DOORS = {
    "canonicalise": lambda net, w: tn.canonicalise(net, w),
    "balance": tn.balance,
    "gauge_error before": lambda net, w: tn.gauge_error(net, w, net.init(0)),
    "gauge_error after": lambda net, w: tn.gauge_error(net, net.init(0), w),
    "grow": lambda net, w: tn.grow(net, w, {"a0": 5}),
    "grow nothing": lambda net, w: tn.grow(net, w, {}),
    "cut": lambda net, w: tn.cut(net, w, {"a0": 2}),
    "cut nothing": lambda net, w: tn.cut(net, w, {}),
    "rounded to a rank": lambda net, w: tn.rounded(net, w, rank=2),
    "rounded to an error": lambda net, w: tn.rounded(net, w, error=0.1),
    "rounded to a budget": lambda net, w: tn.rounded(net, w, params=200),
    "entanglement": lambda net, w: tn.entanglement(net, w),
    "entanglement_nulls": lambda net, w: tn.entanglement_nulls(net, w),
    "a picture coloured by weights": bond_shares,
}
TREES = ("canonicalise", "rounded to a rank", "rounded to an error", "rounded to a budget")


@pytest.mark.cases(37)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("door", DOORS)
def test_weights_that_are_no_numbers_are_refused(door, bad):
    for net in (TREE,) if door in TREES else (TREE, LOOP):
        weights = {name: array.astype(np.float64) for name, array in net.init(0).items()}
        weights["core1"][0, 1] = bad
        with pytest.raises(tn.DataError, match="core 'core1'.*(NaN or infinite|out of range)"):
            DOORS[door](net, weights)
        with pytest.raises(tn.ShapeError, match="core1"):
            DOORS[door](net, {**weights, "core1": np.full(weights["core1"].shape, "a")})


MATRICES = {
    "decompose": lambda w: tn.decompose(w, tn.mpo((4, 4), (4, 4)), rank=2),
    "decompose by least squares": lambda w: tn.decompose(w, tn.ring((4, 4), (4, 4)), rank=2),
    "its inputs": lambda w: tn.decompose(np.eye(16), tn.mpo((4, 4), (4, 4)), rank=2, inputs=w),
    "mps": lambda w: tn.mps(w.reshape(-1), (16, 16), rank=2),
    "low_rank_factors": lambda w: tn.low_rank_factors(w, rank=2),
    "entanglement": lambda w: tn.entanglement(w, **MODES),
    "entanglement_nulls": lambda w: tn.entanglement_nulls(w, **MODES),
    "search": lambda w: tn.search(w, error=0.1, evaluations=2),
}


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("door", MATRICES)
def test_matrices_that_are_no_numbers_are_refused(door, bad):
    w = np.random.default_rng(0).standard_normal((16, 16))
    w[3, 5] = bad
    with pytest.raises(tn.DataError, match="NaN or infinite|out of range"):
        MATRICES[door](w)


def test_ranks_do_not_move_in_a_run_that_has_diverged():
    pytest.importorskip("torch")
    model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(3)), tn.Linear(16, 2))
    x = np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32)
    with pytest.raises(tn.DataError, match="NaN or infinite"):
        tn.train(model, (x, (x[:, 0] > 0).astype(np.int64)), epochs=4, lr=1e30, ranks=tn.AutoRank(400), validation=None)
