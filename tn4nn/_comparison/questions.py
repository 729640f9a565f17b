"""From the arguments of `compare` to a subject and its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from .._base.checks import at_least, nearest, one_of
from .._base.errors import TN4NNError
from .._graph.catalogue import canonical_name
from .._graph.topology import Topology
from .._model.backend import backend, installed_backends
from .._model.foreign import foreign
from .._model.layers import Layer
from .._training.data import Dataset
from .._training.data import load as load_data
from .._training.splits import Arrays
from .._training.tasks import Task, classification
from .families import Asked
from .layer_graphs import LayerGraphs
from .modules import Fit, Modules
from .settings import Settings, checked_backends, checked_budgets, defaults_for
from .spread import SPREADS
from .topologies import Candidate, Given, TwoLayers, candidates_for
from .variants import Subject
from .workers import check_sent

DEFAULT_TOPOLOGIES = ("dense", "low_rank", "mpo", "ring", "tree", "peps", "tucker", "cp", "btt")
ALWAYS = ("dense", "narrow", "low_rank")  # the rows of every model that a person gives
_QUARTER = 0.25

OWN = "own"  # the task of a person's own `fit`, which knows its data


@dataclasses.dataclass(frozen=True)
class Question:
    """What is compared, whatever the model.

    Attributes:
        topologies: as for `compare`.
        budget: as for `compare`, in any unit; None for the default.
        backends: as for `compare`.
        sites: as for `compare`.
    """

    topologies: Given | Sequence[Given]
    budget: float | Sequence[float] | None
    backends: str | Sequence[str] | None
    sites: int | None

    @property
    def listed(self) -> tuple[Given, ...]:
        """The topologies, one after the other."""
        given = self.topologies
        return (given,) if isinstance(given, str | Topology | Candidate) else tuple(given)


def two_layers(
    question: Question, data: str | Dataset, hidden: int | None, head: str, options: Mapping[str, Any]
) -> tuple[Subject, Settings]:
    """The model of two layers on a data set.

    Raises:
        TN4NNError: see `compare`.
    """
    loaded = data if isinstance(data, Dataset) else load_data(data)
    default = defaults_for(loaded.name)
    settings = Settings(
        **{
            "epochs": default.epochs,
            "batch_size": default.batch_size,
            **options,
            "data": data if isinstance(data, str) else loaded.name,
            "hidden": default.hidden if hidden is None else hidden,
            "head": head,
            "budgets": checked_budgets(question.budget, default.budget),
            "backends": checked_backends(question.backends),
        }
    )
    neurons = settings.hidden or default.hidden
    candidates = candidates_for(question.listed, loaded, neurons, question.sites, head)
    if any(c.head is None for c in candidates):
        settings = dataclasses.replace(settings, head="dense")
    if settings.budget_of not in ("params", "macs"):
        raise TN4NNError(f"{settings.budget_of}= is a budget of a model's layers: give model=, or budget= or macs=")
    if settings.budget_of == "macs" and settings.head != "dense":
        raise TN4NNError("macs= counts those of the hidden layer alone: give head='dense', and no budget=")
    budgets = tuple(int(budget) for budget in settings.budgets)
    return TwoLayers(candidates, loaded, neurons, budgets, settings.macs_batch), settings


@dataclasses.dataclass(frozen=True)
class Own:
    """A person's model, as the arguments of `compare` give it.

    Attributes:
        model: see `compare`, as are the others.
        where: see above.
        task: see above.
        fit: see above.
        start: see above.
        spread: see above.
        scale: see above.
    """

    model: Any
    where: str | Sequence[str] | None
    task: Task | Dataset | None
    fit: Fit | None
    start: str
    spread: str
    scale: Mapping[str, Sequence[int]] | None


def of_model(question: Question, own: Own, options: Mapping[str, Any]) -> tuple[Subject, Settings]:
    """A person's model: a layer graph, or a function that makes one or a module.

    Raises:
        TN4NNError: see `compare`.
    """
    one_of(own.spread, SPREADS, "spread")
    one_of(own.start, ("fresh", "decompose"), "start")
    framework = None if isinstance(own.model, Layer) else _framework_of(own.model)
    if framework is None and own.fit is not None:
        raise TN4NNError("fit= trains a module: give model= as a function that makes one; layer graphs train by task=")
    if framework is not None and options.get("weight_norm"):
        raise TN4NNError(
            "weight_norm= is for layer graphs, and the model is a module: for one of torch, give a fit= that trains "
            "tn4nn_torch.weight_norm(model)"
        )
    task, make = _task_of(own, framework), cast(Any, own.model)
    settings = Settings(
        **{
            "epochs": 10,
            "batch_size": 32,
            **options,
            "data": task.name,
            "hidden": None,
            "head": "dense",
            "budgets": checked_budgets(question.budget, _QUARTER, shares=True),
            "backends": checked_backends(question.backends if framework is None else [framework]),
        }
    )
    if framework is not None:
        check_sent(settings.jobs, model=make, fit=own.fit)
    given = question.backends
    if framework is not None and given is not None and [given] != [framework] and list(given) != [framework]:
        raise TN4NNError(f"the model is a module of {framework}: expected backends=[{framework!r}], received {given!r}")
    asked = Asked(
        where=(own.where,) if isinstance(own.where, str) else tuple(own.where or ()),
        task=task,
        topologies=_with_those_that_are_always_there(question.listed),
        budgets=settings.budgets,
        budget_of=settings.budget_of,
        how=own.spread,
        batch=settings.batch_size,
        backend=settings.backends[0],
        device=settings.device,
        dtype=settings.dtype,
        sites=question.sites,
        widths=widths_of(own.scale),
    )
    if framework is None:
        return LayerGraphs(own.model, asked), settings
    return Modules(make, asked, own.start, own.fit), settings


def _framework_of(model: Any) -> str | None:
    """The backend of the modules that a function makes; None where it makes layer graphs.

    Raises:
        TN4NNError: it is no function, or makes something else.
    """
    if not callable(model):
        raise TN4NNError(
            f"model: expected a layer graph (as tn.presets.gpt()), or a function that makes one, an nn.Module, an "
            f"Equinox module or one of flax's nnx, received {type(model).__name__}"
        )
    made = model()
    if isinstance(made, Layer):
        return None
    for name in installed_backends():
        if getattr(backend(name), "foreign", None) is not None and foreign(name).owns(made):
            return name
    raise TN4NNError(
        f"model: the function made a {type(made).__name__}, expected a layer graph, an nn.Module, an Equinox module or "
        "one of flax's nnx"
    )


def _task_of(own: Own, framework: str | None) -> Task:
    if isinstance(own.task, Dataset):
        return classification(own.task)
    if isinstance(own.task, Task):
        return own.task
    if own.task is None and own.fit is not None and framework is not None:
        nothing = np.empty(0)
        return Task(OWN, "mse", "loss", Arrays(nothing, nothing), None, None, (), ())
    raise TN4NNError(
        f"expected task= as a Task, received {type(own.task).__name__}: tn.classification(x, y), tn.regression(x, y) "
        "or tn.language_model(text, context=64) makes one"
    )


def _with_those_that_are_always_there(given: Sequence[Given]) -> tuple[str | Topology, ...]:
    names: list[str | Topology] = list(ALWAYS)
    for one in given:
        if isinstance(one, Candidate):
            raise TN4NNError(f"a Candidate is for the model of two layers, received {one.name!r}: give a Topology")
        name = one if isinstance(one, Topology) or one == "narrow" else canonical_name(one)
        if name not in names:
            names.append(name)
    twice = [n for n in map(_name, names) if [*map(_name, names)].count(n) > 1]
    if twice:
        raise TN4NNError(f"topology names must be unique in a table, received twice: {twice[0]}")
    return tuple(names)


def _name(one: str | Topology) -> str:
    return one if isinstance(one, str) else one.name


def widths_of(scale: Mapping[str, Sequence[int]] | None) -> tuple[int, ...]:
    """The ladder of widths.

    Raises:
        TN4NNError: something else than widths.
    """
    if scale is None:
        return ()
    for word in scale:
        if word != "width":
            raise TN4NNError(f"scale: {word!r} cannot be a ladder." + nearest(word, ["width"]))
    widths = tuple(dict.fromkeys(scale["width"]))
    at_least(1, **{f"width {i}": width for i, width in enumerate(widths)})
    return widths
