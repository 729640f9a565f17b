"""The torch backend, as tn4nn finds it by its entry point."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import tn4nn._model.layers as layers
from tn4nn._base.errors import BackendError
from tn4nn._model.backend import Place, TrainSpec
from tn4nn._runtime.target import Target

from ._calls import build_extension
from ._device import processes, target
from ._einsum import TorchEinsums
from ._foreign import TorchModules, beside
from ._modules import dtype_of, fresh_seed, to_module
from ._place import place
from ._trainer import TorchTrainer


def checked_device(name: str | None) -> torch.device:
    """A torch device that is there, or an error that says what is."""
    try:
        device = torch.device(name or "cpu")
    except RuntimeError as error:
        raise BackendError(f"torch knows no device {name!r}: expected 'cpu', 'cuda' or 'cuda:0'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"torch sees no CUDA device here, received device={name!r}: use device='cpu'")
    return device


def to_host(tensor: Tensor) -> NDArray[Any]:
    """A copy on the host; 16-bit floats come as float32, which holds them exactly (numpy has no bfloat16)."""
    host = tensor.detach().cpu()
    return (host.float() if host.is_floating_point() and host.itemsize == 2 else host).numpy().copy()


class TorchBackend:
    """Builds, runs and trains models in torch: what `tn.backend("torch")` gives.

    Its methods are those of every backend; `model.build("torch")` and `tn.train(..., backend="torch")` call them for
    you.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> layer = tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2))
        >>> backend = tn.backend("torch")
        >>> module = backend.build(layer, layer.init(0))
        >>> backend.forward(module, np.ones((3, 16), np.float32)).shape, sorted(backend.weights(module))
        ((3, 4), ['bias', 'core0', 'core1'])
    """

    name = "torch"
    foreign = TorchModules()
    einsums = TorchEinsums()

    def build(
        self,
        model: layers.Layer,
        weights: Mapping[str, NDArray[Any]],
        *,
        batch: int | None = None,
        phase: str = "train",
        device: str | None = None,
        dtype: str = "float32",
        minimize: str = "time",
        tune: bool = False,
        engine: str | None = None,
    ) -> nn.Module:
        """See `Backend.build`."""
        where = checked_device(device)
        options: dict[str, Any] = {"dtype": dtype, "minimize": minimize, "tune": tune, "engine": engine}
        return to_module(model, weights, batch=batch, phase=phase, device=where, **options)

    def build_extension(self) -> Path:
        """Compiles the extension through which calls of small layers are faster; see `tn4nn_torch.build_extension`."""
        return build_extension()

    def fresh_seed(self) -> int:
        """Of weights for which no seed is given, out of torch's generator; see `Backend`."""
        return fresh_seed()

    def default_dtype(self) -> str:
        """torch's; see `Backend`."""
        return str(torch.get_default_dtype()).removeprefix("torch.")

    def forward(self, module: nn.Module, x: NDArray[Any]) -> NDArray[Any]:
        """See `Backend.forward`."""
        with torch.no_grad():
            result: Tensor = module.eval()(beside(module, x))
        return to_host(result)

    def gradients(
        self, module: nn.Module, x: NDArray[Any], gy: NDArray[Any]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None]:
        """See `Backend.gradients`."""
        value = beside(module, x)
        if value.is_floating_point():
            value.requires_grad_(True)
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        wanted = [*named.values(), *([value] if value.requires_grad else [])]
        y: Tensor = module.eval()(value)
        found = torch.autograd.grad(y, wanted, beside(module, gy), allow_unused=True)
        # A gradient that torch leaves out is zero (0 rows, for instance).
        filled = [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]
        gx = to_host(filled[-1]) if value.requires_grad else None
        return {name: to_host(g) for name, g in zip(named, filled, strict=False)}, gx

    def weights(self, module: nn.Module) -> dict[str, NDArray[Any]]:
        """See `Backend.weights`."""
        return {name: to_host(t) for name, t in module.state_dict().items()}

    def trainer(self, model: layers.Layer, weights: Mapping[str, NDArray[Any]], spec: TrainSpec) -> TorchTrainer:
        """See `Backend.trainer`."""
        checked_device(spec.device)
        return TorchTrainer(model, weights, spec)

    def processes(self) -> int:
        """How many processes this one is one of: of its group, or by `torchrun` before there is one."""
        return processes()

    def target(self, device: str | None, dtype: str) -> Target:
        """Where layers run plans, for `tn4nn.plan`."""
        return target(checked_device(device), dtype_of(dtype))

    def place(self, device: str | None, dtype: str) -> Place:
        """Where programs run, for `tn4nn.calibrate`."""
        return place(checked_device(device), dtype_of(dtype))

    def versions(self) -> dict[str, str]:
        """torch's version, and its threads."""
        return {"torch": str(torch.__version__), "torch_threads": str(torch.get_num_threads())}
