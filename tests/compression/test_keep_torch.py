"""Converted torch models in one file: what comes back, and files that are damaged, foreign or forged."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._base.records import read_arrays, write_arrays
from tn4nn._model import kept

torch = pytest.importorskip("torch")
from tn4nn_torch import Rule, TNLinear, convert, load, save, split_attention  # noqa: E402
from torch import nn  # noqa: E402

ARCHITECTURE = """
import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.block = nn.Embedding(48, 16, padding_idx=0), nn.Linear(16, 16)
        self.again, self.norm = self.block, nn.BatchNorm1d(16)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(16, 48, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, tokens):
        x = self.norm(torch.tanh(self.again(torch.tanh(self.block(self.table(tokens))))))
        return self.head(x * self.scale + self.conv(x.reshape(-1, 1, 4, 4)).mean((1, 2, 3), keepdim=False)[:, None])
"""
exec(ARCHITECTURE)
RULES: dict[str, Any] = {
    "table": Rule("low_rank", rank=4), "block": Rule(tn.mpo((4, 4), (4, 4)), rank=3, ordering=None),
    "conv": Rule("low_rank", rank=1),
}  # fmt: skip


def base() -> Any:
    return Tied()  # type: ignore[name-defined]  # noqa: F821


def converted() -> Any:
    torch.manual_seed(0)
    model = convert(base(), RULES, protect_head=False)
    model(torch.arange(48))  # running statistics
    model.conv.bias.requires_grad_(False)
    return model.eval()


TOKENS = torch.arange(48)


def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = converted()
    assert type(model.head) is TNLinear
    save(tmp_path / "m", model)
    for source in (base, base().eval(), base().double()):
        again = load(tmp_path / "m", source).eval()
        assert torch.equal(again(TOKENS), model(TOKENS))
        assert again.head.core0 is again.table.core0
        assert again.again is again.block
        assert again.table.padding_idx == 0
        assert {n: p.requires_grad for n, p in again.named_parameters()} == {
            n: p.requires_grad for n, p in model.named_parameters()
        }
        state = again.state_dict()
        assert all(torch.equal(state[n], v) and state[n].dtype == v.dtype for n, v in model.state_dict().items())
    untouched = base()
    before = copy.deepcopy(untouched.state_dict())
    load(tmp_path / "m", untouched)
    assert type(untouched.head) is nn.Linear
    assert all(torch.equal(v, before[n]) for n, v in untouched.state_dict().items())
    again(TOKENS).sum().backward()  # and it trains on
    assert again.table.core0.grad is not None


@pytest.mark.thorough
def test_a_new_process_gives_the_same_bits(tmp_path: Path) -> None:
    model = converted()
    save(tmp_path / "m", model)
    np.save(tmp_path / "y.npy", model(TOKENS).detach().numpy())
    program = ARCHITECTURE + (
        "import numpy as np, sys\nfrom tn4nn_torch import load\n"
        "y = load(sys.argv[1] + '/m', Tied).eval()(torch.arange(48)).detach().numpy()\n"
        "assert np.array_equal(y, np.load(sys.argv[1] + '/y.npy'))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=240)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = convert(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)).to(dtype), {"0": Rule("low_rank", rank=2)})
    save(tmp_path / "m", model)
    again = load(tmp_path / "m", lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)))  # the file's dtype holds
    x = torch.randn(3, 16).to(dtype)
    assert again[0].core0.dtype == dtype
    assert torch.equal(again(x), model(x))


def test_orderings_one_layer_alone_the_meta_device_and_split_attention(tmp_path: Path) -> None:
    x = torch.randn(3, 16)
    for rule in (Rule(tn.mpo((4, 4), (3, 3)), rank=2, ordering="hilbert"), Rule("ring", sites=2, rank=2)):
        model = convert(nn.Linear(16, 9), rule)
        save(tmp_path / "m", model)
        for source in (nn.Linear(16, 9), nn.Linear(16, 9, device="meta"), copy.deepcopy(model)):
            assert torch.equal(load(tmp_path / "m", source)(x), model(x))
    attention = split_attention(nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)))
    model = convert(attention, Rule("low_rank", rank=2), protect_head=False).eval()
    save(tmp_path / "m", model)
    assert torch.equal(load(tmp_path / "m", attention).eval()(x[None]), model(x[None]))


def test_what_was_not_converted_is_kept_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    save(tmp_path / "m", model)
    again = load(tmp_path / "m", lambda: nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)))
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in again.state_dict().items())
    with pytest.raises(tn.ShapeError, match="'0.weight' holds no numbers that can be stored"):
        save(tmp_path / "m", model.to("meta"))


# -- other architectures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (lambda: nn.Linear(4, 4), "the base has no layer 'table'"),
        (lambda: other(block=nn.Linear(16, 16, bias=False)), "its layer 'block' is Linear 16 -> 16 on 'mpo'"),
        (lambda: other(block=nn.Linear(16, 8)), "its layer 'block' is Linear 16 -> 16"),
        (lambda: other(conv=nn.Conv2d(1, 4, 3, padding=0)), "its layer 'conv' is Conv2d"),
        (lambda: other(block=nn.LayerNorm(16)), "its layer 'block' is"),
        (lambda: other(norm=nn.BatchNorm1d(8)), "has shape (16,) and dtype torch.float32, expected (8,)"),
        (lambda: other(norm=nn.LayerNorm(16)), "it has 'norm.num_batches_tracked', which the base has not"),
        (lambda: other(more=nn.Linear(2, 2)), "it lacks 'more.bias'"),
    ],
)
def test_another_architecture_is_an_error(source: Any, text: str, tmp_path: Path) -> None:
    save(tmp_path / "m", converted())
    with pytest.raises(tn.CheckpointError) as caught:
        load(tmp_path / "m", source)
    assert text in str(caught.value)


def other(**layers: Any) -> Any:
    model = base()
    for name, layer in layers.items():
        setattr(model, name, layer)
    if "block" in layers:
        model.again = model.block
    return model


def test_what_is_no_file_of_ours(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(tn.DataError, match="cannot be read"):
        load(tmp_path / "none", base)
    (tmp_path / "text").write_text("{}")
    save_file({"a": torch.ones(2)}, tmp_path / "foreign")
    net = tn.mpo((4, 4), (4, 4)).with_rank(2)
    tn.save(tmp_path / "model", net, net.init(0))
    torch.save({"a": 1}, tmp_path / "pickle")
    for name in ("text", "foreign", "model", "pickle"):
        with pytest.raises(tn.CheckpointError):
            load(tmp_path / name, base)
    save(tmp_path / "m", converted())
    with pytest.raises(tn.TN4NNError, match="base is a module, or a function that makes one; received int"):
        load(tmp_path / "m", lambda: 3)  # type: ignore[arg-type, return-value]


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    save(tmp_path / "m", converted())
    good = (tmp_path / "m").read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(good), 40):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "bad").write_bytes(bytes(bad))
        with pytest.raises(tn.CheckpointError):
            load(tmp_path / "bad", base)
    for length in rng.integers(0, len(good), 10):
        (tmp_path / "bad").write_bytes(good[: int(length)])
        with pytest.raises(tn.CheckpointError):
            load(tmp_path / "bad", base)


def _forged(path: Path, change: Any) -> Path:
    """A file that somebody changed on purpose, with a digest that is right."""
    record, arrays = read_arrays(path, kept.SCHEMA, "", "")
    record = json.loads(json.dumps(record))
    change(record, arrays)
    write_arrays(path.with_name("forged"), arrays, record)
    return path.with_name("forged")


FORGERIES: dict[str, Any] = {
    "no layers": lambda r, a: r.pop("layers"),
    "layers is a number": lambda r, a: r.update(layers=3),
    "a layer is none": lambda r, a: r["layers"].append({"names": ["norm"], "layer": {"kind": "ReLU"}, "options": {}}),
    "names are numbers": lambda r, a: r["layers"][0].update(names=[1]),
    "no names": lambda r, a: r["layers"][0].update(names=[]),
    "a name of Python": lambda r, a: r["layers"][0].update(names=["__class__"]),
    "a method": lambda r, a: r["layers"][0].update(names=["forward"]),
    "options": lambda r, a: r["layers"][0].update(options={"phase": "train", "tune": True}),
    "a huge batch": lambda r, a: r["layers"][0]["options"].update(batch=2**80),
    "ties to nothing": lambda r, a: r["ties"].append(["norm.weight", "norm.nothing"]),
    "ties of other shapes": lambda r, a: r["ties"].append(["norm.weight", "conv.bias"]),
    "ties to a method": lambda r, a: r["ties"].append(["norm.weight", "forward.__func__"]),
    "frozen nothing": lambda r, a: r["frozen"].append("nothing"),
    "frozen is text": lambda r, a: r.update(frozen="norm"),
    "dtypes": lambda r, a: r.update(dtypes={"norm.weight": "bfloat16"}),
    "dtypes of nothing": lambda r, a: r.update(dtypes={"x": "bfloat16"}),
    "another dtype": lambda r, a: a.update({"norm.weight": np.ones(16, np.int64)}),
    "another shape": lambda r, a: a.update({"table.core0": np.ones((2, 2), np.float32)}),
    "an array more": lambda r, a: a.update({"more": np.ones(3, np.float32)}),
    "an array less": lambda r, a: a.pop("norm.weight"),
    "kind": lambda r, a: r.update(kind="checkpoint"),
    "schema": lambda r, a: r.update(schema=99),
}


@pytest.mark.cases(7)
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_file_is_an_error_of_ours(name: str, tmp_path: Path) -> None:
    save(tmp_path / "m", converted())
    with pytest.raises(tn.CheckpointError):
        load(_forged(tmp_path / "m", FORGERIES[name]), base)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(tn.WriteError):
        save(tmp_path, converted())
