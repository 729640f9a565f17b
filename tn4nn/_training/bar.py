"""The progress bar of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Show = Callable[[int, float, float, float], None]  # steps done, loss, validation accuracy, samples per second


@contextlib.contextmanager
def progress_bar(wanted: bool, steps: int) -> Iterator[Show]:
    """A function that shows how far a run is; it does nothing where no bar is wanted."""
    if not wanted:
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=steps)

        def show(step: int, loss: float, accuracy: float, rate: float) -> None:
            bar.update(
                task, completed=step, description=f"loss {loss:.4f}  val {accuracy:.2f} %  {rate:,.0f} samples/s"
            )

        yield show
