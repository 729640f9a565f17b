"""One thread for every framework, a cache of their own for the tests, and the matrix of backends."""

import os
import signal
import threading

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TN4NN_EXTENSION", "0")  # tests that call the extension say so

import pytest  # noqa: E402
from helpers.kernels import refresh  # noqa: E402

import tn4nn as tn  # noqa: E402
from tn4nn._base.version import installed_version  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Plans of the tests go to a folder of their own, and never come from the user's."""
    before = os.environ.get("TN4NN_CACHE")
    os.environ["TN4NN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["TN4NN_CACHE"]
    else:
        os.environ["TN4NN_CACHE"] = before


@pytest.fixture
def pretend_version(monkeypatch):
    """Makes tn4nn say that it is another version."""

    def pretend(version):
        monkeypatch.setattr("importlib.metadata.version", lambda name: version)
        installed_version.cache_clear()

    yield pretend
    installed_version.cache_clear()


@pytest.fixture(params=["numpy", "torch", "jax"])
def backend(request):
    """Each backend of ours; absent frameworks skip with the reason."""
    try:
        return tn.backend(request.param)
    except tn.BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["torch", "jax"])
def trained_backend(request):
    """The name of each backend that trains."""
    try:
        tn.backend(request.param)
    except tn.BackendError as error:
        pytest.skip(str(error))
    return request.param


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m excludes
def pytest_collection_modifyitems(items):
    """`cases(n)`: n cases of a test, spread over all of them, are for every run, n more thorough, the others slow."""
    groups = {}
    for item in items:
        marker = item.get_closest_marker("cases")
        if marker is not None and not any(item.get_closest_marker(name) for name in ("thorough", "slow")):
            groups.setdefault((item.path, item.cls, item.originalname, marker.args[0]), []).append(item)
    for (*_, count), cases in groups.items():
        for item in _spread(cases, count):
            cases.remove(item)
        for item in _spread(cases, count):
            cases.remove(item)
            item.add_marker(pytest.mark.thorough)
        for item in cases:
            item.add_marker(pytest.mark.slow)


def _spread(cases, count):
    count = min(count, len(cases))
    return [cases[i * len(cases) // count] for i in range(count)]


def pytest_sessionstart(session):
    """The kernel in the tree is of the C in the tree, before the workers of pytest-xdist start."""
    if not hasattr(session.config, "workerinput"):
        refresh()


def pytest_configure(config):
    """Tests send signals to themselves and to processes that they start: those that a shell began in the background, as
    workers of pytest-xdist are, would ignore an interrupt."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
