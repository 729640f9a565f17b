"""The one list of orders that are worth pricing, for every executor.

A network of a few cores is searched exhaustively. For a larger one there is a single search, at one batch for all; what
it found is remembered, on disk too, and for every other batch the best of it is annealed a little more. So one question
has one answer, whatever was asked before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .._base.cache import plans as _store
from .._base.hashing import fingerprint_of
from .paths import BATCH, EXHAUSTIVE, SMALL, Path, Progress, find_paths, is_exhaustible, refined_paths, search_paths
from .problem import W_FIRST, Problem, is_path, tree_of_path, x_first

VERSION = 1  # raised when the search may find other paths: old entries are then ignored
SEARCHED_BATCH = 256  # rows at which a large network is searched
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
    """Orders worth pricing, each contraction tree once, those with the fewest multiply-adds first.

    They are those with the fewest multiply-adds, with the fewest of these and of elements written, and with the
    smallest intermediate; partly merged neighbours and x through the cores; and W first.

    Args:
        problem: what is contracted, for how many rows.
        seed: of the search (large networks).
        time_limit: seconds of the search (large networks); the step that it is in, it ends.
        cache: False searches anew and stores nothing.
        progress: called with a line of text per tree of the search.

    Example:
        >>> import tn4nn as tn
        >>> [order for order, _ in candidate_paths(Problem(tn.low_rank(64, 64).with_rank(4), "apply", 32))]
        ['fewest MACs found', 'right to left', 'W first']
    """
    found: Named = {}
    merges = problem.merges() if problem.form == "apply" else ()
    others = _of_other_batches(problem)
    for order, path in (*_searched(problem, seed, time_limit, cache, progress), *merges, *others):
        found.setdefault(tree_of_path(path, len(problem.tensors)), (order, x_first(path, len(problem.tensors))))
    macs = {path: problem.macs(path) for _, path in found.values()}
    least = min(macs.values())
    ranked = sorted(
        (named for named in found.values() if macs[named[1]] <= TOO_DEAR * least), key=lambda named: macs[named[1]]
    )
    # Merged neighbours are many: of these the cheapest. What was searched for, and what a person would write by hand,
    # is priced in any case.
    cheap = [named for i, named in enumerate(ranked) if i < MOST or "merged" not in named[0]]
    if problem.form != "apply":
        return cheap
    first = problem.dense_first()
    if problem.macs(first) > TOO_DEAR * least and len(cheap) > 1:
        return cheap
    tree = tree_of_path(first, len(problem.tensors))
    return [*(named for named in cheap if tree_of_path(named[1], len(problem.tensors)) != tree), (W_FIRST, first)]


def _searched(
    problem: Problem, seed: int, time_limit: float, cache: bool, progress: Progress | None
) -> Iterable[tuple[str, Path]]:
    best = list(_exhaustive(problem)) if is_exhaustible(problem.tensors) else []
    if best and len(problem.tensors) <= EXHAUSTIVE:
        return best
    # The best by one measure alone is not always the fastest: of more cores, near ones are searched for too.
    pool = _pool(problem.at(SEARCHED_BATCH), seed, time_limit, cache, progress)
    if problem.batch != SEARCHED_BATCH and BATCH in problem.output:
        pool = _refined(problem, pool, seed, time_limit)
    return [*best, *_ranked(problem, pool)]


def _refined(problem: Problem, known: list[Path], seed: int, time_limit: float) -> list[Path]:
    """Some paths, and what a few annealings make of them for this batch and for each objective."""
    found = list(known)
    for minimize, times in _REFINED.items():
        found += refined_paths(
            problem.tensors, problem.output, problem.sizes, known, minimize=minimize, seed=seed,
            time_limit=min(_REFINE_S, time_limit), times=times,
        )  # fmt: skip
    return found


def _exhaustive(problem: Problem) -> Iterable[tuple[str, Path]]:
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


def _ranked(problem: Problem, pool: list[Path]) -> Iterable[tuple[str, Path]]:
    """The best of the paths that were found, by each objective."""
    most = _FEWEST if len(problem.tensors) <= SMALL else _FEWEST_LARGE
    costs = {path: problem.work(path) for path in dict.fromkeys(pool)}
    for path in sorted(costs, key=lambda path: costs[path].macs)[:most]:
        yield "fewest MACs found", path
    for path in sorted(costs, key=lambda path: costs[path].combo)[:_FEWEST_WRITTEN]:
        yield "fewest MACs and writes found", path
    for path in sorted(costs, key=lambda path: costs[path].largest)[:_SMALLEST]:
        yield "smallest intermediate found", path


def _pool(problem: Problem, seed: int, time_limit: float, cache: bool, progress: Progress | None) -> list[Path]:
    """What the one search of a large network found: the best by each objective."""
    owner = problem.network.fingerprint
    key = fingerprint_of(["paths", VERSION, owner, problem.form, seed, time_limit])
    stored = _store.get(key, owner) if cache else None
    known = None if stored is None else _restored(stored, len(problem.tensors))
    if known is not None:
        return known
    question = problem.tensors, problem.output, problem.sizes
    every = search_paths(*question, seed=seed, time_limit=time_limit, progress=progress)
    # What writes less is near what computes least: a few annealings find it.
    every = _refined(problem, [path for _, path in _ranked(problem, every)] + every[:1], seed, time_limit) + every
    found = list(dict.fromkeys(path for _, path in _ranked(problem, every)))
    if cache:
        _store.put(key, {"paths": [[list(pair) for pair in path] for path in found]}, owner)
    return found


def _restored(data: Mapping[str, Any], tensors: int) -> list[Path] | None:
    """The paths of an entry of the store, or None where it does not fit."""
    try:
        found = [tuple((int(a), int(b)) for a, b in path) for path in data["paths"]]
    except (KeyError, TypeError, ValueError):
        return None
    return found if found and all(is_path(path, tensors) for path in found) else None
