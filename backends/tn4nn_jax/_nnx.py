"""Which layers of a module of flax's nnx can be replaced by networks, and replacing them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tn4nn._base.errors import BackendError, TN4NNError
from tn4nn._compression import convert as _convert
from tn4nn._compression.convert import ConversionPlan, Other
from tn4nn._compression.decompose import Decomposition
from tn4nn._compression.rules import Given, Weight, assign, in_a_block, parsed

from ._device import beside, dtype_of
from ._target import target
from .nnx import Module, TNEmbedding, TNLinear, _nnx

_CAN = "nnx.Linear and nnx.Embed"


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How a kind of layer is read; its weight is W^T, of shape (in_features, out_features)."""

    name: str
    base: type
    weight: str
    refuses: Callable[[Any], str]


def _linear_refuses(layer: Any) -> str:
    if layer.dot_general is not jax.lax.dot_general:
        return "it has a dot_general of its own"
    return _computes_otherwise(layer)


def _computes_otherwise(layer: Any) -> str:
    dtype = layer.dtype
    if dtype is not None and jnp.dtype(dtype) != jnp.dtype(layer.param_dtype):
        return f"it computes in {jnp.dtype(dtype)}, and its weight is {jnp.dtype(layer.param_dtype)}"
    return ""


_KINDS = (
    _Kind("Linear", _nnx.Linear, "kernel", _linear_refuses),
    _Kind("Embedding", _nnx.Embed, "embedding", _computes_otherwise),
)


@dataclasses.dataclass(eq=False)
class _Found:
    """One weight, and every layer that holds it, with all names of each."""

    kind: _Kind
    variable: Any
    members: list[Any] = dataclasses.field(default_factory=list)
    names: list[list[str]] = dataclasses.field(default_factory=list)
    reason: str = ""

    def matrix(self) -> NDArray[Any]:
        """W on the host in float32, or float64 where the weight is."""
        array = self.variable[...]
        if isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct):
            raise BackendError("replace reads the numbers of a model: call it outside of jit, grad and eval_shape")
        host = np.asarray(array)
        return host.astype(np.float64 if host.dtype == np.float64 else np.float32).T

    def described(self) -> Weight:
        """What is known of it without jax."""
        shape = tuple(self.variable.shape)
        gathers = self.kind.name == "Embedding"
        return Weight(
            self.kind.name, shape, (shape[0], shape[1]), self.names, gathers, not gathers, self.matrix,
            reason=self.reason,
        )  # fmt: skip


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    """(name, child) of a module, in the order in which they were made: the pytree has them by the alphabet."""
    for name, child in vars(node).items():
        if not name.startswith("_pytree__") and isinstance(child, _nnx.Pytree | _nnx.Variable):
            yield name, child


