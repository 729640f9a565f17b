"""The competitors, each in the best way that its documentation offers.

`make(cell)` returns a Runner, or raises CannotExpressError or SkippedError with the reason. To add one, write
a function and a line in the table at the end.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from _cell import CannotExpressError, Cell
from _paths import BATCH, PathCost
from _runners import JaxRunner, Runner, TorchRunner

import tn4nn as tn

# -- ours ----------------------------------------------------------------------------------------------------


def _ours(cell: Cell, backend: str, plan: tn.Plan, **options: Any) -> tuple[Any, dict[str, Any]]:
    cell.guard(PathCost(plan.cost.macs // cell.macs(1), 0, 0))
    cell.guard_bytes(plan.cost.peak + plan.cost.saved)
    layer = tn.Linear(cell.network, bias=False)
    module = layer.build(backend, weights=cell.data.weights, batch=cell.batch, phase=cell.phase, **options)
    notes = {
        "order": plan.order,
        "runtime": plan.runtime,
        "block": plan.block,
        "predicted_s": plan.cost.predicted_s,
        "predicted_saved_bytes": plan.cost.saved,
    }
    return module, notes


def _tuned(cell: Cell) -> tn.Plan:
    """With tune=True: the best few plans are measured when the layer is built, on a GPU when it is called."""
    if cell.device == "cpu":
        return tn.plan(cell.network, cell.batch, cell.phase, runtime="native", tune=True)
    from tn4nn_torch import TNLinear

    options: dict[str, Any] = {"batch": cell.batch, "phase": cell.phase, "device": cell.device, "dtype": cell.dtype}
    return TNLinear(cell.network, bias=False, **options).plan(cell.batch)


def _tn4nn_torch(cell: Cell) -> Runner:
    import tn4nn_torch

    if cell.device == "cpu":
        tn4nn_torch.build_extension()
    plan = _tuned(cell)
    module, notes = _ours(cell, "torch", plan, tune=True, device=cell.device, dtype=cell.dtype)
    runner = TorchRunner(cell, module, list(module.parameters()), plan.cost.macs, notes)
    if cell.device != "cpu":
        runner.run(2)  # the second call of a size measures the candidates
    return runner


def _tn4nn_jax(cell: Cell) -> Runner:
    plan = _tuned(cell)
    module, notes = _ours(cell, "jax", plan, tune=cell.device == "cpu", dtype=cell.dtype)
    return JaxRunner(cell, lambda m, x: m(x), module, plan.cost.macs, notes)


# -- dense ---------------------------------------------------------------------------------------------------


def _dense_torch(cell: Cell) -> Runner:
    import torch

    cell.guard_dense()
    out_features, in_features = cell.network.out_features, cell.network.in_features
    layer = torch.nn.Linear(in_features, out_features, bias=False, **cell.on_torch)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(cell.data.dense))
    return TorchRunner(cell, layer, [layer.weight], cell.dense_macs)


def _dense_jax(cell: Cell) -> Runner:
    import jax.numpy as jnp

    cell.guard_dense()
    return JaxRunner(cell, lambda w, x: jnp.einsum("bi,oi->bo", x, w), cell.data.dense, cell.dense_macs)


# -- contraction libraries -----------------------------------------------------------------------------------


def _torch_cores(cell: Cell) -> list[Any]:
    import torch

    return [torch.tensor(core, requires_grad=cell.train, **cell.on_torch) for core in cell.cores]


def _guard_path(cell: Cell) -> None:
    cell.guard(cell.layer.cost(cell.best_path))


def _reconstruct(cell: Cell) -> Runner:
    """W by cotengra's optimal order at every call, then one matrix product."""
    import cotengra as ctg
    import torch

    problem, n = cell.matrix, cell.network
    tree = problem.tree()
    cost = problem.cost(tuple(tree.get_ssa_path()))
    both = PathCost(cost.macs + cell.batch * n.dense_params, cost.intermediates, cost.largest)
    cell.guard(both, n.dense_params)
    build = ctg.array_contract_expression(
        list(problem.tensors), problem.output, shapes=problem.shapes, optimize=tree.get_path()
    )
    cores = _torch_cores(cell)
    shape = (n.out_features, n.in_features)

    def apply(x: Any) -> Any:
        return torch.nn.functional.linear(x, build(*cores, backend="torch").reshape(shape))

    return TorchRunner(cell, apply, cores)


