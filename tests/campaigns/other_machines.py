"""Libraries of the kernel that were built for another machine, run there or under an emulator.

    TN4NN_WHEEL_TARGET=aarch64-manylinux python -m build --wheel && unzip -d unpacked dist/*aarch64.whl
    python -m tests.campaigns.other_machines unpacked/tn4nn/_runtime/kernels --compiler "aarch64-linux-gnu-gcc" \\
        --run "qemu-aarch64-static -L /usr/aarch64-linux-gnu"

Random recipes, forward and backward, in one thread and in several, are written to a file with the results of this
machine's kernel, which other tests compare with the oracle. A small program in C calls the library with them. Encoded
plans hold no addresses and vectors of a multiple of the library's width, so that they can be taken along.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does
from campaigns.sanitizers import Drawn, called, drawn

import tn4nn as tn
from tn4nn._runtime.native import Native, runtime
from tn4nn._runtime.variants import ITEMSIZES


def cases(count: int, itemsize: int) -> Iterator[Drawn]:
    """Random recipes for numbers of that size, and one that is large enough for threads."""
    net = tn.mpo((8, 8), (8, 8)).with_rank(16)
    low = tn.plan(net, 2000, runtime="native", itemsize=itemsize).recipe
    rng, dtype = np.random.default_rng(0), np.dtype(f"f{itemsize}")
    cores = [np.ascontiguousarray(core, dtype) for core in net.init(0).values()]
    yield Drawn(net, low, 2000, 2, cores, *(rng.standard_normal((2000, 64)).astype(dtype) for _ in range(2)))
    yield from (one for one in map(drawn, range(count)) if one.recipe.itemsize == itemsize)


def write(file: IO[bytes], one: Drawn) -> None:
    """The two calls of a recipe, each with what it reads and what comes out."""
    library = runtime(one.recipe.itemsize)
    assert library is not None, "there is no kernel here"
    native = Native(one.recipe, library)
    y, gx, grads, saved = called(one, native)
    nothing = saved[:0]  # of what is saved, numbers between its parts may hold anything: it is not compared
    forward = [*((1, core) for core in one.cores), (1, one.x), (2, y), (3 if saved.size else 0, saved), (0, nothing)]
    backward = [
        *((1, core) for core in one.cores),
        (1, one.x),
        (0, nothing),
        (1 if saved.size else 0, saved),
        (0, nothing),
    ]
    backward += [(1, one.gy), (2, gx), (0, nothing), (0, nothing), *((2, grad) for grad in grads)]
    plans = native.training if saved.size else native.encoded(), native.encoded((True,) * (1 + len(one.cores)))
    for which, (plan, arrays) in enumerate(zip(plans, (forward, backward), strict=True)):
        _put(file, one.recipe.itemsize, which, one.rows, one.threads, len(plan))
        file.write(plan.tobytes())
        _put(file, len(arrays))
        for role, array in arrays:
            _put(file, role, array.size if role else 0)
            file.write(array.tobytes() if role else b"")


def _put(file: IO[bytes], *numbers: int) -> None:
    file.write(np.array(numbers, np.int64).tobytes())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Runs libraries of the kernel that were built for another machine.")
    parser.add_argument("libraries", type=Path, help="the folder with them")
    parser.add_argument("--compiler", default="gcc", help="that makes a program for that machine")
    parser.add_argument("--run", default="", help="what runs a program there, an emulator for instance")
    parser.add_argument("--variants", default="neon", help="of these vectors, with commas")
    parser.add_argument("--count", type=int, default=200, help="of random recipes")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="tn4nn-campaign-") as place:
        program = Path(place) / "program"
        source = Path(__file__).with_suffix(".c")
        subprocess.run([*given.compiler.split(), "-O1", str(source), "-o", str(program), "-lm"], check=True)
        for itemsize in ITEMSIZES:
            chosen: list[Any] = list(cases(given.count, itemsize))
            with (Path(place) / "cases").open("wb") as file:
                _put(file, 2 * len(chosen))
                for one in chosen:
                    write(file, one)
            for variant in given.variants.split(","):
                library = given.libraries / f"contract-{variant}-float{8 * itemsize}.so"
                done = subprocess.run(
                    [*given.run.split(), str(program), str(library.resolve()), f"{place}/cases"], capture_output=True,
                    text=True, check=False,
                )  # fmt: skip
                failed |= done.returncode != 0
                sys.stdout.write(f"{library.name}: {done.stdout.strip() or done.stderr.strip()} right\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
