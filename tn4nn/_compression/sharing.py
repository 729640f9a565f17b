"""The layers of a model that share one budget: what each gets, and its decomposition.

Errors of different layers do not add up to the error of the model: one layer may lose half of its outputs unnoticed,
another not a hundredth. Where the model can be run, every layer is therefore replaced alone first, at an equal share,
and what the model then loses is the weight of that layer's error. The budget is spread by these weights; the result and
equal shares are both tried on the model, and the better one is taken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .._base.arrays import Array, check_range
from .._base.errors import BudgetError, DataError, TN4NNError
from .._base.memory import usable_memory
from .._base.seeds import rng_for
from .._graph.budget import checked_budget
from .._graph.network import Network
from .._graph.ordering import Ordering
from .._graph.topology import Topology
from .allocation import Points, curve_of, even, spread
from .als import Watch
from .decompose import Decomposition, answered, fitter_of
from .fit import Asked, Fitter, checked_time_limit
from .rules import FRESH, Weight

# (layers that are replaced, whether a part of the inputs is enough) -> what the model loses by it; 0 is nothing.
Measure = Callable[[Iterable[tuple[Weight, Decomposition]], bool], float]

_EQUAL = 1e-7  # standard deviation of numbers that are one and the same, over their size
_QUIET = 1e-9  # relative squared error of a layer below which the loss of the model says nothing of it


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long the fits may take, and who hears of them.

    Attributes:
        time_limit: seconds for all fits together; None for no limit.
        progress: called with a line of text after each fit.
    """

    time_limit: float | None = None
    progress: Callable[[str], None] | None = None


@dataclasses.dataclass
class Outcome:
    """What became of the layers with a rule.

    Attributes:
        total: parameters that they may have together.
        results: id of a weight -> its decomposition.
        reasons: id of a weight -> why it stays dense.
        notes: what else to know, one sentence each.
    """

    total: int | None
    results: dict[int, Decomposition] = dataclasses.field(default_factory=dict)
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


class _LayerError(Exception):
    """One layer that cannot be decomposed: the others can."""

    def __init__(self, weight: Weight, cause: TN4NNError) -> None:
        super().__init__(str(cause))
        self.weight, self.cause = weight, cause


def decomposed(
    chosen: Sequence[Weight],
    seen: Mapping[int, Array],
    budget: float | None,
    seed: int,
    measure: Measure | None = None,
    effort: Effort | None = None,
) -> Outcome:
    """Decomposes all weights that have a rule. One that cannot be decomposed is left out with the reason; what is then
    shared is a share of the others.

    Args:
        chosen: weights with a rule.
        seen: position in `chosen` -> what `decompose` takes as inputs.
        budget: parameters of all that are chosen, or a share below 1.
        seed: of random starts.
        measure: what the model loses where some layers are replaced; None where it cannot be run.
        effort: see `Effort`.

    Raises:
        BudgetError: a budget that cannot be met, or a weight that nothing gives a size.
        ShapeError: a topology of another size than its weight.
        DataError, BudgetError: of the first layer, where none can be decomposed.
    """
    fits = _Fits({id(one): seen[i] for i, one in enumerate(chosen) if i in seen}, seed, effort or Effort())
    left, failed, first = list(chosen), dict[int, str](), None
    while left:
        try:
            found = _attempt(left, budget, fits, measure)
        except _LayerError as error:
            failed[id(error.weight)] = f"it cannot be decomposed: {error.cause}"
            first = first or error
            left = [one for one in left if one is not error.weight]
        else:
            found.reasons |= failed
            found.notes += fits.notes
            return found
    if first is None:
        return Outcome(_total(budget, []))
    with _naming(first.weight):
        raise first.cause from None


