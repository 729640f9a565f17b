"""Checks of arguments and of plain data, each with the error that says what would do."""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

from .errors import TN4NNError, TopologyError
from .reading import json_of

SCHEMA = 1  # of topologies, networks and models as plain data


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest known words, or the known words when none is near."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, n=3)
    if close:
        return f" Did you mean {', '.join(map(repr, close))}?"
    return f" Known: {', '.join(map(repr, words)) or 'none'}."


def checked_size(size: object, what: str) -> int:
    """`size` as an int of at least 1, or an error that names `what`."""
    if type(size) is not int and (isinstance(size, bool) or not isinstance(size, SupportsIndex)):  # the first is quick
        raise TopologyError(f"{what}: the size must be a whole number of at least 1, received {size!r}")
    number = operator.index(size)
    if number < 1:
        raise TopologyError(f"{what}: the size must be at least 1, received {number}")
    return int(number)


def read_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object, or an error that says what was expected."""
    try:
        data = json_of(text)
    except (TypeError, ValueError) as error:
        raise TopologyError(f"this is not JSON of a {what}: {error}") from error
    if not isinstance(data, dict):
        raise TopologyError(f"the JSON of a {what} is an object, received {type(data).__name__}")
    return data


def check_schema(data: Mapping[str, Any], what: str, keys: Sequence[str]) -> None:
    """Refuses data that is not an object, has another schema, or lacks keys."""
    if not isinstance(data, Mapping):
        raise TopologyError(f"{what} data is an object, received {type(data).__name__}")
    if data.get("schema", SCHEMA) != SCHEMA:
        raise TopologyError(f"{what} data of schema {data['schema']!r}: this version reads schema {SCHEMA}")
    missing = [key for key in keys if key not in data]
    if missing:
        raise TopologyError(f"{what} data lacks {', '.join(missing)}: received the keys {sorted(data)}")


def check_file(path: object, call: str) -> None:
    """Refuses what cannot be the name of a file, as where arguments changed places.

    Examples:
        >>> check_file({}, "save(path, model)")
        Traceback (most recent call last):
            ...
        tn4nn.TN4NNError: save(path, model) takes the file's name first, a str or a Path; received dict
    """
    if not isinstance(path, str | os.PathLike):
        raise TN4NNError(f"{call} takes the file's name first, a str or a Path; received {type(path).__name__}")


def one_of(value: str, known: Sequence[str], what: str) -> None:
    """Raises TN4NNError for an unknown word."""
    if value not in known:
        raise TN4NNError(f"{what} must be one of {', '.join(known)}, received {value!r}")


def at_least(least: int, **values: int) -> None:
    """Raises TN4NNError for a value that is not a whole number of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise TN4NNError(f"{name} must be a whole number of at least {least}, received {value!r}")


def only_one(given: Mapping[str, Any], what: str) -> str:
    """The one key whose value is not None, or an error."""
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) != 1:
        raise TopologyError(
            f"{what} takes exactly one of {', '.join(f'{name}=' for name in given)}, "
            f"received {', '.join(asked) or 'none'}"
        )
    return asked[0]
