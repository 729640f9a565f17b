"""The order in which a layer's network sees its neurons: a permutation, as data with a name."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from .._base.errors import ShapeError, TopologyError

Permutation = npt.NDArray[np.int64]

# Which option each kind needs, under the name it has in JSON and in `ordering`.
_OPTION: dict[str, str | None] = {
    "raster": None,
    "block": "block",
    "hilbert": None,
    "morton": None,
    "random": "seed",
    "custom": "permutation",
}
_SYNONYMS = {"row-major": "raster", "z-order": "morton"}
_MOST = 1 << 27  # neurons
_PLANE_ONLY = ("block", "hilbert", "morton")


@dataclasses.dataclass(frozen=True, slots=True)
class Ordering:
    """A named permutation of the neurons of a layer.

    `permutation[k]` is the raster index (row by row) of the neuron at position k, so a network
    behind the ordering sees `x[..., permutation]`. Make one with a class method or with `ordering`.

    Attributes:
        kind: "raster", "block", "hilbert", "morton", "random" or "custom".
        shape: (rows, columns), or (n,) where the kind needs no plane.
        block_shape: (height, width) of one block, for kind "block" only.
        seed: for kind "random" only.
        custom_permutation: for kind "custom" only.
        permutation: int64 of shape (size,), read-only; computed, never given.

    Raises:
        TopologyError: an unknown kind, or an option that the kind lacks or does not take.
        ShapeError: a shape, block or permutation that does not fit.

    Examples:
        >>> from tn4nn import Ordering
        >>> Ordering.block((2, 4), (2, 2)).permutation.tolist()
        [0, 1, 4, 5, 2, 3, 6, 7]
    """

    kind: str
    shape: tuple[int, ...]
    block_shape: tuple[int, int] | None = None
    seed: int | None = None
    custom_permutation: tuple[int, ...] | None = dataclasses.field(default=None, repr=False)
    permutation: Permutation = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in _OPTION:
            raise TopologyError(_unknown_kind(self.kind))
        given = {"block": self.block_shape, "seed": self.seed, "permutation": self.custom_permutation}
        _check_options(self.kind, {name for name, value in given.items() if value is not None})
        shape = _shape(self.shape)
        if self.kind in _PLANE_ONLY and len(shape) != 2:
            raise ShapeError(
                f"expected a shape (rows, columns) for the ordering {self.kind!r}; received {shape}. "
                f'What would do: two sizes whose product is {math.prod(shape)}, or the kind "raster", '
                f'"random" or "custom".'
            )
        if math.prod(shape) > _MOST:
            raise ShapeError(
                f"expected an ordering of at most {_MOST:,} neurons, whose permutation takes a gigabyte; received the "
                f"shape {shape}. What would do: no ordering."
            )
        put = object.__setattr__
        put(self, "shape", shape)
        if self.block_shape is not None:
            put(self, "block_shape", _block(self.block_shape, shape))
        if self.seed is not None:
            put(self, "seed", _seed(self.seed))
        if self.custom_permutation is not None:
            put(self, "custom_permutation", _custom(self.custom_permutation, math.prod(shape)))
        permutation = self._compute()
        permutation.flags.writeable = False
        put(self, "permutation", permutation)

    def _compute(self) -> Permutation:
        if self.block_shape is not None:
            (rows, columns), (height, width) = self.shape, self.block_shape
            blocks = np.arange(self.size).reshape(rows // height, height, columns // width, width)
            return blocks.transpose(0, 2, 1, 3).reshape(-1).astype(np.int64)
        if self.seed is not None:
            return np.random.default_rng(self.seed).permutation(self.size).astype(np.int64)
        if self.custom_permutation is not None:
            return np.array(self.custom_permutation, dtype=np.int64)
        if self.kind == "raster":
            return np.arange(self.size, dtype=np.int64)
        along = _hilbert_distance if self.kind == "hilbert" else _morton_distance
        # Sorting the points by their position on the curve is walking it and skipping the points outside,
        # without the walk over a square that may be much larger than a long thin rectangle.
        row, column = np.divmod(np.arange(self.size, dtype=np.int64), self.shape[1])
        return np.argsort(along(row, column, max(self.shape))).astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        # Neither copy nor pickle keeps an array read-only; a new Ordering does.
        return Ordering.from_json_dict, (self.to_json_dict(),)

    @classmethod
    def raster(cls, shape: int | Sequence[int]) -> Ordering:
        """Row by row, which is no permutation at all. `shape` is (rows, columns), (n,) or n."""
        return cls("raster", _shape(shape))

    @classmethod
    def block(cls, shape: Sequence[int], block: Sequence[int]) -> Ordering:
        """Block by block, row by row in each; the block (height, width) must divide (rows, columns)."""
        return cls("block", _shape(shape), block_shape=_pair(block))

    @classmethod
    def hilbert(cls, shape: Sequence[int]) -> Ordering:
        """Along the Hilbert curve of the enclosing power-of-2 square, without the points outside."""
        return cls("hilbert", _shape(shape))

    @classmethod
    def morton(cls, shape: Sequence[int]) -> Ordering:
        """Along the Morton (Z-order) curve of the enclosing power-of-2 square, without the points outside."""
        return cls("morton", _shape(shape))

    @classmethod
    def random(cls, shape: int | Sequence[int], seed: int) -> Ordering:
        """Shuffled by `numpy.random.default_rng(seed)`. `shape` is (rows, columns), (n,) or n."""
        return cls("random", _shape(shape), seed=seed)

    @classmethod
    def custom(cls, permutation: Iterable[SupportsIndex], shape: Sequence[int] | None = None) -> Ordering:
        """Your own: each of 0..n-1 once. `shape` is (n,) unless given."""
        own = _integers(permutation)
        return cls("custom", (len(own),) if shape is None else _shape(shape), custom_permutation=own)

    @property
    def size(self) -> int:
        """The number of neurons."""
        return math.prod(self.shape)

    @property
    def inverse(self) -> Permutation:
        """Where each neuron went, int64 of shape (size,), read-only: `permutation[inverse[i]] == i`."""
        inverse = np.empty_like(self.permutation)
        inverse[self.permutation] = np.arange(self.size)
        inverse.flags.writeable = False
        return inverse

    def to_json_dict(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes and `from_json_dict` reads."""
        data: dict[str, Any] = {"kind": self.kind, "shape": list(self.shape)}
        if self.block_shape is not None:
            data["block"] = list(self.block_shape)
        if self.seed is not None:
            data["seed"] = self.seed
        if self.custom_permutation is not None:
            data["permutation"] = list(self.custom_permutation)
        return data

    @classmethod
    def from_json_dict(cls, data: Mapping[str, Any]) -> Ordering:
        """The ordering that `to_json_dict` wrote.

        Raises:
            TopologyError: the data has no kind or shape, or a key that the kind does not take.
            ShapeError: a shape, block or permutation that does not fit.
        """
        if not isinstance(data, Mapping) or not {"kind", "shape"} <= data.keys():
            raise TopologyError(
                f'expected an ordering as an object with the keys "kind" and "shape"; '
                f"received {data!r:.200}. What would do: the result of Ordering.to_json_dict()."
            )
        options = {str(key): value for key, value in data.items() if key not in ("kind", "shape")}
        return ordering(data["kind"], data["shape"], **options)


