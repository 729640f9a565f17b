"""What a plan costs, and the parameters of the model that predicts it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class ProgramMachine:
    """Parameters of the cost model for array programs: a roofline with a price for each operation.

    Attributes:
        macs_per_s: multiply-adds of a large matrix product, per second.
        bytes_per_s: of a copy in order.
        strided: how many times slower memory is read against its order.
        op_s: seconds for calling one array operation.
        matrix_s: seconds for starting one matrix of a batched product.
        edge: a matrix dimension at which a product runs at half speed.
        pass_s: seconds for a forward pass, whatever is in it.
        step_s: seconds for a training step, whatever is in it: autograd, for the most part.
        kernel_macs_per_s: multiply-adds of a fused kernel of small tiles on a GPU, per second.
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


@dataclasses.dataclass(frozen=True)
class NativeMachine:
    """Parameters of the cost model for the native runtime of a CPU.

    Attributes:
        vector_bytes: of its vectors.
        tile_macs_per_s: multiply-adds of its tiles, per second.
        tile_s: seconds for starting a tile.
        vector_s: seconds for moving one vector.
        columns: seconds for packing one vector out of columns, in `vector_s`.
        scatter: seconds for moving one number out of a vector, in `vector_s`.
        across: how many times slower tiles are whose vectors lie along h or k.
        far_s: seconds for reading a number on a cache line of its own.
        task_s: seconds for starting a kernel call.
        call_s: seconds for a call of the runtime.
        cache_bytes: of what a batch tile works on from which memory is felt.
        memory_bytes_per_s: of memory, as one thread's streams of rows feel it.
        team_s: seconds for sharing out a call or rows among threads, and for waiting until all are done.
        streams: threads that have such a bandwidth each; more of them share it.
    """

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
    team_s: float = 3e-6
    streams: float = 4.0


@dataclasses.dataclass(frozen=True)
class Machine(NativeMachine, ProgramMachine):
    """What the cost model believes of a device: parameters for array programs, and for the native runtime of a CPU.

    Its attributes are those of `ProgramMachine` and `NativeMachine`: rates per second (`macs_per_s`, `bytes_per_s`,
    `kernel_macs_per_s`, `tile_macs_per_s`, `memory_bytes_per_s`), seconds (`op_s`, `matrix_s`, `pass_s`, `step_s`,
    `tile_s`, `vector_s`, `far_s`, `task_s`, `call_s`, `team_s`), bytes (`vector_bytes`, `cache_bytes`) and ratios
    (`strided`, `edge`, `columns`, `scatter`, `across`, `streams`). `tn.calibrate` measures them.

    Examples:
        >>> import tn4nn as tn
        >>> net = tn.mpo((8, 8), (8, 8)).with_rank(4)
        >>> slow, fast = tn.Machine(macs_per_s=1e9), tn.Machine(macs_per_s=1e12)
        >>> seconds = [tn.plan(net, 4096, machine=machine).cost.predicted_s for machine in (slow, fast)]
        >>> seconds[0] > seconds[1]
        True
    """


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What one pass costs, for the plan's batch and phase.

    Attributes:
        macs: multiply-adds (half the FLOPs); a training step counts forward and backward, 3x forward.
        bytes_moved: bytes read and written by all steps.
        peak: most bytes alive at once in the pass, of a training step forward and backward: the input, the output,
            intermediates, what is saved, and the gradients of these. Cores and their gradients are not counted.
        saved: bytes saved between forward and backward, the input included; 0 for "forward". Never above the peak.
        predicted_s: seconds by the cost model.

    Examples:
        >>> import tn4nn as tn
        >>> cost = tn.plan(tn.low_rank(784, 256).with_rank(8), batch=100, phase="forward").cost
        >>> cost.macs  # 100 * 8 * (784 + 256)
        832000
        >>> cost.saved
        0
    """

    macs: int
    bytes_moved: int
    peak: int
    saved: int
    predicted_s: float

    def __add__(self, other: Cost) -> Cost:
        """One after the other, what both need being there at once."""
        return Cost(
            self.macs + other.macs,
            self.bytes_moved + other.bytes_moved,
            self.peak + other.peak,
            self.saved + other.saved,
            self.predicted_s + other.predicted_s,
        )

    def score(self, minimize: str) -> tuple[float, float]:
        """What is minimised; ties go to time."""
        first = {"time": self.predicted_s, "flops": self.macs, "memory": self.peak}[minimize]
        return float(first), self.predicted_s


def peak_in_turn(costs: Iterable[Cost]) -> int:
    """The most bytes alive at once in a pass through layers, one after the other: while one runs, those before it have
    saved what they save, and those behind it nothing yet, or nothing any more.

    Examples:
        >>> first = Cost(0, 0, peak=90, saved=50, predicted_s=0.0)
        >>> second = Cost(0, 0, peak=60, saved=40, predicted_s=0.0)
        >>> peak_in_turn([first, second])
        110
    """
    most = before = 0
    for cost in costs:
        most = max(most, before + cost.peak)
        before += cost.saved
    return most
