"""Attention, blocks and whole language models: the backends against the oracle and each other, and what the frameworks
do with them."""

import copy
import dataclasses

import numpy as np
import pytest

import tn4nn as tn
from tn4nn.testing import assert_close, weights_for

MPO = tn.mpo((4, 4), (4, 4)).with_rank(3)
TREE = tn.tree((2, 2, 4), (2, 2, 4)).with_rank(2)
NARROW = tn.btt((4, 4), (2, 4)).with_rank(1)
CONTEXT = 12

LAYERS = {
    "plain": tn.Attention(16, 4),
    "causal": tn.Attention(16, 2, causal=True, bias=False),
    "grouped": tn.Attention(16, 4, kv_heads=2, causal=True),
    "one-key": tn.Attention(16, 4, kv_heads=1, rotary=True),
    "rotary": tn.Attention(16, 4, kv_heads=2, causal=True, rotary=500.0),
    "networks": tn.Attention(
        16, 4, kv_heads=2, causal=True, rotary=True, query=MPO, key=NARROW, value=NARROW, out=TREE
    ),
}


def model_of(layer):
    """A layer in a small language model."""
    mlp = tn.Sequential(up=tn.Linear(16, 24), act=tn.GELU(), down=tn.Linear(24, 16))
    block = tn.Block(tn.RMSNorm(16), layer, tn.LayerNorm(16), mlp)
    embedding = tn.Embedding(tn.mpo((5, 5), (4, 4)).with_rank(3))
    return tn.Tied(embedding, tn.Sequential(positions=tn.Positions(CONTEXT, 16), block=block, norm=tn.LayerNorm(16)))


def tokens_of(batch, length):
    return np.random.default_rng(length).integers(0, 25, (batch, length))


MODEL = model_of(LAYERS["networks"])


# -- the same numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_torch_and_the_oracle_agree_at_every_length(name):
    pytest.importorskip("torch")
    model = model_of(LAYERS[name])
    weights = weights_for(model)
    module = tn.backend("torch").build(model, weights, dtype="float32")
    exact = model.build("numpy", weights, dtype="float64")
    for batch, length in ((1, 1), (3, 1), (2, 5), (1, CONTEXT)):
        x = tokens_of(batch, length)
        assert_close(tn.backend("torch").forward(module, x), exact(x), 1e-5, f"{name}, {batch} of {length}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "length"), [("plain", 1), ("networks", CONTEXT)])
def test_torch_and_jax_agree_in_values_and_gradients(name, length):
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    model = model_of(LAYERS[name])
    weights = weights_for(model)
    x = tokens_of(2, length)
    gy = np.random.default_rng(0).standard_normal((2, length, 25)).astype(np.float32)
    exact = tn.backend("torch")
    wanted, _ = exact.gradients(exact.build(model, weights, dtype="float64"), x, gy)
    y = model.build("numpy", weights, dtype="float64")(x)
    largest = max(float(np.abs(gradient).max()) for gradient in wanted.values())
    for backend in ("torch", "jax"):
        native = tn.backend(backend)
        module = native.build(model, weights, dtype="float32")
        assert_close(native.forward(module, x), y, 1e-5, f"{backend}: y")
        found, _ = native.gradients(module, x, gy)
        assert set(found) == set(wanted)
        for weight, gradient in wanted.items():  # that of a key's bias is a sum that vanishes
            if np.abs(gradient).max() > 1e-6 * largest:
                assert_close(found[weight], gradient, 1e-5, f"{backend}: gradient of {weight}")
            else:
                assert np.abs(found[weight]).max() < 1e-6 * largest, f"{backend}: gradient of {weight}"


def test_rotary_positions_depend_on_distances_alone():
    layer = tn.Attention(8, 2, rotary=True)
    module = layer.build("numpy", seed=0)
    x = np.random.default_rng(0).standard_normal((1, 3, 8))
    y = module(x)
    before = np.concatenate([x[:, :1], x], axis=1)
    causal = dataclasses.replace(layer, causal=True).build("numpy", seed=0)
    assert np.abs(module(x[:, ::-1])[:, ::-1] - y).max() > 1e-3  # without positions an order would not matter
    keys = tn.backend("numpy").weights(module)
    keys["query.core0"][:] = 0  # every token alike: nothing left of positions
    flat = layer.build("numpy", keys)
    np.testing.assert_allclose(flat(x[:, ::-1])[:, ::-1], flat(x), atol=1e-6)
    np.testing.assert_allclose(causal(before)[:, :2], causal(x[:, [0, 0]]), atol=1e-6)


@pytest.mark.cases(1)
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_causal_model_sees_no_later_token(backend):
    pytest.importorskip(backend)
    native = tn.backend(backend)
    module = native.build(MODEL, MODEL.init(0), dtype="float32")
    x = tokens_of(2, 8)
    later = x.copy()
    later[:, 5:] = (later[:, 5:] + 1) % 25
    y, changed = native.forward(module, x), native.forward(module, later)
    np.testing.assert_allclose(y[:, :5], changed[:, :5], atol=1e-6)
    assert np.abs(y[:, 5:] - changed[:, 5:]).max() > 0.01


def test_a_model_goes_through_a_file(tmp_path):
    tn.save(tmp_path / "model.safetensors", MODEL, MODEL.init(3))
    again, weights = tn.load(tmp_path / "model.safetensors")
    assert again == MODEL
    x = tokens_of(2, 6)
    np.testing.assert_array_equal(again.build("numpy", weights)(x), MODEL.build("numpy", seed=3)(x))


# -- torch ------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def module(torch):
    return MODEL.build("torch", seed=0).eval()


@pytest.mark.thorough
def test_a_compiled_model_is_one_graph(torch, module):
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.from_numpy(tokens_of(3, 7))
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-6)
    compiled(x).square().sum().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    module(x).square().sum().backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.thorough
