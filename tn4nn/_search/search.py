"""Structure search: a topology and its ranks for an array or a task, by local moves.

A search grows bonds until the error is reached or the budget is full, shrinks them while the error stays, and then
starts again from the best structure with a random bond or two smaller or larger (iterated local search: Lourenço,
Martin, Stützle 2003). The space is that of Li and Sun 2020 (any graph, any ranks), an evaluation is one fit, and fits
start from the neighbour's weights, as in TnALE (Li et al. 2023, arXiv:2304.12875).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._base.arrays import Array
from .._base.checks import checked_size, nearest
from .._base.errors import BudgetError, CheckpointError, DataError, TN4NNError
from .._base.hashing import fingerprint_of
from .._base.records import read_arrays, write_arrays
from .._base.seeds import rng_for
from .._base.version import installed_version
from .._compression.gauge import checked_weights
from .._compression.svd import checked_error
from .._graph.budget import checked_budget
from .._graph.network import Network
from .._graph.topology import Topology
from .moves import Move, larger, smaller, structure_of, swaps, without_bonds_of_one
from .objective import Objective, objective_of

SCHEMA = 2  # of a state file; those before had no digest
MOVES = ("rank", "bond", "swap")
_TRIES = 50  # of a kick, until it is a structure that was not fitted


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One structure that was fitted, in the order of the search.

    Attributes:
        move: what was changed of the structure before.
        structure: open legs of each core and size of each bond, as text.
        params: numbers in its cores.
        error: relative error, or the loss of the task.
        accepted: whether the search went on from it.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> found = tn.search(np.ones((2, 3, 4)), error=1e-6, evaluations=3)
        >>> first = found.history[0]
        >>> first.structure, first.params, first.accepted
        ('0:x0,y0 1:x1 2:x2 |', 9, True)
    """

    move: str
    structure: str
    params: int
    error: float
    accepted: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """What a search found; printing it gives a summary.

    Attributes:
        network: the best structure.
        weights: core name -> float64 (or complex128) array; empty for a task.
        error: relative error in the Frobenius norm, or the loss of the task.
        reached: whether the error that was asked for was reached; None where a budget was.
        found_at: the number of the evaluation that found it, from 1.
        history: every evaluation.
        asked: the largest error that was asked for; None where a budget was.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> found = tn.search(np.ones((2, 3, 4)), error=1e-6, evaluations=3)
        >>> found.reached, found.network.num_params, found.evaluations
        (True, 9, 1)
    """

    network: Network
    weights: Mapping[str, NDArray[Any]]
    error: float
    reached: bool | None
    found_at: int
    history: tuple[Evaluation, ...]
    asked: float | None = None

    @property
    def evaluations(self) -> int:
        """How many structures were fitted."""
        return len(self.history)

    def __str__(self) -> str:
        verdict = ""
        if self.asked is not None:
            verdict = f" ({'at most' if self.reached else 'more than the'} {self.asked:.4g} that was asked for)"
        return (
            f"Search: {self.network.num_params:,} parameters, error {self.error:.4g}{verdict}; evaluation "
            f"{self.found_at:,} of {self.evaluations:,}\n{self.network}"
        )

    __repr__ = __str__


