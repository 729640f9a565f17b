"""What a structure is judged by: how well it fits an array, or the loss of a task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._base.arrays import Array, checked_array
from .._base.errors import ShapeError, TN4NNError
from .._base.hashing import digest, fingerprint_of
from .._base.seeds import rng_for
from .._compression.als import Als
from .._compression.target import Target
from .._graph.network import Network
from .._graph.topology import Topology, topology
from .._model.layers import Layer, Linear, Sequential
from .._training.data import Dataset
from .._training.train import train
from .moves import Move, warm_start
from .screen import estimated_gains

Weights = Mapping[str, NDArray[Any]]

_SWEEPS = 50  # of least squares for one structure
_EXACT = 1e-15  # squared error that is that of rounding
_STARTS = 2  # random ones, beside the weights of the structure before


class Objective(Protocol):
    """What the search asks."""

    @property
    def fingerprint(self) -> str:
        """Equal for equal questions; what a state file is checked by."""
        ...

    def judge(
        self, network: Network, near: tuple[Network, Weights] | None, seed: int, enough: float
    ) -> tuple[float, dict[str, Array]]:
        """The error of a structure (the smaller the better), and its weights where there are any; `near` is a
        neighbour with its own. Below `enough` nothing better is needed."""
        ...

    def estimated_gains(self, network: Network, weights: Weights, moves: Sequence[Move]) -> list[float] | None:
        """The estimated gain of each larger bond, or None where there is none without a fit."""
        ...


class ArrayObjective:
    """The relative Frobenius error of the best weights found by alternating least squares."""

    def __init__(self, w: Array) -> None:
        self.w = w

    @property
    def fingerprint(self) -> str:
        return digest(self.w)

    def judge(
        self, network: Network, near: tuple[Network, Weights] | None, seed: int, enough: float
    ) -> tuple[float, dict[str, Array]]:
        target = Target(network.topology, self.w, None)
        start = None if near is None else warm_start(*near, network, seed)
        starts = [] if start is None else [start]
        for i in range(_STARTS):
            drawn = network.init(int(rng_for(seed, "start", i).integers(2**31)))
            starts.append({name: core.astype(self.w.dtype) for name, core in drawn.items()})
        found = Als(target, network).run(starts, _SWEEPS, max(_EXACT, (enough / 2) ** 2))
        # In memory order, as a state file gives them back: sums in another order would differ in the last bit.
        weights = {name: np.ascontiguousarray(core) for name, core in found.items()}
        return target.error(network.to_dense(weights)), weights

    def estimated_gains(self, network: Network, weights: Weights, moves: Sequence[Move]) -> list[float] | None:
        target = Target(network.topology, self.w, None)
        residual = target.tensor(target.padded - network.to_dense(weights))
        return estimated_gains(network, weights, residual, moves)


class TaskObjective:
    """Any function of a network."""

    def __init__(self, loss: Callable[[Network], float]) -> None:
        self.loss = loss

    @property
    def fingerprint(self) -> str:
        return str(getattr(self.loss, "fingerprint", "task"))

    def judge(
        self, network: Network, near: tuple[Network, Weights] | None, seed: int, enough: float
    ) -> tuple[float, dict[str, Array]]:
        found = float(self.loss(network))
        return (math.inf if math.isnan(found) else found), {}

    def estimated_gains(self, network: Network, weights: Weights, moves: Sequence[Move]) -> list[float] | None:
        return None


class TrainingLoss:
    """A task for `tn.search`: the validation loss after a short training.

    Args:
        data: a Dataset or (x, y), as for `tn.train`; its test split is not looked at.
        model: makes the model of a network; left out, the network is one linear layer.
        options: of `tn.train`: epochs=, lr=, backend=, seed=, loss= ... (without progress, the split is 0.1).

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> x = np.random.default_rng(0).normal(size=(200, 16)).astype("float32")
        >>> y = (x[:, 0] > 0).astype("int64")
        >>> def model(net):
        ...     return tn.Sequential(tn.Linear(net), tn.ReLU(), tn.Linear(16, 2))
        >>> task = tn.TrainingLoss((x, y), model, epochs=2)
        >>> 0 < task(tn.mpo((4, 4), (4, 4)).with_rank(2)) < 2
        True
    """

    def __init__(
        self, data: Dataset | tuple[Any, Any], model: Callable[[Network], Layer] | None = None, **options: Any
    ) -> None:
        self.data = (data.x_train, data.y_train) if isinstance(data, Dataset) else data
        self.model = model or (lambda network: Sequential(Linear(network)))
        self.options = options

    @property
    def fingerprint(self) -> str:
        """Of the data and the options; a function that makes the model has none."""
        arrays = digest(*map(np.asarray, self.data))
        return fingerprint_of(["training", arrays, {k: repr(v) for k, v in sorted(self.options.items())}])

    def __call__(self, network: Network) -> float:
        """The loss on the validation split after the last epoch."""
        return train(self.model(network), self.data, **self.options).history[-1].validation_loss


def objective_of(
    target: ArrayLike | Callable[[Network], float],
    inputs: Sequence[int] | None,
    outputs: Sequence[int] | None,
    start: Topology | Network | None,
) -> tuple[Objective, Topology | Network]:
    """What is asked, and where to start: left out, one core for each mode and no bonds."""
    if callable(target):
        if start is None:
            raise TN4NNError(
                "search on a task needs start=, a Topology or Network: a function says nothing of its modes"
            )
        return TaskObjective(target), start
    array = checked_array(target, "target", np.ndim(target))
    if start is None:
        start = _cores_of_modes(array.shape, inputs, outputs)
    elif inputs is not None or outputs is not None:
        raise ShapeError("search takes modes from start=: leave inputs= and outputs= away")
    t = start.topology if isinstance(start, Network) else start
    shape, modes = (t.out_features, t.in_features), tuple(n for n in (*t.outputs.values(), *t.inputs.values()) if n > 1)
    if array.shape != shape and (t.is_padded or tuple(n for n in array.shape if n > 1) != modes):
        raise ShapeError(
            f"target must have shape {shape}, (out_features, in_features) of {t.name!r}, or the sizes of its "
            f"output and input modes {modes}; received {array.shape}"
        )
    return ArrayObjective(array.reshape(shape)), start


def _cores_of_modes(shape: Sequence[int], inputs: Sequence[int] | None, outputs: Sequence[int] | None) -> Topology:
    if (inputs is None) != (outputs is None) or (inputs is None and len(shape) == 2):
        raise ShapeError("the modes of a matrix are inputs= and outputs=, two sequences of sizes: give both, or start=")
    if len(shape) == 0:
        raise ShapeError("target must have at least one axis, received a number")
    ins = list(shape if inputs is None else inputs)
    outs = [1] if outputs is None else list(outputs)
    wanted = (math.prod(outs), math.prod(ins))
    if inputs is not None and tuple(shape) != wanted:
        raise ShapeError(
            f"target has shape {tuple(shape)}, and outputs={tuple(outs)}, inputs={tuple(ins)} make {wanted}"
        )
    sizes = {f"x{i}": n for i, n in enumerate(ins)}, {f"y{i}": n for i, n in enumerate(outs)}
    cores = [" ".join(f"{side}{i}" for side, own in (("x", ins), ("y", outs)) if i < len(own))
             for i in range(max(len(ins), len(outs)))]  # fmt: skip
    return topology(", ".join(cores), *sizes, name="searched")
