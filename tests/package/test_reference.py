"""Every public name has one entry in the reference and an example that runs; an entry names what is public."""

import ast
import builtins
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import surface

import tn4nn as tn
from tn4nn._cli import usage

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages" / "reference"
if not PAGES.is_dir():
    pytest.skip("docs/ is not part of the wheel", allow_module_level=True)

# Modules of names that need a library beside the backend's: their names are read without importing them.
READ = {
    "tn4nn_torch.hugging_face": ROOT / "backends" / "tn4nn_torch" / "hugging_face.py",
    "tn4nn_jax.nnx": ROOT / "backends" / "tn4nn_jax" / "nnx.py",
}
# Public name -> why it has no example of its own.
WITHOUT = {"tn4nn_torch.build_extension": "it compiles for half a minute; tests/backends/test_torch_extension.py does"}


def importable(module):
    """The module, or None where it needs a library that is not here."""
    try:
        return importlib.import_module(module)
    except (ImportError, tn.BackendError):
        return None


def public():
    """Full name -> value of every public name; None for a value that is not imported."""
    found = {}
    for name in (*surface.MODULES, "tn4nn.reproduce"):
        module = importable(name)
        if module is not None:
            found |= {f"{name}.{public}": getattr(module, public) for public in surface.public_names(module)}
    for name, path in READ.items():
        found |= dict.fromkeys(f"{name}.{public}" for public in exported(path.read_text()))
    return found


def exported(source):
    """What `__all__` lists."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return ast.literal_eval(node.value)
    raise AssertionError("a module without __all__")


def entries(pages):
    """The names that have an entry, once for each entry."""
    return [name for text in pages for name in re.findall(r"^::: (\S+)$", text, flags=re.M)]


def wrong(pages, names):
    """What is wrong with the entries of some pages, in words."""
    found = entries(pages)
    return sorted(
        [f"{name} has {found.count(name)} entries" for name in names if found.count(name) != 1]
        + [f"{name} is not public" for name in set(found) - set(names)]
    )


def without_example(values, run):
    """Names of functions and classes without a docstring of their own among those whose examples run."""
    called = {name: value for name, value in values.items() if inspect.isclass(value) or inspect.isroutine(value)}
    return sorted(name for name, value in called.items() if own_doc(value) not in run)


def own_doc(value):
    """Its own docstring, none that it inherits."""
    return inspect.cleandoc((vars(value) if inspect.isclass(value) else {"__doc__": value.__doc__})["__doc__"] or "")


def docstrings_that_run(modules):
    """Docstrings with an example that shows a result, as doctest finds them module by module."""
    finder = doctest.DocTestFinder()
    tests = [test for module in modules for test in finder.find(module)]
    return {inspect.cleandoc(test.docstring) for test in tests if any(shows(example) for example in test.examples)}


def shows(example):
    return bool(example.want or example.exc_msg) and not example.options.get(doctest.SKIP)


def test_every_public_name_has_one_entry():
    for package in ("torch", "jax"):
        pytest.importorskip(package)
    pages = [page.read_text() for page in PAGES.glob("*.md")]
    assert wrong(pages, public()) == []


def test_every_function_and_class_has_an_example_that_runs():
    names = [found.name for root in packages() for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")]
    modules = [*packages(), *filter(None, map(importable, names))]
    errors = {f"tn4nn.{name}" for name in tn.__all__ if is_error(getattr(tn, name))}
    assert without_example(
        {name: value for name, value in public().items() if name not in errors | set(WITHOUT)},
        docstrings_that_run(modules),
    ) == []  # fmt: skip
    assert set(WITHOUT) <= set(public())


def test_one_example_raises_every_error():
    """That of their base, which runs with the doctests of the module that defines them."""
    text = tn.TN4NNError.__doc__
    assert text in importlib.import_module("tn4nn._base.errors").__test__.values()
    names = [name for name in tn.__all__ if is_error(getattr(tn, name)) and name != "TN4NNError"]
    assert len(names) > 5
    assert [name for name in names if f"tn4nn.{name}:" not in text and f"except tn.{name}" not in text] == []


def undefined(docstring):
    """Names in the examples of a docstring that nobody who copies them has: neither imported nor made there."""
    text = "".join(example.source for example in doctest.DocTestParser().get_examples(docstring or ""))
    used, made = set(), set(dir(builtins))
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                made |= {(one.asname or one.name).partition(".")[0] for one in names}
            case ast.Name(id=name) | ast.arg(arg=name) | ast.ExceptHandler(name=name) | ast.FunctionDef(name=name):
                made.add(name)
            case ast.ClassDef(name=name):
                made.add(name)
    return sorted(used - made)


def test_examples_can_be_copied():
    docstrings = {}
    for name, value in public().items():
        if inspect.isclass(value) or inspect.isroutine(value):
            docstrings[name] = own_doc(value)
        if inspect.isclass(value):
            docstrings |= {f"{name}.{member}": inspect.getdoc(of) for member, of in vars(value).items() if callable(of)}
    assert {name: undefined(text) for name, text in docstrings.items() if undefined(text)} == {}
    assert undefined(">>> import numpy as np\n>>> y = f(x=np.ones(3), g=lambda a: a + b)\n>>> y\n") == ["b", "f"]


def packages():
    return [module for name in ("tn4nn", "tn4nn_torch", "tn4nn_jax") if (module := importable(name)) is not None]


def is_error(value):
    return inspect.isclass(value) and issubclass(value, Exception)


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_index_has_every_name_with_a_sentence(hooks):
    pages = sorted(PAGES.glob("*.md"))
    text = hooks.names(PAGES, {"nav": [f"reference/{page.name}" for page in pages]})
    found = dict(re.findall(r"^\* \[`[^`]+`\]\[([^\]]+)\]: (.*)$", text, flags=re.M))
    assert set(found) == set(entries([page.read_text() for page in pages]))
    assert [name for name, sentence in found.items() if len(sentence.split()) < 3] == []


def test_the_page_of_the_command_line_has_every_command(hooks):
    text = hooks.commands()
    for command, examples in usage.EXAMPLES.items():
        (section,) = re.findall(rf"^## `tn4nn {command}`\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
        assert "```sh\n" + "\n".join(examples) + "\n```" in section
        assert "**Options**" in section


def test_what_is_wrong_with_a_page_is_seen():
    page = "# Made up\n\n::: ours.one\n\n::: ours.two\n    options:\n      members: false\n"
    assert wrong([page], ["ours.one", "ours.two"]) == []
    assert wrong([page, page], ["ours.one", "ours.two"]) == ["ours.one has 2 entries", "ours.two has 2 entries"]
    assert wrong([page], ["ours.one", "ours.three"]) == ["ours.three has 0 entries", "ours.two is not public"]
    assert exported('__all__ = ["a", "b"]\n') == ["a", "b"]


def test_an_example_that_does_not_run_is_none():
    def shown():
        """One.

        >>> 1 + 1
        2
        """

    def skipped():
        """One.

        >>> 1 + 1  # doctest: +SKIP
        2
        """

    def silent():
        """One.

        >>> x = 1
        """

    class Heir(int):
        pass

    values = {"shown": shown, "skipped": skipped, "silent": silent, "Heir": Heir, "value": 3}
    tests = [doctest.DocTestFinder().find(f, f.__name__)[0] for f in (shown, skipped, silent)]
    run = {inspect.cleandoc(t.docstring) for t in tests if any(shows(example) for example in t.examples)}
    assert without_example(values, run) == ["Heir", "silent", "skipped"]
