"""tn4nn: declare any tensor-network topology, fix a budget, and get a layer for it in torch and jax.

One direction, each arrow a new immutable value::

    topology -> Topology -> with_budget -> Network -> plan -> Plan
        -> Sequential -> Model -> init(seed) -> weights -> build("torch" | "jax" | "numpy") -> module

Importing tn4nn imports no framework.
"""

import typing as _typing

if _typing.TYPE_CHECKING:
    from . import presets
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
    from ._comparison.compare import Report, compare
    from ._comparison.topologies import Candidate, read_topologies
    from ._compression.decompose import Decomposition, decompose, mps
    from ._compression.entanglement import Cut, Entanglement, entanglement, entanglement_nulls
    from ._compression.gauge import balance, canonicalise, gauge_error
    from ._compression.ranks import cut, grow
    from ._compression.rounding import rounded
    from ._compression.svd import Factors, low_rank_factors
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
    from ._model.io import load, save
    from ._model.layers import (
        GELU,
        Attention,
        AvgPool,
        BatchNorm,
        Block,
        Conv2d,
        Dropout,
        Embedding,
        Flatten,
        Layer,
        LayerNorm,
        Linear,
        MaxPool,
        MeanPool,
        Parallel,
        Positions,
        ReLU,
        Residual,
        RMSNorm,
        Sequential,
        Sigmoid,
        SiLU,
        Tanh,
        Tied,
        Tokens,
        Unflatten,
        model_from_json,
    )
    from ._planning.calibrate import Calibration, calibrate, calibrated
    from ._planning.cost import CostReport, CostRow, cost
    from ._planning.einsum import Expression, contract_expression, einsum
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
    from ._training.schedule import learning_rates
    from ._training.tasks import Task, classification, regression
    from ._training.text import language_model, load_text
    from ._training.train import train

    __version__: str

