"""Replaces layers of a trained Equinox model by layers on networks, and back.

An Equinox model is a pytree, so a layer is replaced by putting another node there; nothing of how the model is
called, mapped, differentiated or compiled changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tn4nn._base.errors import BackendError, ShapeError, TN4NNError
from tn4nn._compression import convert as _convert
from tn4nn._compression.convert import ConversionPlan, Other
from tn4nn._compression.decompose import Decomposition
from tn4nn._compression.rules import Given, Rule, Seen, Weight, assign, in_a_block, parsed
from tn4nn._compression.sharing import Effort, Measure
from tn4nn._graph.network import Network, transposed
from tn4nn._model import layers
from tn4nn._runtime.target import Target

from ._device import beside, dtype_of, to_host, wide
from ._kinds import LayerKind, dense_module, equinox, kind_of, readers, why_not
from ._modules import JaxModule, build_module
from ._target import target

__all__ = ["ConversionPlan", "Rule", "convert", "plan_conversion", "undo"]

_CAN = "eqx.nn.Linear, Conv2d and Embedding"


# -- which layers -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Found:
    """One weight of the model that some kind of layer holds, and every layer that holds it.

    `members` are layers, the first is the one that is read; `names` are all names of each.
    """

    kind: LayerKind
    members: list[Any] = dataclasses.field(default_factory=list)
    names: list[list[str]] = dataclasses.field(default_factory=list)
    reason: str = ""

    @property
    def weight(self) -> Any:
        return self.members[0].weight

    def described(self) -> Weight:
        """What is known of it without jax."""
        kind, weight = self.kind, self.weight
        shape = tuple(int(n) for n in getattr(weight, "shape", ()))
        features = kind.features(weight) if len(shape) == kind.axes else (1, 1)
        gathers, ordered = kind.rows is None, kind.name == "Linear"
        return Weight(
            kind.name, shape, features, self.names, gathers, ordered, lambda: kind.matrix(weight), reason=self.reason
        )


def _walk(node: Any, name: str = "", reason: str = "") -> Iterator[tuple[str, Any, str]]:
    """(name, node, why it cannot be replaced) of a pytree's nodes and leaves, down to layers."""
    if isinstance(node, readers()):
        reason = reason or f"eqx.nn.{type(node).__name__} reads its weight past the layer"
    yield name, node, reason
    if kind_of(node) is not None or isinstance(node, JaxModule):
        return
    for path, child in jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda other: other is not node)[0]:
        if path:
            step = ".".join(word(key) for key in path)
            yield from _walk(child, f"{name}.{step}" if name else step, reason)


def word(key: Any) -> str:
    """One step of a path: the name of a field, a position, or a key."""
    return str(next(getattr(key, word) for word in ("name", "idx", "key") if hasattr(key, word)))


def _survey(model: Any) -> tuple[list[_Found], dict[str, str], _Found | None]:
    """Every weight that could be replaced, or why not, shared layers and shared weights once; name -> type of all
    else; and the weight of the last linear layer."""
    found: dict[int, _Found] = {}
    others: dict[str, str] = {}
    loose: dict[int, str] = {}
    last: _Found | None = None
    for name, node, reason in _walk(model):
        kind = kind_of(node)
        if kind is None:
            others[name] = type(node).__name__
            loose.setdefault(id(node), name)
            continue
        if isinstance(node.weight, jax.core.Tracer):
            raise BackendError("convert reads the numbers of a model: call it outside of jit, grad and vmap")
        one = found.setdefault(id(node.weight), _Found(kind))
        one.reason = one.reason or reason or why_not(kind, node)
        last = one if kind.name == "Linear" else last
        same = next((i for i, member in enumerate(one.members) if member is node), None)
        if same is None:
            one.members.append(node)
            one.names.append([name])
        else:
            one.names[same].append(name)
    for key, one in found.items():
        if key in loose:  # something else reads it too
            one.reason = one.reason or f"its weight is {loose[key]} too"
    return list(found.values()), others, last


# -- what the layers see ----------------------------------------------------------------------------------------


