"""What layers do where nothing is said: seeds, dtypes, and where they are."""

import contextlib
import copy
import itertools
import pickle

import numpy as np
import pytest
from helpers import close

import tn4nn as tn

NET = tn.mpo((4, 4), (4, 4)).with_rank(3)
CONV = tn.mpo((8, 9), (4, 4)).with_rank(3)
TABLE = tn.mpo((10, 10), (4, 4)).with_rank(3)


def differ(*weights):
    """Whether all pairs of some dictionaries of weights differ in every core."""
    return all(
        not np.array_equal(np.asarray(a[name]), np.asarray(b[name]))
        for a, b in itertools.combinations(weights, 2)
        for name in a
        if "core" in name
    )


def same(a, b):
    return all(np.array_equal(np.asarray(a[name]), np.asarray(b[name])) for name in a)


# -- the layer graph --------------------------------------------------------------------------------------------


def test_equal_networks_in_one_model_begin_with_different_weights():
    branch = tn.Sequential(tn.Linear(NET), tn.ReLU(), tn.Linear(NET))
    for model in (branch, tn.Parallel(branch, branch), tn.Sequential(tn.Residual(branch), branch)):
        drawn = model.init(0)
        per_core = {}
        for name, array in drawn.items():
            per_core.setdefault(name.rsplit(".", 1)[1], []).append(array)
        assert all(not np.array_equal(a, b) for core, found in per_core.items() if core != "bias"
                   for a, b in itertools.combinations(found, 2))  # fmt: skip


def test_build_takes_what_its_framework_draws(backend):
    model = tn.Sequential(tn.Linear(NET), tn.ReLU(), tn.Linear(NET))
    if backend.name == "jax":
        with pytest.raises(tn.BackendError, match="jax has no generator of its own"):
            model.build("jax")
        return
    first, second = (backend.weights(model.build(backend.name)) for _ in range(2))
    assert differ(first, second) if backend.name == "torch" else same(first, second)
    assert same(backend.weights(model.build(backend.name, seed=3)), model.init(3))


# -- torch ------------------------------------------------------------------------------------------------------


def torch_layers():
    tn4nn_torch = pytest.importorskip("tn4nn_torch")
    return {
        "linear": lambda **o: tn4nn_torch.TNLinear(NET, **o),
        "ordered": lambda **o: tn4nn_torch.TNLinear(NET, ordering=tn.Ordering.random(16, seed=1), **o),
        "convolution": lambda **o: tn4nn_torch.TNConv2d(CONV, 3, **o),
        "embedding": lambda **o: tn4nn_torch.TNEmbedding(TABLE, **o),
    }


@pytest.fixture(params=["linear", "ordered", "convolution", "embedding"])
def torch_layer(request):
    """What makes a layer of torch."""
    return torch_layers()[request.param]


def test_torch_draws_from_its_generator(torch_layer):
    torch = pytest.importorskip("torch")
    found = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        found += [torch_layer().state_dict(), torch_layer().state_dict()]
    assert differ(*found[:4])
    assert same(found[0], found[4])
    assert same(found[1], found[5])
    with torch.random.fork_rng():
        torch_layer()
    state = torch.get_rng_state()
    assert same(torch_layer(seed=5).state_dict(), torch_layer(seed=5).state_dict())
    torch_layer(device="meta")
    assert torch.equal(state, torch.get_rng_state())  # nothing was drawn


def test_reset_parameters_draws_anew(torch_layer):
    torch = pytest.importorskip("torch")
    layer = torch_layer(device="meta").to_empty(device="cpu")
    cores = layer.cores()
    torch.manual_seed(7)
    layer.reset_parameters()
    torch.manual_seed(7)
    assert same(layer.state_dict(), torch_layer().state_dict())
    assert all(a is b for a, b in zip(cores, layer.cores(), strict=True))
    torch_layer(device="meta").reset_parameters()


def test_torch_takes_its_default_dtype(torch_layer):
    torch = pytest.importorskip("torch")
    torch.set_default_dtype(torch.float64)
    try:
        layer, chosen = torch_layer(), torch_layer(dtype="float32")
        module = tn.Linear(NET).build("torch", seed=0)
        assert tn.Linear(NET).build("torch", seed=0, dtype="float32").core0.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert {p.dtype for p in chosen.parameters()} == {torch.float32}
    assert module.core0.dtype == torch.float64


def _as_accelerate(torch):
    """What accelerate's init_empty_weights does."""

    @contextlib.contextmanager
    def patched():
        before = torch.nn.Module.register_parameter

        def register(module, name, parameter):
            before(module, name, parameter)
            if parameter is not None:
                kind = type(module._parameters[name])
                module._parameters[name] = kind(module._parameters[name].to("meta"), requires_grad=True)

        torch.nn.Module.register_parameter = register
        try:
            yield
        finally:
            torch.nn.Module.register_parameter = before

    return patched()


