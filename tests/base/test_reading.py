"""Text and arrays of anybody's making: an error before memory is given to them."""

import doctest
import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from tn4nn._base import reading
from tn4nn._base.reading import DEPTH, json_of, read_npy, read_npz, toml_of


@pytest.mark.parametrize("parse", [json_of, toml_of])
@pytest.mark.parametrize("depth", [DEPTH + 2, 900, 10**5])
def test_what_is_nested_without_end_is_refused(parse, depth):
    text = "[" * depth + "]" * depth
    with pytest.raises(ValueError, match="nested more than 200 deep"):
        parse(text if parse is json_of else f"a = {text}")
    with pytest.raises(ValueError, match="nested more than 200 deep|Expecting"):
        json_of('{"a":' * depth)


def test_what_is_nested_as_deep_as_a_model_may_be_is_read():
    text = '{"a":[' * (DEPTH // 2) + "]}" * (DEPTH // 2)
    assert json_of(text) == json_of(text.encode())
    assert toml_of("a = " + "[" * 90 + "]" * 90)


def head(shape, dtype="<f8", version=(1, 0)):
    """The head of an array in numpy's format, whatever follows."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(text)) + text


HEADS = {
    "10^12 numbers": head("(1000000000000,)"),
    "10^6 x 10^6 numbers": head("(1000000, 1000000)") + bytes(100),
    "one number too few": head("(3,)") + bytes(16),
    "a negative size": head("(-1, 3)") + bytes(100),
    "more than 2^64 numbers": head("(4294967296, 4294967296, 4294967296)"),
    "texts of 10^9 letters": head("(1,)", "<U1000000000"),
    "texts without letters": head("(1000000000000,)", "<U0"),
    "objects": head("(1,)", "|O") + bytes(8),
    "fields": head("(1,)", [("a", "<f8")]) + bytes(4),
    "a later version": head("(1,)", version=(3, 0)) + bytes(8),
    "no shape": head("'x'") + bytes(8),
    "nested without end": head("(" * 5000 + ")" * 5000),
    "no head": b"\x93NUMPY\x01\x00\xff\xff",
    "nothing": b"",
    "text": b"hello",
    "a zip file": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("what", HEADS)
def test_an_array_that_promises_more_than_is_there_is_refused_before_memory_is_given(what, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(HEADS[what])
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", HEADS[what])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="."):
            read_npy(path)
        with pytest.raises(ValueError, match="."):
            read_npz(tmp_path / "a.npz", {"x"})
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("array", [np.zeros(()), np.zeros((0, 3)), np.arange(6.0).reshape(2, 3).T, np.array([True])])
def test_arrays_come_back(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", x=array, other=array)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), array)
    found = read_npz(tmp_path / "a.npz", {"x"})
    np.testing.assert_array_equal(found["x"], array)
    assert found["other"] is None


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        file.write(head(f"({1 << 23},)"))
        for _ in range(1 << 6):  # 64 MiB of zeros are enough where the limit is lower
            file.write(bytes(1 << 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_SMALL", 1 << 20)
        with pytest.raises(ValueError, match="bytes unpack to .*more than data can be packed"):
            read_npz(path, {"x"})
        assert read_npz(path, {"y"}) == {"x": None}  # what is not asked for is not unpacked


def test_a_directory_that_lies_about_sizes_is_noticed(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(1000.0))
    content = bytearray(buffer.getvalue())
    for size in (9, 10**9):
        at = content.rindex(b"PK\x01\x02") + 24  # the unpacked size in the directory
        content[at : at + 4] = struct.pack("<I", size)
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(ValueError, match="."):
            read_npz(tmp_path / "a.npz", {"x"})


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path):
    for read in (read_npy, lambda path: read_npz(path, {"x"})):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing")
        with pytest.raises(IsADirectoryError):
            read(tmp_path)


def test_the_examples_run():
    assert doctest.testmod(reading).failed == 0
