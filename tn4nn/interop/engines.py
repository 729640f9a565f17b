"""Other libraries that contract a layer in tn4nn's place, for comparison: `build(..., engine="quimb")`.

An engine runs the path of a plan on the arrays of any framework, so gradients flow through the framework's own
derivatives. quimb's network is packed once, unpacked and contracted in every call; TensorNetwork's nodes are built anew
in every call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from .._base.checks import nearest
from .._base.errors import BackendError
from .._graph.network import Network
from .._graph.paths import BATCH, legs_along
from .._graph.problem import tensors_of
from .._model import layers
from .._planning.plan import Plan
from ._tensors import library

_LIBRARIES = {"quimb": "quimb.tensor", "tensornetwork": "tensornetwork"}
ENGINES = tuple(_LIBRARIES)
_LARGEST = 256  # of a hyperedge in TensorNetwork: the tensor of a CopyNode of three ends has the cube of it


class Engine(Protocol):
    """What contracts: arrays in the order of the program's inputs, those of one framework.

    Examples:
        >>> from tn4nn.interop.engines import Engine, engine
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.mpo((4, 4), (2, 3)).with_rank(2)
        >>> weights, x = net.init(0), np.ones((5, 16), np.float32)
        >>> contraction: Engine = engine("quimb", tn.plan(net, batch=5))
        >>> contraction([*weights.values(), x]).shape
        (5, 6)
    """

    def __call__(self, arrays: Sequence[Any]) -> Any:
        """What the plan's program gives for them."""
        ...


def check_engine(name: str, model: layers.Layer, *, tune: bool = False) -> None:
    """Refuses what an engine cannot run.

    Args:
        name: "quimb" or "tensornetwork".
        model: a layer or a model of layers.
        tune: whether plans were to be measured.

    Raises:
        BackendError: an unknown engine, one that is not installed, `tune`, a network that the engine has no words for.

    Examples:
        >>> from tn4nn.interop.engines import check_engine
        >>> import tn4nn as tn
        >>> check_engine("quimb", tn.Linear(tn.cp((4, 4), (4, 4)).with_rank(3)))
        >>> check_engine("quimb", tn.Linear(tn.cp((4, 4), (4, 4)).with_rank(3)), tune=True)
        Traceback (most recent call last):
            ...
        tn4nn.BackendError: tune=True measures tn4nn's own runtime, engine='quimb' runs another: pass one of them
    """
    if name not in ENGINES:
        raise BackendError(f"unknown engine {name!r}." + nearest(name, ENGINES))
    if tune:
        raise BackendError(f"tune=True measures tn4nn's own runtime, engine={name!r} runs another: pass one of them")
    library(_LIBRARIES[name])
    if name == "tensornetwork":
        for prefix, layer in model.walk():
            if isinstance(layer, layers.OnNetwork) and not layer.is_dense:
                _check_copies(layer, layer.solid(prefix))


def _check_copies(layer: layers.OnNetwork, network: Network) -> None:
    """A leg on three tensors, the result among them, takes a CopyNode, which TensorNetwork makes a dense array of."""
    if isinstance(layer, layers.Embedding):
        raise BackendError(
            f"{layer.describe()}: engine 'tensornetwork' runs no embeddings, since the batch stands on every picked "
            "row and its edges join two nodes: use engine='quimb'"
        )
    tensors, _, output = tensors_of(network, "apply")
    for leg, size in network.sizes.items():
        if size > _LARGEST and sum(leg in legs for legs in (*tensors, output)) > 2:
            raise BackendError(
                f"{layer.describe()}: leg {leg!r} of size {size} is a hyperedge, for which TensorNetwork makes an "
                f"array of {size}^3 numbers: expected a size of at most {_LARGEST}, or use engine='quimb'"
            )


def engine(name: str, p: Plan) -> Engine:
    """An engine for a plan of a layer that `check_engine` lets pass.

    Args:
        name: "quimb" or "tensornetwork".
        p: the path and what is contracted; its blocks and slices (under a memory cap) are not looked at.

    Examples:
        >>> from tn4nn.interop.engines import engine
        >>> import numpy as np, tn4nn as tn
        >>> net = tn.ring((4, 4), (2, 3)).with_rank(2)
        >>> weights, x = net.init(0), np.ones((5, 16), np.float32)
        >>> y = engine("quimb", tn.plan(net, batch=5))([*weights.values(), x])
        >>> bool(np.allclose(y, x @ net.to_dense(weights).T, atol=1e-6))
        True
    """
    return _MADE[name](p)


