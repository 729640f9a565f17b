"""Learning rates and weight decay of layers on networks for optax, in pytrees of any kind."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import optax

from tn4nn._base.checks import nearest
from tn4nn._base.errors import BackendError, TN4NNError
from tn4nn._graph.decay import checked_decay, decay_of_cores
from tn4nn._graph.init import OPTIMIZERS
from tn4nn._graph.muon import MOMENTUM, Axes
from tn4nn._model.layers import OnNetwork
from tn4nn._model.layers.base import join

from ._convert import word
from ._directions import muon_or, scale_by_adam
from ._modules import JaxModule, Options

_NORMS = ("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm")
_TABLES = ("Embedding", "Embed")
_VALUES = ("value", "raw_value")  # where a variable of flax has its array


@dataclasses.dataclass(frozen=True)
class _Structure:
    """What is known of the leaves of a model by their names.

    Attributes:
        layers: full names of the cores of each layer on a network, with their own names, and the layer.
        norms: names of the layers that are norms.
        tables: names of the layers that look rows up.
    """

    layers: list[tuple[dict[str, str], OnNetwork]]
    norms: frozenset[str]
    tables: frozenset[str]

    def decays(self, name: str, leaf: Any) -> bool:
        """Whether what is no core decays: not biases, norms, and others of fewer than two axes."""
        layer, _, last = name.rpartition(".")
        return bool(leaf.ndim > 1) and last != "bias" and layer not in self.norms

    def check(self, params: Any) -> None:
        """Raises BackendError where the parameters are of another tree: no factor would reach a core."""
        known = [name for cores, _ in self.layers for name in cores]
        found = {name for name, _ in _leaves(params)}
        if known and not found & set(known):
            received = next(iter(found), "no array")
            raise BackendError(
                f"expected the parameters of the model that was given, e.g. {known[0]!r}, received {received!r}: give "
                "the model as the optimizer sees it"
            )


def _structure(model: Any) -> _Structure:
    layers: list[tuple[dict[str, str], OnNetwork]] = []
    norms: list[str] = []
    tables: list[str] = []
    for path, node in _nodes(model):
        name = ".".join(path)
        if type(node).__name__ in _NORMS:
            norms.append(name)
        if type(node).__name__ in _TABLES:
            tables.append(name)
        options = getattr(node, "options", None)
        if not isinstance(options, Options):
            continue
        for inner, layer in options.model.walk():
            if isinstance(layer, OnNetwork):
                cores = {join(join(name, "weights"), join(inner, core)): core for core in layer.solid().shapes}
                layers.append((cores, layer))
    return _Structure(layers, frozenset(norms), frozenset(tables))


def _nodes(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, node) of a pytree's nodes and leaves, down to modules of tn4nn."""
    yield path, node
    if isinstance(node, JaxModule):
        return
    for keys, child in jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda other: other is not node)[0]:
        if keys:
            yield from _nodes(child, (*path, *map(word, keys)))


def _name(path: Any) -> str:
    words = [word(key) for key in path]
    return ".".join(words[:-1] if words and words[-1] in _VALUES else words)


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield _name(path), leaf


def scale_by_structure(model: Any, *, lr: float | None = None, optimizer: str = "adam") -> optax.GradientTransformation:
    """A transformation of optax that multiplies the update of each core by its learning-rate factor, that of
    `Network.lr_factors` for its layer, so that one learning rate serves dense layers and networks. All else passes.

    It stands after the direction of the optimizer: `optax.chain(optax.scale_by_adam(), scale_by_structure(model),
    optax.scale_by_learning_rate(lr))`, or at the end, `optax.chain(optax.adam(lr), scale_by_structure(model))`. Before
    Adam it would have no effect.

    Args:
        model: what is trained, with layers on networks anywhere in it: a module of tn4nn, an Equinox model, any pytree
            of these, or a module of flax's nnx. The parameters that the optimizer sees are the same tree, filtered
            (`eqx.filter`, `nnx.state`) or not.
        lr: the highest learning rate of the run; None for the factors of small ones.
        optimizer: "adam", "adamw", "muon" or "sgd": whose steps the factors are for.

    Raises:
        TN4NNError: an unknown optimizer, or a learning rate that is not above 0.
        BackendError: (by its `init`) the parameters are those of another tree.

    Examples:
        >>> import jax, optax, tn4nn as tn, tn4nn_jax
        >>> model = {"layer": tn4nn_jax.TNLinear(tn.mpo((4, 8), (2, 2)).with_rank(2), seed=0)}
        >>> transform = tn4nn_jax.scale_by_structure(model)
        >>> ones = jax.tree.map(jax.numpy.ones_like, model)
        >>> scaled, _ = transform.update(ones, transform.init(model))
        >>> {name: float(array.max()) for name, array in scaled["layer"].weights.items()}
        {'bias': 1.0, 'core0': 4.0, 'core1': 1.0}
    """
    structure = _structure(model)
    factors = {
        full: factor
        for cores, layer in structure.layers
        for full, factor in _by_full_name(cores, layer.lr_factors(lr=lr, optimizer=optimizer))
    }
    if not factors:
        _check_words(lr, optimizer)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scaled(path: Any, array: Any) -> Any:
            return array * factors.get(_name(path), 1.0)

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(_init(structure), update)


