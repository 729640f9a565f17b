"""Builds the C kernel into the wheel, or into the tree for an editable install.

    python hatch_build.py                 into the tree, for this processor, again after a change of the C
    TN4NN_WHEEL_TARGET=x86_64-manylinux python -m build --wheel

Without TN4NN_WHEEL_TARGET the compiler at hand is used; where there is none, the wheel has no kernel and runs anywhere.
With it, all variants of a platform are built: gcc compiles for Linux where it is there for that machine, since its code
is faster, and ziglang links against the platform's own C library; for the others ziglang compiles too.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    BuildHookInterface = object

ROOT = Path(__file__).parent
RUNTIME = ROOT / "tn4nn" / "_runtime"


class Target(NamedTuple):
    """A platform that wheels are built for.

    Attributes:
        machine: its instruction set.
        zig: what ziglang calls it.
        tag: of the wheel.
    """

    machine: str
    zig: str
    tag: str

    @property
    def linux(self) -> bool:
        """Whether gcc's code can be linked."""
        return "linux" in self.zig


TARGETS = {
    "x86_64-manylinux": Target("x86_64", "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64.manylinux2014_x86_64"),
    "aarch64-manylinux": Target("aarch64", "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64.manylinux2014_aarch64"),
    "x86_64-musllinux": Target("x86_64", "x86_64-linux-musl", "musllinux_1_2_x86_64"),
    "aarch64-musllinux": Target("aarch64", "aarch64-linux-musl", "musllinux_1_2_aarch64"),
    "arm64-macos": Target("aarch64", "aarch64-macos.11.0", "macosx_11_0_arm64"),
    "x86_64-windows": Target("x86_64", "x86_64-windows-gnu", "win_amd64"),
}
ANY = "any"  # a wheel without a kernel


def room() -> Any:
    """The files of the room that say what is built, without tn4nn, which needs numpy: variants and the processor."""
    package: Any = types.ModuleType("_tn4nn_runtime")
    package.__path__ = [str(RUNTIME)]
    sys.modules["_tn4nn_runtime"] = package
    for name in ("variants", "processor"):
        setattr(package, name, importlib.import_module(f"_tn4nn_runtime.{name}"))
    return package


def build(folder: Path, target: Target | None, *, portable: bool) -> list[Path]:
    """Builds the kernel's libraries and their manifest; returns what it has written, nothing without a compiler.

    Args:
        folder: for the files.
        target: the platform; None for this machine, with its own compiler.
        portable: with the plainest variant of this machine too, not the one for this processor alone.

    Raises:
        RuntimeError: the compiler failed.
    """
    runtime = room()
    variants = runtime.variants
    if target is None:
        there = variants.usable(runtime.processor.features(), variants.machine())
        wanted = dict.fromkeys((*there[:1], *(there[-1:] if portable else ())))
        compiler = next((found for name in ("gcc", "clang", "cc") if (found := shutil.which(name))), None)
        if compiler is None or not wanted:
            return []
        steps = lambda flags, source, result: [[compiler, *flags, "-shared", "-s", "-o", result, source]]  # noqa: E731
    else:
        wanted = dict.fromkeys(v for v in variants.VARIANTS if v.machine == target.machine)
        steps = _cross(target)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tn4nn-") as scratch:
        source = Path(scratch) / "kernel.c"
        source.write_text(variants.source(), encoding="utf-8")

        def make(variant: Any, itemsize: int) -> Path:
            name = variants.file_name(variant.name, itemsize)
            flags = [*variants.OPTIMISED, *variant.flags, *variants.definitions(itemsize)]
            for command in steps(flags, str(source), str(Path(scratch) / name)):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"{' '.join(command[:3])} ... failed: {done.stderr[:2000]}")
            os.replace(shutil.copy(Path(scratch) / name, folder / f"{name}.new"), folder / name)
            return folder / name

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            made = list(pool.map(make, *zip(*((v, size) for v in wanted for size in variants.ITEMSIZES), strict=True)))
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}
    record = {"schema": 1, "source": variants.source_digest(), "files": digests}
    manifest = folder / variants.MANIFEST  # last: what it does not name is not used
    manifest.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return [*made, manifest]