@pytest.mark.parametrize("way", ["accelerate", "patched", "device", "default device", "fake"])
def test_layers_that_are_made_without_memory(torch_layer, way):
    torch = pytest.importorskip("torch")
    if way == "accelerate":
        context = pytest.importorskip("accelerate").init_empty_weights()
    elif way == "fake":
        from torch._subclasses import FakeTensorMode

        context = FakeTensorMode()
    else:
        context = _as_accelerate(torch) if way == "patched" else torch.device("meta")
    if way == "default device":
        torch.set_default_device("meta")
        context = contextlib.nullcontext()
    try:
        with context:
            layer = torch_layer()
    finally:
        torch.set_default_device(None)
    if way == "fake":
        assert all(type(p.data).__name__ == "FakeTensor" for p in layer.parameters())
        return
    assert all(p.is_meta and p.requires_grad for p in layer.parameters())
    expected = torch_layer(seed=1)
    layer.load_state_dict(expected.state_dict(), assign=True)
    x = torch.ones(2, 8, 4, 4) if hasattr(layer, "conv") else torch.ones(2, layer.in_features)
    x = torch.arange(5) if hasattr(layer, "padding_idx") else x
    assert close(layer(x), expected(x))
    assert close(layer(x), expected(x))


@pytest.mark.parametrize("grad", [True, False])
def test_a_forward_pass_on_the_meta_device(torch_layer, grad):
    torch = pytest.importorskip("torch")
    layer = torch_layer(device="meta")
    x = torch.ones(2, 8, 4, 4) if hasattr(layer, "conv") else torch.ones(2, 3, 16)
    x = torch.ones(2, 3, dtype=torch.int64) if hasattr(layer, "padding_idx") else x
    real = torch_layer()(x)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            y = layer(x.to("meta"))
            assert y.is_meta
            assert y.shape == real.shape
            if grad:
                y.sum().backward()
                assert all(p.grad.is_meta and p.grad.shape == p.shape for p in layer.parameters())
    assert layer.weight.is_meta
    with torch.autocast("cpu"):
        assert layer(x.to("meta")).is_meta


def test_a_core_may_have_the_name_of_an_attribute():
    tn4nn_torch = pytest.importorskip("tn4nn_torch")
    net = tn.topology("plan: x a, layer: a y", {"x": 4}, {"y": 4}).with_rank(2)
    layer = tn4nn_torch.TNLinear(net, seed=0)
    assert sorted(layer.state_dict()) == ["bias", "layer", "plan"]


# -- jax --------------------------------------------------------------------------------------------------------


def jax_layers():
    tn4nn_jax = pytest.importorskip("tn4nn_jax")
    return {
        "linear": lambda **o: tn4nn_jax.TNLinear(NET, **o),
        "convolution": lambda **o: tn4nn_jax.TNConv2d(CONV, **o),
        "embedding": lambda **o: tn4nn_jax.TNEmbedding(TABLE, **o),
    }


@pytest.fixture(params=["linear", "convolution", "embedding"])
def jax_layer(request):
    """What makes a layer of jax."""
    return jax_layers()[request.param]


def test_jax_takes_a_seed_or_a_key(jax_layer):
    jax = pytest.importorskip("jax")
    with pytest.raises(tn.BackendError, match="expected weights=, seed= .* or key=.*received neither"):
        jax_layer()
    with pytest.raises(tn.BackendError, match="received both"):
        jax_layer(seed=0, key=jax.random.key(0))
    keys = [*jax.random.split(jax.random.key(0)), jax.random.PRNGKey(3)]
    assert differ(*(jax_layer(key=key).weights for key in keys))
    assert same(jax_layer(key=keys[0]).weights, jax_layer(key=keys[0]).weights)
    assert differ(jax_layer(seed=0).weights, jax_layer(seed=1).weights)


@pytest.mark.cases(1)
def test_jax_layers_may_be_made_while_it_traces(jax_layer):
    jax = pytest.importorskip("jax")
    keys = jax.random.split(jax.random.key(0), 3)
    apart = [jax_layer(key=key) for key in keys]
    assert same(jax.jit(lambda key: jax_layer(key=key))(keys[1]).weights, apart[1].weights)
    many = jax.vmap(lambda key: jax_layer(key=key))(keys)
    for i, one in enumerate(apart):
        assert same(jax.tree.map(lambda a, i=i: a[i], many).weights, one.weights)
    shapes = jax.eval_shape(lambda key: jax_layer(key=key), keys[0])
    assert {name: a.shape for name, a in shapes.weights.items()} == {n: a.shape for n, a in apart[0].weights.items()}


@pytest.mark.cases(2)
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning")
def test_float64_that_turned_float32_is_an_error(jax_layer):
    jax = pytest.importorskip("jax")
    layer = jax_layer(seed=0, dtype="float64")
    x = np.ones((1, 8, 4, 4)) if hasattr(layer.model, "kernel") else np.ones((2, 16))
    x = np.ones(2, int) if type(layer.model).__name__ == "Embedding" else x
    assert layer(x).dtype == np.float64
    assert jax.jit(lambda m: m(x))(layer).dtype == np.float64
    turned = jax.jit(lambda m: jax.tree.map(lambda a: a * 1, m))(layer)  # an optimizer step, for instance
    for call in (lambda: turned(x), lambda: turned.apply(x), lambda: jax.jit(lambda m: m(x))(turned)):
        with pytest.raises(tn.BackendError, match=r"built in float64, and its weight .* is float32 now.*enable_x64"):
            call()
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64(True):
        assert jax.jit(lambda m: m(x))(jax.tree.map(lambda a: a * 1, layer)).dtype == np.float64
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert again(x).dtype == np.float64
        assert type(again) is type(layer)
        assert same(again.weights, layer.weights)
