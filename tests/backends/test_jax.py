"""The jax backend: values and gradients against plain numpy in float64, transformations, training."""

from __future__ import annotations

import copy
import doctest
import importlib
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import first_of

import tn4nn as tn
from tn4nn._base.errors import BackendError, CheckpointError, ShapeError, TN4NNError
from tn4nn._model.backend import TrainSpec
from tn4nn._planning.layer import LayerPlanner
from tn4nn._planning.plan import Plan
from tn4nn._planning.planner import find
from tn4nn.reference import forward as oracle

jax = pytest.importorskip("jax", reason='jax is not installed: pip install "tn4nn[jax]"')
pytest.importorskip("optax", reason='optax is not installed: pip install "tn4nn[jax]"')

import jax.numpy as jnp  # noqa: E402
import tn4nn_jax as tj  # noqa: E402
from tn4nn_jax._device import device_of, to_host, wide  # noqa: E402
from tn4nn_jax._trainer import cross_entropy, mse  # noqa: E402

BACKEND = tj.backend
Arrays = dict[str, np.ndarray[Any, Any]]

THREE = {"x0": 2, "x1": 3, "x2": 2}
NETWORKS = {
    "mpo": tn.topology("x0 y0 a, x1 y1 a b, x2 y2 b", THREE, {"y0": 2, "y1": 2, "y2": 3}).with_rank(3),
    "btt": tn.topology("x0 x1 y1 r, y0 x0 y1 r", {"x0": 4, "x1": 3}, {"y0": 2, "y1": 5}).with_rank(2),
    "cp": tn.topology("x0 r, x1 r, y0 r, y1 r", {"x0": 4, "x1": 3}, {"y0": 2, "y1": 5}).with_rank(3),
    "kept": tn.topology("k x a, k y a", {"k": 3, "x": 4}, {"k": 3, "y": 2}).with_rank(2),
    "kept-free": tn.topology("x a, y a", {"k": 3, "x": 4}, {"k": 3, "y": 2}).with_rank(2),
    "padded": tn.topology(
        "x0 y0 a, x1 y1 a", {"x0": 4, "x1": 3}, {"y0": 3, "y1": 3}, in_features=11, out_features=7
    ).with_rank(3),
    "one-core": tn.topology("x0 y x1", {"x0": 4, "x1": 3}, {"y": 5}).with_ranks({}),
    "dense": tn.dense(12, 5).with_rank(1),
}


def draw(model: Any, seed: int = 0) -> Arrays:
    """Weights in float64 with biases, scales and statistics away from 0 and 1."""
    rng = np.random.default_rng(seed)
    roles = {name: spec.role for name, spec in model.specs().items()}
    drawn = {name: np.asarray(array, np.float64) for name, array in model.init(seed).items()}
    return {n: a if roles[n] == "core" else a + rng.uniform(0.1, 0.5, a.shape) for n, a in drawn.items()}


def close(received: Any, expected: Any, rtol: float = 1e-9) -> None:
    received = np.asarray(received)
    assert received.shape == np.shape(expected)
    scale = float(np.max(np.abs(expected), initial=0.0)) or 1.0
    np.testing.assert_allclose(received, expected, rtol=rtol, atol=rtol * scale)


def einsum(tensors: list[tuple[Any, tuple[str, ...]]], output: tuple[str, ...]) -> Any:
    number = {leg: i for i, leg in enumerate(dict.fromkeys(leg for _, legs in tensors for leg in legs))}
    parts: list[Any] = []
    for array, legs in tensors:
        parts += [array, [number[leg] for leg in legs]]
    return np.einsum(*parts, [number[leg] for leg in output], optimize=True)


class Plain:
    """y = x W^T + b and its gradients, each as one einsum."""

    def __init__(self, net: Any, weights: Arrays) -> None:
        self.t = net.topology
        self.cores = [(weights[core.name], core.legs) for core in self.t.cores]
        self.names = [core.name for core in self.t.cores]
        self.bias = weights.get("bias", np.zeros(self.t.out_features))
        self.ins, self.outs = ("batch", *self.t.inputs), ("batch", *self.t.outputs)

    def shaped(self, rows: Any, side: Mapping[str, int]) -> Any:
        wide = np.zeros((len(rows), math.prod(side.values())))
        wide[:, : rows.shape[1]] = rows
        return wide.reshape(len(rows), *side.values())

    def forward(self, x: Any) -> Any:
        y = einsum([*self.cores, (self.shaped(x, self.t.inputs), self.ins)], self.outs)
        return y.reshape(len(x), math.prod(y.shape[1:]))[:, : self.t.out_features] + self.bias

    def gradients(self, x: Any, gy: Any) -> tuple[Arrays, Any]:
        ends = [(self.shaped(x, self.t.inputs), self.ins), (self.shaped(gy, self.t.outputs), self.outs)]
        found = {}
        for i, name in enumerate(self.names):
            rest = self.cores[:i] + self.cores[i + 1 :]
            found[name] = einsum([*rest, *ends], self.cores[i][1])
        gx = einsum([*self.cores, ends[1]], self.ins)
        found["bias"] = gy.sum(0)
        return found, gx.reshape(len(x), math.prod(gx.shape[1:]))[:, : self.t.in_features]


