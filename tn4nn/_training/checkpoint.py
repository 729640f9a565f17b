"""Checkpoints: how far a run is, and the file it goes on from after it was stopped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from .._base.errors import CheckpointError
from .._base.records import read_arrays, write_arrays
from .results import Epoch
from .settings import Course

SCHEMA = 3  # before 2 they had no digest, before 3 no step in the history
Arrays = Mapping[str, NDArray[Any]]


@dataclasses.dataclass
class Progress:
    """How far a run is: with the trainer's state, all that it needs to go on.

    Attributes:
        step: steps that are done.
        losses: of these steps, in chunks.
        history: of the epochs that are done.
        best_epoch: the epoch with the best validation score, from 1; 0 before there is one.
        best_weights: at that epoch.
        epoch_seconds: spent on the epoch that has begun.
    """

    step: int = 0
    losses: list[NDArray[np.float64]] = dataclasses.field(default_factory=list)
    history: list[Epoch] = dataclasses.field(default_factory=list)
    best_epoch: int = 0
    best_weights: Arrays = dataclasses.field(default_factory=dict)
    epoch_seconds: float = 0.0


class Checkpoint:
    """The checkpoint file of a run: safetensors, with the history in its metadata.

    Args:
        path: the file.
        identity: a hash of everything that decides the run; a file with another one is refused.
        every: steps between two checkpoints; there is one after each evaluation in any case.
    """

    def __init__(self, path: Path, identity: str, every: int | None) -> None:
        self.path, self.identity, self.every = path, identity, every

    def due(self, before: int, after: int, course: Course) -> bool:
        """Whether a checkpoint falls between two step counts."""
        crossed = self.every is not None and before // self.every != after // self.every
        return crossed or course.is_due(after)

    def write(self, progress: Progress, state: Arrays) -> None:
        """Stores how far a run is, and the state of its trainer."""
        arrays = dict(state)
        arrays |= {f"best/{name}": array for name, array in progress.best_weights.items()}
        arrays["losses"] = np.concatenate(progress.losses)
        record = {
            "schema": SCHEMA,
            "identity": self.identity,
            "step": progress.step,
            "history": [dataclasses.astuple(line) for line in progress.history],
            "best_epoch": progress.best_epoch,
            "epoch_seconds": progress.epoch_seconds,
        }
        write_arrays(self.path, arrays, record)

    def read(self, start: Arrays, course: Course) -> tuple[Progress, Arrays] | None:
        """What `write` stored; None where there is no file.

        Args:
            start: the state of the trainer at the start of the run, which says what arrays there are.
            course: of the run.

        Raises:
            CheckpointError: a file that cannot be read, was damaged, holds what no run could have stored, or belongs to
                another run.
        """
        if not self.path.exists():
            return None
        advice = "it is left as it is; move it away to start anew, or give resume=False to write over it"
        record, arrays = read_arrays(self.path, SCHEMA, "a checkpoint", advice)
        if record.get("identity") != self.identity:
            raise CheckpointError(
                f"{self.path} belongs to another run (model, data, seed, optimizer, schedule or backend differ): "
                "give this run another checkpoint file, or resume=False to write over it"
            )
        reason = _unsound(record, arrays, start, course)
        if reason:
            raise CheckpointError(f"{self.path} is no checkpoint of this run: {reason}: {advice}")
        progress = Progress(
            step=record["step"],
            losses=[arrays["losses"]],
            history=[Epoch(*line) for line in record["history"]],
            best_epoch=record["best_epoch"],
            best_weights={n.removeprefix("best/"): a for n, a in arrays.items() if n.startswith("best/")},
            epoch_seconds=record["epoch_seconds"],
        )
        return progress, {n: a for n, a in arrays.items() if n.startswith(("weights/", "optimizer/"))}


def _unsound(record: Mapping[str, Any], arrays: Arrays, start: Arrays, course: Course) -> str | None:
    """What in a checkpoint no run could have stored, in words; None where all is well."""
    step, history, best = record.get("step"), record.get("history"), record.get("best_epoch")
    if type(step) is not int or not 0 < step <= course.total:
        return f"expected a step from 1 to {course.total}, received {step!r}"
    epochs = course.evaluations(step)
    if not isinstance(history, list) or len(history) != epochs:
        return f"expected a history of {epochs} epochs after {step} steps, received {str(history)[:100]}"
    for number, line in enumerate(history, 1):
        whole = isinstance(line, list) and len(line) == len(dataclasses.fields(Epoch)) and all(map(_is_number, line))
        if not whole or line[0] != number or line[-1] != min(number * course.every, course.total):
            return f"expected the numbers of epoch {number} in its history, received {str(line)[:100]}"
    if type(best) is not int or not bool(epochs) <= best <= epochs:
        return f"expected a best epoch up to {epochs}, received {best!r}"
    seconds = record.get("epoch_seconds")
    if not _is_number(seconds) or not 0 <= seconds < math.inf:
        return f"expected seconds, received epoch_seconds {seconds!r}"
    return _unlike(arrays, start, step, best)


def _unlike(arrays: Arrays, start: Arrays, step: int, best: int) -> str | None:
    """Which array is missing, too many, or of another kind than those of the run."""
    weights = {name: array for name, array in start.items() if name.startswith("weights/")}
    expected = {**start, "losses": np.empty(step)}
    if best:
        expected |= {f"best/{name.removeprefix('weights/')}": array for name, array in weights.items()}
    for name, array in expected.items():
        found = arrays.get(name)
        if found is None or (found.shape, found.dtype) != (array.shape, array.dtype):
            said = "none" if found is None else f"{found.dtype} of shape {found.shape}"
            return f"expected {name!r} as {array.dtype} of shape {array.shape}, received {said}"
    # Some optimizers have no state before their first step: what they find in it, they check themselves.
    extra = sorted(name for name in arrays.keys() - expected.keys() if not name.startswith("optimizer/"))
    return f"it has arrays of no use: {', '.join(extra)[:200]}" if extra else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
