"""Backend-agnostic training: one loop, the framework only behind the `Trainer` protocol.

Everything random is drawn from the seed in numpy (weights, validation split, order of samples), so torch and
jax see the same numbers in the same order. Steps run in chunks; the device is waited for between chunks, to
show progress, to write a checkpoint, or at the end of an epoch, and never between the steps of a chunk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.checks import at_least, nearest, one_of
from .._base.errors import BackendError, CheckpointError, DataError, ShapeError, TN4NNError
from .._base.files import atomic_write
from .._base.hashing import digest, fingerprint_of
from .._base.seeds import rng_for
from .._model.backend import Module, Trainer, TrainSpec
from .._model.backend import backend as load_backend
from .._model.layers import Layer
from .autorank import AutoRank, managed, moved
from .data import Dataset
from .schedule import Schedule, learning_rates

Pair = tuple[Any, Any]
_CHUNK = 64  # steps between two looks at the clock

OPTIMIZERS = ("sgd", "adam", "adamw")
LOSSES = ("cross_entropy", "mse")
PRECISIONS = ("float32", "float64", "bf16")


@dataclasses.dataclass(frozen=True, slots=True)
class Epoch:
    """One line of a run's history.

    Attributes:
        epoch: counted from 1.
        loss: mean training loss over the epoch's steps.
        validation_loss: NaN without a validation split.
        accuracy: on the validation split, percent; NaN without one or for "mse".
        seconds: of training, evaluation left out.
    """

    epoch: int
    loss: float
    validation_loss: float
    accuracy: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Run:
    """What training gave.

    Attributes:
        losses: of every step, shape (steps,).
        accuracy: on the validation split at the last epoch, percent; NaN without a split.
        best_accuracy: the best over the epochs, and
        best_epoch: the epoch at which it was reached.
        test_accuracy: on the test split with the last weights, percent; NaN where no test data was given.
        weights: name -> array after the last step.
        best_weights: after the epoch with the best validation accuracy (or loss, for "mse").
        history: one Epoch each.
        module: the native trained module, with the last weights.
        samples_per_s: training throughput.
        stopped_early: whether `patience` ended it.
        model: the layer graph of `weights`: what was given, or with `ranks=` what it became.
        ranks: with `ranks=` the ranks after each change, by epoch: layer -> bond -> rank.
    """

    losses: NDArray[np.float64]
    accuracy: float
    best_accuracy: float
    best_epoch: int
    test_accuracy: float
    weights: dict[str, NDArray[Any]]
    best_weights: dict[str, NDArray[Any]]
    history: tuple[Epoch, ...]
    module: Module
    samples_per_s: float
    stopped_early: bool
    model: Layer
    ranks: Mapping[int, Mapping[str, Mapping[str, int]]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{'epoch':>5} {'loss':>10} {'val loss':>10} {'val acc %':>10} {'s':>7}"]
        lines += [
            f"{e.epoch:>5} {e.loss:>10.4f} {e.validation_loss:>10.4f} {e.accuracy:>10.2f} {e.seconds:>7.2f}"
            for e in self.history
        ]
        lines.append(f"test accuracy {self.test_accuracy:.2f} %, {self.samples_per_s:,.0f} samples/s")
        return "\n".join(lines)


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
    one_of(optimizer, OPTIMIZERS, "optimizer")
    one_of(loss, LOSSES, "loss")
    one_of(precision, PRECISIONS, "precision")
    at_least(1, epochs=epochs, batch_size=batch_size)
    model.require_ranks()
    if ranks is not None:
        if checkpoint is not None:
            raise TN4NNError(
                "ranks= changes the model between epochs, which a checkpoint does not hold: leave one away"
            )
        managed(model, ranks)
    if isinstance(data, Dataset):
        test = (data.x_test, data.y_test) if test is None else test
        data = (data.x_train, data.y_train)
    everything = checked_pair(model, data, loss, "training data")
    fitting, held_out = _split(model, everything, validation, seed, loss)
    tested = None if test is None else checked_pair(model, test, loss, "test data")
    start = model.init(seed) if weights is None else dict(weights)
    model.check(start)
    spec = TrainSpec(
        loss=loss,
        optimizer=optimizer,
        momentum=momentum,
        nesterov=nesterov,
        betas=betas,
        eps=eps,
        lr_factors=_factors(model, lr_factors),
        decay=_decay(model, weight_decay),
        precision=precision,
        device=device,
        seed=seed,
        batch_size=batch_size,
    )
    per_epoch = -(-len(fitting[0]) // batch_size)
    rates = learning_rates(schedule, lr, steps=epochs * per_epoch, steps_per_epoch=per_epoch, warmup=warmup)
    trainer = load_backend(backend).trainer(model, start, spec)
    keeper = None
    if checkpoint is not None:
        arrays = [digest(*pair) for pair in (fitting, held_out or (), tuple(start.values()))]
        identity = fingerprint_of([model.fingerprint, backend, dataclasses.asdict(spec), rates, *arrays])
        keeper = _Keeper(Path(checkpoint), identity, checkpoint_every)
    loop = _Loop(trainer, fitting, held_out, batch_size, seed, rates, per_epoch, patience, loss, model)
    if ranks is not None:

        def again(changed: Layer, start: Mapping[str, NDArray[Any]]) -> Trainer:
            factors, decay = _factors(changed, lr_factors), _decay(changed, weight_decay)
            now = dataclasses.replace(spec, lr_factors=factors, decay=decay)
            return load_backend(backend).trainer(changed, start, now)

        loop.mover = _Mover(ranks, epochs, again)
    if keeper is not None and resume:
        keeper.restore(loop)
    with _bar(progress, len(rates)) as show:
        loop.run(keeper, show, callback)
    return loop.result(tested)


# -- the loop ---------------------------------------------------------------------------------------------------


class _Loop:
    """The state of a run between two chunks of steps."""

    def __init__(
        self,
        trainer: Trainer,
        fitting: Pair,
        held_out: Pair | None,
        batch_size: int,
        seed: int,
        rates: Sequence[float],
        per_epoch: int,
        patience: int | None,
        loss: str,
        model: Layer,
    ) -> None:
        self.model = model
        self.mover: _Mover | None = None
        self.trainer, self.rates, self.per_epoch = trainer, rates, per_epoch
        self.batch_size, self.seed, self.patience, self.loss = batch_size, seed, patience, loss
        self.rows = len(fitting[0])
        self.x, self.y = trainer.put(fitting[0]), trainer.put(fitting[1])
        self.held_out = None if held_out is None else (trainer.put(held_out[0]), trainer.put(held_out[1]))
        self.step = 0
        self.losses: list[NDArray[np.float64]] = []
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best_weights: dict[str, NDArray[Any]] = {}
        self.epoch_seconds = 0.0  # of the epoch under way
        self.stopped = False

    def run(
        self,
        keeper: _Keeper | None,
        show: Callable[[int, float, float, float], None],
        callback: Callable[[Epoch, Trainer], None] | None,
    ) -> None:
        """Runs to the end, or until `patience` is over."""
        while self.step < len(self.rates) and not self.stopped:
            begin = time.perf_counter()
            before = self.step
            losses = self.trainer.read(self._chunk(keeper))
            spent = time.perf_counter() - begin
            self.losses.append(losses)
            self.epoch_seconds += spent
            if self.step % self.per_epoch == 0:
                self._end_epoch()
                if callback is not None:
                    callback(self.history[-1], self.trainer)
                if self.mover is not None and not self.stopped:
                    self.mover.move(self)
            if keeper is not None and keeper.due(before, self.step, self.per_epoch):
                keeper.write(self)
            accuracy = self.history[-1].accuracy if self.history else float("nan")
            show(self.step, float(losses[-1]), accuracy, (self.step - before) * self.batch_size / spent)

    def _chunk(self, keeper: _Keeper | None) -> Any:
        """Asks for the next steps, up to the end of the epoch or the next checkpoint."""
        epoch, inside = divmod(self.step, self.per_epoch)
        order = rng_for(self.seed, "order", epoch).permutation(self.rows)
        full = self.rows // self.batch_size  # steps of a full batch in an epoch
        count = min(_CHUNK, max(full - inside, 1))
        if keeper is not None and keeper.every:
            count = min(count, keeper.every - self.step % keeper.every)
        rows = order[inside * self.batch_size : (inside + count) * self.batch_size]
        index = rows.reshape(count, -1)
        first, self.step = self.step, self.step + count
        return self.trainer.steps(self.x, self.y, index, self.rates[first : self.step], first)

    def _end_epoch(self) -> None:
        number = self.step // self.per_epoch
        steps = np.concatenate(self.losses)[-self.per_epoch :]
        score, accuracy = (float("nan"), float("nan"))
        if self.held_out is not None:
            score, accuracy = self.trainer.evaluate(*self.held_out)
        self.history.append(Epoch(number, float(steps.mean()), score, accuracy, self.epoch_seconds))
        self.epoch_seconds = 0.0
        if self.held_out is None or not self.best_epoch or self._rank(number) > self._rank(self.best_epoch):
            self.best_epoch, self.best_weights = number, self.trainer.weights()
        self.stopped = self.waited_enough()

    def waited_enough(self) -> bool:
        """Whether the patience of this run is over."""
        waited = len(self.history) - self.best_epoch
        return self.patience is not None and self.held_out is not None and waited >= self.patience

    def _rank(self, epoch: int) -> float:
        """Larger is better."""
        line = self.history[epoch - 1]
        value = line.accuracy if self.loss == "cross_entropy" else -line.validation_loss
        return -math.inf if math.isnan(value) else value

    def result(self, tested: Pair | None) -> Run:
        """The finished run."""
        trainer = self.trainer
        accuracy = float("nan")
        if tested is not None:
            _, accuracy = trainer.evaluate(trainer.put(tested[0]), trainer.put(tested[1]))
        seconds = sum(line.seconds for line in self.history)
        return Run(
            losses=np.concatenate(self.losses),
            accuracy=self.history[-1].accuracy,
            best_accuracy=self.history[self.best_epoch - 1].accuracy,
            best_epoch=self.best_epoch,
            test_accuracy=accuracy,
            weights=trainer.weights(),
            best_weights=self.best_weights,
            history=tuple(self.history),
            module=trainer.module(),
            samples_per_s=self.rows * len(self.history) / seconds if seconds else float("nan"),
            stopped_early=self.stopped,
            model=self.model,
            ranks={} if self.mover is None else self.mover.ranks,
        )


class _Mover:
    """Changes the ranks of a run between two epochs, optimizer state and all."""

    def __init__(
        self, auto: AutoRank, epochs: int, again: Callable[[Layer, Mapping[str, NDArray[Any]]], Trainer]
    ) -> None:
        self.auto, self.epochs, self.again = auto, epochs, again
        self.ranks: dict[int, dict[str, dict[str, int]]] = {}

    def move(self, loop: _Loop) -> None:
        """Changes the ranks where it is time."""
        epoch = loop.step // loop.per_epoch
        if not self.auto.due(epoch, self.epochs):
            return
        slots = getattr(loop.trainer, "slots", None)
        if slots is None:
            raise BackendError("this backend's trainer has no slots(): it cannot carry its state to other ranks")
        named: Mapping[str, tuple[str, int]] = slots()
        state = loop.trainer.state()
        made = moved(loop.model, loop.trainer.weights(), self.auto, loop.seed + epoch)
        loop.trainer, loop.model = self.again(made.model, made.weights), made.model
        carried = {f"weights/{name}": array for name, array in made.weights.items()}
        for key, array in state.items():
            if key.startswith("optimizer/"):
                carried[key] = made.moment(named[key][0], array, named[key][1]) if key in named else array
        loop.trainer.load(carried)
        loop.best_epoch = 0
        self.ranks[epoch] = {layer: dict(change.network.ranks) for layer, change in made.changes.items()}


# -- checkpoints ------------------------------------------------------------------------------------------------


class _Keeper:
    """Writes and reads the checkpoint file: safetensors, with the run's history in its metadata."""

    def __init__(self, path: Path, identity: str, every: int | None) -> None:
        if every is not None:
            at_least(1, checkpoint_every=every)
        self.path, self.identity, self.every = path, identity, every

    def due(self, before: int, after: int, per_epoch: int) -> bool:
        """Whether a checkpoint falls between two step counts."""
        crossed = self.every is not None and before // self.every != after // self.every
        return crossed or after % per_epoch == 0

    def write(self, loop: _Loop) -> None:
        """Writes everything that the loop needs to go on."""
        from safetensors.numpy import save

        arrays = dict(loop.trainer.state())
        arrays |= {f"best/{name}": array for name, array in loop.best_weights.items()}
        arrays["losses"] = np.concatenate(loop.losses)
        record = {
            "schema": 1,
            "identity": self.identity,
            "step": loop.step,
            "history": [dataclasses.astuple(line) for line in loop.history],
            "best_epoch": loop.best_epoch,
            "epoch_seconds": loop.epoch_seconds,
        }
        # safetensors writes the buffer of an array as it lies: it must lie in order.
        ready = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
        atomic_write(self.path, save(ready, {"tn4nn": json.dumps(record)}))

    def restore(self, loop: _Loop) -> None:
        """Takes up a checkpoint, where there is one."""
        if not self.path.exists():
            return
        record, arrays = self._read()
        if record.get("identity") != self.identity:
            raise CheckpointError(
                f"{self.path} belongs to another run (model, data, seed, optimizer, schedule or backend differ): "
                "give this run another checkpoint file, or resume=False to write over it"
            )
        loop.trainer.load({n: a for n, a in arrays.items() if n.startswith(("weights/", "optimizer/"))})
        loop.best_weights = {n[5:]: a for n, a in arrays.items() if n.startswith("best/")}
        loop.losses = [arrays["losses"]]
        loop.step, loop.best_epoch = record["step"], record["best_epoch"]
        loop.history = [Epoch(*line) for line in record["history"]]
        loop.epoch_seconds = record["epoch_seconds"]
        loop.stopped = loop.waited_enough()  # this run may have more patience than the one before

    def _read(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self.path), framework="numpy") as file:
                record = json.loads((file.metadata() or {})["tn4nn"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"checkpoint {self.path} cannot be read ({error}): it is left as it is; move it away to start "
                "anew, or give resume=False to write over it"
            ) from error
        if record.get("schema") != 1:
            raise CheckpointError(f"checkpoint {self.path} has schema {record.get('schema')!r}, this version reads 1")
        return record, arrays


# -- data and settings ------------------------------------------------------------------------------------------


def checked_pair(model: Layer, pair: Pair, loss: str, what: str) -> Pair:
    """x and y as arrays that fit the model, or an error that says what is wrong and where."""
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise DataError(f"{what}: expected (x, y) or a Dataset, received {type(pair).__name__}")
    x, y = np.asarray(pair[0]), np.asarray(pair[1])
    if len(x) == 0:
        raise DataError(f"{what}: expected at least one row, received none")
    if len(x) != len(y):
        raise DataError(f"{what}: x has {len(x)} rows, y has {len(y)}")
    try:
        out = model.out_shape(x.shape[1:])
    except ShapeError as error:
        raise ShapeError(f"{what}: x has shape {x.shape}: {error}") from None
    if np.issubdtype(x.dtype, np.floating):
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1)
        if bad.any():
            raise DataError(
                f"{what}: x holds NaN or infinity in {int(bad.sum())} rows, the first is {int(bad.argmax())}"
            )
    elif not _takes_integers(model):
        raise DataError(
            f"{what}: the model takes floating-point x, received {x.dtype}: convert it (x / 255 for images)"
        )
    if loss == "mse":
        if not np.issubdtype(y.dtype, np.floating) or y.shape[1:] != out or not np.isfinite(y).all():
            raise DataError(
                f"{what}: 'mse' needs finite floating-point y of shape (rows, {', '.join(map(str, out))}), "
                f"received {y.dtype} of shape {y.shape}"
            )
        return x, y
    if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
        raise DataError(
            f"{what}: 'cross_entropy' needs integer labels of shape (rows,), received {y.dtype} of shape {y.shape}"
        )
    if y.min() < 0 or y.max() >= out[-1]:
        row = int(((y < 0) | (y >= out[-1])).argmax())
        raise DataError(f"{what}: label {int(y[row])} in row {row} is not from 0 to {out[-1] - 1}, the model's outputs")
    return x, y.astype(np.int64)


