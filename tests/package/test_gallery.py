"""The gallery has every topology of the catalogue, with its synonyms, the code that makes it and what that makes."""

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import tn4nn as tn

DOCS = Path(__file__).parents[2] / "docs"
if not DOCS.is_dir():
    pytest.skip("docs/ is not part of the wheel", allow_module_level=True)


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def synonyms():
    """Catalogue name -> its cell "also called" in the glossary."""
    rows = re.findall(r"^\| [^|`]*\(`(\w+)`\) \|([^|]*)\|$", (DOCS / "pages" / "glossary.md").read_text(), flags=re.M)
    return {name: words.strip() for name, words in rows}


def test_the_gallery_is_the_catalogue(gallery):
    found = gallery.sections(gallery.PAGE.read_text())
    assert tuple(found) == tn.catalogue()
    for name, section in found.items():
        t = gallery.topology_of(section["code"])
        assert (t.name, t.in_features, t.out_features) == (name, 256, 256)
        assert len(section["alt"].split()) > 5
        assert (gallery.PAGE.parent / section["picture"]).resolve() == (gallery.PICTURES / f"{name}.svg").resolve()


def test_the_gallery_has_the_synonyms_of_the_glossary(gallery):
    text = " ".join(gallery.PAGE.read_text().split())
    names = synonyms()
    assert len(names) > 10
    assert [name for name, words in names.items() if words and f"Also called: {words}." not in text] == []


def test_pictures_show_what_the_code_makes(gallery):
    """Each core is a circle with its name, which the SVG keeps in a comment beside its letters."""
    for name, section in gallery.sections(gallery.PAGE.read_text()).items():
        written = re.findall(r"<!-- (.*?) -->", (gallery.PICTURES / f"{name}.svg").read_text())
        t = gallery.topology_of(section["code"])
        assert sorted(set(written) & {core.name for core in t.cores}) == sorted(core.name for core in t.cores)
        assert {f"{leg}={size}" for leg, size in t.modes.items()} <= set(written)


def test_a_picture_is_drawn_from_the_page(gallery, tmp_path):
    pytest.importorskip("matplotlib")
    (path,) = gallery.draw(["mpo"], tmp_path)
    assert path == tmp_path / "mpo.svg"
    assert {"core3", "x3=4", "a2"} <= set(re.findall(r"<!-- (.*?) -->", path.read_text()))


def test_the_picture_of_the_first_page_is_what_the_script_draws(gallery):
    text = gallery.HERO.read_text()
    assert text == gallery.hero()
    assert len(ElementTree.fromstring(text).findall("{*}circle")) == 4 + 6 + 4
