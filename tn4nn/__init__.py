"""tn4nn: declare any tensor-network topology, fix a budget, and get a fast layer for it in torch and jax.

One direction, each arrow a new immutable value::

    topology -> Topology -> with_budget -> Network -> plan -> Plan
        -> Sequential -> Model -> init(seed) -> weights -> build("torch" | "jax" | "numpy") -> module

Importing tn4nn imports no framework.
"""

from importlib.metadata import PackageNotFoundError, version

from ._backend import backend, backends, installed_backends
from ._budget import rank_caps
from ._catalogue import (
    block_term,
    btt,
    build,
    catalogue,
    complete,
    cp,
    dense,
    kronecker,
    low_rank,
    mera,
    monarch,
    mpo,
    peps,
    ring,
    tree,
    tucker,
)
from ._compare import Candidate, Report, compare, read_topologies
from ._data import Dataset
from ._data import load as load_data
from ._errors import (
    BackendError,
    BudgetError,
    CheckpointError,
    DataError,
    ShapeError,
    TN4NNError,
    TopologyError,
    WriteError,
)
from ._layers import (
    GELU,
    AvgPool,
    BatchNorm,
    Conv2d,
    Dropout,
    Embedding,
    Flatten,
    Layer,
    LayerNorm,
    Linear,
    MaxPool,
    Parallel,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    SiLU,
    Tanh,
    Unflatten,
    model_from_json,
)
from ._model_budget import with_budget
from ._modes import modes_for
from ._network import Network
from ._ordering import Ordering
from ._plan import Cost, Plan, plan
from ._schedule import learning_rates
from ._topology import Core, Topology, topology
from ._train import Epoch, Run, train

try:
    __version__ = version("tn4nn")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+source"

__all__ = [
    "AvgPool",
    "backend",
    "BackendError",
    "backends",
    "BatchNorm",
    "block_term",
    "btt",
    "BudgetError",
    "build",
    "Candidate",
    "catalogue",
    "CheckpointError",
    "compare",
    "complete",
    "Conv2d",
    "Core",
    "Cost",
    "cp",
    "DataError",
    "Dataset",
    "dense",
    "Dropout",
    "Embedding",
    "Epoch",
    "Flatten",
    "GELU",
    "installed_backends",
    "kronecker",
    "Layer",
    "LayerNorm",
    "learning_rates",
    "Linear",
    "load_data",
    "low_rank",
    "MaxPool",
    "mera",
    "model_from_json",
    "modes_for",
    "monarch",
    "mpo",
    "Network",
    "Ordering",
    "Parallel",
    "peps",
    "Plan",
    "plan",
    "rank_caps",
    "read_topologies",
    "ReLU",
    "Report",
    "Residual",
    "ring",
    "Run",
    "Sequential",
    "ShapeError",
    "Sigmoid",
    "SiLU",
    "Tanh",
    "TN4NNError",
    "Topology",
    "topology",
    "TopologyError",
    "train",
    "tree",
    "tucker",
    "Unflatten",
    "with_budget",
    "WriteError",
]
