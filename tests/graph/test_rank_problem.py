"""The greedy loop behind every choice of ranks, against loops that compute everything anew at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._compression.fit import Fitter
from tn4nn._compression.target import target_of
from tn4nn._compression.tree_svd import Tails, full_ranks, grown, shrunk
from tn4nn._graph.budget import _fill
from tn4nn._graph.rank_problem import RankStep, greedy, joint_problem, ranks_of, topology_problem
from tn4nn._graph.tree import tree_of
from tn4nn.testing import random_topology

Ranks = Mapping[str, int]


def params(t: tn.Topology, ranks: Ranks) -> int:
    sizes = {**t.modes, **ranks}
    return sum(math.prod(sizes[leg] for leg in core.legs) for core in t.cores)


def bonded(seed: int) -> tn.Topology:
    """A random topology that has bonds."""
    return next(t for i in range(100) if (t := random_topology(seed + 1000 * i)).bonds)


@pytest.mark.parametrize("seed", range(20))
def test_prices_are_the_parameters_of_one_rank(seed: int) -> None:
    t = bonded(seed)
    rng = np.random.default_rng(seed)
    ranks = {bond: int(rng.integers(2, 9)) for bond in t.bonds}
    problem = topology_problem(t)
    assert problem.params(ranks) == params(t, ranks)
    for bond in t.bonds:
        for direction in (1, -1):
            changed = params(t, {**ranks, bond: ranks[bond] + direction}) - params(t, ranks)
            assert problem.price(bond, ranks) == direction * changed


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("seed", range(20))
def test_greedy_steps_are_those_of_a_loop_that_forgets_everything(seed: int, direction: int) -> None:
    """Scores per price, with a worth that depends on the ranks of the same cores: the hardest that greedy allows."""
    t = bonded(seed)
    rng = np.random.default_rng(seed)
    worth = {bond: float(rng.uniform(1, 2)) for bond in t.bonds}
    ranks = {bond: int(rng.integers(1, 4)) if direction == 1 else int(rng.integers(4, 9)) for bond in t.bonds}
    budget = params(t, ranks) * 3 if direction == 1 else params(t, ranks) // 3
    problem = topology_problem(t)

    def score(state: Ranks, bond: str, price: int) -> float:
        around = sum(state[other] for other in problem.neighbours[bond])
        return direction * worth[bond] / price / around

    def allowed(state: Ranks, bond: str, price: int, spent: int) -> bool:
        return spent + price <= budget if direction == 1 else spent > budget and state[bond] > 1

    expected, state = [], dict(ranks)
    while True:
        spent = params(t, state)
        prices = {b: abs(params(t, {**state, b: state[b] + direction}) - spent) for b in state}
        can = [b for b in state if allowed(state, b, prices[b], spent)]
        if not can:
            break
        best = max(can, key=lambda b: score(state, b, prices[b]))
        state[best] += direction
        expected.append(best)

    def may(step: RankStep[str], spent: int) -> bool:
        return allowed(ranks, step.bond, step.price, spent)

    steps = list(greedy(problem, ranks, direction, lambda bond, price: score(ranks, bond, price), may))
    assert steps == expected
    assert len(steps) > 0
    assert ranks == state


def slowly_grown(t: tn.Topology, dropped: Tails, most: Ranks, budget: int, error: float, start: Ranks) -> Ranks:
    ranks = dict(start)
    while not error or dropped.sum(ranks) > error:
        gains = {}
        for bond in ranks:
            more = {**ranks, bond: ranks[bond] + 1}
            gain = dropped.change(bond, ranks, 1)[1] / (params(t, more) - params(t, ranks))
            if gain > 0 and params(t, more) <= budget and ranks[bond] < most[bond]:
                gains[bond] = gain
        if not gains:
            break
        ranks[max(gains, key=lambda bond: gains[bond])] += 1
    return ranks


def slowly_shrunk(t: tn.Topology, dropped: Tails, most: Ranks, budget: int, error: float) -> Ranks:
    ranks = dict(most)
    lost = dropped.sum(ranks)
    while True:
        losses = {}
        for bond in ranks:
            norm, logs = (-change for change in dropped.change(bond, ranks, -1))
            if ranks[bond] > 1 and (params(t, ranks) > budget or lost + norm <= error):
                price = params(t, ranks) - params(t, {**ranks, bond: ranks[bond] - 1})
                losses[bond] = logs / price, norm
        if not losses:
            break
        best = min(losses, key=lambda bond: losses[bond][0])
        ranks[best] -= 1
        lost += losses[best][1]
    return ranks if error else slowly_grown(t, dropped, most, budget, error, ranks)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("name", ["low_rank", "mpo", "tree", "tucker", "btt", "monarch", "peps"])
def test_ranks_by_spectra_are_those_of_slow_loops(name: str, share: float) -> None:
    t = tn.build(name, 64, 16, sites=2 if name == "peps" else 3)
    tree = tree_of(t)
    assert tree is not None
    decay = 0.9 ** np.arange(t.in_features)
    W = np.random.default_rng(0).normal(size=(t.out_features, t.in_features)) * decay
    dropped = Fitter(target_of(W, t, None, None), tree, "svd", 0, 2**32).tails
    most = full_ranks(tree, dropped, tn.rank_caps(t))
    error = share * dropped.total
    for budget in (W.size // 20, W.size // 5, W.size):
        start = dict.fromkeys(t.bonds, 1)
        assert grown(t, dropped, most, budget, error) == slowly_grown(t, dropped, most, budget, error, start)
        assert shrunk(t, dropped, most, budget, error) == slowly_shrunk(t, dropped, most, budget, error)


@pytest.mark.parametrize("seed", range(20))
def test_filling_raises_what_is_furthest_below_its_weight(seed: int) -> None:
    t = bonded(seed)
    weights = {bond: 1.0 + i % 3 for i, bond in enumerate(t.bonds)}
    problem = topology_problem(t, weights)
    budget = 2 * params(t, dict.fromkeys(t.bonds, 2))
    state = dict.fromkeys(t.bonds, 1)
    while True:
        fitting = [
            bond
            for bond in state
            if state[bond] < problem.caps[bond] and params(t, {**state, bond: state[bond] + 1}) <= budget
        ]
        if not fitting:
            break
        state[min(fitting, key=lambda bond: state[bond] / weights[bond])] += 1
    assert _fill(problem, dict.fromkeys(t.bonds, 1), budget) == state


def test_a_joint_problem_is_the_sum_of_its_parts() -> None:
    layers = {"a": tn.mpo((4, 4), (4, 4)), "b.c": tn.tree((2, 2, 2), (2, 2, 2))}
    parts = {name: topology_problem(t) for name, t in layers.items()}
    problem = joint_problem(parts, constant=5)
    ranks = {key: 2 + i for i, key in enumerate(problem.caps)}
    assert problem.params(ranks) == 5 + sum(params(t, ranks_of(name, ranks)) for name, t in layers.items())
    for (layer, bond), neighbours in problem.neighbours.items():
        assert neighbours == {(layer, other) for other in parts[layer].neighbours[bond]}
    assert math.prod(problem.weights.values()) == 1.0