# -- layers on a network ---------------------------------------------------------------------------


@pytest.mark.cases(8)
@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_linear_is_the_einsum(name: str, batch: int) -> None:
    net = NETWORKS[name]
    model = tn.Linear(net)
    weights = draw(model)
    rng = np.random.default_rng(1)
    x, gy = rng.normal(size=(batch, net.in_features)), rng.normal(size=(batch, net.out_features))
    module = BACKEND.build(model, weights, dtype="float64")
    plain = Plain(net, weights)
    y = BACKEND.forward(module, x)
    assert y.dtype == np.float64
    close(y, plain.forward(x))
    found, gx = BACKEND.gradients(module, x, gy)
    expected, expected_gx = plain.gradients(x, gy)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        close(found[key], value)
    close(gx, expected_gx)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("minimize", ["time", "flops", "memory"])
def test_linear_in_float32_for_every_objective(name: str, minimize: str) -> None:
    net = NETWORKS[name]
    model = tn.Linear(net, bias=False)
    weights = net.init(3)
    x = np.random.default_rng(1).normal(size=(9, net.in_features)).astype(np.float32)
    y = BACKEND.forward(model.build("jax", weights, minimize=minimize), x)
    assert y.dtype == np.float32
    expected = x @ net.to_dense({n: np.asarray(w, np.float64) for n, w in weights.items()}).T
    close(y, expected, 1e-5)


def test_linear_takes_leading_axes_and_a_bare_vector() -> None:
    net = NETWORKS["btt"]
    weights = net.init(0)
    x = np.random.default_rng(1).normal(size=(2, 3, 12)).astype(np.float32)
    y = tj.linear(net, weights, x, bias=np.arange(10.0, dtype=np.float32))
    expected = x @ net.to_dense(weights).T + np.arange(10.0)
    close(y, expected, 1e-5)
    close(tj.linear(net, weights, x[0, 0]), expected[0, 0] - np.arange(10.0), 1e-5)
    assert tj.linear(net, weights, np.zeros((4, 0, 12), np.float32)).shape == (4, 0, 10)
    close(tj.linear(net, weights, x, plan_batch=64), expected - np.arange(10.0), 1e-5)


def test_linear_applies_its_ordering() -> None:
    order = np.random.default_rng(0).permutation(12)
    layer = tn.Linear(NETWORKS["mpo"], ordering=order)
    weights = draw(layer)
    x, gy = np.random.default_rng(1).normal(size=(5, 12)), np.random.default_rng(2).normal(size=(5, 12))
    module = BACKEND.build(layer, weights, dtype="float64")
    plain = Plain(NETWORKS["mpo"], weights)
    close(BACKEND.forward(module, x), plain.forward(x[:, order]))
    _, gx = BACKEND.gradients(module, x, gy)
    expected = np.zeros_like(x)
    expected[:, order] = plain.gradients(x[:, order], gy)[1]
    close(gx, expected)


def test_linear_refuses_at_the_door() -> None:
    net = NETWORKS["padded"]
    weights = net.init(0)
    with pytest.raises(ShapeError, match=r"expected inputs of shape \(..., 11\), received \(3, 12\)"):
        tj.linear(net, weights, np.zeros((3, 12), np.float32))
    with pytest.raises(ShapeError, match="takes floating-point inputs, received int32"):
        tj.linear(net, weights, np.zeros((3, 11), np.int32))
    with pytest.raises(ShapeError, match="'core1' of shape"):
        tj.linear(net, {"core0": weights["core0"]}, np.zeros((3, 11), np.float32))


@pytest.mark.parametrize("jitted", [False, True])
def test_a_core_of_the_right_size_and_another_shape_is_refused(jitted: bool) -> None:
    layer = tn.Linear(NETWORKS["mpo"])
    weights = layer.init(0)
    module = layer.build("jax", weights)
    call = jax.jit(lambda m, x: m(x)) if jitted else lambda m, x: m(x)
    assert call(module, jnp.ones((2, 12))).shape == (2, 12)
    turned = jax.tree.map(lambda a: a.reshape(a.shape[::-1]), module)
    with pytest.raises(ShapeError, match=r"'core0': expected shape \(2, 2, 3\), received \(3, 2, 2\)"):
        call(turned, jnp.ones((2, 12)))


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", ["mpo", "btt", "cp", "padded", "one-core", "dense"])
def test_embedding_picks_rows_of_the_table(name: str) -> None:
    net = NETWORKS[name]
    model = tn.Embedding(net)
    weights = draw(model)
    module = BACKEND.build(model, weights, dtype="float64")
    table = net.to_dense(weights).T
    every = np.arange(net.in_features)
    close(BACKEND.forward(module, every), table)
    ids = np.random.default_rng(0).integers(0, net.in_features, (3, 4))
    close(BACKEND.forward(module, ids), table[ids])
    assert BACKEND.forward(module, np.zeros((0, 4), np.int64)).shape == (0, 4, net.out_features)
    gy = np.random.default_rng(1).normal(size=(3, 4, net.out_features))
    found, gx = BACKEND.gradients(module, ids, gy)
    assert gx is None
    onehot = np.eye(net.in_features)[ids.reshape(-1)]
    expected, _ = Plain(net, weights).gradients(onehot, gy.reshape(12, -1))
    for key, value in found.items():
        close(value, expected[key])


