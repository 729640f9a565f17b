"""Backend-agnostic training: one loop, the framework only behind the `Trainer` protocol.

Everything random is drawn from the seed in numpy (weights, validation split, order of samples), so torch and
jax see the same numbers in the same order. Steps run in chunks; the device is waited for between chunks, to
show progress, to write a checkpoint, or at the end of an epoch, and never between the steps of a chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .._base.hashing import digest, fingerprint_of
from .._model.backend import Trainer
from .._model.layers import Layer
from .autorank import AutoRank, managed
from .bar import progress_bar
from .checkpoint import Checkpoint
from .data import Dataset
from .loop import Loop
from .pairs import Pair, checked_pair, split
from .results import Epoch, Run
from .schedule import Schedule
from .settings import TrainSettings


def train(
    model: Layer,
    data: Dataset | Pair,
    *,
    backend: str = "torch",
    seed: int = 0,
    epochs: int = 10,
    batch_size: int = 100,
    validation: float | Pair | None = 0.1,
    test: Pair | None = None,
    optimizer: str = "adam",
    lr: float = 1e-3,
    schedule: Schedule = "cosine",
    warmup: int = 0,
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float | Mapping[str, float] = 0.0,
    lr_factors: str | Mapping[str, float] = "structure",
    loss: str = "cross_entropy",
    precision: str = "float32",
    device: str | None = None,
    weights: Mapping[str, NDArray[Any]] | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    progress: bool = False,
    callback: Callable[[Epoch, Trainer], None] | None = None,
    ranks: AutoRank | None = None,
) -> Run:
    """Trains a model on any backend.

    Args:
        model: the layer graph.
        data: a Dataset, or (x, y): x of shape (samples, features...), y integer labels of shape (samples,) for
            "cross_entropy" or targets of the output's shape for "mse".
        backend: "torch", "jax", or a third party's.
        seed: of initial weights, split, order of samples and dropout.
        epochs: passes over the training split.
        batch_size: rows of a step; the last step of an epoch takes what is left.
        validation: share of the data that is split off, or (x, y), or None.
        test: (x, y), looked at once, after the last step; that of a Dataset is taken by itself.
        optimizer: "sgd", "adam" or "adamw" (torch.optim and optax).
        lr: the largest learning rate.
        schedule: see `learning_rates`: "cosine", "constant", "linear", ("exponential", 0.99), ...
        warmup: steps of linear rise.
        momentum: of sgd.
        nesterov: of sgd.
        betas: of adam and adamw.
        eps: of adam and adamw.
        weight_decay: a number for all cores (biases and norms are left alone), or patterns of weight names
            with a number each, e.g. {"0.*": 1e-4}. L2 for sgd and adam, decoupled for adamw.
        lr_factors: "structure" (`Network.lr_factors`: one step moves each layer's output as it would move that
            of a dense one, whose factor is 1), "none", or patterns of weight names with a factor each.
        loss: "cross_entropy" or "mse".
        precision: "float32", "float64", or "bf16" (float32 weights, bfloat16 arithmetic).
        device: the framework's own word.
        weights: where to start (default: model.init(seed)).
        patience: epochs without a better validation score after which training stops.
        checkpoint: file that is written every `checkpoint_every` steps and at the end of each epoch.
        checkpoint_every: steps.
        resume: go on from the checkpoint file where it is there; the result is the same to the bit.
        progress: show a bar with loss, accuracy and samples/s.
        callback: called after each epoch with its Epoch and the Trainer.
        ranks: move ranks between the bonds of all layers during training, see `AutoRank`; `run.model` is then another
            model than the one that was given, and the best weights are looked for after the last change. Not with
            `checkpoint`.

    Raises:
        DataError: NaN, labels out of range, no rows, x and y of different length.
        ShapeError: data that does not fit the model.
        CheckpointError: a checkpoint that cannot be read or belongs to another run.
        BudgetError: networks that are above the budget of `ranks` at the start.

    Example:
        >>> import numpy as np, tn4nn as tn
        >>> x = np.random.default_rng(0).normal(size=(200, 16)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int64")
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(4)), tn.ReLU(), tn.Linear(16, 2))
        >>> run = tn.train(model, (x, y), epochs=20, batch_size=20, lr=0.01)
        >>> run.accuracy >= 80
        True
    """
    settings = TrainSettings(
        backend=backend, seed=seed, epochs=epochs, batch_size=batch_size, optimizer=optimizer, lr=lr,
        schedule=schedule, warmup=warmup, momentum=momentum, nesterov=nesterov, betas=betas, eps=eps,
        weight_decay=weight_decay, lr_factors=lr_factors, loss=loss, precision=precision, device=device,
        patience=patience, checkpoint=checkpoint, checkpoint_every=checkpoint_every, ranks=ranks,
    )  # fmt: skip
    model.require_ranks()
    if ranks is not None:
        managed(model, ranks)
    if isinstance(data, Dataset):
        test = (data.x_test, data.y_test) if test is None else test
        data = (data.x_train, data.y_train)
    everything = checked_pair(model, data, loss, "training data")
    fitting, held_out = split(model, everything, validation, seed, loss)
    tested = None if test is None else checked_pair(model, test, loss, "test data")
    start = model.init(seed) if weights is None else dict(weights)
    model.check(start)
    stored = _checkpoint(settings, model, start, fitting, held_out)
    loop = Loop(settings, model, settings.trainer(model, start), fitting, held_out, stored)
    if resume:
        loop.resume()
    with progress_bar(progress, len(loop.rates)) as show:
        loop.run(show, callback)
    return loop.result(tested)


def _checkpoint(
    settings: TrainSettings, model: Layer, start: Mapping[str, NDArray[Any]], fitting: Pair, held_out: Pair | None
) -> Checkpoint | None:
    """The checkpoint of a run, under a hash of everything that decides the run."""
    if settings.checkpoint is None:
        return None
    arrays = [digest(*pair) for pair in (fitting, held_out or (), tuple(start.values()))]
    spec, rates = dataclasses.asdict(settings.spec(model)), settings.rates(len(fitting[0]))
    identity = fingerprint_of([model.fingerprint, settings.backend, spec, rates, *arrays])
    return Checkpoint(Path(settings.checkpoint), identity, settings.checkpoint_every)
