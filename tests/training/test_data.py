from __future__ import annotations

import dataclasses
import doctest
import errno
import gzip
import hashlib
import http.server
import io
import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import tn4nn._training.data as module
import tn4nn._training.published as published
from tn4nn import DataError
from tn4nn._training.data import Dataset, load


def small(**changes: Any) -> Dataset:
    fields: dict[str, Any] = {
        "name": "small",
        "x_train": np.arange(24, dtype=np.float32).reshape(6, 4),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": np.ones((2, 4)),
        "y_test": np.array([0, 2], dtype=np.uint8),
        "classes": 3,
        "image_shape": (2, 2),
    }
    return Dataset(**{**fields, **changes})


# -------------------------------------------------------------------------------------------- Dataset


def test_a_dataset_converts_and_describes_itself() -> None:
    data = small()
    assert data.x_test.dtype == np.float32
    assert data.y_test.dtype == np.int64
    assert data.features == 4
    assert repr(data) == "Dataset('small': 6 train + 2 test rows of 4 features (2x2), 3 classes)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]


X = np.zeros((6, 4))


def _with(value: float, *rows: int) -> Any:
    x = X.copy()
    x[list(rows), 1] = value
    return x


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"x_train": _with(np.nan, 3, 5)},
            ["x_train", "received 2 that are NaN", "row 3", "drop those rows"],
        ),
        ({"x_train": _with(-np.inf, 2)}, ["x_train", "received 1 that", "row 2"]),
        ({"x_train": _with(1e300, 4)}, ["float32", "row 4"]),
        ({"x_train": X.astype(complex)}, ["real numbers in x_train", "complex128"]),
        ({"x_train": np.array([["a"] * 4] * 6)}, ["real numbers", "<U1"]),
        ({"x_train": X[:0]}, ["at least one row", "(0, 4)"]),
        ({"x_train": X[:, :0]}, ["at least one row", "(6, 0)"]),
        ({"x_train": X[:, 0]}, ["(rows, features)", "(6,)"]),
        ({"x_train": X.reshape(6, 2, 2)}, ["(rows, features)", "(6, 2, 2)"]),
        ({"x_test": np.ones((2, 5))}, ["4 features in x_test", "received rows of 5"]),
        ({"x_train": X[:5]}, ["one label a row", "5 rows in x_train, 6 in y_train"]),
        ({"y_train": [0, 1, 2, 3, 1, 4]}, ["0..2 in y_train", "received 3 in row 3", "2 such rows"]),
        ({"y_train": [0, 1, 2, -1, 1, 2]}, ["received -1 in row 3"]),
        ({"y_train": [0, 1, 0.5, 0, 1, 2]}, ["received 0.5 in row 2"]),
        ({"y_test": [0, np.nan]}, ["y_test", "received nan in row 1"]),
        ({"y_test": np.array([0, 2**64 - 1], dtype=np.uint64)}, ["18446744073709551615 in row 1"]),
        ({"y_test": [[0], [1]]}, ["(rows,)", "(2, 1)"]),
        ({"y_test": ["a", "b"]}, ["whole numbers in y_test", "<U1"]),
        ({"classes": 1}, ["at least 2 classes", "classes=1"]),
        ({"image_shape": (3, 3)}, ["9 features", "(3, 3)", "received rows of 4"]),
    ],
)
def test_a_dataset_refuses_what_cannot_be_trained_on(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        small(**changes)
    for word in words:
        assert word in str(caught.value)


def test_values_that_only_add_up_to_infinity_are_fine() -> None:
    big = np.full((6, 4), np.finfo(np.float32).max)
    assert small(x_train=big).x_train.max() == np.finfo(np.float32).max


def test_padding_puts_the_picture_in_the_middle() -> None:
    padded = small().padded(5)
    assert padded.image_shape == (5, 5)
    picture = padded.x_train[1].reshape(5, 5)
    assert picture[1:3, 1:3].tolist() == [[4, 5], [6, 7]]
    assert picture.sum() == 4 + 5 + 6 + 7
    with pytest.raises(DataError, match="at most 1x1 pixels"):
        small().padded(1)
    with pytest.raises(DataError, match=r"received rows of shape \(4,\)"):
        small(image_shape=(4,)).padded(8)


def test_a_subset_is_the_same_for_the_same_seed() -> None:
    one, again, other = (small().subset(3, 1, seed=seed) for seed in (0, 0, 5))
    np.testing.assert_array_equal(one.x_train, again.x_train)
    assert one.x_train.shape == (3, 4)
    assert len({tuple(row) for row in one.x_train.tolist()}) == 3
    assert one.x_train.tolist() != other.x_train.tolist()
    rows = {tuple(x): y for x, y in zip(small().x_train.tolist(), small().y_train.tolist(), strict=True)}
    assert [rows[tuple(x)] for x in one.x_train.tolist()] == one.y_train.tolist()
    with pytest.raises(DataError, match="n_train from 1 to 6"):
        small().subset(7, 1, seed=0)
    with pytest.raises(DataError, match="n_test from 1 to 2"):
        small().subset(1, 0, seed=0)


# -------------------------------------------------------------------------------------------- digits


def test_digits_is_split_the_same_way_always() -> None:
    data = load("digits")
    assert (data.x_train.shape, data.x_test.shape) == ((1438, 64), (359, 64))
    assert (float(data.x_train.min()), float(data.x_train.max())) == (0.0, 1.0)
    shares = np.bincount(data.y_test) / np.bincount(np.concatenate([data.y_train, data.y_test]))
    assert shares == pytest.approx(np.full(10, 0.2), abs=0.01)
    # The first labels, so that a change of the split cannot go unseen: every reported accuracy rests on it.
    assert data.y_train[:12].tolist() == [6, 6, 6, 2, 5, 6, 2, 1, 1, 0, 4, 1]
    assert data.y_test[:12].tolist() == [6, 2, 9, 5, 3, 0, 4, 1, 7, 2, 9, 3]


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="the copy is compared with scikit-learn's")
    x, y = datasets.load_digits(return_X_y=True)
    data = load("digits")
    ours = sorted(map(bytes, np.concatenate([data.x_train, data.x_test])))
    assert ours == sorted(map(bytes, np.asarray(x / 16, dtype=np.float32)))
    assert sorted(np.concatenate([data.y_train, data.y_test])) == sorted(y)


