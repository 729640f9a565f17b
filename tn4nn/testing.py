"""The conformance suite: what every backend has to do, to be run against any of them.

    import pytest
    from tn4nn import testing
    from mine import backend

    @pytest.mark.parametrize("case", testing.CASES, ids=str)
    def test_conformance(case):
        testing.check(backend, case)

Everything is compared in float64 and in float32 with the numpy oracle, which forms W; gradients of layers on a
network with the oracle's formula, those of other layers with differences of the oracle's output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._base.errors import BackendError
from ._base.seeds import rng_for
from ._graph import catalogue as cat
from ._graph.init import OPTIMIZERS
from ._graph.network import Network
from ._graph.rank_problem import rank_caps
from ._graph.topology import Core, Topology, topology
from ._model import layers
from ._model.backend import Backend
from ._model.layers.base import of_cores
from .reference import backend as oracle
from .reference import forward

__all__ = [
    "CASES", "Case", "TOLERANCE", "assert_close", "check", "check_training", "inputs_for", "random_network",
    "random_topology", "weights_for",
]  # fmt: skip

Array = NDArray[Any]

TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
"""Dtype -> the largest error of an output or a gradient, as a share of the largest value."""
_STEP = 1e-6  # of the differences


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One model and the shape of one of its inputs.

    Attributes:
        name: for reports.
        model: what is run.
        shape: of one input sample; for an embedding, of the integers.
        batches: batch sizes to try.

    Examples:
        >>> import tn4nn as tn
        >>> from tn4nn import testing
        >>> case = testing.Case("one layer", tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2)), shape=(16,))
        >>> str(case), case.batches
        ('one layer', (0, 1, 7))
    """

    name: str
    model: layers.Layer
    shape: tuple[int, ...]
    batches: tuple[int, ...] = (0, 1, 7)

    def __str__(self) -> str:
        return self.name


def random_topology(seed: int, *, cores: int = 5) -> Topology:
    """A random topology: any graph, with hyperedges (bonds of three cores, open legs on two), cores without
    open legs, batch legs, modes of size 1, cores of one leg, several components.

    Args:
        seed: one topology for each.
        cores: the most cores.

    Examples:
        >>> from tn4nn import testing
        >>> testing.random_topology(3) == testing.random_topology(3), len(testing.random_topology(3).cores) <= 5
        (True, True)
    """
    rng = rng_for(seed, "topology")
    count = int(rng.integers(1, cores + 1))
    legs: list[list[str]] = [[] for _ in range(count)]
    inputs: dict[str, int] = {}
    outputs: dict[str, int] = {}
    for side, sizes in (("x", inputs), ("y", outputs)):
        for i in range(int(rng.integers(1, 4))):
            sizes[f"{side}{i}"] = int(rng.choice([1, 2, 3, 4]))
            holders = rng.permutation(count)[: int(rng.choice([1, 1, 1, 2]))]
            for core in holders:
                legs[core].append(f"{side}{i}")
    if rng.random() < 0.3:
        inputs["k"] = outputs["k"] = int(rng.choice([1, 2, 3]))
        for core in rng.permutation(count)[: int(rng.integers(0, 3))]:
            legs[core].append("k")
    if count > 1:
        for b in range(int(rng.integers(count - 1, count + 3))):
            for core in rng.permutation(count)[: int(rng.choice([2, 2, 2, 3]))]:
                legs[core].append(f"a{b}")
    found = [Core(f"core{i}", tuple(rng.permutation(own).tolist())) for i, own in enumerate(legs) if own]
    return Topology(tuple(found), inputs, outputs, name=f"random{seed}")


def random_network(seed: int, *, cores: int = 5) -> Network:
    """A random topology with random ranks from 1 to 3, some of size 1.

    Args:
        seed: one network for each.
        cores: the most cores.

    Examples:
        >>> from tn4nn import testing
        >>> sorted(set(testing.random_network(3).ranks.values()) - {1, 2, 3})
        []
    """
    t = random_topology(seed, cores=cores)
    rng = rng_for(seed, "ranks")
    return t.with_ranks({bond: int(rng.integers(1, 4)) for bond in t.bonds})


def _small(t: Topology, rank: int = 3) -> Network:
    return t.with_ranks({bond: min(rank, cap) for bond, cap in rank_caps(t).items()})


