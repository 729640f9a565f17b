from __future__ import annotations

import copy
import json
import pickle
import re

import numpy as np
import pytest

import tn4nn as tn
from tn4nn import ShapeError, TN4NNError, TopologyError
from tn4nn._model.layers import KINDS, Spec, replace_networks

NET = tn.mpo((4, 4), (2, 4)).with_rank(3)  # 16 -> 8, 24 + 48 weights
IMAGE = tn.topology("c a, h w o a", {"c": 3, "h": 3, "w": 2}, {"o": 4}).with_rank(2)

EVERY = {
    "Linear": tn.Linear(NET, bias=False, ordering="hilbert", init="orthogonal", gain=2.0),
    "Conv2d": tn.Conv2d(IMAGE, kernel=(3, 2), stride=2, padding=(1, 0), bias=False, gain=0.5),
    "Embedding": tn.Embedding(NET, init="identity"),
    "ReLU": tn.ReLU(),
    "GELU": tn.GELU(),
    "Tanh": tn.Tanh(),
    "Sigmoid": tn.Sigmoid(),
    "SiLU": tn.SiLU(),
    "Flatten": tn.Flatten(),
    "Unflatten": tn.Unflatten((2, 8)),
    "MaxPool": tn.MaxPool((3, 2), stride=1),
    "AvgPool": tn.AvgPool(2),
    "Dropout": tn.Dropout(0.25),
    "BatchNorm": tn.BatchNorm(7, momentum=0.2, eps=1e-3),
    "LayerNorm": tn.LayerNorm(7, eps=1e-3),
    "Sequential": tn.Sequential(tn.Linear(4, 3), tn.ReLU(), input_shape=(4,), head=tn.Linear(3, 2)),
    "Residual": tn.Residual(tn.Linear(4, 3), tn.Linear(4, 3)),
    "Parallel": tn.Parallel(tn.Linear(4, 3), tn.Tanh(), combine="concat"),
}


