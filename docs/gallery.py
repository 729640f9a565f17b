"""Draws the pictures of the gallery and of the first page: `python docs/gallery.py`.

The code of each topology is read from the gallery itself, so that a picture shows what the code beside it makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import tn4nn as tn

PAGES = Path(__file__).with_name("pages")
PAGE = PAGES / "reference" / "gallery.md"
PICTURES = PAGES / "images" / "gallery"
HERO = PAGES / "images" / "hero.svg"

SECTION = re.compile(r"^## .*?```python\n(?P<code>.*?)\n```\n+!\[(?P<alt>[^\]]*)\]\((?P<picture>[^)]*)\)", re.M | re.S)


def sections(text: str) -> dict[str, re.Match[str]]:
    """Name of a picture -> the code that makes its topology, its alternative text, its path."""
    return {Path(found["picture"]).stem: found for found in SECTION.finditer(text)}


def topology_of(code: str) -> tn.Topology:
    """What an expression of the gallery makes."""
    made = eval(code, {"tn": tn})
    assert isinstance(made, tn.Topology), code
    return made


def draw(names: Iterable[str] | None = None, folder: Path = PICTURES) -> list[Path]:
    """Writes the pictures of some topologies, or of all; returns their paths."""
    found = sections(PAGE.read_text())
    paths = []
    for name in found if names is None else names:
        paths.append(folder / f"{name}.svg")
        topology_of(found[name]["code"]).draw(str(paths[-1]))
    return paths


# -- the first page -----------------------------------------------------------------------------------------------

# The colours of the pictures of topologies: they can be read on light and dark pages.
CORE, BOND, INPUT, OUTPUT = "#0072b2", "#7d8085", "#008f68", "#d05c00"
RADIUS, LEG = 17, 44
Point = tuple[float, float]


def hero() -> str:
    """An MPO, a tree and a PEPS on the same four pairs of modes, side by side, as SVG."""
    chain: list[Point] = [(50 + 82 * i, 118) for i in range(4)]
    leaves: list[Point] = [(388 + 74 * i, 158) for i in range(4)]
    inner: list[Point] = [(425, 62), (573, 62)]
    grid: list[Point] = [(752, 74), (862, 74), (702, 158), (812, 158)]
    parts = [
        *panel("MPO", chain, [], [(i, i + 1) for i in range(3)], "rrrr"),
        *panel("tree", leaves, inner, [(0, 4), (1, 4), (2, 5), (3, 5), (4, 5)], "lrlr"),
        *panel("PEPS", grid, [], [(0, 1), (2, 3), (0, 2), (1, 3)], "llll"),
    ]
    title = "An MPO, a tree and a PEPS of four sites, each with an input leg down and an output leg up"
    style = "text{font:600 13px system-ui,sans-serif;text-anchor:middle}line{stroke-width:2.5}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 250" role="img"><title>{title}</title>'
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>"]) + "\n"


def panel(title: str, sites: list[Point], inner: list[Point], bonds: list[tuple[int, int]], named: str) -> list[str]:
    """One network: `sites` have an input and an output leg, `inner` cores have bonds alone.

    Where bonds lead up to the right, the name of the output leg is on its left: a letter of `named` for each site.
    """
    cores = [*sites, *inner]
    parts = [line(cores[a], cores[b], BOND) for a, b in bonds]
    for i, (x, y) in enumerate(sites):
        parts += [line((x, y), (x, y + LEG), INPUT), line((x, y), (x, y - LEG), OUTPUT)]
        parts += [
            words((x + 13, y + LEG - 3), f"x{i}", INPUT),
            words((x + (13 if named[i] == "r" else -13), y - LEG + 10), f"y{i}", OUTPUT),
        ]
    parts += [f'<circle cx="{x:g}" cy="{y:g}" r="{RADIUS}" fill="{CORE}"/>' for x, y in cores]
    middle = (min(x for x, _ in sites) + max(x for x, _ in sites)) / 2
    return [*parts, f'<text x="{middle:g}" y="238" fill="{BOND}" style="font-size:16px">{title}</text>']


def line(a: Point, b: Point, colour: str) -> str:
    return f'<line x1="{a[0]:g}" y1="{a[1]:g}" x2="{b[0]:g}" y2="{b[1]:g}" stroke="{colour}"/>'


def words(at: Point, text: str, colour: str) -> str:
    return f'<text x="{at[0]:g}" y="{at[1]:g}" fill="{colour}">{text}</text>'


if __name__ == "__main__":
    PICTURES.mkdir(parents=True, exist_ok=True)
    draw()
    HERO.write_text(hero())
