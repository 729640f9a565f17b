"""Calls of the native runtime through C++ instead of Python, compiled once, in the background, where calls are many.

A training step through `_native.py` spends some 40 us in Python, as much as the arithmetic of a small layer. The C++ of
`_calls.cpp` does the same in 3, but takes a compiler 20 to 40 s. So a process that makes many calls starts it, as a
process of its own that outlives it, and every later process of the same torch finds it in the cache folder. With
TN4NN_EXTENSION=0 in the environment nothing is compiled or loaded but by `build_extension`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import importlib.util
import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tn4nn._base.errors import BackendError
from tn4nn._base.files import cache_folder
from tn4nn._graph.catalogue import low_rank
from tn4nn._graph.network import Network
from tn4nn._planning.layer import plan
from tn4nn._runtime.compiled import warn_once
from tn4nn._runtime.native import Native, address_of, native
from tn4nn._runtime.program import run
from tn4nn._runtime.recipe import Recipe, recipe

from ._ops import OPS, of_any_rank, second

_MANY = 2000  # calls of a process after which it starts the compiler
_LIMIT = 300  # seconds that the compiler may take when it is waited for


class _State:
    """What this process knows about the extension."""

    calls = 0
    module: Any = None  # the extension, once it is loaded
    off = False  # it failed, and is not tried again
    compiling: subprocess.Popen[bytes] | None = None


def ready(runtime: Native) -> Any:
    """The extension's object for a native runtime; None where there is no extension yet."""
    if _State.module is None:
        if _State.off or not _available():
            return None
        _load()
        return ready(runtime)
    if runtime.host is None:
        runtime.host = _hosted(runtime)
    return runtime.host


def call(runtime: Native, x: Tensor, cores: Sequence[Tensor], bias: Tensor | None) -> Tensor | None:
    """y = x W^T + bias; None where there is no extension yet."""
    host = runtime.host or ready(runtime)
    if host is None:
        return None
    y: Tensor = _State.module.apply(host, x, cores, bias)
    return y


def quick(
    host: Any, x: Tensor, parameters: Mapping[str, Any], names: tuple[str, ...], own: tuple[Any, ...]
) -> Tensor | None:
    """The same for a layer, by what `ready` gave; None where its cores are not its own or something watches x."""
    y: Tensor | None = _State.module.quick(host, x, parameters, names, own)
    return y


def build_extension() -> Path:
    """Compiles now what is otherwise compiled in the background by a process that makes many calls.

    It takes 20 to 40 s, once for each version of Python, torch and tn4nn, and makes calls of small layers on the CPU
    about twice as fast. It needs a C++ compiler and the headers of Python (python3-dev).

    Returns:
        where the library lies, in the cache folder.

    Raises:
        BackendError: there is no C++ compiler or no Python.h, or it failed, or its library gives wrong numbers.
    """
    if _State.module is None:
        _State.off = False
        path, log = _path(), _log()
        if not path.exists():
            log.unlink(missing_ok=True)
            _start()
            end = time.monotonic() + _LIMIT
            while not path.exists() and _compiling() and time.monotonic() < end:
                time.sleep(0.05)
        if not path.exists():
            raise BackendError(
                f"the compiler could not build tn4nn's torch extension; it says, in {log}: {_log_text()}"
            )
        _load()
        if _State.off:
            raise BackendError(f"{path} does not load or gives wrong numbers: it is not used")
    return _path()


# -- compiling ---------------------------------------------------------------------------------------------------


@functools.cache
def _source() -> str:
    return (importlib.resources.files("tn4nn_torch") / "_calls.cpp").read_text()


@functools.cache
def _path() -> Path:
    key = "\n".join([torch.__version__, platform.machine(), str(sysconfig.get_config_var("SOABI")), _source()])
    return cache_folder() / "kernels" / f"calls-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"


def _log() -> Path:
    return _path().with_suffix(".log")


def _log_text() -> str:
    try:
        return _log().read_text()[:300]
    except OSError:
        return "nothing"


def _available() -> bool:
    """Whether the library is there now; the first of many calls without it starts the compiler."""
    if _State.compiling is not None:
        if _compiling():
            return False
        _State.compiling = None
        _State.off = not _path().exists()
        return not _State.off
    if os.environ.get("TN4NN_EXTENSION") == "0":
        _State.off = True
        return False
    _State.calls += 1
    if _State.calls == 1:
        return _path().exists()
    if _State.calls == _MANY and not _log().exists():  # else it is being compiled, or could not be
        try:
            _start()
        except BackendError:  # nothing depends on it
            _State.off = True
    elif _State.calls % _MANY == 0:
        return _path().exists()
    return False


def _compiling() -> bool:
    return _State.compiling is not None and _State.compiling.poll() is None


