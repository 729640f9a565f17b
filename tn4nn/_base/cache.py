"""The two-level plan cache: a dictionary in memory, one small JSON file per entry on disk.

A file is written under a temporary name and renamed, so processes that start at once on an empty folder do
not disturb each other; a file that cannot be read, or is of another version, counts as absent and is written again.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .errors import TN4NNError
from .files import atomic_write, cache_folder

SCHEMA = 2  # of an entry; those before had none
_LIMIT = 4096  # entries in memory; a sweep over everything in the catalogue stays far below


class PlanCache:
    """Plain data by key. `folder` None means cache_folder()/plans, looked up at each access."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, tuple[dict[str, Any], str]] = {}  # and the fingerprint of the network it is about
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder or cache_folder() / "plans"

    def get(self, key: str, owner: str = "") -> dict[str, Any] | None:
        """The entry, or None where there is none that can be read. `owner`: fingerprint of the network it is about."""
        found = self._memory.get(key)
        if found is not None:
            return found[0]
        path = self.folder / f"{key}.json"
        try:
            entry = json.loads(path.read_bytes())
            if isinstance(entry, dict) and entry.get("schema") != SCHEMA:  # of another version: written again
                return None
            if entry["key"] != key:
                raise ValueError(f"it is the entry of {entry['key']!r}")
            value = entry["value"]
            if not isinstance(value, dict):
                raise ValueError("its value is not an object")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"plan cache file {path} cannot be read ({error}): planning again", stacklevel=2)
            return None
        self._remember(key, value, owner)
        return value

    def put(self, key: str, value: dict[str, Any], owner: str = "") -> None:
        """Stores an entry. A folder that cannot be written costs only the next start its plans."""
        self._remember(key, value, owner)
        try:
            entry = {"schema": SCHEMA, "key": key, "value": value}
            atomic_write(self.folder / f"{key}.json", json.dumps(entry).encode(), sync=False)
        except (OSError, TN4NNError) as error:
            warnings.warn(f"plan cache in {self.folder} cannot be written ({error}): kept in memory", stacklevel=2)

    def owned(self, owners: Collection[str]) -> dict[str, dict[str, Any]]:
        """The entries in memory about some networks, by network."""
        found: dict[str, dict[str, Any]] = {}
        with self._lock:
            for key in sorted(self._memory):
                value, owner = self._memory[key]
                if owner in owners:
                    found.setdefault(owner, {})[key] = value
        return found

    def adopt(self, found: Mapping[str, Any]) -> None:
        """Takes entries into memory that came with a model; what is here already stays."""
        for owner, entries in found.items():
            for key, value in entries.items() if isinstance(entries, dict) else ():
                if isinstance(value, dict) and key not in self._memory:
                    self._remember(key, value, owner)

    def _remember(self, key: str, value: dict[str, Any], owner: str) -> None:
        with self._lock:
            if len(self._memory) >= _LIMIT:
                self._memory.clear()
            self._memory[key] = value, owner


plans = PlanCache()
