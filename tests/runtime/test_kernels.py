"""Which build of the kernel runs: by the processor, whole, of this source, and nothing compiled unless asked for."""

import ctypes
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import environment, first_of
from helpers.files import SPOILT, spoil

import tn4nn as tn
from tn4nn._base import libraries
from tn4nn._runtime import compiled, kernels, native, processor, variants

COMPILER = shutil.which("gcc") or shutil.which("clang")
needs_kernel = pytest.mark.skipif(native.kernel(4).library is None, reason="there is no native kernel here")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler here")
X86 = [v.name for v in variants.VARIANTS if v.machine == "x86_64"]
AVX512 = {"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"}


@pytest.fixture
def ahead(tmp_path, monkeypatch):
    """A package that brings every variant of x86, all with the code that runs here."""
    folder = tmp_path / "package"
    folder.mkdir()
    good = native.kernel(4).path.read_bytes()
    names = [variants.file_name(name, 4) for name in X86]
    for name in names:
        (folder / name).write_bytes(good)
    digests = dict.fromkeys(names, libraries.hashlib.sha256(good).hexdigest())
    write(folder, {"schema": 1, "source": variants.source_digest(), "files": digests})
    monkeypatch.setattr(kernels, "AHEAD", folder)
    monkeypatch.setattr(kernels, "machine", lambda: "x86_64")
    return folder


def write(folder, record):
    (folder / variants.MANIFEST).write_text(json.dumps(record))


def found(agrees=lambda library: True):
    return kernels.find(4, agrees)


# -- what came with the package ---------------------------------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize(
    ("features", "variant"),
    [
        (set(), "sse2"),
        ({"avx2"}, "sse2"),
        ({"avx2", "fma"}, "avx2"),
        (AVX512 - {"avx512vl"}, "avx2"),
        (AVX512, "avx512"),
    ],
)
def test_the_widest_vectors_that_the_processor_has_are_taken(features, variant, fresh, ahead, monkeypatch):
    monkeypatch.setattr(kernels, "features", lambda: frozenset(features))
    result = found()
    assert result.variant == variant
    assert result.path == ahead / variants.file_name(variant, 4)


@needs_kernel
def test_a_variant_that_is_wrong_or_damaged_gives_way_to_the_next(fresh, ahead, monkeypatch):
    monkeypatch.setattr(kernels, "features", lambda: frozenset(AVX512))
    widest = ahead / variants.file_name("avx512", 4)
    widest.write_bytes(widest.read_bytes()[:-1000])
    assert found().variant == "avx2"
    asked = []
    with pytest.warns(UserWarning, match="avx2.*failed its self-check: it is not used"):
        assert found(lambda library: bool(asked.append(1) or len(asked) > 1)).variant == "sse2"
    for name in ("avx2", "sse2"):
        (ahead / variants.file_name(name, 4)).unlink()
    assert found() == kernels.Kernel(None, why=f"{widest} is damaged: install tn4nn again")


@needs_kernel
def test_without_one_it_is_said_why(fresh, ahead, monkeypatch):
    record = json.loads((ahead / variants.MANIFEST).read_text())
    monkeypatch.setattr(kernels, "machine", lambda: "riscv64")
    assert found().why == "this installation of tn4nn has none for riscv64"
    write(ahead, record | {"source": "0"})
    assert "was built of another source: run `python hatch_build.py` there" in found().why
    for broken in ("[]", "{", "{}", '{"source": 1, "files": 2}'):
        (ahead / variants.MANIFEST).write_text(broken)
        assert found().why == "this installation of tn4nn was made without a compiler"


def test_features_are_those_that_all_cores_have(monkeypatch):
    lines = "model name : x\nflags\t\t: fpu avx2 fma\nflags\t\t: fpu avx2 fma avx512f\n"
    monkeypatch.setattr(processor, "processor", lambda: lines)
    assert processor.features.__wrapped__() == {"fpu", "avx2", "fma"}
    monkeypatch.setattr(processor, "processor", lambda: "aarch64\nFeatures : asimd")
    assert processor.features.__wrapped__() == frozenset()
    monkeypatch.setattr(processor, "features", lambda: frozenset(AVX512))
    assert processor.vector_bytes() == 64


