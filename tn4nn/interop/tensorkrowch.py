"""Networks and weights from TensorKrowch: its ready-made MPO, MPS, PEPS and trees, and any other TensorNetwork."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from .._base.errors import TopologyError
from .._graph.network import Network
from ._tensors import core_names, leg_names, network_of, real_array, unique


def from_tensorkrowch(
    network: Any, inputs: Iterable[Any], outputs: Iterable[Any]
) -> tuple[Network, dict[str, NDArray[Any]]]:
    """The Network and the weights of a TensorKrowch network, or of some of its nodes.

    A leaf node becomes the core of its name, an open edge the leg of its axis name where that is unique, every other
    edge that of a number: e0, e1, ... An edge to a data node counts as open. Tensors are copied to numpy in their
    dtype; nodes that share one tensor (uniform models) become cores with equal, separate values.

    Args:
        network: a `tensorkrowch.TensorNetwork`, of which the leaf nodes are taken, or an iterable of nodes.
        inputs: open edges that meet the layer's input, in mode order: `[node["input"] for node in mpo.mats_env]`.
        outputs: open edges that form its output, in mode order.

    Raises:
        TopologyError: an edge that leads to a node not given, an open edge that is neither input nor output, a trace.
        ShapeError: complex numbers.

    Source: TensorKrowch (Pareja Monturiol, Pérez-García and Pozas-Kerstjens 2023, arXiv:2306.08595).

    Examples:
        >>> from tn4nn.interop.tensorkrowch import from_tensorkrowch
        >>> import tensorkrowch as tk, tn4nn as tn
        >>> mpo = tk.models.MPO(n_features=3, in_dim=4, out_dim=2, bond_dim=5)
        >>> sides = [node["input"] for node in mpo.mats_env], [node["output"] for node in mpo.mats_env]
        >>> net, weights = from_tensorkrowch(mpo, *sides)
        >>> net.in_features, net.out_features
        (64, 8)
    """
    nodes = list(network.leaf_nodes.values() if hasattr(network, "leaf_nodes") else network)
    inputs, outputs = list(inputs), list(outputs)
    opened = _opened(nodes, inputs, outputs)
    edges = list(dict.fromkeys(edge for node in nodes for edge in node.edges))
    leg = dict(zip(edges, leg_names(unique(opened.get(edge) for edge in edges), "e"), strict=True))
    names = core_names(node.name for node in nodes)
    tensors = [(name, tuple(leg[edge] for edge in node.edges)) for name, node in zip(names, nodes, strict=True)]
    sizes = {leg[edge]: size for node in nodes for edge, size in zip(node.edges, node.shape, strict=True)}
    found = network_of(tensors, sizes, ([leg[e] for e in inputs], [leg[e] for e in outputs]), "tensorkrowch")
    return found, {name: real_array(node.tensor, name) for name, node in zip(names, nodes, strict=True)}


def _opened(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> dict[Any, str]:
    """Open edge -> the name of its axis; those that dangle and those that lead to data."""
    opened = {}
    for node in nodes:
        for axis, edge in zip(node.axes_names, node.edges, strict=True):
            others = [end for end in edge.nodes if end is not None and all(end is not known for known in nodes)]
            if any(not end.is_data() for end in others):
                raise TopologyError(f"edge {edge.name!r} leads to a node that is not among the given ones")
            if edge.is_dangling() or others:
                opened[edge] = axis
                if not any(edge is named for named in (*inputs, *outputs)):
                    raise TopologyError(
                        f"open edge {axis!r} of node {node.name!r} is neither input nor output: name it in inputs= or "
                        "outputs=, or sum over it before"
                    )
    for side, named in (("inputs", inputs), ("outputs", outputs)):
        for edge in named:
            if edge not in opened:
                raise TopologyError(f"{side}: expected open edges of the nodes given, received {edge!r}")
    return opened
