"""Layers of the graph as nn.Modules. Names in state_dict are the names of the weights."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import tn4nn._model.layers as layers
from tn4nn._base.checks import nearest
from tn4nn._base.errors import BackendError, ShapeError
from tn4nn._graph.network import Network
from tn4nn._graph.ordering import Ordering
from tn4nn._model.layers import OnNetwork
from tn4nn._planning.merge import merged
from tn4nn._planning.plan import Plan
from tn4nn._runtime.native import Native
from tn4nn.interop.engines import check_engine

from ._containers import (
    AttentionModule,
    BlockModule,
    MeanPoolModule,
    ParallelModule,
    PositionsModule,
    ResidualModule,
    TiedModule,
    TNBatchNorm,
    TNLayerNorm,
    TNRMSNorm,
    TokensModule,
)
from ._device import target
from ._memory import ordinary, require_all
from ._native import apply, apply_own, readable, readable_by_address, usable
from ._operator import can_be_operator, number_of, operator
from ._ops import autocast_dtype, own_result, saving_hooks
from ._runners import LayerRunners, Runners
from ._tuned import Runner, Tuned
from ._weight import NoParametrizations, Parameters, no_parameter

_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_compiling = torch.compiler.is_compiling
_Method = TypeVar("_Method", bound=Callable[..., Any])
_SHAPES = 64  # shapes of x that a layer remembers


def _untraced(method: _Method) -> _Method:
    """Runs a method while a model is traced, outside of the trace."""
    marked: _Method = torch.compiler.assume_constant_result(method)  # type: ignore[no-untyped-call]
    return marked


def dtype_of(name: str | torch.dtype | None) -> torch.dtype:
    """A torch dtype, from its name; None is torch's default."""
    if name is None:
        return torch.get_default_dtype()
    if isinstance(name, torch.dtype):
        return name
    if name not in _DTYPES:
        raise BackendError(f"unknown dtype {name!r}." + nearest(name, _DTYPES))
    return _DTYPES[name]


def fresh_seed() -> int:
    """A seed out of torch's generator, which torch.manual_seed governs: two calls give two."""
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def _numberless(device: str | torch.device | None) -> bool:
    """Whether tensors that are made now hold no numbers: those of the meta device, and of FakeTensorMode."""
    probe = torch.empty(0, device=device)
    return probe.is_meta or type(probe) is not Tensor


