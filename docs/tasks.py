"""Does the ten tasks of a newcomer: what stands on their page is pasted into an empty folder and run, task by task.

python docs/tasks.py                   # all
python docs/tasks.py "Diagnose"        # those whose title begins so
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).parent / "pages" / "start" / "ten-tasks.md"
_BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", flags=re.S | re.M)


def tasks(page: Path = PAGE) -> dict[str, list[tuple[str, str, str]]]:
    """Title of a task -> its blocks: (language, name of a file or "", text)."""
    sections = re.split(r"^## ", page.read_text("utf-8"), flags=re.M)[1:]
    return {section.partition("\n")[0]: _BLOCK.findall(section) for section in sections}


def do(blocks: list[tuple[str, str, str]], folder: Path) -> subprocess.CompletedProcess[str]:
    """Writes the files of a task and runs its commands; stops at the first that fails."""
    commands = []
    for language, name, text in blocks:
        if language == "sh":
            commands.append(text)
        elif name:
            (folder / name).write_text(text, "utf-8")
        else:
            raise ValueError(f"a block of {language} has no title, and is not run")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
        cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def main() -> int:
    """Does the tasks that are asked for; returns how many failed."""
    failed = 0
    for title, blocks in tasks().items():
        if not title.startswith(tuple(sys.argv[1:]) or ""):
            continue
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            done = do(blocks, Path(folder))
        state = "failed" if done.returncode else "done"
        sys.stdout.write(f"{state:<7} {time.perf_counter() - begin:5.0f} s  {title}\n")
        if done.returncode:
            failed += 1
            sys.stdout.write(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
