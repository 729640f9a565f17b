"""The cheapest cut between two groups of open legs: what can be entangled across it, and where to look."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Collection, Hashable, Mapping, Sequence

from .paths import Legs
from .topology import holders_of

Node = Hashable
Capacities = dict[Node, dict[Node, float]]  # node -> neighbour -> what may still flow
_INSIDE, _OUTSIDE = "inside", "outside"


def min_cut(tensors: Sequence[Legs], sizes: Mapping[str, int], inside: Collection[str]) -> tuple[float, frozenset[int]]:
    """The least sum of ln(size) over legs that separate `inside` from the other open legs, and the tensors inside.

    An open leg is a leg of one tensor alone. A leg counts once, however many tensors it joins, and the cut may go
    through open legs. (Maximal flow, Edmonds and Karp.)

    Args:
        tensors: the legs of each tensor.
        sizes: size of every leg.
        inside: the open legs of one side.

    Examples:
        >>> value, part = min_cut([("x", "a"), ("a", "b"), ("b", "y")], {"x": 8, "a": 2, "b": 3, "y": 8}, ["x"])
        >>> round(math.exp(value)), sorted(part)
        (2, [0])
    """
    left: Capacities = {_INSIDE: {}, _OUTSIDE: {}}
    for leg, holders in holders_of(tensors).items():
        ends: tuple[Node, ...] = holders
        if len(holders) == 1:
            ends = (*holders, _INSIDE if leg in inside else _OUTSIDE)
        enter, leave = (leg, 0), (leg, 1)  # a leg is an edge of its own: it counts once
        _add_edge(left, enter, leave, math.log(sizes[leg]))
        for node in ends:
            _add_edge(left, node, enter, math.inf)
            _add_edge(left, leave, node, math.inf)
    flow = 0.0
    while (path := _augmenting_path(parents := _reached(left))) is not None:
        edges = list(itertools.pairwise(path))
        most = min(left[a][b] for a, b in edges)
        for a, b in edges:
            left[a][b] -= most
            left[b][a] += most
        flow += most
    return flow, frozenset(node for node in parents if isinstance(node, int))


def _add_edge(left: Capacities, a: Node, b: Node, capacity: float) -> None:
    left.setdefault(a, {})[b] = capacity
    left.setdefault(b, {}).setdefault(a, 0.0)


def _reached(left: Capacities) -> dict[Node, Node]:
    """Node -> the node before it, for the nodes that more flow can reach from inside; breadth first."""
    parents: dict[Node, Node] = {_INSIDE: _INSIDE}
    queue: deque[Node] = deque([_INSIDE])
    while queue:
        here = queue.popleft()
        for node, capacity in left[here].items():
            if capacity > 1e-12 and node not in parents:
                parents[node] = here
                queue.append(node)
    return parents


def _augmenting_path(parents: Mapping[Node, Node]) -> list[Node] | None:
    """The shortest path for more flow from inside to outside, or None where there is none."""
    if _OUTSIDE not in parents:
        return None
    path: list[Node] = [_OUTSIDE]
    while path[-1] != _INSIDE:
        path.append(parents[path[-1]])
    return path[::-1]