def test_embedding_never_builds_the_table() -> None:
    net = tn.mpo((100, 100, 100), (4, 4, 4)).with_rank(4)
    weights = net.init(0)
    lowered = jax.jit(lambda w, i: tj.embedding(net, w, i)).lower(weights, np.zeros(5, np.int32))
    shapes = re.findall(r"tensor<((?:\d+x)+)[fi]\d+>", lowered.as_text())
    assert 16 * 100 < max(math.prod(map(int, shape[:-1].split("x"))) for shape in shapes) < 1e5


def test_tokens_out_of_range_are_an_error_on_the_host_and_nan_on_the_device() -> None:
    layer = tj.TNEmbedding(NETWORKS["padded"], seed=0)
    with pytest.raises(ShapeError, match=r"expected tokens from 0 to 10, received 3\.\.11"):
        layer([3, 11])
    with pytest.raises(ShapeError, match="takes integers, received float32"):
        layer(jnp.ones(3))
    for ids in ([0, 11, 3], [0, -1, 3], [0, 10**6, 3]):
        y = np.asarray(layer(jnp.array(ids)))
        assert np.isnan(y[1]).all()
        assert not np.isnan(y[[0, 2]]).any()


CONVS: dict[str, Callable[[], Any]] = {
    "modes": lambda: tn.Conv2d(
        tn.topology("c a, h w o a", {"c": 3, "h": 3, "w": 2}, {"o": 4}).with_rank(2),
        kernel=(3, 2), stride=(2, 1), padding=(1, 0),
    ),
    "flat": lambda: tn.Conv2d(tn.mpo((9, 2), (2, 2)).with_rank(3), kernel=3, padding=1),
    "padded": lambda: tn.Conv2d(
        tn.topology("x y a, u v a", {"x": 5, "u": 4}, {"y": 2, "v": 2}, in_features=18, out_features=3)
        .with_rank(2), kernel=3, stride=2,
    ),
    "kept": lambda: tn.Conv2d(
        tn.topology("g x y", {"g": 2, "x": 9}, {"g": 2, "y": 3}).with_ranks({}), kernel=3,
    ),
    "dense": lambda: tn.Conv2d(2, 3, kernel=(2, 3), padding=(0, 1)),
}  # fmt: skip


def conv_loop(layer: Any, weights: Arrays, x: Any) -> Any:
    w = layer.network.to_dense({n: weights[n] for n in layer.network.shapes})
    (kh, kw), (sh, sw), (ph, pw) = layer.kernel, layer.stride, layer.padding
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    y = np.zeros((len(x), *layer.out_shape((x.shape[1], x.shape[2] - 2 * ph, x.shape[3] - 2 * pw))))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            window = x[:, :, i * sh : i * sh + kh, j * sw : j * sw + kw]
            y[:, :, i, j] = window.reshape(len(x), -1) @ w.T + weights["bias"]
    return y


@pytest.mark.cases(1)
@pytest.mark.parametrize("form", ["kernel", "patches"])
@pytest.mark.parametrize("name", CONVS)
def test_conv2d_is_the_loop(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = CONVS[name]()
    if form == "kernel" and name == "kept":
        pytest.skip("a kept leg is never run as a kernel")

    def forced(self: LayerPlanner, rows: int) -> Plan:
        return find(self.request(self.batch_class(rows), "kernel" if form == "kernel" else "apply"))

    monkeypatch.setattr(LayerPlanner, "class_plan", forced)
    weights = draw(layer)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, layer.in_channels, 6, 5))
    with wide(True):
        function = lambda w, x: tj.apply(layer, w, x)[0]  # noqa: E731
        y = function(weights, x)
        convolves = "conv_general_dilated" in str(jax.make_jaxpr(function)(weights, x))
        assert convolves == (form == "kernel" or name == "dense")
        gy = rng.normal(size=y.shape)
        found = jax.grad(lambda w, x: (function(w, x) * gy).sum(), (0, 1))(
            {n: jnp.array(a) for n, a in weights.items()}, jnp.array(x)
        )
    close(y, conv_loop(layer, weights, x))
    loss = lambda w, x: float((conv_loop(layer, w, x) * gy).sum())  # noqa: E731
    check_differences(loss, weights, x, found[0], found[1])
    empty, _ = tj.apply(layer, layer.init(0), np.zeros((0, *x.shape[1:]), np.float32))
    assert empty.shape == (0, *y.shape[1:])


def test_conv2d_of_a_network_and_its_errors() -> None:
    net = CONVS["flat"]().network
    x = np.random.default_rng(0).normal(size=(2, 2, 6, 5)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32)
    y = tj.conv2d(net, net.init(0), x, padding=1, bias=bias)
    close(y, conv_loop(CONVS["flat"](), {**net.init(0), "bias": bias}, x), 1e-5)
    with pytest.raises(ShapeError, match=r"expected inputs of shape \(2, height, width\), received \(3, 6, 5\)"):
        tj.conv2d(net, net.init(0), np.zeros((2, 3, 6, 5), np.float32))
    with pytest.raises(ShapeError, match="takes floating-point inputs, received uint8"):
        tj.conv2d(net, net.init(0), np.zeros((2, 2, 6, 5), np.uint8))


