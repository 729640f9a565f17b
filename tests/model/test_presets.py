"""The published models: exact counts, twins, and the same numbers on every backend."""

import numpy as np
import pytest

import tn4nn as tn
from tn4nn.reproduce import counts

NAMES = ("fc2", "lenet5", "mpo_fc", "tnn_novikov", "densenet40", "vgg16", "vgg19", "wrn20_4")


@pytest.mark.parametrize("row", counts.rows(), ids=lambda row: row["what"])
def test_every_published_count(row):
    assert row["counted"] == row["expected"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dense", [False, True])
def test_a_preset_is_data_and_takes_flat_rows(name, dense):
    model = getattr(tn.presets, name)(dense=dense)
    assert model.out_shape(model.input_shape) == (10,)
    assert tn.model_from_json(model.to_json()) == model
    assert any(net.ranks for net in model.networks().values()) is not dense


@pytest.mark.parametrize("name", NAMES)
def test_twins_differ_in_the_replaced_layers_alone(name):
    model, twin = getattr(tn.presets, name)(), getattr(tn.presets, name)(dense=True)
    pairs = tn.presets.replaced(model, twin)
    assert all(pair.params < pair.dense_params for pair in pairs)
    spared = sum(pair.dense_params - pair.params for pair in pairs)
    assert twin.num_weights - model.num_weights == spared
    assert tn.presets.replaced(twin, twin) == ()


def test_models_that_are_no_twins():
    with pytest.raises(tn.TopologyError, match="layer 'conv3' has no dense twin: expected one of 0, 2"):
        tn.presets.replaced(tn.presets.lenet5(), tn.presets.fc2(dense=True))


def forward(backend, model, weights, x):
    pytest.importorskip(backend)
    module = model.build(backend, weights, batch=len(x), phase="forward")
    if backend == "torch":
        import torch

        with torch.no_grad():
            return module.eval()(torch.from_numpy(x)).numpy()
    import jax.numpy as jnp

    return np.asarray(module(jnp.asarray(x)))


def check_both(name, dense):
    model = getattr(tn.presets, name)(dense=dense)
    weights = model.init(0)
    x = np.random.default_rng(0).uniform(size=(2, *model.input_shape)).astype("float32")
    torch_y, jax_y = (forward(backend, model, weights, x) for backend in ("torch", "jax"))
    assert np.abs(torch_y).max() > 1e-6
    np.testing.assert_allclose(torch_y, jax_y, rtol=1e-4, atol=1e-4 * np.abs(torch_y).max())


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", ["fc2", "lenet5", "mpo_fc", "tnn_novikov"])
def test_small_presets_on_both_backends(name, dense):
    check_both(name, dense)


@pytest.mark.slow
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", ["densenet40", "vgg16", "vgg19", "wrn20_4"])
def test_large_presets_on_both_backends(name, dense):
    check_both(name, dense)
