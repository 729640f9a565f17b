from __future__ import annotations

import re

import numpy as np
import pytest

import tn4nn as tn
from tn4nn import TopologyError

# Modes, rank of every bond, parameters: Gao et al. (arXiv:1904.06194), Novikov et al. (arXiv:1509.06569).
LENET = [
    ((2, 10, 10, 2), (2, 5, 6, 2), 4, 1792, 48000),
    ((2, 5, 6, 2), (2, 3, 7, 2), 4, 944, 10080),
    ((2, 3, 7, 2), (1, 5, 2, 1), 2, 124, 840),
]
VGG = [
    ((2, 8, 8, 8, 2), (2, 8, 8, 8, 2), 4, 3104, 2048 * 2048),
    ((2, 8, 8, 8, 2), (2, 8, 8, 8, 2), 4, 3104, 2048 * 2048),
    ((4, 4, 4, 4, 2), (4, 4, 8, 8, 4), 4, 1376, 2097152),
    ((4, 4, 8, 8, 4), (4, 4, 8, 8, 4), 4, 2432, 16777216),
    ((4, 4, 8, 8, 4), (1, 10, 1, 1, 1), 4, 928, 40960),
]
OTHERS = [
    ((2, 4, 4, 4, 4, 4, 4, 2), (2, 4, 4, 4, 4, 4, 4, 2), 4, 1568, 16384**2),
    ((4, 4, 7, 4), (1, 5, 2, 1), 4, 576, 4480),
    ((4, 8, 8, 4), (5, 5, 5, 5), 2, 400, 640000),
    ((4, 8, 8, 4), (5, 5, 5, 5), 8, 5440, 640000),
    ((4, 4, 4, 4), (1, 1, 10, 1), 4, 736, 2560),
]


@pytest.mark.parametrize(("inputs", "outputs", "rank", "params", "dense"), [*LENET, *VGG, *OTHERS])
def test_published_parameter_counts(inputs, outputs, rank: int, params: int, dense: int) -> None:
    net = tn.mpo(inputs, outputs).with_rank(rank)
    assert net.num_params == params
    assert net.dense_params == dense


def test_published_sums() -> None:
    def total(rows) -> int:
        return sum(tn.mpo(i, o).with_rank(r).num_params for i, o, r, _, _ in rows)

    assert total(LENET) == 2860
    assert sum(row[4] for row in LENET) == 58920
    assert total(VGG) == 10944
    assert round(total(VGG) / 23633920, 6) == 0.000463


@pytest.mark.parametrize(
    ("rank", "both"),
    [(1, 824), (2, 1024), (4, 1760), (8, 4576), (10, 6656), (16, 15584), (20, 23776), (32, 59104)],
)
def test_fc2(rank: int, both: int) -> None:
    first = tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(rank)
    second = tn.mpo((4, 4, 4, 4), (1, 1, 10, 1)).with_rank(4)
    assert first.num_params == 56 * rank**2 + 32 * rank
    assert first.num_params + second.num_params == both


@pytest.mark.parametrize(("rank", "params"), [(20, 18432), (32, 29184)])
def test_fc2_clipped(rank: int, params: int) -> None:
    assert tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(rank, clip=True).num_params == params


@pytest.mark.parametrize(("rank", "params"), [(1, 80), (2, 256), (4, 896), (8, 3328), (16, 12800), (32, 33280)])
def test_mpo_of_five_sites_clipped(rank: int, params: int) -> None:
    assert tn.mpo((4,) * 5, (4,) * 5).with_rank(rank, clip=True).num_params == params


# -- W of each against one line of numpy -------------------------------------------------------------------