def _linear_cases() -> list[Case]:
    cases = []
    for name in cat.catalogue():
        sites = 1 if name == "dense" else 2 if name == "tucker" else 4 if name == "mera" else 3
        net = _small(cat.build(name, 24, 18, sites=sites, pad=False))
        cases.append(Case(f"linear-{name}", layers.Linear(net), (24,)))
    padded = _small(cat.build("mpo", 23, 29, sites=2))
    block = topology("k x0 a, a k y0, x1 y1", {"k": 2, "x0": 3, "x1": 2}, {"y1": 2, "k": 2, "y0": 5}).with_rank(2)
    cases += [
        Case("linear-padded", layers.Linear(padded), (23,)),
        Case("linear-kept", layers.Linear(block), (12,)),
        Case(
            "linear-kept-on-no-core",
            layers.Linear(topology("x y", {"x": 3, "k": 2}, {"k": 2, "y": 4}).with_rank(1)),
            (6,),
        ),
        Case("linear-no-bias", layers.Linear(_small(cat.ring((4, 6), (3, 3))), bias=False), (24,)),
        Case("linear-ordering", layers.Linear(_small(cat.mpo((4, 4), (3, 3))), ordering="hilbert"), (16,)),
        Case("linear-leading-axes", layers.Linear(_small(cat.tree((2, 3, 4), (2, 2, 2)))), (5, 24)),
        Case("linear-size-1", layers.Linear(topology("x0 a, a b, b y0", {"x0": 1}, {"y0": 1}).with_rank(2)), (1,)),
    ]
    cases += [Case(f"linear-random-{seed}", _random_linear(seed), _random_shape(seed)) for seed in range(12)]
    return cases


def _random_linear(seed: int) -> layers.Linear:
    return layers.Linear(random_network(seed), bias=seed % 2 == 0)


def _random_shape(seed: int) -> tuple[int, ...]:
    return (random_network(seed).in_features,)


def _other_cases() -> list[Case]:
    line = layers.Linear(_small(cat.mpo((2, 3), (2, 3))))
    image = topology("c a, h w o a", {"c": 3, "h": 3, "w": 2}, {"o": 4}).with_rank(2)
    conv = layers.Conv2d(image, kernel=(3, 2), stride=(2, 1), padding=(1, 0))
    table = layers.Embedding(_small(cat.build("mpo", 30, 12, sites=3, pad=False)))
    plain: dict[str, layers.Layer] = {
        k.__name__.lower(): k() for k in (layers.ReLU, layers.GELU, layers.Tanh, layers.Sigmoid, layers.SiLU)
    }
    cases = [Case(name, layer, (6,)) for name, layer in plain.items()]
    cases += [
        Case("conv", conv, (3, 7, 6), (1, 3)),
        Case("conv-dense", layers.Conv2d(2, 3, kernel=3, padding=1), (2, 5, 5), (1, 3)),
        Case("conv-patches", layers.Conv2d(_small(cat.low_rank(8 * 9, 64), 1), kernel=3), (8, 5, 5), (2,)),
        Case("embedding", table, (4,), (0, 1, 3)),
        Case("embedding-btt", layers.Embedding(_small(cat.btt((4, 5), (3, 2)))), (2,), (1, 3)),
        Case("embedding-dense", layers.Embedding(9, 4), (2,), (1, 3)),
        Case("maxpool", layers.MaxPool(2), (2, 5, 4), (1, 3)),
        Case("avgpool", layers.AvgPool((3, 2), 1), (2, 5, 4), (1, 3)),
        Case("flatten", layers.Flatten(), (2, 3, 2), (1, 3)),
        Case("unflatten", layers.Unflatten((2, 3)), (6,), (1, 3)),
        Case("unflatten-image", layers.Unflatten((2, 3)), (3, 2), (1, 3)),
        Case("batchnorm", layers.BatchNorm(6), (6,), (1, 3)),
        Case("batchnorm-image", layers.BatchNorm(2), (2, 3, 3), (1, 3)),
        Case("layernorm", layers.LayerNorm(6), (6,), (1, 3)),
        Case("dropout", layers.Dropout(0.5), (6,), (1, 3)),
        Case("residual", layers.Residual(line), (6,), (1, 3)),
        Case("residual-shortcut", layers.Residual(layers.Linear(6, 4), layers.Linear(6, 4)), (6,), (1, 3)),
        Case("parallel-sum", layers.Parallel(line, layers.Tanh()), (6,), (1, 3)),
        Case("parallel-product", layers.Parallel(line, gate=layers.SiLU(), combine="product"), (6,), (1, 3)),
        Case("parallel-concat", layers.Parallel(line, layers.Linear(6, 2), combine="concat"), (6,), (1, 3)),
        Case(
            "model",
            layers.Sequential(
                conv, layers.BatchNorm(4), layers.GELU(), layers.MaxPool((2, 1)), layers.Flatten(),
                layers.Linear(40, 5), input_shape=(3, 7, 6),
            ),
            (3, 7, 6),
            (1, 3),
        ),
    ]  # fmt: skip
    return cases


