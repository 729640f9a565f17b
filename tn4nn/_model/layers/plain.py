"""The layers beside those on a network: activations, shapes, pools, dropout and norms."""

from __future__ import annotations

import dataclasses
import math

from ..._base.errors import ShapeError
from .base import Layer, Spec
from .shapes import Shape, pair, windows


@dataclasses.dataclass(frozen=True)
class ReLU(Layer):
    """max(x, 0), entry by entry.

    Examples:
        >>> import tn4nn as tn
        >>> tn.ReLU().build("numpy")([[-1.0, 2.0]])
        array([[0., 2.]])
    """


@dataclasses.dataclass(frozen=True)
class GELU(Layer):
    """x * Phi(x), the exact form with the error function.

    Examples:
        >>> import tn4nn as tn
        >>> tn.GELU().build("numpy")([[-1.0, 2.0]]).round(3)
        array([[-0.159,  1.954]])
    """


@dataclasses.dataclass(frozen=True)
class Tanh(Layer):
    """The hyperbolic tangent, entry by entry.

    Examples:
        >>> import tn4nn as tn
        >>> tn.Tanh().build("numpy")([[-1.0, 2.0]]).round(3)
        array([[-0.762,  0.964]])
    """


@dataclasses.dataclass(frozen=True)
class Sigmoid(Layer):
    """1 / (1 + exp(-x)), entry by entry.

    Examples:
        >>> import tn4nn as tn
        >>> tn.Sigmoid().build("numpy")([[-1.0, 2.0]]).round(3)
        array([[0.269, 0.881]])
    """


@dataclasses.dataclass(frozen=True)
class SiLU(Layer):
    """x / (1 + exp(-x)), entry by entry.

    Examples:
        >>> import tn4nn as tn
        >>> tn.SiLU().build("numpy")([[-1.0, 2.0]]).round(3)
        array([[-0.269,  1.762]])
    """


@dataclasses.dataclass(frozen=True)
class Flatten(Layer):
    """All axes of a sample in one.

    Examples:
        >>> import tn4nn as tn
        >>> tn.Flatten().out_shape((3, 8, 8))
        (192,)
    """

    def out_shape(self, shape: Shape) -> Shape:
        """(...) -> (product,)."""
        return (math.prod(shape),)


@dataclasses.dataclass(frozen=True)
class Unflatten(Layer):
    """A flat sample as an image or any other shape.

    Args:
        shape: of one sample.

    Examples:
        >>> import tn4nn as tn
        >>> tn.Unflatten((1, 28, 28)).out_shape((784,))
        (1, 28, 28)
    """

    shape: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or any(n < 1 for n in self.shape):
            raise ShapeError(f"Unflatten: expected sizes of at least 1, received {self.shape}")

    def out_shape(self, shape: Shape) -> Shape:
        """(..., product) -> shape."""
        if math.prod(shape) != math.prod(self.shape):
            raise ShapeError(
                f"Unflatten: {shape} has {math.prod(shape)} numbers, {self.shape} needs {math.prod(self.shape)}"
            )
        return self.shape


