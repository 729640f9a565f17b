"""Trained torch models with networks in the place of their layers: what is kept, what is said, what is refused."""

from __future__ import annotations

import copy
import itertools
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._compression.allocation import loss_curve, spread
from tn4nn._planning.planner import at_rows

torch = pytest.importorskip("torch")
from tn4nn_torch import (  # noqa: E402
    Rule,
    TNConv2d,
    TNEmbedding,
    TNLinear,
    convert,
    plan_conversion,
    refine,
    split_attention,
    undo,
)
from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402


class Conv1D(nn.Module):
    """As Hugging Face's: y = x W + b."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) / nx**0.5)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Any) -> Any:
        return x @ self.weight + self.bias


class Tied(nn.Module):
    """An embedding whose table is the head's weight, and one block that stands twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(48, 16, padding_idx=0)
        self.block = nn.Linear(16, 16)
        self.again = self.block
        self.head = nn.Linear(16, 48, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Any) -> Any:
        return self.head(torch.tanh(self.again(torch.tanh(self.block(self.table(tokens))))))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def net() -> Any:
    return nn.Sequential(
        OrderedDict(a=nn.Linear(24, 16), act=nn.ReLU(), b=nn.Linear(16, 16, bias=False), head=nn.Linear(16, 4))
    )


def full(name: str = "low_rank") -> Rule:
    """A rule under which nothing is lost."""
    return Rule(name, error=1e-5)


def redundant(out: int, ins: int, rank: int = 2) -> Any:
    return torch.randn(out, rank) @ torch.randn(rank, ins) / ins**0.5


def numbers(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


# -- the function is kept ---------------------------------------------------------------------------------------


def test_every_kind_of_layer_computes_what_stood_there() -> None:
    cases = [
        (nn.Linear(24, 16), torch.randn(5, 24), TNLinear),
        (Conv1D(16, 24), torch.randn(2, 5, 24), TNLinear),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), torch.randn(2, 4, 9, 7), TNConv2d),
        (nn.Conv2d(4, 8, (3, 5), padding="same", bias=False), torch.randn(2, 4, 9, 7), TNConv2d),
        (nn.Embedding(40, 12), torch.tensor([[0, 39, 7]]), TNEmbedding),
    ]
    for layer, x, kind in cases:
        shape = layer.weight.shape
        with torch.no_grad():
            layer.weight.copy_(redundant(shape[0], layer.weight[0].numel()).reshape(shape))
        result = convert(layer, full())
        assert type(result) is kind
        assert torch.allclose(result(x), layer(x), atol=1e-4), layer
        assert sum(p.numel() for p in result.parameters()) < sum(p.numel() for p in layer.parameters())
        back = undo(result)
        assert torch.allclose(back(x), layer(x), atol=1e-4), layer
        if not isinstance(layer, Conv1D):
            assert type(back) is type(layer)
            assert result.weight.shape == back.weight.shape == shape


def test_an_ordering_and_an_exact_topology() -> None:
    model = nn.Linear(16, 9)
    rule = Rule(tn.mpo((4, 4), (3, 3)), rank=12, ordering="hilbert")
    x = torch.randn(3, 16)
    exact = tn.mpo((4, 4), (3, 3)).with_rank(12)
    assert exact.num_params >= 144
    assert plan_conversion(model, rule).rows[0].reason == f"no gain: {exact.num_params:,} parameters"
    with torch.no_grad():
        model.weight.copy_(torch.kron(torch.randn(3, 4), torch.randn(3, 4))[:, np.argsort(_hilbert())])
    result = convert(model, Rule(tn.mpo((4, 4), (3, 3)), rank=1, ordering="hilbert"))
    assert torch.allclose(result(x), model(x), atol=1e-4)
    assert torch.allclose(result.weight, model.weight, atol=1e-4)
    assert torch.allclose(undo(result)(x), model(x), atol=1e-4)


def _hilbert() -> Any:
    from tn4nn._graph.ordering import ordering

    return ordering("hilbert", (4, 4)).permutation


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", [name for name in tn.catalogue() if name != "dense"])
def test_sizes_that_do_not_factor_are_padded(name: str) -> None:
    model = nn.Linear(23, 17)
    dry = plan_conversion(model, Rule(name, rank=1))
    assert dry.rows[0].converted
    result, x = dry.run(), torch.randn(5, 23)
    old, w = model.weight.detach(), result.weight.detach()
    assert w.shape == (17, 23)
    assert dry.rows[0].error == pytest.approx(float((old - w).norm() / old.norm()), rel=1e-3)
    assert torch.allclose(result(x), nn.functional.linear(x, w, model.bias), atol=1e-5)


