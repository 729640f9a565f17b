"""Calls of the native runtime through C++ instead of Python, compiled where somebody asked for it.

A training step through `_native.py` spends some 40 us in Python, as much as the arithmetic of a small layer. The C++ of
`_calls.cpp` does the same in 3. It uses parts of torch that have no stable binary interface, so a library serves one
version of torch and none can be shipped: `build_extension`, or `tn4nn build-kernel`, compiles it in 20 to 40 s, and
every later process of the same torch finds it in the cache folder. With TN4NN_EXTENSION=0 in the environment it is not
looked for.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import importlib.resources
import importlib.util
import json
import math
import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tn4nn._base.errors import BackendError
from tn4nn._base.libraries import RESULT, SOURCE, Build, existing, library_path
from tn4nn._base.warn import warn_once
from tn4nn._graph.catalogue import low_rank
from tn4nn._graph.network import Network
from tn4nn._planning.layer import plan
from tn4nn._runtime.native import Native, address_of, native
from tn4nn._runtime.program import run
from tn4nn._runtime.recipe import Recipe, recipe

from ._ops import OPS, of_any_rank, second

_LIMIT = 300  # seconds that the compiler may take


class _State:
    """What this process knows about the extension."""

    module: Any = None  # the extension, once it is loaded
    off = False  # there is none, or it failed: it is not looked for again


def ready(runtime: Native) -> Any:
    """The extension's object for a native runtime; None where there is no extension yet."""
    if _State.module is None:
        if _State.off:
            return None
        path = None if os.environ.get("TN4NN_EXTENSION") == "0" else existing(_name())
        if path is None:
            _State.off = True
        else:
            _load(path)
        return ready(runtime)
    if runtime.host is None:
        runtime.host = _hosted(runtime, _State.module)
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
    """Compiles the C++ through which calls of small layers on the CPU are about twice as fast.

    It takes 20 to 40 s, once for each version of Python, torch and tn4nn. It needs a C++ compiler and the headers of
    Python (python3-dev). `tn4nn build-kernel` does the same in a shell, and compiles the C kernel for this processor.

    Returns:
        where the library lies, in the cache folder.

    Raises:
        BackendError: there is no C++ compiler or no Python.h, or it failed, or its library gives wrong numbers.
    """
    path = existing(_name()) or (_path() if _State.module is not None else _built())
    if _State.module is None:
        _State.off = False
        _load(path)
        if _State.off:
            raise BackendError(f"{path} does not load or gives wrong numbers: it is not used")
    return path


# -- compiling ---------------------------------------------------------------------------------------------------


@functools.cache
def _source() -> str:
    return (importlib.resources.files("tn4nn_torch") / "_calls.cpp").read_text()


@functools.cache
def _name() -> str:
    key = "\n".join([torch.__version__, platform.machine(), str(sysconfig.get_config_var("SOABI")), _source()])
    return f"calls-{hashlib.sha256(key.encode()).hexdigest()[:24]}.so"


def _path() -> Path:
    return library_path(_name())


def _built() -> Path:
    """Compiles the library, whole or not at all. Where several processes do, one compiles and the others wait for it.

    Raises:
        BackendError: there is no compiler, no Python.h, or it failed.
    """
    compiler = next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)
    if compiler is None:
        raise BackendError("there is no C++ compiler to build tn4nn's torch extension with: install g++")
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").exists():
        raise BackendError(f"tn4nn's torch extension needs Python.h, which is not in {headers}: install python3-dev")
    root = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    includes = [f"-I{root / 'include'}", f"-I{headers}"]
    flags = ["-O1", "-std=c++20", "-shared", "-fPIC", "-w", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", *includes]
    libraries = [f"-L{root / 'lib'}", "-ltorch_cpu", "-ltorch_python", "-lc10"]
    command = (compiler, *flags, SOURCE, "-o", RESULT, *libraries)
    try:
        return Build(str(_path()), _source(), ".cpp", command, _LIMIT).run()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise BackendError(f"tn4nn's torch extension could not be compiled: {error}") from error


# -- loading -----------------------------------------------------------------------------------------------------


def _load(path: Path) -> None:
    """Loads the library; one that does not load or gives other numbers is not used."""
    try:
        spec = importlib.util.spec_from_file_location("tn4nn_calls", path)
        if spec is None or spec.loader is None:
            raise ImportError("it is no module of Python")
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.set_callbacks(_encoded, _second)
        if _agrees(module):
            _State.module = module  # last: whatever is raised before leaves nothing behind
            return
        warn_once(f"tn4nn's torch extension {path} failed its self-check: it is not used")
    except (ImportError, OSError, RuntimeError) as error:
        warn_once(f"tn4nn's torch extension {path} does not load ({error}): it is not used")
    _State.off = True


def _hosted(runtime: Native, module: Any) -> Any:
    """A recipe in the extension, for as long as what this returns lives."""
    calls = [address_of(runtime.library, name) for name in ("forward", "backward")]
    encoded = [torch.from_numpy(p) for p in (runtime.encoded(), runtime.training)]
    numbers = [runtime.inputs, runtime.outputs, *runtime.numbers]
    return module.make_runtime(_text(runtime.recipe), *calls, numbers, *encoded)


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
        raise BackendError("the native runtime is gone: was tn4nn reinstalled?")
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


def _agrees(module: Any) -> bool:
    """Whether a call and its gradients are those of torch's own operations.

    It runs in a thread of its own, where nothing of the first call is on: no saved_tensors_hooks, which would count its
    tensors among the user's and raise what they like, no inference or dispatch mode, no autocast.
    """
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tn4nn") as aside:
        return aside.submit(_compared, module).result()


def _compared(module: Any) -> bool:
    planned = plan(low_rank(4, 3).with_rank(2), 5, "train", cache=False)
    net = planned.network
    runtime = native(recipe(net, planned.path, 2))
    if runtime is None:
        return False
    shapes = [(5, 4), *(tuple(net.sizes[leg] for leg in core.legs) for core in net.topology.cores)]
    numbers = [torch.linspace(-1, 2, math.prod(s), dtype=torch.float32, device="cpu").sin().reshape(s) for s in shapes]
    x, *cores = (t.requires_grad_(True) for t in numbers)
    results = (module.apply(_hosted(runtime, module), x, cores, None), run(OPS, planned.program, [*cores, x]))
    found = [(y, *torch.autograd.grad(y.square().sum(), (x, *cores))) for y in results]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*found, strict=True))
