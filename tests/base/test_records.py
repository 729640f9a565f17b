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


def test_json_comes_back(tmp_path):
    records.write_json(tmp_path / "a.json", {"schema": 1, "x": np.float32(2)})
    assert records.read_record(tmp_path / "a.json", 1, "do that") == {"schema": 1, "x": 2}
    assert json.loads((tmp_path / "a.json").read_text()) == {"schema": 1, "x": 2}


def test_the_examples_run():
    assert doctest.testmod(tables).failed == 0
    assert doctest.testmod(records).failed == 0
