"""What a program costs: multiply-adds, bytes, memory, and seconds by a roofline with a price per operation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .._graph.problem import Problem, tensors_of
from .cost import Cost, Machine, ProgramMachine
from .program import Program, Work, trace


def input_shapes(problem: Problem, program: Program) -> list[tuple[int, ...]]:
    """Shapes of a program's inputs for the problem's batch."""
    t, sizes = problem.network.topology, problem.sizes
    shapes = [tuple(sizes[leg] for leg in core.legs) for core in t.cores]
    if program.inputs[-1:] == ("x",):
        shapes.append((problem.batch, math.prod(t.inputs.values())))
    elif program.gathers:
        tensors, _, _ = tensors_of(problem.network, "gather")
        shapes = [tuple(sizes[leg] for leg in legs) for legs in tensors]
    return shapes


def step_shapes(problem: Problem, program: Program) -> list[tuple[int, ...]]:
    """Shapes that the steps see: those of one batch tile and one slice."""
    rows = min(problem.batch, program.block) if program.block else problem.batch
    shapes = [list(shape) for shape in input_shapes(problem.at(rows), program)]
    if program.sliced and program.unflatten:
        shapes[-1] = [rows, *program.unflatten[1:]]
    cuts = [cut for _, cuts in program.sliced for cut in cuts]
    for register, axis in sorted(cuts, key=lambda cut: -cut[1]):
        del shapes[register][axis]
    return [tuple(shape) for shape in shapes]


def program_cost(problem: Problem, program: Program, phase: str, itemsize: int, machine: ProgramMachine) -> Cost:
    """The cost of a program.

    Args:
        problem: what it contracts, for how many rows.
        program: the steps.
        phase: "forward", "train", or "frozen" for a forward pass that finds what is made of cores alone ready.
        itemsize: bytes of one number.
        machine: parameters of the cost model.
    """
    shapes = step_shapes(problem, program)
    works = trace(program, shapes)
    counted = works if phase != "frozen" else [w for w, x in zip(works, _holds_x(program), strict=True) if x]
    loops = math.prod(size for size, _ in program.sliced)
    if program.block:
        loops *= -(-problem.batch // program.block)
    macs = sum(work.macs for work in counted) * loops
    moved = sum(work.moved for work in counted) * loops * itemsize
    seconds = sum(step_seconds(work, itemsize, machine) for work in counted) * loops
    peak, saved = _memory(program, works, shapes, itemsize)
    if loops > 1:  # the whole input and the whole output are there beside the tile
        t = problem.network.topology
        peak += (math.prod(t.inputs.values()) + t.out_features) * problem.batch * itemsize
    if phase == "train":
        # Reverse mode does each product twice more; measured, it also moves the memory twice more.
        return Cost(3 * macs, 3 * moved, peak, saved * loops, 3 * seconds + machine.step_s)
    return Cost(macs, moved, peak, 0, seconds + machine.pass_s)


def convolution_cost(problem: Problem, window: int, phase: str, itemsize: int, machine: Machine) -> Cost:
    """The cost of a framework's own convolution, W being there.

    Args:
        problem: batch counts positions of the output.
        window: positions of the kernel.
        phase: "forward" or "train".
        itemsize: bytes of one number.
        machine: parameters of the cost model.
    """
    net, passes = problem.network, 3 if phase == "train" else 1
    image = problem.batch * net.in_features // window * itemsize
    macs, output = problem.batch * net.dense_params, problem.batch * net.out_features * itemsize
    moved = image + output + net.dense_params * itemsize
    peak = max(machine.macs_per_s, machine.tile_macs_per_s)  # measured: a convolution is as fast as the processor goes
    seconds = passes * (max(macs / peak, moved / machine.bytes_per_s) + machine.op_s)
    saved = image + net.dense_params * itemsize if phase == "train" else 0
    return Cost(passes * macs, passes * moved, image + output, saved, seconds)


def unfolding_cost(problem: Problem, window: int, phase: str, itemsize: int, machine: ProgramMachine) -> Cost:
    """The cost of cutting images into patches, one for each of the problem's rows."""
    passes = 3 if phase == "train" else 1
    patches = problem.batch * problem.network.in_features * itemsize
    moved = 2 * passes * patches
    # Read or written in strides, and summed in backward; measured, it takes even a little longer.
    return Cost(0, moved, patches // window, 0, moved * machine.strided / machine.bytes_per_s)


def step_seconds(work: Work, itemsize: int, machine: ProgramMachine) -> float:
    """The predicted seconds of a step."""
    return sum(seconds for _, seconds in seconds_of(work, itemsize, machine))


def seconds_of(work: Work, itemsize: int, machine: ProgramMachine) -> tuple[tuple[str, float], ...]:
    """The predicted seconds of a step, by the parameters of the machine that they come from."""
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


def _holds_x(program: Program) -> Iterable[bool]:
    """Of each step, whether its result depends on x."""
    holds = [name == "x" for name in program.inputs]
    for step in program.steps:
        holds.append(any(holds[a] for a in step.args))
    return holds[len(program.inputs) :]


def _memory(
    program: Program, works: Sequence[Work], shapes: Sequence[tuple[int, ...]], itemsize: int
) -> tuple[int, int]:
    """(peak, saved) bytes of one pass; views share the memory of what they show."""
    x = len(shapes) - 1 if program.inputs[-1:] == ("x",) else -1
    buffer = list(range(len(shapes)))
    size = [math.prod(shape) * itemsize for shape in shapes]
    inputs = len(shapes)
    alive = {x} if x >= 0 else set()
    users: dict[int, int] = {}
    saved: set[int] = set()
    for i, (step, work) in enumerate(zip(program.steps, works, strict=True)):
        view = step.kind in ("reshape", "permute") and not work.copies
        buffer.append(buffer[step.args[0]] if view else inputs + i)
        size.append(math.prod(work.shape) * itemsize)
        users[buffer[-1]] = users.get(buffer[-1], 0) + 1
        if step.kind in ("matmul", "multiply"):
            saved |= {buffer[a] for a in step.args if buffer[a] >= inputs or buffer[a] == x}
    peak = sum(size[b] for b in alive)
    for i, step in enumerate(program.steps):
        alive.add(buffer[inputs + i])
        peak = max(peak, sum(size[b] for b in alive if b >= inputs or b == x))
        for register in step.frees:
            users[buffer[register]] = users.get(buffer[register], 0) - 1
            if users[buffer[register]] <= 0 and buffer[register] != x:
                alive.discard(buffer[register])
    return peak, sum(size[b] for b in saved)