def decay_by_structure(model: Any, weight_decay: float) -> optax.GradientTransformation:
    """A transformation of optax that adds the decay of W, in place of `optax.add_decayed_weights`.

    With it a step takes W to (1 - lr * weight_decay) W, whatever the topology, as AdamW does a dense weight: each of
    the N cores of a layer that are trained shrinks by lr * weight_decay / N. Biases, the parameters of norms and all
    others of fewer than two axes do not decay. It stands after the factors and before the learning rate:

        optax.chain(optax.scale_by_adam(), scale_by_structure(model, lr=lr), decay_by_structure(model, 0.01),
                    optax.scale_by_learning_rate(lr))

    Args:
        model: as for `scale_by_structure`.
        weight_decay: of W, at least 0.

    Raises:
        TN4NNError: a decay that is negative or not finite.
        BackendError: (by its `init`) the parameters are those of another tree; (by its `update`) none were given.

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization (arXiv:1711.05101), for the decay of dense
    weights; that of cores follows from it, see tn4nn/_graph/decay.py.

    Examples:
        >>> import jax, optax, tn4nn as tn, tn4nn_jax
        >>> model = tn4nn_jax.TNLinear(tn.mpo((4, 8), (2, 2)).with_rank(2), seed=0)
        >>> transform = tn4nn_jax.decay_by_structure(model, 0.1)
        >>> zeros = jax.tree.map(jax.numpy.zeros_like, model)
        >>> decay, _ = transform.update(zeros, transform.init(model), model)
        >>> bool(jax.numpy.allclose(decay.weights["core0"], 0.1 / 2 * model.weights["core0"]))
        True
    """
    structure, own = _structure(model), checked_decay(weight_decay)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise BackendError("expected the parameters, received None: call update(updates, state, params)")
        trained = {name for name, _ in _leaves(updates)}
        decays: dict[str, float] = {}
        for cores, _ in structure.layers:
            moving = {full: 1.0 for full in cores if full in trained}  # the factors are in the updates already
            decays |= decay_of_cores(own, moving)

        def decayed(path: Any, array: Any, param: Any) -> Any:
            name = _name(path)
            return array + decays.get(name, own if structure.decays(name, param) else 0.0) * param

        return jax.tree_util.tree_map_with_path(decayed, updates, params), state

    return optax.GradientTransformation(_init(structure), update)


def scale_by_muon(
    model: Any,
    *,
    momentum: float = MOMENTUM,
    nesterov: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """A transformation of optax that gives Muon's direction for cores and matrices, and Adam's for all else.

    optax.contrib.muon has to be told the axes of each array. Here each core is a matrix, from the legs that it sums to
    those that it opens, or a stack of such matrices; so is every array of two axes that is no table of an embedding.
    Entries of a step are of the size of AdamW's, so both take the same rates:

        optax.chain(scale_by_muon(model), scale_by_structure(model, lr=lr, optimizer="muon"),
                    decay_by_structure(model, 0.01), optax.scale_by_learning_rate(lr))

    Args:
        model: as for `scale_by_structure`.
        momentum: of the gradient.
        nesterov: whether to look ahead.
        betas: of Adam.
        eps: of Adam.

    Raises:
        BackendError: (by its `init`) the parameters are those of another tree.

    Source: K. Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks; J. Liu et al. 2025
    (arXiv:2502.16982) for the size of a step.

    Examples:
        >>> import jax, tn4nn as tn, tn4nn_jax
        >>> model = tn4nn_jax.TNLinear(tn.mpo((4, 8), (2, 2)).with_rank(2), seed=0)
        >>> transform = tn4nn_jax.scale_by_muon(model)
        >>> direction, _ = transform.update(model, transform.init(model))
        >>> direction.weights["core0"].shape
        (4, 2, 2)
    """
    structure = _structure(model)
    cores = {full: layer.matrix_axes().get(core) for names, layer in structure.layers for full, core in names.items()}

    def axes(path: Any, leaf: Any) -> Axes | None:
        name = _name(path)
        if name in cores:
            return cores[name]
        is_matrix = structure.decays(name, leaf) and leaf.ndim == 2 and name.rpartition(".")[0] not in structure.tables
        return ((1,), (0,)) if is_matrix else None

    direction = muon_or(scale_by_adam(*betas, eps), axes, momentum, nesterov)

    def init(params: Any) -> Any:
        structure.check(params)
        return direction.init(params)

    return optax.GradientTransformation(init, direction.update)


def _init(structure: _Structure) -> optax.TransformInitFn:
    def init(params: Any) -> Any:
        structure.check(params)
        return optax.EmptyState()

    return init


def _by_full_name(cores: dict[str, str], values: dict[str, float]) -> Iterator[tuple[str, float]]:
    return ((full, values[core]) for full, core in cores.items())


def _check_words(lr: float | None, optimizer: str) -> None:
    if optimizer not in OPTIMIZERS:
        raise TN4NNError(f"unknown optimizer {optimizer!r}." + nearest(optimizer, OPTIMIZERS))
    if lr is not None and not (math.isfinite(lr) and lr > 0):
        raise TN4NNError(f"lr must be finite and above 0, received {lr!r}")
