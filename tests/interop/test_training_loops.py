"""Layers on networks in other people's training loops: one's own in torch, the Trainer of transformers, Lightning."""

import pytest

torch = pytest.importorskip("torch")
from tn4nn_torch import TNLinear, parameter_groups, replace  # noqa: E402
from torch import nn  # noqa: E402

LR, DECAY = 3e-3, 0.01


@pytest.fixture
def data():
    """Rows of two classes that a linear map does not tell apart."""
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] * x[:, 1] > 0).long()


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def test_a_loop_of_ones_own(data):
    x, y = data
    model = replace(mlp(), "mpo", 0.5, seed=0)
    optimizer = torch.optim.AdamW(parameter_groups(model, LR, DECAY))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=150
    )
    losses = []
    for _ in range(150):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# -- transformers -------------------------------------------------------------------------------------------------


@pytest.fixture
def gpt2(monkeypatch):
    """Makes a small GPT-2 that nothing was trained in, without looking for anything in the net."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")

    def make():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=64, n_positions=16, n_embd=64, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)

    return make


BLOCKS = {"*.c_attn": "mpo", "*.c_proj": "mpo", "*.c_fc": "mpo"}


def sequences():
    """(rows, 16) tokens: arithmetic progressions, each of which its first two tokens decide."""
    generator = torch.Generator().manual_seed(0)
    start, step = (torch.randint(0, high, (128, 1), generator=generator) for high in (64, 8))
    return (start + step * torch.arange(16)) % 64


def trained(model, steps):
    """The loss of every step of a plain loop."""
    x = sequences()
    optimizer = torch.optim.AdamW(parameter_groups(model, LR, DECAY))
    losses = []
    for _ in range(steps):
        loss = model(input_ids=x, labels=x).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.thorough
def test_gpt2_with_a_quarter_of_the_weights_of_its_blocks_learns_as_the_dense_one(gpt2):
    dense = gpt2()
    small = replace(dense, BLOCKS, 0.25, seed=0)
    layers = [module for module in small.modules() if isinstance(module, TNLinear)]
    before = sum(p.numel() for name, p in dense.named_parameters() if "c_" in name and p.dim() == 2)
    assert len(layers) == 8
    assert not any(type(module).__name__ == "Conv1D" for module in small.modules())
    assert sum(layer.network.num_params for layer in layers) <= 0.25 * before
    losses = [trained(model, 60) for model in (dense, small)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.05)  # it begins at the same scale
    falls = [first - last for first, *_, last in losses]
    assert falls[0] > 1
    assert falls[1] > 0.7 * falls[0]


@pytest.mark.thorough
def test_the_trainer_of_transformers(gpt2, tmp_path):
    pytest.importorskip("accelerate")
    import transformers

    model = replace(gpt2(), BLOCKS, 0.25, seed=0)
    rows = [{"input_ids": row, "labels": row} for row in sequences()]
    optimizer = torch.optim.AdamW(parameter_groups(model, LR, DECAY))
    rates = [group["lr"] for group in optimizer.param_groups]
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=40, per_device_train_batch_size=32, logging_steps=1, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = transformers.Trainer(model, settings, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.7
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)


# -- Lightning ------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of Lightning itself
def test_lightning(data, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = replace(mlp(), "mpo", 0.5, seed=0)
            self.losses = []

        def training_step(self, batch):
            x, y = batch
            loss = nn.functional.cross_entropy(self.net(x), y)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(parameter_groups(self, LR, DECAY))

    model = Classifier()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=256)
    trainer = lightning.Trainer(
        max_epochs=100, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, loader)
    assert model.losses[-1] < 0.3 * model.losses[0]
    first = model.net[0]
    names = {name: group["lr"] for group in trainer.optimizers[0].param_groups for name in group["names"]}
    assert names["net.0.core0"] == pytest.approx(LR * first.layer.lr_factors(lr=LR)["core0"])
