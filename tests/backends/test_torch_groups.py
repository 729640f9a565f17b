"""Parameter groups for torch.optim."""

import itertools

import pytest
from helpers import close

import tn4nn as tn

torch = pytest.importorskip("torch")
from tn4nn_torch import TNConv2d, TNEmbedding, TNLinear, parameter_groups, replace  # noqa: E402
from torch import nn  # noqa: E402

NET = tn.mpo((4, 8), (4, 4)).with_rank(3)
NETWORKS = {name: tn.build(name, 64, 64).with_rank(2) for name in ("mpo", "tree", "btt", "cp", "ring", "low_rank")}


class Model(nn.Module):
    """Layers on networks at every depth, dense ones, norms, a loose parameter, a frozen one."""

    def __init__(self):
        super().__init__()
        self.table = TNEmbedding(tn.mpo((10, 10), (4, 8)).with_rank(3), seed=0)
        self.blocks = nn.ModuleList(nn.Sequential(TNLinear(NET, seed=i), nn.LayerNorm((4, 4))) for i in range(2))
        self.conv = TNConv2d(tn.mpo((8, 9), (4, 4)).with_rank(3), kernel=3, seed=0)
        self.head = nn.Linear(16, 5)
        self.rnn = nn.LSTM(4, 4)
        self.scale = nn.Parameter(torch.ones(3, 3))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def found(groups):
    """Name -> (parameter, lr, weight decay)."""
    return {
        name: (parameter, group["lr"], group["weight_decay"])
        for group in groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon", "sgd"])
def test_every_trainable_parameter_is_in_one_group_with_its_rate(optimizer):
    model = Model()
    groups = parameter_groups(model, lr=1e-2, optimizer=optimizer)
    everything = list(itertools.chain.from_iterable(group["params"] for group in groups))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(everything) == len(set(map(id, everything))) == len(trainable)
    by_name = found(groups)
    assert {name: id(p) for name, (p, _, _) in by_name.items()} == {name: id(p) for name, p in trainable.items()}
    layers = {
        "table": model.table,
        "blocks.0.0": model.blocks[0][0],
        "blocks.1.0": model.blocks[1][0],
        "conv": model.conv,
    }
    cores = {}
    for prefix, layer in layers.items():
        factors = layer.layer.lr_factors(lr=1e-2, optimizer=optimizer)
        cores |= {f"{prefix}.{core}": factor for core, factor in factors.items()}
    assert {name: lr for name, (_, lr, _) in by_name.items()} == pytest.approx(
        {name: 1e-2 * cores.get(name, 1.0) for name in trainable}
    )
    assert set(cores) <= set(by_name)
    if optimizer != "sgd":  # an embedding sees one row at a time, and has factors of its own
        assert by_name["table.core0"][1] != 1e-2 * model.table.network.lr_factors(lr=1e-2, optimizer=optimizer)["core0"]


def test_only_matrices_and_cores_decay():
    model = Model()
    decays = {name: decay for name, (_, _, decay) in found(parameter_groups(model, 1e-3, 0.1)).items()}
    nothing = {name for name, decay in decays.items() if decay == 0}
    assert nothing == {
        "blocks.0.0.bias", "blocks.1.0.bias", "blocks.0.1.weight", "blocks.0.1.bias", "blocks.1.1.weight",
        "blocks.1.1.bias", "conv.bias", "head.bias", "rnn.bias_ih_l0", "rnn.bias_hh_l0",
    }  # fmt: skip
    assert {decays[name] for name in ("head.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "scale")} == {0.1}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_step_without_gradients_decays_w(name, kind):
    lr, decay = 1e-2, 0.05
    layer = TNLinear(NETWORKS[name], seed=0, dtype="float64")
    before, bias = layer.to_dense().detach().clone(), layer.bias.detach().clone()
    make = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[kind]
    optimizer = make(parameter_groups(layer, lr, decay, kind))
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert close(layer.to_dense(), (1 - lr * decay) * before, 1e-6)
    assert not close(layer.to_dense(), before, 1e-4)
    assert torch.equal(layer.bias, bias)


def test_the_cores_that_are_trained_decay_for_those_that_are_not():
    lr, decay = 1e-2, 0.05
    layer = TNLinear(tn.build("mpo", 64, 64, sites=3).with_rank(2), seed=0, dtype="float64")
    layer.core1.requires_grad_(False)
    before = layer.to_dense().detach().clone()
    groups = parameter_groups(layer, lr, decay)
    assert "core1" not in found(groups)
    for group in groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    torch.optim.AdamW(groups).step()
    assert close(layer.to_dense(), (1 - lr * decay) * before, 1e-6)


def test_a_core_that_stands_twice_in_a_layer_is_there_once_and_w_decays():
    lr, decay = 1e-2, 0.05
    layer = TNLinear(tn.build("kronecker", 16, 16, sites=2).with_rank(1), seed=0, dtype="float64")
    layer.core1 = layer.core0
    before = layer.to_dense().detach().clone()
    groups = parameter_groups(layer, lr, decay)
    assert set(found(groups)) == {"core0", "bias"}
    layer.core0.grad = torch.zeros_like(layer.core0)
    torch.optim.AdamW(groups).step()
    assert close(layer.to_dense(), (1 - lr * decay) * before, 1e-6)


def test_weights_that_are_tied_take_the_least_rate():
    model = nn.Module()
    model.table, model.head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
    model.head.weight = model.table.weight
    small = replace(model, "mpo", 0.5, seed=0)
    factors = [layer.layer.lr_factors(lr=1e-3) for layer in (small.table, small.head)]
    assert factors[0] != factors[1]
    rates = {name: lr for name, (_, lr, _) in found(parameter_groups(small, 1e-3, 0.1)).items()}
    assert rates == pytest.approx({f"table.{core}": 1e-3 * min(f[core] for f in factors) for core in small.table.names})


def test_schedules_keep_the_factors_and_optimizers_their_state():
    model = nn.Sequential(TNLinear(NET, seed=0), nn.ReLU(), nn.Linear(16, 2))
    groups = parameter_groups(model, 1e-2, 0.01)
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    losses = []
    x, y = torch.randn(32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [group["lr"] / rate for group, rate in zip(optimizer.param_groups, rates, strict=True)] == pytest.approx(
        [0.5] * len(rates)
    )
    other = torch.optim.AdamW(parameter_groups(model, 1e-2, 0.01))
    other.load_state_dict(optimizer.state_dict())
    assert [g["names"] for g in other.param_groups] == [g["names"] for g in groups]


def test_what_does_not_work_says_what_would():
    model = nn.Sequential(TNLinear(NET, seed=0))
    with pytest.raises(tn.TN4NNError, match="expected weight_decay=0 with optimizer='adam', .* take torch.optim.AdamW"):
        parameter_groups(model, 1e-3, 0.1, "adam")
    with pytest.raises(tn.TN4NNError, match="unknown optimizer 'adamv'.*adamw"):
        parameter_groups(model, 1e-3, optimizer="adamv")
    with pytest.raises(tn.TN4NNError, match="lr must be finite and above 0, received 0"):
        parameter_groups(model, 0)
    with pytest.raises(tn.TN4NNError, match="weight_decay must be finite and at least 0, received -1"):
        parameter_groups(model, 1e-3, -1)
    with pytest.raises(tn.BackendError, match="expected an nn.Module, received list"):
        parameter_groups(list(model.parameters()), 1e-3)
    assert parameter_groups(model.requires_grad_(False), 1e-3) == []
