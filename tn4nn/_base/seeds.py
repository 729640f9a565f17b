"""Seeds, and generators that depend on a seed and a name alone."""

from __future__ import annotations

import hashlib
import operator
from typing import SupportsIndex

import numpy as np

from .errors import TN4NNError


def checked_seed(seed: object) -> int:
    """A seed as an int, or an error."""
    if not isinstance(seed, SupportsIndex):
        raise TN4NNError(f"a seed must be a whole number, received {seed!r}")
    return operator.index(seed)


def rng_for(seed: int, *path: object) -> np.random.Generator:
    """A generator that depends on the seed and on a name, and on no draw made before it."""
    digest = hashlib.sha256(repr((checked_seed(seed), *map(str, path))).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
