"""Conversion of a trained model, without its framework: which weights a rule names, what each gets, and the table.

A backend surveys its model, which gives a `Weight` for each weight that some kind of layer holds; `assign` gives these
their rules, `decomposed` the networks, `conversion` the table. What is left to the backend is to read and to
replace layers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from .._base.arrays import Array
from .._base.checks import nearest
from .._base.errors import BudgetError, ShapeError, TN4NNError, TopologyError
from .._graph.budget import checked_budget
from .._graph.catalogue import build, dense
from .._graph.network import Network
from .._graph.ordering import Ordering, ordering_of
from .._graph.topology import Topology
from .._model.layers import Conv2d, Embedding, Linear, OnNetwork
from .._planning.layer import LayerPlanner
from .._planning.planner import at_rows
from .._runtime.cost import Cost
from .._runtime.target import Target
from .allocation import loss_curve, spread
from .decompose import Decomposition, decompose

SKIP = "skip"

M = TypeVar("M")


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a layer is converted to. Give at most one of `rank`, `params` and `error`, and none to share a budget.

    Attributes:
        topology: a name out of `tn.catalogue()`, a Topology, or a Network with its ranks.
        sites: of a topology by name; see `tn.build`.
        pairing: of a topology by name; see `tn.build`.
        options: of a topology by name, e.g. {"grid": (2, 3)}.
        rank: of every bond.
        params: parameters of this layer, never more.
        error: largest relative error of this layer.
        ordering: of the inputs of a linear layer, as for `tn.Linear`.
        method: as for `tn.decompose`; "svd" spares the least squares by which calibrated layers are fitted, which takes
            minutes for a transformer, and leaves their work to `refine`.

    Example:
        >>> Rule("mpo", sites=3, rank=8).topology
        'mpo'
    """

    topology: str | Topology | Network
    sites: int | None = None
    pairing: str = "opposed"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rank: int | None = None
    params: int | None = None
    error: float | None = None
    ordering: Ordering | str | Sequence[int] | None = None
    method: str = "auto"

    @property
    def own(self) -> dict[str, Any]:
        """The size that this rule asks for by itself; empty where the budget decides."""
        asked = {"rank": self.rank, "params": self.params, "error": self.error}
        return {name: value for name, value in asked.items() if value is not None}

    @property
    def shares(self) -> bool:
        """Whether the layer takes its part of the budget."""
        return not self.own and not isinstance(self.topology, Network)

    def onto(self, in_features: int, out_features: int) -> Topology | Network:
        """The topology or network for a matrix of this size."""
        if isinstance(self.topology, str):
            pairing: Any = self.pairing
            onto: Topology | Network = build(
                self.topology, in_features, out_features, sites=self.sites, pairing=pairing, **self.options
            )
        else:
            onto = self.topology
        found = (onto.in_features, onto.out_features)
        if found != (in_features, out_features):
            raise ShapeError(
                f"the rule's topology is {found[0]} -> {found[1]}, the layer is {in_features} -> {out_features}"
            )
        return onto.with_rank(1) if isinstance(onto, Topology) and not onto.bonds else onto


Given = str | Topology | Network | Rule | Mapping[str, Any]


def rule_of(given: object) -> Rule | None:
    """A Rule from what a person writes; None for "skip"."""
    if given == SKIP:
        return None
    if isinstance(given, Rule):
        return given
    if isinstance(given, str | Topology | Network):
        return Rule(given)
    if isinstance(given, Mapping):
        known = [field.name for field in dataclasses.fields(Rule)]
        for word in given:
            if word not in known:
                raise TN4NNError(f"{word!r} is not a setting of a rule." + nearest(str(word), known))
        if "topology" not in given:
            raise TN4NNError(f"a rule says onto what: {dict(given)!r} lacks 'topology'")
        return Rule(**given)
    raise TN4NNError(
        f"a rule is 'skip', a topology's name, a Topology, a Network, a Rule or a dict of its settings, "
        f"received {type(given).__name__}"
    )


# -- which weights ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Weight:
    """One weight of a model that some kind of layer holds, and what is known of it without its framework.

    Attributes:
        kind: of the layers, in tables.
        shape: of the weight as it is stored.
        features: (in_features, out_features) of the matrix W.
        names: for each layer that holds it, all names of that layer.
        gathers: whether inputs are numbers of rows, as an embedding's.
        ordered: whether an ordering of the inputs makes sense.
        matrix: gives W, of shape (out_features, in_features), in float32 or float64.
        rule: what it is converted to, None where it stays.
        reason: why it stays.
    """

    kind: str
    shape: tuple[int, ...]
    features: tuple[int, int]
    names: list[list[str]]
    gathers: bool
    ordered: bool
    matrix: Callable[[], Array]
    rule: Rule | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0][0]

    @property
    def label(self) -> str:
        """All of its names."""
        also = self.all_names[1:]
        return (self.name or "(model)") + (f" = {', '.join(also)}" if also else "")

    @property
    def all_names(self) -> list[str]:
        """The names of every layer that holds it."""
        return [name for names in self.names for name in names]

    @property
    def size(self) -> int:
        """Parameters."""
        return math.prod(self.shape)


