"""Ranks that move during training, under one budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.errors import BudgetError, TN4NNError
from .._compression.ranks import Resized, checked, grown, schmidt_values, shortened
from .._graph.budget import checked_budget, rank_caps
from .._graph.network import Network
from .._graph.topology import Topology
from .._model.layers import Layer, replace_networks

Weights = Mapping[str, NDArray[Any]]
Key = tuple[str, str]  # layer, bond
_CAP = 2  # growth of a bond at once, as a factor
_CUT_BELOW = 0.25  # of the best gain of growing: values with a larger gain are not cut


@dataclasses.dataclass(frozen=True)
class AutoRank:
    """How `tn.train` moves ranks: at the end of an epoch it cuts the Schmidt values with the least share of W for
    their parameters, and spends the parameters on the bonds whose least value has the largest share.

    The share of a value is its square over the squared norm of W (`tn.cut` says how it is found). Cutting changes the
    function a little, growing not at all; Adam's moments follow both.

    Attributes:
        params: parameters of all layers with bonds together, never more.
        share: of the budget that may be freed by cutting each time, from 0 to 1.
        every: epochs between two changes.
        until: share of the epochs after which ranks stay.

    Example:
        >>> import numpy as np, tn4nn as tn
        >>> x = np.random.default_rng(0).normal(size=(200, 16)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int64")
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(2)), tn.ReLU(), tn.Linear(16, 2))
        >>> run = tn.train(model, (x, y), epochs=4, batch_size=20, lr=0.01, ranks=tn.AutoRank(params=200))
        >>> run.model.networks()["0"].num_params
        192
    """

    params: int
    share: float = 0.15
    every: int = 1
    until: float = 0.6

    def __post_init__(self) -> None:
        checked_budget(self.params, "params")
        if not 0 <= self.share < 1 or not 0 <= self.until <= 1:
            raise TN4NNError(
                f"AutoRank: share and until must be from 0 to 1, received share={self.share!r}, until={self.until!r}"
            )
        if not isinstance(self.every, int) or self.every < 1:
            raise TN4NNError(f"AutoRank: every must be a whole number of at least 1, received {self.every!r}")

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether ranks move at the end of an epoch, counted from 1; never at the end of the last."""
        return epoch % self.every == 0 and epoch <= self.until * epochs and epoch < epochs


@dataclasses.dataclass(frozen=True, eq=False)
class Moved:
    """A model with other ranks, its weights, and how an optimizer's state follows."""

    model: Layer
    weights: dict[str, NDArray[Any]]
    changes: Mapping[str, Resized]

    def moment(self, name: str, array: NDArray[Any], degree: int) -> NDArray[Any]:
        """An optimizer's array for a weight: a mean of gradients (degree 1) or of their squares (degree 2)."""
        layer, _, core = name.rpartition(".")
        changed = self.changes.get(layer)
        return array if changed is None or core not in changed.weights else changed.moment(core, array, degree)


def managed(model: Layer, auto: AutoRank) -> dict[str, Network]:
    """The networks whose ranks move, or an error where there are none or they are above the budget already."""
    found = {name: net for name, net in model.networks().items() if net.ranks}
    if not found:
        raise TN4NNError("ranks=AutoRank(...) needs a network with bonds, this model has none")
    spent = sum(net.num_params for net in found.values())
    if spent > auto.params:
        raise BudgetError(
            f"AutoRank: the networks of this model have {spent:,} parameters at the start, above "
            f"params={auto.params:,}: start smaller (tn.with_budget)",
            spent,
        )
    return found