# -- shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (tn.Linear(NET), (16,), (8,)),
        (tn.Linear(NET), (2, 5, 16), (2, 5, 8)),
        (tn.Linear(tn.build("mpo", 23, 29, sites=2).with_rank(2)), (23,), (29,)),
        (tn.Conv2d(IMAGE, kernel=(3, 2), stride=(2, 1), padding=(1, 0)), (3, 7, 6), (4, 4, 5)),
        (tn.Conv2d(2, 5, kernel=3, padding=1), (2, 9, 4), (5, 9, 4)),
        (tn.Embedding(NET), (6, 2), (6, 2, 8)),
        (tn.Flatten(), (2, 3, 4), (24,)),
        (tn.Unflatten((2, 3)), (6,), (2, 3)),
        (tn.MaxPool(2), (5, 7, 6), (5, 3, 3)),
        (tn.AvgPool(3, stride=1), (5, 7, 6), (5, 5, 4)),
        (tn.BatchNorm(5), (5, 3, 3), (5, 3, 3)),
        (tn.LayerNorm(5), (2, 5), (2, 5)),
        (tn.Dropout(), (3,), (3,)),
        (tn.Residual(tn.Linear(6, 6)), (6,), (6,)),
        (tn.Residual(tn.Linear(6, 4), tn.Linear(6, 4)), (6,), (4,)),
        (tn.Parallel(tn.Linear(6, 4), tn.Linear(6, 4)), (6,), (4,)),
        (tn.Parallel(tn.Linear(6, 4), tn.Tanh(), combine="concat"), (6,), (10,)),
        (tn.Sequential(tn.Conv2d(1, 2), tn.MaxPool(2), tn.Flatten(), tn.Linear(8, 3)), (1, 6, 6), (3,)),
    ],
)
def test_out_shapes_are_those_of_the_oracle(layer: tn.Layer, given, expected) -> None:
    assert layer.out_shape(given) == expected
    whole = isinstance(layer, tn.Embedding)
    x = np.zeros((2, *given), dtype=np.int64 if whole else np.float32)
    assert layer.build("numpy")(x).shape == (2, *expected)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: tn.Sequential(tn.Linear(8, 4), tn.ReLU(), tn.Linear(5, 2)),
            "layer '2': Linear 5 -> 2 on 'dense' (10 weights): expected inputs of shape (..., 5), received (4,)",
        ),
        (
            lambda: tn.Sequential(tn.Conv2d(3, 4), input_shape=(2, 8, 8)),
            "layer '0': Conv2d 27 -> 4 on 'dense' (108 weights): expected inputs of shape (3, height, width), "
            "received (2, 8, 8)",
        ),
        (lambda: tn.Sequential(tn.Conv2d(3, 4, kernel=5), input_shape=(3, 4, 8)), "a window of 5 does not fit into 4"),
        (
            lambda: tn.Sequential(body=tn.Sequential(tn.Linear(4, 3), tn.Linear(4, 3)), input_shape=(4,)),
            "layer '1': Linear 4 -> 3 on 'dense' (12 weights): expected inputs of shape (..., 4), received (3,)",
        ),
        (
            lambda: tn.Sequential(tn.Sequential(tn.Flatten(), head=tn.Linear(4, 3)), input_shape=(5,)),
            "layer '0': layer 'head': Linear 4 -> 3",
        ),
        (lambda: tn.Sequential(), "Sequential needs at least one layer, received none"),
        (lambda: tn.Sequential(tn.ReLU), "layer '0' must be a tn4nn layer, received type"),
        (lambda: tn.Sequential(act="relu"), "layer 'act' must be a tn4nn layer, received str"),
        (lambda: tn.Unflatten((2, 0)), "Unflatten: expected sizes of at least 1, received (2, 0)"),
        (lambda: tn.Unflatten((2, 4)).out_shape((6,)), "Unflatten: (6,) has 6 numbers, (2, 4) needs 8"),
        (lambda: tn.MaxPool(0), "kernel must be one or two whole numbers of at least 1, received 0"),
        (lambda: tn.AvgPool(2, stride=(1, 2, 3)), "stride must be one or two whole numbers of at least 1"),
        (lambda: tn.MaxPool(4).out_shape((1, 3, 9)), "MaxPool: a window of 4 does not fit into 3 with padding 0"),
        (lambda: tn.MaxPool(2).out_shape((3, 9)), "MaxPool: expected (channels, height, width), received (3, 9)"),
        (lambda: tn.Dropout(1.0), "Dropout: the rate must be at least 0 and below 1, received 1.0"),
        (lambda: tn.BatchNorm(3).out_shape((4,)), "BatchNorm: expected (3,) or (3, height, width), received (4,)"),
        (lambda: tn.LayerNorm(3).out_shape((3, 4)), "LayerNorm: expected (..., 3), received (3, 4)"),
        (lambda: tn.Residual(tn.Linear(6, 4)).out_shape((6,)), "Residual: the body makes (4,), the shortcut (6,)"),
        (lambda: tn.Parallel(), "Parallel takes at least one tn4nn layer, received ()"),
        (lambda: tn.Parallel(tn.ReLU(), combine="mul"), "Parallel: combine must be 'sum' or 'concat', received 'mul'"),
        (
            lambda: tn.Parallel(tn.Linear(6, 4), tn.Linear(6, 5)).out_shape((6,)),
            "Parallel: branches to add differ in shape: [(4,), (5,)]",
        ),
        (
            lambda: tn.Parallel(tn.Unflatten((2, 3)), tn.ReLU(), combine="concat").out_shape((6,)),
            "Parallel: branches to concatenate differ beyond the first axis: [(2, 3), (6,)]",
        ),
        (lambda: tn.Linear(NET, 8), "Linear on a network takes its sizes from it: leave out_features away"),
        (lambda: tn.Linear(16), "Linear takes a Network or Topology, or in_features and out_features, received int"),
        (lambda: tn.Linear("mpo", 4), "Linear takes a Network or Topology, or in_features and out_features"),
        (lambda: tn.Linear(NET, init="zeros"), "unknown init scheme 'zeros'. Known: 'identity', 'normal'"),
        (lambda: tn.Linear(NET, gain=-1), "gain must be above 0, received -1"),
        (lambda: tn.Linear(NET, ordering=[0, 1, 2]), "the ordering permutes 3 neurons, the layer has 16"),
        (lambda: tn.Linear(8, 2, ordering="hilbert"), "ordering='hilbert' by name needs a square image, received 8"),
        (lambda: tn.Conv2d(NET, kernel=3), "Conv2d: in_features must be channels * 3 * 3, received 16"),
        (
            lambda: tn.Embedding(tn.topology("k x y", {"k": 2, "x": 2}, {"k": 2, "y": 2}).with_rank(1)),
            "an embedding cannot have batch legs, received k",
        ),
        (lambda: tn.Linear(0, 4), "input leg 'x0': the size must be at least 1, received 0"),
    ],
)  # fmt: skip
def test_errors(make, expected: str) -> None:
    with pytest.raises(TN4NNError, match=re.escape(expected)):
        make()