def _attempt(chosen: Sequence[Weight], budget: float | None, fits: _Fits, measure: Measure | None) -> Outcome:
    found = Outcome(_total(budget, chosen))
    sharing: list[tuple[Weight, Topology]] = []
    for one in chosen:
        assert one.rule is not None
        with _naming(one):
            onto = one.rule.onto(*one.features)
        if isinstance(onto, Topology) and one.rule.shares:
            sharing.append((one, onto))
        else:
            given = isinstance(onto, Topology) or isinstance(one.rule.topology, Network)
            found.results[id(one)] = fits.fit(one, onto, one.rule.own if given else {})
    fixed = sum(min(found.results[id(one)].network.num_params, one.size) for one in chosen if id(one) in found.results)
    if sharing:
        assert found.total is not None
        own = [(one, found.results[id(one)]) for one in chosen if id(one) in found.results]
        _Sharing(sharing, found.total, fixed, own, fits, measure).fill(found)
    elif found.total is not None and fixed > found.total:
        raise BudgetError(
            f"the rules' own sizes come to {fixed:,} parameters, above the budget of {found.total:,}", fixed
        )
    return found


def _total(budget: float | None, chosen: Sequence[Weight]) -> int | None:
    if budget is None:
        lacking = [one.name for one in chosen if one.rule is not None and one.rule.shares and _has_bonds(one)]
        if lacking:
            raise BudgetError(
                f"nothing says how large layer {lacking[0]!r} may become: give budget=, or rank=, params= or error= in "
                "its rule",
                1,
            )
        return None
    if isinstance(budget, float) and 0 < budget < 1:
        return max(1, math.floor(budget * sum(one.size for one in chosen)))
    return checked_budget(budget, "parameters (or a share below 1)")


def _has_bonds(one: Weight) -> bool:
    assert one.rule is not None
    with _naming(one):
        return isinstance(one.rule.onto(*one.features), Topology)


@contextlib.contextmanager
def _naming(one: Weight) -> Iterator[None]:
    """Puts the layer's name before what goes wrong."""
    try:
        yield
    except TN4NNError as error:
        error.args = (f"layer {one.name!r}: {error}", *error.args[1:])
        raise


@contextlib.contextmanager
def _guarded(one: Weight) -> Iterator[None]:
    """What is wrong with the numbers of one layer is its own affair; what is wrong with a rule is an error."""
    try:
        with _naming(one):
            yield
    except (DataError, BudgetError) as error:
        error.args = (str(error).removeprefix(f"layer {one.name!r}: "), *error.args[1:])
        raise _LayerError(one, error) from error
    except (np.linalg.LinAlgError, FloatingPointError, MemoryError) as error:
        raise _LayerError(one, DataError(f"its fit failed ({type(error).__name__}: {error})")) from error


# -- fits ---------------------------------------------------------------------------------------------------------


