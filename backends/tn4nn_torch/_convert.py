"""From a trained torch model to one with networks in the place of its layers, and back.

Rules say which layers and onto what; a plan decomposes them and says what is lost and gained; running it copies the
model with other layers in it. The source is never changed, and nothing is shared with it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tn4nn._budget import checked_budget
from tn4nn._catalogue import build, dense
from tn4nn._decompose import Decomposition, decompose
from tn4nn._errors import BackendError, BudgetError, ShapeError, TN4NNError, TopologyError
from tn4nn._layers import ordering_of
from tn4nn._network import Network
from tn4nn._ordering import Ordering
from tn4nn._plan import plan
from tn4nn._spread import loss_curve, spread
from tn4nn._topology import Topology, nearest

from ._kinds import Kind, carry_over, dense_module, kind_of, why_not
from ._modules import TNEmbedding, _Planned

SKIP = "skip"


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a layer is to stand on; give at most one of `rank`, `params` and `error`, and none where a budget is shared.

    Attributes:
        topology: a name out of `tn.catalogue()`, a Topology, or a Network, whose ranks are kept.
        sites: of a topology by name; see `tn.build`.
        pairing: of a topology by name; see `tn.build`.
        options: of a topology by name, e.g. {"grid": (2, 3)}.
        rank: of every bond.
        params: parameters of this layer, never more.
        error: largest relative error of this layer.
        ordering: of the inputs of a linear layer, as for `tn.Linear`.
        method: as for `tn.decompose`; "svd" spares the least squares by which calibrated layers are fitted, which takes
            minutes for a transformer, and leaves their work to `refine`.

    Example:
        >>> Rule("mpo", sites=3, rank=8).topology
        'mpo'
    """

    topology: str | Topology | Network
    sites: int | None = None
    pairing: str = "opposed"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rank: int | None = None
    params: int | None = None
    error: float | None = None
    ordering: Ordering | str | Sequence[int] | None = None
    method: str = "auto"

    @property
    def own(self) -> dict[str, Any]:
        """The size that this rule asks for by itself; empty where the budget decides."""
        asked = {"rank": self.rank, "params": self.params, "error": self.error}
        return {name: value for name, value in asked.items() if value is not None}

    @property
    def shares(self) -> bool:
        """Whether the layer takes its part of the budget."""
        return not self.own and not isinstance(self.topology, Network)

    def onto(self, in_features: int, out_features: int) -> Topology | Network:
        """The topology or network for a matrix of this size."""
        if isinstance(self.topology, str):
            pairing: Any = self.pairing
            made: Topology | Network = build(
                self.topology, in_features, out_features, sites=self.sites, pairing=pairing, **self.options
            )
        else:
            made = self.topology
        found = (made.in_features, made.out_features)
        if found != (in_features, out_features):
            raise ShapeError(
                f"the rule's topology is {found[0]} -> {found[1]}, the layer is {in_features} -> {out_features}"
            )
        return made.with_rank(1) if isinstance(made, Topology) and not made.bonds else made


Given = str | Topology | Network | Rule | Mapping[str, Any]


def _rule_of(given: object) -> Rule | None:
    """A Rule from what a person writes; None for "skip"."""
    if given == SKIP:
        return None
    if isinstance(given, Rule):
        return given
    if isinstance(given, str | Topology | Network):
        return Rule(given)
    if isinstance(given, Mapping):
        known = [field.name for field in dataclasses.fields(Rule)]
        for word in given:
            if word not in known:
                raise TN4NNError(f"{word!r} is no setting of a rule." + nearest(str(word), known))
        return Rule(**given)
    raise TN4NNError(
        f"a rule is 'skip', a topology's name, a Topology, a Network, a Rule or a dict of its settings, "
        f"received {type(given).__name__}"
    )


