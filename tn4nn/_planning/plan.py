"""Plan: the order and the way in which a Network is applied to a batch, and what that costs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .._base.cache import plans as _cache
from .._base.errors import TN4NNError
from .._base.hashing import fingerprint_of
from .._drawing.contraction_tree import ContractionTree, draw_tree
from .._graph.network import Network
from .._graph.paths import (
    BATCH,
    EXHAUSTIVE,
    Path,
    find_paths,
    legs_along,
    slice_legs,
)
from .._graph.problem import Form, Problem, is_path, tensors_of
from .._runtime.cost import Cost, Machine
from .._runtime.program import Program, Work, lower, trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .native import Way

Phase = Literal["forward", "train"]
PLANNER = 7  # raised when the planner may find another plan for the same question: old cache files then rest

PHASES = ("forward", "train")
OBJECTIVES = ("time", "flops", "memory")
RUNTIMES = ("program", "native")
FEWEST, FEWEST_LARGE = 5, 3  # paths of the search for fewest multiply-adds that are priced: a large one takes long
FEWEST_WRITTEN = 2  # of the search for fewest multiply-adds and elements written
_SILLY = 1000  # times the fewest multiply-adds: orders beyond are not lowered to be priced


Table = tuple[tuple[str, Cost], ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a network is applied to a batch: a contraction order, its program, its cost.

    Attributes:
        network: what it was made for.
        batch: rows it was priced for; the program runs any number.
        phase: "forward" or "train".
        minimize: "time", "flops" or "memory".
        order: in words, where the order comes from.
        path: the contraction path over the program's inputs.
        cost: of one pass.
        itemsize: bytes of one number.
        form: what is contracted; see `plan`.
        candidates: (order, cost) of everything that was considered, the chosen one first.
        sliced: legs that the program loops over.
        rows: what the program takes at a time; 0 for all at once.
        way: how the native runtime takes this path; None where a framework runs the program.
    """

    network: Network
    batch: int
    phase: str
    minimize: str
    order: str
    path: Path
    cost: Cost
    itemsize: int
    form: Form
    candidates: Table = ()
    sliced: tuple[str, ...] = ()
    rows: int = 0
    way: Way | None = None

    @functools.cached_property
    def program(self) -> Program:
        """The steps in array operations, worked out when they are first asked for."""
        search = Search(self.network, self.batch, self.phase, self.minimize, self.form, self.itemsize, Machine())
        return search.lowered(self.path, self.sliced, self.rows)

    @property
    def runtime(self) -> str:
        """ "native" or "program"."""
        return "program" if self.way is None else "native"

    @property
    def block(self) -> int:
        """Rows that are run at a time; 0 for all at once."""
        return self.rows if self.way is None else self.way.block

    def input_shapes(self, batch: int | None = None) -> list[tuple[int, ...]]:
        """Shapes of the program's inputs at a batch (default: the plan's)."""
        return _input_shapes(self.network, self.program, self.batch if batch is None else batch)

    def work(self) -> list[Work]:
        """The work of each step at the plan's batch (of one block and one slice, where it has them)."""
        return trace(self.program, _step_shapes(self.network, self.program, self.batch))

    def draw(self, path: str | None = None) -> Figure:
        """Draws the contraction tree with matplotlib: x and the cores below, each step above what it contracts, with
        its share of the multiply-adds and the legs of its result; lines are the wider the more numbers they carry, and
        the step with the most multiply-adds is marked.

        Args:
            path: a .png or .svg file to write.

        Raises:
            TN4NNError: another ending, or matplotlib is not installed.
        """
        return draw_tree(self._picture(), path)

    def _picture(self) -> ContractionTree:
        tensors, names, output = tensors_of(self.network, self.form)
        sizes, legs = {**self.network.sizes, BATCH: self.batch}, legs_along(tensors, output, self.path)
        numbers = [math.prod(sizes[leg] for leg in on) for on in legs]
        macs = [math.prod(sizes[leg] for leg in legs[a] | legs[b]) for a, b in self.path]
        shown = {**dict.fromkeys(self.network.sizes), BATCH: None}
        labels = [
            " ".join((["batch"] if BATCH in on else []) + [leg for leg in shown if leg in on and leg != BATCH])
            for on in legs[len(tensors) :]
        ]
        t = self.network.topology
        title = f"{t.name} {t.in_features} -> {t.out_features}, batch {self.batch}, {self.phase}: {self.order}"
        return ContractionTree(title, names, self.path, macs, numbers, labels)

    def __str__(self) -> str:
        if self.way is not None:
            return _native_text(self, self.way)
        lines = _head(self)
        loops = [f"{self.program.block} rows at a time"] if self.program.block else []
        loops += [f"{math.prod(n for n, _ in self.program.sliced)} slices"] if self.program.sliced else []
        if loops:
            lines.append(f"  runs {' and '.join(loops)}; the steps are of one pass")
        names = [*self.program.inputs, *(f"t{i}" for i in range(len(self.program.steps)))]
        lines.append(f"  {'step':<38} {'result':<22} {'MACs':>12} {'bytes':>10}")
        works = self.work()
        largest = max((math.prod(w.shape) for w in works), default=0)
        for i, (step, work) in enumerate(zip(self.program.steps, works, strict=True)):
            text = f"t{i} = {step.kind}({', '.join(names[a] for a in step.args)})"
            mark = "  <- largest" if math.prod(work.shape) == largest and work.macs else ""
            lines.append(
                f"  {text:<38} {'x'.join(map(str, work.shape)) or 'scalar':<22} {work.macs:>12,} "
                f"{_bytes(work.moved * self.itemsize):>10}{mark}"
            )
        lines.append(f"  largest intermediate {_bytes(largest * self.itemsize)}")
        return "\n".join(lines)