def ordering(kind: str, shape: int | Sequence[int], **options: Any) -> Ordering:
    """An ordering by the name of its kind.

    Args:
        kind: "raster" (or "row-major"), "block", "hilbert", "morton" (or "z-order"), "random" or "custom".
        shape: (rows, columns); also (n,) or n for "raster", "random" and "custom".
        **options: `block=(height, width)` for "block", `seed=` for "random", `permutation=` for "custom".

    Raises:
        TopologyError: an unknown kind, or an option that the kind lacks or does not take.
        ShapeError: a shape, block or permutation that does not fit.

    Examples:
        >>> ordering("morton", (2, 3)).permutation.tolist()
        [0, 1, 3, 4, 2, 5]
    """
    name = _SYNONYMS.get(kind, kind) if isinstance(kind, str) else kind
    if name not in _OPTION:
        raise TopologyError(_unknown_kind(kind))
    _check_options(name, {key for key, value in options.items() if value is not None})
    if name == "block":
        return Ordering.block(_shape(shape), options["block"])
    if name == "random":
        return Ordering.random(shape, options["seed"])
    if name == "custom":
        return Ordering.custom(options["permutation"], _shape(shape))
    return Ordering(name, _shape(shape))


def ordering_of(given: object, features: int) -> Ordering | None:
    """What a layer of so many features takes as its ordering: an Ordering, the name of one of a square image, a
    permutation, or none."""
    if given is None:
        return None
    if isinstance(given, str):
        side = math.isqrt(features)
        if side * side != features:
            raise TopologyError(
                f"ordering={given!r} by name needs a square image, received {features} features: "
                "use tn.Ordering with the shape"
            )
        _check_name(given, side)
        found = ordering(given, (side, side))
    elif isinstance(given, Ordering):
        found = given
    else:
        found = Ordering.custom(given)  # type: ignore[arg-type]
    if found.size != features:
        raise TopologyError(f"the ordering permutes {found.size} neurons, the layer has {features}")
    return found


def _check_name(kind: str, side: int) -> None:
    """An error for a kind that needs more than its name."""
    calls = {
        "block": f"tn.Ordering.block(({side}, {side}), (2, 2))",
        "random": f"tn.Ordering.random({side * side}, seed=0)",
        "custom": "the permutation itself",
    }
    if kind in calls:
        raise TopologyError(f"ordering={kind!r} needs {_OPTION[kind]}=, which a name does not say: pass {calls[kind]}")