class _Fits:
    """The decompositions of the layers, each made once for each size, within one time limit."""

    def __init__(self, seen: Mapping[int, Array], seed: int, effort: Effort) -> None:
        self.seen, self.seed, self.effort = seen, seed, effort
        limit = checked_time_limit(effort.time_limit)
        self.deadline = None if limit is None else time.monotonic() + limit
        self.ahead = 1  # fits that the time that is left is for
        self.curves: dict[int, Points] = {}
        self.fitters: dict[int, tuple[Fitter, Ordering | None]] = {}
        self.made: dict[tuple[int, tuple[tuple[str, Any], ...]], Decomposition] = {}
        self.stopped: set[str] = set()
        self.constant: set[str] = set()  # of the weights that are drawn, those that replace numbers that are all equal

    @property
    def notes(self) -> list[str]:
        found = []
        if self.stopped:
            names = ", ".join(sorted(self.stopped))
            found.append(f"the time limit of {self.effort.time_limit:g} s stopped the fits of {names}")
        if self.constant:
            names = ", ".join(sorted(self.constant))
            found.append(f"all numbers are equal, so the networks are drawn with variance 1/in_features: {names}")
        return found

    def say(self, text: str) -> None:
        if self.effort.progress is not None:
            self.effort.progress(text)

    def curve(self, one: Weight, onto: Topology) -> Points:
        """What a layer loses by how many parameters it gets."""
        if id(one) not in self.curves:
            with _guarded(one):
                self.curves[id(one)] = curve_of(self._fitter(one, onto)[0])
        return self.curves[id(one)]

    def _fitter(self, one: Weight, onto: Topology | Network) -> tuple[Fitter, Ordering | None]:
        """What fits a layer at any size, with the decompositions that were made; those of the last layers are kept, as
        many as fit into a part of the memory."""
        assert one.rule is not None
        if id(one) not in self.fitters:
            options = (one.rule.method, self.seen.get(id(one)), one.ordering(), self.seed)
            self.fitters[id(one)] = fitter_of(one.matrix(), onto, *options)
            while len(self.fitters) > 1 and sum(f.bytes for f, _ in self.fitters.values()) > usable_memory() // 2:
                del self.fitters[next(iter(self.fitters))]
        return self.fitters[id(one)]

    def fit(self, one: Weight, onto: Topology | Network, size: Mapping[str, Any]) -> Decomposition:
        """A layer at one size."""
        key = (id(one), tuple(size.items()))
        if key not in self.made:
            with _guarded(one):
                self.made[key] = self._fit(one, onto, size)
            result = self.made[key]
            error = result.error if result.output_error is None else result.output_error
            self.say(f"{one.label}: {result.network.num_params:,} of {one.size:,} parameters, error {error:.3g}")
        self.ahead = max(1, self.ahead - 1)
        return self.made[key]

    def _fit(self, one: Weight, onto: Topology | Network, size: Mapping[str, Any]) -> Decomposition:
        assert one.rule is not None
        if one.rule.method == FRESH:
            result, varies = _fresh(one, onto, size, self.seed)
            if not varies:
                self.constant.add(one.label)
            return result
        limit = None if self.deadline is None else max(1e-9, self.deadline - time.monotonic()) / self.ahead
        fitter, order = self._fitter(one, onto)
        fitter.watch = Watch(limit)
        asked = Asked(onto, size.get("rank"), size.get("params"), size.get("error"))
        result = answered(fitter, order, asked, str(one.matrix().dtype), False)
        if any("time limit" in note for note in result.notes):
            self.stopped.add(one.name)
        return result


def _fresh(one: Weight, onto: Topology | Network, size: Mapping[str, Any], seed: int) -> tuple[Decomposition, bool]:
    """Weights that are drawn anew, with the variance of those that they replace: nothing is fitted.

    Returns:
        the weights, and whether those that they replace vary. Where they do not (all zero), cores of their variance
        would be zero too, and would get no gradient: the variance is 1/in_features then.
    """
    network = onto
    if isinstance(network, Topology):
        rank = size.get("rank")
        if "error" in size:
            raise BudgetError("weights that are drawn anew keep no error: give rank=, params= or a budget", 1)
        network = network.with_rank(rank, clip=True) if rank is not None else network.with_budget(**size)
    w, order = one.matrix(), one.ordering()
    check_range(w, "W")
    own = int(rng_for(seed, "fresh", one.name).integers(2**31))  # layers of one shape must not begin alike
    weights = network.init(own)
    drawn = network.to_dense(weights)
    wanted = _deviation(w)
    scale = wanted or 1 / math.sqrt(network.in_features)
    factor = (scale / (_deviation(drawn) or 1.0)) ** (1 / len(weights))
    weights = {name: (core * factor).astype(w.dtype) for name, core in weights.items()}
    off = (w if order is None else w[:, order.permutation]) - network.to_dense(weights)
    error = float(np.linalg.norm(off) / np.linalg.norm(w)) if w.any() else math.inf
    return Decomposition(network, weights, error, None, {}, None, None, None, FRESH, order), wanted > 0


def _deviation(w: Array) -> float:
    """Standard deviation, exactly 0 where all numbers are equal but for rounding."""
    found = float(w.std(dtype=float))
    return found if found > _EQUAL * float(np.abs(w).max()) else 0.0


