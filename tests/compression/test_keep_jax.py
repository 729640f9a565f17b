"""Converted Equinox models in one file: what comes back, and files that are damaged or foreign."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tn4nn as tn

jax = pytest.importorskip("jax")
eqx = pytest.importorskip("equinox")
import jax.numpy as jnp  # noqa: E402
from tn4nn_jax import Rule, TNLinear, convert, load, save  # noqa: E402

ARCHITECTURE = """
import equinox as eqx, jax, jax.numpy as jnp


class Model(eqx.Module):
    table: eqx.nn.Embedding
    blocks: list
    conv: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    rate: float

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.table = eqx.nn.Embedding(48, 16, key=keys[0])
        block = eqx.nn.Linear(16, 16, key=keys[1])
        self.blocks = [block, eqx.nn.Linear(16, 16, key=keys[3]), block]
        self.norm, self.rate = eqx.nn.LayerNorm(16), 0.5
        self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=keys[2])

    def __call__(self, token):
        x = self.table(token)
        for block in self.blocks:
            x = jnp.tanh(block(x))
        return self.norm(x) * self.rate + self.conv(x.reshape(1, 4, 4)).mean()
"""
exec(ARCHITECTURE)
RULES: dict[str, Any] = {
    "table": Rule("low_rank", rank=4), "blocks.0": Rule(tn.mpo((4, 4), (4, 4)), rank=3),
    "conv": Rule("low_rank", rank=1),
}  # fmt: skip
TOKENS = jnp.arange(48)


def base(seed: int = 1) -> Any:
    return Model(jax.random.key(seed))  # type: ignore[name-defined]  # noqa: F821


def converted() -> Any:
    return convert(base(0), RULES, protect_head=False)


def same(a: Any, b: Any) -> bool:
    return bool((jax.vmap(a)(TOKENS) == jax.vmap(b)(TOKENS)).all())


@pytest.mark.thorough
def test_everything_comes_back_to_the_bit(tmp_path: Path) -> None:
    model = converted()
    save(tmp_path / "m", model)
    for source in (base(), base, lambda: base(7), eqx.filter_eval_shape(base), model):
        again = load(tmp_path / "m", source)
        assert type(again.blocks[0]) is TNLinear
        assert again.blocks[0].weights["core0"] is again.blocks[2].weights["core0"]
        assert jax.tree.structure(again) == jax.tree.structure(model)
        for one, two in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
            assert getattr(one, "dtype", None) == getattr(two, "dtype", None)
            assert bool(jnp.all(one == two))
        assert same(again, model)
    jax.grad(lambda m: jax.vmap(m)(TOKENS).sum(), allow_int=True)(eqx.filter(again, eqx.is_inexact_array_like))


@pytest.mark.thorough
def test_a_new_process_gives_the_same_bits(tmp_path: Path) -> None:
    model = converted()
    save(tmp_path / "m", model)
    np.save(tmp_path / "y.npy", jax.vmap(model)(TOKENS))
    program = ARCHITECTURE + (
        "import numpy as np, sys\nfrom tn4nn_jax import load\n"
        "model = load(sys.argv[1] + '/m', Model(jax.random.key(9)))\n"
        "assert np.array_equal(jax.vmap(model)(jnp.arange(48)), np.load(sys.argv[1] + '/y.npy'))\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes_and_orderings(dtype: Any, tmp_path: Path) -> None:
    layer = eqx.nn.Linear(16, 9, key=jax.random.key(0))
    half = jax.tree.map(lambda x: x.astype(dtype), layer)
    model = convert(half, Rule(tn.mpo((4, 4), (3, 3)), rank=2, ordering="hilbert"))
    save(tmp_path / "m", model)
    again = load(tmp_path / "m", layer)
    x = jnp.linspace(-1, 1, 16).astype(dtype)
    assert again.weights["core0"].dtype == dtype
    assert bool((again(x) == model(x)).all())


@pytest.mark.thorough
def test_float64(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        layer = eqx.nn.Linear(16, 16, key=jax.random.key(0), dtype=jnp.float64)
        model = convert(layer, Rule("low_rank", rank=2))
        save(tmp_path / "m", model)
        again = load(tmp_path / "m", layer)
        x = jnp.linspace(-1, 1, 16)
        assert again.weights["core0"].dtype == jnp.float64
        assert bool((again(x) == model(x)).all())


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("source", "text"),
    [
        (lambda: eqx.nn.Linear(4, 4, key=jax.random.key(0)), "the base has no layer 'table'"),
        (lambda: other("conv", eqx.nn.Conv2d(1, 4, 3, key=jax.random.key(0))), "its layer 'conv' is Conv2d"),
        (lambda: other("table", eqx.nn.Embedding(40, 16, key=jax.random.key(0))), "its layer 'table' is Embedding"),
        (lambda: other("norm", eqx.nn.LayerNorm(8)), "has shape (16,)"),
        (lambda: other("norm", eqx.nn.LayerNorm(16, use_bias=False)), "it has 'norm.bias', which the base has not"),
    ],
)
def test_another_architecture_is_an_error(source: Any, text: str, tmp_path: Path) -> None:
    save(tmp_path / "m", converted())
    with pytest.raises(tn.CheckpointError) as caught:
        load(tmp_path / "m", source())
    assert text in str(caught.value)


def other(name: str, layer: Any) -> Any:
    return eqx.tree_at(lambda m: getattr(m, name), base(), layer)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    save(tmp_path / "m", converted())
    good = (tmp_path / "m").read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(good), 20):
        bad = bytearray(good)
        bad[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "bad").write_bytes(bytes(bad))
        with pytest.raises(tn.CheckpointError):
            load(tmp_path / "bad", base())
    net = tn.mpo((4, 4), (4, 4)).with_rank(2)
    tn.save(tmp_path / "model", net, net.init(0))
    with pytest.raises(tn.CheckpointError):
        load(tmp_path / "model", base())
    with pytest.raises(tn.BackendError, match="has a shape and no numbers"):
        save(tmp_path / "m", eqx.filter_eval_shape(base))
    with pytest.raises(tn.BackendError, match="outside of jit"):
        eqx.filter_jit(lambda m: save(tmp_path / "m", m))(base())
