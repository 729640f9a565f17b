"""Records on disk: plain data with the version of its schema, as JSON, or beside arrays in a safetensors file."""

from __future__ import annotations

import dataclasses
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


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes JSON that every reader takes: UTF-8, and null where a number is NaN or infinite.

    Args:
        path: the file.
        obj: dicts, sequences, strings, numbers, None; also numpy's numbers and arrays, dataclasses and paths.

    Raises:
        CheckpointError: a value that JSON has no form for; it says where in the object.
        WriteError: the file cannot be written; an older one of that name is unchanged.
    """
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(path, (text + "\n").encode())


def read_record(path: Path, schema: int, advice: str) -> dict[str, Any]:
    """A record out of a JSON file.

    Raises:
        CheckpointError: a file that cannot be read, or of another schema.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {advice}") from error
    check_schema(record, schema, str(path), advice)
    return dict(record)


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> None:
    """Writes arrays and a record to a safetensors file, whole or not at all; the record is JSON in its metadata."""
    from safetensors.numpy import save

    atomic_write(path, save({name: _in_order(array) for name, array in arrays.items()}, {_KEY: json.dumps(record)}))


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
        CheckpointError: a file of another kind or schema.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            arrays = {} if text is None else {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118  (no mapping)
    except OSError as error:
        raise unreadable(f"{path} cannot be read ({error}): {advice}") from error
    except (SafetensorError, TypeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file that can be read here ({error}): {advice}") from error
    if text is None:
        raise CheckpointError(f"{path} is a safetensors file, but not {what}: its metadata have no {_KEY!r}: {advice}")
    try:
        record = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata {_KEY!r} are not JSON ({error}): {advice}") from error
    check_schema(record, schema, str(path), advice)
    return record, arrays


def plain(obj: Any) -> Any:
    """What a reader of `write_json`'s file gets back.

    Example:
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
