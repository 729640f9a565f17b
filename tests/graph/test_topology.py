from __future__ import annotations

import copy
import json
import pickle
import re

import numpy as np
import pytest
from helpers import run_python

import tn4nn as tn
from tn4nn import TopologyError
from tn4nn.testing import random_topology

CHAIN = tn.topology("x0 y0 a, x1 y1 a b, x2 y2 b", {"x0": 4, "x1": 8, "x2": 8}, {"y0": 4, "y1": 4, "y2": 2})
KEPT = tn.topology("k x0 a, a k y0, x1 y1", {"k": 2, "x0": 3, "x1": 2}, {"y1": 2, "k": 2, "y0": 5})
SOME = [CHAIN, KEPT, tn.btt((2, 3), (3, 2)), tn.build("mpo", 23, 29, sites=2), random_topology(3)]


# -- the notation -----------------------------------------------------------------------------------------


def test_cores_are_numbered_and_legs_keep_their_order() -> None:
    assert CHAIN.cores == (
        tn.Core("core0", ("x0", "y0", "a")),
        tn.Core("core1", ("x1", "y1", "a", "b")),
        tn.Core("core2", ("x2", "y2", "b")),
    )
    assert (CHAIN.in_features, CHAIN.out_features, CHAIN.bonds, CHAIN.kept) == (256, 32, ("a", "b"), ())


def test_names_count_positions_where_others_are_unnamed() -> None:
    t = tn.topology("  left :x0 a ,\n a b, right:b  y0 ", {"x0": 2}, {"y0": 2})
    assert [core.name for core in t.cores] == ["left", "core1", "right"]
    assert t.text == "left: x0 a, core1: a b, right: b y0"


def test_the_text_is_read_back() -> None:
    for t in SOME:
        again = tn.topology(
            t.text, t.inputs, t.outputs, in_features=t.in_features, out_features=t.out_features, name=t.name
        )
        assert again == t


def test_a_leg_of_three_cores_is_summed_once() -> None:
    net = tn.topology("x r, r y, r", {"x": 2}, {"y": 3}).with_rank(4)
    w = net.init(1)
    expected = np.einsum("xr,ry,r->yx", *w.values())
    np.testing.assert_allclose(net.to_dense(w), expected, rtol=1e-5)


def test_an_open_leg_on_two_cores_multiplies_them_pointwise() -> None:
    net = tn.topology("x a, x a y", {"x": 2}, {"y": 3}).with_rank(4)
    w = net.init(1)
    np.testing.assert_allclose(net.to_dense(w), np.einsum("xa,xay->yx", *w.values()), rtol=1e-5)


def test_a_kept_leg_makes_w_block_diagonal() -> None:
    assert KEPT.kept == ("k",)
    net = KEPT.with_rank(2)
    w = net.init(0)
    blocks = np.einsum("kxa,aky,uv->uvkyx", w["core0"], w["core1"], w["core2"])
    expected = np.zeros((2, 2, 5, 2, 3, 2), dtype=np.float32)  # y1 k y0, k x0 x1
    for k in range(2):
        expected[:, k, :, k] = blocks[:, :, k].transpose(1, 2, 3, 0)
    np.testing.assert_allclose(net.to_dense(w), expected.reshape(20, 12), rtol=1e-5, atol=1e-6)


def test_a_kept_leg_on_no_core_repeats_w() -> None:
    net = tn.topology("x y", {"x": 3, "k": 2}, {"k": 2, "y": 4}).with_rank(1)
    (core,) = net.init(0).values()
    expected = np.einsum("xy,kl->kyxl", core, np.eye(2))
    np.testing.assert_allclose(net.to_dense({"core0": core}), expected.reshape(8, 6), rtol=1e-6)


def test_the_flat_index_is_big_endian_in_the_order_of_the_mapping() -> None:
    net = tn.topology("x1 x0 y", {"x0": 2, "x1": 3}, {"y": 1}).with_rank(1)
    core = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
    assert net.to_dense({"core0": core}).tolist() == [[0, 2, 4, 1, 3, 5]]


def test_padded_features_crop_w() -> None:
    t = tn.topology("x y", {"x": 4}, {"y": 4}, in_features=3, out_features=2)
    core = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert t.is_padded
    assert t.with_rank(1).to_dense({"core0": core}).tolist() == core.T[:2, :3].tolist()


