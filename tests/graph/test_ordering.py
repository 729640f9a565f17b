from __future__ import annotations

import copy
import doctest
import json
import pickle
from typing import Any

import numpy as np
import pytest

import tn4nn as tn
import tn4nn._graph.ordering as module
from tn4nn import ShapeError, TN4NNError, TopologyError
from tn4nn._graph.ordering import Ordering, ordering

EVERY = [
    Ordering.raster((3, 5)),
    Ordering.raster((7,)),
    Ordering.block((6, 8), (3, 2)),
    Ordering.hilbert((28, 28)),
    Ordering.hilbert((1, 9)),
    Ordering.hilbert((5, 13)),
    Ordering.hilbert((1, 1)),
    Ordering.morton((28, 28)),
    Ordering.morton((9, 2)),
    Ordering.random((4, 6), seed=3),
    Ordering.random(10, seed=0),
    Ordering.custom([2, 0, 1, 3]),
    Ordering.custom(np.array([3, 1, 0, 2]), shape=(2, 2)),
]


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.kind}-{one.shape}")
def test_the_laws_of_every_ordering(one: Ordering) -> None:
    permutation = one.permutation
    assert permutation.dtype == np.int64
    assert permutation.shape == (one.size,)
    assert sorted(permutation.tolist()) == list(range(one.size))
    assert permutation[one.inverse].tolist() == list(range(one.size))
    x = np.random.default_rng(0).normal(size=(2, one.size))
    np.testing.assert_array_equal(x[..., permutation][..., one.inverse], x)
    for array in (permutation, one.inverse):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.kind}-{one.shape}")
def test_every_ordering_survives_json_pickle_and_copy(one: Ordering) -> None:
    text = json.dumps(one.to_json_dict())
    for again in (
        Ordering.from_json_dict(json.loads(text)),
        pickle.loads(pickle.dumps(one)),
        copy.deepcopy(one),
    ):
        assert again == one
        assert hash(again) == hash(one)
        np.testing.assert_array_equal(again.permutation, one.permutation)
        assert not again.permutation.flags.writeable


def test_raster_and_block_by_hand() -> None:
    assert Ordering.raster((2, 3)).permutation.tolist() == [0, 1, 2, 3, 4, 5]
    assert Ordering.block((2, 6), (1, 3)).permutation.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    blocks = Ordering.block((4, 4), (2, 2)).permutation.tolist()
    assert blocks == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert Ordering.block((4, 4), (2, 2)).permutation.tolist() == Ordering.morton((4, 4)).permutation.tolist()


@pytest.mark.parametrize("side", [2, 4, 8, 32])
def test_the_hilbert_curve_takes_unit_steps_and_ends_in_the_other_top_corner(side: int) -> None:
    row, column = np.divmod(Ordering.hilbert((side, side)).permutation, side)
    assert (np.abs(np.diff(row)) + np.abs(np.diff(column)) == 1).all()
    assert (row[0], column[0], row[-1], column[-1]) == (0, 0, 0, side - 1)


def _walk(side: int) -> list[tuple[int, int]]:
    """The curve by its recursive definition: four smaller ones, the first and last of them turned."""
    if side == 1:
        return [(0, 0)]
    half, small = side // 2, _walk(side // 2)
    return (
        [(x, y) for y, x in small]
        + [(y + half, x) for y, x in small]
        + [(y + half, x + half) for y, x in small]
        + [(half - 1 - x, side - 1 - y) for y, x in small]
    )


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (3, 10), (10, 3), (1, 5), (5, 1)])
def test_a_rectangle_is_the_walk_without_the_points_outside(shape: tuple[int, int]) -> None:
    rows, columns = shape
    side = 1 << (max(shape) - 1).bit_length()
    inside = [row * columns + column for row, column in _walk(side) if row < rows and column < columns]
    assert Ordering.hilbert(shape).permutation.tolist() == inside


def test_neighbours_on_the_plane_stay_near() -> None:
    def mean_step(one: Ordering) -> float:
        row, column = np.divmod(one.permutation, 28)
        return float(np.mean(np.abs(np.diff(row)) + np.abs(np.diff(column))))

    assert mean_step(Ordering.hilbert((28, 28))) < 1.3 < mean_step(Ordering.morton((28, 28)))
    assert mean_step(Ordering.random((28, 28), seed=0)) > 10


def test_a_long_thin_shape_costs_no_square() -> None:
    assert Ordering.hilbert((1, 100_000)).permutation.tolist() == list(range(100_000))


def test_a_seed_means_one_permutation_for_ever() -> None:
    assert Ordering.random(8, seed=7).permutation.tolist() == [0, 6, 7, 2, 4, 5, 1, 3]
    assert Ordering.random((2, 4), seed=7).permutation.tolist() == [0, 6, 7, 2, 4, 5, 1, 3]
    assert Ordering.random(8, seed=8) != Ordering.random(8, seed=7)


