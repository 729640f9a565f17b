"""The experiments on topologies, structure search and the einsum space: what they ask, and what they make of rows."""

import math

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._drawing.figure import new_figure, saved
from tn4nn._graph.problem import min_macs
from tn4nn.reproduce import einsum_space, search, topology


def cells(unit: str, budget: int) -> dict[str, object]:
    means = {"low_rank": (3_120, 0.78, 82.0), "mpo-4": (4_000, 1.0, 96.0), "ring": (4_000, 1.0, 95.9)}
    rows: list[dict[str, object]] = [
        {"topology": name, "seed": seed, "params": params, "macs_per_sample": 9, "fill": fill, "lr": 1e-3,
         "accuracy": mean + 0.1 * seed, "status": "ok", "reason": ""}
        for name, (params, fill, mean) in means.items()
        for seed in range(3)
    ]  # fmt: skip
    for name in topology.TOPOLOGIES:
        if not any(row["topology"] == name for row in rows):
            empty = dict.fromkeys(("seed", "params", "macs_per_sample", "fill", "lr", "accuracy"))
            rows.append({"topology": name, **empty, "status": "infeasible", "reason": "the smallest is 9"})
    return {"data": "mnist", "counted": unit, "budget": budget, "cells": rows}


def test_the_table_of_topologies(tmp_path) -> None:
    rows = [cells("params", 4_000), cells("macs", 20_000)]
    lines = {line.what: line for line in topology.EXPERIMENT.lines(rows)}
    assert lines["mnist, 4,000 parameters: best, mpo-4"].ours == pytest.approx(96.1)
    assert lines["mnist, 4,000 parameters: least fill"].verdict == "holds"  # low rank has no rank between 3 and 4
    text = "\n".join(topology.EXPERIMENT.text(rows))
    assert "| low_rank | 3,120 | 9 | 78.0 % | 0.001 | 82.10 ± 0.10 % |  |" in text
    assert "| ring | 4,000 | 9 | 100.0 % | 0.001 | 96.00 ± 0.10 % | p = 0.29 |" in text
    assert "tucker: infeasible, the smallest is 9" in text
    assert topology.EXPERIMENT.draw is not None
    figure = new_figure(tmp_path / "t.png")
    topology.EXPERIMENT.draw(figure, rows)
    saved(figure, tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_a_bond_that_could_be_larger_counts_as_unfilled() -> None:
    row = cells("params", 4_000)
    for cell in row["cells"]:
        if cell["topology"] == "low_rank" and cell["fill"]:
            cell["params"], cell["fill"] = 2_080, 0.52
    lines = {line.what: line for line in topology.EXPERIMENT.lines([row])}
    assert lines["mnist, 4,000 parameters: least fill"].verdict == "does not hold"


def test_every_topology_of_the_table_is_in_the_catalogue() -> None:
    found = {c.name: c.hidden for c in topology.candidates()}
    assert set(found) == set(topology.TOPOLOGIES)
    assert (len(found["mpo-4"].cores), len(found["mpo-6"].cores), len(found["peps 2x3"].bonds)) == (4, 6, 7)
    assert len(found["K4"].bonds) == 6


def test_the_ring_has_126_parameters_and_no_cheaper_chain() -> None:
    X = search.permuted_ring(0)
    assert X.shape == (3,) * 6
    assert np.array_equal(X, search.permuted_ring(0))
    chain = tn.decompose(X.reshape(1, -1), tn.mpo((3,) * 6, (1,) * 6), error=1e-4)
    assert chain.network.num_params > 2 * search.PARAMS


@pytest.mark.parametrize("name", einsum_space.POINTS)
def test_named_points_of_the_einsum_space(name: str) -> None:
    net = einsum_space.network(name, einsum_space.POINTS[name])
    share = 0.5 if name in einsum_space.WITHOUT_RANK else 1
    assert min_macs(net, einsum_space.BATCH) == share * einsum_space.MACS * einsum_space.BATCH
    rank = np.linalg.matrix_rank(net.to_dense({name: core.astype(float) for name, core in net.init(0).items()}))
    assert rank == (32 if name == "low rank" else 256)
    twins = {
        "low rank": tn.low_rank(256, 256).with_rank(32), "Kronecker": tn.kronecker((16, 16), (16, 16)).with_rank(1),
        "TT": tn.mpo((16, 16), (16, 16)).with_rank(2), "BTT": tn.btt((16, 16), (16, 16)).with_rank(2),
    }  # fmt: skip
    if name in twins:
        assert net.num_params == twins[name].num_params


def test_points_are_within_the_budget_and_each_once() -> None:
    found = einsum_space.points()
    assert found == einsum_space.points()
    assert len(found) == len(einsum_space.POINTS) + einsum_space.RANDOM
    for name, theta in found.items():
        assert sum(theta[:3]) == sum(theta[3:]) == einsum_space.BITS
        assert einsum_space.two_factor(theta).with_rank(1).num_params >= 1
        if name not in einsum_space.POINTS:
            net = einsum_space.network(name, theta)
            assert min_macs(net, einsum_space.BATCH) <= einsum_space.MACS * einsum_space.BATCH


def test_the_lines_of_the_einsum_space() -> None:
    rows = [
        {"point": name, "theta": list(theta), "rho": 1, "params": 8, "macs": 9.0, "matrix_rank": 256, "lr": 1e-3,
         "losses": [0.3 if name == "BTT" else 0.4, 0.31]}
        for name, theta in einsum_space.POINTS.items()
    ]  # fmt: skip
    lines = {line.what: line for line in einsum_space.EXPERIMENT.lines(rows)}
    assert lines["loss of BTT / loss of TT"].ours == pytest.approx((0.75 + 1) / 2)
    assert not math.isnan(lines["loss, BTT"].ours or math.nan)
    assert einsum_space.EXPERIMENT.text(rows)[0].count("\n") == 6