# -- errors ------------------------------------------------------------------------------------------------

X, Y = {"x": 2}, {"y": 2}


@pytest.mark.parametrize(
    ("text", "inputs", "outputs", "expected"),
    [
        ("", X, Y, "expected cores as text, like 'x0 y0 a, x1 y1 a', received ''"),
        (None, X, Y, "expected cores as text, like 'x0 y0 a, x1 y1 a', received None"),
        ("x y, ", X, Y, "core 'core1' has no legs: give it at least one, or leave it out"),
        ("x a, a y b", X, Y, "leg 'b' is only on core 'core1' and is neither input nor output"),
        ("x a, a a y", X, Y, "core 'core1' has leg 'a' twice (a trace): give the two axes two names"),
        ("p: x a, p: a y", X, Y, "core name 'p' is used twice: names must be unique"),
        ("p:q: x y", X, Y, "tensor 0 ('p:q: x y') has more than one colon"),
        ("p q: x y", X, Y, "tensor 0 ('p q: x y'): 'p q' is not a core name"),
        ("2nd: x y", X, Y, "'2nd' is not a core name: expected a letter, then letters, digits, underscores"),
        ("bias: x y", X, Y, "'bias' is not a core name"),
        ("x: x y", X, Y, "'x' is not a core name"),
        ("x0 y", X, Y, "input leg 'x' is on no core. Did you mean 'x0'?"),
        ("x yy", X, {"y": 2}, "output leg 'y' is on no core. Did you mean 'yy'?"),
        ("x y", {}, Y, "inputs must map at least one leg to its size, received {}"),
        ("x y", X, [2], "outputs must map at least one leg to its size, received [2]"),
        ("x y", {"x": 0}, Y, "input leg 'x': the size must be at least 1, received 0"),
        ("x y", X, {"y": 2.0}, "output leg 'y': the size must be a whole number of at least 1, received 2.0"),
        ("x y", X, {"y": True}, "the size must be a whole number of at least 1, received True"),
        (
            "k y", {"k": 2}, {"k": 3, "y": 2},
            "leg 'k' is input and output at once (a batch leg), so its sizes must agree: input 2, output 3",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_core_and_the_leg(text, inputs, outputs, expected) -> None:
    with pytest.raises(TopologyError, match=re.escape(expected)):
        tn.topology(text, inputs, outputs)


def test_leg_names_without_spaces_commas_colons() -> None:
    with pytest.raises(TopologyError, match="core 'c': 'a b' is not a leg name"):
        tn.Topology((tn.Core("c", ("x", "y", "a b")), tn.Core("d", ("a b",))), X, Y)
    with pytest.raises(TopologyError, match="a topology needs at least one core, received none"):
        tn.Topology((), X, Y)


def test_numpy_integers_are_features() -> None:
    t = tn.topology("x z y", {"x": 2, "z": 3}, Y, in_features=np.int64(5))  # pyright: ignore[reportArgumentType]
    assert t == tn.Topology.from_json(t.to_json())
    assert type(t.in_features) is int
    assert (t.in_features, t.is_padded) == (5, True)


def test_features_beyond_the_modes() -> None:
    with pytest.raises(TopologyError, match=r"in_features must be from 1 to .* \(2\*3 = 6\), received 7"):
        tn.topology("x z y", {"x": 2, "z": 3}, Y, in_features=7)
    with pytest.raises(TopologyError, match=r"in_features must be from 1 to .* received True"):
        tn.topology("x y", X, Y, in_features=True)
    with pytest.raises(TopologyError, match=r"out_features must be from 1 to .* \(2 = 2\), received 0"):
        tn.topology("x y", X, Y, out_features=0)
    with pytest.raises(TopologyError, match=r"with a batch leg .* cannot be padded"):
        tn.topology("k x y", {"k": 2, "x": 3}, {"k": 2, "y": 3}, in_features=5)


# -- as data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", SOME, ids=lambda t: t.name)
def test_json_pickle_and_copies_are_equal(t: tn.Topology) -> None:
    for again in (tn.Topology.from_json(t.to_json()), pickle.loads(pickle.dumps(t)), copy.deepcopy(t)):
        assert again == t
        assert hash(again) == hash(t)
        assert again.fingerprint == t.fingerprint
        assert list(again.inputs) == list(t.inputs)


def test_hand_written_data_may_hold_the_text() -> None:
    data = {"cores": "x a, a y", "inputs": {"x": 2}, "outputs": {"y": 3}}
    assert tn.Topology.from_dict(data) == tn.topology("x a, a y", {"x": 2}, {"y": 3})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "this is not JSON of a topology"),
        ("[]", "the JSON of a topology is an object, received list"),
        ('{"schema": 2}', "topology data of schema 2: this version reads schema 1"),
        ('{"cores": "x y"}', "topology data lacks inputs, outputs: received the keys ['cores']"),
        (
            '{"cores": [["a"]], "inputs": {"x": 2}, "outputs": {"y": 2}}',
            "a core is [name, [legs]] in topology data, received ['a']",
        ),
        (
            '{"cores": 3, "inputs": {"x": 2}, "outputs": {"y": 2}}',
            "cores in topology data are text or a list of [name, [legs]], received 3",
        ),
    ],
)
def test_broken_data_is_refused(text: str, expected: str) -> None:
    with pytest.raises(TopologyError, match=re.escape(expected)):
        tn.Topology.from_json(text)


