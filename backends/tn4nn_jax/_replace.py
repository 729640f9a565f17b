"""Layers on networks in place of dense ones, with weights that are drawn: for models that are trained by loops of
one's own, from the start."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.core

from tn4nn._base.errors import BackendError
from tn4nn._base.seeds import checked_seed
from tn4nn._compression.convert import ConversionPlan
from tn4nn._compression.rules import Given, fresh

from ._convert import plan_conversion


def plan_replacement(
    model: Any,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    *,
    seed: int | None = None,
    key: Any = None,
    batch: int = 32,
    protect_head: bool = True,
    phase: str = "train",
    max_time: float | None = None,
) -> ConversionPlan[Any]:
    """The dry run of `replace`, which says what the arguments are: the same work and the same errors, but for making
    the model. `print` shows a table, `.run()` makes the model.

    Examples:
        >>> from tn4nn_jax import plan_replacement
        >>> import equinox as eqx, jax
        >>> model = eqx.nn.MLP(64, 10, 32, 1, key=jax.random.key(0))
        >>> [(row.name, row.before, row.after) for row in plan_replacement(model, "low_rank", 0.25, seed=0).rows]
        [('layers.0', 2048, 480), ('layers.1', 320, 320)]
    """
    options: dict[str, Any] = {"batch": batch, "protect_head": protect_head, "phase": phase, "max_time": max_time}
    own = _seed(seed, key)
    if _is_nnx(model):
        from ._nnx import plan

        return plan(model, fresh(rules), budget, seed=own, **options)
    return plan_conversion(model, fresh(rules), budget, seed=own, **options)


def _is_nnx(model: Any) -> bool:
    nnx: Any = sys.modules.get("flax.nnx")  # where it is not imported, there is no such model
    return nnx is not None and isinstance(model, nnx.Module)


def _seed(seed: int | None, key: Any) -> int:
    if (seed is None) == (key is None):
        received = "neither, and jax has no generator of its own" if key is None else "both"
        raise BackendError(f"expected seed= (as 0) or key= (as jax.random.key(0)), received {received}")
    if key is None:
        return checked_seed(seed)
    bits = jax.random.bits(key, (2,), "uint32")
    if isinstance(bits, jax.core.Tracer):
        raise BackendError("replace reads the numbers of a model: call it outside of jit, grad and vmap")
    return int(bits[0]) << 32 | int(bits[1])


def replace(
    model: Any,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    *,
    seed: int | None = None,
    key: Any = None,
    batch: int = 32,
    protect_head: bool = True,
    phase: str = "train",
    max_time: float | None = None,
) -> Any:
    """A model whose layers are replaced by tensor networks with new weights, to be trained from the start.

    In an Equinox model, or any pytree of its layers, these are the layers of `convert`, and what is kept is the same.
    In a module of flax's nnx they are nnx.Linear and nnx.Embed, which become the layers of `tn4nn_jax.nnx` in a copy;
    modules and weights that are in it twice still are, and biases stay. (A table has no `attend` then: skip one whose
    model calls it.)

    Nothing is fitted: the cores are drawn so that W, of shape (out_features, in_features), has the variance of the
    weight that it replaces, and the model begins at the scale that its author chose. A weight whose numbers are all
    equal (zero, for instance) has no variance to go by: it gets 1/in_features, and the table says so.

    Args:
        model: an Equinox model, a pytree with such layers in it, or a module of flax's nnx.
        rules: as for `convert`, patterns of layer names to what they are put on. A rule has no `error` here, and no
            `method`. Of a weight that several layers hold, one name that matches is enough, and all of its layers are
            replaced; one that is "skip" keeps all of them.
        budget: parameters that all layers with a rule may have together, counted once where they share, biases left
            out; or a share below 1 of what they have now. Drawn weights say nothing of which layer needs more: each
            gets an equal share of its own size, and where that is more than it has, it stays dense.
        seed: of the weights; the same one gives the same numbers, to the bit.
        key: of jax, as `jax.random.key(0)`, instead of a seed.
        batch: as for `convert`; layers in nnx plan for the rows that come.
        protect_head: leave the last linear layer alone, unless a rule names it in full.
        phase: "train" or "forward": what the new layers plan for.
        max_time: as for `convert`.

    See also:
        `plan_replacement`, with the same arguments, for a table of what this would do; `scale_by_structure` and
        `decay_by_structure`, for the optimizer. For trees of named arrays, `decompose_params` with method="fresh" in
        the rules.

    Raises:
        TN4NNError: a pattern that matches nothing, with the nearest names; a rule that is none, or that asks for a fit.
        BackendError: neither a seed nor a key, or both; no Equinox; a layer that has shapes and no numbers; a call
            inside of jit.
        BudgetError: a budget that cannot be met, with the smallest that can, or a layer that nothing gives a size.
        ShapeError: a topology of another size than its layer.
        DataError: weights that are NaN or infinite, where no layer is left to replace.

    Examples:
        >>> from tn4nn_jax import replace
        >>> import equinox as eqx, jax
        >>> model = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
        >>> small = replace(model, {"layers.0": "mpo"}, budget=0.25, key=jax.random.key(1))
        >>> type(small.layers[0]).__name__, jax.vmap(small)(jax.numpy.ones((5, 64))).shape
        ('TNLinear', (5, 10))
    """
    options: dict[str, Any] = {"batch": batch, "protect_head": protect_head, "phase": phase, "max_time": max_time}
    return plan_replacement(model, rules, budget, seed=seed, key=key, **options).run()