def test_an_exported_model_takes_any_batch_and_length(torch, module):
    x = torch.from_numpy(tokens_of(3, 7))
    sizes = {0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("length", min=2, max=CONTEXT)}
    program = torch.export.export(module, (x,), dynamic_shapes=(sizes,)).module()
    for batch, length in ((3, 7), (5, CONTEXT), (2, 3)):
        x = torch.from_numpy(tokens_of(batch, length))
        torch.testing.assert_close(program(x), module(x), rtol=1e-5, atol=1e-6)


def test_a_copy_is_apart_and_a_table_stays_tied(torch, module):
    x = torch.from_numpy(tokens_of(2, 7))
    y = module(x)
    twin = copy.deepcopy(module)
    torch.testing.assert_close(twin(x), y, rtol=0, atol=0)
    with torch.no_grad():
        twin.embedding.core0.zero_()
    assert not twin(x).any()  # the head reads the same table
    torch.testing.assert_close(module(x), y, rtol=0, atol=0)


def test_the_state_of_a_model_has_the_names_of_its_weights(torch, module):
    assert set(module.state_dict()) == set(MODEL.specs())
    x = torch.from_numpy(tokens_of(2, 7))
    other = MODEL.build("torch", seed=1).eval()
    assert not torch.allclose(other(x), module(x))
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)