def search(
    target: ArrayLike | Callable[[Network], float],
    *,
    params: int | None = None,
    error: float | None = None,
    inputs: Sequence[int] | None = None,
    outputs: Sequence[int] | None = None,
    start: Topology | Network | None = None,
    moves: Sequence[str] = ("rank", "bond"),
    evaluations: int = 500,
    width: int = 4,
    patience: int = 30,
    seed: int = 0,
    state: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Search:
    """Finds a topology and its ranks, for an array or for a task.

    Give exactly one of `params` and `error`. With `params` the error is made as small as can be within that many
    parameters, with `error` the parameters as few as can be at that error.

    Args:
        target: an array of any order; a matrix (out_features, in_features) with inputs= and outputs= or start=; or a
            function from a Network to a loss, such as `TrainingLoss`.
        params: parameters, never more.
        error: relative error in the Frobenius norm, from 0 to below 1; for a task the loss.
        inputs: mode sizes of a matrix's columns; their product is in_features.
        outputs: of its rows.
        start: where to begin; a Topology begins at rank 1, or with `params` filled up by `with_budget`. Left out, one
            core for each mode (for each pair of modes of a matrix), without bonds.
        moves: of "rank" (bonds larger and smaller by a step), "bond" (bonds added and removed) and "swap" (open legs
            of two cores, or branches of neighbours, change places).
        evaluations: most structures that are fitted (an array) or asked for their loss (a task).
        width: structures that are fitted before a bond grows. For an array those of the largest estimated gain by
            the gradient of the error, for a task random ones.
        patience: restarts without a better structure after which the search ends.
        seed: of everything random; equal searches give equal results.
        state: a file that is written whole after each evaluation; a search that was stopped goes on from it, to the
            same result, and one that is finished goes on where `evaluations` or `patience` are larger now.
        progress: called with a line of text for each better structure.

    Raises:
        TN4NNError: not exactly one of params= and error=, unknown moves, a task without start=.
        ShapeError: modes that are not those of the target.
        BudgetError: a budget below the parameters at the start.
        CheckpointError: a state file of another search or version, or one that cannot be read.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> rng = np.random.default_rng(0)
        >>> a, b, c = (rng.normal(size=shape) for shape in ((4, 2), (2, 4, 2), (2, 4)))
        >>> X = np.einsum("ia,akb,bj->ijk", a, b, c)                # a chain, its modes permuted
        >>> found = tn.search(X, error=1e-4, evaluations=40)
        >>> found.reached, found.network.num_params, sorted(found.network.ranks.values())
        (True, 32, [2, 2])
    """
    if (params is None) == (error is None):
        raise TN4NNError(f"search takes exactly one of params= and error=, received params={params!r}, error={error!r}")
    for move in moves:
        if move not in MOVES:
            raise TN4NNError(f"unknown move {move!r}." + nearest(str(move), MOVES))
    if "rank" not in moves and "swap" not in moves:
        raise TN4NNError(f"moves must have 'rank' or 'swap', received {tuple(moves)}")
    objective, begin = objective_of(target, inputs, outputs, start)
    if error is not None and not callable(target):
        checked_error(error)
    goal = Goal(None if params is None else checked_budget(params, "params"), error)
    searcher = _Searcher(
        objective,
        goal,
        frozenset(moves),
        checked_size(width, "width"),
        seed,
        progress or (lambda _: None),
    )
    first = goal.start(begin)
    if "bond" in moves:
        first = without_bonds_of_one(first)
    if state is not None:
        searcher.state = _State(Path(state), fingerprint_of(
            [objective.fingerprint, dataclasses.astuple(goal), first.to_dict(), sorted(moves), width, seed]
        ))  # fmt: skip
    searcher.run(first, checked_size(evaluations, "evaluations"), patience)
    return searcher.result()


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is asked for: an error with few parameters, or few parameters with a small error."""

    params: int | None
    error: float | None

    def reached(self, error: float) -> bool:
        """Whether nothing smaller is wanted."""
        return self.error is not None and error <= self.error

    def order(self, found: _Found) -> tuple[float, ...]:
        """Smaller is better."""
        if self.reached(found.error):
            return (0, found.network.num_params, found.error)
        return (1, found.error, found.network.num_params)

    def start(self, given: Topology | Network) -> Network:
        """The first structure."""
        if isinstance(given, Topology):
            given = given.with_rank(1) if self.params is None else given.with_budget(params=self.params)
        if self.params is not None and given.num_params > self.params:
            raise BudgetError(
                f"search cannot start from {given.num_params:,} parameters with params={self.params:,}: raise the "
                "budget, or start smaller",
                given.num_params,
            )
        return given


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """A structure with what it reached; `number` counts evaluations from 1."""

    number: int
    network: Network
    error: float
    weights: Mapping[str, Array]


class _Spent(Exception):  # noqa: N818  (no error: it ends the search from any depth)
    """All evaluations are used."""


class _Searcher:
    def __init__(
        self,
        objective: Objective,
        goal: Goal,
        moves: frozenset[str],
        width: int,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.objective, self.goal, self.moves, self.width = objective, goal, moves, width
        self.seed, self.say = seed, say
        self.state: _State | None = None
        self.most = 0
        self.history: list[Evaluation] = []
        self.seen: set[str] = set()
        self.current: _Found | None = None
        self.best: _Found | None = None
        self.leader: _Found | None = None  # of the current round

    # -- the search -------------------------------------------------------------------------------------------

    def run(self, first: Network, evaluations: int, patience: int) -> None:
        """Restarts until the evaluations or the patience are used up, or no structure is left."""
        self.most = evaluations
        try:
            self._go(self._round([Move("start", first)], None, lambda found: 0.0))
            waited = kicks = 0
            while waited <= patience:
                before = self.best
                self._descend()
                waited = 0 if self.best is not before else waited + 1
                if not self._kick(kicks := kicks + 1):
                    break
        except _Spent:
            pass

    def _descend(self) -> None:
        """To a structure that no single move makes better."""
        while self._grow() or self._shrink() or self._swap():
            pass

    def _grow(self) -> bool:
        here = self._here()
        if "rank" not in self.moves or self.goal.reached(here.error):
            return False
        most = self._most_params()
        moves = [m for m in larger(here.network, "bond" in self.moves) if m.network.num_params <= most]
        found = self._round(self._chosen(here, self._new(moves)), here, lambda found: self._gain(here, found))
        return self._go(found, found is not None and found.error < here.error)

    def _gain(self, here: _Found, found: _Found) -> float:
        """What a larger bond is worth: less error for each parameter; least parameters where the error is reached."""
        if self.goal.reached(found.error):
            return math.inf
        return (here.error - found.error) / (found.network.num_params - here.network.num_params)

    def _chosen(self, here: _Found, moves: list[Move]) -> list[Move]:
        """The moves worth a fit."""
        if self.state is None:
            return self._most_promising(here, moves)
        return self.state.chosen(moves, lambda: self._most_promising(here, moves))

    def _most_promising(self, here: _Found, moves: list[Move]) -> list[Move]:
        gains = self.objective.estimated_gains(here.network, here.weights, moves) if moves else None
        if gains is None:
            order = rng_for(self.seed, "order", here.number).permutation(len(moves))
        else:
            extra = [m.network.num_params - here.network.num_params for m in moves]
            order = np.argsort([-gain / n for gain, n in zip(gains, extra, strict=True)], kind="stable")
        return [moves[i] for i in order[: self.width]]

    def _shrink(self) -> bool:
        here = self._here()
        if "rank" not in self.moves or not self.goal.reached(here.error):
            return False
        moves = sorted(self._new(smaller(here.network, "bond" in self.moves)), key=lambda m: m.network.num_params)
        return self._first(moves, here)

    def _swap(self) -> bool:
        here = self._here()
        if "swap" not in self.moves:
            return False
        most = min(here.network.num_params if self.goal.reached(here.error) else math.inf, self._most_params())
        return self._first([m for m in self._new(swaps(here.network)) if m.network.num_params <= most], here)

    def _first(self, moves: Iterable[Move], here: _Found) -> bool:
        """Goes on from the first of the moves that is no worse where the error was reached, or better where not."""
        for move in moves:
            found = self._round([move], here, lambda found: 0.0)
            assert found is not None
            if self.goal.reached(found.error) or (not self.goal.reached(here.error) and found.error < here.error):
                return self._go(found)
        return False

    def _kick(self, number: int) -> bool:
        """From the best structure to one near it that was not fitted, other than by a single step that helps: by turns
        with a bond or two smaller or gone, and, where the error is reached, with a bond or two larger, to be shrunk
        differently. With legs swapped, if they may be."""
        assert self.best is not None
        best, reached = self.best.network, self.goal.reached(self.best.error)
        rng = rng_for(self.seed, "kick", number)
        for _ in range(_TRIES):
            restart = best
            if "rank" in self.moves:
                up = reached and number % 2 == 0
                restart = self._larger_at_random(best, rng) if up else self._smaller_at_random(best, rng)
            if "swap" in self.moves:
                options = [m.network for m in swaps(restart) if m.network.num_params <= self._most_params()]
                restart = options[int(rng.integers(len(options)))] if options else restart
            if structure_of(restart) not in self.seen:
                return self._go(self._round([Move("restart", restart)], self.best, lambda found: 0.0))
        return False

    def _smaller_at_random(self, network: Network, rng: np.random.Generator) -> Network:
        bonds = list(network.ranks)
        ranks = dict(network.ranks)
        for bond in map(str, rng.permutation(bonds)[: rng.integers(1, 3)]):
            ranks[bond] = 1 if rng.random() < 0.5 else max(1, ranks[bond] - 1)
        smaller_network = Network(network.topology, ranks)
        return without_bonds_of_one(smaller_network) if "bond" in self.moves else smaller_network

    def _larger_at_random(self, network: Network, rng: np.random.Generator) -> Network:
        for _ in range(int(rng.integers(1, 3))):
            moves = list(larger(network, "bond" in self.moves))
            network = moves[int(rng.integers(len(moves)))].network if moves else network
        return network

    # -- its parts --------------------------------------------------------------------------------------------

    def _here(self) -> _Found:
        assert self.current is not None
        return self.current

    def _most_params(self) -> float:
        """What a structure may have to be of use."""
        if self.goal.params is not None:
            return self.goal.params
        assert self.best is not None
        return self.best.network.num_params - 1 if self.goal.reached(self.best.error) else math.inf

    def _new(self, moves: Iterable[Move]) -> list[Move]:
        """Those of the moves that lead to a structure that was not fitted, each once."""
        by_structure = {structure_of(move.network): move for move in moves}
        return [move for structure, move in by_structure.items() if structure not in self.seen]

    def _round(self, moves: Sequence[Move], near: _Found | None, worth: Callable[[_Found], float]) -> _Found | None:
        """The best of the moves by `worth`, then by the order of the goal."""
        self.leader = None
        for move in moves:
            found = self._evaluate(move, near)
            key = (-worth(found), *self.goal.order(found))
            if self.leader is None or key < (-worth(self.leader), *self.goal.order(self.leader)):
                self.leader = found
            if self.best is None or self.goal.order(found) < self.goal.order(self.best):
                self.best = found
                self.say(
                    f"[{found.number}] {found.network.num_params:,} parameters, error {found.error:.4g}: {move.text}"
                )
            if self.state is not None:
                self.state.keep(self.history, [self.current, self.best, self.leader])
        return self.leader

    def _evaluate(self, move: Move, near: _Found | None) -> _Found:
        if len(self.history) >= self.most:
            raise _Spent
        number, structure = len(self.history) + 1, structure_of(move.network)
        known = None if self.state is None else self.state.known(number, structure, move.network)
        if known is None:
            start = (near.network, near.weights) if near is not None and near.weights else None
            seed = int(rng_for(self.seed, "fit", number).integers(2**31))
            known = self.objective.judge(move.network, start, seed, self.goal.error or 0.0)
        self.seen.add(structure)
        self.history.append(Evaluation(move.text, structure, move.network.num_params, known[0]))
        return _Found(number, move.network, *known)

    def _go(self, found: _Found | None, accept: bool = True) -> bool:
        """Makes a structure the one that the search goes on from."""
        if found is not None and accept:
            self.current = found
            self.history[found.number - 1] = dataclasses.replace(self.history[found.number - 1], accepted=True)
        return found is not None and accept

    def result(self) -> Search:
        """The best structure."""
        best = self.best
        assert best is not None
        reached = None if self.goal.error is None else self.goal.reached(best.error)
        return Search(
            best.network, dict(best.weights), best.error, reached, best.number, tuple(self.history), self.goal.error
        )


class _State:
    """A search on disk: what was found for each structure, in order, and the weights that may still be needed.

    A search is deterministic, so it goes on by being run again, with the results of the file instead of fits.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self.errors: list[tuple[str, float]] = []
        self.rounds: list[list[str]] = []  # structures chosen for each round of growth
        self.round = 0
        self.weights: dict[int, dict[str, Array]] = {}
        if path.exists():
            self._read()

    def known(self, number: int, structure: str, network: Network) -> tuple[float, dict[str, Array]] | None:
        """What the file says of an evaluation."""
        if number > len(self.errors):
            return None
        stored, error = self.errors[number - 1]
        if stored != structure:
            raise CheckpointError(
                f"{self.path}: evaluation {number} was of {stored}, and this search comes to {structure}: it was "
                "written on another machine or with other libraries. Name another file"
            )
        weights = self.weights.get(number, {})
        try:
            if weights:
                checked_weights(network, weights)
        except TN4NNError as reason:
            raise CheckpointError(f"{self.path}: the weights of evaluation {number} do not fit: {reason}") from reason
        return error, weights

    def chosen(self, moves: list[Move], choose: Callable[[], list[Move]]) -> list[Move]:
        """The moves of the next round of growth: those of the file, or now chosen (by weights that the file may lack
        for rounds that are over)."""
        if self.round == len(self.rounds):
            self.rounds.append([structure_of(move.network) for move in choose()])
        wanted = self.rounds[self.round]
        self.round += 1
        found = {structure_of(move.network): move for move in moves}
        return [found[structure] for structure in wanted if structure in found]

    def keep(self, history: Sequence[Evaluation], alive: Iterable[_Found | None]) -> None:
        """Writes the state, unless all of it is in the file."""
        if len(history) <= len(self.errors):
            return
        self.errors.append((history[-1].structure, history[-1].error))
        arrays = {
            f"{found.number}.{name}": core
            for found in alive
            if found is not None
            for name, core in found.weights.items()
        }
        record = {"schema": SCHEMA, "versions": {"tn4nn": installed_version()}, "search": self.identity}
        record |= {"errors": self.errors, "rounds": self.rounds}
        write_arrays(self.path, arrays, record, sync=False)

    def _read(self) -> None:
        advice = "name another file, or remove it to begin anew"
        record, arrays = read_arrays(self.path, SCHEMA, "the state of a search", advice, unreadable=DataError)
        try:
            written, identity = record["versions"]["tn4nn"], record["search"]
            errors = [(str(structure), float(found)) for structure, found in record["errors"]]
            rounds = [list(map(str, chosen)) for chosen in record["rounds"]]
            weights: dict[int, dict[str, Array]] = {}
            for name, array in arrays.items():
                number, _, core = name.partition(".")
                weights.setdefault(int(number), {})[core] = array
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{self.path} is not the state of a search ({error}): {advice}") from error
        if written != installed_version():
            raise CheckpointError(
                f"{self.path} was written by tn4nn {written}, this is {installed_version()}: finish the search there, "
                f"or {advice}"
            )
        if identity != self.identity:
            raise CheckpointError(
                f"{self.path} belongs to a search with another target, goal, start, moves, width or seed: {advice}"
            )
        self.errors, self.rounds, self.weights = errors, rounds, weights
