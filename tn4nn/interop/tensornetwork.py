"""Networks and weights from Google's TensorNetwork 0.4.6 (or a fork of the same import name), and back.

TensorNetwork is no longer maintained. Only its nodes, edges and CopyNodes are used, none of its contractors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from .._base.errors import TopologyError
from .._graph.network import Network
from ._tensors import core_names, leg_names, library, network_of, real_array, unique

_UNNAMED = "__unnamed_edge__"


def from_tensornetwork(
    nodes: Iterable[Any], inputs: Iterable[Any], outputs: Iterable[Any]
) -> tuple[Network, dict[str, NDArray[Any]]]:
    """The Network and the weights of TensorNetwork nodes.

    A node becomes the core of its name, an edge the leg of its name (or of the axis name, where it dangles), else of a
    number: e0, e1, ... All edges of a CopyNode are one leg, a hyperedge; with one edge among the inputs and one among
    the outputs it is a batch leg. Arrays of the numpy, pytorch and jax backends are copied to numpy in their dtype.

    Args:
        nodes: the nodes, CopyNodes among them; a list, where the order of the cores shall be the same each time.
        inputs: dangling edges that meet the layer's input, in mode order.
        outputs: dangling edges that form its output, in mode order.

    Raises:
        BackendError: tensornetwork is not installed.
        TopologyError: an edge that leads to a node not given, a dangling edge that is neither input nor output, two
            inputs on one CopyNode, a trace, an edge of size 0.
        ShapeError: complex numbers.

    Source: TensorNetwork (Roberts et al. 2019, arXiv:1905.01330).

    Examples:
        >>> from tn4nn.interop.tensornetwork import from_tensornetwork
        >>> import numpy as np, tensornetwork, tn4nn as tn
        >>> a, b = tensornetwork.Node(np.ones((4, 2)), "a"), tensornetwork.Node(np.ones((2, 3)), "b")
        >>> _ = a[1] ^ b[0]
        >>> net, weights = from_tensornetwork([a, b], inputs=[a[0]], outputs=[b[1]])
        >>> net.in_features, net.out_features, list(net.ranks.values())
        (4, 3, [2])
    """
    copy = library("tensornetwork").CopyNode
    nodes, inputs, outputs = list(nodes), list(inputs), list(outputs)
    group = _joined([node for node in nodes if isinstance(node, copy)], [edge for node in nodes for edge in node.edges])
    _check_edges(nodes, group, inputs, outputs)
    legs = _leg_names(group)
    cores = [node for node in nodes if not isinstance(node, copy)]
    names = core_names(node.name for node in cores)
    sizes = {legs[root]: int(edge.dimension) for edge, root in group.items()}
    tensors = [(name, tuple(legs[group[edge]] for edge in n.edges)) for name, n in zip(names, cores, strict=True)]
    sides = [legs[group[edge]] for edge in inputs], [legs[group[edge]] for edge in outputs]
    network = network_of(tensors, sizes, sides, "tensornetwork")
    return network, {name: real_array(node.tensor, name) for name, node in zip(names, cores, strict=True)}


def _joined(copies: Iterable[Any], edges: Iterable[Any]) -> dict[Any, Any]:
    """Edge -> the first edge of its leg: the edges of a CopyNode are one leg."""
    root = {edge: edge for edge in edges}
    for node in copies:
        found = {root[edge] for edge in node.edges}
        first = next(edge for edge in root.values() if edge in found)
        root = {edge: first if old in found else old for edge, old in root.items()}
    return root


def _check_edges(nodes: list[Any], group: Mapping[Any, Any], inputs: list[Any], outputs: list[Any]) -> None:
    for edge in group:
        for end in (edge.node1, edge.node2):
            if end is not None and end not in nodes:
                raise TopologyError(f"edge {edge.name!r} leads to node {end.name!r}, which is not among the given ones")
        if edge.is_dangling() and edge not in inputs and edge not in outputs:
            raise TopologyError(
                f"dangling edge {edge.name!r} of node {edge.node1.name!r} is neither input nor output: name it in "
                "inputs= or outputs=, or sum over it before"
            )
    for side, edges in (("inputs", inputs), ("outputs", outputs)):
        for edge in edges:
            if edge not in group or not edge.is_dangling():
                raise TopologyError(f"{side}: expected dangling edges of the nodes given, received {edge!r}")
        for count in Counter(group[edge] for edge in edges).values():
            if count > 1:
                raise TopologyError(f"{side}: two of the edges are one leg (the same edge, or on one CopyNode)")


def _leg_names(group: Mapping[Any, Any]) -> dict[Any, str]:
    """Leg (its first edge) -> name."""
    wanted = {root: _edge_name(root) for root in dict.fromkeys(group.values())}
    names = leg_names(unique(wanted.values()), "e")
    return dict(zip(wanted, names, strict=True))


def _edge_name(edge: Any) -> str | None:
    if edge.name and edge.name != _UNNAMED:
        return str(edge.name)
    if edge.is_dangling() and edge.node1.axis_names:
        return str(edge.node1.axis_names[edge.axis1])
    return None


def to_tensornetwork(network: Network, weights: Mapping[str, Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The nodes, input edges and output edges of a network and its weights.

    A leg that joins two cores is an edge of its name; a hyperedge and a batch leg are a CopyNode. Contracting the
    nodes to (outputs, inputs) gives the whole W of the modes, padding included.

    Args:
        network: the network.
        weights: core name -> array, as in `net.init`; numpy, or what TensorNetwork's default backend takes.

    Raises:
        BackendError: tensornetwork is not installed.
        ShapeError: weights of another network.

    Source: TensorNetwork (Roberts et al. 2019, arXiv:1905.01330).

    Examples:
        >>> from tn4nn.interop.tensornetwork import to_tensornetwork
        >>> import tensornetwork, tn4nn as tn
        >>> net = tn.mpo((4, 4), (3, 3)).with_rank(2)
        >>> nodes, inputs, outputs = to_tensornetwork(net, net.init(0))
        >>> tensornetwork.contractors.greedy(nodes, output_edge_order=[*outputs, *inputs]).shape
        (3, 3, 4, 4)
    """
    tensornetwork = library("tensornetwork")
    network.check(weights)
    t = network.topology
    nodes = [tensornetwork.Node(weights[core.name], name=core.name, axis_names=list(core.legs)) for core in t.cores]
    inputs: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    for leg, size in network.sizes.items():
        ends = [nodes[i][leg] for i in t.holders[leg]]
        sides = [side for side, known in ((inputs, t.inputs), (outputs, t.outputs)) if leg in known]
        if len(ends) + len(sides) > 2 or not ends:
            hub = tensornetwork.CopyNode(len(ends) + len(sides), size, name=f"copy_{leg}")
            nodes.append(hub)
            for axis, end in enumerate(ends):
                tensornetwork.connect(end, hub[axis], name=f"{leg}_{axis}")
            ends = [hub[axis] for axis in range(len(ends), len(ends) + len(sides))]
        elif len(ends) == 2:
            tensornetwork.connect(*ends, name=leg)
        for side, end in zip(sides, ends, strict=False):
            side[leg] = end
    return nodes, [inputs[leg] for leg in t.inputs], [outputs[leg] for leg in t.outputs]
