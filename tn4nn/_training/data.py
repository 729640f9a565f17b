"""Data sets as four checked arrays: the embedded digits, MNIST, Fashion-MNIST, and your own .npz files."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.errors import DataError
from .._base.reading import read_npz
from .published import SETS, published_arrays

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

_SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A training and a test split, checked when it is made.

    Arrays of other numeric dtypes are converted; values are not scaled.

    Attributes:
        name: for tables and files.
        x_train: float32, (train rows, features), finite.
        y_train: int64, (train rows,), each in 0..classes-1.
        x_test: float32, (test rows, features), finite.
        y_test: int64, (test rows,), each in 0..classes-1.
        classes: the number of classes, at least 2.
        image_shape: the shape of one row before it was flattened; its product is `features`.

    Raises:
        DataError: an empty or misshapen array, a NaN or an infinity, a label outside 0..classes-1.

    Examples:
        >>> import numpy as np
        >>> from tn4nn import Dataset
        >>> Dataset("xor", np.eye(2), np.array([0, 1]), np.eye(2), np.array([0, 1]), 2, (2,))
        Dataset('xor': 2 train + 2 test rows of 2 features (2), 2 classes)
    """

    name: str
    x_train: Floats
    y_train: Labels
    x_test: Floats
    y_test: Labels
    classes: int
    image_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if isinstance(self.classes, bool) or not isinstance(self.classes, (int, np.integer)) or self.classes < 2:
            raise DataError(f"expected at least 2 classes; received classes={self.classes!r}.")
        put = object.__setattr__
        put(self, "classes", int(self.classes))
        put(self, "image_shape", tuple(int(size) for size in self.image_shape))
        for split in ("train", "test"):
            x = _checked_x(getattr(self, f"x_{split}"), f"x_{split}")
            y = _checked_y(getattr(self, f"y_{split}"), f"y_{split}", self.classes)
            if x.ndim != 2:
                raise DataError(f"expected x_{split} of shape (rows, features); received shape {x.shape}.")
            if math.prod(self.image_shape) != x.shape[1]:
                raise DataError(
                    f"expected rows of {math.prod(self.image_shape)} features in x_{split}, as the image "
                    f"shape {self.image_shape} has; received rows of {x.shape[1]}."
                )
            _check_lengths(x, y, f"x_{split}", f"y_{split}")
            put(self, f"x_{split}", x)
            put(self, f"y_{split}", y)

    @property
    def features(self) -> int:
        """The number of features of a row."""
        return int(self.x_train.shape[1])

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return (
            f"Dataset({self.name!r}: {len(self.x_train)} train + {len(self.x_test)} test rows "
            f"of {self.features} features ({shape}), {self.classes} classes)"
        )

    def padded(self, side: int) -> Dataset:
        """The same pictures in the middle of a square of zeros, for instance MNIST's 28x28 in 32x32.

        Args:
            side: rows and columns of the new pictures, in pixels.

        Raises:
            DataError: the rows are not two-dimensional pictures, or are larger than the square.
        """
        if len(self.image_shape) != 2 or max(self.image_shape) > side:
            raise DataError(
                f"expected pictures of at most {side}x{side} pixels; received rows of shape "
                f"{self.image_shape}. What would do: a larger side, or a data set of two-dimensional pictures."
            )
        before = [(side - size) // 2 for size in self.image_shape]
        margins = [(0, 0)] + [
            (start, side - size - start) for start, size in zip(before, self.image_shape, strict=True)
        ]

        def pad(x: Floats) -> Floats:
            return np.pad(x.reshape(-1, *self.image_shape), margins).reshape(len(x), side * side)

        return dataclasses.replace(self, x_train=pad(self.x_train), x_test=pad(self.x_test), image_shape=(side, side))

    def subset(self, n_train: int, n_test: int, seed: int = 0) -> Dataset:
        """Fewer rows, drawn without replacement, the same ones for the same seed.

        Args:
            n_train: rows of the training split.
            n_test: rows of the test split.
            seed: of the draw.

        Raises:
            DataError: more rows than there are, or fewer than one.
        """
        rng = np.random.default_rng(seed)
        chosen = []
        for split, wanted, there in (
            ("train", n_train, len(self.x_train)),
            ("test", n_test, len(self.x_test)),
        ):
            if not 1 <= wanted <= there:
                raise DataError(
                    f"expected n_{split} from 1 to {there}, the {split} rows of {self.name!r}; received {wanted}."
                )
            chosen.append(rng.permutation(there)[:wanted])
        train, test = chosen
        return dataclasses.replace(
            self,
            x_train=self.x_train[train],
            y_train=self.y_train[train],
            x_test=self.x_test[test],
            y_test=self.y_test[test],
        )


def load(
    name_or_path: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> Dataset:
    """A data set by name, or from an .npz file.

    "digits" (1797 pictures of 8x8) is part of tn4nn. "mnist" and "fashion-mnist" are the four original files, scaled
    to [0, 1]. They are looked for in `folder`, in the folder that the environment variable TN4NN_DATA names, and in the
    subfolder data of the user's cache ($TN4NN_CACHE, else the system's folder for caches: on Linux
    $XDG_CACHE_HOME/tn4nn or ~/.cache/tn4nn); in each of them first in a subfolder of the set's name. The checksums are
    compared with the published ones.

    A path to an .npz file holds the arrays x_train, y_train, x_test, y_test, or x and y, of which a fixed
    fifth becomes the test split, class by class. Its values are taken as they are, not scaled; rows of more
    than one axis are flattened, and their shape becomes `image_shape`.

    Args:
        name_or_path: "digits", "mnist", "fashion-mnist", or the path of an .npz file.
        folder: where to look first, and where a download goes instead of the cache.
        download: whether files that are nowhere may be fetched from the public mirrors.

    Returns:
        The data set, float32 and flattened.

    Raises:
        DataError: no such set, files that are absent or damaged, or values that cannot be trained on.

    Examples:
        >>> from tn4nn import load_data as load
        >>> load("digits")
        Dataset('digits': 1438 train + 359 test rows of 64 features (8x8), 10 classes)
    """
    text = os.fspath(name_or_path)
    name = text.lower().replace("_", "-")
    if name == "digits":
        return _digits()
    if name in SETS:
        return _published(name, Path(folder) if folder is not None else None, download)
    path = Path(text)
    if path.suffix.lower() == ".npz" or path.exists():
        return _npz(path)
    names = ["digits", *SETS]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise DataError(
        f"expected a data set, {', '.join(map(repr, names))}, or the path of an .npz file; "
        f"received {text!r}, which is neither a known name nor an existing file.{hint}"
    )


# ---------------------------------------------------------------------------------------------- checks


def _checked_x(values: Any, label: str) -> Floats:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise DataError(f"expected real numbers in {label}; received the dtype {array.dtype}.")
    if array.ndim < 2 or array.size == 0:
        raise DataError(
            f"expected {label} with at least one row and one feature, shape (rows, features); "
            f"received shape {array.shape}."
        )
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(array, dtype=np.float32)
    # A sum is finite only where every value is, and needs no mask of the size of the data.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(x.sum(dtype=np.float64))
    if suspicious:
        bad = ~np.isfinite(x.reshape(len(x), -1))
        if bad.any():
            row = int(bad.any(axis=1).argmax())
            raise DataError(
                f"expected finite float32 values in {label}; received {int(bad.sum())} that are NaN or "
                f"infinite, the first in row {row}. What would do: drop those rows or fill in the values."
            )
    return x


def _checked_y(values: Any, label: str, classes: int | None) -> Labels:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"expected {label} of shape (rows,), at least one row; received shape {array.shape}.")
    if array.dtype.kind not in "fiub":
        raise DataError(f"expected whole numbers in {label}; received the dtype {array.dtype}.")
    top = math.inf if classes is None else classes - 1
    # Before the conversion: a cast would turn 1.5 into 1, and NaN or 2**63 into anything.
    bad = ~((array >= 0) & (array <= min(top, 2**53)) & (array == np.floor(array)))
    if bad.any():
        row = int(bad.argmax())
        limit = "from 0 on" if classes is None else f"in 0..{classes - 1}"
        raise DataError(
            f"expected whole-number labels {limit} in {label}; received {array[row].item()!r} in row {row} "
            f"({int(bad.sum())} such rows). What would do: number the classes from 0 without gaps."
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def _check_lengths(x: npt.NDArray[Any], y: npt.NDArray[Any], x_label: str, y_label: str) -> None:
    if len(x) != len(y):
        raise DataError(f"expected one label a row; received {len(x)} rows in {x_label}, {len(y)} in {y_label}.")


# -------------------------------------------------------------------------------------- digits, splits


def _split(name: str, x: Floats, y: Labels, classes: int, image_shape: tuple[int, ...]) -> Dataset:
    """A fifth for the test, the same rows always, every class within one row of its share."""
    if len(x) < 2:
        raise DataError(f"expected at least 2 rows to split in {name!r}; received {len(x)}.")
    rng = np.random.default_rng(_SPLIT_SEED)
    shuffled = rng.permutation(len(x))
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    in_test = np.zeros(len(x), dtype=bool)
    in_test[by_class[min(2, len(x) - 1) :: 5]] = True
    # Shuffled, because files are often sorted by class and a trainer may cut its validation rows off the end.
    train, test = shuffled[~in_test[shuffled]], shuffled[in_test[shuffled]]
    return Dataset(name, x[train], y[train], x[test], y[test], classes, image_shape)


def _digits() -> Dataset:
    with (files("tn4nn") / "digits" / "digits.npz").open("rb") as file, np.load(file) as archive:
        x, y = archive["x"], archive["y"]
    return _split("digits", np.asarray(x / 16, dtype=np.float32), np.asarray(y, dtype=np.int64), 10, (8, 8))


def _published(name: str, folder: Path | None, download: bool) -> Dataset:
    x_train, y_train, x_test, y_test = published_arrays(name, folder, download)
    return Dataset(
        name,
        x_train.reshape(len(x_train), -1).astype(np.float32) / np.float32(255),
        y_train.astype(np.int64),
        x_test.reshape(len(x_test), -1).astype(np.float32) / np.float32(255),
        y_test.astype(np.int64),
        10,
        x_train.shape[1:],
    )


# ------------------------------------------------------------------------------------------ .npz files


def _npz(path: Path) -> Dataset:
    arrays = _read_npz(path)
    full, whole = ("x_train", "y_train", "x_test", "y_test"), ("x", "y")
    keys = full if all(key in arrays for key in full) else whole
    if not all(key in arrays for key in keys):
        found = ", ".join(sorted(arrays)) or "no array at all"
        raise DataError(
            f"expected the arrays x_train, y_train, x_test and y_test, or x and y, in {str(path)!r}; "
            f"received {found}. What would do: numpy.savez(path, x=..., y=...)."
        )
    xs = [_checked_x(arrays[key], key) for key in keys[::2]]
    ys = [_checked_y(arrays[key], key, None) for key in keys[1::2]]
    for x, y, x_label, y_label in zip(xs, ys, keys[::2], keys[1::2], strict=True):
        _check_lengths(x, y, x_label, y_label)
    image_shape = tuple(xs[0].shape[1:])
    if xs[-1].shape[1:] != image_shape:
        raise DataError(
            f"expected x_train and x_test with rows of one shape in {str(path)!r}; "
            f"received {image_shape} and {tuple(xs[-1].shape[1:])}."
        )
    classes = max(2, 1 + max(int(y.max()) for y in ys))
    rows = sum(map(len, ys))
    if classes > max(2, rows):
        raise DataError(
            f"expected labels 0..classes-1 in {str(path)!r}; received the label {classes - 1} with "
            f"only {rows} rows. What would do: number the classes from 0 without gaps."
        )
    flat = [x.reshape(len(x), -1) for x in xs]
    if keys == whole:
        return _split(path.stem, flat[0], ys[0], classes, image_shape)
    return Dataset(path.stem, flat[0], ys[0], flat[1], ys[1], classes, image_shape)


def _read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    if not path.exists():
        raise DataError(f"expected an .npz file at {str(path)!r}; received a path where no file is.")
    wanted = {"x_train", "y_train", "x_test", "y_test", "x", "y"}
    try:
        # A name alone is enough to say what was found: what is not asked for is not read.
        return {key: np.empty(0) if a is None else a for key, a in read_npz(path, wanted).items()}
    except (OSError, ValueError) as error:
        raise DataError(
            f"expected an .npz file of plain arrays, as numpy.savez writes it, at {str(path)!r}; "
            f"received one that cannot be read ({error}). "
            f"What would do: write it again, without object arrays."
        ) from error
