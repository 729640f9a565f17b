"""What only a GPU can show, on both frameworks; skipped without one."""

import copy
import math
import os

import numpy as np
import pytest

import tn4nn as tn

torch = pytest.importorskip("torch")
from helpers import all_close, close  # noqa: E402
from helpers.gpu import noise, step  # noqa: E402
from tn4nn_torch import TNConv2d, TNLinear, _tuned, convert  # noqa: E402
from tn4nn_torch._graphs import Captured  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")

SITES = {"btt": 2, "monarch": 2, "peps": None, "dense": None}
NAMES = ("mpo", "ring", "tree", "peps", "mera", "cp", "tucker", "btt", "monarch", "block_term", "dense")
NETWORKS = {
    name: tn.build(name, 256, 64, **({"sites": n} if (n := SITES.get(name, 3)) else {})).with_rank(4, clip=True)
    for name in NAMES
}
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03, "float16": 0.01}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("rows", [1, 33, 4099])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_values_and_gradients_are_those_of_float64_on_the_cpu(name, rows, dtype):
    layer = TNLinear(NETWORKS[name], seed=1, device="cuda", dtype=dtype)
    wide = copy.deepcopy(layer).cpu().double()
    x, gy = noise(rows, 256).to(layer.bias.dtype), noise(rows, 64, seed=1).to(layer.bias.dtype)
    found, right = step(layer, x, gy), step(wide, x.cpu().double(), gy.cpu().double())
    assert all_close(found, right, TOLERANCE[dtype])


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # parameters that have been used before
@pytest.mark.parametrize("name", list(NETWORKS))
def test_torchs_own_graphs_can_be_made_of_a_layer(name):
    layer = TNLinear(NETWORKS[name], seed=1, device="cuda")
    x, gy = noise(100, 256), noise(100, 64, seed=1)
    right = step(layer, x, gy)
    graphed = torch.cuda.make_graphed_callables(layer, (x.clone().requires_grad_(True),))
    for _ in range(2):
        found = step(graphed, x, gy)
        assert all_close(found, right)


# -- graphs of our own ------------------------------------------------------------------------------------------


@pytest.fixture
def captured(monkeypatch):
    """Makes a layer that goes through graphs for 100 rows, whatever is faster, and its twin in single operations."""
    monkeypatch.setattr(_tuned, "_seconds", lambda runner, *_: 0.0 if isinstance(runner, Captured) else 1.0)

    def build(net, dtype=None):
        layer, plain = (TNLinear(net, seed=1, device="cuda", tune=tune) for tune in (True, False))
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
            for x in (noise(100, 256), noise(100, 256).requires_grad_(True)):
                layer(x), layer(x)  # the second time it is tuned
            with torch.no_grad():
                layer(x), layer(x)
        assert layer.plan(100).executor == "graph"
        return layer, plain

    return build


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "dense"])
def test_graphs_give_the_numbers_of_single_operations_while_the_cores_are_trained(name, captured):
    layer, plain = captured(NETWORKS[name])
    for seed in range(3):
        x, gy = noise(100, 256, seed=seed), noise(100, 64, seed=seed + 9)
        found, right = step(layer, x, gy), step(plain, x, gy)
        assert all_close(found, right)
        with torch.no_grad():
            for module in (layer, plain):
                for p in module.parameters():
                    p.mul_(0.9)
            assert close(layer(x), plain(x))
        with torch.inference_mode():
            assert close(layer(x), plain(x))


def test_graphs_wait_for_their_backward_passes_and_follow_streams(captured):
    layer, plain = captured(NETWORKS["mpo"])
    xs = [noise(100, 256, seed=seed).requires_grad_(True) for seed in range(3)]
    for found, right in zip([layer(x) for x in xs], [plain(x) for x in xs], strict=True):
        inputs = [*xs, *layer.parameters(), *plain.parameters()]
        a, b = (torch.autograd.grad(y.square().sum(), inputs, allow_unused=True) for y in (found, right))
        count = len(list(layer.parameters()))
        pairs = [*zip(a[:3], b[:3], strict=True), *zip(a[3 : 3 + count], b[3 + count :], strict=True)]
        assert all(close(u, v) for u, v in pairs if v is not None)
        assert all((u is None) == (v is None) for u, v in pairs)
    right = [plain(x) for x in xs]
    streams = [torch.cuda.Stream() for _ in xs]
    torch.cuda.synchronize()
    found = []
    for _ in range(20):
        for stream, x in zip(streams, xs, strict=True):
            with torch.cuda.stream(stream):
                found.append(layer(x))
    torch.cuda.synchronize()
    assert all(close(y, right[i % 3]) for i, y in enumerate(found))


def test_graphs_under_autocast(captured):
    layer, plain = captured(NETWORKS["mpo"], dtype=torch.bfloat16)
    x = noise(100, 256)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = layer(x.requires_grad_(True))
        assert y.dtype == torch.bfloat16
        grads = torch.autograd.grad(y.float().square().sum(), [x, *layer.parameters()])
    right = plain(x)
    assert close(y.float(), right, 0.03)
    exact = torch.autograd.grad(right.square().sum(), [x, *plain.parameters()])
    assert all(g.dtype == torch.float32 and close(g, e, 0.05) for g, e in zip(grads, exact, strict=True))