def _token_cases() -> list[Case]:
    """What transformers are made of."""
    mpo, tree = _small(cat.mpo((2, 2, 2), (2, 2, 2))), _small(cat.tree((2, 2, 2), (2, 2, 2)))
    narrow, square = _small(cat.btt((2, 4), (2, 2)), 1), _small(cat.btt((2, 4), (2, 4)), 1)
    grouped = layers.Attention(8, 4, kv_heads=2, causal=True, query=mpo, key=narrow, value=narrow, out=tree)
    block = layers.Block(
        layers.RMSNorm(8),
        layers.Attention(8, 2, kv_heads=1, causal=True, rotary=True, out=square, dropout=0.5),
        layers.LayerNorm(8),
        layers.Sequential(
            hidden=layers.Parallel(
                gate=layers.Sequential(layers.Linear(8, 12), layers.SiLU()), up=layers.Linear(8, 12), combine="product"
            ),
            down=layers.Linear(12, 8),
        ),
        dropout=0.5,
    )
    text = layers.Sequential(layers.Positions(5, 8), layers.RMSNorm(8))
    table = layers.Embedding(_small(cat.build("mpo", 30, 8, sites=2, pad=False)))
    padded = layers.Embedding(_small(cat.build("mpo", 29, 8, sites=2)))
    return [
        Case("rmsnorm", layers.RMSNorm(6), (6,), (0, 2)),
        Case("tokens", layers.Tokens(), (3, 2, 4), (0, 2)),
        Case("meanpool", layers.MeanPool(), (5, 6), (0, 2)),
        Case("positions-mpo", layers.Positions(12, 6, _small(cat.mpo((3, 4), (2, 3)))), (12, 6), (2,)),
        Case("attention", layers.Attention(8, 2), (5, 8), (2,)),
        Case("attention-one-token", layers.Attention(8, 4, causal=True, rotary=True), (1, 8), (2,)),
        Case("attention-rotary", layers.Attention(8, 4, kv_heads=1, rotary=100.0, bias=False), (6, 8), (2,)),
        Case("attention-networks", grouped, (5, 8), (2,)),
        Case("block", block, (4, 8), (2,)),
        Case("tied", layers.Tied(layers.Embedding(9, 8), text), (5,), (2,)),
        Case("tied-mpo", layers.Tied(table, text), (3,), (0, 2)),
        Case("tied-padded", layers.Tied(padded, text), (1,), (2,)),
        Case(
            "model-tokens",
            layers.Sequential(table, layers.Positions(4, 8), layers.RMSNorm(8), layers.MeanPool(), layers.Linear(8, 3)),
            (4,),
            (2,),
        ),
        Case(
            "model-patches",
            layers.Sequential(
                layers.Conv2d(1, 8, kernel=2, stride=2), layers.Tokens(), layers.Positions(4, 8), layers.MeanPool(),
                layers.Linear(8, 3), input_shape=(1, 4, 4),
            ),
            (1, 4, 4),
            (2,),
        ),
    ]  # fmt: skip


CASES: tuple[Case, ...] = (*_linear_cases(), *_other_cases(), *_token_cases())
"""Every kind of layer, topologies of the catalogue, random topologies, and whole models."""


def weights_for(model: layers.Layer, seed: int = 0) -> dict[str, Array]:
    """Weights of which none is at a trivial value: biases and statistics are random too.

    Args:
        model: with ranks on every network.
        seed: equal seeds give equal weights.

    Returns:
        name -> float32 array, as `model.init` gives them.

    Examples:
        >>> import tn4nn as tn
        >>> from tn4nn import testing
        >>> sorted(testing.weights_for(tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2))))
        ['bias', 'core0', 'core1']
    """
    rng = rng_for(seed, "conformance")
    weights: dict[str, Array] = dict(model.init(seed))
    for name, spec in model.specs().items():
        if spec.role != "core":
            weights[name] = (rng.random(spec.shape) + (0.5 if name.endswith("var") else 0.0)).astype(np.float32)
    return weights


