"""Contractions over which `tn.einsum` is compared: layers, networks of the path benchmark, and classics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from _instances import Absent, instances
from _paths import Contraction, of_layer
from _workset import CASES
from numpy.typing import NDArray

from tn4nn._graph.paths import letter

Array = NDArray[np.generic]

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
BATCHES = (32, 256)  # of the layers
MOST_MACS, MOST_NUMBERS = 10**11, 1 << 28  # of a network that a call contracts in seconds, by the greedy path


@dataclasses.dataclass(frozen=True, eq=False)
class Einsum:
    """One contraction to be timed.

    Attributes:
        name: what `--only` matches.
        group: "layers", "networks" or "classics".
        problem: the legs and sizes.
        values: makes the operands; None for random ones without cancellation.
    """

    name: str
    group: str
    problem: Contraction
    values: Callable[[], list[Array]] | None = None

    @property
    def equation(self) -> str:
        """As text: letters first, then other characters."""
        legs = dict.fromkeys(leg for legs in self.problem.tensors for leg in legs)
        name = {leg: LETTERS[i] if i < len(LETTERS) else letter(i) for i, leg in enumerate(legs)}
        terms = ["".join(name[leg] for leg in legs) for legs in (*self.problem.tensors, self.problem.output)]
        return ",".join(terms[:-1]) + "->" + terms[-1]

    def arrays(self) -> list[Array]:
        """The operands: float32, or complex64 for circuits."""
        if self.values is not None:
            return self.values()
        rng = np.random.default_rng(0)
        return [(rng.random(s) / math.sqrt(math.prod(s))).astype(np.float32) for s in self.problem.shapes]


def einsums(quick: bool) -> Iterator[Einsum | Absent]:
    """All of them; of the quick ones, a few of each group."""
    for case in CASES.values():
        for batch in BATCHES[-1:] if quick else BATCHES:
            yield Einsum(f"{case.name}/{batch}", "layers", of_layer(case.network(), batch))
    yield from classics()
    for each in instances(quick):
        yield each if isinstance(each, Absent) else Einsum(each.name, "networks", each.problem)


def classics() -> Iterator[Einsum | Absent]:
    """Norms of MPS, an expectation value by an MPO, norms of PEPS, circuits on 3-regular graphs."""
    for sites, chi in ((32, 64), (32, 256), (16, 512), (100, 128)):
        yield Einsum(f"mps-norm-{sites}-chi{chi}", "classics", mps_norm(sites, chi))
    yield Einsum("mps-mpo-mps-16-chi128", "classics", mps_norm(16, 128, mpo=5))
    for rows, columns, bond in ((3, 3, 6), (4, 4, 4), (4, 4, 5), (3, 8, 4), (5, 5, 3), (6, 6, 3)):
        yield Einsum(f"peps-norm-{rows}x{columns}-D{bond}", "classics", peps_norm(rows, columns, bond))
    for nodes, depth, seed in ((60, 2, 6), (30, 3, 2), (36, 3, 4)):
        yield circuit(nodes, depth, seed)


def mps_norm(sites: int, chi: int, mpo: int = 0) -> Contraction:
    """<psi|psi> of a chain, or <psi|H|psi> with an MPO of that bond dimension."""
    tensors: list[tuple[str, ...]] = []
    for layer in ("ket", "bra", *(["mpo"] if mpo else [])):
        for site in range(sites):
            bonds = [f"{layer}{i}" for i in (site - 1, site) if 0 <= i < sites - 1]
            physical = (
                [f"p{site}"]
                if not mpo
                else {"ket": [f"p{site}"], "bra": [f"q{site}"]}.get(layer, [f"p{site}", f"q{site}"])
            )
            tensors.append((*bonds, *physical))
    legs = {leg for legs in tensors for leg in legs}
    size = {"k": chi, "b": chi, "m": mpo, "p": 2, "q": 2}
    return Contraction(tuple(tensors), (), {leg: size[leg[0]] for leg in sorted(legs)})


def peps_norm(rows: int, columns: int, bond: int) -> Contraction:
    """<psi|psi> of a grid."""
    tensors = []
    for layer in ("ket", "bra"):
        for i in range(rows):
            for j in range(columns):
                across = [f"{layer}h{i}.{k}" for k in (j - 1, j) if 0 <= k < columns - 1]
                down = [f"{layer}v{k}.{j}" for k in (i - 1, i) if 0 <= k < rows - 1]
                tensors.append((*across, *down, f"p{i}.{j}"))
    legs = {leg for legs in tensors for leg in legs}
    return Contraction(tuple(tensors), (), {leg: 2 if leg[0] == "p" else bond for leg in sorted(legs)})


def circuit(nodes: int, depth: int, seed: int) -> Einsum | Absent:
    """An amplitude of QAOA's circuit for the maximum cut of a random 3-regular graph, as quimb simplifies it."""
    name = f"qaoa-3-regular-{nodes}-p{depth}"
    try:
        import networkx
        import quimb.tensor as qtn
    except ImportError as error:
        return Absent(name, f"needs {error.name}")
    graph = networkx.random_regular_graph(3, nodes, seed=seed)
    rng = np.random.default_rng(seed)
    terms = dict.fromkeys(sorted(tuple(sorted(edge)) for edge in graph.edges), 1.0)
    made = qtn.circ_qaoa(terms, depth, rng.uniform(-3, 3, depth), rng.uniform(-3, 3, depth))
    network = made.amplitude("0" * nodes, rehearse="tn", simplify_sequence="ADCRS")
    number = {index: f"i{i}" for i, index in enumerate(dict.fromkeys(i for t in network for i in t.inds))}
    tensors = tuple(tuple(number[index] for index in t.inds) for t in network)
    sizes = {number[index]: int(network.ind_size(index)) for index in number}
    arrays = [np.ascontiguousarray(t.data).astype(np.complex64) for t in network]
    return Einsum(name, "classics", Contraction(tensors, (), sizes), lambda: arrays)


def is_runnable(each: Einsum) -> bool:
    """Whether a call takes seconds and a few hundred megabytes at most."""
    from tn4nn._graph.paths import greedy_path

    problem: Contraction = each.problem
    cost = problem.cost(greedy_path(problem.tensors, problem.output, problem.sizes))
    return cost.macs <= MOST_MACS and cost.largest <= MOST_NUMBERS