def _with_modes(cell: Cell, contract: Callable[..., Any], parameters: list[Any]) -> Runner:
    """A contraction of (cores..., x with its modes), y flattened."""
    inputs, batch = cell.modes[0], cell.batch

    def apply(x: Any) -> Any:
        return contract(*parameters, x.reshape(batch, *inputs)).reshape(batch, -1)

    return TorchRunner(cell, apply, parameters)


def _torch_einsum(cell: Cell) -> Runner:
    """The whole expression; torch asks opt_einsum for a path at every call (its default strategy)."""
    import torch

    _guard_path(cell)
    equation = cell.layer.equation
    return _with_modes(cell, lambda *arrays: torch.einsum(equation, *arrays), _torch_cores(cell))


def _opt_einsum(cell: Cell) -> Runner:
    """contract_expression with the path search that it advises for quality, "auto-hq"."""
    import opt_einsum as oe

    _guard_path(cell)
    expression = oe.contract_expression(cell.layer.equation, *cell.layer.shapes, optimize="auto-hq")
    return _with_modes(cell, lambda *arrays: expression(*arrays, backend="torch"), _torch_cores(cell))


def _cotengra(cell: Cell) -> Runner:
    """array_contract_expression with the optimal path, the batch counted in."""
    expression = _expression(cell)
    return _with_modes(cell, lambda *arrays: expression(*arrays, backend="torch"), _torch_cores(cell))


def _expression(cell: Cell) -> Any:
    import cotengra as ctg

    _guard_path(cell)
    problem = cell.layer
    return ctg.array_contract_expression(
        list(problem.tensors), problem.output, shapes=problem.shapes, optimize=problem.tree().get_path()
    )


def _graphed(cell: Cell) -> Runner:
    """cotengra's expression as one CUDA graph forward and one backward, by torch's make_graphed_callables."""
    import torch

    if cell.device == "cpu":
        raise CannotExpressError("CUDA graphs need a GPU")
    expression, inputs, batch = _expression(cell), cell.modes[0], cell.batch

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cores = torch.nn.ParameterList([core.detach() for core in _torch_cores(cell)])
            self.requires_grad_(cell.train)

        def forward(self, x: Any) -> Any:
            return expression(*self.cores, x.reshape(batch, *inputs), backend="torch").reshape(batch, -1)

    layer = Layer()
    x = torch.tensor(cell.x, requires_grad=cell.train, **cell.on_torch)
    result = torch.cuda.make_graphed_callables(layer, (x,))
    return TorchRunner(cell, result, list(layer.parameters()), cell.macs(cell.layer.cost(cell.best_path).macs))


def _engine(name: str) -> Callable[[Cell], Runner]:
    """Our layer with another library in our place, along the path of fewest multiply-adds.

    For quimb that is the way of its guide to torch: pack once, unpack and contract in every call; `get="expression"`
    would be cotengra's expression, which has its own row. TensorNetwork's nodes are built in every call.
    """

    def make(cell: Cell) -> Runner:
        _guard_path(cell)
        options: Any = {
            "weights": cell.data.weights,
            "batch": cell.batch,
            "phase": cell.phase,
            "device": cell.device,
            "dtype": cell.dtype,
        }
        try:
            module = tn.Linear(cell.network, bias=False).build("torch", minimize="flops", engine=name, **options)
        except tn.BackendError as error:  # a hyperedge too large for TensorNetwork
            raise CannotExpressError(str(error)) from error
        return TorchRunner(cell, module, list(module.parameters()))

    return make


def _jax_einsum(cell: Cell) -> Runner:
    """jax.jit of jnp.einsum along opt_einsum's "auto-hq" path."""
    import jax.numpy as jnp
    import opt_einsum as oe

    _guard_path(cell)
    problem, inputs, batch = cell.layer, cell.modes[0], cell.batch
    path, _ = oe.contract_path(problem.equation, *problem.shapes, shapes=True, optimize="auto-hq")
    macs = problem.cost(tuple(oe.paths.linear_to_ssa(path))).macs

    def function(cores: Any, x: Any) -> Any:
        y = jnp.einsum(problem.equation, *cores, x.reshape(batch, *inputs), optimize=path)
        return y.reshape(batch, -1)

    return JaxRunner(cell, function, list(cell.cores), cell.macs(macs))


