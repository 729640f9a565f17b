"""The C++ extension: what the Python calls give, gradients and errors included, and that only a command compiles it."""

import copy
import gc
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import all_close, close
from helpers.files import spoil

import tn4nn as tn
from tn4nn._base import libraries
from tn4nn._planning import native as _native_executor
from tn4nn._runtime import native as _native
from tn4nn._runtime import recipe as _recipe

torch = pytest.importorskip("torch")
import tn4nn_torch  # noqa: E402
from tn4nn_torch import TNLinear, _calls  # noqa: E402
from tn4nn_torch import _native as torch_native  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

if _native.runtime(4) is None or _calls.shutil.which("g++") is None:
    pytest.skip("no C++ compiler on this machine", allow_module_level=True)

NETWORKS = {
    name: tn.build(name, 36, 24, sites=4 if name == "mera" else 2, pad=False).with_rank(2, clip=True)
    for name in tn.catalogue()
    if name != "dense"
} | {"mpo-5": tn.mpo((4,) * 5, (4,) * 5).with_rank(4), "padded": tn.build("mpo", 35, 23, sites=2).with_rank(3)}


def layers(net, **options):
    """The same layer twice: through the extension, and in torch's own operations."""
    return TNLinear(net, seed=1, **options), TNLinear(net, seed=1, executor="program", **options)


def rows_of(net, rows, dtype=np.float32):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((rows, net.in_features)).astype(dtype))


def gradients_of(layer, x, **options):
    value = x.clone().requires_grad_(True)
    return torch.autograd.grad((layer(value) ** 2).sum(), [value, *layer.parameters()], **options)


def used(layer, x):
    """Whether calls for such rows go through the extension."""
    return layer.runners.native(len(x)).host is not None


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("rows", [1, 45])
def test_values_and_gradients(extension, name, rows):
    net = NETWORKS[name]
    ours, plain = layers(net)
    x = rows_of(net, rows)
    for _ in range(2):  # the second call takes the short path
        assert close(ours(x), plain(x))
        assert all_close(gradients_of(ours, x), gradients_of(plain, x))
    assert used(ours, x)
    with torch.no_grad():
        assert close(ours(x), plain(x))


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", ["ring", "cp", "padded"])
def test_first_and_second_derivatives_in_float64(extension, name):
    net = NETWORKS[name]
    ours, _ = layers(net, dtype="float64")
    x = rows_of(net, 3, np.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda value, *_: ours(value), (x, *ours.parameters()))
    assert torch.autograd.gradgradcheck(lambda value, *_: ours(value), (x, *ours.parameters()))
    assert used(ours, x)


def test_second_derivatives_through_an_input_that_is_not_contiguous(extension):
    net = NETWORKS["tree"]
    ours, plain = layers(net)
    x = rows_of(net, 6).T.contiguous()

    def second(layer):
        value = x.clone().requires_grad_(True)
        (first,) = torch.autograd.grad((layer(value.T) ** 2).sum(), value, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [value, *list(layer.parameters())[:2]])

    assert all_close(second(ours), second(plain))


