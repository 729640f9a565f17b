"""Ranks that move during training, under one budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.errors import BudgetError, TN4NNError
from .._compression.ranks import Resized, checked, schmidt_values, with_larger_bonds, with_smaller_bonds
from .._graph.budget import checked_budget
from .._graph.network import Network
from .._graph.rank_problem import RankStep, greedy, joint_problem, ranks_of, topology_problem
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

    Examples:
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
        wanted = ranks_of(layer, choice.high)
        # Not down to `choice.low` and up again: values that are cut are learned, and those that grow begin at nothing.
        smaller = {b: r for b, r in wanted.items() if r < net.ranks[b]}
        result = with_smaller_bonds(Resized(net, cores[layer]), smaller)
        larger = {b: r for b, r in wanted.items() if r > result.network.ranks[b]}
        changes[layer] = with_larger_bonds(result, larger, seed)
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
    """The ranks after cutting (`low`) and after growing again (`high`), by (layer, bond)."""

    def __init__(self, networks: Mapping[str, Network], cores: Mapping[str, Weights], auto: AutoRank) -> None:
        self.problem = joint_problem({layer: topology_problem(net.topology) for layer, net in networks.items()})
        self.start = {(layer, bond): rank for layer, net in networks.items() for bond, rank in net.ranks.items()}
        self.shares: dict[Key, NDArray[Any]] = {}
        for layer, net in networks.items():
            for bond in net.ranks:
                squares = schmidt_values(net, cores[layer], bond) ** 2
                self.shares[layer, bond] = squares / max(float(np.sum(squares)), 1e-300)
        self.low = self._shrunk(int((1 - auto.share) * auto.params))
        self.high = self._filled(auto.params)

    def _shrunk(self, budget: int) -> dict[Key, int]:
        """Ranks cut where the last value carries least for its parameters, until the budget holds or all that is left
        is worth keeping."""
        ranks = dict(self.start)

        def uselessness(key: Key, price: int) -> float:
            return -self._least(key, ranks) / price

        def idle(step: RankStep[Key], params: int) -> bool:
            return params > budget and ranks[step.bond] > 1 and -step.score <= worth

        worth = _CUT_BELOW * self._best_growth(ranks)
        for _ in greedy(self.problem, ranks, -1, uselessness, idle):
            worth = _CUT_BELOW * self._best_growth(ranks)
        return ranks

    def _best_growth(self, ranks: Mapping[Key, int]) -> float:
        """What a new value might carry for its parameters where that is most."""
        growing = [key for key in ranks if ranks[key] < self.problem.caps[key]]
        return max((self._least(key, ranks) / self.problem.price(key, ranks) for key in growing), default=0.0)

    def _least(self, key: Key, ranks: Mapping[Key, int]) -> float:
        """What the last value of a bond carries."""
        values = self.shares[key]
        return float(values[min(ranks[key], len(values)) - 1])

    def _filled(self, budget: int) -> dict[Key, int]:
        """Ranks grown where a new value might carry most for its parameters, until none fits."""
        ranks = dict(self.low)

        def gain(key: Key, price: int) -> float:
            # What the last value that is kept carries, falling as the bond grows.
            return self._least(key, self.low) * (self.low[key] / ranks[key]) ** 2 / price

        def fits(step: RankStep[Key], params: int) -> bool:
            most = min(self.problem.caps[step.bond], _CAP * self.start[step.bond])
            return ranks[step.bond] < most and params + step.price <= budget

        for _ in greedy(self.problem, ranks, 1, gain, fits):
            pass
        return ranks