def check_differences(
    loss: Callable[[Arrays, Any], float], weights: Arrays, x: Any, found: Any, gx: Any, step: float = 1e-5
) -> None:
    """Gradients against central differences at a few entries of each array."""
    rng = np.random.default_rng(5)

    def slope(array: Any, place: Any, call: Callable[[Any], float]) -> float:
        values = []
        for sign in (1, -1):
            moved = np.array(array)
            moved[place] += sign * step
            values.append(call(moved))
        return (values[0] - values[1]) / (2 * step)

    for name, gradient in found.items():
        for _ in range(3):
            place = tuple(rng.integers(0, n) for n in weights[name].shape)
            expected = slope(weights[name], place, lambda moved, n=name: loss({**weights, n: moved}, x))
            assert float(gradient[place]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if gx is not None:
        for _ in range(4):
            place = tuple(rng.integers(0, n) for n in x.shape)
            assert float(gx[place]) == pytest.approx(slope(x, place, lambda m: loss(weights, m)), rel=1e-5, abs=1e-6)


# -- the other layers ------------------------------------------------------------------------------

MLP = NETWORKS["mpo"]
MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "relu": (lambda: tn.Sequential(tn.Linear(MLP), tn.ReLU()), (12,)),
    "gelu": (lambda: tn.Sequential(tn.Linear(MLP), tn.GELU()), (12,)),
    "tanh": (lambda: tn.Sequential(tn.Linear(MLP), tn.Tanh()), (12,)),
    "sigmoid": (lambda: tn.Sequential(tn.Linear(MLP), tn.Sigmoid()), (12,)),
    "silu": (lambda: tn.Sequential(tn.Linear(MLP), tn.SiLU()), (12,)),
    "max": (lambda: tn.Sequential(tn.MaxPool(2), tn.Flatten(), tn.Linear(12, 3)), (2, 4, 6)),
    "max-overlap": (lambda: tn.Sequential(tn.MaxPool((3, 2), 1), tn.Flatten(), tn.Linear(12, 3)), (2, 4, 4)),
    "avg": (lambda: tn.Sequential(tn.AvgPool((2, 3), (1, 2)), tn.Flatten(), tn.Linear(12, 3)), (2, 4, 5)),
    "unflatten": (
        lambda: tn.Sequential(
            tn.Linear(MLP),
            tn.Unflatten((3, 2, 2)),
            tn.Conv2d(3, 2, kernel=2),
            tn.Flatten(),
            input_shape=(12,),
        ),
        (12,),
    ),
    "batch-norm": (lambda: tn.Sequential(tn.Linear(MLP), tn.BatchNorm(12), tn.Tanh()), (12,)),
    "batch-norm-2d": (lambda: tn.Sequential(tn.BatchNorm(2), tn.Tanh()), (2, 3, 4)),
    "layer-norm": (lambda: tn.Sequential(tn.Linear(MLP), tn.LayerNorm(12), tn.Linear(12, 2)), (12,)),
    "dropout": (lambda: tn.Sequential(tn.Linear(MLP), tn.Dropout(0.5)), (12,)),
    "residual": (lambda: tn.Residual(tn.Sequential(tn.Linear(MLP), tn.Tanh())), (12,)),
    "shortcut": (lambda: tn.Residual(tn.Sequential(tn.Linear(12, 4), tn.Tanh()), tn.Linear(12, 4)), (12,)),
    "sum": (lambda: tn.Parallel(tn.Linear(MLP), tn.Linear(12, 12), tn.Tanh()), (12,)),
    "concat": (lambda: tn.Parallel(tn.Linear(MLP), tn.Linear(12, 5), combine="concat"), (12,)),
    "named": (lambda: tn.Sequential(tn.Tanh(), head=tn.Linear(MLP, bias=False)), (12,)),
}


@pytest.mark.cases(3)
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_agrees_with_the_oracle(name: str) -> None:
    make, shape = MODELS[name]
    model = make()
    weights = draw(model)
    rng = np.random.default_rng(0)
    module = BACKEND.build(model, weights, dtype="float64", batch=3)
    for batch in (3, 1, 0):
        x = rng.normal(size=(batch, *shape))
        close(BACKEND.forward(module, x), oracle(model, weights, x), 1e-8)
    x = rng.normal(size=(3, *shape))
    gy = rng.normal(size=oracle(model, weights, x).shape)
    found, gx = BACKEND.gradients(module, x, gy)
    assert found.keys() == {n for n, spec in model.specs().items() if spec.role != "state"}
    check_differences(lambda w, x: float((oracle(model, w, x) * gy).sum()), weights, x, found, gx)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 5)])
