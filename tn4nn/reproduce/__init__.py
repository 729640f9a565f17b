"""The experiments of the literature, one command each: `tn4nn reproduce NAME`.

`run` computes an experiment into a folder, `write_page` makes one page of what a folder holds.
"""

from ._experiment import Experiment, Line, Settings, Unit
from ._page import write_page
from ._registry import experiment, experiments
from ._run import failed, read_results, run

__all__ = [
    "Experiment",
    "Line",
    "Settings",
    "Unit",
    "experiment",
    "experiments",
    "failed",
    "read_results",
    "run",
    "write_page",
]
