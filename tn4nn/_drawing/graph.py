"""Pictures of topologies: cores as circles, bonds as lines, input legs down, output legs up.

The position of a core follows from the graph, not from its name: a path becomes a chain, a cycle or a complete
graph a circle, a grid a grid, a star of factors two rows, a tree its levels with the leaves at the bottom,
and everything else is laid out so that distances on paper follow distances in the graph (stress majorization,
Gansner et al. 2005). Only MERA is recognised by its name. Nothing here is random or global.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._base.errors import TN4NNError
from .figure import BLUE, new_figure, saved, scale_colour, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PICTURED = 60  # cores of a network that is drawn unasked, in a notebook


class Node(Protocol):
    """A core: its name and its legs."""

    @property
    def name(self) -> str: ...
    @property
    def legs(self) -> tuple[str, ...]: ...


class Topology(Protocol):
    """What is drawn: the attributes of `tn4nn.Topology` that say which cores share which legs."""

    @property
    def name(self) -> str: ...
    @property
    def cores(self) -> Sequence[Node]: ...
    @property
    def inputs(self) -> Mapping[str, int]: ...
    @property
    def outputs(self) -> Mapping[str, int]: ...
    @property
    def bonds(self) -> tuple[str, ...]: ...
    @property
    def kept(self) -> tuple[str, ...]: ...
    @property
    def modes(self) -> Mapping[str, int]: ...
    @property
    def holders(self) -> Mapping[str, Sequence[int]]: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...


Point = tuple[float, float]
Places = dict[str, Point]
Graph = dict[str, list[str]]  # node -> neighbours, in the order in which they were met

# The ground is that of the page, light or dark: hues of Okabe and Ito, as light as has a contrast of about 4 to 1 with
# #ffffff and with #1e1e1e.
_CORE, _BOND, _INPUT, _OUTPUT, _BATCH = BLUE, "#7d8085", "#008f68", "#d05c00", "#b8679a"
_INCH = 0.82  # of one unit of length
_WIDEST = 15.0  # inches; wider pictures are scaled down, their letters too
_RADIUS = 0.31
_STUB = 0.72  # from the middle of a core to the end of a stub
_FAN = 0.58  # between the ends of two stubs
_STEP = 1.35  # between neighbouring cores
_SMALL = 8.5  # points of a label


def draw(
    topology: Topology,
    ranks: Mapping[str, int] | None = None,
    *,
    shares: Mapping[str, float] | None = None,
    path: str | None = None,
) -> Figure:
    """Draws a topology; see `Topology.draw` and `Network.draw`.

    Args:
        topology: what is drawn.
        ranks: bond -> size; given, bonds are labelled with it and drawn wider, else with their names.
        shares: bond -> S / ln(chi), from 0 to 1; given, bonds are coloured by it.
        path: a .png or .svg file to write.

    Raises:
        TN4NNError: another ending, or matplotlib is not installed.

    Examples:
        >>> import tn4nn as tn
        >>> figure = draw(tn.peps((2, 2, 2, 2), (2, 2, 2, 2)))
        >>> len(figure.axes[0].patches)  # one circle for each core
        4
    """
    figure = new_figure(path)
    colours = None if shares is None else {bond: scale_colour(share) for bond, share in shares.items()}
    _paint(figure, _arranged(topology, ranks, colours))
    return saved(figure, path)


def svg(topology: Topology, ranks: Mapping[str, int] | None = None) -> str | None:
    """The picture as one <svg> element, for a notebook or a page.

    Returns:
        None where matplotlib is not installed, and for more than `PICTURED` cores.

    Examples:
        >>> import tn4nn as tn
        >>> svg(tn.mpo((2, 2), (2, 2)))[:4]
        '<svg'
    """
    if len(topology.cores) > PICTURED:
        return None
    try:
        return svg_of(draw(topology, ranks), f"{topology.name} of {len(topology.cores)} cores")
    except TN4NNError:
        return None


# -- the graph ----------------------------------------------------------------------------------------------


def _holders(topology: Topology) -> dict[str, list[str]]:
    """Leg -> names of the cores that hold it."""
    return {leg: [topology.cores[i].name for i in positions] for leg, positions in topology.holders.items()}


def _dot(leg: str) -> str:
    return ":" + leg  # the node of a hyperedge; no core is named so


def _graph(topology: Topology) -> Graph:
    """Cores joined by their bonds; a bond of several cores is a node of its own where they hang together by
    nothing else."""
    holders = _holders(topology)
    graph: Graph = {core.name: [] for core in topology.cores}
    for bond in topology.bonds:
        cores = holders[bond]
        if len(cores) == 2 and cores[1] not in graph[cores[0]]:
            graph[cores[0]].append(cores[1])
            graph[cores[1]].append(cores[0])
    for bond in topology.bonds:
        cores = holders[bond]
        parts = _components(graph)
        if len(cores) > 2 and sum(bool(set(part) & set(cores)) for part in parts) > 1:
            graph[_dot(bond)] = list(cores)
            for core in cores:
                graph[core].append(_dot(bond))
    return graph


def _components(graph: Graph) -> list[list[str]]:
    parts: list[list[str]] = []
    seen: set[str] = set()
    for first in graph:
        if first not in seen:
            part = list(_distances(graph, first))
            seen.update(part)
            parts.append([node for node in graph if node in set(part)])
    return parts


def _distances(graph: Graph, first: str) -> dict[str, int]:
    found, queue = {first: 0}, [first]
    for node in queue:
        for other in graph[node]:
            if other not in found:
                found[other] = found[node] + 1
                queue.append(other)
    return found


# -- positions of the cores ---------------------------------------------------------------------------------


def _places(topology: Topology) -> Places:
    """A place for every core and for those hyperedges that hold the graph together."""
    graph = _graph(topology)
    sides = _sides(topology)
    modes = topology.modes
    fans = [legs for down, up, _ in sides.values() for legs in (down, up) if legs]
    widths = [len(legs) * _gap([f"{leg}={modes[leg]}" for leg in legs]) + 0.2 for legs in fans]
    step = max([_STEP, *widths])
    found: Places = {}
    right = 0.0
    for part in _components(graph):
        own = {node: graph[node] for node in part}
        places = _of_component(topology, own, sides, step)
        left = min(x for x, _ in places.values())
        middle = (max(y for _, y in places.values()) + min(y for _, y in places.values())) / 2
        found |= {node: (x - left + right, y - middle) for node, (x, y) in places.items()}
        right = max(x for x, _ in found.values()) + step
    return found


Sides = dict[str, tuple[list[str], list[str], list[str]]]


def _sides(topology: Topology) -> Sides:
    """Core -> the input, output and batch legs that it alone holds."""
    holders = _holders(topology)
    sides: Sides = {}
    for core in topology.cores:
        own = [leg for leg in core.legs if len(holders[leg]) == 1]
        sides[core.name] = (
            [leg for leg in own if leg in topology.inputs],
            [leg for leg in own if leg in topology.outputs],
            [leg for leg in own if leg in topology.kept],
        )
    return sides


def _of_component(topology: Topology, graph: Graph, sides: Sides, step: float) -> Places:
    n, edges = len(graph), sum(map(len, graph.values())) // 2
    degrees = [len(near) for near in graph.values()]
    if n == 1 or (edges == n - 1 and max(degrees) <= 2):
        return _chain(graph, step)
    if topology.name == "mera" and not any(node.startswith(":") for node in graph):
        return _levels_upwards(topology, graph, step)
    if (edges == n and set(degrees) == {2}) or (n > 3 and set(degrees) == {n - 1}):
        return _circle(graph, step)
    if edges == n - 1:
        return _two_rows(graph, sides, step) or _tree(graph, step)
    return _grid(graph, step) or _stress(graph, step)


def _chain(graph: Graph, step: float) -> Places:
    first = next(node for node, near in graph.items() if len(near) < 2)
    return {node: (step * far, 0.0) for node, far in _distances(graph, first).items()}


def _circle(graph: Graph, step: float) -> Places:
    """In the order of the graph, rotated so that no line is as upright as the stubs."""
    order = list(graph)
    if all(len(near) == 2 for near in graph.values()):  # around the cycle, not as declared
        order = [order[0]]
        while len(order) < len(graph):
            order.append(next(node for node in graph if node in graph[order[-1]] and node not in order))
    n = len(order)
    chords = any(len(near) > 2 for near in graph.values())
    radius = step * (1.7 if chords else 1.2) / (2 * math.sin(math.pi / n))

    def rotated(angle: float) -> Places:
        at = [math.pi / 2 + angle - 2 * math.pi * i / n for i in range(n)]
        return {node: (radius * math.cos(a), radius * math.sin(a)) for node, a in zip(order, at, strict=True)}

    def slant(places: Places) -> float:
        lines = [(places[a], places[b]) for a in graph for b in graph[a]]
        return round(min(abs(math.atan2(abs(p[0] - q[0]), abs(p[1] - q[1]))) for p, q in lines), 6)

    return max((rotated(2 * math.pi / n * i / 24) for i in range(24)), key=slant)


def _grid(graph: Graph, step: float) -> Places | None:
    """Rows from top to bottom, where the nodes in their order are a grid row by row."""
    nodes = list(graph)
    n = len(nodes)
    edges = {frozenset((a, b)) for a in graph for b in graph[a]}
    for rows in range(2, n // 2 + 1):
        columns, rest = divmod(n, rows)
        if rest or columns < 2:
            continue
        lines = [(i, i + 1) for i in range(n) if (i + 1) % columns]
        lines += [(i, i + columns) for i in range(n - columns)]
        if edges == {frozenset((nodes[a], nodes[b])) for a, b in lines}:
            # Every row a little to the right of the one above: so stubs and bonds do not fall together.
            return {
                node: (step * 1.25 * (i % columns) + 0.55 * (i // columns), -1.75 * (i // columns))
                for i, node in enumerate(nodes)
            }
    return None


def _two_rows(graph: Graph, sides: Sides, step: float) -> Places | None:
    """A star of factors: those of the input below its middle, those of the output above."""
    middle = max(graph, key=lambda node: len(graph[node]))
    leaves = [node for node in graph if node != middle]
    if len(graph[middle]) != len(leaves) or any(node.startswith(":") for node in leaves):
        return None
    below = [node for node in leaves if sides[node][0] and not sides[node][1]]
    above = [node for node in leaves if sides[node][1] and not sides[node][0]]
    if not below or not above or len(below) + len(above) < len(leaves):
        return None
    places = {middle: (0.0, 0.0)}
    for row, y in ((below, -1.2), (above, 1.2)):
        places |= {node: (step * (i - (len(row) - 1) / 2), y) for i, node in enumerate(row)}
    return places


def _tree(graph: Graph, step: float) -> Places:
    """Leaves in a row at the bottom, every other node above the middle of its children."""
    far = {node: max(_distances(graph, node).values()) for node in graph}
    centre = [node for node in graph if far[node] == min(far.values())]
    places: Places = {}
    columns = iter(range(len(graph)))

    def grow(node: str, parent: str | None) -> int:
        children = [other for other in graph[node] if other != parent and other not in centre]
        if not children:
            places[node] = (step * next(columns), 0.0)
            return 0
        height = 1 + max(grow(child, node) for child in children)
        places[node] = (sum(places[child][0] for child in children) / len(children), 1.65 * height)
        return height

    for node in centre:
        grow(node, None)
    return places


def _levels_upwards(topology: Topology, graph: Graph, step: float) -> Places:
    """Each core above the earlier cores that it is joined to, over the middle of its open legs."""
    column = {leg: float(i) for side in (topology.inputs, topology.outputs) for i, leg in enumerate(side)}
    level: dict[str, int] = {}
    across: dict[str, float] = {}
    for core in (core for core in topology.cores if core.name in graph):
        below = [other for other in graph[core.name] if other in level]
        level[core.name] = 1 + max((level[other] for other in below), default=-1)
        middles = [column[leg] for leg in core.legs if leg in column] + [across[other] for other in below]
        across[core.name] = sum(middles) / max(1, len(middles))
    places: Places = {}
    for height in sorted(set(level.values())):
        row = sorted((node for node in level if level[node] == height), key=lambda node: across[node])
        last = -math.inf
        for node in row:
            last = max(step * across[node], last + step)
            places[node] = (last, 1.5 * height)
    return places


def _stress(graph: Graph, step: float) -> Places:
    """Distances on paper as near as can be to those in the graph."""
    nodes = list(graph)
    n = len(nodes)
    distances = [_distances(graph, node) for node in nodes]
    wanted = np.array([[far[node] for node in nodes] for far in distances], dtype=np.float64)
    weight = np.divide(1.0, wanted**2, out=np.zeros_like(wanted), where=wanted > 0)
    angles = 2 * np.pi * np.arange(n) / n
    at: NDArray[np.float64] = np.stack([np.cos(angles), np.sin(angles)], axis=1) * n / 6
    for _ in range(300):
        apart = at[:, None] - at[None]
        length = np.maximum(np.sqrt((apart**2).sum(-1)), 1e-9)
        pull = at[None] + apart * (wanted / length)[..., None]
        at = (weight[..., None] * pull).sum(1) / weight.sum(1, keepdims=True)
    at = at - at.mean(0)
    _, axes = np.linalg.eigh(at.T @ at)
    at = at @ axes[:, ::-1]  # the longer side lies
    at = at * np.where(at[0] > 0, -1.0, 1.0) * np.array([1.0, -1.0])  # the first core at the left, on top
    apart = np.sqrt(((at[:, None] - at[None]) ** 2).sum(-1)) + np.eye(n) * 1e9
    at = at * max(step / float(np.median(apart.min(1))), 0.95 / max(float(apart.min()), 0.2))
    return {node: (float(x), float(y)) for node, (x, y) in zip(nodes, at, strict=True)}


# -- lines, stubs and labels --------------------------------------------------------------------------------


@dataclasses.dataclass
class _Picture:
    """What is painted, in units of length."""

    title: str
    cores: Places
    dots: Places = dataclasses.field(default_factory=dict)
    lines: list[tuple[list[Point], str, float]] = dataclasses.field(default_factory=list)
    labels: list[tuple[Point, str, str]] = dataclasses.field(default_factory=list)
    scale: bool = False  # whether to draw a scale of the bonds' colours below

    def busy(self) -> list[tuple[Point, float]]:
        """Points that are taken, and how far around them."""
        taken = [(place, _RADIUS) for place in self.cores.values()]
        taken += [(place, 0.1) for place in self.dots.values()]
        taken += [(place, 0.2) for place, _, _ in self.labels]
        taken += [(place, 0.0) for points, _, _ in self.lines for place in _dense(points)]
        return taken


def _dense(points: Sequence[Point]) -> list[Point]:
    """A line as points that lie close together."""
    dense = []
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        count = max(2, int(math.hypot(bx - ax, by - ay) / 0.08))
        dense += [(ax + (bx - ax) * i / count, ay + (by - ay) * i / count) for i in range(count + 1)]
    return dense


def _room(points: Iterable[Point], taken: Sequence[tuple[Point, float]]) -> float:
    """The least distance of the points from what is taken."""
    mine = np.array(list(points))
    if not taken:
        return 9.0
    there = np.array([place for place, _ in taken])
    around = np.array([reach for _, reach in taken])
    gaps = np.sqrt(((mine[:, None] - there[None]) ** 2).sum(-1)) - around
    return float(gaps.min())


def _arranged(
    topology: Topology, ranks: Mapping[str, int] | None, colours: Mapping[str, str] | None = None
) -> _Picture:
    places = _places(topology)
    cores = {core.name: places[core.name] for core in topology.cores}
    title = f"{topology.name}  {topology.in_features} → {topology.out_features}"
    picture = _Picture(title, cores, scale=colours is not None)
    picture.dots.update({node: place for node, place in places.items() if node.startswith(":")})
    holders = _holders(topology)
    waiting: list[tuple[list[Point], str]] = []  # bonds whose labels are placed when every line is there
    pairs: dict[frozenset[str], int] = {}
    # Dots come last: they go where the lines leave room.
    for bond in sorted(topology.bonds, key=lambda bond: len(holders[bond]) > 2):
        text, width = _bond_style(bond, ranks)
        colour = (colours or {}).get(bond, _BOND)
        ends = holders[bond]
        if len(ends) == 2:
            pair = frozenset(ends)
            number = pairs[pair] = pairs.get(pair, 0) + 1
            line = _bond_line(picture, ends[0], ends[1], number)
            picture.lines.append((line, colour, width))
            waiting.append((line, text))
        else:
            place = _place_dot(picture, bond, ends)
            lines = [_clear_line(picture, cores[core], place) for core in ends]
            picture.lines += [(line, colour, width) for line in lines]
            waiting.append((max(lines, key=lambda line: math.dist(line[0], place))[::-1], text))
    _shared_legs(picture, topology, holders)
    for core, (down, up, batch) in _sides(topology).items():
        _stubs(picture, cores[core], down, topology.inputs, -1, _INPUT, batch)
        _stubs(picture, cores[core], up, topology.outputs, 1, _OUTPUT, batch)
    _wires(picture, topology, holders)
    for line, text in waiting:
        _label(picture, line, text)
    return picture


def _bond_style(bond: str, ranks: Mapping[str, int] | None) -> tuple[str, float]:
    """(label, line width)."""
    if ranks is None:
        return bond, 1.6
    return str(ranks[bond]), min(7.0, 1.1 + 0.6 * math.log2(ranks[bond]))


def _bent(a: Point, b: Point, bend: float) -> list[Point]:
    """A parabola from a to b that leaves the straight line by `bend`."""
    if not bend:
        return [a, b]
    length = math.dist(a, b) or 1.0
    across = (-(b[1] - a[1]) / length, (b[0] - a[0]) / length)
    points = []
    for i in range(21):
        t = i / 20
        off = 4 * t * (1 - t) * bend
        points.append((a[0] + (b[0] - a[0]) * t + across[0] * off, a[1] + (b[1] - a[1]) * t + across[1] * off))
    return points


def _bond_line(picture: _Picture, first: str, second: str, number: int) -> list[Point]:
    """The line of the number-th bond of two cores: straight, bent around cores, or beside the others."""
    a, b = picture.cores[first], picture.cores[second]
    if number > 1:
        return _bent(a, b, 0.34 * (number // 2) * (-1) ** number)
    return _clear_line(picture, a, b)


def _clear_line(picture: _Picture, a: Point, b: Point) -> list[Point]:
    """A line that does not run behind another core or dot, where it would read as a bond of that one: straight, or bent
    no more than it takes; the one with most room where all run into something."""
    others = [(place, _RADIUS) for place in picture.cores.values() if place not in (a, b)]
    others += [(place, 0.1) for place in picture.dots.values() if place not in (a, b)]
    lines = [_bent(a, b, bend) for bend in (0.0, 0.45, -0.45, 0.8, -0.8, 1.2, -1.2)]
    rooms = [_room(_dense(line), others) for line in lines]
    return next((line for line, room in zip(lines, rooms, strict=True) if room > 0.1), lines[int(np.argmax(rooms))])


def _place_dot(picture: _Picture, bond: str, ends: Sequence[str]) -> Point:
    """The position of the dot of a hyperedge: the middle of its cores, or near it where there is room."""
    if _dot(bond) in picture.dots:
        return picture.dots[_dot(bond)]
    x = sum(picture.cores[core][0] for core in ends) / len(ends)
    y = sum(picture.cores[core][1] for core in ends) / len(ends)
    tries = [(x + far * math.cos(a), y + far * math.sin(a)) for far in (0, 0.3, 0.6, 0.9) for a in _around()]
    place = _roomiest(tries, lambda at: _room([at], picture.busy()), 0.3)
    picture.dots[_dot(bond)] = place
    return place


def _around() -> list[float]:
    return [math.pi / 2 + math.pi * i / 6 for i in range(12)]


def _roomiest(tries: Sequence[Point], room: Callable[[Point], float], enough: float) -> Point:
    """The first try with enough room, else the one with most."""
    best, most = tries[0], -math.inf
    for place in tries:
        found = room(place)
        if found >= enough:
            return place
        if found > most + 1e-9:
            best, most = place, found
    return best


def _shared_legs(picture: _Picture, topology: Topology, holders: Mapping[str, list[str]]) -> None:
    """Open legs of several cores: a dot below (input) or above (output) all cores, with one stub."""
    low = min(y for _, y in picture.cores.values())
    high = max(y for _, y in picture.cores.values())
    for sizes, sign, edge in ((topology.inputs, -1, low), (topology.outputs, 1, high)):
        shared = [leg for leg in sizes if len(holders[leg]) > 1]
        if sign == 1:
            shared = [leg for leg in shared if leg not in topology.inputs]  # a batch leg is drawn once
        across = {core: x for core, (x, _) in picture.cores.items()}
        own = {leg: sum(across[core] for core in holders[leg]) / len(holders[leg]) for leg in shared}
        shared.sort(key=lambda leg: own[leg])
        for leg, x in zip(shared, _spread([own[leg] for leg in shared], 0.85), strict=True):
            place = (x, edge + sign * 1.3)
            taken = [(at, 0.0) for at in picture.dots.values()]
            if _room([place], taken) < 0.5:
                place = (x + 0.55, place[1])
            picture.dots[_dot(leg)] = place
            batch = leg in topology.kept
            colour = _BATCH if batch else _INPUT if sign < 0 else _OUTPUT
            for core in holders[leg]:
                picture.lines.append((_clear_line(picture, picture.cores[core], place), colour, 1.3))
            end = (place[0], place[1] + sign * 0.42)
            picture.lines.append(([place, end], colour, 1.9))
            text = f"{leg}={sizes[leg]}" + (" batch" if batch else "")
            picture.labels.append(((end[0], end[1] + sign * 0.14), text, colour))


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending numbers moved apart to at least `gap`, their mean unchanged."""
    apart: list[float] = []
    for x in wanted:
        apart.append(max(x, apart[-1] + gap) if apart else x)
    shift = (sum(wanted) - sum(apart)) / max(1, len(apart))
    return [x + shift for x in apart]


