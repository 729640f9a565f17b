"""Directions of Adam and of Muon as optax transformations, in the arithmetic of torch.optim."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tn4nn._graph.muon import COEFFICIENTS, EPS, MOMENTUM, STEPS, Axes, stack_of

AxesOf = Callable[[Any, Any], Axes | None]  # of a leaf, by its path and itself; None where it has no matrices


class _AdamState(NamedTuple):
    steps: jax.Array
    mean: Any  # trees like the weights
    square: Any


def scale_by_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction, as an optax transformation.

    optax.scale_by_adam takes 1 - beta**count in float32, which at the first steps is off by 1e-5 for beta
    0.999; expm1 keeps it exact, as the float64 of torch.optim does.
    """

    def init(params: Any) -> _AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return _AdamState(jnp.zeros((), jnp.int32), zeros, jax.tree.map(jnp.zeros_like, params))

    def corrected(beta: float, count: jax.Array, moment: Any) -> Any:
        if beta == 0:
            return moment
        return jax.tree.map(lambda m: m / -jnp.expm1(count.astype(m.dtype) * math.log(beta)), moment)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _AdamState]:
        count = state.steps + 1
        mean = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mean, updates)
        square = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.square, updates)
        hats = corrected(beta1, count, mean), corrected(beta2, count, square)
        result = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), *hats)
        return result, _AdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


class _MuonState(NamedTuple):
    mean: Any  # a tree like the weights


def orthogonal_direction(axes: AxesOf, momentum: float, nesterov: bool) -> Any:
    """Muon's direction for the leaves that have axes by their path, and what comes for all others.

    In the arithmetic of torch.optim.Muon, whose first steps differ from those of optax.contrib.muon: that one corrects
    the mean of the gradients for its start, which changes the ratio of the two terms of Nesterov.
    """

    def init(params: Any) -> _MuonState:
        def zeros(path: Any, leaf: Any) -> Any:
            return jnp.zeros((0,), leaf.dtype) if axes(path, leaf) is None else jnp.zeros_like(leaf)

        return _MuonState(jax.tree_util.tree_map_with_path(zeros, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _MuonState]:
        def averaged(path: Any, gradient: Any, mean: Any) -> Any:
            return mean if axes(path, gradient) is None else mean + (1 - momentum) * (gradient - mean)

        def moved(path: Any, gradient: Any, mean: Any) -> Any:
            own = axes(path, gradient)
            if own is None:
                return gradient
            return orthogonalized(gradient + momentum * (mean - gradient) if nesterov else mean, own)

        mean = jax.tree_util.tree_map_with_path(averaged, updates, state.mean)
        return jax.tree_util.tree_map_with_path(moved, updates, mean), _MuonState(mean)

    return optax.GradientTransformation(init, update)


def muon_or(
    other: optax.GradientTransformation,
    axes: AxesOf,
    momentum: float = MOMENTUM,
    nesterov: bool = True,
) -> optax.GradientTransformation:
    """Muon's direction for the leaves that have axes by their path, and another transformation for the rest."""

    def has_none(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: axes(path, leaf) is None, tree)

    return optax.chain(optax.masked(other, has_none), orthogonal_direction(axes, momentum, nesterov))


def orthogonalized(array: jax.Array, axes: Axes) -> jax.Array:
    """An array whose matrices have singular values of about 1, times RMS * sqrt(the larger of rows and columns)."""
    stack = stack_of(array.shape, axes)
    moved = array.transpose(stack.order)
    x, tall = moved.reshape(-1, stack.rows, stack.columns), stack.rows > stack.columns
    x = x.mT if tall else x
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=(1, 2), keepdims=True), EPS)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.mT if tall else x
    return (x.reshape(moved.shape) * stack.size).transpose(stack.inverse)
