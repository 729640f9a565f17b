"""Which order, which layouts and how many rows at a time the native runtime is to use: predicted, or measured.

A candidate is a contraction path, the leg orders of its states, and a block of rows. Each is priced task by task
(`_tasks.task_seconds`); with `tune` the best few are run on random numbers and the fastest is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._base.cache import plans as _cache
from .._base.errors import TN4NNError
from .._base.hashing import fingerprint_of
from .._graph.network import Network
from .._graph.paths import EXHAUSTIVE, SMALL, Path, Progress, find_paths
from .._graph.problem import is_path, tree_of_path
from .._runtime.compiled import processor, vector_bytes
from .._runtime.cost import Cost, Machine
from .._runtime.recipe import LAYOUTS, Recipe, Task, recipe, task_bytes, task_seconds
from .plan import FEWEST, FEWEST_LARGE, FEWEST_WRITTEN, Search, restored_cost

if TYPE_CHECKING:
    from .._runtime.native import Native

NATIVE_PLANNER = 17  # raised when the same question may find another answer: old cache files then rest

_PATHS = 18  # paths that are priced with all their layouts, at most
_KEEP = 5 << 20  # bytes of states that a training step may keep; making more of them again is faster
_BESIDE = 10**6  # bytes that a plan in blocks may keep beside as many as x and y have
_KEPT = 4  # blocks of a path that stay candidates
_TRIED, _OTHERS = 8, 2  # candidates that are measured; of these, for other blocks than the best have
_BLOCKS = (8, 16, 32, 64, 128, 256, 512, 1024)
_TABLES = 1 << 22  # entries of the largest table of offsets
_STATES = 1 << 28  # bytes of the states of a block, at most
_PEAK = 1 << 31  # bytes above which a way is only taken where there is none below half of it
_SINGLY = 10  # states of a path whose layouts are improved one at a time
FETCHED = 1 << 21  # bytes of x, y and their gradients that the runtime fetches ahead, of a block; as in `contract.c`
_UNFETCHED = 3.5  # times as long takes what is not fetched
_AHEAD, _CROWDED = 0.4, 0.65  # share of the cache that rows ahead may fill; power of how much longer they take beyond
_FAR_CACHE, _NEARBY = 24 << 20, 0.25  # bytes that a later cache holds, where they take that share of memory's time
_BEYOND = 1.5  # times the best predicted so far
_SILLY = 50  # times the fewest multiply-adds: paths beyond are not priced


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """How the native runtime applies a network.

    Attributes:
        order: in words, where the path comes from.
        path: the contraction path over (cores..., x).
        layouts: how the state lies after each pass but the last (`_tasks.LAYOUTS`).
        block: rows at a time.
        cost: of one pass.
        keep: a training step keeps the states instead of making them again.
        measured_s: seconds of one pass, where it was measured.
    """

    order: str
    path: Path
    layouts: tuple[int, ...]
    block: int
    cost: Cost
    keep: bool = False
    measured_s: float | None = None

    def recipe(self, network: Network, itemsize: int = 4) -> Recipe:
        """The tasks of this way."""
        return recipe(network, self.path, self.block, itemsize=itemsize, layouts=self.layouts, keep=self.keep)

    def table(self, network: Network, phase: str, itemsize: int = 4) -> list[TaskRow]:
        """What it does: the prologue, one block of rows, and what follows, task by task."""
        made = self.recipe(network, itemsize)
        before, through, after = _tasks_of(made, phase)
        named = [("once", before), ("block", through), ("once", after)]
        machine = machine_here(itemsize)
        return [_row(made, when, task, machine) for when, tasks in named for task in tasks]


class TaskRow(NamedTuple):
    """One line of a plan: what is contracted, its sizes, multiply-adds and predicted seconds."""

    text: str
    sizes: str
    macs: int
    seconds: float


def _row(made: Recipe, when: str, task: Task, machine: Machine) -> TaskRow:
    shape = made.shape(task, 1 if when == "once" else made.block)
    a, b, c = (f"{made.bases.name(p.base)}[{' '.join(p.legs)}]" for p in (task.a, task.b, task.c))
    sizes = f"{shape.h} x {shape.m} x {shape.k} x {shape.n}"
    return TaskRow(f"{when}: {c} = {a} * {b}", sizes, shape.macs, task_seconds(shape, machine, made.itemsize))


def _tasks_of(made: Recipe, phase: str) -> tuple[Sequence[Task], Sequence[Task], Sequence[Task]]:
    """The tasks that run once before, for each block of rows, and once after."""
    before, through = made.ahead(made.prologue), made.forth(phase == "train")
    if phase != "train":  # "frozen": what is made of cores is there already
        return before if phase == "forward" else (), through, ()
    cores = frozenset(range(len(made.bases.slopes)))
    again = (*made.again(), *made.back(made.passes, True, cores))
    return before, (*through, *again), made.back(made.prologue, False, cores)


def machine_here(itemsize: int = 4) -> Machine:
    """The figures of this processor: those that `calibrate` has kept, else the defaults with its vectors."""
    from .calibrate import calibrated

    return calibrated(dtype=f"float{8 * itemsize}") or Machine(vector_bytes=vector_bytes())


def within(memory: int, network: Network, batch: int, phase: str, **options: Any) -> tuple[Way, ...]:
    """The best ways with a peak of at most `memory` bytes; an error with the smallest found where there is none."""
    minimize = options.pop("minimize")
    found = [*ways(network, batch, phase, minimize=minimize, **options)]
    found += ways(network, batch, phase, minimize="memory", **options)
    fits = [way for way in found if way.cost.peak <= memory]
    if not fits:
        smallest = min(way.cost.peak for way in found)
        raise TN4NNError(
            f"no plan of {network.topology.name!r} at batch {batch} has a peak of at most {memory} bytes: the smallest "
            f"found needs {smallest} bytes"
        )
    return tuple(sorted(fits, key=lambda way: way.cost.score(minimize)))


def ways(
    network: Network,
    batch: int,
    phase: str,
    *,
    minimize: str = "time",
    itemsize: int = 4,
    tune: bool = False,
    machine: Machine | None = None,
    cache: bool = True,
    seed: int = 0,
    time_limit: float = 10.0,
    progress: Progress | None = None,
) -> tuple[Way, ...]:
    """The best ways found, the one to take first; once found, they come from memory or disk.

    Args:
        network: what is applied.
        batch: rows of x.
        phase: "forward", "train", or "frozen" for a forward pass that finds the operands made.
        minimize: "time", "flops" or "memory".
        itemsize: 4 or 8 bytes of a number.
        tune: measure the best few, and put the fastest first.
        machine: figures of the cost model.
        cache: False searches anew and stores nothing.
        seed: of the search for paths (large networks).
        time_limit: seconds after which no new path is searched for or priced (large networks).
        progress: called with a line of text per round of the search and per path that is priced.
    """
    machine = machine or machine_here(itemsize)
    owner = network.fingerprint  # once: that of a large network takes half a millisecond
    question = [NATIVE_PLANNER, "native", owner, batch, phase, minimize, itemsize, tune, seed, time_limit]
    question += [dataclasses.astuple(machine), processor() if tune else ""]
    key = fingerprint_of(question)
    stored = _cache.get(key, owner) if cache else None
    found = None if stored is None else _restored(stored, len(network.topology.cores) + 1)
    if found is None:
        options: dict[str, Any] = {"seed": seed, "time_limit": time_limit, "progress": progress}
        found = tried(candidates(network, batch, phase, minimize, itemsize, machine, **options))
        if tune:
            found = measured(network, batch, phase, found, itemsize)
        if cache:
            _cache.put(key, {"ways": [_stored(way) for way in found]}, owner)
    return found


def tried(found: Sequence[Way]) -> tuple[Way, ...]:
    """What is worth measuring of all candidates: the best, and the best with blocks that none of these has, since the
    price of a block is what the model knows least."""
    first: dict[int, int] = {}
    for i, way in enumerate(found):
        first.setdefault(way.block, i)
    best = {*range(_TRIED - _OTHERS), *first.values()}
    chosen = sorted(range(len(found)), key=lambda i: i not in best)[:_TRIED]
    return tuple(found[i] for i in sorted(chosen))


def candidates(
    network: Network,
    batch: int,
    phase: str,
    minimize: str = "time",
    itemsize: int = 4,
    machine: Machine | None = None,
    *,
    seed: int = 0,
    time_limit: float = 10.0,
    progress: Progress | None = None,
) -> tuple[Way, ...]:
    """Everything that is considered, best first; see `ways`."""
    machine = machine or machine_here(itemsize)
    start = time.monotonic()
    found = paths(network, batch, phase, seed=seed, time_limit=time_limit, progress=progress)
    search = Search(network, batch, phase, "time", "apply", itemsize, machine)
    passes = (3 if phase == "train" else 1) / machine.tile_macs_per_s
    made: list[Way] = []
    for i, (order, path) in enumerate(found, 1):
        best = min((way.cost.predicted_s for way in made), default=math.inf)
        if (
            minimize == "time"
            and len(search.tensors) > EXHAUSTIVE
            and passes * search.problem.macs(path) > _BEYOND * best
        ):
            continue  # its multiply-adds alone take longer: nothing is left to price
        made += _layouts(_Pricer(network, path, order, batch, phase, itemsize, machine), minimize)
        spent = time.monotonic() - start
        if progress is not None:
            progress(f"path {i}/{len(found)} priced: {order}, {spent:.1f} s")
        if spent > time_limit:
            break
    most = max(_PEAK, 2 * min(way.cost.peak for way in made))
    return tuple(sorted((way for way in made if way.cost.peak <= most), key=lambda way: way.cost.score(minimize)))


def paths(
    network: Network,
    batch: int,
    phase: str = "train",
    *,
    seed: int = 0,
    time_limit: float = 10.0,
    progress: Progress | None = None,
) -> list[tuple[str, Path]]:
    """Orders worth pricing: those with the fewest multiply-adds for this batch and for others, W first, partly merged
    neighbours, x through the cores; each path once, those with the fewest multiply-adds first."""
    search = Search(network, batch, phase, "time", "apply", 4, Machine())
    every: dict[frozenset[frozenset[int]], tuple[str, Path]] = {}

    def add(order: str, path: Path) -> None:
        every.setdefault(tree_of_path(path, len(search.tensors)), (order, path))

    def find(sizes: Mapping[str, int], minimize: str, share: float) -> list[Path]:
        options: dict[str, Any] = {"seed": seed, "time_limit": share * time_limit, "progress": progress}
        thorough = minimize == "flops"
        return find_paths(search.tensors, search.output, sizes, minimize=minimize, thorough=thorough, **options)

    few = len(search.tensors) <= EXHAUSTIVE
    most = FEWEST if len(search.tensors) <= SMALL else FEWEST_LARGE
    for rows in dict.fromkeys((batch, 1, 16, 256, 4096)) if few else (batch,):
        sizes = {**search.sizes, ":batch": rows}
        for path in find(sizes, "flops", 0.4)[: most if rows == batch else 1]:
            add(f"fewest MACs at batch {rows}" if rows != batch else "fewest MACs found", path)
    for path in find(search.sizes, "combo", 0.25)[:FEWEST_WRITTEN]:
        add("fewest MACs and writes found", path)
    for path in find(search.sizes, "size", 0.05)[:1]:
        add("smallest intermediate found", path)
    for order, path in search.problem.merges():
        add(order, path)
    found = {path: order for order, path in every.values()}
    macs = {path: search.problem.macs(path) for path in found}
    least = min(macs.values())
    cheap = [path for path in sorted(found, key=macs.__getitem__)[:_PATHS] if macs[path] <= _SILLY * least]
    first = search.problem.dense_first()
    if search.problem.macs(first) <= _SILLY * least or len(cheap) < 2:
        tree = tree_of_path(first, len(search.tensors))
        cheap = [path for path in cheap if tree_of_path(path, len(search.tensors)) != tree] + [first]
    return [("W first" if path is first else found[path], path) for path in cheap]


# -- pricing ----------------------------------------------------------------------------------------------------


class _Pricer:
    """Costs of one path, by layouts and block."""

    def __init__(
        self, network: Network, path: Path, order: str, batch: int, phase: str, itemsize: int, machine: Machine
    ) -> None:
        self.network, self.path, self.order, self.batch = network, path, order, batch
        self.phase, self.itemsize, self.machine = phase, itemsize, machine

    def way(self, layouts: Sequence[int], block: int, keep: bool = False) -> Way:
        made = recipe(self.network, self.path, block, itemsize=self.itemsize, layouts=layouts, keep=keep)
        return Way(self.order, self.path, tuple(layouts), block, self.cost(made), keep)

    def kept(self, way: Way) -> Way | None:
        """The same with all that a training step can keep, where the states may still lie in a cache when it goes back
        and a plan in blocks saves little more than x and y."""
        if self.phase != "train":
            return None
        r = recipe(self.network, self.path, way.block, itemsize=self.itemsize, layouts=way.layouts, keep=True)
        if self.batch * r.kept * self.itemsize > _KEEP:
            return None
        made = dataclasses.replace(way, cost=self.cost(r), keep=True)
        within = made.cost.saved <= self.batch * (r.inputs + r.outputs) * self.itemsize + _BESIDE
        return made if made.cost.saved > way.cost.saved and (within or way.block == self.batch) else None

    def cost(self, r: Recipe) -> Cost:
        """The cost of a recipe at this batch."""
        train, b, item = self.phase == "train", r.bases, self.itemsize
        before, through, after = _tasks_of(r, self.phase)
        full, left = divmod(self.batch, r.block)
        rows_in, rows_out = r.inputs, r.outputs
        row = rows_in + rows_out
        rows_kept = r.kept * r.block if train else 0
        held = rows_kept or r.lengths[b.states]
        held += r.lengths[b.state_slopes] if train else 0
        work = (held + (row + (rows_in if train else 0)) * r.block) * item
        seconds = moved = macs = 0.0
        for tasks, rows, times in (
            (before, 1, 2 if train and not r.held else 1),
            (through, r.block, full),
            (through, left, 1 if left else 0),
            (after, 1, 1),
        ):
            if not times:
                continue
            for task in tasks:
                shape = r.shape(task, rows)
                macs += times * shape.macs
                moved += times * task_bytes(shape, item)
                seconds += times * task_seconds(shape, self.machine, item)
                seconds += times * self._memory(task_bytes(shape, item), work if rows > 1 else 0)
        seconds += self._streamed(rows_in, rows_out, r.block) + self.machine.call_s
        made, kept = r.lengths[b.made] * item, r.held * item
        peak = self.batch * row * item + held * item + made + (r.lengths[b.made_slopes] * item if train else 0)
        states = (full + (left > 0)) * rows_kept * item
        peak += states - rows_kept * item
        saved = self.batch * rows_in * item + kept + states if train else 0
        felt = _NEARBY if r.block >= self.batch else 1.0  # of one block `_memory` counts what no cache holds
        seconds += 2 * felt * states / self.machine.memory_bytes_per_s  # written by one pass, read by the other
        return Cost(int(macs), int(moved), peak, saved, seconds)

    def _streamed(self, rows_in: int, rows_out: int, block: int) -> float:
        """Seconds for x and y to come and go, and for their gradients."""
        passes = [rows_in + rows_out] + ([2 * rows_in + rows_out] if self.phase == "train" else [])
        if sum(passes) * self.batch * self.itemsize <= _FAR_CACHE:
            felt = _NEARBY * sum(passes)
        else:
            felt = sum(numbers * self._unfetched(numbers * block * self.itemsize, block) for numbers in passes)
        return felt * self.batch * self.itemsize / self.machine.memory_bytes_per_s

    def _unfetched(self, ahead: int, block: int) -> float:
        """How much longer the rows of a block take to come than where the cache holds these and the next block's."""
        if block == self.batch or ahead > FETCHED:
            return _UNFETCHED
        crowded: float = max(1.0, ahead / (_AHEAD * self.machine.cache_bytes)) ** _CROWDED
        return min(_UNFETCHED, crowded)

    def _memory(self, moved: int, work: int) -> float:
        """Seconds that a task loses since what a block works on does not fit the cache."""
        held = max(work, moved)
        within, far = min(1.0, self.machine.cache_bytes / held), max(0.0, 1 - _FAR_CACHE / held)
        return (1 - within + 2 * far) * moved / self.machine.memory_bytes_per_s


