"""An experiment as data: what it needs, the units of work it is made of, and what must come out."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "not measured"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user chooses; an experiment's recipe is fixed.

    Attributes:
        quick: fewer variants and one seed, with the same acceptance.
        backend: that trains.
        device: the framework's own word, or None for its default.
        seeds: how many, from 0.

    Examples:
        >>> from tn4nn import reproduce
        >>> settings = reproduce.Settings(quick=True, backend="torch", device=None, seeds=1)
        >>> [unit.name for unit in reproduce.experiment("fc2").units(settings)]
        ['variant D = 4, seed 0', 'variant D = 16, seed 0', 'variant low rank 1, seed 0', 'variant dense, seed 0']
    """

    quick: bool
    backend: str
    device: str | None
    seeds: int


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of work whose result is stored when it ends.

    Attributes:
        key: distinguishes it from the experiment's other units; becomes part of its row.
        run: takes a folder of its own, in which it may leave what it needs to go on after a kill, and returns the
            row's values. Values under "times" differ from run to run and are stored apart.

    Examples:
        >>> from tn4nn import reproduce
        >>> unit = reproduce.Unit({"D": 4, "seed": 0}, run=lambda folder: {"accuracy": 97.0})
        >>> unit.name
        'D 4, seed 0'
    """

    key: Mapping[str, str | int | float]
    run: Callable[[Path], Mapping[str, Any]]

    @property
    def name(self) -> str:
        """The key as text, unique in the experiment."""
        return ", ".join(f"{key} {value}" for key, value in self.key.items())


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of an experiment's table: what was published, what came out here, and what is accepted.

    Attributes:
        what: is measured.
        ours: mean over seeds; None where it was not measured, NaN where a run diverged.
        sd: sample standard deviation over seeds, None for fewer than two.
        low: least value that is accepted.
        high: largest value that is accepted; with neither bound the line has no verdict.
        published: the published value, under its own name.
        unit: behind the numbers.
        digits: after the point.

    Examples:
        >>> from tn4nn.reproduce import Line
        >>> Line("D = 4", ours=96.7, low=96.2).verdict
        'holds'
    """

    what: str
    ours: float | None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    published: str = ""
    unit: str = "%"
    digits: int = 2

    @property
    def accepted(self) -> str:
        """The acceptance band in words."""
        low, high = (None if bound is None else self._number(bound) for bound in (self.low, self.high))
        if low is None and high is None:
            return ""
        if low == high:
            return f"{low}{self._unit}"
        if high is None:
            return f">= {low}{self._unit}"
        return f"<= {high}{self._unit}" if low is None else f"{low} to {high}{self._unit}"

    @property
    def verdict(self) -> str:
        """Computed from the band, never given."""
        if self.low is None and self.high is None:
            return ""
        if self.ours is None:
            return UNKNOWN
        inside = (self.low is None or self.ours >= self.low) and (self.high is None or self.ours <= self.high)
        return HOLDS if inside else FAILS

    @property
    def shown(self) -> str:
        """Ours as text: mean ± sd."""
        if self.ours is None:
            return "–"
        if not math.isfinite(self.ours):
            return "diverged"
        spread = "" if self.sd is None else f" ± {self._number(self.sd)}"
        return f"{self._number(self.ours)}{spread}{self._unit}"

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""

    def _number(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"

    def to_dict(self) -> dict[str, Any]:
        """The line as plain data, verdict included."""
        return {
            **dataclasses.asdict(self), "shown": self.shown, "accepted": self.accepted, "verdict": self.verdict,
        }  # fmt: skip


def _nothing(rows: Sequence[Row]) -> Sequence[str]:
    return ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is repeated: the units of work, the table that comes out of their results, and what is accepted.

    To add one, write a module that has some and one line in `_registry.py`.

    Attributes:
        name: on the command line.
        title: on the page.
        source: of what is repeated.
        about: a paragraph: what is done and how.
        cost: of the full run, on 2 cores unless it says otherwise.
        quick_cost: of the quick run.
        units: the units of work for given settings.
        lines: the table, from the rows that are there; each row has its times under "times".
        data: names of the data sets it loads.
        uses: backends that it runs beside the chosen one, where they are installed.
        seeds: of a full run; a quick one has 1.
        recipe: everything but the settings that decides the results, as plain data: results of another recipe
            are not mixed with these.
        text: paragraphs computed from the rows.
        finding: what came out, in a sentence or two; {NAME} stands for what the line of that name shows, or for the
            rest of the name and what it shows, of the line that begins with it.
        partial: lines, text and figure can be made of some of the units: a long experiment shows what there is.
        draw: draws the rows into an empty matplotlib figure.

    Examples:
        >>> from tn4nn import reproduce
        >>> one = reproduce.experiment("fc2")
        >>> one.name, one.data, one.seeds
        ('fc2', ('mnist',), 3)
    """

    name: str
    title: str
    source: str
    about: str
    cost: str
    quick_cost: str
    units: Callable[[Settings], Sequence[Unit]]
    lines: Callable[[Sequence[Row]], Sequence[Line]]
    data: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    seeds: int = 3
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: Callable[[Sequence[Row]], Sequence[str]] = _nothing
    finding: str = ""
    partial: bool = False
    draw: Callable[[Figure, Sequence[Row]], None] | None = None


def mean_line(what: str, values: Sequence[float | None], **band: Any) -> Line:
    """A line with the mean and the sample sd of some values; a value that is None, out of a run that diverged, makes
    the mean NaN.

    Examples:
        >>> mean_line("accuracy", [97.0, 98.0], low=97).shown
        '97.50 ± 0.71 %'
    """
    if not values:
        return Line(what, None, **band)
    numbers = [float(value) for value in values if value is not None]
    if len(numbers) < len(values):
        return Line(what, math.nan, **band)
    return Line(what, statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, **band)
