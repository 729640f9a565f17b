"""Weight decay of W, as weight decay of its cores.

Decoupled decay takes a dense weight from W to (1 - lr * wd) W in each step, the gradient aside. W is linear in each of
its N cores. Where each of them becomes (1 - lr * wd / N) times what it was, W becomes (1 - lr * wd / N)^N times what it
was: (1 - lr * wd), but for a relative (lr * wd)^2 / 2 at most, for any topology. An optimizer multiplies the decay of a
core by that core's learning rate, lr * factor, so a core's own decay is wd / (N * factor).

The decay of each core by wd itself would take W to (1 - lr * wd)^N W, times the factors: the more cores, the more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .._base.errors import TN4NNError


def decay_of_cores(weight_decay: float, factors: Mapping[str, float]) -> dict[str, float]:
    """The decay of each core with which one step decays W by lr * weight_decay.

    Args:
        weight_decay: of W.
        factors: core name -> learning-rate factor, of the cores of one network that are trained. The N of the formula
            is their count: cores that are frozen do not decay, and the others do it for them. An array that stands
            for two cores counts as two, and has the decay of one.

    Examples:
        >>> decay_of_cores(0.1, {"core0": 4.0, "core1": 1.0})
        {'core0': 0.0125, 'core1': 0.05}
    """
    return {name: weight_decay / (len(factors) * factor) for name, factor in factors.items()}


def checked_decay(weight_decay: float) -> float:
    """A weight decay, or an error."""
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise TN4NNError(f"weight_decay must be finite and at least 0, received {weight_decay!r}")
    return float(weight_decay)
