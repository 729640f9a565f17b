"""Contraction paths: every call into cotengra and cotengrust stands in this module.

Everything is seeded and free of parallelism, so one input gives one path on every machine (a search that
ran into its time limit excepted, and it says so). A path is a tuple of pairs in single static assignment
form: the i-th pair contracts two of the tensors so far and makes tensor n + i.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from .._base.errors import TN4NNError

Legs = tuple[str, ...]
Path = tuple[tuple[int, int], ...]
Progress = Callable[[str], None]

BATCH = ":batch"  # the batch leg; a user cannot name a leg so, a colon ends a core name

_FIRST_LETTER, _FIRST_SURROGATE, _SURROGATES = 0x4E00, 0xD800, 0x800
EXHAUSTIVE = 9  # tensors up to which the exhaustive search ends within some hundredths of a second, whatever joins them
_SPARSE, _DEGREE = 14, 2.0  # tensors up to which it does where few of them are joined: so many pairs for each tensor
_HOLDERS = 3  # and no leg is on more than so many: where a hyperedge joins all, each tensor takes it three times longer
SMALL = 40  # tensors up to which half of the rounds are enough: they are to be planned within a second
_FULL = 64  # tensors up to which all rounds are made; in larger networks their number falls with the square
LARGE = 100  # tensors above which a path for another batch is not searched for: annealing once takes too long
_ROUNDS = 8  # rounds of the random search
_TRIALS = 64  # greedy trials in a round
_AGAIN = 32  # annealings of the best tree, at most
_PATIENCE = 8  # of them without gain, after which the search ends
_LITTLE_PATIENCE = 2  # of all annealings without gain, after which that of a small network ends
_TRIED, _MOST_SUBTREES = 8, 1024  # subtrees that are reordered to learn how long one takes; those of a tree, at most
_SUBTREE = 6  # tensors of the subtrees that are reordered exhaustively
_LAST: tuple[dict[str, Any], ...] = (  # and how this is done at the end
    {"subtree_size": 9},
    {"subtree_size": 9, "subtree_search": "random", "select": "random"},
)
_HOT, _WARM, _COLD = 1.0, 0.3, 0.02  # e-folds of the multiply-adds: where annealing begins, again, and ends
_HOTTER = 4  # beginnings of annealing again, each twice as hot as the one before
_COOLINGS = 12  # temperatures between
_SWEEPS = 10  # through the whole tree at each temperature
REORDERED = (("combo", 8), ("flops", 10), ("flops", 8))  # ways to reorder what is sliced: luck decides which is best
_SLICING: dict[str, Any] = {"temperature": 0.01, "max_repeats": 16, "seed": 0}  # of the search for legs to loop over
WRITE_MACS = 64  # multiply-adds that take as long as an element written: what cotengra's "combo" says


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
    if is_exhaustible(tensors):
        return [_call("optimize_optimal", *_lettered(tensors, output, sizes), minimize=minimize, use_ssa=True)]
    options: dict[str, Any] = {"minimize": minimize, "seed": seed, "time_limit": time_limit, "progress": progress}
    return search_paths(tensors, output, sizes, thorough=thorough, **options)


def search_paths(
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
    """What `find_paths` does for larger networks, for three tensors or more: many good paths, best first."""
    search = TreeSearch(
        *_lettered(tensors, output, sizes), minimize=minimize, seed=seed, time_limit=time_limit, progress=progress
    )
    return search.run(thorough=thorough)


def restarted_paths(
    tensors: Sequence[Legs],
    output: Legs,
    sizes: Mapping[str, int],
    *,
    seed: int = 0,
    time_limit: float = 10.0,
    progress: Progress | None = None,
) -> list[Path]:
    """Paths for very many tensors, those with the fewest multiply-adds and elements written ("combo") first, by many
    starts in place of one long annealing; arguments as in `find_paths`."""
    options: dict[str, Any] = {"minimize": "combo", "seed": seed, "time_limit": time_limit, "progress": progress}
    return TreeSearch(*_lettered(tensors, output, sizes), **options).restart()


def is_exhaustible(tensors: Sequence[Legs]) -> bool:
    """Whether the exhaustive search for the best path ends within some hundredths of a second.

    Examples:
        >>> is_exhaustible([("x", "a"), ("a", "b"), ("b", "y")]), is_exhaustible([("r", f"x{i}") for i in range(10)])
        (True, False)
    """
    if len(tensors) <= EXHAUSTIVE:
        return True
    if len(tensors) > _SPARSE or max(Counter(leg for legs in tensors for leg in legs).values()) > _HOLDERS:
        return False
    pairs = sum(not set(a).isdisjoint(b) for a, b in itertools.combinations(tensors, 2))
    return pairs <= _DEGREE * len(tensors)


def refined_paths(
    tensors: Sequence[Legs],
    output: Legs,
    sizes: Mapping[str, int],
    known: Iterable[Path],
    *,
    minimize: str = "flops",
    seed: int = 0,
    time_limit: float = 1.0,
    times: int = 2,
) -> list[Path]:
    """Paths found for other sizes of the same legs, and what annealing makes of the best of them here, best first.

    Args:
        tensors: the legs of each tensor.
        output: the legs that are not summed.
        sizes: size of every leg.
        known: paths over these tensors.
        minimize: as in `find_paths`.
        seed: of the annealing.
        time_limit: seconds after which annealing is stopped.
        times: that the best is annealed.
    """
    search = TreeSearch(
        *_lettered(tensors, output, sizes), minimize=minimize, seed=seed, time_limit=time_limit, progress=None
    )
    return search.refine(known, times=times)


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

    Examples:
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


class PathWork(NamedTuple):
    """What a path computes: multiply-adds, elements that its steps write, and elements of the largest of these."""

    macs: int
    written: int
    largest: int

    @property
    def combo(self) -> float:
        """cotengra's estimate of time: multiply-adds, and 64 for each element written."""
        return self.macs + WRITE_MACS * self.written


