"""Large sizes: an answer at once, or an error before anything is computed or allocated."""

import math
import time

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._graph import modes as _modes


def chain(count, rank=2):
    return tn.mpo((1,) * count, (1,) * count).with_rank(rank)


@pytest.mark.parametrize("features", [2**61 - 1, (2**31 - 1) * (2**31 - 19), 10**18 + 9, 2**40 + 15, 2**100, 3**50 * 5])
@pytest.mark.parametrize("sites", [2, 4, 100])
def test_sides_of_any_size_are_split_at_once(features, sites):
    start = time.monotonic()
    (ins, outs), (whole, _) = tn.modes_for(features, 64, sites), tn.modes_for(features, 64, sites, pad=False)
    assert time.monotonic() - start < 2
    assert len(ins) == len(outs) == sites
    assert math.prod(whole) == features
    assert features <= math.prod(ins) <= 1.125 * features + 1
    assert max(ins) <= max(4 * math.exp(math.log(features) / sites), 16)


def test_below_the_limit_the_best_split_is_found():
    assert _modes.balanced(_modes._EXACT, 4) == (256,) * 4
    assert tn.modes_for(1009, 256, 4)[0] == (4, 4, 8, 8)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: tn.low_rank(64, 64).with_rank(10**12).init(0), "drawing the cores of 'low_rank' needs about"),
        (lambda: tn.topology("x a, a y", {"x": 10**12}, {"y": 4}).with_rank(2).init(0), "drawing the cores"),
        (
            lambda: (lambda net: net.to_dense(net.init(0)))(tn.build("mpo", 2**20, 2**20).with_rank(2)),
            "W of 'mpo', 1048576 x 1048576, needs about 8,796,093,022,208 bytes",
        ),
    ],
)
def test_what_does_not_fit_into_memory_is_refused_by_name(work, message):
    start = time.monotonic()
    with pytest.raises(tn.BudgetError, match=message) as caught:
        work()
    assert time.monotonic() - start < 1
    assert caught.value.smallest > 10**12


def test_a_core_has_as_many_legs_as_an_array_has_axes():
    legs = [f"x{i}" for i in range(65)]
    with pytest.raises(tn.TopologyError, match="core 'core0' has 66 legs: an array has at most 64 axes"):
        tn.topology(f"{' '.join(legs)} y", dict.fromkeys(legs, 1), {"y": 2})
    legs = legs[:63]
    net = tn.topology(f"{' '.join(legs)} y", dict.fromkeys(legs, 1), {"y": 2}).with_rank(1)
    assert net.to_dense(net.init(0)).shape == (2, 1)


@pytest.mark.slow
def test_a_network_of_many_cores_is_built_drawn_and_printed_in_linear_time():
    start = time.monotonic()
    net = chain(20_000)
    cores = net.init(0)
    assert len(str(net).splitlines()) == 20_002
    assert len(net.lr_factors(lr=1e-3)) == len(cores) == 20_000
    assert net.fingerprint == chain(20_000).fingerprint
    assert time.monotonic() - start < 20  # 4 on one core; minutes where anything is quadratic


def test_a_run_of_any_length_begins_at_once():
    class StopError(Exception):
        pass

    def stop(epoch, trainer):
        raise StopError

    x, y = np.zeros((100, 4), np.float32), np.zeros(100, np.int64)
    start = time.monotonic()
    with pytest.raises(StopError):
        tn.train(tn.Linear(4, 2), (x, y), epochs=10**9, callback=stop)
    assert time.monotonic() - start < 15


def test_rates_are_read_like_a_list():
    from tn4nn._training.schedule import learning_rates

    rates = learning_rates("cosine", 1.0, steps=10, steps_per_epoch=5, warmup=2)
    listed = list(rates)
    assert len(listed) == len(rates) == 10
    assert rates[2:5] == listed[2:5]
    assert rates[-1] == listed[-1]
    with pytest.raises(IndexError):
        rates[10]
