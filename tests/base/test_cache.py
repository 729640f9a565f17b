"""The store of plans on disk, and what earlier versions left there."""

import json

import pytest

import tn4nn as tn
from tn4nn._base.cache import PlanCache, plans
from tn4nn._base.records import sealed

RING = tn.ring((4, 4, 4), (4, 4, 4)).with_rank(4)


@pytest.fixture
def forget(tmp_path, monkeypatch):
    """A store of its own for the test, and a function that forgets what is in memory, as the next process does."""
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))

    def again():
        monkeypatch.setattr(plans, "_memory", {})

    again()
    return again


def _as_before(content):
    """An entry as it was written before entries had a schema; its value is of no use."""
    return json.dumps({"key": json.loads(content)["key"], "value": {"order": "left", "path": [[0, 1]], "cost": [1]}})


@pytest.mark.parametrize("runtime", ["program", "native"])
def test_a_folder_full_of_old_entries_does_no_harm(runtime, forget, recwarn):
    p = tn.plan(RING, 64, "train", runtime=runtime)
    whole = {path: path.read_bytes() for path in plans.folder.iterdir()}
    assert whole
    for path, content in whole.items():
        path.write_text(_as_before(content))
    others = [plans.folder / f"{number:016x}.json" for number in range(50)]
    for path in others:
        path.write_text(json.dumps({"key": path.stem, "value": {"order": "left"}}))
    forget()
    again = tn.plan(RING, 64, "train", runtime=runtime)
    assert (again.order, again.cost) == (p.order, p.cost)
    assert {path: path.read_bytes() for path in whole} == whole, "they are written again"
    assert all(path.exists() for path in others)
    assert not recwarn.list


def test_an_entry_of_another_schema_counts_as_absent(tmp_path, recwarn):
    store = PlanCache(tmp_path)
    store.put("a", {"x": 1})
    path = tmp_path / "a.json"
    entry = json.loads(path.read_bytes())
    assert entry == sealed({"schema": 3, "key": "a", "value": {"x": 1}})
    assert PlanCache(tmp_path).get("a") == {"x": 1}
    for schema in (1, 2, 4):
        path.write_text(json.dumps({**entry, "schema": schema}))
        assert PlanCache(tmp_path).get("a") is None
    path.write_text(_as_before(json.dumps(entry)))
    assert PlanCache(tmp_path).get("a") is None
    assert not recwarn.list
