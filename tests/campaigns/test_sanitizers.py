"""The C runtime under sanitizers: a few recipes here, the whole campaign by its command."""

import json
import shutil
import subprocess

import pytest
from campaigns import sanitizers
from helpers import TESTS

RESULTS = TESTS / "campaigns" / "results"


def skip_without(sanitizer):
    compiler = shutil.which("gcc")
    name = sanitizers.LIBRARIES[sanitizer]
    found = compiler and subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=False
    ).stdout.strip()  # fmt: skip
    if not found or not found.startswith("/"):
        pytest.skip(f"gcc's {name} is not on this machine")


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", sorted(sanitizers.FLAGS))
def test_random_recipes_are_right_and_nothing_is_reported(sanitizer):
    skip_without(sanitizer)
    found = sanitizers.campaign(40, sanitizer, seed=10**6)
    assert (found["right"], found["reports"]) == (40, [])


@pytest.mark.thorough
def test_the_recipes_are_right_without_a_sanitizer_too(capfd):
    if shutil.which("gcc") is None:
        pytest.skip("there is no C compiler")
    sanitizers.recipes(range(40), [])
    assert capfd.readouterr().out == "40\n"


@pytest.mark.parametrize(("sanitizer", "least"), [("address", 2000), ("thread", 500)])
def test_the_counts_that_are_kept_are_of_a_whole_campaign_without_reports(sanitizer, least):
    kept = json.loads((RESULTS / f"sanitizers_{sanitizer}.json").read_text())
    assert kept["recipes"] == kept["right"] >= least
    assert kept["reports"] == []
    assert f"--sanitizer {sanitizer}" in kept["command"]
