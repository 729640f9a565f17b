"""Structure search: what it finds, that it is honest, deterministic and resumable; and trees by entanglement."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import relative_error

import tn4nn as tn
from tn4nn._base.records import read_arrays, write_arrays
from tn4nn._compression.target import Target
from tn4nn._search.moves import larger, smaller, structure_of, swaps, warm_start
from tn4nn._search.objective import ArrayObjective
from tn4nn._search.reconnect import _sides
from tn4nn._search.screen import estimated_gains
from tn4nn.testing import random_network


def ring_tensor(seed: int, modes: int = 3, ranks: tuple[int, ...] = (3, 2, 2, 4, 3, 2)) -> np.ndarray:
    """A ring with its modes permuted: for the default ranks 126 parameters in 729 entries."""
    rng, n = np.random.default_rng(seed), len(ranks)
    order = rng.permutation(n)
    cores = ", ".join(f"x{order[i]} b{i - 1 if i else n - 1} b{i}" + (" y0" if i == 0 else "") for i in range(n))
    net = tn.topology(cores, {f"x{i}": modes for i in range(n)}, {"y0": 1})
    ring = net.with_ranks({f"b{i}": ranks[i] for i in range(n)})
    return ring.to_dense({name: rng.standard_normal(s) for name, s in ring.shapes.items()}).reshape((modes,) * n)


def error(found: tn.Search, X: np.ndarray) -> float:
    return relative_error(found.network.to_dense(found.weights).reshape(X.shape), X)


# -- what it finds ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_permuted_ring_is_found_by_its_entries() -> None:
    X = ring_tensor(3)
    found = tn.search(X, error=1e-4, evaluations=60, seed=3)
    assert found.reached
    assert found.network.num_params <= 1.05 * 126
    assert error(found, X) <= 1e-4
    assert found.evaluations <= 60


@pytest.mark.thorough
def test_a_budget_is_kept_and_used() -> None:
    X = ring_tensor(0, ranks=(2, 2, 2, 2))
    found = tn.search(X, params=48, evaluations=60)
    assert found.reached is None
    assert found.error < 1e-3  # 4 cores of 3 * 2 * 2: the tensor itself
    assert all(e.params <= 48 for e in found.history)
    assert found.error == min(e.error for e in found.history)


def test_a_matrix_by_its_modes() -> None:
    rng = np.random.default_rng(0)
    W = np.kron(rng.standard_normal((2, 3)), rng.standard_normal((3, 2)))
    found = tn.search(W, error=1e-6, inputs=(3, 2), outputs=(2, 3), evaluations=5)
    assert found.network.num_params == 12
    assert found.evaluations == 1  # one core for each pair of modes: the Kronecker product is the start
    assert found.network.to_dense(found.weights) == pytest.approx(W)


@pytest.mark.thorough
def test_swaps_find_the_order_of_the_modes_on_a_fixed_graph() -> None:
    X = ring_tensor(5, ranks=(2, 2, 2, 2, 2))
    ring = tn.ring((3,) * 5, (1,) * 5)
    found = tn.search(X, params=60, start=ring.with_rank(2), moves=["swap"], evaluations=30)
    assert found.error < 1e-3
    assert sorted(found.network.ranks.values()) == [2] * 5


def test_complex_arrays() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2, 4, 2)) @ [1, 1j] for _ in range(2))
    found = tn.search(np.outer(a[0], b[0]) + np.outer(a[1], b[1]), error=1e-5, inputs=(4,), outputs=(4,))
    assert found.error <= 1e-5
    assert np.iscomplexobj(found.weights["core0"])


def test_a_task_is_asked_once_for_each_structure() -> None:
    asked: list[str] = []

    def loss(network: tn.Network) -> float:
        asked.append(structure_of(network))
        return abs(network.num_params - 60) + 5.0 * ("0-2" in structure_of(network))

    found = tn.search(loss, params=100, start=tn.mpo((3, 3, 3), (1, 1, 1)).with_rank(1), evaluations=40)
    assert len(set(asked)) == len(asked) == found.evaluations <= 40
    assert found.error == min(e.error for e in found.history) <= 6
    assert found.weights == {}


def test_a_task_of_training() -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 16)).astype(np.float32)
    task = tn.TrainingLoss(
        (x, (x[:, 0] > 0).astype(np.int64)),
        lambda net: tn.Sequential(tn.Linear(net), tn.ReLU(), tn.Linear(16, 2)),
        epochs=2,
        lr=1e-2,
    )
    found = tn.search(task, params=80, start=tn.mpo((4, 4), (4, 4)).with_rank(1), moves=["rank"], evaluations=4)
    assert found.error == task(found.network)
    assert found.history[0].move == "start"
    assert found.error <= found.history[0].error


# -- honest, deterministic, resumable ---------------------------------------------------------------------------


@pytest.mark.thorough
def test_equal_searches_give_equal_results() -> None:
    X = ring_tensor(2, ranks=(2, 2, 2, 2))
    one, other = (tn.search(X, error=1e-4, evaluations=30, seed=7) for _ in range(2))
    assert one.history == other.history
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


class KilledError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_killed_search_goes_on_to_the_same_result(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, path = ring_tensor(2, ranks=(2, 2, 2, 2)), tmp_path / "state"
    whole = tn.search(X, error=1e-4, evaluations=12)
    judge, counted = ArrayObjective.judge, itertools.count()

    def failing(self: ArrayObjective, *question: object) -> object:
        if next(counted) == after:
            raise KilledError
        return judge(self, *question)  # type: ignore[arg-type]

    monkeypatch.setattr(ArrayObjective, "judge", failing)
    with pytest.raises(KilledError):
        tn.search(X, error=1e-4, evaluations=12, state=path)
    monkeypatch.setattr(ArrayObjective, "judge", judge)
    fits = []
    monkeypatch.setattr(ArrayObjective, "judge", lambda *question: (fits.append(1), judge(*question))[1])
    again = tn.search(X, error=1e-4, evaluations=12, state=path)
    assert again.history == whole.history
    assert len(fits) == len(whole.history) - after
    assert all(np.array_equal(again.weights[name], whole.weights[name]) for name in whole.weights)
    fits.clear()
    longer = tn.search(X, error=1e-4, evaluations=14, state=path)
    assert [e.error for e in longer.history[:12]] == [e.error for e in whole.history]
    assert len(fits) <= 2


def test_a_state_of_another_search_is_refused(tmp_path: Path, pretend_version: Callable[[str], None]) -> None:
    X, path = ring_tensor(2, ranks=(2, 2, 2)), tmp_path / "state"
    tn.search(X, error=1e-3, evaluations=3, state=path)
    with pytest.raises(tn.CheckpointError, match="belongs to a search with another target, goal"):
        tn.search(2 * X, error=1e-3, evaluations=3, state=path)
    with pytest.raises(tn.CheckpointError, match="another target, goal"):
        tn.search(X, error=1e-4, evaluations=3, state=path)
    pretend_version("0.0.1")
    with pytest.raises(tn.CheckpointError, match=r"was written by tn4nn .*, this is 0\.0\.1"):
        tn.search(X, error=1e-3, evaluations=3, state=path)
    path.write_bytes(b"no state")
    with pytest.raises(tn.CheckpointError, match="is not a safetensors file"):
        tn.search(X, error=1e-3, evaluations=3, state=path)


def test_a_state_that_was_damaged_or_edited_is_refused(tmp_path: Path) -> None:
    X, path = ring_tensor(2, ranks=(2, 2, 2)), tmp_path / "state"
    tn.search(X, error=1e-3, evaluations=3, state=path)
    whole = path.read_bytes()
    for at in range(20, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(tn.CheckpointError):
            tn.search(X, error=1e-3, evaluations=4, state=path)
    record, arrays = read_arrays(_whole(path, whole), 2, "", "")
    for wrong in ({"errors": 3}, {"errors": [["a"]]}, {"rounds": [1]}, {"versions": None}, {"errors": [["a", "x"]]}):
        write_arrays(path, arrays, {**record, **wrong})
        with pytest.raises(tn.CheckpointError, match="is not the state of a search"):
            tn.search(X, error=1e-3, evaluations=4, state=path)


@pytest.mark.parametrize("change", [lambda a: a * np.nan, lambda a: a.reshape(-1), lambda a: a[..., :0]])
def test_weights_in_a_state_that_do_not_fit_are_refused(change: Callable, tmp_path: Path) -> None:
    X, path = ring_tensor(2, ranks=(2, 2, 2)), tmp_path / "state"
    tn.search(X, error=1e-3, evaluations=4, state=path)
    record, arrays = read_arrays(path, 2, "", "")
    assert arrays
    write_arrays(path, {name: change(array) for name, array in arrays.items()}, record)
    with pytest.raises(tn.CheckpointError, match=r"the weights of evaluation \d+ do not fit"):
        tn.search(X, error=1e-3, evaluations=6, state=path)


def _whole(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# -- at the door ------------------------------------------------------------------------------------------------


def test_wrong_questions() -> None:
    X = ring_tensor(0, ranks=(2, 2, 2))
    with pytest.raises(tn.TN4NNError, match=r"exactly one of params= and error=, received params=3, error=0\.1"):
        tn.search(X, params=3, error=0.1)
    with pytest.raises(tn.TN4NNError, match=r"unknown move 'swop'\. Did you mean 'swap'\?"):
        tn.search(X, error=0.1, moves=["swop"])
    with pytest.raises(tn.TN4NNError, match="search on a task needs start="):
        tn.search(lambda net: 0.0, params=10)
    with pytest.raises(tn.ShapeError, match="modes of a matrix are inputs= and outputs="):
        tn.search(np.eye(4), error=0.1)
    with pytest.raises(tn.ShapeError, match=r"has shape \(4, 4\), and outputs=\(2, 2\), inputs=\(2, 3\) make \(4, 6\)"):
        tn.search(np.eye(4), error=0.1, inputs=(2, 3), outputs=(2, 2))
    with pytest.raises(tn.ShapeError, match=r"target must have shape \(1, 8\)"):
        tn.search(X, error=0.1, start=tn.mpo((2, 2, 2), (1, 1, 1)))
    with pytest.raises(tn.BudgetError, match="cannot start from 24 parameters with params=10"):
        tn.search(X, params=10, start=tn.mpo((3, 3, 3), (1, 1, 1)).with_rank(2))
    with pytest.raises(tn.DataError, match="NaN"):
        tn.search(X * np.nan, error=0.1)


# -- moves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_larger_neighbour_starts_at_the_same_matrix(seed: int) -> None:
    net = random_network(seed, cores=4)
    weights = {name: core.astype(float) for name, core in net.init(seed).items()}
    for move in larger(net, new_bonds=True):
        grown = warm_start(net, weights, move.network, seed)
        assert grown is not None
        assert move.network.to_dense(grown) == pytest.approx(net.to_dense(weights), abs=1e-12)


def test_a_smaller_neighbour_starts_at_what_matters_most() -> None:
    net = tn.mpo((3, 3), (3, 3)).with_rank(4)
    weights = {name: core.astype(float) for name, core in net.init(0).items()}
    for move in smaller(net, old_bonds=True):
        cut = warm_start(net, weights, move.network, 0)
        assert cut is not None
        spectrum = tn.entanglement(net, weights)[0].spectrum
        lost = np.linalg.norm(net.to_dense(weights) - move.network.to_dense(cut))
        assert lost == pytest.approx(spectrum[3])  # Eckart and Young


def test_a_bond_of_one_is_removed_and_swaps_keep_the_sizes() -> None:
    net = tn.ring((2, 2, 2), (2, 2, 2)).with_rank(2)
    assert {len(m.network.ranks) for m in smaller(net, old_bonds=True)} == {2}
    assert {len(m.network.ranks) for m in smaller(net, old_bonds=False)} == {3}
    for move in swaps(net):
        assert sorted(move.network.ranks.values()) == [2, 2, 2]


def test_a_binary_tree_has_two_other_ways_at_each_inner_bond() -> None:
    quartet = tn.topology("x0 x1 a, x2 x3 a", {f"x{i}": 2 for i in range(3)}, {"x3": 2}).with_rank(2)
    assert {structure_of(m.network) for m in swaps(quartet)} == {
        "0:x1,x2 1:x0,x3 | 0-1=2", "0:x1,x3 1:x0,x2 | 0-1=2", "0:x0,x2 1:x1,x3 | 0-1=2", "0:x0,x3 1:x1,x2 | 0-1=2",
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_what_a_bond_promises_is_what_the_best_rank_one_step_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = tn.low_rank(5, 4).with_rank(2)
    W = rng.standard_normal((4, 5))
    u, s, vt = np.linalg.svd(W)
    weights = {"core0": (vt[:2].T * s[:2]), "core1": u[:, :2].T}
    residual = W - net.to_dense(weights)
    move = next(larger(net, new_bonds=False))
    target = Target(net.topology, W, None)
    assert estimated_gains(net, weights, target.tensor(residual), [move]) == pytest.approx([s[2] ** 2])


# -- trees by entanglement --------------------------------------------------------------------------------------


def binary(order: tuple[int, ...], modes: int = 3) -> tn.Topology:
    a, b, c, d, e, f, g, h = order
    text = f"y0 x{a} x{b} a, x{c} x{d} b, x{e} x{f} c, x{g} x{h} d, a b e, c d e"
    return tn.topology(text, {f"x{i}": modes for i in range(8)}, {"y0": 1})


@pytest.mark.cases(2)
@pytest.mark.parametrize("seed", range(4))
def test_far_pairs_that_are_entangled_come_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(8)
    pairs = [(int(order[2 * i]), int(order[2 * i + 1])) for i in range(4)]
    M = np.eye(3) + 0.1 * rng.standard_normal((3, 3))
    T = np.einsum(M, pairs[0], M, pairs[1], M, pairs[2], M, pairs[3], range(8))
    found = tn.reconnect(T.reshape(1, -1), binary(tuple(range(8))), seed=seed)
    assert found.entropies[0] > 4
    assert found.entropies[-1] == pytest.approx(0, abs=1e-9)
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(found.entropies))
    for a, b in pairs:
        assert any({f"x{a}", f"x{b}"} <= set(core.legs) for core in found.topology.cores)


@pytest.mark.cases(3)
@pytest.mark.parametrize("seed", range(4))
def test_a_random_tree_is_no_more_entangled_than_the_one_that_made_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maker = binary(tuple(map(int, rng.permutation(8)))).with_rank(2)
    W = maker.to_dense({name: rng.standard_normal(shape) for name, shape in maker.shapes.items()})
    found = tn.reconnect(W, binary(tuple(range(8))), seed=seed)
    own = tn.reconnect(W, maker.topology, sweeps=1).entropies[0]
    assert found.entropies[-1] <= own + 1e-9 < found.entropies[0]
    assert set(found.topology.modes) == set(maker.topology.modes)
    assert len(_sides(found.topology)) == 5
    result = tn.decompose(W, found.topology, error=1e-6)
    assert result.error <= 1e-6


def test_only_trees_are_reconnected() -> None:
    with pytest.raises(tn.TopologyError, match="connected tree with one bond at each edge"):
        tn.reconnect(np.eye(4), tn.ring((2, 2), (2, 2)))


def test_results_print() -> None:
    found = tn.search(np.ones((2, 2, 2)), error=1e-3, evaluations=2)
    assert str(found).startswith("Search: 6 parameters, error")
    assert found.asked == 1e-3
    assert " (at most 0.001 that was asked for); evaluation" in str(found)
    missed = tn.search(np.random.default_rng(0).standard_normal((4, 4, 4)), error=1e-9, evaluations=1)
    assert not missed.reached
    assert " (more than the 1e-09 that was asked for); evaluation" in str(missed)
    free = tn.search(np.ones((2, 2, 2)), params=8, evaluations=2)
    assert (free.asked, "asked" in str(free)) == (None, False)
    assert dataclasses.asdict(found.history[0])["accepted"] is True
