"""Networks and weights from quimb, and back: any TensorNetwork, so MPO, PEPO, PEPS and trees too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from .._graph.network import Network
from ._tensors import check_on_cores, core_names, leg_names, library, network_of, real_array

# Names that quimb draws at random begin with an underscore. They differ in every process, and plans on disk are found
# by the names of the legs.
_DRAWN = "_"


class QuimbWeights(dict[str, NDArray[Any]]):
    """Weights that remember quimb's own names: `tags`, core -> tags, and `indices`, leg -> index.

    Examples:
        >>> from tn4nn.interop.quimb import QuimbWeights
        >>> kept = QuimbWeights({}, tags={"I0_1": ("I0,1", "KET")}, indices={"k0_1": "k0,1"})
        >>> kept.tags, kept.indices
        ({'I0_1': ('I0,1', 'KET')}, {'k0_1': 'k0,1'})
    """

    def __init__(
        self, arrays: Mapping[str, NDArray[Any]], tags: Mapping[str, Iterable[str]], indices: Mapping[str, str]
    ) -> None:
        super().__init__(arrays)
        self.tags = {core: tuple(found) for core, found in tags.items()}
        self.indices = dict(indices)


def from_quimb(q: Any, inputs: Iterable[str], outputs: Iterable[str]) -> tuple[Network, QuimbWeights]:
    """The Network and the weights of a quimb tensor network.

    Index names become leg names, except that commas, colons and spaces turn into underscores (``k0,1`` into ``k0_1``)
    and that random names, which differ in every process, become bond0, bond1, ... A core is named
    after the first tag that no other tensor has, in the same way, else core0, core1, ... All tags and names are in
    `weights.tags` and `weights.indices`. An index on three or more tensors is a hyperedge, one in inputs and outputs
    a batch leg. Arrays are copied to numpy in their dtype; a factor that quimb stores apart (`q.exponent`) is spread
    over them.

    Args:
        q: a quimb TensorNetwork of any kind; for an MPO `q.lower_inds` as inputs and `q.upper_inds` as outputs give
            the W of `q.to_dense()`.
        inputs: names of the indices that meet the layer's input, in mode order.
        outputs: names of the indices that form its output, in mode order.

    Raises:
        BackendError: quimb is not installed.
        TopologyError: an index of one tensor that is neither input nor output, one twice on a tensor, one
            of size 0, a tensor without indices.
        ShapeError: complex numbers.

    Source: quimb (Gray 2018, doi:10.21105/joss.00819).

    Examples:
        >>> from tn4nn.interop.quimb import from_quimb
        >>> import quimb.tensor as qtn, tn4nn as tn
        >>> q = qtn.MPO_rand(3, 2, phys_dim=4, seed=0)
        >>> net, weights = from_quimb(q, inputs=q.lower_inds, outputs=q.upper_inds)
        >>> net.in_features, net.out_features, list(weights)
        (64, 64, ['I0', 'I1', 'I2'])
        >>> bool(abs(net.to_dense(weights) - q.to_dense()).max() < 1e-12)
        True
    """
    library("quimb.tensor")
    q = q.as_network()  # a single tensor is a network of one
    tensors = list(q.tensors)
    holders = Counter(tag for t in tensors for tag in t.tags)
    names = core_names(next((tag for tag in t.tags if holders[tag] == 1), None) for t in tensors)
    indices = dict.fromkeys(index for t in tensors for index in t.inds)
    leg = dict(zip(indices, leg_names(None if i.startswith(_DRAWN) else i for i in indices), strict=True))
    sizes = {leg[index]: size for t in tensors for index, size in zip(t.inds, t.shape, strict=True)}
    legs = [tuple(leg[index] for index in t.inds) for t in tensors]
    sides = [leg.get(i, i) for i in inputs], [leg.get(i, i) for i in outputs]
    network = network_of(list(zip(names, legs, strict=True)), sizes, sides, "quimb")
    factor = 10.0 ** (float(q.exponent) / len(tensors))
    arrays = {name: real_array(t.data, name) for name, t in zip(names, tensors, strict=True)}
    if factor != 1.0:
        arrays = {name: array * array.dtype.type(factor) for name, array in arrays.items()}
    tags = {name: tuple(t.tags) for name, t in zip(names, tensors, strict=True)}
    return network, QuimbWeights(arrays, tags, {new: old for old, new in leg.items()})


def to_quimb(
    network: Network,
    weights: Mapping[str, Any],
    *,
    tags: Mapping[str, Iterable[str]] | None = None,
    indices: Mapping[str, str] | None = None,
) -> Any:
    """The quimb TensorNetwork of a network and its weights.

    Contracting it to the output and input indices gives the whole W of the modes, padding included; a batch leg is one
    index, in which W is diagonal.

    Args:
        network: the network.
        weights: core name -> array, as in `net.init`.
        tags: core -> tags (default: those that the weights of `from_quimb` remember, else the core's name).
        indices: leg -> index (default: those that the weights of `from_quimb` remember, else the leg's name).

    Raises:
        BackendError: quimb is not installed.
        ShapeError: weights of another network.
        TopologyError: a batch leg is on no core.

    Source: quimb (Gray 2018, doi:10.21105/joss.00819).

    Examples:
        >>> from tn4nn.interop.quimb import to_quimb
        >>> import tn4nn as tn
        >>> net = tn.mpo((4, 4), (3, 3)).with_rank(2)
        >>> [tensor.inds for tensor in to_quimb(net, net.init(0)).tensors]
        [('x0', 'y0', 'a0'), ('a0', 'x1', 'y1')]
    """
    qtn = library("quimb.tensor")
    network.check(weights)
    check_on_cores(network, "a quimb network")
    known_tags: Mapping[str, Iterable[str]] = getattr(weights, "tags", {}) if tags is None else tags
    known: Mapping[str, str] = getattr(weights, "indices", {}) if indices is None else indices
    tensors = []
    for core in network.topology.cores:
        inds = [known.get(leg, leg) for leg in core.legs]
        tensors.append(qtn.Tensor(weights[core.name], inds, tags=known_tags.get(core.name, (core.name,))))
    return qtn.TensorNetwork(tensors)
