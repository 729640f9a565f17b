"""How large ranks may usefully be, what they cost, and the greedy loop that every choice of ranks shares.

Parameters are multilinear in the ranks: each core adds its open sizes times the ranks of its bonds. So one rank more
of a bond costs what one rank less of it frees, and that price changes only with the ranks of the cores it is on.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from .._base.checks import checked_size, nearest
from .._base.errors import TopologyError
from .topology import Topology

B = TypeVar("B", bound=Hashable)  # a bond: its name, or (layer, name) in a problem of several layers
Term = tuple[int, tuple[B, ...]]  # coefficient, bonds


def rank_caps(topology: Topology) -> dict[str, int]:
    """The largest useful size of each bond: the rank above which W cannot gain.

    Taking the bond out leaves groups of cores. Where it leaves several, no rank above the product of the groups' open
    sizes over the largest of them adds anything (for two groups: the smaller of the two sides). Where it leaves one
    group (the bond is part of a loop) the bond could at most carry a whole balanced cut by itself. Open legs on both
    sides (hyperedges) are shared and do not count.

    Args:
        topology: of any kind; ranks play no part.

    Returns:
        Bond -> its largest useful size.

    Examples:
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


@dataclasses.dataclass(frozen=True)
class RankProblem(Generic[B]):
    """Bonds whose ranks are to be chosen, and what the ranks cost.

    Attributes:
        constant: parameters that no rank changes.
        terms: (coefficient, bonds) of each core; parameters are the sum of coefficient * product of the ranks.
        caps: bond -> largest useful rank. The bonds of a problem are the keys of `caps`.
        weights: bond -> relative size wanted.
    """

    constant: int
    terms: tuple[Term[B], ...]
    caps: Mapping[B, int]
    weights: Mapping[B, float]

    def params(self, ranks: Mapping[B, int]) -> int:
        """Parameters at these ranks."""
        return self.constant + sum(c * math.prod([ranks[b] for b in bonds]) for c, bonds in self.terms)

    def price(self, bond: B, ranks: Mapping[B, int]) -> int:
        """Parameters that one rank more of a bond adds, and one less frees."""
        return sum([c * math.prod([ranks[b] for b in others]) for c, others in self._partners[bond]])

    @functools.cached_property
    def _partners(self) -> Mapping[B, list[Term[B]]]:
        """Bond -> (coefficient, other bonds) of each core that it is on."""
        found: dict[B, list[Term[B]]] = {bond: [] for bond in self.caps}
        for coefficient, bonds in self.terms:
            for bond in bonds:
                found[bond].append((coefficient, tuple(b for b in bonds if b != bond)))
        return found

    @functools.cached_property
    def neighbours(self) -> Mapping[B, frozenset[B]]:
        """Bond -> itself and the bonds it shares a core with: those whose price or worth changes with its rank."""
        return {
            bond: frozenset((bond, *(other for _, others in terms for other in others)))
            for bond, terms in self._partners.items()
        }


def topology_problem(
    topology: Topology, weights: Mapping[str, float] | None = None, fixed: Mapping[str, int] | None = None
) -> RankProblem[str]:
    """The ranks of one topology, those of the bonds in `fixed` given."""
    weights, fixed = dict(weights or {}), dict(fixed or {})
    bonds = topology.bonds
    for given, what in ((weights, "weights"), (fixed, "fixed")):
        for bond in given:
            if bond not in bonds:
                raise TopologyError(f"{what}: {bond!r} is not a bond of {topology.name!r}." + nearest(bond, bonds))
    for bond, weight in weights.items():
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight > 0):
            raise TopologyError(f"weights: bond {bond!r} must have a finite weight above 0, received {weight!r}")
    known = {**topology.modes, **{b: checked_size(n, f"fixed bond {b!r}") for b, n in fixed.items()}}
    terms = tuple(
        (
            math.prod(known[leg] for leg in core.legs if leg in known),
            tuple(leg for leg in core.legs if leg not in known),
        )
        for core in topology.cores
    )
    caps = rank_caps(topology)
    free = [bond for bond in bonds if bond not in known]
    return RankProblem(
        0, terms, {bond: caps[bond] for bond in free}, {bond: float(weights.get(bond, 1.0)) for bond in free}
    )


def joint_problem(parts: Mapping[str, RankProblem[str]], constant: int = 0) -> RankProblem[tuple[str, str]]:
    """The ranks of several layers at once: the bonds are (layer, bond)."""
    return RankProblem(
        constant + sum(part.constant for part in parts.values()),
        tuple((c, tuple((layer, b) for b in bonds)) for layer, part in parts.items() for c, bonds in part.terms),
        {(layer, bond): cap for layer, part in parts.items() for bond, cap in part.caps.items()},
        {(layer, bond): weight for layer, part in parts.items() for bond, weight in part.weights.items()},
    )


def ranks_of(layer: str, ranks: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """The ranks of one layer out of those of a joint problem."""
    return {bond: rank for (owner, bond), rank in ranks.items() if owner == layer}


@dataclasses.dataclass(frozen=True, slots=True)
class RankStep(Generic[B]):
    """One rank more or less of a bond: what it adds or frees, and how good it is."""

    bond: B
    price: int
    score: float


def greedy(
    problem: RankProblem[B],
    ranks: dict[B, int],
    direction: int,
    score: Callable[[B, int], float],
    allowed: Callable[[RankStep[B], int], bool],
) -> Iterator[B]:
    """Moves one bond at a time, always by the step with the highest score, until no step is allowed.

    A score is computed again only when the rank of a neighbour changes: it may depend on the ranks of its cores alone.

    Args:
        problem: what ranks cost.
        ranks: where to start; changed in place. Of equal scores the first bond in it wins.
        direction: 1 to raise ranks, -1 to lower them.
        score: of a step, from its bond and its price.
        allowed: whether a step may be taken, from the step and the parameters before it.

    Yields:
        The bond of each step, after the step.
    """

    def step_of(bond: B) -> RankStep[B]:
        price = problem.price(bond, ranks)
        return RankStep(bond, price, score(bond, price))

    params = problem.params(ranks)
    steps = {bond: step_of(bond) for bond in ranks}
    while open_steps := [step for step in steps.values() if allowed(step, params)]:
        best = max(open_steps, key=lambda step: step.score)
        ranks[best.bond] += direction
        params += direction * best.price
        steps |= {bond: step_of(bond) for bond in problem.neighbours[best.bond]}
        yield best.bond
