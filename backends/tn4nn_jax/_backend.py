"""The jax backend: what `tn4nn` finds under the entry point "jax"."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import NDArray

from tn4nn._base.errors import BackendError
from tn4nn._model.backend import Place, Trainer, TrainSpec
from tn4nn._model.layers import Layer
from tn4nn._runtime.target import Target

from ._device import checked_dtype, device_of, to_host
from ._einsum import JaxEinsums
from ._foreign import JaxModules
from ._modules import JaxModule, Options, build_module, run_options
from ._place import place
from ._target import target
from ._trainer import JaxTrainer


def _product(options: Options, weights: Any, x: Any, gy: Any) -> jax.Array:
    return jnp.sum(run_options(options, weights, x)[0] * gy)


_by_weights = jax.jit(jax.grad(_product, argnums=1), static_argnums=0)
_by_both = jax.jit(jax.grad(_product, argnums=(1, 2)), static_argnums=0)


class JaxBackend:
    """Builds, runs and trains models in jax: what `tn.backend("jax")` gives.

    Its methods are those of every backend; `model.build("jax")` and `tn.train(..., backend="jax")` call them for you.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> layer = tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2))
        >>> backend = tn.backend("jax")
        >>> module = backend.build(layer, layer.init(0))
        >>> backend.forward(module, np.ones((3, 16), np.float32)).shape, sorted(backend.weights(module))
        ((3, 4), ['bias', 'core0', 'core1'])
    """

    name = "jax"
    foreign = JaxModules()
    einsums = JaxEinsums()

    def build(
        self,
        model: Layer,
        weights: Mapping[str, NDArray[Any]],
        *,
        batch: int | None = None,
        phase: str = "train",
        device: str | None = None,
        dtype: str = "float32",
        minimize: str = "time",
        tune: bool = False,
        engine: str | None = None,
    ) -> JaxModule:
        """A JaxModule; see `Layer.build`, and `apply` for `tune` and `engine`.

        Raises:
            ShapeError: weights of another model.
            BackendError: no such device, dtype or engine.

        Examples:
            >>> import tn4nn as tn
            >>> module = tn.backend("jax").build(tn.Linear(4, 2), tn.Linear(4, 2).init(0))
            >>> module([[1.0, 2.0, 3.0, 4.0]]).shape
            (1, 2)
        """
        module: JaxModule = build_module(
            JaxModule,
            model,
            weights,
            batch=batch,
            phase=phase,
            device=device,
            dtype=dtype,
            minimize=minimize,
            tune=tune,
            engine=engine,
        )
        return module

    def fresh_seed(self) -> int:
        """There is none: jax has no generator of its own; see `Backend`."""
        raise BackendError("jax has no generator of its own: build(..., seed=0), or weights=model.init(0)")

    def forward(self, module: JaxModule, x: NDArray[Any]) -> NDArray[Any]:
        """y on the host for x on the host, in evaluation mode."""
        return to_host(module(x))

    def gradients(
        self, module: JaxModule, x: NDArray[Any], gy: NDArray[Any]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None]:
        """Gradients of sum(y * gy) by weight name, and by x (None for integer x), in evaluation mode."""
        names = [name for name, spec in module.model.specs().items() if spec.role != "state"]
        with module.precision():
            given, wanted = module.cast(x), jnp.asarray(gy)
            if jnp.issubdtype(given.dtype, jnp.integer):
                found, by_x = _by_weights(module.options, module.weights, given, wanted), None
            else:
                found, by_x = _by_both(module.options, module.weights, given, wanted)
            return {name: to_host(found[name]) for name in names}, None if by_x is None else to_host(by_x)

    def weights(self, module: JaxModule) -> dict[str, NDArray[Any]]:
        """All weights by name, as numpy arrays that share no memory with the module."""
        return {name: to_host(module.weights[name]) for name in module.model.specs()}

    def trainer(self, model: Layer, weights: Mapping[str, NDArray[Any]], spec: TrainSpec) -> Trainer:
        """A trainer on one device.

        Raises:
            ShapeError: weights of another model.
            BackendError: an unknown loss, optimizer, precision or device.
        """
        return JaxTrainer(model, weights, spec)

    def processes(self) -> int:
        """How many processes run this program together."""
        return int(jax.process_count())

    def target(self, device: str | None, dtype: str) -> Target:
        """Where layers run plans, for `tn4nn.plan`."""
        return target(checked_dtype(dtype), device_of(device))

    def place(self, device: str | None, dtype: str) -> Place:
        """Where programs run, for `tn4nn.calibrate`."""
        return place(device_of(device), checked_dtype(dtype))

    def versions(self) -> dict[str, str]:
        """Versions of jax, jaxlib and optax."""
        return {name: version(name) for name in ("jax", "jaxlib", "optax")}


backend = JaxBackend()
"""The jax backend, as `tn.backend("jax")` gives it."""
