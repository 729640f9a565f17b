"""Replaces layers of a trained torch model by layers on networks, and back.

Rules say which layers and onto what; a plan decomposes them and says what is lost and gained; running it copies the
model with other layers in it. The source is never changed, and nothing is shared with it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tn4nn._base.errors import BackendError, TN4NNError
from tn4nn._compression import convert as _convert
from tn4nn._compression.convert import ConversionPlan, Other
from tn4nn._compression.decompose import Decomposition
from tn4nn._compression.rules import Given, Rule, Seen, Weight, assign, in_a_block, parsed
from tn4nn._compression.sharing import Effort, Measure
from tn4nn._graph.network import Network, transposed
from tn4nn._runtime.target import Target

from ._device import target
from ._kinds import LayerKind, carry_over, dense_module, kind_of, why_not
from ._modules import TNEmbedding, _Planned
from ._tied import rename_tied
from ._trial import Change, Trial

__all__ = ["ConversionPlan", "Rule", "convert", "plan_conversion", "undo"]

_Model = TypeVar("_Model", bound=nn.Module)


_CAN = "Linear, Conv2d, Embedding and Conv1D"
_ATTENTION = "nn.MultiheadAttention reads its weight past the layer: split_attention makes layers of its projections"


# -- which layers -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Found:
    """One weight of the model that some kind of layer holds, and every layer that holds it.

    `members` are modules, the first is the one that is read; `names` are all names of each.
    """

    kind: LayerKind
    weight: nn.Parameter
    members: list[nn.Module] = dataclasses.field(default_factory=list)
    names: list[list[str]] = dataclasses.field(default_factory=list)
    reason: str = ""

    def matrix(self) -> NDArray[Any]:
        """W in float32, or float64 where the weight is."""
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        return self.kind.matrix(self.weight.detach()).to(device="cpu", dtype=wide).numpy().copy()

    def described(self) -> Weight:
        """What is known of it without torch."""
        out, ins = self.kind.matrix(self.weight).shape
        shape, gathers = tuple(self.weight.shape), self.kind.rows is None
        ordered = self.kind.name in ("Linear", "Conv1D")
        return Weight(self.kind.name, shape, (ins, out), self.names, gathers, ordered, self.matrix, reason=self.reason)


def _survey(model: nn.Module) -> list[_Found]:
    """Every weight that could be replaced, or why not; shared modules and shared weights once."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    found: dict[int, _Found] = {}
    for key, module in modules.items():
        kind = kind_of(module)
        if kind is None:
            continue
        weight: Any = module._parameters.get("weight")
        reason = why_not(kind, module)
        if weight is None or isinstance(weight, nn.parameter.UninitializedParameter):
            weight = nn.Parameter(torch.empty(1, 1, device="meta"))
        one = found.setdefault(id(weight), _Found(kind, weight))
        one.members.append(module)
        one.names.append(names[key])
        one.reason = one.reason or reason
    _refuse_strangers(modules, names, found)
    return list(found.values())


def _refuse_strangers(
    modules: Mapping[int, nn.Module], names: Mapping[int, list[str]], found: Mapping[int, _Found]
) -> None:
    """Weights that something else reads too stay as they are."""
    for key, module in modules.items():
        for name, parameter in module._parameters.items():
            one = found.get(id(parameter))
            if one is not None and all(module is not member for member in one.members):
                one.reason = one.reason or f"its weight is {'.'.join(filter(None, (names[key][0], name)))} too"
        if isinstance(module, nn.MultiheadAttention):
            for one in found.values():
                if any(member is module.out_proj for member in one.members):
                    one.reason = one.reason or _ATTENTION


def _head(model: nn.Module, weights: list[Weight]) -> nn.Module | None:
    """What the model itself calls its output embeddings (Hugging Face), else its last linear layer, if it is one of
    its kind: encoders end with a block like those before, and have none."""
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(head, nn.Module):
        return head
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if (kind := kind_of(module)) is not None and kind.name in ("Linear", "Conv1D")
    ]
    base: Any = getattr(model, "base_model", None)
    if isinstance(base, nn.Module):  # Hugging Face: what is not in the base model is the head
        inside = {id(module) for module in base.modules()}
        linear = [(name, module) for name, module in linear if id(module) not in inside]
    if not linear:
        return None
    name, last = linear[-1]
    weight: Any = last._parameters.get("weight")
    return None if weight is not None and in_a_block(name, tuple(weight.shape), weights) else last


