"""Text tables, and records on disk."""

import doctest
import json

import numpy as np
import pytest

import tn4nn._base.records as records
import tn4nn._base.tables as tables
from tn4nn._base.errors import CheckpointError, DataError


def test_columns_are_as_wide_as_their_widest_cell():
    lines = tables.text_table(("a", "b", "long name"), [("1", "xx", ""), ("22", "", "3")], left=2).splitlines()
    assert lines == ["a   b   long name", "1   xx", "22" + 14 * " " + "3"]
    assert tables.text_table(("a", "b"), []) == "a  b"


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        tables.text_table(("a", "b"), [("1",)])


def test_arrays_and_their_record_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {"turned": np.arange(6.0).reshape(2, 3).T, "big-endian": np.arange(3, dtype=">i4"), "none": np.zeros(())}
    records.write_arrays(path, arrays, {"schema": 3, "x": [1]})
    record, found = records.read_arrays(path, 3, "a thing", "do that")
    assert record == {"schema": 3, "x": [1]}
    assert all(
        np.array_equal(found[name], array) and found[name].shape == array.shape for name, array in arrays.items()
    )
    with pytest.raises(CheckpointError, match=r"a\.safetensors has schema 3, written by .* reads schema 4: do that"):
        records.read_arrays(path, 4, "a thing", "do that")
    with pytest.raises(DataError, match="missing cannot be read .*: do that"):
        records.read_arrays(tmp_path / "missing", 3, "a thing", "do that", unreadable=DataError)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "received list"), ("{}", "has schema None"), ('{"schema": 2}', "has schema 2")],
)
def test_json_of_another_kind_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CheckpointError, match=f"{message}.*: do that"):
        records.read_record(tmp_path / "a.json", 1, "do that")


def test_json_nested_without_end_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[" * 10**5)
    with pytest.raises(CheckpointError, match=r"nested more than 200 deep.*: do that"):
        records.read_record(tmp_path / "a.json", 1, "do that")


def test_a_bit_that_changes_no_number_is_noticed_too(tmp_path):
    path = tmp_path / "file"
    records.write_arrays(path, {"a": np.zeros(2)}, {"schema": 1, "small": 1e-05})
    whole = path.read_bytes()
    assert records.read_arrays(path, 1, "a record", "write it anew")[0]["small"] == 1e-05
    assert b"1e-05" in whole
    path.write_bytes(whole.replace(b"1e-05", b"1E-05"))
    with pytest.raises(CheckpointError, match="was damaged or edited after it was written"):
        records.read_arrays(path, 1, "a record", "write it anew")


def test_json_comes_back(tmp_path):
    written = {"schema": 1, "x": np.float32(2), "y": (1, float("nan"), "ü")}
    records.write_record(tmp_path / "a.json", written)
    assert records.read_record(tmp_path / "a.json", 1, "do that") == {"schema": 1, "x": 2, "y": [1, None, "ü"]}
    records.write_json(tmp_path / "b.json", written)
    assert json.loads((tmp_path / "b.json").read_text()) == {"schema": 1, "x": 2, "y": [1, None, "ü"]}


@pytest.mark.parametrize(
    "change",
    [lambda r: r.update(x=3), lambda r: r.pop("digest"), lambda r: r.update(digest="0" * 64), lambda r: r.update(z=1)],
)
def test_a_record_that_was_edited_is_refused(tmp_path, change):
    path = tmp_path / "a.json"
    records.write_record(path, {"schema": 1, "x": 2})
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"a\.json was damaged or edited after it was written.*: do that"):
        records.read_record(path, 1, "do that")


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    deep = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(CheckpointError, match="cannot be stored: it is nested more than 200 deep"):
        records.write_record(tmp_path / "a.json", {"schema": 1, "x": deep})
    assert not list(tmp_path.iterdir())


def test_the_examples_run():
    assert doctest.testmod(tables).failed == 0
    assert doctest.testmod(records).failed == 0