def test_the_order_of_modes_tells_topologies_apart() -> None:
    one = tn.topology("x0 x1 y", {"x0": 2, "x1": 3}, Y)
    two = tn.topology("x0 x1 y", {"x1": 3, "x0": 2}, Y)
    assert one != two
    assert one.fingerprint != two.fingerprint
    assert one.with_rank(1) != two.with_rank(1)


def test_the_fingerprint_counts_everything_but_the_name() -> None:
    assert CHAIN.renamed("other").fingerprint == CHAIN.fingerprint
    assert CHAIN.renamed("other") != CHAIN
    changes = [
        tn.topology("x0 y0 a, x1 y1 a b, x2 b y2", CHAIN.inputs, CHAIN.outputs),
        tn.topology("x0 y0 a, x1 y1 a b, z: x2 y2 b", CHAIN.inputs, CHAIN.outputs),
        tn.topology(CHAIN.text, {**CHAIN.inputs, "x0": 5}, CHAIN.outputs),
        tn.topology(CHAIN.text, CHAIN.inputs, CHAIN.outputs, in_features=255),
    ]
    assert len({t.fingerprint for t in [CHAIN, *changes]}) == 5


def test_fingerprints_are_the_same_in_every_process() -> None:
    code = f"import tn4nn as tn; print(tn.Topology.from_json({KEPT.to_json()!r}).fingerprint)"
    assert run_python(code, PYTHONHASHSEED="4242").strip() == KEPT.fingerprint


def test_a_topology_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        CHAIN.inputs["x0"] = 3  # type: ignore[index]
    with pytest.raises(AttributeError):
        CHAIN.name = "x"  # type: ignore[misc]
    sizes = {"x": 2}
    t = tn.topology("x y", sizes, Y)
    sizes["x"] = 5
    assert t.in_features == 2


def test_print() -> None:
    assert str(CHAIN) == (
        "Topology 'custom': 256 -> 32, 3 cores, 2 bonds\n"
        "  inputs  x0=4 x1=8 x2=8\n"
        "  outputs y0=4 y1=4 y2=2\n"
        "  core0    x0 y0 a\n"
        "  core1    x1 y1 a b\n"
        "  core2    x2 y2 b"
    )
    assert json.loads(CHAIN.to_json())["name"] == "custom"


def test_holders_name_the_cores_of_every_leg() -> None:
    t = tn.topology("x0 y0 a, x1 y1 a b, x1 b", inputs={"x0": 2, "x1": 3, "k": 5}, outputs={"y0": 2, "y1": 3, "k": 5})
    assert list(t.holders.items()) == [
        ("x0", (0,)),
        ("x1", (1, 2)),
        ("k", ()),  # through the layer, on no core
        ("y0", (0,)),
        ("y1", (1,)),
        ("a", (0, 1)),
        ("b", (1, 2)),
    ]
    assert pickle.loads(pickle.dumps(t)).holders == t.holders
