"""That the helpers of the tests see what they are to see."""

import numpy as np
import pytest
from helpers import EXACT, all_close, close, largest_error, normal, oracle, relative_error, run_python

import tn4nn as tn
from tn4nn.testing import random_network


@pytest.mark.parametrize("net", [*map(random_network, range(6)), tn.build("mpo", 23, 29, sites=2).with_rank(2)])
def test_the_oracle_is_the_matrix(net):
    x, gy = normal(5, net.in_features), normal(5, net.out_features, seed=1)
    cores = {name: normal(*shape, seed=2) for name, shape in net.shapes.items()}
    y, gradients, gx = oracle(net, cores, x, gy)
    w = net.to_dense(cores)
    assert all_close([y, gx], [x @ w.T, gy @ w], EXACT)
    for name, core in cores.items():  # W is linear in each core
        along = normal(*core.shape, seed=3)
        wanted = np.vdot(gy, x @ net.to_dense({**cores, name: along}).T)
        assert np.vdot(gradients[name], along) == pytest.approx(wanted)


def test_comparisons_can_fail():
    a = normal(3, 4)
    assert close(a, a)
    assert largest_error(a + np.eye(3, 4), a) == pytest.approx(1 / np.abs(a).max())
    assert relative_error(1.5 * a, a) == pytest.approx(0.5)
    assert not close(a * (1 + 2e-5), a)
    assert not close(a * np.nan, a)
    assert not close(a, a * np.nan)
    assert not all_close({"a": a, "b": a}, {"a": a, "b": 2 * a})
    with pytest.raises(AssertionError, match="is compared with"):
        close(a, a.T)
    with pytest.raises(AssertionError):
        all_close({"a": a}, {"b": a})


def test_tensors_of_the_frameworks_are_compared():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    a = normal(3, 4, dtype=np.float32)
    assert close(torch.from_numpy(a).requires_grad_(True), a, 0)
    assert close(jax.asarray(a), torch.from_numpy(a), 0)
    assert close(torch.from_numpy(a).bfloat16(), a, 0.01)
    assert close(torch.from_numpy(a * 1j), a * 1j, 0)


def test_a_process_that_fails_shows_why():
    assert run_python("import os; print(os.environ['TEXT'])", TEXT="here") == "here\n"
    with pytest.raises(AssertionError, match="no such thing"):
        run_python("raise SystemExit('no such thing')")
