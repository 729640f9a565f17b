"""A model and its weights in one file: safetensors with JSON in its metadata, never pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.arrays import numbers
from .._base.cache import plans
from .._base.checks import check_file, nearest
from .._base.errors import CheckpointError, DataError, ShapeError, TN4NNError
from .._base.reading import read_npy
from .._base.records import read_arrays, write_arrays
from .._base.version import installed_version
from .._graph.network import Network
from .layers import Layer, OnNetwork, layer_from_dict

SCHEMA = 2  # those before had no digest


def save(path: str | os.PathLike[str], model: Layer | Network, weights: Mapping[str, Any]) -> None:
    """Writes a model (or one Network) and its weights to a file, whole or not at all.

    The file is a safetensors file: anything that reads those finds the arrays under their names. Layer graph,
    topologies, ranks, orderings and versions are JSON in its metadata, and so are the plans that this process has
    found or read for the model's networks: a process that loads the file need not search for them again (those that
    were made for another processor are not used). A digest over all of it tells a damaged file.

    Args:
        path: of the file; an older one is replaced.
        model: a layer, a whole model, or a Network.
        weights: name -> array, as `init`, training or a backend's `weights` gives them. Numbers are stored to the bit,
            bfloat16 as float32: a module that is built with dtype="bfloat16" has the same bits.

    Raises:
        ShapeError: weights of another model, or arrays that hold no numbers.
        WriteError: the file cannot be written; an older one is as it was.

    Examples:
        >>> import tempfile, pathlib, numpy as np, tn4nn as tn
        >>> model = tn.Sequential(tn.Linear(tn.ring((4, 4), (2, 2)).with_rank(2)), tn.ReLU())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "model.safetensors"
        ...     tn.save(file, model, model.init(0))
        ...     again, weights = tn.load(file)
        >>> again == model, all(np.array_equal(a, model.init(0)[name]) for name, a in weights.items())
        (True, True)
    """
    check_file(path, "save(path, model, weights)")
    if not isinstance(model, Layer | Network):
        raise ShapeError(f"save takes a model or a Network, then its weights; received {type(model).__name__}")
    model.check(weights)
    record = {
        "schema": SCHEMA,
        "versions": {"tn4nn": installed_version(), "numpy": np.__version__},
        "network" if isinstance(model, Network) else "model": model.to_dict(),
        "plans": plans.owned(_fingerprints(model)),
    }
    write_arrays(path, {name: numbers(array, repr(name)) for name, array in weights.items()}, record)


def _fingerprints(model: Layer | Network) -> set[str]:
    """Of all networks of a model."""
    if isinstance(model, Network):
        return {model.fingerprint}
    layers = (layer for _, layer in model.walk() if isinstance(layer, OnNetwork) and layer.has_ranks)
    return {layer.solid().fingerprint for layer in layers}


def load(path: str | os.PathLike[str]) -> tuple[Layer | Network, dict[str, NDArray[Any]]]:
    """Reads what `save` wrote.

    A file may come from anybody: nothing in it is executed, its plans are used for its own networks alone, and each is
    checked and priced anew when it is needed. One that does not fit is searched for again.

    Args:
        path: of the file.

    Returns:
        (model, weights): `model.build(backend, weights)` goes on with them on any backend.

    Raises:
        DataError: there is no such file, or it cannot be read.
        CheckpointError: a file that is not of `save`, of another version of its format, or with arrays missing, too
            many, or of another shape, or one that was damaged or edited.

    Examples:
        >>> import tempfile, tn4nn as tn
        >>> model = tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tn.save(f"{folder}/model.tn", model, model.init(0))
        ...     again, weights = tn.load(f"{folder}/model.tn")
        >>> again == model, sorted(weights)
        (True, ['bias', 'core0', 'core1'])
    """
    advice = "give a file that this version's tn4nn.save wrote (arrays of other files go to tn.decompose)"
    record, weights = read_arrays(Path(path), SCHEMA, "one of tn4nn.save", advice, unreadable=DataError)
    try:
        model: Layer | Network
        model = Network.from_dict(record["network"]) if "network" in record else layer_from_dict(record["model"])
        names = list(model.shapes if isinstance(model, Network) else model.specs())
        model.check(weights)
    except (TN4NNError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path}: the model and the arrays in it do not fit: {error}") from error
    found = record.get("plans", {})
    if isinstance(found, dict):
        plans.adopt(found, _fingerprints(model))
    return model, {name: weights[name] for name in names}


def read_matrix(path: str | os.PathLike[str], tensor: str | None = None) -> NDArray[Any]:
    """A matrix out of a .npy file, or out of a .safetensors file by the name of the tensor.

    Raises:
        DataError: no such file or tensor (with the names of the matrices in it), or no matrix.
    """
    if Path(path).suffix == ".npy":
        try:
            found = read_npy(Path(path))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as a .npy file: {error}") from error
    else:
        found = _tensor(Path(path), tensor)
    if found.ndim != 2:
        raise DataError(f"{path}: expected a matrix (out_features, in_features), received shape {found.shape}")
    return found


def _tensor(path: Path, name: str | None) -> NDArray[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            names = list(file.keys())
            if name not in names:
                matrices = [n for n in names if len(file.get_slice(n).get_shape()) == 2]
                raise DataError(
                    f"{path}: expected the name of a tensor (tensor=; --tensor in a shell), received {name!r}."
                    + nearest(name or "", matrices or names)
                )
            return np.asarray(file.get_tensor(name))
    except DataError:
        raise
    except (OSError, SafetensorError, TypeError, ValueError, MemoryError) as error:
        raise DataError(f"{path} cannot be read as a .npy or .safetensors file: {error}") from error