def parsed(rules: Given | Mapping[str, Given]) -> dict[str, Rule | None]:
    """Pattern -> Rule, None for "skip"; one rule alone holds for every layer."""
    wanted = rules if isinstance(rules, Mapping) and "topology" not in rules else {"*": rules}
    return {pattern: rule_of(given) for pattern, given in wanted.items()}


def assign(
    weights: Sequence[Weight],
    rules: Mapping[str, Rule | None],
    others: Mapping[str, str],
    can: str,
    head: Weight | None = None,
) -> list[Weight]:
    """Gives each weight its rule or the reason why it has none; returns those that have one.

    Args:
        weights: all there are.
        rules: what `parsed` gave; the first pattern that matches a name holds.
        others: name -> kind of every layer that cannot be converted.
        can: the kinds that can be converted, for errors.
        head: the weight that only its name in full reaches.

    Raises:
        TN4NNError: a pattern that matches nothing, with the nearest names.
    """
    _check_patterns(weights, rules, others, can)
    for one in weights:
        chosen = [_first(rules, names) for names in one.names]
        first = next((pattern for pattern in chosen if pattern is not None), None)
        if first is None:
            one.reason = one.reason or "no rule names it"
        elif any(pattern is not None and rules[pattern] is None for pattern in chosen):
            one.reason = "the rules skip it"
        elif one is head and not any(name in rules for name in one.all_names):
            one.reason = one.reason or "the head is protected: name it in full, or protect_head=False"
        elif not one.reason:
            one.rule = rules[first]
    return [one for one in weights if one.rule is not None]


def _first(rules: Mapping[str, Rule | None], names: Sequence[str]) -> str | None:
    return next((p for p in rules if any(fnmatch.fnmatchcase(name, p) for name in names)), None)


def _check_patterns(
    weights: Sequence[Weight], rules: Mapping[str, Rule | None], others: Mapping[str, str], can: str
) -> None:
    layers = [name for one in weights for name in one.all_names]
    for pattern, rule in rules.items():
        if fnmatch.filter(layers, pattern):
            continue
        inconvertible = fnmatch.filter(others, pattern)
        if inconvertible and rule is None:
            continue
        if inconvertible:
            raise TN4NNError(
                f"rule {pattern!r} matches no layer that can be converted: {inconvertible[0] or 'the model'!r} is a "
                f"{others[inconvertible[0]]}. {can} can"
            )
        raise TN4NNError(f"rule {pattern!r} matches no layer of this model." + nearest(pattern, layers))


# -- what the layers see ----------------------------------------------------------------------------------------


class Seen:
    """The mean of x x^T over the rows x that meet a matrix, summed up batch by batch."""

    def __init__(self) -> None:
        self.total: Array | None = None
        self.rows = 0

    def add(self, product: Array, rows: int) -> None:
        """The sum of x x^T over some rows."""
        self.total = product.astype(float) if self.total is None else self.total + product
        self.rows += rows

    def covariance(self) -> Array | None:
        """E[x x^T], None where nothing came by."""
        if self.total is None or not self.rows:
            return None
        mean = self.total / self.rows
        return np.asarray((mean + mean.T) / 2)


