"""Programs: what the trace knows of views and copies is what numpy does."""

import random

import numpy as np

from tn4nn._runtime.program import view_strides


def test_a_reshape_is_a_view_exactly_where_numpy_has_one():
    draw, views = random.Random(0), 0
    for _ in range(3000):
        shape = [draw.choice([1, 2, 2, 3, 4, 6]) for _ in range(draw.randint(1, 5))]
        array = np.empty(shape, np.int8).transpose(draw.sample(range(len(shape)), len(shape)))
        new, left = [], array.size
        while left > 1 and len(new) < 5:
            new.append(draw.choice([size for size in range(1, left + 1) if left % size == 0]))
            left //= new[-1]
        new.append(left)
        draw.shuffle(new)
        result, found = array.reshape(new), view_strides(array.shape, array.strides, tuple(new))
        assert (found is not None) == np.shares_memory(result, array), (array.shape, array.strides, new)
        if found is not None:
            views += 1
            assert all(a == b for a, b, n in zip(found, result.strides, new, strict=True) if n != 1)
    assert 300 < views < 2700
