"""What is compared: topologies by name, of one's own, or out of a file, and the model made of each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from .._base.checks import read_json
from .._base.errors import BudgetError, TN4NNError, TopologyError
from .._base.reading import toml_of
from .._graph.catalogue import build, canonical_name, catalogue
from .._graph.network import Network
from .._graph.problem import min_macs
from .._graph.topology import Topology
from .._model.budget import with_budget
from .._model.layers import Layer, Linear, ReLU, Sequential
from .._training.data import Dataset
from .._training.tasks import Task, classification
from .variants import DENSE, TOPOLOGY, Infeasible, Variant


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is compared under one name.

    Attributes:
        name: in the table.
        hidden: of the hidden layer.
        head: of the last layer; None for a dense one.

    Examples:
        >>> import tn4nn as tn
        >>> hidden, head = tn.ring((8, 8), (8, 8)), tn.mpo((8, 8), (2, 5))
        >>> tn.Candidate("ring, then MPO", hidden, head).name  # tn.compare([...]) takes it among the names
        'ring, then MPO'
    """

    name: str
    hidden: Topology
    head: Topology | None


Given: TypeAlias = str | Topology | Candidate


def candidates_for(
    topologies: Given | Sequence[Given], data: Dataset, hidden: int, sites: int | None, head: str
) -> list[Candidate]:
    """The candidates, checked against the data. The last layer is dense for all where it is for one."""
    given = [topologies] if isinstance(topologies, str | Topology | Candidate) else topologies
    found = [_candidate(item, data, hidden, sites) for item in given]
    if not found:
        raise TN4NNError(f"no topologies to compare: name some of {', '.join(catalogue())}")
    names = [c.name for c in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise TN4NNError(f"topology names must be unique in a table, received twice: {', '.join(sorted(twice))}")
    for candidate in found:
        _check_features(candidate, data, hidden)
    if head == "dense" or any(c.head is None for c in found):
        return [dataclasses.replace(c, head=None) for c in found]
    return found


def _candidate(given: Given, data: Dataset, hidden: int, sites: int | None) -> Candidate:
    if isinstance(given, Candidate):
        return given
    if isinstance(given, Topology):
        return Candidate(given.name, given, None)
    name = canonical_name(given)
    count = None if name in ("dense", "low_rank") else sites
    return Candidate(
        name, build(name, data.features, hidden, sites=count), build(name, hidden, data.classes, sites=count)
    )


def _check_features(c: Candidate, data: Dataset, hidden: int) -> None:
    if (c.hidden.in_features, c.hidden.out_features) != (data.features, hidden):
        raise TopologyError(
            f"topology {c.name!r} maps {c.hidden.in_features} -> {c.hidden.out_features}, but the hidden layer "
            f"maps {data.features} -> {hidden} (choose the latter with hidden=)"
        )
    if c.head is not None and (c.head.in_features, c.head.out_features) != (hidden, data.classes):
        raise TopologyError(
            f"the head of {c.name!r} maps {c.head.in_features} -> {c.head.out_features}, but the last layer maps "
            f"{hidden} -> {data.classes}"
        )


def is_dense(candidate: Candidate) -> bool:
    """Whether the candidate is the dense reference, which has no ranks to choose."""
    return not candidate.hidden.bonds and len(candidate.hidden.cores) == 1


def model_for(candidate: Candidate, budget: int, classes: int, macs_batch: int | None = None) -> Layer:
    """The model of a candidate, with ranks for a budget of parameters.

    Args:
        candidate: what is compared; the dense reference takes no budget.
        budget: of the compared layers.
        classes: outputs of the model.
        macs_batch: the budget is instead one of multiply-adds for each sample of the hidden layer, counted for this
            batch size.

    Raises:
        BudgetError: a budget that no ranks can meet.
    """
    hidden: Topology | Network = candidate.hidden
    if macs_batch is not None and not is_dense(candidate):
        hidden = candidate.hidden.with_budget(macs=budget * macs_batch, batch=macs_batch)
    last = Linear(hidden.out_features, classes) if candidate.head is None else Linear(candidate.head)
    model = Sequential(Linear(hidden), ReLU(), last)
    if is_dense(candidate) or macs_batch is not None:
        return model
    return with_budget(model, params=budget, count="networks")


@dataclasses.dataclass(frozen=True)
class TwoLayers:
    """A subject: features -> hidden -> classes with one ReLU between, both matrices under one budget.

    Attributes:
        candidates: in the order of the table.
        data: what they learn.
        hidden: neurons between.
        budgets: of parameters, or of multiply-adds.
        macs_batch: see `model_for`.
    """

    candidates: Sequence[Candidate]
    data: Dataset
    hidden: int
    budgets: Sequence[int]
    macs_batch: int | None

    @property
    def task(self) -> Task:
        """See `Subject`."""
        return self._task

    @functools.cached_property
    def _task(self) -> Task:
        return classification(self.data)

    @property
    def reference(self) -> Layer:
        """See `Subject`."""
        return Sequential(Linear(self.data.features, self.hidden), ReLU(), Linear(self.hidden, self.data.classes))

    def variants(self) -> Iterator[Variant | Infeasible]:
        """See `Subject`."""
        for number, budget in enumerate(self.budgets):
            for candidate in self.candidates:
                if is_dense(candidate) and number > 0:  # it is the same for every budget
                    continue
                try:
                    yield self._variant(candidate, budget)
                except BudgetError as error:
                    yield Infeasible(candidate.name, TOPOLOGY, budget, str(error))

    def _variant(self, candidate: Candidate, budget: int) -> Variant:
        model = model_for(candidate, budget, self.data.classes, self.macs_batch)
        compared = ["0"] if candidate.head is None else ["0", "2"]
        networks, dense_networks = model.networks(), self.reference.networks()
        layers = {name: networks[name].num_params for name in compared}
        used: float = sum(layers.values())
        if self.macs_batch is not None:
            used = min_macs(networks["0"], self.macs_batch) / self.macs_batch
        dense = is_dense(candidate)
        budget = round(used) if dense else budget
        role = DENSE if dense else TOPOLOGY
        dense_params = sum(dense_networks[name].num_params for name in compared)
        return Variant(candidate.name, role, budget, model, layers, used, dense_params, self.reference.num_params)


def read_topologies(path: str | Path) -> list[Topology | Candidate]:
    """Topologies out of a .json or .toml file.

    Each entry has a name, `cores` (the text notation), `inputs`, `outputs`, and may have a `head` of the same
    form for the last layer. In TOML::

        [mine]
        cores = "x0 y0 a, x1 y1 a"
        inputs = {x0 = 8, x1 = 8}
        outputs = {y0 = 8, y1 = 8}

    Raises:
        TopologyError: a file that cannot be read, or an entry that is wrong, by its name.

    Examples:
        >>> import pathlib, tempfile, tn4nn as tn
        >>> text = '''[mine]
        ... cores = "x0 y0 a, x1 y1 a"
        ... inputs = {x0 = 8, x1 = 8}
        ... outputs = {y0 = 8, y1 = 8}'''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "mine.toml"
        ...     _ = path.write_text(text)
        ...     tn.read_topologies(path)[0].text
        'core0: x0 y0 a, core1: x1 y1 a'
    """
    where = Path(path)
    try:
        text = where.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TopologyError(f"topologies file {where} cannot be read: {error}") from error
    if where.suffix == ".toml":
        try:
            entries = toml_of(text)
        except ValueError as error:
            raise TopologyError(f"topologies file {where} is not TOML: {error}") from error
    else:
        entries = read_json(text, f"file of topologies ({where})")
    found: list[Topology | Candidate] = []
    for name, entry in entries.items():
        try:
            hidden = Topology.from_dict({**entry, "name": name})
            found.append(Candidate(name, hidden, Topology.from_dict(entry["head"])) if "head" in entry else hidden)
        except (TopologyError, TypeError, AttributeError, ValueError) as error:
            raise TopologyError(f"topologies file {where}, entry {name!r}: {error}") from None
    return found
