"""One budget over the layers of a model: what it is spread by, and layers that cannot take part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._compression import sharing
from tn4nn._compression.allocation import even, spread

torch = pytest.importorskip("torch")
from tn4nn_torch import Rule, convert, plan_conversion  # noqa: E402
from torch import nn  # noqa: E402


class Gated(nn.Module):
    """Two branches of one shape; the second hardly counts in the output."""

    def __init__(self, quiet: float) -> None:
        super().__init__()
        self.loud, self.soft, self.quiet = nn.Linear(48, 48), nn.Linear(48, 48), quiet

    def forward(self, x: Any) -> Any:
        return self.loud(x) + self.quiet * self.soft(x)


def lost(model: Any, small: Any, x: Any) -> float:
    with torch.no_grad():
        y = model(x)
        return float((small(x) - y).norm() / y.norm())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def flat_spectrum(model: Any) -> None:
    """Compressing `soft` gains much by its own error, `loud` little: a spread by errors of layers alone errs."""
    with torch.no_grad():
        model.soft.weight.copy_(torch.diag(0.8 ** torch.arange(48.0)))


# -- equal shares are never better ------------------------------------------------------------------------------


def test_the_budget_goes_where_the_model_needs_it() -> None:
    model, x = Gated(0.01), torch.randn(300, 48)
    flat_spectrum(model)
    plan = plan_conversion(model, "low_rank", 0.5, inputs=x, protect_head=False)
    rows = {row.name: row for row in plan.rows}
    assert rows["loud"].after > 2 * rows["soft"].after
    equal = convert(model, Rule("low_rank", params=1152), inputs=x, protect_head=False)
    assert lost(model, plan.run(), x) < 0.8 * lost(model, equal, x)
    assert plan.notes[0].startswith("the budget is spread by what the model loses: measured on the model ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["low_rank", "mpo", "ring"])
def test_it_is_never_worse_than_equal_shares(name: str) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model = nn.Sequential(*[part for _ in range(3) for part in (nn.Linear(16, 16), nn.Tanh())])
        x = torch.randn(100, 16)
        rule = Rule(name, sites=None if name == "low_rank" else 2)
        plan = plan_conversion(model, rule, 0.5, inputs=x, protect_head=False)
        equal = convert(model, Rule(name, sites=rule.sites, params=128), inputs=x, protect_head=False)
        assert plan.params_after <= 384
        assert lost(model, plan.run(), x) <= lost(model, equal, x) + 1e-6


def test_equal_shares_are_taken_where_they_are_better(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Gated(1.0), torch.randn(300, 48)
    monkeypatch.setattr(sharing._Sharing, "_sensitivities", lambda *_: {"0": 0.0, "1": 1.0})
    plan = plan_conversion(model, "low_rank", 0.5, inputs=x, protect_head=False)
    assert plan.notes[0].startswith("the budget is spread in equal shares: measured on the model ")
    assert {row.after for row in plan.rows} == {1152}


def test_a_loss_says_what_counts() -> None:
    model, x = Gated(1.0), torch.randn(300, 48)
    calls: list[bool] = []

    def loss(m: Any) -> Any:  # sees nothing but `soft`
        calls.append(torch.is_grad_enabled() or m.training)
        return (m.soft(x) - model.soft(x)).square().mean()

    rows = {row.name: row for row in plan_conversion(model, "low_rank", 0.5, loss=loss, protect_head=False).rows}
    assert rows["soft"].after > 2 * rows["loud"].after
    assert calls == [False] * (2 + 3)
    assert model.training


def test_outputs_in_dicts_and_tuples_and_tied_weights() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mid, self.head = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 40, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: Any) -> Any:
            hidden = self.mid(self.table(tokens))
            return {"logits": self.head(hidden), "more": (hidden, tokens), "none": None}

    model, tokens = Model(), torch.randint(0, 40, (8, 5))
    before = {name: p.clone() for name, p in model.state_dict().items()}
    plan = plan_conversion(model, "low_rank", 0.5, inputs=[tokens, tokens], protect_head=False)
    assert "measured on the model" in plan.notes[0]
    small = plan.run()
    assert small.head.core0 is small.table.core0
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_model_that_gives_no_numbers_is_spread_by_the_layers() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Any) -> None:
            self.b(self.a(x))

    plan = plan_conversion(Silent(), "low_rank", 0.5, inputs=torch.randn(50, 16), protect_head=False)
    assert sum(row.converted for row in plan.rows) == 2


def test_even_shares() -> None:
    curves = {"a": ((10, 0.9), (100, 0.0)), "b": ((10, 0.9), (300, 0.0)), "c": ((70, 0.9), (100, 0.0))}
    assert even(curves, 90) == {"a": 10, "b": 10, "c": 70}
    assert even(curves, 10_000) == {"a": 100, "b": 300, "c": 100}
    for how in (even, spread):
        with pytest.raises(tn.BudgetError, match="the smallest feasible one is 90"):
            how(curves, 89)
    for budget in range(90, 500, 7):
        assert sum(even(curves, budget).values()) <= budget


# -- one layer is not the whole model ---------------------------------------------------------------------------


def six(value: float) -> Any:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(6)])
    with torch.no_grad():
        model[2].weight.fill_(value)
    return model


@pytest.mark.cases(3)
@pytest.mark.parametrize(("value", "text"), [(0.0, "zero everywhere"), (float("nan"), "NaN or infinite")])
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_layer_that_cannot_be_decomposed_stays(value: float, text: str, calibrated: bool) -> None:
    """Calibrated, the layers behind one that gives NaN see NaN: they stay too, and say so."""
    inputs = torch.randn(50, 64) if calibrated else None
    rows = plan_conversion(six(value), "low_rank", 0.5, inputs=inputs, protect_head=False).rows
    blind = calibrated and value != 0
    assert [row.converted for row in rows[:3]] == [True, True, False]
    assert rows[2].reason.startswith(f"it cannot be decomposed: W {'is' if value == 0 else 'has'} ")
    assert text in rows[2].reason
    for row in rows[3:]:  # behind zeros, one row is all there is to see: one rank is enough, and what is left is not
        reasons = ("", "the budget leaves it dense")
        assert "it cannot be decomposed: inputs has" in row.reason if blind else row.reason in reasons


def test_where_no_layer_is_left_the_first_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].weight.fill_(torch.inf)
    with pytest.raises(tn.DataError, match="layer '0': W is zero everywhere"):
        convert(model, "low_rank", 0.5, protect_head=False)


def test_a_layer_that_no_size_fits_stays() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(8, 8), nn.Linear(64, 4))
    rows = plan_conversion(model, {"[01]": Rule("low_rank", params=20)}).rows
    assert [row.converted for row in rows] == [False, True, False]
    assert rows[0].reason.startswith("it cannot be decomposed: a budget of 20 parameters cannot be met")


def test_a_fit_that_fails_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    true = sharing.answered

    def failing(fitter: Any, *args: Any) -> Any:
        if fitter.target.w.shape == (24, 32):
            raise np.linalg.LinAlgError("SVD did not converge")
        return true(fitter, *args)

    monkeypatch.setattr(sharing, "answered", failing)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 24), nn.Linear(24, 24))
    plan = plan_conversion(model, "low_rank", 0.5, protect_head=False)
    assert [row.converted for row in plan.rows] == [True, False, True]
    assert plan.rows[1].reason.endswith("its fit failed (LinAlgError: SVD did not converge)")
    assert plan.budget == (32 * 32 + 24 * 24) // 2  # what is left shares what is left
    with pytest.raises(tn.DataError, match="layer '1': its fit failed"):
        convert(model, {"1": "low_rank"}, 0.5)


def test_a_wrong_rule_is_an_error_still() -> None:
    with pytest.raises(tn.ShapeError, match="layer '1'"):
        convert(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(4, 2)), tn.mpo((4, 4), (4, 4)), 100)


# -- what is said -----------------------------------------------------------------------------------------------


def test_every_parameter_is_in_the_table() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 16, 16))

    model = nn.ModuleDict({
        "a": nn.Linear(16, 16), "experts": Experts(), "rnn": nn.LSTM(8, 8), "conv": nn.Conv1d(4, 4, 3),
        "norm": nn.LayerNorm(16), "head": nn.Linear(16, 3),
    })  # fmt: skip
    plan = plan_conversion(model, {"a": "low_rank"}, 0.5)
    total = sum(p.numel() for p in model.parameters())
    assert plan.model_params_before == total
    small = plan.run()
    assert plan.model_params_after == sum(p.numel() for p in small.parameters())
    others = {other.name: other.reason for other in plan.others}
    assert "Experts holds several matrices in one parameter" in others["experts.w"]
    assert others["rnn.weight_ih_l0"].startswith("LSTM is none of Linear")
    assert others["conv.weight"].startswith("Conv1d is none of")
    text = repr(plan)
    assert f"the whole model: {total:,} -> " in text
    assert "experts.w" in text
    assert "conv.weight" in text
    assert "7 vectors" in text or "vectors" in text
    again = {other.name: other.reason for other in plan_conversion(small, {"head": "low_rank"}, 0.9).others}
    assert again["a.core0"] == "it is part of a layer on a network already"


def test_a_model_without_a_head_has_none_to_protect() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    rows = {row.name: row for row in plan_conversion(encoder, {"*.linear?": Rule("low_rank", rank=2)}).rows}
    assert rows["layers.1.linear2"].converted
    with_head = nn.Sequential(encoder, nn.Linear(16, 4))
    rows = {row.name: row for row in plan_conversion(with_head, {"*": Rule("low_rank", rank=1)}).rows}
    assert "the head is protected" in rows["1"].reason
    assert rows["0.layers.1.linear2"].converted


def test_hugging_face_encoders_have_no_head() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    for model, head in (
        (transformers.BertModel(config), None),
        (transformers.BertForSequenceClassification(config), "classifier"),
    ):
        rows = plan_conversion(model, Rule("low_rank", rank=1)).rows
        protected = [row.name for row in rows if "the head is protected" in row.reason]
        assert protected == ([] if head is None else [head])


def test_what_would_be_slower_stays_where_that_is_asked() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4))
    rule = Rule("mpo", sites=3, rank=2)
    times = [row.time for row in plan_conversion(model, {"[01]": rule}, batch=256).rows[:2]]
    assert times[0] is not None
    plan = plan_conversion(model, {"[01]": rule}, batch=256, max_time=times[0] / 2)
    assert not any(row.converted for row in plan.rows)
    assert plan.rows[0].reason.startswith(f"it would take {times[0]:.2f} times as long, above max_time=")
    assert plan_conversion(model, {"[01]": rule}, batch=256, max_time=2 * times[0]).rows[0].converted
    with pytest.raises(tn.TN4NNError, match="max_time is a number above zero"):
        plan_conversion(model, {"[01]": rule}, max_time=0.0)


def test_progress_and_time_limit() -> None:
    model, lines = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), []
    plan = plan_conversion(
        model, Rule("ring", sites=3), 0.3, protect_head=False, time_limit=1e-3, progress=lines.append,
        inputs=torch.randn(100, 64),
    )  # fmt: skip
    assert all(row.converted for row in plan.rows)
    assert any("the time limit of 0.001 s stopped the fits of 0, 1" in note for note in plan.notes)
    assert sum("parameters, error" in line for line in lines) >= 2
    assert sum("alone it costs the model" in line for line in lines) == 2
    with pytest.raises(tn.TN4NNError, match="time_limit is a number of seconds above zero"):
        convert(model, "ring", 0.3, time_limit=-1)


# -- weights that are drawn -------------------------------------------------------------------------------------


def test_an_untrained_model_is_told_of() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
    with pytest.warns(UserWarning, match="the weights look untrained"):
        convert(model, "low_rank", 0.5)
    assert "the weights look untrained" in repr(plan_conversion(model, "low_rank", 0.5))
    with torch.no_grad():
        model[0].weight += torch.eye(64)
    assert "untrained" not in repr(plan_conversion(model, "low_rank", 0.5))


@pytest.mark.cases(3)
@pytest.mark.parametrize("name", ["low_rank", "mpo", "ring", "btt"])
def test_fresh_weights_have_the_variance_of_those_they_replace(name: str) -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    rule = Rule(name, sites=None if name == "low_rank" else 2, method="fresh")
    small = convert(model, rule, 0.25)
    for i in (0, 2):
        sizes = [float(m[i].weight.detach().std()) for m in (small, model)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
        assert not torch.allclose(small[i].weight, model[i].weight, atol=0.01)
    assert not torch.equal(small[0].weight, small[2].weight)  # layers of one shape begin apart
    x = torch.randn(500, 256)
    with torch.no_grad():
        assert float(small(x).std()) == pytest.approx(float(model(x).std()), rel=0.3)
    again = convert(model, rule, 0.25)
    assert torch.equal(again[0].weight, small[0].weight)
    with pytest.raises(tn.BudgetError, match="keep no error"):
        convert(model, {"0": Rule(name, error=0.1, method="fresh")})


# -- inputs of low rank -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rows", [64, 500])
def test_dead_features_and_few_rows_are_normal(rows: int) -> None:
    x = torch.relu(torch.randn(rows, 1568) - 0.5) * (torch.rand(1568) > 0.3) + 0.0
    plan = plan_conversion(nn.Linear(1568, 128), "low_rank", 0.1, inputs=x)
    assert plan.rows[0].converted
    error = plan.rows[0].output_error
    assert error is not None
    assert error < 0.9


@pytest.mark.thorough
def test_rounding_of_a_covariance_is_no_error_but_an_indefinite_matrix_is() -> None:
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((20, 200)), 0).astype(np.float32)
    rounded = (x.T @ x / 20).astype(np.float16).astype(float)
    rounded = (rounded + rounded.T) / 2
    assert np.linalg.eigvalsh(rounded)[0] < 0
    w = rng.standard_normal((32, 200))
    for name in ("low_rank", "ring"):
        result = tn.decompose(w, tn.build(name, 200, 32), params=3000, inputs=rounded, compare_random=False)
        assert result.output_error is not None
        assert result.output_error < 0.6
    with pytest.raises(tn.DataError, match="has negative eigenvalues, down to -"):
        tn.decompose(w, tn.low_rank(200, 32), rank=2, inputs=rounded - 0.5 * np.eye(200))


# -- the clock of least squares ---------------------------------------------------------------------------------


def test_least_squares_stop_at_the_limit_with_the_best_so_far() -> None:
    w = np.random.default_rng(0).standard_normal((64, 64))
    t, lines = tn.build("ring", 64, 64, sites=3), []
    options: Any = {"params": 1000, "compare_random": False}
    short = tn.decompose(w, t, time_limit=1e-6, progress=lines.append, **options)
    assert lines == [line for line in lines if line.startswith("sweep ")]
    assert len(lines) == 1
    assert short.notes[-1].startswith("the time limit of 1e-06 s stopped the fit after 1 sweeps")
    long = tn.decompose(w, t, **options)
    assert long.error <= short.error < 1
    assert not any("limit" in note for note in long.notes)
