"""How a campaign ends: its counts are said, kept where that was asked for, and become an exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn


def finish(record: dict[str, Any], failed: bool, path: Path | None, text: str | None = None) -> NoReturn:
    """Prints a record, as a text where it has one, writes it to a file, and ends the process with 1 where it failed."""
    written = json.dumps(record, indent=1) + "\n"
    sys.stdout.write(written if text is None else text + "\n")
    if path is not None:
        path.write_text(written)
    sys.exit(int(failed))