def _others(model: nn.Module, found: list[_Found]) -> list[Other]:
    """Every parameter that is no weight in the table, once, and why it stays."""
    known = {id(one.weight) for one in found}
    rest = []
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or id(parameter) in known:
                continue
            known.add(id(parameter))
            kind = type(module).__name__
            reason = f"{kind} is none of {_CAN}"
            if isinstance(module, _Planned):
                reason = "it is part of a layer on a network already"
            elif len(_shape(parameter)) > 2 and not isinstance(module, nn.modules.conv._ConvNd):
                reason = f"{kind} holds several matrices in one parameter: make a layer of each"
            full = ".".join(filter(None, (prefix, name)))
            rest.append(Other(full, kind, _shape(parameter), reason))
    return rest


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return () if isinstance(parameter, nn.parameter.UninitializedParameter) else tuple(parameter.shape)


# -- what the layers see ----------------------------------------------------------------------------------------


def _batches(inputs: object) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """(args, kwargs) of each call of the model."""
    if isinstance(inputs, list):
        if not inputs:
            raise TN4NNError("inputs is an empty list: give at least one call of the model")
        return [call for part in inputs for call in _batches(part)]
    if isinstance(inputs, Mapping):
        return [((), dict(inputs))]
    if isinstance(inputs, tuple):
        return [(inputs, {})]
    if isinstance(inputs, Tensor):
        return [((inputs,), {})]
    raise TN4NNError(
        "inputs is a tensor, a tuple of arguments, a dict of keyword arguments, or a list of these, "
        f"received {type(inputs).__name__}"
    )


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """eval() and no gradients; every module is put back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _covariances(model: nn.Module, chosen: list[_Found], inputs: object) -> dict[int, NDArray[Any]]:
    """Position in `chosen` -> covariance of what the matrix sees. Not for embeddings, nor for weights that are tied
    across a transposition, whose two sides see different spaces."""
    seen: dict[int, Seen] = {}
    handles = []
    for i, one in enumerate(chosen):
        kinds = [kind_of(member) for member in one.members]
        rows = one.kind.rows
        if rows is None or any(kind is None or kind.transposed != one.kind.transposed for kind in kinds):
            continue
        seen[i] = Seen()
        for member in one.members:
            hook = _watcher(seen[i], rows)
            handles.append(member.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        with _evaluating(model):
            for args, kwargs in _batches(inputs):
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    found = {i: watched.covariance() for i, watched in seen.items()}
    return {i: covariance for i, covariance in found.items() if covariance is not None}


def _watcher(seen: Seen, rows: Callable[[Any, Tensor], Tensor]) -> Callable[..., None]:
    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        found = rows(module, input_of(args, kwargs)).detach().to(torch.float32)
        seen.add((found.T @ found).double().cpu().numpy(), len(found))

    return watch


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer is called with: it has one argument, by position or by name."""
    (given,) = (*args, *kwargs.values())
    found: Tensor = given
    return found


# -- the plan ---------------------------------------------------------------------------------------------------


