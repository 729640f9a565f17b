"""A layer applied in a fixed order, each step one `tensordot` of the framework: what a hand-written layer does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import Linear, Network, plan
from .._base.clock import Call
from .._graph.paths import Path, legs_along, path_macs
from .._graph.problem import Problem

ORDERS = ("left to right", "right to left", "W first")
_LARGEST = 2**28  # elements of all intermediates of a forward pass: 1 GiB in float32


@dataclasses.dataclass(frozen=True)
class Cell:
    """One layer at one batch and phase on one backend."""

    network: Network
    batch: int
    phase: str
    backend: str

    @property
    def name(self) -> str:
        """Of the cell among those of its layer."""
        return f"batch {self.batch}, {self.phase}"

    @property
    def problem(self) -> Problem:
        """The contraction: tensors (the input last), output, sizes, fixed paths."""
        return Problem(self.network, "apply", self.batch)

    def paths(self) -> dict[str, Path]:
        """Order -> path; for the network a chain."""
        forth, back = self.problem.chains()
        return dict(zip(ORDERS, (forth, back, self.problem.dense_first()), strict=True))


def costs(cell: Cell) -> dict[str, dict[str, Any]]:
    """Way -> multiply-adds and bytes moved (read and written by every step), ours and dense included; a training step
    counts three forward passes. Where the intermediates are too large to be run: why."""
    times = 3 if cell.phase == "train" else 1
    ours = plan(cell.network, cell.batch, cell.phase, runtime="native").cost
    found: dict[str, dict[str, Any]] = {"ours": {"macs": ours.macs, "bytes": ours.bytes_moved}}
    problem = cell.problem
    for order, path in cell.paths().items():
        macs = path_macs(problem.tensors, problem.output, problem.sizes, path)
        legs = legs_along(problem.tensors, problem.output, path)
        sizes = [math.prod(problem.sizes[leg] for leg in on) for on in legs]
        moved = sum(sizes[a] + sizes[b] for a, b in path) + sum(sizes[len(problem.tensors) :])
        found[order] = {"macs": times * macs, "bytes": times * 4 * moved}
        if sum(sizes[len(problem.tensors) :]) > _LARGEST:
            found[order]["reason"] = f"intermediates of more than {_LARGEST * 4 // 2**30} GiB"
    n = cell.network
    dense: dict[str, Any] = {
        "macs": times * cell.batch * n.dense_params,
        "bytes": times * 4 * _dense_elements(n, cell.batch),
    }
    if n.dense_params > _LARGEST // 4:
        dense["reason"] = "a matrix of more than 256 MiB"
    return found | {"dense": dense}


def _dense_elements(network: Network, batch: int) -> int:
    return network.dense_params + batch * (network.in_features + network.out_features)


def calls(cell: Cell, ways: Sequence[str]) -> dict[str, Call]:
    """Way -> a call that runs it once; all give the same numbers.

    Raises:
        AssertionError: they do not.
    """
    rng = np.random.default_rng(0)
    network = cell.network
    weights = network.init(0)
    x = rng.standard_normal((cell.batch, network.in_features), dtype=np.float32)
    gy = rng.standard_normal((cell.batch, network.out_features), dtype=np.float32)
    make = _torch_call if cell.backend == "torch" else _jax_call
    found: dict[str, Call] = {}
    outputs: dict[str, Any] = {}
    paths = cell.paths()
    for way in ways:
        if way == "ours":
            layer = Linear(network, bias=False)
            module: Any = layer.build(cell.backend, weights, batch=cell.batch, phase=cell.phase)
            found[way], outputs[way] = make(None, module, x, gy, cell.phase)
        elif way == "dense":
            dense = np.ascontiguousarray(network.to_dense(weights), dtype=np.float32)
            found[way], outputs[way] = make(lambda w, v: v @ w[0].T, [dense], x, gy, cell.phase)
        else:
            cores = [weights[core.name] for core in network.topology.cores]
            found[way], outputs[way] = make(_along(cell, paths[way]), cores, x, gy, cell.phase)
    first = next(iter(outputs.values()))
    for way, y in outputs.items():
        np.testing.assert_allclose(y, first, rtol=1e-3, atol=1e-3 * float(np.abs(first).max()), err_msg=way)
    return found


def _along(cell: Cell, path: Path) -> Callable[[Sequence[Any], Any], Any]:
    """f(cores, x) by one tensordot a step, in torch or jax."""
    problem = cell.problem
    modes = tuple(cell.network.topology.inputs.values())

    def apply(cores: Sequence[Any], x: Any) -> Any:
        tensordot, permute = _operations(cell.backend)
        held = [*zip(cores, problem.tensors, strict=False), (x.reshape(cell.batch, *modes), problem.tensors[-1])]
        for i, j in path:
            (a, on_a), (b, on_b) = held[i], held[j]
            shared = [leg for leg in on_a if leg in on_b]
            axes = ([on_a.index(leg) for leg in shared], [on_b.index(leg) for leg in shared])
            left = tuple(leg for leg in (*on_a, *on_b) if leg not in shared)
            held.append((tensordot(a, b, axes), left))
        y, legs = held[-1]
        return permute(y, [legs.index(leg) for leg in problem.output]).reshape(cell.batch, -1)

    return apply


def _operations(backend: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    if backend == "torch":
        import torch

        return torch.tensordot, torch.permute
    import jax.numpy as jnp

    return jnp.tensordot, jnp.transpose


def _torch_call(function: Any, parameters: Any, x: Any, gy: Any, phase: str) -> tuple[Call, Any]:
    """`function(parameters, x)`, or where there is none the module `parameters`, and its output."""
    import torch

    train = phase == "train"
    xs, gys = torch.from_numpy(x).requires_grad_(train), torch.from_numpy(gy)
    if function is None:
        values, apply = list(parameters.parameters()), parameters
    else:
        values = [torch.from_numpy(p).requires_grad_(train) for p in parameters]
        apply = lambda v: function(values, v)  # noqa: E731

    def call() -> object:
        if train:
            return torch.autograd.grad(apply(xs), [xs, *values], gys)
        with torch.no_grad():
            return apply(xs)

    with torch.no_grad():
        return call, apply(xs).numpy()


def _jax_call(function: Any, parameters: Any, x: Any, gy: Any, phase: str) -> tuple[Call, Any]:
    """See `_torch_call`."""
    import jax
    import jax.numpy as jnp

    values = parameters if function is None else [jnp.asarray(p) for p in parameters]
    apply = function if function is not None else (lambda module, v: module(v))

    def step(p: Any, v: Any, g: Any) -> Any:
        if phase == "forward":
            return apply(p, v)
        y, back = jax.vjp(apply, p, v)
        return y, back(g)  # a loss needs y: without it XLA would leave out the forward pass of a linear layer

    compiled = jax.jit(step)
    xs, gys = jnp.asarray(x), jnp.asarray(gy)
    wait: Any = jax.block_until_ready  # has no type hints
    return lambda: wait(compiled(values, xs, gys)), np.asarray(jax.jit(apply)(values, xs))


def names_of(ways: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The ways that can be run."""
    return [way for way, row in ways.items() if "reason" not in row]