# -- the plan ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight of the model and what becomes of it.

    Attributes:
        name: of the layer; of all layers that hold the weight, where it is shared.
        kind: of the layer, e.g. "Linear" or "Conv2d".
        shape: of the weight.
        topology: of its network, "" where it stays.
        before: parameters of the weight.
        after: parameters of the network.
        macs_before: multiply-adds for `batch` rows (of a convolution: positions), forward.
        macs_after: the same of the network.
        time: predicted time of a forward pass of that batch, over that of the dense layer by the same cost model.
        error: ||W - W'|| / ||W||; None where it stays.
        output_error: of the outputs on the calibration inputs, None without them.
        converted: whether a network replaces it.
        reason: why not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    topology: str
    before: int
    after: int
    macs_before: int
    macs_after: int
    time: float | None
    error: float | None
    output_error: float | None
    converted: bool
    reason: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ConversionPlan(Generic[M]):
    """What converting would do: printing it gives a table, `run()` does it. It holds the new weights, not the model's.

    Attributes:
        rows: one for each weight of a layer that can be converted.
        batch: what the multiply-adds are for.
        budget: parameters that the layers with a rule may have together, None where each rule has its own.
    """

    rows: tuple[Row, ...]
    batch: int
    budget: int | None
    _run: Callable[[], M]

    @property
    def params_before(self) -> int:
        """Parameters of the weights that are converted."""
        return sum(row.before for row in self.rows if row.converted)

    @property
    def params_after(self) -> int:
        """Parameters of their networks."""
        return sum(row.after for row in self.rows if row.converted)

    def run(self) -> M:
        """The model with networks in it, a copy; the source stays as it is."""
        return self._run()

    def __repr__(self) -> str:
        head = ("layer", "kind", "shape", "onto", "params", "-> params", "MACs", "-> MACs", "time", "error", "outcome")
        table = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        left = (0, 1, 2, 3, 10)
        lines = [
            "  ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        ]
        return "\n".join([*(line.rstrip() for line in lines), self._footer()])

    __str__ = __repr__

    def _footer(self) -> str:
        count = sum(row.converted for row in self.rows)
        budget = "" if self.budget is None else f", budget {self.budget:,} for all layers with a rule"
        ratio = f" ({self.params_before / self.params_after:.3g}x fewer)" if self.params_after else ""
        return (
            f"{count} of {len(self.rows)} weights converted: {self.params_before:,} -> {self.params_after:,} "
            f"parameters{ratio}{budget}; MACs and time at batch {self.batch}, forward"
        )


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: int) -> str:
        return f"{value:,}" if row.converted else "-"

    error = row.error if row.output_error is None else row.output_error
    return (
        row.name, row.kind, "x".join(map(str, row.shape)), row.topology or "-", f"{row.before:,}", number(row.after),
        f"{row.macs_before:,}", number(row.macs_after), "-" if row.time is None else f"{row.time:.2f}x",
        "-" if error is None else f"{error:.3f}" + ("" if row.output_error is None else " out"),
        "convert" if row.converted else f"skip: {row.reason}",
    )  # fmt: skip


# -- what each gets ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pricing:
    """How the new layers are priced: as they will run.

    Attributes:
        target: weight -> where its layer runs.
        batch: rows that the table is for.
        phase: what the new layers plan for.
        planned: the new layers plan for that batch, and not for the class of the rows that come.
    """

    target: Callable[[Weight], Target]
    batch: int
    phase: str
    planned: bool = False

    def cost(self, one: Weight, network: Network) -> Cost:
        """Of a forward pass of the layer of a weight on a network, by the plan that will run."""
        batch = self.batch if self.planned else None
        planner = LayerPlanner(_layer(one, network), self.target(one), self.phase, batch=batch)
        return at_rows(planner.plan(self.batch), self.batch, "forward").cost


def _layer(one: Weight, network: Network) -> OnNetwork:
    if one.gathers:
        return Embedding(network)
    if len(one.shape) == 4:
        return Conv2d(network, kernel=(one.shape[2], one.shape[3]), bias=False)
    return Linear(network, bias=False)


def conversion(
    weights: Sequence[Weight],
    chosen: Sequence[Weight],
    seen: Mapping[int, Array],
    budget: float | None,
    pricing: Pricing,
    seed: int,
    make: Callable[[list[tuple[Weight, Decomposition]]], M],
) -> ConversionPlan[M]:
    """Decomposes the weights that have a rule, and says what became of all.

    Args:
        weights: all that there are, for the table.
        chosen: those with a rule.
        seen: position in `chosen` -> what `decompose` takes as inputs.
        budget: parameters of all that are chosen, or a share below 1.
        pricing: how the new layers are priced.
        seed: of random starts.
        make: what running the plan does with the weights that are converted.

    Raises:
        BudgetError: a budget that cannot be met, or a weight that nothing gives a size.
        ShapeError: a topology of another size than its weight.
        DataError: weights that are NaN, infinite or all zero.
    """
    total = _checked_total(budget, chosen)
    results = _decomposed(chosen, seen, total, seed)
    rows = [_row(one, results.get(id(one)), pricing) for one in weights]
    converted = [(one, results[id(one)]) for one, row in zip(weights, rows, strict=True) if row.converted]
    return ConversionPlan(tuple(rows), pricing.batch, total, lambda: make(converted))


def _checked_total(budget: float | None, chosen: Sequence[Weight]) -> int | None:
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