def _head(p: Plan) -> list[str]:
    cost = p.cost
    return [
        f"Plan for {p.network.topology.name!r} {p.network.in_features} -> {p.network.out_features}, batch {p.batch}, "
        f"{p.phase}, least {p.minimize}: {p.order}",
        f"  {cost.macs:,} MACs, {_bytes(cost.bytes_moved)} moved, peak {_bytes(cost.peak)}, "
        f"saved {_bytes(cost.saved)}, predicted {cost.predicted_s * 1e3:.3g} ms",
    ]


def _native_text(p: Plan, way: Way) -> str:
    """The tasks of a native plan, those of one block of rows together."""
    measured = "" if way.measured_s is None else f", measured {way.measured_s * 1e3:.3g} ms"
    lines = [*_head(p), f"  native runtime, {way.block} rows at a time{measured}; tasks are of one block"]
    lines.append(f"  {'task':<80} {'h x m x k x n':<20} {'MACs':>12} {'us':>8}")
    lines += [
        f"  {row.text:<80} {row.sizes:<20} {row.macs:>12,} {row.seconds * 1e6:>8.2f}"
        for row in way.table(p.network, p.phase, p.itemsize)
    ]
    return "\n".join(lines)


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def plan(
    network: Network,
    batch: int = 64,
    phase: str = "forward",
    *,
    minimize: str = "time",
    memory: int | None = None,
    form: Form = "apply",
    itemsize: int = 4,
    seed: int = 0,
    time_limit: float = 10.0,
    progress: Callable[[str], None] | None = None,
    machine: Machine | None = None,
    cache: bool = True,
    runtime: str = "program",
    tune: bool = False,
) -> Plan:
    """Finds how to apply a network to a batch.

    The candidates are the contraction trees that cotengra finds for cores and batch together, those with fewest
    multiply-adds, with fewest of these and of elements written, and with the smallest intermediates, building W first,
    and taking the input through the cores one by one; each is lowered and priced, the cheapest wins.
    Found once, it comes from memory or disk afterwards.

    Args:
        network: what is applied.
        batch: rows of x.
        phase: "forward", or "train" for a step of forward and backward.
        minimize: "time" (by the cost model), "flops" (multiply-adds) or "memory" (saved and peak bytes).
        memory: cap in bytes on `cost.peak`; met by another order, else by running blocks of rows, else by
            slicing bonds.
        form: "apply" for y = x W^T, "gather" for rows of W^T picked by integers (embeddings), "dense" for W.
        itemsize: bytes of one number.
        seed: of the search (large networks).
        time_limit: seconds of the search (large networks); the step that it is in, it ends.
        progress: called with a line of text per round of the search, and for the native runtime per path priced.
        machine: figures of the cost model (default: a CPU core).
        cache: False plans anew and stores nothing.
        runtime: "program" for the steps that every backend can run (and does on a GPU, on several devices or under
            torch.compile), "native" for the C runtime that runs layers on a CPU.
        tune: measure the best few ways of the native runtime and take the fastest; the answer is kept on disk
            with the processor's fingerprint.

    Raises:
        TN4NNError: no network, an unknown phase, objective or runtime, a batch below 1, a memory cap that nothing
            meets, `tune` for programs.

    Example:
        >>> import tn4nn as tn
        >>> net = tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4)
        >>> p = tn.plan(net, batch=100, minimize="flops")
        >>> p.cost.macs < 100 * 784 * 256  # fewer multiply-adds than the dense layer
        True
    """
    if not isinstance(network, Network):
        raise TN4NNError(
            f"plan takes a Network, received {type(network).__name__}: give a topology ranks (with_rank, with_budget), "
            "and plan the layers of a model one by one (model.networks())"
        )
    if phase not in PHASES:
        raise TN4NNError(f"phase must be one of {', '.join(PHASES)}, received {phase!r}")
    if minimize not in OBJECTIVES:
        raise TN4NNError(f"minimize must be one of {', '.join(OBJECTIVES)}, received {minimize!r}")
    if batch < 1:
        raise TN4NNError(f"a plan needs a batch of at least 1 row, received {batch}")
    if runtime not in RUNTIMES:
        raise TN4NNError(f"runtime must be one of {', '.join(RUNTIMES)}, received {runtime!r}")
    if tune and runtime != "native":
        raise TN4NNError(f"tune measures the native runtime, received runtime={runtime!r}: pass runtime='native'")
    if runtime == "native":
        search_options = {"seed": seed, "time_limit": time_limit, "progress": progress, "machine": machine}
        return _native_plan(network, batch, phase, minimize, memory, form, itemsize, cache, tune, **search_options)
    machine = machine or Machine()
    owner = network.fingerprint  # once: that of a large network takes half a millisecond
    question = [PLANNER, owner, batch, phase, minimize, memory, form, itemsize, seed]
    question += [time_limit, dataclasses.astuple(machine)]
    key = fingerprint_of(question)
    stored = _cache.get(key, owner) if cache else None
    search = Search(network, batch, phase, minimize, form, itemsize, machine)
    if stored is not None:
        found = search.restore(stored)
        if found is not None:
            return found
    options = search.candidates(seed, time_limit, progress)
    chosen = search.best(options) if memory is None else search.under(memory, options)
    if cache:
        _cache.put(key, search.stored(chosen), owner)
    return chosen


