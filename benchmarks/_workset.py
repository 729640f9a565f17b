"""The work set as data: which networks, which batches, which phases. Importing this imports no framework."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import tn4nn as tn

BATCHES = (1, 32, 256, 2048)
PHASES = ("forward", "train")
BUDGET = 5000  # parameters of the cases that are given by a budget


@dataclasses.dataclass(frozen=True)
class Case:
    """One network of the work set.

    Attributes:
        name: what `--only` matches.
        chi: the bond dimension, where one number says it; None where ranks come from a budget.
        make: makes the network.
        why: where it comes from.
    """

    name: str
    chi: int | None
    make: Callable[[], tn.Network]
    why: str = ""

    def network(self) -> tn.Network:
        """The network."""
        return self.make()


def _clipped(topology: tn.Topology, chi: int) -> tn.Network:
    """Every bond at chi, or at the largest rank that is of use there."""
    return topology.with_ranks({bond: min(chi, cap) for bond, cap in tn.rank_caps(topology).items()})


def _mpo(name: str, inputs: Sequence[int], outputs: Sequence[int], chi: int, why: str = "") -> Case:
    return Case(name, chi, lambda: _clipped(tn.mpo(inputs, outputs), chi), why)


def _budgeted(name: str, topology: str, sites: int) -> Case:
    def make() -> tn.Network:
        return tn.build(topology, 1024, 1024, sites=sites, pad=False).with_budget(params=BUDGET)

    return Case(name, None, make, f"{topology} over {sites} sites, about {BUDGET} parameters")


def _synthetic() -> Iterator[Case]:
    for chi in (4, 16):
        yield _mpo(f"fc2-chi{chi}", (4, 7, 7, 4), (4, 4, 4, 4), chi, "784->256 of FC2 (arXiv:1904.06194)")
    for chi in (2, 4, 8, 10, 16, 32):
        yield _mpo(f"1024-chi{chi}", (4,) * 5, (4,) * 5, chi)
    for chi in (8, 16, 64):
        yield _mpo(f"4096-chi{chi}", (8,) * 4, (8,) * 4, chi)
    yield Case("btt-4096", 1, lambda: tn.btt((64, 64), (64, 64)).with_rank(1), "524,288 parameters")
    yield _budgeted("tree5", "tree", 5)
    yield _budgeted("tree8", "tree", 8)
    yield Case("ring-chi8", 8, lambda: tn.ring((4,) * 5, (4,) * 5).with_rank(8))
    yield Case("peps2x2-chi6", 6, lambda: tn.build("peps", 1024, 1024, grid=(2, 2), pad=False).with_rank(6))
    yield Case("peps2x3-chi5", 5, lambda: tn.build("peps", 1024, 1024, grid=(2, 3), pad=False).with_rank(5))
    yield _budgeted("mera", "mera", 5)
    yield _budgeted("cp", "cp", 5)
    yield _budgeted("tucker", "tucker", 3)


def _published() -> Iterator[Case]:
    g, n = "arXiv:1904.06194", "arXiv:1509.06569"
    big = (4, 4, 8, 8, 4)
    yield _mpo("lenet-400x120", (2, 10, 10, 2), (2, 5, 6, 2), 4, g)
    yield _mpo("lenet-120x84", (2, 5, 6, 2), (2, 3, 7, 2), 4, g)
    yield _mpo("lenet-84x10", (2, 3, 7, 2), (1, 5, 2, 1), 2, g)
    yield _mpo("vgg-2048x2048", (2, 8, 8, 8, 2), (2, 8, 8, 8, 2), 4, g)
    yield _mpo("vgg-512x4096", (4, 4, 4, 4, 2), big, 4, g)
    yield _mpo("vgg-4096x4096", big, big, 4, g)
    yield _mpo("vgg-4096x10", big, (1, 10, 1, 1, 1), 4, g)
    yield _mpo("wrn-16384x16384", (2, 4, 4, 4, 4, 4, 4, 2), (2, 4, 4, 4, 4, 4, 4, 2), 4, g)
    yield _mpo("densenet-448x10", (4, 4, 7, 4), (1, 5, 2, 1), 4, g)
    yield _mpo("tnn-1024x625-chi2", (4, 8, 8, 4), (5, 5, 5, 5), 2, n)
    yield _mpo("tnn-1024x625-chi8", (4, 8, 8, 4), (5, 5, 5, 5), 8, n)


CASES: dict[str, Case] = {case.name: case for case in (*_synthetic(), *_published())}

# One of each kind, in which losses are as likely as wins.
QUICK: tuple[tuple[str, int, str], ...] = (
    ("fc2-chi4", 32, "train"),
    ("1024-chi4", 1, "forward"),
    ("1024-chi4", 32, "train"),
    ("1024-chi4", 2048, "train"),
    ("1024-chi8", 256, "train"),
    ("1024-chi16", 256, "train"),
    ("btt-4096", 32, "train"),
    ("tree5", 256, "train"),
    ("ring-chi8", 256, "train"),
    ("peps2x2-chi6", 32, "train"),
    ("cp", 256, "train"),
    ("tucker", 256, "train"),
    ("vgg-4096x4096", 32, "train"),
    ("vgg-4096x10", 256, "forward"),
)


def questions(quick: bool, only: str | None, batches: Sequence[int] = BATCHES) -> list[tuple[Case, int, str]]:
    """(case, batch, phase) of every cell to run; `only`: parts of "case/batch/phase", by commas."""
    cells = (
        [(CASES[name], batch, phase) for name, batch, phase in QUICK]
        if quick
        else [(case, batch, phase) for case in CASES.values() for batch in batches for phase in PHASES]
    )
    if only is None:
        return cells
    parts = [part.strip() for part in only.split(",")]
    return [cell for cell in cells if any(part in label(cell[0].name, *cell[1:]) for part in parts)]


def label(case: str, batch: int, phase: str) -> str:
    """The name of a cell."""
    return f"{case}/{batch}/{phase}"
