"""quimb and TensorNetwork in tn4nn's place: the oracle's numbers, and clear answers to what they cannot run."""

import sys

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._base.errors import BackendError
from tn4nn.interop import engines
from tn4nn.testing import random_network

CATALOGUE = [tn.build(name, 20, 16).with_rank(2, clip=True) for name in tn.catalogue()]
NETWORKS = [*CATALOGUE, *(random_network(seed) for seed in range(6))]
CONV = tn.Conv2d(tn.cp((2, 9), (2, 2)).with_rank(3), None, 3, 1, 1)
ROWS = tn.Embedding(tn.btt((4, 5), (2, 3)).with_rank(2))
NET = tn.ring((4, 4), (2, 3)).with_rank(2)


@pytest.fixture(params=engines.ENGINES)
def engine(request):
    pytest.importorskip(request.param)
    return request.param


def near(found, expected, what):
    scale = max(1e-3, abs(expected).max(initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale, err_msg=what)


@pytest.mark.cases(2)
@pytest.mark.parametrize("net", NETWORKS, ids=lambda net: f"{net.topology.name}-{net.fingerprint[:4]}")
def test_values_and_gradients_are_the_oracles(net, engine, trained_backend):
    model, rng = tn.Linear(net), np.random.default_rng(0)
    weights = model.init(0)
    x = rng.standard_normal((7, net.in_features)).astype(np.float32)
    gy = rng.standard_normal((7, net.out_features)).astype(np.float32)
    oracle, backend = tn.backend("numpy"), tn.backend(trained_backend)
    known, mine = model.build("numpy", weights=weights), model.build(trained_backend, weights=weights, engine=engine)
    near(backend.forward(mine, x), oracle.forward(known, x), "y")
    expected, by_x = oracle.gradients(known, x, gy)
    found, mine_by_x = backend.gradients(mine, x, gy)
    near(mine_by_x, by_x, "x")
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        near(found[name], gradient, name)


@pytest.mark.parametrize("layer", [CONV, ROWS], ids=["convolution", "embedding"])
def test_other_layers_on_networks(layer, engine, trained_backend):
    if layer is ROWS and engine == "tensornetwork":
        with pytest.raises(BackendError, match="engine 'tensornetwork' runs no embeddings, since the batch stands on"):
            layer.build(trained_backend, seed=0, engine=engine)
        return
    weights = layer.init(0)
    image = np.random.default_rng(0).standard_normal((2, 2, 5, 6)).astype(np.float32)
    x = np.arange(20).reshape(4, 5) if layer is ROWS else image
    result = layer.build(trained_backend, weights=weights, engine=engine, batch=4)
    expected = tn.backend("numpy").forward(layer.build("numpy", weights=weights), x)
    near(tn.backend(trained_backend).forward(result, x), expected, "y")


def test_it_is_the_engine_that_runs(engine, trained_backend, monkeypatch):
    seen = []

    class Spy(engines._MADE[engine]):
        def contracted(self, arrays):
            seen.append([tuple(array.shape) for array in arrays])
            return super().contracted(arrays)

    monkeypatch.setitem(engines._MADE, engine, Spy)
    net = tn.tree((2, 3), (2, 2)).with_rank(2)
    backend = tn.backend(trained_backend)
    backend.forward(tn.Linear(net).build(trained_backend, seed=0, engine=engine), np.ones((5, 6), np.float32))
    assert seen[-1] == [*net.shapes.values(), (5, 2, 3)]


def test_the_path_is_that_of_the_plan(engine):
    pytest.importorskip("torch")
    net, x = tn.mpo((2, 3, 4), (4, 3, 2)).with_rank(3), np.random.default_rng(0).standard_normal((4, 24))
    weights = {name: array.astype(np.float64) for name, array in net.init(0).items()}
    for minimize in ("flops", "memory"):
        p = tn.plan(net, 4, minimize=minimize)
        y = engines.engine(engine, p)([*weights.values(), x])
        np.testing.assert_allclose(y, x @ net.to_dense(weights).T, rtol=1e-10, atol=1e-12)


def test_a_model_and_its_copy(engine):
    torch = pytest.importorskip("torch")
    from copy import deepcopy

    model = tn.Sequential(tn.Linear(NET), tn.ReLU(), tn.Linear(6, 3))
    module, x = model.build("torch", seed=0, engine=engine), torch.randn(5, 16)
    torch.testing.assert_close(deepcopy(module)(x), model.build("torch", seed=0)(x))
    torch.testing.assert_close(module[0].merge()(x), module[0](x))
    torch.testing.assert_close(module[0].weight, model.build("torch", seed=0)[0].weight)


@pytest.mark.cases(1)
def test_jax_compiles_and_maps_it(engine):
    jax = pytest.importorskip("jax")
    module = tn.Linear(NET).build("jax", seed=0, engine=engine)
    x = jax.numpy.ones((5, 16))
    assert module.options.engine == engine
    again = jax.jit(lambda m, x: jax.vmap(m)(x))(module, x)
    np.testing.assert_allclose(again, tn.Linear(NET).build("jax", seed=0)(x), rtol=1e-5, atol=1e-6)


# -- what cannot be ---------------------------------------------------------------------------------------------


def test_an_unknown_engine(trained_backend):
    with pytest.raises(BackendError, match="unknown engine 'quim'. Did you mean 'quimb'"):
        tn.Linear(NET).build(trained_backend, seed=0, engine="quim")


def test_engine_and_tune_at_once(trained_backend):
    pytest.importorskip("quimb")
    with pytest.raises(BackendError, match="tune=True measures tn4nn's own runtime, engine='quimb' runs another: pass"):
        tn.Linear(NET).build(trained_backend, seed=0, engine="quimb", tune=True)


def test_the_oracle_has_no_engines():
    with pytest.raises(BackendError, match="the numpy backend forms W and has no engines, received 'quimb': use torch"):
        tn.Linear(NET).build("numpy", engine="quimb")


@pytest.mark.parametrize(("name", "module"), engines._LIBRARIES.items())
def test_a_missing_library_gives_the_pip_line(monkeypatch, trained_backend, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError) as error:
        tn.Linear(NET).build(trained_backend, seed=0, engine=name)
    assert str(error.value) == f'{name} is not installed: pip install "tn4nn[interop]"'


def test_a_hyperedge_that_is_too_large_for_tensornetwork(trained_backend):
    pytest.importorskip("tensornetwork")
    wide = tn.Linear(tn.cp((2, 2), (2, 2)).with_rank(300))
    with pytest.raises(BackendError) as error:
        tn.Sequential(tn.ReLU(), wide).build(trained_backend, seed=0, engine="tensornetwork")
    assert str(error.value).endswith(
        "of size 300 is a hyperedge, for which TensorNetwork makes an array of 300^3 numbers: expected a size of at "
        "most 256, or use engine='quimb'"
    )
    assert wide.build(trained_backend, seed=0, engine="quimb") is not None
