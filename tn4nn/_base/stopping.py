"""How a command ends that is told to stop, by Ctrl-C or a signal: at once, whatever runs, and without a traceback.

Python runs its signal handlers in the main thread, between two steps of the interpreter. An exception that one raises
there comes late, after a compilation for instance, and may never arrive: what is raised inside a framework's callback
is dropped. Here a thread is woken by the interpreter's C code instead, and ends the process. Nothing has to be tidied
up: files are written whole or a line at a time (`files.py`), and the processes that a command starts end with it.

This module imports little: it is at work before numpy is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import types
from collections.abc import Callable, Iterator

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it
_advice = "stopped"


def advise(text: str) -> None:
    """What is said when the command is told to stop: what was kept, and how to go on."""
    global _advice
    _advice = text


def end_at_signals() -> None:
    """From now on SIGINT, SIGTERM and SIGHUP end this process with exit code 128 + number: 130, 143, 129.

    For a command, which owns its process; to be called in the main thread. A signal that the process was started to
    ignore (`nohup`) is ignored.
    """
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    reading, writing = os.pipe()
    if hasattr(os, "set_blocking"):  # of Windows only newer Pythons have it, and there it may block
        os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in heard:
        signal.signal(number, _leave_it_to_the_thread)
    threading.Thread(target=_wait, args=(reading, set(heard)), daemon=True).start()
    atexit.register(_too_late, heard)  # as the first, so it is called last


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], None]]:
    """For a library, whose process is somebody else's: an interrupt that got lost is raised again.

    Yields a function to be called after each piece of work. It raises KeyboardInterrupt where Ctrl-C came and the work
    went on all the same: a framework drops what is raised inside its callbacks, or makes another exception of it.
    """
    lost: list[bool] = []
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def note(number: int, frame: types.FrameType | None) -> None:
        lost.append(True)
        signal.default_int_handler(number, frame)

    def check() -> None:
        if lost:
            raise KeyboardInterrupt

    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave_it_to_the_thread(*_: object) -> None:
    pass


def _too_late(heard: list[int]) -> None:
    """At the interpreter's last lines, where no thread runs any more: the command leaves with its own exit code."""
    for number in heard:
        signal.signal(number, signal.SIG_IGN)


def _wait(reading: int, heard: set[int]) -> None:
    while number := os.read(reading, 1):
        if number[0] in heard:
            _end(number[0])


def _end(number: int) -> None:
    cursor = _SHOW_CURSOR if os.isatty(2) else b""
    with contextlib.suppress(OSError):  # nobody may be reading
        os.write(2, cursor + f"{_advice}\n".encode(errors="replace"))
    os._exit(128 + number)