def test_windows_is_asked(monkeypatch):
    kernel32 = SimpleNamespace(IsProcessorFeaturePresent=lambda number: number == 40)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel32), raising=False)
    assert processor._windows_features() == {"avx2", "fma"}


def test_one_name_for_one_instruction_set(monkeypatch):
    for said, name in (("AMD64", "x86_64"), ("arm64", "aarch64"), ("riscv64", "riscv64")):
        monkeypatch.setattr(variants.platform, "machine", lambda said=said: said)
        assert variants.machine() == name


def test_the_source_does_not_compile_without_the_constants_of_the_cost_model(tmp_path):
    shared = {f"-DKC={variants.DEPTH}", f"-DFETCHED={variants.FETCHED}"}
    shared |= {f"-DFAR_K={variants.FAR_K}", f"-DFAR_N={variants.FAR_N}"}
    assert shared <= set(variants.definitions(4)) & set(variants.definitions(8))
    if COMPILER is None:
        pytest.skip("there is no C compiler here")
    (tmp_path / "a.c").write_text(variants.source())
    command = [COMPILER, "-DSIZE=4", "-fsyntax-only", str(tmp_path / "a.c")]
    assert "are passed with -D" in subprocess.run(command, capture_output=True, text=True, check=False).stderr


@needs_compiler
@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "variant", [v for v in variants.VARIANTS if v.machine == variants.machine()], ids=lambda v: v.name
)
def test_every_variant_compiles(variant, tmp_path):
    """Only to syntax and types: vectors that are not here too, and lanes whose numbers are out of range."""
    (tmp_path / "a.c").write_text(variants.source())
    for itemsize in variants.ITEMSIZES:
        command = [COMPILER, *variant.flags, *variants.definitions(itemsize), "-fsyntax-only", str(tmp_path / "a.c")]
        assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""


# -- one's own build --------------------------------------------------------------------------------------------


def own_build():
    """As `compiled.build` would leave it, without the compiler's time."""
    path = native.kernel(4).path
    return libraries._stored(libraries.library_path(compiled._name(4, ())), path.read_bytes())


@needs_kernel
def test_ones_own_build_comes_first(fresh):
    path = own_build()
    native.kernel.cache_clear()
    assert native.kernel(4)[1:3] == ("native", path)
    assert native.runtime(4) is not None


@needs_kernel
@pytest.mark.cases(1)
@pytest.mark.parametrize("how", first_of(SPOILT))
def test_one_that_is_damaged_or_not_ours_is_never_loaded(how, fresh, monkeypatch):
    """What is cut short would end the process with a signal."""
    path = own_build()
    native.kernel.cache_clear()
    spoil(path, how, monkeypatch)
    loaded, real = [], ctypes.CDLL
    monkeypatch.setattr(kernels.ctypes, "CDLL", lambda name: loaded.append(name) or real(name))
    if how == "of another":  # neither the folder is ours
        with pytest.warns(UserWarning, match="it belongs to another user"):
            found = native.kernel(4)
    else:
        found = native.kernel(4)
    assert found.variant != "native"
    assert loaded == [str(found.path)]


@needs_kernel
def test_one_for_another_c_library_gives_way(fresh):
    path = libraries._stored(libraries.library_path(compiled._name(4, ())), b"no library")
    assert native.kernel(4).variant != "native"
    assert not path.exists()


