"""What is installed, what will run here, and why: the checks of `tn4nn doctor`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Iterator

import numpy as np

from .._base.errors import TN4NNError
from .._base.files import cache_folder
from .._base.private import private_folder
from .._comparison.machine import machine
from .._graph.catalogue import mpo
from .._graph.network import Network
from .._model.backend import Backend, backend, backends, is_absent, target_of
from .._model.layers import Linear, Sequential
from .._planning.calibrate import calibrated
from .._planning.layer import plan
from .._runtime.native import kernel
from .._runtime.processor import processors
from .._runtime.target import CPU, ITEMSIZES

OK, NOTE, FAULT = "ok", "note", "fault"
_ROWS = 256
_TOLERANCE = 1e-4  # of the largest |y|, float32
# What is optional: the distribution, what it is for, and the extra that brings it (None: of its own accord).
_OPTIONAL = (
    ("scipy", "significance of differences", "torch"),
    ("matplotlib", "figures", "viz"),
    ("networkx", "drawings of networks", "viz"),
    ("quimb", "networks from and to quimb", "interop"),
    ("flax", "Flax NNX models", "flax"),
    ("equinox", "Equinox models", None),
    ("transformers", "Hugging Face models", None),
    ("ray", "comparisons on a cluster", "ray"),
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS")


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the examination.

    Attributes:
        what: was looked at.
        state: "ok", "note" for what works less well than it could, or "fault" for what is broken.
        found: in words.
        advice: what would do; "" where nothing has to be done.
    """

    what: str
    state: str
    found: str
    advice: str = ""


def examine() -> Iterator[Check]:
    """All checks, one after the other. None of them raises, compiles anything or asks the network."""
    yield _machine()
    yield from _kernels()
    for name in backends():
        yield from _backend(name)
    yield _cost_model()
    yield _cache()
    yield from _optional()


def _machine() -> Check:
    found = machine([])
    asked = [f"{name}={os.environ[name]}" for name in _THREAD_VARIABLES if name in os.environ]
    text = (
        f"tn4nn {found['tn4nn']}, Python {found['python']}, {found['processor']}, "
        f"{processors()} of {found['cores']} cores" + (f", {', '.join(asked)}" if asked else "")
    )
    return Check("machine", OK, text)


def _kernels() -> Iterator[Check]:
    """The C kernel of each dtype: without one, layers run as the framework's own operations."""
    for dtype in ("float32", "float64"):
        what, found = f"kernel {dtype}", kernel(ITEMSIZES[dtype])
        if found.library is None:
            advice = "install a wheel; or install gcc or clang, and run `tn4nn build-kernel`"
            yield Check(
                what, NOTE, f"none: {found.why}. Layers run as operations of the framework, more slowly", advice
            )
        else:
            built = "compiled for this processor" if found.variant == "native" else "came with the package"
            yield Check(what, OK, f"{found.variant}, {built}: {found.path}")


def _backend(name: str) -> Iterator[Check]:
    """Whether a backend loads, which executor a layer gets there, and whether its numbers are right."""
    try:
        loaded = backend(name)
        versions = ", ".join(f"{package} {version}" for package, version in loaded.versions().items())
    except Exception as error:  # whatever a third party's backend raises
        absent = is_absent(error)
        yield Check(f"backend {name}", NOTE if absent else FAULT, "not installed" if absent else "broken", str(error))
        return
    yield Check(f"backend {name}", OK, versions)
    yield _layer(name, loaded)


def _layer(name: str, loaded: Backend) -> Check:
    """Builds and runs a layer."""
    what, net = f"layer in {name}", mpo((4, 4, 4), (4, 4, 4)).with_rank(4)
    model = Sequential(Linear(net))
    try:
        module = model.build(name, seed=0)
        weights, x = loaded.weights(module), np.random.default_rng(0).standard_normal((_ROWS, 64)).astype("float32")
        y = np.asarray(loaded.forward(module, x), "float64")
        wanted = backend("numpy").forward(model.build("numpy", weights=weights), x)
        worst = float(np.abs(y - wanted).max() / np.abs(wanted).max())
        runs = _runs(net, name)
    except Exception as error:
        return Check(what, FAULT, f"{type(error).__name__}: {error}", "report this with the whole output")
    if not worst <= _TOLERANCE:
        advice = "do not trust results of this backend here; report this with the whole output"
        return Check(what, FAULT, f"differs from the oracle by {worst:.1e}", advice)
    return Check(what, OK, f"{_ROWS} rows of 64 features agree with the oracle to {worst:.0e}; {runs}")


def _runs(net: Network, name: str) -> str:
    """Where a training step runs, and by what."""
    if not hasattr(backend(name), "target"):
        return "runs by numpy's einsum, as the oracle"
    target = target_of(name, None, "float32")
    executor = plan(net, _ROWS, "train", backend=name).executor
    where = f"{target.device}, {target.threads} threads" if target.device == CPU else target.device
    if executor == "native":
        return f"a training step runs in the C runtime ({where})"
    if target.device != CPU:
        reason = "the C runtime is for CPUs"
    elif kernel(target.itemsize).library is None:
        reason = "there is no C kernel"
    else:
        reason = "the backend does not offer the C runtime here"
    return f"a training step runs as {executor} ({where}): {reason}"


def _cost_model() -> Check:
    found = calibrated()
    if found is None:
        advice = "`tn4nn calibrate` measures it in seconds; plans then follow this processor"
        return Check("cost model", NOTE, "not calibrated on this machine: default parameters", advice)
    return Check("cost model", OK, "calibrated on this machine")


def _cache() -> Check:
    try:
        wanted = cache_folder()
    except TN4NNError as error:
        return Check("cache", NOTE, "none: every process plans anew", str(error))
    folder = private_folder(wanted / "plans")
    if folder != wanted / "plans":
        return Check("cache", NOTE, f"{wanted} cannot be used", "set TN4NN_CACHE to a folder of your own")
    files = [entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()]
    return Check("cache", OK, f"{wanted}: {len(files):,} plans, {sum(files) / 2**20:.1f} MiB")


def _optional() -> Iterator[Check]:
    for package, use, extra in _OPTIONAL:
        try:
            yield Check(package, OK, f"{importlib.metadata.version(package)}, for {use}")
        except importlib.metadata.PackageNotFoundError:
            install = f'pip install "tn4nn[{extra}]"' if extra else f"pip install {package}"
            yield Check(package, NOTE, f"not installed; it is for {use}", install)
