"""The C kernel compiled for the processor at hand, where somebody asked for it; kept in the cache folder."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .._base.errors import TN4NNError
from .._base.libraries import RESULT, SOURCE, Build, existing, library_path
from .processor import processor, vector_bytes
from .variants import OPTIMISED, definitions, native_flags, source

_LIMIT = 300.0  # seconds that the compiler may take


def own(itemsize: int) -> Path | None:
    """The kernel that `build` has compiled for this processor, out of this source; None where there is none."""
    return existing(_name(itemsize, ()))


def build(itemsize: int, flags: Sequence[str] = ()) -> Path:
    """Compiles the kernel with -march=native, or waits for the process that does; returns where it is.

    Args:
        itemsize: bytes of one number.
        flags: further flags of the compiler.

    Raises:
        TN4NNError: there is no compiler, it failed, or there is nowhere to write.
    """
    compiler = next((found for name in ("gcc", "clang", "cc") if (found := shutil.which(name))), None)
    if compiler is None:
        raise TN4NNError("there is no C compiler on the PATH: install gcc or clang")
    command = (compiler, *_flags(itemsize, flags), "-shared", "-o", RESULT, SOURCE)
    try:
        return Build(str(library_path(_name(itemsize, tuple(flags)))), source(), ".c", command, _LIMIT).run()
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        raise TN4NNError(f"the kernel could not be compiled: {error}") from error


def _flags(itemsize: int, flags: Sequence[str]) -> tuple[str, ...]:
    return (*OPTIMISED, *native_flags(vector_bytes() == 64), *definitions(itemsize), *flags)


@functools.cache
def _name(itemsize: int, flags: tuple[str, ...]) -> str:
    text = "\n".join([processor(), *_flags(itemsize, flags), source()])
    return f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
