"""Where the names of lines have room in a plot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

SIZE = 9.0  # points of a letter's height
_LETTER = 0.62  # width of a letter to its height: that of a wide typeface
_MARKER, _LINE = 5.0, 1.0  # points around a marker, and around a line, that are taken
Place = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclasses.dataclass(frozen=True)
class Label:
    """A name beside a point.

    Attributes:
        text: the name.
        point: it belongs to.
        dx: from the point to the left end of the name.
        dy: from the point to its lower end.
        size: of its letters, in points.
        far: so far from the point that a line should lead there.
    """

    text: str
    point: Place
    dx: float
    dy: float
    size: float
    far: bool


def place(
    points: Mapping[str, Sequence[Place]], taken: Iterable[Place], lines: Iterable[Place], inside: Box, dots: float
) -> list[Label]:
    """A place for each name, beside one of its points, where it covers no point and no other name, and no line if there
    is such a place; names without a place are left out (the key has them).

    Args:
        points: of each name, the one that it would best stand at first.
        taken: all points.
        lines: places along all lines.
        inside: where names may be.
        dots: of a typographic point, the unit of all the others.
    """
    solid = [_around(point, _MARKER * dots) for point in taken]
    thin = [_around(point, _LINE * dots) for point in lines]
    found: list[Label] = []
    for name, candidates in points.items():
        text = name if len(name) <= 16 else name[:15] + "…"
        width, height = len(text) * _LETTER * SIZE * dots, 1.25 * SIZE * dots
        tries = [
            (Label(text, point, dx, dy, SIZE, far), box)
            for point, dx, dy, far in _tries(candidates, width, height, dots)
            if _is_inside(box := (point[0] + dx, point[1] + dy, point[0] + dx + width, point[1] + dy + height), inside)
            and not any(_overlap(box, other) for other in solid)
        ]
        clear = [(label, box) for label, box in tries if not any(_overlap(box, other) for other in thin)]
        for label, box in (clear or tries)[:1]:
            solid.append(box)
            found.append(label)
    return found


def _around(point: Place, distance: float) -> Box:
    x, y = point
    return x - distance, y - distance, x + distance, y + distance


def _tries(
    points: Sequence[Place], width: float, height: float, dots: float
) -> Iterable[tuple[Place, float, float, bool]]:
    """Places of the lower left corner around each point, near ones first."""
    for radius in (7.0, 16.0, 28.0, 42.0):
        for point in points:
            for turn in range(12):
                angle = math.tau * turn / 12
                x, y = math.cos(angle), math.sin(angle)
                # The nearest part of the name lies on the circle.
                dx = radius * dots * x + width * (x - 1) / 2
                dy = radius * dots * y + height * (y - 1) / 2
                yield point, dx, dy, radius > 16


def _is_inside(box: Box, outer: Box) -> bool:
    return box[0] >= outer[0] and box[1] >= outer[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
