"""What every other library's network comes down to: named tensors over named indices, checked on the way in."""

from __future__ import annotations

import importlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._base.checks import checked_size, nearest
from .._base.errors import BackendError, ShapeError, TopologyError
from .._graph.network import Network
from .._graph.topology import Core, Topology, holders_of

Legs = tuple[str, ...]
Named = Sequence[tuple[str, Legs]]  # (core name, its indices)


def library(name: str) -> Any:
    """An optional library, or an error with the line that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BackendError(f'{name.partition(".")[0]} is not installed: pip install "tn4nn[interop]"') from error


def network_of(
    tensors: Named, sizes: Mapping[str, int], sides: tuple[Iterable[str], Iterable[str]], name: str
) -> Network:
    """A Network out of tensors over indices of known sizes; `sides` are (inputs, outputs).

    Raises:
        TopologyError: an index twice on one tensor, one of size 0, one that is named but not there, one of a
            single tensor that is neither input nor output.
    """
    inputs, outputs = map(tuple, sides)
    _check_tensors(tensors)
    for side, legs in (("inputs", inputs), ("outputs", outputs)):
        _check_side(side, legs, sizes)
    for leg, holders in holders_of([legs for _, legs in tensors]).items():
        if len(holders) == 1 and leg not in inputs and leg not in outputs:
            tensor = tensors[holders[0]][0]
            raise TopologyError(
                f"index {leg!r} is only on tensor {tensor!r} and is neither input nor output: name it in inputs= "
                "or outputs=, or sum over it before"
            )
    checked = {leg: checked_size(size, f"index {leg!r}") for leg, size in sizes.items()}
    topology = Topology(
        tuple(Core(tensor, legs) for tensor, legs in tensors),
        {leg: checked[leg] for leg in inputs},
        {leg: checked[leg] for leg in outputs},
        name=name,
    )
    return Network(topology, {bond: checked[bond] for bond in topology.bonds})


def _check_tensors(tensors: Named) -> None:
    for tensor, legs in tensors:
        if not legs:
            raise TopologyError(f"tensor {tensor!r} has no indices (a scalar): multiply it into another tensor")
        for leg in legs:
            if legs.count(leg) > 1:
                raise TopologyError(f"index {leg!r} occurs twice on tensor {tensor!r} (a trace): sum over it before")


def _check_side(side: str, legs: Legs, sizes: Mapping[str, int]) -> None:
    for leg in legs:
        if leg not in sizes:
            raise TopologyError(f"{side}: {leg!r} is not an index of the network." + nearest(leg, sizes))
        if legs.count(leg) > 1:
            raise TopologyError(f"{side}: index {leg!r} is named twice")


def core_names(wanted: Iterable[str | None]) -> list[str]:
    """A core name for each wanted one: the same where it is allowed, with underscores for other characters; else core0,
    core1, ...

    Examples:
        >>> core_names(["I0", "I0,1", None, "x"])
        ['I0', 'I0_1', 'core2', 'core3']
    """
    names: list[str] = []
    for position, word in enumerate(wanted):
        name = re.sub(r"\W+", "_", word or "").strip("_")
        if not name.isidentifier() or name in ("bias", "x") or name in names:
            name = f"core{position}"
        while name in names:
            name += "_"
        names.append(name)
    return names


def leg_names(wanted: Iterable[str | None], spare: str = "bond") -> list[str]:
    """A leg name for each wanted one, the same where it is allowed; bond0, bond1, ... for None.

    Examples:
        >>> leg_names(["k0", "k0,1", None, "bond0", "k0_1"])
        ['k0', 'k0_1', 'bond1', 'bond0', 'k0_1_']
    """
    words = [None if word is None else re.sub(r"[\s,:]", "_", word) for word in wanted]
    numbered = (name for i in itertools.count() if (name := f"{spare}{i}") not in words)
    names: list[str] = []
    for word in words:
        name = word or next(numbered)
        while name in names:
            name += "_"
        names.append(name)
    return names


def unique(words: Iterable[str | None]) -> list[str | None]:
    """The words that occur once; None for the others.

    Examples:
        >>> unique(["a", "b", "a", None])
        [None, 'b', None, None]
    """
    listed = list(words)
    counts = Counter(listed)
    return [word if counts[word] == 1 else None for word in listed]


def real_array(data: Any, tensor: str) -> NDArray[Any]:
    """A copy of any library's array in numpy: floats as they are, whole numbers as float64, complex numbers refused."""
    import autoray

    array = np.array(autoray.to_numpy(data))
    if np.iscomplexobj(array):
        raise ShapeError(
            f"tensor {tensor!r}: expected real numbers, received {array.dtype}: a layer is real. Where the imaginary "
            "parts are zero, pass the real parts"
        )
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)


def check_on_cores(network: Network, what: str) -> None:
    """Refuses a batch leg that is on no core: the other library could not hold it."""
    for leg in network.topology.kept:
        if not network.topology.holders[leg]:
            raise TopologyError(f"batch leg {leg!r} is on no core: {what} cannot hold it")
