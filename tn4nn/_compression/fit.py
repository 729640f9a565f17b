"""Fits a network to a target: which ranks, and which weights at them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from .._base.arrays import Array
from .._base.checks import nearest, only_one
from .._base.errors import BudgetError, TN4NNError, TopologyError
from .._base.memory import check_memory, usable_memory
from .._base.seeds import rng_for
from .._graph.budget import checked_budget
from .._graph.network import Network
from .._graph.rank_problem import rank_caps
from .._graph.topology import Core, Topology
from .._graph.tree import Tree, tree_of
from .als import Als, Watch
from .gauss_newton import refined
from .svd import checked_error, checked_rank
from .target import Target
from .tree_svd import Tails, energies_of, first_svd, full_ranks, grown, shrunk, sweep

METHODS = ("auto", "svd", "als")
_REMEMBERED = 8  # covariances whose eigenvectors are stored
_RANDOM_STARTS = 2
_COPIES = 6  # of W that a sweep has at once, at the most
_EXACT = 1e-7  # least squares stop at about a third of it
_NEAR = 0.05  # of the parameters: as near as the smallest network for an error is looked for
_NOISE = 0.1  # beside a tree inside a larger graph, of its entries


def checked_method(method: str, tree: Tree | None, topology: Topology) -> str:
    if method not in METHODS:
        raise TopologyError(f"unknown method {method!r}." + nearest(str(method), METHODS))
    if method == "svd" and tree is None:
        raise TopologyError(
            f"method='svd' needs a tree of cores, and {topology.name!r} has loops or hyperedges: use 'auto' or 'als'"
        )
    return method


def checked_memory(memory: int | None) -> int:
    return usable_memory() if memory is None else checked_budget(memory, "bytes of memory")


def checked_time_limit(seconds: object) -> float | None:
    """Seconds above zero, or None for no limit."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise TN4NNError(f"time_limit is a number of seconds above zero, or None for none; received {seconds!r}")
    return float(seconds)


class Fits(Protocol):
    """What the choice of ranks asks of: weights at given ranks, and what they lose."""

    @property
    def tree(self) -> Tree | None:
        """The tree of the topology, where it is one."""
        ...

    @property
    def tails(self) -> Tails:
        """What is lost at each edge of the tree, by rank."""
        ...

    def fit(self, network: Network) -> dict[str, Array]:
        """Weights at the ranks of a network."""
        ...

    def swept_error(self, network: Network) -> float:
        """A figure that is the smaller the better the ranks are; for trees."""
        ...

    def error_of(self, network: Network, weights: Mapping[str, Array]) -> float:
        """The relative error of what `fit` gave."""
        ...


_SPECTRA: dict[bytes, tuple[Array, Array]] = {}  # those of the last few: the layers of one input share it


