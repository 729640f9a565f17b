"""Language models as a task: characters, bytes, or a file of token ids, of which only the windows in use are read."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from .._base.checks import nearest
from .._base.errors import DataError
from .._base.files import cache_folder
from .splits import Array, Windows
from .tasks import Task

SHARES = (0.9, 0.05, 0.05)  # of training, validation and test, in the order of the text
_READ = 1 << 24  # ids that are looked at in one go
_TINYSHAKESPEARE = "6fb458f1232090904fb40fe944165e91"  # md5
TEXTS = ("shakespeare", "tinyshakespeare")


def language_model(
    text_or_ids: Any,
    *,
    context: int,
    vocabulary: int | str | Sequence[str] | None = None,
    shares: tuple[float, float, float] = SHARES,
    column: str = "input_ids",
    name: str = "text",
) -> Task:
    """A task of predicting the next token at every place of a text, scored by the cross-entropy; less is better.

    The text is split in order: first what is trained on, then validation, then test. An epoch takes every window of
    `context` tokens once, from an offset that is drawn anew.

    Args:
        text_or_ids: a text, whose characters are the tokens; bytes; an array of whole numbers of shape (tokens,), which
            may be memory-mapped; a path (pathlib): of a text in UTF-8, or of ids as .npy, or as .bin (16-bit, little
            endian), both of which are mapped and may be larger than memory; a `datasets.Dataset` of Hugging Face; or
            an iterable of arrays of ids, which are joined.
        context: tokens that the model sees at once.
        vocabulary: how many ids there are, or the characters in the order of their ids (default: the characters that
            occur, sorted; 256 for bytes; the largest id and 1).
        shares: of training, validation and test; one of the latter two may be 0.
        column: of ids, in a table.
        name: for tables.

    Raises:
        DataError: fewer tokens than one window in a split, ids below 0 or beyond the vocabulary, characters that are
            not in it, a file that cannot be read.

    Examples:
        >>> import tn4nn as tn
        >>> task = tn.language_model("to be or not to be " * 100, context=16)
        >>> task
        Task('text': 105 train + 4 validation + 4 test rows, (16,) -> (16, 7), cross_entropy, scored by loss)
        >>> task.vocabulary
        ' benort'
    """
    if not isinstance(context, int) or context < 1:
        raise DataError(f"context must be a whole number of at least 1, received {context!r}")
    if isinstance(text_or_ids, os.PathLike):
        name = Path(text_or_ids).stem if name == "text" else name
        text_or_ids = _read(Path(text_or_ids))
    ids, characters, count = _ids(text_or_ids, vocabulary, column)
    ends = _ends(len(ids), shares, context)
    train, validation, test = (
        Windows(ids[start:end], context) if end > start else None for start, end in zip((0, *ends), ends, strict=False)
    )
    assert train is not None  # its share is above 0
    return Task(name, "cross_entropy", "loss", train, validation, test, (context,), (context, count), characters)


def load_text(name: str) -> str:
    """A text by name.

    Args:
        name: "shakespeare", the first quarter of the next one, which is part of tn4nn; or "tinyshakespeare", 1,115,394
            characters, out of `$TN4NN_DATA`/tinyshakespeare/input.txt.

    Raises:
        DataError: an unknown name, or a file that is not there.

    Examples:
        >>> import tn4nn as tn
        >>> tn.load_text("shakespeare")[:14]
        'First Citizen:'
    """
    if name == "shakespeare":
        packed = (files("tn4nn") / "texts" / "shakespeare.txt.gz").read_bytes()
        return gzip.decompress(packed).decode()
    if name not in TEXTS:
        raise DataError(f"no text is called {name!r}." + nearest(name, TEXTS))
    folders = [Path(os.environ.get("TN4NN_DATA") or cache_folder() / "data"), cache_folder() / "data"]
    for path in (folder / "tinyshakespeare" / "input.txt" for folder in folders):
        if not path.exists():
            continue
        found = path.read_bytes()
        if hashlib.md5(found, usedforsecurity=False).hexdigest() != _TINYSHAKESPEARE:
            raise DataError(f"{path} is not the published file (md5 {_TINYSHAKESPEARE}): get it again")
        return found.decode()
    raise DataError(
        f"tinyshakespeare/input.txt is neither in $TN4NN_DATA nor in {folders[-1]}: put it there (1,115,394 "
        "characters), or take 'shakespeare', the quarter of it that is part of tn4nn"
    )


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".bin":
            return np.memmap(path, dtype="<u2", mode="r")
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): expected a text in UTF-8, or ids as .npy or .bin (16-bit)"
        ) from error


def _ids(given: Any, vocabulary: Any, column: str) -> tuple[Array, str | None, int]:
    """(ids, the characters that they stand for, how many different ids there may be)."""
    if isinstance(given, str):
        return _characters(given, vocabulary)
    if isinstance(given, bytes | bytearray):
        ids: Array = np.frombuffer(bytes(given), dtype=np.uint8)
        vocabulary = 256 if vocabulary is None else vocabulary
    elif hasattr(given, "column_names"):
        if column not in given.column_names:
            names = ", ".join(given.column_names)
            raise DataError(f"no column {column!r} among {names}: name that of the ids (column=)")
        ids = _joined(row[column] for row in given)
    else:
        ids = given if isinstance(given, np.ndarray) else _joined(given)
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim != 1:
        raise DataError(f"expected token ids as whole numbers of shape (tokens,), received {ids.dtype} of {ids.shape}")
    if len(ids) == 0:
        raise DataError("expected a text, received none")
    characters = None
    if isinstance(vocabulary, int) or vocabulary is None:
        count = vocabulary
    else:
        characters, count = "".join(vocabulary), len(vocabulary)
    least, top = 0, 0
    for start in range(0, len(ids), _READ):
        part = ids[start : start + _READ]
        least, top = min(least, int(part.min())), max(top, int(part.max()))
    count = top + 1 if count is None else count
    if least < 0 or top >= count:
        wrong = least if least < 0 else top
        raise DataError(f"token id {wrong} is out of range: expected ids from 0 to {count - 1} (vocabulary={count})")
    return ids, characters, count


def _characters(text: str, vocabulary: Any) -> tuple[Array, str, int]:
    if not text:
        raise DataError("expected a text, received none")
    if isinstance(vocabulary, int):
        raise DataError(
            f"the tokens of a text are its characters: expected vocabulary= as a string of them, received {vocabulary}"
        )
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    known = np.unique(points) if vocabulary is None else np.array([ord(one) for one in vocabulary], dtype=np.uint32)
    order = np.argsort(known)
    places = np.searchsorted(known, points, sorter=order).clip(max=len(known) - 1)
    found = order[places]
    strange = known[found] != points
    if strange.any():
        at = int(strange.argmax())
        raise DataError(f"the character {text[at]!r} at {at} is not in the vocabulary of {len(known)} characters")
    small = np.uint8 if len(known) <= 256 else np.uint16 if len(known) <= 65536 else np.uint32
    return found.astype(small), "".join(map(chr, known)), len(known)


def _joined(parts: Iterable[Any]) -> Array:
    try:
        arrays = [np.asarray(part) for part in parts]
        return np.concatenate([np.atleast_1d(array) for array in arrays if array.size])
    except (TypeError, ValueError) as error:
        raise DataError(f"expected a text, bytes, ids, a path, a table or arrays of ids ({error})") from error


def _ends(tokens: int, shares: tuple[float, float, float], context: int) -> tuple[int, ...]:
    """Where training, validation and test end."""
    if len(shares) != 3 or min(shares) < 0 or shares[0] == 0 or abs(sum(shares) - 1) > 1e-6:
        raise DataError(f"shares must be three numbers that add up to 1, the first above 0, received {shares!r}")
    ends = tuple(round(float(share) * tokens) for share in np.cumsum(shares))
    for what, share, start, end in zip(("training", "validation", "test"), shares, (0, *ends), ends, strict=False):
        if share and end - start <= context:
            raise DataError(
                f"{end - start} tokens for {what} are fewer than one window of context={context} and one token more: "
                "give a longer text, a shorter context, or other shares="
            )
    return ends