# -- which layers -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class _Found:
    """One weight of the model that some kind of layer holds, and every layer that holds it.

    `members` are modules, the first is the one that is read; `names` are all names of each.
    """

    kind: Kind
    weight: nn.Parameter
    members: list[nn.Module]
    names: list[list[str]]
    rule: Rule | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        return self.names[0][0]

    @property
    def label(self) -> str:
        also = [name for names in self.names for name in names][1:]
        return (self.name or "(model)") + (f" = {', '.join(also)}" if also else "")

    @property
    def features(self) -> tuple[int, int]:
        out, ins = self.kind.matrix(self.weight).shape
        return ins, out

    def matrix(self) -> NDArray[Any]:
        """W in float32, or float64 where the weight is."""
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        return self.kind.matrix(self.weight.detach()).to(device="cpu", dtype=wide).numpy().copy()


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
        one = found.setdefault(id(weight), _Found(kind, weight, [], []))
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
                    one.reason = one.reason or "nn.MultiheadAttention reads its weight past the layer"


def _apply_rules(model: nn.Module, found: list[_Found], rules: Mapping[str, Given], protect_head: bool) -> None:
    """Gives each weight its rule or the reason why it has none."""
    parsed = {pattern: _rule_of(given) for pattern, given in rules.items()}
    _check_patterns(model, found, parsed)
    head = _head(model, found) if protect_head and len(found) > 1 else None
    for one in found:
        every = [name for names in one.names for name in names]
        chosen = [_first(parsed, names) for names in one.names]
        first = next((pattern for pattern in chosen if pattern is not None), None)
        if first is None:
            one.reason = one.reason or "no rule names it"
        elif any(pattern is not None and parsed[pattern] is None for pattern in chosen):
            one.reason = "the rules skip it"
        elif any(member is head for member in one.members) and not any(name in parsed for name in every):
            one.reason = one.reason or "the head is protected: name it in full, or protect_head=False"
        elif not one.reason:
            one.rule = parsed[first]


def _first(parsed: Mapping[str, Rule | None], names: Sequence[str]) -> str | None:
    return next((p for p in parsed if any(fnmatch.fnmatchcase(name, p) for name in names)), None)


def _check_patterns(model: nn.Module, found: list[_Found], parsed: Mapping[str, Rule | None]) -> None:
    layers = [name for one in found for names in one.names for name in names]
    everything = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern, rule in parsed.items():
        if fnmatch.filter(layers, pattern):
            continue
        others = fnmatch.filter(everything, pattern)
        if others and rule is None:
            continue
        if others:
            kind = type(model.get_submodule(others[0])).__name__
            raise TN4NNError(
                f"rule {pattern!r} matches no layer that can be converted: {others[0] or 'the model'!r} is a {kind}. "
                "Linear, Conv2d, Embedding and Conv1D can"
            )
        raise TN4NNError(f"rule {pattern!r} matches no layer of this model." + nearest(pattern, layers))


def _head(model: nn.Module, found: list[_Found]) -> nn.Module | None:
    """What the model itself calls its output embeddings (Hugging Face), else its last linear layer."""
    told: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(told, nn.Module):
        return told
    linear = [m for m in model.modules() if (kind := kind_of(m)) is not None and kind.name in ("Linear", "Conv1D")]
    return linear[-1] if linear else None


# -- what the layers see ----------------------------------------------------------------------------------------


