"""Runs an experiment unit by unit into one results file, which is also what an interrupted run goes on from."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import CheckpointError, TN4NNError, installed_backends
from .._base.files import make_folder
from .._base.records import plain, read_record, write_record
from .._comparison.machine import machine
from .._drawing.figure import new_figure, saved
from ._experiment import FAILS, Experiment, Row, Settings
from ._registry import experiment

SCHEMA = 1
_IDENTITY = ("schema", "experiment", "settings", "recipe", "machine")  # what rows of one file have in common

_KEYS = {*_IDENTITY, "title", "source", "about", "command", "finished", "lines", "text", "figure", "rows", "times"}


def run(
    name: str,
    *,
    quick: bool = False,
    backend: str = "torch",
    device: str | None = None,
    seeds: int | None = None,
    out: str | Path = "reproduction",
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Runs an experiment, or what is left of it, and writes its results and its figure.

    The result of a unit of work is stored in `out/NAME.json` when it ends; inside a unit, training goes on from its
    last epoch.

    Args:
        name: of `experiments()`.
        quick: fewer variants and one seed.
        backend: that trains.
        device: the framework's own word.
        seeds: how many (default: the experiment's, 1 for a quick run).
        out: folder of the results.
        progress: called with a line of text for each unit.

    Returns:
        What the file holds: "settings", "machine", "rows", "lines" with a verdict each, "text", "times", ...

    Raises:
        TN4NNError: an unknown name, or fewer than one seed.
        DataError: data that is absent, with what to do.
        CheckpointError: results in `out` of another version, machine, recipe or settings.

    Examples:
        >>> from tn4nn.reproduce import run
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = run("counts", out=folder)
        >>> {line["verdict"] for line in record["lines"]}
        {'holds'}
    """
    found = experiment(name)
    if seeds is not None and seeds < 1:
        raise TN4NNError(f"seeds must be at least 1, received {seeds}")
    chosen = Settings(quick, backend, device, seeds or (1 if quick else found.seeds))
    return _Results(found, chosen, Path(out)).completed(progress or (lambda _: None))


def failed(record: Mapping[str, Any]) -> list[str]:
    """The lines of a record that do not hold.

    Examples:
        >>> from tn4nn import reproduce
        >>> lines = [reproduce.Line("D = 4", ours=96.7, low=96.2), reproduce.Line("D = 8", ours=96.7, low=97.0)]
        >>> reproduce.failed({"lines": [line.to_dict() for line in lines]})
        ['D = 8']
    """
    return [line["what"] for line in record["lines"] if line["verdict"] == FAILS]


def read_results(path: Path) -> dict[str, Any]:
    """A results file.

    Raises:
        CheckpointError: no JSON, of another schema, or damaged or edited after it was written.

    Examples:
        >>> import pathlib, tempfile
        >>> from tn4nn import reproduce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = reproduce.run("counts", out=pathlib.Path(folder))
        ...     reproduce.read_results(pathlib.Path(folder) / "counts.json")["experiment"]
        'counts'
    """
    advice = "move it away, or write to another folder"
    record = read_record(path, SCHEMA, advice)
    missing = sorted(_KEYS - set(record))
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}, so it is not the results of an experiment: {advice}")
    return record


