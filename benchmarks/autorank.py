"""E7: ranks that move during training against the best uniform rank, FC2 on MNIST, MPO (4,7,7,4) -> (4,4,4,4).

    python benchmarks/autorank.py --json autorank.json

For each budget: every bond of the first layer at the largest equal rank that fits, of the second at 4 (as published);
`AutoRank` from there; and the ranks of `with_budget`, which treats the bonds of both layers alike. Test accuracy in
percent after the last epoch, mean and sample sd over seeds; Adam, cosine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import tn4nn as tn

BUDGETS = (2_000, 5_000, 15_000)


def uniform(first: tn.Topology, second: tn.Topology, budget: int) -> tuple[tn.Network, tn.Network]:
    """The largest equal rank on all bonds of the first layer that fits, lowered where a bond can use no more."""
    fitting = []
    for rank in range(1, 64):
        pair = first.with_rank(rank, clip=True), second.with_rank(min(rank, 4), clip=True)
        if sum(net.num_params for net in pair) <= budget:
            fitting.append(pair)
    return fitting[-1]


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = tn.load_data(options.data)
    first, second = tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)), tn.mpo((4, 4, 4, 4), (1, 1, 10, 1))
    rows: list[dict[str, Any]] = []
    for budget in map(int, options.budgets.split(",")):
        even: Any = uniform(first, second, budget)
        plain = tn.Sequential(tn.Linear(even[0]), tn.ReLU(), tn.Linear(even[1]))
        open_ranks = tn.Sequential(tn.Linear(first), tn.ReLU(), tn.Linear(second))
        filled = tn.with_budget(open_ranks, params=budget, count="networks")
        auto = tn.AutoRank(params=budget)
        for name, model, ranks in (("uniform", plain, None), ("auto", plain, auto), ("budget", filled, None)):
            runs = [
                tn.train(
                    model, data, backend=options.backend, seed=seed, epochs=options.epochs, lr=options.lr, ranks=ranks
                )
                for seed in range(options.seeds)
            ]
            accuracy = [run.test_accuracy for run in runs]
            row = {
                "budget": budget,
                "ranks": name,
                "params": [sum(net.num_params for net in run.model.networks().values()) for run in runs],
                "accuracy": accuracy,
                "mean": statistics.mean(accuracy),
                "sd": statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
                "final_ranks": [{n: dict(net.ranks) for n, net in run.model.networks().items()} for run in runs],
            }
            rows.append(row)
            print(f"{budget:>7,} {name:<8} {row['mean']:.2f} ± {row['sd']:.2f}  params {row['params']}", flush=True)
    if options.json is not None:
        settings = {k: v for k, v in vars(options).items() if k != "json"}
        machine = {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__}
        machine |= tn.backend(options.backend).versions()
        record = {"schema": 1, "machine": machine, "settings": settings, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