I2, O2, I3, O3, I4, O4 = (2, 3), (4, 2), (2, 3, 2), (3, 2, 2), (2, 1, 3, 2), (2, 2, 1, 3)
FORMULAS = [
    (tn.dense(I2, O2), "yYxX->yYxX"),
    (tn.low_rank(I2, O2), "xXr,ryY->yYxX"),
    (tn.mpo(I3, O3), "xya,aXYb,buv->yYvxXu"),
    (tn.ring(I3, O3), "cxya,aXYb,buvc->yYvxXu"),
    (tn.ring(I2, O2), "bxya,aXYb->yYxX"),
    (tn.tree(I3, O3), "xya,XYb,uvc,abc->yYvxXu"),
    (tn.tree(I4, O4), "xyb,XYc,uvd,stf,bca,dfa->yYvtxXus"),
    (tn.peps(I4, O4), "xyha,hXYb,auvc,bcst->yYvtxXus"),
    (tn.mera(I4, O4), "XYuvab,xyac,bstd,cd->yYvtxXus"),
    (tn.tucker(I2, O2), "xa,Xb,abcd,cy,dY->yYxX"),
    (tn.cp(I2, O2), "xr,Xr,yr,Yr->yYxX"),
    (tn.block_term(I2, O2), "kxya,kXYb,kab->yYxX"),
    (tn.btt(I2, O2), "xXYr,rxyY->yYxX"),
    (tn.btt(I3, O3), "xXuva,axXYvb,bxyYv->yYvxXu"),
    (tn.monarch(I2, O2), "xXY,xyY->yYxX"),
    (tn.kronecker(I3, O3), "xy,XY,uv->yYvxXu"),
    (tn.complete(I3, O3), "xyab,XYac,uvbc->yYvxXu"),
]


@pytest.mark.parametrize(("t", "formula"), FORMULAS, ids=lambda v: v.name if isinstance(v, tn.Topology) else "")
def test_w_is_its_formula(t: tn.Topology, formula: str) -> None:
    ranks = {bond: 2 + i % 2 for i, bond in enumerate(t.bonds)}  # not all equal: a swap of bonds would show
    net = t.with_ranks(ranks)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape) for name, shape in net.shapes.items()}
    expected = np.einsum(formula, *weights.values()).reshape(t.out_features, t.in_features)
    np.testing.assert_allclose(net.to_dense(weights), expected, rtol=1e-12, atol=1e-12)


def test_every_topology_has_a_formula_here() -> None:
    assert {t.name for t, _ in FORMULAS} == set(tn.catalogue())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x0 r, x1 r, y0 r, y1 r", tn.cp(I2, O2)),
        ("x0 x1 y1 r0, r0 x0 y0 y1", tn.btt(I2, O2)),
        ("x0 x1 y1, x0 y0 y1", tn.monarch(I2, O2)),
    ],
)
def test_the_same_written_by_hand(text: str, expected: tn.Topology) -> None:
    written = tn.topology(text, expected.inputs, expected.outputs)
    assert written.fingerprint == expected.fingerprint


def test_monarch_is_block_diagonal_permutation_block_diagonal() -> None:
    net = tn.monarch((2, 3), (4, 2)).with_rank(1)
    first, second = net.init(0).values()
    right = np.zeros((2, 2, 2, 3))  # (x0 y1, x0 x1): one 2x3 block for each x0
    for x in range(2):
        right[x, :, x] = first[x].T
    left = np.zeros((4, 2, 2, 2))  # (y0 y1, x0 y1): one 4x2 block for each y1
    for y in range(2):
        left[:, y, :, y] = second[:, :, y].T
    expected = left.reshape(8, 4) @ right.reshape(4, 6)
    np.testing.assert_allclose(net.to_dense(net.init(0)), expected, rtol=1e-5, atol=1e-6)


# -- options -----------------------------------------------------------------------------------------------


def test_arity() -> None:
    assert tn.tree((2,) * 8, (2,) * 8).with_rank(2).num_params == 8 * 8 + 4 * 8 + 2 * 8
    three = tn.tree((2,) * 9, (2,) * 9, arity=3)
    assert [core.legs for core in three.cores[9:]] == [
        ("a3", "a4", "a5", "a0"), ("a6", "a7", "a8", "a1"), ("a9", "a10", "a11", "a2"), ("a0", "a1", "a2"),
    ]  # fmt: skip


