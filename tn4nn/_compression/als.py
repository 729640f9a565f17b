"""Alternating least squares: the best core with all others fixed, one after another, on any graph.

For one core the error is quadratic: its legs that other tensors hold too (bonds, and input legs where inputs are
weighed) are the unknowns of normal equations N G = R, open legs on several cores make one system for each of
their values, and the other open legs are right-hand sides. N and R are contractions of the network with itself
and with W, along paths found once.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from .._base.arrays import Array
from .._graph.contract import contract
from .._graph.network import Network
from .._graph.paths import EXHAUSTIVE, Legs, Path, find_paths, greedy_path, legs_along, path_macs
from .._graph.topology import Core, modes_on_cores
from .._runtime.lowering import lower
from .._runtime.program import Ops, Program, run
from .target import Target

_STEPS = 8  # of conjugate gradients from the core before
_EXACTNESS = 2.0  # a system is solved directly where that costs at most so many times these steps
_QUICK = 4e6  # multiply-adds up to which a program is quicker than numpy.einsum, which is parsed at each call
_PULL = 1e-10  # towards the core before, of the mean eigenvalue of N: keeps singular systems quiet
ENOUGH = 1e-15  # squared error, relative: below it is rounding
_SETTLED = 1e-5  # relative change of the squared error in a sweep below which nothing is expected any more
_CALIBRATED = 1e-4  # the same of outputs on calibration inputs, which are a sample: less than it tells apart
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
    """How one core is found: for each value of its batch legs the system  normal @ core = right.

    With B values of all batch legs together, K of all unknown ones and F of all free ones, `right` has shape (B, K, F)
    and `normal` (B, K, K). Where making the normal matrices is too `large` a task, `normal` gives their product with
    the core instead, of shape (B, K, F).

    Attributes:
        core: its name.
        legs: in the order of its axes.
        batch: open legs that other tensors hold too.
        unknown: legs that are summed with other tensors.
        free: the other open legs.
        large: whether the system is solved by conjugate gradients.
        normal: the network beside its conjugate, without this core (or with it once).
        right: W beside the conjugate of the network, without this core.
        macs: multiply-adds of one update.
    """

    core: str
    legs: Legs
    batch: Legs
    unknown: Legs
    free: Legs
    large: bool
    normal: Contraction
    right: Contraction
    macs: int

    @property
    def order(self) -> Legs:
        """The legs in the order of the system."""
        return (*self.batch, *self.unknown, *self.free)

    def to_system(self, core: Array) -> Array:
        """A core with its axes in the order of the system."""
        return core.transpose([self.legs.index(leg) for leg in self.order])

    def from_system(self, core: Array) -> Array:
        """The reverse."""
        return core.transpose([self.order.index(leg) for leg in self.legs])


class Watch:
    """The clock of a fit, and who hears of it.

    Args:
        time_limit: seconds from now; None for no limit.
        progress: called with a line of text after each sweep.

    Attributes:
        sweeps: that were made.
        stopped: whether the limit ended a fit that would have gone on.
    """

    def __init__(self, time_limit: float | None = None, progress: Callable[[str], None] | None = None) -> None:
        self.time_limit, self.progress = time_limit, progress
        self.start, self.sweeps, self.stopped = time.monotonic(), 0, False

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.time_limit is not None and time.monotonic() - self.start >= self.time_limit

    def swept(self, lost: float) -> None:
        """One more sweep, at whose end this squared error is left."""
        self.sweeps += 1
        if self.progress is not None:
            self.progress(f"sweep {self.sweeps}: error {math.sqrt(lost):.4g}")


class Als:
    """One fit of a network to a target.

    Args:
        target: what is fitted; with a covariance, the error is that of the outputs.
        network: its ranks do not change.
        watch: ends the sweeps when the time is up.
    """

    def __init__(self, target: Target, network: Network, watch: Watch | None = None) -> None:
        self.network, self.watch = network, watch or Watch()
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
        cores = self.network.topology.cores
        core, others = cores[position], [*cores[:position], *cores[position + 1 :]]
        batch, unknown, free = self._roles(core, others)
        right = self._target_around(others, (*batch, *unknown, *free))  # (B, K, F)
        tensors, arrays = self.beside(others, others)
        outer = (*batch, *map(primed, unknown))
        normal = self.contraction(tensors, arrays, (*outer, *unknown))  # (B, K, K)
        product = self.contraction([core.legs, *tensors], [":unknown", *arrays], (*outer, *free))  # (B, K, F)
        b, k, f = map(self.size, (batch, unknown, free))
        by_solving = self.macs_of(normal) + b * k * k * (k + f)
        by_gradients = _STEPS * self.macs_of(product)
        large = by_solving > _EXACTNESS * by_gradients
        macs = self.macs_of(right) + (by_gradients if large else by_solving)
        return _Update(core.name, core.legs, batch, unknown, free, large, product if large else normal, right, macs)

    def _roles(self, core: Core, others: Sequence[Core]) -> tuple[Legs, Legs, Legs]:
        """The batch, unknown and free legs of a core."""
        modes = self.network.topology.modes
        around = {leg for other in others for leg in other.legs} | set(self.metric)
        unknown = tuple(leg for leg in core.legs if leg not in modes or leg in self.weighed)
        batch = tuple(leg for leg in core.legs if leg not in unknown and leg in around)
        free = tuple(leg for leg in core.legs if leg not in unknown and leg not in batch)
        return batch, unknown, free

    def _target_around(self, others: Sequence[Core], output: Legs) -> Contraction:
        """W beside the conjugates of the other cores."""
        tensors = [*(other.legs for other in others), modes_on_cores(self.network.topology)]
        return self.contraction(tensors, [*(primed(other.name) for other in others), ":target"], output)

    def beside(self, kets: Sequence[Core], bras: Sequence[Core]) -> tuple[list[Legs], list[str]]:
        """Cores beside conjugates of cores, with the covariance of the inputs between them where there is one: the legs
        and the names of all arrays."""
        tensors = [*(core.legs for core in kets), *(self.bra(core.legs) for core in bras)]
        arrays = [*(core.name for core in kets), *(primed(core.name) for core in bras)]
        if self.weighed:
            return [*tensors, self.metric], [*arrays, ":metric"]
        return tensors, arrays

    def bra(self, legs: Legs) -> Legs:
        """Legs of a conjugated core: open ones are summed with those of the core itself, unless inputs are weighed."""
        modes = self.network.topology.modes
        return tuple(leg if leg in modes and leg not in self.weighed else primed(leg) for leg in legs)

    def macs_of(self, job: Contraction) -> int:
        return path_macs(job.tensors, job.output, self.sizes, job.path) if job.tensors else 0

    def contraction(self, tensors: Sequence[Legs], arrays: Sequence[str], output: Legs) -> Contraction:
        path = _path(tensors, output, self.sizes)
        if ":metric" in arrays:
            staged = [_staged(tensors, output, self.sizes, groups) for groups in self._stages(tensors, arrays)]
            path = min([path, *staged], key=lambda one: path_macs(tensors, output, self.sizes, one))
        counts = Counter(leg for legs in tensors for leg in legs)
        program = None
        # Programs cannot sum a leg of one tensor alone, nor make a leg that is on no tensor.
        plain = set(output) <= set(counts) and all(n > 1 or leg in output for leg, n in counts.items())
        if tensors and plain and path_macs(tensors, output, self.sizes, path) <= _QUICK:
            shape = tuple(self.sizes[leg] for leg in output)
            program = lower(tensors, output, self.sizes, path, names=arrays, output_shape=shape)
        return Contraction(tuple(tensors), tuple(arrays), output, path, program)

    def _stages(self, tensors: Sequence[Legs], arrays: Sequence[str]) -> Iterator[list[list[int]]]:
        """Groups of tensors that are worth contracting first: cores to a matrix before it meets the covariance, or
        those alone that hold inputs. Of a dozen tensors, a search pair by pair seldom finds these."""
        bras = [i for i, name in enumerate(arrays) if name.endswith(":")]
        kets = [i for i, name in enumerate(arrays) if not name.endswith(":") and name != ":metric"]
        yield [kets]
        yield [kets, bras]
        metric = set(self.metric)
        yield [[i for i in side if metric & set(tensors[i])] for side in (kets, bras)]

    def size(self, legs: Iterable[str]) -> int:
        return math.prod(self.sizes[leg] for leg in legs)

    @property
    def bytes(self) -> int:
        """An estimate of the most memory that a sweep takes."""
        most = 0
        for update in self.updates:
            for job in (update.normal, update.right):
                intermediates = legs_along(job.tensors, job.output, job.path)
                most = max([most, *(3 * self.size(legs) for legs in intermediates)])
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
        before = update.to_system(arrays[update.core])
        right = update.right.run(arrays).reshape(before.shape)
        solve = self._by_gradients if update.large else self._directly
        core, product = solve(update, arrays, before, right)
        lost = 1 + float(np.vdot(core, product - 2 * right).real) / self.scale
        return update.from_system(core), max(lost, 0.0)

    def _directly(
        self, update: _Update, arrays: Mapping[str, Array], before: Array, right: Array
    ) -> tuple[Array, Array]:
        """The core, and N times it."""
        b, k, f = (self.size(legs) for legs in (update.batch, update.unknown, update.free))
        # One core alone has nothing around it: it is the target itself.
        normal = update.normal.run(arrays).reshape(b, k, k) if update.normal.tensors else np.ones((b, k, k))
        pull = _PULL * np.trace(normal, axis1=1, axis2=2).real.mean() / k + np.finfo(float).tiny
        pulled = (right + pull * before).reshape(b, k, f)
        core = np.linalg.solve(normal + pull * np.eye(k), pulled)
        return core.reshape(before.shape), (normal @ core).reshape(before.shape)

    def _by_gradients(
        self, update: _Update, arrays: Mapping[str, Array], before: Array, right: Array
    ) -> tuple[Array, Array]:
        """The core after some steps of conjugate gradients, and N times it. They never form N, and the error falls with
        each step."""
        core, product = before, self._times(update, arrays, before)
        residual = right - product
        direction, square = residual, float(np.vdot(residual, residual).real)
        for _ in range(_STEPS):
            ahead = self._times(update, arrays, direction)
            curvature = float(np.vdot(direction, ahead).real)
            if curvature <= 0 or square <= 1e-28 * float(np.vdot(right, right).real):
                break
            step = square / curvature
            core, product, residual = core + step * direction, product + step * ahead, residual - step * ahead
            square, last = float(np.vdot(residual, residual).real), square
            direction = residual + square / last * direction
        return core, product

    def _times(self, update: _Update, arrays: Mapping[str, Array], core: Array) -> Array:
        """N times a core, whose axes are in the order of the system."""
        if update.large:
            return update.normal.run({**arrays, ":unknown": update.from_system(core)}).reshape(core.shape)
        b, k, f = (self.size(legs) for legs in (update.batch, update.unknown, update.free))
        return (update.normal.run(arrays).reshape(b, k, k) @ core.reshape(b, k, f)).reshape(core.shape)

    def run(
        self, starts: Sequence[Mapping[str, Array]], sweeps: int | None = None, enough: float = ENOUGH
    ) -> dict[str, Array]:
        """Fits from the best of several starts: each gets some sweeps, and the best of them goes on, until the squared
        error is below `enough`."""
        most = int(min(_SWEEPS[1], max(_SWEEPS[0], _WORK // max(1, self.macs)))) if sweeps is None else sweeps
        tried: list[tuple[dict[str, Array], float]] = []
        for start in starts:
            if tried and self.watch.over:
                self.watch.stopped = True
                break
            tried.append(self._go_on(self._sized(start), _SWEEPS[0] // 2, 0.0, enough))
        weights, lost = min(tried, key=lambda fit: fit[1])
        return self._go_on(weights, most, lost, enough)[0]

    def _sized(self, start: Mapping[str, Array]) -> dict[str, Array]:
        """A start with the norm of what is fitted, in cores of one norm each: what systems leave undetermined stays as
        it was, and in a start far larger than W that would be far larger than W."""
        update, weights = self.updates[0], _balanced(start)
        if not update.normal.tensors:
            return weights
        arrays = self.arrays(weights)
        core = update.to_system(weights[update.core])
        square = float(np.vdot(core, self._times(update, arrays, core)).real)
        factor = (self.scale / square) ** (0.5 / len(weights)) if square > 0 else 1.0
        return {name: array * factor for name, array in weights.items()}

    def _go_on(
        self, weights: dict[str, Array], sweeps: int, before: float, enough: float
    ) -> tuple[dict[str, Array], float]:
        lost, settled = before, _CALIBRATED if self.weighed else _SETTLED
        for _ in range(sweeps):
            if self.watch.over and self.watch.sweeps:
                self.watch.stopped = True
                break
            weights, lost = self.sweep(weights)
            self.watch.swept(lost)
            if (before - lost <= settled * lost and before >= lost > 0) or lost < enough:
                break
            before = lost
        return weights, lost


def _path(tensors: Sequence[Legs], output: Legs, sizes: Mapping[str, int]) -> Path:
    if len(tensors) > EXHAUSTIVE:
        return greedy_path(tensors, output, sizes)
    return find_paths(tensors, output, sizes)[0] if tensors else ()


def _staged(tensors: Sequence[Legs], output: Legs, sizes: Mapping[str, int], groups: Sequence[Sequence[int]]) -> Path:
    """A path that contracts groups of tensors first, each by itself, and then what they give with the rest."""
    path: list[tuple[int, int]] = []

    def contracted(members: Sequence[int], legs: Sequence[Legs], result: Legs) -> int:
        known = list(members)
        for a, b in _path(legs, result, sizes):
            path.append((known[a], known[b]))
            known.append(len(tensors) + len(path) - 1)
        return known[-1]

    left = {i: tensors[i] for i in range(len(tensors))}
    for group in groups:
        inside = {i: left.pop(i) for i in group}
        if not inside:
            continue
        around = {*output, *itertools.chain(*left.values())}
        result = tuple(leg for leg in dict.fromkeys(itertools.chain(*inside.values())) if leg in around)
        left[contracted(list(inside), list(inside.values()), result)] = result
    contracted(list(left), list(left.values()), output)
    return tuple(path)


def _balanced(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Cores of one norm each, their product unchanged."""
    norms = {name: float(np.linalg.norm(core)) for name, core in weights.items()}
    if min(norms.values()) == 0:
        return dict(weights)
    mean = math.exp(sum(map(math.log, norms.values())) / len(norms))
    return {name: core * (mean / norms[name]) for name, core in weights.items()}


def _metric(network: Network, covariance: Array, legs: Legs) -> Array:
    """The covariance over input legs and their primes; of batch legs the diagonal, or its mean."""
    ins = network.topology.inputs
    number = {leg: i for i, leg in enumerate(ins)} | {primed(leg): len(ins) + i for i, leg in enumerate(ins)}
    second = [number[leg if leg in network.topology.kept else primed(leg)] for leg in ins]
    array = covariance.reshape([*ins.values(), *ins.values()])
    found = np.einsum(array, [*(number[leg] for leg in ins), *second], [number[leg] for leg in legs])
    return np.asarray(found / math.prod(size for leg, size in ins.items() if leg not in legs))