def _layouts(pricer: _Pricer, minimize: str) -> Iterator[Way]:
    """The best layouts of a path, by changing one at a time, at the two best blocks."""

    def score(way: Way) -> tuple[float, float]:
        return way.cost.score(minimize)

    probe = recipe(pricer.network, pricer.path, 1, itemsize=pricer.itemsize)
    blocks = _blocks(probe, pricer.batch)
    best = min((pricer.way((), block) for block in blocks), key=score)
    layouts = [0] * (len(probe.passes) - 1)
    single = len(layouts) <= _SINGLY  # a longer chain has one layout for all of its states
    batched = [
        any(leg in step.reads[1].legs for leg in step.reads[0].legs if leg in step.makes.legs) for step in probe.passes
    ]
    for position in reversed(range(len(layouts))) if single else range(1):
        # the last order differs from the first only where both arrays hold a leg that stays
        for code in LAYOUTS[1:] if (batched[position] if single else any(batched)) else LAYOUTS[1:-1]:
            changed = [code] * len(layouts)
            if single:
                changed = [*layouts[:position], code, *layouts[position + 1 :]]
            way = pricer.way(changed, best.block)
            if score(way) < score(best):
                best, layouts = way, changed
    found = sorted((pricer.way(layouts, block) for block in blocks), key=score)
    yield from found[:_KEPT]
    yield from sorted((way for way in map(pricer.kept, found) if way is not None), key=score)[:_KEPT]


