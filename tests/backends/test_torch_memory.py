"""Memory that is read by address: freed while a tensor lives on, replaced by hooks, or not what the tensor shows."""

import pytest
from helpers import all_close, close

import tn4nn as tn

torch = pytest.importorskip("torch")
from tn4nn_torch import TNConv2d, TNEmbedding, TNLinear, _calls, _memory  # noqa: E402
from tn4nn_torch import _native as torch_native  # noqa: E402

FREED = "in memory, received a storage of|storage of size 0|data is not allocated yet"  # ours, and torch's own
NET = tn.mpo((4, 4), (4, 4)).with_rank(3)


def make(kind, executor=None):
    """A layer and an input."""
    draw = torch.Generator().manual_seed(0)
    match kind:
        case "linear":
            return TNLinear(NET, seed=0, executor=executor), torch.randn(3, 16, generator=draw)
        case "three axes":
            return TNLinear(NET, seed=0, executor=executor), torch.randn(2, 3, 16, generator=draw)
        case "padded":
            net = tn.build("mpo", 35, 23, sites=2).with_rank(3)
            return TNLinear(net, seed=0, executor=executor), torch.randn(3, 35, generator=draw)
        case "elementwise":  # products of single numbers, before which torch does not look
            net = tn.topology("x a, x y a, y a", {"x": 16}, {"y": 16}).with_rank(2)
            return TNLinear(net, seed=0, executor=executor), torch.randn(3, 16, generator=draw)
        case "convolution":
            net = tn.mpo((8, 9), (4, 4)).with_rank(3)
            return TNConv2d(net, 3, padding=1, seed=0, executor=executor), torch.randn(2, 8, 6, 6, generator=draw)
    net = tn.mpo((10, 10), (4, 4)).with_rank(3)
    return TNEmbedding(net, seed=0), torch.randint(100, (5,), generator=draw)


KINDS = ("linear", "three axes", "padded", "elementwise", "convolution", "embedding")


def free(t):
    """What FSDP does with the weights that it gathers again."""
    t.untyped_storage().resize_(0)


@pytest.fixture(params=["extension", "python", "program"])
def executor(request, monkeypatch):
    """What runs: the native runtime by one of its hosts, or a program."""
    module = request.getfixturevalue("library")[1] if request.param == "extension" else None
    monkeypatch.setattr(_calls._State, "module", module)
    return "program" if request.param == "program" else "native"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("when", ["first call", "later call", "without gradients"])
def test_a_freed_core_is_an_error(executor, kind, when):
    layer, x = make(kind, executor)
    for core in layer.names:
        layer, x = make(kind, executor)
        layer.requires_grad_(when != "without gradients")
        if when != "first call":
            layer(x)
        free(layer._parameters[core])
        with pytest.raises(RuntimeError, match=FREED):
            layer(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calls", [0, 1])
def test_a_freed_input_is_an_error(executor, kind, calls):
    layer, x = make(kind, executor)
    for _ in range(calls):
        layer(x)
    free(x)
    with pytest.raises(RuntimeError, match=FREED):
        layer(x)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "embedding"])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_freed_bias_is_an_error(executor, kind, calls):
    layer, x = make(kind, executor)
    for _ in range(calls):
        layer(x)
    free(layer.bias)
    with pytest.raises(RuntimeError, match=FREED):
        layer(x)


@pytest.mark.parametrize("kind", ["linear", "three axes", "padded", "elementwise"])
@pytest.mark.parametrize("what", ["core", "x"])
def test_what_is_freed_before_the_backward_pass_is_an_error(executor, kind, what):
    layer, x = make(kind, executor)
    y = layer(x.requires_grad_(True))
    free(layer.core0 if what == "core" else x)
    with pytest.raises(RuntimeError, match=FREED):
        y.sum().backward()


@pytest.mark.parametrize("kind", ["linear", "three axes"])
def test_a_freed_gradient_is_an_error(through, kind):
    layer, x = make(kind)
    y = layer(x)
    gy = torch.ones_like(y)
    free(gy)
    with pytest.raises(RuntimeError, match=FREED):
        y.backward(gy)