def inputs_for(case: Case, batch: int, seed: int = 0) -> Array:
    """A batch for a case: integers for an embedding and what begins with one, else normal numbers.

    Args:
        case: whose model takes it.
        batch: rows.
        seed: equal seeds give equal batches.

    Returns:
        An array of shape (batch, *case.shape), of integers or of float32.

    Examples:
        >>> from tn4nn import testing
        >>> case = testing.CASES[0]
        >>> testing.inputs_for(case, batch=7).shape == (7, *case.shape)
        True
    """
    rng = rng_for(seed, "inputs", batch)
    table = layers.embedding_of(case.model)
    if table is not None:
        return rng.integers(0, table.topology.in_features, size=(batch, *case.shape))
    return rng.standard_normal((batch, *case.shape)).astype(np.float32)


def assert_close(received: Array, expected: Array, tolerance: float, what: str) -> None:
    """Raises AssertionError unless the shapes agree and the largest error is at most `tolerance` of the
    largest expected value.

    Examples:
        >>> import numpy as np
        >>> from tn4nn import testing
        >>> testing.assert_close(np.ones(2), np.ones(2) + 1e-12, 1e-9, "y")
        >>> testing.assert_close(np.ones(2), np.full(2, 1.5), 1e-9, "y")
        Traceback (most recent call last):
            ...
        AssertionError: y: error 0.5, largest value 1.5
    """
    assert received.shape == expected.shape, f"{what}: expected shape {expected.shape}, received {received.shape}"
    if expected.size:
        error = float(np.max(np.abs(received.astype(np.float64) - expected)))
        scale = float(np.max(np.abs(expected)))
        assert error <= tolerance * max(scale, 1e-30), f"{what}: error {error:.3g}, largest value {scale:.3g}"


def check(backend: Backend, case: Case, *, dtypes: tuple[str, ...] = ("float64", "float32")) -> None:
    """Checks one case: outputs, gradients, and that the weights come back as they went in.

    Raises:
        AssertionError: naming the case, the dtype, the batch and the weight.

    Examples:
        >>> import tn4nn as tn
        >>> from tn4nn import reference, testing
        >>> case = testing.Case("one layer", tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2)), shape=(16,))
        >>> testing.check(reference.backend, case, dtypes=("float64",))  # passes: the oracle against itself
        >>> testing.TOLERANCE["float64"]
        1e-09
    """
    weights = weights_for(case.model)
    for dtype in dtypes:
        before = {name: array.copy() for name, array in weights.items()}
        module = backend.build(
            case.model, weights, batch=None, phase="train", device=None, dtype=dtype, minimize="time"
        )
        for batch in case.batches:
            where = f"{case.name}, {dtype}, batch {batch}"
            x = inputs_for(case, batch)
            x = x if _whole(x) else x.astype(dtype)
            y = forward(case.model, _float64(weights), x if _whole(x) else x.astype(np.float64))
            assert_close(backend.forward(module, x), y, TOLERANCE[dtype], f"{where}: y")
            if case.model.specs() or not _whole(x):
                _check_gradients(backend, module, case, weights, x, y.shape, dtype, where)
        back = backend.weights(module)
        assert set(back) == set(before), f"{case.name}: weights come back as {sorted(back)}"
        for name, array in before.items():
            assert np.array_equal(back[name], array), f"{case.name}: weight {name!r} has changed"
            assert np.array_equal(weights[name], array), f"{case.name}: the backend wrote into {name!r}"


def _whole(x: Array) -> bool:
    return bool(np.issubdtype(x.dtype, np.integer))


def _float64(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.astype(np.float64) for name, array in weights.items()}


def _check_gradients(
    backend: Backend,
    module: Any,
    case: Case,
    weights: Mapping[str, Array],
    x: Array,
    out: tuple[int, ...],
    dtype: str,
    where: str,
) -> None:
    gy = rng_for(0, "cotangent", out).standard_normal(out).astype(np.float32)
    found, gx = backend.gradients(module, x, gy)
    trained = [name for name, spec in case.model.specs().items() if spec.role != "state"]
    assert sorted(found) == sorted(trained), f"{where}: gradients of {sorted(found)}, expected {sorted(trained)}"
    assert (gx is None) == _whole(x), f"{where}: gradient of x"
    if isinstance(case.model, layers.Linear | layers.Embedding):
        exact = oracle.build(case.model, weights, dtype="float64")
        wanted, wanted_x = oracle.gradients(exact, x if _whole(x) else x.astype(np.float64), gy.astype(np.float64))
        for name in trained:
            assert_close(found[name], wanted[name], TOLERANCE[dtype], f"{where}: gradient of {name}")
        if gx is not None and wanted_x is not None:
            assert_close(gx, wanted_x, TOLERANCE[dtype], f"{where}: gradient of x")
    elif dtype == "float64":  # differences are too rough for float32
        _check_differences(case, weights, x, gy, {**found, **({} if gx is None else {"": gx})}, where)


