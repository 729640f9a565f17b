from __future__ import annotations

import copy
import json
import pickle
import re

import numpy as np
import pytest

import tn4nn as tn
from tn4nn import ShapeError, TN4NNError, TopologyError
from tn4nn._model.layers import KINDS, Spec, embedding_of, replace_networks

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
    "Parallel": tn.Parallel(tn.Linear(4, 3), side=tn.Tanh(), combine="concat"),
    "RMSNorm": tn.RMSNorm(7, eps=1e-3),
    "Tokens": tn.Tokens(),
    "MeanPool": tn.MeanPool(),
    "Attention": tn.Attention(
        8, 4, kv_heads=2, causal=True, rotary=100, key=tn.cp((4, 2), (4,)).with_rank(2), bias=False, dropout=0.1
    ),
    "Positions": tn.Positions(16, 8, NET),
    "Block": tn.Block(tn.RMSNorm(8), tn.Attention(8, 2), tn.LayerNorm(8), tn.Linear(8, 8), dropout=0.1),
    "Tied": tn.Tied(tn.Embedding(NET), tn.RMSNorm(8)),
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
        (tn.Parallel(tn.Linear(6, 4), tn.Linear(6, 4), combine="product"), (6,), (4,)),
        (tn.RMSNorm(5), (2, 5), (2, 5)),
        (tn.Tokens(), (3, 2, 4), (8, 3)),
        (tn.MeanPool(), (8, 3), (3,)),
        (tn.Attention(8, 4, kv_heads=1, rotary=True), (1, 8), (1, 8)),
        (tn.Positions(4, 8), (3, 8), (3, 8)),
        (EVERY["Block"], (3, 8), (3, 8)),
        (tn.Tied(tn.Embedding(NET), tn.RMSNorm(8)), (3,), (3, 16)),
    ],
)
def test_out_shapes_are_those_of_the_oracle(layer: tn.Layer, given, expected) -> None:
    assert layer.out_shape(given) == expected
    whole = embedding_of(layer) is not None
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
        (lambda: tn.Parallel(tn.ReLU(), combine="mul"), "Parallel: combine must be 'sum', 'product' or 'concat'"),
        (
            lambda: tn.Parallel(tn.Linear(6, 4), tn.Linear(6, 5), combine="product").out_shape((6,)),
            "Parallel: branches to multiply differ in shape: [(4,), (5,)]",
        ),
        (lambda: tn.Parallel(**{"a.b": tn.ReLU()}), "'a.b' is not a name for a layer"),
        (lambda: tn.RMSNorm(3).out_shape((3, 4)), "RMSNorm: expected (..., 3), received (3, 4)"),
        (lambda: tn.Tokens().out_shape((3, 4)), "Tokens: expected (channels, height, width), received (3, 4)"),
        (lambda: tn.MeanPool().out_shape((4,)), "MeanPool: expected (tokens, width) of at least one token, received"),
        (lambda: tn.Attention(10, 4), "width must be a multiple of heads, received width=10 and heads=4"),
        (lambda: tn.Attention(8, 4, kv_heads=3), "heads must be a multiple of kv_heads, received heads=4 and kv_heads"),
        (lambda: tn.Attention(8, 0), "Attention: heads must be a whole number of at least 1, received 0"),
        (lambda: tn.Attention(12, 4, rotary=True), "a head must have an even size, received 3 (width=12, heads=4)"),
        (lambda: tn.Attention(8, 2, rotary=0.5), "rotary must be True, False or a base above 1, received 0.5"),
        (lambda: tn.Attention(8, 2, rotary="yes"), "rotary must be True, False or a base above 1, received 'yes'"),
        (lambda: tn.Attention(8, 2, dropout=1), "Dropout: the rate must be at least 0 and below 1, received 1"),
        (lambda: tn.Attention(8, 4, kv_heads=2, key=tn.Linear(8, 8)), "key must map 8 to 4 features, received 8 to 8"),
        (lambda: tn.Attention(8, 2, out="mpo"), "out must be a Linear, Network or Topology, received str"),
        (
            lambda: tn.Attention(8, 2, causal=True).out_shape((8,)),
            "Attention 8 (2 heads, causal): expected inputs of shape (tokens, 8), received (8,)",
        ),
        (lambda: tn.Positions(4, 8).out_shape((5, 8)), "of shape (tokens, 8) with at most 4 tokens, received (5, 8)"),
        (lambda: tn.Positions(4, 8, NET), "Positions: the table must map 4 to 8 features, received 16 to 8"),
        (lambda: tn.Positions(4, 8, tn.ReLU()), "table must be an Embedding, Network or Topology, received ReLU"),
        (lambda: tn.Positions(0, 8), "Positions: context must be a whole number of at least 1, received 0"),
        (
            lambda: tn.Block(tn.ReLU(), tn.Linear(4, 3), tn.ReLU(), tn.ReLU()).out_shape((2, 4)),
            "Block: Linear 4 -> 3 on 'dense' (12 weights) makes (2, 3) of (2, 4): it must keep the shape",
        ),
        (lambda: tn.Block(tn.ReLU(), tn.ReLU(), "ln", tn.ReLU()), "Block: norm2 must be a tn4nn layer, received str"),
        (lambda: tn.Tied(tn.Linear(4, 4), tn.ReLU()), "Tied takes an Embedding and a tn4nn layer, received Linear"),
        (
            lambda: tn.Tied(tn.Embedding(9, 4), tn.Linear(4, 3)).out_shape((2,)),
            "Tied: the body must give (..., 4), the width of the table, received (2, 3)",
        ),
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


