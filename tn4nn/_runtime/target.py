"""Where a plan is to run: a backend, a device, a dtype, and the executors that there are."""

from __future__ import annotations

import dataclasses

from .._base.checks import nearest
from .._base.errors import TN4NNError
from .cost import Machine

CPU = "cpu"
ITEMSIZES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where a plan is to run.

    Attributes:
        backend: "torch", "jax", ...; "" for no backend in particular.
        device: "cpu", or the name of a GPU.
        dtype: of the numbers.
        executors: names of those that are considered, the preferred one first; see `_planning.executors`.
        machine: parameters of the cost model for the backend's array programs; None for the defaults.
        threads: of a CPU, that the native runtime may use.

    Raises:
        TN4NNError: an unknown dtype.

    Examples:
        >>> Target("torch", "cpu", "float64", ("native", "program")).itemsize
        8
    """

    backend: str = ""
    device: str = CPU
    dtype: str = "float32"
    executors: tuple[str, ...] = ("program",)
    machine: Machine | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZES:
            raise TN4NNError(f"unknown dtype {self.dtype!r}." + nearest(self.dtype, ITEMSIZES))

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return ITEMSIZES[self.dtype]

    def only(self, *executors: str) -> Target:
        """The same with these executors alone."""
        return dataclasses.replace(self, executors=executors)
