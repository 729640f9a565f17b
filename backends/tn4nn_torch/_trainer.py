"""Training with torch.optim."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import tn4nn._model.layers as layers
from tn4nn._model.backend import TrainSpec

from ._modules import to_module

_CHUNK = 1024  # rows of one evaluation call


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
        self.optimizer = self._optimizer(dict(self.net.named_parameters()))

    def _optimizer(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        spec = self.spec
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            key = (spec.lr_factors.get(name, 1.0), spec.decay.get(name, 0.0))
            groups.setdefault(key, []).append(parameter)
        self.factors = [factor for factor, _ in groups]
        options: list[dict[str, Any]] = [{"params": g, "weight_decay": key[1]} for key, g in groups.items()]
        if spec.optimizer == "sgd":
            return torch.optim.SGD(options, lr=1.0, momentum=spec.momentum, nesterov=spec.nesterov)
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
            out = self.net(x)
        out = out.to(self.dtype)
        if self.spec.loss == "cross_entropy":
            return F.cross_entropy(out, y, reduction=reduction), out
        return F.mse_loss(out, y, reduction=reduction), out

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
        for start in range(0, len(x), _CHUNK):
            part = slice(start, start + _CHUNK)
            loss, out = self._loss(x[part], y[part], "sum")
            total += loss
            if self.spec.loss == "cross_entropy":
                right += (out.argmax(-1) == y[part]).sum()
        outputs = 1 if self.spec.loss == "cross_entropy" else max(1, y[:1].numel())
        accuracy = 100 * float(right) / len(x) if self.spec.loss == "cross_entropy" else float("nan")
        return float(total) / (len(x) * outputs), accuracy

    def read(self, losses: Tensor) -> NDArray[np.float64]:
        """See `Trainer.read`."""
        return losses.double().cpu().numpy()

    def weights(self) -> dict[str, NDArray[Any]]:
        """See `Trainer.weights`."""
        state = self.net.state_dict()
        return {name: state[name].detach().cpu().numpy().copy() for name in self.names}

    def state(self) -> dict[str, NDArray[Any]]:
        """See `Trainer.state`."""
        found = {f"weights/{name}": array for name, array in self.weights().items()}
        for name, parameter in self.net.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:  # SGD without momentum has an empty entry
                    found[f"optimizer/{name}/{key}"] = torch.as_tensor(value).detach().cpu().numpy().copy()
        return found

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Trainer.load`."""
        weights = {name: torch.tensor(state[f"weights/{name}"]) for name in self.names}
        self.net.load_state_dict(weights)
        for name, parameter in self.net.named_parameters():
            prefix = f"optimizer/{name}/"
            slots: dict[str, Any] = {}
            for key, array in state.items():
                if key.startswith(prefix):
                    slot = key[len(prefix) :]
                    # Adam counts its steps on the host.
                    place = torch.device("cpu") if slot == "step" else self.device
                    slots[slot] = torch.tensor(array, device=place)
            if slots:
                self.optimizer.state[parameter] = slots

    def slots(self) -> dict[str, tuple[str, int]]:
        """Key of `state` -> (weight, 1 for a mean of gradients or 2 for one of their squares)."""
        degrees = {"exp_avg": 1, "exp_avg_sq": 2, "momentum_buffer": 1}
        names = [name for name, _ in self.net.named_parameters()]
        return {f"optimizer/{name}/{key}": (name, degree) for name in names for key, degree in degrees.items()}

    def module(self) -> nn.Module:
        """See `Trainer.module`."""
        return self.net.eval()

    def sync(self) -> None:
        """See `Trainer.sync`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