def test_by_name() -> None:
    assert ordering("hilbert", (4, 4)) == Ordering.hilbert((4, 4))
    assert ordering("block", [4, 4], block=[2, 2]) == Ordering.block((4, 4), (2, 2))
    assert ordering("random", 9, seed=np.int64(2)) == Ordering.random((9,), 2)
    assert ordering("custom", (1, 2), permutation=(1, 0)) == Ordering.custom([1, 0], (1, 2))
    assert ordering("z-order", (4, 4)) == Ordering.morton((4, 4))
    assert ordering("row-major", 4) == Ordering.raster(4)


@pytest.mark.parametrize(
    ("kind", "shape", "options", "error", "words"),
    [
        ("hilbret", (4, 4), {}, TopologyError, ["'hilbret'", "Did you mean 'hilbert'?", "'raster'"]),
        (None, (4, 4), {}, TopologyError, ["one of 'raster'", "None"]),
        ("block", (4, 4), {}, TopologyError, ["block=", "received none", "block=(4, 4)"]),
        ("random", (4, 4), {"sede": 1}, TopologyError, ["seed=", "received sede="]),
        ("raster", (4, 4), {"seed": 1}, TopologyError, ["no option", "drop seed="]),
        ("random", 4, {"seed": -1}, TopologyError, ["from 0 on", "-1"]),
        ("random", 4, {"seed": 1.5}, TopologyError, ["whole number", "1.5"]),
        ("block", (4, 6), {"block": (3, 2)}, ShapeError, ["divides", "(3, 2)", "height in [1, 2, 4]"]),
        ("block", (4, 6), {"block": (2, 0)}, ShapeError, ["at least 1", "(2, 0)"]),
        ("block", (4, 6), {"block": 2}, ShapeError, ["whole numbers", "2"]),
        ("hilbert", (16,), {}, ShapeError, ["(rows, columns)", "(16,)", "product is 16"]),
        ("morton", (2, 2, 2), {}, ShapeError, ["(rows, columns) or (n,)", "(2, 2, 2)"]),
        ("raster", (0, 4), {}, ShapeError, ["at least 1", "(0, 4)"]),
        ("raster", (), {}, ShapeError, ["at least 1", "()"]),
        ("raster", "28", {}, ShapeError, ["whole numbers", "'28'"]),
        ("raster", (2.0, 2), {}, ShapeError, ["whole numbers", "2.0"]),
        ("raster", True, {}, ShapeError, ["whole numbers", "True"]),
        ("custom", 3, {"permutation": [0, 1]}, ShapeError, ["0..2 exactly once", "2 numbers"]),
        ("custom", 3, {"permutation": [0, 1, 3]}, ShapeError, ["the number 3"]),
        ("custom", 3, {"permutation": [0, 2, 2]}, ShapeError, ["the number 2 more than once"]),
        ("custom", 3, {"permutation": [0, 1, -1]}, ShapeError, ["the number -1"]),
    ],
)
def test_errors_say_expected_received_and_what_would_do(
    kind: Any, shape: Any, options: dict[str, Any], error: type[TN4NNError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        ordering(kind, shape, **options)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).startswith("expected ")


@pytest.mark.parametrize("data", [None, [], {"kind": "raster"}, {"shape": [2]}])
def test_data_that_is_no_ordering(data: Any) -> None:
    with pytest.raises(TopologyError, match=r'keys "kind" and "shape"'):
        Ordering.from_json_dict(data)


def test_data_with_a_key_too_many() -> None:
    with pytest.raises(TopologyError, match="no option"):
        Ordering.from_json_dict({"kind": "raster", "shape": [4], "angle": 3})


def test_born_by_hand_it_checks_itself_too() -> None:
    with pytest.raises(TopologyError, match="expected the kind"):
        Ordering("spiral", (4, 4))
    with pytest.raises(TopologyError, match="no option"):
        Ordering("hilbert", (4, 4), seed=1)
    with pytest.raises(ShapeError, match="divides"):
        Ordering("block", (4, 4), block_shape=(3, 3))


def test_the_examples_run() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("kind", ["block", "random", "custom"])
def test_a_name_that_does_not_say_all_is_refused_with_what_does(kind):
    net = tn.mpo((4, 4), (4, 4)).with_rank(2)
    with pytest.raises(TopologyError, match=f"ordering='{kind}' needs") as refused:
        tn.Linear(net, ordering=kind)
    advice = str(refused.value).rpartition("pass ")[2]
    if advice.startswith("tn."):
        assert tn.Linear(net, ordering=eval(advice, {"tn": tn})).ordering.kind == kind