def test_batch_norm_in_training_follows_torch(shape: tuple[int, ...]) -> None:
    layer = tn.BatchNorm(3, momentum=0.2)
    weights = draw(layer)
    x = np.random.default_rng(0).normal(2.0, 3.0, shape)
    with wide(True):
        y, state = tj.apply(layer, weights, x, train=True)
    axes = (0, *range(2, x.ndim))
    column = (-1, *[1] * (x.ndim - 2))
    count = x.size // 3
    normal = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + layer.eps)
    close(y, normal * weights["scale"].reshape(column) + weights["bias"].reshape(column))
    assert sorted(state) == ["mean", "var"]
    close(state["mean"], 0.8 * weights["mean"] + 0.2 * x.mean(axes))
    close(state["var"], 0.8 * weights["var"] + 0.2 * x.var(axes) * count / (count - 1))
    with pytest.raises(ShapeError, match="at least 2 values of each feature, received 1"):
        tj.apply(layer, layer.init(0), np.zeros((1, 3), np.float32), train=True)


def test_dropout_is_random_by_key_scaled_and_off_in_evaluation() -> None:
    model = tn.Sequential(tn.Dropout(0.25), tn.Dropout(0.25))
    x = np.ones((200, 50), np.float32)
    one, state = tj.apply(model, {}, x, train=True, key=jax.random.key(1))
    assert state == {}
    again, _ = tj.apply(model, {}, x, train=True, key=jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert np.mean(np.asarray(one) > 0) == pytest.approx(0.75**2, abs=0.02)
    np.testing.assert_allclose(np.unique(one), [0, 1 / 0.75**2], rtol=1e-6)
    np.testing.assert_array_equal(tj.apply(model, {}, x)[0], x)
    with pytest.raises(TN4NNError, match=r"pass key=jax.random.key\(seed\)"):
        tj.apply(model, {}, x, train=True)


# -- modules ---------------------------------------------------------------------------------------


def small() -> Any:
    return tn.Sequential(tn.Linear(MLP), tn.BatchNorm(12), tn.Tanh(), tn.Linear(12, 4))


def test_a_module_goes_through_jit_grad_and_vmap_with_the_right_values() -> None:
    model = small()
    weights = draw(model)
    x = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
    module = model.build("jax", weights)
    expected = oracle(model, weights, x.astype(np.float64))
    close(module(x), expected, 1e-5)
    close(jax.jit(lambda m, x: m(x))(module, x), expected, 1e-5)

    def loss(m: Any, x: Any) -> Any:
        return (m(x) ** 2).sum()

    gradients = jax.jit(jax.grad(loss))(module, x)
    assert type(gradients) is type(module)
    reference, _ = BACKEND.gradients(BACKEND.build(model, weights, dtype="float64"), x, 2 * expected)
    for name, value in reference.items():
        close(gradients.weights[name], value, 1e-4)
    for name in ("1.mean", "1.var"):  # running statistics are left alone
        assert not np.any(np.asarray(gradients.weights[name]))
    stepped = jax.tree.map(lambda w, g: w - 0.01 * g, module, gradients)
    moved = {n: a - 0.01 * reference.get(n, 0.0) for n, a in weights.items()}
    close(stepped(x), oracle(model, moved, x.astype(np.float64)), 1e-4)


def test_vmap_over_samples_and_over_members() -> None:
    layer = tj.TNLinear(NETWORKS["btt"], seed=3)
    x = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
    close(jax.vmap(layer)(x), layer(x), 1e-5)
    members = [tj.TNLinear(NETWORKS["btt"], seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    many = jax.vmap(lambda m: m(x))(stacked)
    close(many, np.stack([np.asarray(m(x)) for m in members]), 1e-5)
    table = tj.TNEmbedding(NETWORKS["cp"], seed=0)
    ids = np.array([3, 0, 11])
    close(jax.vmap(table)(jnp.array(ids)), table(ids), 1e-6)
    jacobian = jax.jacrev(layer)(x[0])
    dense = NETWORKS["btt"].to_dense({n: np.asarray(layer.weights[n]) for n in NETWORKS["btt"].shapes})
    close(jacobian, dense, 1e-5)


def test_a_module_is_compiled_once_for_a_shape() -> None:
    from tn4nn_jax._modules import _evaluate_jitted

    x = np.zeros((5, 12), np.float32)
    first = tj.TNLinear(NETWORKS["cp"], seed=1)
    first(x)
    before = _evaluate_jitted._cache_size()
    first(x)
    tj.TNLinear(NETWORKS["cp"], seed=2)(x)
    first.updated({"bias": jnp.ones(10)})(x)
    assert _evaluate_jitted._cache_size() == before


def test_pickle_deepcopy_and_tree_paths() -> None:
    layer = tj.TNConv2d(CONVS["flat"]().network, padding=1, seed=0)
    x = np.ones((1, 2, 4, 4), np.float32)
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert type(again) is tj.TNConv2d
        np.testing.assert_array_equal(again(x), layer(x))
        assert jax.tree.structure(again) == jax.tree.structure(layer)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(layer)[0]]
    assert paths == [".weights['bias']", ".weights['core0']", ".weights['core1']"]
    assert repr(layer).startswith("TNConv2d(Conv2d 18 -> 4 on 'mpo'")


def test_training_state_flows_through_a_module() -> None:
    model = small()
    module = model.build("jax", seed=0)
    x = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
    _, state = module.apply(x)
    assert sorted(state) == ["1.mean", "1.var"]
    after = module.updated(state)
    np.testing.assert_array_equal(after.weights["1.mean"], state["1.mean"])
    assert np.abs(np.asarray(after(x)) - np.asarray(module(x))).max() > 1e-3
    y, state = module.apply(x, train=False)
    assert state == {}
    close(y, module(x), 1e-6)


def test_weights_are_copied_in_and_out() -> None:
    model = tn.Linear(NETWORKS["mpo"])
    given = model.init(0)
    before = copy.deepcopy(given)
    module = model.build("jax", given)
    x = np.ones((2, 12), np.float32)
    y = np.array(module(x))
    given["core0"][...] = 7
    np.testing.assert_array_equal(module(x), y)
    out = BACKEND.weights(module)
    assert list(out) == list(model.specs())
    for name, array in before.items():
        np.testing.assert_array_equal(out[name], array)
        out[name][...] = 9
    np.testing.assert_array_equal(module(x), y)


def test_float64_is_local() -> None:
    module = tn.Linear(NETWORKS["mpo"]).build("jax", draw(tn.Linear(NETWORKS["mpo"])), dtype="float64")
    assert all(array.dtype == jnp.float64 for array in module.weights.values())
    assert module(np.ones((2, 12))).dtype == jnp.float64
    BACKEND.gradients(module, np.ones((2, 12)), np.ones((2, 12)))
    trainer(tn.Linear(NETWORKS["mpo"]), loss="mse", precision="float64")
    assert not jax.config.jax_enable_x64
    assert jnp.ones(2).dtype == jnp.float32


def test_products_are_of_full_precision_unless_the_user_says_otherwise() -> None:
    layer, x = tn.Linear(NETWORKS["mpo"]), jnp.ones((4, NETWORKS["mpo"].in_features))

    def text() -> str:
        return str(jax.make_jaxpr(lambda x: tj.apply(layer, layer.init(0), x, runtime="program")[0])(x))

    assert "HIGHEST" in text()
    with jax.default_matmul_precision("bfloat16"):
        assert "HIGHEST" not in text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str) -> None:
    model = tn.Linear(NETWORKS["mpo"])
    weights = draw(model)
    module = model.build("jax", weights, dtype=dtype)
    x = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    assert module(x).dtype == jnp.dtype(dtype)
    host = BACKEND.forward(module, x)
    assert host.dtype == np.float32
    close(host, oracle(model, weights, x), 5e-2)


def test_unknown_devices_and_dtypes_are_named() -> None:
    model = tn.Linear(4, 2)
    with pytest.raises(BackendError, match=r"jax has no device 'abacus' here: use one of .*'cpu'"):
        model.build("jax", seed=0, device="abacus")
    with pytest.raises(BackendError, match="'cpu:99'"):
        device_of("cpu:99")
    with pytest.raises(BackendError, match="float32, float64, bfloat16, float16; received dtype 'int8'"):
        model.build("jax", seed=0, dtype="int8")
    module = model.build("jax", seed=0, device="cpu")
    assert {d.platform for array in module.weights.values() for d in array.devices()} == {"cpu"}
    assert set(BACKEND.versions()) == {"jax", "jaxlib", "optax"}


SHARDED = """
import jax, numpy as np, tn4nn as tn
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 2)).with_rank(3)), tn.Tanh(), tn.Linear(8, 3))
module = model.build("jax", seed=0)
x = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
put = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
y = jax.jit(lambda m, x: m(x))(module, put)
assert len(y.sharding.device_set) == 4, y.sharding
np.testing.assert_allclose(y, module(x), rtol=1e-5, atol=1e-6)
loss = lambda m, x: (m(x) ** 2).sum()
here, there = jax.jit(jax.grad(loss))(module, put), jax.grad(loss)(module, x)
for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
print("done")
"""


@pytest.mark.thorough
def test_the_batch_can_be_sharded() -> None:
    root = Path(__file__).parents[2]
    found = [str(Path(module.__file__).parents[1]) for module in (tn, tj) if module.__file__]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([*found, os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "done", done.stderr


# -- training --------------------------------------------------------------------------------------


def spec(**changes: Any) -> TrainSpec:
    usual: dict[str, Any] = {
        "loss": "cross_entropy",
        "optimizer": "sgd",
        "momentum": 0.9,
        "nesterov": False,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "lr_factors": {},
        "decay": {},
        "precision": "float32",
        "device": None,
        "seed": 0,
        "batch_size": 4,
    }
    return TrainSpec(**{**usual, **changes})


def trainer(model: Any, weights: Arrays | None = None, **changes: Any) -> Any:
    return BACKEND.trainer(model, model.init(0) if weights is None else weights, spec(**changes))


def by_hand(g: Any, w: Any, memory: dict[str, Any], s: TrainSpec, decay: float) -> Any:
    """What torch.optim subtracts, learning rate left out."""
    if s.optimizer != "adamw":
        g = g + decay * w
    if s.optimizer == "sgd":
        memory["buffer"] = s.momentum * memory["buffer"] + g if "buffer" in memory else g
        return g + s.momentum * memory["buffer"] if s.nesterov else memory["buffer"]
    (b1, b2), t = s.betas, memory.get("t", 0) + 1
    memory["t"] = t
    memory["m"] = b1 * memory.get("m", 0.0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0.0) + (1 - b2) * g * g
    step = memory["m"] / (1 - b1**t) / (np.sqrt(memory["v"] / (1 - b2**t)) + s.eps)
    return step + decay * w if s.optimizer == "adamw" else step


@pytest.mark.cases(4)
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "sgd", "nesterov": True},
        {"optimizer": "adam", "eps": 1e-3},
        {"optimizer": "adam", "betas": (0.0, 0.9)},
        {"optimizer": "adamw"},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_three_steps_by_hand(changes: dict[str, Any], precision: str) -> None:
    net = NETWORKS["mpo"]
    model = tn.Linear(net)
    weights = draw(model)
    s = spec(
        loss="mse",
        precision=precision,
        lr_factors={"core1": 2.5, "bias": 0.5},
        decay={"core0": 0.1, "core1": 0.01},
        **changes,
    )
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(10, 12)), rng.normal(size=(10, 12))
    index = np.array([[0, 3, 4, 9], [1, 2, 8, 7], [5, 5, 6, 0]])
    lrs = [0.1, 0.05, 0.2]
    run = BACKEND.trainer(model, weights, s)
    losses = run.read(run.steps(run.put(x), run.put(target), index, lrs, 0))

    expected, memory = dict(weights), {name: {} for name in weights}  # type: ignore[var-annotated]
    for row, lr, loss in zip(index, lrs, losses, strict=True):
        plain = Plain(net, expected)
        off = plain.forward(x[row]) - target[row]
        assert loss == pytest.approx(np.mean(off**2), rel=1e-9 if precision == "float64" else 1e-5)
        gradients, _ = plain.gradients(x[row], 2 * off / off.size)
        expected = {
            name: w
            - lr * s.lr_factors.get(name, 1.0) * by_hand(gradients[name], w, memory[name], s, s.decay.get(name, 0.0))
            for name, w in expected.items()
        }
    for name, value in run.weights().items():
        assert value.dtype == precision
        close(value, expected[name], 1e-8 if precision == "float64" else 2e-4)


def test_adam_is_exact_in_its_first_step() -> None:
    # 1 - 0.999 in float32 is off by 1e-5, and so would every first step be.
    model = tn.Linear(tn.dense(3, 2).with_rank(1), bias=False)
    run = trainer(model, loss="mse", optimizer="adam", eps=0.0)
    before = run.weights()["core0"].astype(np.float64)
    x = run.put(np.ones((4, 3)))
    run.steps(x, run.put(np.full((4, 2), 100.0)), np.arange(4)[None], [1.0], 0)
    np.testing.assert_allclose(run.weights()["core0"] - before, np.ones((2, 3)), rtol=1e-6)


def everything() -> Any:
    return tn.Sequential(tn.Linear(NETWORKS["btt"]), tn.BatchNorm(10), tn.Dropout(0.3), tn.ReLU(), tn.Linear(10, 3))


@pytest.mark.cases(1)
@pytest.mark.parametrize("precision", first_of(["float32", "float64", "bf16"]))
@pytest.mark.parametrize("optimizer", first_of(["adamw", "sgd", "adam"], 2))
def test_state_and_load_go_on_to_the_bit(optimizer: str, precision: str) -> None:
    model = everything()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 12)), rng.integers(0, 3, 30)
    index = rng.integers(0, 30, (6, 8))
    lrs = np.linspace(0.1, 0.01, 6)

    def fresh(seed: int) -> Any:
        return BACKEND.trainer(
            model, model.init(seed), spec(optimizer=optimizer, precision=precision, decay={"0.core0": 0.1})
        )

    whole = fresh(0)
    px, py = whole.put(x), whole.put(y)
    losses = whole.read(whole.steps(px, py, index, lrs, 0))
    assert losses.shape == (6,)
    assert losses.dtype == np.float64
    half = fresh(0)
    first = half.read(half.steps(px, py, index[:2], lrs[:2], 0))
    state = half.state()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    kept = copy.deepcopy(state)
    half.steps(px, py, index[:2], lrs[:2], 2)  # steps do not write into what was given out
    for name, array in kept.items():
        np.testing.assert_array_equal(state[name], array)
    other = fresh(7)
    other.load(state)
    rest = other.read(other.steps(px, py, index[2:], lrs[2:], 2))
    np.testing.assert_array_equal(np.concatenate([first, rest]), losses)
    for name, array in whole.state().items():
        np.testing.assert_array_equal(other.state()[name], array)