class _Planned(nn.Module):
    """A layer on a network: its cores as parameters, and plans found outside the hot path."""

    def __init__(
        self,
        layer: OnNetwork,
        weights: Mapping[str, NDArray[Any]] | None,
        seed: int | None,
        *,
        batch: int | None,
        phase: str,
        minimize: str,
        tune: bool,
        engine: str | None,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
        executor: str | Plan | None,
    ) -> None:
        super().__init__()
        self.__dict__["_parameters"] = Parameters()
        self.layer = layer
        self.network = layer.solid()
        self.phase, self.minimize, self.tune, self.engine = phase, minimize, tune, engine
        if engine is not None:
            check_engine(engine, layer, tune=tune)
        self._own_weights(weights, seed, {"dtype": dtype_of(dtype), "device": device})
        if "bias" not in self._parameters:
            self._register("bias", None)
        t = self.network.topology
        self._names = tuple(core.name for core in t.cores)
        self._shapes = [torch.Size(shape) for shape in self.network.shapes.values()]
        self._own: tuple[Tensor | None, ...] = ()  # cores whose shapes are right
        # Plain numbers, read once: the forward pass asks the graph nothing.
        self.in_features, self.out_features = t.in_features, t.out_features
        self._padding = math.prod(t.inputs.values()) - t.in_features
        self._surplus = math.prod(t.outputs.values()) - t.out_features
        self._dense = layer.is_dense
        self._runners = LayerRunners(
            layer, phase=phase, minimize=minimize, tune=tune, engine=engine, batch=batch, executor=executor
        )
        # Shapes and dtypes of x that need nothing but the native runtime.
        self._quick: dict[tuple[torch.Size, torch.dtype], Native] = {}
        self._tuned = Tuned()
        self._compiled: Any = None  # of the runners, where a trace finds them
        self._whole: Any = None
        self.remember_cores()
        if batch is not None and not tune:  # measuring waits for the first call
            self.runners.class_plan(batch)

    def _own_weights(self, weights: Mapping[str, NDArray[Any]] | None, seed: int | None, options: Any) -> None:
        """Makes the parameters of the layer, with given weights or with drawn ones."""
        if weights is not None:
            self.layer.check(weights)
        elif not _numberless(options["device"]):
            weights = self.layer.init(fresh_seed() if seed is None else seed)
        for name, spec in self.layer.specs().items():
            if weights is None:
                array = torch.empty(spec.shape, **options)
            else:  # a copy, so that training never writes into what it was given; in order, or every call would copy it
                array = torch.tensor(np.ascontiguousarray(weights[name]), **options).reshape(spec.shape)
            self._register(name, nn.Parameter(array))

    def _register(self, name: str, parameter: nn.Parameter | None) -> None:
        """Makes a parameter of the layer: by `register_parameter`, which accelerate's init_empty_weights replaces, but
        where it refuses the name of a core."""
        if "." in name or name in self.__dict__ or hasattr(type(self), name):
            self._parameters[name] = parameter
        else:
            self.register_parameter(name, parameter)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As of any module; but `weight_orig`, which pruning `weight` would bring, is an error that says what to do."""
        if name == "weight_orig" and "weight" not in self._parameters:
            raise no_parameter(self._parameters)
        super().register_parameter(name, param)

    @property
    def parametrizations(self) -> Any:
        """Those of torch.nn.utils.parametrize; where there are none, an empty dictionary that refuses `weight`."""
        found = self._modules.get("parametrizations")
        return NoParametrizations(self._parameters) if found is None else found

    def reset_parameters(self) -> None:
        """Draws the weights anew from torch's generator, the bias zero, as for a new layer: for code that builds a
        model on the meta device and calls this after `to_empty`.

        Examples:
            >>> import torch, tn4nn as tn
            >>> from tn4nn_torch import TNLinear
            >>> layer = TNLinear(tn.mpo((4, 4), (4, 4)).with_rank(3), device="meta").to_empty(device="cpu")
            >>> layer.reset_parameters()
            >>> bool(layer(torch.ones(2, 16)).isfinite().all())
            True
        """
        own = [(name, p) for name, p in self._parameters.items() if p is not None]
        if any(p.is_meta or not ordinary(p) for _, p in own):
            return  # there are no numbers to draw
        drawn = self.layer.init(fresh_seed())
        with torch.no_grad():
            for name, p in own:
                p.copy_(torch.from_numpy(drawn[name]).reshape(p.shape))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What .to(), .cuda(), .double() and the like go through: another device has other costs."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.remember_cores()
        self._quick.clear()
        self._tuned = Tuned()
        self._runners.refresh()
        return self

    @property
    def runners(self) -> Runners:
        """What runs where the cores are now."""
        return self._runners.at(self.cores()[0])

    def plan(self, rows: int) -> Plan:
        """The plan by which so many rows run (eager, on plain tensors), and what they cost; `print` shows it.

        It is found now where no such rows have come yet. Under torch.compile, torch.func, autocast and in traces, where
        the single operations have to be seen, the same rows run by array programs.

        Args:
            rows: of x: the product of all axes but the last; of an embedding, tokens; of a convolution, positions of
                its output (images x height' x width').

        Examples:
            >>> import tn4nn as tn
            >>> from tn4nn_torch import TNLinear
            >>> p = TNLinear(tn.low_rank(64, 64).with_rank(4)).plan(32)
            >>> p.batch, p.cost.macs == 3 * 32 * 4 * 128
            (32, True)
        """
        found = self.runners.plan(rows)
        chosen = self._tuned.known(rows)
        return found if chosen is None else dataclasses.replace(found, executor=chosen)

    def replan(self) -> None:
        """Forgets what was planned and measured: the next call asks anew, after `tn4nn.calibrate` for instance."""
        self._runners.forget()
        self._quick.clear()
        self._tuned = Tuned()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the cores, in the network's order."""
        return self._names

    def cores(self) -> list[Tensor]:
        """The cores, in the program's order.

        Raises:
            ShapeError: a core given by functional_call has another shape than the layer's own.
        """
        parameters: Any = self._parameters
        try:
            found: list[Tensor] = [parameters[name] for name in self._names]
        except KeyError:  # a parametrization or pruning makes it out of others
            found = [getattr(self, name) for name in self._names]
        if _compiling() or any(core is not own for core, own in zip(found, self._own, strict=True)):
            for name, core, shape in zip(self._names, found, self._shapes, strict=True):
                if core.shape != shape:
                    raise ShapeError(
                        f"{self.layer.describe()}: core {name!r}: expected shape {tuple(shape)}, received "
                        f"{tuple(core.shape)}"
                    )
        return found

    def remember_cores(self) -> None:
        """Remembers the cores that it has now as its own, if they can be read by address."""
        cores = (self._parameters.get(name) for name in self._names)
        self._own = tuple(core if core is not None and readable_by_address((core,), None) else None for core in cores)

    def __getstate__(self) -> dict[str, Any]:
        # Another thread may call the layer meanwhile: what is found by calling is found anew by a copy.
        return {**self.__dict__, "_quick": {}, "_tuned": Tuned(), "_compiled": None, "_whole": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.remember_cores()  # a copy has cores of its own

    @property
    def bias_or_none(self) -> Tensor | None:
        """The bias, where there is one."""
        parameters = self._parameters
        return parameters["bias"] if "bias" in parameters else getattr(self, "bias", None)

    def checked(self, x: Tensor) -> Tensor:
        """x, or an error that says what is wrong with it."""
        core = self.cores()[0]
        if not (x.is_floating_point() or x.is_complex()):
            raise ShapeError(
                f"{self.layer.describe()} takes floating-point inputs, received {x.dtype}: "
                "convert them, or use TNEmbedding"
            )
        if x.device != core.device:
            raise ShapeError(
                f"{self.layer.describe()}: the weights are on {core.device}, the input is on {x.device}: "
                "move one of them with .to()"
            )
        if x.dtype != core.dtype and autocast_dtype(x.device.type) is None:
            raise ShapeError(
                f"{self.layer.describe()}: the weights are {core.dtype}, the input is {x.dtype}: "
                "convert one of them with .to()"
            )
        if not _compiling():
            require_all("x", (x,))
        return x

    def apply_to(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(..., in_features) -> (..., out_features), with a bias of any dtype added.

        What is saved for the backward pass does not depend on earlier calls: torch.utils.checkpoint compares it.
        """
        if self._dense:
            w = self.dense_weight()
            return F.linear(x, w, None if bias is None else bias.to(w.dtype))
        cores = self.cores()
        padded = F.pad(x, (0, self._padding)) if self._padding else x
        if _compiling() and can_be_operator(padded, cores, bias):
            number = self._number()
            if number:
                fused = None if self._surplus else bias
                y = operator(padded, cores, fused, number)
                y = y[..., : self.out_features] if self._surplus else y
                return y if bias is None or fused is not None else y + bias
        native = None
        if usable(padded) and readable_by_address(cores, bias):
            native = self._runners.at(cores[0]).native(padded.numel() // padded.shape[-1])
        if native is None:
            rows = padded.reshape(-1, padded.shape[-1])
            y = self._contracted(rows, cores)
            y = y.reshape(*x.shape[:-1], y.shape[-1])
        elif self._surplus:
            y = apply(native, cores, padded, None, self.run_program)
        else:  # the kernel adds the bias while y is in a cache
            if not self._padding:
                self._remember(x, native)
            return apply(native, cores, padded, None if bias is None else bias.to(x.dtype), self.run_program)
        if self._surplus:
            y = y[..., : self.out_features]
        if bias is None:
            return own_result(y)
        if not _compiling():
            require_all("bias", (bias,))
        return y + bias.to(y.dtype)  # of 16 bits under autocast

    def _contracted(self, rows: Tensor, cores: Sequence[Tensor]) -> Tensor:
        """(rows, product of the input modes) -> (rows, product of the output modes), in torch's own operations."""
        # What runs on a GPU is measured at the second call, and that of torch.utils.checkpoint must be as the first.
        tuned = self._tune(rows, cores) if self.tune and not saving_hooks() else None
        return self.run_program(rows, cores) if tuned is None else tuned(cores, rows)

    def _remember(self, x: Tensor, native: Native) -> None:
        """The next x of this shape needs nothing but the native runtime."""
        if len(self._quick) < _SHAPES:
            self._quick[x.shape, x.dtype] = native

    def _tune(self, rows: Tensor, cores: Sequence[Tensor]) -> Runner | None:
        features = self.in_features + self._padding + self.out_features + self._surplus
        return self._tuned.runner(self._runners.at(cores[0]), features, rows, cores, self.run_program)

    def run_program(self, rows: Tensor, cores: Sequence[Tensor]) -> Tensor:
        """The layer in torch's own operations (or by another library), padded modes and all."""
        y: Tensor = self.run_steps(rows.shape[0], [*cores, rows])
        return y

    def run_steps(self, rows: int, arrays: Sequence[Tensor]) -> Tensor:
        """The array program for that many rows, on its inputs."""
        if _compiling():  # nothing can be planned while a model is traced, so it happens beside the trace
            self._prepare()
            compiled: Any = self._compiled
            traced: Tensor = compiled(arrays)
            return traced
        y: Tensor = self._runners.at(self.cores()[0]).program(rows)(arrays)
        return y

    @_untraced
    def _number(self) -> int:
        return number_of(self._runners) if self._runners.engine is None else 0

    @_untraced
    def _prepare(self) -> bool:
        runners = self.runners
        runners.prepare()
        self._compiled = runners.compiled
        return True

    @_untraced
    def _prepare_whole(self) -> bool:
        runners = self.runners
        runners.prepare_whole()
        self._whole = runners.whole
        return True

    def dense_weight(self) -> Tensor:
        """W where it is the only core."""
        w: Tensor = self.layer.matrix(self.cores()[0])
        return w

    def to_dense(self) -> Tensor:
        """W of shape (out_features, in_features), differentiable."""
        t = self.network.topology
        if t.kept:  # block diagonal: the network maps the identity
            core = self.cores()[0]
            return self.apply_to(torch.eye(t.in_features, dtype=core.dtype, device=core.device)).T
        self._prepare_whole()
        whole: Any = self._whole
        w: Tensor = whole(self.cores())
        return w[: t.out_features, : t.in_features]

    @property
    def weight(self) -> Tensor:
        """The weight of the dense layer that this one replaces, for code that reads `layer.weight`: computed at each
        access, differentiable; writing to it changes nothing."""
        return self.to_dense()

    def extra_repr(self) -> str:
        """What print shows between the brackets."""
        return self.layer.describe()


class TNLinear(_Planned):
    """y = x W^T + b with W on a network, in place of nn.Linear.

    Input shape: (..., in_features). Output shape: (..., out_features).

    Args:
        network: of W.
        bias: whether b is there.
        ordering: an Ordering, its name, or a permutation of the input neurons.
        weights: core name -> array, and "bias"; left out, they are drawn from `seed`.
        seed: of the initial weights; left out, one is drawn from torch's generator (torch.manual_seed), so that two
            layers differ.
        batch: plan for this batch now and keep to it; left out, for each size class when it comes.
        phase: "train" or "forward": what plans are cheap for.
        minimize: "time", "flops" or "memory".
        tune: on the CPU, measure the best few plans at the first call of a size and keep the fastest; on a GPU,
            measure two plans, each in single operations and as captured CUDA graphs, at the second call of a size.
        engine: "quimb" or "tensornetwork", to let that library contract, for comparison.
        device: torch device.
        dtype: torch dtype or its name; left out, torch's default.
        executor: "native" or "program": only that may run; or a plan (e.g. of `tn.plan` under a memory cap), by which
            all rows run. Left out, the fastest that there is.

    Raises:
        ShapeError: an input of the wrong shape, dtype or device.

    Examples:
        >>> import torch, tn4nn as tn
        >>> from tn4nn_torch import TNLinear
        >>> layer = TNLinear(tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4))
        >>> layer(torch.zeros(2, 784)).shape
        torch.Size([2, 256])
    """

    def __init__(
        self,
        network: Network | layers.Linear,
        bias: bool = True,
        ordering: Ordering | str | None = None,
        *,
        weights: Mapping[str, NDArray[Any]] | None = None,
        seed: int | None = None,
        batch: int | None = None,
        phase: str = "train",
        minimize: str = "time",
        tune: bool = False,
        engine: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        executor: str | Plan | None = None,
    ) -> None:
        layer = network if isinstance(network, layers.Linear) else layers.Linear(network, None, bias, ordering)
        super().__init__(
            layer, weights, seed, batch=batch, phase=phase, minimize=minimize, tune=tune, engine=engine, device=device,
            dtype=dtype, executor=executor,
        )  # fmt: skip
        self._permutation = None if layer.ordering is None else np.asarray(layer.ordering.permutation)
        self.register_buffer("_order", None, persistent=False)
        self._place_order()
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]

    def _place_order(self) -> None:
        """The ordering where the cores are. No state_dict holds it, so what brings only cores cannot bring it along."""
        if self._permutation is not None:
            self._order = torch.tensor(self._permutation, device=self.cores()[0].device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._place_order()
        return self

    @property
    def weight(self) -> Tensor:
        """W of shape (out_features, in_features), for inputs in their own order."""
        w, order = self.to_dense(), self._buffers["_order"]
        return w if order is None else w[:, torch.argsort(order)]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name in the layer that this one replaces)
        """(..., in_features) -> (..., out_features)."""
        x = input
        quick = None if _compiling() else self._quick.get((x.shape, x.dtype))
        if quick is not None and self._buffers["_order"] is None:
            parameters: Any = self._parameters
            y = apply_own(quick, x, parameters, self._names, self._own, self.run_program)
            if y is not None:
                return y
        if not isinstance(x, Tensor):
            raise ShapeError(f"{self.layer.describe()} takes a tensor, received {type(x).__name__}")
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            self.layer.out_shape(tuple(x.shape))
        self.checked(x)
        order = self._buffers["_order"]
        return self.apply_to(x if order is None else x[..., order], self.bias_or_none)

    def merge(self, batch: int = 1) -> TNLinear:
        """A copy for inference: cores contracted ahead as far as it pays at this batch, no gradients.

        At a large batch this may be the dense matrix. The layer itself stays as it is.

        Args:
            batch: rows that come at a time.

        Examples:
            >>> from tn4nn_torch import TNLinear
            >>> import torch, tn4nn as tn
            >>> layer = TNLinear(tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4))
            >>> frozen, x = layer.merge(batch=32), torch.ones(32, 784)
            >>> torch.allclose(frozen(x), layer(x), atol=1e-5)
            True
        """

        def array(t: Tensor) -> NDArray[Any]:
            numbers: NDArray[Any] = t.detach().cpu().double().numpy()
            return numbers

        cores = {name: array(core) for name, core in zip(self._names, self.cores(), strict=True)}
        where, dtype = self.cores()[0].device, self.cores()[0].dtype
        network, weights = merged(self.network, cores, batch, target(where, dtype))
        bias = self.bias_or_none
        layer = layers.Linear(network, bias=bias is not None, ordering=getattr(self.layer, "ordering", None))
        if bias is not None:
            weights["bias"] = array(bias)
        options: Any = {"engine": self.engine, "device": where, "dtype": dtype}
        result = TNLinear(layer, weights=weights, batch=batch, phase="forward", **options)
        return result.requires_grad_(False)


def _loaded(layer: Any, _: Any) -> None:
    """load_state_dict(assign=True) may bring cores of another device."""
    layer._place_order()


class TNConv2d(_Planned):
    """A 2-D convolution whose kernel matrix is a network, in place of nn.Conv2d.

    Input shape: (batch, channels, height, width). Output shape: (batch, out_channels, height', width').

    Args:
        layer: a tn4nn.Conv2d, or a Network with in_features = channels * kh * kw.
        kernel: (kh, kw) or one number, where a Network is given.
        stride: of the window.
        padding: zeros around the image.
        bias: whether b is there.
        weights: core name -> array, and "bias"; left out, they are drawn from `seed`.
        seed: of the initial weights; left out, one is drawn from torch's generator (torch.manual_seed), so that two
            layers differ.
        phase: "train" or "forward": what plans are cheap for.
        minimize: "time", "flops" or "memory".
        tune: on the CPU, measure the best few plans at the first call of a size and keep the fastest; on a GPU,
            measure two plans, each in single operations and as captured CUDA graphs, at the second call of a size.
        engine: "quimb" or "tensornetwork", to let that library contract, for comparison.
        device: torch device.
        dtype: torch dtype or its name; left out, torch's default.
        executor: "native" or "program": only that may run; or a plan (e.g. of `tn.plan` under a memory cap), by which
            all rows run. Left out, the fastest that there is.

    Examples:
        >>> import torch, tn4nn as tn
        >>> from tn4nn_torch import TNConv2d
        >>> conv = TNConv2d(tn.mpo((8, 9), (4, 4)).with_rank(3), kernel=3, padding=1)
        >>> conv(torch.zeros(2, 8, 10, 10)).shape
        torch.Size([2, 16, 10, 10])
    """

    def __init__(
        self,
        layer: layers.Conv2d | Network,
        kernel: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        *,
        weights: Mapping[str, NDArray[Any]] | None = None,
        seed: int | None = None,
        phase: str = "train",
        minimize: str = "time",
        tune: bool = False,
        engine: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        executor: str | Plan | None = None,
    ) -> None:
        if not isinstance(layer, layers.Conv2d):
            layer = layers.Conv2d(layer, None, kernel, stride, padding, bias)
        super().__init__(
            layer, weights, seed, batch=None, phase=phase, minimize=minimize, tune=tune, engine=engine, device=device,
            dtype=dtype, executor=executor,
        )  # fmt: skip
        self.conv = layer

    @property
    def weight(self) -> Tensor:
        """The kernel, of shape (out_channels, channels, kh, kw)."""
        return self.to_dense().reshape(self.out_features, self.conv.in_channels, *self.conv.kernel)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name in the layer that this one replaces)
        """(batch, channels, height, width) -> (batch, out_channels, height', width')."""
        x = input
        if x.dim() != 4:
            raise ShapeError(
                f"{self.conv.describe()}: expected (batch, channels, height, width), received {tuple(x.shape)}"
            )
        height, width = self.conv.out_shape(tuple(x.shape[1:]))[1:]
        conv, bias = self.conv, self.bias_or_none
        self.checked(x)
        if self._dense or self._by_kernel(x.shape[0] * height * width):
            w = self.dense_weight() if self._dense else self.to_dense()
            kernel = w.reshape(self.out_features, conv.in_channels, *conv.kernel)
            return F.conv2d(x, kernel, bias, conv.stride, conv.padding)
        columns = F.unfold(x, conv.kernel, padding=conv.padding, stride=conv.stride)  # (batch, C kh kw, places)
        y = self.apply_to(columns.transpose(1, 2).reshape(-1, self.in_features), bias)
        places = y.reshape(x.shape[0], height * width, self.out_features)
        return places.transpose(1, 2).reshape(x.shape[0], self.out_features, height, width)

    def _by_kernel(self, positions: int) -> bool:
        """Whether W is built and torch's own convolution runs with it; compiled and exported models do where they can,
        since nothing is planned while they are traced."""
        if _compiling():
            return not self.network.topology.kept
        return self.runners.class_plan(positions).form == "kernel"


