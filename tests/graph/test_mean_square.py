"""The strategies for the mean square of W: which of them are exact, and which answers when."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._graph import init
from tn4nn.testing import random_network

SHARED = tn.topology("x0 y0 k a, x1 y1 k a", {"x0": 2, "x1": 3, "k": 2}, {"y0": 2, "y1": 2, "k": 2}).with_rank(3)
FREE = tn.topology("x0 y0 a, x1 y1 a", {"x0": 2, "x1": 3, "k": 2}, {"y0": 2, "y1": 2, "k": 2}).with_rank(3)
NETWORKS = [*(random_network(seed, cores=5) for seed in range(20)), SHARED, FREE]


def weighted(net: tn.Network, seed: int = 0) -> init._Weighted:
    rng = np.random.default_rng(seed)
    return init._Weighted(net, {name: rng.standard_normal(shape) for name, shape in net.shapes.items()}, seed)


def exact(w: init._Weighted) -> float:
    """From W of the modes, padding included."""
    t = w.network.topology
    whole = tn.Network(tn.Topology(t.cores, t.inputs, t.outputs), w.network.ranks)
    return float(np.mean(whole.to_dense(w.cores) ** 2))


@pytest.mark.parametrize("number", range(len(NETWORKS)))
def test_two_strategies_are_exact_and_probes_are_near(number: int) -> None:
    w = weighted(NETWORKS[number])
    for strategy in (init._by_norm, init._by_forming):
        assert strategy(w) == pytest.approx(exact(w), rel=1e-10)
    assert init._by_probes(w) == pytest.approx(exact(w), rel=0.5)  # 256 samples


@pytest.mark.parametrize("strategy", [init._by_entries, init._by_cores])
def test_samples_of_entries_and_of_cores_are_near_on_average(strategy: init._Strategy) -> None:
    net = tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(6)
    ratios = []
    for seed in range(20):
        w = weighted(net, seed)
        found = strategy(w)
        assert found is not None
        ratios.append(found / exact(w))
    assert np.mean(ratios) == pytest.approx(1, rel=0.15)


def test_terms_are_exact_where_one_of_them_is_all() -> None:
    w = weighted(tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(1))
    assert init._by_terms(w) == pytest.approx(exact(w), rel=1e-10)


def test_the_first_affordable_strategy_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tn.ring((4, 4, 4), (4, 4, 4)).with_rank(5)
    w = weighted(net)

    def answer() -> float:
        return init.mean_square_of(net, w.cores)

    assert answer() == init._by_norm(w)
    monkeypatch.setattr(init, "_AFFORDABLE", 1e4)  # 16 times that forms W
    assert init._by_norm(w) is None
    assert answer() == init._by_forming(w)
    monkeypatch.setattr(init, "_ELEMENTS", 2**11)  # W has 2^12
    assert init._by_forming(w) is None
    assert init._by_probes(w) is None
    assert answer() == init._by_entries(w)
    monkeypatch.setattr(init, "_AFFORDABLE", 0)
    assert init._by_entries(w) is None
    assert answer() == init._by_cores(w)
    assert init.mean_square_of(net, w.cores, diagonal=True) == init._by_terms(w)
    assert math.isfinite(answer())