def test_the_source_is_not_touched_and_nothing_is_shared() -> None:
    model = net()
    before = numbers(model)
    result = convert(model, "low_rank", budget=0.5)
    with torch.no_grad():
        for p in result.parameters():
            p.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in numbers(model).items())
    theirs = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert not theirs & {p.untyped_storage().data_ptr() for p in result.parameters()}


def test_tied_weights_and_shared_modules_stay_so() -> None:
    model = Tied()
    result = convert(model, {"table": Rule("mpo", sites=2, rank=3), "block": "low_rank"}, 400, protect_head=False)
    assert result.block is result.again
    assert all(result.table._parameters[n] is result.head._parameters[n] for n in result.table.network.shapes)
    assert torch.allclose(result.table.weight, result.head.weight, atol=1e-6)
    x = torch.tensor([[1, 47, 3]])
    dense = undo(result)
    assert dense.head.weight is dense.table.weight
    assert dense.block is dense.again
    assert dense.table.padding_idx == 0
    assert torch.allclose(dense(x), result(x), atol=1e-5)
    result(x).square().sum().backward()
    assert all(p.grad is not None for p in result.parameters())


def test_a_tied_bias_stays_tied() -> None:
    model = net()
    model.b = nn.Linear(16, 16)
    model.a.bias = model.b.bias
    result = convert(model, {"a": "low_rank", "b": "low_rank"}, budget=300)
    assert type(result.a) is type(result.b) is TNLinear
    assert result.a.bias is result.b.bias
    assert result.a.bias is not model.a.bias


def test_mode_hooks_gradients_and_dtype_are_kept() -> None:
    model = net()
    calls: list[str] = []
    model.a.register_forward_hook(lambda module, args, y: calls.append(type(module).__name__))
    model.a.weight.requires_grad_(False)
    model.b.eval()
    result = convert(model, {"a": "low_rank", "b": "low_rank"}, budget=400)
    result(torch.randn(2, 24))
    assert calls == ["TNLinear"]
    assert [p.requires_grad for p in result.a.cores()] == [False, False]
    assert result.a.bias.requires_grad
    assert (result.a.training, result.b.training) == (True, False)
    assert undo(result).a.weight.requires_grad is False


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_decomposed_in_full_and_cast_back(dtype: Any) -> None:
    model = net().to(dtype)
    rules = {"a": Rule("low_rank", rank=5)}
    result = convert(model, rules)
    assert {p.dtype for p in result.parameters()} == {dtype}
    plain = tn.decompose(model.a.weight.detach().double().numpy(), tn.low_rank(24, 16), rank=5, dtype="float64")
    eps = torch.finfo(dtype).eps
    assert np.allclose(result.a.weight.detach().double().numpy(), plain.to_dense(), atol=max(1e-12, 4 * eps))


def test_half_precision_is_converted_saved_and_loaded(tmp_path: Any) -> None:
    result = convert(net().to(torch.bfloat16), {"a": Rule("low_rank", rank=5)})
    layer = tn.Linear(result.a.network)
    tn.save(tmp_path / "a", layer, tn.backend("torch").weights(result.a))
    model, weights = tn.load(tmp_path / "a")
    again = model.build("torch", weights, dtype="bfloat16").state_dict()
    assert all(torch.equal(again[name], value) for name, value in result.a.state_dict().items())


@pytest.mark.parametrize("given", [2, -38])
def test_padding_tokens_give_no_gradient(given: int) -> None:
    table = nn.Embedding(40, 12, padding_idx=given)
    result = convert(table, Rule("mpo", sites=2, rank=3))
    assert result.padding_idx == 2
    other = copy.deepcopy(result)
    noise = torch.randn(5, 12)
    result(torch.tensor([0, 2, 39, 2, 2])).mul(noise).sum().backward()
    other(torch.tensor([0, 39])).mul(noise[[0, 2]]).sum().backward()
    for one, two in zip(result.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, atol=1e-6)
    only = copy.deepcopy(result)
    only.zero_grad()
    only(torch.tensor([2, 2])).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in only.parameters())
    assert torch.allclose(result(torch.tensor([2])), result.weight[2])  # values are there all the same
    with pytest.raises(tn.ShapeError, match="padding_idx must be a token, from -40 to 39, received 40"):
        TNEmbedding(result.network, padding_idx=40)


