"""The columns in which people read a comparison: results first, then what they cost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .summary import Metric, Summary, metric_of
from .variants import DENSE

NEARLY = 90.0  # percent: a figure shows errors where the best accuracy is above it
TOO_GOOD = 97.0  # percent: where all accuracies are above it, errors tell them apart better

_ASKED = {
    "params": "asked, params = parameters of the compared layers, without biases",
    "macs": "asked = multiply-adds of one forward pass of one sample in the compared layers",
    "bytes": "asked = bytes of the weights of the compared layers",
    "step_ms": "asked = milliseconds of the compared layers in one training step, as the cost model predicts",
}
_COSTS = (
    "MACs, peak, saved = those of the plan that this backend runs for the batch size",
    "MACs = multiply-adds of one forward pass per sample",
    "peak = most bytes alive at once in a training step, saved = of these, what is saved for backward; without weights",
)


def short(value: float | None, digits: int = 3) -> str:
    """A number at a glance: 3 significant digits and k, M, G, T from ten thousand on.

    Examples:
        >>> short(0.4567), short(8321), short(1048576), short(None)
        ('0.457', '8321', '1.05M', '–')
    """
    if value is None:
        return "–"
    if abs(value) < 9999.5:
        return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.{digits}g}"
    power = min(4, int(math.log10(abs(value)) + 1e-9) // 3)
    # 999,950 would be printed as 1e+03k.
    if power < 4 and abs(value) / 1000**power >= 999.5:
        power += 1
    return f"{value / 1000**power:.{digits}g}{' kMGT'[power]}"


def _exact(value: float | None) -> str:
    return f"{value:.0f}" if value is not None and abs(value) < 1e6 else short(value)


def _times(value: float | None) -> str:
    return "–" if value is None else f"{short(value)}x"


def _kib(value: float | None) -> str:
    return short(None if value is None else value / 1024)


def _fill(one: Summary) -> str:
    return "–" if one.fill is None else f"{100 * one.fill:.1f}"


def _ratio(one: Summary) -> str:
    return "–" if one.step_vs_dense is None else f"{one.step_vs_dense:.2f}x"


def _spread(mean: float | None, sd: float | None, unit: str) -> str:
    """A mean with its sd: percentages with two decimals, other numbers with four digits."""
    if mean is None:
        return "–"
    if unit == "%":
        return f"{mean:.2f}" + ("" if sd is None else f" ± {sd:.2f}")
    return f"{mean:#.4g}" + ("" if sd is None else f" ± {sd:#.2g}")


def _status(one: Summary) -> str:
    return f"ok {one.seeds - one.failed}/{one.seeds}" if one.status == "ok" and one.failed else one.status


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A column of every table.

    Attributes:
        title: in two lines.
        cell: the text of a cell.
        value: what to sort by.
        numeric: whether that is a number.
        drop: a terminal that is too narrow leaves the columns of 1 out first, then those of 2 and so on; 0 is kept.
    """

    title: tuple[str, str]
    cell: Callable[[Summary], str]
    value: Callable[[Summary], float | str | None]
    numeric: bool = True
    drop: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Scale:
    """How the metric that decides is shown: as it is, or an accuracy as an error.

    Attributes:
        name: "accuracy", "error", "loss", or that of another metric.
        unit: "%" or nothing.
        is_error: 100 - accuracy is shown.
        larger_is_better: of what is shown.
    """

    name: str
    unit: str
    is_error: bool
    larger_is_better: bool

    def of(self, one: Summary) -> float | None:
        """The score as it is shown."""
        return None if one.score is None else 100 - one.score if self.is_error else one.score

    def text(self, one: Summary) -> str:
        """The score as it is shown, with its sd."""
        return _spread(self.of(one), one.score_sd, self.unit)


_ERROR = Scale("error", "%", True, False)


def scale_of(summaries: Sequence[Summary], metric: Metric) -> Scale:
    """How the metric of a table is shown."""
    if metric.name != "accuracy":
        return Scale(metric.name, "", False, metric.larger_is_better)
    scores = [one.score for one in summaries if one.score is not None]
    return _ERROR if scores and min(scores) > TOO_GOOD else Scale("accuracy", "%", False, True)


def scale_of_figure(summaries: Sequence[Summary], metric: Metric) -> Scale:
    """How the metric is drawn. One poor topology is enough to squeeze the accuracies of all others into a line, so
    errors are drawn where the best is nearly right."""
    scores = [one.score for one in summaries if one.score is not None]
    nearly = metric.name == "accuracy" and bool(scores) and max(scores) > NEARLY
    return _ERROR if nearly else scale_of(summaries, metric)


