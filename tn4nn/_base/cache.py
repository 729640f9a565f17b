"""The two-level plan cache: a dictionary in memory, one small JSON file per entry on disk.

A file is written under a temporary name and renamed, so processes that start at once on an empty folder do
not disturb each other; a file that cannot be read, was damaged, or is of another version counts as absent and is
written again. Entries that came with somebody's model are kept apart (`adopt`, `offered`): they are not believed but
looked through by those who ask for them.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError, TN4NNError
from .private import private_cache, private_folder, pruned, read_private, stand_in, write_private
from .reading import json_of
from .records import sealed, unsealed

SCHEMA = 3  # of an entry; those before had no digest
_LIMIT = 4096  # entries in memory; a sweep over everything in the catalogue stays far below
_FILES, _BYTES = 20_000, 1 << 28  # on disk
_OFTEN = 512  # entries that a process writes between two looks at how many there are


class PlanCache:
    """Plain data by key. `folder` None means cache_folder()/plans, looked up at each access."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, tuple[dict[str, Any], str]] = {}  # and the fingerprint of the network it is about
        self._offered: dict[str, tuple[dict[str, Any], str]] = {}
        self._written = 0
        self._lock = threading.Lock()

    @property
    def folder(self) -> Path:
        """Where the files should be."""
        return self._folder or private_cache("plans")

    def get(self, key: str, owner: str = "") -> dict[str, Any] | None:
        """The entry, or None where there is none that can be read. `owner`: fingerprint of the network it is about."""
        found = self._memory.get(key)
        if found is not None:
            return found[0]
        path = self.folder / f"{key}.json"
        try:
            entry = json_of(read_private(path))
            if isinstance(entry, dict) and entry.get("schema") != SCHEMA:  # of another version: written again
                return None
            entry = unsealed(entry, "it", "planning again")
            if entry["key"] != key:
                raise ValueError(f"it is the entry of {entry['key']!r}")
            value = entry["value"]
            if not isinstance(value, dict):
                raise ValueError("its value is not an object")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, CheckpointError) as error:
            warnings.warn(f"plan cache file {path} cannot be read ({error}): planning again", stacklevel=2)
            return None
        self.remember(key, value, owner)
        return value

    def put(self, key: str, value: dict[str, Any], owner: str = "") -> None:
        """Stores an entry. A folder that cannot be written costs only the next start its plans."""
        self.remember(key, value, owner)
        entry = json.dumps(sealed({"schema": SCHEMA, "key": key, "value": value})).encode()
        try:
            folder = private_folder(self.folder)
            write_private(folder / f"{key}.json", entry)
        except (OSError, TN4NNError) as error:  # no home, or a full disk; memory has it
            stand_in(self.folder, str(error))
            return
        self._written += 1
        if self._written % _OFTEN == 1:
            pruned(folder, _BYTES, _FILES)

    def owned(self, owners: Collection[str]) -> dict[str, dict[str, Any]]:
        """The entries in memory about some networks, by network; those that came with a model stay with it."""
        found: dict[str, dict[str, Any]] = {}
        with self._lock:
            every = {**self._offered, **self._memory}
        for key in sorted(every):
            value, owner = every[key]
            if owner in owners:
                found.setdefault(owner, {})[key] = value
        return found

    def adopt(self, found: Mapping[str, Any], owners: Collection[str]) -> None:
        """Takes entries that came with a model, under the networks of that model alone; what is none is left out."""
        for owner in owners:
            entries = found.get(owner)
            for key, value in entries.items() if isinstance(entries, dict) else ():
                if isinstance(value, dict):
                    self._add(self._offered, key, value, owner)

    def offered(self, key: str, owner: str) -> dict[str, Any] | None:
        """What somebody's model has brought about a network. Anybody may have written it: it has to be checked, and
        what it says of costs computed."""
        value, about = self._offered.get(key, (None, ""))
        return value if about == owner else None

    def remember(self, key: str, value: dict[str, Any], owner: str) -> None:
        """Keeps an entry for this process."""
        self._add(self._memory, key, value, owner)

    def _add(self, to: dict[str, tuple[dict[str, Any], str]], key: str, value: dict[str, Any], owner: str) -> None:
        with self._lock:
            if len(to) >= _LIMIT:
                to.clear()
            to[key] = value, owner


plans = PlanCache()
