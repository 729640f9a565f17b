"""What a program costs: multiply-adds, bytes, memory, and seconds by a roofline with a price per operation."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from .._graph.problem import Problem, tensors_of
from .cost import Cost, Machine, ProgramMachine
from .program import Program, Work, trace

_RUN_S = 6e-9  # for a run of elements that a copy finds apart from the one before
_ROW_S, _THIN, _THIN_ROWS = 15e-9, 16, 32  # for a row of a product of so few columns, from so many rows on


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
    memory = _memory(program, works, shapes, itemsize)
    t = problem.network.topology
    # Beside a tile or slice, the whole input and the whole output are there.
    x, y = (n * problem.batch * itemsize * (loops > 1) for n in (math.prod(t.inputs.values()), t.out_features))
    if phase == "train":
        saved = memory.saved * loops
        peak = max(x + y + memory.forward_saving, 2 * x + y + memory.backward) + saved - memory.saved
        # Reverse mode does each product twice more; measured, it also moves the memory twice more.
        return Cost(3 * macs, 3 * moved, peak, saved, 3 * seconds + machine.step_s)
    return Cost(macs, moved, x + y + memory.forward, 0, seconds + machine.pass_s)


def einsum_cost(
    program: Program,
    shapes: Sequence[tuple[int, ...]],
    phase: str,
    itemsize: int,
    machine: ProgramMachine,
    constants: Collection[int] = (),
) -> Cost:
    """The cost of a program of any contraction.

    Args:
        program: the steps.
        shapes: of its inputs.
        phase: "forward" or "train".
        itemsize: bytes of one number.
        machine: parameters of the cost model.
        constants: inputs that do not change: what is made of them alone is there.
    """
    works = trace(program, shapes)
    varies = _varies(program, [i not in constants for i in range(len(shapes))])
    counted = [work for work, varying in zip(works, varies, strict=True) if varying]
    macs, moved = sum(work.macs for work in counted), sum(work.moved for work in counted) * itemsize
    seconds = sum(step_seconds(work, itemsize, machine) + _apart_seconds(work) for work in counted)
    memory = _memory(program, works, shapes, itemsize)
    if phase == "train":  # as for layers: each product twice more
        peak = max(memory.forward_saving, memory.backward)
        return Cost(3 * macs, 3 * moved, peak, memory.saved, 3 * seconds + machine.step_s)
    return Cost(macs, moved, memory.forward, 0, seconds + machine.pass_s)


def _apart_seconds(work: Work) -> float:
    """What copies of short runs, and products of many rows with few columns, take on top of `step_seconds`."""
    batch, rows, _, columns = work.gemm
    if columns:
        return batch * rows * _ROW_S if columns < _THIN and rows >= _THIN_ROWS else 0.0
    return work.moved / 2 / work.run * _RUN_S if work.copies else 0.0


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
    if phase != "train":
        return Cost(macs, moved, image + output, 0, seconds)
    weight = net.dense_params * itemsize
    return Cost(passes * macs, passes * moved, 2 * (image + weight) + output, image + weight, seconds)


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
    if work.macs and work.gemm[1]:
        batch, m, k, n = work.gemm
        share = math.prod(dim / (dim + machine.edge) for dim in (m, k, n))
        macs, matrices = work.macs / (machine.macs_per_s * share), batch * machine.matrix_s
        if macs + matrices > memory:
            return ("macs_per_s", macs), ("matrix_s", matrices), ("op_s", machine.op_s)
    return ("strided" if work.copies else "bytes_per_s", memory), ("op_s", machine.op_s)


def _holds_x(program: Program) -> Iterable[bool]:
    """Of each step, whether its result depends on x."""
    return _varies(program, [name == "x" for name in program.inputs])


def _varies(program: Program, inputs: Sequence[bool]) -> list[bool]:
    """Of each step, whether its result depends on any of some inputs."""
    found = list(inputs)
    for step in program.steps:
        found.append(any(found[a] for a in step.args))
    return found[len(inputs) :]


class _Memory(NamedTuple):
    """Bytes of a tile or slice; cores and their gradients are not counted."""

    forward: int  # most that are alive at once where nothing is saved
    forward_saving: int  # the same where a backward pass follows
    backward: int  # most that are alive at once in the backward pass: what is saved, and gradients
    saved: int


def _memory(program: Program, works: Sequence[Work], shapes: Sequence[tuple[int, ...]], itemsize: int) -> _Memory:
    """What one tile or slice needs; views share the memory of what they show."""
    x = len(shapes) - 1 if program.inputs[-1:] == ("x",) else -1
    inputs = len(shapes)
    buffer = list(range(inputs))
    size = [math.prod(shape) * itemsize if i == x else 0 for i, shape in enumerate(shapes)]
    users: dict[int, int] = {}
    saved: set[int] = set()
    for i, (step, work) in enumerate(zip(program.steps, works, strict=True)):
        view = step.kind in ("reshape", "permute") and not work.copies
        buffer.append(buffer[step.args[0]] if view else inputs + i)
        size.append(math.prod(work.shape) * itemsize)
        users[buffer[-1]] = users.get(buffer[-1], 0) + 1
        if step.kind in ("matmul", "multiply"):
            saved |= {buffer[a] for a in step.args if buffer[a] >= inputs or buffer[a] == x}

    def of(buffers: Iterable[int]) -> int:
        return sum(size[b] for b in buffers)

    alive = {x} if x >= 0 else set()
    forward = forward_saving = of(alive)
    kept = alive & saved
    for i, step in enumerate(program.steps):
        alive.add(buffer[inputs + i])
        kept |= alive & saved
        forward, forward_saving = max(forward, of(alive)), max(forward_saving, of(alive | kept))
        for register in step.frees:
            users[buffer[register]] = users.get(buffer[register], 0) - 1
            if users[buffer[register]] <= 0 and buffer[register] != x:
                alive.discard(buffer[register])
    gradients = {buffer[-1]}
    backward = of(gradients)
    for i, step in reversed(list(enumerate(program.steps))):
        read = {buffer[a] for a in step.args}
        gradients |= read
        backward = max(backward, of(gradients))
        if buffer[inputs + i] not in read | {buffer[-1]}:  # that of y is its caller's
            gradients.discard(buffer[inputs + i])
    return _Memory(forward, forward_saving, of(saved) + backward, of(saved))