def columns_for(summaries: Sequence[Summary], metric: Metric) -> list[Column]:
    """The columns of a table: those that say the same in every row are left out."""
    scale = scale_of(summaries, metric)

    def vary(value: Callable[[Summary], object]) -> bool:
        return len({found for one in summaries if (found := value(one)) is not None}) > 1

    any_level = any(one.level for one in summaries)

    def score(one: Summary) -> str:
        return scale.text(one) + (" *" if one.level else "  " if any_level else "")

    found = [Column(("topology", ""), lambda s: s.topology, lambda s: s.topology, numeric=False)]
    if vary(lambda s: s.width):
        found.append(Column(("width", ""), lambda s: short(s.width), lambda s: s.width, drop=12))
    if vary(lambda s: s.backend):
        found.append(Column(("backend", ""), lambda s: s.backend, lambda s: s.backend, numeric=False, drop=11))
    found += [
        Column((scale.name, scale.unit), score, scale.of),
        Column(("vs", "dense"), _ratio, lambda s: s.step_vs_dense),
        Column(("params", ""), lambda s: _exact(s.params), lambda s: s.params, drop=10),
        Column(("asked", ""), lambda s: _exact(s.budget), lambda s: s.budget, drop=9),
        Column(("fill", "%"), _fill, lambda s: s.fill, drop=4),
        Column(("compr.", "layers"), lambda s: _times(s.compression), lambda s: s.compression, drop=3),
        Column(("compr.", "model"), lambda s: _times(s.model_compression), lambda s: s.model_compression, drop=3),
        Column(("step", "ms"), lambda s: short(s.step_ms), lambda s: s.step_ms, drop=8),
        Column(("MACs", "/sample"), lambda s: short(s.macs_per_sample), lambda s: s.macs_per_sample, drop=7),
        Column(("peak", "KiB"), lambda s: _kib(s.peak_bytes), lambda s: s.peak_bytes, drop=2),
        Column(("saved", "KiB"), lambda s: _kib(s.saved_bytes), lambda s: s.saved_bytes, drop=2),
    ]
    if vary(lambda s: s.steps):
        found.append(Column(("steps", ""), lambda s: short(s.steps), lambda s: s.steps, drop=6))
    found.append(Column(("lr", ""), lambda s: "–" if s.lr is None else f"{s.lr:.2g}", lambda s: s.lr, drop=5))
    found += [_other(name) for name in dict.fromkeys(name for one in summaries for name in one.metrics)]
    found.append(Column(("status", ""), _status, lambda s: s.status, numeric=False))
    return found


def _other(name: str) -> Column:
    def pair(one: Summary) -> tuple[float | None, float | None]:
        return one.metrics.get(name, (None, None))

    unit = "%" if name == "accuracy" else ""
    return Column((name, unit), lambda s: _spread(*pair(s), unit), lambda s: pair(s)[0], drop=1)


_METRICS = {
    "accuracy": "accuracy = percent that are right",
    "error": "error = percent that are wrong, 100 - accuracy; shown because all accuracies are above 97 %",
    "loss": "loss = what training makes small, mean over the rows; less is better",
}


def _of_metric(name: str) -> str:
    return _METRICS.get(name, f"{name} = as the fit that was given returned it")


def notes_on(results: Mapping[str, Any], summaries: Sequence[Summary], columns: Sequence[Column]) -> list[str]:
    """What is said below the table: the meaning of the columns that it has, and where a learning rate might better be
    another."""
    config = results.get("config") or {}
    budget_of = str(config.get("budget_of") or "params")
    names = [scale_of(summaries, metric_of(results)).name, *dict.fromkeys(n for one in summaries for n in one.metrics)]
    notes = [_of_metric(name) for name in names]
    notes.append(
        f"{', '.join(names)}: on the test split, or the validation split of a task without one, after the last step"
    )
    if any(one.score_sd is not None for one in summaries):
        notes.append("mean ± sample standard deviation over the seeds")
    if any(one.level for one in summaries):
        notes.append(
            "* = level with the best of its budget, backend and width: not significantly worse (Welch's t-test over "
            "the seeds, p > 0.05 after Holm's correction)"
        )
    widths = list(dict.fromkeys(one.width for one in summaries if one.width is not None))
    dense = f"dense model of width {short(widths[-1])}" if len(widths) > 1 else "dense model"
    notes.append(f"vs dense = time of a training step / that of the {dense}, below 1 is faster; step = its median")
    if budget_of != "params":
        notes.append("params = parameters of the compared layers, without biases")
    notes.append(f"{_ASKED[budget_of]}; fill = share of what was asked for that is used; compr. = dense / params")
    if any(one.role == DENSE for one in summaries):
        notes.append("dense is asked for its own size")
    notes += _COSTS
    if any(column.title[0] == "steps" for column in columns):
        notes.append("steps = of one training run")
    notes.append('lr = learning rate: with "auto", the best on the validation split')
    bounds = config.get("learning_rate_bounds") or ()
    at_edge = dict.fromkeys(one.topology for one in summaries if one.status == "ok" and one.lr in bounds)
    if at_edge:
        notes.append(f"the best learning rate is the last that was tried, another may be better: {', '.join(at_edge)}")
    return notes
