"""The errors that tn4nn raises on purpose.

Each message says what was expected, what was received, and what would do.
"""

from __future__ import annotations


class TN4NNError(Exception):
    """Base of every error that tn4nn raises on purpose."""


class TopologyError(TN4NNError, ValueError):
    """A topology, network or layer graph that cannot be built."""


class BudgetError(TN4NNError, ValueError):
    """A budget that no choice of ranks can meet.

    Attributes:
        smallest: the smallest budget that can be met, in the unit of the request.
    """

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest


class ShapeError(TN4NNError, ValueError):
    """An array of the wrong shape or dtype."""


class DataError(TN4NNError, ValueError):
    """Data that is absent, unreadable, or holds values that cannot be trained on."""


class BackendError(TN4NNError, RuntimeError):
    """A backend that is unknown, not installed, or cannot do what was asked."""


class CheckpointError(TN4NNError, RuntimeError):
    """A checkpoint or results file that is corrupt or belongs to another run."""


class WriteError(TN4NNError, OSError):
    """A file that could not be written: a full disk, a missing permission, a folder in its place.

    Construct it as `WriteError(errno, message, filename)`, with the number of the operating system.
    """

    def __str__(self) -> str:
        return str(self.strerror)


# Tracebacks name the errors as users import them.
for _error in (
    TN4NNError, TopologyError, BudgetError, ShapeError, DataError, BackendError, CheckpointError, WriteError,
):  # fmt: skip
    _error.__module__ = "tn4nn"
del _error
