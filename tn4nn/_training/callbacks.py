"""Entanglement over the epochs of a run: a callback for `tn.train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._base.checks import nearest
from .._base.errors import TN4NNError
from .._compression.entanglement import Entanglement, entanglement
from .._drawing.charts import draw_spectra
from .._graph.network import Network
from .._graph.topology import Topology
from .._model.backend import Trainer
from .._model.layers import Layer
from .results import Epoch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class EntanglementLog:
    """Records the entanglement of every network of a model after each epoch; works on every backend, and where ranks
    move.

    Args:
        model: what is trained.
        cuts: as for `tn.entanglement`; left out, the cuts of each chain, or the bonds.

    Attributes:
        epochs: one mapping for each epoch, layer name -> `Entanglement`.

    Raises:
        TN4NNError: a model without bonds.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> x = np.random.default_rng(0).normal(size=(100, 16)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int64")
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(4)), tn.ReLU(), tn.Linear(16, 2))
        >>> log = tn.EntanglementLog(model)
        >>> run = tn.train(model, (x, y), epochs=3, callback=log)
        >>> log.entropies("0").shape
        (3, 1)
    """

    def __init__(self, model: Layer, cuts: str | Sequence[Any] | None = None) -> None:
        self._topologies = {name: net.topology for name, net in model.networks().items() if net.ranks}
        if not self._topologies:
            raise TN4NNError("this model has no network with bonds: there is no entanglement to follow")
        self._cuts = cuts
        self.epochs: list[Mapping[str, Entanglement]] = []

    def __call__(self, epoch: Epoch, trainer: Trainer) -> None:
        """What `tn.train` calls."""
        weights = trainer.weights()
        self.epochs.append({name: self._of(name, t, weights) for name, t in self._topologies.items()})

    def _of(self, layer: str, topology: Topology, weights: Mapping[str, NDArray[Any]]) -> Entanglement:
        prefix = f"{layer}." if layer else ""
        cores = {core.name: weights[prefix + core.name] for core in topology.cores}
        sizes = {leg: n for core in topology.cores for leg, n in zip(core.legs, cores[core.name].shape, strict=True)}
        network = Network(topology, {bond: sizes[bond] for bond in topology.bonds})
        return entanglement(network, cores, cuts=self._cuts)

    def entropies(self, layer: str) -> NDArray[np.float64]:
        """S in nats, of shape (epochs, cuts).

        Raises:
            TN4NNError: no such layer.
        """
        if layer not in self._topologies:
            raise TN4NNError(f"{layer!r} is not a layer with bonds of this model." + nearest(layer, self._topologies))
        return np.array([found[layer].entropies for found in self.epochs])

    def draw(self, layer: str, path: str | None = None) -> Figure:
        """Draws the Schmidt spectrum at every cut of a layer over the epochs, with matplotlib: p = s^2 / sum s^2, a
        line for each epoch, from light to dark.

        Raises:
            TN4NNError: no such layer, nothing recorded yet, another ending than .png or .svg, or no matplotlib.
        """
        self.entropies(layer)  # names the layers that there are
        if not self.epochs:
            raise TN4NNError("nothing is recorded yet: pass the log to tn.train as callback= first")
        return draw_spectra([found[layer] for found in self.epochs], path)
