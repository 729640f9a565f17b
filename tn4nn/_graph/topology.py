"""Topology: cores, legs and mode sizes. No ranks, no arrays, no framework."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex

from .._base.checks import check_schema, checked_size, nearest, read_json
from .._base.errors import TopologyError
from .._base.hashing import fingerprint_of
from .._base.notebook import shown
from .._drawing.graph import draw as draw_graph
from .._drawing.graph import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .network import Network


class Sizes(dict[str, int]):
    """A dict of sizes that cannot be changed, only copied: `dict(sizes)`."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("sizes of a topology or network cannot be changed: make a new one from dict(sizes)")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = _refuse
    setdefault = update = _refuse  # pyright: ignore[reportAssignmentType]

    def __reduce__(self) -> tuple[Any, ...]:  # a dict is pickled by setting its items
        return Sizes, (dict(self),)


_NAME = re.compile(r"[^\s,:]+")
MOST_LEGS = 64  # of a core: numpy's arrays have no more axes
SCHEMA = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Core:
    """One trainable tensor: a name and its legs, in the order of the array's axes.

    Examples:
        >>> import tn4nn as tn
        >>> tn.mpo((4, 4), (2, 2)).cores[0]
        Core(name='core0', legs=('x0', 'y0', 'a0'))
    """

    name: str
    legs: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Topology:
    """A graph of cores joined by legs, with a size on every open leg.

    A leg named in `inputs` meets the layer's input, one named in `outputs` forms its output, and one named in
    both is a batch leg: W is block-diagonal in it. Every other leg is a bond, which is summed over. A leg of more
    than two tensors, or an open leg of more than one core, is a hyperedge. The flat neuron index is big-endian in
    the order of the mapping, as in reshape: ``i = sum_l i_l prod_{m>l} n_m``.

    Attributes:
        cores: the tensors, in the order in which they were declared.
        inputs: size of each input leg, in the order of the modes of the input.
        outputs: size of each output leg, in the order of the modes of the output.
        in_features: neurons of the input; at most the product of the input sizes. A smaller input is padded with
            zeros up to the product.
        out_features: neurons of the output; at most the product of the output sizes, the rest is dropped.
        name: what tables call it.

    Raises:
        TopologyError: a leg or core is wrong; the message names it.

    Examples:
        >>> from tn4nn import topology
        >>> t = topology("x0 y0 a, x1 y1 a", inputs={"x0": 4, "x1": 8}, outputs={"y0": 2, "y1": 3})
        >>> t.in_features, t.out_features, t.bonds
        (32, 6, ('a',))
    """

    cores: tuple[Core, ...]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    in_features: int = -1
    out_features: int = -1
    name: str = "custom"

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "cores", tuple(Core(str(c.name), tuple(c.legs)) for c in self.cores))
        put(self, "inputs", Sizes(_checked_sizes(self.inputs, "input")))
        put(self, "outputs", Sizes(_checked_sizes(self.outputs, "output")))
        self._check_graph()
        for side, sizes in (("in_features", self.inputs), ("out_features", self.outputs)):
            product, wanted = math.prod(sizes.values()), getattr(self, side)
            number = operator.index(wanted) if isinstance(wanted, SupportsIndex) else 0
            if number == -1:
                number = product
            if isinstance(wanted, bool) or not 1 <= number <= product:
                raise TopologyError(
                    f"{side} must be from 1 to the product of its mode sizes "
                    f"({'*'.join(map(str, sizes.values()))} = {product}), received {wanted!r}"
                )
            put(self, side, number)
        if any(leg in self.outputs for leg in self.inputs) and self.is_padded:
            raise TopologyError(
                "a topology with a batch leg (input and output at once) cannot be padded: "
                "choose mode sizes whose products are the features"
            )

    def _check_graph(self) -> None:
        if not self.cores:
            raise TopologyError("a topology needs at least one core, received none")
        seen: set[str] = set()
        for core in self.cores:
            if not core.name.isidentifier() or core.name in ("bias", "x"):
                raise TopologyError(
                    f"{core.name!r} is not a core name: expected a letter, then letters, digits, underscores, "
                    "and neither 'bias' nor 'x'"
                )
            if core.name in seen:
                raise TopologyError(f"core name {core.name!r} is used twice: names must be unique")
            seen.add(core.name)
            if not core.legs:
                raise TopologyError(f"core {core.name!r} has no legs: give it at least one, or leave it out")
            if len(core.legs) > MOST_LEGS:
                raise TopologyError(
                    f"core {core.name!r} has {len(core.legs)} legs: an array has at most {MOST_LEGS} axes, so split it "
                    "into several cores, or merge some modes"
                )
            for leg in core.legs:
                if core.legs.count(leg) > 1:
                    raise TopologyError(
                        f"core {core.name!r} has leg {leg!r} twice (a trace): give the two axes two names"
                    )
                if not _NAME.fullmatch(leg):
                    raise TopologyError(f"core {core.name!r}: {leg!r} is not a leg name (no spaces, commas, colons)")
        on_cores = [leg for leg, cores in self.holders.items() if cores]
        for leg, size in self.inputs.items():
            if leg in self.outputs:
                if self.outputs[leg] != size:
                    raise TopologyError(
                        f"leg {leg!r} is input and output at once (a batch leg), so its sizes must agree: "
                        f"input {size}, output {self.outputs[leg]}"
                    )
            elif not self.holders[leg]:
                raise TopologyError(f"input leg {leg!r} is on no core." + nearest(leg, on_cores))
        for leg in self.outputs:
            if not self.holders[leg] and leg not in self.inputs:
                raise TopologyError(f"output leg {leg!r} is on no core." + nearest(leg, on_cores))
        for leg, cores in self.holders.items():
            if len(cores) == 1 and leg not in self.inputs and leg not in self.outputs:
                name = self.cores[cores[0]].name
                raise TopologyError(
                    f"leg {leg!r} is only on core {name!r} and is neither input nor output: a bond joins at "
                    "least two cores. Name it in inputs= or outputs=, or add it to another core"
                )

    # -- what it is made of ---------------------------------------------------------------------------------

    @property
    def bonds(self) -> tuple[str, ...]:
        """The legs that are summed and open nowhere, in the order in which they first appear."""
        legs = dict.fromkeys(leg for core in self.cores for leg in core.legs)
        return tuple(leg for leg in legs if leg not in self.inputs and leg not in self.outputs)

    @property
    def kept(self) -> tuple[str, ...]:
        """The batch legs: input and output at once. W is block-diagonal in them."""
        return tuple(leg for leg in self.inputs if leg in self.outputs)

    @property
    def modes(self) -> dict[str, int]:
        """Size of every open leg."""
        return {**self.inputs, **self.outputs}

    @property
    def holders(self) -> Mapping[str, tuple[int, ...]]:
        """Leg -> positions of the cores that hold it: the open legs first, those on no core too, then the bonds."""
        return self._holders

    @functools.cached_property
    def _holders(self) -> Mapping[str, tuple[int, ...]]:
        found = holders_of([core.legs for core in self.cores])
        return {**{leg: found.get(leg, ()) for leg in self.modes}, **{leg: found[leg] for leg in self.bonds}}

    @property
    def is_padded(self) -> bool:
        """Whether the features are fewer than the product of the modes on either side."""
        return self.in_features != math.prod(self.inputs.values()) or self.out_features != math.prod(
            self.outputs.values()
        )

    @property
    def is_matrix(self) -> bool:
        """Whether the one core is W as it is, or W^T: a dense layer, or a dense table that is read the other way."""
        ends = ((*self.outputs, *self.inputs), (*self.inputs, *self.outputs))
        return len(self.cores) == 1 and self.cores[0].legs in ends and not self.is_padded

    @property
    def text(self) -> str:
        """The cores in the text notation, names included; `topology` reads it back."""
        return ", ".join(f"{core.name}: {' '.join(core.legs)}" for core in self.cores)

    # -- the next values ------------------------------------------------------------------------------------

    def with_rank(self, rank: int, *, clip: bool = False) -> Network:
        """A Network with the same size on every bond.

        Args:
            rank: bond dimension chi, at least 1.
            clip: lower each bond to its largest useful rank (`rank_caps`) where `rank` is above it.
        """
        return self.with_ranks(dict.fromkeys(self.bonds, rank), clip=clip)

    def with_ranks(self, ranks: Mapping[str, int], *, clip: bool = False) -> Network:
        """A Network with a given size on every bond.

        Args:
            ranks: bond -> size, for every bond.
            clip: lower each bond to its largest useful rank (`rank_caps`).
        """
        from .network import Network
        from .rank_problem import rank_caps

        network = Network(self, ranks)
        if not clip:
            return network
        caps = rank_caps(self)
        return Network(self, {bond: min(rank, caps[bond]) for bond, rank in network.ranks.items()})

    def with_budget(
        self,
        *,
        params: int | None = None,
        macs: int | None = None,
        bytes: int | None = None,  # noqa: A002  (the word of the field)
        batch: int = 1,
        dtype: str = "float32",
        weights: Mapping[str, float] | None = None,
        fixed: Mapping[str, int] | None = None,
    ) -> Network:
        """The Network whose ranks fill a budget: never above it, and as near as can be.

        Give exactly one of `params` (numbers in the cores), `macs` (multiply-adds of one forward pass over
        `batch` rows, in the order that needs fewest), `bytes` (of the cores at `dtype`).

        Args:
            weights: relative size wanted for each bond (default 1 for each).
            fixed: bonds whose size is given and not chosen.

        Raises:
            BudgetError: even rank 1 on every bond is above the budget; `.smallest` is what would do.

        Examples:
            >>> import tn4nn as tn
            >>> net = tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_budget(params=1024)
            >>> net.num_params, net.ranks
            (1024, {'a0': 4, 'a1': 4, 'a2': 4})
        """
        from .budget import network_with_budget

        return network_with_budget(
            self, params=params, macs=macs, bytes=bytes, batch=batch, dtype=dtype, weights=weights, fixed=fixed
        )

    def renamed(self, name: str) -> Topology:
        """The same topology under another name for tables."""
        return dataclasses.replace(self, name=name)

    # -- as text, as data, as a picture ---------------------------------------------------------------------

    def to_json(self) -> str:
        """The topology as JSON; `Topology.from_json` reads it back."""
        return json.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The topology as plain data."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "cores": [[core.name, list(core.legs)] for core in self.cores],
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
            "in_features": self.in_features,
            "out_features": self.out_features,
        }

    @classmethod
    def from_json(cls, text: str) -> Topology:
        """Reads what `to_json` wrote."""
        return cls.from_dict(read_json(text, "topology"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Topology:
        """Reads what `to_dict` gave. In hand-written data `cores` may be the text notation, and the name and
        the features may be left out."""
        check_schema(data, "topology", ("cores", "inputs", "outputs"))
        written = data["cores"]
        return cls(
            parse(written) if isinstance(written, str) else _listed(written),
            data["inputs"],
            data["outputs"],
            data.get("in_features", -1),
            data.get("out_features", -1),
            data.get("name", "custom"),
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that are equal for equal topologies, on every machine and in every process.
        The name for tables does not count."""
        return fingerprint_of({k: v for k, v in self.to_dict().items() if k != "name"})

    def draw(self, path: str | None = None) -> Figure:
        """Draws the graph with matplotlib; saves it where a path is given."""
        return draw_graph(self, path=path)

    def __deepcopy__(self, memo: object) -> Topology:
        return self  # it never changes, but for what it has computed, in which another thread may be

    def _repr_svg_(self) -> str | None:
        """The picture; None without matplotlib, and of a topology that is too large for one."""
        return svg(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the text, and the picture where there is one."""
        return shown(str(self), self._repr_svg_())

    def __str__(self) -> str:
        lines = [
            f"Topology {self.name!r}: {self.in_features} -> {self.out_features}, {len(self.cores)} cores, "
            f"{len(self.bonds)} bonds",
            f"  inputs  {_sizes_text(self.inputs)}",
            f"  outputs {_sizes_text(self.outputs)}",
        ]
        lines += [f"  {core.name:<8} {' '.join(core.legs)}" for core in self.cores]
        return "\n".join(lines)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topology):
            return NotImplemented
        return self.to_json() == other.to_json()  # dictionaries would be equal in another order of modes

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def topology(
    text: str,
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    *,
    in_features: int = -1,
    out_features: int = -1,
    name: str = "custom",
) -> Topology:
    """Declares a topology in text: tensors split by commas, legs by spaces.

    Legs in neither mapping are bonds. A leg in more than two tensors, or an open leg in more than one core,
    is a hyperedge; a leg in both mappings is a batch leg. Cores are named core0, core1, ... in order, unless
    written ``name: legs``.

    Args:
        text: e.g. ``"x0 y0 a, x1 y1 a b, x2 y2 b"``.
        inputs: size of each input leg, in mode order.
        outputs: size of each output leg, in mode order.
        in_features: fewer neurons than the product of the inputs (zero padding); -1 for the product.
        out_features: fewer neurons than the product of the outputs (the rest is dropped); -1 for the product.
        name: what tables call it.

    Raises:
        TopologyError: naming the core and the leg that are wrong.

    Examples:
        A rank-r block tensor train (Qiu et al. 2024, arXiv:2406.06248) over two modes; x0 and y1 are in
        both cores:

        >>> from tn4nn import topology
        >>> btt = topology("x0 x1 y1 r, y0 x0 y1 r", {"x0": 8, "x1": 8}, {"y0": 4, "y1": 4})
        >>> btt.with_rank(2).num_params
        768
    """
    return Topology(parse(text), inputs, outputs, in_features, out_features, name)


def holders_of(tensors: Sequence[tuple[str, ...]]) -> dict[str, tuple[int, ...]]:
    """Leg -> positions of the tensors that hold it, in the order in which the legs are met.

    Examples:
        >>> holders_of([("x", "a"), ("a", "y")])
        {'x': (0,), 'a': (0, 1), 'y': (1,)}
    """
    found: dict[str, list[int]] = {}
    for position, legs in enumerate(tensors):
        for leg in legs:
            found.setdefault(leg, []).append(position)
    return {leg: tuple(positions) for leg, positions in found.items()}


def modes_on_cores(topology: Topology) -> tuple[str, ...]:
    """The open legs that at least one core holds, in the order of the modes (a batch leg may be on none)."""
    return tuple(leg for leg in topology.modes if topology.holders[leg])


def parse(text: str) -> tuple[Core, ...]:
    """The cores of a text in the notation of `topology`."""
    if not isinstance(text, str) or not text.strip():
        raise TopologyError(f"expected cores as text, like 'x0 y0 a, x1 y1 a', received {text!r}")
    cores = []
    for position, part in enumerate(text.split(",")):
        head, colon, tail = part.partition(":")
        name, legs = (head.strip(), tail) if colon else (f"core{position}", head)
        if not _NAME.fullmatch(name):
            raise TopologyError(f"tensor {position} ({part.strip()!r}): {name!r} is not a core name")
        if ":" in legs:
            raise TopologyError(f"tensor {position} ({part.strip()!r}) has more than one colon")
        cores.append(Core(name, tuple(legs.split())))
    return tuple(cores)


def _listed(written: object) -> tuple[Core, ...]:
    """Cores out of [[name, [leg, ...]], ...]."""
    if not isinstance(written, list | tuple):
        raise TopologyError(f"cores in topology data are text or a list of [name, [legs]], received {written!r}")
    cores = []
    for item in written:
        if not (isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[1], list | tuple)):
            raise TopologyError(f"a core is [name, [legs]] in topology data, received {item!r}")
        cores.append(Core(str(item[0]), tuple(map(str, item[1]))))
    return tuple(cores)


def _checked_sizes(sizes: Mapping[str, int], side: str) -> dict[str, int]:
    if not isinstance(sizes, Mapping) or not sizes:
        raise TopologyError(f"{side}s must map at least one leg to its size, received {sizes!r}")
    return {str(leg): checked_size(size, f"{side} leg {leg!r}") for leg, size in sizes.items()}


def _sizes_text(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{leg}={size}" for leg, size in sizes.items())
