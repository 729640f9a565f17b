"""Which weights of a model are converted, and onto what: rules, the names they reach, and the inputs seen there."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .._base.arrays import Array
from .._base.checks import nearest
from .._base.errors import ShapeError, TN4NNError, TopologyError
from .._graph.catalogue import build
from .._graph.network import Network
from .._graph.ordering import Ordering, ordering_of
from .._graph.topology import Topology

SKIP = "skip"
FRESH = "fresh"  # the method that draws weights anew
_UNTRAINED = 256  # entries from which on a distribution can be told


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a layer is converted to. Give at most one of `rank`, `params` and `error`, and none to share a budget.

    Attributes:
        topology: a name out of `tn.catalogue()`, a Topology, or a Network with its ranks.
        sites: of a topology by name; see `tn.build`.
        pairing: of a topology by name; see `tn.build`.
        options: of a topology by name, e.g. {"grid": (2, 3)}.
        rank: of every bond.
        params: parameters of this layer, never more.
        error: largest relative error of this layer.
        ordering: of the inputs of a linear layer, as for `tn.Linear`.
        method: as for `tn.decompose`; "svd" spares the least squares by which calibrated layers are fitted, which takes
            minutes for a transformer, and leaves their work to `refine`. "fresh" fits nothing: it draws weights anew,
            with the variance of the weights that they replace, for a model that is trained from the start.

    Examples:
        >>> from tn4nn_torch import Rule
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
            onto: Topology | Network = build(
                self.topology, in_features, out_features, sites=self.sites, pairing=pairing, **self.options
            )
        else:
            onto = self.topology
        found = (onto.in_features, onto.out_features)
        if found != (in_features, out_features):
            raise ShapeError(
                f"the rule's topology is {found[0]} -> {found[1]}, the layer is {in_features} -> {out_features}"
            )
        return onto.with_rank(1) if isinstance(onto, Topology) and not onto.bonds else onto


Given = str | Topology | Network | Rule | Mapping[str, Any]


def rule_of(given: object) -> Rule | None:
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
                raise TN4NNError(f"{word!r} is not a setting of a rule." + nearest(str(word), known))
        if "topology" not in given:
            raise TN4NNError(f"a rule says onto what: {dict(given)!r} lacks 'topology'")
        return Rule(**given)
    raise TN4NNError(
        f"a rule is 'skip', a topology's name, a Topology, a Network, a Rule or a dict of its settings, "
        f"received {type(given).__name__}"
    )


# -- which weights ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Weight:
    """One weight of a model that some kind of layer holds, and what is known of it without its framework.

    Attributes:
        kind: of the layers, in tables.
        shape: of the weight as it is stored.
        features: (in_features, out_features) of the matrix W.
        names: for each layer that holds it, all names of that layer.
        gathers: whether inputs are numbers of rows, as an embedding's.
        ordered: whether an ordering of the inputs makes sense.
        matrix: gives W, of shape (out_features, in_features), in float32 or float64.
        rule: what it is converted to, None where it stays.
        reason: why it stays.
    """

    kind: str
    shape: tuple[int, ...]
    features: tuple[int, int]
    names: list[list[str]]
    gathers: bool
    ordered: bool
    matrix: Callable[[], Array]
    rule: Rule | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0][0]

    @property
    def label(self) -> str:
        """All of its names."""
        also = self.all_names[1:]
        return (self.name or "(model)") + (f" = {', '.join(also)}" if also else "")

    @property
    def all_names(self) -> list[str]:
        """The names of every layer that holds it."""
        return [name for names in self.names for name in names]

    @property
    def size(self) -> int:
        """Parameters."""
        return math.prod(self.shape)

    def ordering(self) -> Ordering | None:
        """What its rule says of the order of its inputs."""
        if self.rule is None or self.rule.ordering is None:
            return None
        if not self.ordered or len(self.names) > 1:
            raise TopologyError(
                f"an ordering is for linear layers that share their weight with none, not for {self.label}"
            )
        return ordering_of(self.rule.ordering, self.features[0])


def parsed(rules: Given | Mapping[str, Given]) -> dict[str, Rule | None]:
    """Pattern -> Rule, None for "skip"; one rule alone holds for every layer."""
    wanted = rules if isinstance(rules, Mapping) and "topology" not in rules else {"*": rules}
    return {pattern: rule_of(given) for pattern, given in wanted.items()}


def fresh(rules: Given | Mapping[str, Given]) -> dict[str, Given]:
    """The same rules with weights that are drawn, for a model that is trained from the start.

    Raises:
        TN4NNError: a rule that asks for a fit: by its `method`, or by an `error`.

    Examples:
        >>> {pattern: rule.method for pattern, rule in fresh({"0": "mpo", "1": Rule("ring")}).items()}
        {'0': 'fresh', '1': 'fresh'}
    """
    found: dict[str, Given] = {}
    for pattern, rule in parsed(rules).items():
        if rule is not None and rule.method not in ("auto", FRESH):
            raise TN4NNError(
                f"rule {pattern!r}: expected no method, for weights that are drawn, received method={rule.method!r}: "
                "leave it out, or fit the weights with convert"
            )
        if rule is not None and rule.error is not None:
            raise TN4NNError(
                f"rule {pattern!r}: expected rank=, params= or a budget, received error={rule.error!r}: weights that "
                "are drawn keep no error"
            )
        found[pattern] = SKIP if rule is None else dataclasses.replace(rule, method=FRESH)
    return found


def assign(
    weights: Sequence[Weight],
    rules: Mapping[str, Rule | None],
    others: Mapping[str, str],
    can: str,
    head: Weight | None = None,
) -> list[Weight]:
    """Gives each weight its rule or the reason why it has none; returns those that have one.

    Args:
        weights: all there are.
        rules: what `parsed` gave; the first pattern that matches a name holds.
        others: name -> kind of every layer that cannot be converted.
        can: the kinds that can be converted, for errors.
        head: the weight that only its name in full reaches.

    Raises:
        TN4NNError: a pattern that matches nothing, with the nearest names.
    """
    _check_patterns(weights, rules, others, can)
    for one in weights:
        chosen = [_first(rules, names) for names in one.names]
        first = next((pattern for pattern in chosen if pattern is not None), None)
        if first is None:
            one.reason = one.reason or "no rule names it"
        elif any(pattern is not None and rules[pattern] is None for pattern in chosen):
            one.reason = "the rules skip it"
        elif one is head and not any(name in rules for name in one.all_names):
            one.reason = one.reason or "the head is protected: name it in full, or protect_head=False"
        elif not one.reason:
            one.rule = rules[first]
    return [one for one in weights if one.rule is not None]


def _first(rules: Mapping[str, Rule | None], names: Sequence[str]) -> str | None:
    return next((p for p in rules if any(fnmatch.fnmatchcase(name, p) for name in names)), None)


def _check_patterns(
    weights: Sequence[Weight], rules: Mapping[str, Rule | None], others: Mapping[str, str], can: str
) -> None:
    layers = [name for one in weights for name in one.all_names]
    for pattern, rule in rules.items():
        if fnmatch.filter(layers, pattern):
            continue
        inconvertible = fnmatch.filter(others, pattern)
        if inconvertible and rule is None:
            continue
        if inconvertible:
            raise TN4NNError(
                f"rule {pattern!r} matches no layer that can be converted: {inconvertible[0] or 'the model'!r} is a "
                f"{others[inconvertible[0]]}. {can} can"
            )
        raise TN4NNError(f"rule {pattern!r} matches no layer of this model." + nearest(pattern, layers))


def in_a_block(name: str, shape: tuple[int, ...], weights: Sequence[Weight]) -> bool:
    """Whether a layer is one of several that are alike, in blocks that stand one after the other: as the last layer of
    an encoder is, which is no head.

    Examples:
        >>> weights = [Weight("Linear", (4, 8), (8, 4), [[f"layers.{i}.out"]], False, True, list) for i in range(2)]
        >>> in_a_block("layers.1.out", (4, 8), weights), in_a_block("layers.1", (4, 8), weights)
        (True, False)
    """
    pattern = re.sub(r"(?:^|(?<=\.))\d+(?=\\\.)", r"\\d+", re.escape(name))
    if pattern == re.escape(name):
        return False
    alike = (other for one in weights if one.shape == shape for other in one.all_names if other != name)
    return any(re.fullmatch(pattern, other) for other in alike)


def looks_untrained(w: Array) -> bool:
    """Whether a matrix looks as it was drawn: uniform in +-1/sqrt(in_features), as torch and Equinox do, or normal with
    standard deviation 0.02, as transformers does.

    Args:
        w: of shape (out_features, in_features).

    Examples:
        >>> drawn = np.random.default_rng(0).uniform(-0.125, 0.125, (64, 64))
        >>> looks_untrained(drawn), looks_untrained(drawn + np.eye(64))
        (True, False)
    """
    if w.size < _UNTRAINED:
        return False
    variance, noise = float(np.mean(np.square(w, dtype=float))), 6 / math.sqrt(w.size)
    bound = 1 / math.sqrt(w.shape[1])
    if float(np.abs(w).max()) <= 1.01 * bound:
        return abs(variance / (bound**2 / 3) - 1) < noise
    fourth = float(np.mean(np.square(w, dtype=float) ** 2))
    return abs(variance / 0.02**2 - 1) < noise and abs(fourth / variance**2 - 3) < 5 * noise


# -- what the layers see ----------------------------------------------------------------------------------------


class Seen:
    """The mean of x x^T over the rows x that meet a matrix, summed up batch by batch."""

    def __init__(self) -> None:
        self.total: Array | None = None
        self.rows = 0

    def add(self, product: Array, rows: int) -> None:
        """The sum of x x^T over some rows."""
        self.total = product.astype(float) if self.total is None else self.total + product
        self.rows += rows

    def covariance(self) -> Array | None:
        """E[x x^T], None where nothing came by."""
        if self.total is None or not self.rows:
            return None
        mean = self.total / self.rows
        return np.asarray((mean + mean.T) / 2)