def test_unknown_shapes_are_checked_as_far_as_they_are_known() -> None:
    tn.Sequential(tn.Flatten(), tn.Linear(24, 3))
    with pytest.raises(ShapeError, match="layer '2': Linear 4 -> 2"):
        tn.Sequential(tn.Flatten(), tn.Linear(24, 3), tn.Linear(4, 2))


# -- names and counts --------------------------------------------------------------------------------------


def nested() -> tn.Layer:
    return tn.Sequential(
        tn.Linear(16, 16), tn.ReLU(),
        tn.Residual(tn.Sequential(tn.Linear(NET), tn.ReLU(), tn.Linear(8, 16)), tn.LayerNorm(16)),
        tn.Parallel(tn.BatchNorm(16), tn.Linear(16, 16, bias=False)),
        head=tn.Linear(tn.cp((4, 4), (10,)).with_rank(2)),
    )  # fmt: skip


def test_full_names() -> None:
    assert list(nested().specs()) == [
        "0.core0", "0.bias", "2.body.0.core0", "2.body.0.core1", "2.body.0.bias", "2.body.2.core0", "2.body.2.bias",
        "2.shortcut.scale", "2.shortcut.bias", "3.0.scale", "3.0.bias", "3.0.mean", "3.0.var", "3.1.core0",
        "head.core0", "head.core1", "head.core2", "head.bias",
    ]  # fmt: skip
    assert list(nested().networks()) == ["0", "2.body.0", "2.body.2", "3.1", "head"]
    assert list(tn.Linear(NET).specs()) == ["core0", "core1", "bias"]
    assert [name for name, _ in tn.Residual(tn.ReLU()).walk()] == ["", "body"]


def test_parameter_counts() -> None:
    model = nested()
    cores = 256 + 72 + 128 + 256 + (8 + 8 + 20)
    assert model.num_weights == cores
    assert model.num_params == cores + 16 + 8 + 16 + (16 + 16) + (16 + 16) + 10
    assert model.num_params == sum(
        array.size for name, array in model.init(0).items() if name not in ("3.0.mean", "3.0.var")
    )
    assert tn.Linear(16, 8).num_params == 16 * 8 + 8
    assert tn.Linear(16, 8).is_dense
    assert not tn.Linear(NET).is_dense


def test_weights_start_as_the_specs_say() -> None:
    weights = nested().init(3)
    for name, spec in nested().specs().items():
        assert weights[name].shape == spec.shape
        assert weights[name].dtype == np.float32
        if spec.role != "core":
            assert (weights[name] == spec.start).all()
    assert (weights["3.0.var"] == 1).all()
    assert (weights["2.shortcut.scale"] == 1).all()
    assert (weights["0.bias"] == 0).all()


