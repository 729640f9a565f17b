"""Models from plain data and from JSON; `Layer.to_dict` and `Layer.to_json` write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..._base.checks import check_schema, nearest, read_json
from ..._base.errors import TN4NNError, TopologyError
from ..._graph.network import Network
from ..._graph.ordering import Ordering
from ..._graph.topology import Topology
from .base import KINDS, Layer, OnNetwork
from .containers import Parallel, Sequential


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "kind" in value:
            return layer_from_dict(value)
        if "network" in value:
            return Network.from_dict(value["network"])
        if "topology" in value:
            return Topology.from_dict(value["topology"])
        if "ordering" in value:
            return Ordering.from_json_dict(value["ordering"])
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    return value


def _apart(names: Sequence[Any], layers: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Layers whose names are their positions, and the others by their names."""
    pairs = [(str(name), layer) for name, layer in zip(names, layers, strict=True)]
    return [layer for name, layer in pairs if name.isdigit()], {n: layer for n, layer in pairs if not n.isdigit()}


def layer_from_dict(data: Mapping[str, Any]) -> Layer:
    """Reads what `Layer.to_dict` gave."""
    if not isinstance(data, Mapping):
        raise TopologyError(f"a layer is an object in model data, received {data!r}")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise TopologyError(f"unknown kind of layer {kind!r}." + nearest(str(kind), KINDS))
    cls = KINDS[kind]
    try:
        fields = {key: _decode(value) for key, value in data.items() if key != "kind"}
        if cls is Sequential:
            numbered, named = _apart(fields["names"], fields["layers"])
            return Sequential(*numbered, input_shape=fields["input_shape"], **named)
        if cls is Parallel:
            branches = fields["branches"]  # older files have no names of branches
            numbered, named = _apart(fields.get("names", tuple(map(str, range(len(branches))))), branches)
            return Parallel(*numbered, combine=fields["combine"], **named)
        if issubclass(cls, OnNetwork):
            fields["init"] = fields.pop("init_scheme")
        return cls(**fields)
    except TN4NNError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TopologyError(f"data of a {kind} layer does not fit: {error}") from error


def model_from_json(text: str) -> Layer:
    """Reads what `Layer.to_json` wrote: the layers of a model, without weights.

    Args:
        text: JSON, possibly from somebody else; nothing in it is executed.

    Raises:
        TopologyError: no JSON, another version of its format, an unknown kind of layer, or layers that cannot be built.

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.Sequential(tn.Linear(8, 4), tn.ReLU())
        >>> tn.model_from_json(model.to_json()) == model
        True
    """
    data = read_json(text, "model")
    check_schema(data, "model", ("model",))
    return layer_from_dict(data["model"])
