"""Our own backends, and a third party's, through the suite that tn4nn ships."""

import dataclasses
import sys

import numpy as np
import pytest
from helpers import run_python

import tn4nn as tn
from tn4nn import _cli, testing
from tn4nn._base import warn as _warn
from tn4nn._model.backend import entry_point_table

LAYER_CASES = [c for c in testing.CASES if isinstance(c.model, tn.Linear | tn.Embedding)]


@pytest.mark.cases(4)
@pytest.mark.parametrize("case", testing.CASES, ids=str)
def test_torch_conforms(case):
    pytest.importorskip("torch")
    testing.check(tn.backend("torch"), case)


def on_jax(case):
    """A case; most random graphs are left to the thorough run, for tests/properties has others of them for jax."""
    few = not case.name.startswith("linear-random-") or int(case.name.split("-")[-1]) < 4
    return pytest.param(case, id=str(case), marks=[] if few else pytest.mark.thorough)


@pytest.mark.cases(1)
@pytest.mark.parametrize("case", [on_jax(case) for case in testing.CASES])
def test_jax_conforms(case):
    """Every size of batch in float64, and one in float32: jax compiles each of them by itself."""
    pytest.importorskip("jax")
    testing.check(tn.backend("jax"), case, dtypes=("float64",))
    testing.check(tn.backend("jax"), dataclasses.replace(case, batches=case.batches[-1:]), dtypes=("float32",))


@pytest.mark.slow
@pytest.mark.parametrize("case", testing.CASES, ids=str)
def test_jax_conforms_at_every_size_in_float32(case):
    pytest.importorskip("jax")
    testing.check(tn.backend("jax"), case, dtypes=("float32",))


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_backend_trains_and_resumes_to_the_bit(name):
    pytest.importorskip(name)
    testing.check_training(tn.backend(name))


@pytest.mark.parametrize("case", LAYER_CASES[:6], ids=str)
def test_suite_catches_a_wrong_output(case):
    class Off(type(tn.backend("numpy"))):
        def forward(self, module, x):
            return super().forward(module, x) * (1 + 1e-4)

    with pytest.raises(AssertionError, match="y: error"):
        testing.check(Off(), case)


def test_suite_catches_a_wrong_gradient():
    class Off(type(tn.backend("numpy"))):
        def gradients(self, module, x, gy):
            found, gx = super().gradients(module, x, gy)
            return {**found, "core1": found["core1"] * 1.001}, gx

    case = next(c for c in LAYER_CASES if c.name == "linear-mpo")
    with pytest.raises(AssertionError, match="gradient of core1"):
        testing.check(Off(), case)


def test_suite_catches_a_backend_that_writes_into_the_weights():
    class Off(type(tn.backend("numpy"))):
        def forward(self, module, x):
            result = super().forward(module, x)
            next(iter(module.arrays.values()))[...] = 0
            return result

    case = next(c for c in LAYER_CASES if c.name == "linear-mpo")
    with pytest.raises(AssertionError):
        testing.check(Off(), case)


LOOPBACK = """
import sys
sys.path.insert(0, {site!r})
import tn4nn as tn
from tn4nn import _cli, testing
from tn4nn._base import warn as _warn
from tn4nn._model.backend import entry_point_table
assert "loopback" in tn.backends(), tn.backends()
registered = tn.backend("loopback")
for case in testing.CASES:
    if isinstance(case.model, tn.Linear | tn.Embedding):
        testing.check(registered, case)
module = tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2)).build("loopback", seed=3)
print("built", registered.built)
"""


def test_a_third_party_comes_through_the_same_door(tmp_path):
    info = tmp_path / "loopback-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loopback\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tn4nn.backends]\nloopback = loopback:backend\n")
    code = LOOPBACK.format(site=str(tmp_path))
    assert int(run_python(code).split()[1]) > len(LAYER_CASES)


def test_broken_entry_point_names_the_line_that_helps(tmp_path, monkeypatch):
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tn4nn.backends]\nbroken = no_such_package_anywhere:backend\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "broken" in tn.backends()
    with pytest.raises(
        tn.BackendError, match="'broken' cannot be loaded.*install what 'no_such_package_anywhere:backend' needs"
    ):
        tn.backend("broken")
    assert "broken" not in tn.installed_backends()


def _installed(folder, name, lines, module=""):
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[tn4nn.backends]\n{lines}\n")
    (folder / f"{name}.py").write_text(module)


@pytest.mark.parametrize("raised", ["RuntimeError('x')", "SystemExit(3)", "OSError(5, 'x')", "KeyError('x')"])
def test_a_backend_that_raises_at_import_is_listed_as_broken_and_harms_no_other(raised, tmp_path, monkeypatch, capsys):
    name = f"raises_{raised[:3].lower()}"  # modules that failed are imported again, but each test has its own
    _installed(tmp_path, name, f"{name} = {name}:backend", f"raise {raised}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(tn.BackendError, match=rf"'{name}' is broken: '{name}:backend' raised {raised.split('(')[0]}"):
        tn.backend(name)
    assert name in tn.backends()
    assert name not in tn.installed_backends()
    assert "numpy" in tn.installed_backends()
    monkeypatch.setattr(sys, "argv", ["tn4nn", "backends"])
    with pytest.raises(SystemExit) as end:
        _cli.main()
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"{name} broken" in " ".join(out.split())
    assert "numpy " in out


def test_versions_that_cannot_be_told_harm_no_other(tmp_path, monkeypatch, capsys):
    _installed(tmp_path, "unversioned", "unversioned = unversioned:backend", "backend = 3")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["tn4nn", "backends"])
    with pytest.raises(SystemExit) as end:
        _cli.main()
    assert end.value.code == 0
    assert "unversioned broken" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_nobody_takes_the_place_of_one_of_ours(name, tmp_path, monkeypatch):
    _installed(tmp_path, f"usurper_{name}", f"{name} = usurper_{name}:backend", "raise AssertionError('loaded')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_warn, "_WARNED", set())
    with pytest.warns(UserWarning, match=rf"{name!r} is tn4nn's own, and 'usurper_{name}:backend' .* is not used"):
        found = tn.backend(name)
    assert found.name == name
    assert tn.backends().count(name) == 1


def test_of_two_that_share_a_name_one_is_used_and_the_other_is_told(tmp_path, monkeypatch):
    for one in ("aaa", "bbb"):
        _installed(tmp_path, one, f"twice = {one}:backend", f"backend = {one!r}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(_warn, "_WARNED", set())
    with pytest.warns(UserWarning, match="two packages register a backend 'twice': 'aaa:backend' is used"):
        assert tn.backend("twice") == "aaa"


def test_unknown_backend_names_the_nearest():
    with pytest.raises(tn.BackendError, match="unknown backend 'toch'. Did you mean 'torch'"):
        tn.backend("toch")


def test_numpy_backend_says_what_trains():
    model = tn.Linear(4, 2)
    with pytest.raises(tn.BackendError, match=r'does not train: use backend="torch"'):
        tn.train(model, (np.zeros((4, 4), np.float32), np.zeros(4, np.int64)), backend="numpy", validation=None)


def test_a_backend_that_is_installed_meanwhile_is_found(tmp_path, monkeypatch):
    """The table is kept as long as nothing changes in the folders where packages lie."""
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "late" not in tn.backends()
    assert entry_point_table() is entry_point_table()
    _installed(tmp_path, "late", "late = late:backend")
    assert "late" in tn.backends()