def _stubs(
    picture: _Picture,
    core: Point,
    legs: Sequence[str],
    sizes: Mapping[str, int],
    sign: int,
    colour: str,
    batch: Sequence[str],
) -> None:
    """The legs that a core holds alone, as a fan that leans to where there is most room."""
    if not legs:
        return
    taken = [(place, reach) for place, reach in picture.busy() if math.dist(place, core) > _RADIUS + 0.05]

    texts = [f"{leg}={sizes[leg]}" + (" batch" if leg in batch else "") for leg in legs]
    gap = _gap(texts)

    def fan(lean: float) -> list[Point]:
        offsets = [lean + gap * (i - (len(legs) - 1) / 2) for i in range(len(legs))]
        return [(core[0] + offset, core[1] + sign * _STUB) for offset in offsets]

    def room(lean: float) -> float:
        ends = fan(lean)
        words = [(x + dx, y + sign * 0.14) for x, y in ends for dx in (-0.17, 0, 0.17)]
        return _room([*ends, *words], taken)

    leans = (0.0, 0.2, -0.2, 0.3, -0.3, 0.4, -0.4, 0.6, -0.6)
    lean = _roomiest([(value, 0.0) for value in leans], lambda at: room(at[0]), 0.12)[0]
    for leg, text, end in zip(legs, texts, fan(lean), strict=True):
        ink = _BATCH if leg in batch else colour
        picture.lines.append(([core, end], ink, 1.9))
        picture.labels.append(((end[0], end[1] + sign * 0.14), text, ink))


