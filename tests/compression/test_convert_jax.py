"""Trained Equinox models, and trees of arrays, with networks in the place of their matrices."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

import numpy as np
import pytest
from helpers import run_python

import tn4nn as tn
from tn4nn._planning.planner import at_rows

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402
import tn4nn_jax  # noqa: E402
from tn4nn_jax import (  # noqa: E402
    Rule,
    TNConv2d,
    TNEmbedding,
    TNLinear,
    convert,
    decompose_params,
    plan_conversion,
    plan_params,
    undo,
)

try:
    import equinox as eqx
except ImportError:
    eqx = None
needs_equinox = pytest.mark.skipif(eqx is None, reason="Equinox is not installed")

KEY = jax.random.key(0)


def full(name: str = "low_rank") -> Rule:
    """A rule under which nothing is lost."""
    return Rule(name, error=1e-5)


def redundant(*shape: int) -> Any:
    """A weight whose matrix has rank 2."""
    rng = np.random.default_rng(1)
    rest = int(np.prod(shape[1:]))
    return jnp.asarray(rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, rest)) / rest**0.5, jnp.float32)


def drawn(make: Any, *args: Any, **options: Any) -> Any:
    """A model with numbers from numpy: drawing them in jax would compile a program for every shape."""
    rng = np.random.default_rng(2)

    def numbers(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(rng.uniform(-1, 1, leaf.shape) / leaf.shape[-1] ** 0.5, leaf.dtype)

    return jax.tree_util.tree_map(numbers, eqx.filter_eval_shape(make, *args, **options, key=KEY))


def net() -> Any:
    return drawn(eqx.nn.MLP, 24, 4, 16, 2)


def weights_of(model: Any) -> list[Any]:
    return jax.tree_util.tree_leaves(eqx.filter(model, eqx.is_array))


def with_weight(layer: Any, weight: Any) -> Any:
    return eqx.tree_at(lambda node: node.weight, layer, weight)


# -- the function is kept ---------------------------------------------------------------------------------------


@pytest.mark.thorough
@needs_equinox
def test_every_kind_of_layer_computes_what_stood_there() -> None:
    cases = [
        (drawn(eqx.nn.Linear, 24, 16), (24,), TNLinear),
        (drawn(eqx.nn.Linear, 24, 16, use_bias=False), (24,), TNLinear),
        (drawn(eqx.nn.Conv2d, 4, 8, 3, stride=2, padding=1), (4, 9, 7), TNConv2d),
        (drawn(eqx.nn.Conv2d, 4, 8, (3, 5), padding="SAME", use_bias=False), (4, 9, 7), TNConv2d),
        (drawn(eqx.nn.Conv2d, 4, 8, 2, padding="VALID"), (4, 6, 6), TNConv2d),
        (drawn(eqx.nn.Embedding, 40, 12), (), TNEmbedding),
    ]
    for layer, shape, kind in cases:
        dense = with_weight(layer, redundant(*layer.weight.shape).reshape(layer.weight.shape))
        x = jax.random.randint(KEY, (5,), 0, 40) if kind is TNEmbedding else jax.random.normal(KEY, (5, *shape))
        result = convert(dense, full())
        assert type(result) is kind
        truth = jax.vmap(dense)(x)
        for found in (jax.vmap(result)(x), jax.vmap(undo(result))(x)):
            np.testing.assert_allclose(found, truth, atol=1e-4)
        np.testing.assert_allclose(result(x[0], key=KEY), truth[0], atol=1e-4)
        assert sum(a.size for a in weights_of(result)) < sum(a.size for a in weights_of(dense))
        assert jax.tree.map(np.shape, weights_of(undo(result))) == jax.tree.map(np.shape, weights_of(dense))
        assert type(undo(result)) is type(dense)


@pytest.mark.slow
@needs_equinox
def test_containers_and_attention_run_as_before() -> None:
    image = eqx.nn.Sequential(
        [
            drawn(eqx.nn.Conv2d, 1, 6, 3, padding=1),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Dropout(0.5),
            drawn(eqx.nn.Linear, 6 * 64, 10),
        ]
    )
    x = jax.random.normal(KEY, (3, 1, 8, 8))
    rules = {"layers.0": Rule("low_rank", rank=5), "layers.4": Rule("low_rank", rank=9)}
    result = convert(image, rules)
    quiet = [eqx.nn.inference_mode(model) for model in (image, result, undo(result))]
    truth, found, dense = (jax.vmap(model)(x) for model in quiet)
    assert float(jnp.abs(found - dense).max()) < 1e-4
    assert float(jnp.linalg.norm(found - truth) / jnp.linalg.norm(truth)) < 0.6
    attention = drawn(eqx.nn.MultiheadAttention, 2, 16)
    kernels = convert(attention, {"*_proj": Rule("low_rank", rank=7)}, protect_head=False)
    assert type(kernels.query_proj) is TNLinear
    y = jax.random.normal(KEY, (5, 16))
    np.testing.assert_allclose(kernels(y, y, y), undo(kernels)(y, y, y), atol=1e-5)


@pytest.mark.slow
@needs_equinox
def test_transforms_and_filters() -> None:
    result = convert(net(), "mpo", budget=400, batch=8)
    x = jax.random.normal(KEY, (8, 24))
    dense = undo(result)
    truth = jax.vmap(dense)(x)
    np.testing.assert_allclose(eqx.filter_jit(lambda m, x: jax.vmap(m)(x))(result, x), truth, atol=1e-5)
    np.testing.assert_allclose(result(x[0]), truth[0], atol=1e-5)

    def loss(model: Any, x: Any) -> Any:
        return jnp.sum(jax.vmap(model)(x) ** 2)

    value, gradients = eqx.filter_jit(eqx.filter_value_and_grad(loss))(result, x)
    assert float(value) == pytest.approx(float(loss(dense, x)), rel=1e-4)
    truth_gradients = eqx.filter_grad(loss)(dense, x)
    np.testing.assert_allclose(
        gradients.layers[2].weight, truth_gradients.layers[2].weight, atol=1e-3
    )  # behind the two layers on networks
    by_x, truth_by_x = jax.grad(loss, argnums=1)(result, x), jax.grad(loss, argnums=1)(dense, x)
    np.testing.assert_allclose(by_x, truth_by_x, atol=1e-4)
    arrays, static = eqx.partition(result, eqx.is_inexact_array)
    np.testing.assert_allclose(jax.vmap(eqx.combine(arrays, static))(x), truth, atol=1e-5)


@pytest.mark.thorough
@needs_equinox
def test_sizes_that_do_not_factor_are_padded() -> None:
    layer = drawn(eqx.nn.Linear, 23, 17)
    x = jax.random.normal(KEY, (5, 23))
    result = convert(layer, Rule("ring", rank=2))
    assert undo(result).weight.shape == (17, 23)
    np.testing.assert_allclose(jax.vmap(result)(x), jax.vmap(undo(result))(x), atol=1e-5)


@needs_equinox
def test_the_source_is_as_it_was_and_what_stays_is_the_same() -> None:
    model = net()
    before = [np.array(a) for a in weights_of(model)]
    result = convert(model, {"layers.0": "low_rank"}, budget=200)
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(model), strict=True))
    assert result.layers[1] is not result.layers[0]
    assert result.layers[1].weight is model.layers[1].weight
    assert result.activation is model.activation


@pytest.mark.thorough
@needs_equinox
def test_an_ordering() -> None:
    from tn4nn._graph.ordering import ordering

    order = ordering("hilbert", (4, 4))
    product = np.kron(*np.random.default_rng(0).standard_normal((2, 3, 4)))
    layer = with_weight(eqx.nn.Linear(16, 9, key=KEY), jnp.asarray(product[:, np.argsort(order.permutation)]))
    result = convert(layer, Rule(tn.mpo((4, 4), (3, 3)), rank=1, ordering="hilbert"))
    x = jax.random.normal(KEY, (16,))
    np.testing.assert_allclose(result(x), layer(x), atol=1e-4)
    np.testing.assert_allclose(undo(result)(x), layer(x), atol=1e-4)


# -- what is shared stays shared --------------------------------------------------------------------------------


def tied() -> Any:
    class Tied(eqx.Module):
        table: Any
        block: Any
        again: Any
        head: Any

        def __call__(self, token: Any) -> Any:
            return self.head(jnp.tanh(self.again(jnp.tanh(self.block(self.table(token))))))

    table, block = eqx.nn.Embedding(48, 16, key=KEY), eqx.nn.Linear(16, 16, key=KEY)
    head = with_weight(eqx.nn.Linear(16, 48, use_bias=False, key=KEY), table.weight)
    return Tied(table, block, block, head)


@pytest.mark.slow
@needs_equinox
def test_tied_weights_and_shared_layers_stay_so() -> None:
    model = tied()
    rules = {"table": Rule("mpo", sites=2, rank=3), "block": "low_rank"}
    dry = plan_conversion(model, rules, 400, protect_head=False)
    assert [row.name for row in dry.rows] == ["table = head", "block = again"]
    result = dry.run()
    assert result.block is result.again
    cores = [core for core in result.table.weights if core != "bias"]
    assert all(result.table.weights[n] is result.head.weights[n] for n in cores)
    dense = undo(result)
    assert dense.head.weight is dense.table.weight
    assert dense.block is dense.again
    tokens = jnp.array([1, 47, 3])
    np.testing.assert_allclose(jax.vmap(dense)(tokens), jax.vmap(result)(tokens), atol=1e-5)
    protected = {row.name: row for row in plan_conversion(model, "mpo", 100).rows}
    assert protected["table = head"].reason.startswith("the head is protected")


@needs_equinox
def test_what_cannot_be_replaced_is_left_with_the_reason() -> None:
    def untouched() -> dict[str, Any]:
        return {
        "groups": eqx.nn.Conv2d(4, 4, 3, groups=2, key=KEY), "dilated": eqx.nn.Conv2d(4, 4, 3, dilation=2, key=KEY),
        "circular": eqx.nn.Conv2d(4, 4, 3, padding=1, padding_mode="CIRCULAR", key=KEY),
        "even": eqx.nn.Conv2d(4, 4, 2, padding="SAME", key=KEY),
        "uneven": eqx.nn.Conv2d(4, 4, 3, padding=((0, 1), (1, 1)), key=KEY),
        "scalar": eqx.nn.Linear("scalar", 8, key=KEY), "first": eqx.nn.Linear(8, 8, key=KEY),
        "normed": eqx.nn.WeightNorm(eqx.nn.Linear(8, 8, key=KEY)),
        "shared": eqx.nn.Shared(
            (eqx.nn.Embedding(8, 8, key=KEY), eqx.nn.Linear(8, 8, key=KEY)),
            where=lambda pair: pair[1].weight, get=lambda pair: pair[0].weight,
        ),
        "stacked": eqx.filter_vmap(lambda key: eqx.nn.Linear(8, 8, key=key))(jax.random.split(KEY, 3)),
        "counted": with_weight(eqx.nn.Linear(8, 8, key=KEY), jnp.ones((8, 8), jnp.int32)),
        "absent": with_weight(eqx.nn.Linear(8, 8, key=KEY), None), "zend": eqx.nn.Linear(8, 8, key=KEY),
    }  # fmt: skip

    parts = eqx.filter_eval_shape(untouched)  # none of them is read
    parts["loose"] = [parts["first"].weight]
    rows = {row.name: row.reason for row in plan_conversion(parts, "low_rank", 1000).rows}
    expected = {
        "groups": "groups=2: its kernel is no single matrix", "dilated": "dilation=(2, 2) is not supported",
        "circular": "padding_mode='CIRCULAR'", "even": "padding='SAME'", "uneven": "padding=((0, 1), (1, 1))",
        "scalar": "it takes or gives scalars", "first": "its weight is loose.0 too",
        "normed.layer": "eqx.nn.WeightNorm reads its weight past the layer",
        "shared.pytree.0": "eqx.nn.Shared reads its weight", "shared.pytree.1": "eqx.nn.Shared reads its weight",
        "stacked": "its weight has shape (3, 8, 8): layers that are stacked", "counted": "its weight holds int32",
        "absent": "its weight is no array but a NoneType", "zend": "the head is protected",
    }  # fmt: skip
    for name, text in expected.items():
        assert text in rows[name], (name, rows[name])


# -- what the table says, and the budget ------------------------------------------------------------------------


@needs_equinox
def test_the_dry_run_is_a_table_and_tells_the_truth() -> None:
    model = net()
    dry = plan_conversion(model, {"layers.1": "skip", "*": "low_rank"}, budget=200, batch=10)
    result = dry.run()
    rows = {row.name: row for row in dry.rows}
    assert rows["layers.1"].reason == "the rules skip it"
    assert rows["layers.2"].reason == "the head is protected: name it in full, or protect_head=False"
    first = rows["layers.0"]
    macs = at_rows(result.layers[0].plan(10), 10, "forward").cost.macs  # of what runs, be it more than the fewest
    assert (first.before, first.after, first.macs_before, first.macs_after) == (384, 200, 3840, macs)
    w, new = model.layers[0].weight, undo(result).layers[0].weight
    assert first.error == pytest.approx(float(jnp.linalg.norm(w - new) / jnp.linalg.norm(w)), rel=1e-4)
    text = repr(dry)
    line = rf"^layers.0 +Linear +16x24 +low_rank +384 +200 +3,840 +{macs:,} +\d+\.\d\dx +0\.\d{{3}} +convert$"
    assert re.search(line, text, re.M)
    assert text.splitlines()[5].startswith("1 of 3 weights converted: 384 -> 200 parameters (1.92x fewer), budget 200")
    no_gain = plan_conversion(model, {"layers.1": Rule("mpo", sites=2, rank=16)}).rows[1]
    assert no_gain.reason.startswith("no gain: ")


@pytest.mark.cases(1)
@needs_equinox
@pytest.mark.parametrize("name", ["low_rank", "mpo", "ring"])
@pytest.mark.parametrize("budget", [150, 0.7])
def test_a_budget_is_kept_and_filled(name: str, budget: float) -> None:
    model = drawn(eqx.nn.MLP, 24, 16, 16, 2)
    rule = Rule(name, sites=2) if name != "low_rank" else name
    dry = plan_conversion(model, {"layers.[01]": rule}, budget)
    after = sum(row.after for row in dry.rows[:2])
    allowed = budget if budget > 1 else int(budget * (24 * 16 + 16 * 16))
    assert 0.8 * allowed < after <= allowed
    result = dry.run()
    assert sum(result.layers[i].model.network.num_params for i in range(2)) == after


@pytest.mark.thorough
@needs_equinox
def test_torch_and_jax_convert_alike() -> None:
    torch = pytest.importorskip("torch")
    import tn4nn_torch

    model = net()
    twin = torch.nn.Sequential(*(torch.nn.Linear(24, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, 4)))
    with torch.no_grad():
        for layer, old in zip(twin, model.layers, strict=True):
            layer.weight.copy_(torch.from_numpy(np.array(old.weight)))
    mine = plan_conversion(model, {"layers.[01]": "mpo"}, 300)
    theirs = tn4nn_torch.plan_conversion(twin, {"[01]": "mpo"}, 300)
    assert [(r.shape, r.after, r.error, r.time, r.reason) for r in mine.rows] == [
        (r.shape, r.after, r.error, r.time, r.reason) for r in theirs.rows
    ]
    for i in range(2):
        found, wanted = mine.run().layers[i].weights, tn.backend("torch").weights(theirs.run()[i])
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted if name != "bias")


# -- calibration ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_equinox
def test_calibration_makes_the_outputs_better() -> None:
    model = eqx.nn.Sequential([drawn(eqx.nn.Linear, 24, 16), eqx.nn.Dropout(0.5), drawn(eqx.nn.Linear, 16, 4)])
    x = jax.random.normal(KEY, (200, 24)) * jnp.logspace(0, -2, 24)
    rules = {"layers.0": Rule("low_rank", rank=4)}
    plain, seeing = convert(model, rules), plan_conversion(model, rules, inputs=x)
    truth = jax.vmap(model.layers[0])(x)
    off = [float(jnp.linalg.norm(jax.vmap(m.layers[0])(x) - truth)) for m in (plain, seeing.run())]
    assert off[1] < 0.7 * off[0]
    centred = float(jnp.linalg.norm(truth - model.layers[0].bias))
    assert seeing.rows[0].output_error == pytest.approx(off[1] / centred, rel=1e-3)
    runs = [
        np.asarray(x),
        lambda m: [m(row) for row in x],  # not mapped
        lambda m: eqx.filter_jit(lambda n: jax.vmap(jax.vmap(n))(x.reshape(10, 20, 24)))(m),  # twice, and compiled
        lambda m: jax.lax.scan(lambda carry, row: (carry, m(row)), 0, x),
    ]
    for inputs in runs:
        again = plan_conversion(model, rules, inputs=inputs).rows[0]
        assert again.output_error == pytest.approx(seeing.rows[0].output_error, rel=1e-3)


@pytest.mark.slow
@needs_equinox
def test_a_convolution_is_calibrated_on_its_patches() -> None:
    layer = drawn(eqx.nn.Conv2d, 3, 8, 3, padding=1, stride=2)
    x = jnp.cumsum(jnp.cumsum(jax.random.normal(KEY, (4, 3, 8, 8)), -1), -2)
    dry = plan_conversion(layer, Rule("low_rank", rank=3), inputs=x)
    y, z = jax.vmap(layer)(x), jax.vmap(dry.run())(x)
    wanted = float(jnp.linalg.norm(y - z) / jnp.linalg.norm(y - layer.bias))
    assert dry.rows[0].output_error == pytest.approx(wanted, rel=1e-2)


# -- dtypes, devices, what is refused ---------------------------------------------------------------------------


@pytest.mark.slow
@needs_equinox
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_decomposed_in_full_and_cast_back(dtype: str) -> None:
    model = jax.tree_util.tree_map(lambda a: a.astype(dtype) if eqx.is_array(a) else a, net())
    result = convert(model, {"layers.0": Rule("low_rank", rank=5)})
    assert {str(a.dtype) for a in weights_of(result)} == {dtype}
    plain = tn.decompose(np.asarray(model.layers[0].weight, np.float32), tn.low_rank(24, 16), rank=5)
    found = np.asarray(undo(result).layers[0].weight).astype(np.float32)
    assert undo(result).layers[0].weight.dtype == dtype
    np.testing.assert_allclose(found, plain.to_dense(), atol=4 * float(jnp.finfo(dtype).eps))
    x = jnp.ones((3, 24), dtype)
    assert jax.vmap(result)(x).dtype == dtype


@pytest.mark.thorough
@needs_equinox
def test_float64_is_decomposed_in_float64() -> None:
    with jax.enable_x64(True):
        weight = jnp.asarray(np.random.default_rng(0).standard_normal((16, 24)))
        layer = with_weight(eqx.nn.Linear(24, 16, use_bias=False, dtype=jnp.float64, key=KEY), weight)
        result = convert(layer, Rule("low_rank", rank=9))
        assert {a.dtype for a in weights_of(result)} == {np.dtype("float64")}
        plain = tn.decompose(np.asarray(weight), tn.low_rank(24, 16), rank=9, dtype="float64")
        np.testing.assert_allclose(undo(result).weight, plain.to_dense(), atol=1e-12)


@needs_equinox
@pytest.mark.parametrize(
    ("rules", "options", "error", "text"),
    [
        ({"layer.0": "mpo"}, {"budget": 9}, tn.TN4NNError, "rule 'layer.0' matches no layer of this model. Did you "
            "mean 'layers.0'"),
        ({"activation": "mpo"}, {"budget": 9}, tn.TN4NNError, "eqx.nn.Linear, Conv2d and Embedding can"),
        ({"layers": "mpo"}, {"budget": 9}, tn.TN4NNError, "'layers' is a tuple. eqx.nn.Linear"),
        ({"layers.0": "mpoo"}, {"budget": 90}, tn.TopologyError, "layer 'layers.0': unknown topology 'mpoo'"),
        ({"layers.0": "mpo"}, {}, tn.BudgetError, "nothing says how large layer 'layers.0' may become: give budget="),
        ({"layers.0": "low_rank"}, {"budget": 20}, tn.BudgetError, "the smallest feasible one is 40"),
        ({"layers.0": tn.mpo((4, 4), (4, 4))}, {"budget": 99}, tn.ShapeError, "layer 'layers.0': the rule's topology "
            "is 16 -> 16, the layer is 24 -> 16"),
        ({"layers.0": Rule("mpo", options={"grid": 3})}, {"budget": 99}, tn.TopologyError, "mpo does not take grid"),
        ({"layers.0": tn.low_rank(24, 16).with_rank(3)}, {"inputs": 3}, tn.TN4NNError, "inputs is a batch that"),
    ],
)  # fmt: skip
def test_bad_rules_are_errors(rules: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error) as caught:
        convert(net(), rules, **options)
    assert text in str(caught.value)


@needs_equinox
@pytest.mark.parametrize(("value", "text"), [(float("nan"), "NaN or infinite"), (0.0, "zero everywhere")])
def test_numbers_that_cannot_be_decomposed_name_the_layer(value: float, text: str) -> None:
    model = eqx.tree_at(lambda m: m.layers[1].weight, net(), jnp.full((16, 16), value))
    with pytest.raises(tn.DataError, match=f"layer 'layers.1': .*{text}"):
        convert(model, {"layers.1": "low_rank"}, 100)


@needs_equinox
def test_models_without_numbers_are_errors() -> None:
    with pytest.raises(tn.BackendError, match=re.escape("layer 'layers.0' has a shape and no numbers to decompose")):
        convert(eqx.filter_eval_shape(net), "mpo", 100)
    with pytest.raises(tn.BackendError, match="call it outside of jit, grad and vmap"):
        eqx.filter_jit(lambda m: convert(m, "mpo", 100))(net())
    with pytest.raises(tn.TN4NNError, match="has no layer that can be converted: eqx.nn.Linear, Conv2d and Embedding"):
        convert({"scale": jnp.ones(3)}, "mpo", 10)


def test_without_equinox_the_error_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "equinox", None)
    tn4nn_jax._kinds.kinds.cache_clear()
    with pytest.raises(tn.BackendError, match="pip install equinox. For a tree of named arrays, tn4nn_jax.decompose"):
        convert({}, "mpo", 10)


@needs_equinox
@pytest.mark.slow
def test_cores_lie_where_the_weight_lay() -> None:
    code = """
        import equinox as eqx, jax, numpy as np, tn4nn_jax
        from jax.sharding import Mesh, NamedSharding, PartitionSpec
        key, devices = jax.random.key(0), jax.devices()
        one = jax.device_put(eqx.nn.Linear(16, 16, key=key), devices[1])
        mesh = Mesh(np.array(devices), ("i",))
        rows = eqx.tree_at(lambda m: m.weight, one, jax.device_put(one.weight, NamedSharding(mesh, PartitionSpec("i"))))
        for layer, wanted in ((one, {devices[1]}), (rows, set(devices))):
            small = tn4nn_jax.convert(layer, "low_rank", 130)
            assert {d for name, a in small.weights.items() if name != "bias" for d in a.devices()} == wanted
    """
    run_python(code, XLA_FLAGS="--xla_force_host_platform_device_count=4")


# -- and on -----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@needs_equinox
def test_an_ordinary_loop_trains_what_was_converted() -> None:
    teacher = net()
    x = jax.random.normal(KEY, (256, 24))
    y = jax.vmap(teacher)(x)
    result = convert(teacher, "mpo", budget=150, batch=256)
    optimizer = optax.adam(1e-2)
    state = optimizer.init(eqx.filter(result, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model: Any, state: Any) -> Any:
        value, gradients = eqx.filter_value_and_grad(lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2))(model)
        updates, state = optimizer.update(gradients, state)
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for _ in range(60):
        result, state, value = step(result, state)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.thorough
@needs_equinox
def test_files(tmp_path: Any) -> None:
    result = convert(net(), "mpo", budget=300)
    layer = result.layers[0]
    tn.save(tmp_path / "layer", layer.model, tn.backend("jax").weights(layer))
    model, weights = tn.load(tmp_path / "layer")
    again = eqx.tree_at(lambda m: m.layers[0], result, TNLinear(model.network, weights))
    x = jnp.ones((2, 24))
    np.testing.assert_allclose(jax.vmap(again)(x), jax.vmap(result)(x), rtol=1e-5)  # planned for another batch
    file = io.BytesIO()  # Equinox's own
    eqx.tree_serialise_leaves(file, result)
    file.seek(0)
    blank = jax.tree_util.tree_map(lambda a: a * 0 if eqx.is_array(a) else a, result)
    read = eqx.tree_deserialise_leaves(file, blank)
    np.testing.assert_array_equal(jax.vmap(read)(x), jax.vmap(result)(x))


# -- trees of arrays --------------------------------------------------------------------------------------------


def tree(dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "params": {
            "Dense_0": {"kernel": jnp.asarray(rng.standard_normal((24, 16)), dtype), "bias": jnp.ones(16, dtype)},
            "Dense_1": {"kernel": jnp.asarray(rng.standard_normal((16, 16)), dtype), "bias": jnp.zeros(16, dtype)},
        },
        "count": 3,
    }


@pytest.mark.parametrize("layout", ["in_out", "out_in"])
def test_a_tree_of_arrays(layout: Any) -> None:
    rules = {"*_0.kernel": Rule("low_rank", rank=16), "*_1.kernel": Rule(tn.mpo((4, 4), (4, 4)), rank=8)}
    w = redundant(16, 24) if layout == "out_in" else redundant(24, 16)
    params = tree()
    params["params"]["Dense_0"]["kernel"] = w
    rules["*_0.kernel"] = full()
    small, layers = decompose_params(params, rules, layout=layout)
    assert list(layers) == ["params.Dense_0.kernel"]  # the other would not get smaller
    assert small["params"]["Dense_1"]["kernel"] is params["params"]["Dense_1"]["kernel"]
    assert small["count"] == 3
    dense = small["params"]["Dense_0"]
    x = jax.random.normal(KEY, (5, 24))
    y = tn4nn_jax.linear(layers["params.Dense_0.kernel"], dense["kernel"], x) + dense["bias"]
    matrix = w if layout == "in_out" else w.T
    np.testing.assert_allclose(y, x @ matrix + 1, atol=1e-4)


def test_a_tree_of_arrays_shares_a_budget_and_is_calibrated() -> None:
    dry = plan_params(tree(), {"*.kernel": "low_rank"}, 0.5, layout="in_out")
    assert sum(row.after for row in dry.rows) <= 320
    assert [row.name for row in dry.rows] == ["params.Dense_0.kernel", "params.Dense_1.kernel"]
    x = np.random.default_rng(1).standard_normal((300, 24)) * 0.7 ** np.arange(24)
    rules = {"*Dense_0.kernel": Rule("low_rank", rank=4)}
    seeing = plan_params(tree(), rules, layout="in_out", inputs={"params.Dense_0.kernel": x})
    small, layers = seeing.run()
    w = np.asarray(tree()["params"]["Dense_0"]["kernel"])
    found = tn4nn_jax.linear(layers["params.Dense_0.kernel"], small["params"]["Dense_0"]["kernel"], x)
    assert seeing.rows[0].output_error == pytest.approx(np.linalg.norm(found - x @ w) / np.linalg.norm(x @ w), rel=1e-3)


@pytest.mark.cases(1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_tree_in_half_precision(dtype: Any) -> None:
    small, layers = decompose_params(tree(dtype), {"*_0.kernel": Rule("low_rank", rank=5)}, layout="in_out")
    cores = small["params"]["Dense_0"]["kernel"]
    assert {core.dtype for core in cores.values()} == {jnp.dtype(dtype)}
    w = np.asarray(tree(dtype)["params"]["Dense_0"]["kernel"], np.float32).T
    plain = tn.decompose(w, tn.low_rank(24, 16), rank=5).to_dense()
    found = layers["params.Dense_0.kernel"].network.to_dense({n: np.asarray(a, np.float32) for n, a in cores.items()})
    np.testing.assert_allclose(found, plain, atol=8 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("rules", "options", "error", "text"),
    [
        ({"*.kernal": "mpo"}, {}, tn.TN4NNError, "rule '*.kernal' matches no layer of this model. Known:"),
        ({"*.bias": "mpo"}, {}, tn.TN4NNError, "Matrices of floating-point numbers can"),
        ("mpo", {"layout": "io"}, tn.ShapeError, "layout is 'in_out' where y = x K with K of shape (in, out)"),
        ("low_rank", {"inputs": {"params.Dense_0.kernal": 1}}, tn.TN4NNError, "Did you mean 'params.Dense_0.kernel'"),
        ("low_rank", {"inputs": {"params.Dense_0.kernel": np.ones((9, 9))}}, tn.ShapeError, "of shape (rows, 24)"),
    ],
)  # fmt: skip
def test_bad_trees_are_errors(rules: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error) as caught:
        decompose_params(tree(), rules, 300, **{"layout": "in_out", **options})
    assert text in str(caught.value)


def test_trees_without_numbers_are_errors() -> None:
    with pytest.raises(tn.TN4NNError, match="these params hold no matrix"):
        decompose_params({"b": np.ones(3)}, "mpo", 10, layout="in_out")
    shapes = jax.eval_shape(lambda: {"w": jnp.ones((4, 4))})
    with pytest.raises(tn.BackendError, match="layer 'w': it has a shape and no numbers to decompose"):
        decompose_params(shapes, "low_rank", 10, layout="in_out")
    with pytest.raises(tn.BackendError, match="call it outside of jit"):
        jax.jit(lambda p: decompose_params(p, "low_rank", 10, layout="in_out")[0])({"w": jnp.ones((4, 4))})
    with pytest.raises(tn.DataError, match="layer 'w': .*NaN or infinite"):
        decompose_params({"w": jnp.full((4, 4), jnp.nan)}, "low_rank", 10, layout="in_out")