@jax.tree_util.register_pytree_node_class
class _Watched:
    """A layer that shows what it is given."""

    def __init__(self, layer: Any, watch: Callable[[jax.Array], jax.Array]) -> None:
        self.layer, self.watch = layer, watch

    def __call__(self, x: Any, *, key: Any = None) -> Any:
        return self.layer(self.watch(jnp.asarray(x)), key=key)

    def __getattr__(self, name: str) -> Any:
        if name in ("layer", "watch"):  # not there yet
            raise AttributeError(name)
        return getattr(self.layer, name)

    def tree_flatten(self) -> tuple[tuple[Any], Any]:
        return (self.layer,), self.watch

    @classmethod
    def tree_unflatten(cls, watch: Any, children: tuple[Any]) -> _Watched:
        return cls(children[0], watch)


def _watcher(seen: Seen, rows: Callable[[Any, NDArray[Any]], NDArray[Any]], layer: Any) -> Any:
    """The identity, which shows its argument to the host: under vmap the whole batch at once."""

    def add(x: Any) -> None:
        found = rows(layer, np.asarray(x).astype(np.float32))
        seen.add(found.T @ found, len(found))

    @jax.custom_batching.custom_vmap
    def watch(x: jax.Array) -> jax.Array:
        jax.debug.callback(add, x)
        return x

    @watch.def_vmap
    def mapped(size: int, batched: Any, x: jax.Array) -> tuple[jax.Array, bool]:
        return watch(x), True

    return watch


def _covariances(model: Any, chosen: list[_Found], inputs: Any) -> dict[int, NDArray[Any]]:
    """Position in `chosen` -> covariance of what the matrix sees. Not for embeddings, nor for weights that are tied
    across a transposition, whose two sides see different spaces."""
    seen: dict[int, Seen] = {}
    instead: dict[int, Any] = {}
    for i, one in enumerate(chosen):
        rows = one.kind.rows
        if rows is None or any(kind_of(member) is not one.kind for member in one.members):
            continue
        seen[i] = Seen()
        instead.update({id(member): _Watched(member, _watcher(seen[i], rows, member)) for member in one.members})
    result = _called(_replaced(model, instead), inputs)
    untyped: Any = jax
    untyped.block_until_ready(result)
    untyped.effects_barrier()  # until every callback has run
    found = {i: watcher.covariance() for i, watcher in seen.items()}
    return {i: covariance for i, covariance in found.items() if covariance is not None}


def _called(model: Any, inputs: Any) -> Any:
    """What a model gives for the calibration inputs, in inference mode."""
    model = equinox().nn.inference_mode(model)
    if callable(inputs):
        return inputs(model)
    if isinstance(inputs, jax.Array | np.ndarray):
        return jax.vmap(model)(jnp.asarray(inputs))
    raise TN4NNError(
        "inputs is a batch that the model is mapped over, or a function that runs the model it is given, "
        f"received {type(inputs).__name__}"
    )


def _replaced(model: Any, instead: Mapping[int, Any]) -> Any:
    """The model with some nodes replaced, by id."""
    return jax.tree_util.tree_map(
        lambda node: instead.get(id(node), node), model, is_leaf=lambda node: id(node) in instead
    )


# -- the plan and doing it --------------------------------------------------------------------------------------


