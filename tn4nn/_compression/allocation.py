"""One budget over the matrices of a trained model: each gets what it makes the most of.

Every matrix has a curve, what it loses (a share of its squared norm, or of that of its outputs) by how many
parameters it is given; its last point is the dense matrix. Where it is known what the model loses by the loss of each
matrix, the sum of these products is made small. Elsewhere layers act one after the other, so the product of what they
keep is maximised: small losses add up, and no layer loses everything. On the lower convex hulls of the curves the
steepest segment is bought first.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .._base.errors import BudgetError
from .._graph.network import Network
from .._graph.ordering import Ordering
from .._graph.rank_problem import rank_caps
from .._graph.topology import Topology
from .._graph.tree import tree_of
from .fit import Fitter, checked_memory
from .svd import root, singular_values, tails
from .target import Target, target_of
from .tree_svd import full_ranks, grown

Points = tuple[tuple[int, float], ...]

_LEAST_KEPT = 1e-4  # what is lost altogether must not cost infinitely much
_GRID = 24  # budgets at which the loss of a tree is read


def loss_curve(
    W: ArrayLike, topology: Topology, inputs: ArrayLike | None = None, ordering: Ordering | None = None
) -> Points:
    """(parameters, share of the squared norm that is lost), parameters ascending; the last point is W left dense.

    On a tree the loss is what the spectra at its bonds drop, at ranks grown by error per parameter. On other graphs it
    would take a fit for each point; there the spectrum of W is used, as if the topology were low rank.

    Args:
        W: of shape (out_features, in_features).
        topology: of the network that replaces W.
        inputs: as for `tn.decompose`: then the loss is that of the outputs.
        ordering: of the inputs.

    Raises:
        ShapeError: W does not have the shape of the topology.
        DataError: NaN or infinite entries, W zero everywhere.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> points = loss_curve(np.eye(4), tn.low_rank(4, 4))
        >>> points[0], points[-1]
        ((8, 0.75), (16, 0.0))
    """
    target = target_of(W, topology, inputs, ordering)
    return curve_of(Fitter(target, tree_of(topology), "auto", 0, checked_memory(None)))


def curve_of(fitter: Fitter) -> Points:
    """`loss_curve` of what a fitter was made for, whose decompositions serve for fits at all sizes."""
    target, topology = fitter.target, fitter.target.topology
    dense = target.w.size
    smallest = topology.with_rank(1).num_params
    found: dict[int, float] = {}
    if smallest < dense:
        if fitter.tree is None:
            found = {smallest: 1.0, **_low_rank_losses(target, smallest, dense)}
        else:
            found = _tree_losses(fitter, smallest, dense)
    return (*sorted(found.items()), (dense, 0.0))


def _tree_losses(fitter: Fitter, smallest: int, dense: int) -> dict[int, float]:
    topology, lost = fitter.target.topology, fitter.tails
    assert fitter.tree is not None
    if not fitter.tree.edges:
        return {smallest: 0.0}
    most = full_ranks(fitter.tree, lost, rank_caps(topology))
    found = {}
    for budget in dict.fromkeys(int(n) for n in np.geomspace(smallest, dense - 1, _GRID)):
        ranks = grown(topology, lost, most, max(budget, smallest), 0.0)
        found[Network(topology, ranks).num_params] = lost.lost(ranks)
    return found


def _low_rank_losses(target: Target, smallest: int, dense: int) -> dict[int, float]:
    weighed = target.w
    if target.covariance is not None:
        weighed = weighed @ root(target.covariance)
    dropped = tails(singular_values(weighed) ** 2)
    price = sum(target.w.shape)
    most = max(1, (dense - 1) // price)
    ranks = dict.fromkeys(int(r) for r in np.geomspace(1, most, _GRID))
    return {r * price: float(dropped[r] / dropped[0]) for r in ranks if smallest < r * price < dense}


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A part of a curve's lower convex hull."""

    slope: float
    name: str
    length: int


def spread(curves: Mapping[str, Points], budget: int, weights: Mapping[str, float] | None = None) -> dict[str, int]:
    """How many parameters each of several matrices gets: together at most the budget, with the
    largest product of what they keep (1 - loss), or with the smallest sum of weight times loss.

    Args:
        curves: name -> what `loss_curve` gave.
        budget: parameters.
        weights: what the model loses by the loss of each matrix, where that is known.

    Raises:
        BudgetError: the smallest networks together are above the budget.

    Examples:
        >>> curves = {"flat": ((10, 0.9), (100, 0.8)), "steep": ((10, 0.9), (60, 0.1), (100, 0.0))}
        >>> spread(curves, 80)
        {'flat': 20, 'steep': 60}
        >>> spread(curves, 80, {"flat": 100.0, "steep": 1.0})
        {'flat': 70, 'steep': 10}
    """
    got, left = _smallest(curves, budget)
    segments = [
        segment
        for name, points in curves.items()
        for segment in _segments(name, points, None if weights is None else weights[name])
    ]
    # The sort is stable and hulls are convex: the segments of each curve stay in order.
    for segment in sorted(segments, key=lambda segment: segment.slope):
        taken = min(segment.length, left)
        got[segment.name] += taken
        left -= taken
    return got


def even(curves: Mapping[str, Points], budget: int) -> dict[str, int]:
    """The same share of its parameters for every matrix, but never less than its smallest network.

    Args:
        curves: as for `spread`.
        budget: parameters.

    Raises:
        BudgetError: the smallest networks together are above the budget.

    Examples:
        >>> even({"a": ((10, 0.9), (100, 0.0)), "b": ((10, 0.9), (300, 0.0)), "c": ((70, 0.9), (100, 0.0))}, 270)
        {'a': 50, 'b': 150, 'c': 70}
    """
    got, left = _smallest(curves, budget)
    left, free = budget, dict(curves)
    while free:
        share = left / sum(points[-1][0] for points in free.values())
        low = [name for name, points in free.items() if share * points[-1][0] < points[0][0]]
        if not low:
            return got | {name: min(points[-1][0], math.floor(share * points[-1][0])) for name, points in free.items()}
        left -= sum(got[name] for name in low)
        free = {name: points for name, points in free.items() if name not in low}
    return got


def _smallest(curves: Mapping[str, Points], budget: int) -> tuple[dict[str, int], int]:
    """The smallest size of each matrix, and what is left of the budget."""
    got = {name: points[0][0] for name, points in curves.items()}
    smallest = sum(got.values())
    if smallest > budget:
        raise BudgetError(
            f"a budget of {budget:,} parameters cannot be met: the smallest feasible one is {smallest:,} (rank 1 on "
            "every bond of every layer)",
            smallest,
        )
    return got, budget - smallest


def _segments(name: str, points: Points, weight: float | None) -> list[_Segment]:
    costs = [(n, -math.log(max(1 - loss, _LEAST_KEPT)) if weight is None else weight * loss) for n, loss in points]
    return [
        _Segment((b[1] - a[1]) / (b[0] - a[0]), name, b[0] - a[0]) for a, b in itertools.pairwise(_lower_hull(costs))
    ]


def _lower_hull(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    hull: list[tuple[int, float]] = []
    for point in points:
        while len(hull) > 1 and _above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _above(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
