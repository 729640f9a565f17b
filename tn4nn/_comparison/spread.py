"""One budget over many layers: in even shares, or by the solver that grows all bonds together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from .._base.errors import BudgetError, TN4NNError, TopologyError
from .._graph.catalogue import build, canonical_name
from .._graph.network import Network
from .._graph.topology import Topology
from .._model.budget import with_budget
from .._model.layers import Linear, OnNetwork, Parallel
from .pricing import Pricer

SPREADS = ("even", "solver")
_TRIES = 24  # halvings of the share


def spread(topologies: Mapping[str, Topology], sizes: Mapping[str, int], budget: int, how: str) -> dict[str, Network]:
    """Layer name -> network, with at most `budget` parameters together.

    Args:
        topologies: of each layer, without ranks.
        sizes: parameters of each dense layer.
        budget: of all layers together.
        how: "even": each layer gets the same share of its own size. "solver": all bonds of all layers grow together,
            so that a layer which its largest useful ranks end early leaves its part to the others.

    Raises:
        BudgetError: what cannot be met, layer by layer.
    """
    if how == "solver":
        return _solved(topologies, budget)
    total, found, wrong, least = sum(sizes.values()), {}, [], 0
    for name, topology in topologies.items():
        own = budget * sizes[name] // total
        try:
            found[name] = _within(topology, own)
        except BudgetError as error:
            wrong.append(f"{name} has {own:,} of its {sizes[name]:,}, the smallest is {error.smallest:,}")
            least = max(least, -(-error.smallest * total // sizes[name]))
    if wrong:
        raise BudgetError(f"the budget of {budget:,} in even shares is too small: " + "; ".join(wrong), least)
    return found


def _within(topology: Topology, budget: int) -> Network:
    """A network with at most so many parameters."""
    if topology.bonds:
        return topology.with_budget(params=max(1, budget))
    fixed = topology.with_rank(1)
    if fixed.num_params > budget:
        raise BudgetError(f"{topology.name!r} has {fixed.num_params:,} parameters", fixed.num_params)
    return fixed


def _solved(topologies: Mapping[str, Topology], budget: int) -> dict[str, Network]:
    found = {name: t.with_rank(1) for name, t in topologies.items() if not t.bonds}
    free = {name: t for name, t in topologies.items() if name not in found}
    fixed = sum(net.num_params for net in found.values())
    if fixed > budget or (free and fixed == budget):
        raise BudgetError(f"the layers without ranks have {fixed:,} of {budget:,} parameters", fixed + len(free))
    if free:
        side_by_side = Parallel(*(Linear(t, bias=False) for t in free.values()))
        solved = with_budget(side_by_side, params=budget - fixed, count="networks").networks()
        found |= dict(zip(free, solved.values(), strict=True))
    return {name: found[name] for name in topologies}


def largest_share(cost: Callable[[int], float], budget: float, most: int) -> int:
    """The largest number of parameters whose cost is within a budget of something else, to a few per mille.

    Args:
        cost: of the layers with so many parameters; it may raise BudgetError where they are too few.
        budget: in the unit of `cost`.
        most: parameters to try at most.

    Raises:
        BudgetError: even the fewest cost more.
    """
    low, high, smallest = 0, 2 * most, None  # the first middle is `most`
    for _ in range(_TRIES):
        middle = (low + high) // 2
        price = _costs(cost, middle)
        if middle == most and price is not None and price <= budget:
            return most
        if price is None:  # too few for any network
            low = middle
        elif price <= budget:
            low = smallest = middle
        else:
            high = middle
        if high - low <= max(1, most // 512):
            break
    if smallest is None:
        raise BudgetError(f"no ranks cost at most {budget:,.4g}", high)
    return smallest


def _costs(cost: Callable[[int], float], params: int) -> float | None:
    try:
        return cost(params)
    except BudgetError:
        return None


def networks_within(
    given: str | Topology,
    layers: Mapping[str, tuple[int, int]],
    sizes: Mapping[str, int],
    price: Pricer,
    budget: float,
    how: str,
    sites: int | None,
    on: Callable[[Mapping[str, Network]], Mapping[str, OnNetwork] | None] = lambda networks: None,
) -> dict[str, Network]:
    """Layer name -> network of a topology, within a budget of any unit.

    Args:
        given: a name of the catalogue, or a Topology that fits every layer.
        layers: name -> (in_features, out_features).
        sizes: parameters of each dense layer.
        price: in the unit of the budget.
        budget: of all layers together.
        how: see `spread`.
        sites: modes on each side; None for the catalogue's choice.
        on: the layers on some networks; None where they are linear.

    Raises:
        TopologyError: what no layer of its size can take, layer by layer.
        BudgetError: what cannot be met, layer by layer.
    """
    topologies, wrong = {}, []
    for name, size in layers.items():
        try:
            topologies[name] = _topology(given, name, size, sites)
        except TopologyError as error:
            wrong.append(str(error))
    if wrong:
        raise TopologyError("; ".join(wrong))
    if price.unit == "params":
        return spread(topologies, sizes, int(budget), how)

    @functools.cache
    def networks(params: int) -> dict[str, Network]:
        return spread(topologies, sizes, params, how)

    def cost(params: int) -> float:
        return price(networks(params), on(networks(params)))

    return networks(largest_share(cost, budget, 2 * sum(sizes.values())))


def _topology(given: str | Topology, name: str, size: tuple[int, int], sites: int | None) -> Topology:
    """The topology of one layer, by name or a person's own.

    Raises:
        TopologyError: it does not fit the layer.
    """
    try:
        if isinstance(given, Topology):
            found = given
        else:
            found = build(given, *size, sites=None if canonical_name(given) == "low_rank" else sites)
    except TN4NNError as error:
        raise TopologyError(f"{name} ({size[0]} -> {size[1]}): {error}") from None
    if (found.in_features, found.out_features) != size:
        raise TopologyError(
            f"{name} is {size[0]} -> {size[1]}, the topology {found.in_features} -> {found.out_features}"
        )
    return found
