"""Why a weight matrix can be compressed: its Schmidt spectrum and entanglement entropy across cuts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._base.arrays import Array, checked_array
from .._base.checks import nearest
from .._base.errors import BudgetError, DataError, ShapeError, TopologyError
from .._base.seeds import rng_for
from .._drawing.charts import draw_entropies
from .._graph.contract import contract, sizes_of
from .._graph.min_cut import min_cut
from .._graph.network import Network
from .._graph.ordering import Ordering, ordering_of
from .._graph.paths import Legs
from .._graph.topology import holders_of
from .._graph.tree import tree_of
from .gauge import canonicalise, checked_weights, wide
from .ranks import schmidt_values
from .svd import root, singular_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Weights = Mapping[str, NDArray[Any]]
CutName = str | int | Sequence[str] | Sequence[int]

_LARGEST = 2**13  # product of the legs of a cut up to which reduced matrices are formed
_DENSE = 2**24  # entries of W that may be formed where there are batch legs


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """One bipartition of the open legs of W.

    Attributes:
        name: what the table calls it.
        inside: the open legs of one side.
        spectrum: the singular values of W between the sides, largest first (not normalised).
        bound: what the entropy cannot exceed, in nats: ln of the smaller side, and for a network at most the
            least sum of ln(chi) over bonds that part the sides.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> cut = tn.entanglement(np.eye(16), inputs=(4, 4), outputs=(4, 4))[0]
        >>> cut.inside, len(cut.spectrum), round(cut.entropy, 3), round(cut.bound, 3)
        (('y0', 'x0'), 16, 0.0, 2.773)
    """

    name: str
    inside: Legs
    spectrum: Array
    bound: float

    @property
    def probabilities(self) -> Array:
        """p = s^2 / sum s^2."""
        return np.asarray(self.spectrum**2 / np.sum(self.spectrum**2))

    @property
    def entropy(self) -> float:
        """S = -sum p ln p, in nats."""
        p = self.probabilities
        p = p[p > 0]
        return float(max(0.0, -np.sum(p * np.log(p))))

    @property
    def effective_rank(self) -> float:
        """exp(S): how many equal singular values would be as entangled."""
        return math.exp(self.entropy)


class Entanglement(Sequence[Cut]):
    """The cuts that were asked for, in order; printing it gives a table.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> found = tn.entanglement(np.kron(np.eye(4), np.eye(4)), inputs=(4, 4), outputs=(4, 4))
        >>> print(found)
        cut      S (nats)   bound  S/bound  exp(S)
        y0 x0 |    0.0000  2.7726    0.000    1.00
    """

    def __init__(self, cuts: Iterable[Cut]) -> None:
        self._cuts = tuple(cuts)

    def __len__(self) -> int:
        return len(self._cuts)

    @overload
    def __getitem__(self, index: int) -> Cut: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Cut]: ...
    def __getitem__(self, index: int | slice) -> Cut | Sequence[Cut]:
        return self._cuts[index]

    @property
    def entropies(self) -> Array:
        """S of every cut, in nats."""
        return np.array([cut.entropy for cut in self._cuts])

    def draw(self, path: str | None = None, *, nulls: Mapping[str, Entanglement] | None = None) -> Figure:
        """Draws S along the cuts beside its bound, with matplotlib.

        Args:
            path: a .png or .svg file to write.
            nulls: name -> the same cuts of something else, such as `entanglement_nulls` gives.

        Raises:
            TN4NNError: nulls with other cuts, another ending, or matplotlib is not installed.

        Examples:
            >>> import numpy as np, tn4nn as tn
            >>> W = np.random.default_rng(0).normal(size=(64, 64))
            >>> modes = {"inputs": (4, 4, 4), "outputs": (4, 4, 4)}
            >>> nulls = tn.entanglement_nulls(W, **modes)
            >>> figure = tn.entanglement(W, **modes).draw(nulls=nulls)
            >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
            ['bound', 'shuffled', 'random', 'S']
        """
        return draw_entropies(self, nulls or {}, path)

    def __str__(self) -> str:
        width = max([3, *(len(cut.name) for cut in self._cuts)])
        lines = [f"{'cut':<{width}}  S (nats)   bound  S/bound  exp(S)"]
        for cut in self._cuts:
            share = cut.entropy / cut.bound if cut.bound > 0 else 0.0
            lines.append(
                f"{cut.name:<{width}}  {cut.entropy:8.4f}{cut.bound:8.4f}{share:9.3f}{cut.effective_rank:8.2f}"
            )
        return "\n".join(lines)

    __repr__ = __str__


def entanglement(
    W: ArrayLike | Network,
    weights: Weights | None = None,
    *,
    inputs: Sequence[int] | None = None,
    outputs: Sequence[int] | None = None,
    cuts: str | Sequence[CutName] | None = None,
    ordering: Ordering | str | Sequence[int] | None = None,
) -> Entanglement:
    """Schmidt spectrum and entanglement entropy of a matrix, or of a network without forming its matrix.

    Args:
        W: a matrix of shape (out_features, in_features), or a Network.
        weights: of the Network: core name -> array.
        inputs: mode sizes of the input of a matrix, one for each site; their product is in_features.
        outputs: mode sizes of its output, as many; their product is out_features.
        cuts: left out, the n - 1 cuts of the chain of site pairs (x0 y0 | x1 y1 ...), or where a network has no such
            chain, its bonds. "bonds" asks for every bond of a tree. A sequence names bipartitions, each by one
            side: a number k for the first k sites, a bond of a tree, leg names ("x0 x1", or a sequence), or a
            sequence of site numbers.
        ordering: of the inputs of a matrix, as for `tn.Linear`.

    Returns:
        One `Cut` for each, with `.entropy` in nats, `.spectrum`, `.bound` and `.effective_rank`. At a bond of a
        tree the spectrum comes from a canonical form, to full precision; elsewhere from reduced matrices over the
        cheapest cut of the graph, to about 1e-8 of the largest singular value. A padded network counts whole.

    Raises:
        ShapeError: modes whose products are not the shape of W; weights of another network.
        DataError: NaN or infinite entries, W zero everywhere.
        TopologyError: unknown legs, a side that is empty or everything.
        BudgetError: a cut so wide that its reduced matrix would not fit.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> ghz = np.diag([1.0, 0.0, 0.0, 1.0])                   # x0 = x1 = y0 = y1: one bit
        >>> print(tn.entanglement(ghz, inputs=(2, 2), outputs=(2, 2)))
        cut      S (nats)   bound  S/bound  exp(S)
        y0 x0 |    0.6931  1.3863    0.500    2.00
    """
    if isinstance(W, Network):
        if weights is None or not (inputs is outputs is ordering is None):
            raise TopologyError(
                "entanglement takes a Network with its weights and nothing of inputs=, outputs=, ordering="
            )
        return Entanglement(_of_network(W, weights, cuts))
    if weights is not None or inputs is None or outputs is None:
        raise TopologyError("entanglement takes a matrix with inputs= and outputs=, or a Network and its weights")
    matrix, ins, outs = _matrix(W, inputs, outputs, ordering)
    sides = _sides(cuts, tuple(ins), tuple(outs), {})
    return Entanglement(_of_matrix(matrix, ins, outs, sides))


# -- a matrix ---------------------------------------------------------------------------------------------------


def _matrix(
    W: ArrayLike, inputs: Sequence[int], outputs: Sequence[int], ordering: Any
) -> tuple[Array, dict[str, int], dict[str, int]]:
    w = checked_array(W, "W", 2)
    wanted = (math.prod(outputs), math.prod(inputs))
    if w.shape != wanted:
        raise ShapeError(
            f"W has shape {w.shape}, and the modes outputs={tuple(outputs)}, inputs={tuple(inputs)} make {wanted}: "
            "their products must be the shape"
        )
    order = ordering_of(ordering, w.shape[1])
    w = w if order is None else w[:, order.permutation]
    ins = {f"x{i}": int(size) for i, size in enumerate(inputs)}
    return w, ins, {f"y{i}": int(size) for i, size in enumerate(outputs)}


def _of_matrix(
    w: Array, ins: Mapping[str, int], outs: Mapping[str, int], sides: Sequence[tuple[str, Legs]]
) -> list[Cut]:
    legs, sizes = (*outs, *ins), {**outs, **ins}
    tensor = w.reshape([sizes[leg] for leg in legs])
    found = []
    for name, inside in sides:
        rest = tuple(leg for leg in legs if leg not in inside)
        rows, columns = (math.prod(sizes[leg] for leg in side) for side in (inside, rest))
        moved = tensor.transpose([legs.index(leg) for leg in (*inside, *rest)]).reshape(rows, columns)
        found.append(Cut(name, inside, singular_values(moved), math.log(min(rows, columns))))
    return found


# -- which cuts -------------------------------------------------------------------------------------------------


def _sides(
    cuts: str | Sequence[CutName] | None, ins: Legs, outs: Legs, bonds: Mapping[str, Legs]
) -> list[tuple[str, Legs]]:
    """(name, legs of one side) of each cut. `bonds` are those at which a tree falls apart, with one side each."""
    if cuts is None:
        if len(ins) == len(outs) > 1:
            cuts = list(range(1, len(ins)))
        elif bonds:
            cuts = "bonds"
        else:
            raise TopologyError(
                f"{len(ins)} input and {len(outs)} output modes are not a chain of two or more site pairs: name the "
                "cuts, e.g. cuts=['x0']"
            )
    if cuts == "bonds":
        if not bonds:
            raise TopologyError("cuts='bonds' needs a tree network with bonds: name the legs of one side instead")
        cuts = list(bonds)
    if isinstance(cuts, str | int):
        raise TopologyError(f"cuts must be 'bonds' or a sequence of cuts, received {cuts!r}")
    return [_side(cut, ins, outs, bonds) for cut in cuts]


def _side(cut: CutName, ins: Legs, outs: Legs, bonds: Mapping[str, Legs]) -> tuple[str, Legs]:
    if isinstance(cut, str) and cut in bonds:
        return cut, bonds[cut]
    items: Sequence[Any] = range(cut) if isinstance(cut, int) else cut.split() if isinstance(cut, str) else list(cut)
    legs: set[str] = set()
    for item in items:
        if isinstance(item, int | np.integer):
            if not 0 <= item < min(len(ins), len(outs)):
                raise TopologyError(f"cut {cut!r}: site {item} is none of the {min(len(ins), len(outs))} site pairs")
            legs |= {ins[item], outs[item]}
        elif item in ins or item in outs:
            legs.add(item)
        else:
            raise TopologyError(
                f"cut {cut!r}: {item!r} is not an open leg." + nearest(str(item), (*ins, *outs, *bonds))
            )
    every = tuple(dict.fromkeys((*outs, *ins)))
    inside = tuple(leg for leg in every if leg in legs)
    if not 0 < len(inside) < len(every):
        raise TopologyError(f"cut {cut!r} leaves one side empty: name some of the legs {' '.join(every)}, not all")
    return f"{' '.join(inside)} |", inside


# -- a network --------------------------------------------------------------------------------------------------


def _of_network(network: Network, weights: Weights, cuts: str | Sequence[CutName] | None) -> list[Cut]:
    network.check(weights)
    t = network.topology
    cores = {name: checked_array(weights[name], f"core {name!r}", len(shape)) for name, shape in network.shapes.items()}
    if t.kept:
        return _of_formed(network, cores, cuts)
    ends = _bonds_of_tree(network)
    sides = _sides(cuts, tuple(t.inputs), tuple(t.outputs), {bond: legs for bond, (legs, _) in ends.items()})
    tensors, arrays = _with_single_ends(network, cores)
    found = []
    for name, inside in sides:
        bound, part = min_cut(tensors, sizes_of(tensors, arrays), inside)
        bond = next((b for b, (legs, _) in ends.items() if _same_bipartition(legs, inside, t.modes)), None)
        if bond is None:
            spectrum = _reduced(tensors, arrays, part, inside)
        else:
            spectrum = _at_bond(network, cores, bond, ends[bond][1])
        if not spectrum.any():
            raise DataError("W of this network is zero everywhere: an entropy has no meaning")
        found.append(Cut(name, inside, spectrum, bound))
    return found


def _of_formed(network: Network, cores: Weights, cuts: Any) -> list[Cut]:
    """W is formed: a batch leg is an input and an output mode of it. The input is called `leg:in`."""
    t = network.topology
    if network.dense_params > _DENSE:
        raise BudgetError(
            f"{t.name!r} has batch legs, for which W is formed, and its {network.dense_params:,} entries are more than "
            f"{_DENSE:,}",
            network.dense_params,
        )
    ins = {f"{leg}:in" if leg in t.kept else leg: size for leg, size in t.inputs.items()}
    w = checked_array(network.to_dense(cores), "W of the network", 2)
    return _of_matrix(w, ins, t.outputs, _sides(cuts, tuple(ins), tuple(t.outputs), {}))


def _bonds_of_tree(network: Network) -> dict[str, tuple[Legs, str]]:
    """Bond -> (open legs on one side, the core at its end there), of a plain tree; nothing for other graphs."""
    tree = tree_of(network.topology)
    if tree is None or not tree.is_plain:
        return {}
    return {edge.bonds[0]: (edge.inner, network.topology.cores[edge.core].name) for edge in tree.edges}


def _same_bipartition(one: Legs, other: Legs, modes: Mapping[str, int]) -> bool:
    """Whether two sides part the legs alike; legs of size 1 do not count."""
    left, right, every = ({leg for leg in legs if modes[leg] > 1} for legs in (one, other, tuple(modes)))
    return left in (right, every - right)


def _at_bond(network: Network, cores: Weights, bond: str, core: str) -> Array:
    """The spectrum at a bond of a tree, out of the canonical form about the core at its end."""
    center = canonicalise(network, cores, core)[core]
    legs = next(c.legs for c in network.topology.cores if c.name == core)
    front = np.moveaxis(center, legs.index(bond), 0)
    return singular_values(front.reshape(front.shape[0], -1))


def _with_single_ends(network: Network, cores: Weights) -> tuple[list[Legs], list[Array]]:
    """The cores with every open leg on one tensor: where it is on several, an identity joins it to them."""
    t = network.topology
    spread = [leg for leg in t.modes if len(t.holders[leg]) > 1]
    tensors = [tuple(f"{leg}:" if leg in spread else leg for leg in core.legs) for core in t.cores]
    return [*tensors, *((leg, f"{leg}:") for leg in spread)], [
        *(cores[core.name] for core in t.cores),
        *(np.eye(t.modes[leg]) for leg in spread),
    ]


def _reduced(tensors: Sequence[Legs], arrays: Sequence[Array], part: Collection[int], inside: Legs) -> Array:
    """The spectrum across a cut from the reduced matrices of both sides over the legs that cross it.

    W = A B^T over the crossing legs; the squares of its singular values are the eigenvalues of
    (A^H A)(B^T conj(B)).
    """
    sizes = sizes_of(tensors, arrays)
    crossing = tuple(leg for leg, cores in holders_of(tensors).items() if _crosses(leg, cores, part, inside))
    width = math.prod(sizes[leg] for leg in crossing)
    if width > _LARGEST:
        raise BudgetError(
            f"the cheapest cut beside {' '.join(inside)} goes through {' '.join(crossing)}, {width:,} values together, "
            f"and up to {_LARGEST:,} can be done: use smaller ranks, another cut, or to_dense",
            width,
        )
    sides = [[i for i in range(len(tensors)) if (i in part) is within] for within in (True, False)]
    roots = [_side_root(tensors, arrays, side, crossing, sizes) for side in sides]
    return singular_values(roots[0].conj().T @ roots[1].conj())


def _crosses(leg: str, cores: Sequence[int], part: Collection[int], inside: Legs) -> bool:
    ends = {core in part for core in cores}
    if len(cores) == 1:
        ends.add(leg in inside)
    return len(ends) > 1


def _side_root(
    tensors: Sequence[Legs], arrays: Sequence[Array], side: Sequence[int], crossing: Legs, sizes: Mapping[str, int]
) -> Array:
    """L with L L^H = M^H M, for M the tensors of one side as a matrix from the crossing legs to its open legs."""
    traced = {leg for leg, cores in holders_of(tensors).items() if len(cores) == 1 and leg not in crossing}

    def twin(legs: Legs) -> Legs:
        return tuple(leg if leg in traced else f"{leg}::" for leg in legs)

    # An open leg that the cut itself goes through is an identity for the side that does not hold it.
    here = {leg for i in side for leg in tensors[i]}
    bare = [leg for leg in crossing if leg not in here]
    kets = [tensors[i] for i in side]
    network = [*kets, *map(twin, kets), *((leg, f"{leg}::") for leg in bare)]
    values = [*(arrays[i] for i in side), *(arrays[i].conj() for i in side), *(np.eye(sizes[leg]) for leg in bare)]
    gram = contract(network, values, (*twin(crossing), *crossing)) if network else np.ones(())
    width = math.prod(sizes[leg] for leg in crossing)
    return root(gram.reshape(width, width))


def bond_shares(network: Network, weights: Weights) -> dict[str, float]:
    """S / ln(chi) of every bond, 0 where chi is 1: at a bond of a tree S of W across it, elsewhere that of the Schmidt
    values of the two cores that it joins (of a hyperedge: of the products of their norms)."""
    checked_weights(network, weights)
    tree = tree_of(network.topology)
    if tree is not None and tree.is_plain:
        found = entanglement(network, weights, cuts="bonds") if network.ranks else ()
        entropies = {cut.name: cut.entropy for cut in found}
    else:
        values = {bond: schmidt_values(network, weights, bond) for bond in network.ranks}
        entropies = {bond: Cut(bond, (), s, 0.0).entropy if s.any() else 0.0 for bond, s in values.items()}
    return {b: entropies[b] / math.log(n) if n > 1 else 0.0 for b, n in network.ranks.items()}


# -- what is not special ----------------------------------------------------------------------------------------


def entanglement_nulls(
    W: ArrayLike | Network, weights: Weights | None = None, *, seed: int = 0, **options: Any
) -> dict[str, Entanglement]:
    """The same cuts of what a trained weight is compared with.

    Args:
        W: as for `entanglement`.
        weights: as for `entanglement`.
        seed: of all draws.
        options: inputs=, outputs=, cuts=, ordering= as for `entanglement`.

    Returns:
        "shuffled": the same entries in random places (of W, or of each core); "random": normal entries of the same
        norm (of W, or of each core); and for a network "init": its initial weights.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> W = np.outer(np.arange(1.0, 17), np.ones(16))
        >>> modes = {"inputs": (4, 4), "outputs": (4, 4)}
        >>> nulls = tn.entanglement_nulls(W, **modes)
        >>> nulls["random"][0].entropy > nulls["shuffled"][0].entropy > tn.entanglement(W, **modes)[0].entropy
        True
    """
    rng = rng_for(seed, "nulls")
    if isinstance(W, Network):
        if weights is None:
            raise TopologyError("entanglement_nulls takes a Network with its weights")
        given = checked_weights(W, weights)
        nulls = {"init": wide(W.init(seed))}
        nulls["shuffled"] = {n: rng.permutation(a.reshape(-1)).reshape(a.shape) for n, a in given.items()}
        nulls["random"] = {n: _normal_like(a, rng) for n, a in given.items()}
        return {name: entanglement(W, cores, **options) for name, cores in nulls.items()}
    w = checked_array(W, "W", 2)
    shuffled = rng.permutation(w.reshape(-1)).reshape(w.shape)
    return {
        "shuffled": entanglement(shuffled, **options),
        "random": entanglement(_normal_like(w, rng), **options),
    }


def _normal_like(array: Array, rng: np.random.Generator) -> Array:
    drawn = rng.standard_normal(array.shape)
    if np.iscomplexobj(array):
        drawn = drawn + 1j * rng.standard_normal(array.shape)
    return np.asarray(drawn * (np.linalg.norm(array) / np.linalg.norm(drawn)))
