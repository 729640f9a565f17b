"""What test files of several rooms share: tolerances, comparisons, the oracle, random numbers, subprocesses, data."""

import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

# The share of the largest number by which a result may differ, for each arithmetic.
EXACT = 1e-12  # float64, a few operations
FLOAT64 = 1e-9
FLOAT32 = 1e-5
FLOAT32_FORWARD = 1e-6  # one layer forward
FLOAT16 = 0.01
BFLOAT16 = 0.03
TOLERANCES = {"float64": FLOAT64, "float32": FLOAT32, "float16": FLOAT16, "bfloat16": BFLOAT16}

TESTS = Path(__file__).parents[1]


# -- cases -----------------------------------------------------------------------------------------------------


def first_of(cases, count=1):
    """The first cases; the others are marked thorough, for `.ci/run` alone."""
    cases = list(cases)
    return cases[:count] + [pytest.param(case, marks=pytest.mark.thorough) for case in cases[count:]]


# -- comparisons ------------------------------------------------------------------------------------------------


def wide(array):
    """An array or tensor of any framework, in float64 or complex128."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.to(dtype=getattr(sys.modules["torch"], "complex128" if array.is_complex() else "float64"))
    array = np.asarray(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def largest_error(a, b):
    """The largest difference, as a share of the largest number of b."""
    a, b = wide(a), wide(b)
    assert a.shape == b.shape, f"{a.shape} is compared with {b.shape}"
    return float(np.abs(a - b).max(initial=0.0)) / max(float(np.abs(b).max(initial=0.0)), 1e-30)


def close(a, b, tolerance=FLOAT32):
    """Whether two arrays differ by at most that share of the largest number of b."""
    return largest_error(a, b) <= tolerance  # not where either holds a NaN


def all_close(found, expected, tolerance=FLOAT32):
    """Whether two sequences, or dictionaries, hold arrays that are close."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = [found[name] for name in expected], list(expected.values())
    return all(close(a, b, tolerance) for a, b in zip(found, expected, strict=True))


def relative_error(a, b):
    """The norm of the difference, as a share of the norm of b."""
    a, b = wide(a), wide(b)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# -- the oracle -------------------------------------------------------------------------------------------------

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def oracle(network, weights, x, gy):
    """y = x W^T and the gradients of sum(y * gy) in float64, each as one einsum over all tensors.

    It shares no code with tn4nn: legs become letters, rows are padded with zeros and outputs cropped.

    Returns:
        y, the gradients of the cores by name, the gradient of x.
    """
    t = network.topology
    legs = dict.fromkeys([*t.inputs, *t.outputs, *(leg for core in t.cores for leg in core.legs)])
    letter = dict(zip(["batch", *legs], _LETTERS, strict=False))
    terms = ["".join(letter[leg] for leg in core.legs) for core in t.cores]
    ins, outs = ("".join(letter[leg] for leg in ("batch", *side)) for side in (t.inputs, t.outputs))
    arrays = [wide(weights[core.name]) for core in t.cores]
    image, seed = _shaped(x, t.inputs), _shaped(gy, t.outputs)

    def einsum(names, arguments, output):
        return np.einsum(f"{','.join(names)}->{output}", *arguments, optimize="greedy")

    y = einsum([*terms, ins], [*arrays, image], outs)
    gx = einsum([*terms, outs], [*arrays, seed], ins)
    gradients = {}
    for i, core in enumerate(t.cores):
        others = [*arrays[:i], *arrays[i + 1 :], image, seed]
        gradients[core.name] = einsum([*terms[:i], *terms[i + 1 :], ins, outs], others, terms[i])
    rows = len(x)
    y, gx = (array.reshape(rows, math.prod(array.shape[1:])) for array in (y, gx))
    return y[:, : t.out_features], gradients, gx[:, : t.in_features]


def _shaped(rows, side):
    padded = np.zeros((len(rows), math.prod(side.values())))
    padded[:, : np.shape(rows)[1]] = wide(rows)
    return padded.reshape(len(rows), *side.values())


# -- numbers and data -------------------------------------------------------------------------------------------


def normal(*shape, seed=0, dtype=np.float64):
    """Normal numbers, the same at each call."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def small_data(rows=230, seed=0, features=16):
    """Rows of three classes: which of the first three features is the largest."""
    x = normal(rows, features, seed=seed, dtype=np.float32)
    return x, x[:, :3].argmax(1).astype(np.int64)


# -- other processes --------------------------------------------------------------------------------------------


def environment(**changes):
    """The environment of a process that finds the helpers too, with some variables changed."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **changes}


def run_python(code, *arguments, options=(), cwd=None, **changes):
    """What a program prints in a process of its own, which has to end well."""
    command = [sys.executable, *options, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, env=environment(**changes), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(monkeypatch, *arguments):
    """Runs the command in this process; returns its exit code."""
    from tn4nn import _cli

    monkeypatch.setattr(sys, "argv", ["tn4nn", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        _cli.main()
    return end.value.code
