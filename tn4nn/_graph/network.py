"""Network: a Topology with a size on every leg. Still no arrays."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._base.checks import check_schema, checked_size, nearest, read_json
from .._base.errors import ShapeError, TopologyError
from .._base.hashing import fingerprint_of
from .._base.notebook import shown
from .._drawing.graph import draw as draw_graph
from .._drawing.graph import svg
from .topology import Sizes, Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def shape_of(array: object, what: str) -> tuple[int, ...]:
    """The shape of an array of any library, or a ShapeError that names it."""
    shape: Any = getattr(array, "shape", None)
    if shape is None:
        raise ShapeError(f"{what}: expected an array, received {type(array).__name__}")
    return tuple(shape)


def check_arrays(
    arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], what: str, owner: str, where: str = ""
) -> None:
    """Raises ShapeError unless there is one array of the right shape for every name, and no other.

    Args:
        arrays: name -> array of any library.
        shapes: name -> its shape.
        what: what an array is called, e.g. "core".
        owner: what it belongs to, e.g. "this network".
        where: before the message.
    """
    for name in arrays:
        if name not in shapes:
            raise ShapeError(f"{where}{name!r} is not a {what} of {owner}." + nearest(name, shapes))
    for name, shape in shapes.items():
        if name not in arrays:
            raise ShapeError(f"{where}{what} {name!r} of shape {shape} is missing")
        received = shape_of(arrays[name], f"{where}{what} {name!r}")
        if received != shape:
            raise ShapeError(f"{where}{what} {name!r}: expected shape {shape}, received {received}")


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A topology whose bonds have sizes: everything about a layer but its numbers.

    Attributes:
        topology: the graph.
        ranks: bond -> size (bond dimension chi).

    Raises:
        TopologyError: a bond without a size, a size for something that is no bond, a size below 1.

    Examples:
        >>> import tn4nn as tn
        >>> net = tn.low_rank(6, 4).with_rank(2)
        >>> net.shapes
        {'core0': (6, 2), 'core1': (2, 4)}
        >>> W = net.to_dense(net.init(0))
        >>> W.shape
        (4, 6)
    """

    topology: Topology
    ranks: Mapping[str, int]

    def __post_init__(self) -> None:
        bonds = dict.fromkeys(self.topology.bonds)
        if not isinstance(self.ranks, Mapping):
            raise TopologyError(f"ranks must map each bond to its size, received {self.ranks!r}")
        for bond in map(str, self.ranks):
            if bond not in bonds:
                raise TopologyError(f"{bond!r} is not a bond of {self.topology.name!r}." + nearest(bond, bonds))
        missing = [bond for bond in bonds if bond not in self.ranks]
        if missing:
            raise TopologyError(f"every bond needs a size: {', '.join(map(repr, missing))} received none")
        ranks = {bond: checked_size(self.ranks[bond], f"bond {bond!r}") for bond in bonds}
        object.__setattr__(self, "ranks", Sizes(ranks))

    # -- what it is made of ---------------------------------------------------------------------------------

    @property
    def in_features(self) -> int:
        """Neurons of the input."""
        return self.topology.in_features

    @property
    def out_features(self) -> int:
        """Neurons of the output."""
        return self.topology.out_features

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every leg: modes and bonds."""
        return {**self.topology.modes, **self.ranks}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Core name -> shape of its array."""
        sizes = self.sizes
        return {core.name: tuple(sizes[leg] for leg in core.legs) for core in self.topology.cores}

    @property
    def num_params(self) -> int:
        """How many numbers the cores hold."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def dense_params(self) -> int:
        """How many numbers the dense W holds: out_features * in_features."""
        return self.in_features * self.out_features

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that are equal for equal networks, on every machine and in every process."""
        return fingerprint_of([self.topology.fingerprint, list(self.ranks.items())])

    # -- numbers --------------------------------------------------------------------------------------------

    def init(self, seed: int = 0, *, scheme: str = "normal", gain: float = 1.0) -> dict[str, NDArray[np.float32]]:
        """Draws the cores: core name -> float32 array, the same on every backend.

        Args:
            seed: every seed gives other numbers, the same everywhere.
            scheme: "normal" (default; Var(W) is exactly gain**2 / in_features), "orthogonal" (each core is an
                isometry from what it sums to what it opens, then scaled to the same Var(W)), or "identity"
                (each core near an identity from its input to its output legs).
            gain: factor on the standard deviation of W.

        Raises:
            TopologyError: an unknown scheme.
        """
        from .init import init

        return init(self, seed, scheme=scheme, gain=gain)

    def lr_factors(
        self, base: int | None = None, *, lr: float | None = None, optimizer: str = "adam"
    ) -> dict[str, float]:
        """Learning-rate factor of each core, so that one learning rate serves every topology.

        One step then moves W, and the layer's output, as it moves that of a dense layer, when all N cores move at once.

        * adam, adamw: an entry moves by lr whatever its gradient, and the output of a core of fan-in f by lr * f.
          So the factor is base / (N * f). Where lr is large, N cores that each moved so far would multiply to much
          more: with `lr`, a step changes the output of a core by at most 0.75 / N of its size (taken between changes
          that add up at random and changes that all agree), so lr times the factor is at most 0.75 / (N * f^(3/4)).
        * muon: a step changes the entries of a core by lr * 0.2 in the root mean square, in all directions alike, so
          the output by that over their standard deviation. The factor is the standard deviation of the core over that
          of W, times sqrt(base / in_features) / N; with `lr`, again at most 0.75 / N of the size of the output.
        * sgd: a gradient of W reaches a core through its environment, the product of the other cores, and the change
          comes back the same way. So the factor is 1 / (N * the mean square of the environment's singular values), at
          most 1 / N for most networks; `base` and `lr` don't matter.

        Args:
            base: width at which a dense layer's factor is 1 (default: in_features).
            lr: the learning rate that is multiplied; None for the factors of small rates.
            optimizer: "adam", "adamw", "muon" or "sgd".

        Raises:
            TN4NNError: an unknown optimizer, or a learning rate that is not above 0.

        Source: Qiu et al. 2024, Compute Better Spent (arXiv:2406.06248) for base / f, here with the fan-in read from
        the graph; the shares of N cores, the limit and the factors of sgd are tn4nn's.

        Examples:
            >>> import tn4nn as tn
            >>> tn.mpo((4, 8), (2, 2)).with_rank(2).lr_factors()
            {'core0': 4.0, 'core1': 1.0}
        """
        from .init import lr_factors

        return lr_factors(self, base, lr, optimizer)

    def to_dense(self, weights: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """The matrix W of the network, shape (out_features, in_features), in the dtype of the weights.

        It is computed in float64 (or complex128). Raises ShapeError for weights of another network.
        """
        from .contract import dense

        return dense(self, weights)

    def check(self, weights: Mapping[str, Any], where: str = "") -> None:
        """Raises ShapeError unless `weights` has one array of the right shape for every core and no other."""
        check_arrays(weights, self.shapes, "core", "this network", where)

    # -- as text, as data, as a picture ---------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The network as plain data."""
        return {"schema": 1, "topology": self.topology.to_dict(), "ranks": dict(self.ranks)}

    def to_json(self) -> str:
        """The network as JSON; `Network.from_json` reads it back."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Network:
        """Reads what `to_dict` gave."""
        check_schema(data, "network", ("topology", "ranks"))
        return cls(Topology.from_dict(data["topology"]), data["ranks"])

    @classmethod
    def from_json(cls, text: str) -> Network:
        """Reads what `to_json` wrote."""
        return cls.from_dict(read_json(text, "network"))

    def draw(self, path: str | None = None, *, weights: Mapping[str, NDArray[Any]] | None = None) -> Figure:
        """Draws the graph with matplotlib, each bond labelled with its size chi and the wider the larger.

        Args:
            path: a .png or .svg file to write.
            weights: core name -> array; given, each bond is coloured by S / ln(chi), the share of the entanglement
                entropy that its size allows. At a bond of a tree S is that of W across it, in a loop that of the two
                cores which it joins.

        Raises:
            TN4NNError: another ending, or matplotlib is not installed.
            ShapeError: weights of another network.
        """
        from .._compression.entanglement import bond_shares

        shares = None if weights is None else bond_shares(self, weights)
        return draw_graph(self.topology, self.ranks, shares=shares, path=path)

    def _repr_svg_(self) -> str | None:
        """The picture; None without matplotlib, and of a network that is too large for one."""
        return svg(self.topology, self.ranks)

    def _repr_html_(self) -> str:
        """What a notebook shows: the text, and the picture where there is one."""
        return shown(str(self), self._repr_svg_())

    def __str__(self) -> str:
        t = self.topology
        ratio = self.dense_params / self.num_params
        lines = [
            f"Network {t.name!r}: {t.in_features} -> {t.out_features}, {self.num_params:,} params "
            f"({ratio:.3g}x fewer than dense)",
            "  bonds   " + (" ".join(f"{bond}={rank}" for bond, rank in self.ranks.items()) or "none"),
        ]
        shapes = self.shapes
        lines += [f"  {core.name:<8} {' '.join(core.legs):<20} {shapes[core.name]}" for core in t.cores]
        return "\n".join(lines)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        return self.topology == other.topology and dict(self.ranks) == dict(other.ranks)

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def transposed(network: Network) -> Network:
    """The network of W^T: the same cores, inputs and outputs exchanged."""
    t = network.topology
    exchanged = dataclasses.replace(
        t, inputs=t.outputs, outputs=t.inputs, in_features=t.out_features, out_features=t.in_features
    )
    return Network(exchanged, network.ranks)