def test_gradients_that_do_not_lie_in_memory_as_they_are(extension):
    net = NETWORKS["tree"]
    ours, plain = layers(net)
    x = rows_of(net, 6).requires_grad_(True)
    for gy in (torch._neg_view(torch.ones(6, 24)), torch._efficientzerotensor(6, 24)):
        pair = [torch.autograd.grad(layer(x), [x, *list(layer.parameters())[:2]], gy) for layer in (ours, plain)]
        assert all_close(*pair)
    gy = torch.randn(3, 6, 24)
    pair = [torch.autograd.grad(layer(x), x, gy, is_grads_batched=True)[0] for layer in (ours, plain)]
    assert close(*pair)
    outputs = [layer(x) for layer in (ours, plain)]
    mapped = [torch.vmap(lambda g, y=y: torch.autograd.grad(y, x, g, retain_graph=True)[0])(gy) for y in outputs]
    assert close(*mapped)
    assert used(ours, x)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_watched_calls_and_other_cores_do_not_take_the_short_path(extension):
    net = NETWORKS["mpo-5"]
    ours, plain = layers(net, bias=False)
    x, seen = rows_of(net, 6), []

    def watched(value):
        seen.append(_calls.quick(*given))
        return ours(value)

    assert close(ours(x), plain(x))
    (found,) = ours._quick.values()
    given = [_calls.ready(found), x, ours._parameters, ours._names, ours._own]
    assert close(_calls.quick(*given), plain(x))
    gradient = torch.func.grad(lambda value: watched(value).sum())(x)
    assert close(gradient, torch.func.grad(lambda value: plain(value).sum())(x))
    assert close(torch.vmap(watched)(x[:, None]), plain(x)[:, None])
    with torch.autocast("cpu"):
        assert watched(x).dtype is torch.bfloat16
    with FlopCounterMode(display=False) as counter:
        watched(x)
    assert counter.get_total_flops() > 0
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        assert close(torch.autograd.forward_ad.unpack_dual(ours(dual)).tangent, plain(x))
    for other in (torch._neg_view(x), torch._efficientzerotensor(6, 1024)):
        assert _calls.quick(found.host, other, *given[2:]) is None
        assert close(ours(other), plain(other))
    own = ours.core2
    ours.core2 = torch.nn.Parameter(2 * own.detach())
    seen.append(_calls.quick(*given))
    assert seen == [None] * len(seen)
    assert len(seen) >= 5
    assert close(ours(x), 2 * plain(x))


@pytest.mark.cases(3)
@pytest.mark.parametrize("name", ["ring", "padded"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0)])
@pytest.mark.parametrize("through", ["extension", "python"])
def test_inputs_of_any_rank_with_their_bias(name, shape, through, library, monkeypatch):
    if through == "extension":
        monkeypatch.setattr(_calls._State, "module", library[1])
    net = NETWORKS[name]
    ours, plain = layers(net, dtype="float64")
    with torch.no_grad():
        ours.bias.add_(torch.arange(ours.out_features))
        plain.bias.copy_(ours.bias)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((*shape, net.in_features)))
    for _ in range(2):  # the second call takes the short path
        assert ours(x).shape == (*shape, net.out_features)
        assert torch.allclose(ours(x), plain(x))
        assert all(torch.allclose(a, b) for a, b in zip(gradients_of(ours, x), gradients_of(plain, x), strict=True))
    assert (x.shape, x.dtype) in ours._quick or name == "padded" or not x.numel()
    ours.requires_grad_(False)
    ours.bias.requires_grad_(True)
    gy = torch.randn_like(ours(x))
    assert torch.allclose(torch.autograd.grad(ours(x), ours.bias, gy)[0], gy.reshape(-1, net.out_features).sum(0))
    if x.numel():
        assert torch.autograd.gradgradcheck(lambda value: ours(value), (x.requires_grad_(True),))


@pytest.mark.parametrize("given", [(), (1, torch.ones(1, 2), {"bias": None}, (), ()), (1, 2, 3, 4, 5)])
def test_what_is_no_call_is_an_error_and_not_a_crash(extension, given):
    with pytest.raises((TypeError, ValueError)):
        _calls._State.module.quick(*given)
    with pytest.raises((TypeError, ValueError)):
        _calls._State.module.apply(*given[:4])