def test_load_refuses_another_optimizers_state() -> None:
    model = tn.Linear(4, 2)
    with pytest.raises(CheckpointError, match="expected 5 optimizer arrays, received 2"):
        trainer(model, optimizer="adam").load(trainer(model, optimizer="sgd").state())
    with pytest.raises(ShapeError, match="is missing"):
        trainer(model, momentum=0.0).load({})


def test_a_learning_rate_never_recompiles_and_losses_may_be_none() -> None:
    run = trainer(everything())
    x, y = run.put(np.ones((9, 12))), run.put(np.zeros(9, np.int64))
    run.steps(x, y, np.zeros((3, 4), np.int64), [0.1, 0.2, 0.3], 0)
    compiled = run._compiled.step._cache_size()
    run.steps(x, y, np.zeros((2, 4), np.int64), [0.5, 0.6], 3)
    other = trainer(everything(), seed=7)
    other.steps(other.put(np.ones((9, 12))), other.put(np.zeros(9, np.int64)), np.zeros((2, 4), np.int64), [0.5] * 2, 3)
    assert other._compiled is run._compiled
    assert run._compiled.step._cache_size() == compiled
    assert run.read(run.steps(x, y, np.zeros((0, 4), np.int64), [], 5)).shape == (0,)
    run.sync()


