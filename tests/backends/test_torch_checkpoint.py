"""torch.utils.checkpoint: a call runs twice, and both times it has to save the same."""

import copy
import os

import pytest
from helpers import all_close, run_python

import tn4nn as tn

torch = pytest.importorskip("torch")
from tn4nn_torch import TNConv2d, TNEmbedding, TNLinear, _calls, split_attention  # noqa: E402
from tn4nn_torch import _modules as modules  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts  # noqa: E402

NET = tn.mpo((4, 4), (4, 4)).with_rank(3)
LINEAR = {
    "plain": lambda: TNLinear(NET, seed=0),
    "padded": lambda: TNLinear(tn.build("mpo", 15, 13, sites=2).with_rank(3), seed=0),
    "ordered": lambda: TNLinear(NET, ordering=tn.Ordering.random(16, seed=1), seed=0),
    "program": lambda: TNLinear(NET, seed=0, executor="program"),
    "measured": lambda: TNLinear(NET, seed=0, tune=True),
    "dense": lambda: TNLinear(tn.build("dense", 16, 16).with_rank(1), seed=0),
    "no bias": lambda: TNLinear(NET, bias=False, seed=0),
}


def gradients(layer, x, call):
    """Of a loss by x and by all parameters."""
    x = x.detach().requires_grad_(x.is_floating_point())
    y = call(layer, x)
    inputs = [*([x] if x.requires_grad else []), *layer.parameters()]
    return torch.autograd.grad(y.square().sum(), inputs) if call is _plain else _backward(y, inputs)


def _plain(layer, x):
    return layer(x)


def _backward(y, inputs):
    for t in inputs:
        t.grad = None
    y.square().sum().backward()  # what use_reentrant=True asks for
    return [t.grad for t in inputs]


def checked(layer, x, reentrant, **options):
    """Whether a layer that has seen nothing gives the gradients that it gives without checkpoint."""
    expected = gradients(copy.deepcopy(layer), x, _plain)
    found = gradients(layer, x, lambda f, v: checkpoint(f, v, use_reentrant=reentrant, **options))
    return all_close(found, expected)


