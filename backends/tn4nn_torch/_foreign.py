"""People's own torch modules, as comparisons see them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tn4nn._base.errors import BackendError
from tn4nn._compression.rules import Rule
from tn4nn._graph.network import Network
from tn4nn._model.backend import TrainSpec

from ._convert import _survey, convert
from ._groups import parameter_groups
from ._replace import replace
from ._trainer import TorchTrainer


class TorchModules:
    """See `tn4nn._model.foreign.Foreign`."""

    def owns(self, made: object) -> bool:
        """See `Foreign.owns`."""
        return isinstance(made, nn.Module)

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """See `Foreign.seeded`."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield

    def layers(self, module: nn.Module) -> dict[str, tuple[str, int, int]]:
        """See `Foreign.layers`."""
        found = (one.described() for one in _survey(module) if not one.reason)
        return {weight.names[0][0]: (weight.kind, *weight.features) for weight in found}

    def num_params(self, module: nn.Module) -> int:
        """See `Foreign.num_params`."""
        return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

    def replaced(self, module: nn.Module, networks: Mapping[str, Network], seed: int, start: str) -> nn.Module:
        """See `Foreign.replaced`."""
        if not networks:
            return module
        if start == "fresh":
            return replace(module, dict(networks), seed=seed, protect_head=False)
        rules = {name: Rule(network) for name, network in networks.items()}
        return convert(module, rules, protect_head=False, seed=seed)

    def rows(self, module: nn.Module, x: NDArray[Any]) -> dict[str, int]:
        """See `Foreign.rows`."""
        seen: dict[str, int] = {}
        hooks = []
        for name, (kind, ins, _) in self.layers(module).items():
            if kind not in ("Linear", "Conv1D"):
                continue

            def count(_: nn.Module, args: tuple[Any, ...], name: str = name, ins: int = ins) -> None:
                if args and isinstance(args[0], Tensor):
                    seen[name] = seen.get(name, 0) + args[0].numel() // ins // len(x)

            hooks.append(module.get_submodule(name).register_forward_pre_hook(count))
        try:
            self.outputs(module, x)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def outputs(self, module: nn.Module, x: NDArray[Any]) -> tuple[int, ...]:
        """See `Foreign.outputs`."""
        was = module.training
        module.eval()
        with torch.no_grad():
            found = tuple(answer(module(beside(module, x))).shape)
        module.train(was)
        return found

    def trainer(self, module: nn.Module, spec: TrainSpec, lr: float, weight_decay: float) -> TorchTrainer:
        """See `Foreign.trainer`."""
        return ModuleTrainer(module, spec, lr, weight_decay)


def beside(module: nn.Module, array: NDArray[Any]) -> Tensor:
    """An array as a tensor where the module's parameters are; floats in their dtype."""
    value = torch.tensor(array)
    first = next(iter(module.parameters()), value)
    return value.to(device=first.device, dtype=first.dtype if value.is_floating_point() else value.dtype)


def answer(out: Any) -> Tensor:
    """The tensor in what a module gives: itself, the logits of Hugging Face, or the first of several."""
    if isinstance(out, Tensor):
        return out
    logits = getattr(out, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(out, Sequence) and out and isinstance(out[0], Tensor):
        return out[0]
    raise BackendError(
        "expected a module that gives a tensor, something with .logits, or a tuple that begins with a tensor, "
        f"received {type(out).__name__}: give fit=, which trains it as it needs"
    )


class ModuleTrainer(TorchTrainer):
    """Trains any module, as `TorchTrainer` does one of a layer graph.

    Args:
        module: is moved to the device, and trained in place.
        spec: all but rates, factors and decay.
        lr: the highest rate.
        weight_decay: of W; see `parameter_groups`.
    """

    def __init__(self, module: nn.Module, spec: TrainSpec, lr: float, weight_decay: float) -> None:
        self.spec = spec
        self.dtype = torch.float64 if spec.precision == "float64" else torch.float32
        self.device = torch.device(spec.device or "cpu")
        self.net = module.to(device=self.device, dtype=self.dtype)
        self.names = list(self.net.state_dict())
        self.draws = True  # it may have dropout in any form
        groups = parameter_groups(self.net, lr, weight_decay, spec.optimizer)
        self.factors = [group["lr"] / lr for group in groups]
        kept = "params", "weight_decay", "axes"
        options = [{key: value for key, value in group.items() if key in kept} for group in groups]
        self.optimizer = self._made(options)

    def _output(self, x: Tensor) -> Tensor:
        return answer(self.net(x))
