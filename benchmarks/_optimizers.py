"""Path optimizers behind one signature: a contraction and seconds in, a path and the time of the first one out."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import cotengra as ctg
import cotengrust
import opt_einsum as oe
from _paths import Contraction, Path

from tn4nn._graph.paths import _lettered, _pairs, find_paths

OPTIMAL = 12  # tensors up to which the exhaustive search is a competitor


@dataclasses.dataclass(frozen=True)
class Found:
    """A path, seconds of the search, and seconds until there was a path at all."""

    path: Path
    seconds: float
    first_s: float


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """One competitor.

    Attributes:
        name: what tables call it.
        run: searches for about so many seconds; those that cannot be told how long ignore it.
        needs: packages, by commas.
        most: tensors up to which it is run.
    """

    name: str
    run: Callable[[Contraction, float], Found]
    needs: str = ""
    most: int = 10**6

    def missing(self) -> str:
        """The packages that are not installed, by commas."""
        wanted = [name for name in self.needs.split(",") if name]
        return ", ".join(name for name in wanted if importlib.util.find_spec(name) is None)


def ours(problem: Contraction, seconds: float) -> Found:
    """`find_paths`, as the planner calls it."""
    rounds: list[float] = []
    start = time.perf_counter()
    path = find_paths(
        problem.tensors, problem.output, problem.sizes, time_limit=seconds,
        progress=lambda _: rounds.append(time.perf_counter() - start),
    )[0]  # fmt: skip
    took = time.perf_counter() - start
    return Found(path, took, min([took, *rounds]))


def hyper(problem: Contraction, seconds: float, **options: Any) -> Found:
    """cotengra's HyperOptimizer, in this process if `parallel=` says no more; its subtrees are reconfigured as ours."""
    inputs, output, sizes = _lettered(problem.tensors, problem.output, problem.sizes)
    whole = {leg: int(size) for leg, size in sizes.items()}
    given = {"methods": ["greedy"], "optlib": "sbplx", "reconf_opts": {}, "parallel": False, **options}
    search = ctg.HyperOptimizer(max_time=seconds, max_repeats=10**6, on_trial_error="ignore", **given)
    start = time.perf_counter()
    tree: Any = search.search(inputs, output, whole)
    return Found(_pairs(tree.get_ssa_path()), time.perf_counter() - start, float(search.times[0]))


def _rust(name: str) -> Callable[[Contraction, float], Found]:
    """One call of cotengrust."""

    def run(problem: Contraction, _: float) -> Found:
        question = _lettered(problem.tensors, problem.output, problem.sizes)
        start = time.perf_counter()
        path = getattr(cotengrust, name)(*question, use_ssa=True)
        took = time.perf_counter() - start
        return Found(_pairs(path), took, took)

    return run


def _rust_random_greedy(problem: Contraction, seconds: float) -> Found:
    question = _lettered(problem.tensors, problem.output, problem.sizes)
    start, spent, found = time.perf_counter(), [], []
    while not spent or spent[-1] < seconds:
        path, cost = cotengrust.optimize_random_greedy_track_flops(*question, ntrials=16, seed=len(spent), use_ssa=True)
        found.append((cost, path))
        spent.append(time.perf_counter() - start)
    return Found(_pairs(min(found)[1]), spent[-1], spent[0])


def _opt_einsum(make: Callable[[float], Any]) -> Callable[[Contraction, float], Found]:
    """An optimizer of opt_einsum, made for so many seconds."""

    def run(problem: Contraction, seconds: float) -> Found:
        inputs: list[Any] = [frozenset(legs) for legs in problem.tensors]
        start = time.perf_counter()
        linear = make(seconds)(inputs, frozenset(problem.output), dict(problem.sizes), None)
        took = time.perf_counter() - start
        return Found(_pairs(oe.paths.linear_to_ssa(linear)), took, took)

    return run


def _random_greedy(seconds: float) -> Any:
    return oe.RandomGreedy(max_time=seconds, max_repeats=10**6)


def others(parallel: bool | int | str = False) -> tuple[Optimizer, ...]:
    """The optimizers that ours is compared with.

    Args:
        parallel: cotengra's own switch for its hyper-optimizers: a number of processes, "concurrent.futures", "loky",
            "dask" or "ray" (each where it is installed); False keeps them in this process.
    """

    def searched(**options: Any) -> Callable[[Contraction, float], Found]:
        return lambda problem, seconds: hyper(problem, seconds, parallel=parallel, **options)

    return (
        Optimizer("greedy (opt_einsum)", _opt_einsum(lambda _: oe.paths.greedy)),
        Optimizer("greedy (cotengrust)", _rust("optimize_greedy")),
        Optimizer("optimal (cotengrust)", _rust("optimize_optimal"), most=OPTIMAL),
        Optimizer("auto-hq (opt_einsum)", _opt_einsum(lambda _: oe.paths.auto_hq)),
        Optimizer("random-greedy (opt_einsum)", _opt_einsum(_random_greedy)),
        Optimizer("random-greedy (cotengrust)", _rust_random_greedy),
        Optimizer("hyper (greedy, sbplx)", searched()),
        Optimizer("hyper (kahypar, sbplx)", searched(methods=["greedy", "kahypar"]), "kahypar"),
        Optimizer("hyper (greedy, optuna)", searched(optlib="optuna"), "optuna"),
        Optimizer("hyper (greedy, cmaes)", searched(optlib="cmaes"), "cmaes"),
        Optimizer("hyper (greedy, annealed)", searched(simulated_annealing_opts={}, reconf_opts=None)),
    )


def long_run(problem: Contraction, seconds: float) -> Found:
    """What is taken as best known: half the time with partitions, half with annealing."""
    methods = ["greedy", *(["kahypar"] if importlib.util.find_spec("kahypar") else [])]
    halves = [
        hyper(problem, seconds / 2, methods=methods),
        hyper(problem, seconds / 2, methods=methods, simulated_annealing_opts={}, reconf_opts=None),
    ]
    best = min(halves, key=lambda found: problem.cost(found.path).macs)
    return dataclasses.replace(best, seconds=sum(found.seconds for found in halves))
