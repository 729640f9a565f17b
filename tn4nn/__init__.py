"""tn4nn: declare any tensor-network topology, fix a budget, and get a fast layer for it in torch and jax.

One direction, each arrow a new immutable value::

    topology -> Topology -> with_budget -> Network -> plan -> Plan
        -> Sequential -> Model -> init(seed) -> weights -> build("torch" | "jax" | "numpy") -> module

Importing tn4nn imports no framework.
"""

from typing import TYPE_CHECKING, Any

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
from ._plan import Cost, Machine, Plan, plan
from ._schedule import learning_rates
from ._topology import Core, Topology, topology

if TYPE_CHECKING:
    from . import presets
    from ._autorank import AutoRank
    from ._calibrate import Calibration, calibrate, calibrated
    from ._compare import Candidate, Report, compare, read_topologies
    from ._cost import CostReport, CostRow, cost
    from ._data import Dataset
    from ._data import load as load_data
    from ._decompose import Decomposition, decompose, mps
    from ._entanglement import Cut, Entanglement, entanglement, entanglement_nulls
    from ._gauge import balance, canonicalise, gauge_error
    from ._growth import Growth, growth
    from ._io import load, save
    from ._objective import TrainingLoss
    from ._ranks import cut, grow
    from ._reconnect import Reconnection, reconnect
    from ._round import rounded
    from ._search import Evaluation, Search, search
    from ._svd import Factors, low_rank_factors
    from ._train import Epoch, Run, train
    from ._watch import EntanglementLog

    __version__: str

# Training, comparing, data and decomposing bring much that declaring does not need: imported when asked for.
_LAZY: dict[str, tuple[str, str | None]] = {
    "presets": ("presets", None),  # the module itself
    "Calibration": ("_calibrate", "Calibration"),
    "calibrate": ("_calibrate", "calibrate"),
    "calibrated": ("_calibrate", "calibrated"),
    "AutoRank": ("_autorank", "AutoRank"),
    "cut": ("_ranks", "cut"),
    "grow": ("_ranks", "grow"),
    "Candidate": ("_compare", "Candidate"),
    "Report": ("_compare", "Report"),
    "compare": ("_compare", "compare"),
    "read_topologies": ("_compare", "read_topologies"),
    "CostReport": ("_cost", "CostReport"),
    "CostRow": ("_cost", "CostRow"),
    "cost": ("_cost", "cost"),
    "Growth": ("_growth", "Growth"),
    "growth": ("_growth", "growth"),
    "Dataset": ("_data", "Dataset"),
    "load_data": ("_data", "load"),
    "Decomposition": ("_decompose", "Decomposition"),
    "decompose": ("_decompose", "decompose"),
    "mps": ("_decompose", "mps"),
    "Cut": ("_entanglement", "Cut"),
    "Entanglement": ("_entanglement", "Entanglement"),
    "entanglement": ("_entanglement", "entanglement"),
    "entanglement_nulls": ("_entanglement", "entanglement_nulls"),
    "load": ("_io", "load"),
    "save": ("_io", "save"),
    "rounded": ("_round", "rounded"),
    "balance": ("_gauge", "balance"),
    "canonicalise": ("_gauge", "canonicalise"),
    "gauge_error": ("_gauge", "gauge_error"),
    "TrainingLoss": ("_objective", "TrainingLoss"),
    "Reconnection": ("_reconnect", "Reconnection"),
    "reconnect": ("_reconnect", "reconnect"),
    "Evaluation": ("_search", "Evaluation"),
    "Search": ("_search", "Search"),
    "search": ("_search", "search"),
    "Factors": ("_svd", "Factors"),
    "low_rank_factors": ("_svd", "low_rank_factors"),
    "Epoch": ("_train", "Epoch"),
    "Run": ("_train", "Run"),
    "train": ("_train", "train"),
    "EntanglementLog": ("_watch", "EntanglementLog"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("tn4nn")
        except PackageNotFoundError:  # run from a source tree that is not installed
            value = "0+source"
    elif name in _LAZY:
        from importlib import import_module

        module, attribute = _LAZY[name]
        found = import_module(f".{module}", __name__)
        value = found if attribute is None else getattr(found, attribute)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, "__version__"])


__all__ = [
    "AutoRank",
    "AvgPool",
    "backend",
    "BackendError",
    "backends",
    "balance",
    "BatchNorm",
    "block_term",
    "btt",
    "BudgetError",
    "build",
    "calibrate",
    "calibrated",
    "Calibration",
    "Candidate",
    "canonicalise",
    "catalogue",
    "CheckpointError",
    "compare",
    "complete",
    "Conv2d",
    "Core",
    "Cost",
    "cost",
    "CostReport",
    "CostRow",
    "cp",
    "Cut",
    "cut",
    "DataError",
    "Dataset",
    "decompose",
    "Decomposition",
    "dense",
    "Dropout",
    "Embedding",
    "Entanglement",
    "entanglement",
    "entanglement_nulls",
    "EntanglementLog",
    "Epoch",
    "Evaluation",
    "Factors",
    "Flatten",
    "gauge_error",
    "GELU",
    "grow",
    "Growth",
    "growth",
    "installed_backends",
    "kronecker",
    "Layer",
    "LayerNorm",
    "learning_rates",
    "Linear",
    "load",
    "load_data",
    "low_rank",
    "low_rank_factors",
    "Machine",
    "MaxPool",
    "mera",
    "model_from_json",
    "modes_for",
    "monarch",
    "mpo",
    "mps",
    "Network",
    "Ordering",
    "Parallel",
    "peps",
    "Plan",
    "plan",
    "presets",
    "rank_caps",
    "read_topologies",
    "reconnect",
    "Reconnection",
    "ReLU",
    "Report",
    "Residual",
    "ring",
    "rounded",
    "Run",
    "save",
    "Search",
    "search",
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
    "TrainingLoss",
    "tree",
    "tucker",
    "Unflatten",
    "with_budget",
    "WriteError",
]
