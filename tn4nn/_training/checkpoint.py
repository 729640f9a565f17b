"""Checkpoints: how far a run is, and the file it goes on from after it was stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.errors import CheckpointError
from .._base.records import read_arrays, write_arrays
from .results import Epoch

SCHEMA = 1
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
        every: steps between two checkpoints; there is one at the end of each epoch in any case.
    """

    def __init__(self, path: Path, identity: str, every: int | None) -> None:
        self.path, self.identity, self.every = path, identity, every

    def due(self, before: int, after: int, per_epoch: int) -> bool:
        """Whether a checkpoint falls between two step counts."""
        crossed = self.every is not None and before // self.every != after // self.every
        return crossed or after % per_epoch == 0

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

    def read(self) -> tuple[Progress, Arrays] | None:
        """What `write` stored; None where there is no file.

        Raises:
            CheckpointError: a file that cannot be read, or that belongs to another run.
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
        progress = Progress(
            step=record["step"],
            losses=[arrays["losses"]],
            history=[Epoch(*line) for line in record["history"]],
            best_epoch=record["best_epoch"],
            best_weights={n.removeprefix("best/"): a for n, a in arrays.items() if n.startswith("best/")},
            epoch_seconds=record["epoch_seconds"],
        )
        return progress, {n: a for n, a in arrays.items() if n.startswith(("weights/", "optimizer/"))}
