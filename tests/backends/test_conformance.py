"""Our own backends, and a third party's, through the suite that tn4nn ships."""

import dataclasses

import numpy as np
import pytest
from helpers import run_python

import tn4nn as tn
from tn4nn import testing

LAYER_CASES = [c for c in testing.CASES if isinstance(c.model, tn.Linear | tn.Embedding)]


@pytest.mark.parametrize("case", testing.CASES, ids=str)
def test_torch_conforms(case):
    pytest.importorskip("torch")
    testing.check(tn.backend("torch"), case)


def on_jax(case):
    """A case; most random graphs are left to the thorough run, for tests/properties has others of them for jax."""
    few = not case.name.startswith("linear-random-") or int(case.name.split("-")[-1]) < 4
    return pytest.param(case, id=str(case), marks=[] if few else pytest.mark.thorough)


@pytest.mark.parametrize("case", [on_jax(case) for case in testing.CASES])
def test_jax_conforms(case):
    """Every size of batch in float64, and one in float32: jax compiles each of them by itself."""
    pytest.importorskip("jax")
    testing.check(tn.backend("jax"), case, dtypes=("float64",))
    testing.check(tn.backend("jax"), dataclasses.replace(case, batches=case.batches[-1:]), dtypes=("float32",))


@pytest.mark.thorough
@pytest.mark.parametrize("case", testing.CASES, ids=str)
def test_jax_conforms_at_every_size_in_float32(case):
    pytest.importorskip("jax")
    testing.check(tn.backend("jax"), case, dtypes=("float32",))


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
from tn4nn import testing
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


def test_unknown_backend_names_the_nearest():
    with pytest.raises(tn.BackendError, match="unknown backend 'toch'. Did you mean 'torch'"):
        tn.backend("toch")


def test_numpy_backend_says_what_trains():
    model = tn.Linear(4, 2)
    with pytest.raises(tn.BackendError, match=r'does not train: use backend="torch"'):
        tn.train(model, (np.zeros((4, 4), np.float32), np.zeros(4, np.int64)), backend="numpy", validation=None)
