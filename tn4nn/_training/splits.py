"""Rows of data that can be taken by number: arrays in memory, columns of a table, windows of a text.

Only rows that are asked for are read, so a split may be larger than memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._base.errors import DataError
from .._base.hashing import digest

Array = NDArray[Any]
Numbers = NDArray[np.int64]

_SAMPLED = 4096  # numbers of a large array that its digest is made of


class Split(Protocol):
    """Rows of a task, taken by their numbers."""

    def __len__(self) -> int:
        """Rows of an epoch."""
        ...

    def numbers(self, rng: np.random.Generator | None = None) -> Numbers:
        """The numbers of an epoch's rows: in the order of training, drawn from `rng`, or in a fixed order."""
        ...

    def take(self, numbers: Numbers) -> tuple[Array, Array]:
        """(x, y) of some rows."""
        ...

    def whole(self) -> tuple[Array, Array] | None:
        """(x, y) of all rows where row i has the number i and all are in memory, else None."""
        ...

    def digest(self) -> str:
        """A hash of what is in it."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Rows of two arrays; those of a memory-mapped one are read when they are asked for.

    Attributes:
        x: of shape (rows, ...).
        y: of shape (rows, ...).
    """

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.x)

    def numbers(self, rng: np.random.Generator | None = None) -> Numbers:
        """See `Split`."""
        return np.arange(len(self.x)) if rng is None else rng.permutation(len(self.x))

    def take(self, numbers: Numbers) -> tuple[Array, Array]:
        """See `Split`."""
        return np.asarray(self.x[numbers]), np.asarray(self.y[numbers])

    def whole(self) -> tuple[Array, Array] | None:
        """See `Split`."""
        return None if is_mapped(self.x) or is_mapped(self.y) else (self.x, self.y)

    def digest(self) -> str:
        """See `Split`."""
        return digest_of(self.x, self.y)


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """Two columns of a table that gives rows by number, such as a `datasets.Dataset` of Hugging Face.

    Attributes:
        table: `table[[3, 1]]` is a mapping from column to values.
        columns: of x and of y. Pictures of whole bytes become numbers from 0 to 1.
    """

    table: Any
    columns: tuple[str, str]

    def __len__(self) -> int:
        return len(self.table)

    def numbers(self, rng: np.random.Generator | None = None) -> Numbers:
        """See `Split`."""
        return np.arange(len(self)) if rng is None else rng.permutation(len(self))

    def take(self, numbers: Numbers) -> tuple[Array, Array]:
        """See `Split`."""
        rows: Mapping[str, Any] = self.table[numbers.tolist()]
        x, y = (_stacked(rows[name], name) for name in self.columns)
        return (x.astype(np.float32) / 255 if x.dtype == np.uint8 else x), y

    def whole(self) -> None:
        """See `Split`."""

    def digest(self) -> str:
        """See `Split`."""
        some = np.unique(np.linspace(0, len(self) - 1, min(len(self), 64)).astype(np.int64))
        return digest_of(*self.take(some)) + f"-{len(self)}-{getattr(self.table, '_fingerprint', '')}"


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Windows of a sequence of token ids: x is `context` of them, y the same one further on.

    An epoch begins at an offset that is drawn anew, and takes every window from there on once. The number of a row is
    the place at which its window begins.

    Attributes:
        ids: of shape (tokens,), whole numbers, at least `context` + 1.
        context: tokens of a row.
    """

    ids: Array
    context: int

    def __len__(self) -> int:
        spare = (len(self.ids) - 1) // self.context
        return max(1, spare - 1)

    def numbers(self, rng: np.random.Generator | None = None) -> Numbers:
        """See `Split`. In the fixed order, all windows that lie side by side from the first token on."""
        if rng is None:
            return np.arange((len(self.ids) - 1) // self.context) * self.context
        room = len(self.ids) - 1 - len(self) * self.context
        return int(rng.integers(room + 1)) + self.context * rng.permutation(len(self))

    def take(self, numbers: Numbers) -> tuple[Array, Array]:
        """See `Split`."""
        places = numbers[:, None] + np.arange(self.context + 1)
        found = np.asarray(self.ids[places]).astype(np.int64)
        return found[:, :-1], found[:, 1:]

    def whole(self) -> None:
        """See `Split`."""

    def digest(self) -> str:
        """See `Split`."""
        return f"{digest_of(self.ids)}-{self.context}"


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of another split, which are numbered anew.

    Attributes:
        of: the other split.
        chosen: numbers of its rows.
    """

    of: Split
    chosen: Numbers

    def __len__(self) -> int:
        return len(self.chosen)

    def numbers(self, rng: np.random.Generator | None = None) -> Numbers:
        """See `Split`."""
        return np.arange(len(self)) if rng is None else rng.permutation(len(self))

    def take(self, numbers: Numbers) -> tuple[Array, Array]:
        """See `Split`."""
        return self.of.take(self.chosen[numbers])

    def whole(self) -> None:
        """See `Split`."""

    def digest(self) -> str:
        """See `Split`."""
        return f"{self.of.digest()}-{digest(self.chosen)}"


def is_mapped(array: Array) -> bool:
    """Whether an array, or what it is a view of, lies in a file."""
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False


def digest_of(*arrays: Array) -> str:
    """A hash of arrays: of all their numbers, or where they lie in a file, of their shapes and of a sample."""
    parts = []
    for array in arrays:
        if is_mapped(array):
            at = np.linspace(0, len(array) - 1, min(len(array), _SAMPLED)).astype(np.int64)
            parts.append(np.asarray(array[at]))
            parts.append(np.asarray(array.shape))
        else:
            parts.append(array)
    return digest(*parts)


def bytes_of_row(split: Split) -> int:
    """Bytes of one row of x and y."""
    x, y = split.take(split.numbers()[:1])
    return max(1, x.nbytes + y.nbytes)


def _stacked(values: Any, name: str) -> Array:
    try:
        found = np.stack([np.asarray(value) for value in values])
    except ValueError as error:
        raise DataError(f"the rows of column {name!r} differ in shape: {error}") from error
    if found.dtype == object:
        raise DataError(f"column {name!r} holds {type(values[0]).__name__}, expected numbers, arrays or pictures")
    return found
