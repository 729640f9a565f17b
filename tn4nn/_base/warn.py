"""Warnings that are given once a process."""

from __future__ import annotations

import warnings

_WARNED: set[str] = set()


def warn_once(message: str) -> None:
    """Warns once a process."""
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, stacklevel=3)
