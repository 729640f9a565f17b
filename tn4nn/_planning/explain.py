"""What a plan spends its time on, and what would change that: every number comes from planning again."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from .._base.errors import BudgetError
from .._graph.catalogue import like
from .._graph.modes import balanced
from .._graph.network import Network
from .._graph.topology import Topology
from .._runtime.cost import Machine
from .._runtime.devices import native_machine
from .._runtime.program_cost import step_seconds
from .._runtime.recipe_cost import call_rows
from .._runtime.target import CPU
from .layer import RUNTIMES
from .plan import Plan
from .planner import find
from .program import program_machine

_BONDS = 12  # at most, those of the largest rank
_ORDERS = 3  # other orders that are listed, the best first
_MODES = 4  # sites that are joined, and that are cut in two


class Part(NamedTuple):
    """One step of a plan: what it does, and its predicted seconds in one pass (a share of all, for training)."""

    text: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """Something that could be done differently.

    Attributes:
        what: in words.
        predicted_s: seconds of one pass, planned anew; for another batch, for as many rows as the plan has.
        ratio: that over the plan's own.
        params: numbers in the cores.
    """

    what: str
    predicted_s: float
    ratio: float
    params: int


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What dominates a plan, and what would change its time.

    Attributes:
        plan: the plan.
        parts: its steps, the slowest first.
        changes: what was planned anew, the fastest first.
    """

    plan: Plan
    parts: tuple[Part, ...]
    changes: tuple[Change, ...]

    @property
    def share(self) -> float:
        """Of the dominating step, in the time of all steps."""
        return self.parts[0].seconds / sum(part.seconds for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain data."""
        return {
            "dominating": self.parts[0].text,
            "share": self.share,
            "changes": [dataclasses.asdict(change) for change in self.changes],
        }

    def __str__(self) -> str:
        lines = [f"dominating: {self.parts[0].text}, {self.share:.0%} of the steps' time"]
        own = self.plan.cost.predicted_s
        lines.append(f"what would change the predicted {own * 1e3:.3g} ms, each planned anew, the fastest first:")
        lines += [
            f"  {it.what:<44} {it.predicted_s * 1e3:>9.3g} ms  {it.ratio:>6.2f}x  {it.params:>10,} params"
            for it in self.changes
        ]
        return "\n".join(lines)


def explain(p: Plan, *, machine: Machine | None = None, cache: bool = True) -> Explanation:
    """Names the dominating step of a plan, and plans anew what could be different.

    Tried are each bond (the twelve of the largest rank) at a rank one lower and at rank 1, a quarter of the batch and
    four times it (for as many rows as the plan has), the other runtime, least memory instead of least time, the
    best three of the other orders, and other modes: where the topology is one of the catalogue with its default
    options, the four smallest pairs of neighbouring sites joined to one, and the four largest sites cut in two, with
    ranks anew for as many parameters, never more. W of other modes is another family of matrices: what it learns may
    differ.

    Args:
        p: the plan, of form "apply" and without a memory cap.
        machine: parameters of the cost model (default: those that the plan was made with).
        cache: False plans anew and stores nothing.

    Examples:
        >>> import tn4nn as tn
        >>> told = explain(tn.plan(tn.low_rank(256, 64).with_rank(8), batch=32))
        >>> [change.what for change in told.changes if change.what.startswith("bond")]
        ['bond a0: rank 1 for 8', 'bond a0: rank 7 for 8']
        >>> told.parts[0].text.startswith("t0 = matmul")
        True
    """
    given = machine or p.request.machine
    own_machine = native_machine(p.itemsize) if p.executor == "native" else program_machine(p.request)
    parts = sorted(_parts(p, given or own_machine), key=lambda part: -part.seconds)
    own = p.cost.predicted_s
    changes = [
        Change(what, seconds, seconds / own, network.num_params) for what, network, seconds in _changes(p, given, cache)
    ]
    return Explanation(p, tuple(parts), tuple(sorted(changes, key=lambda change: change.predicted_s)))


def _parts(p: Plan, machine: Machine) -> Iterator[Part]:
    """The steps with their predicted seconds; those of a batch tile as often as there are tiles."""
    if p.executor == "native":
        tiles = -(-p.batch // p.block)
        for row in call_rows(p.recipe, p.phase, machine, list(p.network.shapes)):
            yield Part(f"{row.when}: {row.text}", row.seconds * (tiles if row.when == "tile" else 1))
        return
    names = [*p.program.inputs, *(f"t{i}" for i in range(len(p.program.steps)))]
    for i, (step, work) in enumerate(zip(p.program.steps, p.work(), strict=True)):
        text = f"t{i} = {step.kind}({', '.join(names[a] for a in step.args)})"
        yield Part(text, step_seconds(work, p.itemsize, machine))


def _changes(p: Plan, machine: Machine | None, cache: bool) -> Iterator[tuple[str, Network, float]]:
    asked = dataclasses.replace(p.request, memory=None, tune=False, machine=machine)

    def seconds(**other: Any) -> float:
        return find(dataclasses.replace(asked, **other), cache=cache).cost.predicted_s

    for bond, lower in _lower_ranks(p.network):
        network = _with(p.network, bond, lower)
        yield f"bond {bond}: rank {lower} for {p.network.ranks[bond]}", network, seconds(network=network)
    for network in _other_modes(p.network):
        sides = network.topology.inputs.values(), network.topology.outputs.values()
        yield f"modes {' -> '.join('x'.join(map(str, side)) for side in sides)}", network, seconds(network=network)
    for batch in dict.fromkeys((max(1, p.batch // 4), p.batch * 4)):
        if batch != p.batch:
            yield f"batch {batch}, for {p.batch} rows of it", p.network, seconds(batch=batch) * p.batch / batch
    for name in RUNTIMES:
        if name != p.runtime and p.itemsize in (4, 8) and p.request.target.device == CPU:
            yield f"{name} runtime", p.network, seconds(target=p.request.target.only(name))
    if p.minimize != "memory":
        yield "least memory", p.network, seconds(minimize="memory")
    others = dict.fromkeys(order for order, _ in p.candidates if order != p.order)
    for order in list(others)[:_ORDERS]:
        yield f"order: {order}", p.network, next(cost.predicted_s for name, cost in p.candidates if name == order)


def _lower_ranks(network: Network) -> Iterator[tuple[str, int]]:
    largest = sorted(network.ranks, key=lambda bond: -network.ranks[bond])[:_BONDS]
    for bond in (bond for bond in network.ranks if bond in largest):
        for lower in dict.fromkeys((network.ranks[bond] - 1, 1)):
            if 1 <= lower < network.ranks[bond]:
                yield bond, lower


def _other_modes(network: Network) -> Iterator[Network]:
    """The same kind of network with two neighbouring sites joined, or one cut in two, at no more parameters."""
    t = network.topology
    sites = list(zip(t.inputs.values(), t.outputs.values(), strict=False))
    if len(t.inputs) != len(t.outputs):
        return
    tried: list[list[tuple[int, int]]] = []
    for i in sorted(range(len(sites) - 1), key=lambda i: math.prod((*sites[i], *sites[i + 1])))[:_MODES]:
        (a, b), (c, d) = sites[i : i + 2]
        tried.append([*sites[:i], (a * c, b * d), *sites[i + 2 :]])
    for i in sorted(range(len(sites)), key=lambda i: -math.prod(sites[i]))[:_MODES]:
        (a, c), (b, d) = balanced(sites[i][0], 2), balanced(sites[i][1], 2)[::-1]  # large with small
        if (a, b) != (1, 1) and (c, d) != (1, 1):
            tried.append([*sites[:i], (a, b), (c, d), *sites[i + 1 :]])
    for changed in tried:
        result = like(t, *zip(*changed, strict=True))
        if result is None or len(result.cores) == len(t.cores):  # modes are only names there, as in low_rank
            continue
        same = dataclasses.replace(result, in_features=t.in_features, out_features=t.out_features)
        with contextlib.suppress(BudgetError):  # too few parameters for rank 1
            yield same.with_budget(params=network.num_params)


def _with(network: Network, bond: str, rank: int) -> Network:
    topology: Topology = network.topology
    return topology.with_ranks({**network.ranks, bond: rank})
