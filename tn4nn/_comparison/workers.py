"""Processes that train at once, and the threads of each."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .cells import Cell

# (function, arguments of its calls, the cell first) -> (cell, result), in the order in which results come
Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[tuple[Cell, Any]]]


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[Each]:
    """Calls a function for many cells: one after the other in this process, or in several processes."""
    if jobs == 1:
        yield lambda function, calls: ((call[0], function(*call)) for call in calls)
        return
    # Never fork once a framework is imported; one thread for each worker.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker)

    def each(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Cell, Any]]:
        submitted = {pool.submit(function, *call): call[0] for call in calls}
        for done in concurrent.futures.as_completed(submitted):
            yield submitted[done], done.result()

    try:
        yield each
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that stores the rows
    use_threads(1)


def use_threads(count: int) -> None:
    """Sets how many threads the frameworks of this process will use, where none is imported yet.

    For programs, which own their process: the library itself calls it only in its worker processes.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)
    if count == 1 and "multi_thread_eigen" not in os.environ.get("XLA_FLAGS", ""):
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".strip()