@dataclasses.dataclass(frozen=True)
class _Pool(Layer):
    kernel: int | tuple[int, int] = 2
    stride: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        kernel = pair(self.kernel, "kernel", 1)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "stride", kernel if self.stride is None else pair(self.stride, "stride", 1))

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(kernel, stride), each a pair."""
        assert isinstance(self.kernel, tuple)
        assert isinstance(self.stride, tuple)
        return self.kernel, self.stride

    def out_shape(self, shape: Shape) -> Shape:
        """(channels, height, width) -> (channels, height', width')."""
        if len(shape) != 3:
            raise ShapeError(f"{type(self).__name__}: expected (channels, height, width), received {shape}")
        kernel, stride = self.window
        sizes = (windows(n, k, s, 0, type(self).__name__) for n, k, s in zip(shape[1:], kernel, stride, strict=True))
        return (shape[0], *sizes)


@dataclasses.dataclass(frozen=True)
class MaxPool(_Pool):
    """Largest value of each window of a (channels, height, width) image; stride defaults to the kernel.

    Examples:
        >>> import tn4nn as tn
        >>> tn.MaxPool(2).out_shape((16, 28, 28))
        (16, 14, 14)
    """


@dataclasses.dataclass(frozen=True)
class AvgPool(_Pool):
    """Mean of each window of a (channels, height, width) image; stride defaults to the kernel.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> tn.AvgPool(2).build("numpy")(np.arange(4.0).reshape(1, 1, 2, 2))
        array([[[[1.5]]]])
    """


@dataclasses.dataclass(frozen=True)
class Dropout(Layer):
    """Zeroes entries with probability `rate` in training and scales the others by 1 / (1 - rate).

    Examples:
        >>> import tn4nn as tn
        >>> tn.Dropout(0.1).build("numpy")([[1.0, 2.0]])  # outside training it does nothing
        array([[1., 2.]])
    """

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ShapeError(f"Dropout: the rate must be at least 0 and below 1, received {self.rate!r}")


def dropouts(rate: float) -> tuple[tuple[str, Layer], ...]:
    """The child "dropout" of a layer that has a rate; none where it is 0."""
    layer = Dropout(rate)
    return (("dropout", layer),) if rate else ()


@dataclasses.dataclass(frozen=True)
class BatchNorm(Layer):
    """Normalises each feature (or channel) over the batch, as torch's BatchNorm1d and BatchNorm2d do.

    Input shape: (features,) or (features, height, width).

    Args:
        features: length of the first axis of a sample.
        momentum: share of the new batch in the running statistics.
        eps: added to the variance.

    Examples:
        >>> import tn4nn as tn
        >>> sorted(tn.BatchNorm(16).init())
        ['bias', 'mean', 'scale', 'var']
        >>> tn.BatchNorm(16).out_shape((16, 28, 28))
        (16, 28, 28)
    """

    features: int
    momentum: float = 0.1
    eps: float = 1e-5

    def out_shape(self, shape: Shape) -> Shape:
        """Unchanged."""
        if len(shape) not in (1, 3) or shape[0] != self.features:
            raise ShapeError(
                f"BatchNorm: expected ({self.features},) or ({self.features}, height, width), received {shape}"
            )
        return shape

    def own_specs(self) -> tuple[Spec, ...]:
        """scale, bias, running mean, running variance."""
        n = (self.features,)
        return (
            Spec("scale", n, "scale", 1.0),
            Spec("bias", n, "bias"),
            Spec("mean", n, "state"),
            Spec("var", n, "state", 1.0),
        )


@dataclasses.dataclass(frozen=True)
class LayerNorm(Layer):
    """Normalises over the last axis.

    Args:
        features: length of the last axis.
        eps: added to the variance.

    Examples:
        >>> import tn4nn as tn
        >>> tn.LayerNorm(2).build("numpy")([[3.0, 5.0]]).round(3)
        array([[-1.,  1.]])
    """

    features: int
    eps: float = 1e-5

    def out_shape(self, shape: Shape) -> Shape:
        """Unchanged."""
        if not shape or shape[-1] != self.features:
            raise ShapeError(f"LayerNorm: expected (..., {self.features}), received {shape}")
        return shape

    def own_specs(self) -> tuple[Spec, ...]:
        """scale and bias."""
        return Spec("scale", (self.features,), "scale", 1.0), Spec("bias", (self.features,), "bias")


@dataclasses.dataclass(frozen=True)
class RMSNorm(Layer):
    """Divides by the root of the mean square over the last axis; LayerNorm without its mean and its bias.

    Args:
        features: length of the last axis.
        eps: added to the mean square.

    Source: Zhang & Sennrich 2019, Root Mean Square Layer Normalization (arXiv:1910.07467).

    Examples:
        >>> import tn4nn as tn
        >>> tn.RMSNorm(2).build("numpy")([[3.0, 4.0]]).round(3)
        array([[0.849, 1.131]])
    """

    features: int
    eps: float = 1e-6

    def out_shape(self, shape: Shape) -> Shape:
        """Unchanged."""
        if not shape or shape[-1] != self.features:
            raise ShapeError(f"RMSNorm: expected (..., {self.features}), received {shape}")
        return shape

    def own_specs(self) -> tuple[Spec, ...]:
        """scale."""
        return (Spec("scale", (self.features,), "scale", 1.0),)


@dataclasses.dataclass(frozen=True)
class Tokens(Layer):
    """The places of an image as tokens, row by row: (channels, height, width) -> (height * width, channels).

    Examples:
        >>> import tn4nn as tn
        >>> tn.Sequential(tn.Conv2d(1, 32, kernel=7, stride=7), tn.Tokens()).out_shape((1, 28, 28))
        (16, 32)
    """

    def out_shape(self, shape: Shape) -> Shape:
        """(channels, height, width) -> (height * width, channels)."""
        if len(shape) != 3:
            raise ShapeError(f"Tokens: expected (channels, height, width), received {shape}")
        return shape[1] * shape[2], shape[0]


@dataclasses.dataclass(frozen=True)
class MeanPool(Layer):
    """The mean over all tokens: (tokens, width) -> (width,).

    Examples:
        >>> import tn4nn as tn
        >>> tn.MeanPool().out_shape((16, 32))
        (32,)
    """

    def out_shape(self, shape: Shape) -> Shape:
        """(tokens, width) -> (width,)."""
        if len(shape) != 2 or not shape[0]:
            raise ShapeError(f"MeanPool: expected (tokens, width) of at least one token, received {shape}")
        return shape[1:]
