"""Networks and weights from the factorized matrices of tltorch: CP, Tucker and BlockTT."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from .._base.errors import ShapeError
from .._graph.contract import sizes_of
from .._graph.network import Network
from ._tensors import network_of, real_array
from .chain import from_chain


def from_tltorch(weight: Any) -> tuple[Network, dict[str, NDArray[Any]]]:
    """The Network and the weights of a tltorch `TensorizedTensor`: `layer.weight` of a `FactorizedLinear`.

    Its W is that of `weight.to_matrix()`, (out_features, in_features). A CP's vector of weights and a Tucker's middle
    tensor are cores like the factors; a BlockTT is an MPO, as by `from_chain`. Tensors are copied to numpy.

    Args:
        weight: of factorization "cp", "tucker" or "blocktt", with modes ((outputs...), (inputs...)).

    Raises:
        ShapeError: anything else, complex numbers.

    Source: tltorch (Kossaifi, http://tensorly.org/torch).

    Examples:
        >>> from tn4nn.interop.tltorch import from_tltorch
        >>> import tltorch
        >>> layer = tltorch.FactorizedLinear((2, 5), (3, 4), rank=4, factorization="cp")
        >>> net, weights = from_tltorch(layer.weight)
        >>> net.ranks, list(weights)
        ({'r': 4}, ['weights', 'factor0', 'factor1', 'factor2', 'factor3'])
    """
    modes = getattr(weight, "tensorized_shape", ())
    if len(modes) != 2 or not all(isinstance(side, tuple) for side in modes) or not hasattr(weight, "factors"):
        raise ShapeError(
            "expected a tensorized matrix of tltorch with modes ((outputs...), (inputs...)), as layer.weight of a "
            f"FactorizedLinear, received {type(weight).__name__} with modes {modes}"
        )
    factors = list(weight.factors)
    outs, ins = ([f"{letter}{i}" for i in range(len(side))] for letter, side in zip("yx", modes, strict=True))
    opened = [*outs, *ins]
    if hasattr(weight, "core"):  # Tucker
        ranks = [f"r{i}" for i in range(len(factors))]
        tensors: list[tuple[str, tuple[str, ...], Any]] = [("core", tuple(ranks), weight.core)]
    elif hasattr(weight, "weights"):  # CP
        ranks = ["r"] * len(factors)
        tensors = [("weights", ("r",), weight.weights)]
    else:
        return from_chain(factors)
    for i, (leg, rank, factor) in enumerate(zip(opened, ranks, factors, strict=True)):
        tensors.append((f"factor{i}", (leg, rank), factor))
    weights = {name: real_array(array, name) for name, _, array in tensors}
    named = [(name, legs) for name, legs, _ in tensors]
    sizes = sizes_of([legs for _, legs in named], [weights[name] for name, _ in named])
    return network_of(named, sizes, (ins, outs), "tltorch"), weights