def _native_plan(
    network: Network,
    batch: int,
    phase: str,
    minimize: str,
    memory: int | None,
    form: Form,
    itemsize: int,
    cache: bool,
    tune: bool,
    **options: Any,
) -> Plan:
    from .native import ways, within

    if form != "apply" or itemsize not in (4, 8):
        raise TN4NNError(
            "the native runtime applies networks to float32 and float64 rows (form 'apply', itemsize 4 or 8), "
            f"received form={form!r}, itemsize={itemsize}"
        )
    options |= {"minimize": minimize, "itemsize": itemsize}
    found = ways(network, batch, phase, tune=tune, cache=cache, **options)
    if memory is not None:
        found = within(memory, network, batch, phase, **options)
    way = found[0]
    table = tuple((other.order, other.cost) for other in found)
    return Plan(network, batch, phase, minimize, way.order, way.path, way.cost, itemsize, form, table, way=way)


def bucket(batch: int) -> int:
    """The batch for which a plan is made when batches vary: the next power of four.

    Example:
        >>> [bucket(n) for n in (0, 1, 3, 64, 65)]
        [1, 1, 4, 64, 256]
    """
    size = 1
    while size < batch:
        size *= 4
    return size


def _input_shapes(network: Network, program: Program, batch: int) -> list[tuple[int, ...]]:
    t, sizes = network.topology, {**network.sizes, BATCH: batch}
    shapes = [tuple(sizes[leg] for leg in core.legs) for core in t.cores]
    if program.inputs[-1:] == ("x",):
        shapes.append((batch, math.prod(t.inputs.values())))
    elif program.gathers:
        tensors, _, _ = tensors_of(network, "gather")
        shapes = [tuple(sizes[leg] for leg in legs) for legs in tensors]
    return shapes