def _gap(texts: Sequence[str]) -> float:
    """How far apart stubs with these labels end."""
    return max(_FAN, 0.105 * max(map(len, texts)))


def _wires(picture: _Picture, topology: Topology, holders: Mapping[str, list[str]]) -> None:
    """Batch legs on no core: straight from the input to the output."""
    for leg in topology.kept:
        if not holders[leg]:
            x = max(at[0] for at, _ in picture.busy()) + 0.7
            picture.lines.append(([(x, -_STUB), (x, _STUB)], _BATCH, 1.9))
            for sign in (-1, 1):
                text = f"{leg}={topology.inputs[leg]} batch"
                picture.labels.append(((x, sign * (_STUB + 0.14)), text, _BATCH))


def _label(picture: _Picture, line: Sequence[Point], text: str) -> None:
    """A label on its line, at the middle or where there is room for it."""
    points = _dense(line)
    covered = [(place, _RADIUS) for place in picture.cores.values()]
    visible = [at for at in points if _room([at], covered) > 0.05]
    points = visible or points
    shares = (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.18, 0.82)
    tries = [points[min(len(points) - 1, int(share * len(points)))] for share in shares]
    mine = set(points)
    reach = 0.06 * max(0, len(text) - 2)
    taken = [(place, around) for place, around in picture.busy() if place not in mine]
    spread = (-reach, 0.0, reach)
    place = _roomiest(tries, lambda at: _room([(at[0] + dx, at[1]) for dx in spread], taken), 0.17)
    picture.labels.append((place, text, _BOND))


