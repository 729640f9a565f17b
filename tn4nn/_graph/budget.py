"""The budget solver: ranks for every bond, never above the budget and as near to it as can be.

Parameters are multilinear in the ranks, so the ranks are grown together (r_b = floor(t * weight_b), with the
largest t that fits), then single bonds take up what is left, and last a local search trades one bond against
another. Everything is integer arithmetic in a fixed order: one question has one answer.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from .._base.checks import checked_size, nearest
from .._base.errors import BudgetError, TN4NNError, TopologyError
from .network import Network
from .topology import Topology

Key = Hashable
_ENOUGH = 0.998  # filled so far, nothing is traded any more
_FILLED = 0.97  # less than that is searched for exhaustively,
_FEW = 2_000  # where no more ranks than that, but for one bond, are to be tried
_KICKS = 6_000  # of the last search, shared by the bonds
_EVALUATIONS = 20_000  # of the local search: bounds its time without looking at a clock


def rank_caps(topology: Topology) -> dict[str, int]:
    """The largest useful size of each bond, from the open legs that it separates.

    Taking the bond out leaves groups of cores. Where it leaves several, no rank above the product of the
    groups' open sizes over the largest of them adds anything (for two groups: the smaller of the two sides).
    Where it leaves one group (the bond is part of a loop) the bond could at most carry a whole balanced cut
    by itself. Open legs that stand on both sides (hyperedges) are shared and do not count.

    Example:
        >>> import tn4nn as tn
        >>> tn.rank_caps(tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)))
        {'a0': 16, 'a1': 448, 'a2': 16}
    """
    return dict(_rank_caps(topology))


@functools.lru_cache(maxsize=1024)
def _rank_caps(topology: Topology) -> dict[str, int]:
    cores, modes, bonds = topology.cores, topology.modes, set(topology.bonds)
    holders = topology.holders

    def size(group: Sequence[int], others: Sequence[int]) -> int:
        inside, outside = set(group), set(others)
        own = (leg for leg in modes if inside & set(holders[leg]) and not outside & set(holders[leg]))
        return math.prod(modes[leg] for leg in own)

    caps = {}
    for bond in topology.bonds:
        touched = holders[bond]
        groups = _groups(touched, [[b for b in core.legs if b in bonds and b != bond] for core in cores], holders)
        everyone = [i for group in groups for i in group]
        if len(groups) > 1:
            sides = [size(group, [i for i in everyone if i not in set(group)]) for group in groups]
            caps[bond] = max(1, math.prod(sides) // max(sides))
        else:
            total = size(everyone, ())
            ends = [size([i], [j for j in touched if j != i]) for i in touched]
            cap = min(total // end for end in ends)
            caps[bond] = max(1, min(cap, math.isqrt(total)) if len(touched) == 2 else cap)
    return caps


def _groups(start: Sequence[int], bonds_of: list[list[str]], holders: Mapping[str, Sequence[int]]) -> list[list[int]]:
    """Connected groups of cores that hold at least one of `start`."""
    groups: list[list[int]] = []
    seen: set[int] = set()
    for first in start:
        if first in seen:
            continue
        seen.add(first)
        group, queue = [], [first]
        while queue:
            current = queue.pop()
            group.append(current)
            for bond in bonds_of[current]:
                for other in holders[bond]:
                    if other not in seen:
                        seen.add(other)
                        queue.append(other)
        groups.append(group)
    return groups


# -- the multilinear problem ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Parameters as a sum of products: sum over terms of coefficient * product of the ranks in it.

    Attributes:
        constant: parameters that no rank changes.
        terms: (coefficient, bonds) for each core.
        caps: bond -> largest useful rank. The bonds of a problem are the keys of `caps`.
        weights: bond -> relative size wanted.
    """

    constant: int
    terms: tuple[tuple[int, tuple[Key, ...]], ...]
    caps: Mapping[Key, int]
    weights: Mapping[Key, float]

    def value(self, ranks: Mapping[Key, int]) -> int:
        """Parameters at these ranks."""
        return self.constant + sum(c * math.prod(ranks[b] for b in bonds) for c, bonds in self.terms)

    def slopes(self) -> dict[Key, list[tuple[int, tuple[Key, ...]]]]:
        """bond -> what one more of it adds, as (coefficient, other bonds)."""
        found: dict[Key, list[tuple[int, tuple[Key, ...]]]] = {bond: [] for bond in self.caps}
        for coefficient, bonds in self.terms:
            for bond in bonds:
                found[bond].append((coefficient, tuple(b for b in bonds if b != bond)))
        return found


