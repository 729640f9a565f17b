"""The cheapest cut between two groups of open legs: what can be entangled across it, and where to look."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Collection, Hashable, Mapping, Sequence

from .paths import Legs
from .topology import holders_of

Node = Hashable
_INSIDE, _OUTSIDE = "inside", "outside"


def min_cut(tensors: Sequence[Legs], sizes: Mapping[str, int], inside: Collection[str]) -> tuple[float, frozenset[int]]:
    """The least sum of ln(size) over legs that part `inside` from the other open legs, and the tensors inside.

    An open leg is one that stands on one tensor alone. A leg counts once, however many tensors it joins, and the
    cut may go through open legs. (Maximal flow, Edmonds and Karp.)

    Args:
        tensors: the legs of each tensor.
        sizes: size of every leg.
        inside: the open legs of one side.

    Example:
        >>> value, part = min_cut([("x", "a"), ("a", "b"), ("b", "y")], {"x": 8, "a": 2, "b": 3, "y": 8}, ["x"])
        >>> round(math.exp(value)), sorted(part)
        (2, [0])
    """
    room: dict[Node, dict[Node, float]] = {_INSIDE: {}, _OUTSIDE: {}}
    for leg, holders in holders_of(tensors).items():
        ends: tuple[Node, ...] = holders
        if len(holders) == 1:
            ends = (*holders, _INSIDE if leg in inside else _OUTSIDE)
        enter, leave = (leg, 0), (leg, 1)
        _join(room, enter, leave, math.log(sizes[leg]))
        for node in ends:
            _join(room, node, enter, math.inf)
            _join(room, leave, node, math.inf)
    flow = 0.0
    while (way := _way(room))[1]:
        nodes = way[0]
        most = min(room[a][b] for a, b in itertools.pairwise(nodes))
        for a, b in itertools.pairwise(nodes):
            room[a][b] -= most
            room[b][a] += most
        flow += most
    return flow, frozenset(node for node in way[0] if isinstance(node, int))


def _join(room: dict[Node, dict[Node, float]], a: Node, b: Node, capacity: float) -> None:
    room.setdefault(a, {})[b] = capacity
    room.setdefault(b, {}).setdefault(a, 0.0)


def _way(room: Mapping[Node, Mapping[Node, float]]) -> tuple[list[Node], bool]:
    """(the shortest way with room from inside to outside, True), or (all nodes that are reached, False)."""
    came: dict[Node, Node] = {_INSIDE: _INSIDE}
    queue: deque[Node] = deque([_INSIDE])
    while queue:
        here = queue.popleft()
        for node, left in room[here].items():
            if left > 1e-12 and node not in came:
                came[node] = here
                queue.append(node)
    if _OUTSIDE not in came:
        return list(came), False
    way: list[Node] = [_OUTSIDE]
    while way[-1] != _INSIDE:
        way.append(came[way[-1]])
    return way[::-1], True