def test_tokens_after_a_linear_layer_are_checked_as_far_as_they_are_known() -> None:
    model = tn.Sequential(tn.Linear(4, 8), tn.Attention(8, 2), tn.MeanPool(), tn.Linear(8, 3))
    assert model.out_shape((5, 4)) == (3,)
    with pytest.raises(ShapeError, match="layer '1': Attention 8"):
        tn.Sequential(tn.Linear(4, 6), tn.Attention(8, 2))


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


@pytest.mark.parametrize("kind", [kind for kind, layer in EVERY.items() if layer.networks()])
def test_networks_can_be_exchanged_in_every_kind_of_layer(kind: str) -> None:
    model = EVERY[kind]
    networks = model.networks()
    others = {name: tn.low_rank(net.in_features, net.out_features).with_rank(1) for name, net in networks.items()}
    changed = replace_networks(model, others)
    assert changed.networks() == others
    assert [name for name, _ in changed.walk()] == [name for name, _ in model.walk()]
    assert replace_networks(changed, networks) == model


def test_a_budget_reaches_the_networks_of_a_block() -> None:
    mpo = tn.mpo((4, 4), (4, 4))
    attention = tn.Attention(16, 4, query=mpo, key=mpo, value=mpo, out=mpo)
    block = tn.Block(tn.RMSNorm(16), attention, tn.RMSNorm(16), tn.Sequential(up=tn.Linear(mpo)))
    model = tn.Tied(tn.Embedding(tn.mpo((4, 8), (4, 4))), block)
    with pytest.raises(TopologyError, match=re.escape("layer 'embedding' has a topology without ranks")):
        model.init(0)
    small = tn.with_budget(model, params=1000)
    assert small.num_params <= 1000
    assert set(small.networks()) == {"embedding", "body.mlp.up"} | {
        f"body.attention.{name}" for name in ("query", "key", "value", "out")
    }
    assert all(next(iter(net.ranks.values())) > 1 for net in small.networks().values())


def test_older_data_of_a_parallel_layer_has_no_names() -> None:
    data = json.loads(tn.Parallel(tn.ReLU(), tn.Tanh()).to_json())
    del data["model"]["names"]
    assert tn.model_from_json(json.dumps(data)) == tn.Parallel(tn.ReLU(), tn.Tanh())


def test_a_container_of_the_users_own_keeps_its_children() -> None:
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Twice(tn.Layer):
        inner: tn.Layer

        def children(self) -> tuple[tuple[str, tn.Layer], ...]:
            return (("inner", self.inner),)

    try:
        model, other = Twice(tn.Linear(NET)), NET.topology.with_rank(1)
        assert replace_networks(model, {"inner": other}) == Twice(tn.Linear(other))
        assert tn.model_from_json(model.to_json()) == model
    finally:
        del KINDS["Twice"]


def test_the_start_of_tables_and_of_logits() -> None:
    layer = tn.Positions(256, 64)
    assert layer.init(0)["table.core0"].std() == pytest.approx(0.02, rel=0.01)
    on_network = tn.Positions(256, 64, tn.mpo((16, 16), (8, 8)).with_rank(4))
    table = on_network.networks()["table"]
    drawn = {name.removeprefix("table."): array for name, array in on_network.init(0).items()}
    assert table.to_dense(drawn).std() == pytest.approx(0.02, rel=0.05)
    for width in (16, 256):
        model = tn.Tied(tn.Embedding(300, width), tn.Sequential(tn.Linear(width, width), tn.RMSNorm(width)))
        logits = model.build("numpy", seed=0)(np.arange(300)[None])
        assert logits.std() == pytest.approx(1, rel=0.1)


def test_a_tied_table_is_drawn_and_trained_as_any_embedding() -> None:
    net = tn.mpo((10, 10), (4, 4)).with_rank(3)
    model = tn.Tied(tn.Embedding(net), tn.RMSNorm(16))
    assert set(model.specs()) == {"embedding.core0", "embedding.core1", "body.scale"}
    assert {spec.role for name, spec in model.specs().items() if "core" in name} == {"core"}
    assert model.head.solid().shapes == net.shapes
    assert model.head.out_shape((7, 16)) == (7, 100)
    assert model.networks() == {"embedding": net}


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
