"""The campaign of sweeps that are stopped: a short one here, the whole one with `-m slow`."""

import json
import subprocess
import sys

import pytest
from helpers import TESTS, environment

SAVED = TESTS / "campaigns" / "results" / "kills.json"

if sys.platform != "linux":
    pytest.skip("processes are counted in /proc", allow_module_level=True)


def campaign(folder, *arguments):
    command = [sys.executable, "-m", "tests.campaigns.kills", *arguments, "--json", str(folder / "found.json")]
    done = subprocess.run(command, cwd=TESTS.parent, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text()), done.stdout


@pytest.mark.thorough
def test_sweeps_end_when_they_are_told_to(tmp_path):
    pytest.importorskip("torch")
    found, said = campaign(tmp_path, "--count", "8", "--seed", "1", "--quick")
    assert found["failed"] == 0, said
    assert found["cases"] - found["over"] >= 6, said
    codes = {code for one in found["counts"].values() for code in one["codes"]}
    assert {"130", "143", "-9"} <= codes | {"0"}, said


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_sweeps_end_leave_nothing_running_and_go_on(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    found, said = campaign(tmp_path, "--count", "100")
    assert found["failed"] == 0, said


def test_the_counts_that_are_kept_are_of_a_whole_campaign():
    kept = json.loads(SAVED.read_text())
    # One sweep was through, and ended by the signal itself in the interpreter's last lines; see `_too_late`, which came
    # after it, and its test in tests/comparison/test_workers.py.
    assert [(one["failures"], one["code"], one["rows"]) for one in kept["failures"]] == [(["code"], -2, 4)]
    tries = {"SIGINT": 0, "others": 0}
    for kind, found in kept["counts"].items():
        tries["SIGINT" if kind.startswith("SIGINT") else "others"] += found["cases"] - found["over"]
    assert min(tries.values()) >= 40
    assert sum(tries.values()) + kept["over"] == kept["cases"]
