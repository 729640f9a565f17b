"""Records on disk: plain data with the version of its schema, as JSON, or beside arrays in a safetensors file.

Each has a digest over all that it holds, so that what was damaged or edited is noticed before anything goes on from it.
It protects against accidents, not against forgery: whoever changes a file on purpose can compute the digest anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CheckpointError, TN4NNError
from .files import atomic_write
from .reading import json_of

DIGEST = "digest"  # the key of a record under which its own is
_KEY = "tn4nn"  # of the record in the metadata of a safetensors file


def check_schema(record: Any, schema: int, where: str, advice: str) -> None:
    """Checks that a record is an object of one schema.

    Args:
        record: what was read.
        schema: the version that this code reads.
        where: where it comes from.
        advice: what would do.

    Raises:
        CheckpointError: something else, or another schema.
    """
    if not isinstance(record, Mapping):
        raise CheckpointError(f"{where}: expected an object with a schema, received {type(record).__name__}: {advice}")
    if record.get("schema") != schema:
        versions = record.get("versions")
        version = versions.get("tn4nn") if isinstance(versions, Mapping) else "of an unknown version"
        raise CheckpointError(
            f"{where} has schema {record.get('schema')!r}, written by tn4nn {version}; this version reads schema "
            f"{schema}: {advice}"
        )


def sealed(record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> dict[str, Any]:
    """A record as JSON gives it back, with the digest of it and of the arrays that lie beside it.

    Raises:
        CheckpointError: a record that is nested too deep to be read again.

    Examples:
        >>> sealed({"x": (1, 2)})["digest"][:8]
        '036b898f'
    """
    try:
        read = json_of(json.dumps({key: value for key, value in record.items() if key != DIGEST}))
    except ValueError as error:
        raise CheckpointError(f"this cannot be stored: it is {error}") from None
    return {**read, DIGEST: _digest(read, arrays or {})}


def unsealed(
    record: Mapping[str, Any], where: str, advice: str, arrays: Mapping[str, NDArray[Any]] | None = None
) -> dict[str, Any]:
    """A record without its digest, which is checked.

    Args:
        record: what `sealed` gave, read back.
        where: where it comes from, for errors.
        advice: what would do, for errors.
        arrays: that lie beside it.

    Raises:
        CheckpointError: contents that changed after they were written.
    """
    read = {key: value for key, value in record.items() if key != DIGEST}
    expected, received = record.get(DIGEST), _digest(read, arrays or {})
    if expected != received:
        said = f"{expected[:12]}..." if isinstance(expected, str) else "none"
        raise CheckpointError(
            f"{where} was damaged or edited after it was written: the digest in it is {said}, that of its contents "
            f"{received[:12]}...: {advice}"
        )
    return read


def _digest(record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of a record as canonical JSON, and of the name, dtype, shape and bytes of each array."""
    found = hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        found.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        low_first = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        found.update(low_first.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def write_record(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Writes a record that `read_record` reads: JSON with a digest.

    Raises:
        CheckpointError: a value that JSON has no form for.
        WriteError: the file cannot be written; an older one of that name is unchanged.
    """
    write_json(path, sealed(plain(record)))


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes JSON that every reader takes: UTF-8, and null where a number is NaN or infinite.

    Args:
        path: the file.
        obj: dicts, sequences, strings, numbers, None; also numpy's numbers and arrays, dataclasses and paths.

    Raises:
        CheckpointError: a value that JSON has no form for; it says where in the object.
        WriteError: the file cannot be written; an older one of that name is unchanged.
    """
    atomic_write(path, json_text(obj).encode())


def json_text(obj: Any) -> str:
    """What `write_json` writes.

    Raises:
        CheckpointError: a value that JSON has no form for; it says where in the object.

    Examples:
        >>> json_text({"a": float("nan")}).split()
        ['{', '"a":', 'null', '}']
    """
    return json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_record(path: Path, schema: int, advice: str) -> dict[str, Any]:
    """A record out of a JSON file.

    Raises:
        CheckpointError: a file that cannot be read, of another schema, or that was damaged.
    """
    try:
        record = json_of(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {advice}") from error
    check_schema(record, schema, str(path), advice)
    return unsealed(record, str(path), advice)


def write_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any], *, sync: bool = True
) -> None:
    """Writes arrays and a record to a safetensors file, whole or not at all; the record is JSON in its metadata.

    Args:
        path: of the file.
        arrays: by name.
        record: plain data with a schema.
        sync: see `atomic_write`.

    Raises:
        WriteError: the file cannot be written; an older one of that name is unchanged.
    """
    from safetensors.numpy import save

    ordered = {name: _in_order(array) for name, array in arrays.items()}
    data = save(ordered, {_KEY: json.dumps(sealed(record, ordered))})
    atomic_write(path, data, sync=sync)


def _in_order(array: NDArray[Any]) -> NDArray[Any]:
    """An array whose numbers lie in order: safetensors writes the buffer as it lies, whatever the strides say."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(native).reshape(array.shape)


def read_arrays(
    path: Path, schema: int, what: str, advice: str, unreadable: type[TN4NNError] = CheckpointError
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The record and the arrays that `write_arrays` wrote.

    Args:
        path: of the file.
        schema: the version of the record that is expected.
        what: what was expected, for errors.
        advice: what would do, for errors.
        unreadable: the error for a file that cannot be opened.

    Raises:
        CheckpointError: a file of another kind or schema, or one that was damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            arrays = {} if text is None else {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118  (no mapping)
    except OSError as error:
        raise unreadable(f"{path} cannot be read ({error}): {advice}") from error
    except (SafetensorError, TypeError, ValueError, MemoryError) as error:  # numpy has no dtype for some of them
        raise CheckpointError(f"{path} is not a safetensors file that can be read here ({error}): {advice}") from error
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file, but not {what}: its metadata have no {_KEY!r}: {advice}")
    try:
        record = json_of(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata {_KEY!r} are not JSON ({error}): {advice}") from error
    check_schema(record, schema, str(path), advice)
    found = unsealed(record, str(path), advice, arrays)
    if json.dumps(record) != text:  # 1E-05 for 1e-05: a bit was flipped, though the number is the same
        raise CheckpointError(f"{path} was damaged or edited after it was written, in its record: {advice}")
    return found, arrays


def plain(obj: Any) -> Any:
    """What a reader of `write_json`'s file gets back.

    Examples:
        >>> plain({"a": (1, np.float64("nan"))})
        {'a': [1, None]}
    """
    return _plain(obj, "$")


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
        if not isinstance(value, list):
            return _plain(value, where)
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return _plain(fields, where)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise CheckpointError(
        f"expected numbers, strings, sequences and mappings for JSON; received {type(value).__name__} at {where}."
    )


def _key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return str(key)
    raise CheckpointError(f"expected strings as keys for JSON; received {key!r} in {where}.")