def test_nested_trees() -> None:
    t = tn.tree((2,) * 5, (2,) * 5, arity=((0, 1), (2, (3, 4))))
    net = t.with_rank(2)
    weights = net.init(0)
    assert t.bonds == ("a1", "a2", "a3", "a5", "a6", "a0", "a4")
    expected = np.einsum(
        "aAf,bBg,cCh,dDi,eEj,fgk,ijl,hlk->ABCDEabcde", *(weights[name] for name in net.shapes)
    ).reshape(32, 32)
    np.testing.assert_allclose(net.to_dense(weights), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sites", "grid", "bonds"), [(6, None, 7), (6, (3, 2), 7), (6, (1, 6), 5), (7, None, 6), (9, None, 12)]
)
def test_grids(sites: int, grid, bonds: int) -> None:
    assert len(tn.peps((2,) * sites, (2,) * sites, grid=grid).bonds) == bonds


def test_a_grid_of_one_row_is_an_mpo() -> None:
    peps, mpo = tn.peps(I3, O3, grid=(1, 3)).with_rank(2), tn.mpo(I3, O3).with_rank(2)
    assert [core.legs[-1:] for core in peps.topology.cores] == [("h0_0",), ("h0_1",), ("y2",)]
    assert list(peps.shapes.values()) == list(mpo.shapes.values())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: tn.mpo((2, 2), 2), "mpo needs one output mode for each input mode: received 2 input modes"),
        (lambda: tn.ring(4, 4), "ring needs at least 2 sites, received 1"),
        (lambda: tn.mera((2, 2), (2, 2)), "mera needs at least 3 sites, received 2"),
        (lambda: tn.peps((2,) * 6, (2,) * 6, (2, 2)), "peps: a grid of 2 x 2 has 4 sites, received 6 modes"),
        (lambda: tn.peps((2,) * 6, (2,) * 6, grid=(-2, -3)), "peps: a grid of -2 x -3 has 6 sites"),
        (lambda: tn.tree((2,) * 3, (2,) * 3, arity=1), "tree: arity must be at least 2, received 1"),
        (
            lambda: tn.tree((2,) * 3, (2,) * 3, arity=((0, 1), 1)),
            "tree: the nested sequences must hold each of the sites 0..2 once, hold [0, 1, 1]",
        ),
        (lambda: tn.mpo((2, 0), (2, 2)), "input leg 'x1': the size must be at least 1, received 0"),
        (lambda: tn.build("mpoo", 4, 4), "unknown topology 'mpoo'. Did you mean 'mpo'"),
        (lambda: tn.build("mpo", 4, 4, grid=(2, 2)), "mpo does not take grid"),
        (lambda: tn.build("mpo", 0, 4), "in_features: the size must be at least 1, received 0"),
    ],
)  # fmt: skip
def test_errors(make, expected: str) -> None:
    with pytest.raises(TopologyError, match=re.escape(expected)):
        make()


# -- by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("synonym", "name"),
    [
        ("TT", "mpo"),
        ("tensor-ring", "ring"),
        ("hierarchical_tucker", "tree"),
        ("K_n", "complete"),
        (" SVD ", "low_rank"),
    ],
)
def test_synonyms(synonym: str, name: str) -> None:
    assert tn.build(synonym, 64, 16) == tn.build(name, 64, 16)


@pytest.mark.parametrize("name", tn.catalogue())
@pytest.mark.parametrize(("ins", "outs"), [(784, 256), (256, 10), (31, 17)])
def test_build_keeps_the_features(name: str, ins: int, outs: int) -> None:
    t = tn.build(name, ins, outs)
    assert (t.in_features, t.out_features, t.name) == (ins, outs, name)
    assert t.with_rank(2, clip=True).to_dense(t.with_rank(2, clip=True).init(0)).shape == (outs, ins)


def test_build_takes_the_sites_of_a_grid() -> None:
    assert len(tn.build("peps", 64, 64, grid=(2, 3)).inputs) == 6
    assert len(tn.build("tree", 64, 64, sites=6, arity=3).cores) == 6 + 2
