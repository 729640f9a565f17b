"""Every tutorial runs from its first cell to its last, as a script: no Jupyter is needed for that."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pages" / "tutorials"
if not FOLDER.is_dir():  # the wheel, tested from outside the tree
    pytest.skip("docs/ is not part of the wheel", allow_module_level=True)

TUTORIALS = sorted(FOLDER.glob("*.py"))
NEEDS = {"jax_models": ("jax", "equinox", "optax", "matplotlib")}
THOROUGH = ("own_topology", "plans_and_costs")  # `.ci/run` executes all of them when it builds the site


def run(script):
    """What the script wrote to stderr, and whether it failed. Warnings are errors, as in all tests."""
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-W", "error", str(script)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=script.parent)
    return found.returncode, found.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(s, marks=pytest.mark.thorough if s.stem in THOROUGH else pytest.mark.slow, id=s.stem)
        for s in TUTORIALS
    ],
)
def test_a_tutorial_runs(script):
    for library in NEEDS.get(script.stem, ("torch", "matplotlib")):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    code, errors = run(script)
    assert code == 0, errors[-2000:]


def test_a_cell_that_fails_is_seen(tmp_path):
    script = tmp_path / "tutorial.py"
    script.write_text("# %%\nimport warnings\n\nwarnings.warn('old', DeprecationWarning, stacklevel=1)\n")
    code, errors = run(script)
    assert code != 0
    assert "DeprecationWarning: old" in errors


def test_every_tutorial_is_listed():
    page = (FOLDER / "index.md").read_text()
    navigation = (ROOT / "docs" / "mkdocs.yml").read_text()
    assert TUTORIALS
    for script in TUTORIALS:
        assert f"({script.name})" in page
        assert f"tutorials/{script.name}\n" in navigation


def test_what_a_cell_gives_becomes_text_and_pictures():
    pytest.importorskip("mkdocs")
    from types import SimpleNamespace

    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)

    class Output(SimpleNamespace):
        def get(self, name, default):
            return getattr(self, name, default)

    outputs = [
        Output(output_type="stream", text="\x1b[1mone\x1b[0m\n"),
        Output(output_type="execute_result", data={"text/html": "<pre>a &lt; b</pre><svg/>", "text/plain": "no"}),
        Output(output_type="display_data", data={"image/svg+xml": "<svg></svg>", "text/plain": "no"}),
    ]
    beside = {}
    text, first, second = notebooks._outputs(outputs, "page", beside)
    assert text == "``` {.text .output}\none\na < b\n```"
    assert "(page-0.svg)" in first
    assert "(page-1.svg)" in second
    assert beside == {"page-0.svg": b"<svg/>", "page-1.svg": b"<svg></svg>"}
