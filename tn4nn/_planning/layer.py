"""Which plan a layer runs by: the one place that decides it, for every backend, before and after a layer is built."""

from __future__ import annotations

import dataclasses
from typing import Any

from .._base.errors import BackendError, TN4NNError
from .._graph.network import Network
from .._graph.paths import Progress
from .._graph.problem import Form
from .._model.backend import target_of
from .._model.layers import Conv2d, Embedding, OnNetwork
from .._runtime.cost import Machine
from .._runtime.target import Target
from .plan import Plan
from .planner import at_rows, find
from .request import PlanRequest, bucket

RUNTIMES = ("program", "native")
_DTYPES = {2: "bfloat16", 4: "float32", 8: "float64"}


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
    progress: Progress | None = None,
    machine: Machine | None = None,
    cache: bool = True,
    runtime: str | None = None,
    tune: bool = False,
    backend: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Plan:
    """Finds how to apply a network to a batch.

    The candidates are the contraction trees that cotengra finds for cores and batch together, those with fewest
    multiply-adds, with fewest of these and of elements written, and with the smallest intermediates, building W first,
    merged neighbours, and taking the input through the cores one by one; each is lowered and priced, the cheapest wins.
    Found once, it comes from memory or disk afterwards.

    Args:
        network: what is applied.
        batch: rows of x.
        phase: "forward", or "train" for a step of forward and backward.
        minimize: "time" (by the cost model), "flops" (multiply-adds) or "memory" (peak bytes).
        memory: cap in bytes on `cost.peak`; met by another order, else by running blocks of rows, else by
            slicing bonds.
        form: "apply" for y = x W^T, "gather" for rows of W^T picked by integers (embeddings), "dense" for W.
        itemsize: bytes of one number; with a backend, `dtype` says it.
        seed: of the search (large networks).
        time_limit: seconds of the search (large networks); the step that it is in, it ends.
        progress: called with a line of text per round of the search, and for the native runtime per path priced.
        machine: parameters of the cost model (default: a CPU core).
        cache: False plans anew and stores nothing.
        runtime: without a backend, "program" (the default) for the steps that every backend can run (and does on a GPU,
            on several devices or under torch.compile), "native" for the C runtime that runs layers on a CPU.
        tune: measure the best few candidates of the native runtime and take the fastest; the answer is kept on disk
            with the processor's fingerprint.
        backend: "torch" or "jax": the plan by which its layers run these rows there, with the cost of these rows. A
            layer plans for a batch class, the next power of four of its rows, unless it was given a batch.
        device: with a backend, its own word for a device; None for its default.
        dtype: with a backend, of the numbers (default "float32").

    Raises:
        TN4NNError: no network, an unknown phase, objective or runtime, a batch below 1, a memory cap that nothing
            meets, `tune` for programs, a runtime together with a backend.
        BackendError: an unknown backend, device or dtype, or a backend that is not installed or does not plan.

    Examples:
        >>> import tn4nn as tn
        >>> net = tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4)
        >>> p = tn.plan(net, batch=100, minimize="flops")
        >>> p.cost.macs < 100 * 784 * 256  # fewer multiply-adds than the dense layer
        True
    """
    options: dict[str, Any] = {"phase": phase, "minimize": minimize, "memory": memory, "form": form, "tune": tune}
    options |= {"seed": seed, "time_limit": time_limit, "machine": machine}
    if backend is None:
        if device is not None or dtype is not None:
            raise TN4NNError(
                f"device={device!r} and dtype={dtype!r} are a backend's words: pass backend='torch' or backend='jax'"
            )
        if runtime not in (None, *RUNTIMES):
            raise TN4NNError(f"runtime must be one of {', '.join(RUNTIMES)}, received {runtime!r}")
        if tune and runtime != "native":
            raise TN4NNError(
                f"tune measures the native runtime, received runtime={runtime or 'program'!r}: pass runtime='native'"
            )
        target = Target("", "cpu", _dtype_of(itemsize), (runtime or "program",))
        return find(PlanRequest(network, batch, target=target, **options), cache=cache, progress=progress)
    if runtime is not None:
        raise TN4NNError(
            f"backend={backend!r} decides what runs there, received runtime={runtime!r} too: leave one of them out"
        )
    request = PlanRequest(network, batch, target=target_of(backend, device, dtype or "float32"), **options)
    return at_rows(find(request.at(bucket(batch)), cache=cache, progress=progress), batch)


