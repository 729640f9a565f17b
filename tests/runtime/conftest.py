"""A process that has looked for no kernel yet."""

import pytest

from tn4nn._base import warn as _warn
from tn4nn._base.cache import plans
from tn4nn._runtime import native as _native


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has looked for no kernel yet and found no plan, with an empty cache folder."""
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    monkeypatch.setattr(_warn, "_WARNED", set())
    monkeypatch.setattr(plans, "_memory", {})
    _native.kernel.cache_clear()
    yield tmp_path
    _native.kernel.cache_clear()
