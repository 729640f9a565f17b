"""Layer graphs as a subject: every layer that matches a pattern takes each topology in turn, the rest stays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from .._base.errors import ShapeError, TN4NNError, TopologyError
from .._graph.network import Network
from .._model.layers import Conv2d, Embedding, Layer, OnNetwork, replace_networks
from .._model.rows import rows_of
from .._model.thin import thinner
from .._training.modules import check_outputs
from .families import Asked, Family, own_width
from .variants import chosen_names

_STEPS = 256  # shares of its width that a model is made thinner by


@dataclasses.dataclass(frozen=True)
class LayerGraphs(Family[Layer]):
    """See `Family`.

    Attributes:
        model: dense, or a function of `width` that makes it.
        asked: of it.
    """

    model: Layer | Callable[..., Layer]
    asked: Asked

    def __post_init__(self) -> None:
        if self.asked.widths and isinstance(self.model, Layer):
            raise TN4NNError(
                "a ladder of widths needs a function of width that makes the model, as "
                "functools.partial(tn.presets.gpt, layers=4), received a model that is made"
            )
        for width in self.asked.widths or (None,):
            self._check(self.dense(width))

    def _check(self, dense: Layer) -> None:
        try:
            made = dense.out_shape(self.task.inputs)
        except ShapeError as error:
            raise ShapeError(f"the model does not take the task's rows of shape {self.task.inputs}: {error}") from None
        check_outputs(made, self.task)
        self._names(dense)

    def dense(self, width: int | None) -> Layer:
        """See `Family`."""
        if isinstance(self.model, Layer):
            return self.model
        made = self.model() if width is None else self.model(width=width)
        if not isinstance(made, Layer):
            raise TN4NNError(f"model: expected a layer graph, received {type(made).__name__}")
        return made

    def _names(self, dense: Layer) -> list[str]:
        known = [name for name, layer in dense.walk() if isinstance(layer, OnNetwork) and _is_dense(layer)]
        return chosen_names(known, self.asked.where or default_where(dense))

    def layers(self, model: Layer) -> dict[str, OnNetwork]:
        """See `Family`. The names are those of the dense model: of one on networks they cannot be told."""
        chosen = self._chosen
        return {name: layer for name, layer in model.walk() if name in chosen and isinstance(layer, OnNetwork)}

    @functools.cached_property
    def _chosen(self) -> frozenset[str]:
        return frozenset(self._names(self.reference))

    def put(self, model: Layer, networks: Mapping[str, Network]) -> Layer:
        """See `Family`."""
        return replace_networks(model, networks)

    def rows(self, model: Layer) -> dict[str, int]:
        """See `Family`."""
        return {name: rows for name, _, rows in rows_of(model, self.task.inputs)}

    def num_params(self, model: Layer) -> int:
        """See `Family`."""
        return model.num_params

    def thinner(self, model: Layer, width: int | None) -> tuple[int, Callable[[int], Layer | None]]:
        """See `Family`."""
        if not isinstance(self.model, Layer):
            own = own_width(self.model) if width is None else width
            if own is not None:
                return own, self._at
        return _STEPS, lambda step: thinner(model, step / _STEPS, self.task.inputs)

    def _at(self, width: int) -> Layer | None:
        try:
            return self.dense(width)
        except (ShapeError, TopologyError):  # a width that the heads do not divide
            return None


def _is_dense(layer: OnNetwork) -> bool:
    return len(layer.topology.cores) == 1 and not layer.topology.bonds


def default_where(model: Layer) -> Sequence[str]:
    """All layers that hold most of the weights: linear ones, but for tables, convolutions and the last."""
    names = [
        name
        for name, layer in model.walk()
        if isinstance(layer, OnNetwork) and not isinstance(layer, Embedding | Conv2d)
    ]
    return tuple(names[:-1] or names)
