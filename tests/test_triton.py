"""The Triton kernel: the oracle's numbers in Triton's interpreter, compiled for GPUs that need not be there; and what
only a GPU can show, skipped without one."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tn4nn as tn
from tn4nn._stream import stream

torch = pytest.importorskip("torch")
from tn4nn_torch import TNLinear, _triton  # noqa: E402

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("these tests start the interpreter themselves: unset TRITON_INTERPRET", allow_module_level=True)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install -c constraints.txt triton"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

_shared = runpy.run_path(str(Path(__file__).with_name("on_gpu.py")))
noise, close, step = (_shared[name] for name in ("noise", "close", "step"))
Always = runpy.run_path(str(Path(__file__).with_name("always.py")))["Always"]
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}
MPO = tn.mpo((4,) * 5, (4,) * 5).with_rank(4)
FC2 = tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4)


def streamed(net):
    return stream(net, tn.plan(net, 64, "train", minimize="flops").path)


# -- in the interpreter -----------------------------------------------------------------------------------------


def interpreted():
    """Relative errors of everything that `interpreted.py` runs."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(Path(__file__).with_name("interpreted.py"))],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
def test_values_and_gradients_in_the_interpreter():
    found = interpreted()
    assert len(found) > 30
    for name, errors in found.items():
        tolerance = TOLERANCE["bfloat16" if "bfloat16" in name else "float32"]
        assert max(errors.values()) <= tolerance, (name, errors)


