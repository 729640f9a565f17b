"""Tied weights that a Hugging Face model knows by name, converted and back."""

import copy
import json
import subprocess
import sys
import warnings

import pytest
from helpers import all_close

import tn4nn as tn

torch = pytest.importorskip("torch")
from tn4nn_torch import convert, undo  # noqa: E402
from tn4nn_torch._tied import rename_tied  # noqa: E402
from torch import nn  # noqa: E402

CORES = {"head.core0$": "table.core0$", "head.core1$": "table.core1$"}


class Tied(nn.Module):
    """As transformers declares it: names of the class are patterns, those of the object exact."""

    _tied_weights_keys = {"head.weight": "table.weight"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, 32)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.table.weight
        self.all_tied_weights_keys = dict(self._tied_weights_keys)

    def forward(self, x):
        return self.head(self.table(x))


class Outer(nn.Module):
    """A model in a model."""

    def __init__(self):
        super().__init__()
        self.inner = Tied()
        self.last = nn.Linear(64, 4)
        self.all_tied_weights_keys = {"inner.head.weight": "inner.table.weight"}

    def forward(self, x):
        return self.last(self.inner(x))


def test_the_names_follow_the_weights_and_come_back():
    source = Outer()
    before = copy.deepcopy(source.__dict__), dict(Tied._tied_weights_keys)
    small = convert(source, {"inner.*": "low_rank"}, 0.5)
    exact = {old.removesuffix("$"): new.removesuffix("$") for old, new in CORES.items()}
    assert small.inner._tied_weights_keys == CORES
    assert small.inner.all_tied_weights_keys == exact
    assert small.all_tied_weights_keys == {f"inner.{old}": f"inner.{new}" for old, new in exact.items()}
    assert not hasattr(small, "_tied_weights_keys")
    for target, origin in small.all_tied_weights_keys.items():
        assert small.get_parameter(target) is small.get_parameter(origin)
    assert source.all_tied_weights_keys == before[0]["all_tied_weights_keys"]
    assert Tied._tied_weights_keys == before[1]
    dense = undo(small)
    assert dense.inner._tied_weights_keys == before[1]
    assert dense.inner.all_tied_weights_keys == before[1]
    assert dense.all_tied_weights_keys == source.all_tied_weights_keys
    assert dense.inner.head.weight is dense.inner.table.weight


def test_other_names_stay():
    model = nn.Module()
    model._tied_weights_keys = {r"box\.\d+": "box.0", "head.weight": "table.weight", "head.bias": "table.bias"}
    model.all_tied_weights_keys = {"box.1.weight": "box.0.weight"}
    cores = [f"core{i}" for i in range(12)]
    rename_tied(model, {f"{layer}.weight": [f"{layer}.{core}" for core in cores] for layer in ("head", "table")})
    assert model._tied_weights_keys == {
        r"box\.\d+": "box.0",
        **{f"head.{core}$": f"table.{core}$" for core in cores},
        "head.bias": "table.bias",
    }
    assert model.all_tied_weights_keys == {"box.1.weight": "box.0.weight"}
    model._tied_weights_keys = ["head.weight", "other.weight"]  # transformers 4
    rename_tied(model, {"head.weight": ["head.core0", "head.core1"]})
    assert model._tied_weights_keys == ["head.core0", "head.core1", "other.weight"]


