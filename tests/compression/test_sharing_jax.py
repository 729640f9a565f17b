"""One budget over the layers of an Equinox model, as tests/compression/test_sharing.py has it for torch."""

from __future__ import annotations

from typing import Any

import pytest

jax = pytest.importorskip("jax")
eqx = pytest.importorskip("equinox")
import jax.numpy as jnp  # noqa: E402
from tn4nn_jax import Rule, convert, decompose_params, plan_conversion, plan_params  # noqa: E402


class Gated(eqx.Module):
    """Two branches of one shape; the second hardly counts in the output."""

    loud: Any
    soft: Any

    def __init__(self) -> None:
        keys = jax.random.split(jax.random.key(0))
        self.loud = eqx.nn.Linear(48, 48, key=keys[0])
        soft = eqx.nn.Linear(48, 48, key=keys[1])
        self.soft = eqx.tree_at(lambda m: m.weight, soft, jnp.diag(0.8 ** jnp.arange(48.0)))

    def __call__(self, x: Any) -> Any:
        return self.loud(x) + 0.01 * self.soft(x)


X = jax.random.normal(jax.random.key(1), (200, 48))


@pytest.mark.slow
def test_the_budget_goes_where_the_model_needs_it() -> None:
    model = Gated()
    plan = plan_conversion(model, "low_rank", 0.5, inputs=X, protect_head=False)
    rows = {row.name: row for row in plan.rows}
    assert rows["loud"].after > 2 * rows["soft"].after
    assert "by what the model loses: measured on the model" in plan.notes[0]
    equal = convert(model, Rule("low_rank", params=1152), inputs=X, protect_head=False)
    y, near, far = (jax.vmap(m)(X) for m in (model, plan.run(), equal))
    assert float(jnp.linalg.norm(near - y)) < 0.8 * float(jnp.linalg.norm(far - y))


def test_a_loss_says_what_counts() -> None:
    model = Gated()

    def loss(m: Any) -> Any:
        return ((jax.vmap(m.soft)(X) - jax.vmap(model.soft)(X)) ** 2).mean()

    rows = {row.name: row for row in plan_conversion(model, "low_rank", 0.5, loss=loss, protect_head=False).rows}
    assert rows["soft"].after > rows["loud"].after
    params = {"loud": model.loud.weight, "soft": model.soft.weight}
    found = plan_params(
        params, "low_rank", 0.5, layout="out_in", loss=lambda p: float(jnp.sum((p["loud"] - params["loud"]) ** 2))
    )
    assert {row.name: row.after for row in found.rows}["loud"] > 1152
    assert found.notes


@pytest.mark.thorough
def test_one_bad_layer_stays_and_every_array_is_in_the_table() -> None:
    model = eqx.nn.MLP(32, 4, 32, 3, key=jax.random.key(0))
    bad = eqx.tree_at(lambda m: m.layers[1].weight, model, jnp.zeros((32, 32)))
    plan = plan_conversion(bad, "low_rank", 0.5)
    assert [row.converted for row in plan.rows] == [True, False, True, False]
    assert plan.rows[1].reason.startswith("it cannot be decomposed: W is zero everywhere")
    count = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(bad, eqx.is_array)))
    assert plan.model_params_before == count
    assert plan.model_params_after == sum(x.size for x in jax.tree.leaves(eqx.filter(plan.run(), eqx.is_array)))
    assert "4 vectors" in repr(plan)
    tree = {"a": jnp.zeros((8, 8)), "b": jnp.ones((8, 8)), "c": jnp.ones((2, 3, 4))}
    small, layers = decompose_params(tree, Rule("low_rank", rank=1), layout="in_out")
    assert set(layers) == {"b"}
    assert small["a"] is tree["a"]


@pytest.mark.thorough
def test_an_untrained_model_and_fresh_weights() -> None:
    model = eqx.nn.MLP(64, 4, 64, 3, key=jax.random.key(0))
    with pytest.warns(UserWarning, match="the weights look untrained"):
        convert(model, "low_rank", 0.5)
    small = convert(model, Rule("mpo", sites=2, method="fresh"), 0.25)
    from tn4nn_jax import undo

    for old, new in list(zip(model.layers, undo(small).layers, strict=True))[:3]:
        assert float(new.weight.std()) == pytest.approx(float(old.weight.std()), rel=0.02)


def test_blocks_that_are_alike_end_in_no_head() -> None:
    class Encoder(eqx.Module):
        blocks: list[Any]

        def __init__(self) -> None:
            keys = jax.random.split(jax.random.key(0), 2)
            self.blocks = [{"up": eqx.nn.Linear(16, 16, key=key)} for key in keys]

    rows = plan_conversion(Encoder(), Rule("low_rank", rank=2)).rows
    assert all(row.converted for row in rows)