# -- without a GPU ----------------------------------------------------------------------------------------------


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """A driver for a GPU that is not there: kernels are compiled for it, and launches noted, not run."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    class Launcher:
        def __init__(self, source, metadata):
            self.name, self.shared = metadata.name, metadata.shared

        def __call__(self, *arguments):
            fake.launches.append((self.name, arguments[0]))

    # The least shared memory that a program may have since capability 8.0: Triton refuses what takes more.
    properties, binary = {"max_shared_mem": 99 << 10}, (None, 1, 32, 0, 1024)
    fake = SimpleNamespace(
        capability=90,
        launches=[],
        get_current_target=lambda: GPUTarget("cuda", fake.capability, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=Launcher,
        utils=SimpleNamespace(get_device_properties=lambda device: properties, load_binary=lambda *_: binary),
    )
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", fake)
    kernels = _triton._kernels()
    for kernel in (kernels.forward, kernels.backward):
        kernel.device_caches.clear()
    yield fake
    for kernel in (kernels.forward, kernels.backward):
        kernel.device_caches.clear()


@needs_triton
@pytest.mark.parametrize(("capability", "dtype"), [(80, "bfloat16"), (90, "bfloat16"), (90, "float32")])
def test_compiles_for_a_gpu_and_launches_once_each_way(capability, dtype, driver):
    driver.capability = capability
    there = streamed(FC2)
    kernel = _triton._made(there, torch.device("cpu"), getattr(torch, dtype))
    shapes = [(len(p.state_h), len(p.state_k), len(p.made_n)) for p in there.passes]
    for rows in (37, 1, 64):
        inputs = [torch.zeros(*n, dtype=kernel.dtype, requires_grad=True) for n in ((rows, there.inputs), *shapes)]
        y = _triton._Apply.apply(kernel, *inputs)
        found = torch.autograd.grad(y, inputs, torch.zeros_like(y))
        assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in inputs]
    assert driver.launches == [(name, n) for n in (3, 1, 3) for name in ("forward", "backward")]
    for name in ("forward", "backward"):
        (made,) = getattr(_triton._kernels(), name).device_caches[0][0].values()  # one, for all numbers of rows
        products = set(re.findall(r"mma\S*", made.asm["ptx"]))
        # On the matrix units in bfloat16; IEEE, not TF32, in float32.
        assert all("bf16" in product for product in products)
        assert bool(products) == (dtype == "bfloat16")
        assert ".v4.b32" in made.asm["ptx"]  # rows lie side by side: 16 bytes at a time


def test_without_triton_it_is_said_once_and_there_is_no_kernel(monkeypatch):
    def absent():
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(_triton, "_kernels", absent)
    _triton.tell.cache_clear()
    with pytest.warns(UserWarning, match=r"no Triton kernels: Triton is not installed \(pip install 'tn4nn\[gpu\]'\)"):
        assert _triton.fused(streamed(MPO), torch.device("cpu"), torch.float32) is None
    assert _triton.fused(streamed(MPO), torch.device("cpu"), torch.float32) is None  # the second call is silent


def test_triton_is_imported_where_it_is_used_only():
    code = (
        "import sys, torch; before = 'triton' in sys.modules\n"
        "import tn4nn as tn; from tn4nn_torch import TNLinear\n"
        "TNLinear(tn.mpo((4, 4), (4, 4)).with_rank(2), tune=True)(torch.ones(3, 16))\n"
        "assert ('triton' in sys.modules) == before and 'tn4nn_torch._triton_kernels' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_states_that_do_not_fit_the_device_give_no_kernel(monkeypatch):
    there = streamed(MPO)
    assert _triton._made(there, torch.device("cpu"), torch.float32) is not None
    monkeypatch.setattr(_triton, "_SLOPES", 4)
    assert _triton._made(there, torch.device("cpu"), torch.float32) is None


# -- on a GPU ---------------------------------------------------------------------------------------------------


def on_gpu(net, dtype):
    made = _triton.fused(streamed(net), torch.device("cuda"), dtype)
    assert made is not None
    layer = TNLinear(net, seed=1, device="cuda", dtype=dtype, tune=True)
    layer._tuned = Always(**{str(dtype).removeprefix("torch."): made})
    return layer


@needs_gpu
@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["mpo", "tree", "ring", "cp", "btt"])
@pytest.mark.parametrize("rows", [1, 45, 4099])
def test_gpu_gives_the_numbers_of_float64_and_the_same_bits_again(name, rows, dtype):
    net = tn.build(name, 256, 256, sites=2 if name == "btt" else 4).with_rank(4, clip=True)
    layer = on_gpu(net, getattr(torch, dtype))
    wide = TNLinear(net, seed=1, device="cuda", dtype=dtype).double()
    x, gy = (noise(rows, 256, seed).to(getattr(torch, dtype)) for seed in range(2))
    first, again, right = step(layer, x, gy), step(layer, x, gy), step(wide, x.double(), gy.double())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(close(a, b, TOLERANCE[dtype]) for a, b in zip(first, right, strict=True))


@needs_gpu
@needs_triton
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gpu_forward_is_captured_in_a_graph(dtype):
    layer, x = on_gpu(MPO, getattr(torch, dtype)), noise(100, 1024).to(getattr(torch, dtype))
    with torch.no_grad():
        layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.copy_(noise(100, 1024, seed=1))
        graph.replay()
        assert close(y, layer(x), TOLERANCE[dtype])


@needs_gpu
@needs_triton
def test_gpu_training_step_is_captured_in_a_graph():
    layer, twin, x = on_gpu(MPO, torch.float32), on_gpu(MPO, torch.float32), noise(100, 1024)

    def train(module):
        for p in module.parameters():
            p.grad = None
        (module(x) ** 2).mean().backward()
        with torch.no_grad():
            for p in module.parameters():
                p.sub_(p.grad, alpha=0.1)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            train(layer)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(layer)
    for _ in range(5):
        graph.replay()
    for _ in range(8):  # the capture itself runs nothing
        train(twin)
    assert all(close(a, b, 1e-5) for a, b in zip(layer.parameters(), twin.parameters(), strict=True))


@needs_gpu
@needs_triton
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_host_waits_for_nothing(dtype):
    layer, x, gy = on_gpu(MPO, dtype), noise(100, 1024).to(dtype), noise(100, 1024, seed=1).to(dtype)
    step(layer, x, gy)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(layer, x, gy)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@needs_triton
def test_gpu_autocast_runs_in_bfloat16():
    layer, x = on_gpu(MPO, torch.float32), noise(100, 1024)
    layer._tuned.kernels |= on_gpu(MPO, torch.bfloat16)._tuned.kernels
    exact = layer(x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = layer(x)
    assert not torch.equal(y.float(), exact)
    assert close(y, exact, 0.02)


@needs_gpu
def test_gpu_moving_plans_anew():
    layer = TNLinear(MPO, seed=1, tune=True)
    assert layer._figures == {}
    layer.cuda()
    assert layer._figures["itemsize"] == 4
    assert layer._figures["machine"].macs_per_s > 1e12
    assert close(layer(noise(64, 1024)), layer.cpu()(noise(64, 1024).cpu()), 1e-4)
    assert layer._figures == {}