# -- layer libraries -----------------------------------------------------------------------------------------


def _chain_cores(cell: Cell, who: str) -> list[np.ndarray[Any, Any]]:
    """Cores of an MPO as (left, in, out, right), with bonds of size 1 at the ends."""
    if cell.network.topology.name != "mpo":
        raise CannotExpressError(f"{who} has no {cell.network.topology.name} layer")
    cores = cell.cores
    if len(cores) == 1:
        return [cores[0][None, :, :, None]]
    return [cores[0][None], *cores[1:-1], cores[-1][..., None]]


def _tltorch(cell: Cell, implementation: str) -> Runner:
    import tltorch
    import torch

    name = cell.network.topology.name
    inputs, outputs = cell.modes
    if name == "mpo":
        values = [core.transpose(0, 2, 1, 3) for core in _chain_cores(cell, "tltorch")]
        rank: Any = [value.shape[0] for value in values] + [1]
    elif name == "cp":
        # Ours: factors (mode, rank) of x, then (rank, mode) of y; tltorch's: those of y first, (mode, rank).
        n = len(inputs)
        values = [np.ones(cell.cores[0].shape[1]), *(c.T for c in cell.cores[n:]), *cell.cores[:n]]
        rank = cell.cores[0].shape[1]
    elif name == "tucker":
        n = len(inputs)
        middle = cell.cores[n]
        order = [*range(n, middle.ndim), *range(n)]
        values = [middle.transpose(order), *(c.T for c in cell.cores[n + 1 :]), *cell.cores[:n]]
        rank = values[0].shape
    else:
        raise CannotExpressError(f"tltorch has no {name} layer")
    if implementation == "factorized":
        _guard_path(cell)
    else:
        # tltorch forms a CP's W as a Khatri-Rao product of all factors but the first, times the first.
        held = rank * cell.network.dense_params // outputs[0] if name == "cp" else cell.network.dense_params
        cell.guard(PathCost(cell.batch * cell.network.dense_params, 0, 0), held + cell.network.dense_params)
    kind = {"mpo": "blocktt", "cp": "cp", "tucker": "tucker"}[name]
    layer = tltorch.FactorizedLinear(
        inputs, outputs, bias=False, factorization=kind, rank=rank, implementation=implementation
    ).to(**cell.on_torch)
    parameters = list(layer.parameters())
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            if tuple(parameter.shape) != value.shape:
                raise CannotExpressError(
                    f"tltorch made a parameter of shape {tuple(parameter.shape)} for {value.shape}"
                )
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return TorchRunner(cell, lambda x: layer(x), parameters)


def _tltorch_factorized(cell: Cell) -> Runner:
    return _tltorch(cell, "factorized")


def _tltorch_reconstructed(cell: Cell) -> Runner:
    return _tltorch(cell, "reconstructed")