def _unknown_kind(kind: object) -> str:
    near = difflib.get_close_matches(str(kind), [*_OPTION, *_SYNONYMS], n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"expected the kind of an ordering, one of {', '.join(map(repr, _OPTION))}; received {kind!r}.{hint}"


def _check_options(kind: str, given: set[str]) -> None:
    needed = {_OPTION[kind]} - {None}
    if given != needed:
        takes = f"exactly the option {_OPTION[kind]}=" if needed else "no option"
        got = ", ".join(f"{name}=" for name in sorted(given)) or "none"
        example = {"block": "block=(4, 4)", "random": "seed=0", "custom": "permutation=[1, 0, ...]"}.get(kind)
        would_do = f"give {example}" if example else f"drop {got}"
        raise TopologyError(f"expected {takes} for the ordering {kind!r}; received {got}. What would do: {would_do}.")


def _integers(values: object) -> tuple[int, ...]:
    """Whole numbers as a tuple; True, 1.0 and "1" are refused."""
    try:
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise TypeError
        items = list(values)
        if any(isinstance(item, (bool, np.bool_)) for item in items):
            raise TypeError
        return tuple(operator.index(item) for item in items)
    except TypeError:
        raise ShapeError(
            f"expected a sequence of whole numbers; received {values!r:.200}. What would do: for example (28, 28)."
        ) from None


def _shape(shape: object) -> tuple[int, ...]:
    # A bare n means (n,).
    sizes = _integers((shape,)) if isinstance(shape, (int, np.integer)) else _integers(shape)
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ShapeError(
            f"expected the shape of a layer's neurons, (rows, columns) or (n,), each at least 1; "
            f"received {sizes}. What would do: for example (28, 28) for a picture of 784 neurons."
        )
    return sizes


def _pair(block: object) -> tuple[int, int]:
    sizes = _integers(block)
    if len(sizes) != 2 or min(sizes) < 1:
        raise ShapeError(
            f"expected a block (height, width), each at least 1; received {sizes}. What would do: for example (4, 4)."
        )
    return sizes[0], sizes[1]


def _block(block: object, shape: tuple[int, ...]) -> tuple[int, int]:
    height, width = _pair(block)
    rows, columns = shape
    if rows % height or columns % width:
        heights = [size for size in range(1, rows + 1) if rows % size == 0]
        widths = [size for size in range(1, columns + 1) if columns % size == 0]
        raise ShapeError(
            f"expected a block that divides the shape {shape}; received {(height, width)}. "
            f"What would do: a height in {heights} and a width in {widths}."
        )
    return height, width


def _seed(seed: object) -> int:
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        raise TopologyError(
            f"expected a seed that is a whole number from 0 on; received {seed!r}. What would do: seed=0."
        )
    return int(seed)


def _custom(permutation: object, size: int) -> tuple[int, ...]:
    own = _integers(permutation)
    ascending = sorted(own)
    if ascending == list(range(size)):
        return own
    outside = [value for value in (*ascending[:1], *ascending[-1:]) if not 0 <= value < size]
    if len(own) != size:
        found = f"{len(own)} numbers"
    elif outside:
        found = f"the number {outside[0]}"
    else:
        twice = next(a for a, b in itertools.pairwise(ascending) if a == b)
        found = f"the number {twice} more than once"
    raise ShapeError(
        f"expected a permutation: each of 0..{size - 1} exactly once; received {found}. "
        f"What would do: a list of {size} different raster indices, for example list(range({size}))."
    )


def _morton_distance(row: Permutation, column: Permutation, side: int) -> Permutation:
    """The position of each point on the Z-order curve: the bits of row and column, interleaved."""
    position = np.zeros_like(row)
    for bit in range((side - 1).bit_length()):
        position |= ((row >> bit) & 1) << (2 * bit + 1) | ((column >> bit) & 1) << (2 * bit)
    return position


def _hilbert_distance(row: Permutation, column: Permutation, side: int) -> Permutation:
    """The position of each point on the Hilbert curve that goes from the top left to the top right corner."""
    position = np.zeros_like(row)
    x, y = column, row
    for bit in reversed(range((side - 1).bit_length())):
        half = 1 << bit
        right, low = (x >> bit) & 1, (y >> bit) & 1
        position += half * half * ((3 * right) ^ low)
        # Into the quadrant's own frame, in which its part of the curve is the whole curve.
        x, y = x & (half - 1), y & (half - 1)
        mirrored = (low == 0) & (right == 1)
        x, y = np.where(mirrored, half - 1 - x, x), np.where(mirrored, half - 1 - y, y)
        x, y = np.where(low == 0, y, x), np.where(low == 0, x, y)
    return position
