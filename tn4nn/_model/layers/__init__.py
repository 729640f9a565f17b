"""The layer graph: a model as data.

Layers are frozen dataclasses that check themselves at birth. They hold no numbers and know no framework;
each backend has one table from these classes to what it runs.
"""

from .base import KINDS, Layer, OnNetwork, Spec
from .containers import Parallel, Residual, Sequential, replace_networks
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
    ReLU,
    Sigmoid,
    SiLU,
    Tanh,
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
]
