"""One thread for every framework, a cache of their own for the tests, and the matrix of backends."""

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TN4NN_EXTENSION", "0")  # a compiler in the background would slow the other tests down

import pytest  # noqa: E402

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