def topology_problem(
    topology: Topology,
    weights: Mapping[str, float] | None = None,
    fixed: Mapping[str, int] | None = None,
    tag: Hashable = None,
) -> Problem:
    """The parameters of a topology as a `Problem`; bonds are keyed (tag, bond)."""
    weights, fixed = dict(weights or {}), dict(fixed or {})
    bonds = topology.bonds
    for given, what in ((weights, "weights"), (fixed, "fixed")):
        for bond in given:
            if bond not in bonds:
                raise TopologyError(f"{what}: {bond!r} is no bond of {topology.name!r}." + nearest(bond, bonds))
    for bond, weight in weights.items():
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight > 0):
            raise TopologyError(f"weights: bond {bond!r} must have a finite weight above 0, received {weight!r}")
    known = {**topology.modes, **{b: checked_size(n, f"fixed bond {b!r}") for b, n in fixed.items()}}
    terms = tuple(
        (
            math.prod(known[leg] for leg in core.legs if leg in known),
            tuple((tag, leg) for leg in core.legs if leg not in known),
        )
        for core in topology.cores
    )
    caps = rank_caps(topology)
    free = [bond for bond in bonds if bond not in known]
    return Problem(
        0,
        terms,
        {(tag, bond): caps[bond] for bond in free},
        {(tag, bond): float(weights.get(bond, 1.0)) for bond in free},
    )


def solve(problem: Problem, budget: int, what: str = "parameters") -> dict[Key, int]:
    """Ranks whose value is at most the budget and as near to it as the search gets.

    Raises:
        BudgetError: rank 1 everywhere is above the budget.
    """
    least = dict.fromkeys(problem.caps, 1)
    smallest = problem.value(least)
    if smallest > budget:
        raise BudgetError(
            f"a budget of {budget:,} {what} cannot be met: the smallest feasible one is {smallest:,} "
            "(rank 1 on every bond)",
            smallest,
        )
    if problem.value(problem.caps) <= budget:
        return dict(problem.caps)
    ranks = grow_together(problem.caps, problem.weights, lambda r: problem.value(r) <= budget)
    level = _fill(problem, ranks, budget)
    ranks = _fill(problem, _perturb(problem, _trade(problem, dict(level), budget), budget), budget)
    return ranks if problem.value(ranks) >= _FILLED * budget else _exhaust(problem, ranks, level, budget)


def grow_together(
    caps: Mapping[Key, int], weights: Mapping[Key, float], fits: Callable[[Mapping[Key, int]], bool]
) -> dict[Key, int]:
    """r_b = clip(floor(t * weight_b), 1, cap_b) with the largest t (to a relative 1e-12) that fits."""

    def at(t: float) -> dict[Key, int]:
        return {b: min(cap, max(1, math.floor(t * weights[b] * (1 + 1e-12)))) for b, cap in caps.items()}

    def one_step() -> bool:
        """Whether all ranks that differ between low and high rise by one, at the same t."""
        steps = [(below[b] + 1) / weights[b] for b in caps if below[b] < above[b]]
        return all(above[b] <= below[b] + 1 for b in caps) and max(steps) <= min(steps) * (1 + 1e-12)

    low, high = 0.0, max(cap / weights[b] for b, cap in caps.items()) + 1
    below, above = at(low), at(high)
    if fits(above):
        return above
    for _ in range(100):
        if one_step():
            break
        middle = (low + high) / 2
        ranks = at(middle)
        if fits(ranks):
            low, below = middle, ranks
        else:
            high, above = middle, ranks
    return below  # low is just below the t at which a rank steps up


