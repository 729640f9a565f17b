"""jax.export with a batch that has no number yet."""

import numpy as np
import pytest
from helpers import all_close, close

import tn4nn as tn

jax = pytest.importorskip("jax")
tj = pytest.importorskip("tn4nn_jax")
export = pytest.importorskip("jax.export")

NET = tn.mpo((4, 4), (4, 4)).with_rank(3)
CONV = tn.mpo((8, 9), (4, 4)).with_rank(3)
MODEL = tn.Sequential(
    tn.Conv2d(CONV, kernel=3, padding=1), tn.BatchNorm(16), tn.ReLU(), tn.MaxPool(2), tn.Flatten(), tn.Linear(144, 10)
)
LAYERS = {  # what makes it, and the shape of a sample
    "linear": (lambda **o: tj.TNLinear(NET, seed=0, **o), (16,)),
    "three axes": (lambda **o: tj.TNLinear(NET, seed=0, **o), (3, 16)),
    "padded": (lambda **o: tj.TNLinear(tn.build("mpo", 35, 23, sites=2).with_rank(3), seed=0, **o), (35,)),
    "batch leg": (lambda **o: tj.TNLinear(tn.build("monarch", 16, 16), seed=0, **o), (16,)),
    "dense": (lambda **o: tj.TNLinear(tn.build("dense", 16, 16), seed=0, **o), (16,)),
    "convolution": (lambda **o: tj.TNConv2d(CONV, padding=1, seed=0, **o), (8, 6, 6)),
    "embedding": (lambda **o: tj.TNEmbedding(tn.mpo((10, 10), (4, 4)).with_rank(3), seed=0, **o), (5,)),
    "model": (lambda **o: tj._modules.build_module(tj.JaxModule, MODEL, None, seed=0, **o), (8, 6, 6)),
}
OPTIONS = {"native": {}, "program": {"runtime": "program"}, "planned": {"batch": 32}, "memory": {"minimize": "memory"}}


def inputs(name, rows):
    """Numbers of a layer's own dtype."""
    size = (rows, *LAYERS[name][1])
    values = np.arange(np.prod(size)).reshape(size) % 7
    return values.astype(np.int32 if name == "embedding" else np.float32)


def symbolic(name):
    (batch,) = export.symbolic_shape("batch")
    example = inputs(name, 1)
    return jax.ShapeDtypeStruct((batch, *example.shape[1:]), example.dtype)


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("options", list(OPTIONS))
def test_a_batch_of_any_size(name, options):
    layer = LAYERS[name][0](**OPTIONS[options])
    exported = export.export(jax.jit(lambda x: layer(x)))(symbolic(name))
    for rows in (1, 7, 300):
        assert close(exported.call(inputs(name, rows)), layer(inputs(name, rows)))


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("options", ["native", "program"])
def test_its_gradients(name, options):
    layer = LAYERS[name][0](**OPTIONS[options])
    step = jax.jit(jax.grad(lambda m, x: (m(x) ** 2).sum()))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), layer)
    function = jax.jit(lambda weights, x: step(layer.updated(weights), x).weights)
    exported = export.export(function)(shapes.weights, symbolic(name))
    x = inputs(name, 7)
    assert all_close(exported.call(layer.weights, x), step(layer, x).weights, 1e-4)


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "model"])
@pytest.mark.parametrize("options", ["native", "program"])
def test_mapped_over_the_batch(name, options):
    layer, x = LAYERS[name][0](**OPTIONS[options]), inputs(name, 7)
    mapped = jax.jit(jax.vmap(lambda x: layer(x)))
    exported = export.export(mapped)(symbolic(name))
    assert close(exported.call(x), layer(x))
    assert close(mapped(x), layer(x))
    if name != "embedding":
        gradient = jax.jit(jax.vmap(jax.grad(lambda x: (layer(x) ** 2).sum())))
        assert close(export.export(gradient)(symbolic(name)).call(x), gradient(x), 1e-4)
