"""The one list of orders that are worth pricing, for every executor.

A network of a few cores is searched exhaustively. For a larger one there is a single search, at one batch for all; what
it found is remembered, on disk too, and for every other batch the best of it is annealed a little more. So one question
has one answer, whatever was asked before.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .._base.cache import plans as _store
from .._base.hashing import fingerprint_of
from .einsum import EinsumProblem
from .paths import (
    BATCH,
    EXHAUSTIVE,
    LARGE,
    SMALL,
    Path,
    Progress,
    find_paths,
    greedy_path,
    is_exhaustible,
    path_work,
    quick_path,
    refined_paths,
    restarted_paths,
    search_paths,
)
from .problem import W_FIRST, Contracted, Problem, stored_path, tree_of_path, x_first

VERSION = 2  # raised when the search may find other paths: old entries are then ignored
SEARCHED_BATCH = 256  # rows at which a large network is searched
GREEDY = "greedy"
AS_GIVEN = "as given"
CONSTANTS_FIRST = "constants first"
_MADE = 1 << 24  # numbers of what constants make, at most
MOST = 18  # orders that are priced, at most; "W first" and the cores in their order come on top
TOO_DEAR = 1000  # times the fewest multiply-adds: taking the cores of a large graph in turn may take hours to lower
_OTHER_BATCHES = (1, 16, 256, 4096)  # whose best orders are candidates too
_FEWEST, _FEWEST_LARGE = 5, 3  # orders with the fewest multiply-adds; those of a large network take long to price
_FEWEST_WRITTEN, _SMALLEST = 4, 1  # with the fewest multiply-adds and elements written; with the smallest intermediate
_REFINED = {"flops": 1, "combo": 2, "size": 1}  # annealings for another batch, by objective
_REFINE_S = 0.15  # seconds for those of one objective

Named = dict[frozenset[frozenset[int]], tuple[str, Path]]


def candidate_paths(
    problem: Problem,
    *,
    seed: int = 0,
    time_limit: float = 10.0,
    cache: bool = True,
    progress: Progress | None = None,
) -> list[tuple[str, Path]]:
    """Orders worth pricing, those with the fewest multiply-adds first; each contraction tree once but the greedy one.

    They are those with the fewest multiply-adds, with the fewest of these and of elements written, and with the
    smallest intermediate; partly merged neighbours and x through the cores; the greedy one; and W first.

    Args:
        problem: what is contracted, for how many rows.
        seed: of the search (large networks).
        time_limit: seconds of the search (large networks); the step that it is in, it ends.
        cache: False searches anew and stores nothing.
        progress: called with a line of text per tree of the search.

    Examples:
        >>> import tn4nn as tn
        >>> [order for order, _ in candidate_paths(Problem(tn.low_rank(64, 64).with_rank(4), "apply", 32))]
        ['fewest MACs found', 'right to left', 'W first', 'greedy']
    """
    found: Named = {}
    merges = problem.merges() if problem.form == "apply" else ()
    others = _of_other_batches(problem)
    greedy = greedy_path(problem.tensors, problem.output, problem.sizes)
    for order, path in (*_searched(problem, seed, time_limit, cache, progress), *merges, *others, (GREEDY, greedy)):
        found.setdefault(tree_of_path(path, len(problem.tensors)), (order, x_first(path, len(problem.tensors))))
    macs = {path: problem.macs(path) for _, path in found.values()}
    least = min(macs.values())
    ranked = sorted(
        (named for named in found.values() if macs[named[1]] <= TOO_DEAR * least), key=lambda named: macs[named[1]]
    )
    # Merged neighbours are many: of these the cheapest. What was searched for, and what a person would write by hand,
    # is priced in any case.
    cheap = [named for i, named in enumerate(ranked) if i < MOST or "merged" not in named[0]]
    first = problem.dense_first() if problem.form == "apply" else None
    if first is not None and (problem.macs(first) <= TOO_DEAR * least or len(cheap) == 1):
        tree = tree_of_path(first, len(problem.tensors))
        cheap = [*(named for named in cheap if tree_of_path(named[1], len(problem.tensors)) != tree), (W_FIRST, first)]
    # With the operands of its products as they come: a program may be faster so than with x first.
    if greedy not in [path for _, path in cheap] and problem.macs(greedy) <= TOO_DEAR * least:
        cheap.append((GREEDY, greedy))
    return cheap


def _searched(
    problem: Problem, seed: int, time_limit: float, cache: bool, progress: Progress | None
) -> Iterable[tuple[str, Path]]:
    deadline = time.monotonic() + time_limit
    best = list(_exhaustive(problem)) if is_exhaustible(problem.tensors) else []
    if best and len(problem.tensors) <= EXHAUSTIVE:
        return best
    # The best by one measure alone is not always the fastest: of more cores, near ones are searched for too.
    owner = problem.network.fingerprint
    key = fingerprint_of(["paths", VERSION, owner, problem.form, seed, time_limit])
    pool = _pool(problem.at(SEARCHED_BATCH), key, owner, seed, time_limit, cache, progress)
    if problem.batch != SEARCHED_BATCH and BATCH in problem.output:
        pool = _refined(problem, pool, seed, deadline)
    return [*best, *_ranked(problem, pool)]


def einsum_paths(
    problem: EinsumProblem,
    *,
    constants: Collection[int] = (),
    seed: int = 0,
    time_limit: float = 10.0,
    cache: bool = True,
    progress: Progress | None = None,
) -> list[tuple[str, Path]]:
    """Orders worth pricing for any tensors: two have one, few are searched exhaustively, for more there is one search.

    Args:
        problem: what is contracted.
        constants: positions of tensors that do not change: contracting them first is an order too.
        seed: of the search.
        time_limit: seconds of the search; the step that it is in, it ends.
        cache: False searches anew and stores nothing.
        progress: called with a line of text per tree of the search.

    Examples:
        >>> from tn4nn._graph.einsum import read
        >>> [path for _, path in einsum_paths(read("ij,jk->ik", [(2, 3), (3, 4)]).problem)]
        [((0, 1),)]
    """
    count = len(problem.tensors)
    if count <= 2:
        return [(AS_GIVEN, ((0, 1),) if count == 2 else ())]
    # Searches take logarithms of sizes, and of nothing any order is the best.
    problem = dataclasses.replace(problem, sizes={leg: max(1, size) for leg, size in problem.sizes.items()})
    if is_exhaustible(problem.tensors):
        found = list(_exhaustive(problem))
    else:
        key = fingerprint_of(["any tensors", VERSION, problem.fingerprint, seed, time_limit])
        found = list(_ranked(problem, _pool(problem, key, "", seed, time_limit, cache, progress, count > LARGE)))
    found.append((GREEDY, greedy_path(problem.tensors, problem.output, problem.sizes)))
    first = _constants_first(problem, constants) if 1 < len(constants) < count else None
    if first is not None:
        found.append((CONSTANTS_FIRST, first))
    named: Named = {}
    for order, path in found:
        named.setdefault(tree_of_path(path, count), (order, path))
    return list(named.values())


def _constants_first(problem: EinsumProblem, constants: Collection[int]) -> Path | None:
    """The constants among themselves, then the others with what they make; None where that is very large."""
    count = len(problem.tensors)
    fixed, others = ([i for i in range(count) if (i in constants) is there] for there in (True, False))
    beside = {leg for i in others for leg in problem.tensors[i]} | set(problem.output)
    made = tuple(dict.fromkeys(leg for i in fixed for leg in problem.tensors[i] if leg in beside))
    if math.prod(problem.sizes[leg] for leg in made) > _MADE:
        return None
    path = list(quick_path([problem.tensors[i] for i in fixed], made, problem.sizes))
    numbers = [*fixed, *range(count, count + len(path))]
    path = [(numbers[a], numbers[b]) for a, b in path]
    rest = quick_path([*(problem.tensors[i] for i in others), made], problem.output, problem.sizes)
    numbers = [*others, count + len(path) - 1, *range(count + len(path), 2 * count)]
    return (*path, *((numbers[a], numbers[b]) for a, b in rest))


def _refined(problem: Contracted, known: list[Path], seed: int, deadline: float) -> list[Path]:
    """Some paths, and what a few annealings make of them for this batch and for each objective.

    One annealing of a graph with very many bonds takes longer than all of these may: then it stays at the first.
    """
    if len(problem.tensors) > LARGE:
        return known
    found, end = list(known), min(deadline, time.monotonic() + _REFINE_S * len(_REFINED))
    for minimize, times in _REFINED.items():
        left = end - time.monotonic()
        if left <= 0:
            break
        found += refined_paths(
            problem.tensors, problem.output, problem.sizes, known, minimize=minimize, seed=seed,
            time_limit=min(_REFINE_S, left), times=times,
        )  # fmt: skip
    return found


def _exhaustive(problem: Contracted) -> Iterable[tuple[str, Path]]:
    for order, minimize in (
        ("fewest MACs found", "flops"),
        ("fewest MACs and writes found", "combo"),
        ("smallest intermediate found", "size"),
    ):
        yield order, find_paths(problem.tensors, problem.output, problem.sizes, minimize=minimize)[0]


def _of_other_batches(problem: Problem) -> Iterable[tuple[str, Path]]:
    """What has the fewest multiply-adds for other batches, of a small network; in the pool of a large one it is."""
    if not is_exhaustible(problem.tensors) or BATCH not in problem.output:
        return
    for rows in _OTHER_BATCHES:
        if rows != problem.batch:
            yield f"fewest MACs at batch {rows}", find_paths(problem.tensors, problem.output, problem.at(rows).sizes)[0]


def _ranked(problem: Contracted, pool: list[Path]) -> Iterable[tuple[str, Path]]:
    """The best of the paths that were found, by each objective."""
    most = _FEWEST if len(problem.tensors) <= SMALL else _FEWEST_LARGE
    question = problem.tensors, problem.output, problem.sizes
    costs = {path: path_work(*question, path) for path in dict.fromkeys(pool)}
    for path in sorted(costs, key=lambda path: costs[path].macs)[:most]:
        yield "fewest MACs found", path
    for path in sorted(costs, key=lambda path: costs[path].combo)[:_FEWEST_WRITTEN]:
        yield "fewest MACs and writes found", path
    for path in sorted(costs, key=lambda path: costs[path].largest)[:_SMALLEST]:
        yield "smallest intermediate found", path


def _pool(
    problem: Contracted,
    key: str,
    owner: str,
    seed: int,
    time_limit: float,
    cache: bool,
    progress: Progress | None,
    many_starts: bool = False,
) -> list[Path]:
    """What the one search of a large network found: the best by each objective; kept in the store under a key."""
    for stored in (_store.get(key, owner), _store.offered(key, owner)) if cache else ():
        known = None if stored is None else _restored(stored, len(problem.tensors))
        if known is not None:
            return known
    question, deadline = (problem.tensors, problem.output, problem.sizes), time.monotonic() + time_limit
    search = restarted_paths if many_starts else search_paths
    every = search(*question, seed=seed, time_limit=time_limit, progress=progress)
    # What writes less is near what computes least: a few annealings find it.
    every = _refined(problem, [path for _, path in _ranked(problem, every)] + every[:1], seed, deadline) + every
    found = list(dict.fromkeys(path for _, path in _ranked(problem, every)))
    if cache:
        _store.put(key, {"paths": [[list(pair) for pair in path] for path in found]}, owner)
    return found


def _restored(data: Mapping[str, Any], tensors: int) -> list[Path] | None:
    """The paths of an entry of the store, or None where it does not fit."""
    stored = data.get("paths")
    if not isinstance(stored, list) or not 0 < len(stored) <= _FEWEST + _FEWEST_WRITTEN + _SMALLEST:
        return None
    found = [stored_path(path, tensors) for path in stored]
    whole = [path for path in found if path is not None]
    return whole if len(whole) == len(found) else None
