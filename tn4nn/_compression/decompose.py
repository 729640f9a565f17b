"""From a dense matrix to a network of any topology."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._base.arrays import Array
from .._base.errors import DataError, ShapeError, TopologyError
from .._base.seeds import checked_seed, rng_for
from .._graph.network import Network
from .._graph.ordering import Ordering, ordering_of
from .._graph.topology import Topology
from .._graph.topology import topology as topology_of
from .._graph.tree import tree_of
from .als import Watch
from .fit import Asked, Fitter, checked_memory, checked_method, checked_time_limit
from .gauge import balance
from .target import Target, target_of

if TYPE_CHECKING:
    from .._model.layers import Linear

_LIKE_RANDOM = 0.9  # of the error of a random matrix: from there on W is no more compressible than noise
_ROUNDING = 1e-5  # errors below are mostly those of float32
_NULL_SWEEPS = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Decomposition:
    """A network that replaces a matrix, and what was lost; printing it is the report.

    Attributes:
        network: the topology with the ranks that were found or given.
        weights: core name -> array; `network.to_dense(weights)` is the new W.
        error: ||W - W'|| / ||W|| in the Frobenius norm.
        output_error: sqrt(E|(W - W')x|^2 / E|W x|^2) over the calibration inputs, None where none were given.
        bond_errors: bond -> what W loses at this bond alone at its rank, relative; empty where there is no tree, or
            inputs were given.
        bound: relative error that cannot be exceeded at these ranks (sqrt of the sum of their squares), and which
            is at most sqrt(bonds) times the least possible one; None where there are no bond errors.
        least: relative error that no weights at these ranks can go below; None where there are no bond errors.
        random_error: error of the same fit to a random matrix of the same shape, that of the outputs where inputs were
            given; None where it was not asked for.
        method: "svd" or "als".
        ordering: the order in which the network sees its inputs, None for their own.
        notes: what else to know, one sentence each.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> W = np.kron(np.eye(4), np.arange(16.0).reshape(4, 4))
        >>> found = tn.decompose(W, tn.mpo((4, 4), (4, 4)), rank=1)
        >>> found.network.num_params, found.method, bool(found.error < 1e-7)
        (32, 'svd', True)
        >>> found.to_dense().shape
        (16, 16)
    """

    network: Network
    weights: Mapping[str, NDArray[Any]]
    error: float
    output_error: float | None
    bond_errors: Mapping[str, float]
    bound: float | None
    least: float | None
    random_error: float | None
    method: str
    ordering: Ordering | None = None
    notes: tuple[str, ...] = ()

    @property
    def compressible(self) -> bool:
        """Whether W is nearer to its network than a random matrix would be, by a tenth of the error at least."""
        error = self.error if self.output_error is None else self.output_error
        return self.random_error is None or error <= max(_LIKE_RANDOM * self.random_error, 1e-6)

    def to_dense(self) -> Array:
        """The new W, of shape (out_features, in_features), for inputs in their own order."""
        w = self.network.to_dense(self.weights)
        return w if self.ordering is None else w[:, self.ordering.inverse]

    def linear(self, bias: bool = True) -> Linear:
        """The layer that runs this network: its weights are these, and the bias is the old layer's."""
        from .._model.layers import Linear

        return Linear(self.network, bias=bias, ordering=self.ordering)

    def to_dict(self) -> dict[str, Any]:
        """The network and all figures as plain data, without the weights."""
        left_out = ("network", "weights", "ordering")
        figures = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        return {
            "schema": 1,
            "network": self.network.to_dict(),
            "params": self.network.num_params,
            "dense_params": self.network.dense_params,
            **figures,
            "bond_errors": dict(self.bond_errors),
            "compressible": self.compressible,
        }

    def __str__(self) -> str:
        net = self.network
        lines = [
            f"Decomposition of a {net.out_features} x {net.in_features} matrix onto {net.topology.name!r} "
            f"({self.method}): {net.num_params:,} of {net.dense_params:,} parameters "
            f"({net.dense_params / net.num_params:.3g}x fewer)",
            f"  error {self.error:.4g} of the norm of W" + self._range(),
        ]
        if self.output_error is not None:
            lines.append(f"  error {self.output_error:.4g} of the outputs on the calibration inputs")
        lines.append("  ranks   " + (" ".join(f"{b}={r}" for b, r in net.ranks.items()) or "none"))
        if self.bond_errors:
            lines.append("  lost at " + " ".join(f"{b} {e:.3g}" for b, e in self.bond_errors.items()))
        if self.random_error is not None:
            lines.append("  " + self._verdict())
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    __repr__ = __str__

    def _range(self) -> str:
        if self.bound is None or self.least is None or self.method != "svd" or self.error < _ROUNDING:
            return ""
        return f"; at these ranks no weights can be below {self.least:.4g}, these are at most {self.bound:.4g}"

    def _verdict(self) -> str:
        word = "compressible" if self.compressible else "NOT compressible at this budget"
        return f"{word}: a random matrix of this shape has error {self.random_error:.4g} at these ranks"


def decompose(
    W: ArrayLike,
    onto: Topology | Network,
    *,
    rank: int | None = None,
    params: int | None = None,
    error: float | None = None,
    method: str = "auto",
    inputs: ArrayLike | None = None,
    ordering: Ordering | str | Sequence[int] | None = None,
    seed: int = 0,
    dtype: str | None = None,
    memory: int | None = None,
    compare_random: bool = True,
    time_limit: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Decomposition:
    """A network of any topology that is near a given matrix.

    On a tree of cores (low rank, MPO, tree, Tucker, Kronecker, and BTT and Monarch block by block) by singular
    value decompositions, on any other graph by alternating least squares, and small ones then by steps of all cores at
    once.

    Args:
        W: of shape (out_features, in_features), real or complex, of any dtype. It is copied.
        onto: a Network, whose ranks are used; or a Topology, and exactly one of the next three.
        rank: of every bond, lowered to its largest useful value.
        params: parameters, never more. On a tree the ranks are chosen by error per parameter, elsewhere as by
            `Topology.with_budget`.
        error: largest relative error in the Frobenius norm, from 0 to below 1 (of the outputs where `inputs` are
            given). On a tree the ranks come from the spectra; elsewhere budgets are tried, a fit for each, until one
            keeps the error and that tried with about 5 % fewer parameters did not, up to twice the parameters of W.
            Least squares stop near 3e-8, so there a smaller error than 1e-7, 0 too, is taken for that.
        method: "auto", "svd" (trees only) or "als" (any graph; on a tree it goes on from "svd").
        inputs: a calibration batch of shape (rows, in_features), or its covariance E[x x^T] (square and symmetric):
            then the error of the outputs is minimised, not that of W.
        ordering: how the inputs are laid out before they are split into modes, as for `tn.Linear`.
        seed: of random starts.
        dtype: of the weights; by default "float32", or "complex64" for a complex W or complex inputs.
        memory: bytes that may be used; by default half of what the machine has.
        compare_random: also fit a random matrix, to say whether W is any better than noise (about twice the time).
        time_limit: seconds for the sweeps of least squares, after which the best weights so far are given, with a note;
            at least one sweep is made. Singular value decompositions are not stopped.
        progress: called with a line of text after each sweep, e.g. `print`.

    Raises:
        ShapeError: W does not have the shape of the topology, or holds no numbers.
        DataError: NaN or infinite entries, W zero everywhere, numbers out of range.
        TopologyError: not exactly one of rank=, params=, error=; an unknown method, or "svd" on a graph with loops.
        TN4NNError: a seed that is not a whole number.
        BudgetError: parameters that no ranks can meet, an error that was not reached, or too little memory.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> W = np.kron([[1.0, 2.0], [3.0, 4.0]], np.eye(3))
        >>> result = tn.decompose(W, tn.mpo((2, 3), (2, 3)), params=20)
        >>> result.network.ranks, result.error < 1e-6
        ({'a0': 1}, True)
        >>> np.allclose(result.network.to_dense(result.weights), W, atol=1e-5)
        True
    """
    watch = Watch(checked_time_limit(time_limit), progress)
    asked = Asked(onto, rank, params, error)
    fitter, order = fitter_of(W, onto, method, inputs, ordering, seed, memory, watch)
    return answered(fitter, order, asked, dtype, compare_random)


def fitter_of(
    W: ArrayLike,
    onto: Topology | Network,
    method: str,
    inputs: ArrayLike | None,
    ordering: Ordering | str | Sequence[int] | None,
    seed: int,
    memory: int | None = None,
    watch: Watch | None = None,
) -> tuple[Fitter, Ordering | None]:
    """What fits W at any size: the part of `decompose` that is the same for all, with its arguments."""
    topology = onto if isinstance(onto, Topology) else getattr(onto, "topology", None)
    if not isinstance(topology, Topology):
        raise TopologyError(f"decompose takes a Topology or a Network after W, received {type(onto).__name__}")
    order = ordering_of(ordering, topology.in_features)
    target = target_of(W, topology, inputs, order)
    tree = tree_of(topology)
    how = checked_method(method, tree, topology)
    return Fitter(target, tree, how, checked_seed(seed), checked_memory(memory), watch), order


def answered(
    fitter: Fitter, order: Ordering | None, asked: Asked, dtype: str | None, compare_random: bool
) -> Decomposition:
    """The decomposition at one size."""
    kind = _checked_dtype(dtype, fitter.target)
    network, weights, notes = asked.answer(fitter)
    weights = _narrowed(balance(network, weights), kind)
    null = _random_error(fitter, network) if compare_random and not fitter.watch.over else None
    return _finished(fitter, network, weights, order, notes, null)


def _checked_dtype(dtype: str | None, target: Target) -> str:
    kind = np.result_type(target.w, *([] if target.covariance is None else [target.covariance]))
    kinds = ("complex64", "complex128") if kind.kind == "c" else ("float32", "float64")
    if dtype is not None and dtype not in kinds:
        what = "complex" if kind.kind == "c" else "real"
        raise ShapeError(
            f"the weights of a {what} matrix are of dtype {' or '.join(map(repr, kinds))}, received dtype={dtype!r}"
        )
    return dtype or kinds[0]


def _narrowed(weights: Mapping[str, Array], kind: str) -> dict[str, Array]:
    """Weights in the dtype in which they are given back."""
    with np.errstate(over="ignore"):
        narrowed = {name: np.ascontiguousarray(a, dtype=kind) for name, a in weights.items()}
    for name, a in narrowed.items():
        if not np.isfinite(a).all() or (weights[name].any() and not a.any()):
            wide = "complex128" if kind.startswith("c") else "float64"
            raise DataError(
                f"core {name!r} of this W is out of the range of {kind}, with entries up to "
                f"{float(np.abs(weights[name]).max()):.3g}: scale W, or take dtype={wide!r}"
            )
    return narrowed


def _random_error(fitter: Fitter, network: Network) -> float:
    """The error of the same fit to independent normal entries."""
    target = fitter.target
    noise = rng_for(fitter.seed, "null").standard_normal(target.w.shape)
    null = Fitter(
        Target(target.topology, noise, target.covariance), fitter.tree, fitter.method, fitter.seed, fitter.memory
    )
    return null.error_of(network, null.fit(network, _NULL_SWEEPS))


def _finished(
    fitter: Fitter,
    network: Network,
    weights: dict[str, Array],
    ordering: Ordering | None,
    notes: tuple[str, ...],
    null: float | None,
) -> Decomposition:
    """The result, with the errors of the weights as they are given back."""
    wide = {name: a.astype(np.result_type(a.dtype, np.float64)) for name, a in weights.items()}
    fitted = network.to_dense(wide)
    lost = fitter.lost_at_edges(network)
    every = [error for _, error in lost]
    return Decomposition(
        network,
        weights,
        fitter.target.error(fitted),
        fitter.target.output_error(fitted),
        {bond: e for bonds, e in lost for bond in bonds},
        min(1.0, float(np.linalg.norm(every))) if every else None,
        max(every) if every else None,
        null,
        fitter.method,
        ordering,
        notes + fitter.notes,
    )


def mps(
    vector: ArrayLike,
    modes: Sequence[int],
    *,
    rank: int | None = None,
    params: int | None = None,
    error: float | None = None,
    dtype: str | None = None,
) -> Decomposition:
    """A vector as a matrix product state (tensor train): TT-SVD of Oseledets 2011.

    The network has one input mode for each site and one output of size 1, so `to_dense(weights)` has shape
    (1, len(vector)).

    Args:
        vector: real or complex, of as many entries as the product of the modes.
        modes: size of each site; index i = sum_l i_l prod_{m>l} n_m, as in reshape.
        rank: see `decompose`.
        params: see `decompose`.
        error: see `decompose`; ||v - v'|| <= error ||v||.
        dtype: see `decompose`.

    Raises:
        ShapeError: modes whose product is not the length of the vector.

    Examples:
        >>> from tn4nn import mps
        >>> import numpy as np
        >>> ghz = np.zeros(16)
        >>> ghz[[0, 15]] = 1
        >>> state = mps(ghz, (2, 2, 2, 2), error=0.0)
        >>> state.network.ranks
        {'a0': 2, 'a1': 2, 'a2': 2}
    """
    array = np.asarray(vector)
    if array.ndim != 1 or array.size != np.prod([int(m) for m in modes]):
        raise ShapeError(
            f"a vector of modes {tuple(modes)} has {int(np.prod(modes))} entries, received shape {array.shape}"
        )
    n = len(modes)
    cores = [
        " ".join([*([f"a{i - 1}"] if i else ["y0"]), f"x{i}", *([f"a{i}"] if i < n - 1 else [])]) for i in range(n)
    ]
    chain = topology_of(", ".join(cores), {f"x{i}": int(m) for i, m in enumerate(modes)}, {"y0": 1}, name="mps")
    if not chain.bonds:
        rank = params = error = None
    return decompose(array[None, :], chain, rank=rank, params=params, error=error, dtype=dtype, compare_random=False)