def test_digits_need_nothing_but_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert load("digits").features == 64


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(DataError, match=r"received 'minst'.*Did you mean 'mnist'\?"):
        load("minst")


# -------------------------------------------------------------------------------------------- .npz


def test_npz_with_four_arrays_flattens_and_keeps_the_shape(tmp_path: Path) -> None:
    x = np.arange(48).reshape(4, 3, 4)
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=x, y_train=[0, 1, 2, 1], x_test=x[:2], y_test=[0.0, 3.0])
    data = load(path)
    assert (data.name, data.image_shape, data.classes, data.features) == ("mine", (3, 4), 4, 12)
    np.testing.assert_array_equal(data.x_train, x.reshape(4, 12))


def test_npz_with_two_arrays_is_split(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    x, y = np.arange(100.0).reshape(50, 2), np.repeat(np.arange(5), 10)
    np.savez_compressed(path, x=x, y=y)
    data, again = load(str(path)), load(path)
    assert np.bincount(data.y_test).tolist() == [2] * 5
    assert sorted(np.concatenate([data.x_train, data.x_test])[:, 0].tolist()) == x[:, 0].tolist()
    assert (data.x_train[:, 0] // 20 == data.y_train).all()
    assert len(set(data.y_train[-8:].tolist())) > 1
    np.testing.assert_array_equal(data.x_train, again.x_train)
    np.savez(path, x=x[:2], y=y[:2])
    assert len(load(path).x_test) == 1
    np.savez(path, x=x[:1], y=y[:1])
    with pytest.raises(DataError, match="at least 2 rows"):
        load(path)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": [1], "x": [[1.0]]}, ["x_train, y_train, x_test and y_test, or x and y", "received a, x"]),
        ({}, ["no array at all"]),
        ({"x": [[1.0], [np.nan]], "y": [0, 1]}, ["in x;", "row 1"]),
        ({"x": [[1.0], [2.0]], "y": [0, -2]}, ["from 0 on in y", "-2 in row 1"]),
        ({"x": [[1.0], [2.0]], "y": [0, 1, 1]}, ["2 rows in x, 3 in y"]),
        ({"x": [[1.0], [2.0]], "y": [0, 7]}, ["the label 7 with only 2 rows"]),
        ({"x": [[1.0], [2.0]], "y": [0, None]}, ["without object arrays"]),
        ({"x": [1.0, 2.0], "y": [0, 1]}, ["(rows, features)", "(2,)"]),
        (
            {"x_train": [[1.0]], "y_train": [0], "x_test": [[1.0, 2.0]], "y_test": [0]},
            ["rows of one shape", "(1,) and (2,)"],
        ),
    ],
)
def test_npz_that_cannot_be_used(tmp_path: Path, arrays: dict[str, Any], words: list[str]) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError) as caught:
        load(path)
    for word in words:
        assert word in str(caught.value)