@pytest.mark.cases(1)
@pytest.mark.parametrize("kind", list(LINEAR))
@pytest.mark.parametrize("reentrant", [False, True])
def test_shapes_that_change(through, kind, reentrant):
    layer, features = LINEAR[kind](), LINEAR[kind]().in_features
    for shape in ((3,), (2, 3), (), (2, 2, 2), (70,), (3,), (2, 3)):
        assert checked(layer, torch.randn(*shape, features), reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_strides_and_dtypes(through, reentrant):
    layer = TNLinear(NET, seed=0, dtype="float64")
    for x in (torch.randn(16, 5).double().T, torch.randn(2, 16, 5).double().mT, torch.randn(4, 32).double()[:, ::2]):
        assert checked(layer, x, reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_other_layers(through, reentrant):
    conv = TNConv2d(tn.mpo((8, 9), (4, 4)).with_rank(3), 3, padding=1, seed=0)
    table = TNEmbedding(tn.mpo((10, 10), (4, 4)).with_rank(3), seed=0)
    for size in (4, 6, 4):
        assert checked(conv, torch.randn(2, 8, size, size), reentrant)
        if not reentrant:  # which has no gradient where the input needs none
            assert checked(table, torch.randint(100, (2, size)), reentrant)


def test_attention(through):
    attention = split_attention(nn.MultiheadAttention(16, 2, batch_first=True))
    attention.q_proj, attention.out_proj = LINEAR["plain"](), LINEAR["no bias"]()
    assert checked(nn.Sequential(_Self(attention)), torch.randn(2, 3, 16), False)


class _Self(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def test_under_autocast_and_with_chosen_operations(through):
    layer, x = LINEAR["plain"](), torch.randn(2, 3, 16)
    with torch.autocast("cpu"):
        assert checked(layer, x, False)

    def contexts():
        return create_selective_checkpoint_contexts([torch.ops.aten.mm.default])

    assert checked(layer, x, False, context_fn=contexts)
    assert checked(layer, x, False)


def test_the_extension_comes_between_the_two_calls(library, monkeypatch):
    layer, x = LINEAR["plain"](), torch.randn(2, 3, 16, requires_grad=True)
    expected = gradients(copy.deepcopy(layer), x, _plain)
    monkeypatch.setattr(_calls._State, "module", None)
    y = checkpoint(layer, x, use_reentrant=False)
    monkeypatch.setattr(_calls._State, "module", library[1])
    assert all_close(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]), expected)


@pytest.fixture
def unloaded(library, monkeypatch):
    """A process that has not looked for the extension yet, which lies in the cache folder."""
    monkeypatch.setenv("TN4NN_CACHE", str(library[0].parent.parent))
    monkeypatch.setenv("TN4NN_EXTENSION", "1")
    for name, value in {"module": None, "off": False}.items():
        monkeypatch.setattr(_calls._State, name, value)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_extension_is_loaded_inside(unloaded, reentrant):
    layer = LINEAR["plain"]()
    x = torch.randn(2, 3, 16, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=reentrant)
    y.square().sum().backward()
    assert _calls._State.module is not None
    found = [x.grad, *(p.grad for p in layer.parameters())]
    assert all_close(found, gradients(layer, x, _plain))


def test_hooks_do_not_see_the_self_check_and_their_exceptions_come_out(unloaded):
    layer, x, seen = LINEAR["plain"](), torch.randn(3, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        layer(x)
    assert _calls._State.module is not None
    assert len(seen) <= 2 + len(layer.names)

    def refuse(t):
        raise KeyError("a hook of somebody else")

    _calls._State.module, _calls._State.off = None, False
    fresh = LINEAR["plain"]()
    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda t: t), pytest.raises(KeyError, match="somebody else"):
        fresh(x)
    for _ in range(3):
        assert fresh(x).shape == (3, 16)
    assert _calls._State.module is not None


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.device("meta"), lambda: _double()])
def test_the_self_check_does_not_depend_on_modes(unloaded, mode):
    layer, x = LINEAR["plain"](), torch.randn(3, 16)
    with mode():
        layer(x)
    assert _calls._State.module is not None


class _double:  # noqa: N801
    """torch's default dtype is float64."""

    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


@pytest.mark.thorough
def test_in_a_process_with_an_empty_cache(tmp_path):
    code = """
        import torch, tn4nn as tn
        from torch.utils.checkpoint import checkpoint
        from tn4nn_torch import TNLinear
        layer = TNLinear(tn.mpo((4, 4), (4, 4)).with_rank(3), seed=0)
        x = torch.ones(2, 3, 16, requires_grad=True)
        for _ in range(2):
            checkpoint(layer, x, use_reentrant=False).sum().backward()
        layer(x).sum().backward()
        print(float(x.grad.sum() - 3 * torch.autograd.grad(layer(x).sum(), x)[0].sum()))
    """
    for _ in range(2):  # cold, then warm
        assert abs(float(run_python(code, TN4NN_CACHE=str(tmp_path), TN4NN_EXTENSION="0"))) < 1e-3


def test_nothing_is_measured_for_graphs_under_hooks(monkeypatch):
    layer, x, asked = LINEAR["measured"](), torch.randn(3, 16), []
    monkeypatch.setattr(modules, "usable", lambda x: False)
    monkeypatch.setattr(layer._tuned, "runner", lambda *_: asked.append(1))
    layer(x)
    assert asked == [1]
    assert checked(layer, x, False)
    assert len(asked) == 1
    gradients(layer, x, lambda f, v: checkpoint(f, v, use_reentrant=True))  # saves nothing the first time
    assert len(asked) == 3


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_of_a_converted_hugging_face_model(through):
    transformers = pytest.importorskip("transformers")
    from tn4nn_torch import convert

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0
    )
    torch.manual_seed(0)
    model = convert(transformers.GPT2LMHeadModel(config), {"*.c_*": "low_rank"}, budget=0.5)
    tokens = torch.randint(64, (2, 8))
    found = []
    for on in (False, True):
        model.train()
        if on:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all_close(found[1], found[0])
