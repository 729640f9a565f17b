"""The planner: one request, one plan, found once and kept in one store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .._base.cache import plans as _store
from .._base.errors import TN4NNError
from .._base.hashing import fingerprint_of
from .._graph.candidates import candidate_paths
from .._graph.paths import Progress
from .._graph.problem import is_path
from .._runtime.compiled import processor
from .._runtime.contraction import LAYOUTS
from .executors import EXECUTORS, Executor, problem_of, select
from .measure import fastest_of, measured, worth_measuring
from .plan import Plan, in_bytes, replaced, restored_cost
from .request import PlanRequest

_LISTED = 24  # candidates that a plan names, at most


def find(request: PlanRequest, *, cache: bool = True, progress: Progress | None = None) -> Plan:
    """The plan that runs a request; once found, it comes from memory or disk.

    Args:
        request: the question.
        cache: False searches anew and stores nothing.
        progress: called with a line of text per tree of the path search and, for the native runtime, per path priced.

    Raises:
        TN4NNError: no executor of the target can run it, a memory cap that nothing meets, `tune` for programs.

    Example:
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
    if found is None:
        found = _chosen(request, executor, candidates(request, cache=cache, progress=progress))
        if cache:
            _store.put(key, _entry(found), owner)
    return found


def candidates(request: PlanRequest, *, cache: bool = True, progress: Progress | None = None) -> list[Plan]:
    """Everything that is considered for a request, priced, the best first; nothing is stored but paths."""
    executor = select(request)
    options: dict[str, Any] = {"seed": request.seed, "time_limit": request.time_limit, "cache": cache}
    paths = candidate_paths(problem_of(request), progress=progress, **options)
    return executor.candidates(request, paths, progress)


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
    for p in [] if fits else found:
        for sequence in executor.smaller(p):
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
    """The plan of an entry, or None where the entry does not fit the request."""
    problem = request.problem
    try:
        path = tuple((int(a), int(b)) for a, b in data["path"])
        block, layouts = int(data["block"]), tuple(int(code) for code in data["layouts"])
        sliced, seconds = tuple(str(leg) for leg in data["sliced"]), data["measured_s"]
        table = tuple((str(order), restored_cost(cost)) for order, cost in data["candidates"])
        cost, order, save = restored_cost(data["cost"]), str(data["order"]), bool(data["save"])
    except (KeyError, TypeError, ValueError):
        return None
    sound = is_path(path, len(problem.tensors)) and block >= 0 and set(sliced) <= set(problem.sizes)
    sound = sound and all(code in LAYOUTS for code in layouts)
    if not sound or not (seconds is None or isinstance(seconds, float)):
        return None
    return Plan(request, executor.name, order, path, cost, table, block, sliced, layouts, save, seconds)