def _step_shapes(network: Network, program: Program, batch: int) -> list[tuple[int, ...]]:
    """Shapes that the steps see: those of one block and one slice."""
    rows = min(batch, program.block) if program.block else batch
    shapes = [list(shape) for shape in _input_shapes(network, program, rows)]
    if program.sliced and program.unflatten:
        shapes[-1] = [rows, *program.unflatten[1:]]
    cuts = [place for _, places in program.sliced for place in places]
    for register, axis in sorted(cuts, key=lambda cut: -cut[1]):
        del shapes[register][axis]
    return [tuple(shape) for shape in shapes]


class Search:
    """The candidates of one question, and the choice among them."""

    def __init__(
        self, network: Network, batch: int, phase: str, minimize: str, form: Form, itemsize: int, machine: Machine
    ) -> None:
        self.network, self.batch, self.phase, self.minimize = network, batch, phase, minimize
        self.form: Form = form
        self.itemsize, self.machine = itemsize, machine
        self.problem = Problem(network, form, batch)
        self.tensors, self.names, self.output = self.problem.tensors, self.problem.names, self.problem.output
        self.sizes = self.problem.sizes

    # -- candidates -----------------------------------------------------------------------------------------

    def candidates(
        self, seed: int, time_limit: float, progress: Callable[[str], None] | None
    ) -> list[tuple[str, Path]]:
        def find(minimize: str, share: float) -> list[Path]:
            return find_paths(
                self.tensors,
                self.output,
                self.sizes,
                minimize=minimize,
                seed=seed,
                time_limit=share * time_limit,
                progress=progress,
                thorough=minimize == "flops",
            )

        found: dict[Path, str] = {}
        few = len(self.tensors) <= EXHAUSTIVE
        for path in find("flops", 0.5)[: FEWEST if few else FEWEST_LARGE]:
            found.setdefault(path, "fewest MACs found")
        for path in find("combo", 0.4)[:FEWEST_WRITTEN]:
            found.setdefault(path, "fewest MACs and writes found")
        for path in find("size", 0.1)[:1]:
            found.setdefault(path, "smallest intermediate found")
        if self.form == "apply":
            found.setdefault(self.problem.dense_first(), "W first")
            for path, name in zip(self.problem.chains(), ("left to right", "right to left"), strict=True):
                found.setdefault(path, name)
        macs = {path: self.problem.macs(path) for path in found}
        most = _SILLY * min(macs.values())
        # Taking the cores of a large graph in turn may hold hundreds of legs at once, which takes hours to lower.
        return [(name, path) for path, name in found.items() if macs[path] <= most]

    # -- lowering and pricing -------------------------------------------------------------------------------

    def lowered(self, path: Path, sliced: Sequence[str] = (), block: int = 0) -> Program:
        """The program of a path, with legs looped over and rows in blocks where asked."""
        tensors = [tuple(leg for leg in legs if leg not in sliced) for legs in self.tensors]
        t = self.network.topology
        if self.form == "dense":
            shape: tuple[int, ...] = tuple(self.sizes[leg] for leg in self.output)
            if not t.kept:
                shape = (math.prod(t.outputs.values()), math.prod(t.inputs.values()))
        else:
            shape = (-1, math.prod(t.outputs.values()))
        sizes = {**self.sizes, BATCH: block or self.batch}
        flat = self.form == "apply" and not sliced
        program = lower(tensors, self.output, sizes, path, names=self.names, output_shape=shape, flat_input=flat)
        places = tuple(
            (
                self.sizes[leg],
                tuple((r, legs.index(leg)) for r, legs in enumerate(self.tensors) if leg in legs),
            )
            for leg in sliced
        )
        unflatten = (-1, *t.inputs.values()) if sliced and self.form == "apply" else ()
        return dataclasses.replace(
            program, sliced=places, block=block, unflatten=unflatten, gathers=self.form == "gather"
        )

    def price(self, program: Program) -> Cost:
        """The cost of a program at this batch and in this phase."""
        works = trace(program, _step_shapes(self.network, program, self.batch))
        loops = math.prod(size for size, _ in program.sliced)
        if program.block:
            loops *= -(-self.batch // program.block)
        item, machine = self.itemsize, self.machine
        macs = sum(work.macs for work in works) * loops
        moved = sum(work.moved for work in works) * loops * item
        seconds = sum(_seconds(work, item, machine) for work in works) * loops
        peak, saved = _memory(program, works, _step_shapes(self.network, program, self.batch), item)
        if loops > 1:  # the whole input and the whole output stand beside the block
            peak += (math.prod(self.network.topology.inputs.values()) + self.network.out_features) * self.batch * item
        if self.phase == "train":
            # Reverse mode does each product twice more; measured, it also moves the memory twice more.
            return Cost(3 * macs, 3 * moved, peak, saved * loops, 3 * seconds + machine.step_s)
        return Cost(macs, moved, peak, 0, seconds + machine.pass_s)

    def made(self, order: str, path: Path, sliced: tuple[str, ...] = (), rows: int = 0) -> Plan:
        """A plan, priced."""
        program = self.lowered(path, sliced, rows)
        p = self._plan(order, path, self.price(program), (), sliced, rows)
        vars(p)["program"] = program  # it is there already
        return p

    def _plan(self, order: str, path: Path, cost: Cost, table: Table, sliced: tuple[str, ...], rows: int) -> Plan:
        asked = self.network, self.batch, self.phase, self.minimize
        return Plan(*asked, order, path, cost, self.itemsize, self.form, table, sliced, rows)

    def ranked(self, options: list[tuple[str, Path]]) -> list[Plan]:
        """All candidates as plans, best first."""
        plans = [self.made(order, path) for order, path in options]
        return sorted(plans, key=lambda p: p.cost.score(self.minimize))

    def best(self, options: list[tuple[str, Path]]) -> Plan:
        """The best candidate."""
        plans = self.ranked(options)
        return _with_table(plans[0], plans)

    def under(self, memory: int, options: list[tuple[str, Path]]) -> Plan:
        """The best candidate whose peak is at most `memory` bytes, in blocks or slices where it must be."""
        plans = self.ranked(options)
        fits = [p for p in plans if p.cost.peak <= memory]
        smallest = min(p.cost.peak for p in plans)
        for p in [] if fits else plans:
            for smaller in (self._in_blocks(p), self._in_slices(p)):
                for other in smaller:
                    smallest = min(smallest, other.cost.peak)
                    if other.cost.peak <= memory:
                        fits.append(other)
                        break
        if not fits:
            raise TN4NNError(
                f"no plan of {self.network.topology.name!r} at batch {self.batch} has a peak of at most "
                f"{_bytes(memory)}: the smallest found needs {_bytes(smallest)} ({smallest} bytes)"
            )
        chosen = min(fits, key=lambda p: p.cost.score(self.minimize))
        return _with_table(chosen, plans)

    def _in_blocks(self, p: Plan) -> Iterator[Plan]:
        """The same order on ever fewer rows at a time."""
        block = self.batch
        while self.form == "apply" and block > 1:
            block = -(-block // 2)
            yield self.made(p.order, p.path, (), block)

    def _in_slices(self, p: Plan) -> Iterator[Plan]:
        """The same order in ever smaller slices. What is tried does not depend on the cap, so a cap that is
        met once is met for every larger one too."""
        largest = max(math.prod(work.shape) for work in p.work())
        seen: set[tuple[str, ...] | None] = {(), None}
        while self.form != "gather" and largest > 1:
            largest //= 2
            sliced = slice_legs(self.tensors, self.output, self.sizes, p.path, largest)
            if sliced is not None and sliced not in seen:
                yield self.made(p.order, p.path, sliced)
            seen.add(sliced)

    # -- the cache ------------------------------------------------------------------------------------------

    def stored(self, p: Plan) -> dict[str, Any]:
        """What has to be kept of a plan; the rest follows from it."""
        return {
            "order": p.order,
            "path": [list(pair) for pair in p.path],
            "sliced": list(p.sliced),
            "rows": p.rows,
            "cost": dataclasses.astuple(p.cost),
            "candidates": [[order, *dataclasses.astuple(cost)] for order, cost in p.candidates],
        }

    def restore(self, data: Mapping[str, Any]) -> Plan | None:
        """The plan of a cache entry, or None where the entry does not fit."""
        try:
            path = tuple((int(a), int(b)) for a, b in data["path"])
            if not is_path(path, len(self.tensors)):
                return None
            table = tuple((str(row[0]), restored_cost(row[1:])) for row in data["candidates"])
            sliced, rows = tuple(str(leg) for leg in data["sliced"]), int(data["rows"])
            if not set(sliced) <= set(self.sizes) or rows < 0:
                return None
            return self._plan(str(data["order"]), path, restored_cost(data["cost"]), table, sliced, rows)
        except (KeyError, TypeError, ValueError, IndexError):
            return None


def _with_table(chosen: Plan, plans: Sequence[Plan]) -> Plan:
    """The chosen plan with everything that was considered; its program is lowered already."""
    p = dataclasses.replace(chosen, candidates=tuple((other.order, other.cost) for other in plans))
    vars(p)["program"] = chosen.program
    return p


def restored_cost(numbers: Sequence[Any]) -> Cost:
    """A cost out of a cache entry; TypeError where it is none."""
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError(f"costs are numbers, received {numbers}")
    return Cost(*numbers)


def _seconds(work: Work, itemsize: int, machine: Machine) -> float:
    return sum(seconds for _, seconds in seconds_of(work, itemsize, machine))


def seconds_of(work: Work, itemsize: int, machine: Machine) -> tuple[tuple[str, float], ...]:
    """The predicted seconds of a step, by the figures of the machine that they come from."""
    if not work.macs and not work.moved:
        return (("op_s", machine.op_s / 4),)  # a view
    memory = work.moved * itemsize / machine.bytes_per_s * (machine.strided if work.copies else 1)
    if work.gemm[1]:
        batch, m, k, n = work.gemm
        share = math.prod(dim / (dim + machine.edge) for dim in (m, k, n))
        macs, matrices = work.macs / (machine.macs_per_s * share), batch * machine.matrix_s
        if macs + matrices > memory:
            return ("macs_per_s", macs), ("matrix_s", matrices), ("op_s", machine.op_s)
    return ("strided" if work.copies else "bytes_per_s", memory), ("op_s", machine.op_s)


def _memory(
    program: Program, works: Sequence[Work], shapes: Sequence[tuple[int, ...]], itemsize: int
) -> tuple[int, int]:
    """(peak, saved) bytes of one pass; views share the memory of what they show."""
    x = len(shapes) - 1 if program.inputs[-1:] == ("x",) else -1
    base = list(range(len(shapes)))
    size = [math.prod(shape) * itemsize for shape in shapes]
    inputs = len(shapes)
    alive = {x} if x >= 0 else set()
    users: dict[int, int] = {}
    kept: set[int] = set()
    for i, (step, work) in enumerate(zip(program.steps, works, strict=True)):
        view = step.kind in ("reshape", "permute") and not work.copies
        base.append(base[step.args[0]] if view else inputs + i)
        size.append(math.prod(work.shape) * itemsize)
        users[base[-1]] = users.get(base[-1], 0) + 1
        if step.kind in ("matmul", "multiply"):
            kept |= {base[a] for a in step.args if base[a] >= inputs or base[a] == x}
    peak = sum(size[b] for b in alive)
    for i, step in enumerate(program.steps):
        alive.add(base[inputs + i])
        peak = max(peak, sum(size[b] for b in alive if b >= inputs or b == x))
        for register in step.frees:
            users[base[register]] = users.get(base[register], 0) - 1
            if users[base[register]] <= 0 and base[register] != x:
                alive.discard(base[register])
    return peak, sum(size[b] for b in kept)
