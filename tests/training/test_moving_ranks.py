"""Bonds that grow and shrink while the weights are there, and during training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from helpers import relative_error, small_data

import tn4nn as tn
from tn4nn._compression.ranks import Resized, schmidt_values, with_larger_bonds, with_smaller_bonds
from tn4nn._training import loop as _loop
from tn4nn._training.autorank import AutoRank, moved

GRAPHS = ["low_rank", "mpo", "tree", "tucker", "ring", "peps", "mera", "cp", "btt", "block_term", "complete"]


SITES = {"low_rank": 1, "tucker": 2, "cp": 2, "btt": 2, "peps": 4, "mera": 4}


def network(name: str, rank: int = 3) -> tn.Network:
    return tn.build(name, 24, 18, sites=SITES.get(name, 3), pad=False).with_rank(rank)


# -- growing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAPHS)
def test_growing_leaves_the_function_and_reaches_every_entry(name: str) -> None:
    net = network(name)
    weights = net.init(0)
    before = {core: array.copy() for core, array in weights.items()}
    larger, more = tn.grow(net, weights, {bond: rank + 2 for bond, rank in net.ranks.items()})
    assert set(larger.ranks.values()) == {5}
    assert relative_error(larger.to_dense(more), net.to_dense(weights)) < 1e-6
    assert all(np.array_equal(before[core], array) for core, array in weights.items())
    assert all(array.dtype == np.float32 for array in more.values())
    # For one bond alone, no slice that is new stays without a gradient: either it or what it multiplies is not zero.
    for bond in net.ranks:
        one, some = tn.grow(net, weights, {bond: net.ranks[bond] + 1})
        slices = [np.take(some[c.name], -1, c.legs.index(bond)) for c in one.topology.cores if bond in c.legs]
        assert sum(not part.any() for part in slices) == 1, bond


@pytest.mark.parametrize("name", GRAPHS)
def test_cutting_what_was_grown_gives_the_function_back(name: str) -> None:
    net = network(name)
    weights = net.init(0)
    every = {bond: rank + 2 for bond, rank in net.ranks.items()}
    # In a loop a cut sees two cores only, and what the other bonds make zero looks as if it were there.
    loops = name in ("ring", "peps", "mera", "complete")
    for ranks in [{bond: rank} for bond, rank in every.items()] if loops else [every]:
        larger, more = tn.grow(net, weights, ranks)
        back, kept = tn.cut(larger, more, {bond: net.ranks[bond] for bond in ranks})
        assert back == net
        assert relative_error(back.to_dense(kept), net.to_dense(weights)) < 1e-5


# -- cutting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["low_rank", "mpo", "tree", "tucker"])
def test_a_bond_of_a_tree_is_cut_by_schmidt_values(name: str) -> None:
    net = network(name, 4)
    weights = {core: array.astype(np.float64) for core, array in net.init(1).items()}
    w = net.to_dense(weights)
    for bond in net.ranks:
        cuts = {cut.name: cut for cut in tn.entanglement(net, weights, cuts="bonds")}
        values = schmidt_values(net, weights, bond)
        assert any(
            np.allclose(values, np.pad(c.spectrum, (0, 9))[: len(values)], atol=1e-6 * values[0]) for c in cuts.values()
        )
        smaller, kept = tn.cut(net, weights, {bond: 2})
        lost = np.linalg.norm(smaller.to_dense(kept) - w)
        assert lost == pytest.approx(np.sqrt(np.sum(values[2:] ** 2)), rel=1e-5)
        assert smaller.ranks == {**net.ranks, bond: 2}


def test_a_bond_in_a_loop_is_cut_by_its_two_cores() -> None:
    net = network("ring", 4)
    weights = {core: array.astype(np.float64) for core, array in net.init(1).items()}
    bond = next(iter(net.ranks))
    pair = [core for core in net.topology.cores if bond in core.legs]
    a, b = (np.moveaxis(weights[c.name], c.legs.index(bond), 0).reshape(4, -1) for c in pair)
    assert np.allclose(schmidt_values(net, weights, bond), np.linalg.svd(a.T @ b, compute_uv=False)[:4])
    kept = tn.cut(net, weights, {bond: 3})[1]
    c, d = (np.moveaxis(kept[c.name], c.legs.index(bond), 0).reshape(3, -1) for c in pair)
    lost = np.linalg.norm(a.T @ b - c.T @ d)
    assert lost == pytest.approx(float(np.linalg.svd(a.T @ b, compute_uv=False)[3]))
    assert np.allclose(np.linalg.norm(c, axis=1), np.linalg.norm(d, axis=1))  # balanced


def test_a_hyperedge_loses_the_value_with_the_least_product_of_norms() -> None:
    net = network("cp", 3)
    weights = {core: array.astype(np.float64) for core, array in net.init(1).items()}
    axis = {core.name: core.legs.index("r") for core in net.topology.cores}
    for name, array in weights.items():
        np.moveaxis(array, axis[name], 0)[1] *= 0.1
    smaller, kept = tn.cut(net, weights, {"r": 2})
    assert smaller.ranks == {"r": 2}
    for name, array in kept.items():
        assert np.array_equal(array, np.take(weights[name], [0, 2], axis[name]))


def test_moments_follow_as_gradients_do() -> None:
    """The gradient at the cut weights is the old gradient, turned, where nothing is lost by the cut."""
    torch = pytest.importorskip("torch")
    from tn4nn_torch import TNLinear

    net = network("mpo", 3)
    larger, weights = tn.grow(net, net.init(0), {"a0": 5}, seed=1)
    noise = np.random.default_rng(0)
    mixing = noise.standard_normal((5, 5)) + 3 * np.eye(5)  # some other gauge, so that the cut has something to turn
    weights["core0"] = np.tensordot(weights["core0"], mixing, (2, 0))
    weights["core1"] = np.tensordot(np.linalg.inv(mixing), weights["core1"], (1, 0))
    result = with_smaller_bonds(Resized(larger, {n: a.astype(np.float64) for n, a in weights.items()}), {"a0": 3})
    x = torch.from_numpy(noise.standard_normal((7, 24)))

    def gradients(which: tn.Network, cores: Any) -> dict[str, Any]:
        layer = TNLinear(which, bias=False, weights=cores, dtype="float64")
        (layer(x) ** 2).sum().backward()
        return {n: p.grad.numpy() for n, p in layer.named_parameters()}

    old, new = gradients(larger, weights), gradients(result.network, result.weights)
    for name, gradient in new.items():
        assert relative_error(result.moment(name, old[name], 1), gradient) < 1e-5, name
        assert (result.moment(name, old[name] ** 2, 2) >= gradient**2 * (1 - 1e-5)).all(), name


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda n, w: tn.grow(n, w, {"a9": 4}), tn.TopologyError, "'a9' is not a bond of 'mpo'. Known: 'a0', 'a1'"),
        (lambda n, w: tn.grow(n, w, {"a0": 2}), tn.TopologyError, "bond 'a0' has size 3: expected one above, "
            "received 2; see tn.cut"),
        (lambda n, w: tn.cut(n, w, {"a0": 4}), tn.TopologyError, "expected one below, received 4; see tn.grow"),
        (lambda n, w: tn.cut(n, w, {"a0": 0}), tn.TopologyError, "bond 'a0'"),
        (lambda n, w: tn.cut(n, {}, {"a0": 2}), tn.ShapeError, "core 'core0' of shape ("),
        (lambda n, w: tn.cut(n, {k: a * 1j for k, a in w.items()}, {"a0": 2}), tn.ShapeError, "received complex"),
        (lambda n, w: AutoRank(params=0), tn.BudgetError, "must be at least 1"),
        (lambda n, w: AutoRank(params=9, share=1.5), tn.TN4NNError, "share and until must be from 0 to 1"),
        (lambda n, w: AutoRank(params=9, every=0), tn.TN4NNError, "every must be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_bad_ranks_are_errors(call: Any, error: Any, text: str) -> None:
    net = network("mpo")
    with pytest.raises(error) as caught:
        call(net, net.init(0))
    assert text in str(caught.value)


# -- during training --------------------------------------------------------------------------------------------

MODEL = tn.Sequential(
    tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(3)), tn.ReLU(), tn.Linear(tn.ring((4, 4), (1, 3)).with_rank(2))
)


def spent(model: tn.Layer) -> int:
    return sum(net.num_params for net in model.networks().values())


# adamw's state is that of adam.
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", pytest.param("adamw", marks=pytest.mark.thorough), "muon", "sgd"])
def test_ranks_move_under_the_budget_on_every_backend_alike(optimizer: str) -> None:
    for name in ("torch", "jax"):
        pytest.importorskip(name)
    budget = 240
    options: dict[str, Any] = {"epochs": 6, "batch_size": 20, "lr": 5e-3, "optimizer": optimizer, "seed": 2}
    options["ranks"] = AutoRank(params=budget)
    runs = [tn.train(MODEL, small_data(), backend=name, **options) for name in ("torch", "jax")]
    for run in runs:
        assert list(run.ranks) == [1, 2, 3]  # epochs 4 to 6 are left in peace
        for ranks in run.ranks.values():
            nets = {n: tn.Network(net.topology, ranks[n]) for n, net in MODEL.networks().items()}
            assert sum(net.num_params for net in nets.values()) <= budget
        assert spent(MODEL) < spent(run.model) <= budget
        run.model.check(run.weights)
        run.model.check(run.best_weights)
        assert run.best_epoch > 3
    assert runs[0].ranks == runs[1].ranks
    assert np.abs(runs[0].losses - runs[1].losses).max() < 1e-3


@pytest.mark.cases(1)
def test_growing_alone_does_not_move_the_loss(trained_backend: str) -> None:
    x, y = small_data()
    backend = tn.backend(trained_backend)
    run = tn.train(MODEL, (x, y), backend=trained_backend, epochs=2, lr=5e-3)
    auto = AutoRank(params=400, share=0.0)
    result = moved(run.model, run.weights, auto)
    assert spent(result.model) > spent(run.model)
    before, after = (
        backend.forward(m.build(trained_backend, w), x)
        for m, w in ((run.model, run.weights), (result.model, result.weights))
    )
    assert np.abs(before - after).max() < 1e-6 * max(1.0, float(np.abs(before).max()))


BONDED = [name for name in tn.catalogue() if tn.build(name, 24, 18, sites=SITES.get(name, 3)).bonds]
GROWING = [*((name, "adam") for name in BONDED), ("mpo", "sgd"), ("ring", "sgd"), ("cp", "sgd")]
# What moves the weights is the same code for both backends, and its cases run on torch. jax has the optimizer's state
# in a shape of its own, for which one case of each optimizer and kind of bond is enough; it compiles each step anew.
ON_JAX = [("mpo", "adam"), ("block_term", "adam"), ("cp", "sgd")]


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("name", "optimizer", "trained_backend"),
    [
        *(pytest.param(*case, "torch") for case in GROWING),
        *(pytest.param(*case, "jax", marks=[] if case in ON_JAX else pytest.mark.thorough) for case in GROWING),
    ],
)
def test_every_topology_grows_in_training_with_its_optimizer(
    name: str, optimizer: str, trained_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(trained_backend)
    net = network(name, 2)
    model = tn.Sequential(tn.Linear(net), tn.Tanh(), tn.Linear(18, 3))
    x, y = small_data(60, features=24)
    seen: list[dict[str, Any]] = []

    def look(model: Any, trainer: Any) -> dict[str, Any]:
        outputs = backend.forward(model.build(trained_backend, trainer.weights()), x)
        return {"y": outputs, "state": trainer.state(), "slots": trainer.slots(), "model": model}

    def change(model: Any, trainer: Any, *given: Any) -> Any:
        seen.append(look(model, trainer))
        changed = plain(model, trainer, *given)
        seen.append(look(*changed[:2]))
        return changed

    backend, plain = tn.backend(trained_backend), _loop.change_ranks
    monkeypatch.setattr(_loop, "change_ranks", change)
    auto = AutoRank(params=int(1.7 * net.num_params) + 40, share=0.0, until=0.5)
    options: dict[str, Any] = {"epochs": 2, "batch_size": 20, "lr": 1e-2, "optimizer": optimizer}
    run = tn.train(model, (x, y), backend=trained_backend, ranks=auto, **options)
    before, after = seen[:2]
    assert list(run.ranks) == [1]
    larger = after["model"].networks()["0"]
    assert net.num_params < larger.num_params <= auto.params
    assert np.abs(before["y"] - after["y"]).max() <= 1e-6 * max(1.0, float(np.abs(before["y"]).max()))
    assert before["slots"] == after["slots"]
    moments = 0
    for key, old in before["state"].items():
        new = after["state"][key]
        if key not in before["slots"]:
            if key.startswith("optimizer/"):
                np.testing.assert_array_equal(old, new)  # counts of steps
            continue
        corner = tuple(slice(0, n) for n in old.shape)
        assert old.any()
        np.testing.assert_allclose(new[corner], old, rtol=1e-5, atol=1e-12)
        fresh = np.ones(new.shape, bool)
        fresh[corner] = False
        assert np.all(new[fresh] == 0 if before["slots"][key][1] == 1 else new[fresh] >= 0)
        moments += fresh.any()
    assert moments >= 2  # of the cores on a bond that grew
    assert np.isfinite(run.losses).all()


def test_squares_of_gradients_start_at_the_mean_where_a_bond_is_new() -> None:
    net = tn.low_rank(4, 4).with_rank(2)
    weights = {name: array.astype(np.float64) for name, array in net.init(0).items()}
    result = with_larger_bonds(Resized(net, weights), {"a0": 4}, 0)
    moment = np.arange(8.0).reshape(4, 2)
    assert np.array_equal(result.moment("core0", moment, 1), np.pad(moment, ((0, 0), (0, 2))))
    mean = moment.mean(axis=1, keepdims=True)
    assert np.allclose(result.moment("core0", moment, 2), np.concatenate([moment, mean, mean], axis=1))


def test_what_carries_nothing_is_cut_and_what_carries_much_grows() -> None:
    t = tn.low_rank(16, 16)
    model = tn.Sequential(tn.Linear(t.with_rank(6), bias=False), tn.Linear(t.with_rank(2), bias=False))
    rng = np.random.default_rng(0)
    weights = dict(model.init(0))
    weights["0.core0"][:, 2:] *= 1e-3  # four values that carry nothing
    weights["1.core0"] = np.linalg.qr(rng.standard_normal((16, 2)))[0].astype(np.float32)
    weights["1.core1"] = np.linalg.qr(rng.standard_normal((16, 2)))[0].T.astype(np.float32)
    result = moved(model, weights, AutoRank(params=256, share=0.5))
    ranks = {name: net.ranks["a0"] for name, net in result.model.networks().items()}
    assert ranks["1"] == 4  # twice as large, the most at once
    assert ranks["0"] < 6
    assert spent(result.model) <= 256


def test_errors_of_training_with_ranks(tmp_path: Any) -> None:
    with pytest.raises(
        tn.BudgetError, match=f"have {spent(MODEL)} parameters at the start, above params=50: start smaller"
    ):
        tn.train(MODEL, small_data(), ranks=AutoRank(params=50))
    with pytest.raises(tn.TN4NNError, match="needs a network with bonds"):
        tn.train(tn.Linear(16, 3), small_data(), ranks=AutoRank(params=50))
    with pytest.raises(tn.TN4NNError, match="which a checkpoint cannot store"):
        tn.train(MODEL, small_data(), ranks=AutoRank(params=500), checkpoint=tmp_path / "c")


@pytest.mark.thorough
def test_digits_against_the_best_uniform_rank() -> None:
    """At equal budgets: never far below the largest equal rank on every bond that fits."""
    pytest.importorskip("torch")
    digits = tn.load_data("digits")
    t, last = tn.build("mpo", 64, 64), tn.build("mpo", 64, 10)
    budget = 1200
    rank = max(r for r in range(1, 16) if sum(x.with_rank(r, clip=True).num_params for x in (t, last)) <= budget)
    uniform = tn.Sequential(
        tn.Linear(t.with_rank(rank, clip=True)), tn.ReLU(), tn.Linear(last.with_rank(rank, clip=True))
    )
    scores: dict[str, list[float]] = {"uniform": [], "auto": []}
    for seed in range(3):
        common: dict[str, Any] = {"backend": "torch", "epochs": 20, "lr": 2e-2, "seed": seed}
        scores["uniform"].append(tn.train(uniform, digits, **common).test_accuracy)
        run = tn.train(uniform, digits, ranks=AutoRank(params=budget), **common)
        scores["auto"].append(run.test_accuracy)
        assert spent(run.model) <= budget
    assert np.mean(scores["auto"]) > np.mean(scores["uniform"]) - 1.0, scores


def test_an_auto_rank_is_plain_small_data() -> None:
    auto = AutoRank(params=9)
    assert dataclasses.replace(auto, every=2).due(2, 10)
    assert not dataclasses.replace(auto, every=2).due(3, 10)
    assert not auto.due(7, 10)
    assert not dataclasses.replace(auto, until=1.0).due(10, 10)


# -- entanglement over epochs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_entanglement_is_followed_while_ranks_move(trained_backend: str) -> None:
    log = tn.EntanglementLog(MODEL)
    last: dict[str, Any] = {}

    def watch(epoch: tn.Epoch, trainer: Any) -> None:
        log(epoch, trainer)
        last["bounds"] = [cut.bound for cut in log.epochs[-1]["0"]]

    run = tn.train(
        MODEL, small_data(), backend=trained_backend, epochs=4, lr=1e-2, ranks=AutoRank(params=240), callback=watch
    )
    entropies = log.entropies("0")
    assert entropies.shape == (4, 1)
    assert len(np.unique(entropies)) == 4
    network = run.model.networks()["0"]
    final = {core: run.weights[f"0.{core}"] for core in network.shapes}
    assert entropies[-1] == pytest.approx(tn.entanglement(network, final).entropies)
    assert last["bounds"] == pytest.approx([np.log(network.ranks["a0"])])
    assert (entropies[-1] <= np.array(last["bounds"]) + 1e-9).all()


def test_errors_of_the_log() -> None:
    with pytest.raises(tn.TN4NNError, match="no network with bonds: there is no entanglement to follow"):
        tn.EntanglementLog(tn.Linear(4, 2))
    with pytest.raises(tn.TN4NNError, match="'1' is not a layer with bonds of this model. Known: '0', '2'"):
        tn.EntanglementLog(MODEL).entropies("1")


def test_ranks_that_end_where_they_began_change_nothing() -> None:
    """What is cut and grown again would lose what it had learned."""
    net = tn.mpo((4, 4, 4), (4, 4, 4)).with_ranks({"a0": 14, "a1": 2})
    model = tn.Sequential(tn.Linear(net), tn.ReLU(), tn.Linear(64, 10))
    run = tn.train(model, tn.load_data("digits"), epochs=2, lr=3e-3)
    after = moved(model, run.weights, AutoRank(params=net.num_params))
    assert after.model.networks()["0"].ranks == net.ranks
    assert all(np.array_equal(array, run.weights[name]) for name, array in after.weights.items())
