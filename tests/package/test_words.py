"""Words and phrases that were abandoned, in documentation, docstrings, comments and messages."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "docs").is_dir():  # the wheel, tested from outside the tree
    pytest.skip("docs/ is not part of the wheel", allow_module_level=True)

# A pattern, and what to say (docs/pages/glossary.md).
ABANDONED = {
    r"kept legs?": "batch leg (block-diagonal)",
    r"swamps?": "ill-conditioned fit",
    r"encoded pieces?": "encoded plan",
    r"the strangers": "third-party",
    r"(cost[- ]model(?:'s)?|default|calibrated|machine(?:'s)?) figures": "cost-model parameters",
    r"figures of (a|the) (machine|cost model)": "cost-model parameters",
    r"slopes? of (the )?(loss|weights|cores)": "gradient",
    r"ways? to contract": "candidate",
    r"in the place of": "in place of",
    r"stands? on (a )?networks?": "is replaced by, is parametrised as",
    r"is no (weight|matrix|core|array) of": "is not a ... of",
    r"nobody asked": "that is not needed",
    r"forth and back": "forward and backward",
    r"again and forth": "recompute",
}
FOUND = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in ABANDONED), flags=re.I)
PAGES = [page for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if page.name != "CHANGELOG.md"]
SOURCES = [path for tree in ("tn4nn", "backends", "benchmarks", "examples") for path in (ROOT / tree).rglob("*.py")]


def prose_of(source):
    """Comments and strings of a file of Python: names of the code are not prose."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    wanted = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None)}
    return "\n".join(token.string for token in tokens if token.type in wanted)


def abandoned_in(text):
    """What is found, lines joined: a phrase may be broken over two."""
    return [match[0] for match in FOUND.finditer(re.sub(r"[\s\"']+", " ", text))]


def test_pages_use_the_words_of_the_glossary():
    assert {str(page.relative_to(ROOT)): found for page in PAGES if (found := abandoned_in(page.read_text()))} == {}


def test_sources_use_the_words_of_the_glossary():
    texts = {path: prose_of(path.read_text("utf-8")) for path in SOURCES}
    assert len(texts) > 200
    assert {str(path.relative_to(ROOT)): found for path, text in texts.items() if (found := abandoned_in(text))} == {}


def test_a_word_is_found_wherever_it_stands():
    source = 'kept_legs = 1\n"""A layer\nstands on\na network."""\nx = f"a swamp"  # figures of the machine\n'
    assert abandoned_in(prose_of(source)) == ["stands on a network", "swamp", "figures of the machine"]
    assert abandoned_in("A layer in place of a dense one.") == []