def plan_conversion(
    model: nn.Module,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    *,
    inputs: object = None,
    loss: Callable[[nn.Module], Any] | None = None,
    batch: int = 32,
    protect_head: bool = True,
    phase: str = "train",
    seed: int = 0,
    max_time: float | None = None,
    time_limit: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> ConversionPlan[nn.Module]:
    """The dry run of `convert`, which says what the arguments are: the same work and the same errors, but for copying
    the model. `print` shows a table, `.run()` makes the model.

    Examples:
        >>> from tn4nn_torch import plan_conversion
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> dry = plan_conversion(model, "low_rank", budget=0.25)
        >>> [(row.name, row.before, row.after, row.converted) for row in dry.rows]
        [('0', 2048, 480, True), ('2', 320, 320, False)]
        >>> dry.rows[1].reason
        'the head is protected: name it in full, or protect_head=False'
    """
    found = _survey(model)
    if not found:
        raise TN4NNError(f"this model has no layer that can be converted: {_CAN} can")
    weights = [one.described() for one in found]
    head = _head(model, weights) if protect_head and len(found) > 1 else None
    top = [weights[i] for i, one in enumerate(found) if any(member is head for member in one.members)]
    layers = {name for weight in weights for name in weight.all_names}
    modules = model.named_modules(remove_duplicate=False)
    others = {name: type(module).__name__ for name, module in modules if name not in layers}
    chosen = assign(weights, parsed(rules), others, _CAN, next(iter(top), None))
    mine = {id(weight): one for weight, one in zip(weights, found, strict=True)}
    for weight in chosen:
        if mine[id(weight)].weight.is_meta:
            raise BackendError(
                f"layer {weight.name!r} is on the meta device and has no numbers to decompose: load its weights first "
                "(model.to_empty(device='cpu'), then load_state_dict)"
            )
    seen = {} if inputs is None else _covariances(model, [mine[id(weight)] for weight in chosen], inputs)

    def make(converted: list[tuple[Weight, Decomposition]]) -> nn.Module:
        memo: dict[int, Any] = {}
        renamed: dict[str, list[str]] = {}
        for weight, result in converted:
            one = mine[id(weight)]
            _replace(one, result, phase, memo)
            layers = [name for names in one.names for name in names]
            renamed |= {f"{name}.weight": [f"{name}.{core}" for core in result.network.shapes] for name in layers}
        small = copy.deepcopy(model, memo)
        rename_tied(small, renamed)
        _tell_transformers(small)
        return small

    def where(weight: Weight) -> Target:
        tensor = mine[id(weight)].weight
        return target("cpu" if tensor.is_meta else tensor.device, tensor.dtype)

    return _convert.conversion(
        weights, chosen, seen, budget, _convert.Pricing(where, batch, phase, max_time=max_time), seed, make,
        others=_others(model, found), measure=_measure(model, mine, inputs, loss), effort=Effort(time_limit, progress),
    )  # fmt: skip


def _measure(
    model: nn.Module, mine: Mapping[int, _Found], inputs: object, loss: Callable[[nn.Module], Any] | None
) -> Measure | None:
    """What the model loses where some layers are replaced; the copy that tells it is made when it is first asked."""
    if inputs is None and loss is None:
        return None
    trials: list[Trial] = []

    def change(weight: Weight, result: Decomposition) -> Change:
        one = mine[id(weight)]
        return one.weight, lambda w: (w.T if one.kind.transposed else w).reshape(one.weight.shape), result

    def measure(changed: Iterable[tuple[Weight, Decomposition]], quick: bool) -> float:
        if not trials:
            trials.append(Trial(model, [] if inputs is None else _batches(inputs), loss))
        if not trials[0].possible:
            return math.nan
        return trials[0].lost((change(*pair) for pair in changed), quick)

    return measure


# -- doing it ---------------------------------------------------------------------------------------------------


def _replace(found: _Found, result: Decomposition, phase: str, memo: dict[int, Any]) -> None:
    """Makes the new layers of a weight and puts them into the memo of the copy, where they replace the old ones."""
    first: _Planned | None = None
    for member in found.members:
        kind = kind_of(member)
        assert kind is not None
        network = result.network if kind.transposed == found.kind.transposed else transposed(result.network)
        replacement = _layer(kind, member, network, result, phase)
        if first is None:
            first = replacement
            for core in replacement.cores():
                core.requires_grad_(found.weight.requires_grad)
        else:
            for name in network.shapes:
                replacement._parameters[name] = first._parameters[name]
            replacement.remember_cores()
        memo[id(member)] = replacement
        bias: Any = member._parameters.get("bias")
        replacement._parameters["bias"] = copy.deepcopy(bias, memo)
        carry_over(member, replacement, kind.keeps, memo)


def _layer(kind: LayerKind, module: nn.Module, network: Network, result: Decomposition, phase: str) -> _Planned:
    weight: Any = module._parameters["weight"]
    layer = kind.layer(module, network, result.ordering)
    weights = dict(result.weights)
    if any(spec.name == "bias" for spec in layer.own_specs()):
        weights["bias"] = np.zeros(network.out_features, dtype=np.float32)  # the old one takes its place
    return kind.make(layer, weights=weights, phase=phase, device=weight.device, dtype=weight.dtype)


def convert(
    model: _Model,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    *,
    inputs: object = None,
    loss: Callable[[nn.Module], Any] | None = None,
    batch: int = 32,
    protect_head: bool = True,
    phase: str = "train",
    seed: int = 0,
    max_time: float | None = None,
    time_limit: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> _Model:
    """A copy of a trained model whose layers are replaced by tensor networks, each close to the layer it replaces.

    nn.Linear, nn.Conv2d, nn.Embedding and Hugging Face's Conv1D become TNLinear, TNConv2d and TNEmbedding: ordinary
    modules with ordinary parameters, so that an ordinary loop trains them on. Kept are device, dtype (float16 and
    bfloat16 are decomposed in float32), hooks, train and eval mode, requires_grad, shared modules and tied weights
    (an embedding and the head it is tied to share their cores). The source is not touched. Tokens of an embedding's
    padding_idx give no gradient, as before; but no core is one row's own, so the row itself is approximated, and
    moves with the others.

    Args:
        model: any module.
        rules: patterns of layer names (as for a shell; the first that matches holds) to what they are put on: the
            name of a topology, a Topology, a Network (ranks and all), a `Rule` or a dict of its settings, or "skip".
            One of these alone holds for every layer.
        budget: parameters that all layers with a rule may have together, counted once where they share, biases left
            out; or a share below 1 of what they have now. A layer may end up dense. With `inputs` or `loss`, every
            layer is first replaced alone, and what the model then loses is the weight of that layer's squared error;
            this spread and equal shares are both tried on the model, and the better one is taken. Without, the
            product of what the layers keep (1 - squared relative error) is made large. Layers that cannot be
            decomposed (all zero, NaN) stay, with the reason in the table, and do not count.
        inputs: a calibration batch that the model is run on (eval mode, no gradients): a tensor, a tuple of
            arguments, a dict of keyword arguments, or a list of these. The errors of the layers' outputs are then made
            small instead of those of their weights. Embeddings are not calibrated.
        loss: of a model, a number that is small for a good one, e.g. its mean loss on labelled data. The budget is
            spread by it; left out, by the squared error of the model's outputs on `inputs`. It is called once for
            each layer and three times more, in eval mode and without gradients.
        batch: what the table counts multiply-adds for.
        protect_head: leave the last linear layer (Hugging Face: the output embeddings) alone, unless a rule names it in
            full.
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
        BackendError: a layer on the meta device.
        BudgetError: a budget that cannot be met, or a layer that nothing gives a size.
        ShapeError: a topology of another size than its layer.
        DataError: weights that are NaN, infinite or all zero, where no layer is left to convert.

    Examples:
        >>> from tn4nn_torch import convert
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = convert(model, {"0": "mpo"}, budget=1000)
        >>> type(small[0]).__name__, sum(p.numel() for p in small[0].parameters()) <= 1064
        ('TNLinear', True)
    """
    options: dict[str, Any] = {"inputs": inputs, "batch": batch, "protect_head": protect_head, "phase": phase}
    options |= {"loss": loss, "max_time": max_time, "time_limit": time_limit, "progress": progress}
    return cast(_Model, _convert.run_converted(plan_conversion(model, rules, budget, seed=seed, **options)))


def undo(model: nn.Module) -> nn.Module:
    """A copy of a model with dense layers in place of those on networks: nn.Linear, nn.Conv2d and nn.Embedding.

    Their weights are the matrices that the networks represent now, so what was lost stays lost. A Conv1D of
    transformers comes back as nn.Linear.

    Args:
        model: any module with layers on networks; it is not touched.

    Examples:
        >>> from tn4nn_torch import convert, undo
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> undo(convert(model, {"0": "low_rank"}, budget=200))
        Sequential(
          (0): Linear(in_features=16, out_features=16, bias=True)
          (1): ReLU()
          (2): Linear(in_features=16, out_features=4, bias=True)
        )
    """
    memo: dict[int, Any] = {}
    result: dict[tuple[Any, ...], nn.Parameter] = {}
    renamed: dict[str, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _Planned):
            renamed |= {f"{name}.{core}": [f"{name}.weight"] for core in module.names}
            if id(module) in memo:
                continue
            bias: Any = copy.deepcopy(module.bias_or_none, memo)
            new = dense_module(module, _dense_weight(module, result), bias)
            memo[id(module)] = new
            carry_over(module, new, (), memo)
    dense = copy.deepcopy(model, memo)
    rename_tied(dense, renamed)
    _tell_transformers(dense)
    return dense


def _tell_transformers(model: nn.Module) -> None:
    """A model of transformers keeps the structure in its config; where that is not imported, there is no such model."""
    if "transformers" in sys.modules:
        from .hugging_face import attach

        attach(model)


def _dense_weight(module: _Planned, dense: dict[tuple[Any, ...], nn.Parameter]) -> nn.Parameter:
    """The weight of a layer on a network; layers that share their cores get the same one."""
    cores = module.cores()
    stored = transposed(module.network) if isinstance(module, TNEmbedding) else module.network
    key = (*map(id, cores), stored.fingerprint)
    if key not in dense:
        weight = module.weight.detach().clone(memory_format=torch.contiguous_format)
        dense[key] = nn.Parameter(weight, requires_grad=any(core.requires_grad for core in cores))
    return dense[key]
