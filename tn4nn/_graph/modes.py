"""Choosing mode sizes.

The rule, for one side of n features and s sites:
  1. n is split into s factors as equal as can be (least largest factor, then largest smallest factor).
  2. The split is taken when its largest factor is at most 4 times the ideal n^(1/s), or when n <= 16: small
     sizes, like 10 classes, stay as they are, with modes of size 1 on the sites that get nothing.
  3. Otherwise (primes, or a large prime factor) the side is padded: the smallest m with n < m <= 1.125 n + 1
     whose largest factor is at most twice its ideal. The input is filled up with zeros, surplus outputs are
     dropped. With pad=False, or where no such m exists, the split of 1 is taken as it is.

Above 2^32 the best split would take too long to find. There the prime factors up to 2^16 are spread over the sites,
each to the smallest so far, what is left counting as one factor; a padded side has factors that differ by at most 1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from .._base.checks import checked_size
from .._base.errors import TopologyError

Pairing = Literal["opposed", "aligned", "palindrome"]
_EXACT = 1 << 32  # features up to which the best split is searched for
PAIRINGS = ("opposed", "aligned", "palindrome")


def modes_for(
    in_features: int, out_features: int, sites: int, *, pairing: Pairing = "opposed", pad: bool = True
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Mode sizes for a layer: one input and one output mode for each site.

    A side is split into factors as equal as can be. The split is kept where its largest factor is at most 4 times the
    ideal n^(1/sites), or where n <= 16; missing factors are modes of size 1. Otherwise the side is padded to the
    smallest m <= 1.125 n + 1 whose largest factor is at most twice its ideal.

    Args:
        in_features: neurons of the input.
        out_features: neurons of the output.
        sites: how many modes each side gets.
        pairing: "opposed" (large input modes meet small output modes), "aligned" (large with large), or "palindrome"
            (large modes in the middle of both sides).
        pad: whether a side may be padded; False keeps it whole.

    Returns:
        (inputs, outputs), each of length `sites`; their products are the features, or more where a side is padded.

    Raises:
        TopologyError: a size below 1, or an unknown pairing.

    Examples:
        >>> from tn4nn import modes_for
        >>> modes_for(784, 10, 4)
        ((4, 4, 7, 7), (5, 2, 1, 1))
        >>> modes_for(1009, 256, 4)[0]  # a prime: padded
        (4, 4, 8, 8)
    """
    ins, outs = checked_size(in_features, "in_features"), checked_size(out_features, "out_features")
    count = checked_size(sites, "sites")
    if pairing not in PAIRINGS:
        raise TopologyError(f"pairing must be one of {', '.join(PAIRINGS)}, received {pairing!r}")
    left, right = _side(ins, count, pad), _side(outs, count, pad)
    if pairing == "palindrome":
        return _palindrome(left), _palindrome(right)
    return left, right[::-1] if pairing == "opposed" else right


def balanced(number: int, count: int) -> tuple[int, ...]:
    """`count` factors of `number` in ascending order, as equal as can be.

    Examples:
        >>> balanced(784, 4), balanced(10, 4), balanced(64, 3)
        ((4, 4, 7, 7), (1, 1, 2, 5), (4, 4, 4))
    """
    return _balanced(number, count) if number <= _EXACT else _spread(number, count)


@lru_cache(maxsize=4096)
def _balanced(number: int, count: int) -> tuple[int, ...]:
    if count == 1:
        return (number,)
    best: tuple[int, ...] | None = None
    for last in _divisors(number):
        if last**count < number:  # the largest factor is at least the ideal
            continue
        if best is not None and last > best[-1]:
            break
        rest = _balanced(number // last, count - 1)
        split = tuple(sorted((*rest, last)))
        if best is None or (split[-1], -split[0]) < (best[-1], -best[0]):
            best = split
    assert best is not None
    return best


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def _spread(number: int, count: int) -> tuple[int, ...]:
    """The same for a large number: its prime factors, the largest first, each to the smallest product so far."""
    sizes = [1] * count
    for prime in reversed(_factors(number)):
        sizes[sizes.index(min(sizes))] *= prime
    return tuple(sorted(sizes))


def _factors(number: int) -> list[int]:
    """Prime factors up to 2^16, in ascending order, and what is left."""
    found = []
    for prime in range(2, 1 << 16):
        while number % prime == 0:
            found.append(prime)
            number //= prime
        if number == 1:
            break
    return found if number == 1 else sorted([*found, number])


def _near(features: int, sites: int) -> tuple[int, ...]:
    """The smallest product of factors s and s - 1 that is not below a large number of features, on as many sites as
    give one that is near enough; the others get 1."""
    for count in range(sites, 1, -1):
        root = max(1, math.floor(_root(features, count)) - 1)
        while root**count < features:
            root += 1
        smaller = 0
        while smaller < count and (root - 1) ** (smaller + 1) * root ** (count - smaller - 1) >= features:
            smaller += 1
        sizes = (root - 1,) * smaller + (root,) * (count - smaller)
        if 8 * math.prod(sizes) <= 9 * features:
            return (1,) * (sites - count) + sizes
    return (1,) * (sites - 1) + (features,)


def _root(number: int, count: int) -> float:
    return math.exp(math.log(number) / count)


def _side(features: int, sites: int, pad: bool) -> tuple[int, ...]:
    whole = balanced(features, sites)
    ideal = features ** (1 / sites) if features <= _EXACT else _root(features, sites)
    if features <= 16 or not pad or whole[-1] <= 4 * ideal:
        return whole
    if features > _EXACT:
        return _near(features, sites)
    for padded in range(features + 1, features + features // 8 + 2):
        split = balanced(padded, sites)
        if split[-1] <= 2 * padded ** (1 / sites):
            return split
    return whole


def _palindrome(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Ascending sizes laid out with the large ones in the middle."""
    left, right = list(sizes[::2]), list(sizes[1::2])
    return (*left, *right[::-1])


def grid_of(sites: int) -> tuple[int, int]:
    """The squarest (rows, columns) of that many sites, no more rows than columns.

    Examples:
        >>> grid_of(6), grid_of(9)
        ((2, 3), (3, 3))
    """
    rows = max(d for d in range(1, math.isqrt(sites) + 1) if sites % d == 0)
    return rows, sites // rows
