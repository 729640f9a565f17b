"""tn4nn: declare any tensor-network topology, fix a budget, and get a fast layer for it in torch and jax.

One direction, each arrow a new immutable value::

    topology -> Topology -> with_budget -> Network -> plan -> Plan
        -> Sequential -> Model -> init(seed) -> weights -> build("torch" | "jax" | "numpy") -> module

Importing tn4nn imports no framework.
"""

from typing import TYPE_CHECKING, Any

from ._base.errors import (
    BackendError,
    BudgetError,
    CheckpointError,
    DataError,
    ShapeError,
    TN4NNError,
    TopologyError,
    WriteError,
)
from ._graph.catalogue import (
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
from ._graph.modes import modes_for
from ._graph.network import Network
from ._graph.ordering import Ordering
from ._graph.rank_problem import rank_caps
from ._graph.topology import Core, Topology, topology
from ._model.backend import backend, backends, installed_backends
from ._model.budget import with_budget
from ._model.layers import (
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
from ._training.schedule import learning_rates

if TYPE_CHECKING:
    from . import presets
    from ._comparison.compare import Report, compare
    from ._comparison.topologies import Candidate, read_topologies
    from ._compression.decompose import Decomposition, decompose, mps
    from ._compression.entanglement import Cut, Entanglement, entanglement, entanglement_nulls
    from ._compression.gauge import balance, canonicalise, gauge_error
    from ._compression.ranks import cut, grow
    from ._compression.rounding import rounded
    from ._compression.svd import Factors, low_rank_factors
    from ._model.io import load, save
    from ._planning.calibrate import Calibration, calibrate, calibrated
    from ._planning.cost import CostReport, CostRow, cost
    from ._planning.growth import Growth, growth
    from ._planning.layer import plan
    from ._planning.plan import Plan
    from ._runtime.cost import Cost, Machine
    from ._search.objective import TrainingLoss
    from ._search.reconnect import Reconnection, reconnect
    from ._search.search import Evaluation, Search, search
    from ._training.autorank import AutoRank
    from ._training.callbacks import EntanglementLog
    from ._training.data import Dataset
    from ._training.data import load as load_data
    from ._training.results import Epoch, Run
    from ._training.train import train

    __version__: str

# Planning, training, comparing, data and decomposing bring much that declaring does not need: imported when asked for.
_LAZY: dict[str, tuple[str, str | None]] = {
    "presets": ("presets", None),  # the module itself
    "Cost": ("_runtime.cost", "Cost"),
    "Machine": ("_runtime.cost", "Machine"),
    "Plan": ("_planning.plan", "Plan"),
    "plan": ("_planning.layer", "plan"),
    "Calibration": ("_planning.calibrate", "Calibration"),
    "calibrate": ("_planning.calibrate", "calibrate"),
    "calibrated": ("_planning.calibrate", "calibrated"),
    "AutoRank": ("_training.autorank", "AutoRank"),
    "cut": ("_compression.ranks", "cut"),
    "grow": ("_compression.ranks", "grow"),
    "Candidate": ("_comparison.topologies", "Candidate"),
    "Report": ("_comparison.compare", "Report"),
    "compare": ("_comparison.compare", "compare"),
    "read_topologies": ("_comparison.topologies", "read_topologies"),
    "CostReport": ("_planning.cost", "CostReport"),
    "CostRow": ("_planning.cost", "CostRow"),
    "cost": ("_planning.cost", "cost"),
    "Growth": ("_planning.growth", "Growth"),
    "growth": ("_planning.growth", "growth"),
    "Dataset": ("_training.data", "Dataset"),
    "load_data": ("_training.data", "load"),
    "Decomposition": ("_compression.decompose", "Decomposition"),
    "decompose": ("_compression.decompose", "decompose"),
    "mps": ("_compression.decompose", "mps"),
    "Cut": ("_compression.entanglement", "Cut"),
    "Entanglement": ("_compression.entanglement", "Entanglement"),
    "entanglement": ("_compression.entanglement", "entanglement"),
    "entanglement_nulls": ("_compression.entanglement", "entanglement_nulls"),
    "load": ("_model.io", "load"),
    "save": ("_model.io", "save"),
    "rounded": ("_compression.rounding", "rounded"),
    "balance": ("_compression.gauge", "balance"),
    "canonicalise": ("_compression.gauge", "canonicalise"),
    "gauge_error": ("_compression.gauge", "gauge_error"),
    "TrainingLoss": ("_search.objective", "TrainingLoss"),
    "Reconnection": ("_search.reconnect", "Reconnection"),
    "reconnect": ("_search.reconnect", "reconnect"),
    "Evaluation": ("_search.search", "Evaluation"),
    "Search": ("_search.search", "Search"),
    "search": ("_search.search", "search"),
    "Factors": ("_compression.svd", "Factors"),
    "low_rank_factors": ("_compression.svd", "low_rank_factors"),
    "Epoch": ("_training.results", "Epoch"),
    "Run": ("_training.results", "Run"),
    "train": ("_training.train", "train"),
    "EntanglementLog": ("_training.callbacks", "EntanglementLog"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from ._base.version import installed_version

        value: Any = installed_version()
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
