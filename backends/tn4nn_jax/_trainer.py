"""Training in jax: one jitted step that keeps everything on the device."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from numpy.typing import NDArray

from tn4nn._base.errors import BackendError, CheckpointError, ShapeError
from tn4nn._graph.init import OPTIMIZERS
from tn4nn._model import layers
from tn4nn._model.backend import TrainSpec

from ._apply import apply
from ._device import device_of, to_device, to_host, wide
from ._directions import muon_or, scale_by_adam
from ._modules import JaxModule, Options

CHUNK = 1024  # predictions evaluated at a time

Arrays = dict[str, jax.Array]


# -- losses ----------------------------------------------------------------------------------------


def cross_entropy(y: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean loss, how many labels are hit) of logits (..., classes) for integer labels (...)."""
    if y.shape[:-1] != labels.shape or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ShapeError(
            f"cross_entropy of outputs {y.shape}: expected integer labels of shape {y.shape[:-1]}, "
            f"received {labels.dtype} of shape {labels.shape}"
        )
    picked = jnp.take_along_axis(y, labels[..., None], axis=-1, mode="fill")[..., 0]
    hits = jnp.sum(jnp.argmax(y, axis=-1) == labels)
    return jnp.mean(jax.nn.logsumexp(y, axis=-1) - picked), hits