def test_inside_a_graph_of_a_whole_model_the_layer_runs_in_single_operations(captured):
    layer, plain = captured(NETWORKS["mpo"])
    x = noise(100, 256)
    with torch.no_grad():
        layer(x), plain(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.copy_(noise(100, 256, seed=1))
        graph.replay()
        assert close(y, plain(x))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_tuned_layer_gives_the_same_numbers_and_is_measured_once(name):
    layer, plain = (TNLinear(NETWORKS[name], seed=1, device="cuda", tune=tune) for tune in (True, False))
    state = torch.cuda.get_rng_state()
    for seed in range(4):
        x, gy = noise(100, 256, seed=seed), noise(100, 64, seed=seed + 9)
        assert all_close(step(layer, x, gy), step(plain, x, gy))
        assert all(p.grad is None for p in layer.parameters())
    assert torch.equal(state, torch.cuda.get_rng_state())  # nothing random was drawn
    assert layer._tuned._tries == (name != "dense")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_the_host_does_not_wait_for_graphs(captured):
    layer, _ = captured(NETWORKS["tree"])
    x, gy = noise(100, 256), noise(100, 64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(layer, x, gy)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- without graphs ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_host_waits_for_nothing_in_a_step(name):
    layer, x, gy = TNLinear(NETWORKS[name], device="cuda"), noise(100, 256), noise(100, 64)
    step(layer, x, gy)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(layer, x, gy)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_convolution_and_autocast():
    conv = TNConv2d(tn.mpo((8, 9), (4, 4)).with_rank(3), kernel=3, padding=1, device="cuda")
    x = noise(2, 8, 10, 10)
    right = copy.deepcopy(conv).cpu()(x.cpu())
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert close(conv(x), right)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    assert close(y.float(), right, 0.03)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_training_on_the_gpu_goes_as_on_the_cpu(backend):
    device = "cuda" if backend == "torch" else on_jax()
    model = tn.Sequential(tn.Linear(tn.mpo((4, 4, 4), (4, 4, 4)).with_rank(4)), tn.ReLU(), tn.Linear(64, 10))
    rng = np.random.default_rng(0)
    data = rng.standard_normal((600, 64)).astype(np.float32), rng.integers(0, 10, 600)
    losses = [tn.train(model, data, backend=backend, epochs=3, device=where).losses for where in (device, "cpu")]
    assert np.allclose(*losses, rtol=1e-3), losses


def test_a_model_is_converted_where_it_is():
    dense = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)).cuda()
    with torch.no_grad():
        dense[0].weight.copy_(noise(256, 8) @ noise(8, 256, seed=1) / 256)
    x, right = noise(50, 256), dense(noise(50, 256))
    done = convert(copy.deepcopy(dense), {"0": "low_rank"}, budget=256 * 16 + 256)
    model = done if isinstance(done, torch.nn.Module) else done.model
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense.parameters())
    assert close(model(x), right, 1e-4)


# -- jax --------------------------------------------------------------------------------------------------------


def on_jax():
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip(f"jax runs on {jax.default_backend()} (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')})")
    return "gpu"


@pytest.mark.parametrize("rows", [1, 33, 4099])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_jax_gives_the_numbers_of_float64(name, rows):
    device = on_jax()
    import jax

    net = NETWORKS[name]
    weights = net.init(1)
    module = tn.Linear(net, bias=False).build("jax", weights=weights, device=device)
    rng = np.random.default_rng(0)
    x, gy = (rng.standard_normal((rows, n)).astype(np.float32) for n in (256, 64))

    def loss(module, x):
        return (module(x) * gy).sum()

    by_weights, by_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(module, x)
    layer = TNLinear(tn.Linear(net, bias=False), weights=weights, dtype="float64")
    y, gx, *cores = step(layer, torch.from_numpy(x).double(), torch.from_numpy(gy).double())
    names = [name for name, _ in layer.named_parameters()]
    assert close(torch.from_numpy(np.array(jax.jit(lambda m, x: m(x))(module, x))), y)
    assert close(torch.from_numpy(np.array(by_x)), gx)
    for core, right in zip(names, cores, strict=True):
        assert close(torch.from_numpy(np.array(by_weights.weights[core])), right)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_gpu_is_calibrated_and_layers_plan_with_what_was_found(backend, monkeypatch, tmp_path):
    if backend == "jax":
        on_jax()
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    found = tn.calibrate("cuda", backend=backend, dtype="bfloat16", time_limit=40.0)
    assert found.after <= found.before
    assert found.after < 0.5
    assert tn.calibrated("cuda", backend=backend, dtype="bfloat16") == found.machine
    if backend == "torch":
        layer = TNLinear(NETWORKS["mpo"], device="cuda", dtype="bfloat16")
        assert layer.plan(64).request.target.machine == found.machine
    else:
        import jax.numpy as jnp
        from tn4nn_jax._target import target

        assert target(jnp.bfloat16).machine == found.machine


def test_jax_prices_plans_with_the_gpus_parameters():
    on_jax()
    import jax.numpy as jnp
    from tn4nn_jax._target import target

    assert target(jnp.bfloat16).itemsize == 2
    assert target(jnp.float32).machine.macs_per_s > 1e12
    assert math.isfinite(target(jnp.float32).machine.op_s)