@pytest.fixture(scope="module")
def gpt2():
    """A small random one, with its embedding and head on a network, and what it was made of."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16, bos_token_id=1, eos_token_id=2,
        attn_pdrop=0, embd_pdrop=0, resid_pdrop=0,
    )  # fmt: skip
    torch.manual_seed(0)
    source = transformers.GPT2LMHeadModel(config)
    return transformers, source, convert(source, {"*wte": "low_rank"}, budget=0.5, protect_head=False).eval()


def test_gpt2_is_tied_saved_and_converted_back(gpt2, tmp_path):
    transformers, source, small = gpt2
    assert type(small.lm_head).__name__ == "TNLinear"
    x = torch.arange(8)[None]
    y = small(input_ids=x).logits
    small.tie_weights()
    small.init_weights()
    assert small.lm_head.core0 is small.transformer.wte.core0
    assert torch.equal(small(input_ids=x).logits, y)
    small.save_pretrained(tmp_path)
    saved = transformers.modeling_utils.load_state_dict(str(tmp_path / "model.safetensors"))
    assert not [name for name in saved if name.startswith("lm_head")]
    fresh = copy.deepcopy(small)
    with torch.no_grad():
        for p in fresh.parameters():
            p.zero_()
    fresh.load_state_dict(saved, strict=False)
    assert torch.equal(fresh(input_ids=x).logits, y)
    dense = undo(small)
    assert dense.all_tied_weights_keys == source.all_tied_weights_keys
    dense.tie_weights()
    dense.save_pretrained(tmp_path / "dense")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "dense").eval()
    assert all_close([again(input_ids=x).logits], [y])


@pytest.mark.filterwarnings("ignore")
def test_trainer_goes_on_from_a_checkpoint(gpt2, tmp_path):
    pytest.importorskip("accelerate")
    transformers, _, small = gpt2
    rows = [{"input_ids": torch.arange(4), "labels": torch.arange(4)} for _ in range(8)]

    def train(steps, **options):
        settings = transformers.TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            disable_tqdm=True, **options,
        )  # fmt: skip
        return transformers.Trainer(copy.deepcopy(small), settings, train_dataset=rows)

    train(2, gradient_checkpointing=True).train()
    trainer = train(3)
    assert trainer.train(resume_from_checkpoint=True).global_step == 3
    assert trainer.model.lm_head.core0 is trainer.model.transformer.wte.core0


# -- save_pretrained and from_pretrained --------------------------------------------------------------------------


BERT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def bert():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tn4nn_torch.hugging_face")
    torch.manual_seed(0)
    source = transformers.BertModel(transformers.BertConfig(**BERT)).eval()
    return transformers, convert(source, {"encoder.*": "low_rank"}, 0.5)


def test_from_pretrained_puts_the_layers_in(bert, tmp_path):
    transformers, small = bert
    small.save_pretrained(tmp_path)
    x = torch.arange(8)[None]
    y = small(input_ids=x).last_hidden_state
    for kind in (transformers.BertModel, transformers.AutoModel):
        again = kind.from_pretrained(tmp_path)
        assert type(again.encoder.layer[0].intermediate.dense).__name__ == "TNLinear"
        assert torch.equal(again(input_ids=x).last_hidden_state, y)
    again.save_pretrained(tmp_path / "again")  # and once more, also trained or cast
    assert torch.equal(transformers.AutoModel.from_pretrained(tmp_path / "again")(input_ids=x).last_hidden_state, y)
    again.half().save_pretrained(tmp_path / "half")
    half = transformers.AutoModel.from_pretrained(tmp_path / "half", dtype="auto")
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    dense = undo(small)
    assert not hasattr(dense.config, "quantization_config")
    dense.save_pretrained(tmp_path / "dense")
    plain = transformers.AutoModel.from_pretrained(tmp_path / "dense")
    assert all_close([plain(input_ids=x).last_hidden_state], [y])


def test_a_new_process_gives_the_same_bits(bert, gpt2, tmp_path):
    x = torch.arange(8)[None]
    bert[1].save_pretrained(tmp_path / "bert")
    gpt2[2].save_pretrained(tmp_path / "gpt2")
    torch.save([bert[1](input_ids=x).last_hidden_state, gpt2[2](input_ids=x).logits], tmp_path / "y")
    program = (
        "import sys, torch, transformers, tn4nn_torch.hugging_face\n"
        "p, x = sys.argv[1], torch.arange(8)[None]\n"
        "a = transformers.AutoModel.from_pretrained(p + '/bert')(input_ids=x).last_hidden_state\n"
        "m = transformers.AutoModelForCausalLM.from_pretrained(p + '/gpt2')\n"
        "assert m.lm_head.core0 is m.transformer.wte.core0\n"
        "y = torch.load(p + '/y')\n"
        "assert torch.equal(a, y[0]) and torch.equal(m(input_ids=x).logits, y[1])\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(tmp_path)], check=True, timeout=240)


def test_a_checkpoint_of_trainer_is_a_model(gpt2, tmp_path):
    pytest.importorskip("accelerate")
    transformers, _, small = gpt2
    rows = [{"input_ids": torch.arange(4), "labels": torch.arange(4)} for _ in range(8)]
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    trainer = transformers.Trainer(copy.deepcopy(small), settings, train_dataset=rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2").eval()
    x = torch.arange(8)[None]
    y = trainer.model.eval()(input_ids=x).logits
    assert torch.equal(again(input_ids=x).logits, y)
    assert not torch.equal(y, small(input_ids=x).logits)
    assert again.lm_head.core0 is again.transformer.wte.core0


def test_configs_that_were_edited_are_errors(bert, tmp_path):
    transformers, small = bert
    small.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    good = json.loads(file.read_text())

    def edited(change):
        config = copy.deepcopy(good)
        change(config["quantization_config"])
        file.write_text(json.dumps(config))
        with pytest.raises(tn.CheckpointError) as caught:
            transformers.BertModel.from_pretrained(tmp_path)
        return str(caught.value)

    assert "was damaged or edited" in edited(lambda q: q["structure"]["layers"].pop())
    assert "expected an object with a schema" in edited(lambda q: q.pop("structure"))
    assert "received quant_method 'tn4nn' and ['more']" in edited(lambda q: q.update(more=1))
    file.write_text(json.dumps({**good, "intermediate_size": 16}))
    with pytest.raises(tn.CheckpointError, match="its layer 'encoder.layer.0.intermediate.dense' is Linear 16 -> 32"):
        transformers.BertModel.from_pretrained(tmp_path)
