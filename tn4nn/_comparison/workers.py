"""Processes that train at once, and the threads of each.

A worker ends with the process that started it, however that ends. All hold the reading end of one pipe, and a thread of
each waits there: it wakes when the writing end is closed, by us, or by the system when this process is killed.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from .._base.errors import TN4NNError
from .._base.stopping import interrupts
from .cells import Cell

# (function, arguments of its calls, the cell first) -> (cell, result or `Lost`), in the order in which results come
Each = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[tuple[Cell, Any]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """In place of a result: why there is none, whatever is tried."""

    reason: str


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[Each]:
    """Calls a function for many cells: one after the other in this process, or in several processes."""
    if jobs == 1:
        with interrupts() as check:
            yield lambda function, calls: _here(function, calls, check)
        return
    # Never fork once a framework is imported; one thread for each worker.
    context = multiprocessing.get_context("spawn")
    lifeline, ours = context.Pipe(duplex=False)
    with _quiet_and_safe_start():  # its locks start a process of their own
        pool = concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_begin_worker, initargs=(lifeline,))

    def each(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Cell, Any]]:
        with _quiet_and_safe_start():
            submitted = {pool.submit(function, *call): call[0] for call in calls}
        for done in concurrent.futures.as_completed(submitted):
            try:
                result = done.result()
            except BrokenProcessPool as error:
                raise TN4NNError(
                    "a process that trained ended without a word: the system may have had too little memory for "
                    f"{jobs} at once (fewer jobs=), or the script that calls compare(jobs={jobs}) does so outside of "
                    "`if __name__ == '__main__':`. Rows that were finished are kept: resume"
                ) from error
            yield submitted[done], result

    try:
        yield each
    finally:
        ours.close()  # whatever the workers are doing: on an error, or Ctrl-C, nobody waits for it
        pool.shutdown(wait=True, cancel_futures=True)
        lifeline.close()


def check_sent(jobs: int | str, **functions: Callable[..., Any] | None) -> None:
    """Refuses functions that another process could not find: they are sent by their names.

    Raises:
        TN4NNError: says which one.
    """
    if isinstance(jobs, str) or jobs == 1:  # Ray sends whole functions
        return
    for what, function in functions.items():
        why = _not_sent(function)
        if why is not None:
            raise TN4NNError(
                f"{what}: {function!r:.80} cannot be sent to another process ({why}), which jobs={jobs} needs: "
                'expected a function at the top of a module or of a script, or jobs=1, or jobs="ray"'
            )


def _not_sent(function: Any) -> str | None:
    """Why a process that starts anew could not find a function; None if it could."""
    try:
        ForkingPickler.dumps(function)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        return str(error)
    main: Any = sys.modules["__main__"]
    while isinstance(function, functools.partial):
        function = function.func
    is_typed_in = getattr(main, "__file__", None) is None and getattr(main, "__spec__", None) is None
    if getattr(function, "__module__", None) == "__main__" and is_typed_in:
        return "it was typed in: there is no file that the other process could read it from"
    return None


def _here(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], check: Callable[[], None]
) -> Iterator[tuple[Cell, Any]]:
    for call in calls:
        result = function(*call)
        check()  # before anybody takes what an interrupt has spoilt for a result
        yield call[0], result


@contextlib.contextmanager
def _quiet_and_safe_start() -> Iterator[None]:
    """While it lasts, processes that Python starts are deaf to Ctrl-C, which the terminal sends to all of them at once,
    and import nothing from the current folder, which `python -c` would search first."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    blocked = None
    if hasattr(signal, "pthread_sigmask"):  # Windows has none
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if blocked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _begin_worker(lifeline: Connection[Any, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be blocked
    threading.Thread(target=_end_with_its_parent, args=(lifeline,), daemon=True).start()
    use_threads(1)


def _end_with_its_parent(lifeline: Connection[Any, Any]) -> None:
    with contextlib.suppress(OSError):
        lifeline.poll(None)
    os._exit(1)


def use_threads(count: int) -> None:
    """Sets how many threads the frameworks of this process will use, where none is imported yet.

    For programs, which own their process: the library itself calls it only in its worker processes.
    """
    os.environ.update(thread_variables(count))


def thread_variables(count: int) -> dict[str, str]:
    """The environment in which the frameworks use so many threads."""
    found: dict[str, str] = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count))
    flags = os.environ.get("XLA_FLAGS", "")
    if count == 1 and "multi_thread_eigen" not in flags:
        flags = f"{flags} --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1".strip()
    return {**found, "XLA_FLAGS": flags} if flags else found