class TNEmbedding(_Planned):
    """Row lookup in a table that is a network, in place of nn.Embedding.

    Input shape: (...), integers from 0 to tokens - 1. Output shape: (..., dimensions). On an accelerator an
    index out of range is an error of the device, as it is for nn.Embedding.

    Args:
        layer: a tn4nn.Embedding, or a Network with in_features = tokens.
        padding_idx: a token that gives no gradient, as in nn.Embedding; negative counts from the end. Its row is not
            kept at zero: it moves with the others, whose cores it shares.
        weights: core name -> array; left out, they are drawn from `seed`.
        seed: of the initial weights; left out, one is drawn from torch's generator (torch.manual_seed), so that two
            layers differ.
        phase: "train" or "forward": what plans are cheap for.
        minimize: "time", "flops" or "memory".
        tune: on the CPU, measure the best few plans at the first call of a size and keep the fastest; on a GPU,
            measure two plans, each in single operations and as captured CUDA graphs, at the second call of a size.
        engine: "quimb" or "tensornetwork", to let that library contract, for comparison.
        device: torch device.
        dtype: torch dtype or its name; left out, torch's default.
        executor: "native" or "program": only that may run; or a plan (e.g. of `tn.plan` under a memory cap), by which
            all rows run. Left out, the fastest that there is.

    Examples:
        >>> import torch, tn4nn as tn
        >>> from tn4nn_torch import TNEmbedding
        >>> table = TNEmbedding(tn.build("mpo", 1000, 64, sites=3).with_rank(4))
        >>> table(torch.tensor([[0, 999]])).shape
        torch.Size([1, 2, 64])
    """

    def __init__(
        self,
        layer: layers.Embedding | Network,
        *,
        padding_idx: int | None = None,
        weights: Mapping[str, NDArray[Any]] | None = None,
        seed: int | None = None,
        batch: int | None = None,
        phase: str = "train",
        minimize: str = "time",
        tune: bool = False,
        engine: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        executor: str | Plan | None = None,
    ) -> None:
        if not isinstance(layer, layers.Embedding):
            layer = layers.Embedding(layer)
        super().__init__(
            layer, weights, seed, batch=batch, phase=phase, minimize=minimize, tune=tune, engine=engine, device=device,
            dtype=dtype, executor=executor,
        )  # fmt: skip
        tokens = self.in_features
        if padding_idx is not None and not -tokens <= padding_idx < tokens:
            raise ShapeError(f"padding_idx must be a token, from {-tokens} to {tokens - 1}, received {padding_idx}")
        self.padding_idx = None if padding_idx is None else padding_idx % tokens

    @property
    def weight(self) -> Tensor:
        """The table, of shape (tokens, dimensions)."""
        return self.to_dense().T

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (nn.Embedding's name)
        """(...) integers -> (..., dimensions)."""
        x = input
        t = self.network.topology
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise ShapeError(f"{self.layer.describe()} takes integers, received {x.dtype}")
        tokens = x.reshape(-1).long()
        if readable(tokens) and tokens.numel():
            low, high = (int(n) for n in torch.aminmax(tokens))
            if low < 0 or high >= t.in_features:
                raise ShapeError(
                    f"{self.layer.describe()}: expected tokens from 0 to {t.in_features - 1}, received {low}..{high}"
                )
        elif self._padding:  # no row of the padding may pass for a token's
            tokens = torch.where(tokens < t.in_features, tokens, t.in_features + self._padding)
        if self._dense:
            y = F.embedding(tokens, self.dense_weight().T)
        else:
            picked = [self._pick(core, legs.legs, tokens) for core, legs in zip(self.cores(), t.cores, strict=True)]
            y = self.run_steps(tokens.shape[0], picked)[:, : t.out_features]
        if self.padding_idx is not None:
            y = torch.where((tokens == self.padding_idx)[:, None], y.detach(), y)
        return own_result(y.reshape(*x.shape, t.out_features))

    def _pick(self, core: Tensor, legs: tuple[str, ...], tokens: Tensor) -> Tensor:
        """The rows of one core that the tokens choose: (tokens, remaining legs...)."""
        t = self.network.topology
        axes = [i for i, leg in enumerate(legs) if leg in t.inputs]
        if not axes:
            return core
        rest = [i for i in range(len(legs)) if i not in axes]
        index = torch.zeros_like(tokens)
        for axis in axes:
            index = index * t.inputs[legs[axis]] + digit(tokens, t.inputs, legs[axis])
        # Lists, since torch.compile does not take generators here.
        table = core.permute(*axes, *rest).reshape(math.prod([core.shape[i] for i in axes]), -1)
        return F.embedding(index, table).reshape(-1, *[core.shape[i] for i in rest])


def digit(tokens: Any, inputs: Mapping[str, int], leg: str) -> Any:
    """The digit of one leg in the big-endian mixed-radix number of each token.

    The first leg's digit is not wrapped round, so that a token out of range stays out of range.
    """
    names = list(inputs)
    position = names.index(leg)
    quotient = tokens // math.prod([inputs[name] for name in names[position + 1 :]])
    return quotient if position == 0 else quotient % inputs[leg]


class TiedHead(_Planned):
    """y = x E^T for the table E of an embedding: its network with inputs and outputs exchanged, on its own cores.

    Args:
        layer: both ends and what is between them.
        table: whose cores they are.
        options: of the embedding.
    """

    def __init__(self, layer: layers.Tied, table: TNEmbedding, **options: Any) -> None:
        self.__dict__["_table"] = (table,)  # no child of this module: its cores have one name
        super().__init__(layer.head, None, None, executor=None, **options)

    def _own_weights(self, weights: Mapping[str, NDArray[Any]] | None, seed: int | None, options: Any) -> None:
        """None."""

    def cores(self) -> list[Tensor]:
        """Those of the table."""
        table: TNEmbedding = self.__dict__["_table"][0]
        return table.cores()

    def reset_parameters(self) -> None:
        """Nothing: the table draws them."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., tokens)."""
        return self.apply_to(self.checked(x))


def plans(model: nn.Module, rows: int) -> dict[str, Plan]:
    """The plan by which each layer of a model runs so many rows, by the layer's name; see `TNLinear.plan`.

    Args:
        model: an nn.Module with TNLinear, TNConv2d or TNEmbedding in it, or one of these.
        rows: that each layer sees: of a linear layer rows, of an embedding tokens, of a convolution positions.

    Examples:
        >>> import tn4nn as tn, tn4nn_torch
        >>> model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(2)), tn.ReLU(), tn.Linear(16, 2))
        >>> sorted(tn4nn_torch.plans(model.build("torch", seed=0), 64))
        ['0', '2']
    """
    return {name: layer.plan(rows) for name, layer in model.named_modules() if isinstance(layer, _Planned)}


_PLAIN: dict[type[layers.Layer], Callable[[Any], nn.Module]] = {
    layers.ReLU: lambda _: nn.ReLU(),
    layers.GELU: lambda _: nn.GELU(),
    layers.Tanh: lambda _: nn.Tanh(),
    layers.Sigmoid: lambda _: nn.Sigmoid(),
    layers.SiLU: lambda _: nn.SiLU(),
    layers.Flatten: lambda _: nn.Flatten(),
    # A sample may have any axes, as in the other backends; torch's own takes one that is flat.
    layers.Unflatten: lambda layer: nn.Sequential(nn.Flatten(), nn.Unflatten(1, layer.shape)),
    layers.MaxPool: lambda layer: nn.MaxPool2d(*layer.window),
    layers.AvgPool: lambda layer: nn.AvgPool2d(*layer.window),
    layers.Dropout: lambda layer: nn.Dropout(layer.rate),
    layers.Tokens: lambda _: TokensModule(),
    layers.MeanPool: lambda _: MeanPoolModule(),
}


def to_module(
    model: layers.Layer,
    weights: Mapping[str, NDArray[Any]],
    *,
    batch: int | None = None,
    phase: str = "train",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    minimize: str = "time",
    tune: bool = False,
    engine: str | None = None,
) -> nn.Module:
    """A model of the layer graph as an nn.Module. The weights are copied.

    Args:
        model: with ranks on every network.
        weights: name -> array, as `model.init` gives them.
        batch: rows that plans are made for; left out, those that come.
        phase: "train" or "forward": what plans are cheap for.
        device: e.g. "cpu" or "cuda"; left out, torch's default.
        dtype: e.g. "float32" or torch.bfloat16; left out, torch's default.
        minimize: "time", "flops" or "memory".
        tune: measures the best plans and takes the fastest.
        engine: "quimb" or "tensornetwork", which then contracts in tn4nn's place.

    Raises:
        ShapeError: weights of another model.
        TopologyError: a network without ranks.
        BackendError: an unknown dtype or engine.

    Examples:
        >>> from tn4nn_torch import to_module
        >>> import torch, tn4nn as tn
        >>> model = tn.Sequential(tn.Linear(tn.ring((4, 4), (2, 2)).with_rank(2)), tn.ReLU(), tn.Linear(4, 2))
        >>> module = to_module(model, model.init(0))
        >>> sorted(module.state_dict()) == sorted(model.init(0))
        True
    """

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.tensor(np.asarray(array), dtype=dtype_of(dtype), device=device)

    def built(layer: layers.Layer, prefix: str) -> nn.Module:
        own = {spec.name: weights[prefix + spec.name] for spec in layer.own_specs()}
        children = [(name, built(child, f"{prefix}{name}.")) for name, child in layer.children()]
        common: Any = {
            "weights": own, "phase": phase, "minimize": minimize, "tune": tune, "engine": engine, "device": device,
            "dtype": dtype,
        }  # fmt: skip
        if type(layer) in _PLAIN:
            return _PLAIN[type(layer)](layer)
        match layer:
            case layers.Linear():
                return TNLinear(layer, batch=batch, **common)
            case layers.Conv2d():
                return TNConv2d(layer, **common)
            case layers.Embedding():
                return TNEmbedding(layer, batch=batch, **common)
            case layers.BatchNorm():
                return TNBatchNorm(layer, {name: tensor(a) for name, a in own.items()})
            case layers.LayerNorm():
                return TNLayerNorm(layer, {name: tensor(a) for name, a in own.items()})
            case layers.Sequential():
                return nn.Sequential(OrderedDict(children))
            case layers.RMSNorm():
                return TNRMSNorm(layer, {name: tensor(a) for name, a in own.items()})
            case layers.Residual():
                return ResidualModule(children)
            case layers.Parallel():
                return ParallelModule(children, layer.combine)
            case layers.Attention():
                return AttentionModule(layer, children)
            case layers.Positions():
                return PositionsModule(layer, children)
            case layers.Block():
                return BlockModule(children)
            case layers.Tied():
                (_, table), (_, body) = children
                assert isinstance(table, TNEmbedding)
                options = {name: option for name, option in common.items() if name != "weights"}
                return TiedModule(layer, table, body, TiedHead(layer, table, batch=batch, **options))
        raise BackendError(f"the torch backend does not know the layer {type(layer).__name__}")

    model.check(weights)
    return built(model, "")
