"""Conversion of a trained model, without its framework: the plan that converts it, and its table.

A backend surveys its model, which gives a `Weight` for each weight that some kind of layer holds; `assign` (rules.py)
gives these their rules, `decomposed` (sharing.py) the networks, `conversion` the table. What is left to the backend is
to read and to replace layers, and to run the model.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from .._base.arrays import Array
from .._base.errors import TN4NNError
from .._base.notebook import shown
from .._graph.catalogue import dense
from .._graph.network import Network
from .._model.layers import Conv2d, Embedding, Linear, OnNetwork
from .._planning.layer import LayerPlanner
from .._planning.planner import at_rows
from .._runtime.cost import Cost
from .._runtime.target import Target
from .decompose import Decomposition
from .rules import FRESH, Weight, looks_untrained
from .sharing import Effort, Measure, decomposed

M = TypeVar("M")

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
        error: ||W - W'|| / ||W||; None where it stays, and where weights are drawn anew.
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


@dataclasses.dataclass(frozen=True)
class Other:
    """A parameter that no layer holds which could be converted, and why: it stays as it is.

    Attributes:
        name: of the parameter.
        kind: of what holds it, e.g. "LSTM" or "LayerNorm".
        shape: of it.
        reason: why it stays.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ConversionPlan(Generic[M]):
    """What converting would do: printing it gives a table, `run()` does it. It holds the new weights, not the model's.

    Attributes:
        rows: one for each weight of a layer that can be converted.
        batch: what the multiply-adds are for.
        budget: parameters that the layers with a rule may have together, None where each rule has its own.
        others: all other parameters of the model, which stay.
        notes: what else to know, one sentence each.

    Examples:
        >>> import torch, tn4nn_torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> found = tn4nn_torch.plan_conversion(model, {"0": tn4nn_torch.Rule("mpo", rank=4)})
        >>> found.params_before, found.params_after, found.model_params_before, found.model_params_after
        (4096, 320, 4810, 1034)
    """

    rows: tuple[Row, ...]
    batch: int
    budget: int | None
    _run: Callable[[], M]
    others: tuple[Other, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def params_before(self) -> int:
        """Parameters of the weights that are converted."""
        return sum(row.before for row in self.rows if row.converted)

    @property
    def params_after(self) -> int:
        """Parameters of their networks."""
        return sum(row.after for row in self.rows if row.converted)

    @property
    def model_params_before(self) -> int:
        """Parameters of the whole model."""
        return sum(row.before for row in self.rows) + sum(other.size for other in self.others)

    @property
    def model_params_after(self) -> int:
        """Parameters of the whole model with networks in it."""
        return self.model_params_before - self.params_before + self.params_after

    def run(self) -> M:
        """The model with networks in it, a copy; the source stays as it is."""
        return self._run()

    def __repr__(self) -> str:
        head = ("layer", "kind", "shape", "onto", "params", "-> params", "MACs", "-> MACs", "time", "error", "outcome")
        table = [head, *(_cells(row) for row in self.rows), *_other_cells(self.others)]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        left = (0, 1, 2, 3, 10)
        lines = [
            "  ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        ]
        return "\n".join([*(line.rstrip() for line in lines), self._footer(), *self.notes])

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return shown(str(self))

    def _footer(self) -> str:
        count = sum(row.converted for row in self.rows)
        budget = "" if self.budget is None else f", budget {self.budget:,} for all layers with a rule"
        layers = sum(row.before for row in self.rows), sum(row.after for row in self.rows)
        whole = self.model_params_before, self.model_params_after
        return (
            f"{count} of {len(self.rows)} weights converted: {_fewer(self.params_before, self.params_after)}{budget}; "
            f"MACs and time at batch {self.batch}, forward\n"
            f"all layers that can be converted: {_fewer(*layers)}; the whole model: {_fewer(*whole)}"
        )


def _fewer(before: int, after: int) -> str:
    ratio = f" ({before / after:.3g}x fewer)" if after else ""
    return f"{before:,} -> {after:,} parameters{ratio}"


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


def _other_cells(others: Sequence[Other]) -> Iterator[tuple[str, ...]]:
    """One line for each, but all vectors and scalars (biases, scales) in one."""
    for other in others:
        if len(other.shape) > 1:
            shape = "x".join(map(str, other.shape))
            yield (other.name, other.kind, shape, "-", f"{other.size:,}", *["-"] * 5, f"not converted: {other.reason}")
    small = [other for other in others if len(other.shape) < 2]
    if small:
        count = f"{sum(other.size for other in small):,}"
        name = f"{len(small)} vector" + "s" * (len(small) > 1)
        yield (name, "", "", "-", count, *["-"] * 5, "not converted: biases, scales and the like stay")


# -- what each gets ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pricing:
    """How the new layers are priced: as they will run.

    Attributes:
        target: weight -> where its layer runs.
        batch: rows that the table is for.
        phase: what the new layers plan for.
        planned: the new layers plan for that batch, and not for the class of the rows that come.
        max_time: layers whose predicted time is more than so many times the dense layer's stay dense.
    """

    target: Callable[[Weight], Target]
    batch: int
    phase: str
    planned: bool = False
    max_time: float | None = None

    def __post_init__(self) -> None:
        limit = self.max_time
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
            raise TN4NNError(
                f"max_time is a number above zero (1.0 leaves dense what would be slower), or None; received {limit!r}"
            )

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
    *,
    others: Sequence[Other] = (),
    measure: Measure | None = None,
    effort: Effort | None = None,
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
        others: the parameters of the model that no layer holds which could be converted.
        measure: what the model loses where some layers are replaced; None where it cannot be run.
        effort: how long the fits may take, and who hears of them.

    Raises:
        BudgetError: a budget that cannot be met, or a weight that nothing gives a size.
        ShapeError: a topology of another size than its weight.
        DataError: weights that are NaN, infinite or all zero, where no layer is left that can be converted.
    """
    found = decomposed(chosen, seen, budget, seed, measure, effort)
    for one in chosen:
        one.reason = found.reasons.get(id(one), one.reason)
    rows = [_row(one, found.results.get(id(one)), pricing) for one in weights]
    converted = [(one, found.results[id(one)]) for one, row in zip(weights, rows, strict=True) if row.converted]
    notes = (*found.notes, *([UNTRAINED] if _all_untrained(chosen) else ()))
    return ConversionPlan(tuple(rows), pricing.batch, found.total, lambda: make(converted), tuple(others), notes)


UNTRAINED = (
    "the weights look untrained, and drawn numbers cannot be compressed: train first, or start with method='fresh' in "
    "the rules, which draws the networks' weights with the variance of those that they replace"
)


def _all_untrained(chosen: Sequence[Weight]) -> bool:
    fitted = [one for one in chosen if one.rule is not None and one.rule.method != FRESH]
    return bool(fitted) and all(looks_untrained(one.matrix()) for one in fitted)


def run_converted(plan: ConversionPlan[M]) -> M:
    """Runs a plan, with a warning where the model looks untrained."""
    if UNTRAINED in plan.notes:
        warnings.warn(f"convert: {UNTRAINED}", stacklevel=3)
    return plan.run()


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
    time = None if whole is None else cost.predicted_s / whole
    if time is not None and pricing.max_time is not None and time > pricing.max_time:
        reason = f"it would take {time:.2f} times as long, above max_time={pricing.max_time:g}"
        return Row(one.label, one.kind, one.shape, "", before, before, macs, macs, None, None, None, False, reason)
    return Row(
        name=one.label,
        kind=one.kind,
        shape=one.shape,
        topology=network.topology.name,
        before=before,
        after=network.num_params,
        macs_before=macs,
        macs_after=cost.macs,
        time=time,
        error=None if result.method == FRESH else result.error,  # drawn weights are near nothing
        output_error=result.output_error,
        converted=True,
        reason="",
    )
