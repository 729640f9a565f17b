"""The ten tasks of a newcomer, pasted from their page into an empty folder."""

import importlib.util
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "tasks.py"
if not SCRIPT.is_file():  # the wheel, tested from outside the tree
    pytest.skip("docs/ is not part of the wheel", allow_module_level=True)

_spec = importlib.util.spec_from_file_location("tasks", SCRIPT)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)
TASKS = script.tasks()


@pytest.mark.slow  # `.ci/run` does them by the script
@pytest.mark.parametrize("title", TASKS)
def test_task(title, tmp_path):
    pytest.importorskip("torch")
    for _, _, text in TASKS[title]:
        for library in re.findall(r"^(?:import|from) (transformers|equinox|optax)\b", text, flags=re.M):
            pytest.importorskip(library)
    done = script.do(TASKS[title], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_ten_and_each_runs_something():
    assert len(TASKS) == 10
    assert all(any(language == "sh" for language, _, _ in blocks) for blocks in TASKS.values())


def test_a_command_that_fails_fails_the_task(tmp_path):
    done = script.do([("python", "a.py", "raise SystemExit(3)\n"), ("sh", "", "python a.py\necho on\n")], tmp_path)
    assert done.returncode == 3
    assert "on" not in done.stdout
    with pytest.raises(ValueError, match="has no title"):
        script.do([("python", "", "1 / 0")], tmp_path)
