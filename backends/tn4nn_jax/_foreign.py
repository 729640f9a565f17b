"""People's own jax modules, of Equinox or of flax's nnx, as comparisons see them."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from tn4nn._base.errors import BackendError
from tn4nn._compression.rules import Rule
from tn4nn._graph.network import Network
from tn4nn._model.backend import TrainSpec

from ._convert import _replaced, _survey, _Watched, convert
from ._device import device_of, to_device
from ._replace import _is_nnx, replace
from ._structure import decay_by_structure, scale_by_muon, scale_by_structure
from ._trainer import CHUNK, LOSSES, direction


class JaxModules:
    """See `tn4nn._model.foreign.Foreign`. An Equinox module takes one sample, one of nnx a batch, as is usual there."""

    def owns(self, made: object) -> bool:
        """See `Foreign.owns`."""
        equinox: Any = sys.modules.get("equinox")
        return _is_nnx(made) or (equinox is not None and isinstance(made, equinox.Module))

    def seeded(self, seed: int) -> contextlib.AbstractContextManager[object]:
        """See `Foreign.seeded`: jax has no generator of its own, so a model has the weights that its author drew."""
        return contextlib.nullcontext()

    def layers(self, module: Any) -> dict[str, tuple[str, int, int]]:
        """See `Foreign.layers`."""
        if _is_nnx(module):
            from ._nnx import survey as nnx_survey

            found = [one.described() for one in nnx_survey(module) if not one.reason]
        else:
            found = [one.described() for one in _survey(module)[0] if not one.reason]
        return {weight.names[0][0]: (weight.kind, *weight.features) for weight in found}

    def num_params(self, module: Any) -> int:
        """See `Foreign.num_params`."""
        leaves = {id(leaf): leaf for leaf in jax.tree.leaves(_split(module)[0])}
        return sum(math.prod(leaf.shape) for leaf in leaves.values())

    def replaced(self, module: Any, networks: Mapping[str, Network], seed: int, start: str) -> Any:
        """See `Foreign.replaced`."""
        if not networks:
            return module
        if start == "fresh":
            return replace(module, dict(networks), seed=seed, protect_head=False)
        if _is_nnx(module):
            raise BackendError("start='decompose' takes Equinox modules, received one of nnx: start='fresh' takes both")
        return convert(
            module, {name: Rule(network) for name, network in networks.items()}, protect_head=False, seed=seed
        )

    def rows(self, module: Any, x: NDArray[Any]) -> dict[str, int]:
        """See `Foreign.rows`: of Equinox modules."""
        if _is_nnx(module):
            return {}
        seen: dict[str, int] = {}
        instead = {}
        for one in _survey(module)[0]:
            if one.reason or one.kind.name != "Linear":
                continue
            name, ins = one.names[0][0], one.described().features[0]

            def watch(x: jax.Array, name: str = name, ins: int = ins) -> jax.Array:
                seen[name] = seen.get(name, 0) + x.size // ins
                return x

            instead.update({id(member): _Watched(member, watch) for member in one.members})
        jax.eval_shape(_function(_replaced(module, instead)), x[:1])
        return seen

    def outputs(self, module: Any, x: NDArray[Any]) -> tuple[int, ...]:
        """See `Foreign.outputs`."""
        return tuple(jax.eval_shape(_function(module), x).shape)

    def trainer(self, module: Any, spec: TrainSpec, lr: float, weight_decay: float) -> ModuleTrainer:
        """See `Foreign.trainer`."""
        return ModuleTrainer(module, spec, lr, weight_decay)


def _split(module: Any) -> tuple[Any, Callable[[Any], Any]]:
    """(the parameters as a tree, what puts them back into the module)."""
    if _is_nnx(module):
        nnx: Any = sys.modules["flax.nnx"]
        graph, params, rest = nnx.split(module, nnx.Param, ...)
        return params, lambda new: nnx.merge(graph, new, rest)
    import equinox as eqx

    params, static = eqx.partition(module, eqx.is_inexact_array)
    return params, lambda new: eqx.combine(new, static)


def _function(module: Any) -> Callable[[Any], jax.Array]:
    """x of a batch -> y."""
    function: Callable[[Any], jax.Array] = module if _is_nnx(module) else jax.vmap(module)
    return function


class ModuleTrainer:
    """Trains any module; see `tn4nn._model.backend.Trainer`.

    Args:
        module: copied.
        spec: all but rates and factors; its decay is empty.
        lr: the highest rate.
        weight_decay: of W; see `decay_by_structure`.

    Raises:
        BackendError: half precision, which is the author's own affair.
    """

    def __init__(self, module: Any, spec: TrainSpec, lr: float, weight_decay: float) -> None:
        if spec.precision != "float32":
            raise BackendError(f"modules train in the precision that they have, received precision={spec.precision!r}")
        self.spec = spec
        self._device = device_of(spec.device)
        params, self._whole = _split(module)
        # Copies, which the step may give away.
        self._params = jax.tree.map(lambda a: jax.device_put(jnp.array(a), self._device), params)
        first = scale_by_muon(module, betas=spec.betas, eps=spec.eps) if spec.optimizer == "muon" else direction(spec)
        parts = [first, scale_by_structure(module, lr=lr, optimizer=spec.optimizer)]
        if weight_decay:
            if spec.optimizer == "adam":
                raise BackendError("weight_decay of a module acts on W: take optimizer='adamw', 'muon' or 'sgd'")
            parts.append(decay_by_structure(module, weight_decay))
        self._transform = optax.chain(*parts)
        self._state = self._transform.init(self._params)
        self._step = jax.jit(self._stepped, donate_argnums=(0, 1))
        self._loss = jax.jit(self._evaluated)

    def _stepped(
        self, params: Any, state: Any, x: jax.Array, y: jax.Array, rows: jax.Array, lr: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        picked_x, picked_y = (jnp.take(a, rows, axis=0, mode="clip") for a in (x, y))

        def loss_of(params: Any) -> jax.Array:
            return LOSSES[self.spec.loss](_function(self._whole(params))(picked_x), picked_y)[0]

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = self._transform.update(gradients, state, params)
        params = jax.tree.map(lambda w, u: w - lr * u, params, updates)
        return params, state, loss.reshape(1)

    def _evaluated(self, params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return LOSSES[self.spec.loss](_function(self._whole(params))(x), y)

    def put(self, array: NDArray[Any]) -> jax.Array:
        """See `Trainer.put`."""
        kind = np.float32 if np.issubdtype(np.asarray(array).dtype, np.floating) else np.int32
        return to_device(np.asarray(array), np.dtype(kind), self._device)

    def steps(
        self, x: jax.Array, y: jax.Array, index: NDArray[np.int64], lrs: Sequence[float], first: int
    ) -> jax.Array:
        """See `Trainer.steps`."""
        losses = []
        for rows, lr in zip(index, lrs, strict=True):
            chosen = np.asarray(rows, dtype=np.int32)
            self._params, self._state, loss = self._step(self._params, self._state, x, y, chosen, np.float32(lr))
            losses.append(loss)
        return jnp.concatenate(losses)

    def evaluate(self, x: jax.Array, y: jax.Array) -> tuple[float, float]:
        """See `Trainer.evaluate`."""
        places = max(1, math.prod(y.shape[1:])) if self.spec.loss == "cross_entropy" else 1
        most = max(1, CHUNK // places)
        loss = hits = 0.0
        for start in range(0, len(x), most):
            part = slice(start, start + most)
            mean, right = self._loss(self._params, x[part], y[part])
            loss += float(mean) * len(x[part])
            hits += float(right)
        return loss / len(x), 100 * hits / max(1, y.size)

    def read(self, losses: jax.Array) -> NDArray[np.float64]:
        """See `Trainer.read`."""
        return np.array(losses, dtype=np.float64)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Every parameter by its path."""
        leaves = jax.tree_util.tree_leaves_with_path(self._params)
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    def state(self) -> dict[str, NDArray[Any]]:
        """Nothing that a checkpoint could take up."""
        raise BackendError("a module of your own has no checkpoints here: give fit=, which stores what it needs")

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `state`."""
        self.state()

    def module(self) -> Any:
        """The trained module."""
        return self._whole(self._params)

    def sync(self) -> None:
        """See `Trainer.sync`."""
        for leaf in jax.tree.leaves(self._params):
            leaf.block_until_ready()
