"""What must hold of an installed tn4nn, wherever the tests run."""

import importlib.metadata

import tn4nn as tn


def test_entry_points_are_registered():
    assert set(tn.backends()) >= {"numpy", "torch", "jax"}
    assert tn.backend("numpy").name == "numpy"


def test_version_is_the_distribution_s():
    assert tn.__version__ == importlib.metadata.version("tn4nn")
