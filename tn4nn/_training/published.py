"""MNIST and Fashion-MNIST: where the published IDX files are looked for, downloaded, and read."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .._base.errors import DataError
from .._base.files import cache_folder

_TIMEOUT_S = 10.0
_LARGEST_DOWNLOAD = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class PublishedSet:
    """A set of four IDX files.

    Attributes:
        mirrors: addresses of folders that hold them.
        md5: of the .gz files, as published.
    """

    mirrors: tuple[str, ...]
    md5: dict[str, str]


FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _published(*md5: str) -> dict[str, str]:
    return dict(zip(FILES, md5, strict=True))


SETS = {
    "mnist": PublishedSet(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/",),
        _published(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": PublishedSet(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        _published(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
}


def published_arrays(name: str, folder: Path | None, download: bool) -> list[npt.NDArray[np.uint8]]:
    """Training pictures, training labels, test pictures and test labels of a set.

    Args:
        name: of the set.
        folder: where to look first, and where a download goes instead of the cache.
        download: whether files that are nowhere may be fetched.

    Raises:
        DataError: files that are absent or damaged.
    """
    looked: list[str] = []
    contents = next((c for place in _places(name, folder) if (c := _contents(name, place, looked))), None)
    if contents is None:
        if not download:
            raise _absent(name, looked, "download=False was asked")
        contents = _downloaded(name, (folder or cache_folder() / "data") / name, looked)
    return [_parse_idx(contents[file], 3 if "idx3" in file else 1, f"{file} of {name!r}") for file in FILES]


def _contents(name: str, place: Path, looked: list[str]) -> dict[str, bytes] | None:
    """The files of a set in one folder; None, and a note in `looked`, where it has not all of them."""
    missing = [file for file in FILES if not (place / file).is_file()]
    if missing:
        looked.append(f"{place} ({_absence(place, missing)})")
        return None
    found = {file: _read(place / file) for file in FILES}
    # The sets share their file names, and a folder may be the home of another one.
    if any(_owner(file, blob) not in (name, None) for file, blob in found.items()):
        looked.append(f"{place} (the files of another data set)")
        return None
    for file, blob in found.items():
        _check_md5(name, file, blob, place / file)
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"expected a readable file at {str(path)!r}; received {error.strerror or error}.") from error


def _places(name: str, folder: Path | None) -> Iterator[Path]:
    named = os.environ.get("TN4NN_DATA")
    for root in (folder, Path(named) if named else None, cache_folder() / "data"):
        if root is not None:
            yield root / name
            yield root


def _absence(place: Path, missing: list[str]) -> str:
    if not place.is_dir():
        return "no such folder"
    return "none of the files" if len(missing) == len(FILES) else f"without {', '.join(missing)}"


def _md5(blob: bytes) -> str:
    return hashlib.md5(blob, usedforsecurity=False).hexdigest()


def _owner(file: str, blob: bytes) -> str | None:
    """The set whose published file this is."""
    digest = _md5(blob)
    return next((name for name, one in SETS.items() if one.md5[file] == digest), None)


def _check_md5(name: str, file: str, blob: bytes, where: Path) -> None:
    expected, received = SETS[name].md5[file], _md5(blob)
    if received != expected:
        raise DataError(
            f"expected the published {file} of {name!r}, md5 {expected}; received md5 {received} "
            f"({len(blob)} bytes) from {where}. What would do: delete it and load the set again."
        )


def _downloaded(name: str, target: Path, looked: list[str]) -> dict[str, bytes]:
    """The files of a set, fetched into a folder; each is checked before it gets its name."""
    import pooch
    import requests

    one = SETS[name]
    fetch: Any = _fetch  # pooch's type of a downloader has other names for the first two arguments
    for file in FILES:
        reasons: list[str] = []
        for mirror in one.mirrors:
            try:
                pooch.retrieve(mirror + file, f"md5:{one.md5[file]}", file, target, downloader=fetch)
                break
            except (requests.RequestException, ValueError) as error:  # ValueError: another md5, or too long
                reasons.append(f"{mirror + file}: {error}")
            except OSError as error:
                raise DataError(
                    f"{name!r} could not be stored in {str(target)!r}: {error}. What would do: load({name!r}, "
                    "folder=...) with a folder you can write to, or another TN4NN_CACHE."
                ) from error
        else:
            raise _absent(name, looked, f"the download failed ({'; '.join(reasons)})")
    return {file: _read(target / file) for file in FILES}


def _fetch(url: str, output_file: str, pooch: object) -> None:
    """A downloader for pooch that gives up on answers without end."""
    from pooch import HTTPDownloader

    with open(output_file, "wb") as file:
        HTTPDownloader(chunk_size=2**16, timeout=_TIMEOUT_S)(url, _Limited(file), pooch)


class _Limited:
    """A file that takes no more than _LARGEST_DOWNLOAD bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, data: bytes) -> None:
        if self.file.tell() + len(data) > _LARGEST_DOWNLOAD:
            raise ValueError(f"received more than {_LARGEST_DOWNLOAD:,} bytes")
        self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _absent(name: str, looked: list[str], why: str) -> DataError:
    files = ", ".join(FILES)
    return DataError(
        f"expected the files of {name!r}; received none that can be used, and {why}. "
        f"Looked in: {'; '.join(looked)}. What would do: put {files} in "
        f"{cache_folder() / 'data' / name}, or in FOLDER/{name} and set the environment variable "
        f"TN4NN_DATA=FOLDER (or give folder=FOLDER). With no network at all, 'digits' needs no file."
    )


def _parse_idx(blob: bytes, axes: int, label: str) -> npt.NDArray[np.uint8]:
    """The array in a gzipped IDX file of unsigned bytes: magic 0 0 8 axes, big-endian sizes, values."""
    try:
        data = gzip.decompress(blob)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"expected a whole .gz file as {label}; received {len(blob)} bytes: {error}.") from error
    magic = bytes((0, 0, 8, axes))
    if data[:4] != magic:
        raise DataError(
            f"expected an IDX file of unsigned bytes with {axes} axes as {label}, magic {magic.hex()}; "
            f"received magic {data[:4].hex() or 'nothing'}."
        )
    start = 4 + 4 * axes
    if len(data) < start:
        raise DataError(f"expected {axes} sizes in the head of {label}; received a file of {len(data)} bytes.")
    shape = tuple(int(size) for size in np.frombuffer(data, dtype=">u4", count=axes, offset=4))
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"expected {math.prod(shape)} values of shape {shape} in {label}; received {len(data) - start}."
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
