"""The sweep: learning rates first, then the training runs, then the times."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from .._training.data import Dataset
from .cells import Cell, row_of
from .rows import Outcome, Row
from .runs import best_rate, run_cell
from .settings import Settings
from .store import Store
from .timing import step_times
from .workers import Each, workers


class Sweep:
    """Runs the cells that are not done.

    Args:
        cells: of the table.
        data: that every cell is trained on.
        settings: of every cell.
        store: of finished rows and learning rates.
        say: takes a line of text for each thing that is done.
    """

    def __init__(
        self, cells: Sequence[Cell], data: Dataset, settings: Settings, store: Store, say: Callable[[str], None]
    ) -> None:
        self.cells, self.data, self.settings, self.store, self.say = cells, data, settings, store, say
        self.times: dict[str, dict[str, float]] = {}  # by the key of the cell
        # A model has one learning rate, searched on the backend and under the key of its first cell.
        self._first = {cell.model.fingerprint: cell for cell in reversed(cells)}

    def run(self) -> None:
        """Everything that is missing."""
        # Two budgets may give the same model: such cells have one key, and run once.
        waiting = list({cell.key: cell for cell in self.cells if not self._is_ok(cell)}.values())
        with workers(self.settings.jobs) as each:
            self._search_rates(waiting, each)
            self._train(waiting, each)
        for backend in self.settings.backends:
            self._time(backend)

    def _is_ok(self, cell: Cell) -> bool:
        return self.store.done.get(cell.key, {}).get("status") == "ok"

    def _search_rates(self, waiting: Sequence[Cell], each: Each) -> None:
        models = dict.fromkeys(cell.model.fingerprint for cell in waiting)
        search = [self._first[model] for model in models]
        search = [cell for cell in search if self._rate_key(cell) not in self.store.done]
        for cell, lr in each(best_rate, [(cell, self.data, self.settings) for cell in search]):
            self.store.add(self._rate_key(cell), {"lr": lr})
            if self.settings.lr == "auto":
                self.say(f"{cell.topology} at {cell.budget:,}: learning rate {lr:g}")

    def _rate_key(self, cell: Cell) -> str:
        return "lr-" + self._first[cell.model.fingerprint].key

    def _train(self, waiting: Sequence[Cell], each: Each) -> None:
        calls = [
            (cell, self.data, self.settings, float(self.store.done[self._rate_key(cell)]["lr"])) for cell in waiting
        ]
        for number, (cell, outcome) in enumerate(each(run_cell, calls), 1):
            row = row_of(cell, self.settings, outcome, {})
            self.store.add(cell.key, dataclasses.asdict(row))
            end = f"{row.accuracy:.2f} %" if row.status == "ok" else f"failed: {row.reason}"
            self.say(
                f"[{number}/{len(calls)}] {cell.topology} at {cell.budget:,}, {cell.backend}, seed {cell.seed}: {end}"
            )

    def _time(self, backend: str) -> None:
        ran = [cell for cell in self.cells if cell.backend == backend and self._is_ok(cell)]
        models = {cell.model.fingerprint: cell.model for cell in ran}
        if not models:
            return
        self.say(f"timing {len(models)} models on {backend}")
        times = step_times(backend, models, self.data, self.settings)
        self.times |= {cell.key: times[cell.model.fingerprint] for cell in ran}

    def row(self, cell: Cell) -> Row:
        """The row of a cell. Only the outcome comes from the store: costs and times are those of this program."""
        return row_of(cell, self.settings, Outcome.of_row(self.store.done[cell.key]), self.times.get(cell.key, {}))
