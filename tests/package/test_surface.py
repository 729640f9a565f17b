"""The public surface is a contract: what `tests/surface.json` holds is still there, with the same signatures."""

import dataclasses
import importlib
import inspect
import itertools
import json
import re
import sys
import types

import pytest
import surface

SNAPSHOT = json.loads(surface.FILE.read_text())
# What a module needs beyond tn4nn itself.
NEEDS = {"tn4nn_torch": "torch", "tn4nn_jax": "jax", "tn4nn.interop.quimb": "quimb", "tn4nn.interop.engines": "quimb"}
# Public name -> why its signature may differ from the snapshot's. Names, kinds and examples stay under test.
ALLOWED: dict[str, str] = {
    "tn4nn.Plan": "only the planner makes plans; its fields are attributes still, but for `way` and `rows`",
    "tn4nn.plan": "runtime=None means what runtime='program' did, unless backend= asks what runs there",
}
POSITIONAL = ("POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD")


def found(name):
    """What is known now of a public name, found by import and attribute; None where it is gone."""
    module = _module(name)
    owner, value = None, importlib.import_module(module)
    for part in name.removeprefix(module + ".").split("."):
        if not hasattr(value, part):
            return None
        owner, value = value, getattr(value, part)
    if dataclasses.is_dataclass(owner) and part in {field.name for field in dataclasses.fields(owner)}:
        return {"kind": "property"}  # a field is read as a property is
    if inspect.isclass(owner):
        return surface.member_entry(inspect.getattr_static(owner, part))
    return surface.entry(value)


def differences(name, old, allowed=()):
    """What a user of the old name would meet now, in words."""
    new = found(name)
    if new is None:
        return [f"{name} is gone"]
    if new["kind"] != old["kind"]:
        return [f"{name} was a {old['kind']} and is a {new['kind']}"]
    kept = [(source, plain(want)) for source, want in new.get("examples", ())]
    lost = [source for source, want in old.get("examples", ()) if (source, plain(want)) not in kept]
    result = [f"{name}: the example {source!r} is gone" for source in lost]
    if old.get("signature") is not None and new["kind"] != "property" and name not in allowed:
        result += [f"{name}: {text}" for text in changes(old["signature"], new["signature"] or ())]
    return result


def changes(old, new):
    """How calls that the old parameters allow would fail with the new ones."""
    by_name = {parameter[0]: parameter for parameter in new}
    for name, kind, default in old:
        if name not in by_name:
            yield f"parameter {name!r} is gone"
        elif by_name[name][1] != kind:
            yield f"parameter {name!r} was {kind} and is {by_name[name][1]}"
        elif by_name[name][2] != default:
            yield f"the default of {name!r} was {default} and is {by_name[name][2]}"
    for name, kind, default in new:
        if name not in [parameter[0] for parameter in old] and default is None and not kind.startswith("VAR_"):
            yield f"parameter {name!r} is new and has no default"
    positions = [[name for name, kind, _ in side if kind in POSITIONAL] for side in (old, new)]
    for i, (before, now) in enumerate(itertools.zip_longest(*positions)):
        if before is not None and before != now:
            yield f"positional parameter {i} was {before!r} and is {now!r}"


def plain(want):
    """The expected output without the module that an error was once defined in: doctests compare its name only."""
    return re.sub(r"\btn4nn(\.\w+)*\.(\w+Error)\b", r"\2", want)


@pytest.mark.parametrize("module", surface.MODULES)
def test_what_was_public_still_is(module):
    if module in NEEDS:
        pytest.importorskip(NEEDS[module])
    names = [name for name in SNAPSHOT if _module(name) == module]
    assert names
    assert [text for name in names for text in differences(name, SNAPSHOT[name], ALLOWED)] == []


def test_every_exception_is_of_a_name_that_is_public():
    assert set(ALLOWED) <= set(SNAPSHOT)
    assert all(ALLOWED.values())


def _module(name):
    return max((m for m in surface.MODULES if name.startswith(m + ".")), key=len)


# -- that the test above can fail ------------------------------------------------------------------------------

OLD = '''
def called(a, b=1, *, c=None):
    """Doc.

    >>> called(1)
    2
    """
class Made:
    def method(self, x, y=0): ...
    @property
    def size(self): ...
    @classmethod
    def of(cls, text): ...
'''


@pytest.fixture
def compared(monkeypatch):
    """The differences of two versions of a module."""

    def differ(old, new):
        known = {}
        for source in (old, new):
            module = types.ModuleType("ours")
            exec(source, vars(module))
            module.__all__ = ["called", "Made"]
            monkeypatch.setitem(sys.modules, "ours", module)
            monkeypatch.setattr(surface, "MODULES", ("ours",))
            known = known or surface.surface()
        return [text for name, entry in known.items() for text in differences(name, entry)]

    return differ


def test_the_same_and_what_is_added_are_no_differences(compared):
    assert compared(OLD, OLD) == []
    more = (
        OLD.replace("c=None", "c=None, d=0")
        .replace("y=0", "y=0, z=0")
        .replace(">>> called", ">>> 1\n    1\n    >>> called")
    )
    assert compared(OLD, more + "def other(): ...\n") == []
    inherited = OLD.replace("class Made:", "class Base:") + "class Made(Base): ..."
    assert compared(OLD, inherited) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("def called", "def renamed", ["ours.called is gone"]),
        ("class Made:", "def Made(): ...\nclass Other:", ["ours.Made was a class and is a function"]),
        ("def method", "def renamed", ["ours.Made.method is gone"]),
        ("@property\n    def", "def", ["ours.Made.size was a property and is a method"]),
        ("b=1", "d=1", ["parameter 'b' is gone", "positional parameter 1 was 'b' and is 'd'"]),
        ("b=1", "b=2", ["the default of 'b' was 1 and is 2"]),
        (
            "b=1, *, c",
            "*, b=1, c",
            ["parameter 'b' was POSITIONAL_OR_KEYWORD and is KEYWORD_ONLY", "positional parameter 1"],
        ),
        ("a, b=1", "a, d=0, b=1", ["positional parameter 1 was 'b' and is 'd'"]),
        (
            "x, y=0",
            "y=0, x=0",
            ["the default of 'x' was None and is 0", "positional parameter 0", "positional parameter 1"],
        ),
        ("text", "text, kind", ["ours.Made.of: parameter 'kind' is new and has no default"]),
        (">>> called(1)", ">>> called(2)", ["the example 'called(1)\\n' is gone"]),
        ("2\n", "3\n", ["the example 'called(1)\\n' is gone"]),
    ],
)
def test_what_is_lost_is_seen(compared, old, new, expected):
    assert old in OLD
    seen = compared(OLD, OLD.replace(old, new))
    for text in expected:
        assert any(text in one for one in seen), seen