def test_dropout_depends_on_the_seed_and_the_step() -> None:
    model = tn.Sequential(tn.Dropout(0.5), tn.Linear(12, 3))

    def loss(seed: int, first: int) -> float:
        run = trainer(model, seed=seed)
        x, y = run.put(np.ones((4, 12))), run.put(np.array([0, 1, 2, 0]))
        return float(run.read(run.steps(x, y, np.arange(4)[None], [0.1], first))[0])

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(0, 1), loss(1, 0)}) == 3


@pytest.mark.parametrize("rows", [0, 5, 2100])
def test_evaluate_is_the_mean_over_all_rows(rows: int) -> None:
    model = everything()
    weights = draw(model)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, 12)), rng.integers(0, 3, rows)
    run = trainer(model, weights, precision="float64")
    loss, accuracy = run.evaluate(run.put(x), run.put(y))
    if not rows:
        assert math.isnan(loss)
        assert math.isnan(accuracy)
        return
    logits = oracle(model, weights, x)
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(rows), y])
    assert loss == pytest.approx(expected, rel=1e-9)
    assert accuracy == pytest.approx(100 * np.mean(logits.argmax(1) == y))


def test_mse_has_no_accuracy_and_nothing_broadcasts() -> None:
    run = trainer(tn.Linear(12, 1), loss="mse")
    x = run.put(np.ones((5, 12)))
    loss, accuracy = run.evaluate(x, run.put(np.zeros((5, 1))))
    assert loss >= 0
    assert math.isnan(accuracy)
    with pytest.raises(ShapeError, match=r"mse of outputs \(5, 1\).* received \(5,\)"):
        run.evaluate(x, run.put(np.zeros(5)))
    with pytest.raises(ShapeError, match=r"integer labels of shape \(5,\), received float32"):
        cross_entropy(jnp.ones((5, 3)), jnp.ones(5))
    assert float(mse(jnp.ones((2, 2)), jnp.zeros((2, 2)))[0]) == 1