class _Seen:
    """The mean of x x^T over the rows that meet a matrix."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.rows = 0

    def add(self, rows: Tensor) -> None:
        rows = rows.detach().to(torch.float32)
        product = (rows.T @ rows).double().cpu()
        self.total = product if self.total is None else self.total + product
        self.rows += len(rows)

    def covariance(self) -> NDArray[Any] | None:
        """E[x x^T], None where nothing came by."""
        if self.total is None or not self.rows:
            return None
        mean = self.total.numpy() / self.rows
        return np.asarray((mean + mean.T) / 2)


def _batches(inputs: object) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """(args, kwargs) of each call of the model."""
    if isinstance(inputs, list):
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


def _calibrate(model: nn.Module, chosen: list[_Found], inputs: object) -> dict[int, NDArray[Any]]:
    """Position in `chosen` -> covariance of what the matrix sees. Not for embeddings, nor for weights that are tied
    across a transposition, whose two sides see different spaces."""
    seen: dict[int, _Seen] = {}
    handles = []
    for i, one in enumerate(chosen):
        kinds = [kind_of(member) for member in one.members]
        rows = one.kind.rows
        if rows is None or any(kind is None or kind.transposed != one.kind.transposed for kind in kinds):
            continue
        seen[i] = _Seen()
        for member in one.members:
            hook = _watcher(seen[i], rows)
            handles.append(member.register_forward_pre_hook(hook))
    try:
        with _evaluating(model):
            for args, kwargs in _batches(inputs):
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    found = {i: watched.covariance() for i, watched in seen.items()}
    return {i: covariance for i, covariance in found.items() if covariance is not None}


def _watcher(seen: _Seen, rows: Callable[[Any, Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args:
            seen.add(rows(module, args[0]))

    return watch


# -- the plan ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight of the model and what becomes of it.

    Attributes:
        name: of the layer; of all layers that hold the weight, where it is shared.
        kind: "Linear", "Conv1D", "Conv2d" or "Embedding".
        shape: of the weight.
        topology: what it is put on, "" where it is left.
        before: parameters of the weight.
        after: parameters of the network.
        macs_before: multiply-adds for `batch` rows (of a convolution: places), forward.
        macs_after: the same of the network.
        time: predicted time of a forward pass of that batch, over that of the dense layer by the same cost model.
        error: ||W - W'|| / ||W||; None where it is left.
        output_error: of the outputs on the calibration inputs, None without them.
        converted: whether a network takes its place.
        reason: why not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    topology: str
    before: int
    after: int
    macs_before: int
    macs_after: int
    time: float | None
    error: float | None
    output_error: float | None
    converted: bool
    reason: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ConversionPlan:
    """What converting would do: printing it gives a table, `run()` does it. It holds the new weights, not the model's.

    Attributes:
        rows: one for each weight of a layer that can be converted.
        batch: what the multiply-adds are for.
        budget: parameters that the layers with a rule may have together, None where each rule has its own.
    """

    rows: tuple[Row, ...]
    batch: int
    budget: int | None
    _model: nn.Module
    _made: tuple[tuple[_Found, Decomposition], ...]
    _phase: str

    @property
    def params_before(self) -> int:
        """Parameters of the weights that are converted."""
        return sum(row.before for row in self.rows if row.converted)

    @property
    def params_after(self) -> int:
        """Parameters of their networks."""
        return sum(row.after for row in self.rows if row.converted)

    def run(self) -> nn.Module:
        """The model with networks in it, a copy that shares nothing with the source."""
        memo: dict[int, Any] = {}
        for found, result in self._made:
            _replace(found, result, self._phase, memo)
        return copy.deepcopy(self._model, memo)

    def __repr__(self) -> str:
        head = ("layer", "kind", "shape", "onto", "params", "-> params", "MACs", "-> MACs", "time", "error", "outcome")
        table = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        left = (0, 1, 2, 3, 10)
        lines = [
            "  ".join(
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        ]
        return "\n".join([*(line.rstrip() for line in lines), self._footer()])

    __str__ = __repr__

    def _footer(self) -> str:
        count = sum(row.converted for row in self.rows)
        budget = "" if self.budget is None else f", budget {self.budget:,} for all layers with a rule"
        ratio = f" ({self.params_before / self.params_after:.3g}x fewer)" if self.params_after else ""
        return (
            f"{count} of {len(self.rows)} weights converted: {self.params_before:,} -> {self.params_after:,} "
            f"parameters{ratio}{budget}; MACs and time at batch {self.batch}, forward"
        )


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: int) -> str:
        return f"{value:,}" if row.converted else "-"

    error = row.error if row.output_error is None else row.output_error
    return (
        row.name, row.kind, "x".join(map(str, row.shape)), row.topology or "-", f"{row.before:,}", number(row.after),
        f"{row.macs_before:,}", number(row.macs_after), "-" if row.time is None else f"{row.time:.2f}x",
        "-" if error is None else f"{error:.3f}" + ("" if row.output_error is None else " out"),
        "convert" if row.converted else f"skip: {row.reason}",
    )  # fmt: skip


def plan_conversion(
    model: nn.Module,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    *,
    inputs: object = None,
    batch: int = 32,
    protect_head: bool = True,
    phase: str = "train",
    seed: int = 0,
) -> ConversionPlan:
    """The dry run of `convert`, which says what the arguments are: the same work and the same errors, but for copying
    the model. `print` shows a table, `.run()` makes the model.

    Example:
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
    wanted = rules if isinstance(rules, Mapping) and not _is_settings(rules) else {"*": rules}
    found = _survey(model)
    if not found:
        raise TN4NNError("this model has no layer that can be converted: Linear, Conv2d, Embedding and Conv1D can")
    _apply_rules(model, found, wanted, protect_head)
    chosen = [one for one in found if one.rule is not None]
    for one in chosen:
        if one.weight.is_meta:
            raise BackendError(
                f"layer {one.name!r} is on the meta device and has no numbers to decompose: load its weights first "
                "(model.to_empty(device='cpu'), then load_state_dict)"
            )
    seen = {} if inputs is None else _calibrate(model, chosen, inputs)
    total = _checked_total(budget, chosen)
    results = _decomposed(chosen, seen, total, seed)
    rows = [_row(one, results.get(id(one)), batch) for one in found]
    made = tuple((one, results[id(one)]) for one, row in zip(found, rows, strict=True) if row.converted)
    return ConversionPlan(tuple(rows), batch, total, model, made, phase)


