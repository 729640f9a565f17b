"""The layer graph: a model as data.

Layers are frozen dataclasses that check themselves at birth. They hold no numbers and know no framework;
each backend has one table from these classes to what it runs.
"""

from .attention import Attention, Positions
from .base import KINDS, Layer, OnNetwork, Spec
from .containers import Block, Parallel, Residual, Sequential, Tied, check_branches, embedding_of, replace_networks
from .data import layer_from_dict, model_from_json
from .on_network import Conv2d, Embedding, Linear
from .plain import (
    GELU,
    AvgPool,
    BatchNorm,
    Dropout,
    Flatten,
    LayerNorm,
    MaxPool,
    MeanPool,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Tanh,
    Tokens,
    Unflatten,
)
from .shapes import Shape

__all__ = [
    "GELU",
    "KINDS",
    "AvgPool",
    "BatchNorm",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "Layer",
    "LayerNorm",
    "Linear",
    "MaxPool",
    "OnNetwork",
    "Parallel",
    "ReLU",
    "Residual",
    "Sequential",
    "Shape",
    "SiLU",
    "Sigmoid",
    "Spec",
    "Tanh",
    "Unflatten",
    "layer_from_dict",
    "model_from_json",
    "replace_networks",
    "Attention",
    "Positions",
    "Block",
    "Tied",
    "RMSNorm",
    "Tokens",
    "MeanPool",
    "check_branches",
    "embedding_of",
]
