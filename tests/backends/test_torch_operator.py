"""Compiled models run layers by one operator: as in eager mode, for any number of rows, in one trace."""

import gc
import weakref

import pytest

import tn4nn as tn

torch = pytest.importorskip("torch")

from tn4nn_torch import TNConv2d, TNLinear, _operator, convert  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

NETS = {
    "mpo": tn.mpo((4, 8), (8, 4)).with_rank(4),
    "btt": tn.btt((4, 8), (8, 4)).with_rank(2),
    "tree": tn.tree((4, 4, 2), (4, 2, 4)).with_rank(3),
    "cp": tn.cp((4, 8), (8, 4)).with_rank(5),
}


@pytest.fixture(autouse=True)
def _anew():
    torch._dynamo.reset()


def trained(call, layer, x):
    """Outputs and all gradients."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = call(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


def is_traced(call, x):
    """Whether a trace of a function holds the operator."""
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(call, backend=backend, fullgraph=True)(x)
    return any("tn4nn" in name for name in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.cases(5)
def test_values_and_gradients_are_those_of_eager_mode(name, bias, dtype):
    layer = TNLinear(NETS[name], seed=0, bias=bias, dtype=dtype)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    assert is_traced(layer, torch.randn(6, 32, dtype=dtype))
    for rows in (6, 7, 300):
        x = torch.randn(rows, 32, dtype=dtype)
        for ours, eager in zip(trained(compiled, layer, x), trained(layer, layer, x), strict=True):
            assert torch.allclose(ours, eager, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        x = torch.randn(9, 32, dtype=dtype)
        assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("name", ["mpo", "btt"])
def test_changing_batch_sizes_are_traced_as_often_as_those_of_a_dense_layer(name):
    counts = []
    for layer in (TNLinear(NETS[name], seed=0), torch.nn.Linear(32, 32)):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(layer, fullgraph=True, backend=counter)
        for rows in (6, 7, 64, 9, 300, 2):
            compiled(torch.randn(rows, 32))
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] <= 2


def test_each_number_of_rows_runs_by_its_own_plan():
    layer = TNLinear(tn.mpo((16, 16), (16, 16)).with_rank(8), seed=0)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for rows in (1, 1, 4096, 3):
        compiled(torch.randn(rows, 256))
    assert len(layer.runners._natives) >= 2


def test_the_operator_passes_torchs_own_checks():
    layer = TNLinear(NETS["mpo"], seed=0)
    number = _operator.number_of(layer._runners)
    cores = [core.detach().clone().requires_grad_() for core in layer.cores()]
    x = torch.randn(5, 32, requires_grad=True)
    bias = torch.randn(32, requires_grad=True)
    torch.library.opcheck(torch.ops.tn4nn.layer.default, (x, cores, bias, number, False), test_utils=(
        "test_schema", "test_faketensor"))  # fmt: skip
    torch.library.opcheck(torch.ops.tn4nn.layer.default, (x.detach(), cores, None, number, True), test_utils=(
        "test_schema", "test_autograd_registration"))  # fmt: skip


def test_second_derivatives():
    layer = TNLinear(NETS["mpo"], seed=0, dtype=torch.float64)
    x = torch.randn(4, 32, dtype=torch.float64)

    def curvature(call):
        value = x.clone().requires_grad_()
        [gradient] = torch.autograd.grad(call(value).pow(3).sum(), value, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), [value, *layer.parameters()], allow_unused=True)

    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for ours, eager in zip(curvature(compiled), curvature(layer), strict=True):
        assert torch.allclose(ours, eager, rtol=1e-8)


@pytest.mark.parametrize("frozen", [["core0"], ["core0", "core1"], []])
def test_frozen_cores_and_inputs_without_gradient(frozen):
    layer = TNLinear(NETS["mpo"], seed=0)
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.randn(6, 32)
    found = []
    for call in (compiled, layer):
        layer.zero_grad()
        call(x).square().sum().backward()
        found.append([parameter.grad for parameter in layer.parameters()])
    for ours, eager in zip(*found, strict=True):
        assert (ours is None) == (eager is None)
        assert ours is None or torch.allclose(ours, eager, rtol=1e-5)


def test_a_layer_that_runs_a_program_and_no_rows():
    layer = TNLinear(NETS["mpo"], seed=0, executor="program")
    x = torch.randn(6, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(trained(compiled, layer, x), trained(layer, layer, x), strict=True):
        assert torch.allclose(ours, eager, rtol=1e-5, atol=1e-6)
    empty = torch.compile(TNLinear(NETS["mpo"], seed=0), fullgraph=True, backend="aot_eager")(torch.randn(0, 32))
    assert empty.shape == (0, 32)


def test_what_must_see_the_single_operations_gets_a_program():
    layer, x = TNLinear(NETS["mpo"], seed=0), torch.randn(6, 32)
    assert not is_traced(lambda x: torch.vmap(layer)(x), x)
    assert not is_traced(layer.bfloat16(), x.bfloat16())
    layer.float()

    def half(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    assert not is_traced(half, x)
    exported = torch.export.export(layer, (x,))
    assert not any("tn4nn" in str(node.target) for node in exported.graph.nodes)


def test_convolutions():
    image = tn.topology("c a, h w o a", {"c": 2, "h": 3, "w": 3}, {"o": 4}).with_rank(3)
    conv = TNConv2d(tn.Conv2d(image, kernel=3, padding=1), seed=0)
    x = torch.randn(2, 2, 5, 5)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), conv(x), atol=1e-5)
    assert torch.allclose(compiled(x[:, :, :4]), conv(x[:, :, :4]), atol=1e-5)


def test_a_layer_with_padded_features():
    dense = torch.nn.Sequential(torch.nn.Linear(37, 31))
    layer = convert(dense, "mpo", budget=0.5, protect_head=False)[0]
    assert isinstance(layer, TNLinear)
    assert layer._padding or layer._surplus
    x = torch.randn(3, 37)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(trained(compiled, layer, x), trained(layer, layer, x), strict=True):
        assert torch.allclose(ours, eager, atol=1e-5)


def test_a_layer_that_is_gone_and_a_saved_array_of_another_plan_are_told():
    layer = TNLinear(NETS["mpo"], seed=0)
    number = _operator.number_of(layer._runners)
    assert _operator.number_of(layer._runners) == number
    cores, x = [core.detach() for core in layer.cores()], torch.randn(5, 32)
    wanted = [True] * 3
    with pytest.raises(RuntimeError, match="numbers saved by the forward pass, received 1"):
        torch.ops.tn4nn.layer_backward(torch.randn(5, 32), x, cores, torch.zeros(1), number, wanted)
    gone = weakref.ref(layer._runners)
    del layer
    gc.collect()
    assert gone() is None
    with pytest.raises(RuntimeError, match="the layer of this compiled model is gone"):
        torch.ops.tn4nn.layer(x, cores, None, number, False)


def test_two_layers_of_one_shape_are_not_confused():
    layers = [TNLinear(NETS["mpo"], seed=0), TNLinear(tn.mpo((8, 4), (4, 8)).with_rank(4), seed=0)]
    x = torch.randn(6, 32)
    compiled = torch.compile(torch.nn.Sequential(*layers), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layers[1](layers[0](x)), atol=1e-6)
