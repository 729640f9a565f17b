"""The rooms of the core: every import points down, and no files import each other in a circle."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")
networkx = pytest.importorskip("networkx")
grimp = pytest.importorskip("grimp")

ROOT = Path(__file__).parents[2]
PACKAGES = {"tn4nn": "tn4nn", "tn4nn_torch": "backends/tn4nn_torch", "tn4nn_jax": "backends/tn4nn_jax"}

if not (ROOT / "tn4nn").is_dir():  # the wheel, tested from outside the tree
    pytest.skip("the contracts are about the source tree", allow_module_level=True)

# Fluent methods that import what they return, inside one room and inside a function: (importer, imported).
LATE = {
    ("tn4nn._graph.topology", "tn4nn._graph.network"),  # Topology.with_rank
    ("tn4nn._graph.topology", "tn4nn._graph.budget"),  # Topology.with_budget
    ("tn4nn._graph.topology", "tn4nn._graph.rank_problem"),  # the largest useful ranks, for with_rank(clip=True)
    ("tn4nn._graph.network", "tn4nn._graph.init"),  # Network.init
    ("tn4nn._graph.network", "tn4nn._graph.contract"),  # Network.to_dense
    ("tn4nn._model.layers.base", "tn4nn._model.backend"),  # Layer.build
    # The one arrow that points up, an exception of the contract too: Network.draw(weights=).
    ("tn4nn._graph.network", "tn4nn._compression.entanglement"),
}
# Circles that are still to be cut. A circle that is gone has to be taken out here.
TO_BE_CUT: list[set[str]] = []


def lint(tree):
    """The finished run of import-linter on a tree, in a process that has imported no other tn4nn."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    path = os.pathsep.join([str(tree), str(tree / "backends")])
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_are_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.fixture
def copy(tmp_path):
    """The source tree, to be changed."""
    for folder in PACKAGES.values():
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_an_import_that_points_up_is_seen(copy):
    for file, line in {
        "tn4nn/_base/seeds.py": "def late():\n    from .._comparison import compare\n",  # imports in functions count
        "backends/tn4nn_torch/_ops.py": "import tn4nn._search.search\n",
        "backends/tn4nn_jax/_ops.py": "import tn4nn_torch\n",
    }.items():
        with (copy / file).open("a") as opened:
            opened.write("\n\n" + line)
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "3 broken" in done.stdout
    for arrow in (
        "tn4nn._base.seeds -> tn4nn._comparison.compare",
        "tn4nn_torch._ops -> tn4nn._search.search",
        "tn4nn_jax._ops -> tn4nn_torch",
    ):
        assert arrow in done.stdout


def circles(arrows):
    """Groups of modules that import each other."""
    groups = networkx.strongly_connected_components(networkx.DiGraph(arrows))
    return sorted((group for group in groups if len(group) > 1), key=min)


def arrows():
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {(module, other) for module in graph.modules for other in graph.find_modules_directly_imported_by(module)}


def test_no_files_import_each_other_in_a_circle():
    found = arrows()
    assert len(found) > 500
    assert circles(found - LATE) == sorted(TO_BE_CUT, key=min)


def test_every_late_import_is_there_and_closes_a_circle():
    found = arrows()
    assert found >= LATE
    for one in LATE:
        assert circles((found - LATE) | {one}) != circles(found - LATE), one


def test_a_circle_is_seen():
    ring = {("tn4nn._base.a", "tn4nn._base.b"), ("tn4nn._base.b", "tn4nn._base.c"), ("tn4nn._base.c", "tn4nn._base.a")}
    assert circles(ring | {("tn4nn._base.d", "tn4nn._base.a")}) == [{"tn4nn._base.a", "tn4nn._base.b", "tn4nn._base.c"}]
