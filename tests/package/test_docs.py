"""The docs name files, rooms and headings that exist, and their examples run."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "docs").is_dir():  # the wheel, tested from outside the tree
    pytest.skip("docs/ is not part of the wheel", allow_module_level=True)

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"])
PAGES += sorted((ROOT / "docs" / "pages" / "tutorials").glob("*.py"))  # notebooks
ROOM_PAGES = sorted((ROOT / "docs" / "pages" / "explanation" / "rooms").glob("*.md"))
TREES = ("tn4nn", "backends", "tests", "benchmarks", "docs", "examples", ".ci")


def anchors(page):
    """Of the headings of a page, as GitHub makes them, and those that are written out."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    named = re.findall(r'<a (?:id|name)="([^"]+)"', page.read_text())
    named += re.findall(r"^::: (\S+)$", page.read_text(), flags=re.M)  # an entry of the reference
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(named)


def broken_links(page):
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def missing_files(page):
    """Files and folders that a page names from the root of the tree, and that are not there."""
    named = re.findall(rf"`((?:{'|'.join(map(re.escape, TREES))})/[\w./*-]*)`", page.read_text())
    return [name for name in named if not list(ROOT.glob(name.rstrip("/")))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_are_there(page):
    assert broken_links(page) == []
    assert missing_files(page) == []


def test_a_broken_link_and_a_missing_file_are_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One\n\n[a](page.md#one) [b](page.md#two) [c](gone.md) `tn4nn/__init__.py` `tn4nn/_gone.py`\n")
    assert broken_links(page) == ["page.md#two", "gone.md"]
    assert missing_files(page) == ["tn4nn/_gone.py"]


@pytest.mark.parametrize(
    "page", [ROOT / "docs" / "pages" / "explanation" / "rooms.md", *ROOM_PAGES], ids=lambda page: page.stem
)
def test_files_named_on_the_page_of_a_room_are_there(page):
    """Whoever renames a file finds here the pages that name it."""
    known = {path.name for tree in TREES for path in (ROOT / tree).rglob("*")} | {path.name for path in ROOT.iterdir()}
    named = re.findall(r"`([\w/]*?(\w+\.(?:py|c|cpp)))`", page.read_text())
    assert named
    assert [whole for whole, name in named if name not in known] == []


def test_every_room_has_a_page():
    rooms = {path.name.strip("_") for path in (ROOT / "tn4nn").glob("_*/") if path.name != "__pycache__"}
    assert {page.stem for page in ROOM_PAGES} == rooms | {"backends"}
    text = (ROOT / "docs" / "pages" / "explanation" / "rooms.md").read_text()
    assert [page.stem for page in ROOM_PAGES if f"(rooms/{page.name})" not in text] == []


@pytest.mark.parametrize("page", ROOM_PAGES, ids=lambda page: page.stem)
def test_examples_of_the_rooms_run(page):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, tried = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert failed == 0
    assert tried or page.stem != "planning"
