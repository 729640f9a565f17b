"""The planner: one request, one plan, found once and kept in one store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .._base.cache import plans as _store
from .._base.errors import TN4NNError
from .._base.hashing import fingerprint_of
from .._graph.candidates import TOO_DEAR, candidate_paths
from .._graph.paths import SMALL, Progress, quick_path
from .._graph.problem import stored_path
from .._runtime.contraction import LAYOUTS
from .._runtime.cost import Cost
from .._runtime.processor import processor
from .executors import EXECUTORS, Executor, problem_of, select
from .measure import fastest_of, measured, worth_measuring
from .plan import Plan, in_bytes, replaced, restored_cost
from .request import PlanRequest

_SEARCH = 0.6  # share of the time limit for the path search of a large network; the rest is for pricing
_LISTED = 24  # candidates that a plan names, at most
_LONGEST = 200  # letters of the order of a plan out of a file
_PEAK, _PEAKS = 1 << 31, 4  # bytes of its peak, and times what the order that is found at once writes


def find(request: PlanRequest, *, cache: bool = True, progress: Progress | None = None) -> Plan:
    """The plan that runs a request; once found, it comes from memory or disk.

    Args:
        request: the question.
        cache: False searches anew and stores nothing.
        progress: called with a line of text per tree of the path search and, for the native runtime, per path priced.

    Raises:
        TN4NNError: no executor of the target can run it, a memory cap that nothing meets, `tune` for programs.

    Examples:
        >>> import tn4nn as tn
        >>> find(PlanRequest(tn.low_rank(64, 64).with_rank(4), 32)).executor
        'program'
    """
    executor = select(request)
    if request.tune and executor.name != "native":
        raise TN4NNError(f"tune measures the native runtime, received runtime={executor.name!r}: pass runtime='native'")
    owner = request.network.fingerprint  # once: that of a large network takes half a millisecond
    key = _key(request, executor, owner)
    stored = _store.get(key, owner) if cache else None
    found = None if stored is None else _restored(request, executor, stored)
    if found is None and cache:
        offered = _store.offered(key, owner)
        found = None if offered is None else _vetted(request, executor, offered)
        if found is not None:
            _store.remember(key, _entry(found), owner)
    if found is None:
        considered = _candidates(request, executor, cache, progress)
        if not considered:
            return find(_without(request, executor), cache=cache, progress=progress)
        found = _chosen(request, executor, considered)
        if cache:
            _store.put(key, _entry(found), owner)
    return found


def candidates(request: PlanRequest, *, cache: bool = True, progress: Progress | None = None) -> list[Plan]:
    """Everything that is considered for a request, priced, the best first; nothing is stored but paths."""
    executor = select(request)
    found = _candidates(request, executor, cache, progress)
    return found or candidates(_without(request, executor), cache=cache, progress=progress)


def _candidates(request: PlanRequest, executor: Executor, cache: bool, progress: Progress | None) -> list[Plan]:
    """The same of one executor; none where it can run none of the orders."""
    start, problem = time.monotonic(), problem_of(request)
    share = _SEARCH if len(problem.tensors) > SMALL else 1.0
    options: dict[str, Any] = {"seed": request.seed, "time_limit": share * request.time_limit, "cache": cache}
    paths = candidate_paths(problem, progress=progress, **options)
    return executor.candidates(request, paths, request.time_limit - (time.monotonic() - start), progress)


def _without(request: PlanRequest, executor: Executor) -> PlanRequest:
    """The same for the executors that come after one; TN4NNError where none does."""
    names = request.target.executors
    rest = names[names.index(executor.name) + 1 :]
    if not rest:
        raise TN4NNError(
            f"{executor.name!r} can run none of the orders for {request.network.topology.name!r}: all make arrays that "
            f"are too large for it. Choose smaller ranks, or another executor than {', '.join(names)}"
        )
    return dataclasses.replace(request, target=request.target.only(*rest))


def at_rows(plan: Plan, rows: int, phase: str | None = None) -> Plan:
    """The same plan with the cost of another number of rows, or of another phase: what was planned for a batch class
    runs all of it, and what was planned for training runs forward passes too."""
    if rows == plan.batch and phase in (None, plan.phase):
        return plan
    executor = EXECUTORS[plan.executor]
    executor.lower(plan)  # for its own rows: for others, the leg orders of a program may be other ones
    request = dataclasses.replace(plan.request, batch=rows, phase=phase or plan.phase)
    moved = replaced(plan, request=request, measured_s=None)
    return replaced(moved, cost=executor.cost(moved))


def _chosen(request: PlanRequest, executor: Executor, found: Sequence[Plan]) -> Plan:
    """The plan to run of all candidates, with a table of the best of them."""
    if request.memory is not None:
        chosen = _within(request, executor, found)
    elif request.tune:
        found = measured(worth_measuring(found))
        chosen = fastest_of(found)
        found = [chosen, *(p for p in found if p is not chosen)]
    else:
        chosen = found[0]
    table = tuple((p.order, p.cost) for p in found[:_LISTED])
    return replaced(chosen, candidates=table)


def _within(request: PlanRequest, executor: Executor, found: Sequence[Plan]) -> Plan:
    """The best candidate under the memory cap, in tiles or slices where it must be."""
    assert request.memory is not None
    fits = [p for p in found if p.cost.peak <= request.memory]
    smallest = min(p.cost.peak for p in found)
    for number, p in enumerate([] if fits else found):
        for sequence in executor.smaller(p, reorder=number == 0):  # from where it begins matters little
            for other in sequence:
                smallest = min(smallest, other.cost.peak)
                if other.cost.peak <= request.memory:
                    fits.append(other)
                    break
    if not fits:
        raise TN4NNError(
            f"no plan of {request.network.topology.name!r} at batch {request.batch} has a peak of at most "
            f"{in_bytes(request.memory)}: the smallest found needs {in_bytes(smallest)} ({smallest} bytes)"
        )
    return min(fits, key=lambda p: p.cost.score(request.minimize))


# -- the store ----------------------------------------------------------------------------------------------------


def _key(request: PlanRequest, executor: Executor, owner: str) -> str:
    """All that decides the answer, the parameters of the cost model included."""
    question = [executor.name, executor.version, owner, request.batch, request.phase, request.minimize, request.form]
    question += [request.itemsize, request.memory, request.tune, request.seed, request.time_limit, request.window]
    return fingerprint_of([*question, executor.key(request), processor() if request.tune else ""])


def _entry(p: Plan) -> dict[str, Any]:
    """What has to be stored of a plan; the rest follows from it."""
    return {
        "order": p.order,
        "path": [list(pair) for pair in p.path],
        "cost": list(dataclasses.astuple(p.cost)),
        "candidates": [[order, list(dataclasses.astuple(cost))] for order, cost in p.candidates],
        "block": p.block,
        "sliced": list(p.sliced),
        "layouts": list(p.layouts),
        "save": p.save,
        "measured_s": p.measured_s,
    }


def _restored(request: PlanRequest, executor: Executor, data: Mapping[str, Any]) -> Plan | None:
    """The plan of an entry of our own, or None where the entry does not fit the request."""
    found = _shape(request, executor, data)
    try:
        table = tuple((str(order), restored_cost(cost)) for order, cost in data["candidates"])
        cost, seconds = restored_cost(data["cost"]), data["measured_s"]
    except (KeyError, TypeError, ValueError):
        return None
    if found is None or not (seconds is None or isinstance(seconds, float)):
        return None
    return replaced(found, cost=cost, candidates=table, measured_s=seconds)


def _vetted(request: PlanRequest, executor: Executor, data: Mapping[str, Any]) -> Plan | None:
    """The plan of an entry that came with a model, or None where this planner could not have made it.

    What is computed from a plan is computed here, whatever the entry says of it.
    """
    found = _shape(request, executor, data)
    if found is None or not executor.could_make(found):
        return None
    problem = request.problem
    quick = problem.work(quick_path(problem.tensors, problem.output, problem.sizes))
    if problem.macs(found.path) > TOO_DEAR * quick.macs:
        return None
    found = replaced(found, cost=executor.cost(found))
    most = _PEAK + _PEAKS * request.itemsize * quick.written if request.memory is None else request.memory
    return replaced(found, candidates=((found.order, found.cost),)) if found.cost.peak <= most else None


def _shape(request: PlanRequest, executor: Executor, data: Mapping[str, Any]) -> Plan | None:
    """What an entry says that is run, without what it says that it costs."""
    problem = request.problem
    path = stored_path(data.get("path"), len(problem.tensors))
    order, block, save = data.get("order"), data.get("block"), data.get("save")
    layouts, sliced = data.get("layouts"), data.get("sliced")
    if not isinstance(order, str) or len(order) > _LONGEST or not order.isprintable():
        return None
    if path is None or type(block) is not int or not isinstance(save, bool) or not 0 <= block <= request.batch:
        return None
    if not (isinstance(layouts, list) and all(type(code) is int and code in LAYOUTS for code in layouts)):
        return None
    legs = problem.summed
    if not (isinstance(sliced, list) and all(isinstance(leg, str) and leg in legs for leg in sliced)):
        return None
    loops, codes = tuple(dict.fromkeys(sliced)), tuple(layouts)
    return Plan(request, executor.name, order, path, Cost(0, 0, 0, 0, 0.0), (), block, loops, codes, save)
