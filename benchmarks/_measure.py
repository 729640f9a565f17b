"""Clocks: interleaved rounds, medians and quartiles, and what the machine can do at best."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from tn4nn._base.clock import rounds_of

PACKAGES = (
    "tn4nn", "numpy", "torch", "jax", "jaxlib", "cotengra", "cotengrust", "opt_einsum", "quimb", "tensorly",
    "tensorly-torch", "tensorkrowch", "torchTT", "triton",
)  # fmt: skip


class Timed(Protocol):
    """Something that can be timed."""

    def run(self, times: int) -> None:
        """Runs that often, and returns when all is done."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long to measure.

    Attributes:
        slot_s: the least length of one timing; short calls are repeated to fill it.
        rounds: the least number of rounds.
        most_rounds: the largest.
        cell_s: seconds for the rounds of one cell, which buy more rounds than the least.
        hard_s: seconds after which a cell gets fewer rounds than the least, but 3.
        call_s: a competitor whose one call is estimated to take longer is not run.
        memory: a competitor whose memory is estimated to be above this many bytes is not run.
    """

    slot_s: float = 5e-3
    rounds: int = 7
    most_rounds: int = 41
    cell_s: float = 3.0
    hard_s: float = 40.0
    call_s: float = 10.0
    memory: int = 3 * 2**30


QUICK = Settings(cell_s=1.0, hard_s=6.0, call_s=1.5)


def calibrated(runner: Timed, settings: Settings) -> tuple[int, float]:
    """(calls that fill a slot, seconds of one call); the first call warms up, and counts if it is long."""
    start = time.perf_counter()
    runner.run(1)
    first = time.perf_counter() - start
    if first > 20 * settings.slot_s:
        return 1, first
    calls = 1
    while True:
        start = time.perf_counter()
        runner.run(calls)
        took = time.perf_counter() - start
        if took >= settings.slot_s / 2 or calls > 1e6:
            each = took / calls
            return max(1, math.ceil(settings.slot_s / each)), each
        calls *= 4


def rounds_for(round_s: float, settings: Settings) -> int:
    """How many rounds a cell gets whose round takes that long."""
    wanted = int(settings.cell_s / max(round_s, 1e-9))
    affordable = max(3, int(settings.hard_s / max(round_s, 1e-9)))
    return min(max(wanted, settings.rounds), settings.most_rounds, affordable)


@contextlib.contextmanager
def _no_gc() -> Iterator[None]:
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def interleaved(runners: Mapping[str, Timed], settings: Settings) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of one call by runner and round, and calls in a timing."""
    repeats, round_s = {}, 0.0
    for name, runner in runners.items():
        repeats[name], each = calibrated(runner, settings)
        round_s += repeats[name] * each
    with _no_gc():
        runs = {name: runner.run for name, runner in runners.items()}
        return rounds_of(runs, repeats, rounds_for(round_s, settings)), repeats


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    def to_dict(self) -> dict[str, float]:
        """As plain data, to 5 digits."""
        return {name: float(f"{value:.5g}") for name, value in dataclasses.asdict(self).items()}


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(statistics.median(values), q1, q3)


def paired(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Ratios within the rounds: what slows a whole round down cancels."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def geometric_mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return math.exp(statistics.fmean(math.log(v) for v in values)) if values else None


def show(
    console: Console, tables: Iterable[tuple[str, Sequence[str], Iterable[Sequence[str]]]], lines: Iterable[str]
) -> None:
    """What a benchmark says in the end: tables of (title, columns, rows of cells), and lines."""
    for title, columns, cells in tables:
        table = Table(*columns, title=title)
        for row in cells:
            table.add_row(*row)
        console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False)


# -- the machine ---------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "load": [round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions(more: Sequence[str] = ()) -> dict[str, str | None]:
    """Of everything that takes part, and of `more`; None for what is absent."""
    found: dict[str, str | None] = {}
    for name in (*PACKAGES, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the machine does at best, measured now: multiply-adds and bytes per second."""

    macs_per_s: float
    bytes_per_s: float

    def seconds(self, macs: float, moved: float) -> float:
        """The least time for that much work, whichever of the two takes longer."""
        return max(macs / self.macs_per_s, moved / self.bytes_per_s)


def probe(device: str, dtype: str = "float32") -> Limits:
    """A large matrix product and a large copy, the best of several, on torch or else on numpy."""
    try:
        import torch
    except ImportError:
        return _probe_numpy()
    sync, options = synchronise(device), {"device": device, "dtype": getattr(torch, dtype)}
    n, length = (1024, 16 * 2**20) if device == "cpu" else (8192, 256 * 2**20)
    a, b = torch.randn(n, n, **options), torch.randn(n, n, **options)
    source = torch.ones(length, **options)
    target = torch.empty_like(source)
    out = torch.empty_like(a)
    product = best(lambda: (torch.mm(a, b, out=out), sync()), 40)
    copy = best(lambda: (target.copy_(source), sync()), 40)
    return Limits(n**3 / product, 2 * source.nbytes / copy)


def device_name(device: str) -> str:
    """What the machine calls it."""
    if device == "cpu":
        return _cpu()
    import torch

    return str(torch.cuda.get_device_name(device))


def _probe_numpy() -> Limits:
    import numpy as np

    n = 1024
    a = np.ones((n, n), np.float32)
    source = np.ones(16 * 2**20, np.float32)
    target = np.empty_like(source)
    return Limits(n**3 / best(lambda: a @ a), 2 * source.nbytes / best(lambda: np.copyto(target, source)))


def best(call: Any, times: int = 7) -> float:
    """The least seconds of some calls."""
    least = math.inf
    for _ in range(times):
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return least


def synchronise(device: str) -> Any:
    """A call that waits for a torch device."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.synchronize
    return lambda: None