def test_functional_call_reaches_both_uses_of_a_table(torch, module):
    x = torch.from_numpy(tokens_of(2, 7))
    other = MODEL.build("torch", seed=1).eval()
    weights = {name: p.detach() for name, p in other.named_parameters()}
    found = torch.func.functional_call(module, weights, (x,))
    torch.testing.assert_close(found, other(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_bfloat16_by_autocast_is_near(torch, norm):
    model = tn.presets.gpt(1, 32, 4, kv_heads=2, rotary=True, norm=norm, gated=True)
    module = model.build("torch", seed=0)
    x = torch.from_numpy(tokens_of(2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        y.float().square().mean().backward()
    assert (y.float() - module(x)).abs().max() < 0.1
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_plans_name_both_uses_of_a_table(torch, module):
    import tn4nn_torch

    found = tn4nn_torch.plans(module, 64)
    assert set(found) == {*MODEL.networks(), "head"}
    assert (found["head"].network.in_features, found["head"].network.out_features) == (16, 25)
    assert "head" in str(tn.cost(module, [16], phases=["train"]))


def test_a_dense_table_is_one_product_at_both_ends(torch):
    import tn4nn_torch

    model = tn.Tied(tn.Embedding(9, 4), tn.RMSNorm(4))
    module = model.build("torch", seed=0)
    assert tn4nn_torch.plans(module, 64)["head"].executor == "dense"
    dense = tn4nn_torch.undo(module)
    x = torch.from_numpy(tokens_of(2, 3) % 9)
    torch.testing.assert_close(dense(x), module(x), rtol=1e-5, atol=1e-6)
    assert dense.head.weight is dense.embedding.weight


def test_a_tied_model_is_undone(torch, module):
    import tn4nn_torch

    dense = tn4nn_torch.undo(module)
    x = torch.from_numpy(tokens_of(2, 7))
    torch.testing.assert_close(dense(x), module(x), rtol=1e-4, atol=1e-5)
    assert dense.head.weight is dense.embedding.weight


def test_dropout_on_attention_is_there_in_training_alone(torch):
    layer = tn.Attention(16, 4, causal=True, dropout=0.5)
    module = layer.build("torch", seed=0)
    x = torch.randn(4, 6, 16)
    torch.manual_seed(0)
    assert not torch.allclose(module.train()(x), module(x))
    plain = dataclasses.replace(layer, dropout=0.0).build("torch", seed=0)
    torch.testing.assert_close(module.eval()(x), plain(x), rtol=0, atol=0)


# -- jax --------------------------------------------------------------------------------------------------------


@pytest.fixture
def jax():
    return pytest.importorskip("jax")


@pytest.mark.thorough
def test_jit_grad_and_vmap(jax):
    layer = LAYERS["rotary"]
    module = layer.build("jax", seed=0)
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    y = module(x)
    gradients = jax.jit(jax.grad(lambda module, x: jax.numpy.square(module(x)).sum()))(module, x)
    assert set(gradients.weights) == set(layer.specs())
    assert all(float(abs(gradient).max()) > 1e-4 for gradient in gradients.weights.values())
    one_by_one = jax.vmap(lambda row: module(row[None])[0])(x)
    np.testing.assert_allclose(one_by_one, y, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dropout_on_attention_averages_out(jax):
    layer = tn.Attention(8, 2, kv_heads=1, causal=True, dropout=0.3, out=tn.Linear(8, 8, bias=False))
    module = layer.build("jax", seed=0)
    x = np.random.default_rng(0).standard_normal((1, 5, 8)).astype(np.float32)
    with pytest.raises(tn.TN4NNError, match="Dropout in training needs randomness"):
        module.apply(x)
    keys = jax.random.split(jax.random.key(0), 1000)
    drawn = jax.jit(jax.vmap(lambda key: module.apply(x, key=key)[0]))(keys)
    spread = np.asarray(drawn.std(0))
    assert spread.max() > 0.05
    assert (np.abs(drawn.mean(0) - module(x)) <= 6 * spread / len(keys) ** 0.5 + 1e-6).all()
    # The first token sees itself alone: of its two heads each is there, times 1 / 0.7, or not.
    assert len(np.unique(np.round(np.asarray(drawn[:, 0, 0, 0]), 4))) == 4


def test_jax_refuses_tokens_out_of_range_where_it_sees_them(jax):
    module = MODEL.build("jax", seed=0, batch=4)
    with pytest.raises(tn.ShapeError, match=r"expected tokens from 0 to 24, received 25\.\.25"):
        module(np.full((1, 3), 25))
    import tn4nn_jax

    assert set(tn4nn_jax.plans(module, 64)) == {*MODEL.networks(), "head"}


# -- training ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_torch_and_jax_train_alike(torch, jax):
    """A small model, the same batches, SGD with momentum: the losses of 100 steps follow each other."""
    optax = pytest.importorskip("optax")
    model = tn.presets.gpt(2, 32, 4, vocab=17, context=8, kv_heads=2, rotary=True, norm="rms")
    weights = model.init(0)
    rng = np.random.default_rng(0)
    text = np.cumsum(rng.integers(1, 4, (100, 8, 9)), axis=2) % 17  # the next token is one of three
    lr, momentum = 0.05, 0.9

    module = model.build("torch", weights)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=momentum)
    first = []
    for batch in text:
        logits = module(torch.from_numpy(batch[:, :-1]))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch[:, 1:]).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first.append(loss.item())

    own = model.build("jax", weights)
    rule = optax.sgd(lr, momentum)

    @jax.jit
    def step(carry, batch):
        own, state = carry

        def loss_of(own):
            logits = own(batch[:, :-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

        loss, gradients = jax.value_and_grad(loss_of)(own)
        updates, state = rule.update(gradients, state)
        return (optax.apply_updates(own, updates), state), loss

    _, second = jax.lax.scan(step, (own, rule.init(own)), jax.numpy.asarray(text))
    np.testing.assert_allclose(second, first, rtol=1e-4)
    assert np.mean(first[-10:]) < 0.6 * first[0]