# -- ink ----------------------------------------------------------------------------------------------------


def _paint(figure: Figure, picture: _Picture) -> None:
    from matplotlib.patches import Circle

    points = [*picture.cores.values(), *picture.dots.values()]
    points += [at for line, _, _ in picture.lines for at in line]
    points += [at for at, _, _ in picture.labels]
    left, right = min(x for x, _ in points) - 0.45, max(x for x, _ in points) + 0.45
    low, high = min(y for _, y in points) - 0.3, max(y for _, y in points) + 0.62
    high = max(high, max(y for _, y in picture.cores.values()) + _RADIUS + 0.5)
    low = min(low, min(y for _, y in picture.cores.values()) - _RADIUS - 0.15)
    low -= 0.55 if picture.scale else 0.0
    least = max(0.13 * len(picture.title), 4.2 if picture.scale else 0.0)
    missing = max(0.0, least - (right - left)) / 2  # the title and the scale must fit too
    left, right = left - missing, right + missing
    scale = min(1.0, _WIDEST / ((right - left) * _INCH))
    figure.set_size_inches((right - left) * _INCH * scale, (high - low) * _INCH * scale)
    axes: Axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    axes.axis("off")
    figure.set_facecolor("white" if picture.scale else "none")  # a scale from light to dark needs a ground of its own
    boxes = [_box(place, text) for place, text, _ in picture.labels]
    for line, colour, width in picture.lines:
        xs, ys = _without(line, boxes)
        axes.plot(xs, ys, color=colour, linewidth=width * scale, zorder=1, solid_capstyle="butt")
    middle: dict[str, Any] = {"ha": "center", "va": "center", "parse_math": False}
    for place in picture.dots.values():
        axes.plot(*place, marker="o", markersize=7 * scale, color=_BOND, zorder=2)
    for name, place in picture.cores.items():
        circle = Circle(place, _RADIUS, facecolor=_CORE, edgecolor="none", zorder=3)
        axes.add_patch(circle)
        short = name if len(name) <= 16 else name[:15] + "…"
        half = -(-len(short) // 2) if len(short) > 8 else len(short)
        size = min(9.0, 9.0 * 5.5 / half) * scale
        short = short if half == len(short) else f"{short[:half]}\n{short[half:]}"
        axes.text(*place, short, color="white", fontsize=size, zorder=4, **middle)
    for place, text, colour in picture.labels:
        axes.text(*place, text, color=colour, fontsize=_SMALL * scale, zorder=2.5, **middle)
    axes.text((left + right) / 2, high - 0.2, picture.title, color=_BOND, fontsize=10 * scale, **middle)
    if picture.scale:
        _paint_scale(axes, (left + right) / 2, low + 0.3, scale)


def _box(place: Point, text: str) -> tuple[float, float, float, float]:
    """(left, right, low, high) of a label, with a little room around it."""
    em = _SMALL / 72 / _INCH  # labels and lengths are scaled alike
    wide, high = 0.33 * em * len(text) + 0.3 * em, 0.75 * em
    return place[0] - wide, place[0] + wide, place[1] - high, place[1] + high


def _without(line: Sequence[Point], boxes: Sequence[tuple[float, float, float, float]]) -> NDArray[np.float64]:
    """A line as x and y, NaN (which is not drawn) where it would run through a label."""
    fine = [np.linspace(a, b, max(2, int(math.dist(a, b) / 0.01))) for a, b in itertools.pairwise(line)]
    points = np.concatenate(fine)
    for left, right, low, high in boxes:
        inside = (points > (left, low)).all(1) & (points < (right, high)).all(1)
        points[inside] = np.nan
    return points.T


def _paint_scale(axes: Axes, x: float, y: float, scale: float) -> None:
    """The colours from S = 0 to S = ln(chi)."""
    steps = 24
    for i in range(steps):
        ends = [x - 0.8 + 1.6 * (i + k) / steps for k in (0, 1)]
        axes.plot(ends, [y, y], color=scale_colour(i / (steps - 1)), linewidth=6 * scale, solid_capstyle="butt")
    small: dict[str, Any] = {"va": "center", "fontsize": 8 * scale, "parse_math": False}
    axes.text(x - 0.88, y, "S / ln χ = 0", ha="right", **small)
    axes.text(x + 0.88, y, "1", ha="left", **small)