def path_work(
    tensors: Sequence[Iterable[str]], output: Iterable[str], sizes: Mapping[str, int], path: Path
) -> PathWork:
    """What a path computes and writes; all sizes are at least 1.

    Examples:
        >>> path_work(["ij", "jk"], "ik", {"i": 2, "j": 3, "k": 4}, ((0, 1),))
        PathWork(macs=24, written=8, largest=8)
    """
    # Legs of size 1 change no number, and there may be very many of them.
    wide = [frozenset(leg for leg in legs if sizes[leg] != 1) for legs in (*tensors, output)]
    legs = legs_along(wide[:-1], wide[-1], path)
    # From the numbers of the two arrays: all legs of a step are many more than those that both hold, or that it sums.
    numbers = [math.prod(sizes[leg] for leg in on) for on in wide[:-1]]
    macs = 0
    for (a, b), made in zip(path, legs[len(wide) - 1 :], strict=True):
        both = legs[a] & legs[b]
        step = numbers[a] * numbers[b] // max(1, math.prod(sizes[leg] for leg in both))
        macs += step
        numbers.append(step // max(1, math.prod(sizes[leg] for leg in (legs[a] | legs[b]) - made)))
    written = numbers[len(wide) - 1 :]
    return PathWork(macs, sum(written), max(written, default=0))


def path_macs(tensors: Sequence[Iterable[str]], output: Iterable[str], sizes: Mapping[str, int], path: Path) -> int:
    """Multiply-adds of a path."""
    return path_work(tensors, output, sizes, path).macs


def peak_size(tensors: Sequence[Legs], output: Legs, sizes: Mapping[str, int], path: Path) -> int:
    """The most numbers alive at once along a path, as cotengra's `ContractionTree.peak_size` counts them: inputs until
    they are read, and what each step makes beside what it reads.

    Examples:
        >>> peak_size([("i", "j"), ("j", "k")], ("i", "k"), {"i": 2, "j": 3, "k": 4}, ((0, 1),))  # 6 + 12 + 8
        26
    """
    return int(_tree_of(tensors, output, sizes, path).peak_size())


def _lettered(
    tensors: Sequence[Legs], output: Legs, sizes: Mapping[str, int]
) -> tuple[list[list[str]], list[str], dict[str, float]]:
    """(inputs, output, sizes) with one-character legs, as the searches want them."""
    letters = _letters((*tensors, output))
    inputs = [[letters[leg] for leg in legs] for legs in tensors]
    return inputs, [letters[leg] for leg in output], {letters[leg]: float(sizes[leg]) for leg in letters}


def _letters(tensors: Iterable[Legs]) -> dict[str, str]:
    return {leg: letter(i) for i, leg in enumerate(dict.fromkeys(leg for legs in tensors for leg in legs))}


def letter(number: int) -> str:
    """A character for each number, none of them ASCII; halves of surrogate pairs are no characters.

    Raises:
        TN4NNError: there are not that many.
    """
    code = _FIRST_LETTER + number
    code += _SURROGATES if code >= _FIRST_SURROGATE else 0
    if code > sys.maxunicode:
        raise TN4NNError(f"a network of more than {number:,} legs has not a letter for each")
    return chr(code)


class TreeSearch:
    """A search by simulated annealing over contraction trees, best first when it is done.

    `run` is the whole of it for a network that nothing is known of; `refine` starts from trees that were found for
    other sizes of the same legs.
    """

    def __init__(
        self,
        inputs: list[list[str]],
        output: list[str],
        sizes: dict[str, float],
        *,
        minimize: str,
        seed: int,
        time_limit: float,
        progress: Progress | None,
    ) -> None:
        self.inputs, self.output, self.sizes = inputs, output, sizes
        self.minimize, self.seed, self.progress = minimize, seed, progress
        self.start = time.monotonic()
        self.deadline = self.start + time_limit
        self.begun, self.longest = self.start, 0.0  # of the step that runs, and seconds of the longest so far
        # Each step takes longer in a large network: it takes fewer, whatever the machine.
        self.share = min(1.0, (_FULL / len(inputs)) ** 2)
        self.trees: list[Any] = []  # cotengra is untyped, and pyright takes its tree for a str
        self.idle = 0  # annealings without gain, one after the other

    def run(self, *, thorough: bool) -> list[Path]:
        """Random-greedy starts, each annealed, the best annealed again and again, and reordered at the end."""
        small = len(self.inputs) <= SMALL
        rounds, again, patience = _ROUNDS, _AGAIN, _PATIENCE
        if small:
            rounds, again, patience = rounds // 2, _ROUNDS // 4, _LITTLE_PATIENCE
        elif self.share < 1:
            rounds, again, patience = (max(1, round(self.share * most)) for most in (rounds, again, patience))
        if not thorough:
            rounds, again = rounds // 2, again // 2
        self._random_starts(rounds)
        if self.minimize != "size":  # what needs least memory is not annealed
            self.idle = 0
            self._anneal_each(patience if small else rounds + 1)
            self.idle = self.idle if small else 0
            self._anneal_best(again, patience)
        if thorough and len(self.inputs) <= LARGE:  # one step of it could take longer than all before
            self._reorder_best()
        return self.paths()

    def restart(self) -> list[Path]:
        """Random-greedy starts, each with its subtrees reordered, annealed a little and reordered again, until several
        in a row are no better: for so many tensors that annealing alone does not get far."""
        while self.idle < _PATIENCE and not (self.trees and self._out_of_time()):
            seed = self.seed + len(self.trees)
            start = self._reordered(self._tree(self._random_greedy(_TRIALS, seed)), subtree_size=_SUBTREE)
            self._add(min(start, self._annealed(start, _WARM, seed), key=self._score))
        return self.paths()

    def refine(self, known: Iterable[Path], *, times: int) -> list[Path]:
        """What was found for other sizes, the best of it annealed a few times."""
        self.trees = [self._tree(path) for path in known]
        self._anneal_best(times, times)
        return self.paths()

    def paths(self) -> list[Path]:
        """Of all trees, the best first."""
        return list(dict.fromkeys(_pairs(tree.get_ssa_path()) for tree in sorted(self.trees, key=self._score)))

    def _score(self, tree: Any) -> float:
        if self.minimize == "size":
            return float(tree.max_size())
        return float(tree.total_flops() + (WRITE_MACS * tree.total_write() if self.minimize == "combo" else 0))

    def _out_of_time(self) -> bool:
        """Whether another step, which may take as long as the longest so far, would end too late."""
        now = time.monotonic()
        self.longest = max(self.longest, now - self.begun)
        self.begun = now
        return now + self.longest > self.deadline

    def _random_starts(self, rounds: int) -> None:
        for step in range(rounds):
            self._add(self._tree(self._random_greedy(max(1, round(self.share * _TRIALS)), self.seed + step)))
            if self._out_of_time():
                return

    def _random_greedy(self, trials: int, seed: int) -> Path:
        return _call(
            "optimize_random_greedy_track_flops", self.inputs, self.output, self.sizes, ntrials=trials, seed=seed,
            use_ssa=True,
        )  # fmt: skip

    def _anneal_each(self, patience: int) -> None:
        self.trees.sort(key=self._score)  # time may run out before all of them are annealed
        for tree in list(self.trees):
            if self.idle >= patience or self._out_of_time():
                return
            self._add(self._annealed(tree, _HOT, self.seed + len(self.trees)))

    def _anneal_best(self, times: int, patience: int) -> None:
        for _ in range(times):
            if self.idle >= patience or self._out_of_time():
                return
            hot = _WARM * 2 ** (self.idle % _HOTTER)
            self._add(self._annealed(min(self.trees, key=self._score), hot, self.seed + len(self.trees)))

    def _reorder_best(self) -> None:
        for how in _LAST:
            if not self._out_of_time():
                self.trees.append(self._reordered(min(self.trees, key=self._score), seed=self.seed, **how))

    def _add(self, tree: Any) -> None:
        """Takes in a tree, its small subtrees reordered."""
        tree = self._reordered(tree, subtree_size=_SUBTREE)
        better = not self.trees or self._score(tree) < min(map(self._score, self.trees))
        self.idle = 0 if better else self.idle + 1
        self.trees.append(tree)
        if self.progress is not None:
            best = min(map(self._score, self.trees))
            self.progress(
                f"path search, tree {len(self.trees)}: best {best:.3g}, {time.monotonic() - self.start:.1f} s"
            )

    def _tree(self, path: Path) -> Any:
        import cotengra

        whole = {leg: int(size) for leg, size in self.sizes.items()}
        return cotengra.ContractionTree.from_path(self.inputs, self.output, whole, ssa_path=path)

    def _reordered(self, tree: Any, **options: Any) -> Any:
        """The tree with its subtrees in their best order, products of tensors without a common leg included.

        Exhaustive search keeps tensors that have no leg in common with the others to the last, so what annealing has
        found may be better: then it stays.
        """
        import cotengra

        exhaustive = cotengra.OptimalOptimizer(minimize=self.minimize, search_outer=True, simplify=False)
        if len(self.inputs) > LARGE:  # all subtrees may take longer than there is time
            begun = time.monotonic()
            tree.subtree_reconfigure(minimize=self.minimize, optimize=exhaustive, maxiter=_TRIED, **options)
            now = time.monotonic()
            affordable = int(_TRIED * (self.deadline - now) / (now - begun))
            if affordable < 1:
                return tree
            options["maxiter"] = min(affordable, _MOST_SUBTREES)
        other = tree.subtree_reconfigure(minimize=self.minimize, optimize=exhaustive, **options)
        return min(tree, other, key=self._score)

    def _annealed(self, tree: Any, hot: float, seed: int) -> Any:
        """A copy of the tree, annealed one temperature at a time: in a large network all of them take minutes."""
        tree = tree.copy()
        for i in range(_COOLINGS):
            if self._out_of_time():
                break
            temperature = hot * (_COLD / hot) ** (i / (_COOLINGS - 1))
            tree.simulated_anneal_(
                tstart=temperature, tfinal=temperature, tsteps=1, numiter=max(1, round(self.share * _SWEEPS)),
                minimize=self.minimize,
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
    tree = _tree_of(tensors, output, sizes, path)
    try:
        sliced = tree.slice(target_size=largest, allow_outer=False, **_SLICING)
    except (RuntimeError, ValueError, KeyError):
        return None
    return None if sliced.max_size() > largest else _sliced_of(sliced, tensors)


def reordered_slices(
    tensors: Sequence[Legs],
    output: Legs,
    sizes: Mapping[str, int],
    path: Path,
    minimize: str = "flops",
    subtree: int = 8,
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Ever more summed legs to loop over, and each time the path reordered for what is left: one leg after the other,
    since what is best to slice depends on the order (as cotengra's `slice_and_reconfigure` does it, but reproducibly).

    Args:
        tensors: the legs of each tensor.
        output: the legs that are not summed.
        sizes: size of every leg.
        path: where it begins.
        minimize: what subtrees are reordered for.
        subtree: tensors of those.

    Examples:
        >>> ring = [("a", "b"), ("b", "c"), ("c", "a")]
        >>> [legs for _, legs in reordered_slices(ring, (), dict.fromkeys("abc", 4), ((0, 1), (2, 3)))][0]
        ('a',)
    """
    tree, before = _tree_of(tensors, output, sizes, path), 0
    while True:
        try:
            tree = tree.slice(target_slices=2, allow_outer=False, **_SLICING)
        except (RuntimeError, ValueError, KeyError):
            return
        if len(tree.sliced_inds) == before:
            return
        before = len(tree.sliced_inds)
        tree = tree.subtree_reconfigure(minimize=minimize, subtree_size=subtree)
        yield _pairs(tree.get_ssa_path()), _sliced_of(tree, tensors)


def _tree_of(tensors: Sequence[Legs], output: Legs, sizes: Mapping[str, int], path: Path) -> Any:
    import cotengra

    inputs, out, known = _lettered(tensors, output, sizes)
    whole = {leg: int(size) for leg, size in known.items()}
    return cotengra.ContractionTree.from_path(inputs, out, whole, ssa_path=path)


def _sliced_of(tree: Any, tensors: Sequence[Legs]) -> tuple[str, ...]:
    letters = _letters(tensors)
    return tuple(leg for leg in letters if letters[leg] in tree.sliced_inds)