def _start() -> None:
    """Starts the compiler in a process that goes on when this one ends, and leaves the library whole or not at all.

    Raises:
        BackendError: there is no compiler, no Python.h, or nowhere to write.
    """
    compiler = next((found for name in ("g++", "c++") if (found := shutil.which(name))), None)
    if compiler is None:
        raise BackendError("there is no C++ compiler to build tn4nn's torch extension with: install g++")
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").exists():
        raise BackendError(f"tn4nn's torch extension needs Python.h, which is not in {headers}: install python3-dev")
    root = Path(torch.__file__).parent
    code, path, log = _path().with_suffix(".cpp"), _path(), _log()
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        code.write_text(_source())
    except OSError as error:
        raise BackendError(f"tn4nn's torch extension cannot be built in {path.parent}: {error}") from error
    abi = int(torch.compiled_with_cxx11_abi())
    includes = [f"-I{root / 'include'}", f"-I{headers}"]
    flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-w", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", *includes]
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-ltorch_python", "-lc10"]
    compile_ = shlex.join([compiler, *flags, str(code), "-o", str(part), *libraries])
    script = f"{compile_} > {shlex.quote(str(log))} 2>&1 && {shlex.join(['mv', str(part), str(path)])}"
    _State.compiling = subprocess.Popen(
        ["nice", "-n", "10", "sh", "-c", script] if shutil.which("nice") else ["sh", "-c", script],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


# -- loading -----------------------------------------------------------------------------------------------------


def _load() -> None:
    """Loads the library; one that does not load or gives other numbers is not used."""
    try:
        spec = importlib.util.spec_from_file_location("tn4nn_calls", _path())
        if spec is None or spec.loader is None:
            raise ImportError("it is no module of Python")
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.set_callbacks(_encoded, _second)
        _State.module = module
        if _agrees():
            return
        warn_once(f"tn4nn's torch extension {_path()} failed its self-check: it is not used")
    except (ImportError, OSError, RuntimeError) as error:
        warn_once(f"tn4nn's torch extension {_path()} does not load ({error}): it is not used")
    _State.module, _State.off = None, True


def _hosted(runtime: Native) -> Any:
    """A recipe in the extension, for as long as what this returns lives."""
    calls = [address_of(runtime.library, name) for name in ("forward", "backward")]
    encoded = [torch.from_numpy(p) for p in (runtime.encoded(), runtime.training)]
    numbers = [runtime.inputs, runtime.outputs, *runtime.numbers]
    return _State.module.make_runtime(_text(runtime.recipe), *calls, numbers, *encoded)


def _text(lowered: Recipe) -> str:
    """A recipe as text, by which C++ asks for more encoded plans."""
    network = lowered.network.to_json()
    return json.dumps([network, lowered.path, lowered.block, lowered.itemsize, lowered.layouts, lowered.save_states])


@functools.lru_cache(maxsize=256)
def _native_of(text: str) -> Native:
    network, path, block, itemsize, layouts, save = json.loads(text)
    pairs = tuple((int(a), int(b)) for a, b in path)
    found = native(recipe(Network.from_json(network), pairs, block, itemsize=itemsize, layouts=layouts, save=save))
    if found is None:
        raise BackendError("the native runtime is gone: was the cache folder changed?")
    return found


def _encoded(text: str, wanted: Sequence[bool]) -> Tensor:
    return torch.from_numpy(_native_of(text).encoded(tuple(wanted)))


def _second(text: str, gy: Tensor, x: Tensor, cores: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    """Gradients that can be differentiated once more."""
    program = plan(_native_of(text).recipe.network, max(1, x.numel() // x.shape[-1]), "train").program

    def plain(rows: Tensor, cores: Sequence[Tensor]) -> Tensor:
        y: Tensor = run(OPS, program, [*cores, rows])
        return y

    return second(lambda x, *cores: of_any_rank(plain, x, cores), (x, *cores), gy, wanted)


def _agrees() -> bool:
    """Whether a call and its gradients are those of torch's own operations."""
    planned = plan(low_rank(4, 3).with_rank(2), 5, "train", cache=False)
    net = planned.network
    runtime = native(recipe(net, planned.path, 2))
    if runtime is None:
        return False
    shapes = [(5, 4), *(tuple(net.sizes[leg] for leg in core.legs) for core in net.topology.cores)]
    with torch.inference_mode(False):  # whatever the first call was made in
        x, *cores = (torch.linspace(-1, 2, math.prod(s)).sin().reshape(s).requires_grad_(True) for s in shapes)
    host = _hosted(runtime)
    with torch.inference_mode(False), torch.enable_grad():
        results = (_State.module.apply(host, x, cores, None), run(OPS, planned.program, [*cores, x]))
        found = [(y, *torch.autograd.grad(y.square().sum(), (x, *cores))) for y in results]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True))
