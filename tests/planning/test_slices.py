"""Legs to loop over: what fits under a cap, and orders that change with what is sliced."""

import math

import cotengra
import networkx
import pytest

import tn4nn as tn
from tn4nn._graph.paths import REORDERED, find_paths, legs_along, path_macs, reordered_slices, slice_legs
from tn4nn._graph.problem import Problem


def regular(seed, nodes=40, degree=3):
    graph = networkx.random_regular_graph(degree, nodes, seed=seed)
    edges = {edge: f"e{i}" for i, edge in enumerate(graph.edges)}
    return [tuple(leg for edge, leg in edges.items() if node in edge) for node in graph.nodes], (), 2


def ring():
    problem = Problem(tn.ring((4, 4, 4, 4), (4, 4, 4, 4)).with_rank(8), "apply", 16)
    return problem.tensors, problem.output, problem.sizes


QUESTIONS = {"ring": ring, **{f"regular {seed}": (lambda seed=seed: regular(seed)) for seed in range(3)}}


def asked(name):
    tensors, output, sizes = QUESTIONS[name]()
    if isinstance(sizes, int):
        sizes = dict.fromkeys((leg for legs in tensors for leg in legs), sizes)
    return tensors, output, sizes, find_paths(tensors, output, sizes, time_limit=1.0, thorough=False)[0]


def largest(tensors, output, sizes, path, sliced=()):
    sizes = {**sizes, **dict.fromkeys(sliced, 1)}
    made = legs_along(tensors, output, path)[len(tensors) :]
    return max(math.prod(sizes[leg] for leg in on) for on in made)


def macs(tensors, output, sizes, path, sliced):
    loops = math.prod(sizes[leg] for leg in sliced)
    return loops * path_macs(tensors, output, {**sizes, **dict.fromkeys(sliced, 1)}, path)


@pytest.mark.parametrize("name", QUESTIONS)
def test_ever_more_legs_are_sliced_and_the_largest_array_shrinks(name):
    tensors, output, sizes, path = asked(name)
    before, seen = (), largest(tensors, output, sizes, path)
    for order, sliced in reordered_slices(tensors, output, sizes, path):
        assert set(before) < set(sliced)
        assert not set(sliced) & set(output)
        assert len(order) == len(tensors) - 1
        before = sliced
    assert largest(tensors, output, sizes, order, sliced) < seen
    again = list(reordered_slices(tensors, output, sizes, path))
    assert again[-1] == (order, sliced)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_cap_is_met_about_as_cheaply_as_by_cotengra(name):
    tensors, output, sizes, path = asked(name)
    cap = max(1, largest(tensors, output, sizes, path) // 16)
    cap = max(cap, math.prod(sizes[leg] for leg in output))
    kept = slice_legs(tensors, output, sizes, path, cap)
    found = [] if kept is None else [macs(tensors, output, sizes, path, kept)]
    for way in REORDERED:
        for order, sliced in reordered_slices(tensors, output, sizes, path, *way):
            if largest(tensors, output, sizes, order, sliced) <= cap:
                found.append(macs(tensors, output, sizes, order, sliced))
                break
    letters = {leg: cotengra.get_symbol(i) for i, leg in enumerate(sizes)}
    inputs = [[letters[leg] for leg in legs] for legs in tensors]
    whole = {letters[leg]: size for leg, size in sizes.items()}
    tree = cotengra.ContractionTree.from_path(inputs, [letters[leg] for leg in output], whole, ssa_path=path)
    theirs = tree.slice_and_reconfigure(cap, allow_outer=False)
    assert min(found) <= 1.3 * theirs.total_flops()  # theirs differs from run to run


def test_nothing_to_slice():
    assert list(reordered_slices([("a",), ("b",)], ("a", "b"), {"a": 4, "b": 4}, ((0, 1),))) == []