def test_memory_that_comes_back_is_used_again(through):
    layer, x = make("linear")
    y, core = layer(x), layer.core0
    numbers, size = core.detach().clone(), core.untyped_storage().nbytes()
    free(core)
    with pytest.raises(RuntimeError, match=r"core 0: sizes \[4, 4, 3\] need 192 bytes in memory, received .* 0 bytes"):
        layer(x)
    core.untyped_storage().resize_(size)
    core.data.copy_(numbers)
    assert torch.equal(layer(x), y)


def test_a_part_of_a_storage_needs_what_lies_before_it_and_its_strides():
    whole = torch.zeros(40)
    parts = (whole[10:20], whole[::3], whole.as_strided((2, 3), (1, 13)), whole[:0], whole)
    for part, last in zip(parts, (20, 40, 28, 0, 40), strict=True):
        _memory.require("x", part)
        storage = part.untyped_storage()
        for numbers in (last, last - 1):
            if numbers >= 0:
                storage.resize_(4 * numbers)
                if numbers < last:
                    with pytest.raises(RuntimeError, match=f"x: sizes .* need {4 * last} bytes in memory"):
                        _memory.require("x", part)
                else:
                    _memory.require("x", part)
        storage.resize_(160)


def test_a_storage_that_was_made_smaller_is_an_error(through):
    layer, x = make("linear")
    layer(x)
    x.untyped_storage().resize_(4 * 47)
    with pytest.raises(RuntimeError, match="x: sizes .* need 192 bytes in memory, received a storage of 188 bytes"):
        layer(x)


@pytest.mark.parametrize("change", [lambda t: t[..., :1], torch.Tensor.double], ids=["shape", "dtype"])
@pytest.mark.parametrize("which", range(4))
def test_hooks_that_do_not_give_back_what_they_took_are_an_error(through, change, which):
    layer, x = make("linear")
    count = iter(range(100))

    def pack(t):
        return next(count), t

    def unpack(packed):
        number, t = packed
        return change(t) if number == which else t

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = layer(x.requires_grad_(True))
    with pytest.raises((ValueError, RuntimeError), match="expected"):
        y.sum().backward()


def test_hooks_may_give_back_other_strides(through):
    layer, x = make("linear")
    expected = torch.autograd.grad(layer(x.requires_grad_(True)).square().sum(), [x, *layer.parameters()])

    def other_strides(t):
        return t if t.dim() < 2 else t.mT.contiguous().mT

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, other_strides):
        y = layer(x)
    assert all_close(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]), expected)


def test_cores_whose_numbers_are_to_be_negated(through):
    layer, x = make("linear")
    plain, _ = make("linear", "program")
    for calls in range(3):
        core = torch._neg_view(layer.core0.detach() + calls)
        given = {**dict(layer.named_parameters()), "core0": core}
        found, expected = (torch.func.functional_call(one, given, (x,)) for one in (layer, plain))
        assert close(found, expected)
    for one in (layer, plain):
        one._parameters["core0"] = torch.nn.Parameter(torch._neg_view(layer.core1.detach().permute(1, 2, 0)))
        one.remember_cores()
    for _ in range(2):
        assert close(layer(x), plain(x))
        given = {**dict(layer.named_parameters()), "bias": torch._neg_view(torch.ones(16))}
        assert close(torch.func.functional_call(layer, given, (x,)), torch.func.functional_call(plain, given, (x,)))


def test_both_hosts_save_the_same(library, monkeypatch):
    for net, rows in (
        (NET, 3),
        (tn.mpo((4,) * 5, (4,) * 5).with_rank(4), 40),
        (tn.build("cp", 36, 24).with_rank(3), 5),
    ):
        layer = TNLinear(net, seed=0)
        x = torch.ones(rows, net.in_features, requires_grad=True)
        found = []
        for module in (None, library[1]):
            monkeypatch.setattr(_calls._State, "module", module)
            native, saved = layer.runners.native(rows), []
            native.host = None
            with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
                torch_native.apply(native, layer.cores(), x, layer.bias, layer.run_program)
            found.append([(t.shape, t.dtype, t.device) for t in saved])
        assert found[0] == found[1]
        assert found[0][0][0] == x.shape
