"""A tree of named arrays (flax, haiku, one's own dicts) with the cores of networks instead of its matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tn4nn._base.arrays import Array
from tn4nn._base.checks import nearest
from tn4nn._base.errors import BackendError, ShapeError, TN4NNError
from tn4nn._compression import convert as _convert
from tn4nn._compression.convert import ConversionPlan
from tn4nn._compression.decompose import Decomposition
from tn4nn._compression.rules import Given, Weight, assign, parsed
from tn4nn._compression.sharing import Effort
from tn4nn._model.layers import Linear

from ._convert import measure_of, other_arrays, shaped_as, word
from ._device import beside, dtype_of, to_device, wide
from ._target import target

Layout = Literal["in_out", "out_in"]


def plan_params(
    params: Any,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    *,
    layout: Layout,
    inputs: Mapping[str, ArrayLike] | None = None,
    loss: Callable[[Any], Any] | None = None,
    batch: int = 32,
    seed: int = 0,
    max_time: float | None = None,
    time_limit: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> ConversionPlan[tuple[Any, dict[str, Linear]]]:
    """The dry run of `decompose_params`, which says what the arguments are: `print` shows a table, `.run()` goes on.

    Examples:
        >>> from tn4nn_jax import plan_params
        >>> import numpy as np
        >>> params = {"dense": {"kernel": np.ones((8, 4)), "bias": np.zeros(4)}}
        >>> plan_params(params, "low_rank", 20, layout="in_out").rows[0].converted
        True
    """
    if layout not in ("in_out", "out_in"):
        raise ShapeError(
            "layout is 'in_out' where y = x K with K of shape (in, out) (flax, haiku), or 'out_in' where y = W x "
            f"(torch, Equinox); received {layout!r}"
        )
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    named = {".".join(map(word, path)): leaf for path, leaf in leaves}
    weights = [_weight(name, leaf, layout) for name, leaf in named.items() if _is_matrix(name, leaf)]
    if not weights:
        raise TN4NNError("these params hold no matrix: arrays of two axes and floating-point numbers can be converted")
    known = {weight.name for weight in weights}
    others = {name: f"{type(leaf).__name__}{np.shape(leaf)}" for name, leaf in named.items() if name not in known}
    chosen = assign(weights, parsed(rules), others, "Matrices of floating-point numbers")
    for name in inputs or {}:
        if name not in known:
            raise TN4NNError(
                f"inputs has {name!r}, which is not a matrix of these params." + nearest(name, sorted(known))
            )
    seen: dict[int, Array] = {
        i: np.asarray(inputs[one.name]) for i, one in enumerate(chosen) if inputs and one.name in inputs
    }

    def make(converted: list[tuple[Weight, Decomposition]]) -> tuple[Any, dict[str, Linear]]:
        found = dict(named)
        for weight, result in converted:
            found[weight.name] = _cores(result, named[weight.name])
        layers = {weight.name: result.linear(bias=False) for weight, result in converted}
        return jax.tree_util.tree_unflatten(tree, list(found.values())), layers

    def change(weight: Weight, result: Decomposition) -> tuple[Any, Any]:
        leaf = named[weight.name]
        return leaf, shaped_as(leaf, result.to_dense(), layout == "in_out")

    pricing = _convert.Pricing(lambda weight: target(dtype_of(named[weight.name])), batch, "train", max_time=max_time)
    return _convert.conversion(
        weights, chosen, seen, budget, pricing, seed, make,
        others=other_arrays(params, {id(named[weight.name]) for weight in weights}),
        measure=measure_of(params, change, None, loss), effort=Effort(time_limit, progress),
    )  # fmt: skip


def _is_matrix(name: str, leaf: Any) -> bool:
    if isinstance(leaf, jax.core.Tracer):
        raise BackendError("decompose_params reads the numbers of its arrays: call it outside of jit, grad and vmap")
    matrix = isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct) and len(leaf.shape) == 2
    return matrix and jnp.issubdtype(leaf.dtype, jnp.floating)


def _weight(name: str, leaf: Any, layout: Layout) -> Weight:
    def matrix() -> NDArray[Any]:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise BackendError("it has a shape and no numbers to decompose (eval_shape): load its numbers first")
        host = np.asarray(leaf)
        host = host.astype(np.float64 if host.dtype == np.float64 else np.float32)
        return host.T if layout == "in_out" else host

    ins, out = leaf.shape if layout == "in_out" else leaf.shape[::-1]
    return Weight("matrix", tuple(leaf.shape), (ins, out), [[name]], False, True, matrix)


def _cores(result: Decomposition, leaf: Any) -> dict[str, jax.Array]:
    """The cores in the dtype of the matrix and where it lies."""
    dtype = dtype_of(leaf)
    with wide(dtype == np.float64):
        return {name: beside(to_device(core, dtype, None), leaf) for name, core in result.weights.items()}


def decompose_params(
    params: Any,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    *,
    layout: Layout,
    inputs: Mapping[str, ArrayLike] | None = None,
    loss: Callable[[Any], Any] | None = None,
    batch: int = 32,
    seed: int = 0,
    max_time: float | None = None,
    time_limit: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Any, dict[str, Linear]]:
    """A tree of named arrays in which dicts of cores replace some of the matrices, and the layers that read them.

    For models that are functions of a tree: where the function multiplied with a matrix,
    `tn4nn_jax.linear(layers[name], params[...], x)` does it with its cores, for matrices of either layout.
    What comes back is a tree of plain arrays again, for optax and any file format.

    Args:
        params: a pytree of arrays, e.g. nested dicts; those of two axes and floating-point numbers are matrices.
        rules: patterns of names, e.g. "params.Dense_0.kernel" or "*.kernel", to what the matrices are put on, as for
            `convert`. No head is protected, for a dict has no order: name what is to stay with "skip".
        budget: as for `convert`.
        layout: "in_out" for matrices K of y = x K (flax, haiku), "out_in" for W of y = W x (torch, Equinox).
        inputs: name of a matrix -> a batch of what it is applied to, (rows, in), or its covariance.
        loss: of a tree like `params`, a number that is small for good ones: the budget is spread by it, as for
            `convert`. Left out, the product of what the matrices keep is made large.
        batch: rows that the table counts multiply-adds for.
        seed: of random starts.
        max_time: as for `convert`.
        time_limit: as for `convert`.
        progress: as for `convert`.

    Returns:
        (params, layers): the new tree; and name -> `tn.Linear`, without bias, for each matrix that was converted.

    Raises:
        TN4NNError: a pattern or a name of `inputs` that matches nothing, with the nearest names; a rule that is none.
        ShapeError: an unknown layout; a topology of another size than its matrix.
        BackendError: shapes without numbers; a call inside of jit.
        BudgetError: a budget that cannot be met, or a matrix that nothing gives a size.
        DataError: matrices that are NaN, infinite or all zero, where none is left to convert.

    Examples:
        >>> import jax, numpy as np, tn4nn_jax
        >>> kernel = np.outer(np.arange(1.0, 9.0), np.arange(1.0, 5.0))
        >>> params = {"dense": {"kernel": kernel, "bias": np.zeros(4)}}
        >>> small, layers = tn4nn_jax.decompose_params(params, {"*.kernel": "low_rank"}, 12, layout="in_out")
        >>> jax.tree.map(np.shape, small)
        {'dense': {'bias': (4,), 'kernel': {'core0': (8, 1), 'core1': (1, 4)}}}
        >>> x = np.ones((2, 8))
        >>> y = tn4nn_jax.linear(layers["dense.kernel"], small["dense"]["kernel"], x)
        >>> np.allclose(y, x @ kernel)
        True
    """
    options: dict[str, Any] = {"inputs": inputs, "loss": loss, "batch": batch, "seed": seed, "max_time": max_time}
    options |= {"time_limit": time_limit, "progress": progress}
    return _convert.run_converted(plan_params(params, rules, budget, layout=layout, **options))
