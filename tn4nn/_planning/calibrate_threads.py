"""Parameters of the cost model for several threads: what sharing a call costs, and how many threads memory serves."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Sequence

from .._graph.network import Network
from .._runtime.cost import Machine
from .._runtime.recipe_cost import recipe_cost
from .._runtime.target import Target
from .measure import measured
from .plan import Plan
from .planner import candidates
from .request import PlanRequest

PARAMETERS = ("team_s", "streams")
_SHORTEST, _LONGEST = 3e-5, 0.02  # seconds: less is not shared, more takes too long
_FEWEST = 6  # plans that are run, at the least
_FACTORS = tuple(2.0**i for i in range(-3, 5))  # of the default of `team_s`
_STREAMS = (1.0, 1.4, 2.0, 2.8, 4.0, 5.7, 8.0, 11.0, 16.0)


def with_threads(
    machine: Machine, asked: Iterable[tuple[Network, int]], dtype: str, threads: int, seconds: float
) -> Machine:
    """The machine with the parameters for several threads that a training step of each network agrees with best.

    Args:
        machine: parameters for one thread.
        asked: networks and batches.
        dtype: of the numbers.
        threads: as many as there are.
        seconds: after which nothing new is run.

    Returns:
        The machine as it was where there were too few plans.
    """
    end, found = time.monotonic() + seconds, list[Plan]()
    for network, batch in asked:
        if time.monotonic() > end:
            break
        target = Target(dtype=dtype, executors=("native",), threads=threads)
        best = candidates(PlanRequest(network, batch, "train", target=target, machine=machine))[0]
        if _SHORTEST < best.cost.predicted_s < _LONGEST:
            found += measured([best])
    return fitted(machine, [p for p in found if p.measured_s], threads)


def fitted(machine: Machine, samples: Sequence[Plan], threads: int) -> Machine:
    """Of a grid, the machine on which the predictions for measured plans are off by the least factor in the mean; where
    none is better, the machine as it was."""
    if len(samples) < _FEWEST:
        return machine

    def off(changed: Machine) -> float:
        predicted = [recipe_cost(p.recipe, p.batch, p.phase, changed, threads).predicted_s for p in samples]
        return sum(abs(math.log(s / (p.measured_s or s))) for s, p in zip(predicted, samples, strict=True))

    grid = itertools.product(_FACTORS, (streams for streams in _STREAMS if streams <= threads))
    changed = [dataclasses.replace(machine, team_s=machine.team_s * f, streams=streams) for f, streams in grid]
    return min([machine, *changed], key=off)
