"""For which processors the C kernel is built ahead, and how it is compiled.

Nothing but the standard library is imported here: the build of a wheel (`hatch_build.py`) reads this file by itself,
where neither tn4nn nor numpy can be imported.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

SOURCES = ("contract.c", "xla.c")  # one text for the compiler
FOLDER, MANIFEST = "kernels", "kernels.json"  # beside this file: what was built ahead, and its digests
ITEMSIZES = (4, 8)
# Constants that the C and the cost model share.
DEPTH = 512  # of k at a time, where a or b is copied
FAR_K, FAR_N = 64, 256  # vectors along k, columns of c, that are taken at a time
SHARE, LEAST = 32, 250_000  # rows, and multiply-adds, below which a thread of its own does not pay
FETCHED = 1 << 21  # bytes of x, y and their gradients that are fetched ahead, of a batch tile
OPTIMISED = ("-O3", "-funroll-loops", "-fPIC", "-w")
_WIDE = ("-mprefer-vector-width=512",)


class Variant(NamedTuple):
    """A build of the kernel.

    Attributes:
        name: of its vectors.
        machine: as `machine()` names it.
        needs: features of the processor, as Linux names them.
        flags: of the compiler.
    """

    name: str
    machine: str
    needs: frozenset[str]
    flags: tuple[str, ...]


_AVX2 = frozenset({"avx2", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
VARIANTS = (  # the widest first
    Variant("avx512", "x86_64", _AVX512, (*(f"-m{name}" for name in sorted(_AVX512)), *_WIDE)),
    Variant("avx2", "x86_64", _AVX2, ("-mavx2", "-mfma")),
    Variant("sse2", "x86_64", frozenset(), ("-msse2",)),
    Variant("neon", "aarch64", frozenset(), ()),
)


def machine() -> str:
    """The instruction set of this process, by one name on every system.

    Examples:
        >>> machine() in ("x86_64", "aarch64") or machine() == platform.machine()
        True
    """
    found = platform.machine()
    return {"AMD64": "x86_64", "amd64": "x86_64", "arm64": "aarch64", "ARM64": "aarch64"}.get(found, found)


def usable(features: Iterable[str], instructions: str) -> tuple[Variant, ...]:
    """The variants that a processor runs, the widest first.

    Args:
        features: of the processor.
        instructions: as `machine()` names them.

    Examples:
        >>> [variant.name for variant in usable({"avx2", "fma"}, "x86_64")]
        ['avx2', 'sse2']
    """
    there = frozenset(features)
    return tuple(variant for variant in VARIANTS if variant.machine == instructions and variant.needs <= there)


def file_name(variant: str, itemsize: int) -> str:
    """Of the library for numbers of that many bytes.

    Examples:
        >>> file_name("avx2", 4)
        'contract-avx2-float32.so'
    """
    return f"contract-{variant}-float{8 * itemsize}.so"


def definitions(itemsize: int) -> tuple[str, ...]:
    """What makes it the kernel for numbers of this size, and the constants that the cost model shares with it."""
    named = {"SIZE": itemsize, "KC": DEPTH, "FAR_K": FAR_K, "FAR_N": FAR_N, "FETCHED": FETCHED}
    named |= {"SHARE": SHARE, "LEAST": LEAST}
    return tuple(f"-D{name}={number}" for name, number in named.items())


def native_flags(wide: bool) -> tuple[str, ...]:
    """For the processor at hand.

    Args:
        wide: whether it has AVX-512.
    """
    return ("-march=native", *(_WIDE if wide else ()))


def source() -> str:
    """The kernel in C."""
    return "".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in SOURCES)


def source_digest() -> str:
    """Of the source and of what it is compiled with: a library that was built of others is not used."""
    parts: Sequence[str] = [source(), *OPTIMISED, *(word for size in ITEMSIZES for word in definitions(size))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
