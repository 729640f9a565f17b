"""The sweep: learning rates first, then the training runs, then the times."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from .cells import Cell, row_of, step_flops
from .ray_cluster import ray_workers
from .rows import Outcome, Row
from .runs import Rate, best_rate, run_cell
from .settings import Settings
from .store import Store
from .timing import step_times
from .variants import Subject
from .workers import Each, Lost, workers


class Sweep:
    """Runs the cells that are not done.

    Args:
        cells: of the table.
        subject: what they are variants of.
        settings: of every cell.
        store: of finished rows and learning rates.
        say: takes a line of text for each thing that is done.
    """

    def __init__(
        self, cells: Sequence[Cell], subject: Subject, settings: Settings, store: Store, say: Callable[[str], None]
    ) -> None:
        self.cells, self.subject, self.settings, self.store, self.say = cells, subject, settings, store, say
        self.task = subject.task
        self.times: dict[str, dict[str, float]] = {}  # by the key of the cell
        self._lost: dict[str, str] = {}  # model -> why there is no learning rate for it
        # A model has one learning rate, searched on the backend and under the key of its first cell.
        self._first = {cell.variant.fingerprint: cell for cell in reversed(cells)}

    def run(self) -> None:
        """Everything that is missing."""
        # Two budgets may give the same model: such cells have one key, and run once.
        waiting = list({cell.key: cell for cell in self.cells if not self._is_ok(cell)}.values())
        if self.settings.seconds is not None:  # how many steps a run has depends on how long one takes
            self._time(waiting)
        jobs = self.settings.jobs
        with ray_workers(jobs) if isinstance(jobs, str) else workers(jobs) as each:
            self._search_rates(waiting, each)
            self._train(waiting, each)
        self._time([cell for cell in self.cells if self._is_ok(cell)])
        self.store.end()

    def _is_ok(self, cell: Cell) -> bool:
        return self.store.done.get(cell.key, {}).get("status") == "ok"

    def _steps(self, cell: Cell) -> int | None:
        """How many steps a run of a cell has, where its length is not in epochs."""
        settings = self.settings
        if settings.flops is not None:
            return max(1, round(settings.flops / step_flops(cell, settings, self.task)))
        if settings.seconds is not None:
            # A cell whose step could not be timed fails in its run too, which says why.
            milliseconds = self.times.get(cell.key, {}).get("step_ms", 1e3 * settings.seconds)
            return max(1, round(1e3 * settings.seconds / milliseconds))
        return settings.steps

    def _search_rates(self, waiting: Sequence[Cell], each: Each) -> None:
        models = dict.fromkeys(cell.variant.fingerprint for cell in waiting)
        search = [self._first[model] for model in models]
        search = [cell for cell in search if self._rate_key(cell) not in self.store.done]
        calls = [(cell, self.task, self.settings, self._steps(cell)) for cell in search]
        for cell, rate in each(best_rate, calls):
            if isinstance(rate, Lost):
                self._lost[cell.variant.fingerprint] = rate.reason
                continue
            self.store.add(self._rate_key(cell), dataclasses.asdict(rate))
            if self.settings.lr == "auto" and rate.lr is not None:
                self.say(f"{cell.title}: learning rate {rate.lr:g}")

    def _rate_key(self, cell: Cell) -> str:
        return "lr-" + self._first[cell.variant.fingerprint].key

    def _train(self, waiting: Sequence[Cell], each: Each) -> None:
        calls = [
            (cell, self.task, self.settings, Rate(**self.store.done[self._rate_key(cell)]), self._steps(cell))
            for cell in waiting
            if cell.variant.fingerprint not in self._lost
        ]
        lost = [(cell, Lost(reason)) for cell in waiting if (reason := self._lost.get(cell.variant.fingerprint))]
        for number, (cell, found) in enumerate(itertools.chain(lost, each(run_cell, calls)), 1):
            outcome = Outcome(None, reason=found.reason) if isinstance(found, Lost) else found
            row = row_of(cell, self.settings, outcome, {}, self.task)
            self.store.add(cell.key, dataclasses.asdict(row))
            score = outcome.metrics.get(self.task.metric)
            end = f"failed: {row.reason}" if row.status != "ok" else "ok" if score is None else self.task.shown(score)
            self.say(f"[{number}/{len(waiting)}] {cell.title}, {cell.backend}, seed {cell.seed}: {end}")

    def _time(self, cells: Sequence[Cell]) -> None:
        if not self.task.is_given:
            return
        for backend in self.settings.backends:
            there = [cell for cell in cells if cell.backend == backend and cell.key not in self.times]
            models = {cell.variant.fingerprint: cell.variant.model for cell in there}
            if not models:
                continue
            self.say(f"timing {len(models)} models on {backend}")
            times = step_times(backend, models, self.subject.reference, self.task, self.settings)
            self.times |= {cell.key: times.get(cell.variant.fingerprint, {}) for cell in there}

    def row(self, cell: Cell) -> Row:
        """The row of a cell. Only the outcome comes from the store: costs and times are those of this program."""
        outcome = Outcome.of_row(self.store.done[cell.key])
        return row_of(cell, self.settings, outcome, self.times.get(cell.key, {}), self.task)
