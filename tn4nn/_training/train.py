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

from .._base.checks import one_of
from .._base.hashing import digest, fingerprint_of
from .._model.backend import Trainer, require_one_process
from .._model.layers import Layer
from .autorank import AutoRank, managed
from .bar import progress_bar
from .checkpoint import Checkpoint
from .data import Dataset
from .loop import Loop
from .pairs import Pair, checked_pair, checked_split, held_out
from .results import Epoch, Run
from .schedule import Schedule
from .settings import LOSSES, TrainSettings
from .splits import Arrays, Split
from .tasks import Metric, Task, classification


def train(
    model: Layer,
    data: Task | Dataset | Pair,
    *,
    backend: str = "torch",
    seed: int = 0,
    epochs: int = 10,
    steps: int | None = None,
    evaluate_every: int | None = None,
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
    weight_norm: bool = False,
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
        data: a Task (`tn.classification`, `tn.regression`, `tn.language_model`), a Dataset, or (x, y): x of shape
            (samples, features...), y integer labels of shape (samples,) for "cross_entropy" ((samples, places) where
            the model predicts at every place), or targets of the output's shape for "mse".
        backend: "torch", "jax", or a third party's.
        seed: of initial weights, split, order of samples and dropout.
        epochs: passes over the training split.
        steps: instead of `epochs`: steps of the whole run, which may end within an epoch.
        evaluate_every: steps between two looks at the validation split (default: an epoch); there is one at the end in
            any case. The lines of the history, `patience`, `callback` and `ranks` go by it.
        batch_size: rows of a step; the last step of an epoch takes what is left.
        validation: share of the data that is split off, or (x, y), or None; a Task's own is taken by itself.
        test: (x, y), looked at once, after the last step; that of a Dataset or Task is taken by itself.
        optimizer: "sgd", "adam", "adamw" or "muon". Muon moves each core (a dense matrix is one) by an orthogonal
            matrix whose entries are of the size of AdamW's steps, so that it takes the same rates, and leaves tables,
            biases and norms to AdamW; its momentum is 0.95, Nesterov's.
        lr: the largest learning rate.
        schedule: see `learning_rates`: "cosine", "constant", "linear", ("exponential", 0.99), ...
        warmup: steps of linear rise.
        momentum: of sgd.
        nesterov: of sgd.
        betas: of adam and adamw.
        eps: of adam and adamw.
        weight_decay: a number, or patterns of weight names with a number each, e.g. {"0.*": 1e-4}. L2 for sgd and adam,
            decoupled for adamw and muon. A number leaves biases and norms alone, and is that of W: the cores of a layer
            share it, so that W decays as a dense one does; but adam decays each core by it.
        lr_factors: "structure" (`Network.lr_factors` for this optimizer and `lr`: one step moves each layer's output
            as it would move that of a dense one, whose factor is 1), "none", or patterns of weight names with a factor
            each.
        weight_norm: normalize the cores of networks during training, so that large learning rates serve: each is
            gain * V / max(1, rms(V) / s), s being the standard deviation of its initial entries, with V and the gain
            trained (Qiu et al. 2024, arXiv:2406.06248, for block tensor trains). The weights of the run are those that
            were computed with. Not with `ranks`.
        loss: "cross_entropy" or "mse"; that of a Task is taken by itself.
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
        BackendError: an unknown backend; a process that is one of several, of `torchrun` for instance: train one model
            on several devices by a loop of your own.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> x = np.random.default_rng(0).normal(size=(200, 16)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int64")
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(4)), tn.ReLU(), tn.Linear(16, 2))
        >>> run = tn.train(model, (x, y), epochs=20, batch_size=20, lr=0.01)
        >>> run.accuracy >= 80
        True
    """
    require_one_process(backend)
    if isinstance(data, Dataset):
        data = classification(data)
    elif not isinstance(data, Task):
        data = _task_of(model, data, loss)
    settings = TrainSettings(
        backend=backend, seed=seed, epochs=epochs, steps=steps, evaluate_every=evaluate_every, batch_size=batch_size,
        optimizer=optimizer, lr=lr, schedule=schedule, warmup=warmup, momentum=momentum, nesterov=nesterov,
        betas=betas, eps=eps, weight_decay=weight_decay, lr_factors=lr_factors, weight_norm=weight_norm, loss=data.loss,
        precision=precision, device=device, patience=patience, checkpoint=checkpoint,
        checkpoint_every=checkpoint_every, ranks=ranks,
    )  # fmt: skip
    model.require_ranks()
    if ranks is not None:
        managed(model, ranks)
    fitting, checked, tested = _checked_splits(model, data, validation, test, seed)
    start = model.init(seed) if weights is None else dict(weights)
    model.check(start)
    stored = _checkpoint(settings, model, start, fitting, checked)
    trainer = settings.trainer(model, start)
    loop = Loop(settings, model, trainer, fitting, checked, stored, larger_is_better=data.larger_is_better)
    if resume:
        loop.resume()
    with progress_bar(progress, len(loop.rates)) as show:
        loop.run(show, callback)
    return loop.result(tested)


def _task_of(model: Layer, pair: Pair, loss: str) -> Task:
    """A pair of arrays as a task, checked against the model."""
    one_of(loss, LOSSES, "loss")
    x, y = checked_pair(model, pair, loss, "training data")
    out = model.out_shape(x.shape[1:])
    metric: Metric = "accuracy" if loss == "cross_entropy" and len(out) == 1 else "loss"
    return Task("data", loss, metric, Arrays(x, y), None, None, x.shape[1:], out)


def _checked_splits(
    model: Layer, task: Task, validation: float | Pair | None, test: Pair | None, seed: int
) -> tuple[Split, Split | None, Split | None]:
    """The rows to train on, for validation and for the test, checked against the model."""

    def checked(split: Split | None, given: Pair | None, what: str) -> Split | None:
        if given is not None:
            return Arrays(*checked_pair(model, given, task.loss, what))
        return None if split is None else checked_split(model, split, task, what)

    fitting = checked_split(model, task.train, task, "training data")
    tested = checked(task.test, test, "test data")
    is_share = isinstance(validation, int | float)
    given: Any = None if is_share else validation
    held = checked(task.validation, given, "validation data")
    if held is None and is_share:
        fitting, held = held_out(fitting, float(validation), seed)  # type: ignore[arg-type]
    return fitting, held, tested


def _checkpoint(
    settings: TrainSettings, model: Layer, start: Mapping[str, NDArray[Any]], fitting: Split, held: Split | None
) -> Checkpoint | None:
    """The checkpoint of a run, under a hash of everything that decides the run."""
    if settings.checkpoint is None:
        return None
    arrays = [fitting.digest(), "" if held is None else held.digest(), digest(*start.values())]
    rates = settings.rates(len(fitting))
    # A function has no name that another process could compare: what it gives counts.
    schedule = list(rates) if callable(settings.schedule) else [settings.schedule, settings.lr, settings.warmup]
    spec = dataclasses.asdict(settings.spec(model))
    course = dataclasses.astuple(settings.course(len(fitting)))
    identity = fingerprint_of([model.fingerprint, settings.backend, spec, schedule, *course, *arrays])
    return Checkpoint(Path(settings.checkpoint), identity, settings.checkpoint_every)
