"""A converted model in one file: which layers are on networks, which arrays are one, and all numbers of the model.

The code of the model is not in the file: whoever reads it brings the architecture, and nothing of the file is executed.
Both backends write and read the same records; what is left to them is to walk through a model of their framework.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.cache import plans
from .._base.errors import CheckpointError, DataError, TN4NNError
from .._base.records import check_schema, read_arrays, sealed, unsealed, write_arrays
from .._base.version import installed_version
from .layers import OnNetwork, layer_from_dict

SCHEMA = 1
_KIND = "converted model"
_ADVICE = "give a file that this version's save of the same backend wrote, and the architecture that was saved"
BITS = {"bfloat16": np.uint16}  # dtypes that numpy has not: their bits are stored


@dataclasses.dataclass(frozen=True)
class KeptLayer:
    """A layer on a network.

    Attributes:
        names: all names that it has in the model.
        layer: what it computes.
        options: how it plans: "phase", "minimize" and "batch" (None where the rows that come decide).
    """

    names: tuple[str, ...]
    layer: OnNetwork
    options: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"names": list(self.names), "layer": self.layer.to_dict(), "options": dict(self.options)}


@dataclasses.dataclass(frozen=True)
class Structure:
    """What a model is beside its architecture and its numbers.

    Attributes:
        layers: those on networks.
        ties: groups of names of arrays that are one.
        frozen: names of parameters that are not trained.
    """

    layers: tuple[KeptLayer, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    frozen: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with a digest."""
        found = {"schema": SCHEMA, "kind": _KIND, "versions": {"tn4nn": installed_version()}}
        found["layers"] = [layer.to_dict() for layer in self.layers]
        return sealed({**found, "ties": self.ties, "frozen": self.frozen})

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Structure:
        """Reads what `to_dict` gave.

        Args:
            data: plain data, of whatever origin.
            where: it comes from, for errors.

        Raises:
            CheckpointError: data of another kind or schema, damaged data, or data that make no layers.
        """
        check_schema(data, SCHEMA, where, _ADVICE)
        return _structure(unsealed(data, where, _ADVICE), where)

    @property
    def fingerprints(self) -> set[str]:
        """Of the networks."""
        return {kept.layer.solid().fingerprint for kept in self.layers}


def _structure(data: Mapping[str, Any], where: str) -> Structure:
    if data.get("kind") != _KIND:
        raise CheckpointError(f"{where} holds a {data.get('kind')!r}, expected a {_KIND!r}: {_ADVICE}")
    try:
        layers = tuple(_layer(one) for one in data["layers"])
        ties = tuple(_names(group, 2) for group in data["ties"])
        return Structure(layers, ties, _names(data["frozen"], 0))
    except (TN4NNError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{where}: its layers cannot be read ({error}): {_ADVICE}") from error


def _layer(data: Mapping[str, Any]) -> KeptLayer:
    layer = layer_from_dict(data["layer"])
    if not isinstance(layer, OnNetwork):
        raise ValueError(f"{type(layer).__name__} is no layer on a network")
    layer.solid()
    options = data["options"]
    batch = options["batch"]
    known = {"phase": ("train", "forward"), "minimize": ("time", "flops", "memory")}
    right = all(options[name] in values for name, values in known.items()) and set(options) == {*known, "batch"}
    if not right or not (batch is None or (type(batch) is int and 0 < batch < 2**31)):
        raise ValueError(f"options {options!r}")
    return KeptLayer(_names(data["names"], 1), layer, dict(options))


def _names(found: Any, least: int) -> tuple[str, ...]:
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found) or len(found) < least:
        raise ValueError(f"expected a list of names, received {found!r}")
    return tuple(found)


def write(
    path: str | os.PathLike[str], structure: Structure, arrays: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str]
) -> None:
    """Writes a model, whole or not at all.

    Args:
        path: of the file.
        structure: of the model.
        arrays: name -> numbers, one for each group of ties; of a dtype in `BITS` the bits.
        dtypes: name -> dtype of those that are bits.

    Raises:
        WriteError: the file cannot be written; an older one is as it was.
    """
    record = {**structure.to_dict(), "dtypes": dict(dtypes), "plans": plans.owned(structure.fingerprints)}
    write_arrays(path, arrays, record)


def read(path: str | os.PathLike[str]) -> tuple[Structure, dict[str, NDArray[Any]], dict[str, str]]:
    """Reads what `write` wrote: the structure, the arrays, and the dtypes of those that are bits.

    Raises:
        DataError: there is no such file, or it cannot be read.
        CheckpointError: a file of another kind, or a damaged one.
    """
    record, arrays = read_arrays(Path(path), SCHEMA, "a converted model", _ADVICE, unreadable=DataError)
    structure = _structure(record, str(path))
    dtypes = record.get("dtypes")
    if not isinstance(dtypes, dict) or any(
        name not in arrays or dtype not in BITS or arrays[name].dtype != BITS[dtype] for name, dtype in dtypes.items()
    ):
        raise CheckpointError(f"{path}: the dtypes in it do not fit its arrays: {_ADVICE}")
    found = record.get("plans", {})
    if isinstance(found, dict):
        plans.adopt(found, structure.fingerprints)
    return structure, arrays, dtypes


def check_names(path: object, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raises CheckpointError where the arrays of a file are not those of the model."""
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or surplus:
        said = [f"it lacks {missing[0]!r}"] if missing else []
        said += [f"it has {surplus[0]!r}, which the base has not"] if surplus else []
        count = f" ({len(missing)} and {len(surplus)} such names)" if len(missing) + len(surplus) > 1 else ""
        raise CheckpointError(f"{path} is not of this base: {', '.join(said)}{count}: give the architecture it is of")
