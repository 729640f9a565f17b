"""The budget solver: ranks for every bond, never above the budget and as near to it as can be.

Parameters are multilinear in the ranks, so the ranks are grown together (r_b = floor(t * weight_b), with the
largest t that fits), then single bonds take up what is left, and last a local search trades one bond against
another. Everything is integer arithmetic in a fixed order: one question has one answer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic

import numpy as np

from .._base.checks import checked_size, nearest, only_one
from .._base.errors import BudgetError, TN4NNError, TopologyError
from .network import Network
from .rank_problem import B, RankProblem, RankStep, greedy, topology_problem
from .topology import Topology

_ENOUGH = 0.998  # filled so far, nothing is traded any more
_FILLED = 0.97  # less than that is searched for exhaustively,
_FEW = 2_000  # where no more ranks than that, but for one bond, are to be tried
_KICKS = 6_000  # of the last search, shared by the bonds
_EVALUATIONS = 20_000  # of the local search: bounds its time without looking at a clock


def solve(problem: RankProblem[B], budget: int, what: str = "parameters") -> dict[B, int]:
    """Ranks whose value is at most the budget and as near to it as the search gets.

    Raises:
        BudgetError: rank 1 everywhere is above the budget.
    """
    least = dict.fromkeys(problem.caps, 1)
    smallest = problem.params(least)
    if smallest > budget:
        raise BudgetError(
            f"a budget of {budget:,} {what} cannot be met: the smallest feasible one is {smallest:,} "
            "(rank 1 on every bond)",
            smallest,
        )
    if problem.params(problem.caps) <= budget:
        return dict(problem.caps)
    ranks = grow_together(problem.caps, problem.weights, lambda r: problem.params(r) <= budget)
    level = _fill(problem, ranks, budget)
    ranks = _fill(problem, _perturb(problem, _trade(problem, dict(level), budget), budget), budget)
    return ranks if problem.params(ranks) >= _FILLED * budget else _exhaust(problem, ranks, level, budget)


def grow_together(
    caps: Mapping[B, int], weights: Mapping[B, float], fits: Callable[[Mapping[B, int]], bool]
) -> dict[B, int]:
    """r_b = clip(floor(t * weight_b), 1, cap_b) with the largest t (to a relative 1e-12) that fits."""

    def at(t: float) -> dict[B, int]:
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


def _fill(problem: RankProblem[B], ranks: dict[B, int], budget: int) -> dict[B, int]:
    """Raises single bonds, the one furthest below its weight first, until none can be raised."""

    def fullness(bond: B, _: int) -> float:
        return -ranks[bond] / problem.weights[bond]

    def fits(step: RankStep[B], params: int) -> bool:
        return ranks[step.bond] < problem.caps[step.bond] and params + step.price <= budget

    for _ in greedy(problem, ranks, 1, fullness, fits):
        pass
    return ranks


@dataclasses.dataclass(frozen=True, slots=True)
class _Trade(Generic[B]):
    """One bond lowered and another raised to the most that fits, and the parameters that this gives."""

    down: B
    lower: int
    up: B
    higher: int  # below 1 where nothing fits
    params: int


def _trade(problem: RankProblem[B], ranks: dict[B, int], budget: int) -> dict[B, int]:
    """Lowers one bond and raises another to the most that fits, while that fills more of the budget."""
    start, used = dict(ranks), problem.params(ranks)
    left, others = _EVALUATIONS, len(ranks) - 1
    while others and left > 0 and used < _ENOUGH * budget:
        whole = -(-left // others) * others  # each lowered bond is tried with all others
        trades = list(itertools.islice(_trades(problem, ranks, start, budget), whole))
        left -= len(trades)
        best = max((trade for trade in trades if trade.higher >= 1), key=lambda trade: trade.params, default=None)
        if best is None or best.params <= used:
            break
        used, ranks = best.params, {**ranks, best.down: best.lower, best.up: best.higher}
    return ranks


def _trades(
    problem: RankProblem[B], ranks: Mapping[B, int], start: Mapping[B, int], budget: int
) -> Iterator[_Trade[B]]:
    """All trades of two bonds, each within half and twice its rank in `start`."""
    for down in ranks:
        for lower in range(max(1, start[down] // 2), ranks[down] + 1):
            lowered = {**ranks, down: lower}
            for up in ranks:
                if up != down:
                    rest, price = problem.params({**lowered, up: 0}), problem.price(up, lowered)
                    higher = min(problem.caps[up], 2 * start[up] + 1, (budget - rest) // price)
                    yield _Trade(down, lower, up, higher, rest + higher * price)


def _perturb(problem: RankProblem[B], ranks: dict[B, int], budget: int) -> dict[B, int]:
    """Seeded kicks of the ranks by at most one, each filled up again: what trades of two bonds do not find,
    as where one core multiplies many bonds and every single step is large."""
    best = problem.params(ranks)
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
        if problem.params(trial) > budget:
            continue
        trial = _fill(problem, trial, budget)
        value = problem.params(trial)
        if value > best:
            best, ranks = value, trial
    return ranks


def _exhaust(problem: RankProblem[B], ranks: dict[B, int], level: Mapping[B, int], budget: int) -> dict[B, int]:
    """All ranks from half of `level` to twice as much, where they are few: as where one bond multiplies all others,
    and a step of it must be made up for by several of them at once. Of those that fill enough, the nearest to it."""
    *rest, last = level
    ranges = [range(max(1, level[b] // 2), min(problem.caps[b], 2 * level[b] + 1) + 1) for b in rest]
    if math.prod(map(len, ranges)) > _FEW:
        return ranks

    def worth(trial: Mapping[B, int]) -> tuple[float, float]:
        uneven = sum(abs(math.log(trial[b] / level[b])) for b in level)
        return min(problem.params(trial), _FILLED * budget), -uneven

    found = [ranks]
    for chosen in itertools.product(*ranges):
        trial = dict(zip(rest, chosen, strict=True))
        none, one = (problem.params({**trial, last: n}) for n in (0, 1))
        most = min(problem.caps[last], 2 * level[last] + 1, (budget - none) // (one - none))
        if most >= 1:
            found.append({**trial, last: most})
    best = max(found, key=worth)
    return {bond: best[bond] for bond in level} if problem.params(best) > problem.params(ranks) else ranks


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
    unit = only_one(given, "with_budget")
    budget = checked_budget(given[unit], unit)
    problem = topology_problem(topology, weights, fixed)
    fixed = dict(fixed or {})

    def network(ranks: Mapping[str, int]) -> Network:
        return Network(topology, {**fixed, **ranks})

    if unit == "macs":
        return network(_solve_macs(problem, network, budget, batch))
    if unit == "bytes":
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
    problem: RankProblem[str], network: Callable[[Mapping[str, int]], Network], budget: int, batch: int
) -> dict[str, int]:
    from .problem import min_macs

    batch = checked_size(batch, "batch")
    known: dict[tuple[int, ...], int] = {}

    def value(ranks: Mapping[str, int]) -> int:
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