def _blocks(probe: Recipe, batch: int) -> list[int]:
    """Rows at a time that are worth pricing: the tables and the states of a block must stay small."""
    rows = max(place.row for step in probe.passes for place in (*step.reads, step.makes))
    states = probe.lengths[probe.bases.states] + probe.lengths[probe.bases.state_slopes]
    most = max(8, min(_TABLES // rows, _STATES // (probe.itemsize * max(1, states))))
    found = [block for block in _BLOCKS if block < batch and block <= most]
    return [*found[-5:], batch] if batch <= most else found or [min(8, batch)]


# -- measuring --------------------------------------------------------------------------------------------------


def measured(network: Network, batch: int, phase: str, found: Sequence[Way], itemsize: int = 4) -> tuple[Way, ...]:
    """The ways in the order of their measured times; as they were where there is no runtime."""
    runs = runs_of(network, batch, phase, found, itemsize)
    if runs is None:
        return tuple(found)
    made = [dataclasses.replace(way, measured_s=s) for way, s in zip(found, _interleaved(runs), strict=True)]
    return tuple(sorted(made, key=lambda way: way.measured_s or 0.0))


def runs_of(
    network: Network, batch: int, phase: str, found: Sequence[Way], itemsize: int = 4
) -> list[Callable[[], object]] | None:
    """What runs each of the ways once, all on the same random numbers: a way finds them in the caches as the one before
    has left them, however many there are. None where there is no runtime."""
    from .._runtime.native import native

    natives = [native(way.recipe(network, itemsize)) for way in found]
    ready = [made for made in natives if made is not None]
    if len(ready) < len(found):
        return None
    rng, kind = np.random.default_rng(0), np.float32 if itemsize == 4 else np.float64
    t, sizes, train = network.topology, network.sizes, phase == "train"
    cores = [rng.standard_normal([sizes[leg] for leg in core.legs], dtype=kind) for core in t.cores]
    x = rng.standard_normal((batch, math.prod(t.inputs.values())), dtype=kind)
    y = rng.standard_normal((batch, math.prod(t.outputs.values())), dtype=kind)
    gy, gx, slopes = np.ones_like(y), np.empty_like(x), [np.empty_like(c) for c in cores]
    kept = np.empty(max((made.kept(batch) for made in ready), default=0) if train else 0, kind)
    arrays = (cores, x, y, gy, gx, kept, slopes)
    at, to = [c.ctypes.data for c in cores], [s.ctypes.data for s in slopes]
    places = [array.ctypes.data for array in (x, y, gy, gx)]

    def run(made: Native, held: int) -> object:
        made.forward(batch, at, held, places[0], places[1])
        if train:
            made.backward(batch, at, held, places[0], places[2], places[3], to, (True,) * (1 + len(to)))
        return arrays  # alive as long as the function is

    # What is looked up here is not measured.
    return [functools.partial(run, made, kept.ctypes.data if train and made.kept(batch) else 0) for made in ready]


_HOPELESS = 1.3  # times the fastest: a way that slow is not run again


def _interleaved(runs: Sequence[Any], least: float = 2e-3, rounds: int = 5) -> list[float]:
    """The least time of each, over rounds that go through all that are still in sight of the fastest."""
    best, repeats = [math.inf] * len(runs), [1] * len(runs)
    for turn in range(rounds + 1):
        ahead = _HOPELESS * min(best, default=math.inf)
        for i, run in enumerate(runs):
            if best[i] > ahead and turn > 2:  # once may have been the machine's fault
                continue
            if not turn:
                run()  # the very first call meets fresh memory
            start = time.perf_counter()
            for _ in range(repeats[i]):
                run()
            spent = (time.perf_counter() - start) / repeats[i]
            if turn:  # the first time only says how long a call takes
                best[i] = min(best[i], spent)
            else:
                repeats[i] = max(1, min(1000, int(least / max(1e-7, spent))))
    return best


# -- the cache --------------------------------------------------------------------------------------------------


def _stored(way: Way) -> dict[str, Any]:
    return {
        "order": way.order,
        "path": [list(pair) for pair in way.path],
        "layouts": list(way.layouts),
        "block": way.block,
        "cost": dataclasses.astuple(way.cost),
        "keep": way.keep,
        "measured_s": way.measured_s,
    }


def _restored(data: Mapping[str, Any], tensors: int) -> tuple[Way, ...] | None:
    """The ways of a cache entry, or None where it does not fit."""
    try:
        found = []
        for row in data["ways"]:
            path = tuple((int(a), int(b)) for a, b in row["path"])
            layouts, block = tuple(int(code) for code in row["layouts"]), int(row["block"])
            if not is_path(path, tensors) or block < 1 or any(code not in LAYOUTS for code in layouts):
                return None
            cost, keep = restored_cost(row["cost"]), bool(row["keep"])
            found.append(Way(str(row["order"]), path, layouts, block, cost, keep, row["measured_s"]))
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(found) or None
