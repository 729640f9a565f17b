"""Ranks that change between two epochs of a run, optimizer state and all."""

from __future__ import annotations

from collections.abc import Mapping

from .._base.errors import BackendError
from .._model.backend import Trainer
from .._model.layers import Layer
from .autorank import AutoRank, moved
from .settings import TrainSettings

Ranks = dict[str, dict[str, int]]  # layer -> bond -> rank


def change_ranks(
    model: Layer, trainer: Trainer, auto: AutoRank, settings: TrainSettings, epoch: int
) -> tuple[Layer, Trainer, Ranks]:
    """The model with other ranks, a trainer that goes on with it, and the ranks.

    Raises:
        BackendError: a trainer that cannot say which weight an optimizer's array belongs to.
    """
    slots = getattr(trainer, "slots", None)
    if slots is None:
        raise BackendError("this backend's trainer has no slots(): it cannot carry its state to other ranks")
    named: Mapping[str, tuple[str, int]] = slots()
    changed = moved(model, trainer.weights(), auto, settings.seed + epoch)
    state = {f"weights/{name}": array for name, array in changed.weights.items()}
    for key, array in trainer.state().items():
        if key.startswith("optimizer/"):
            state[key] = changed.moment(named[key][0], array, named[key][1]) if key in named else array
    following = settings.trainer(changed.model, changed.weights)
    following.load(state)
    ranks = {layer: dict(change.network.ranks) for layer, change in changed.changes.items()}
    return changed.model, following, ranks
