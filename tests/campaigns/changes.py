"""Ways in which a file changes: as a disk or a transfer damages it, and as a person edits it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from tn4nn._base.records import sealed

Rng = np.random.Generator
Change = Callable[[bytes, Rng], bytes]


def _at(data: bytes, rng: Rng) -> tuple[int, int]:
    """Two places in a file, the first before the second."""
    low, high = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
    return low, high


def flipped(data: bytes, rng: Rng) -> bytes:
    at = int(rng.integers(len(data)))
    return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]


def cut(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data)))]


def tail_of_zeros(data: bytes, rng: Rng) -> bytes:
    at = int(rng.integers(len(data)))
    return data[:at] + bytes(len(data) - at)


def block_of_zeros(data: bytes, rng: Rng) -> bytes:
    at = int(rng.integers(len(data)))
    count = int(rng.integers(1, 512))
    return data[:at] + bytes(min(count, len(data) - at)) + data[at + count :]


def noise(data: bytes, rng: Rng) -> bytes:
    low, high = _at(data, rng)
    high = min(high, low + 64)
    return data[:low] + rng.bytes(high - low) + data[high:]


def without(data: bytes, rng: Rng) -> bytes:
    low, high = _at(data, rng)
    return data[:low] + data[min(high, low + 64) :]


def twice(data: bytes, rng: Rng) -> bytes:
    low, high = _at(data, rng)
    return data[:high] + data[low:high] + data[high:]


def exchanged(data: bytes, rng: Rng) -> bytes:
    size = int(rng.integers(1, 65))
    if len(data) < 2 * size:
        return data[::-1]
    low = int(rng.integers(0, len(data) - 2 * size + 1))
    return data[:low] + data[low + size : low + 2 * size] + data[low : low + size] + data[low + 2 * size :]


def more(data: bytes, rng: Rng) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 100)))


def nothing(data: bytes, rng: Rng) -> bytes:
    return b""


BYTES: dict[str, Change] = {
    change.__name__: change
    for change in (flipped, cut, tail_of_zeros, block_of_zeros, noise, without, twice, exchanged, more, nothing)
}

# -- plain data ---------------------------------------------------------------------------------------------------

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, 10**9, 10**12, 10**30, 1e308, math.inf, -math.inf, math.nan, "", "x",
    "\x1b[2J", "=1+1", "a" * 5000, [], {}, [[]], [0, 0], {"schema": 1}, "../../etc/passwd",
)  # fmt: skip


def edited(data: Any, rng: Rng) -> Any:
    """Plain data with one thing in it changed."""
    result = copy.deepcopy(data)
    holders: list[tuple[Any, Any]] = []
    waiting = [result]
    while waiting:
        item = waiting.pop()
        for key in list(item) if isinstance(item, dict) else range(len(item)):
            holders.append((item, key))
            if isinstance(item[key], dict | list):
                waiting.append(item[key])
    if not holders:
        return STRANGE[int(rng.integers(len(STRANGE)))]
    holder, key = holders[int(rng.integers(len(holders)))]
    how = int(rng.integers(6))
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = holder[key] + (1 if rng.integers(2) else -1)
    elif how == 2 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif how == 3 and isinstance(holder, list):
        holder.append(holder[key])
    elif how == 4:
        deep: Any = holder[key]
        for _ in range(int(rng.choice([1, 150, 3000]))):
            deep = [deep]
        holder[key] = deep
    else:
        holder[key] = STRANGE[int(rng.integers(len(STRANGE)))]
    return result


def text_of(data: Any) -> str:
    """JSON of any depth: the library's own writer stops at the limit of recursion."""
    parts: list[str] = []
    waiting: list[Any] = [data]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _Text):
            parts.append(item)
        elif isinstance(item, list):
            waiting.append(_Text("]"))
            for i, below in reversed(list(enumerate(item))):
                waiting += [below, _Text(", ")] if i else [below]
            waiting.append(_Text("["))
        elif isinstance(item, dict):
            waiting.append(_Text("}"))
            for i, (key, below) in reversed(list(enumerate(item.items()))):
                waiting += [below, _Text(f"{', ' if i else ''}{json.dumps(key)}: ")]
            waiting.append(_Text("{"))
        else:
            parts.append(json.dumps(item))
    return "".join(parts)


class _Text(str):
    """What is written as it is."""

    __slots__ = ()


def edited_json(data: bytes, rng: Rng) -> bytes:
    """A JSON file that a person has edited."""
    return text_of(edited(json.loads(data), rng)).encode()


def edited_line(data: bytes, rng: Rng) -> bytes:
    """A file of JSON lines, one of them edited, gone, twice, or in another place."""
    lines = data.decode().splitlines()
    at, other = (int(n) for n in rng.integers(0, len(lines), 2))
    how = int(rng.integers(5))
    if how == 0:
        lines[at], lines[other] = lines[other], lines[at]
    elif how == 1:
        lines.insert(other, lines[at])
    elif how == 2:
        return "\n".join(lines).encode()  # without the last newline
    else:
        lines[at] = text_of(edited(json.loads(lines[at]), rng))
    return ("\n".join(lines) + "\n").encode()


# -- safetensors files with a record --------------------------------------------------------------------------------


def parts_of(path: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the arrays of a file."""
    with safe_open(str(path), framework="numpy") as file:
        record = json.loads(file.metadata()["tn4nn"])
        return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def whole(record: Any, arrays: dict[str, np.ndarray]) -> bytes:
    """A file of these, whatever the record says of them."""
    ordered = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    return save(ordered, {"tn4nn": text_of(record)})


def changed_arrays(arrays: dict[str, np.ndarray], rng: Rng) -> dict[str, np.ndarray]:
    """Arrays of which one is lost, poisoned, of another kind, or in the place of another."""
    result = dict(arrays)
    names = [name for name, array in arrays.items() if array.size] or list(arrays)
    name, other = (names[int(n)] for n in rng.integers(0, len(names), 2))
    array = arrays[name]
    how = int(rng.integers(8))
    if how == 0:
        del result[name]
    elif how == 1:
        result[name], result[other] = arrays[other], array
    elif how == 2:
        result[name] = np.full(array.shape, np.nan, array.dtype if array.dtype.kind == "f" else np.float32)
    elif how == 3:
        result[name] = array.astype(np.float16)
    elif how == 4:
        result[name] = array.reshape(-1)
    elif how == 5:
        result[f"{name}x"] = result.pop(name)
    elif how == 6:
        result[name] = array * 2
    else:
        result[name] = array[:0] if array.ndim else array.reshape(1)
    return result


def forged(record: Any, arrays: dict[str, np.ndarray]) -> bytes:
    """A file of these with the digest that belongs to them: what somebody makes on purpose."""
    try:
        return whole(sealed(record, arrays), arrays)
    except Exception:  # nested too deep for a digest: without one
        return whole(record, arrays)
