"""The campaign of changed files: a short one here, the whole one with `-m slow`."""

import json
import shutil
import subprocess
import sys

import pytest
from campaigns import changes
from campaigns.cold_starts import cold_starts
from helpers import TESTS, environment

SAVED = TESTS / "campaigns" / "results" / "mutations.json"


def campaign(count, folder, seed=0):
    """In a process of its own: it has a cache, an alarm and a store of plans of its own."""
    command = [sys.executable, "-m", "tests.campaigns.mutations", "--count", str(count), "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--json", str(folder / "found.json")], cwd=TESTS.parent, env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr[-3000:]
    assert (folder / "found.json").exists(), done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text()), done.stdout


@pytest.mark.thorough
def test_every_changed_file_is_right_or_refused(tmp_path):
    pytest.importorskip("torch")
    found, said = campaign(260, tmp_path, seed=1)
    assert found["failed"] == 0, said
    assert found["cases"] >= 260
    assert len(found["counts"]) >= 18


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_thousand_changed_files_are_right_or_refused(tmp_path):
    pytest.importorskip("torch")
    found, said = campaign(3000, tmp_path)
    assert found["failed"] == 0, said


def test_the_counts_that_are_kept_are_of_a_whole_campaign_without_failures():
    kept = json.loads(SAVED.read_text())
    assert kept["cases"] >= 3000
    assert kept["failed"] == 0
    assert sum(sum(found.values()) for found in kept["counts"].values()) == kept["cases"]
    assert "--count 3000" in kept["command"]


def test_the_changes_change_something():
    rng = changes.np.random.default_rng(0)
    data = bytes(range(1, 256)) * 4
    for name, change in changes.BYTES.items():
        assert any(change(data, rng) != data for _ in range(20)), name
    record = {"a": [1, {"b": 2}], "c": "x"}
    assert sum(changes.text_of(changes.edited(record, rng)) != changes.text_of(record) for _ in range(50)) > 40
    assert json.loads(changes.text_of(record)) == record


@pytest.mark.slow
def test_of_six_cold_starts_one_compiles():
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler on this machine")
    found = cold_starts(6)
    assert (found["compilations"], found["failed"], found["results"]) == (1, 0, 1), found
    assert found["files"] == [".lock", ".sha256", ".so"]
