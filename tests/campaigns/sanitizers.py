"""The C runtime under sanitizers: random recipes, forward and backward, in one thread and in several.

    python -m tests.campaigns.sanitizers --count 2000 --sanitizer address
    python -m tests.campaigns.sanitizers --count 500 --sanitizer thread

The source is compiled with the address and undefined-behaviour sanitizers, or with that for data races, and every array
that it reads or writes comes from the watched allocator. A call is right where y and all gradients are those of W in
float64; any report of a sanitizer ends the process and counts as a failure.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from .reports import finish

FLAGS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    "thread": ("-fsanitize=thread",),
}
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
CHILD = """
import sys
from campaigns.sanitizers import recipes
recipes(range(int(sys.argv[1]), int(sys.argv[2])), sys.argv[3].split())
"""


class Drawn(NamedTuple):
    """A random recipe, and what it is called with."""

    network: Any
    recipe: Any
    rows: int
    threads: int
    cores: list[Any]
    x: Any
    gy: Any


def drawn(seed: int) -> Drawn:
    """One recipe of the campaign."""
    import numpy as np

    from tn4nn._graph.problem import Problem
    from tn4nn._runtime.recipe import recipe
    from tn4nn.testing import random_network

    rng = np.random.default_rng(seed)
    net = random_network(seed, cores=int(rng.integers(1, 7)))
    itemsize = int(rng.choice([4, 8]))
    dtype = np.dtype(f"f{itemsize}")
    rows, block, threads = int(rng.integers(1, 70)), int(rng.choice([1, 3, 8, 16, 64])), int(rng.integers(1, 5))
    tensors = len(Problem(net, "apply", rows).tensors)
    waiting, path = list(range(tensors)), []
    while len(waiting) > 1:
        a, b = (waiting.pop(int(rng.integers(len(waiting)))) for _ in range(2))
        path.append((min(a, b), max(a, b)))
        waiting.append(tensors + len(path) - 1)
    states = len(recipe(net, tuple(path), 1).steps) - 1
    layouts = tuple(int(code) for code in rng.integers(0, 5, states)) if rng.random() < 0.7 else ()
    low = recipe(net, tuple(path), block, itemsize=itemsize, layouts=layouts, save=bool(rng.integers(2)))
    cores = [np.ascontiguousarray(core, dtype) for core in net.init(seed).values()]
    x, gy = (rng.standard_normal((rows, n)).astype(dtype) for n in (low.inputs, low.outputs))
    return Drawn(net, low, rows, threads, cores, x, gy)


def called(one: Drawn, runtime: Any) -> tuple[Any, Any, list[Any], Any]:
    """y, the gradients of x and of the cores, and what was saved."""
    import numpy as np

    y, gx = np.full_like(one.gy, np.nan), np.full_like(one.x, np.nan)
    saved, grads = np.empty(runtime.saved(one.rows), one.x.dtype), [np.full_like(core, np.nan) for core in one.cores]
    given = (
        one.rows,
        [core.ctypes.data for core in one.cores],
        saved.ctypes.data if saved.size else 0,
        one.x.ctypes.data,
    )
    runtime.forward(*given, y.ctypes.data, one.threads)
    to, wanted = [grad.ctypes.data for grad in grads], (True,) * (1 + len(one.cores))
    runtime.backward(*given, one.gy.ctypes.data, gx.ctypes.data, to, wanted, one.threads)
    return y, gx, grads, saved


def recipes(seeds: range, flags: list[str]) -> None:
    """Runs random recipes in this process, and writes how many were right."""
    from helpers.kernels import compiled_with

    from tn4nn._runtime.native import Native

    flags = [*flags, "-g", "-O1", "-DSHARE=1", "-DLEAST=1"]  # threads whatever the size
    right = 0
    for seed in seeds:
        one = drawn(seed)
        y, gx, grads, _ = called(one, Native(one.recipe, compiled_with(one.recipe.itemsize, *flags)))
        right += _agrees(one.network, one.cores, one.x, one.gy, y, gx, grads)
    sys.stdout.write(f"{right}\n")


def _agrees(net: Any, cores: Any, x: Any, gy: Any, y: Any, gx: Any, grads: Any) -> bool:
    """Whether y = x W^T, and the gradients are those of sum(y * gy), by W in float64 and one random direction."""
    import numpy as np

    from tn4nn._graph.contract import apply

    def close(found: Any, expected: Any) -> bool:
        most = max(np.abs(expected).max(), 1e-30)
        return bool(np.abs(found - expected).max() <= 2e-4 * most)

    wide = {core.name: array.astype("f8") for core, array in zip(net.topology.cores, cores, strict=True)}
    if not close(y, apply(net, wide, x.astype("f8"))):
        return False
    rng = np.random.default_rng(0)
    move = {name: rng.standard_normal(array.shape) for name, array in wide.items()}
    # W is linear in each core: the derivative along a direction is W with that core replaced.
    for (name, along), grad in zip(move.items(), grads, strict=True):
        expected = np.sum(apply(net, {**wide, name: along}, x.astype("f8")) * gy)
        scale = np.linalg.norm(along) * max(np.linalg.norm(grad), 1e-30)
        if abs(np.sum(grad * along) - expected) > 2e-4 * scale:
            return False
    step = rng.standard_normal(x.shape)
    expected = np.sum(apply(net, wide, step) * gy)
    return bool(abs(np.sum(gx * step) - expected) <= 2e-4 * np.linalg.norm(step) * max(np.linalg.norm(gx), 1e-30))


def campaign(count: int, sanitizer: str, seed: int = 0, part: int = 250) -> dict[str, Any]:
    """Runs so many recipes in processes of their own; a report ends its process, and the rest of its part is lost.

    Args:
        count: of recipes.
        sanitizer: "address" (with undefined behaviour) or "thread".
        seed: of the first recipe.
        part: recipes of one process.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("this needs gcc and its sanitizers")
    name = LIBRARIES[sanitizer]
    library = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    if not os.path.isabs(library.stdout.strip()):
        raise RuntimeError(f"gcc has no {name}")
    right, reports = 0, []
    with tempfile.TemporaryDirectory(prefix="tn4nn-campaign-") as cache:
        environment = {
            **os.environ, "TN4NN_CACHE": cache, "LD_PRELOAD": library.stdout.strip(), "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=66", "TSAN_OPTIONS": "exitcode=66",
            "UBSAN_OPTIONS": "print_stacktrace=1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        for first in range(seed, seed + count, part):
            last = min(first + part, seed + count)
            done = subprocess.run(
                [sys.executable, "-c", CHILD, str(first), str(last), " ".join(FLAGS[sanitizer])], env=environment,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            right += int(done.stdout) if done.stdout.strip().isdigit() else 0
            if done.returncode:
                reports.append(f"recipes {first} to {last - 1}: exit {done.returncode}: {done.stderr[-2000:]}")
    return {"sanitizer": sanitizer, "recipes": count, "right": right, "reports": reports}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Runs random recipes of the C runtime under a sanitizer.")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--sanitizer", choices=sorted(FLAGS), default="address")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    given = parser.parse_args()
    found = campaign(given.count, given.sanitizer, given.seed)
    gcc = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    record = {
        "schema": 1,
        "command": f"python -m tests.campaigns.sanitizers --count {given.count} --sanitizer {given.sanitizer} "
        f"--seed {given.seed}",
        "versions": {"python": platform.python_version(), "platform": platform.system(), "gcc": gcc},
        **found,
    }
    finish(record, bool(found["reports"]) or found["right"] != given.count, given.json)


if __name__ == "__main__":
    main()