def _decomposed(
    chosen: Sequence[Weight], seen: Mapping[int, Array], total: int | None, seed: int
) -> dict[int, Decomposition]:
    """id of a found weight -> its decomposition; weights that the budget leaves dense have none."""
    results: dict[int, Decomposition] = {}
    sharing: list[int] = []
    for i, one in enumerate(chosen):
        assert one.rule is not None
        with _naming(one):
            onto = one.rule.onto(*one.features)
            if isinstance(onto, Topology) and one.rule.shares:
                sharing.append(i)
            else:
                given = isinstance(onto, Topology) or isinstance(one.rule.topology, Network)
                results[id(one)] = _decompose(one, onto, one.rule.own if given else {}, seen.get(i), seed)
    if sharing:
        assert total is not None
        fixed = sum(min(results[id(one)].network.num_params, one.size) for one in chosen if id(one) in results)
        _spread_out([chosen[i] for i in sharing], [seen.get(i) for i in sharing], total, fixed, seed, results)
    elif total is not None:
        _check_fixed(chosen, results, total)
    return results


def _check_fixed(chosen: Sequence[Weight], results: Mapping[int, Decomposition], total: int) -> None:
    spent = sum(min(results[id(one)].network.num_params, one.size) for one in chosen)
    if spent > total:
        raise BudgetError(f"the rules' own sizes come to {spent:,} parameters, above the budget of {total:,}", spent)


def _spread_out(
    sharing: Sequence[Weight],
    seen: list[Array | None],
    total: int,
    fixed: int,
    seed: int,
    results: dict[int, Decomposition],
) -> None:
    """Decomposes the layers that share what is left of the budget; what one leaves over goes to the next."""
    topologies, curves = {}, {}
    for i, one in enumerate(sharing):
        assert one.rule is not None
        with _naming(one):
            onto = one.rule.onto(*one.features)
            assert isinstance(onto, Topology)
            topologies[i] = onto
            curves[str(i)] = loss_curve(one.matrix(), onto, seen[i], _ordering(one))
    try:
        shares = spread(curves, total - fixed)
    except BudgetError as error:
        raise BudgetError(
            f"a budget of {total:,} parameters cannot be met: the smallest feasible one is {error.smallest + fixed:,}",
            error.smallest + fixed,
        ) from None
    over = 0
    for i in sorted(topologies, key=lambda i: shares[str(i)]):
        one, room = sharing[i], shares[str(i)] + over
        if room >= one.size:
            over = room - one.size
            one.reason = "the budget leaves it dense"
            continue
        with _naming(one):
            result = _decompose(one, topologies[i], {"params": room}, seen[i], seed)
        results[id(one)] = result
        over = room - result.network.num_params


def _ordering(one: Weight) -> Ordering | None:
    assert one.rule is not None
    if one.rule.ordering is None:
        return None
    if not one.ordered or len(one.names) > 1:
        raise TopologyError(f"an ordering is for linear layers that share their weight with none, not for {one.label}")
    return ordering_of(one.rule.ordering, one.features[0])


def _decompose(
    one: Weight, onto: Topology | Network, size: Mapping[str, Any], seen: Array | None, seed: int
) -> Decomposition:
    w = one.matrix()
    kind = str(w.dtype)
    assert one.rule is not None
    options: dict[str, Any] = {"ordering": _ordering(one), "seed": seed, "dtype": kind, "compare_random": False}
    options["method"] = one.rule.method
    return decompose(w, onto, inputs=seen, **size, **options)


def _row(one: Weight, result: Decomposition | None, pricing: Pricing) -> Row:
    ins, out = one.features
    before = one.size
    macs = 0 if one.gathers else pricing.batch * before
    network = None if result is None else result.network
    if network is not None and network.num_params >= before:
        one.reason = f"no gain: {network.num_params:,} parameters"
        network = None
    if network is None or result is None:
        shape = one.shape
        return Row(one.label, one.kind, shape, "", before, before, macs, macs, None, None, None, False, one.reason)
    cost = pricing.cost(one, network)
    whole = None if one.gathers else pricing.cost(one, dense(ins, out).with_rank(1)).predicted_s
    return Row(
        name=one.label,
        kind=one.kind,
        shape=one.shape,
        topology=network.topology.name,
        before=before,
        after=network.num_params,
        macs_before=macs,
        macs_after=cost.macs,
        time=None if whole is None else cost.predicted_s / whole,
        error=result.error,
        output_error=result.output_error,
        converted=True,
        reason="",
    )


def transposed(network: Network) -> Network:
    """The network of W^T: the same cores, inputs and outputs exchanged."""
    t = network.topology
    exchanged = dataclasses.replace(
        t, inputs=t.outputs, outputs=t.inputs, in_features=t.out_features, out_features=t.in_features
    )
    return Network(exchanged, network.ranks)