def _is_settings(given: Mapping[str, Any]) -> bool:
    return "topology" in given


def _checked_total(budget: float | None, chosen: list[_Found]) -> int | None:
    if budget is None:
        lacking = [one.name for one in chosen if one.rule is not None and one.rule.shares and _has_bonds(one)]
        if lacking:
            raise BudgetError(
                f"nothing says how large layer {lacking[0]!r} may become: give budget=, or rank=, params= or error= in "
                "its rule",
                1,
            )
        return None
    if isinstance(budget, float) and 0 < budget < 1:
        return max(1, math.floor(budget * sum(one.weight.numel() for one in chosen)))
    return checked_budget(budget, "parameters (or a share below 1)")


def _has_bonds(one: _Found) -> bool:
    assert one.rule is not None
    with _naming(one):
        return isinstance(one.rule.onto(*one.features), Topology)


@contextlib.contextmanager
def _naming(one: _Found) -> Iterator[None]:
    """Puts the layer's name before what goes wrong."""
    try:
        yield
    except TN4NNError as error:
        error.args = (f"layer {one.name!r}: {error}", *error.args[1:])
        raise


def _decomposed(
    chosen: list[_Found], seen: Mapping[int, NDArray[Any]], total: int | None, seed: int
) -> dict[int, Decomposition]:
    """id of a found weight -> its decomposition; weights that the budget leaves dense have none."""
    results: dict[int, Decomposition] = {}
    sharing: list[int] = []
    for i, one in enumerate(chosen):
        assert one.rule is not None
        with _naming(one):
            onto = one.rule.onto(*one.features)
            if isinstance(onto, Topology) and one.rule.shares:
                sharing.append(i)
            else:
                given = isinstance(onto, Topology) or isinstance(one.rule.topology, Network)
                results[id(one)] = _decompose(one, onto, one.rule.own if given else {}, seen.get(i), seed)
    if sharing:
        assert total is not None
        fixed = sum(
            min(results[id(one)].network.num_params, one.weight.numel()) for one in chosen if id(one) in results
        )
        _spread_out([chosen[i] for i in sharing], [seen.get(i) for i in sharing], total, fixed, seed, results)
    elif total is not None:
        _check_fixed(chosen, results, total)
    return results


def _check_fixed(chosen: list[_Found], results: Mapping[int, Decomposition], total: int) -> None:
    spent = sum(min(results[id(one)].network.num_params, one.weight.numel()) for one in chosen)
    if spent > total:
        raise BudgetError(f"the rules' own sizes come to {spent:,} parameters, above the budget of {total:,}", spent)


