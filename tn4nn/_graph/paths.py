"""Contraction paths: every call into cotengra and cotengrust stands in this module.

Everything is seeded and free of parallelism, so one input gives one path on every machine (a search that
ran into its time limit excepted, and it says so). A path is a tuple of pairs in single static assignment
form: the i-th pair contracts two of the tensors so far and makes tensor n + i.
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from .._base.errors import TN4NNError

Legs = tuple[str, ...]
Path = tuple[tuple[int, int], ...]
Progress = Callable[[str], None]

BATCH = ":batch"  # the batch leg; a user cannot name a leg so, a colon ends a core name

EXHAUSTIVE = 9  # tensors up to which the exhaustive search always ends within some milliseconds
SMALL = 40  # tensors up to which half of the rounds are enough: they are to be planned within a second
_ROUNDS = 8  # rounds of the random search
_TRIALS = 64  # greedy trials in a round
_AGAIN = 32  # annealings of the best tree, at most
_PATIENCE = 8  # of them without gain, after which the search ends
_LITTLE_PATIENCE = 2  # of all annealings without gain, after which that of a small network ends
_SUBTREE = 6  # tensors of the subtrees that are reordered exhaustively
_LAST: tuple[dict[str, Any], ...] = (  # and how this is done at the end
    {"subtree_size": 9},
    {"subtree_size": 9, "subtree_search": "random", "select": "random"},
)
_HOT, _WARM, _COLD = 1.0, 0.3, 0.02  # e-folds of the multiply-adds: where annealing begins, again, and ends
_HOTTER = 4  # beginnings of annealing again, each twice as hot as the one before
_COOLINGS = 12  # temperatures between
_SWEEPS = 10  # through the whole tree at each temperature
_WRITING = 64  # multiply-adds that take as long as an element written: what cotengra's "combo" says


def find_paths(
    tensors: Sequence[Legs],
    output: Legs,
    sizes: Mapping[str, int],
    *,
    minimize: str = "flops",
    seed: int = 0,
    time_limit: float = 10.0,
    progress: Progress | None = None,
    thorough: bool = True,
) -> list[Path]:
    """Good paths for one network, best first by what is minimised.

    Small networks are searched exhaustively. For larger ones, seeded random-greedy rounds come first, then each of
    their trees is annealed, then the best tree so far, with a new seed each time; every tree is refined by reordering
    small subtrees exhaustively, and the best one at the end by reordering larger ones. There, products of tensors
    without a common leg are tried too: in some networks they save a fifth. The search ends when annealing no longer
    helps, or with `time_limit`.

    Args:
        tensors: the legs of each tensor.
        output: the legs that are not summed.
        sizes: size of every leg.
        minimize: "flops" for multiply-adds, "combo" for multiply-adds and 64 times the elements written (cotengra's
            estimate of time), or "size" for the largest intermediate.
        seed: of the random search.
        time_limit: seconds after which no new round is begun, and annealing is stopped.
        progress: called with one line per round.
        thorough: False for half the rounds and no larger subtrees, where a path is one candidate among others.

    Source: simulated annealing of trees, Kalachev, Panteleev and Yung (arXiv:2108.05665), in cotengra.
    """
    if len(tensors) == 1:
        return [()]
    if len(tensors) == 2:
        return [((0, 1),)]
    inputs, out, known = _lettered(tensors, output, sizes)
    if len(tensors) <= EXHAUSTIVE:
        return [_call("optimize_optimal", inputs, out, known, minimize=minimize, use_ssa=True)]
    return _search(inputs, out, known, minimize, seed, time_limit, progress, thorough)


def quick_path(tensors: Sequence[Legs], output: Legs, sizes: Mapping[str, int]) -> Path:
    """One path, found at once: the best where exhaustive search ends within milliseconds, else the greedy one."""
    if len(tensors) <= EXHAUSTIVE:
        return find_paths(tensors, output, sizes)[0]
    return greedy_path(tensors, output, sizes)


def greedy_path(tensors: Sequence[Legs], output: Legs, sizes: Mapping[str, int]) -> Path:
    """One path, found at once: for oracles and estimates."""
    legs = dict.fromkeys(leg for tensor in (*tensors, output) for leg in tensor)
    return _greedy_path(tuple(tensors), output, tuple((leg, sizes[leg]) for leg in legs))


@functools.lru_cache(maxsize=1024)
def _greedy_path(tensors: tuple[Legs, ...], output: Legs, sizes: tuple[tuple[str, int], ...]) -> Path:
    if len(tensors) <= 4:
        return find_paths(tensors, output, dict(sizes))[0]
    return _call("optimize_greedy", *_lettered(tensors, output, dict(sizes)), use_ssa=True)


def legs_along(tensors: Sequence[Iterable[str]], output: Iterable[str], path: Path) -> list[frozenset[str]]:
    """The legs of every tensor of a path: the given ones, then what each pair makes.

    A leg that both of a pair hold is summed when nothing else holds it, neither another tensor nor the output.

    Example:
        >>> [sorted(legs) for legs in legs_along(["xa", "ay"], "xy", ((0, 1),))]
        [['a', 'x'], ['a', 'y'], ['x', 'y']]
    """
    found = [frozenset(legs) for legs in tensors]
    holders = Counter(leg for legs in (*found, frozenset(output)) for leg in legs)
    for a, b in path:
        both = found[a] & found[b]
        holders.subtract(both)  # two holders become one
        found.append((found[a] | found[b]) - {leg for leg in both if holders[leg] == 1})
    return found


def path_macs(tensors: Sequence[Iterable[str]], output: Iterable[str], sizes: Mapping[str, int], path: Path) -> int:
    """Multiply-adds of a path."""
    legs = legs_along(tensors, output, path)
    return sum(math.prod(sizes[leg] for leg in legs[a] | legs[b]) for a, b in path)


def _lettered(
    tensors: Sequence[Legs], output: Legs, sizes: Mapping[str, int]
) -> tuple[list[list[str]], list[str], dict[str, float]]:
    """(inputs, output, sizes) with one-character legs, as the searches want them."""
    letters = _letters((*tensors, output))
    inputs = [[letters[leg] for leg in legs] for legs in tensors]
    return inputs, [letters[leg] for leg in output], {letters[leg]: float(sizes[leg]) for leg in letters}


def _letters(tensors: Iterable[Legs]) -> dict[str, str]:
    return {leg: chr(0x4E00 + i) for i, leg in enumerate(dict.fromkeys(leg for legs in tensors for leg in legs))}


def _search(
    inputs: list[list[str]],
    out: list[str],
    sizes: dict[str, float],
    minimize: str,
    seed: int,
    time_limit: float,
    progress: Progress | None,
    thorough: bool,
) -> list[Path]:
    trees: list[Any] = []  # cotengra is untyped, and pyright takes its tree for a str
    score = functools.partial(_score, minimize=minimize)
    start, idle, small = time.monotonic(), 0, len(inputs) <= SMALL
    rounds, again, patience = (_ROUNDS // 2, _ROUNDS // 4, _LITTLE_PATIENCE) if small else (_ROUNDS, _AGAIN, _PATIENCE)
    if not thorough:
        rounds, again = rounds // 2, again // 2
    patient = rounds if small else 2 * rounds  # the step from which a step without gain counts
    # What needs least memory is not annealed.
    steps = rounds if minimize == "size" else 2 * rounds + again
    for step in range(steps):
        if step == rounds:
            trees.sort(key=score)  # time may run out before all of them are annealed
        if step < rounds:
            tree = _random_greedy(inputs, out, sizes, seed + step)
        elif step < 2 * rounds:
            tree = _annealed(trees[step - rounds], minimize, _HOT, seed + step, start + time_limit)
        else:
            hot = _WARM * 2 ** (idle % _HOTTER)
            tree = _annealed(min(trees, key=score), minimize, hot, seed + step, start + time_limit)
        tree = _reordered(tree, minimize, subtree_size=_SUBTREE)
        better = not trees or score(tree) < min(map(score, trees))
        idle = 0 if better or step < patient else idle + 1
        trees.append(tree)
        spent = time.monotonic() - start
        if progress is not None:
            progress(f"path search {step + 1}/{steps}: best {min(map(score, trees)):.3g}, {spent:.1f} s")
        if spent > time_limit or idle == patience:
            break
    for how in _LAST if thorough else ():
        if time.monotonic() - start <= time_limit:
            trees.append(_reordered(min(trees, key=score), minimize, seed=seed, **how))
    return list(dict.fromkeys(_pairs(tree.get_ssa_path()) for tree in sorted(trees, key=score)))


def _score(tree: Any, minimize: str) -> float:
    if minimize == "size":
        return float(tree.max_size())
    return float(tree.total_flops() + (_WRITING * tree.total_write() if minimize == "combo" else 0))


def _random_greedy(inputs: list[list[str]], out: list[str], sizes: dict[str, float], seed: int) -> Any:
    """The best tree of one round of the random search."""
    import cotengra

    path = _call("optimize_random_greedy_track_flops", inputs, out, sizes, ntrials=_TRIALS, seed=seed, use_ssa=True)
    whole = {leg: int(size) for leg, size in sizes.items()}
    return cotengra.ContractionTree.from_path(inputs, out, whole, ssa_path=path)


def _reordered(tree: Any, minimize: str, **options: Any) -> Any:
    """The tree with its subtrees in their best order, products of tensors without a common leg included.

    Exhaustive search keeps tensors that have no leg in common with the others to the last, so what annealing has found
    may be better: then it stays.
    """
    import cotengra

    exhaustive = cotengra.OptimalOptimizer(minimize=minimize, search_outer=True, simplify=False)
    other = tree.subtree_reconfigure(minimize=minimize, optimize=exhaustive, **options)
    return min(tree, other, key=functools.partial(_score, minimize=minimize))


def _annealed(tree: Any, minimize: str, hot: float, seed: int, deadline: float) -> Any:
    """A copy of the tree, annealed one temperature at a time: in a large network all of them take minutes."""
    tree = tree.copy()
    for i in range(_COOLINGS):
        if time.monotonic() > deadline:
            break
        temperature = hot * (_COLD / hot) ** (i / (_COOLINGS - 1))
        tree.simulated_anneal_(
            tstart=temperature, tfinal=temperature, tsteps=1, numiter=_SWEEPS, minimize=minimize,
            seed=seed * _COOLINGS + i,
        )  # fmt: skip
    return tree


def _call(name: str, inputs: list[list[str]], out: list[str], sizes: dict[str, float], **options: Any) -> Path:
    import cotengrust

    try:
        found = getattr(cotengrust, name)(inputs, out, sizes, **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic derives from BaseException
        raise TN4NNError(f"cotengrust.{name} failed on {len(inputs)} tensors: {error}") from error
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], float):
        found = found[0]  # (path, flops)
    return _pairs(found)


def _pairs(path: Sequence[Sequence[int]]) -> Path:
    """A path of pairs, out of one that may also hold steps on a single tensor."""
    inputs = 1 + sum(len(step) - 1 for step in path)
    known = list(range(inputs))
    pairs: list[tuple[int, int]] = []
    for step in path:
        current = known[step[0]]
        for other in step[1:]:
            pairs.append((current, known[other]))
            current = inputs + len(pairs) - 1
        known.append(current)
    return cast(Path, tuple(pairs))


def chain_path(order: Sequence[int], first: int, tensors: int) -> Path:
    """The path that starts with tensor `first` and takes in the others one by one."""
    pairs = []
    current = first
    for step, other in enumerate(order):
        pairs.append((current, other))
        current = tensors + step
    return tuple(pairs)


def slice_legs(
    tensors: Sequence[Legs], output: Legs, sizes: Mapping[str, int], path: Path, largest: int
) -> tuple[str, ...] | None:
    """The summed legs over which to loop so that no intermediate has more than `largest` elements.

    Returns None where no set of summed legs does it.
    """
    import cotengra

    letters = _letters(tensors)
    inputs, out, known = _lettered(tensors, output, sizes)
    whole = {leg: int(size) for leg, size in known.items()}
    tree: Any = cotengra.ContractionTree.from_path(inputs, out, whole, ssa_path=path)
    try:
        sliced = tree.slice(target_size=largest, allow_outer=False, temperature=0.0, max_repeats=1, seed=0)
    except (RuntimeError, ValueError, KeyError):
        return None
    if sliced.max_size() > largest:
        return None
    return tuple(leg for leg in letters if letters[leg] in sliced.sliced_inds)