# Where each name is: imported when it is asked for, so that a program that needs little starts at once.
_WHERE: dict[str, tuple[str, str | None]] = {
    "Attention": ("_model.layers", "Attention"),
    "AutoRank": ("_training.autorank", "AutoRank"),
    "AvgPool": ("_model.layers", "AvgPool"),
    "backend": ("_model.backend", "backend"),
    "BackendError": ("_base.errors", "BackendError"),
    "backends": ("_model.backend", "backends"),
    "balance": ("_compression.gauge", "balance"),
    "BatchNorm": ("_model.layers", "BatchNorm"),
    "Block": ("_model.layers", "Block"),
    "block_term": ("_graph.catalogue", "block_term"),
    "btt": ("_graph.catalogue", "btt"),
    "BudgetError": ("_base.errors", "BudgetError"),
    "build": ("_graph.catalogue", "build"),
    "calibrate": ("_planning.calibrate", "calibrate"),
    "calibrated": ("_planning.calibrate", "calibrated"),
    "Calibration": ("_planning.calibrate", "Calibration"),
    "Candidate": ("_comparison.topologies", "Candidate"),
    "canonicalise": ("_compression.gauge", "canonicalise"),
    "catalogue": ("_graph.catalogue", "catalogue"),
    "CheckpointError": ("_base.errors", "CheckpointError"),
    "classification": ("_training.tasks", "classification"),
    "compare": ("_comparison.compare", "compare"),
    "complete": ("_graph.catalogue", "complete"),
    "contract_expression": ("_planning.einsum", "contract_expression"),
    "Conv2d": ("_model.layers", "Conv2d"),
    "Core": ("_graph.topology", "Core"),
    "Cost": ("_runtime.cost", "Cost"),
    "cost": ("_planning.cost", "cost"),
    "CostReport": ("_planning.cost", "CostReport"),
    "CostRow": ("_planning.cost", "CostRow"),
    "cp": ("_graph.catalogue", "cp"),
    "Cut": ("_compression.entanglement", "Cut"),
    "cut": ("_compression.ranks", "cut"),
    "DataError": ("_base.errors", "DataError"),
    "Dataset": ("_training.data", "Dataset"),
    "decompose": ("_compression.decompose", "decompose"),
    "Decomposition": ("_compression.decompose", "Decomposition"),
    "dense": ("_graph.catalogue", "dense"),
    "Dropout": ("_model.layers", "Dropout"),
    "einsum": ("_planning.einsum", "einsum"),
    "Embedding": ("_model.layers", "Embedding"),
    "Entanglement": ("_compression.entanglement", "Entanglement"),
    "entanglement": ("_compression.entanglement", "entanglement"),
    "entanglement_nulls": ("_compression.entanglement", "entanglement_nulls"),
    "EntanglementLog": ("_training.callbacks", "EntanglementLog"),
    "Epoch": ("_training.results", "Epoch"),
    "Evaluation": ("_search.search", "Evaluation"),
    "Expression": ("_planning.einsum", "Expression"),
    "Factors": ("_compression.svd", "Factors"),
    "Flatten": ("_model.layers", "Flatten"),
    "gauge_error": ("_compression.gauge", "gauge_error"),
    "GELU": ("_model.layers", "GELU"),
    "grow": ("_compression.ranks", "grow"),
    "Growth": ("_planning.growth", "Growth"),
    "growth": ("_planning.growth", "growth"),
    "installed_backends": ("_model.backend", "installed_backends"),
    "kronecker": ("_graph.catalogue", "kronecker"),
    "language_model": ("_training.text", "language_model"),
    "Layer": ("_model.layers", "Layer"),
    "LayerNorm": ("_model.layers", "LayerNorm"),
    "learning_rates": ("_training.schedule", "learning_rates"),
    "Linear": ("_model.layers", "Linear"),
    "load": ("_model.io", "load"),
    "load_data": ("_training.data", "load"),
    "load_text": ("_training.text", "load_text"),
    "low_rank": ("_graph.catalogue", "low_rank"),
    "low_rank_factors": ("_compression.svd", "low_rank_factors"),
    "Machine": ("_runtime.cost", "Machine"),
    "MaxPool": ("_model.layers", "MaxPool"),
    "MeanPool": ("_model.layers", "MeanPool"),
    "mera": ("_graph.catalogue", "mera"),
    "model_from_json": ("_model.layers", "model_from_json"),
    "modes_for": ("_graph.modes", "modes_for"),
    "monarch": ("_graph.catalogue", "monarch"),
    "mpo": ("_graph.catalogue", "mpo"),
    "mps": ("_compression.decompose", "mps"),
    "Network": ("_graph.network", "Network"),
    "Ordering": ("_graph.ordering", "Ordering"),
    "Parallel": ("_model.layers", "Parallel"),
    "peps": ("_graph.catalogue", "peps"),
    "Plan": ("_planning.plan", "Plan"),
    "plan": ("_planning.layer", "plan"),
    "Positions": ("_model.layers", "Positions"),
    "presets": ("presets", None),  # the module itself
    "rank_caps": ("_graph.rank_problem", "rank_caps"),
    "read_topologies": ("_comparison.topologies", "read_topologies"),
    "reconnect": ("_search.reconnect", "reconnect"),
    "Reconnection": ("_search.reconnect", "Reconnection"),
    "regression": ("_training.tasks", "regression"),
    "ReLU": ("_model.layers", "ReLU"),
    "Report": ("_comparison.compare", "Report"),
    "Residual": ("_model.layers", "Residual"),
    "ring": ("_graph.catalogue", "ring"),
    "RMSNorm": ("_model.layers", "RMSNorm"),
    "rounded": ("_compression.rounding", "rounded"),
    "Run": ("_training.results", "Run"),
    "save": ("_model.io", "save"),
    "Search": ("_search.search", "Search"),
    "search": ("_search.search", "search"),
    "Sequential": ("_model.layers", "Sequential"),
    "ShapeError": ("_base.errors", "ShapeError"),
    "Sigmoid": ("_model.layers", "Sigmoid"),
    "SiLU": ("_model.layers", "SiLU"),
    "Tanh": ("_model.layers", "Tanh"),
    "Task": ("_training.tasks", "Task"),
    "Tied": ("_model.layers", "Tied"),
    "TN4NNError": ("_base.errors", "TN4NNError"),
    "Tokens": ("_model.layers", "Tokens"),
    "Topology": ("_graph.topology", "Topology"),
    "topology": ("_graph.topology", "topology"),
    "TopologyError": ("_base.errors", "TopologyError"),
    "train": ("_training.train", "train"),
    "TrainingLoss": ("_search.objective", "TrainingLoss"),
    "tree": ("_graph.catalogue", "tree"),
    "tucker": ("_graph.catalogue", "tucker"),
    "Unflatten": ("_model.layers", "Unflatten"),
    "with_budget": ("_model.budget", "with_budget"),
    "WriteError": ("_base.errors", "WriteError"),
}

__all__ = [
    "Attention",
    "AutoRank",
    "AvgPool",
    "backend",
    "BackendError",
    "backends",
    "balance",
    "BatchNorm",
    "Block",
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
    "classification",
    "compare",
    "complete",
    "contract_expression",
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
    "einsum",
    "Embedding",
    "Entanglement",
    "entanglement",
    "entanglement_nulls",
    "EntanglementLog",
    "Epoch",
    "Evaluation",
    "Expression",
    "Factors",
    "Flatten",
    "gauge_error",
    "GELU",
    "grow",
    "Growth",
    "growth",
    "installed_backends",
    "kronecker",
    "language_model",
    "Layer",
    "LayerNorm",
    "learning_rates",
    "Linear",
    "load",
    "load_data",
    "load_text",
    "low_rank",
    "low_rank_factors",
    "Machine",
    "MaxPool",
    "MeanPool",
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
    "Positions",
    "presets",
    "rank_caps",
    "read_topologies",
    "reconnect",
    "Reconnection",
    "regression",
    "ReLU",
    "Report",
    "Residual",
    "ring",
    "RMSNorm",
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
    "Task",
    "Tied",
    "TN4NNError",
    "Tokens",
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


if not _typing.TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from ._base.version import installed_version

            value = installed_version()
        elif name in _WHERE:
            from importlib import import_module

            module, attribute = _WHERE[name]
            found = import_module(f".{module}", __name__)
            value = found if attribute is None else getattr(found, attribute)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