def _spread_out(
    sharing: list[_Found],
    seen: list[NDArray[Any] | None],
    total: int,
    fixed: int,
    seed: int,
    results: dict[int, Decomposition],
) -> None:
    """Decomposes the layers that share what is left of the budget; what one leaves over goes to the next."""
    topologies, curves = {}, {}
    for i, one in enumerate(sharing):
        assert one.rule is not None
        with _naming(one):
            onto = one.rule.onto(*one.features)
            assert isinstance(onto, Topology)
            topologies[i] = onto
            curves[str(i)] = loss_curve(one.matrix(), onto, seen[i], _ordering(one))
    try:
        shares = spread(curves, total - fixed)
    except BudgetError as error:
        raise BudgetError(
            f"a budget of {total:,} parameters cannot be met: the smallest feasible one is {error.smallest + fixed:,}",
            error.smallest + fixed,
        ) from None
    over = 0
    for i in sorted(topologies, key=lambda i: shares[str(i)]):
        one, room = sharing[i], shares[str(i)] + over
        if room >= one.weight.numel():
            over = room - one.weight.numel()
            one.reason = "the budget leaves it dense"
            continue
        with _naming(one):
            result = _decompose(one, topologies[i], {"params": room}, seen[i], seed)
        results[id(one)] = result
        over = room - result.network.num_params


def _ordering(one: _Found) -> Ordering | None:
    assert one.rule is not None
    if one.rule.ordering is None:
        return None
    if one.kind.name not in ("Linear", "Conv1D") or len(one.members) > 1:
        raise TopologyError(f"an ordering is for linear layers that share their weight with none, not for {one.label}")
    return ordering_of(one.rule.ordering, one.features[0])


def _decompose(
    one: _Found, onto: Topology | Network, size: Mapping[str, Any], seen: NDArray[Any] | None, seed: int
) -> Decomposition:
    w = one.matrix()
    kind = str(w.dtype)
    assert one.rule is not None
    options: dict[str, Any] = {"ordering": _ordering(one), "seed": seed, "dtype": kind, "compare_random": False}
    options["method"] = one.rule.method
    return decompose(w, onto, inputs=seen, **size, **options)


def _row(one: _Found, result: Decomposition | None, batch: int) -> Row:
    ins, out = one.features
    before = one.weight.numel()
    gathers = one.kind.rows is None
    macs = 0 if gathers else batch * before
    network = None if result is None else result.network
    if network is not None and network.num_params >= before:
        one.reason = f"no gain: {network.num_params:,} parameters"
        network = None
    if network is None or result is None:
        shape = tuple(one.weight.shape)
        return Row(one.label, one.kind.name, shape, "", before, before, macs, macs, None, None, None, False, one.reason)
    form: Any = "gather" if gathers else "apply"
    cost = plan(network, batch, "forward", form=form).cost
    whole = None if gathers else plan(dense(ins, out).with_rank(1), batch, "forward").cost.predicted_s
    return Row(
        name=one.label,
        kind=one.kind.name,
        shape=tuple(one.weight.shape),
        topology=network.topology.name,
        before=before,
        after=network.num_params,
        macs_before=macs,
        macs_after=cost.macs,
        time=None if whole is None else cost.predicted_s / whole,
        error=result.error,
        output_error=result.output_error,
        converted=True,
        reason="",
    )


# -- doing it ---------------------------------------------------------------------------------------------------


def _replace(found: _Found, result: Decomposition, phase: str, memo: dict[int, Any]) -> None:
    """Makes the new layers of a weight and puts them into the memo of the copy, where they stand for the old ones."""
    first: _Planned | None = None
    for member in found.members:
        kind = kind_of(member)
        assert kind is not None
        network = result.network if kind.transposed == found.kind.transposed else _transposed(result.network)
        made = _layer(kind, member, network, result, phase)
        if first is None:
            first = made
            for core in made.cores():
                core.requires_grad_(found.weight.requires_grad)
        else:
            for name in network.shapes:
                made._parameters[name] = first._parameters[name]
        memo[id(member)] = made
        bias: Any = member._parameters.get("bias")
        made._parameters["bias"] = copy.deepcopy(bias, memo)
        carry_over(member, made, kind.keeps, memo)


def _layer(kind: Kind, module: nn.Module, network: Network, result: Decomposition, phase: str) -> _Planned:
    weight: Any = module._parameters["weight"]
    layer = kind.layer(module, network, result.ordering)
    weights = dict(result.weights)
    if any(spec.name == "bias" for spec in layer.own_specs()):
        weights["bias"] = np.zeros(network.out_features, dtype=np.float32)  # the old one takes its place
    return kind.make(layer, weights=weights, phase=phase, device=weight.device, dtype=weight.dtype)


