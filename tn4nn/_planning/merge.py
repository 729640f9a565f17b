"""Cores of frozen weights contracted ahead, as far as it pays at a batch: for inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._graph.contract import contract
from .._graph.network import Network
from .._graph.paths import legs_along
from .._graph.problem import tensors_of
from .._graph.topology import Core, Topology
from .._runtime.target import Target
from .planner import find
from .request import PlanRequest

NATIVE = Target(executors=("native",))


def merged(
    network: Network, weights: Mapping[str, NDArray[Any]], batch: int = 1, target: Target = NATIVE
) -> tuple[Network, dict[str, Any]]:
    """The network with its cores merged where that makes a forward pass of so many rows fastest, weights being frozen.

    What depends on cores alone is computed now and not at every call. At a large batch this may be W itself, one core;
    at a small one often the network as it was.

    Args:
        network: any.
        weights: core name -> array.
        batch: rows of x that come at a time.
        target: where the merged layer is to run; the executor that runs it there prices it.

    Returns:
        A network of the same inputs and outputs, and its weights: float64 arithmetic, in the dtype of the given ones.

    Examples:
        >>> import tn4nn as tn
        >>> net = tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4)
        >>> small, weights = merged(net, net.init(0), batch=32)
        >>> len(small.topology.cores) < 4, bool(abs(small.to_dense(weights) - net.to_dense(net.init(0))).max() < 1e-6)
        (True, True)
    """
    where = dataclasses.replace(target, executors=tuple(name for name in target.executors if name != "dense"))
    path = find(PlanRequest(network, batch, "frozen", target=where)).path
    tensors, names, output = tensors_of(network, "apply")
    order, x = list(network.sizes), len(names) - 1
    arrays = [np.asarray(weights[name]) for name in names[:-1]]
    legs_of = legs_along(tensors, output, path)
    below: dict[int, list[int]] = {i: [i] for i in range(len(tensors))}
    operands = []  # what joins x, what x has become before, and after
    for node, pair in enumerate(path, len(tensors)):
        below[node] = [leaf for i in pair for leaf in below[i]]
        if x in below[node]:
            state, operand = sorted(pair, key=lambda i: x not in below[i])
            operands.append((operand, legs_of[state], legs_of[node]))
    result: list[tuple[NDArray[Any], tuple[str, ...]]] = []
    for operand, before, after in operands:
        leaves = below[operand]
        legs = tuple(sorted(legs_of[operand], key=order.index))
        # As the native kernel reads an operand: legs that stay, legs that are summed, new ones.
        legs = (
            *(leg for leg in legs if leg in before and leg in after),
            *(leg for leg in legs if leg in before and leg not in after),
            *(leg for leg in legs if leg not in before),
        )
        wide = [arrays[i].astype(np.result_type(arrays[i], np.float64)) for i in leaves]
        result.append((contract([tensors[i] for i in leaves], wide, legs), legs))
    t = network.topology
    if len(result) == 1 and not t.kept:  # W itself: in the order that a dense layer has
        array, legs = result[0]
        whole = (*t.outputs, *t.inputs)
        result = [(array.transpose([legs.index(leg) for leg in whole]), whole)]
    cores = tuple(Core(f"core{i}", legs) for i, (_, legs) in enumerate(result))
    topology = Topology(cores, t.inputs, t.outputs, t.in_features, t.out_features, f"{t.name}, merged")
    ranks = {bond: network.sizes[bond] for bond in topology.bonds}
    dtype = np.result_type(*arrays)
    found = {core.name: np.ascontiguousarray(array, dtype) for core, (array, _) in zip(cores, result, strict=True)}
    return topology.with_ranks(ranks), found
