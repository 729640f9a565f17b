"""What results were made on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from .._base.version import installed_version
from .._model.backend import backend


def machine(backends: Sequence[str]) -> dict[str, str | int]:
    """The machine, the date, and the versions of some backends."""
    found: dict[str, str | int] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "tn4nn": installed_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    for name in ("numpy", *backends):
        found |= backend(name).versions()
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
