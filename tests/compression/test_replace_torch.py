"""Layers of torch models replaced by networks with weights that are drawn."""

import math

import numpy as np
import pytest

import tn4nn as tn

torch = pytest.importorskip("torch")
from tn4nn_torch import Rule, TNConv2d, TNEmbedding, TNLinear, plan_replacement, replace  # noqa: E402
from torch import nn  # noqa: E402


def mlp(scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        model[0].weight.mul_(scale)
    return model


@pytest.mark.cases(1)
@pytest.mark.parametrize("topology", ["mpo", "ring", "tree", "btt", "cp", "low_rank"])
def test_the_variance_is_that_of_the_weight_and_the_source_stays(topology):
    model = mlp(scale=3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = replace(model, {"0": topology, "2": "mpo"}, 0.3, seed=1)
    for i in (0, 2):
        assert isinstance(small[i], TNLinear)
        assert float(small[i].weight.detach().std()) == pytest.approx(float(model[i].weight.detach().std()), rel=1e-4)
        assert torch.equal(small[i].bias, model[i].bias)
        assert small[i].bias is not model[i].bias
    assert sum(small[i].network.num_params for i in (0, 2)) <= 0.3 * 2 * 64 * 64
    assert type(small[4]) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_kind_of_layer_with_its_dtype():
    torch.manual_seed(0)
    model = nn.ModuleDict({
        "table": nn.Embedding(100, 16), "conv": nn.Conv2d(8, 16, 3, padding=1), "linear": nn.Linear(16, 32)
    }).to(torch.bfloat16)  # fmt: skip
    small = replace(model, "low_rank", 0.5, seed=0, protect_head=False)
    assert [type(module) for module in small.values()] == [TNEmbedding, TNConv2d, TNLinear]
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small["conv"](torch.zeros(2, 8, 5, 5, dtype=torch.bfloat16)).shape == (2, 16, 5, 5)
    for name, module in small.items():
        found, wanted = (float(one.weight.detach().float().std()) for one in (module, model[name]))
        assert found == pytest.approx(wanted, rel=0.02)  # bfloat16


def same(a, b):
    return all(torch.equal(one, other) for one, other in zip(a.parameters(), b.parameters(), strict=True))


def test_a_seed_decides_and_without_one_the_generator_of_torch_does():
    model = mlp()
    one, again, other = (replace(model, "mpo", 0.3, seed) for seed in (5, 5, 6))
    assert same(one, again)
    assert not same(one, other)
    assert not torch.equal(one[0].cores()[0], one[2].cores()[0])  # layers of one shape do not begin alike
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(replace(model, "mpo", 0.3))
    assert same(drawn[0], drawn[1])
    assert not same(drawn[0], drawn[2])
    assert not same(replace(model, "mpo", 0.3), drawn[2])  # the generator has gone on


@pytest.mark.cases(1)
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_weight_without_variance_gets_that_of_its_inputs_and_the_plan_says_so(value):
    model = mlp()
    nn.init.constant_(model[0].weight, value)
    plan = plan_replacement(model, {"0": "mpo", "2": "mpo"}, 0.3, seed=0)
    assert "all numbers are equal, so the networks are drawn with variance 1/in_features: 0" in str(plan).splitlines()
    small = plan.run()
    assert float(small[0].weight.detach().std()) == pytest.approx(1 / math.sqrt(64), rel=1e-3)
    small(torch.ones(2, 64)).sum().backward()
    assert all(core.grad.abs().max() > 0 for core in small[0].cores())


def test_the_dry_run_is_what_running_it_gives():
    plan = plan_replacement(mlp(), {"0": "mpo", "2": "skip"}, 1000, seed=2)
    assert [row.converted for row in plan.rows] == [True, False, False]
    assert plan.rows[0].after <= 1000
    assert same(plan.run(), replace(mlp(), {"0": "mpo", "2": "skip"}, 1000, seed=2))
    assert "untrained" not in str(plan)


def test_tied_weights_share_their_cores_and_a_skip_keeps_all():
    model = nn.Module()
    model.table, model.head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
    model.head.weight = model.table.weight
    small = replace(model, {"table": "low_rank"}, 0.5, seed=0)  # one of the names is enough
    assert [type(small.table), type(small.head)] == [TNEmbedding, TNLinear]
    assert all(a is b for a, b in zip(small.table.cores(), small.head.cores(), strict=True))
    assert torch.allclose(small.table.weight, small.head.weight)
    plan = plan_replacement(model, {"head": "skip", "table": "low_rank"}, 0.5, seed=0)
    assert [row.reason for row in plan.rows] == ["the rules skip it"]


def test_what_does_not_work_says_what_would():
    model = mlp()
    with pytest.raises(tn.TN4NNError, match=r"'layer0' matches no layer of this model"):
        replace(model, {"layer0": "mpo"}, 0.3)
    with pytest.raises(tn.ShapeError, match=r"layer '0': the rule's topology is 16 -> 16, the layer is 64 -> 64"):
        replace(model, {"0": tn.mpo((4, 4), (4, 4))}, 0.3)
    with pytest.raises(
        tn.BudgetError, match=r"a budget of 10 parameters cannot be met: the smallest feasible one is"
    ) as e:
        replace(model, {"0": "mpo", "2": "mpo"}, 10)
    replace(model, {"0": "mpo", "2": "mpo"}, e.value.smallest)
    with pytest.raises(tn.BudgetError, match=r"nothing says how large layer '0' may become"):
        replace(model, {"0": "mpo"})
    with pytest.raises(tn.TN4NNError, match=r"rule '0': expected no method, .* received method='svd': leave it out"):
        replace(model, {"0": Rule("mpo", rank=2, method="svd")})
    with pytest.raises(tn.TN4NNError, match=r"rule '\*': expected rank=, params= or a budget, received error=0.1"):
        replace(model, Rule("mpo", error=0.1))
    with torch.no_grad():
        model[0].weight[0, 0] = np.nan
    with pytest.raises(tn.DataError, match="layer '0'"):
        replace(model, {"0": "mpo"}, 0.3)
    plan = plan_replacement(model, {"0": "mpo", "2": "mpo"}, 0.3)
    assert plan.rows[0].reason.startswith("it cannot be decomposed")
    assert plan.rows[1].converted


def test_drawn_weights_have_no_error_in_the_table():
    plan = plan_replacement(mlp(), {"0": "mpo", "2": Rule("mpo", rank=2)}, 1000, seed=2)
    assert [row.converted for row in plan.rows] == [True, True, False]
    assert [row.error for row in plan.rows] == [None] * 3
    assert str(plan).splitlines()[1].split()[-2:] == ["-", "convert"]
