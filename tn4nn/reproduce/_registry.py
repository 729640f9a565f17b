"""Which experiments there are. To add one: a module with `EXPERIMENT`, and its line here."""

from __future__ import annotations

from importlib import import_module

from .. import TN4NNError
from .._base.checks import nearest
from ._experiment import Experiment

# Name -> module in this package, in the order of the page. Imported when asked for.
MODULES: dict[str, str] = {
    "counts": "counts",
    "digits": "digits",
    "fc2": "fc2",
    "fc2-paper": "fc2_paper",
    "lenet5": "lenet5",
    "cost": "cost",
    "order": "order",
    "entangle": "entangle",
    "mpo-fc": "mpo_fc",
    "autorank": "autorank",
    "tnn": "tnn",
    "coord-check": "coord_check",
    "learning-rates": "learning_rates",
    "optimizers": "optimizers",
    "topology": "topology",
    "recover": "recover",
    "search": "search",
    "einsum-space": "einsum_space",
    "vgg16": "vgg16",
    "gpt": "gpt",
    "vit": "vit",
}


def experiments() -> tuple[str, ...]:
    """The names that `run` takes.

    Examples:
        >>> from tn4nn.reproduce import experiments
        >>> experiments()[0]
        'counts'
    """
    return tuple(MODULES)


def experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        TN4NNError: no such experiment; the nearest are named.

    Examples:
        >>> from tn4nn import reproduce
        >>> reproduce.experiment("counts").title
        'Exact parameter counts'
    """
    if name not in MODULES:
        raise TN4NNError(f"unknown experiment {name!r}." + nearest(name, MODULES))
    found: Experiment = import_module(f".{MODULES[name]}", __package__).EXPERIMENT
    return found
