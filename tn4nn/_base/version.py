"""The version of the installed distribution."""

from __future__ import annotations

import functools


@functools.cache
def installed_version() -> str:
    """E.g. "0.1.0"; "0+source" for a source tree that is not installed."""
    from importlib import metadata  # slow to import, and most runs never ask

    try:
        return metadata.version("tn4nn")
    except metadata.PackageNotFoundError:
        return "0+source"