def _eigen(covariance: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors."""
    key = hashlib.sha256(np.ascontiguousarray(covariance).data).digest()
    if key not in _SPECTRA:
        while len(_SPECTRA) >= _REMEMBERED:
            del _SPECTRA[next(iter(_SPECTRA))]
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, np.finfo(float).eps * values[-1])  # the ridge may be less than rounding
        _SPECTRA[key] = values, vectors
    return _SPECTRA[key]


class Fitter:
    """Weights for given ranks: by the sweep of a tree, by least squares, or by one after the other."""

    def __init__(
        self, target: Target, tree: Tree | None, method: str, seed: int, memory: int, watch: Watch | None = None
    ) -> None:
        self.target, self.seed, self.memory = target, seed, memory
        self.watch = watch or Watch()
        self.tree: Tree | None = tree
        self.require(self.bytes)
        weighed = target.covariance is not None
        self.corner = _corner(target.topology) if weighed and tree is not None and method != "als" else None
        exact = tree is not None and (not weighed or self.corner is not None or method == "svd")
        self.method = "als" if method == "als" or not exact else "svd"
        self.whitener: Array | None = None
        self.tensor = self._seen = target.tensor(target.padded)
        if weighed and tree is not None:
            self._whiten()
        self._tails: Tails | None = None

    def _whiten(self) -> None:
        """Weighs W by the inputs: where one core holds them all, that is what is fitted; elsewhere ranks are chosen on
        it, with the symmetric root of the covariance, which mixes inputs as little as can be."""
        values, vectors = _eigen(self.target.ridged)
        root = vectors * np.sqrt(values)
        if self.corner is None:
            self._seen = self.target.tensor(self.target.padded @ root @ vectors.conj().T)
            return
        self.tensor = self._seen = self.target.tensor(self.target.padded @ root)
        self.whitener = (vectors / np.sqrt(values)).conj().T

    @property
    def tails(self) -> Tails:
        """The spectra at every edge of the tree of what ranks are chosen on."""
        assert self.tree is not None
        if self._tails is None:
            first = self._first[1] if self.tree.edges else None
            self._tails = Tails(self.tree, energies_of(self.tree, self._seen, first))
        return self._tails

    @functools.cached_property
    def _first(self) -> tuple[Array, Array]:
        """The decomposition that the spectra and all sweeps start with: on a pair of cores it is all of the work."""
        assert self.tree is not None
        return first_svd(self.tree, self._seen)

    def _swept(self, tensor: Array, network: Network) -> dict[str, Array]:
        assert self.tree is not None
        first = self._first[0] if self.tree.edges and tensor is self._seen else None
        return sweep(self.tree, tensor, network.ranks, first)

    @property
    def bytes(self) -> int:
        """About what it occupies with all of its decompositions."""
        return _COPIES * self.target.w.itemsize * math.prod(self.target.topology.modes.values())

    def require(self, need: int) -> None:
        """BudgetError where `need` bytes are more than may be used."""
        what = f"decomposing onto {self.target.topology.name!r}"
        check_memory(need, what, "ask for smaller ranks, split W into blocks, or raise memory=", self.memory)

    def fit(self, network: Network, sweeps: int | None = None) -> dict[str, Array]:
        """Weights at the ranks of a network."""
        swept = None if self.tree is None else self._swept(self.tensor, network)
        if self.method == "svd":
            assert swept is not None
            return swept if self.whitener is None else _unwhitened(network, swept, self.corner, self.whitener)
        als = Als(self.target, network, self.watch)
        self.require(als.bytes)
        starts = list(self._starts(network)) if swept is None else [swept]
        if swept is None and self.target.covariance is not None:  # what fits W is a good start, and cheap to find
            starts = [Als(dataclasses.replace(self.target, covariance=None), network, self.watch).run(starts, sweeps)]
        found = als.run(starts, sweeps)
        return found if sweeps is not None or self.watch.over else refined(als, found, self.memory)

    def _starts(self, network: Network) -> Iterator[dict[str, Array]]:
        within = _tree_within(network)
        if within is not None:
            ranks = {bond: network.ranks[bond] for bond in within.topology.bonds}
            yield _embedded(network, within.topology, sweep(within, self.tensor, ranks))
        for i in range(_RANDOM_STARTS):
            cores = network.init(self.seed + i)
            kind = self.tensor.dtype
            yield {name: core.astype(kind) for name, core in cores.items()}

    def swept_error(self, network: Network) -> float:
        """The error of the sweep of a tree at these ranks, before any least squares."""
        assert self.tree is not None
        swept = self._swept(self._seen, network)
        root = self.tree.topology.cores[self.tree.root].name
        return -float(np.linalg.norm(swept[root]))  # all others are isometries: its norm is that of W'

    def lost_at_edges(self, network: Network) -> list[tuple[tuple[str, ...], float]]:
        """The bonds of each edge of the tree, and what W loses there alone, relative; nothing where there is no tree,
        or where the error of the outputs is minimised."""
        if self.tree is None or self.target.covariance is not None:
            return []
        whole = float(np.linalg.norm(self.target.w)) ** 2
        outside = max(0.0, whole - float(np.linalg.norm(self.tensor)) ** 2)  # outside of the blocks of a batch leg
        found = lost_at_edges(self.tree, self.tails, network, whole)
        return [*found, ((), math.sqrt(outside / whole))] if outside > 1e-12 * whole else found

    @property
    def notes(self) -> tuple[str, ...]:
        """What else there is to say of the fit."""
        t = self.target.topology
        padded = f"W is filled up with zeros from {t.out_features} x {t.in_features} to the modes"
        stopped = f"the time limit of {self.watch.time_limit} s stopped the fit after {self.watch.sweeps} sweeps"
        said = ((padded, t.is_padded), (stopped, self.watch.stopped))
        return tuple(text for text, holds in said if holds)

    def error_of(self, network: Network, weights: Mapping[str, Array]) -> float:
        """What is minimised: the error of the outputs where inputs are given, else of W."""
        fitted = network.to_dense(weights)
        found = self.target.output_error(fitted)
        return self.target.error(fitted) if found is None else found


def lost_at_edges(tree: Tree, dropped: Tails, network: Network, whole: float) -> list[tuple[tuple[str, ...], float]]:
    """The bonds of each edge, and the root of the share of `whole` (a squared norm) that its rank drops."""
    return [
        (edge.bonds, math.sqrt(max(0.0, dropped.at(i, network.ranks)) / whole)) for i, edge in enumerate(tree.edges)
    ]


def _corner(topology: Topology) -> Core | None:
    """The one core that holds all input legs, where there is one: there whitening is exact."""
    holders = topology.holders
    cores = {i for leg in topology.inputs for i in holders[leg]}
    if topology.kept or len(cores) != 1 or any(len(holders[leg]) != 1 for leg in topology.inputs):
        return None
    return topology.cores[cores.pop()]


def _unwhitened(network: Network, weights: dict[str, Array], core: Core | None, whitener: Array) -> dict[str, Array]:
    """The weights with the whitening of the inputs undone in the one core that holds them."""
    assert core is not None
    ins = tuple(network.topology.inputs)
    rest = tuple(leg for leg in core.legs if leg not in ins)
    have = [core.legs.index(leg) for leg in (*rest, *ins)]
    moved = weights[core.name].transpose(have)
    flat = moved.reshape(-1, len(whitener)) @ whitener
    return {**weights, core.name: flat.reshape(moved.shape).transpose(np.argsort(have))}


# -- starts from a tree inside the graph ------------------------------------------------------------------------


def _tree_within(network: Network) -> Tree | None:
    """A tree that is left when bonds are taken out of a graph, the smallest first, or None where there is none."""
    t = network.topology
    holders = t.holders
    if any(len(holders[bond]) != 2 for bond in t.bonds):
        return None
    part = list(range(len(t.cores)))
    branches: set[str] = set()
    for bond in sorted(t.bonds, key=lambda b: -network.ranks[b]):
        a, b = (part[i] for i in holders[bond])
        if a != b:
            branches.add(bond)
            part = [a if p == b else p for p in part]
    legs = [tuple(leg for leg in core.legs if leg in t.modes or leg in branches) for core in t.cores]
    if not all(legs):
        return None
    cores = tuple(Core(core.name, left) for core, left in zip(t.cores, legs, strict=True))
    return tree_of(dataclasses.replace(t, cores=cores))


def _embedded(network: Network, within: Topology, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Cores of a tree inside the larger cores of the graph: at the first value of every other bond, beside noise."""
    cores = {}
    for core, small in zip(network.topology.cores, within.cores, strict=True):
        part = weights[core.name]
        noise = rng_for(0, "embed", core.name).standard_normal(network.shapes[core.name])
        array = (noise * (_NOISE * np.abs(part).std())).astype(part.dtype)
        array[tuple(slice(None) if leg in small.legs else 0 for leg in core.legs)] = part
        cores[core.name] = array
    return cores


# -- which ranks ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the caller wants: a Network as it is, or a Topology and a rank, a budget or an error."""

    onto: Topology | Network
    rank: int | None
    params: int | None
    error: float | None

    def __post_init__(self) -> None:
        given = {"rank": self.rank, "params": self.params, "error": self.error}
        asked = [name for name, value in given.items() if value is not None]
        if isinstance(self.onto, Network):
            if asked:
                raise TopologyError(f"a Network has its ranks: leave {asked[0]}= away, or give its topology")
        elif asked or self.onto.bonds:
            only_one(given, "decompose")

    def answer(self, fitter: Fits) -> tuple[Network, dict[str, Array], tuple[str, ...]]:
        """The network, its weights, and notes on the choice."""
        if isinstance(self.onto, Network):
            return self.onto, fitter.fit(self.onto), ()
        if self.error is not None:
            network, weights = _within_error(fitter, self.onto, checked_error(self.error))
            return network, weights, ()
        if self.params is not None:
            network = _within_budget(fitter, self.onto, self.params)
            return network, fitter.fit(network), ()
        rank = 1 if self.rank is None else checked_rank(self.rank, 2**31, "the size of a bond")
        network = self.onto.with_rank(rank, clip=True)
        lowered = [f"{bond}={size}" for bond, size in network.ranks.items() if size < rank]
        note = f"rank {rank} was lowered to the largest useful one at {', '.join(lowered)}"
        return network, fitter.fit(network), (note,) if lowered else ()


def _within_budget(fitter: Fits, topology: Topology, params: int) -> Network:
    """The ranks of a tree that lose least, found by error per parameter and compared with even ones."""
    even = topology.with_budget(params=params)
    if fitter.tree is None or not topology.bonds:
        return even
    budget = checked_budget(params, "params")
    most = full_ranks(fitter.tree, fitter.tails, rank_caps(topology))
    found = [search(topology, fitter.tails, most, budget, 0.0) for search in (grown, shrunk)]
    networks = [*(Network(topology, ranks) for ranks in found), even]
    return min(dict.fromkeys(networks), key=lambda net: (fitter.swept_error(net), net.num_params))


def _within_error(fitter: Fits, topology: Topology, error: float) -> tuple[Network, dict[str, Array]]:
    """The smallest of the networks tried whose error is at most `error`."""
    tried: list[tuple[float, int]] = []

    def accepted(network: Network) -> dict[str, Array] | None:
        weights = fitter.fit(network)
        tried.append((fitter.error_of(network, weights), network.num_params))
        return weights if tried[-1][0] <= (error + 1e-12 if fitter.tree is not None else max(error, _EXACT)) else None

    if fitter.tree is not None or not topology.bonds:
        for network in _by_spectra(fitter, topology, error):
            weights = accepted(network)
            if weights is not None:
                return network, weights
    else:
        found = _by_halves(topology, accepted)
        if found is not None:
            return found
    best, params = min(tried)
    raise BudgetError(
        f"an error of {error:g} was not reached on {topology.name!r}: the best was {best:.4g}, with {params:,} "
        "parameters. Allow that error, or take another topology",
        params,
    )


def _by_spectra(fitter: Fits, topology: Topology, error: float) -> Iterator[Network]:
    """On a tree: what the spectra say, then the full ranks."""
    if not topology.bonds:
        yield topology.with_rank(1)
        return
    assert fitter.tree is not None
    allowed = error**2 * fitter.tails.total
    most = full_ranks(fitter.tree, fitter.tails, rank_caps(topology))
    found = [search(topology, fitter.tails, most, 2**62, allowed) for search in (grown, shrunk)]
    yield min((Network(topology, ranks) for ranks in found), key=lambda net: net.num_params)
    yield Network(topology, most)


def _by_halves(
    topology: Topology, accepted: Callable[[Network], dict[str, Array] | None]
) -> tuple[Network, dict[str, Array]] | None:
    """On other graphs: budgets are doubled until a network is accepted, then bisected. None where one that has more
    than twice the parameters of W is not accepted."""
    largest = Network(topology, rank_caps(topology))
    enough = 2 * topology.in_features * topology.out_features

    def within(budget: int) -> Network:
        return largest if budget >= largest.num_params else topology.with_budget(params=budget)

    network = topology.with_rank(1)
    weights, below = accepted(network), network.num_params
    budget = below
    while weights is None:
        if network == largest or budget >= enough:
            return None
        below, budget = budget, 2 * budget
        larger = within(budget)
        if larger != network:
            network, weights = larger, accepted(larger)
    while network.num_params - below > max(1, _NEAR * network.num_params):
        middle = (below + network.num_params) // 2
        smaller = within(middle)
        fitted = accepted(smaller) if smaller.num_params > below else None
        if fitted is None:
            below = middle
        else:
            network, weights = smaller, fitted
    return network, weights
