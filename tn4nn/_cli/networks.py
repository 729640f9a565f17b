"""NETWORK, as every command takes it: one grammar.

mpo                                       a name of the catalogue (`tn4nn catalogue`); features by --in and --out
mine.toml, mine.json, mine.toml:grid      a file of topologies, or one entry of it; a network that was saved as JSON
"x0=4 x1=8 -> y0=4 : x0 y0 a, x1 a"       sizes of the open legs, then the cores
"xab,byc->xayc 4x5x3,3x6x2 xy"            an einsum equation over the cores, their shapes, the letters of the input
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

from .._base.checks import read_json
from .._base.errors import TN4NNError, TopologyError
from .._comparison.topologies import Candidate, read_topologies
from .._graph.catalogue import build, catalogue
from .._graph.network import Network
from .._graph.topology import Topology, parse
from ..interop.einsum import from_einsum

Given: TypeAlias = str | Topology | Network | Candidate  # a str is a name of the catalogue

HELP = (
    "A catalogue name; a .toml or .json file, also FILE:ENTRY; 'x0=4 x1=8 -> y0=4 : x0 y0 a, x1 a'; or an einsum, "
    "'xa,ay->xy 4x2,2x8 x': equation, shapes of the cores, letters of the input."
)
_FILE = re.compile(r"(.*\.(?:toml|json))(?::([^/\\]*))?")
_SHAPED = re.compile(r"\S+ [\dx,]+ \S+")  # an equation without an arrow


def network(text: str, inputs: int, outputs: int, sites: int | None) -> Network | Topology:
    """The one network that a text names; features and sites are for names of the catalogue.

    Raises:
        TN4NNError: it names none, or several.
    """
    found = several(text)
    if len(found) != 1:
        names = ", ".join(one if isinstance(one, str) else name_of(one) for one in found)
        raise TopologyError(f"expected one network, received {len(found)}: {names}. Name one of a file by FILE:ENTRY")
    (one,) = found
    if isinstance(one, str):
        return build(one, inputs, outputs, sites=sites)
    return one.hidden if isinstance(one, Candidate) else one


def listed(text: str) -> list[Given]:
    """Several, split by commas; by semicolons where one is a text or an equation, which have commas of their own."""
    if ";" in text or "->" in text:
        parts = text.split(";")
    else:
        parts = text.split(",")
    return [one for part in parts if part.strip() for one in several(part)]


def several(text: str) -> list[Given]:
    """What a text names: all entries of a file, else one."""
    text = text.strip()
    file = _FILE.fullmatch(text)
    if file is not None:
        return _in_file(Path(file[1]), file[2])
    if "=" in text:
        return [_of_sizes(text)]
    if "->" in text or _SHAPED.fullmatch(text):
        return [_of_equation(text)]
    return [text]


def name_of(one: Topology | Network | Candidate) -> str:
    """What tables call it."""
    return one.topology.name if isinstance(one, Network) else one.name


def complete(incomplete: str) -> list[str]:
    """Names of the catalogue that go on from what is typed, for a shell."""
    return [name for name in catalogue() if name.startswith(incomplete)]


def _in_file(path: Path, entry: str | None) -> list[Given]:
    if path.suffix == ".json" and entry is None:
        try:
            text = path.read_text("utf-8", errors="replace")
        except OSError as error:
            raise TopologyError(f"{path} cannot be read: {error}") from error
        data = read_json(text, "network, or of topologies")
        if {"topology", "ranks"} <= data.keys():
            return [Network.from_dict(data)]
        if {"cores", "inputs", "outputs"} <= data.keys():
            return [Topology.from_dict(data)]
    found = {one.name: one for one in read_topologies(path)}
    if not entry:
        return [*found.values()]
    if entry not in found:
        raise TopologyError(f"{path} has no entry {entry!r}: expected one of {', '.join(found) or 'none'}")
    return [found[entry]]


def _of_sizes(text: str) -> Topology:
    """ "x0=4 x1=8 -> y0=4 : x0 y0 a, x1 a" as a Topology."""
    head, _, cores = text.partition(":")
    sides = head.split("->")
    try:
        pairs = [[(leg, int(n)) for leg, n in (item.split("=") for item in side.split())] for side in sides]
        inputs, outputs = map(dict, pairs)
    except ValueError:
        raise TN4NNError(f"expected 'x0=4 x1=8 -> y0=4 : x0 y0 a, x1 a', received {text!r}") from None
    for side in pairs:
        legs = [leg for leg, _ in side]
        for leg in legs:
            if legs.count(leg) > 1:
                raise TN4NNError(f"leg {leg!r} has a size twice on one side of {text!r}: give each leg one")
    return Topology(parse(cores), inputs, outputs, name=cores.strip())


def _of_equation(text: str) -> Network:
    parts = text.split()
    try:
        equation, shapes, inputs = parts
        sizes = [tuple(int(size) for size in shape.split("x")) for shape in shapes.split(",")]
    except ValueError:
        raise TN4NNError(
            "expected an einsum as 'xa,ay->xy 4x2,2x8 x' (equation, shapes of the cores, letters of the input), "
            f"received {text!r}"
        ) from None
    return from_einsum(equation, sizes, inputs=inputs, name=equation)
