"""What networks of layers cost, in the unit of a budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from .._graph.network import Network
from .._graph.problem import min_macs
from .._model.backend import target_of
from .._model.layers import Linear, OnNetwork
from .._planning.layer import LayerPlanner

UNITS = ("params", "macs", "bytes", "step_ms")


@dataclasses.dataclass(frozen=True)
class Pricer:
    """The price of the compared layers together.

    Attributes:
        unit: "params"; "macs", of a forward pass of one sample, in the order that needs fewest; "bytes", of the
            weights; or "step_ms", milliseconds of these layers in a training step, as the cost model predicts.
        batch: samples of a step.
        backend: whose step times are predicted.
        device: where they are.
        dtype: of the arithmetic; weights are float64 for "float64", else float32.
        rows: that each layer sees for one sample.
    """

    unit: str
    batch: int
    backend: str
    device: str | None
    dtype: str
    rows: Mapping[str, int]

    def __call__(self, networks: Mapping[str, Network], layers: Mapping[str, OnNetwork] | None = None) -> float:
        """The price of some networks.

        Args:
            networks: by name of the layer.
            layers: the layers on them; left out, they are linear.
        """
        if self.unit in ("params", "bytes"):
            each = 1 if self.unit == "params" else 8 if self.dtype == "float64" else 4
            return float(each * sum(net.num_params for net in networks.values()))
        if self.unit == "macs":
            return sum(min_macs(net, self.batch * self.rows[name]) / self.batch for name, net in networks.items())
        target = target_of(self.backend, self.device, self.dtype)
        found = 0.0
        for name, net in networks.items():
            layer = Linear(net) if layers is None else layers[name]
            found += 1e3 * LayerPlanner(layer, target).plan(self.batch * self.rows[name]).cost.predicted_s
        return found

    def asked(self, given: float, whole: float) -> float:
        """A budget; below 1 it is a share of the dense layers' price, but for milliseconds."""
        return self.rounded(given * whole if given < 1 and self.unit != "step_ms" else given)

    def rounded(self, value: float) -> float:
        """A budget as the table shows it."""
        return value if self.unit == "step_ms" else max(1, round(value))
