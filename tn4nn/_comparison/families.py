"""A model with chosen layers, as a subject: what layer graphs and people's own modules have in common."""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from .._base.errors import BudgetError, ShapeError, TopologyError
from .._graph.network import Network
from .._graph.topology import Topology
from .._model.layers import OnNetwork
from .._training.tasks import Task
from .pricing import Pricer
from .spread import networks_within
from .variants import DENSE, NARROW, TOPOLOGY, Infeasible, Variant

M = TypeVar("M")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of a model, whatever it is made of.

    Attributes:
        where: patterns of names of layers; none for the layers that hold most of the weights.
        task: what is learnt.
        topologies: names of the catalogue, "dense", "narrow", or Topologies that fit every layer that matches.
        budgets: in the unit of `budget_of`; below 1 shares of what the dense layers have, but for "step_ms".
        budget_of: see `Pricer`.
        how: see `spread`.
        batch: rows of a step.
        backend: that trains first, and whose step times are predicted.
        device: the framework's own word, or None.
        dtype: of the arithmetic.
        sites: modes on each side; None for the catalogue's choice.
        widths: of the model, one after the other; empty for the one that it has.
    """

    where: tuple[str, ...]
    task: Task
    topologies: tuple[str | Topology, ...]
    budgets: tuple[float, ...]
    budget_of: str
    how: str
    batch: int
    backend: str
    device: str | None = None
    dtype: str = "float32"
    sites: int | None = None
    widths: tuple[int, ...] = ()


class Family(abc.ABC, Generic[M]):
    """See `Subject`. M is what a variant trains: a layer graph, or a recipe for a module."""

    asked: Asked

    # -- what a kind of model says of itself ------------------------------------------------------------------------

    @abc.abstractmethod
    def dense(self, width: int | None) -> M:
        """The dense model at a width, or at its own."""

    @abc.abstractmethod
    def layers(self, model: M) -> dict[str, OnNetwork]:
        """Name -> compared layer, dense or on a network.

        Raises:
            TN4NNError: a pattern that matches none.
        """

    @abc.abstractmethod
    def put(self, model: M, networks: Mapping[str, Network]) -> M:
        """The model with some layers on networks."""

    @abc.abstractmethod
    def rows(self, model: M) -> Mapping[str, int]:
        """Name -> rows that each compared layer sees for one sample."""

    @abc.abstractmethod
    def num_params(self, model: M) -> int:
        """Trainable numbers."""

    @abc.abstractmethod
    def thinner(self, model: M, width: int | None) -> tuple[int, Callable[[int], M | None]]:
        """(n, a function of 1 to n - 1): thinner models, the thinnest first; None for a width that cannot be.

        Raises:
            TopologyError: none can be made.
        """

    # -- the same for all -------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """See `Subject`."""
        return self.asked.task

    @property
    def reference(self) -> M:
        """See `Subject`: the dense model at its own width, or at the last of the ladder."""
        return self.dense(self.asked.widths[-1] if self.asked.widths else None)

    def variants(self) -> Iterator[Variant | Infeasible]:
        """See `Subject`."""
        for width in self.asked.widths or (None,):
            yield from self._of_width(self.dense(width), width)

    def _of_width(self, dense: M, width: int | None) -> Iterator[Variant | Infeasible]:
        price, whole = self._pricer(dense), self._cost(dense)
        for number, given in enumerate(self.asked.budgets):
            budget = price.asked(given, whole)
            for one in self.asked.topologies:
                name = one if isinstance(one, str) else one.name
                role = {"dense": DENSE, "narrow": NARROW}.get(name, TOPOLOGY)
                if role == DENSE:
                    if number == 0:  # it is the same for every budget
                        yield self._variant(name, role, price.rounded(whole), dense, dense, width)
                    continue
                try:
                    model = self._narrow(dense, budget, width) if role == NARROW else self._on(one, dense, budget)
                except (BudgetError, ShapeError, TopologyError) as error:
                    yield Infeasible(name, role, budget, str(error), width)
                else:
                    yield self._variant(name, role, budget, model, dense, width)

    def _variant(self, name: str, role: str, budget: float, model: M, dense: M, width: int | None) -> Variant:
        sizes, whole = self._sizes(model), self._sizes(dense)
        return Variant(
            name, role, budget, model, sizes, self._cost(model), sum(whole.values()), self.num_params(dense), width
        )

    def _sizes(self, model: M) -> dict[str, int]:
        return {name: layer.solid(name).num_params for name, layer in self.layers(model).items()}

    def _pricer(self, model: M) -> Pricer:
        asked = self.asked
        rows = self.rows(model) if asked.budget_of in ("macs", "step_ms") else {}
        return Pricer(asked.budget_of, asked.batch, asked.backend, asked.device, asked.dtype, rows)

    def _cost(self, model: M) -> float:
        """The price of the compared layers of a model."""
        layers = self.layers(model)
        return self._pricer(model)({name: layer.solid(name) for name, layer in layers.items()}, layers)

    def _on(self, given: str | Topology, dense: M, budget: float) -> M:
        """The model with its compared layers on networks of a topology."""
        features = {
            name: (layer.topology.in_features, layer.topology.out_features)
            for name, layer in self.layers(dense).items()
        }
        networks = networks_within(
            given, features, self._sizes(dense), self._pricer(dense), budget, self.asked.how, self.asked.sites,
            lambda networks: self.layers(self.put(dense, networks)),
        )  # fmt: skip
        return self.put(dense, networks)

    def _narrow(self, dense: M, budget: float, width: int | None) -> M:
        """The widest model of the same architecture whose compared layers are within the budget.

        Raises:
            BudgetError: the thinnest is above it.
            TopologyError, ShapeError: a model that cannot be made thinner.
        """
        high, at = self.thinner(dense, width)
        low, found = 0, None
        while high - low > 1:  # it costs more with more width
            middle = (low + high) // 2
            model = next((model for step in range(middle, low, -1) if (model := at(step)) is not None), None)
            if model is not None and self._cost(model) <= budget:
                low, found = middle, model
            else:
                high = middle
        if found is None:
            raise BudgetError("the thinnest model of this architecture is above the budget", 0)
        return found


def own_width(make: Callable[..., Any]) -> int | None:
    """The width that a function takes by default; None where it takes none."""
    parameter = inspect.signature(make).parameters.get("width")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else None