def _dtype_of(itemsize: int) -> str:
    if itemsize not in _DTYPES:
        raise TN4NNError(f"itemsize must be one of {', '.join(map(str, _DTYPES))}, received {itemsize!r}")
    return _DTYPES[itemsize]


@dataclasses.dataclass(frozen=True)
class LayerPlanner:
    """How a layer is planned: what all of its plans have in common.

    Attributes:
        layer: what is applied.
        target: where it runs.
        phase: what plans are cheap for.
        minimize: what plans are cheap in.
        tune: measure candidates.
        batch: rows that plans are made for; None for the class of those that come.
        executor: a plan, by which all rows run; or the name of the one executor that may run.

    Raises:
        BackendError: a plan of another network, or an executor that the target does not have.
    """

    layer: OnNetwork
    target: Target
    phase: str = "train"
    minimize: str = "time"
    tune: bool = False
    batch: int | None = None
    executor: str | Plan | None = None

    def __post_init__(self) -> None:
        if isinstance(self.executor, Plan) and self.executor.network != self.layer.solid():
            raise BackendError(
                f"{self.layer.describe()}: expected a plan of its own network, received one of "
                f"{self.executor.network.topology.name!r}: make it with tn.plan(layer.network, ...)"
            )

    def batch_class(self, rows: int) -> int:
        """The number of rows that the plan for some rows is made for."""
        return max(1, self.batch) if self.batch is not None else bucket(rows)

    def plan(self, rows: int) -> Plan:
        """The plan by which so many rows run, with their cost.

        Args:
            rows: of x; of an embedding, tokens; of a convolution, positions of its output.
        """
        return at_rows(self.class_plan(rows), max(1, rows))

    def class_plan(self, rows: int) -> Plan:
        """The same, with the cost of the batch class that it was made for."""
        batch, layer = self.batch_class(rows), self.layer
        if isinstance(self.executor, Plan):
            return self.executor
        if isinstance(layer, Embedding):
            return find(self.request(batch, "gather"))
        if not isinstance(layer, Conv2d):
            return find(self.request(batch))
        if layer.topology.kept:  # W of a batch leg is block diagonal: building it would waste the blocks
            return find(self.request(batch))
        kernel = find(self.request(batch, "kernel"))
        if layer.is_dense:
            return kernel
        patches = find(self.request(batch))
        return min((kernel, patches), key=lambda p: p.cost.score(self.minimize))

    def rows_plan(self, rows: int) -> Plan:
        """The plan of rows that are there already: of a convolution, its patches."""
        return self.executor if isinstance(self.executor, Plan) else find(self.request(self.batch_class(rows)))

    def program_plan(self, rows: int, minimize: str | None = None) -> Plan:
        """The plan of the array program for some rows, for another objective where asked."""
        if isinstance(self.executor, Plan):
            return self.executor
        request = self.request(self.batch_class(rows), "gather" if isinstance(self.layer, Embedding) else "apply")
        programs = tuple(name for name in request.target.executors if name not in ("native", "dense"))
        target = request.target.only(*(programs or ("program",)))
        return find(dataclasses.replace(request, target=target, tune=False, minimize=minimize or self.minimize))

    def whole(self) -> Plan:
        """The plan that makes W."""
        return find(dataclasses.replace(self.request(1, "dense"), tune=False))

    def request(self, batch: int, form: Form = "apply") -> PlanRequest:
        """The question for a batch class."""
        window = 1
        if isinstance(self.layer, Conv2d) and form in ("apply", "kernel"):
            window = self.layer.kernel[0] * self.layer.kernel[1]
        target = self.target
        if isinstance(self.executor, str) and form in ("apply", "gather"):
            target = target.only(self.executor)
        tune = self.tune and form == "apply" and "native" in target.executors and not self.layer.is_dense
        return PlanRequest(self.layer.solid(), batch, self.phase, self.minimize, form, target, tune=tune, window=window)
