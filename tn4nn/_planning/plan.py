"""Plan: the order and the way in which a Network is applied to a batch, and what that costs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .._base.cache import plans as _cache
from .._base.errors import TN4NNError
from .._graph.network import Network
from .._graph.paths import EXHAUSTIVE, Path, chain_path, find_paths, greedy_path, path_macs, slice_legs
from .._graph.topology import fingerprint_of
from .._runtime.program import BATCH, Legs, Program, Work, lower, trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .native import Way

Phase = Literal["forward", "train"]
Form = Literal["apply", "gather", "dense"]
PLANNER = 7  # raised when the planner may find another plan for the same question: old cache files then rest

PHASES = ("forward", "train")
OBJECTIVES = ("time", "flops", "memory")
RUNTIMES = ("program", "native")
FEWEST, FEWEST_LARGE = 5, 3  # paths of the search for fewest multiply-adds that are priced: a large one takes long
FEWEST_WRITTEN = 2  # of the search for fewest multiply-adds and elements written
_SILLY = 1000  # times the fewest multiply-adds: orders beyond are not lowered to be priced


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What the cost model believes of the device: a roofline with a price for each operation.

    Attributes:
        macs_per_s: multiply-adds of a large matrix product, per second.
        bytes_per_s: of a copy in order.
        strided: how many times slower memory is read against its order.
        op_s: seconds for calling one array operation.
        matrix_s: seconds for starting one matrix of a batched product.
        edge: a matrix dimension at which a product runs at half speed.
        pass_s: seconds for a forward pass, whatever is in it.
        step_s: seconds for a training step, whatever is in it: autograd, for the most part.
        kernel_macs_per_s: multiply-adds of a kernel of small tiles on a GPU, per second.
        vector_bytes: of the native runtime's vectors; this and what follows is the native runtime's.
        tile_macs_per_s: multiply-adds of its tiles, per second.
        tile_s: seconds for starting a tile.
        vector_s: seconds for moving one vector.
        columns: seconds for packing one vector out of columns, in `vector_s`.
        scatter: seconds for moving one number out of a vector, in `vector_s`.
        across: how many times slower tiles are whose vectors lie along h or k.
        far_s: seconds for reading a number on a cache line of its own.
        task_s: seconds for starting a task.
        call_s: seconds for a call.
        cache_bytes: of a block's states from which memory is felt.
        memory_bytes_per_s: of memory, as streams of rows feel it.
    """

    macs_per_s: float = 35e9
    bytes_per_s: float = 20e9
    strided: float = 4.0
    op_s: float = 2.5e-6
    matrix_s: float = 0.1e-6
    edge: float = 4.0
    pass_s: float = 2e-6
    step_s: float = 30e-6  # 9e-6 compiled by XLA, 80e-6 in torch's autograd
    kernel_macs_per_s: float = 22e9
    vector_bytes: int = 64
    tile_macs_per_s: float = 50e9
    tile_s: float = 5.4e-9
    vector_s: float = 0.35e-9
    columns: float = 3.2
    scatter: float = 0.94
    across: float = 1.0
    far_s: float = 1.5e-9
    task_s: float = 0.1e-6
    call_s: float = 3.1e-6
    cache_bytes: int = 1_000_000
    memory_bytes_per_s: float = 44e9


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What one pass costs, for the plan's batch and phase.

    Attributes:
        macs: multiply-adds (half the FLOPs); a training step counts forward and backward, 3x forward.
        bytes_moved: bytes read and written by all steps.
        peak: bytes of intermediates alive at once in the forward pass, input and output included.
        saved: bytes kept between forward and backward, the input included, the cores not; 0 for "forward".
        predicted_s: seconds by the cost model.
    """

    macs: int
    bytes_moved: int
    peak: int
    saved: int
    predicted_s: float

    def score(self, minimize: str) -> tuple[float, float]:
        """What is minimised; ties go to time."""
        first = {"time": self.predicted_s, "flops": self.macs, "memory": self.peak + self.saved}[minimize]
        return float(first), self.predicted_s


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
        from .._drawing.contraction_tree import draw_tree

        return draw_tree(self, path)

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


def min_macs(network: Network, batch: int) -> int:
    """The fewest multiply-adds of one forward pass that the exhaustive or greedy search finds, at once."""
    search = Search(network, batch, "forward", "flops", "apply", 4, Machine())
    tensors, output = search.tensors, search.output
    few = len(tensors) <= 7
    paths = [find_paths(tensors, output, search.sizes)[0] if few else greedy_path(tensors, output, search.sizes)]
    paths.append(search.dense_first(greedy=not few))
    paths += search.chains()
    return min(search.macs_of(path) for path in paths)


def problem(network: Network, form: Form) -> tuple[list[Legs], tuple[str, ...], Legs]:
    """The tensors to contract, the names of the program's inputs, and the legs of the result.

    "apply" and "gather" have a batch leg; the result of "apply" and "gather" is (batch, outputs...), that of
    "dense" (outputs..., inputs...), kept legs standing once, among the outputs.
    """
    t = network.topology
    tensors = [core.legs for core in t.cores]
    names = tuple(core.name for core in t.cores)
    outputs = tuple(t.outputs)
    if form == "dense":
        return tensors, names, (*outputs, *(leg for leg in t.inputs if leg not in t.outputs))
    if form == "gather":
        if t.kept:
            raise TN4NNError(f"an embedding cannot have kept legs, received {', '.join(t.kept)}")
        rows = []
        for legs in tensors:
            inner = tuple(leg for leg in legs if leg not in t.inputs)
            rows.append((BATCH, *inner) if len(inner) < len(legs) else inner)
        return rows, names, (BATCH, *outputs)
    return [*tensors, (BATCH, *t.inputs)], (*names, "x"), (BATCH, *outputs)


def _input_shapes(network: Network, program: Program, batch: int) -> list[tuple[int, ...]]:
    t, sizes = network.topology, {**network.sizes, BATCH: batch}
    shapes = [tuple(sizes[leg] for leg in core.legs) for core in t.cores]
    if program.inputs[-1:] == ("x",):
        shapes.append((batch, math.prod(t.inputs.values())))
    elif program.gathers:
        tensors, _, _ = problem(network, "gather")
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
        self.tensors, self.names, self.output = problem(network, form)
        self.sizes = {**network.sizes, BATCH: batch}

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
            found.setdefault(self.dense_first(greedy=len(self.tensors) > 24), "W first")
            for path, name in zip(self.chains(), ("left to right", "right to left"), strict=True):
                found.setdefault(path, name)
        macs = {path: self.macs_of(path) for path in found}
        most = _SILLY * min(macs.values())
        # Taking the cores of a large graph in turn may hold hundreds of legs at once, which takes hours to lower.
        return [(name, path) for path, name in found.items() if macs[path] <= most]

    def dense_first(self, *, greedy: bool = False) -> Path:
        """The cores among themselves, then x."""
        cores = self.tensors[:-1]
        t = self.network.topology
        output = tuple(dict.fromkeys([*t.outputs, *t.inputs]))
        on_cores = {leg for legs in cores for leg in legs}
        output = tuple(leg for leg in output if leg in on_cores)
        finder = greedy_path if greedy else lambda *question: find_paths(*question, thorough=False)[0]
        inner = finder(cores, output, self.network.sizes)
        n = len(cores)
        # x takes number n, so what the cores make moves up by one.
        shifted = [tuple(i if i < n else i + 1 for i in pair) for pair in inner]
        last = n if not inner else len(cores) + len(inner)
        made = 0 if not inner else last
        return tuple([(a, b) for a, b in shifted] + [(made, n)])

    def chains(self) -> list[Path]:
        """x through the cores in their order, and in the reverse order."""
        n = len(self.tensors)
        order = range(n - 1)
        return [chain_path(order, n - 1, n), chain_path(order[::-1], n - 1, n)]

    def merges(self) -> Iterator[tuple[str, Path]]:
        """Neighbouring cores merged, then x through what they make, from either side."""
        cores = len(self.tensors) - 1
        for groups in _groupings(cores):
            for order, name in ((groups, "left to right"), (groups[::-1], "right to left")):
                path: list[tuple[int, int]] = []
                current = cores
                made = [self._merged(group, path) for group in order]
                for operand in made:
                    path.append((current, operand))
                    current = cores + len(path)
                yield f"{name}, cores merged by {'+'.join(str(len(group)) for group in groups)}", tuple(path)

    def _merged(self, group: Sequence[int], path: list[tuple[int, int]]) -> int:
        """Contracts a group of cores from left to right; returns the number of what they make."""
        current = group[0]
        for other in group[1:]:
            path.append((current, other))
            current = len(self.tensors) - 1 + len(path)
        return current

    def macs_of(self, path: Path) -> int:
        """Multiply-adds of a path, without lowering it."""
        return path_macs(self.tensors, self.output, self.sizes, path)

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


def _groupings(cores: int) -> Iterator[list[list[int]]]:
    """Ways to cut a row of cores into groups: all of them for a short row, else groups of one size."""
    if cores <= 7:
        for cuts in range(1 << (cores - 1)):
            groups = [[0]]
            for core in range(1, cores):
                if cuts >> (core - 1) & 1:
                    groups.append([core])
                else:
                    groups[-1].append(core)
            if len(groups) > 1:
                yield groups
        return
    for size in range(1, 5):
        yield [list(range(low, min(cores, low + size))) for low in range(0, cores, size)]


def is_path(path: Path, tensors: int) -> bool:
    """Whether this is a path over so many tensors."""
    free = set(range(tensors))
    for step, (a, b) in enumerate(path):
        if a == b or a not in free or b not in free:
            return False
        free -= {a, b}
        free.add(tensors + step)
    return len(free) == 1


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
