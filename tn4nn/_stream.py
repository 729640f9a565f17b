"""A plan as a stream: the input passes through operands, one after the other, and only it has a batch.

In any contraction tree the batch stands on x alone, so the tree is a chain along x, and what joins it at each
step is a contraction of cores among themselves. That splits a plan in two: a **prologue** that makes the
operands (small, no batch), and a **stream** of steps ``state[h, m, k] * operand[h, k, n] -> state[h, m, n]``
that can be run for a few rows at a time while they lie in the cache. See `tn4nn_torch._triton`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from ._network import Network
from ._paths import Path, legs_along
from ._plan import problem
from ._program import BATCH, Legs, Program, lower


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """One step of a stream: sums k for each h, m, n. Offsets count numbers of one row. The operand of the
    same position has shape (H, K, N).

    Attributes:
        state_h: offset in the old state of each value of h (kept by both sides); likewise
        state_m: of m (on the state only), and
        state_k: of k (summed).
        made_h: offset in the new state of each value of h; likewise
        made_m: of m, and
        made_n: of n (from the operand).
    """

    state_h: tuple[int, ...]
    state_m: tuple[int, ...]
    state_k: tuple[int, ...]
    made_h: tuple[int, ...]
    made_m: tuple[int, ...]
    made_n: tuple[int, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds for one row."""
        return len(self.state_h) * len(self.state_m) * len(self.state_k) * len(self.made_n)


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """What to do with one row after the operands are made.

    Attributes:
        operands: a program for each, over the cores named in its inputs; its result has shape (H, K, N).
        passes: in order.
        inputs: numbers of one input row.
        outputs: numbers of one output row.
    """

    operands: tuple[Program, ...]
    passes: tuple[Pass, ...]
    inputs: int
    outputs: int

    @property
    def macs(self) -> int:
        """Multiply-adds for one row."""
        return sum(step.macs for step in self.passes)

    @property
    def states(self) -> tuple[int, ...]:
        """Numbers of one row in each state, input and output included."""
        return (self.inputs, *(len(p.made_h) * len(p.made_m) * len(p.made_n) for p in self.passes))


def stream(network: Network, path: Path) -> Stream:
    """The stream of a contraction path over (cores..., x); the path is one of a `Plan` of form "apply"."""
    tensors, names, output = problem(network, "apply")
    sizes = {leg: size for leg, size in {**network.sizes, BATCH: 1}.items() if size != 1 and leg != BATCH}
    final = tuple(leg for leg in output if leg in sizes)
    nodes = legs_along([[leg for leg in legs if leg in sizes] for legs in tensors], final, path)
    children: dict[int, tuple[int, int]] = {}
    current = len(tensors) - 1
    layout: Legs = tuple(leg for leg in tensors[-1] if leg in sizes)
    operands: list[Program] = []
    passes: list[Pass] = []
    for node, (a, b) in enumerate(path, len(tensors)):
        children[node] = (a, b)
        if current not in (a, b):
            continue
        other = b if a == current else a
        held, made = nodes[other], nodes[node]
        last = node == len(nodes) - 1
        h = tuple(leg for leg in layout if leg in held and leg in made)
        k = tuple(leg for leg in layout if leg in held and leg not in made)
        m = tuple(leg for leg in layout if leg not in held)
        n = tuple(sorted(held - set(layout), key=list(sizes).index))
        after = final if last else (*h, *m, *n)
        operands.append(_operand(other, (h, k, n), tensors, names, children, sizes))
        passes.append(
            Pass(
                _offsets(h, layout, sizes),
                _offsets(m, layout, sizes),
                _offsets(k, layout, sizes),
                _offsets(h, after, sizes),
                _offsets(m, after, sizes),
                _offsets(n, after, sizes),
            )
        )
        layout, current = after, node
    t = network.topology
    return Stream(tuple(operands), tuple(passes), math.prod(t.inputs.values()), math.prod(t.outputs.values()))


def _offsets(legs: Legs, layout: Legs, sizes: dict[str, int]) -> tuple[int, ...]:
    """Offset of every value of some legs in an array of the given layout, the last leg fastest."""
    found = [0]
    for leg in legs:
        stride = math.prod(sizes[other] for other in layout[layout.index(leg) + 1 :])
        found = [base + stride * i for base in found for i in range(sizes[leg])]
    return tuple(found)


def _operand(
    node: int,
    groups: tuple[Legs, Legs, Legs],
    tensors: Sequence[Legs],
    names: Sequence[str],
    children: dict[int, tuple[int, int]],
    sizes: dict[str, int],
) -> Program:
    """The program that contracts the cores below a node into an array of shape (H, K, N)."""
    leaves: list[int] = []
    path: list[tuple[int, int]] = []

    def gather(current: int) -> None:
        if current in children:
            for child in children[current]:
                gather(child)
        else:
            leaves.append(current)

    def place(current: int) -> int:
        if current not in children:
            return leaves.index(current)
        left, right = (place(child) for child in children[current])
        path.append((left, right))
        return len(leaves) + len(path) - 1

    gather(node)
    place(node)
    inner = [tensors[i] for i in leaves]
    all_sizes = {leg: sizes.get(leg, 1) for legs in inner for leg in legs}
    shape = tuple(math.prod(sizes[leg] for leg in group) for group in groups)
    return lower(
        inner,
        tuple(leg for group in groups for leg in group),
        all_sizes,
        path,
        names=[names[i] for i in leaves],
        output_shape=shape,
    )