# -- one budget ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Sharing:
    """The layers that share what is left of a budget.

    Attributes:
        layers: with their topologies.
        total: the whole budget.
        fixed: parameters of layers whose rules give them their own size.
        own: these layers.
        fits: makes decompositions.
        measure: see `decomposed`.
    """

    layers: Sequence[tuple[Weight, Topology]]
    total: int
    fixed: int
    own: Sequence[tuple[Weight, Decomposition]]
    fits: _Fits
    measure: Measure | None

    def fill(self, found: Outcome) -> None:
        """Decomposes the layers."""
        if any(one.rule is not None and one.rule.method == FRESH for one, _ in self.layers):
            shares = self._shares(even, {str(i): _ends(*layer) for i, layer in enumerate(self.layers)})
            found.results |= self._fitted(shares, found.reasons)
            return
        curves = {str(i): self.fits.curve(*layer) for i, layer in enumerate(self.layers)}
        if self.measure is None or len(self.layers) == 1:
            self.fits.ahead = len(self.layers)
            found.results |= self._fitted(self._shares(spread, curves), found.reasons)
            return
        self.fits.ahead = 2 * len(self.layers)
        reasons: tuple[dict[int, str], dict[int, str]] = ({}, {})
        equal = self._fitted(self._shares(even, curves), reasons[0])
        weights = self._sensitivities(equal)
        guided = self._fitted(self._shares(spread, curves, weights), reasons[1])
        losses = [self._loss(results) for results in (equal, guided)]
        best = int(losses[1] < losses[0] or math.isnan(losses[0]))
        found.results |= (equal, guided)[best]
        found.reasons |= reasons[best]
        found.notes.append(
            f"the budget is spread {('in equal shares', 'by what the model loses')[best]}: measured on the model "
            f"{losses[best]:.4g}, {('by what the model loses', 'in equal shares')[best]} {losses[1 - best]:.4g}"
        )

    def _shares(self, how: Callable[..., dict[str, int]], curves: Mapping[str, Points], *weights: Any) -> list[int]:
        try:
            found = how(curves, self.total - self.fixed, *weights)
        except BudgetError as error:
            smallest = error.smallest + self.fixed
            raise BudgetError(
                f"a budget of {self.total:,} parameters cannot be met: the smallest feasible one is {smallest:,}",
                smallest,
            ) from None
        return [found[str(i)] for i in range(len(self.layers))]

    def _fitted(self, shares: Sequence[int], reasons: dict[int, str]) -> dict[int, Decomposition]:
        """The layers at their shares; what one leaves over goes to the next larger one."""
        over, results = 0, {}
        for i in sorted(range(len(shares)), key=lambda i: shares[i]):
            (one, onto), room = self.layers[i], shares[i] + over
            if room >= one.size:
                over = room - one.size
                reasons[id(one)] = "the budget leaves it dense"
                continue
            results[id(one)] = result = self.fits.fit(one, onto, {"params": room})
            over = room - result.network.num_params
        return results

    def _replaced(self, results: Mapping[int, Decomposition]) -> list[tuple[Weight, Decomposition]]:
        return [(one, results[id(one)]) for one, _ in self.layers if id(one) in results]

    def _loss(self, results: Mapping[int, Decomposition]) -> float:
        assert self.measure is not None
        return self.measure([*self.own, *self._replaced(results)], False)

    def _sensitivities(self, equal: Mapping[int, Decomposition]) -> dict[str, float] | None:
        """What the model loses by the squared error of each layer; those of which nothing is known take the mean."""
        assert self.measure is not None
        found: dict[str, float] = {}
        for i, (one, _) in enumerate(self.layers):
            result = equal.get(id(one))
            if result is None:
                continue
            lost = (result.error if result.output_error is None else result.output_error) ** 2
            harm = self.measure([(one, result)], True)
            if lost > _QUIET and math.isfinite(harm):
                found[str(i)] = max(harm, 0.0) / lost
            self.fits.say(f"{one.label}: alone it costs the model {harm:.3g}")
        if not any(found.values()):
            return None
        mean = sum(found.values()) / len(found)
        return {str(i): found.get(str(i), mean) for i in range(len(self.layers))}


def _ends(one: Weight, onto: Topology) -> Points:
    """The curve of weights that are drawn: nothing but the smallest and the largest size."""
    smallest = onto.with_rank(1).num_params
    return ((smallest, 1.0), (one.size, 0.0)) if smallest < one.size else ((one.size, 0.0),)