def test_the_profiler_shows_it(extension):
    net = NETWORKS["ring"]
    ours, x = layers(net)[0], rows_of(net, 4).requires_grad_(True)
    ours(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ours(x).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert "tn4nn::native" in names
    assert any("NativeBackward" in name for name in names)


def test_only_what_is_asked_for_gets_a_gradient(extension):
    net = NETWORKS["mpo-5"]
    whole = gradients_of(layers(net)[1], rows_of(net, 20))
    for frozen in range(7):
        ours, x = layers(net)[0], rows_of(net, 20).requires_grad_(frozen % 2 == 0)
        for position, parameter in enumerate(ours.parameters()):
            parameter.requires_grad_(position != frozen)
        (ours(x) ** 2).sum().backward()
        for position, parameter in enumerate(ours.parameters()):
            assert (parameter.grad is None) == (position == frozen)
            assert position == frozen or close(parameter.grad, whole[1 + position])
        assert x.grad is None if frozen % 2 else close(x.grad, whole[0])
        (part,) = torch.autograd.grad((ours(x) ** 2).sum(), [list(ours.parameters())[(frozen + 1) % 5]])
        assert close(part, whole[1 + (frozen + 1) % 5])


def test_a_result_outlives_its_layer(extension):
    net = NETWORKS["ring"]
    ours, plain = layers(net)
    x = rows_of(net, 9).requires_grad_(True)
    expected = torch.autograd.grad((plain(x) ** 2).sum(), x)[0]
    loss = (ours(x) ** 2).sum()
    del ours
    gc.collect()
    assert close(torch.autograd.grad(loss, x)[0], expected)


@pytest.mark.thorough
def test_threads_copies_and_strides(extension):
    net = NETWORKS["mpo-5"]
    ours, plain = layers(net)
    x = rows_of(net, 4000)
    y, gradients = plain(x), gradients_of(plain, x)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert close(ours(x), y)
        assert all_close(gradients_of(ours, x), gradients)
    finally:
        torch.set_num_threads(before)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert close(other(x), y)
    assert close(ours(torch.stack([x, x], -1)[..., 0]), y)
    ours._parameters["core1"] = torch.nn.Parameter(ours.core1.detach().mT.contiguous().mT)
    assert all_close(gradients_of(ours, x), gradients)
    assert close(ours.double()(x.double()).float(), y)


def test_little_more_than_the_input_is_saved(extension):
    net = NETWORKS["mpo-5"]
    x, saved = rows_of(net, 2048), {}
    ours = layers(net)[0]
    parameters = {p.untyped_storage().data_ptr() for p in ours.parameters()}

    def pack(t):
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        ours(x.clone().requires_grad_(True))
    total = sum(size for address, size in saved.items() if address not in parameters)
    assert x.nbytes <= total <= x.nbytes + 2**20


@pytest.mark.parametrize("through", ["extension", "python"])
def test_cores_that_do_not_fit_are_refused_and_not_read(through, library, monkeypatch):
    if through == "extension":
        monkeypatch.setattr(_calls._State, "module", library[1])
    net = NETWORKS["mpo-5"]
    ours, x = layers(net)[0], rows_of(net, 4)
    ours(x)
    fits = "core 1: expected 256 numbers of the input's dtype.*received"
    for wrong in (torch.zeros(3), ours.core1.detach().double()):
        given = {**dict(ours.named_parameters()), "core1": wrong}
        text = fits if wrong.dtype == torch.float64 else r"core 'core1': expected shape \(4, 4, 4, 4\), received \(3,\)"
        with pytest.raises(ValueError, match=text):
            torch.func.functional_call(ours, given, (x,))
        (found,) = ours._quick.values()  # behind the layer's own check
        with pytest.raises(ValueError, match=fits):
            torch_native.apply(found, list(given.values())[:5], x, None, ours.run_program)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_first_call_may_come_without_gradients(mode, library, monkeypatch):
    monkeypatch.setattr(_calls._State, "module", library[1])
    with mode():
        assert _calls._agrees(library[1])
        ours, plain = layers(NETWORKS["ring"])
        x = rows_of(NETWORKS["ring"], 7)
        assert close(ours(x), plain(x))


# -- when it is looked for ---------------------------------------------------------------------------------------


@pytest.fixture
def untouched(monkeypatch, tmp_path):
    """A process that has made no call yet, with an empty cache folder."""
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    monkeypatch.setenv("TN4NN_EXTENSION", "1")
    for name, value in {"module": None, "off": False}.items():
        monkeypatch.setattr(_calls._State, name, value)
    return _calls._State


def test_it_is_looked_for_once_and_never_compiled_by_a_call(untouched, monkeypatch):
    looked = []
    monkeypatch.setattr(_calls, "existing", lambda name: looked.append(name))
    monkeypatch.setattr(_calls, "_built", lambda: pytest.fail("it was compiled"))
    assert [_calls.ready(SimpleNamespace(host=None)) for _ in range(30)] == [None] * 30
    assert looked == [_calls._name()]


def test_one_that_lies_in_the_cache_is_loaded_by_the_first_call(extension, untouched, monkeypatch):
    path = libraries._stored(_calls._path(), extension.read_bytes())
    loaded = []
    monkeypatch.setattr(_calls, "_load", lambda path: loaded.append(path) or setattr(untouched, "off", True))
    assert [_calls.ready(SimpleNamespace(host=None)) for _ in range(3)] == [None] * 3
    assert loaded == [path]


def test_the_environment_turns_it_off(untouched, monkeypatch):
    monkeypatch.setenv("TN4NN_EXTENSION", "0")
    assert _calls.ready(SimpleNamespace(host=None)) is None
    assert untouched.off


def test_a_missing_or_failing_compiler_is_an_error_where_it_was_asked_for(untouched, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(_calls.shutil, "which", lambda name: None)
        with pytest.raises(tn.BackendError, match=r"no C\+\+ compiler.*install g\+\+"):
            tn4nn_torch.build_extension()
    with monkeypatch.context() as patch:
        patch.setattr(_calls.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
        with pytest.raises(tn.BackendError, match=r"Python\.h, which is not in /nowhere: install python3-dev"):
            tn4nn_torch.build_extension()
    monkeypatch.setattr(_calls, "_source", lambda: "no C++")
    monkeypatch.setattr(_calls, "_name", lambda: "calls-of-no-source.so")
    with pytest.raises(tn.BackendError, match=r"torch extension could not be compiled: .* failed: .*error"):
        tn4nn_torch.build_extension()


def test_a_library_that_does_not_load_is_not_used(untouched):
    libraries._stored(_calls._path(), b"no library")
    with (
        pytest.warns(UserWarning, match="does not load"),
        pytest.raises(tn.BackendError, match="does not load or gives wrong numbers"),
    ):
        tn4nn_torch.build_extension()
    layer = TNLinear(NETWORKS["ring"])
    assert layer(torch.zeros(2, 36)).shape == (2, 24)


@pytest.mark.parametrize("how", ["cut", "flipped", "no digest", "open to others", "a link", "of another"])
def test_a_library_that_is_damaged_or_not_ours_is_never_loaded(how, extension, untouched, monkeypatch):
    path = libraries._stored(_calls._path(), extension.read_bytes())
    assert libraries.is_whole(path)
    spoil(path, how, monkeypatch)
    monkeypatch.setattr(_calls, "_load", lambda path: pytest.fail("it was loaded"))
    assert not libraries.is_whole(path)
    if how != "of another":  # then neither the folder is ours, which is told
        assert _calls.ready(SimpleNamespace(host=None)) is None


def test_the_prologue_is_recomputed_where_it_is_not_saved(extension, monkeypatch):
    monkeypatch.setattr(_recipe, "_SAVED_PROLOGUE", 0)
    monkeypatch.setattr(_native_executor, "_SAVE", -1)
    net = tn.mpo((4, 3, 5, 4), (3, 4, 4, 5)).with_rank(5)
    ours, plain = layers(net)
    x = rows_of(net, 600)
    assert close(ours(x), plain(x))
    assert all_close(gradients_of(ours, x), gradients_of(plain, x))
    assert used(ours, x)
    assert ours.runners.native(600).saved(600) == 0