class Named(nn.Module):
    """Every layer called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 3 * 36)
        self.conv, self.linear, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 16, 32), nn.Linear(32, 4)

    def forward(self, tokens: Any) -> Any:
        image = self.table(input=tokens).reshape(-1, 3, 6, 6)
        return self.head(input=torch.relu(self.linear(input=self.conv(input=image).flatten(1))))


def test_layers_may_be_called_by_keyword() -> None:
    model, tokens = Named(), torch.arange(40)
    dry = plan_conversion(model, Rule("low_rank", rank=3), inputs=tokens)
    rows = {row.name: row for row in dry.rows}
    assert [name for name, row in rows.items() if row.converted] == ["table", "conv", "linear"]
    assert rows["linear"].output_error is not None  # calibrated
    result = dry.run()
    assert result(tokens).shape == (40, 4)
    report = refine(result, model, tokens, steps=20)
    assert [row.name for row in report] == ["conv", "linear"]


# -- what the table says ----------------------------------------------------------------------------------------


def test_the_dry_run_is_a_table_and_tells_the_truth() -> None:
    model = net()
    dry = plan_conversion(model, {"b": "skip", "*": "low_rank"}, budget=200, batch=10)
    result = dry.run()
    rows = {row.name: row for row in dry.rows}
    assert rows["b"].reason == "the rules skip it"
    assert rows["head"].reason == "the head is protected: name it in full, or protect_head=False"
    a = rows["a"]
    assert (a.before, a.after, a.converted) == (384, 200, True)
    macs = at_rows(result.a.plan(10), 10, "forward").cost.macs  # of what runs, be it more than the fewest
    assert (a.macs_before, a.macs_after) == (3840, macs)
    w, new = model.a.weight.detach(), result.a.weight.detach()
    assert a.error == pytest.approx(float((w - new).norm() / w.norm()), rel=1e-4)
    assert sum(p.numel() for p in result.a.cores()) == a.after
    text = repr(dry)
    line = rf"^a +Linear +16x24 +low_rank +384 +200 +3,840 +{macs:,} +\d+\.\d\dx +0\.\d{{3}} +convert$"
    assert re.search(line, text, re.M)
    assert "skip: the head is protected" in text
    assert text.splitlines()[5].startswith("1 of 3 weights converted: 384 -> 200 parameters (1.92x fewer), budget 200")


def test_a_rule_in_full_or_protect_head_reaches_the_head() -> None:
    assert type(convert(net(), {"head": "low_rank"}, 50).head) is TNLinear
    assert type(convert(net(), "low_rank", 120, protect_head=False).head) is TNLinear
    assert type(convert(net(), {"hea*": "low_rank"}, 50).head) is nn.Linear
    assert type(convert(nn.Linear(16, 16), "low_rank", 128)) is TNLinear  # a model of one layer is no head


def test_a_tied_head_protects_its_embedding() -> None:
    rows = {row.name: row for row in plan_conversion(Tied(), "mpo", 100).rows}
    assert rows["table = head"].reason.startswith("the head is protected")
    assert rows["block = again"].converted


def test_what_cannot_be_replaced_is_left_with_the_reason() -> None:
    shared = nn.Linear(8, 8)
    owner = nn.Module()
    owner.register_parameter("w", shared.weight)
    attention = nn.MultiheadAttention(8, 2)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    pruned = nn.Linear(8, 8)
    prune.l1_unstructured(pruned, "weight", 0.5)
    parts = {
        "groups": nn.Conv2d(4, 4, 3, groups=2), "dilated": nn.Conv2d(4, 4, 3, dilation=2),
        "circular": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "even": nn.Conv2d(4, 4, 2, padding="same"),
        "renormed": nn.Embedding(9, 4, max_norm=1.0), "sparse": nn.Embedding(9, 4, sparse=True), "shared": shared,
        "owner": owner, "attention": attention, "normed": normed, "pruned": pruned, "lazy": nn.LazyLinear(4),
        "complex": nn.Linear(4, 4, dtype=torch.complex64), "end": nn.Linear(8, 8),
    }  # fmt: skip
    rows = {row.name: row.reason for row in plan_conversion(nn.ModuleDict(parts), "low_rank", 1000).rows}
    expected = {
        "groups": "groups=2: its kernel is no single matrix", "dilated": "dilation=(2, 2) is not supported",
        "circular": "padding_mode='circular'", "even": "padding='same'", "renormed": "max_norm rewrites the table",
        "sparse": "sparse or frequency-scaled gradients", "shared": "its weight is owner.w too",
        "attention.out_proj": "nn.MultiheadAttention reads its weight",
        "pruned": "its weight is computed", "normed": "its weight is computed",
        "complex": "torch.complex64, not plain floating-point", "end": "the head is protected",
    }  # fmt: skip
    for name, text in expected.items():
        assert text in rows[name], (name, rows[name])
    assert rows["lazy"].startswith("its weight is not there yet (a lazy layer)")


ATTENTIONS = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"kdim": 8, "vdim": 12, "batch_first": True},
    {"dropout": 0.3},
]


@pytest.mark.parametrize("options", ATTENTIONS, ids=str)
def test_attention_is_split_into_layers_that_compute_the_same(options: dict[str, Any]) -> None:
    attention = nn.MultiheadAttention(16, 4, **options).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    split = split_attention(attention)
    assert [name for name, module in split.named_modules() if type(module) is nn.Linear] == [
        "q_proj", "k_proj", "v_proj", "out_proj"
    ]  # fmt: skip
    assert not split.training
    k, v = options.get("kdim", 16), options.get("vdim", 16)
    q, keys, values = torch.randn(3, 5, 16), torch.randn(3, 7, k), torch.randn(3, 7, v)
    if not options.get("batch_first"):
        q, keys, values = (t.transpose(0, 1) for t in (q, keys, values))
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 4:] = True
    masks = [
        {},
        {"key_padding_mask": padding},
        {"attn_mask": torch.ones(5, 7).triu(3).bool(), "key_padding_mask": padding},
        {"attn_mask": torch.randn(12, 5, 7)},
        {"need_weights": False, "attn_mask": torch.randn(5, 7)},
        {"need_weights": False, "attn_mask": torch.ones(5, 7).triu(1).bool(), "is_causal": True},
        {"average_attn_weights": False},
    ]
    for mask in masks:
        for one, two in zip(attention(q, keys, values, **mask), split(q, keys, values, **mask), strict=True):
            assert (one is None) == (two is None)
            assert one is None or torch.allclose(one, two, atol=1e-5), mask
    alone = [t[:, 0] if not options.get("batch_first") else t[0] for t in (q, keys, values)]
    for one, two in zip(attention(*alone), split(*alone), strict=True):
        assert one.shape == two.shape
        assert torch.allclose(one, two, atol=1e-5)
    assert not {p.data_ptr() for p in attention.parameters()} & {p.data_ptr() for p in split.parameters()}


def test_dropout_in_split_attention() -> None:
    split = split_attention(nn.MultiheadAttention(16, 4, dropout=0.5))
    x = torch.randn(6, 2, 16)
    for needed in (True, False):
        one, two = (split(x, x, x, need_weights=needed)[0] for _ in range(2))
        assert not torch.equal(one, two)


@pytest.mark.thorough
def test_a_whole_transformer_is_converted_and_refined() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0), 2, enable_nested_tensor=False
    )
    encoder.layers[0].self_attn.in_proj_weight.requires_grad_(False)
    split = split_attention(encoder)
    assert not split.layers[0].self_attn.k_proj.weight.requires_grad
    assert split.layers[1].self_attn.k_proj.weight.requires_grad
    x = torch.randn(8, 5, 16)
    for training in (True, False):
        encoder.train(training)
        split.train(training)
        with torch.no_grad():
            assert torch.allclose(encoder(x), split(x), atol=1e-5)
    dry = plan_conversion(split, {"*": Rule("low_rank", rank=4)}, inputs=x, protect_head=False)
    assert sum(row.converted for row in dry.rows) == 12
    assert all(row.output_error is not None for row in dry.rows)
    result = dry.run()
    report = refine(result, split, x, steps=30)
    assert len(report) == 12
    assert all(row.after <= row.before for row in report)
    result.train()(x).sum().backward()


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_attention_that_cannot_be_split_is_an_error(option: str) -> None:
    with pytest.raises(tn.TN4NNError, match="with add_bias_kv or add_zero_attn cannot be split"):
        split_attention(nn.Sequential(nn.MultiheadAttention(8, 2, **{option: True})))
    split = split_attention(nn.MultiheadAttention(8, 2))
    with pytest.raises(tn.TN4NNError, match="is_causal needs the attn_mask"):
        split(*[torch.randn(3, 2, 8)] * 3, is_causal=True)


def test_transformer_layers_run_in_both_modes() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    result = convert(model, {"linear?": Rule("low_rank", rank=4)}, protect_head=False)
    x = torch.randn(2, 3, 16)
    result.eval()
    with torch.no_grad():
        fast = result(x)  # torch's fast path reads linear1.weight
    assert torch.allclose(fast, result(x).detach(), atol=1e-5)


# -- the budget -------------------------------------------------------------------------------------------------


@pytest.mark.cases(3)
@pytest.mark.parametrize("name", ["low_rank", "mpo", "ring"])
@pytest.mark.parametrize("budget", [150, 300, 0.7])
def test_a_budget_is_kept_and_filled(name: str, budget: float) -> None:
    model = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 16), nn.Linear(16, 24), nn.Linear(24, 4))
    dry = plan_conversion(model, {"[012]": Rule(name, sites=2) if name != "low_rank" else name}, budget)
    after = sum(row.after for row in dry.rows[:3])
    allowed = budget if budget > 1 else int(budget * 1024)
    assert 0.85 * allowed < after <= allowed
    result = dry.run()
    assert sum(p.numel() for i in range(3) for n, p in result[i].named_parameters() if n != "bias") == after


def test_the_budget_goes_where_it_helps() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4))
    with torch.no_grad():
        model[0].weight.copy_(redundant(32, 32, 2))
    rows = plan_conversion(model, "low_rank", budget=1000).rows
    assert rows[0].error is not None
    assert rows[0].error < 1e-5
    assert rows[0].after == 128  # rank 2 is all there is
    assert rows[1].after == 832  # the other takes the rest


def test_spreading_is_the_best_choice_on_convex_curves() -> None:
    curves = {"a": ((1, 0.9), (2, 0.5), (3, 0.3), (4, 0.2)), "b": ((1, 0.8), (2, 0.6), (3, 0.5), (4, 0.45))}
    kept = {name: dict(points) for name, points in curves.items()}
    for budget in range(2, 9):
        got = spread(curves, budget)
        best = max(
            (1 - kept["a"][i]) * (1 - kept["b"][j])
            for i, j in itertools.product(range(1, 5), repeat=2)
            if i + j <= budget
        )
        assert sum(got.values()) <= budget
        assert (1 - kept["a"][got["a"]]) * (1 - kept["b"][got["b"]]) == pytest.approx(best)


@pytest.mark.cases(1)
@pytest.mark.parametrize(("name", "sites"), [("mpo", 3), ("tree", 4), ("tucker", 2)])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_loss_curves_are_near_what_decomposing_loses(name: str, sites: int, decay: float) -> None:
    w = np.random.default_rng(0).standard_normal((64, 64)) @ np.diag(decay ** np.arange(64))
    t = tn.build(name, 64, 64, sites=sites)
    for params, loss in loss_curve(w, t)[:-1]:
        result = tn.decompose(w, t, params=params, compare_random=False)
        assert result.error**2 == pytest.approx(loss, abs=0.15)


@pytest.mark.thorough
def test_equal_layers_on_many_bonds_get_equal_parts() -> None:
    """The sum of what bonds drop is above the norm of W here: by it, all of a tree's small budgets look alike, and one
    layer would get everything."""
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(5)])
    rows = plan_conversion(model, {"[0-3]": tn.build("tree", 64, 64, sites=4)}, 0.25).rows[:4]
    assert 0.99 * 4096 < sum(row.after for row in rows) <= 4096
    assert all(800 < row.after < 1300 for row in rows)


def test_calibration_makes_the_outputs_better() -> None:
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(200, 24) * torch.logspace(0, -2, 24)
    rules = {"0": Rule("low_rank", rank=4)}
    plain, seeing = convert(model, rules), plan_conversion(model, rules, inputs=x)
    result = seeing.run()
    truth = model[0](x).detach()
    off = [float((m[0](x).detach() - truth).norm()) for m in (plain, result)]
    assert off[1] < 0.7 * off[0]
    row = seeing.rows[0]
    centred = truth - model[0].bias.detach()
    assert row.output_error == pytest.approx(off[1] / float(centred.norm()), rel=1e-3)
    assert not model[0]._forward_pre_hooks
    assert model.training
    for other in ((x,), [x[:100], (x[100:],)], {"input": x}):
        again = plan_conversion(model, rules, inputs=other).rows[0]
        assert again.output_error == pytest.approx(row.output_error, rel=1e-3)


def test_a_convolution_is_calibrated_on_its_patches() -> None:
    model = nn.Conv2d(3, 8, 3, padding=1, stride=2)
    x = torch.randn(4, 3, 8, 8).cumsum(-1).cumsum(-2)
    dry = plan_conversion(model, Rule("low_rank", rank=3), inputs=x)
    y, z = model(x).detach(), dry.run()(x).detach()
    bias = model.bias.detach()[:, None, None]
    assert dry.rows[0].output_error == pytest.approx(float((y - z).norm() / (y - bias).norm()), rel=1e-2)


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "options", "error", "text"),
    [
        ({"boddy": "mpo"}, {"budget": 9}, tn.TN4NNError, "rule 'boddy' matches no layer of this model. Known: 'a'"),
        ({"heat": "skip", "*": "mpo"}, {"budget": 9}, tn.TN4NNError, "Did you mean 'head'?"),
        ({"act": "mpo"}, {"budget": 9}, tn.TN4NNError, "'act' is a ReLU. Linear, Conv2d, Embedding and Conv1D can"),
        ({"a": "mpoo"}, {"budget": 90}, tn.TopologyError, "layer 'a': unknown topology 'mpoo'. Did you mean 'mpo'"),
        ({"a": 3}, {"budget": 90}, tn.TN4NNError, "a rule is 'skip', a topology's name, a Topology, a Network"),
        ({"a": {"topology": "mpo", "rnak": 3}}, {}, tn.TN4NNError, "'rnak' is not a setting of a rule. Did you mean"),
        ({"a": {"rank": 3}}, {}, tn.TN4NNError, "a rule says onto what: {'rank': 3} lacks 'topology'"),
        ({"a": "mpo"}, {"budget": 90, "inputs": []}, tn.TN4NNError, "inputs is an empty list: give at least one call"),
        ({"a": "mpo"}, {}, tn.BudgetError, "nothing says how large layer 'a' may become: give budget=, or rank="),
        ({"a": "low_rank"}, {"budget": 20}, tn.BudgetError, "a budget of 20 parameters cannot be met: the smallest "
            "feasible one is 40"),
        ({"a": "low_rank"}, {"budget": 0}, tn.BudgetError, "must be at least 1, received 0"),
        ({"a": Rule("low_rank", rank=9)}, {"budget": 99}, tn.BudgetError, "own sizes come to 360 parameters, above"),
        ({"a": tn.mpo((4, 4), (4, 4))}, {"budget": 99}, tn.ShapeError, "layer 'a': the rule's topology is 16 -> 16, "
            "the layer is 24 -> 16"),
        ({"a": tn.low_rank(24, 16).with_rank(3)}, {"inputs": 3}, tn.TN4NNError, "inputs is a tensor, a tuple of"),
    ],
)  # fmt: skip
def test_bad_rules_are_errors(rules: Any, options: Any, error: Any, text: str) -> None:
    with pytest.raises(error) as caught:
        convert(net(), rules, **options)
    assert text in str(caught.value)


def test_a_layer_on_the_meta_device_is_an_error() -> None:
    with pytest.raises(tn.BackendError, match="layer 'a' is on the meta device and has no numbers to decompose"):
        plan_conversion(net().to("meta"), {"a": "mpo"}, 100)


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "NaN or infinite"), (0.0, "zero everywhere")])
def test_numbers_that_cannot_be_decomposed_name_the_layer(value: float, text: str) -> None:
    model = net()
    with torch.no_grad():
        model.b.weight.fill_(value)
    with pytest.raises(tn.DataError, match=f"layer 'b': .*{text}"):
        convert(model, {"b": "low_rank"}, 100)


def test_a_model_without_layers_is_an_error() -> None:
    with pytest.raises(tn.TN4NNError, match="has no layer that can be converted"):
        convert(nn.ReLU(), "mpo", 10)


# -- and on -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_ordinary_loop_trains_what_was_converted() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 24, generator=generator)
    teacher = net()
    with torch.no_grad():
        y = teacher(x)
    result = convert(teacher, "mpo", budget=150)
    twin = copy.deepcopy(result)
    optimizer = torch.optim.Adam(result.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(result(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    twin.load_state_dict(result.state_dict())
    assert torch.equal(twin(x), result(x))