def _check_differences(
    case: Case, weights: Mapping[str, Array], x: Array, gy: Array, found: Mapping[str, Array], where: str
) -> None:
    """Each gradient against a central difference of the oracle along a random direction."""
    exact = _float64(weights)
    x = x if _whole(x) else x.astype(np.float64)
    # Some derivatives are zero, as that of the bias of an attention's keys: a difference is off by how its sums round.
    terms = np.abs(forward(case.model, exact, x) * gy)
    rounding = float(np.finfo(np.float64).eps * np.sum(terms)) / _STEP
    for name, gradient in found.items():
        direction = rng_for(0, "direction", name).standard_normal(gradient.shape)

        def value(step: float, name: str = name, direction: Array = direction) -> float:
            moved = exact if not name else {**exact, name: exact[name] + step * direction}
            at = x if name else x + step * direction
            return float(np.sum(forward(case.model, moved, at) * gy))

        expected = (value(_STEP) - value(-_STEP)) / (2 * _STEP)
        received = float(np.sum(gradient * direction))
        scale = max(abs(expected), float(np.linalg.norm(gradient)), 1e-30)
        assert abs(received - expected) <= 1e-5 * scale + rounding, (
            f"{where}: derivative along {name or 'x'}: expected {expected:.8g}, received {received:.8g}"
        )


def check_training(backend: Backend) -> None:
    """Checks that a backend trains: the loss falls, state is restored to the bit. "muon" may raise BackendError.

    Raises:
        AssertionError: saying what differs.

    Examples:
        >>> import tn4nn as tn
        >>> from tn4nn import testing
        >>> testing.check_training(tn.backend("torch"))  # passes
        >>> testing.check_training(tn.backend("numpy"))
        Traceback (most recent call last):
            ...
        tn4nn.BackendError: the numpy backend does not train: ...
    """
    from ._model.backend import TrainSpec

    model = layers.Sequential(layers.Linear(_small(cat.mpo((4, 4), (4, 4)))), layers.ReLU(), layers.Linear(16, 3))
    matrices = of_cores(model, lambda layer: layer.matrix_axes())
    rng = rng_for(0, "training")
    x = rng.standard_normal((60, 16)).astype(np.float32)
    y = (x[:, :3].argmax(1)).astype(np.int64)
    for optimizer in OPTIMIZERS:
        spec = TrainSpec(
            loss="cross_entropy", optimizer=optimizer, momentum=0.9, nesterov=True, betas=(0.9, 0.999), eps=1e-8,
            lr_factors={}, decay={"0.core0": 1e-3}, precision="float32", device=None, seed=0, batch_size=20,
            matrices=matrices if optimizer == "muon" else {},
        )  # fmt: skip
        index = np.stack([rng.permutation(60)[:20] for _ in range(40)])
        rates = [0.02] * 40
        try:
            whole = backend.trainer(model, model.init(0), spec)
        except BackendError:
            if optimizer != "muon":  # the one that a backend may do without
                raise
            continue
        xs, ys = whole.put(x), whole.put(y)
        losses = whole.read(whole.steps(xs, ys, index[:25], rates[:25], 0))
        saved = whole.state()
        rest = whole.read(whole.steps(xs, ys, index[25:], rates[25:], 25))
        assert rest[-5:].mean() < 0.7 * losses[:5].mean(), (
            f"{optimizer}: the loss does not fall: {losses[0]}, {rest[-1]}"
        )
        resumed = backend.trainer(model, model.init(1), spec)
        resumed.load(saved)
        repeated = resumed.read(resumed.steps(resumed.put(x), resumed.put(y), index[25:], rates[25:], 25))
        assert np.array_equal(rest, repeated), f"{optimizer}: after load the losses differ"
        for name, array in whole.weights().items():
            assert np.array_equal(array, resumed.weights()[name]), f"{optimizer}: after load {name!r} differs"