def test_a_layer_is_drawn_by_its_scheme_and_gain() -> None:
    wide = tn.Linear(NET, gain=3.0).init(0)
    np.testing.assert_allclose(NET.to_dense({n: wide[n] for n in NET.shapes}),
                               3 * NET.to_dense(NET.init(0)), rtol=1e-4, atol=1e-6)  # fmt: skip
    square = tn.Linear(8, 8, init="orthogonal").init(0)["core0"]
    np.testing.assert_allclose(square @ square.T, np.eye(8), atol=1e-5)
    table = tn.Embedding(tn.mpo((10, 10), (4, 4)).with_rank(8)).init(0)
    rows = tn.mpo((10, 10), (4, 4)).with_rank(8).to_dense(table)
    assert 0.9 < rows.std() < 1.1


def test_ordering_lays_the_input_out() -> None:
    permutation = np.random.default_rng(0).permutation(16)
    plain, laid = tn.Linear(NET), tn.Linear(NET, ordering=permutation)
    weights = plain.init(0)
    x = np.random.default_rng(1).standard_normal((5, 16))
    np.testing.assert_allclose(laid.build("numpy", weights)(x), plain.build("numpy", weights)(x[:, permutation]))
    assert tn.Linear(NET, ordering="hilbert").ordering == tn.Ordering.hilbert((4, 4))


def test_numpy_integers_are_sizes_too() -> None:
    assert tn.Linear(np.int64(4), np.int64(3)) == tn.Linear(4, 3)
    assert tn.MaxPool(np.int64(2)) == tn.MaxPool(2)
    assert tn.Conv2d(np.int64(2), np.int64(3), kernel=np.int64(3)) == tn.Conv2d(2, 3, kernel=3)


# -- as data -----------------------------------------------------------------------------------------------


def test_every_kind_is_tried() -> None:
    here = "tn4nn._model.layers"
    ours = {name for name, kind in KINDS.items() if not name.startswith("_") and kind.__module__.startswith(here)}
    assert set(EVERY) == ours - {"OnNetwork"}


@pytest.mark.parametrize("kind", EVERY)
def test_json_pickle_and_copies_are_equal(kind: str) -> None:
    layer = EVERY[kind]
    assert type(layer).__name__ == kind
    for again in (tn.model_from_json(layer.to_json()), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert again == layer
        assert again.fingerprint == layer.fingerprint
        assert again.specs() == layer.specs()
        first, second = layer.init(5), again.init(5)
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_nested_model_survives_json() -> None:
    model = nested()
    assert tn.model_from_json(model.to_json()) == model
    bare = tn.Sequential(tn.Linear(tn.mpo((4, 4), (2, 4))), tn.ReLU())
    assert tn.model_from_json(bare.to_json()) == bare


@pytest.mark.parametrize("name", ["", "a.b", "0", "10", "two words"])
def test_names_that_would_clash_are_refused(name: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"{name!r} is not a name for a layer")):
        tn.Sequential(tn.ReLU(), **{name: tn.Tanh()})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "this is not JSON of a model"),
        ('{"schema": 1}', "model data lacks model: received the keys ['schema']"),
        ('{"schema": 7, "model": {}}', "model data of schema 7: this version reads schema 1"),
        ('{"model": {"kind": "Linea"}}', "unknown kind of layer 'Linea'. Did you mean 'Linear'"),
        ('{"model": {}}', "unknown kind of layer None."),
        ('{"model": []}', "a layer is an object in model data, received []"),
        ('{"model": {"kind": "Dropout", "speed": 3}}', "data of a Dropout layer does not fit"),
        ('{"model": {"kind": "Sequential"}}', "data of a Sequential layer does not fit"),
        ('{"model": {"kind": "Linear"}}', "data of a Linear layer does not fit"),
    ],
)
def test_broken_data_is_refused(text: str, expected: str) -> None:
    with pytest.raises(TopologyError, match=re.escape(expected)):
        tn.model_from_json(text)