def moved(model: Layer, weights: Weights, auto: AutoRank, seed: int = 0) -> Moved:
    """One change of ranks.

    Args:
        model: with ranks on every layer.
        weights: name -> array.
        auto: the budget and the pace.
        seed: of the new entries.
    """
    networks = managed(model, auto)
    cores = {
        layer: checked(net, {core: weights[_full(layer, core)] for core in net.shapes})
        for layer, net in networks.items()
    }
    choice = _Choice(networks, cores, auto)
    changes = {}
    for layer, net in networks.items():
        smaller = {b: r for b, r in choice.low[layer].items() if r < net.ranks[b]}
        shorter = shortened(Resized(net, cores[layer]), smaller)
        larger = {b: r for b, r in choice.high[layer].items() if r > shorter.network.ranks[b]}
        changes[layer] = grown(shorter, larger, seed)
    new = dict(weights)
    for layer, change in changes.items():
        for core, array in change.weights.items():
            name = _full(layer, core)
            new[name] = np.ascontiguousarray(array, dtype=weights[name].dtype)
    changed = replace_networks(model, {layer: change.network for layer, change in changes.items()})
    return Moved(changed, new, changes)


def _full(layer: str, core: str) -> str:
    return f"{layer}.{core}" if layer else core


class _Choice:
    """The ranks after cutting (`low`) and after growing again (`high`), layer -> bond -> rank."""

    def __init__(self, networks: Mapping[str, Network], cores: Mapping[str, Weights], auto: AutoRank) -> None:
        self.topologies = {layer: net.topology for layer, net in networks.items()}
        self.caps = {layer: rank_caps(t) for layer, t in self.topologies.items()}
        self.low = {layer: dict(net.ranks) for layer, net in networks.items()}
        self.start = {layer: dict(net.ranks) for layer, net in networks.items()}
        self.shares: dict[Key, NDArray[Any]] = {}
        for layer, net in networks.items():
            for bond in net.ranks:
                squares = schmidt_values(net, cores[layer], bond) ** 2
                self.shares[layer, bond] = squares / max(float(np.sum(squares)), 1e-300)
        self.spent = sum(net.num_params for net in networks.values())
        self._shrink(int((1 - auto.share) * auto.params))
        self.high = {layer: dict(ranks) for layer, ranks in self.low.items()}
        self._fill(auto.params)

    def _price(self, ranks: Mapping[str, Mapping[str, int]], key: Key, step: int) -> int:
        """Parameters that one step of a bond adds."""
        layer, bond = key
        old = ranks[layer]
        return _count(self.topologies[layer], {**old, bond: old[bond] + step}) - _count(self.topologies[layer], old)

    def _shrink(self, budget: int) -> None:
        while self.spent > budget:
            options = [key for key in self.shares if self.low[key[0]][key[1]] > 1]
            if not options:
                return
            best = min(options, key=lambda k: self._least(k) / max(1, -self._price(self.low, k, -1)))
            freed = -self._price(self.low, best, -1)
            if self._least(best) / max(1, freed) > _CUT_BELOW * self._best_gain():
                return
            self.spent -= freed
            self.low[best[0]][best[1]] -= 1

    def _best_gain(self) -> float:
        """The best gain of growing: share of a new value over its parameters."""
        options = [k for k in self.shares if self.low[k[0]][k[1]] < self.caps[k[0]][k[1]]]
        return max((self._least(k) / self._price(self.low, k, 1) for k in options), default=0.0)

    def _least(self, key: Key) -> float:
        """Share of the last value of a bond."""
        values = self.shares[key]
        return float(values[min(self.low[key[0]][key[1]], len(values)) - 1])

    def _fill(self, budget: int) -> None:
        while True:
            options = []
            for key in self.shares:
                layer, bond = key
                rank, price = self.high[layer][bond], self._price(self.high, key, 1)
                most = min(self.caps[layer][bond], _CAP * self.start[layer][bond])
                if rank < most and self.spent + price <= budget:
                    options.append((self._estimated(key) / price, key, price))
            if not options:
                return
            _, (layer, bond), price = max(options, key=lambda option: option[0])
            self.high[layer][bond] += 1
            self.spent += price

    def _estimated(self, key: Key) -> float:
        """Estimated share of a new value: that of the last one that is not cut, falling as the bond grows."""
        layer, bond = key
        return self._least(key) * (self.low[layer][bond] / self.high[layer][bond]) ** 2


def _count(topology: Topology, ranks: Mapping[str, int]) -> int:
    return Network(topology, ranks).num_params