def _fill(problem: Problem, ranks: dict[Key, int], budget: int) -> dict[Key, int]:
    """Raises single bonds, the one furthest below its weight first, until none can be raised."""
    slopes = problem.slopes()
    left = budget - problem.value(ranks)
    while True:
        order = sorted(ranks, key=lambda b: ranks[b] / problem.weights[b])  # stable: ties in order of bonds
        for bond in order:
            step = sum(c * math.prod(ranks[b] for b in others) for c, others in slopes[bond])
            if ranks[bond] < problem.caps[bond] and step <= left:
                ranks[bond] += 1
                left -= step
                break
        else:
            return ranks


def _trade(problem: Problem, ranks: dict[Key, int], budget: int) -> dict[Key, int]:
    """Lowers one bond and raises another to the most that fits, while that fills more of the budget."""
    slopes = problem.slopes()
    bonds = list(ranks)
    level = dict(ranks)
    evaluations = 0
    best = problem.value(ranks)
    while best < _ENOUGH * budget and evaluations < _EVALUATIONS:
        found: tuple[int, Key, int, Key, int] | None = None
        for down in bonds:
            for lower in range(max(1, level[down] // 2), ranks[down] + 1):
                trial = {**ranks, down: lower}
                for up in bonds:
                    if up == down:
                        continue
                    evaluations += 1
                    slope = sum(c * math.prod(trial[b] for b in others) for c, others in slopes[up])
                    rest = problem.value({**trial, up: 0})
                    most = min(problem.caps[up], 2 * level[up] + 1, (budget - rest) // slope)
                    value = rest + most * slope
                    if most >= 1 and value > (found[0] if found else best):
                        found = (value, down, lower, up, most)
                if evaluations >= _EVALUATIONS:
                    break
            if evaluations >= _EVALUATIONS:
                break
        if found is None:
            break
        best, ranks = found[0], {**ranks, found[1]: found[2], found[3]: found[4]}
    return ranks


def _perturb(problem: Problem, ranks: dict[Key, int], budget: int) -> dict[Key, int]:
    """Seeded kicks of the ranks by at most one, each filled up again: what trades of two bonds do not find,
    as where one core multiplies many bonds and every single step is large."""
    best = problem.value(ranks)
    level, bonds = dict(ranks), list(ranks)
    rng = np.random.default_rng(0)
    tried = set[tuple[int, ...]]()
    for _ in range(max(20, _KICKS // len(bonds))):
        if best >= _ENOUGH * budget or len(tried) == 3 ** len(bonds):
            break
        kicks = tuple(rng.integers(-1, 2, size=len(bonds)).tolist())
        if kicks in tried:  # of few bonds there are few
            continue
        tried.add(kicks)
        trial = {b: min(problem.caps[b], max(1, level[b] + k)) for b, k in zip(bonds, kicks, strict=True)}
        if problem.value(trial) > budget:
            continue
        trial = _fill(problem, trial, budget)
        value = problem.value(trial)
        if value > best:
            best, ranks = value, trial
    return ranks


def _exhaust(problem: Problem, ranks: dict[Key, int], level: Mapping[Key, int], budget: int) -> dict[Key, int]:
    """All ranks from half of `level` to twice as much, where they are few: as where one bond multiplies all others,
    and a step of it must be made up for by several of them at once. Of those that fill enough, the nearest to it."""
    *rest, last = level
    ranges = [range(max(1, level[b] // 2), min(problem.caps[b], 2 * level[b] + 1) + 1) for b in rest]
    if math.prod(map(len, ranges)) > _FEW:
        return ranks

    def worth(trial: Mapping[Key, int]) -> tuple[float, float]:
        uneven = sum(abs(math.log(trial[b] / level[b])) for b in level)
        return min(problem.value(trial), _FILLED * budget), -uneven

    found = [ranks]
    for chosen in itertools.product(*ranges):
        trial = dict(zip(rest, chosen, strict=True))
        none, one = (problem.value({**trial, last: n}) for n in (0, 1))
        most = min(problem.caps[last], 2 * level[last] + 1, (budget - none) // (one - none))
        if most >= 1:
            found.append({**trial, last: most})
    best = max(found, key=worth)
    return {bond: best[bond] for bond in level} if problem.value(best) > problem.value(ranks) else ranks


def untagged(ranks: Mapping[Key, int], tag: Hashable) -> dict[str, int]:
    """The ranks of one topology, by bond, out of those of a problem of several."""
    return {key[1]: rank for key, rank in ranks.items() if isinstance(key, tuple) and key[0] == tag}


# -- one network ------------------------------------------------------------------------------------------------


def checked_budget(budget: object, what: str) -> int:
    """A budget as an int, or an error."""
    if isinstance(budget, bool) or not isinstance(budget, int | float | np.integer) or not math.isfinite(budget):
        raise TopologyError(f"a budget of {what} must be a whole number, received {budget!r}")
    if budget < 1:
        raise BudgetError(f"a budget of {what} must be at least 1, received {budget!r}", 1)
    return int(budget)


def itemsize_of(dtype: str) -> int:
    """Bytes of one number of a dtype that some backend has."""
    sizes = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16}
    if dtype not in sizes:
        raise TN4NNError(f"unknown dtype {dtype!r}." + nearest(dtype, sizes))
    return sizes[dtype]


def network_with_budget(
    topology: Topology,
    *,
    params: Any,
    macs: Any,
    bytes: Any,  # noqa: A002
    batch: int,
    dtype: str,
    weights: Mapping[str, float] | None,
    fixed: Mapping[str, int] | None,
) -> Network:
    """What `Topology.with_budget` does."""
    given = {"params": params, "macs": macs, "bytes": bytes}
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) != 1:
        raise TopologyError(
            f"with_budget takes exactly one of params=, macs=, bytes=, received {', '.join(asked) or 'none'}"
        )
    budget = checked_budget(given[asked[0]], asked[0])
    problem = topology_problem(topology, weights, fixed)
    fixed = dict(fixed or {})

    def network(ranks: Mapping[Key, int]) -> Network:
        return Network(topology, {**fixed, **untagged(ranks, None)})

    if asked[0] == "macs":
        return network(_solve_macs(problem, network, budget, batch))
    if asked[0] == "bytes":
        item = itemsize_of(dtype)
        try:
            return network(solve(problem, budget // item))
        except BudgetError as error:
            smallest = error.smallest * item
            raise BudgetError(
                f"a budget of {budget:,} bytes cannot be met: the smallest feasible one is {smallest:,} "
                f"(rank 1 on every bond, {dtype})",
                smallest,
            ) from None
    return network(solve(problem, budget))


def _solve_macs(
    problem: Problem, network: Callable[[Mapping[Key, int]], Network], budget: int, batch: int
) -> dict[Key, int]:
    from .problem import min_macs

    batch = checked_size(batch, "batch")
    known: dict[tuple[int, ...], int] = {}

    def value(ranks: Mapping[Key, int]) -> int:
        key = tuple(ranks.values())
        if key not in known:
            known[key] = min_macs(network(ranks), batch)
        return known[key]

    smallest = value(dict.fromkeys(problem.caps, 1))
    if smallest > budget:
        raise BudgetError(
            f"a budget of {budget:,} MACs at batch {batch} cannot be met: the smallest feasible one is "
            f"{smallest:,} (rank 1 on every bond)",
            smallest,
        )
    if not problem.caps:
        return {}
    ranks = grow_together(problem.caps, problem.weights, lambda r: value(r) <= budget)
    for _ in range(200):  # each pass raises one bond by the largest power of two that fits
        for bond in sorted(ranks, key=lambda b: ranks[b] / problem.weights[b]):
            room = problem.caps[bond] - ranks[bond]
            steps = [1 << i for i in range(room.bit_length()) if 1 << i <= min(room, ranks[bond])]
            fitting = [s for s in steps[::-1] if value({**ranks, bond: ranks[bond] + s}) <= budget]
            if fitting:
                ranks[bond] += fitting[0]
                break
        else:
            break
    return ranks