def _torchtt(cell: Cell) -> Runner:
    """LinearLayerTT. It always adds a bias of the full output shape; here one zero that is not trained."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says at import that its C++ solvers, which layers do not use, are absent
        import torchtt

    values = [core.transpose(0, 2, 1, 3) for core in _chain_cores(cell, "torchTT")]
    cell.guard(cell.layer.cost(cell.layer.chain_path()))
    inputs, outputs = cell.modes
    ranks = [value.shape[0] for value in values] + [1]
    layer = torchtt.nn.LinearLayerTT(list(inputs), list(outputs), ranks)
    del layer.bias
    layer.bias = torch.zeros(())
    layer = layer.to(**cell.on_torch)
    with torch.no_grad():
        for core, value in zip(layer.cores, values, strict=True):
            core.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    batch = cell.batch
    return TorchRunner(cell, lambda x: layer(x.reshape(batch, *inputs)).reshape(batch, -1), list(layer.cores))


def _tensorkrowch(cell: Cell) -> Runner:
    """A TensorNetwork with one data node for x, contracted pair by pair along the optimal path, then traced.

    Its ready-made MPO takes one vector for each site (a product state), which a layer's x is not.
    """
    import tensorkrowch as tk
    import torch

    _guard_path(cell)
    problem = cell.layer
    holders = [leg for legs in problem.tensors for leg in legs]
    if any(holders.count(leg) > 2 or (holders.count(leg) == 2 and leg in problem.output) for leg in set(holders)):
        raise CannotExpressError("tensorkrowch's edges join two nodes: no hyperedges")
    # tensorkrowch gives meaning to underscores in names, and to "batch".
    label = {leg: leg if leg == BATCH else f"leg{i}" for i, leg in enumerate(dict.fromkeys(holders))}
    *cores, x_legs = [tuple(label[leg] for leg in legs) for legs in problem.tensors]
    output = [label[leg] for leg in problem.output]
    path, batch, inputs = cell.best_path, cell.batch, cell.modes[0]

    class Layer(tk.TensorNetwork):
        def __init__(self) -> None:
            super().__init__(name="layer")
            self.sites = []
            for i, (array, legs) in enumerate(zip(cell.cores, cores, strict=True)):
                result = tk.ParamNode(axes_names=legs, name=f"core{i}", network=self, tensor=torch.tensor(array))
                self.sites.append(result)
            self.ends: dict[str, Any] = {}
            for node, legs in zip(self.sites, cores, strict=True):
                self._join(node, legs)

        def _join(self, node: Any, legs: tuple[str, ...]) -> None:
            for leg in legs:
                if leg in self.ends:
                    _ = self.ends.pop(leg) ^ node[leg]
                else:
                    self.ends[leg] = node[leg]

        def set_data_nodes(self) -> None:  # type: ignore[override]
            self.x_node = tk.Node(shape=(1, *inputs), axes_names=x_legs, name="data", network=self, data=True)
            self._join(self.x_node, x_legs)

        def add_data(self, data: Any) -> None:
            self.x_node.tensor = data

        def contract(self) -> Any:
            result = [*self.sites, self.x_node]
            for a, b in path:
                result.append(result[a] @ result[b])
            names = result[-1].axes_names
            return tk.permute(result[-1], tuple(names.index(leg) for leg in output))

    layer = Layer().to(**cell.on_torch)
    layer.trace(torch.zeros(batch, *inputs, **cell.on_torch))
    return TorchRunner(cell, lambda x: layer(x.reshape(batch, *inputs)).reshape(batch, -1), list(layer.parameters()))


# -- the table -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Peer:
    """One competitor.

    Attributes:
        name: what `--peers` takes.
        framework: "torch" or "jax".
        role: "ours", "dense" or "peer".
        needs: import names of what must be installed, the framework aside.
        make: makes a runner of a cell.
    """

    name: str
    framework: str
    role: str
    needs: tuple[str, ...]
    make: Callable[[Cell], Runner]

    def missing(self) -> list[str]:
        """Import names that are not installed."""
        return [name for name in (self.framework, *self.needs) if importlib.util.find_spec(name) is None]


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("tn4nn-torch", "torch", "ours", (), _tn4nn_torch),
        Peer("dense-torch", "torch", "dense", (), _dense_torch),
        Peer("reconstruct", "torch", "peer", (), _reconstruct),
        Peer("torch-einsum", "torch", "peer", ("opt_einsum",), _torch_einsum),
        Peer("opt-einsum", "torch", "peer", ("opt_einsum",), _opt_einsum),
        Peer("cotengra", "torch", "peer", (), _cotengra),
        Peer("cotengra-graphed", "torch", "peer", (), _graphed),
        Peer("quimb", "torch", "peer", ("quimb",), _engine("quimb")),
        Peer("tensornetwork", "torch", "peer", ("tensornetwork",), _engine("tensornetwork")),
        Peer("tltorch-factorized", "torch", "peer", ("tltorch", "opt_einsum"), _tltorch_factorized),
        Peer("tltorch-reconstructed", "torch", "peer", ("tltorch",), _tltorch_reconstructed),
        Peer("torchtt", "torch", "peer", ("torchtt",), _torchtt),
        Peer("tensorkrowch", "torch", "peer", ("tensorkrowch",), _tensorkrowch),
        Peer("tn4nn-jax", "jax", "ours", (), _tn4nn_jax),
        Peer("dense-jax", "jax", "dense", (), _dense_jax),
        Peer("jax-einsum", "jax", "peer", ("opt_einsum",), _jax_einsum),
    )
}
