"""C that is compiled on first use, for the processor and compiler at hand, and stored in the cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from .._base.files import atomic_write, cache_folder

_LIBRARIES: dict[str, ctypes.CDLL | None] = {}  # by key: one source is loaded once
_WARNED: set[str] = set()  # once a process is enough


@functools.cache
def processor() -> str:
    """What the processor can do: a library that was compiled for another one may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    described = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(described)])


def vector_bytes() -> int:
    """Bytes of the vectors that the C is written for: 64 where the processor has AVX-512, else 32."""
    return 64 if "avx512f" in processor() else 32


def library(text: str, agrees: Callable[[ctypes.CDLL], bool], flags: Sequence[str] = ()) -> ctypes.CDLL | None:
    """The library of a C source, compiled now or found on disk; None where that cannot be had.

    Args:
        text: the source.
        agrees: checks the numbers of a library that was just loaded; one that fails is not used.
        flags: further flags of the compiler.
    """
    key = hashlib.sha256("\n".join([processor(), *flags, text]).encode()).hexdigest()[:24]
    if key not in _LIBRARIES:
        _LIBRARIES[key] = _built(text, agrees, flags, key)
    return _LIBRARIES[key]


def _built(text: str, agrees: Callable[[ctypes.CDLL], bool], flags: Sequence[str], key: str) -> ctypes.CDLL | None:
    path = cache_folder() / "kernels" / f"{key}.so"
    try:
        result = _loaded(path)
        if result is None:
            atomic_write(path, _compiled(text, flags))
            result = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        warn_once(f"no native kernel ({error}): layers run in the framework's own operations")
        return None
    if not agrees(result):
        warn_once(f"the native kernel {path} failed its self-check: it is not used")
        return None
    return result


def _loaded(path: Path) -> ctypes.CDLL | None:
    """A library out of the cache, or None where there is none that loads."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _compiled(text: str, flags: Sequence[str]) -> bytes:
    compiler = next((found for name in ("gcc", "cc") if (found := shutil.which(name))), None)
    if compiler is None:
        raise RuntimeError("there is no C compiler: install gcc")
    with tempfile.TemporaryDirectory() as folder:
        code, result = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        code.write_text(text)
        every = ["-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC", "-w", *flags]
        if "avx512f" in processor():
            every.append("-mprefer-vector-width=512")
        done = subprocess.run(
            [compiler, *every, "-o", str(result), str(code)], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{os.path.basename(compiler)} failed: {done.stderr[:300]}")
        return result.read_bytes()


def warn_once(message: str) -> None:
    """Warns once a process."""
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, stacklevel=3)
