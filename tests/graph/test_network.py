from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest

import tn4nn as tn
from tn4nn import ShapeError, TopologyError
from tn4nn.testing import random_network

MPO = tn.mpo((4, 7, 7, 4), (4, 4, 4, 4))
NET = MPO.with_ranks({"a0": 2, "a1": 5, "a2": 3})


def test_sizes_shapes_and_counts() -> None:
    assert NET.shapes == {
        "core0": (4, 4, 2),
        "core1": (2, 7, 4, 5),
        "core2": (5, 7, 4, 3),
        "core3": (3, 4, 4),
    }
    assert NET.num_params == 32 + 280 + 420 + 48
    assert NET.dense_params == 784 * 256
    assert NET.sizes["a1"] == 5
    assert NET.sizes["x1"] == 7
    assert (NET.in_features, NET.out_features) == (784, 256)


def test_with_rank_clips_at_the_largest_useful_rank_only_when_asked() -> None:
    assert MPO.with_rank(20).ranks == {"a0": 20, "a1": 20, "a2": 20}
    assert MPO.with_rank(20, clip=True).ranks == {"a0": 16, "a1": 20, "a2": 16}


def test_ranks_stand_in_the_order_of_the_bonds() -> None:
    assert list(MPO.with_ranks({"a2": 3, "a0": 2, "a1": 5}).ranks) == ["a0", "a1", "a2"]
    assert MPO.with_ranks({"a2": 3, "a0": 2, "a1": 5}).fingerprint == NET.fingerprint


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ({"a0": 2, "a1": 2}, "every bond needs a size: 'a2' received none"),
        ({"a0": 2, "a1": 2, "a2": 2, "a9": 2}, "'a9' is not a bond of 'mpo'. Known: 'a0', 'a1', 'a2'."),
        ({"a0": 2, "a1": 2, "a2": 2, "x0": 4}, "'x0' is not a bond of 'mpo'. Known: 'a0', 'a1', 'a2'."),
        ({"a0": 0, "a1": 2, "a2": 2}, "bond 'a0': the size must be at least 1, received 0"),
        (
            {"a0": 2.5, "a1": 2, "a2": 2},
            "bond 'a0': the size must be a whole number of at least 1, received 2.5",
        ),
    ],
)
@pytest.mark.parametrize("clip", [False, True])
def test_wrong_ranks(ranks: dict, expected: str, clip: bool) -> None:
    with pytest.raises(TopologyError, match=re.escape(expected)):
        MPO.with_ranks(ranks, clip=clip)


def test_numpy_integers_are_whole_numbers() -> None:
    ranks = MPO.with_rank(np.int64(3)).ranks  # type: ignore[arg-type]
    assert ranks == {"a0": 3, "a1": 3, "a2": 3}
    assert {type(rank) for rank in ranks.values()} == {int}


@pytest.mark.parametrize("net", [NET, *(random_network(seed) for seed in range(5))], ids=lambda n: n.topology.name)
def test_json_pickle_and_copies_are_equal(net: tn.Network) -> None:
    for again in (tn.Network.from_json(net.to_json()), pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert again == net
        assert hash(again) == hash(net)
        assert again.fingerprint == net.fingerprint


def test_another_rank_is_another_network() -> None:
    other = MPO.with_ranks({"a0": 2, "a1": 5, "a2": 4})
    assert other != NET
    assert other.fingerprint != NET.fingerprint


def test_broken_data_is_refused() -> None:
    with pytest.raises(TopologyError, match=r"network data lacks ranks: received the keys \['topology'\]"):
        tn.Network.from_dict({"topology": MPO.to_dict()})
    with pytest.raises(TopologyError, match="network data of schema 9: this version reads schema 1"):
        tn.Network.from_json('{"schema": 9}')


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("x", "network data is an object, received str"),
        ({"topology": None, "ranks": {}}, "topology data is an object, received NoneType"),
        (
            {"topology": MPO.to_dict(), "ranks": [3, 5, 4]},
            r"ranks must map each bond to its size, received \[3, 5, 4\]",
        ),
    ],
)
def test_data_of_another_shape_is_refused(data, text: str) -> None:
    with pytest.raises(TopologyError, match=text):
        tn.Network.from_dict(data)


def test_weights_of_another_network_are_refused() -> None:
    weights = NET.init(0)
    with pytest.raises(ShapeError, match=re.escape("core 'core1': expected shape (2, 7, 4, 5), received (1, 7, 4, 5)")):
        NET.to_dense({**weights, "core1": weights["core1"][:1]})
    with pytest.raises(ShapeError, match=re.escape("'core7' is not a core of this network. Did you mean 'core3'")):
        NET.to_dense({**weights, "core7": weights["core1"]})
    with pytest.raises(ShapeError, match="core 'core1': expected an array, received list"):
        NET.to_dense({**weights, "core1": weights["core1"].tolist()})
    del weights["core2"]
    with pytest.raises(ShapeError, match=re.escape("core 'core2' of shape (5, 7, 4, 3) is missing")):
        NET.check(weights)


@pytest.mark.parametrize("kind", ["float32", "float64", "complex128"])
def test_w_comes_in_the_dtype_of_the_weights(kind: str) -> None:
    weights = {name: array.astype(kind) for name, array in NET.init(0).items()}
    if kind == "complex128":
        weights["core0"] = weights["core0"] * 1j
    w = NET.to_dense(weights)
    assert w.dtype == kind
    assert w.shape == (256, 784)
    real = NET.to_dense(NET.init(0))
    np.testing.assert_allclose(w.imag if kind == "complex128" else w, real, rtol=1e-4, atol=1e-6)


def test_print() -> None:
    text = str(tn.low_rank(6, 4).with_rank(2))
    assert text == (
        "Network 'low_rank': 6 -> 4, 20 params (1.2x fewer than dense)\n"
        "  bonds   a0=2\n"
        "  core0    x0 a0                (6, 2)\n"
        "  core1    a0 y0                (2, 4)"
    )
    assert "bonds   none" in str(tn.kronecker((2, 2), (2, 2)).with_rank(1))
