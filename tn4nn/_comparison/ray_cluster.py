"""Cells on a Ray cluster: one that is there, or a local one that ends with this process.

Everything that the cells share (the function, the task with its arrays, a person's own functions) is stored in the
cluster once, and a worker reads it from there. What a worker runs is what `workers` runs in a process: the same
function, in one thread.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from .._base.errors import TN4NNError
from .._base.version import installed_version
from .cells import Cell
from .workers import Each, Lost, thread_variables

TRIES = 3  # of a cell whose worker dies
_REACHED = 10.0  # seconds in which an address has to answer
_LOOK = 2.0  # seconds between two looks at whether the cluster is there, while no result comes
_CLIENT_PORT = 10001  # Ray's own default


@contextlib.contextmanager
def ray_workers(address: str) -> Iterator[Each]:
    """Calls a function for many cells in the workers of a Ray cluster, one CPU each.

    Args:
        address: "ray://HOST:PORT" of a cluster; or "ray": the one in $RAY_ADDRESS, the one that runs on this machine,
            or else a local one, which ends with us. A cluster that was there is left running.

    Raises:
        TN4NNError: Ray is not installed; nothing answers at the address; the cluster is lost; its workers have another
            tn4nn, or cannot read what they are sent.
    """
    ray = _ray()
    mine = not ray.is_initialized()  # a program may have connected before
    if mine:
        _connect(ray, address)
    try:
        where = _place(address) if address != "ray" else _place(ray.get_runtime_context().gcs_address)
        yield lambda function, calls: _each(ray, where, function, calls)
    finally:
        if mine:
            ray.shutdown()  # ends the cluster that `init` started, and only that


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise TN4NNError('jobs="ray" needs Ray, which is not installed: pip install "tn4nn[ray]"') from error


def _place(address: str) -> tuple[str, int]:
    """Host and port of an address."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    return parts.hostname or "", parts.port or _CLIENT_PORT


def _answers(place: tuple[str, int], seconds: float) -> OSError | None:
    """None if something answers there, else why not."""
    try:
        socket.create_connection(place, seconds).close()
    except OSError as error:
        return error
    return None


def _connect(ray: Any, address: str) -> None:
    given = os.environ.get("RAY_ADDRESS", "") if address == "ray" else address
    if given and given not in ("local", "auto"):
        why = _answers(_place(given), _REACHED)
        if why is not None:
            raise TN4NNError(
                f"no Ray cluster answers at {given!r} within {_REACHED:g} s ({why}): start one there "
                '(`ray start --head`), give another address, or jobs="ray" without $RAY_ADDRESS for a local one'
            )
    with _no_reports_to_others(), _own_signal_handlers():
        try:
            ray.init(
                None if address == "ray" else address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="warning",
            )
        except Exception as error:  # of many kinds, by what is wrong: versions that differ, a token, what is no Ray
            advice = "`ray stop` removes what is left of an old one, and RAY_ADDRESS=local starts a new one in any case"
            if given:
                advice = (
                    "check that it is a Ray cluster with the Ray and the Python of this process, and that this process "
                    "has its token, if it asks for one (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN)"
                )
            raise TN4NNError(
                f"no connection to a Ray cluster at {given or 'this machine'!r}: {error}\n{advice}"
            ) from error


@contextlib.contextmanager
def _no_reports_to_others() -> Iterator[None]:
    """A cluster that we start tells the makers of Ray nothing of its use, unless its user wants that."""
    name = "RAY_USAGE_STATS_ENABLED"
    before = os.environ.get(name)
    os.environ.setdefault(name, "0")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Signals do in the end what they did before: Ray brings handlers of its own, which print addresses and go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: one that Python did not set
                signal.signal(number, handler)


def _remote(ray: Any) -> Any:
    """What a worker runs."""

    # Inside of a function, so that it is sent whole and not by its name: a worker may have no tn4nn, or another one.
    # For the same reason `sent` is in a list, which Ray leaves for us to open.
    def call(sent: list[Any], number: int, version: str) -> tuple[str, Any]:
        import importlib
        from importlib import metadata

        try:
            found = metadata.version("tn4nn")
        except metadata.PackageNotFoundError:
            found = "0+source"
        if found != version:
            return found, None
        function, calls = importlib.import_module("ray").get(sent[0])
        return found, function(*calls[number])

    variables = {**thread_variables(1), "PYTHONSAFEPATH": "1"}
    return ray.remote(num_cpus=1, max_retries=TRIES - 1, runtime_env={"env_vars": variables})(call)


def _each(
    ray: Any, where: tuple[str, int], function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[Cell, Any]]:
    if not calls:
        return
    try:
        sent = ray.put((function, list(calls)))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise TN4NNError(
            f"the cells cannot be sent to Ray's workers ({error}): expected a model and a fit that hold no open files, "
            "locks or generators"
        ) from error
    call, version = _remote(ray), installed_version()
    pending = {call.remote([sent], number, version): number for number in range(len(calls))}
    is_there = True
    try:
        while pending:
            try:
                done, _ = ray.wait(list(pending), num_returns=1, timeout=_LOOK)
                why: object = None if done else _answers(where, _REACHED)
                results = {ref: _result(ray, ref, version) for ref in done}
            except (ConnectionError, ray.exceptions.RayError) as error:
                why, results = error, {}
            if why is not None:
                is_there = False
                raise TN4NNError(
                    f"the Ray cluster at {where[0]}:{where[1]} is lost ({why}). Rows that were finished are kept: "
                    "resume"
                )
            for ref, result in results.items():
                yield calls[pending.pop(ref)][0], result
    finally:
        for ref in pending if is_there else ():
            ray.cancel(ref, force=True)  # on an error, or Ctrl-C, nobody waits for it


def _result(ray: Any, ref: Any, version: str) -> Any:
    """What a call gave, or `Lost`."""
    failures = ray.exceptions
    try:
        found, result = ray.get(ref)
    except (failures.WorkerCrashedError, failures.OutOfMemoryError, failures.NodeDiedError) as error:
        said = str(error).strip().split("\n", 1)[0]
        return Lost(f"its worker died {TRIES} times: the machine may have too little memory for it ({said})")
    except failures.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ImportError | failures.RaySystemError):
            raise TN4NNError(
                f"a worker of the Ray cluster cannot read what it is sent ({cause}): install there what the model and "
                "the fit import, or define them in the script that calls compare"
            ) from error
        raise (cause if isinstance(cause, Exception) else error) from None
    if found != version:
        raise TN4NNError(
            f"the workers of the Ray cluster have tn4nn {found}, this process has {version}: install the same there"
        )
    return result