def _transposed(network: Network) -> Network:
    """The network of W^T: the same cores, inputs and outputs exchanged."""
    t = network.topology
    turned = dataclasses.replace(
        t, inputs=t.outputs, outputs=t.inputs, in_features=t.out_features, out_features=t.in_features
    )
    return Network(turned, network.ranks)


def convert(
    model: nn.Module,
    rules: Given | Mapping[str, Given],
    budget: float | None = None,
    *,
    inputs: object = None,
    batch: int = 32,
    protect_head: bool = True,
    phase: str = "train",
    seed: int = 0,
) -> nn.Module:
    """A copy of a trained model with tensor networks in the place of its layers, each near the layer that stood there.

    nn.Linear, nn.Conv2d, nn.Embedding and Hugging Face's Conv1D become TNLinear, TNConv2d and TNEmbedding: ordinary
    modules with ordinary parameters, so that an ordinary loop trains them on. Kept are device, dtype (float16 and
    bfloat16 are decomposed in float32), hooks, train and eval mode, requires_grad, shared modules and tied weights
    (an embedding and the head it is tied to share their cores). The source is not touched.

    Args:
        model: any module.
        rules: patterns of layer names (as for a shell; the first that matches holds) to what they are put on: the
            name of a topology, a Topology, a Network (ranks and all), a `Rule` or a dict of its settings, or "skip".
            One of these alone holds for every layer.
        budget: parameters that all layers with a rule may have together, counted once where they share, biases left
            out; or a share below 1 of what they have now. It is spread by error per parameter, so that the product
            of what the layers keep (1 - squared relative error) is large; a layer may end up dense.
        inputs: a calibration batch that the model is run on (eval mode, no gradients): a tensor, a tuple of
            arguments, a dict of keyword arguments, or a list of these. The errors of the layers' outputs are then made
            small instead of those of their weights. Embeddings are not calibrated.
        batch: what the table counts multiply-adds for.
        protect_head: leave the last linear layer (Hugging Face: the output embeddings) alone, unless a rule names it in
            full.
        phase: "train" or "forward": what the new layers plan for.
        seed: of random starts.

    See also:
        `plan_conversion`, with the same arguments, for a table of what this would do, from which `run()` goes on.

    Raises:
        TN4NNError: a pattern that matches nothing, with the nearest names; a rule that is none.
        BackendError: a layer on the meta device.
        BudgetError: a budget that cannot be met, or a layer that nothing gives a size.
        ShapeError: a topology of another size than its layer.
        DataError: weights that are NaN, infinite or all zero.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = convert(model, {"0": "mpo"}, budget=1000)
        >>> type(small[0]).__name__, sum(p.numel() for p in small[0].parameters()) <= 1064
        ('TNLinear', True)
    """
    options: dict[str, Any] = {"inputs": inputs, "batch": batch, "protect_head": protect_head, "phase": phase}
    return plan_conversion(model, rules, budget, seed=seed, **options).run()


def undo(model: nn.Module) -> nn.Module:
    """A copy of a model with dense layers in the place of those on networks: nn.Linear, nn.Conv2d and nn.Embedding,
    with the matrices that the networks now stand for (what was lost stays lost; Conv1D comes back as nn.Linear).

    Example:
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
    made: dict[tuple[Any, ...], nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, _Planned):
            bias: Any = copy.deepcopy(module.bias_or_none, memo)
            new = dense_module(module, _dense_weight(module, made), bias)
            memo[id(module)] = new
            carry_over(module, new, (), memo)
    return copy.deepcopy(model, memo)


def _dense_weight(module: _Planned, made: dict[tuple[Any, ...], nn.Parameter]) -> nn.Parameter:
    """The weight of a layer on a network; layers that share their cores get the same one."""
    cores = module.cores()
    stored = _transposed(module.network) if isinstance(module, TNEmbedding) else module.network
    key = (*map(id, cores), stored.fingerprint)
    if key not in made:
        weight = module.weight.detach().clone(memory_format=torch.contiguous_format)
        made[key] = nn.Parameter(weight, requires_grad=any(core.requires_grad for core in cores))
    return made[key]