class _Contraction:
    """What both engines share: the legs of all arrays, and the shapes in which arrays come and go."""

    def __init__(self, p: Plan) -> None:
        t, self.path, self.sizes = p.network.topology, p.path, p.network.sizes
        self.tensors, _, self.output = tensors_of(p.network, p.form)
        inputs, outputs = tuple(t.inputs.values()), tuple(t.outputs.values())
        self.modes = inputs if p.form == "apply" else None
        self.output_shape = math.prod(outputs), math.prod(inputs)

    def __call__(self, arrays: Sequence[Any]) -> Any:
        if self.modes is not None:
            *cores, x = arrays
            arrays = [*cores, x.reshape((x.shape[0], *self.modes))]
        y = self.contracted(arrays)
        return y.reshape((y.shape[0], self.output_shape[0]) if self.output[0] == BATCH else self.output_shape)

    def contracted(self, arrays: Sequence[Any]) -> Any:
        """The array over the legs of the output."""
        raise NotImplementedError


class _Quimb(_Contraction):
    """The way of quimb's guides to torch and jax: `pack` once, `unpack` and `contract` in every call."""

    def __init__(self, p: Plan) -> None:
        super().__init__(p)
        qtn = library("quimb.tensor")
        # No values yet, and no memory for them either.
        empty = [qtn.Tensor(np.broadcast_to(0.0, (1,) * len(legs)), inds=legs) for legs in self.tensors]
        parameters, self._skeleton = qtn.pack(qtn.TensorNetwork(empty))
        self._names, self._unpack = tuple(parameters), qtn.unpack
        self._pairs = _positions(self.path, len(self.tensors))

    def contracted(self, arrays: Sequence[Any]) -> Any:
        network = self._unpack(dict(zip(self._names, arrays, strict=True)), self._skeleton)
        result = network.contract(all, output_inds=self.output, optimize=self._pairs, preserve_tensor=True)
        return result.transpose(*self.output).data


class _TensorNetwork(_Contraction):
    """Nodes, edges and CopyNodes, built in every call and contracted pair by pair.

    Where two nodes share a leg that others hold too, a CopyNode of three ends stands between them.
    """

    def __init__(self, p: Plan) -> None:
        super().__init__(p)
        legs = legs_along(self.tensors, self.output, self.path)
        result = legs[len(self.tensors) :]
        self._steps = [
            (a, b, tuple(leg for leg in self.sizes if leg in legs[a] & legs[b]), made_legs)
            for (a, b), made_legs in zip(self.path, result, strict=True)
        ]

    def contracted(self, arrays: Sequence[Any]) -> Any:
        import autoray

        google = library("tensornetwork")
        framework = autoray.infer_backend(arrays[0])
        words = {"backend": {"torch": "pytorch"}.get(framework, framework)}
        copies = {**words, "dtype": np.dtype(autoray.get_dtype_name(arrays[0]))}
        nodes = [google.Node(array, **words) for array in arrays]
        ends = [dict(zip(legs, node.edges, strict=True)) for legs, node in zip(self.tensors, nodes, strict=True)]
        for a, b, shared, result in self._steps:
            known = {**ends[a], **ends[b]}
            node = nodes[a]
            for leg in shared:
                if leg in result:
                    hub = google.CopyNode(3, self.sizes[leg], **copies)
                    known[leg] = hub[2]
                    google.connect(hub[1], ends[b][leg])
                    google.connect(ends[a][leg], hub[0])
                    node = google.contract_between(node, hub)
                else:
                    google.connect(ends[a][leg], ends[b][leg])
            nodes.append(google.contract_between(node, nodes[b], allow_outer_product=True))
            ends.append({leg: known[leg] for leg in result})
        return nodes[-1].reorder_edges([ends[-1][leg] for leg in self.output]).tensor


def _positions(path: Sequence[tuple[int, int]], tensors: int) -> tuple[tuple[int, int], ...]:
    """A path of numbers that stay as one of positions among the tensors that are left, as opt_einsum writes it.

    Examples:
        >>> _positions([(0, 2), (3, 1)], 3)
        ((0, 2), (0, 1))
    """
    left, result = list(range(tensors)), []
    for step, pair in enumerate(path):
        low, high = sorted(left.index(number) for number in pair)
        result.append((low, high))
        left = [number for number in left if number not in pair] + [tensors + step]
    return tuple(result)


_MADE: dict[str, Callable[[Plan], Engine]] = {"quimb": _Quimb, "tensornetwork": _TensorNetwork}
