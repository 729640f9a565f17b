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


@pytest.mark.cases(5)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", ["fc2", "lenet5", "mpo_fc", "tnn_novikov"])
def test_small_presets_on_both_backends(name, dense):
    check_both(name, dense)


@pytest.mark.slow
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", ["densenet40", "vgg16", "vgg19", "wrn20_4"])
def test_large_presets_on_both_backends(name, dense):
    check_both(name, dense)


# -- dense models to begin with ---------------------------------------------------------------------------------

SMALL = {
    "mlp": tn.presets.mlp((784, 32, 16, 10), dropout=0.1),
    "cnn": tn.presets.cnn((4, 8), 16, dropout=0.1),
    "vit": tn.presets.vit(2, 16, 2, patch=14, dropout=0.1),
    "vit-rms": tn.presets.vit(1, 16, 4, image=(3, 8, 12), patch=4, kv_heads=2, gated=True, norm="rms", bias=False),
    "gpt": tn.presets.gpt(2, 32, 4, dropout=0.1),
    "gpt-llama": tn.presets.gpt(2, 32, 4, kv_heads=2, gated=True, norm="rms", rotary=True, bias=False),
    "gpt-tied": tn.presets.gpt(1, 32, 4, tied=True),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_dense_model_is_data_and_runs(name):
    model = SMALL[name]
    assert tn.model_from_json(model.to_json()) == model
    whole = name.startswith("gpt")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 65, (2, 9)) if whole else rng.standard_normal((2, *model.input_shape))
    y = model.build("numpy", seed=0)(x)
    assert y.shape == ((2, 9, 65) if whole else (2, 10))
    assert 0.1 < y.std() < 3
    assert not any(net.ranks for net in model.networks().values())


def test_images_need_not_be_flat():
    for name in ("cnn", "vit"):
        x = np.random.default_rng(0).standard_normal((2, 1, 28, 28))
        module = SMALL[name].build("numpy", seed=0)
        np.testing.assert_array_equal(module(x), module(x.reshape(2, 784)))


def test_the_names_of_the_layers():
    assert list(SMALL["mlp"].networks()) == ["fc1", "fc2", "head"]
    assert list(SMALL["cnn"].networks()) == ["conv1", "conv2", "fc", "head"]
    attention = [f"attention.{name}" for name in ("query", "key", "value", "out")]
    block = [*attention, "mlp.up", "mlp.down"]
    blocks = [f"blocks.{i}.{name}" for i in range(2) for name in block]
    assert list(SMALL["gpt"].networks()) == ["embedding", "positions.table", *blocks, "head"]
    assert list(SMALL["vit"].networks()) == ["patches", "positions.table", *blocks, "head"]
    gated = [*attention, "mlp.hidden.gate.linear", "mlp.hidden.up", "mlp.down"]
    llama = [f"blocks.{i}.{name}" for i in range(2) for name in gated]
    assert list(SMALL["gpt-llama"].networks()) == ["embedding", *llama, "head"]
    tied = [f"body.{name}" for name in ("positions.table", *blocks[:6])]
    assert list(SMALL["gpt-tied"].networks()) == ["embedding", *tied]


def test_a_gated_mlp_has_about_as_many_weights():
    plain, gated = (tn.presets.gpt(1, 240, 4, gated=gated).num_weights for gated in (False, True))
    assert gated == plain


def test_the_residual_stream_does_not_grow_with_the_depth():
    def spread(layers):
        model = tn.presets.gpt(layers, 32, 4)
        stream = tn.Sequential(*(layer for name, layer in model.children() if name not in ("norm", "head")))
        return stream.build("numpy", seed=0)(np.arange(60).reshape(4, 15)).std()

    assert spread(8) == pytest.approx(spread(1), rel=0.15)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: tn.presets.mlp((784,)), "mlp: expected the sizes of input and output at least, received"),
        (lambda: tn.presets.vit(patch=5), "sides of the image must be multiples of the patch"),
        (lambda: tn.presets.gpt(norm="batch"), "norm must be 'layer' or 'rms', received 'batch'"),
        (lambda: tn.presets.gpt(0), "layers must be at least 1, received 0"),
        (lambda: tn.presets.gpt(heads=3), "width must be a multiple of heads"),
    ],
)
def test_errors_of_dense_models(make, expected):
    with pytest.raises(tn.ShapeError, match=expected):
        make()
