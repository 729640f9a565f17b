"""Converted layers that learn from their originals: errors fall, nothing is lost, and what cannot be is said."""

import copy

import pytest
from helpers import first_of

import tn4nn as tn

torch = pytest.importorskip("torch")
from tn4nn_torch import convert, distill, refine  # noqa: E402
from torch import nn  # noqa: E402


@pytest.fixture
def original():
    """Two linear layers between nonlinear ones, in training mode with dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(36, 48), nn.ReLU(), nn.Dropout(0.5), nn.Linear(48, 36), nn.Tanh(), nn.Linear(36, 5))


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    return torch.randn(300, 36) @ torch.randn(36, 36)


def error(model, original, inputs):
    with torch.no_grad():
        return float((model.eval()(inputs) - original.eval()(inputs)).norm() / original(inputs).norm())


@pytest.mark.thorough
@pytest.mark.parametrize("topology", first_of(["mpo", "ring", "low_rank"]))
def test_every_layer_comes_nearer_to_its_original(original, inputs, topology):
    model = convert(original, topology, budget=0.3, inputs=inputs)
    before, source = error(model, original, inputs), copy.deepcopy(original.state_dict())
    model.train()
    original.train()
    report = refine(model, original, inputs, steps=150)
    assert [row.name for row in report] == ["0", "3"]
    assert all(row.after < row.before for row in report)
    assert model.training
    assert original.training
    assert all(torch.equal(a, b) for a, b in zip(source.values(), original.state_dict().values(), strict=True))
    assert error(model, original, inputs) < before


def test_the_errors_are_those_of_the_layers(original, inputs):
    model = convert(original, {"0": "mpo"}, budget=0.3)
    (row,) = refine(model, original, inputs, steps=50)
    with torch.no_grad():
        y = original[0](inputs)
        found = float((model[0](inputs) - y).norm() / y.norm())
    assert row.after == pytest.approx(found, rel=1e-5)


@pytest.mark.thorough
def test_it_is_the_same_again_for_a_seed(original, inputs):
    result = convert(original, "mpo", budget=0.3)
    twice = [copy.deepcopy(result) for _ in range(2)]
    reports = [refine(model, original, [inputs[:200], inputs[200:]], steps=20, seed=3) for model in twice]
    assert reports[0] == reports[1]
    assert all(torch.equal(a, b) for a, b in zip(twice[0].parameters(), twice[1].parameters(), strict=True))


@pytest.mark.thorough
def test_what_does_not_help_is_taken_back(original, inputs):
    model = convert(original, "mpo", budget=0.3, inputs=inputs)
    held = copy.deepcopy(model.state_dict())
    report = refine(model, original, inputs, steps=5, lr=1e3)
    assert all(row.after == row.before for row in report)
    assert all(torch.equal(a, b) for a, b in zip(held.values(), model.state_dict().values(), strict=True))


def test_parameters_without_gradient_stay(original, inputs):
    model = convert(original, "mpo", budget=0.3)
    frozen = model[0].requires_grad_(False)
    held = copy.deepcopy(frozen.state_dict())
    report = refine(model, original, inputs, steps=10)
    assert report[0].after == report[0].before
    assert report[1].after < report[1].before
    assert all(torch.equal(a, b) for a, b in zip(held.values(), frozen.state_dict().values(), strict=True))


class Twice(nn.Module):
    """One layer that is called twice, on sequences."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x, *, scale):
        return self.head(torch.relu(self.layer(torch.relu(self.layer(x))))) * scale


@pytest.mark.thorough
def test_a_layer_that_is_called_twice_and_sequences_of_several_lengths():
    torch.manual_seed(0)
    original = Twice()
    calls = [{"x": torch.randn(8, length, 32), "scale": 2.0} for length in (3, 7, 5)]
    model = convert(original, {"layer": "mpo"}, budget=0.4)
    (row,) = refine(model, original, calls, steps=100)
    assert row.after < row.before


def test_convolutions():
    torch.manual_seed(0)
    original = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3))
    model = convert(original, {"*": "low_rank"}, budget=0.3, protect_head=False)
    images = torch.randn(24, 8, 6, 6)
    report = refine(model, original, images, steps=60, rows=8)
    assert [row.name for row in report] == ["0", "2"]
    assert all(row.after < row.before for row in report)


def test_few_outputs_are_in_memory_at_a_time(original, inputs, monkeypatch):
    from tn4nn_torch import _refine

    expected = convert(original, "mpo", budget=0.3)
    model = copy.deepcopy(expected)
    whole = refine(expected, original, inputs, steps=10)
    monkeypatch.setattr(_refine, "_MOST", 1)
    assert refine(model, original, inputs, steps=10) == whole


@pytest.mark.thorough
def test_distilling_brings_the_whole_nearer(original, inputs):
    model = convert(original, "mpo", budget=0.3)
    before = error(model, original, inputs)
    losses = distill(model, original, [inputs[:150], inputs[150:]], steps=200)
    assert len(losses) == 200
    assert error(model, original, inputs) < 0.8 * before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_is_wrong_is_said(original, inputs):
    model = convert(original, {"3": "mpo"}, budget=0.3)
    with pytest.raises(tn.TN4NNError, match="no linear layer or convolution on a network: convert it first"):
        refine(original, original, inputs)
    with pytest.raises(tn.TN4NNError, match="the original has no dense layer '3'"):
        refine(model, original[:3], inputs)
    with pytest.raises(tn.TN4NNError, match="the original has no dense layer '3'"):
        refine(model, model, inputs)
    with pytest.raises(tn.TN4NNError, match="inputs is a tensor"):
        refine(model, original, 3)
    with pytest.raises(tn.TN4NNError, match="inputs is an empty list"):
        distill(model, original, [])
    for rows in (0, -3):  # an error over no rows would be none
        with pytest.raises(tn.TopologyError, match=f"rows of a step: the size must be at least 1, received {rows}"):
            refine(model, original, inputs, rows=rows)

    class Named(nn.Module):
        def forward(self, x):
            return {"y": x}

    with pytest.raises(tn.TN4NNError, match="the model gives a dict, not a tensor: pass loss="):
        distill(nn.Sequential(model, Named()), nn.Sequential(original, Named()), inputs)