class _Results:
    """The results file of one experiment, whole after each unit."""

    def __init__(self, experiment: Experiment, settings: Settings, folder: Path) -> None:
        self.experiment, self.settings = experiment, settings
        self.path = folder / f"{experiment.name}.json"
        self.scratch = folder / f"{experiment.name}.unfinished"
        self.rows: dict[str, dict[str, Any]] = {}
        self.times: dict[str, Any] = {}
        beside = [name for name in experiment.uses if name in installed_backends()]
        where = machine(list(dict.fromkeys([settings.backend, *beside])))
        self.date = where.pop("date")  # as times, no part of what two runs have in common
        identity = {
            "schema": SCHEMA,
            "experiment": experiment.name,
            "settings": dataclasses.asdict(settings),
            "recipe": experiment.recipe,
            "machine": where,
        }
        self.identity: dict[str, Any] = plain(identity)
        if self.path.exists():
            self._resume(read_results(self.path))

    def _resume(self, record: Mapping[str, Any]) -> None:
        differs = _differences(self.identity, record)
        if differs:
            raise CheckpointError(
                f"{self.path} holds other results ({', '.join(differs)} differ), which are not mixed with these: "
                "write to another folder (--out), or move the file away"
            )
        try:
            self.rows = {row["unit"]: dict(row) for row in record["rows"]}
            self.times = {unit: dict(record["times"]["units"][unit]) for unit in self.rows}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} holds no rows that can be read ({type(error).__name__}: {error}): move it away, or write "
                "to another folder"
            ) from error

    def completed(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Runs what is missing; returns the record."""
        units = self.experiment.units(self.settings)
        missing = [unit for unit in units if unit.name not in self.rows]
        for number, unit in enumerate(missing, 1):
            begin = time.perf_counter()
            place = make_folder(self.scratch / unit.name.replace("/", "-").replace(" ", "_"))
            values = plain(unit.run(place))  # as it comes back out of the file: a resumed run has the same rows
            seconds = round(time.perf_counter() - begin, 3)
            self.times[unit.name] = {"seconds": seconds, **values.pop("times", {})}
            self.rows[unit.name] = {"unit": unit.name, **unit.key, **values}
            record = self._record([self.rows[u.name] for u in units if u.name in self.rows], False)
            if self.experiment.partial:
                record["figure"] = self._drawn(record, say)
            write_record(self.path, record)
            shutil.rmtree(self.scratch, ignore_errors=True)
            say(f"[{number}/{len(missing)}] {self.experiment.name}: {unit.name or 'all'} ({seconds:.1f} s)")
        record = self._record([self.rows[unit.name] for unit in units], True)
        record["figure"] = self._drawn(record, say)
        write_record(self.path, record)
        return record

    def _record(self, rows: Sequence[Row], finished: bool) -> dict[str, Any]:
        timed = [{**row, "times": self.times.get(row["unit"], {})} for row in rows]
        one = self.experiment
        shown = bool(rows) and (finished or one.partial)
        return {
            **self.identity,
            "title": one.title,
            "source": one.source,
            "about": one.about,
            "command": _command(one, self.settings),
            "finished": finished,
            "lines": [line.to_dict() for line in one.lines(timed)] if shown else [],
            "text": list(one.text(timed)) if shown else [],
            "figure": None,
            "rows": list(rows),
            "times": {"date": self.date, "units": {row["unit"]: self.times[row["unit"]] for row in rows}},
        }

    def _drawn(self, record: Mapping[str, Any], say: Callable[[str], None]) -> str | None:
        """The name of the figure's file; None where there is none."""
        draw = self.experiment.draw
        if draw is None:
            return None
        times = record["times"]["units"]
        rows = [{**row, "times": times[row["unit"]]} for row in record["rows"]]
        path = self.path.with_suffix(".png")
        try:
            figure = new_figure(path, 10.5, 3.8)
        except TN4NNError as error:
            say(f"{self.experiment.name}: no figure: {error}")
            return None
        figure.set_layout_engine("constrained")
        draw(figure, rows)
        saved(figure, path)
        return path.name


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Which of the things that rows of one file have in common are not alike."""
    found: list[str] = []
    for key in _IDENTITY:
        one, other = mine[key], theirs.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += [f"{key}.{name}" for name in {**one, **other} if one.get(name) != other.get(name)]
        elif one != other:
            found.append(key)
    return found


def _command(one: Experiment, settings: Settings) -> str:
    words = ["tn4nn reproduce", one.name]
    words += ["--quick"] if settings.quick else []
    words += [f"--backend {settings.backend}"] if settings.backend != "torch" else []
    words += [f"--device {settings.device}"] if settings.device else []
    words += [f"--seeds {settings.seeds}"] if settings.seeds != (1 if settings.quick else one.seeds) else []
    return " ".join(words)