def _walk(node: Any, name: str = "", holder: Any = None, above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """(name, node, what holds it) under all names, modules and variables, down to layers and modules of tn4nn."""
    yield name, node, holder
    if _is_layer(node) or isinstance(node, _nnx.Variable) or id(node) in above:  # a module may hold what holds it
        return
    for word, child in _children(node):
        yield from _walk(child, f"{name}.{word}" if name else word, node, (*above, id(node)))


def _is_layer(node: Any) -> bool:
    return isinstance(node, Module) or _kind_of(node) is not None


def _kind_of(node: Any) -> _Kind | None:
    return next((kind for kind in _KINDS if type(node) is kind.base), None)


def survey(model: Any) -> list[_Found]:
    found: dict[int, _Found] = {}
    loose: dict[int, str] = {}
    for name, node, _ in _walk(model):
        kind = _kind_of(node)
        if kind is None:
            if isinstance(node, _nnx.Variable):
                loose.setdefault(id(node), name)
            continue
        variable = getattr(node, kind.weight)
        one = found.setdefault(id(variable), _Found(kind, variable))
        one.reason = one.reason or kind.refuses(node)
        if kind is not one.kind:
            one.reason = one.reason or f"it is the weight of a {one.kind.name} and of a {kind.name}"
        same = next((i for i, member in enumerate(one.members) if member is node), None)
        if same is None:
            one.members.append(node)
            one.names.append([name])
        else:
            one.names[same].append(name)
    for key, one in found.items():
        if key in loose:
            one.reason = one.reason or f"its weight is {loose[key]} too"
    return list(found.values())


def _others(model: Any, known: set[int]) -> list[Other]:
    """Every parameter that is no weight in the table, once, and why it stays."""
    seen, rest = set(known), []
    for name, node, holder in _walk(model):
        inside: list[tuple[str, Any, Any]] = [(name, node, holder)]
        if _is_layer(node):
            inside = [(f"{name}.{word}".removeprefix("."), child, node) for word, child in _variables(node)]
        for full, variable, owner in inside:
            if not isinstance(variable, _nnx.Param) or id(variable) in seen:
                continue
            seen.add(id(variable))
            kind = type(owner).__name__
            reason = f"{kind} is none of {_CAN}"
            if isinstance(owner, Module):
                reason = "it is part of a layer on a network already"
            rest.append(Other(full, kind, tuple(variable.shape), reason))
    return rest


def _variables(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Module):
        yield from ((f"weights.{name}", variable) for name, variable in node.weights.items())
    else:
        yield from ((name, child) for name, child in _children(node) if isinstance(child, _nnx.Variable))


def plan(
    model: Any,
    rules: Given | Mapping[str, Given],
    budget: float | None,
    *,
    seed: int,
    batch: int,
    protect_head: bool,
    phase: str,
    max_time: float | None,
) -> ConversionPlan[Any]:
    """The plan of `replace` for a module of nnx.

    Raises:
        TN4NNError: no layer that can be replaced, and see `replace`.
    """
    found = survey(model)
    if not found:
        raise TN4NNError(f"this model has no layer that can be converted: {_CAN} can")
    weights = [one.described() for one in found]
    linear = [weight for weight in weights if weight.kind == "Linear"]
    top = linear[-1] if protect_head and len(found) > 1 and linear else None
    head = None if top is not None and in_a_block(top.name, top.shape, weights) else top
    layers = {name for weight in weights for name in weight.all_names}
    others = {name: type(node).__name__ for name, node, _ in _walk(model) if name not in layers}
    chosen = assign(weights, parsed(rules), others, _CAN, head)
    mine = {id(weight): one for weight, one in zip(weights, found, strict=True)}

    def make(converted: list[tuple[Weight, Decomposition]]) -> Any:
        instead: dict[str, Any] = {}
        for weight, result in converted:
            instead.update(_made(mine[id(weight)], result, phase))
        if "" in instead:
            return instead[""]
        copy = _nnx.clone(model)
        for name, _, holder in list(_walk(copy)):
            if name in instead:
                _put(holder, name.rpartition(".")[2], instead[name])
        return copy

    pricing = _convert.Pricing(
        lambda weight: target(dtype_of(mine[id(weight)].variable[...])), batch, phase, max_time=max_time
    )
    return _convert.conversion(
        weights, chosen, {}, budget, pricing, seed, make, others=_others(model, {id(one.variable) for one in found})
    )


def _made(found: _Found, result: Decomposition, phase: str) -> dict[str, Any]:
    """Name of a layer -> the new one; layers that shared their weight share the variables of their cores."""
    new: dict[str, Any] = {}
    cores: dict[str, Any] = {}
    old = found.variable[...]
    for member, names in zip(found.members, found.names, strict=True):
        options: dict[str, Any] = {"weights": dict(result.weights), "phase": phase, "dtype": dtype_of(old).name}
        if found.kind.name == "Embedding":
            layer: Any = TNEmbedding(result.network, **options)
        else:
            bias = None if member.bias is None else member.bias[...]
            if bias is not None:
                options["weights"]["bias"] = np.zeros(bias.shape, np.float32)  # the old one takes its place
            layer = TNLinear(result.network, bias=bias is not None, ordering=result.ordering, **options)
            if bias is not None:
                layer.weights["bias"][...] = bias
        for name in result.network.shapes:
            if name not in cores:
                cores[name] = layer.weights[name]
                cores[name][...] = beside(cores[name][...], old)
            layer.weights[name] = cores[name]
        new.update(dict.fromkeys(names, layer))
    return new


def _put(holder: Any, name: str, layer: Any) -> None:
    if isinstance(holder, _nnx.List):
        holder[int(name)] = layer
    else:
        setattr(holder, name, layer)
