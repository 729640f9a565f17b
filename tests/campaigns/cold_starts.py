"""Many processes that ask at once for a kernel of their own on an empty cache: one compiles it, the others wait.

    python -m tests.campaigns.cold_starts --processes 16

Every process builds the kernel as `tn4nn build-kernel` does, applies a layer natively and says what came out. Each run
of the compiler leaves a line, so they can be counted. In a second round the first few are killed in the middle of their
work, and the others must not notice.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .reports import finish

CHILD = """
import sys, numpy as np, tn4nn as tn
from tn4nn._runtime.native import build_kernel, native
assert build_kernel(4).variant == "native"
net = tn.mpo((4, 4), (4, 4)).with_rank(3)
plan = tn.plan(net, 8, runtime="native")
runtime = native(plan.recipe)
cores = [np.ascontiguousarray(core) for core in net.init(0).values()]
x = np.linspace(-1, 1, 8 * 16, dtype=np.float32).reshape(8, 16)
y = np.empty((8, 16), np.float32)
runtime.forward(8, [core.ctypes.data for core in cores], 0, x.ctypes.data, y.ctypes.data)
sys.stdout.write(y.tobytes().hex())
"""


def cold_starts(processes: int, killed: int = 0) -> dict[str, Any]:
    """Starts so many processes on an empty cache, and counts.

    Args:
        processes: that start.
        killed: of these, with SIGKILL, while the compiler runs.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("this needs a C compiler: install gcc")
    with tempfile.TemporaryDirectory(prefix="tn4nn-campaign-") as place:
        log, tools = Path(place) / "log", Path(place) / "tools"
        tools.mkdir()
        (tools / "gcc").write_text(f'#!/bin/sh\necho x >> {log}\nexec {compiler} "$@"\n')
        (tools / "gcc").chmod(0o755)
        environment = {**os.environ, "TN4NN_CACHE": f"{place}/cache", "PATH": f"{tools}:{os.environ['PATH']}"}
        begin = time.monotonic()
        children = [
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", CHILD], env=environment, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )
            for _ in range(processes)
        ]  # fmt: skip
        if killed:
            while not log.exists() and time.monotonic() - begin < 60:
                time.sleep(0.02)
            for child in children[:killed]:
                child.kill()
        ended = [child.communicate(timeout=600) for child in children]
        said = {out for out, _ in ended[killed:]}
        errors = [error for _, error in ended[killed:] if error]
        files = sorted(path.suffix for path in (Path(place) / "cache" / "kernels").iterdir())
        return {
            "processes": processes,
            "killed": killed,
            "compilations": len(log.read_text().splitlines()),
            "seconds": round(time.monotonic() - begin, 1),
            "results": len(said),
            "failed": sum(child.returncode != 0 for child in children[killed:]),
            "errors": errors[:3],
            "files": files,
        }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Starts many processes on an empty cache, and counts compilations.")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--killed", type=int, default=4, help="of a second round, so many are killed")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    given = parser.parse_args()
    rounds = [cold_starts(given.processes), cold_starts(given.processes, given.killed)]
    record = {
        "schema": 1,
        "command": f"python -m tests.campaigns.cold_starts --processes {given.processes} --killed {given.killed}",
        "versions": {"python": platform.python_version(), "platform": platform.system(), "cores": os.cpu_count()},
        "rounds": rounds,
    }
    finish(record, any(one["failed"] or one["results"] != 1 for one in rounds), given.json)


if __name__ == "__main__":
    main()