def test_npz_that_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    with pytest.raises(DataError, match="where no file is"):
        load(path)
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(40, 9)), y=np.arange(40) % 2)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[200:260] = b"\0" * 60
    npy = io.BytesIO()
    np.save(npy, np.zeros(3))
    for content in (b"", b"not a zip file", whole[:300], bytes(damaged), npy.getvalue()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"expected an \.npz file of plain arrays"):
            load(path)
    with pytest.raises(DataError, match=r"expected an \.npz file of plain arrays"):
        load(tmp_path)


# -------------------------------------------------------------------------------------------- IDX


def idx(array: np.ndarray[Any, Any], *, magic: bytes | None = None) -> bytes:
    head = magic if magic is not None else bytes((0, 0, 8, array.ndim))
    raw = head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    return gzip.compress(raw, mtime=0)


RNG = np.random.default_rng(0)
FILES = {
    "train-images-idx3-ubyte.gz": idx(RNG.integers(0, 256, (20, 28, 28))),
    "train-labels-idx1-ubyte.gz": idx(np.arange(20) % 10),
    "t10k-images-idx3-ubyte.gz": idx(np.full((5, 28, 28), 255)),
    "t10k-labels-idx1-ubyte.gz": idx(np.arange(5)),
}


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves the files; `answers` replaces some, `asked` is what was asked for."""

    asked: ClassVar[list[str]] = []
    answers: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        blob = type(self).answers.get(self.path.rsplit("/", 1)[1])
        self.send_response(404 if blob is None else 200)
        self.end_headers()
        self.wfile.write(blob or b"")

    def log_message(self, *_: object) -> None:
        pass


def _use_mirror(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    md5 = {name: hashlib.md5(blob, usedforsecurity=False).hexdigest() for name, blob in FILES.items()}
    monkeypatch.setitem(published.SETS, "mnist", published.PublishedSet((address,), md5))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache's data folder, in a world with a tiny MNIST, an empty cache and a mirror that does not answer."""
    _use_mirror(monkeypatch, "http://127.0.0.1:1/mnist/")
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("TN4NN_DATA", raising=False)
    return tmp_path / "cache" / "data"


@pytest.fixture
def mirror(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Mirror]]:
    """A mirror that answers."""
    monkeypatch.setattr(Mirror, "asked", [])
    monkeypatch.setattr(Mirror, "answers", dict(FILES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        _use_mirror(monkeypatch, f"http://127.0.0.1:{server.server_port}/mnist/")
        yield Mirror
        server.shutdown()
        thread.join()


def put(folder: Path, **changes: bytes | None) -> Path:
    folder.mkdir(parents=True)
    for name, blob in {**FILES, **changes}.items():
        if blob is not None:
            (folder / name).write_bytes(blob)
    return folder


def check_tiny(data: Dataset) -> None:
    assert (data.name, data.classes, data.image_shape) == ("mnist", 10, (28, 28))
    assert (data.x_train.shape, data.x_test.shape) == ((20, 784), (5, 784))
    assert (data.x_test == 1).all()
    assert data.y_train.tolist() == [*range(10), *range(10)]


def test_every_place_is_looked_in(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in (tmp_path / "a", tmp_path / "b" / "mnist"):
        put(where)
    check_tiny(load("mnist", folder=tmp_path / "a", download=False))
    check_tiny(load("MNIST", folder=str(tmp_path / "b"), download=False))
    monkeypatch.setenv("TN4NN_DATA", str(tmp_path / "b"))
    check_tiny(load("mnist", folder=tmp_path / "nowhere", download=False))
    monkeypatch.delenv("TN4NN_DATA")
    put(tiny / "mnist")
    check_tiny(load("mnist", download=False))


def test_files_that_are_nowhere(tiny: Path, tmp_path: Path) -> None:
    put(tmp_path / "part", **{"t10k-labels-idx1-ubyte.gz": None})
    with pytest.raises(DataError) as caught:
        load("mnist", folder=tmp_path / "part")
    text = str(caught.value)
    for word in (
        "http://127.0.0.1:1/mnist/train-images-idx3-ubyte.gz",
        "the download failed",
        "refused",
        f"{tmp_path / 'part'} (without t10k-labels-idx1-ubyte.gz)",
        f"{tmp_path / 'part' / 'mnist'} (no such folder)",
        str(tiny / "mnist"),
        "TN4NN_DATA=FOLDER",
        "t10k-images-idx3-ubyte.gz",
        "'digits' needs no file",
    ):
        assert word in text
    with pytest.raises(DataError, match="download=False was asked"):
        load("mnist", download=False)
    assert not tiny.exists()


def test_a_damaged_file_is_named(tiny: Path) -> None:
    put(tiny / "mnist", **{"t10k-labels-idx1-ubyte.gz": b"damaged"})
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz.*md5 .*received md5 .*delete it"):
        load("mnist")


def test_the_files_of_another_set_are_passed_over(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "flat")
    with pytest.raises(DataError, match="the files of another data set"):
        load("fashion-mnist", folder=tmp_path / "flat", download=False)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_download_is_checked_and_stored(tiny: Path, mirror: type[Mirror]) -> None:
    check_tiny(load("mnist"))
    check_tiny(load("mnist"))
    assert mirror.asked == [f"/mnist/{name}" for name in FILES]
    assert files_in(tiny / "mnist") == sorted(FILES)


def test_a_download_goes_on_with_what_is_missing(tiny: Path, mirror: type[Mirror]) -> None:
    put(tiny / "mnist", **{"t10k-labels-idx1-ubyte.gz": None, "t10k-images-idx3-ubyte.gz": b"damaged"})
    check_tiny(load("mnist"))
    assert sorted(mirror.asked) == ["/mnist/t10k-images-idx3-ubyte.gz", "/mnist/t10k-labels-idx1-ubyte.gz"]


def test_a_download_goes_to_the_folder_that_was_named(tiny: Path, mirror: type[Mirror], tmp_path: Path) -> None:
    load("mnist", folder=tmp_path / "mine")
    assert files_in(tmp_path / "mine" / "mnist") == sorted(FILES)
    assert not tiny.exists()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"<html>sign in</html>", "hash of downloaded file.*does not match the known hash: expected"),
        (b"", "does not match the known hash"),
        (None, "404"),
        (bytes(1001), "received more than 1,000 bytes"),
    ],
)
def test_a_wrong_download_is_not_stored(
    tiny: Path, mirror: type[Mirror], monkeypatch: pytest.MonkeyPatch, answer: bytes | None, words: str
) -> None:
    monkeypatch.setattr(published, "_LARGEST_DOWNLOAD", 1000)
    first = next(iter(FILES))
    del mirror.answers[first]
    if answer is not None:
        mirror.answers[first] = answer
    with pytest.raises(DataError, match=f"the download failed.*{words}.*Looked in"):
        load("mnist")
    assert files_in(tiny) == []


