"""What an import may cost, and what the package promises of itself."""

import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
from helpers import run_python

import tn4nn as tn

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "jax", "quimb", "tensornetwork", "matplotlib", "networkx", "sklearn", "optax", "cotengra")

CHECK = "import sys; {code}; print([m for m in {heavy} if m in sys.modules])"


def imported_by(code):
    return run_python(CHECK.format(code=code, heavy=HEAVY)).strip()


def test_import_brings_no_framework():
    assert imported_by("import tn4nn") == "[]"


@pytest.mark.thorough
def test_that_test_can_fail():
    pytest.importorskip("torch")
    assert "torch" in imported_by("import tn4nn; tn4nn.backend('torch')")


def test_declaring_and_budgeting_bring_no_framework():
    assert imported_by("import tn4nn as tn; tn.build('tree', 64, 64).with_budget(params=300).init(0)") == "[]"


def test_import_is_quick():
    # Processor time of the one thread that imports: what else runs on the machine does not count.
    code = "import time; t = time.process_time(); import tn4nn; print(time.process_time() - t)"
    assert min(float(run_python(code)) for _ in range(5)) < 0.3


def test_every_folder_of_backends_is_in_the_wheel():
    project = ROOT / "pyproject.toml"
    if not (ROOT / "backends").exists():
        pytest.skip("no source tree here")
    packages = tomllib.loads(project.read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    folders = {f"backends/{path.name}" for path in (ROOT / "backends").iterdir() if (path / "__init__.py").exists()}
    assert folders == {name for name in packages if name.startswith("backends/")}
    for name in packages:
        assert (ROOT / name / "py.typed").exists()


PUBLIC = sorted(set(tn.__all__))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    assert len(inspect.getdoc(getattr(tn, name)) or "") > 20


def modules():
    for package in ("tn4nn", "tn4nn_torch", "tn4nn_jax"):
        try:
            root = importlib.import_module(package)
        except ImportError:
            continue
        yield package
        yield from (found.name for found in pkgutil.walk_packages(root.__path__, f"{package}."))


@pytest.mark.cases(19)
@pytest.mark.parametrize("name", list(modules()))
def test_doctests(name):
    import doctest

    needs = {"interop.quimb": "quimb.tensor", "interop.engines": "quimb.tensor"}
    needs |= {f"interop.{name}": name for name in ("tensornetwork", "tensorkrowch", "tltorch")}
    needs |= {
        "tn4nn_jax._convert": "equinox",
        "tn4nn_jax._keep": "equinox",
        "tn4nn_jax._nnx": "flax",
        "tn4nn_jax._replace": "equinox",
        "tn4nn_jax.nnx": "flax",
        "tn4nn_torch.hugging_face": "transformers",
    }
    for ending, library in needs.items():
        if name.endswith(ending):
            pytest.importorskip(library)
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))) if page.is_file()]
# Those of the rooms are run by test_docs.
WITH_EXAMPLES = [page for page in PAGES if "\n>>> " in page.read_text("utf-8") and page.parent.name != "rooms"]


@pytest.mark.thorough
@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_pages_are_true(page):
    import doctest

    pytest.importorskip("torch")
    pytest.importorskip("jax")
    if page.stem == "convert":
        pytest.importorskip("equinox")
    failed, tried = doctest.testfile(
        str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    )
    assert tried > 1
    assert failed == 0


def test_pages_with_examples_are_found():
    if (ROOT / "docs").is_dir():
        expected = {"README", "topologies", "decompose", "twelve-lines", "lecture", "extend"}
        assert expected <= {page.stem for page in WITH_EXAMPLES}


def test_the_readme_begins_with_the_two_commands():
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert blocks[0].strip().endswith("tn4nn compare")
    assert "pytest" in blocks[1]
    assert all("-c constraints.txt" in block for block in blocks[:2])


def test_names_that_the_design_promises():
    promised = [
        "topology",
        "dense",
        "low_rank",
        "mpo",
        "ring",
        "tree",
        "peps",
        "mera",
        "tucker",
        "cp",
        "block_term",
        "btt",
        "monarch",
        "kronecker",
        "complete",
        "build",
        "catalogue",
        "Network",
        "Topology",
        "plan",
        "Cost",
        "Sequential",
        "Linear",
        "ReLU",
        "train",
        "compare",
        "with_budget",
        "Ordering",
        "backend",
        "backends",
        "Conv2d",
        "Embedding",
        "GELU",
        "Tanh",
        "Sigmoid",
        "SiLU",
        "MaxPool",
        "AvgPool",
        "Flatten",
        "BatchNorm",
        "LayerNorm",
        "Dropout",
        "Residual",
        "Parallel",
        "decompose",
        "entanglement",
        "save",
        "load",
    ]
    assert [name for name in promised if not hasattr(tn, name)] == []