def plan_conversion(
    model: Any,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    *,
    inputs: Any = None,
    loss: Callable[[Any], Any] | None = None,
    batch: int = 32,
    protect_head: bool = True,
    phase: str = "train",
    seed: int = 0,
    max_time: float | None = None,
    time_limit: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> ConversionPlan[Any]:
    """The dry run of `convert`, which says what the arguments are: the same work and the same errors, but for making
    the model. `print` shows a table, `.run()` makes the model.

    Examples:
        >>> from tn4nn_jax import plan_conversion
        >>> import equinox as eqx, jax
        >>> model = eqx.nn.MLP(64, 10, 32, 1, key=jax.random.key(0))
        >>> dry = plan_conversion(model, "low_rank", budget=0.25)
        >>> [(row.name, row.before, row.after, row.converted) for row in dry.rows]
        [('layers.0', 2048, 480, True), ('layers.1', 320, 320, False)]
        >>> dry.rows[1].reason
        'the head is protected: name it in full, or protect_head=False'
    """
    found, others, last = _survey(model)
    if not found:
        raise TN4NNError(f"this model has no layer that can be converted: {_CAN} can")
    weights = [one.described() for one in found]
    top = weights[found.index(last)] if protect_head and len(found) > 1 and last is not None else None
    head = None if top is not None and in_a_block(top.name, top.shape, weights) else top
    chosen = assign(weights, parsed(rules), others, _CAN, head)
    mine = {id(weight): one for weight, one in zip(weights, found, strict=True)}
    for weight in chosen:
        if isinstance(mine[id(weight)].weight, jax.ShapeDtypeStruct):
            raise BackendError(
                f"layer {weight.name!r} has a shape and no numbers to decompose (eval_shape): load its weights first, "
                "e.g. with eqx.tree_deserialise_leaves"
            )
    seen = {} if inputs is None else _covariances(model, [mine[id(weight)] for weight in chosen], inputs)

    def make(converted: list[tuple[Weight, Decomposition]]) -> Any:
        instead: dict[int, Any] = {}
        for weight, result in converted:
            instead.update(_made(mine[id(weight)], result, batch, phase))
        return _replaced(model, instead)

    def where(weight: Weight) -> Target:
        return target(dtype_of(mine[id(weight)].weight))

    def change(weight: Weight, result: Decomposition) -> tuple[Any, Any]:
        one = mine[id(weight)]
        return one.weight, shaped_as(one.weight, result.to_dense(), one.kind.transposed)

    pricing = _convert.Pricing(where, batch, phase, planned=True, max_time=max_time)
    return _convert.conversion(
        weights, chosen, seen, budget, pricing, seed, make,
        others=other_arrays(model, {id(one.weight) for one in found}),
        measure=measure_of(model, change, None if inputs is None else lambda m: _called(m, inputs), loss),
        effort=Effort(time_limit, progress),
    )  # fmt: skip


def shaped_as(weight: Any, matrix: NDArray[Any], transposed: bool) -> Any:
    """A matrix W as the weight of a layer is stored."""
    with wide(weight.dtype == np.float64):
        array = jnp.asarray((matrix.T if transposed else matrix).reshape(weight.shape), dtype=weight.dtype)
        return beside(array, weight)


def other_arrays(model: Any, known: set[int]) -> list[Other]:
    """Every array of floating-point numbers that is no weight in the table, once, and why it stays."""
    seen, rest = set(known), []
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    parents = {name: node for name, node, _ in _walk(model)}
    for path, leaf in leaves:
        array = isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
        if not array or id(leaf) in seen or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        seen.add(id(leaf))
        steps = [word(key) for key in path]
        above = next(parents[".".join(steps[:i])] for i in range(len(steps) - 1, -1, -1) if _named(steps, i, parents))
        kind = type(above).__name__
        reason = f"{kind} is none of {_CAN}"
        if isinstance(above, JaxModule):
            reason = "it is part of a layer on a network already"
        elif leaf.ndim > 2 and not kind.startswith("Conv"):
            reason = f"{kind} holds several matrices in one array: make a layer of each"
        rest.append(Other(".".join(steps), kind, tuple(leaf.shape), reason))
    return rest


def _named(steps: list[str], count: int, parents: Mapping[str, Any]) -> bool:
    """Whether the first steps of a path lead to a node that is no container of Python's own."""
    name = ".".join(steps[:count])
    return name in parents and (count == 0 or not isinstance(parents[name], list | tuple | dict))


def measure_of(
    model: Any,
    change: Callable[[Weight, Decomposition], tuple[Any, Any]],
    run: Callable[[Any], Any] | None,
    loss: Callable[[Any], Any] | None,
) -> Measure | None:
    """What a model loses where some of its arrays are replaced: the rise of the loss, or the mean over its outputs of
    the squared error relative to the squared original.

    Args:
        model: any pytree.
        change: of a weight, its array and what replaces it.
        run: what a model gives, None where it cannot be run.
        loss: of a model, in place of comparing what it gives.
    """
    if run is None and loss is None:
        return None
    before: list[Any] = []

    def seen(changed: Any) -> Any:
        if loss is not None:
            return float(loss(changed))
        assert run is not None
        return [np.asarray(leaf, dtype=float) for leaf in jax.tree.leaves(run(changed)) if _is_output(leaf)]

    def measure(changed: Iterable[tuple[Weight, Decomposition]], quick: bool) -> float:
        if not before:
            before.append(seen(model))
        pairs = [change(*pair) for pair in changed]
        now = seen(_replaced(model, {id(old): new for old, new in pairs}))
        if loss is not None:
            return float(now - before[0])
        errors = [float(np.sum((a - b) ** 2) / np.sum(b**2)) for a, b in zip(now, before[0], strict=True) if b.any()]
        return sum(errors) / len(errors) if errors else math.nan

    return measure


def _is_output(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _made(found: _Found, result: Decomposition, batch: int, phase: str) -> dict[int, JaxModule]:
    """id of a layer -> the new one; layers that shared their weight share their cores."""
    new: dict[int, JaxModule] = {}
    cores: dict[str, Any] = {}
    dtype = dtype_of(found.weight).name
    for member in found.members:
        kind = kind_of(member)
        assert kind is not None
        network = result.network if kind.transposed == found.kind.transposed else transposed(result.network)
        layer = kind.layer(member, network, result.ordering)
        weights = dict(result.weights)
        has_bias = "bias" in layer.specs()
        if has_bias:
            weights["bias"] = np.zeros(network.out_features, np.float32)  # the old one takes its place
        module: JaxModule = build_module(kind.make, layer, weights, batch=batch, phase=phase, dtype=dtype)
        cores = cores or {name: beside(module.weights[name], found.weight) for name in network.shapes}
        bias = {"bias": member.bias.reshape(-1)} if has_bias else {}
        new[id(member)] = module.updated({**cores, **bias})
    return new


def convert(
    model: Any,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    *,
    inputs: Any = None,
    loss: Callable[[Any], Any] | None = None,
    batch: int = 32,
    protect_head: bool = True,
    phase: str = "train",
    seed: int = 0,
    max_time: float | None = None,
    time_limit: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Any:
    """A trained Equinox model whose layers are replaced by tensor networks, each close to the layer it replaces.

    eqx.nn.Linear, Conv2d and Embedding become `TNLinear`, `TNConv2d` and `TNEmbedding`: pytrees that are called for one
    sample as those are (`layer(x)` or `layer(x, key=key)`), under vmap, jit, grad and Equinox's own filters. Kept are
    dtypes (float16 and bfloat16 are decomposed in float32), devices, biases, and layers or weights that are in the
    model twice, as the same objects; in training, as before, only eqx.nn.Shared keeps them equal. Arrays that stay
    are shared with the source, which is not touched.

    Args:
        model: any pytree with such layers in it.
        rules: patterns of layer names, e.g. "layers.0" or "blocks.*.mlp.*" (as for a shell; the first that matches
            holds) to what they are put on: the name of a topology, a Topology, a Network (ranks and all), a `Rule` or a
            dict of its settings, or "skip". One of these alone holds for every layer.
        budget: parameters that all layers with a rule may have together, counted once where they share, biases left
            out; or a share below 1 of what they have now. A layer may end up dense. With `inputs` or `loss`, every
            layer is first replaced alone, and what the model then loses is the weight of that layer's squared error;
            this spread and equal shares are both tried on the model, and the better one is taken. Without, the
            product of what the layers keep (1 - squared relative error) is made large. Layers that cannot be
            decomposed (all zero, NaN) stay, with the reason in the table, and do not count.
        inputs: a calibration batch, over whose first axis the model is mapped, in inference mode; or, for a model that
            is called otherwise, a function that runs the model it is given. The errors of the layers' outputs are
            then made small instead of those of their weights. Embeddings are not calibrated. What the function gives
            (arrays, in any pytree) is compared with what it gives for the original, to spread the budget.
        loss: of a model, a number that is small for a good one, e.g. its mean loss on labelled data. The budget is
            spread by it; left out, by the squared error of what the model gives for `inputs`. It is called once for
            each layer and three times more.
        batch: rows that a layer sees at once, those that vmap maps over included: what the new layers plan for (inside
            of vmap they cannot know), and what the table counts multiply-adds for.
        protect_head: leave the last linear layer alone, unless a rule names it in full.
        phase: "train" or "forward": what the new layers plan for.
        seed: of random starts.
        max_time: layers stay dense whose predicted time is more than so many times the dense layer's, at that `batch`;
            1.0 leaves dense what would be slower. None converts them too.
        time_limit: seconds for all fits by least squares together; those that it stops give the best they have.
        progress: called with a line of text after each fit, e.g. `print`.

    Warns:
        UserWarning: all weights look as they were drawn: an untrained model has nothing to compress. Rules with
            method="fresh" draw weights instead, with the variance of those that they replace.

    See also:
        `plan_conversion`, with the same arguments, for a table of what this would do, from which `run()` goes on.

    Raises:
        TN4NNError: a pattern that matches nothing, with the nearest names; a rule that is none.
        BackendError: no Equinox; a layer that has shapes and no numbers; a call inside of jit.
        BudgetError: a budget that cannot be met, or a layer that nothing gives a size.
        ShapeError: a topology of another size than its layer.
        DataError: weights that are NaN, infinite or all zero, where no layer is left to convert.

    Examples:
        >>> from tn4nn_jax import convert
        >>> import equinox as eqx, jax
        >>> model = eqx.nn.MLP(64, 10, 64, 1, key=jax.random.key(0))
        >>> small = convert(model, {"layers.0": "mpo"}, budget=1000)
        >>> type(small.layers[0]).__name__, jax.vmap(small)(jax.numpy.ones((5, 64))).shape
        ('TNLinear', (5, 10))
    """
    options: dict[str, Any] = {"inputs": inputs, "batch": batch, "protect_head": protect_head, "phase": phase}
    options |= {"loss": loss, "max_time": max_time, "time_limit": time_limit, "progress": progress}
    return _convert.run_converted(plan_conversion(model, rules, budget, seed=seed, **options))


def undo(model: Any) -> Any:
    """A model with dense Equinox layers in place of those on networks.

    Their weights are the matrices that the networks represent now, so what was lost stays lost.

    Args:
        model: a pytree with layers on networks.

    Examples:
        >>> from tn4nn_jax import convert, undo
        >>> import equinox as eqx, jax
        >>> model = eqx.nn.MLP(16, 4, 16, 1, key=jax.random.key(0))
        >>> undo(convert(model, {"layers.0": "low_rank"}, budget=200)).layers[0].weight.shape
        (16, 16)
    """
    instead: dict[int, Any] = {}
    weights: dict[tuple[Any, ...], jax.Array] = {}
    for _, node, _ in _walk(model):
        if isinstance(node, JaxModule) and isinstance(node.model, layers.OnNetwork) and id(node) not in instead:
            instead[id(node)] = dense_module(node.model, _dense_weight(node, weights), node.weights.get("bias"))
    return _replaced(model, instead)


def _dense_weight(module: JaxModule, dense: dict[tuple[Any, ...], jax.Array]) -> jax.Array:
    """The weight of a layer on a network; layers that share their cores get the same one."""
    layer = module.model
    assert isinstance(layer, layers.OnNetwork)
    network = layer.solid()
    cores = {name: module.weights[name] for name in network.shapes}
    if any(isinstance(core, jax.core.Tracer) for core in cores.values()):
        raise ShapeError("undo reads the numbers of a model: call it outside of jit, grad and vmap")
    table = isinstance(layer, layers.Embedding)
    stored: Network = transposed(network) if table else network
    key = (*map(id, cores.values()), stored.fingerprint)
    if key not in dense:
        matrix = network.to_dense({name: to_host(core) for name, core in cores.items()})
        if isinstance(layer, layers.Linear) and layer.ordering is not None:
            matrix = matrix[:, layer.ordering.inverse]
        if isinstance(layer, layers.Conv2d):
            matrix = matrix.reshape(layer.topology.out_features, layer.in_channels, *layer.kernel)
        first = next(iter(cores.values()))
        with wide(first.dtype == np.float64):
            dense[key] = beside(jnp.array(matrix.T if table else matrix, dtype=first.dtype), first)
    return dense[key]