@pytest.mark.thorough
def test_training_learns_and_the_module_is_its_own() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 12))
    y = (x @ rng.normal(size=(12, 3))).argmax(1)
    model = tn.Sequential(tn.Linear(NETWORKS["btt"]), tn.BatchNorm(10), tn.ReLU(), tn.Linear(10, 3))
    for precision in ("float32", "bf16"):
        run = trainer(model, optimizer="adam", precision=precision, batch_size=32)
        px, py = run.put(x), run.put(y)
        before, _ = run.evaluate(px, py)
        run.steps(px, py, rng.integers(0, 200, (150, 32)), [0.01] * 150, 0)
        after, accuracy = run.evaluate(px, py)
        assert after < before / 2
        assert accuracy > 80
        module = run.module()
        logits = np.array(module(x.astype(np.float32)))
        assert 100 * np.mean(logits.argmax(1) == y) == pytest.approx(accuracy, abs=2)
        run.steps(px, py, rng.integers(0, 200, (3, 32)), [0.1] * 3, 150)
        np.testing.assert_array_equal(module(x.astype(np.float32)), logits)
        assert all(array.dtype == np.float32 for array in run.weights().values())


def test_a_trainer_names_what_it_does_not_know() -> None:
    for changes, text in (
        ({"loss": "hinge"}, "knows the losses 'cross_entropy', 'mse'; received 'hinge'"),
        ({"optimizer": "lion"}, "knows the optimizers 'sgd', 'adam', 'adamw', 'muon'; received 'lion'"),
        ({"precision": "fp8"}, "knows the precisions 'float32', 'float64', 'bf16'; received 'fp8'"),
    ):
        with pytest.raises(BackendError, match=text):
            trainer(tn.Linear(4, 2), **changes)


@pytest.mark.cases(3)
@pytest.mark.parametrize("name", ["_apply", "_backend", "_device", "_modules", "_trainer"])
def test_the_examples(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = doctest.testmod(importlib.import_module(f"tn4nn_jax.{name}"))
    assert found.failed == 0


def test_host_copies_keep_float64() -> None:
    with wide(True):
        assert to_host(jnp.ones(3, jnp.float64)).dtype == np.float64
    assert to_host(jnp.ones(3, jnp.bfloat16)).dtype == np.float32