def _takes_integers(model: Layer) -> bool:
    from .._model.layers import Embedding

    return any(isinstance(layer, Embedding) for _, layer in model.walk())


def _split(model: Layer, data: Pair, validation: float | Pair | None, seed: int, loss: str) -> tuple[Pair, Pair | None]:
    if validation is None or (isinstance(validation, int | float) and validation == 0):
        return data, None
    if not isinstance(validation, int | float):
        return data, checked_pair(model, validation, loss, "validation data")
    if not 0 < validation < 1:
        raise DataError(f"validation must be a share from 0 to 1, or (x, y), or None, received {validation!r}")
    x, y = data
    count = max(1, round(len(x) * validation))
    if count >= len(x):
        raise DataError(f"a validation share of {validation} leaves none of {len(x)} rows to train on")
    order = rng_for(seed, "split").permutation(len(x))
    kept, out = np.sort(order[count:]), np.sort(order[:count])
    return (x[kept], y[kept]), (x[out], y[out])


def _by_pattern(model: Layer, patterns: Mapping[str, float], default: float, what: str) -> dict[str, float]:
    names = model.specs()
    found = dict.fromkeys(names, default)
    for pattern, value in patterns.items():
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise TN4NNError(f"{what}: {pattern!r} matches no weight." + nearest(pattern, names))
        found.update(dict.fromkeys(matched, float(value)))
    return found


def _factors(model: Layer, given: str | Mapping[str, float]) -> dict[str, float]:
    if isinstance(given, Mapping):
        return _by_pattern(model, given, 1.0, "lr_factors")
    one_of(given, ("none", "structure"), "lr_factors")
    return {name: spec.lr_factor if given == "structure" else 1.0 for name, spec in model.specs().items()}


def _decay(model: Layer, given: float | Mapping[str, float]) -> dict[str, float]:
    if isinstance(given, Mapping):
        return _by_pattern(model, given, 0.0, "weight_decay")
    return {name: float(given) if spec.role == "core" else 0.0 for name, spec in model.specs().items()}


@contextlib.contextmanager
def _bar(wanted: bool, steps: int) -> Iterator[Callable[[int, float, float, float], None]]:
    if not wanted:
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps)

        def show(step: int, loss: float, accuracy: float, rate: float) -> None:
            bar.update(
                task, completed=step, description=f"loss {loss:.4f}  val {accuracy:.2f} %  {rate:,.0f} samples/s"
            )

        yield show
