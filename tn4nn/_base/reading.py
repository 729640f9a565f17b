"""Text and arrays out of files that anybody may have written: parsed and measured before memory is given to them.

All of it raises ValueError for what cannot be read, whatever the parser below raises, and OSError for what the
operating system refuses.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
import zipfile
from collections.abc import Callable, Container
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy_format
from numpy.typing import NDArray

DEPTH = 200  # of nested objects and lists; models nest three for each layer that holds another
_SMALL = 1 << 28  # bytes that an archive may unpack to whatever it was packed from
_RATIO = 200  # times its own size that a larger archive may unpack to; data that was measured packs ten times or less


def json_of(text: str | bytes) -> Any:
    """JSON as plain data.

    Raises:
        ValueError: no JSON, or nested more than `DEPTH` times.

    Examples:
        >>> json_of("[" * 1000 + "]" * 1000)
        Traceback (most recent call last):
            ...
        ValueError: nested more than 200 deep
    """
    return _shallow(json.loads, text)


def toml_of(text: str) -> dict[str, Any]:
    """TOML as plain data.

    Raises:
        ValueError: no TOML, or nested more than `DEPTH` times.

    Examples:
        >>> toml_of("a = [1, 2]")
        {'a': [1, 2]}
    """
    found: dict[str, Any] = _shallow(tomllib.loads, text)
    return found


def _shallow(parse: Callable[[Any], Any], text: str | bytes) -> Any:
    """What a parser makes of a text, where the code that walks through it need not fear for its stack."""
    try:
        found = parse(text)
    except RecursionError:
        raise ValueError(f"nested more than {DEPTH} deep") from None
    level = [found]
    for _ in range(DEPTH + 1):
        level = [
            below
            for item in level
            if isinstance(item, dict | list)
            for below in (item.values() if isinstance(item, dict) else item)
            if isinstance(below, dict | list)
        ]
        if not level:
            return found
    raise ValueError(f"nested more than {DEPTH} deep")


def read_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file.

    Raises:
        OSError: a file that cannot be opened.
        ValueError: no plain array, or fewer bytes than its head promises.
    """
    with path.open("rb") as file:
        found: NDArray[Any] = _measured(lambda: _array(file, os.stat(path).st_size))
        return found


def read_npz(path: Path, wanted: Container[str]) -> dict[str, NDArray[Any] | None]:
    """The arrays in an .npz file by name; None for those that are not wanted, which are not read.

    Raises:
        OSError: a file that cannot be opened.
        ValueError: no .npz file of plain arrays, or one that unpacks to far more than it can honestly hold.
    """
    with path.open("rb") as file:
        found: dict[str, NDArray[Any] | None] = _measured(lambda: _arrays(file, os.stat(path).st_size, wanted))
        return found


def _measured(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except OSError:
        raise
    except Exception as error:  # numpy, zipfile and three decompressors have a dozen kinds of errors for damaged files
        raise ValueError(str(error) or type(error).__name__) from error


def _arrays(file: IO[bytes], size: int, wanted: Container[str]) -> dict[str, NDArray[Any] | None]:
    if not zipfile.is_zipfile(file):
        raise ValueError("it is no zip file")
    with zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        unpacked = sum(member.file_size for name, member in members.items() if name in wanted)
        if unpacked > max(_SMALL, _RATIO * size):
            raise ValueError(f"its {size:,} bytes unpack to {unpacked:,}, which is more than data can be packed")
        found: dict[str, NDArray[Any] | None] = dict.fromkeys(members)
        for name, member in members.items():
            if name in wanted:
                with archive.open(member) as inner:
                    found[name] = _array(inner, member.file_size)
        return found


def _array(file: IO[bytes], size: int) -> NDArray[Any]:
    """An array in numpy's format, where as many bytes are there as its head promises."""
    version = npy_format.read_magic(file)
    if version not in ((1, 0), (2, 0)):  # later ones are for names of fields, and tables are not read
        raise ValueError(f"an array in version {version} of the format, expected 1.0 or 2.0")
    head = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = head(file)
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"entries of dtype {dtype}, expected numbers")
    if any(n < 0 for n in shape):
        raise ValueError(f"a negative size in the shape {shape}")
    there, promised = size - file.tell(), math.prod(shape) * dtype.itemsize
    if promised > there:
        raise ValueError(
            f"an array of shape {shape} and dtype {dtype} takes {promised:,} bytes, and {there:,} are there"
        )
    file.seek(0)
    found: NDArray[Any] = npy_format.read_array(file, allow_pickle=False)
    return found
