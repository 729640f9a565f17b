"""Sweeps that are told to stop, or killed, at seeded random moments: how they end, what they leave, how they go on.

    python -m tests.campaigns.kills --count 100

Each case starts `tn4nn compare` on torch or jax, with one process that trains or two, and sends SIGINT, SIGTERM,
SIGHUP or SIGKILL after a drawn time: to the whole group, as a terminal does, or to the first process alone. Half of the
moments lie in the first second, where Python and the frameworks are imported. Where anything was stored the sweep is
resumed. A case fails where

* **code**: the exit code is not that of the signal (130, 143, 129, and -9 of the system for SIGKILL);
* **late**: the process took more than 3 s to end;
* **orphan**: a process that it started lives 3 s later;
* **traceback**: there is one on stderr;
* **lost**: a row that was announced is not in the file;
* **resumed**: the resumed sweep gives other rows than one that was never stopped.

A sweep that was through before its signal counts as **over**. The first 0.06 s are left out: Python is not yet at our
first line, and what it does then is its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tn4nn._base.seeds import rng_for
from tn4nn._base.version import installed_version

from .reports import finish

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": -9}
SIGNALS = ("SIGINT", "SIGTERM", "SIGINT", "SIGKILL", "SIGINT", "SIGHUP")
KINDS = tuple((backend, jobs) for backend in ("torch", "jax") for jobs in (1, 2))
FAILURES = ("code", "late", "orphan", "traceback", "lost", "resumed")
LIMIT_S = 3.0
BEGIN_S = 0.06
END_S = 0.3  # of a process that was at its last lines


def sweep(folder: Path, backend: str, jobs: int, *more: str) -> subprocess.Popen[bytes]:
    """Starts a sweep of four cells, in a session of its own."""
    command = [
        sys.executable, "-m", "tn4nn", "compare", "--topologies", "mpo,ring", "--budget", "600", "--epochs", "2",
        "--lr", "0.003", "--seeds", "2", "--backend", backend, "--jobs", str(jobs), "--out", str(folder), *more,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def ended(process: subprocess.Popen[bytes], seconds: float) -> tuple[int | None, str]:
    """The exit code, None where it does not end in time, and what it said."""
    try:
        said = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        return None, ""
    return process.returncode, said.decode(errors="replace")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a whole sweep, without what is measured."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if not key.startswith("step_")} for row in rows]


def living(session: int) -> list[int]:
    """Processes of a session."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            with contextlib.suppress(OSError):  # it is gone
                fields = (place / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(place.name))
    return found


def stored(folder: Path) -> int:
    """Whole rows in the file."""
    path = folder / "rows.jsonl"
    text = path.read_text() if path.exists() else ""
    return sum('"status"' in line for line in text.split("\n")[:-1])


