"""Alternating least squares: the best core with all others held, one after another, on any graph.

For one core the error is quadratic: its legs that other tensors hold too (bonds, and input legs where inputs are
weighed) are the unknowns of normal equations N G = R, open legs on several cores make one system for each of
their values, and the other open legs are right-hand sides. N and R are contractions of the network with itself
and with W, along paths found once.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .._base.arrays import Array
from .._graph.contract import contract
from .._graph.network import Network
from .._graph.paths import EXHAUSTIVE, Legs, Path, find_paths, greedy_path, legs_along, path_macs
from .._graph.topology import modes_on_cores
from .._runtime.lowering import lower
from .._runtime.program import Ops, Program, run
from .target import Target

_STEPS = 8  # of conjugate gradients from the core before
_EXACTNESS = 2.0  # a system is solved directly where that costs at most so many times these steps
_QUICK = 4e6  # multiply-adds up to which a program is quicker than numpy.einsum, which is parsed at each call
_PULL = 1e-10  # towards the core before, of the mean eigenvalue of N: keeps singular systems quiet
ENOUGH = 1e-15  # squared error, relative: below it is rounding
_SETTLED = 1e-5  # relative change of the squared error in a sweep below which nothing is expected any more
_SWEEPS = (12, 1000)  # fewest and most
_WORK = 4e10  # multiply-adds that all sweeps together may take
_OPS = Ops(np.reshape, np.transpose, np.matmul, np.multiply, lambda a, axis, i: np.take(a, i, axis), np.concatenate)


def primed(leg: str) -> str:
    return leg + ":"


@dataclasses.dataclass(frozen=True)
class Contraction:
    """Tensors by name of their array, along a path, or by a program where that is quicker."""

    tensors: tuple[Legs, ...]
    arrays: tuple[str, ...]
    output: Legs
    path: Path
    program: Program | None

    def run(self, arrays: Mapping[str, Array]) -> Array:
        given = [arrays[name] for name in self.arrays]
        if self.program is None:
            return contract(self.tensors, given, self.output, self.path)
        return np.asarray(run(_OPS, self.program, given))


@dataclasses.dataclass(frozen=True)
class _Update:
    """How one core is found. `batch`, `unknown` and `free` are its legs; `normal` gives N, or where that is too
    `large`, N times the core; `macs` are the multiply-adds of it all."""

    core: str
    legs: Legs
    batch: Legs
    unknown: Legs
    free: Legs
    large: bool
    normal: Contraction
    right: Contraction
    macs: int


class Als:
    """One fit of a network to a target.

    Args:
        target: what is fitted; with a covariance, the error is that of the outputs.
        network: its ranks are kept.
    """

    def __init__(self, target: Target, network: Network) -> None:
        self.network = network
        t = network.topology
        self.weighed = frozenset(t.inputs) - set(t.kept) if target.covariance is not None else frozenset[str]()
        self.metric = tuple(leg for leg in t.inputs if leg in modes_on_cores(t)) if self.weighed else ()
        self.metric += tuple(primed(leg) for leg in self.metric if leg in self.weighed)
        self.fixed: dict[str, Array] = {}
        matrix = target.padded
        if self.weighed:
            covariance = target.ridged
            self.fixed[":metric"] = _metric(network, covariance, self.metric)
            self.scale = float(np.einsum("oi,oi->", matrix @ covariance, matrix.conj()).real)
            matrix = matrix @ covariance
        self.fixed[":target"] = target.tensor(matrix)
        if not self.weighed:
            self.scale = float(np.linalg.norm(self.fixed[":target"]) ** 2) or 1.0
        self.sizes = {**network.sizes, **{primed(leg): size for leg, size in network.sizes.items()}}
        self.updates = [self._update(i) for i in range(len(t.cores))]

    # -- what is contracted -----------------------------------------------------------------------------------

    def _update(self, position: int) -> _Update:
        cores, modes = self.network.topology.cores, self.network.topology.modes
        core, others = cores[position], [*cores[:position], *cores[position + 1 :]]
        around = {leg for other in others for leg in other.legs} | set(self.metric)
        unknown = tuple(leg for leg in core.legs if leg not in modes or leg in self.weighed)
        batch = tuple(leg for leg in core.legs if leg not in unknown and leg in around)
        free = tuple(leg for leg in core.legs if leg not in unknown and leg not in batch)
        names = [other.name for other in others]
        right = self.contraction(
            [*(other.legs for other in others), modes_on_cores(self.network.topology)],
            [*map(primed, names), ":target"],
            (*batch, *unknown, *free),
        )
        # The network beside its conjugate, without this core: N, or with it once: N times the core.
        tensors = [*(other.legs for other in others), *(self.bra(other.legs) for other in others)]
        arrays = [*names, *map(primed, names)]
        if self.weighed:
            tensors, arrays = [*tensors, self.metric], [*arrays, ":metric"]
        outer = (*batch, *map(primed, unknown))
        normal = self.contraction(tensors, arrays, (*outer, *unknown))
        times = self.contraction([core.legs, *tensors], [":unknown", *arrays], (*outer, *free))
        k, steps = self.size(unknown), _STEPS * self.macs_of(times)
        direct = self.macs_of(normal) + self.size(batch) * k * k * (k + self.size(free))
        large = direct > _EXACTNESS * steps
        macs = self.macs_of(right) + (steps if large else direct)
        return _Update(core.name, core.legs, batch, unknown, free, large, times if large else normal, right, macs)

    def bra(self, legs: Legs) -> Legs:
        """Legs of a conjugated core: open ones are summed with those of the core itself, unless inputs are weighed."""
        modes = self.network.topology.modes
        return tuple(leg if leg in modes and leg not in self.weighed else primed(leg) for leg in legs)

    def macs_of(self, job: Contraction) -> int:
        return path_macs(job.tensors, job.output, self.sizes, job.path) if job.tensors else 0

    def contraction(self, tensors: Sequence[Legs], arrays: Sequence[str], output: Legs) -> Contraction:
        path: Path = ()
        if len(tensors) > EXHAUSTIVE:
            path = greedy_path(tensors, output, self.sizes)
        elif tensors:
            path = find_paths(tensors, output, self.sizes)[0]
        held = Counter(leg for legs in tensors for leg in legs)
        program = None
        # Programs know no leg that stands on one tensor alone and is summed, nor one that stands on none.
        plain = set(output) <= set(held) and all(n > 1 or leg in output for leg, n in held.items())
        if tensors and plain and path_macs(tensors, output, self.sizes, path) <= _QUICK:
            shape = tuple(self.sizes[leg] for leg in output)
            program = lower(tensors, output, self.sizes, path, names=arrays, output_shape=shape)
        return Contraction(tuple(tensors), tuple(arrays), output, path, program)

    def size(self, legs: Iterable[str]) -> int:
        return math.prod(self.sizes[leg] for leg in legs)

    @property
    def bytes(self) -> int:
        """An estimate of the most memory that a sweep takes."""
        most = 0
        for update in self.updates:
            for job in (update.normal, update.right):
                made = legs_along(job.tensors, job.output, job.path)
                most = max([most, *(3 * self.size(legs) for legs in made)])
        item = self.fixed[":target"].itemsize
        return item * (most + sum(array.size for array in self.fixed.values()))

    @property
    def macs(self) -> int:
        """Multiply-adds of one sweep, the solving of the systems included."""
        return sum(update.macs for update in self.updates)

    # -- fitting ----------------------------------------------------------------------------------------------

    def arrays(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """All that contractions read: what is fixed, the cores and, primed, their conjugates."""
        conjugates = {primed(name): core.conj() for name, core in weights.items()}
        return {**self.fixed, **weights, **conjugates}

    def sweep(self, weights: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        """New cores, and the squared error of what is fitted, relative to the squared norm."""
        arrays = self.arrays(weights)
        lost = 1.0
        for update in self.updates:
            found, lost = self._solve(update, arrays)
            arrays[update.core], arrays[primed(update.core)] = found, found.conj()
        return _balanced({update.core: arrays[update.core] for update in self.updates}), lost

    def _solve(self, update: _Update, arrays: Mapping[str, Array]) -> tuple[Array, float]:
        order = (*update.batch, *update.unknown, *update.free)
        have = [update.legs.index(leg) for leg in order]
        before = arrays[update.core].transpose(have)
        right = update.right.run(arrays).reshape(before.shape)
        solve = self._by_gradients if update.large else self._directly
        found, times = solve(update, arrays, before, right)
        lost = 1 + float(np.vdot(found, times - 2 * right).real) / self.scale
        return found.transpose(np.argsort(have)), max(lost, 0.0)

    def _directly(
        self, update: _Update, arrays: Mapping[str, Array], before: Array, right: Array
    ) -> tuple[Array, Array]:
        """The core, and N times it."""
        b, k, f = (self.size(legs) for legs in (update.batch, update.unknown, update.free))
        # One core alone has nothing around it: it is the target itself.
        normal = update.normal.run(arrays).reshape(b, k, k) if update.normal.tensors else np.ones((b, k, k))
        pull = _PULL * np.trace(normal, axis1=1, axis2=2).real.mean() / k + np.finfo(float).tiny
        wanted = (right + pull * before).reshape(b, k, f)
        found = np.linalg.solve(normal + pull * np.eye(k), wanted)
        return found.reshape(before.shape), (normal @ found).reshape(before.shape)

    def _by_gradients(
        self, update: _Update, arrays: Mapping[str, Array], before: Array, right: Array
    ) -> tuple[Array, Array]:
        """Some steps of conjugate gradients, which never form N; the error falls with each."""
        order = (*update.batch, *update.unknown, *update.free)
        back = [order.index(leg) for leg in update.legs]

        def normal(core: Array) -> Array:
            return update.normal.run({**arrays, ":unknown": core.transpose(back)}).reshape(before.shape)

        found, times = before, normal(before)
        rest = right - times
        way, square = rest, float(np.vdot(rest, rest).real)
        for _ in range(_STEPS):
            ahead = normal(way)
            curve = float(np.vdot(way, ahead).real)
            if curve <= 0 or square <= 1e-28 * float(np.vdot(right, right).real):
                break
            step = square / curve
            found, times, rest = found + step * way, times + step * ahead, rest - step * ahead
            square, last = float(np.vdot(rest, rest).real), square
            way = rest + square / last * way
        return found, times

    def run(
        self, starts: Sequence[Mapping[str, Array]], sweeps: int | None = None, enough: float = ENOUGH
    ) -> dict[str, Array]:
        """Fits from the best of several starts: each gets some sweeps, and the best of them goes on, until the squared
        error is below `enough`."""
        most = int(min(_SWEEPS[1], max(_SWEEPS[0], _WORK // max(1, self.macs)))) if sweeps is None else sweeps
        tried = [self._go_on(self._sized(start), _SWEEPS[0] // 2, 0.0, enough) for start in starts]
        weights, lost = min(tried, key=lambda made: made[1])
        return self._go_on(weights, most, lost, enough)[0]

    def _sized(self, start: Mapping[str, Array]) -> dict[str, Array]:
        """A start with the norm of what is fitted, in cores of one norm each: what systems leave undetermined stays as
        it was, and in a start far larger than W that would be far larger than W."""
        update, weights = self.updates[0], _balanced(start)
        if not update.normal.tensors:
            return weights
        arrays = self.arrays(weights)
        order = (*update.batch, *update.unknown, *update.free)
        core = weights[update.core].transpose([update.legs.index(leg) for leg in order])
        square = float(np.vdot(core, self._times(update, arrays, core)).real)
        factor = (self.scale / square) ** (0.5 / len(weights)) if square > 0 else 1.0
        return {name: array * factor for name, array in weights.items()}

    def _times(self, update: _Update, arrays: Mapping[str, Array], core: Array) -> Array:
        """N times a core, whose legs stand in the order of an update."""
        order = (*update.batch, *update.unknown, *update.free)
        if update.large:
            back = [order.index(leg) for leg in update.legs]
            return update.normal.run({**arrays, ":unknown": core.transpose(back)}).reshape(core.shape)
        b, k, f = (self.size(legs) for legs in (update.batch, update.unknown, update.free))
        return (update.normal.run(arrays).reshape(b, k, k) @ core.reshape(b, k, f)).reshape(core.shape)

    def _go_on(
        self, weights: dict[str, Array], sweeps: int, before: float, enough: float
    ) -> tuple[dict[str, Array], float]:
        lost = before
        for _ in range(sweeps):
            weights, lost = self.sweep(weights)
            if (before - lost <= _SETTLED * lost and before >= lost > 0) or lost < enough:
                break
            before = lost
        return weights, lost


def _balanced(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Cores of one norm each, their product unchanged."""
    norms = {name: float(np.linalg.norm(core)) for name, core in weights.items()}
    if min(norms.values()) == 0:
        return dict(weights)
    mean = math.exp(sum(map(math.log, norms.values())) / len(norms))
    return {name: core * (mean / norms[name]) for name, core in weights.items()}


def _metric(network: Network, covariance: Array, legs: Legs) -> Array:
    """The covariance over input legs and their primes; of kept legs the diagonal, or its mean."""
    ins = network.topology.inputs
    number = {leg: i for i, leg in enumerate(ins)} | {primed(leg): len(ins) + i for i, leg in enumerate(ins)}
    second = [number[leg if leg in network.topology.kept else primed(leg)] for leg in ins]
    array = covariance.reshape([*ins.values(), *ins.values()])
    found = np.einsum(array, [*(number[leg] for leg in ins), *second], [number[leg] for leg in legs])
    return np.asarray(found / math.prod(size for leg, size in ins.items() if leg not in legs))