def _cross(target: Target) -> Any:
    """The commands that make a library for another platform."""
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target.zig]
    named = {room().variants.machine(): "gcc"}.get(target.machine, f"{target.machine}-linux-gnu-gcc")
    gcc = shutil.which(named) if target.linux else None
    if gcc is None:
        debug = ["-Wl,-s"] if "macos" not in target.zig else []  # -s would drop the signature there
        return lambda flags, source, result: [
            [*zig, *_for_zig(flags), *debug, "-shared", "-o", result, source],
        ]
    include = _headers(target, gcc)
    return lambda flags, source, result: [
        [gcc, *flags, *include, "-c", "-o", f"{result}.o", source],
        [*zig, "-shared", "-Wl,-s", "-o", result, f"{result}.o"],
    ]


def _for_zig(flags: Sequence[str]) -> list[str]:
    """Code for Windows may lie anywhere as it is, and clang refuses the flag; for the others zig sets it."""
    return [flag for flag in flags if flag != "-fPIC"]


def _headers(target: Target, gcc: str) -> list[str]:
    """gcc's flags for the headers of the C library that is linked, not of this machine's."""
    import ziglang  # type: ignore[import-not-found]

    own = subprocess.run([gcc, "-print-file-name=include"], capture_output=True, text=True, check=True).stdout.strip()
    libc = Path(ziglang.__file__).parent / "lib" / "libc" / "include"
    machine = target.machine if target.machine != "x86_64" else "x86"
    kind = "musl" if target.zig.endswith("musl") else "gnu"
    generic = "generic-musl" if kind == "musl" else "generic-glibc"
    names = (
        f"{target.machine}-linux-{kind}",
        f"{machine}-linux-{kind}",
        generic,
        f"{machine}-linux-any",
        "any-linux-any",
    )
    there = [libc / name for name in names if (libc / name).is_dir()]
    minor = ["-D__GLIBC_MINOR__=17"] if kind == "gnu" else []
    return ["-nostdinc", *minor, *(word for path in (own, *map(str, there)) for word in ("-isystem", path))]


def _target() -> Target | str | None:
    """What TN4NN_WHEEL_TARGET names."""
    name = os.environ.get("TN4NN_WHEEL_TARGET", "")
    if not name or name == ANY:
        return name or None
    if name not in TARGETS:
        raise ValueError(f"TN4NN_WHEEL_TARGET={name!r}: expected one of {', '.join([*TARGETS, ANY])}")
    return TARGETS[name]


def _local_tag() -> str:
    from packaging.tags import sys_tags

    return next(tag.platform for tag in sys_tags() if "many" not in tag.platform and "musl" not in tag.platform)


class KernelHook(BuildHookInterface):  # type: ignore[misc, unused-ignore]
    """What hatchling runs before it makes a wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build needs beside hatchling."""
        return ["ziglang>=0.13"] if isinstance(_target(), Target) else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the kernel to the wheel; an editable install finds it in the tree."""
        target = _target()
        if target == ANY:
            return
        editable = version == "editable"
        self.scratch = None if editable else tempfile.TemporaryDirectory(prefix="tn4nn-")
        folder = RUNTIME / room().variants.FOLDER if self.scratch is None else Path(self.scratch.name)
        try:
            made = build(folder, target, portable=not editable)
        except RuntimeError as error:
            if target is not None:
                raise
            self.app.display_warning(f"tn4nn: {error}")
            made = []
        if not made:
            self.app.display_warning("tn4nn: no C compiler that works: layers will run in the framework's operations")
        elif not editable:
            to = f"tn4nn/_runtime/{room().variants.FOLDER}"
            build_data["force_include"].update({str(path): f"{to}/{path.name}" for path in made})
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{target.tag if target else _local_tag()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what was built aside."""
        if self.scratch is not None:
            self.scratch.cleanup()

    scratch: tempfile.TemporaryDirectory[str] | None = None


if __name__ == "__main__":
    written = build(RUNTIME / room().variants.FOLDER, None, portable=False)
    sys.exit(None if written else "there is no C compiler on the PATH: install gcc or clang")
