from __future__ import annotations

import itertools
import math

import pytest

import tn4nn as tn
from tn4nn import TopologyError
from tn4nn._graph.modes import balanced


def splits(number: int, count: int) -> list[tuple[int, ...]]:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    found = itertools.combinations_with_replacement(divisors, count)
    return [split for split in found if math.prod(split) == number]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_balanced_is_the_best_of_all_splits(count: int) -> None:
    for number in range(1, 200):
        best = min(splits(number, count), key=lambda s: (s[-1], -s[0]))
        found = balanced(number, count)
        assert found == tuple(sorted(found))
        assert math.prod(found) == number
        assert (found[-1], found[0]) == (best[-1], best[0]), number


def test_the_rule_holds_for_every_size() -> None:
    for features, sites in itertools.product(range(1, 400), (1, 2, 3, 4, 6)):
        side, _ = tn.modes_for(features, 1, sites)
        whole = balanced(features, sites)
        fits = features <= 16 or whole[-1] <= 4 * features ** (1 / sites)
        padded = [m for m in range(features + 1, int(1.125 * features + 1) + 1)
                  if balanced(m, sites)[-1] <= 2 * m ** (1 / sites)]  # fmt: skip
        expected = whole if fits or not padded else balanced(padded[0], sites)
        assert side == expected, (features, sites)
        assert len(side) == sites
        assert features <= math.prod(side) <= 1.125 * features + 1
        assert tn.modes_for(features, 1, sites, pad=False)[0] == whole


@pytest.mark.parametrize(
    ("features", "sites", "modes"),
    [(784, 4, (4, 4, 7, 7)), (1009, 4, (4, 4, 8, 8)), (1009, 1, (1009,)), (1024, 5, (4, 4, 4, 4, 4)),
     (10, 4, (1, 1, 2, 5)), (17, 2, (3, 6)), (13, 3, (1, 1, 13)), (2, 3, (1, 1, 2)), (1, 2, (1, 1))],
)  # fmt: skip
def test_examples(features: int, sites: int, modes: tuple[int, ...]) -> None:
    assert tn.modes_for(features, 1, sites)[0] == modes


def test_pairings() -> None:
    assert tn.modes_for(784, 256, 4) == ((4, 4, 7, 7), (4, 4, 4, 4))
    assert tn.modes_for(784, 10, 4) == ((4, 4, 7, 7), (5, 2, 1, 1))
    assert tn.modes_for(784, 10, 4, pairing="aligned") == ((4, 4, 7, 7), (1, 1, 2, 5))
    assert tn.modes_for(784, 10, 4, pairing="palindrome") == ((4, 7, 7, 4), (1, 2, 5, 1))
    assert tn.modes_for(72, 1, 3, pairing="palindrome")[0] in ((3, 6, 4), (3, 4, 6))


def test_a_prime_side_is_padded_by_zeros_and_cropped() -> None:
    t = tn.build("mpo", 1009, 257)
    assert (math.prod(t.inputs.values()), math.prod(t.outputs.values())) == (1024, 270)
    assert t.is_padded
    net = t.with_rank(2)
    assert net.to_dense(net.init(0)).shape == (257, 1009)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 4, 2), "in_features: the size must be at least 1, received 0"),
        ((4, 2.5, 2), "out_features: the size must be a whole number of at least 1, received 2.5"),
        ((4, 4, 0), "sites: the size must be at least 1, received 0"),
    ],
)
def test_errors(arguments, expected: str) -> None:
    with pytest.raises(TopologyError, match=expected):
        tn.modes_for(*arguments)
    with pytest.raises(TopologyError, match="pairing must be one of opposed, aligned, palindrome, received 'x'"):
        tn.modes_for(4, 4, 2, pairing="x")  # type: ignore[arg-type]