def test_equal_models_have_equal_fingerprints_and_others_have_not() -> None:
    assert nested().fingerprint == nested().fingerprint
    assert len({layer.fingerprint for layer in EVERY.values()}) == len(EVERY)
    assert tn.Linear(NET).fingerprint != tn.Linear(NET, bias=False).fingerprint
    assert json.loads(nested().to_json())["schema"] == 1


def test_print() -> None:
    text = str(tn.Sequential(tn.Linear(NET), tn.ReLU(), head=tn.Linear(8, 2)))
    assert text == (
        "model: Sequential of 3\n"
        "  0: Linear 16 -> 8 on 'mpo' (72 weights)\n"
        "  1: ReLU()\n"
        "  head: Linear 8 -> 2 on 'dense' (16 weights)\n"
        "98 parameters, 88 of them in cores"
    )
    assert "Linear 16 -> 8 on 'mpo' (no ranks yet)" in str(tn.Linear(NET.topology))


# -- weights and building ----------------------------------------------------------------------------------


def test_weights_of_another_model() -> None:
    model, weights = nested(), nested().init(0)
    message = "'head.core9' is not a weight of this model. Did you mean 'head.core"
    with pytest.raises(ShapeError, match=re.escape(message)):
        model.build("numpy", {**weights, "head.core9": weights["0.bias"]})
    with pytest.raises(ShapeError, match=re.escape("'0.bias': expected shape (16,), received (8,)")):
        model.check({**weights, "0.bias": weights["0.bias"][:8]})
    with pytest.raises(ShapeError, match="'0.bias': expected an array, received list"):
        model.check({**weights, "0.bias": weights["0.bias"].tolist()})
    del weights["2.body.0.core1"]
    with pytest.raises(ShapeError, match=re.escape("weight '2.body.0.core1' of shape (3, 4, 4) is missing")):
        model.check(weights)


def test_build_takes_weights_or_a_seed() -> None:
    layer = tn.Linear(NET)
    x = np.ones((1, 16))
    assert np.array_equal(layer.build("numpy", seed=4)(x), layer.build("numpy", layer.init(4))(x))
    assert np.array_equal(layer.build("numpy")(x), layer.build("numpy", seed=0)(x))
    with pytest.raises(ShapeError, match="build takes weights= or seed=, received both"):
        layer.build("numpy", layer.init(0), 0)


def test_ranks_must_be_there() -> None:
    model = tn.Sequential(tn.ReLU(), tn.Residual(tn.Linear(tn.mpo((4, 4), (4, 4)))))
    expected = re.escape("layer '1.body' has a topology without ranks: give it a Network (with_rank, with_budget)")
    for use in (model.init, model.networks, lambda: model.build("numpy")):
        with pytest.raises(TopologyError, match=expected):
            use()
    assert tn.Linear(tn.kronecker((4, 4), (4, 4))).num_params == 32 + 16  # no bonds, no ranks


def test_networks_can_be_exchanged() -> None:
    model = nested()
    other = NET.topology.with_rank(1)
    changed = replace_networks(model, {"2.body.0": other})
    assert changed.networks()["2.body.0"] == other
    assert {n: net for n, net in changed.networks().items() if n != "2.body.0"} == {
        n: net for n, net in model.networks().items() if n != "2.body.0"
    }
    assert list(changed.specs()) == list(model.specs())
    assert replace_networks(model, {}) == model


def test_a_layer_of_the_users_own() -> None:
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Scale(tn.Layer):
        features: int

        def own_specs(self) -> tuple[Spec, ...]:
            return (Spec("by", (self.features,), "scale", 2.0),)

    try:
        model = tn.Sequential(tn.Linear(4, 3), Scale(3))
        assert tn.model_from_json(model.to_json()) == model
        assert (model.init(0)["1.by"] == 2).all()
        with pytest.raises(TN4NNError, match="the numpy backend does not know the layer Scale"):
            model.build("numpy")(np.zeros((1, 4)))
    finally:
        del KINDS["Scale"]