@pytest.mark.parametrize("how", first_of(["a link", "a file"]))
def test_a_folder_that_is_not_ours_is_neither_read_nor_written(how, fresh):
    folder, elsewhere = fresh / "kernels", fresh / "elsewhere"
    elsewhere.mkdir()
    if how == "a link":
        folder.symlink_to(elsewhere)
        (elsewhere / compiled._name(4, ())).write_bytes(b"")
        with pytest.warns(UserWarning, match="a temporary one takes its place"):
            assert native.kernel(4).variant != "native"
    else:
        folder.write_text("mine")
        assert native.kernel(4).variant != "native"
    assert {path.name for path in elsewhere.iterdir()} <= {compiled._name(4, ())}


@needs_compiler
def test_it_is_compiled_where_it_was_asked_for(fresh, monkeypatch):
    monkeypatch.setattr(compiled, "OPTIMISED", ("-O1", "-fPIC", "-w"))
    compiled._name.cache_clear()
    before = os.umask(0)
    try:
        found = native.build_kernel(4)
        assert found.variant == "native"
        assert native.kernel(4).path == found.path
        folder = fresh / "kernels"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert sorted(path.suffix for path in folder.iterdir()) == [".lock", ".sha256", ".so"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        wrong = variants.source().replace("acc[i][v] += x * bv[v]", "acc[i][v] += x")
        monkeypatch.setattr(compiled, "source", lambda: wrong)
        compiled._name.cache_clear()
        told = pytest.warns(UserWarning, match="failed its self-check: it is not used")
        with told, pytest.raises(tn.TN4NNError, match="was compiled, but .* failed its self-check"):
            native.build_kernel(4)
        assert compiled.own(4) is None
    finally:
        os.umask(before)
        compiled._name.cache_clear()


def test_without_a_compiler_it_is_an_error(fresh, monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    with pytest.raises(tn.TN4NNError, match="no C compiler on the PATH: install gcc or clang"):
        native.build_kernel(4)


@needs_compiler
def test_what_the_compiler_says_is_told(fresh, monkeypatch):
    monkeypatch.setattr(compiled, "OPTIMISED", ("-no-such-option",))
    compiled._name.cache_clear()
    with pytest.raises(tn.TN4NNError, match="could not be compiled: .*no-such-option"):
        native.build_kernel(4)
    compiled._name.cache_clear()


# -- no process is started --------------------------------------------------------------------------------------

WATCHED = """
    import sys
    started = []
    def watch(event, args):
        if event in ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"):
            started.append((event, args[:2]))
    sys.addaudithook(watch)
    import numpy as np, tn4nn as tn
    from tn4nn._runtime.native import kernel, native
    net = tn.mpo((4, 4), (4, 4)).with_rank(3)
    x = np.linspace(-1, 1, 128, dtype=np.float32).reshape(8, 16)
    {first}
    assert not started, started
    print(kernel(4).variant)
"""
FIRST = {
    "core": "assert native(tn.plan(net, 8, runtime='native').recipe) is not None",
    "torch": "import torch; module = tn.Linear(net).build('torch', seed=0); started.clear(); "
    "y = module(torch.from_numpy(x).requires_grad_()); y.sum().backward(); "
    "assert module.plan(8).executor == 'native'",
    "jax": "import jax; module = tn.Linear(net).build('jax', seed=0); started.clear(); y = jax.jit(module)(x); "
    "from tn4nn_jax import _native; assert _native._handler(4)",
}


@needs_kernel
@pytest.mark.parametrize("host", first_of(FIRST))
def test_the_first_call_starts_no_process_and_needs_no_compiler(host, tmp_path):
    if host != "core":
        pytest.importorskip(host)
    (tmp_path / "a.py").write_text(textwrap.dedent(WATCHED).format(first=FIRST[host]))
    tools = tmp_path / "tools"
    tools.mkdir()
    command = [sys.executable, "-W", "error::UserWarning", str(tmp_path / "a.py")]
    place = environment(TN4NN_CACHE=str(tmp_path / "cache"), PATH=str(tools), TN4NN_EXTENSION="1")
    done = subprocess.run(command, env=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() in {v.name for v in variants.VARIANTS}
    assert not (Path(tmp_path) / "cache" / "kernels").exists()
