"""Layers and models as modules of flax's nnx, whose weights are nnx.Param and running statistics nnx.BatchStat.

It needs flax (`pip install tn4nn[flax]`), and is imported by its own name: `from tn4nn_jax import nnx as tn_nnx`.
"""

from __future__ import annotations

import importlib
from typing import Any

import jax

from tn4nn._base.errors import BackendError
from tn4nn._graph.network import Network
from tn4nn._graph.topology import Topology

from . import _modules
from ._modules import JaxModule, run_options

try:
    _nnx: Any = importlib.import_module("flax.nnx")
except ImportError as error:
    raise BackendError(f"tn4nn_jax.nnx needs flax ({error}): pip install 'tn4nn[flax]'") from error

__all__ = ["Module", "TNConv2d", "TNEmbedding", "TNLinear"]


class Module(_nnx.Module):  # type: ignore[misc]
    """Any module of tn4nn in nnx: a part of an nnx.Module, for nnx.jit, nnx.grad, nnx.Optimizer and nnx.split.

    Args:
        module: what `model.build("jax", ...)` or a layer of tn4nn_jax gives.

    Attributes:
        weights: full weight name -> nnx.Param, or nnx.BatchStat for running statistics.

    Examples:
        >>> import jax, tn4nn as tn
        >>> from flax import nnx
        >>> from tn4nn_jax import nnx as tn_nnx
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(2)), tn.ReLU(), tn.Linear(16, 2))
        >>> module = tn_nnx.Module(model.build("jax", seed=0))
        >>> x = jax.numpy.ones((5, 16))
        >>> gradients = nnx.grad(lambda m: m(x).sum())(module)
        >>> gradients["weights"]["0.core0"].shape == module.weights["0.core0"].shape
        True
    """

    def __init__(self, module: JaxModule) -> None:
        specs = module.model.specs()
        kinds = {name: _nnx.BatchStat if specs[name].role == "state" else _nnx.Param for name in module.weights}
        self.weights = _nnx.Dict({name: kinds[name](array) for name, array in module.weights.items()})
        self.options = module.options

    def module(self) -> JaxModule:
        """The module of tn4nn_jax with the weights as they are now."""
        weights = {name: variable[...] for name, variable in self.weights.items()}
        found: JaxModule = _modules._unflatten(JaxModule, self.options, weights)
        return found

    def __call__(self, x: Any, *, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """y for a batch x; see `JaxModule.__call__` and `JaxModule.apply` for shapes and errors.

        Args:
            x: (batch, ...).
            train: dropout is on, and BatchNorm uses the batch and changes its running statistics here.
            key: of dropout.
        """
        module = self.module()
        with module.precision():
            y, state = run_options(self.options, module.weights, module.cast(x), train=train, key=key)
        for name, value in state.items():
            self.weights[name][...] = value
        return y


class TNLinear(Module):
    """`tn4nn_jax.TNLinear` in nnx; `options` are its own.

    Args:
        network: a Network (or a Topology without bonds).
        rngs: nnx.Rngs, whose stream "params" draws the weights where neither they nor a seed is given.
        **options: weights, bias, seed, ordering, and so on.

    Examples:
        >>> import jax, tn4nn as tn
        >>> from flax import nnx
        >>> from tn4nn_jax import nnx as tn_nnx
        >>> layer = tn_nnx.TNLinear(tn.mpo((4, 4), (2, 3)).with_rank(2), rngs=nnx.Rngs(0))
        >>> layer(jax.numpy.ones((5, 16))).shape
        (5, 6)
    """

    def __init__(self, network: Network | Topology, *, rngs: Any = None, **options: Any) -> None:
        super().__init__(_modules.TNLinear(network, **_drawn(rngs, options)))


class TNConv2d(Module):
    """`tn4nn_jax.TNConv2d` in nnx; see `TNLinear`. x is (batch, channels, height, width), and never one image alone.

    Examples:
        >>> import jax, tn4nn as tn
        >>> from tn4nn_jax import nnx as tn_nnx
        >>> t = tn.topology("c a, h w o a", {"c": 8, "h": 3, "w": 3}, {"o": 16})
        >>> layer = tn_nnx.TNConv2d(t.with_rank(4), kernel=3, padding=1, seed=0)
        >>> layer(jax.numpy.ones((2, 8, 10, 10))).shape
        (2, 16, 10, 10)
    """

    def __init__(self, network: Network | Topology, *, rngs: Any = None, **options: Any) -> None:
        super().__init__(_modules.TNConv2d(network, **_drawn(rngs, options)))


class TNEmbedding(Module):
    """`tn4nn_jax.TNEmbedding` in nnx; see `TNLinear`.

    Examples:
        >>> import jax, tn4nn as tn
        >>> from tn4nn_jax import nnx as tn_nnx
        >>> table = tn_nnx.TNEmbedding(tn.mpo((10, 10), (4, 4)).with_rank(2), seed=0)
        >>> table(jax.numpy.array([3, 99])).shape
        (2, 16)
    """

    def __init__(self, network: Network | Topology, *, rngs: Any = None, **options: Any) -> None:
        super().__init__(_modules.TNEmbedding(network, **_drawn(rngs, options)))


def _drawn(rngs: Any, options: dict[str, Any]) -> dict[str, Any]:
    given = any(options.get(name) is not None for name in ("weights", "seed", "key"))
    return options if rngs is None or given else {**options, "key": rngs.params()}
