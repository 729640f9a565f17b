"""The executor of the native CPU runtime: orders, layouts of the states, rows of a batch tile, what is saved.

Each candidate is priced kernel call by kernel call (`_runtime.recipe_cost`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterable, Iterator, Sequence

from .._graph.paths import EXHAUSTIVE, LARGE, SMALL, Path, Progress
from .._graph.problem import BY_HAND, Problem
from .._runtime.contraction import LAYOUTS, MOST_NUMBERS
from .._runtime.cost import Cost, Machine
from .._runtime.devices import native_machine
from .._runtime.program_cost import unfolding_cost
from .._runtime.recipe import Recipe, recipe
from .._runtime.recipe_cost import recipe_cost
from .plan import Plan, replaced
from .program import program_machine
from .request import PlanRequest

BLOCKS = (8, 16, 32, 64, 128, 256, 512, 1024)
_SAVE = 5 << 20  # bytes of states that a training step may save; recomputing more of them is faster
_BESIDE = 10**6  # bytes that a plan in tiles may save beside as many as x and y have
_TILES = 4  # batch tiles of a path that stay candidates
_TABLES = 1 << 22  # entries of the largest table of offsets
_STATES = 1 << 28  # bytes of the states of a tile, at most
_PEAK = 1 << 31  # bytes above which a candidate is only taken where there is none below half of it
_PRICED = 10  # arrangements of a path that are priced, at least, where there is time
_SINGLY = 10  # states of a path whose layouts are improved one at a time


class NativeExecutor:
    """The C runtime of a CPU, in float32 and float64."""

    name = "native"
    version = 23

    def refuses(self, request: PlanRequest) -> str | None:
        """See `Executor`."""
        if not (request.form == "apply" and request.itemsize in (4, 8) and request.target.device == "cpu"):
            return (
                "the native runtime applies networks to float32 and float64 rows on a CPU (form 'apply', itemsize 4 or "
                f"8), received form={request.form!r}, itemsize={request.itemsize}, device={request.target.device!r}"
            )
        most = max(math.prod(shape) for shape in request.network.shapes.values())
        if most > MOST_NUMBERS:
            return f"the native runtime takes cores of at most {MOST_NUMBERS:,} numbers, received one of {most:,}"
        return None

    def key(self, request: PlanRequest) -> Sequence[object]:
        """See `Executor`."""
        return (*dataclasses.astuple(_machine(request)), request.target.threads)

    def candidates(
        self,
        request: PlanRequest,
        paths: Sequence[tuple[str, Path]],
        seconds: float = math.inf,
        progress: Progress | None = None,
    ) -> list[Plan]:
        """See `Executor`. Orders whose multiply-adds alone take longer than the best so far are not priced."""
        start, problem = time.monotonic(), request.problem
        rate = request.target.threads * _machine(request).tile_macs_per_s
        passes = (3 if request.phase == "train" else 1) / rate
        found: list[Plan] = []
        few = _few(problem)
        if few is not None:
            paths = sorted(paths, key=lambda named: problem.macs(named[1]))[:few]
        for i, (order, path) in enumerate(paths, 1):
            best = min((p.cost.predicted_s for p in found), default=math.inf)
            named = order in BY_HAND and len(problem.tensors) <= EXHAUSTIVE
            if request.minimize == "time" and not named and passes * problem.macs(path) > best:
                continue
            found += self.arranged(request, order, path, seconds - (time.monotonic() - start))
            spent = time.monotonic() - start
            if progress is not None:
                progress(f"path {i}/{len(paths)} priced: {order}, {spent:.1f} s")
            if spent * (i + 1) / i > seconds:  # the next one would end too late
                break
        if not found:
            return []
        most = max(_PEAK, 2 * min(p.cost.peak for p in found))
        return sorted((p for p in found if p.cost.peak <= most), key=lambda p: p.cost.score(request.minimize))

    def arranged(self, request: PlanRequest, order: str, path: Path, seconds: float = math.inf) -> list[Plan]:
        """The best layouts of a path, by changing one at a time, at the best batch tiles, best first; one of them
        where there are not seconds for more."""

        def score(p: Plan) -> tuple[float, float]:
            return p.cost.score(request.minimize)

        @functools.cache
        def priced(layouts: tuple[int, ...], block: int) -> Plan:
            return self.plan(request, order, path, layouts, block)

        probe = recipe(request.network, path, 1, itemsize=request.itemsize)
        if max(probe.lengths.values()) > MOST_NUMBERS:
            return []
        few = _few(request.problem)
        blocks = _blocks(probe, request.batch)
        blocks = blocks if few is None else blocks[-few:]
        start = time.monotonic()
        best = priced((), blocks[-1])
        if _PRICED * (time.monotonic() - start) > seconds:
            return [best]
        best = min((priced((), block) for block in blocks), key=score)
        for states, code in _changes(probe) if few != 1 else ():
            changed = priced(_changed(probe, best.layouts, states, code), best.block)
            if score(changed) < score(best):
                best = changed
        tiled = sorted((priced(best.layouts, block) for block in blocks), key=score)
        saving = sorted((p for p in map(self._saving, tiled[:1] if few else tiled) if p is not None), key=score)
        return [*tiled[:_TILES], *saving[:_TILES]]

    def plan(
        self, request: PlanRequest, order: str, path: Path, layouts: Sequence[int], block: int, save: bool = False
    ) -> Plan:
        """One candidate, priced."""
        bare = Plan(
            request, self.name, order, path, Cost(0, 0, 0, 0, 0.0), block=block, layouts=tuple(layouts), save=save
        )
        return replaced(bare, cost=self.cost(bare))

    def cost(self, plan: Plan) -> Cost:
        """See `Executor`."""
        request = plan.request
        threads = request.target.threads
        cost = recipe_cost(plan.recipe, request.batch, request.phase, _machine(request), threads)
        if request.window > 1:
            machine = program_machine(request)  # the framework cuts the patches
            cost += unfolding_cost(request.problem, request.window, request.phase, request.itemsize, machine)
        return cost

    def lower(self, plan: Plan) -> Recipe:
        """See `Executor`."""
        return plan.recipe

    def smaller(self, plan: Plan, reorder: bool = True) -> Iterable[Iterator[Plan]]:
        """See `Executor`: the layouts and tiles of this order that need least memory."""
        least = dataclasses.replace(plan.request, minimize="memory")
        found = self.arranged(least, plan.order, plan.path)
        yield iter(replaced(p, request=plan.request) for p in sorted(found, key=lambda p: -p.cost.peak))

    def could_make(self, plan: Plan) -> bool:
        """See `Executor`."""
        request = plan.request
        if plan.sliced or (plan.save and request.phase != "train"):
            return False
        probe = recipe(request.network, plan.path, 1, itemsize=request.itemsize)
        if len(plan.layouts) not in (0, len(probe.steps) - 1) or plan.block not in _blocks(probe, request.batch):
            return False
        return not plan.save or request.batch * plan.recipe.saved_per_row * request.itemsize <= _SAVE

    def _saving(self, p: Plan) -> Plan | None:
        """The same with all that a training step can save, where the states may still be in a cache when it goes back
        and a plan in tiles saves little more than x and y."""
        request = p.request
        if request.phase != "train":
            return None
        result = self.plan(request, p.order, p.path, p.layouts, p.block, save=True)
        r = result.recipe
        if request.batch * r.saved_per_row * request.itemsize > _SAVE:
            return None
        within = result.cost.saved <= request.batch * (r.inputs + r.outputs) * request.itemsize + _BESIDE
        return result if result.cost.saved > p.cost.saved and (within or p.block == request.batch) else None


def _few(problem: Problem) -> int | None:
    """How many paths, and batch tiles of each, are priced; None for all. In a large network each takes long to price,
    and they differ little."""
    cores = len(problem.tensors)
    return None if cores <= SMALL else 3 if cores <= LARGE else 1


def _machine(request: PlanRequest) -> Machine:
    return request.machine or native_machine(request.itemsize)


def _changes(probe: Recipe) -> Iterator[tuple[Sequence[int], int]]:
    """What is tried on the layouts of a path, as (states, their layout): one state at a time from the last to the
    first, of a longer chain one layout for all states."""
    states = len(probe.steps) - 1
    # The last code differs from the first only where both arrays hold a leg that stays.
    batched = [
        any(leg in step.reads[1].legs for leg in step.reads[0].legs if leg in step.writes.legs) for step in probe.steps
    ]
    if states > _SINGLY:
        for code in LAYOUTS[1:] if any(batched) else LAYOUTS[1:-1]:
            yield range(states), code
        return
    for position in reversed(range(states)):
        for code in LAYOUTS[1:] if batched[position] else LAYOUTS[1:-1]:
            yield (position,), code


def _changed(probe: Recipe, layouts: Sequence[int], states: Sequence[int], code: int) -> tuple[int, ...]:
    """The layouts with another one for some states; none stand for zeros."""
    result = [*layouts] or [0] * (len(probe.steps) - 1)
    for state in states:
        result[state] = code
    return tuple(result)


def _blocks(probe: Recipe, batch: int) -> list[int]:
    """Batch tiles that are worth pricing: the tables and the states of a tile must stay small."""
    rows = max(view.row for step in probe.steps for view in (*step.reads, step.writes))
    states = probe.lengths[probe.buffers.states] + probe.lengths[probe.buffers.state_grads]
    most = max(8, min(_TABLES // rows, _STATES // (probe.itemsize * max(1, states))))
    found = [block for block in BLOCKS if block < batch and block <= most]
    return [*found[-5:], batch] if batch <= most else found or [min(8, batch)]