def mse(y: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean of the squared differences, NaN)."""
    if y.shape != target.shape:  # a difference would broadcast without a word
        raise ShapeError(f"mse of outputs {y.shape}: expected targets of that shape, received {target.shape}")
    return jnp.mean(jnp.square(y - target)), jnp.full((), jnp.nan, y.dtype)


LOSSES = {"cross_entropy": cross_entropy, "mse": mse}


# -- optimizers, in the arithmetic of torch.optim --------------------------------------------------


def _add_decay(decay: Mapping[str, float]) -> optax.GradientTransformation:
    """Adds decay * weight to what passes, with a decay for each name; without any, the weights may be any tree."""
    if not any(decay.values()):
        return optax.identity()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Arrays, Any]:
        result = {n: u + decay[n] * params[n] if decay.get(n) else u for n, u in updates.items()}
        return result, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def direction(spec: TrainSpec) -> optax.GradientTransformation:
    """What is subtracted from the weights, learning rate and factors left out."""
    decay = _add_decay(spec.decay)
    if spec.optimizer == "sgd":
        return optax.chain(decay, optax.trace(spec.momentum, spec.nesterov) if spec.momentum else optax.identity())
    adam = scale_by_adam(*spec.betas, spec.eps)
    if spec.optimizer == "muon":
        return optax.chain(muon_or(adam, lambda path, leaf: spec.matrices.get(path[0].key)), decay)
    return optax.chain(adam, decay) if spec.optimizer == "adamw" else optax.chain(decay, adam)


def _one_of(word: str, known: Sequence[str], what: str) -> None:
    if word not in known:
        raise BackendError(f"the jax backend knows the {what} {', '.join(map(repr, known))}; received {word!r}")


# -- weight normalization --------------------------------------------------------------------------

GAIN = ":gain"  # after the name of a core: that of its gain


def _excess(core: Any, cap: float) -> Any:
    return jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(core))) / cap)


def normalized(params: Arrays, caps: Mapping[str, float]) -> Arrays:
    """The weights that are computed with: each core of a cap as gain * core / max(1, rms(core) / cap), and no gains."""
    found = {name: array for name, array in params.items() if not name.endswith(GAIN)}
    for name, cap in caps.items():
        found[name] = params[name] * (params[name + GAIN] / _excess(params[name], cap))
    return found


# -- what is jitted --------------------------------------------------------------------------------


class _Compiled:
    """The jitted step and evaluation of a model, shared by all trainers that differ only in seed and weights."""

    def __init__(self, model: layers.Layer, spec: TrainSpec) -> None:
        self.model, self.spec = model, spec
        self.float = np.dtype(np.float64 if spec.precision == "float64" else np.float32)
        self.transform = direction(spec)
        self.has_dropout = any(isinstance(layer, layers.Dropout) for _, layer in model.walk())
        self.step: Callable[..., Any] = jax.jit(self._stepped, donate_argnums=(0, 1, 2))
        self.chunk: Callable[..., Any] = jax.jit(self._evaluated, static_argnums=5)

    def _applied(
        self, params: Arrays, states: Arrays, x: jax.Array, key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, Arrays]:
        """(outputs in at least float32, running statistics)."""
        y, new = apply(
            self.model,
            {**normalized(params, self.spec.caps), **states},
            x,
            train=train,
            key=key,
            minimize=self.spec.minimize,
            phase="train" if train else "forward",
            compute_dtype=jnp.bfloat16 if self.spec.precision == "bf16" else None,
        )
        return y.astype(self.float), {**states, **new}

    def _stepped(
        self,
        params: Arrays,
        states: Arrays,
        optimizer: Any,
        x: jax.Array,
        y: jax.Array,
        rows: jax.Array,
        lr: jax.Array,
        seed: jax.Array,
        number: jax.Array,
    ) -> tuple[Arrays, Arrays, Any, jax.Array]:
        picked_x, picked_y = (jnp.take(a, rows, axis=0, mode="clip") for a in (x, y))
        key = jax.random.fold_in(jax.random.key(seed), number) if self.has_dropout else None

        def loss_of(params: Arrays) -> tuple[jax.Array, Arrays]:
            result, new = self._applied(params, states, picked_x, key, train=True)
            return LOSSES[self.spec.loss](result, picked_y)[0], new

        (loss, states), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates: Any
        updates, optimizer = self.transform.update(gradients, optimizer, params)
        factors = self.spec.lr_factors
        params = {n: w - lr * factors.get(n, 1.0) * updates[n] for n, w in params.items()}
        return params, states, optimizer, loss.reshape(1)

    def _evaluated(
        self, params: Arrays, states: Arrays, x: jax.Array, y: jax.Array, start: jax.Array, rows: int
    ) -> tuple[jax.Array, jax.Array]:
        part_x, part_y = (lax.dynamic_slice_in_dim(a, start, rows) for a in (x, y))
        result, _ = self._applied(params, states, part_x, None, train=False)
        return LOSSES[self.spec.loss](result, part_y)


_CACHED = 32  # models whose compiled steps are cached
_compiled: OrderedDict[str, _Compiled] = OrderedDict()


def _compiled_for(model: layers.Layer, spec: TrainSpec) -> _Compiled:
    """Compiling takes a second, a short run not much more: a sweep over seeds compiles once."""
    settings = dataclasses.asdict(dataclasses.replace(spec, seed=0))
    key = json.dumps([model.to_dict(), settings], sort_keys=True)
    if key not in _compiled:
        _compiled[key] = _Compiled(model, spec)
        if len(_compiled) > _CACHED:
            _compiled.popitem(last=False)
    _compiled.move_to_end(key)
    return _compiled[key]


# -- the trainer -----------------------------------------------------------------------------------


class JaxTrainer:
    """One model in training on one device; see `tn4nn._model.backend.Trainer`.

    Args:
        model: what is trained.
        weights: to start from, by the names of `model.specs()`; copied.
        spec: everything else.

    Raises:
        ShapeError: weights of another model.
        BackendError: an unknown loss, optimizer, precision or device.

    Examples:
        >>> import numpy as np, tn4nn as tn, tn4nn_jax
        >>> from tn4nn._model.backend import TrainSpec
        >>> spec = TrainSpec(
        ...     loss="mse", optimizer="sgd", momentum=0.0, nesterov=False, betas=(0.9, 0.999), eps=1e-8,
        ...     lr_factors={}, decay={}, precision="float32", device=None, seed=0, batch_size=4,
        ... )
        >>> layer = tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2))
        >>> trainer = tn4nn_jax.JaxTrainer(layer, layer.init(0), spec)
        >>> x, y = trainer.put(np.ones((4, 16), np.float32)), trainer.put(np.ones((4, 4), np.float32))
        >>> losses = trainer.read(trainer.steps(x, y, np.tile(np.arange(4), (2, 1)), [0.01, 0.01], 0))
        >>> losses.shape, bool(losses[1] < losses[0])
        ((2,), True)
    """

    def __init__(self, model: layers.Layer, weights: Mapping[str, NDArray[Any]], spec: TrainSpec) -> None:
        _one_of(spec.loss, tuple(LOSSES), "losses")
        _one_of(spec.optimizer, OPTIMIZERS, "optimizers")
        _one_of(spec.precision, ("float32", "float64", "bf16"), "precisions")
        model.require_ranks()
        model.check(weights)
        self.model, self.spec = model, spec
        self._is_wide = spec.precision == "float64"
        self._compiled = _compiled_for(model, spec)
        self._float = self._compiled.float
        self._device = device_of(spec.device)
        specs = model.specs()
        self._names = {False: [n for n, s in specs.items() if s.role != "state"]}
        self._names[True] = [n for n, s in specs.items() if s.role == "state"]
        with self._wide():
            self._take(weights)
            self._optimizer = self._on_device(self._compiled.transform.init(self._params))

    def _wide(self) -> Any:
        return wide(self._is_wide)

    def _take(self, weights: Mapping[str, Any]) -> None:
        def taken(names: list[str]) -> Arrays:
            return {name: to_device(weights[name], self._float, self._device) for name in names}

        self._params, self._states = taken(self._names[False]), taken(self._names[True])
        # With these gains, the cores that are computed with are those that were given.
        self._params |= {name + GAIN: _excess(self._params[name], cap) for name, cap in self.spec.caps.items()}

    def _on_device(self, tree: Any) -> Any:
        return tree if self._device is None else jax.device_put(tree, self._device)

    # -- the protocol ----------------------------------------------------------------------------------------

    def put(self, array: NDArray[Any]) -> jax.Array:
        """A host array as a device array: floats in the trainer's dtype, whole numbers as int32."""
        array = np.asarray(array)
        kind = self._float if np.issubdtype(array.dtype, np.floating) else np.dtype(np.int32)
        with self._wide():
            return to_device(array, kind, self._device)

    def steps(
        self, x: jax.Array, y: jax.Array, index: NDArray[np.int64], lrs: Sequence[float], first: int
    ) -> jax.Array:
        """Runs len(lrs) steps without waiting; returns the losses, shape (steps,)."""
        losses = []
        with self._wide():
            for i, lr in enumerate(lrs):
                rows = np.asarray(index[i], dtype=np.int32)
                self._params, self._states, self._optimizer, loss = self._compiled.step(
                    self._params,
                    self._states,
                    self._optimizer,
                    x,
                    y,
                    rows,
                    self._float.type(lr),
                    np.uint32(self.spec.seed % 2**32),
                    np.uint32(first + i),
                )
                losses.append(loss)
            return jnp.concatenate(losses) if losses else jnp.zeros((0,), self._float)

    def evaluate(self, x: jax.Array, y: jax.Array) -> tuple[float, float]:
        """(mean loss, mean accuracy in percent; NaN for "mse") in evaluation mode. Waits."""
        total = x.shape[0]
        found = []
        with self._wide():
            places = max(1, math.prod(y.shape[1:])) if self.spec.loss == "cross_entropy" else 1
            most = max(1, CHUNK // places)
            for start in range(0, total, most):
                rows = min(most, total - start)
                pair = self._compiled.chunk(self._params, self._states, x, y, np.int32(start), rows)
                found.append((rows, pair))
        if not found:
            return math.nan, math.nan
        loss = sum(rows * float(mean) for rows, (mean, _) in found) / total
        return loss, 100 * sum(float(hits) for _, (_, hits) in found) / max(1, y.size)

    def read(self, losses: jax.Array) -> NDArray[np.float64]:
        """Losses on the host. Waits."""
        return np.array(losses, dtype=np.float64)

    def weights(self) -> dict[str, NDArray[Any]]:
        """All weights of `model.specs()` on the host. Waits."""
        with self._wide():
            everything = {**normalized(self._params, self.spec.caps), **self._states}
            return {name: to_host(everything[name]) for name in self.model.specs()}

    def state(self) -> dict[str, NDArray[Any]]:
        """Weights ("weights/<name>") and optimizer state ("optimizer/<index>") on the host. Waits."""
        everything = {**self._params, **self._states}
        found = {f"weights/{name}": to_host(everything[name]) for name in self.model.specs()}
        found |= {f"optimizer/{gain}": to_host(self._params[gain]) for gain in self._gains()}
        leaves = jax.tree.leaves(self._optimizer)
        return {**found, **{f"optimizer/{i}": to_host(leaf) for i, leaf in enumerate(leaves)}}

    def _gains(self) -> list[str]:
        return [name + GAIN for name in self.spec.caps]

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes up what `state` gave.

        Raises:
            CheckpointError: the state is of another optimizer.
            ShapeError: the weights are of another model.
        """
        leaves, tree = jax.tree.flatten(self._optimizer)
        restored = [state[f"optimizer/{i}"] for i in range(len(leaves)) if f"optimizer/{i}" in state]
        gains = {gain: state.get(f"optimizer/{gain}") for gain in self._gains()}
        lacking = [gain for gain, value in gains.items() if value is None or value.shape != ()]
        if lacking:
            raise CheckpointError(f"the state lacks {lacking[0]!r}, or it is not one number")
        extra = sum(name.startswith("optimizer/") for name in state) - len(leaves) - len(gains)
        if len(restored) != len(leaves) or extra:
            raise CheckpointError(
                f"this state is no state of {self.spec.optimizer!r} in jax: expected {len(leaves)} optimizer "
                f"arrays, received {len(leaves) + extra}"
            )
        for i, (array, leaf) in enumerate(zip(restored, leaves, strict=True)):
            if array.shape != leaf.shape:
                raise CheckpointError(f"optimizer/{i}: expected shape {leaf.shape}, received {array.shape}")
        weights = {n.removeprefix("weights/"): a for n, a in state.items() if n.startswith("weights/")}
        self.model.check(weights)
        with self._wide():
            self._take(weights)
            self._params |= {gain: to_device(value, self._float, self._device) for gain, value in gains.items()}
            moved = [to_device(a, leaf.dtype, self._device) for a, leaf in zip(restored, leaves, strict=True)]
            self._optimizer = jax.tree.unflatten(tree, moved)

    def slots(self) -> dict[str, tuple[str, int]]:
        """Key of `state` -> (weight, 1 for a mean of gradients or 2 for one of their squares)."""
        found = {}
        for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(self._optimizer)):
            words = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
            if words and words[-1] in self._params:
                found[f"optimizer/{i}"] = (words[-1], 2 if "square" in words else 1)
        return found

    def module(self) -> JaxModule:
        """The trained model as a JaxModule; further training does not reach it."""
        with self._wide():
            everything = {**normalized(self._params, self.spec.caps), **self._states}
            # Copies: the next step gives its own buffers away.
            copies = {name: jnp.array(everything[name]) for name in self.model.specs()}
        return JaxModule(copies, Options(self.model, "forward", self.spec.minimize, None, self._float.name))

    def sync(self) -> None:
        """Waits until everything asked so far is done."""
        for leaf in jax.tree.leaves((self._params, self._states, self._optimizer)):
            leaf.block_until_ready()