def test_a_download_onto_a_folder_that_cannot_be_made(tiny: Path, mirror: type[Mirror]) -> None:
    tiny.parent.mkdir()
    tiny.write_bytes(b"")
    with pytest.raises(DataError, match=r"could not be stored in.*mnist.*TN4NN_CACHE"):
        load("mnist")


def test_a_download_onto_a_full_disk(tiny: Path, mirror: type[Mirror], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(published._Limited, "write", full)
    with pytest.raises(DataError, match=r"could not be stored.*No space left"):
        load("mnist")
    assert files_in(tiny) == []


IMAGES = np.zeros((2, 3, 4))


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (idx(IMAGES, magic=b"\0\0\x0d\x03"), ["magic 00000803", "received magic 00000d03"]),
        (idx(np.zeros(3)), ["received magic 00000801"]),
        (gzip.compress(b"", mtime=0), ["received magic nothing"]),
        (gzip.compress(b"\0\0\x08\x03\0\0\0\x02", mtime=0), ["3 sizes", "8 bytes"]),
        (gzip.compress(gzip.decompress(idx(IMAGES))[:-1], mtime=0), ["expected 24 values of shape (2, 3, 4)", "23"]),
        (gzip.compress(gzip.decompress(idx(IMAGES)) + b"!", mtime=0), ["received 25"]),
        (idx(IMAGES)[:-9], ["whole .gz file"]),
        (b"plain", ["whole .gz file"]),
    ],
)
def test_the_parser_refuses(blob: bytes, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        published._parse_idx(blob, 3, "pictures")
    for word in (*words, "pictures"):
        assert word in str(caught.value)


def test_the_parser_reads_big_endian_sizes() -> None:
    array = RNG.integers(0, 256, (300, 2, 5))
    np.testing.assert_array_equal(published._parse_idx(idx(array), 3, "pictures"), array)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "mean", "sd"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)])
def test_the_real_sets(name: str, mean: float, sd: float) -> None:
    if not os.environ.get("TN4NN_DATA"):
        pytest.skip("TN4NN_DATA names no folder with the IDX files")
    try:
        data = load(name, download=False)
    except DataError as error:
        if "Looked in" not in str(error):
            raise
        pytest.skip(f"TN4NN_DATA has no {name}")
    assert (data.x_train.shape, data.x_test.shape) == ((60_000, 784), (10_000, 784))
    assert data.x_train.mean(dtype=np.float64) == pytest.approx(mean, abs=1e-4)
    assert data.x_train.std(dtype=np.float64) == pytest.approx(sd, abs=1e-4)
    assert data.image_shape == (28, 28)


def test_the_examples_run() -> None:
    assert doctest.testmod(module).failed == 0
