"""Training with torch.optim."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import tn4nn._model.layers as layers
from tn4nn._base.errors import CheckpointError
from tn4nn._graph.muon import Axes
from tn4nn._model.backend import TrainSpec

from ._modules import to_module
from ._muon import Muon
from ._weight_norm import GAIN, cap_core, plain_name, without

_CHUNK = 1024  # predictions of one evaluation call
_ADAM = ("exp_avg", "exp_avg_sq", "step")
_VALUE = "value"  # of a gain, which is not a weight of the model


def _to_host(array: Tensor) -> NDArray[Any]:
    return array.detach().cpu().numpy().copy()


class TorchTrainer:
    """See `tn4nn._model.backend.Trainer`."""

    def __init__(self, model: layers.Layer, weights: Mapping[str, NDArray[Any]], spec: TrainSpec) -> None:
        self.spec = spec
        self.dtype = torch.float64 if spec.precision == "float64" else torch.float32
        self.device = torch.device(spec.device or "cpu")
        self.net = to_module(
            model, weights, phase="train", device=self.device, dtype=self.dtype, minimize=spec.minimize
        )
        self.names = list(model.specs())
        self.draws = any(isinstance(layer, layers.Dropout) for _, layer in model.walk())
        self.factors: list[float] = []
        for name, cap in spec.caps.items():
            owner, _, core = name.rpartition(".")
            cap_core(self.net.get_submodule(owner), core, cap)
        self.optimizer = self._optimizer(self._parameters())

    def _parameters(self) -> dict[str, nn.Parameter]:
        """By their names in the model; those of gains end in GAIN."""
        return {plain_name(name): parameter for name, parameter in self.net.named_parameters()}

    def _arrays(self) -> dict[str, Tensor]:
        """Parameters and buffers, by the same names."""
        return {plain_name(name): array for name, array in self.net.state_dict().items()}

    def _optimizer(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        spec = self.spec
        groups: dict[tuple[float, float, Axes | None], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            key = (spec.lr_factors.get(name, 1.0), spec.decay.get(name, 0.0), spec.matrices.get(name))
            groups.setdefault(key, []).append(parameter)
        self.factors = [factor for factor, _, _ in groups]
        return self._made([{"params": g, "weight_decay": decay, "axes": a} for (_, decay, a), g in groups.items()])

    def _made(self, options: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer of parameter groups; its rates are set at every step."""
        spec = self.spec
        if spec.optimizer == "sgd":
            return torch.optim.SGD(options, lr=1.0, momentum=spec.momentum, nesterov=spec.nesterov)
        if spec.optimizer == "muon":
            return Muon(options, lr=1.0, betas=spec.betas, eps=spec.eps)
        kind = torch.optim.Adam if spec.optimizer == "adam" else torch.optim.AdamW
        return kind(options, lr=1.0, betas=spec.betas, eps=spec.eps)

    def put(self, array: NDArray[Any]) -> Tensor:
        """See `Trainer.put`."""
        if np.issubdtype(array.dtype, np.floating):
            return torch.tensor(array, dtype=self.dtype, device=self.device)
        return torch.tensor(array, dtype=torch.int64, device=self.device)

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        if self.spec.precision == "bf16":
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                yield
        else:
            yield

    def _loss(self, x: Tensor, y: Tensor, reduction: str = "mean") -> tuple[Tensor, Tensor]:
        with self._arithmetic():
            out = self._output(x)
        out = out.to(self.dtype)
        if self.spec.loss == "cross_entropy":
            return F.cross_entropy(out.flatten(0, -2), y.flatten(), reduction=reduction), out
        return F.mse_loss(out, y, reduction=reduction), out

    def _output(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result

    def steps(self, x: Tensor, y: Tensor, index: NDArray[np.int64], lrs: Sequence[float], first: int) -> Tensor:
        """See `Trainer.steps`."""
        rows = torch.from_numpy(np.ascontiguousarray(index)).to(self.device)
        self.net.train()
        losses = []
        with self._randomness():
            for step, lr in enumerate(lrs):
                if self.draws:
                    torch.manual_seed(((self.spec.seed << 32) + first + step) % 2**64)
                loss, _ = self._loss(x[rows[step]], y[rows[step]])
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
                    group["lr"] = lr * factor
                self.optimizer.step()
                losses.append(loss.detach())
        return torch.stack(losses)

    @contextlib.contextmanager
    def _randomness(self) -> Iterator[None]:
        """Dropout draws from torch's global generator: its state is put back afterwards."""
        if not self.draws:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """See `Trainer.evaluate`."""
        self.net.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        right = torch.zeros((), dtype=torch.float64, device=self.device)
        is_labels = self.spec.loss == "cross_entropy"
        places = max(1, y[:1].numel())  # numbers in one row of y
        rows = max(1, _CHUNK // places) if is_labels else _CHUNK
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            loss, out = self._loss(x[part], y[part], "sum")
            total += loss
            if is_labels:
                right += (out.argmax(-1) == y[part]).sum()
        count = len(x) * places
        return float(total) / count, 100 * float(right) / count if is_labels else float("nan")

    def read(self, losses: Tensor) -> NDArray[np.float64]:
        """See `Trainer.read`."""
        return losses.double().cpu().numpy()

    def weights(self) -> dict[str, NDArray[Any]]:
        """See `Trainer.weights`."""
        found = self._arrays() | {name: self._core(name) for name in self.spec.caps}
        return {name: _to_host(found[name]) for name in self.names}

    def _core(self, name: str) -> Tensor:
        """A core as it is computed with."""
        owner, _, core = name.rpartition(".")
        found: Tensor = getattr(self.net.get_submodule(owner), core)
        return found

    def state(self) -> dict[str, NDArray[Any]]:
        """See `Trainer.state`."""
        arrays = self._arrays()
        found = {f"weights/{name}": _to_host(arrays[name]) for name in self.names}
        for name, parameter in self._parameters().items():
            slots = dict(self.optimizer.state.get(parameter, {}))
            if name.endswith(GAIN):
                slots[_VALUE] = parameter
            for key, value in slots.items():
                if value is not None:  # SGD without momentum has an empty entry
                    found[f"optimizer/{name}/{key}"] = _to_host(torch.as_tensor(value))
        return found

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Trainer.load`.

        Raises:
            CheckpointError: the state is of another optimizer.
        """
        self._check(state)
        weights = {name: torch.tensor(state[f"weights/{name}"]) for name in self.names}
        weights |= {gain: torch.tensor(state[f"optimizer/{gain}/{_VALUE}"]) for gain in self._gains()}
        self.net.load_state_dict({name: weights[plain_name(name)] for name in self.net.state_dict()})
        for name, parameter in self._parameters().items():
            prefix = f"optimizer/{name}/"
            slots: dict[str, Any] = {}
            for key, array in state.items():
                if key.startswith(prefix):
                    slot = key[len(prefix) :]
                    if slot == _VALUE:
                        continue
                    # Adam counts its steps on the host.
                    place = torch.device("cpu") if slot == "step" else self.device
                    slots[slot] = torch.tensor(array, device=place)
            if slots:
                self.optimizer.state[parameter] = slots

    def _gains(self) -> list[str]:
        return [name + GAIN for name in self.spec.caps]

    def _check(self, state: Mapping[str, NDArray[Any]]) -> None:
        """A slot of another shape would only be noticed in the next step, if at all."""
        spec = self.spec
        left = {name for name in state if name.startswith("optimizer/")}
        for name, parameter in self._parameters().items():
            if name in spec.matrices:
                expected = {"momentum_buffer"}
            elif spec.optimizer == "sgd":
                expected = {"momentum_buffer"} if spec.momentum else set[str]()
            else:
                expected = {*_ADAM}
            if name.endswith(GAIN) and state.get(f"optimizer/{name}/{_VALUE}", np.empty(1)).shape != ():
                raise CheckpointError(f"the state lacks {name!r}, or it is not one number")
            left -= {f"optimizer/{name}/{_VALUE}"}
            slots = {key: state.get(f"optimizer/{name}/{key}") for key in expected}
            there = {key: array for key, array in slots.items() if array is not None}
            left -= {f"optimizer/{name}/{key}" for key in expected}
            if there and len(there) < len(expected):  # none at all: a weight that had no gradient
                missing = ", ".join(sorted(expected - set(there)))
                raise CheckpointError(f"the state of {spec.optimizer!r} lacks {missing} of {name!r}")
            for key, array in there.items():
                shape = () if key == "step" else tuple(parameter.shape)
                kind = torch.float32 if key == "step" else parameter.dtype
                if array.shape != shape or torch.as_tensor(array).dtype != kind:
                    raise CheckpointError(
                        f"optimizer/{name}/{key}: expected {kind} of shape {shape}, received {array.dtype} of shape "
                        f"{array.shape}"
                    )
        if left:
            raise CheckpointError(f"this state is no state of {spec.optimizer!r} in torch: {sorted(left)[0]!r}")

    def slots(self) -> dict[str, tuple[str, int]]:
        """Key of `state` -> (weight, 1 for a mean of gradients or 2 for one of their squares)."""
        degrees = {"exp_avg": 1, "exp_avg_sq": 2, "momentum_buffer": 1}
        names = list(self._parameters())
        return {f"optimizer/{name}/{key}": (name, degree) for name in names for key, degree in degrees.items()}

    def module(self) -> nn.Module:
        """See `Trainer.module`."""
        if not self.spec.caps:
            return self.net.eval()
        plain = copy.deepcopy(self.net)
        without(plain, list(self.spec.caps))
        return plain.eval()

    def sync(self) -> None:
        """See `Trainer.sync`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
