"""The errors that tn4nn raises on purpose.

Each message says what was expected, what was received, and what would do.
"""

from __future__ import annotations


class TN4NNError(Exception):
    """Base of every error that tn4nn raises on purpose.

    Examples:
        A name with a slip, a budget below rank 1, weights of another shape, data that is not there, an unknown backend,
        a file of something else, and a folder in place of a file:

        >>> import pathlib, tempfile, numpy as np, tn4nn as tn
        >>> tn.build("mpoo", 64, 64)
        Traceback (most recent call last):
            ...
        tn4nn.TopologyError: unknown topology 'mpoo'. ...
        >>> try:
        ...     tn.mpo((4, 4), (4, 4)).with_budget(params=1)
        ... except tn.BudgetError as error:
        ...     print(error.smallest)
        32
        >>> net = tn.mpo((4, 4), (4, 4)).with_rank(2)
        >>> net.to_dense({"core0": np.ones((4, 4, 3)), "core1": np.ones((2, 4, 4))})
        Traceback (most recent call last):
            ...
        tn4nn.ShapeError: ...
        >>> tn.load_data("nowhere.npz")
        Traceback (most recent call last):
            ...
        tn4nn.DataError: ...
        >>> tn.backend("tensorflow")
        Traceback (most recent call last):
            ...
        tn4nn.BackendError: unknown backend 'tensorflow'. ...
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "model.tn"
        ...     _ = path.write_text("no model")
        ...     tn.load(path)
        Traceback (most recent call last):
            ...
        tn4nn.CheckpointError: ...
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tn.save(folder, net, net.init(0))
        Traceback (most recent call last):
            ...
        tn4nn.WriteError: ...
    """


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

__test__ = {"TN4NNError": TN4NNError.__doc__}  # doctest looks for it where its public name says it is
