"""One budget for a whole model, spread over its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .._base.checks import nearest
from .._base.errors import TopologyError
from .._graph.budget import checked_budget, solve
from .._graph.network import Network
from .._graph.rank_problem import joint_problem, ranks_of, topology_problem
from .._graph.topology import Topology
from .layers import Layer, OnNetwork, replace_networks


def with_budget(
    model: Layer,
    *,
    params: int,
    count: str = "model",
    weights: Mapping[str, float] | None = None,
    rechoose: bool = False,
) -> Layer:
    """Gives every layer on a bare Topology its ranks, so that the whole model fits a budget.

    All bonds of all layers grow together, as they do within one network (`Topology.with_budget`): each layer
    gets what its largest useful ranks allow and the rest goes to the others.

    Args:
        model: with a Topology instead of a Network where ranks are to be chosen.
        params: the budget.
        count: what it counts: "model" for every trainable number (dense layers, biases and norms included),
            "networks" for the cores of the layers whose ranks are chosen.
        weights: layer name -> relative size wanted for its bonds (default 1).
        rechoose: choose new ranks for layers on Networks with bonds too.

    Raises:
        BudgetError: rank 1 everywhere is above the budget; `.smallest` is what would do.
        TopologyError: no layer whose ranks could be chosen, an unknown layer name.

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.Sequential(
        ...     tn.Linear(tn.mpo((4, 7, 7, 4), (4, 4, 4, 4))), tn.ReLU(),
        ...     tn.Linear(tn.mpo((4, 4, 4, 4), (1, 1, 10, 1))))
        >>> small = tn.with_budget(model, params=1760, count="networks")
        >>> [net.num_params for net in small.networks().values()]
        [1024, 736]
    """
    budget = checked_budget(params, "params")
    if count not in ("model", "networks"):
        raise TopologyError(f"count must be 'model' or 'networks', received {count!r}")
    open_layers = {
        name: layer.topology
        for name, layer in model.walk()
        if isinstance(layer, OnNetwork) and (isinstance(layer.network, Topology) or (rechoose and layer.topology.bonds))
    }
    if not open_layers:
        raise TopologyError(
            "no layer of this model has a Topology whose ranks could be chosen: build it with "
            "tn.Linear(topology), or give rechoose=True"
        )
    wanted = dict(weights or {})
    for name in wanted:
        if name not in open_layers:
            raise TopologyError(
                f"weights: {name!r} is not a layer whose ranks are chosen." + nearest(name, open_layers)
            )
    parts = {
        name: topology_problem(t, dict.fromkeys(t.bonds, wanted.get(name, 1.0))) for name, t in open_layers.items()
    }
    ranks = solve(joint_problem(parts, _fixed(model, open_layers) if count == "model" else 0), budget)
    return replace_networks(model, {name: Network(t, ranks_of(name, ranks)) for name, t in open_layers.items()})


def _fixed(model: Layer, open_layers: Mapping[str, Topology]) -> int:
    """Trainable numbers outside the cores whose ranks are chosen."""
    total = 0
    for name, layer in model.walk():
        if name in open_layers and isinstance(layer, OnNetwork):
            specs = layer.bias_spec(bool(getattr(layer, "bias", False)))
        else:
            specs = layer.own_specs()
        total += sum(math.prod(spec.shape) for spec in specs if spec.role != "state")
    return total
