"""torch's extension, for the tests that call it."""

import os
import shutil

import pytest

from tn4nn._runtime.native import runtime


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The extension, compiled once for all processes of this run of the tests: where it lies, and the module."""
    torch = pytest.importorskip("torch")
    from tn4nn_torch import _calls, build_extension

    if runtime(torch.float32.itemsize) is None or shutil.which("g++") is None:
        pytest.skip("no C++ compiler on this machine")
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared) / "extension"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TN4NN_CACHE", str(folder))
        path = build_extension()  # one process compiles, the others wait for it
    state = dict(vars(_calls._State))
    _calls._State.module = None  # other tests go on without it
    return path, state["module"]


@pytest.fixture
def extension(library, monkeypatch):
    """The extension in use."""
    from tn4nn_torch import _calls

    monkeypatch.setattr(_calls._State, "module", library[1])
    return library[0]


@pytest.fixture(params=["extension", "python"])
def through(request, monkeypatch):
    """By which of its two hosts in torch the native runtime is called."""
    from tn4nn_torch import _calls

    module = request.getfixturevalue("library")[1] if request.param == "extension" else None
    monkeypatch.setattr(_calls._State, "module", module)
    return request.param
