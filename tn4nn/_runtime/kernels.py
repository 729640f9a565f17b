"""Which build of the C kernel runs here: one that the user has compiled, else one that came with the package.

The package brings a library for each kind of vectors; the widest that the processor has is taken. Nothing is compiled
here and no process is started. What is loaded is whole (its SHA-256 is compared first), was built of this very source,
and gives numpy's numbers.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .._base.errors import TN4NNError
from .._base.libraries import discard
from .._base.warn import warn_once
from . import compiled
from .processor import features
from .variants import FOLDER, MANIFEST, file_name, machine, source_digest, usable

AHEAD = Path(__file__).parent / FOLDER  # what was built ahead


class Kernel(NamedTuple):
    """What was found.

    Attributes:
        library: loaded; None where there is none.
        variant: "avx512", "avx2", "sse2", "neon", or "native" for one that was compiled for this processor.
        path: where it lies.
        why: where there is none, why.
    """

    library: ctypes.CDLL | None
    variant: str = ""
    path: Path | None = None
    why: str = ""


def build(itemsize: int, agrees: Callable[[ctypes.CDLL], bool]) -> Kernel:
    """Compiles the kernel for this processor; later processes find it.

    Raises:
        TN4NNError: it cannot be compiled, or what came out gives wrong numbers.
    """
    path = compiled.build(itemsize)
    found = _loaded("native", path, agrees)
    if found.library is None:
        discard(path)
        raise TN4NNError(f"the kernel was compiled, but {found.why}: it is not used")
    return found


def find(itemsize: int, agrees: Callable[[ctypes.CDLL], bool]) -> Kernel:
    """The best kernel that there is for numbers of this size.

    Args:
        itemsize: bytes of one number.
        agrees: checks the numbers of a library that was just loaded; one that fails is not used.
    """
    own, why = compiled.own(itemsize), ""
    if own is not None:
        found = _loaded("native", own, agrees)
        if found.library is not None:
            return found
        discard(own)  # made for another C library, perhaps: a home folder that several machines share
        why = found.why
    for variant, path, reason in _ahead(itemsize):
        found = Kernel(None, why=reason) if path is None else _loaded(variant, path, agrees)
        if found.library is not None:
            return found
        why = why or found.why
    return Kernel(None, why=why)


def _loaded(variant: str, path: Path, agrees: Callable[[ctypes.CDLL], bool]) -> Kernel:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return Kernel(None, why=f"{path} does not load: {error}")
    if not agrees(library):
        warn_once(f"the native kernel {path} failed its self-check: it is not used")
        return Kernel(None, why=f"{path} failed its self-check")
    return Kernel(library, variant, path)


def _ahead(itemsize: int) -> Iterator[tuple[str, Path | None, str]]:
    """What was built ahead and this processor can run, the widest vectors first: where it lies, or why it is no use."""
    try:
        record: dict[str, Any] = json.loads((AHEAD / MANIFEST).read_bytes())
        built_of, digests = record["source"], dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        yield "", None, "this installation of tn4nn was made without a compiler"
        return
    if built_of != source_digest():
        yield "", None, f"what lies in {AHEAD} was built of another source: run `python hatch_build.py` there"
        return
    for variant in usable(features(), machine()):
        path = AHEAD / file_name(variant.name, itemsize)
        if path.name not in digests:
            continue
        if _digest(path) == digests[path.name]:
            yield variant.name, path, ""
        else:
            yield variant.name, None, f"{path} is damaged: install tn4nn again"
    yield "", None, f"this installation of tn4nn has none for {machine()}"


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
