"""What publishes the package agrees with the package."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / ".github").is_dir():  # the wheel, tested from outside the tree
    pytest.skip("the workflows are not part of the wheel", allow_module_level=True)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version_everywhere():
    version = PROJECT["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'set version = "{version}"' in (ROOT / ".ci" / "conda" / "meta.yaml").read_text()


def test_the_conda_recipe_has_the_dependencies():
    recipe = (ROOT / ".ci" / "conda" / "meta.yaml").read_text()
    wanted = [re.sub(r"(?=[<>=])", " ", one, count=1) for one in PROJECT["dependencies"]]
    assert [one for one in wanted if f"- {one}\n" not in recipe] == []


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.stem)
def test_actions_are_pinned_and_jobs_have_a_limit(path):
    text = path.read_text()
    used = re.findall(r"uses: (\S+)", text)
    assert [one for one in used if not re.search(r"@[0-9a-f]{40}$", one)] == []
    assert text.count("runs-on:") == text.count("timeout-minutes:")
    assert re.search(r"^permissions: \{contents: read\}$", text, flags=re.M)


def test_the_release_builds_every_wheel():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    targets = re.findall(r'^    "([\w-]+)": Target\(', (ROOT / "hatch_build.py").read_text(), flags=re.M)
    assert len(targets) == 6
    assert [target for target in targets if not re.search(rf"\b{target}\b", text)] == []


def test_links_for_language_models_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "llms.txt").read_text())
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []
