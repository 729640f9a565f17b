"""The public surface as plain data: names, signatures and docstring examples of every public module.

Run as a program it writes `tests/surface.json`, which `tests/package/test_surface.py` compares with what is there now.
"""

import doctest
import importlib
import inspect
import json
import pathlib
import types

MODULES = (
    "tn4nn", "tn4nn.presets", "tn4nn.reference", "tn4nn.testing", "tn4nn.interop.chain", "tn4nn.interop.einsum",
    "tn4nn.interop.engines", "tn4nn.interop.quimb", "tn4nn.interop.tensorkrowch", "tn4nn.interop.tensornetwork",
    "tn4nn.interop.tltorch", "tn4nn_torch", "tn4nn_jax",
)  # fmt: skip
FILE = pathlib.Path(__file__).with_name("surface.json")


def surface():
    """Public name -> what is known of it."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for public in public_names(module):
            found |= _entries(f"{name}.{public}", getattr(module, public))
    return found


def entry(value):
    """What is known of one value: its kind, and its signature and docstring examples where it has them."""
    if isinstance(value, types.ModuleType):
        return {"kind": "module"}
    if inspect.isclass(value):
        return {"kind": "class", **_described(value)}
    if callable(value):
        return {"kind": "function", **_described(value)}
    return {"kind": "value"}


def member_entry(member):
    """What is known of a member as the class holds it, or None where it can neither be called nor read."""
    inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    inner = inner.fget if isinstance(inner, property) else inner
    if not callable(inner):
        return None
    return {"kind": "property" if isinstance(member, property) else "method", **_described(inner)}


def public_names(module):
    """What a module lists, or else what it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return sorted(listed)
    own = {n: v for n, v in vars(module).items() if not n.startswith("_")}
    return sorted(n for n, v in own.items() if getattr(v, "__module__", None) == module.__name__)


def _entries(path, value):
    found = {path: entry(value)}
    if inspect.isclass(value):
        members = {name: member_entry(member) for name, member in vars(value).items() if not name.startswith("_")}
        found |= {f"{path}.{name}": known for name, known in members.items() if known is not None}
    return found


def _described(value):
    try:
        parameters = inspect.signature(value).parameters.values()
        signature = [[p.name, p.kind.name, _default(p.default)] for p in parameters if p.name != "self"]
    except (TypeError, ValueError):
        signature = None
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(value) or "")
    return {"signature": signature, "examples": [[e.source, e.want] for e in examples]}


def _default(value):
    return None if value is inspect.Parameter.empty else repr(value).split(" at 0x")[0]


if __name__ == "__main__":
    FILE.write_text(json.dumps(surface(), indent=0, sort_keys=True) + "\n")
