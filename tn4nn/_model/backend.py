"""The registry of backends: a Protocol of a handful of calls, found through entry points.

Invariants of a backend, which `tn4nn.testing` checks:
  1. It computes what the numpy oracle computes: outputs and gradients to 1e-5 relative in float32, for every
     layer, any batch size (0 rows included), any leading axes.
  2. It holds the weights under the names of `model.specs()` and gives them back unchanged.
  3. It never changes a framework's global configuration, and never writes into an array it was given.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .._base.checks import nearest
from .._base.errors import BackendError
from .._base.warn import warn_once
from .._graph.muon import Axes

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import numpy as np
    from numpy.typing import NDArray

    from .._runtime.program import Program
    from .._runtime.target import Target
    from .layers import Layer

GROUP = "tn4nn.backends"

# What installs the framework of a backend of ours, exactly as it can be typed.
_OURS = {"numpy": "tn4nn.reference:backend", "torch": "tn4nn_torch:backend", "jax": "tn4nn_jax:backend"}
_INSTALL = {"torch": 'pip install "tn4nn[torch]"', "jax": 'pip install "tn4nn[jax]"'}


@runtime_checkable
class Module(Protocol):
    """What `build` gives: the framework's own object, called with the framework's own arrays."""

    def __call__(self, x: Any) -> Any:
        """y for a batch x, in evaluation (no dropout, running statistics)."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """Everything a trainer has to know, as data.

    Attributes:
        loss: "cross_entropy" (integer labels) or "mse".
        optimizer: "sgd", "adam", "adamw", or "muon", which leaves weights without matrices to adamw.
        momentum: of sgd.
        nesterov: of sgd.
        betas: of adam and adamw.
        eps: of adam and adamw.
        lr_factors: weight name -> factor on the learning rate.
        decay: weight name -> weight decay (added to the gradient by sgd and adam, decoupled in adamw and muon).
        precision: "float32", "float64", or "bf16" (float32 weights, bfloat16 arithmetic).
        device: the framework's own word, or None.
        seed: of dropout.
        batch_size: rows of a step.
        minimize: what plans are cheap for.
        matrices: weight name -> (axes that are summed, axes that are opened), of the weights that muon trains; other
            axes number matrices of a stack.
        caps: weight name -> largest root mean square, of the cores that are normalized while they are trained: what is
            computed with is gain * core / max(1, rms(core) / cap), with a gain that is trained too.
    """

    loss: str
    optimizer: str
    momentum: float
    nesterov: bool
    betas: tuple[float, float]
    eps: float
    lr_factors: Mapping[str, float]
    decay: Mapping[str, float]
    precision: str
    device: str | None
    seed: int
    batch_size: int
    minimize: str = "time"
    matrices: Mapping[str, Axes] = dataclasses.field(default_factory=dict)
    caps: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Trainer(Protocol):
    """One model in training on one device. Nothing here waits for the device unless it says so.

    A trainer that can go on with other ranks (`tn.train(..., ranks=)`) has `slots()` too: key of `state` -> (weight,
    degree), for each array that holds a mean of gradients (degree 1) or of their squares (2).
    """

    def put(self, array: NDArray[Any]) -> Any:
        """A host array as a device array (float data in the trainer's dtype, labels as integers)."""
        ...

    def steps(self, x: Any, y: Any, index: NDArray[np.int64], lrs: Sequence[float], first: int) -> Any:
        """Runs len(lrs) optimizer steps; row i of `index` picks the samples of step `first` + i.

        Returns a device array of the losses, shape (steps,), without waiting for it.
        """
        ...

    def evaluate(self, x: Any, y: Any) -> tuple[float, float]:
        """(mean loss, mean accuracy in percent; NaN for "mse") in evaluation mode. Waits."""
        ...

    def read(self, losses: Any) -> NDArray[np.float64]:
        """Losses on the host. Waits."""
        ...

    def weights(self) -> dict[str, NDArray[Any]]:
        """All weights of `model.specs()` on the host, as they are computed with. Waits."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """Weights and optimizer state on the host: with it, `load` goes on to the bit. Waits."""
        ...

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes up what `state` gave."""
        ...

    def module(self) -> Module:
        """The trained native module."""
        ...

    def sync(self) -> None:
        """Waits until everything asked so far is done (for timing)."""
        ...


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a backend runs programs, and how long they take there: what `calibrate` needs.

    Attributes:
        name: of the GPU, or "cpu".
        dtype: of the numbers.
        itemsize: bytes of one.
        compiled: a program is launched as a whole, not operation by operation.
        run_of: (program, shapes of its inputs, phase) -> a function that runs it on random numbers.
        wait: waits until what such a function returned is there.
    """

    name: str
    dtype: str
    itemsize: int
    compiled: bool
    run_of: Callable[[Program, Sequence[tuple[int, ...]], str], Callable[[], Any]]
    wait: Callable[[Any], object]


class Backend(Protocol):
    """What a framework brings. `name` is its entry point's name.

    A backend whose layers run plans has `target(device: str | None, dtype: str) -> Target` too; one whose programs can
    be calibrated has `place(device: str | None, dtype: str) -> Place`. Both raise BackendError where there is no such
    device or dtype. What its users expect where they give no seed and no dtype, it says by `fresh_seed() -> int` (which
    raises BackendError where a seed has to be given) and `default_dtype() -> str`; without these they are 0 and
    "float32". One whose arrays `tn.einsum` takes has `einsums`; see `_planning.einsum.Einsums`.
    """

    name: str

    def build(
        self,
        model: Layer,
        weights: Mapping[str, NDArray[Any]],
        *,
        batch: int | None,
        phase: str,
        device: str | None,
        dtype: str,
        minimize: str,
    ) -> Module:
        """The native module of a model; see `Layer.build`. The weights are copied.

        A backend that can measure plans takes `tune: bool = False` too, one that lets other libraries contract
        `engine: str | None = None`; others never see the words.
        """
        ...

    def forward(self, module: Any, x: NDArray[Any]) -> NDArray[Any]:
        """y on the host for x on the host, in evaluation mode."""
        ...

    def gradients(
        self, module: Any, x: NDArray[Any], gy: NDArray[Any]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None]:
        """Gradients of sum(y * gy) by weight name, and by x (None for integer x), in evaluation mode."""
        ...

    def weights(self, module: Any) -> dict[str, NDArray[Any]]:
        """All weights by name, as numpy arrays that share no memory with the module; 16-bit floats as float32, which
        holds them exactly."""
        ...

    def trainer(self, model: Layer, weights: Mapping[str, NDArray[Any]], spec: TrainSpec) -> Trainer:
        """A trainer; a backend that only runs raises BackendError."""
        ...

    def versions(self) -> dict[str, str]:
        """Package -> version, for reports."""
        ...


def entry_point_table() -> dict[str, EntryPoint]:
    """Backend name -> entry point, without loading any. Nobody takes the place of one of ours."""
    return _table_of(tuple((folder, _changed(folder)) for folder in sys.path))


def _changed(folder: str) -> int:
    """When something was installed into a folder, or taken out of it."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=1)
def _table_of(folders: tuple[tuple[str, int], ...]) -> dict[str, EntryPoint]:
    """The table of what is installed in these folders, kept: finding it reads the metadata of every package, which
    takes tens of milliseconds, and every plan asks for its backend."""
    from importlib.metadata import entry_points  # slow to import, and not needed to declare a topology

    table: dict[str, EntryPoint] = {}
    for found in sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)):
        if found.value != _OURS.get(found.name, found.value):
            warn_once(
                f"the backend {found.name!r} is tn4nn's own, and {found.value!r} of another package is not used under "
                "that name: register it under another"
            )
        elif table.setdefault(found.name, found).value != found.value:
            warn_once(
                f"two packages register a backend {found.name!r}: {table[found.name].value!r} is used, and "
                f"{found.value!r} is not"
            )
    return table