def case(number: int, seed: int, place: Path, whole: dict[Any, tuple[float, list[Any]]]) -> dict[str, Any]:
    """One sweep: stopped, looked at, and resumed where it is known what it gives."""
    rng = rng_for(seed, "kills", number)
    backend, jobs = list(whole)[number % len(whole)]
    name = SIGNALS[number // len(whole) % len(SIGNALS)]
    lasts, expected = whole[backend, jobs]
    after = float(rng.uniform(BEGIN_S, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, 0.95 * lasts))
    to_all = bool(rng.random() < 0.5)
    folder = place / str(number)
    process = sweep(folder, backend, jobs)
    time.sleep(after)
    over = process.poll() is not None
    begin = time.monotonic()
    if not over:
        (os.killpg if to_all else os.kill)(process.pid, getattr(signal, name))
    code, said = ended(process, 60)  # its workers hold its stderr: they too
    seconds = time.monotonic() - begin
    time.sleep(max(0.0, min(LIMIT_S, LIMIT_S - seconds)) if living(process.pid) else 0.0)
    orphans = living(process.pid)
    for pid in orphans:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if code is None:
        code, said = ended(process, 10)
    over = over or (code == 0 and seconds < END_S)
    kept, announced = stored(folder), len(re.findall(r"^\[\d+/\d+\]", said, flags=re.M))
    resumed, words = 0, ""
    goes_on = bool(expected) and (folder / "rows.jsonl").exists()
    if goes_on:
        resumed, words = ended(sweep(folder, backend, 1, "--resume"), 300)
    failures = {
        "code": not over and code != CODES[name],
        "late": not over and seconds > LIMIT_S,
        "orphan": bool(orphans),
        "traceback": "Traceback" in said,
        "lost": kept < announced,
        "resumed": goes_on and (resumed != 0 or rows_of(folder) != expected),
    }
    return {
        "number": number, "backend": backend, "jobs": jobs, "signal": name, "to": "group" if to_all else "process",
        "after_s": round(after, 3), "over": over, "code": code, "seconds": round(seconds, 2), "orphans": len(orphans),
        "rows": kept, "goes_on": goes_on, "failures": [kind for kind, failed in failures.items() if failed],
        "said": said[-500:] if any(failures.values()) else "", "after": words[-500:] if resumed else "",
    }  # fmt: skip


def campaign(count: int, seed: int, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs so many cases; returns the record of what came.

    Args:
        count: cases.
        seed: of the draws.
        quick: on torch alone, and nothing is resumed.
        say: takes a line of text for each case.
    """
    for name in CODES:  # a shell in the background ignores some, and so would what is started here
        if name != "SIGKILL" and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    begin = time.monotonic()
    before = os.environ.get("TN4NN_CACHE")
    with tempfile.TemporaryDirectory(prefix="tn4nn-campaign-") as name:
        place = Path(name)
        if not quick:
            os.environ["TN4NN_CACHE"] = str(place / "cache")
        try:
            if quick:
                whole: dict[Any, tuple[float, list[Any]]] = {("torch", jobs): (6.0, []) for jobs in (2, 1)}
            else:
                whole = {}
                for backend in ("torch", "jax"):
                    _, rows = _whole(place, backend, 1)  # compiles and plans
                    whole |= {(backend, jobs): (_whole(place, backend, jobs)[0], rows) for jobs in (1, 2)}
                    say(f"{backend}: {[round(seconds, 1) for seconds, _ in whole.values()]} s")
            cases = []
            for number in range(count):
                cases.append(case(number, seed, place, whole))
                say(json.dumps(cases[-1]))
        finally:
            if before is None:
                os.environ.pop("TN4NN_CACHE", None)
            else:
                os.environ["TN4NN_CACHE"] = before
    return {
        "schema": 1,
        "command": f"python -m tests.campaigns.kills --count {count} --seed {seed}{' --quick' if quick else ''}",
        "versions": {
            "tn4nn": installed_version(), "python": platform.python_version(), "platform": platform.system(),
            "cores": os.cpu_count(), **_frameworks(),
        },
        "seconds": round(time.monotonic() - begin, 1),
        "cases": len(cases),
        "over": sum(one["over"] for one in cases),
        "failed": sum(bool(one["failures"]) for one in cases),
        "counts": _counts(cases),
        "failures": [one for one in cases if one["failures"]],
    }  # fmt: skip


def _whole(place: Path, backend: str, jobs: int) -> tuple[float, list[Any]]:
    """How long a sweep lasts that nobody stops, and its rows."""
    folder = Path(tempfile.mkdtemp(dir=place))
    begin = time.monotonic()
    code, said = ended(sweep(folder, backend, jobs), 300)
    assert code == 0, said
    return time.monotonic() - begin, rows_of(folder)


def _frameworks() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "jax")}


def _counts(cases: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in CODES:
        for backend, jobs in KINDS:
            some = [one for one in cases if (one["signal"], one["backend"], one["jobs"]) == (name, backend, jobs)]
            stopped = [one for one in some if not one["over"]]
            if some:
                found[f"{name} {backend} jobs {jobs}"] = {
                    "cases": len(some),
                    "over": len(some) - len(stopped),
                    "codes": dict(Counter(str(one["code"]) for one in stopped)),
                    "longest_s": max((one["seconds"] for one in stopped), default=0.0),
                    "rows": sum(one["rows"] for one in stopped),
                    "resumes": sum(one["goes_on"] for one in stopped),
                    **{kind: sum(kind in one["failures"] for one in some) for kind in FAILURES},
                }
    return found


def table(record: dict[str, Any]) -> str:
    """The counts as text."""
    columns = ("cases", "over", "longest_s", "rows", "resumes", *FAILURES)
    lines = [f"{'':<24}" + "".join(f"{name:>11}" for name in columns) + "  exit codes"]
    for kind, found in record["counts"].items():
        codes = ", ".join(f"{code}: {number}" for code, number in found["codes"].items())
        lines.append(f"{kind:<24}" + "".join(f"{found[name]:>11}" for name in columns) + f"  {codes}")
    lines += [f"FAILED {one}" for one in record["failures"]]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Stops and kills sweeps at random moments, and counts what comes.")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="on torch alone, and nothing is resumed")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    given = parser.parse_args()
    record = campaign(given.count, given.seed, given.quick, lambda line: sys.stderr.write(line + "\n"))
    finish(record, bool(record["failed"]), given.json, table(record))


if __name__ == "__main__":
    main()