def backends() -> tuple[str, ...]:
    """Names of all backends that are registered, whether or not their framework is installed.

    Examples:
        >>> import tn4nn as tn
        >>> set(tn.backends()) >= {"numpy", "torch", "jax"}
        True
    """
    return tuple(entry_point_table())


def backend(name: str) -> Backend:
    """Loads a backend by its name.

    Args:
        name: "torch", "jax", "numpy", or that of an installed package that registers one.

    Raises:
        BackendError: no such backend (the nearest names are given), its framework is missing (with the line that
            installs it), or it raises while it is imported.

    Examples:
        >>> import tn4nn as tn
        >>> tn.backend("numpy").name
        'numpy'
    """
    table = entry_point_table()
    if name not in table:
        raise BackendError(f"unknown backend {name!r}." + nearest(name, table))
    try:
        loaded: Backend = table[name].load()
    except (ImportError, AttributeError) as error:  # absent, or an entry point that leads nowhere
        advice = _INSTALL.get(name, f"install what {table[name].value!r} needs")
        raise BackendError(f"backend {name!r} cannot be loaded ({error}): {advice}") from error
    except (Exception, SystemExit) as error:  # somebody's code, which must not break the other backends
        raise BackendError(
            f"backend {name!r} is broken: {table[name].value!r} raised {type(error).__name__}: {error} while it was "
            "imported. What would do: another version of that package, or remove it"
        ) from error
    return loaded


def is_absent(error: Exception) -> bool:
    """Whether `backend` raised this because the framework is not installed; otherwise the backend is broken."""
    return isinstance(error, BackendError) and isinstance(error.__cause__, ImportError)


def require_one_process(name: str) -> None:
    """Trainers know nothing of other processes: each of several that run one program would train a model of its own.

    Raises:
        BackendError: this process is one of several, by what the backend's framework knows (`backend.processes`).
    """
    count = getattr(backend(name), "processes", None)
    if count is not None and count() > 1:
        raise BackendError(
            f"tn.train and tn.compare train in one process, received one of {count()} (torchrun, a process group, or "
            "jax.distributed): each would train a model of its own. Train one model on several devices by a loop of "
            'your own (documentation: how-to/several-devices); compare(jobs=) and jobs="ray" train several at once'
        )


def place_of(name: str, device: str | None, dtype: str) -> Place:
    """Where a backend runs programs.

    Raises:
        BackendError: an unknown backend, device or dtype, a backend that is not installed or cannot be calibrated.
    """
    place = getattr(backend(name), "place", None)
    if place is None:
        raise BackendError(f"the programs of backend {name!r} cannot be calibrated: expected 'torch' or 'jax'")
    found: Place = place(device, dtype)
    return found


def target_of(name: str, device: str | None, dtype: str) -> Target:
    """Where the layers of a backend run, and by which executors.

    Raises:
        BackendError: an unknown backend, device or dtype, a backend that is not installed or plans nothing.
    """
    target = getattr(backend(name), "target", None)
    if target is None:
        raise BackendError(f"backend {name!r} runs no plans: expected 'torch' or 'jax'")
    found: Target = target(device, dtype)
    return found


def installed_backends() -> tuple[str, ...]:
    """Names of the backends that load: those whose framework is installed. Each is imported.

    Examples:
        >>> import tn4nn as tn
        >>> "numpy" in tn.installed_backends()
        True
    """
    found = []
    for name in backends():
        try:
            backend(name)
        except BackendError:
            continue
        found.append(name)
    return tuple(found)
