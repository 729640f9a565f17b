"""Models as layer graphs: those that were published, and dense ones to begin with.

A published model has its tensor-network layers, and with `dense=True` it is its dense twin. `mlp`, `cnn`, `vit` and
`gpt` are dense, their layers named by what they do ("blocks.0.attention.query", "blocks.0.mlp.down", "head").

Sources: [G] Gao et al., Phys. Rev. Research 2, 023300 (2020), arXiv:1904.06194; [N] Novikov et al., arXiv:1509.06569;
[H] K. Harada, "Compressing neural networks by tensor networks" (2022). Every model takes flat rows, as data sets hold
them, images as (channels, height, width); a layer and its twin have the same name, so `replaced` finds the pairs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

from ._base.errors import ShapeError, TopologyError
from ._graph.catalogue import mpo
from ._graph.network import Network
from ._model.layers import (
    GELU,
    Attention,
    AvgPool,
    BatchNorm,
    Block,
    Conv2d,
    Dropout,
    Embedding,
    Flatten,
    Layer,
    LayerNorm,
    Linear,
    MaxPool,
    MeanPool,
    OnNetwork,
    Parallel,
    Positions,
    ReLU,
    Residual,
    RMSNorm,
    Sequential,
    SiLU,
    Tied,
    Tokens,
    Unflatten,
)

Modes = Sequence[int]

__all__ = [
    "Replaced", "cnn", "densenet40", "fc2", "gpt", "lenet5", "mlp", "mpo_fc", "replaced", "tnn_novikov", "vgg16",
    "vgg19", "vit", "wrn20_4",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Replaced:
    """A layer of the dense model that a network replaces.

    Attributes:
        name: of the dense layer.
        network: the new one.
        params: numbers in its cores.
        dense_params: numbers in the dense weight, a convolution's kernel included.

    Examples:
        >>> import tn4nn as tn
        >>> first = tn.presets.replaced(tn.presets.fc2(4), tn.presets.fc2(dense=True))[0]
        >>> first.name, first.params, first.dense_params
        ('0', 1024, 200704)
    """

    name: str
    network: Network
    params: int
    dense_params: int


def replaced(model: Layer, twin: Layer) -> tuple[Replaced, ...]:
    """The layers in which a model and its dense twin differ, in order; biases are not counted.

    Raises:
        TopologyError: models that are not twins.

    Examples:
        >>> import tn4nn as tn
        >>> pairs = tn.presets.replaced(tn.presets.fc2(4), tn.presets.fc2(dense=True))
        >>> [(pair.name, pair.params, pair.dense_params) for pair in pairs]
        [('0', 1024, 200704), ('2', 736, 2560)]
    """
    dense = {name: layer for name, layer in twin.walk() if isinstance(layer, OnNetwork)}
    found = []
    for name, network in model.networks().items():
        if not network.ranks:
            continue
        parts = name.split(".")
        # A convolution that became a linear layer is one level deeper, between two reshapes.
        above = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
        twin_name = next((one for one in above if one in dense), None)
        if twin_name is None:
            raise TopologyError(f"layer {name!r} has no dense twin: expected one of {', '.join(dense) or 'none'}")
        found.append(Replaced(twin_name, network, network.num_params, dense[twin_name].solid().num_params))
    return tuple(found)


def fc2(D: int = 16, *, dense: bool = False, bias: bool = True) -> Sequential:
    """FC2 of [H] and [G], MNIST 784 -> 256 -> 10: two MPOs.

    The first is (4,7,7,4) -> (4,4,4,4) of bond dimension D, the second (4,4,4,4) -> (1,1,10,1) of 4. The ranks are as
    published, so above D = 16 the outer bonds are larger than useful.

    Args:
        D: bond dimension of the first MPO.
        dense: the dense twin in its place.
        bias: of both layers.

    Examples:
        >>> import tn4nn as tn
        >>> tn.presets.fc2(4).num_weights, tn.presets.fc2(dense=True).num_weights
        (1760, 203264)
    """
    first = _linear((4, 7, 7, 4), (4, 4, 4, 4), D, dense, bias)
    return Sequential(first, ReLU(), _linear((4, 4, 4, 4), (1, 1, 10, 1), 4, dense, bias), input_shape=(784,))


def mpo_fc(chi: int = 4, *, dense: bool = False) -> Sequential:
    """MPO + FC of [H], MNIST in 32x32: MPO 4^5 -> 4^5, then dense 1024 -> 10.

    Args:
        chi: bond dimension of the MPO, or the largest useful rank where that is smaller.
        dense: the dense twin in its place.

    Examples:
        >>> import tn4nn as tn
        >>> tn.presets.mpo_fc().num_params, tn.presets.mpo_fc(dense=True).num_params
        (12170, 1059850)
    """
    topology = mpo((4,) * 5, (4,) * 5)
    first = Linear(1024, 1024) if dense else Linear(topology.with_rank(chi, clip=True))
    return Sequential(first, ReLU(), Linear(1024, 10), input_shape=(1024,))


def tnn_novikov(r: int = 8, *, dense: bool = False) -> Sequential:
    """TensorNet of [N], MNIST in 32x32: TT-matrix (4,8,8,4) -> (5,5,5,5), then dense 625 -> 10.

    Args:
        r: rank of every bond.
        dense: the dense twin in its place.

    Examples:
        >>> import tn4nn as tn
        >>> tn.presets.tnn_novikov().num_params, tn.presets.tnn_novikov(dense=True).num_params
        (12325, 646885)
    """
    first = _linear((4, 8, 8, 4), (5, 5, 5, 5), r, dense)
    return Sequential(first, ReLU(), Linear(625, 10), input_shape=(1024,))


def lenet5(*, dense: bool = False) -> Sequential:
    """LeNet-5 of [G], MNIST, with MPOs for its last three layers.

    The third convolution sees its whole 5x5 input and is a linear layer, an MPO as the two after it. As in the counts
    of [G] the twin's last two layers have no bias.

    Args:
        dense: the dense twin in its place.

    Examples:
        >>> import tn4nn as tn
        >>> tn.presets.lenet5().num_params, tn.presets.lenet5(dense=True).num_params
        (5646, 61612)
    """
    return Sequential(
        input_shape=(784,),
        image=Unflatten((1, 28, 28)),
        conv1=Conv2d(1, 6, kernel=5, padding=2),
        relu1=ReLU(),
        pool1=MaxPool(2),
        conv2=Conv2d(6, 16, kernel=5),
        relu2=ReLU(),
        pool2=MaxPool(2),
        flat=Flatten(),
        conv3=_linear((2, 10, 10, 2), (2, 5, 6, 2), 4, dense),
        relu3=ReLU(),
        fc1=_linear((2, 5, 6, 2), (2, 3, 7, 2), 4, dense, bias=not dense),
        relu4=ReLU(),
        fc2=_linear((2, 3, 7, 2), (1, 5, 2, 1), 2, dense, bias=not dense),
    )


# Output channels and kernel of each convolution, group by group; each group ends in a pool.
_VGG16 = (((64, 3),) * 2, ((128, 3),) * 2, *(((n, 3), (n, 3), (n, 1)) for n in (256, 512, 512)))
_VGG19 = (((64, 3),) * 2, ((128, 3),) * 2, *(((n, 3),) * 4 for n in (256, 512, 512)))


def vgg16(*, dense: bool = False) -> Sequential:
    """VGG-16, configuration C, of [G], CIFAR-10, with MPOs for its last five layers.

    These are the last two 3x3 convolutions, each as 2048 -> 2048 on its 2x2x512 map, and the three linear layers.

    Args:
        dense: the dense twin in its place.

    Examples:
        >>> import tn4nn as tn
        >>> tn.presets.vgg16().num_params, tn.presets.vgg16(dense=True).num_params
        (5300874, 28923850)
    """
    return _vgg(_VGG16, ("conv5_1", "conv5_2"), dense)


def vgg19(*, dense: bool = False) -> Sequential:
    """VGG-19 of [G], CIFAR-10: as `vgg16`, with four 3x3 convolutions in each of the last three groups.

    Args:
        dense: the dense twin in its place.

    Examples:
        >>> import tn4nn as tn
        >>> tn.presets.vgg19().num_params, tn.presets.vgg19(dense=True).num_params
        (15330442, 38953418)
    """
    return _vgg(_VGG19, ("conv5_3", "conv5_4"), dense)


def _vgg(groups: Sequence[Sequence[tuple[int, int]]], as_mpo: Sequence[str], dense: bool) -> Sequential:
    layers: dict[str, Layer] = {"image": Unflatten((3, 32, 32))}
    channels = 3
    for g, group in enumerate(groups, 1):
        for c, (width, kernel) in enumerate(group, 1):
            name = f"conv{g}_{c}"
            if name in as_mpo and not dense:
                layers[name] = _conv_as_mpo((2, 8, 8, 8, 2), (512, 2, 2))
            else:
                layers[name] = Conv2d(channels, width, kernel=kernel, padding=kernel // 2, bias=False)
            layers[f"bn{g}_{c}"], layers[f"relu{g}_{c}"] = BatchNorm(width), ReLU()
            channels = width
        layers[f"pool{g}"] = MaxPool(2)
    layers["flat"] = Flatten()
    wide = (4, 4, 8, 8, 4)
    layers |= {"fc1": _linear((4, 4, 4, 4, 2), wide, 4, dense), "relu6": ReLU(), "drop1": Dropout(0.2)}
    layers |= {"fc2": _linear(wide, wide, 4, dense), "relu7": ReLU(), "drop2": Dropout(0.2)}
    layers["fc3"] = _linear(wide, (1, 10, 1, 1, 1), 4, dense)
    return Sequential(input_shape=(3 * 32 * 32,), **layers)


def wrn20_4(*, dense: bool = False) -> Sequential:
    """Wide ResNet 20-4 of [G], CIFAR-10, with MPOs for both convolutions of the last block.

    Each is 16384 -> 16384 on its 8x8x256 map.

    Args:
        dense: the dense twin in its place.

    Examples:
        >>> import tn4nn as tn
        >>> tn.presets.wrn20_4().num_params, tn.presets.wrn20_4(dense=True).num_params
        (3122458, 4298970)
    """
    layers: dict[str, Layer] = {"image": Unflatten((3, 32, 32)), "conv1": _conv3(3, 16)}
    channels = 16
    for g, width in enumerate((64, 128, 256), 1):
        for b in range(1, 4):
            stride = 2 if g > 1 and b == 1 else 1
            if (g, b) == (3, 3) and not dense:
                last = tuple(_conv_as_mpo((2, *(4,) * 6, 2), (256, 8, 8)) for _ in range(2))
                body = _preactivated(channels, last[0], width, last[1])
            else:
                body = _preactivated(channels, _conv3(channels, width, stride), width, _conv3(width, width))
            # Where the shape changes the shortcut leaves after the first activation, as in the released code.
            project = Conv2d(channels, width, kernel=1, stride=stride, bias=False)
            layers[f"block{g}_{b}"] = (
                Sequential(*body[:2], Residual(Sequential(*body[2:]), project))
                if b == 1
                else Residual(Sequential(*body))
            )
            channels = width
    layers |= {"bn": BatchNorm(channels), "relu": ReLU(), "pool": AvgPool(8), "flat": Flatten(), "fc": Linear(256, 10)}
    return Sequential(input_shape=(3 * 32 * 32,), **layers)


def densenet40(*, dense: bool = False) -> Sequential:
    """DenseNet-40 with growth 12 of [G], CIFAR-10: an MPO for the last layer, 448 -> 10.

    Args:
        dense: the dense twin in its place.

    Examples:
        >>> import tn4nn as tn
        >>> tn.presets.densenet40().num_params, tn.presets.densenet40(dense=True).num_params
        (1015818, 1019722)
    """
    layers: dict[str, Layer] = {"image": Unflatten((3, 32, 32)), "conv1": _conv3(3, 16)}
    channels, side = 16, 32
    for g in range(1, 4):
        for c in range(1, 13):
            unchanged = Unflatten((channels, side, side))
            grown = Sequential(BatchNorm(channels), ReLU(), _conv3(channels, 12))
            layers[f"dense{g}_{c}"] = Parallel(unchanged, grown, combine="concat")
            channels += 12
        layers |= {f"bn{g}": BatchNorm(channels), f"relu{g}": ReLU()}
        if g < 3:
            layers |= {f"conv{g + 1}": Conv2d(channels, channels, kernel=1, bias=False), f"pool{g}": AvgPool(2)}
            side //= 2
    layers |= {"pool3": AvgPool(side), "flat": Flatten()}
    layers["fc"] = _linear((4, 4, 7, 4), (1, 5, 2, 1), 4, dense)
    return Sequential(input_shape=(3 * 32 * 32,), **layers)


# -- dense models to begin with -------------------------------------------------------------------------------------


def mlp(sizes: Sequence[int] = (784, 256, 10), *, dropout: float = 0.0, bias: bool = True) -> Sequential:
    """Linear layers with ReLU between them: "fc1", "relu1", ..., the last one "head".

    Input shape: (sizes[0],). Output shape: (sizes[-1],).

    Args:
        sizes: features of the input, of each hidden layer, and of the output.
        dropout: rate after each ReLU.
        bias: of every layer.

    Raises:
        ShapeError: fewer than two sizes.

    Examples:
        >>> import tn4nn as tn
        >>> list(tn.presets.mlp((784, 256, 64, 10)).networks())
        ['fc1', 'fc2', 'head']
    """
    if len(sizes) < 2:
        raise ShapeError(f"mlp: expected the sizes of input and output at least, received {tuple(sizes)}")
    layers: dict[str, Layer] = {}
    for i, (into, outof) in enumerate(pairwise(sizes[:-1]), 1):
        layers |= {f"fc{i}": Linear(into, outof, bias=bias), f"relu{i}": ReLU()} | _drop(f"drop{i}", dropout)
    layers["head"] = Linear(sizes[-2], sizes[-1], bias=bias)
    return Sequential(input_shape=(sizes[0],), **layers)


def cnn(
    channels: Sequence[int] = (16, 32),
    width: int = 128,
    *,
    classes: int = 10,
    image: tuple[int, int, int] = (1, 28, 28),
    dropout: float = 0.0,
) -> Sequential:
    """A small convolutional network: 3x3 convolutions "conv1", ..., each with ReLU and a pool of 2, then "fc", "head".

    Input shape: an image, flat or not. Output shape: (classes,).

    Args:
        channels: of each convolution.
        width: features of the hidden linear layer.
        classes: of the output.
        image: (channels, height, width).
        dropout: rate before the head.

    Examples:
        >>> import tn4nn as tn
        >>> list(tn.presets.cnn().networks())
        ['conv1', 'conv2', 'fc', 'head']
    """
    layers: dict[str, Layer] = {"image": Unflatten(image)}
    into, shape = image[0], image
    for i, outof in enumerate(channels, 1):
        layers |= {f"conv{i}": Conv2d(into, outof, kernel=3, padding=1), f"relu{i}": ReLU(), f"pool{i}": MaxPool(2)}
        into, shape = outof, (outof, shape[1] // 2, shape[2] // 2)
    layers |= {"flat": Flatten(), "fc": Linear(math.prod(shape), width), "relu": ReLU()} | _drop("drop", dropout)
    layers["head"] = Linear(width, classes)
    return Sequential(input_shape=(math.prod(image),), **layers)


def vit(
    layers: int = 4,
    width: int = 64,
    heads: int = 4,
    *,
    classes: int = 10,
    image: tuple[int, int, int] = (1, 28, 28),
    patch: int = 7,
    kv_heads: int | None = None,
    mlp: float = 4,
    gated: bool = False,
    norm: str = "layer",
    dropout: float = 0.0,
    bias: bool = True,
) -> Sequential:
    """A vision transformer: patches as tokens, learned positions, blocks, the mean over tokens, a head.

    Input shape: an image, flat or not. Output shape: (classes,).

    Args:
        layers: how many blocks.
        width: of a token.
        heads: of each attention.
        classes: of the output.
        image: (channels, height, width), the last two multiples of `patch`.
        patch: side of a patch.
        kv_heads: see `Attention`.
        mlp: see `gpt`.
        gated: see `gpt`.
        norm: "layer" or "rms".
        dropout: rate after the positions, on the weights of attention and in every block.
        bias: of the linear layers in the blocks.

    Raises:
        ShapeError: sizes that do not fit.

    Source: Dosovitskiy et al. 2021, An Image is Worth 16x16 Words (arXiv:2010.11929); the mean in place of a class
    token: Beyer et al. 2022 (arXiv:2205.01580).

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.presets.vit(layers=2, width=32)
        >>> model.out_shape(model.input_shape), model.networks()["blocks.1.mlp.up"].out_features
        ((10,), 128)
    """
    if image[1] % patch or image[2] % patch:
        raise ShapeError(f"vit: sides of the image must be multiples of the patch, received {image} and patch={patch}")
    context = (image[1] // patch) * (image[2] // patch)
    blocks = _blocks(layers, width, heads, kv_heads, mlp, gated, norm, dropout, bias, causal=False, rotary=False)
    parts: dict[str, Layer] = {
        "image": Unflatten(image), "patches": Conv2d(image[0], width, kernel=patch, stride=patch), "tokens": Tokens(),
        "positions": Positions(context, width), **_drop("drop", dropout), "blocks": blocks,
        "norm": _norm(norm, width), "pool": MeanPool(), "head": Linear(width, classes),
    }  # fmt: skip
    return Sequential(input_shape=(math.prod(image),), **parts)


def gpt(
    layers: int = 4,
    width: int = 128,
    heads: int = 4,
    vocab: int = 65,
    context: int = 64,
    *,
    kv_heads: int | None = None,
    mlp: float = 4,
    gated: bool = False,
    norm: str = "layer",
    rotary: bool | float = False,
    tied: bool = False,
    dropout: float = 0.0,
    bias: bool = True,
) -> Layer:
    """A language model: embedding, positions, causal blocks, a norm, logits for the next token.

    The layers are "embedding", "positions" (unless rotary), "blocks", "norm" and "head"; in a block "norm1",
    "attention.query", "attention.key", "attention.value", "attention.out", "norm2", "mlp.up" and "mlp.down", gated
    "mlp.hidden.gate.linear", "mlp.hidden.up" and "mlp.down". Layers that write to the residual stream begin smaller by
    sqrt(2 layers), as in GPT-2, so that the stream does not grow with the depth.

    Input shape: (tokens,), integers below `vocab`, at most `context` of them. Output shape: (tokens, vocab).

    Args:
        layers: how many blocks.
        width: of a token.
        heads: of each attention.
        vocab: number of different tokens.
        context: the most tokens; with rotary positions longer inputs run too.
        kv_heads: see `Attention`.
        mlp: hidden features of an MLP as a multiple of the width. A gated one has 2/3 of it, rounded up to a
            multiple of 16: about as many weights.
        gated: a gated MLP with SiLU (SwiGLU) in place of one with GELU.
        norm: "layer" or "rms".
        rotary: rotary positions, True or their base, in place of learned ones.
        tied: the head is the transposed embedding (`Tied`), and the other layers are inside of "body", as
            "body.blocks.0.mlp.up". Off, as in Llama: embedding and head then are two layers, each with a network of its
            own, and one that is compressed leaves the other as it is.
        dropout: rate after the positions, on the weights of attention and in every block.
        bias: of the linear layers in the blocks; the head has none.

    Raises:
        ShapeError: sizes that do not fit, an unknown norm.

    Source: Radford et al. 2019 (GPT-2); gated MLPs: Shazeer 2020 (arXiv:2002.05202); all options together: Touvron et
    al. 2023, LLaMA (arXiv:2302.13971).

    Examples:
        >>> import tn4nn as tn
        >>> model = tn.presets.gpt(layers=2, width=32, heads=4, kv_heads=2, norm="rms", rotary=True, gated=True)
        >>> model.out_shape((64,)), sum("attention" in name for name in model.networks())
        ((64, 65), 8)
    """
    blocks = _blocks(layers, width, heads, kv_heads, mlp, gated, norm, dropout, bias, causal=True, rotary=rotary)
    embedding = Embedding(vocab, width)
    parts: dict[str, Layer] = {} if rotary else {"positions": Positions(context, width)}
    parts |= {**_drop("drop", dropout), "blocks": blocks, "norm": _norm(norm, width)}
    if tied:
        return Tied(embedding, Sequential(input_shape=(context, width), **parts))
    parts["head"] = Linear(width, vocab, bias=False)
    return Sequential(input_shape=(context,), embedding=embedding, **parts)


def _blocks(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int | None,
    mlp: float,
    gated: bool,
    norm: str,
    dropout: float,
    bias: bool,
    *,
    causal: bool,
    rotary: bool | float,
) -> Sequential:
    if layers < 1:
        raise ShapeError(f"layers must be at least 1, received {layers!r}")
    gain = 1 / math.sqrt(2 * layers)
    hidden = math.ceil(mlp * width / 24) * 16 if gated else round(mlp * width)

    def half() -> Sequential:
        down = Linear(hidden, width, bias=bias, gain=gain)
        up = Linear(width, hidden, bias=bias)
        if not gated:
            return Sequential(up=up, act=GELU(), down=down)
        gate = Sequential(linear=Linear(width, hidden, bias=bias), act=SiLU())
        return Sequential(hidden=Parallel(gate=gate, up=up, combine="product"), down=down)

    def block() -> Block:
        out = Linear(width, width, bias=bias, gain=gain)
        attention = Attention(
            width, heads, kv_heads=kv_heads, causal=causal, rotary=rotary, out=out, bias=bias, dropout=dropout
        )
        return Block(_norm(norm, width), attention, _norm(norm, width), half(), dropout)

    return Sequential(*(block() for _ in range(layers)))


def _norm(kind: str, width: int) -> Layer:
    if kind not in ("layer", "rms"):
        raise ShapeError(f"norm must be 'layer' or 'rms', received {kind!r}")
    return LayerNorm(width) if kind == "layer" else RMSNorm(width)


def _drop(name: str, rate: float) -> dict[str, Layer]:
    return {name: Dropout(rate)} if rate else {}


# -- what they are made of --------------------------------------------------------------------------------------


def _linear(inputs: Modes, outputs: Modes, chi: int, dense: bool, bias: bool = True) -> Linear:
    topology = mpo(inputs, outputs)
    if dense:
        return Linear(topology.in_features, topology.out_features, bias=bias)
    return Linear(topology.with_rank(chi), bias=bias)


def _conv3(channels: int, width: int, stride: int = 1) -> Conv2d:
    return Conv2d(channels, width, kernel=3, stride=stride, padding=1, bias=False)


def _conv_as_mpo(modes: Modes, image: tuple[int, int, int]) -> Sequential:
    """A convolution that keeps the size of its map, as one matrix on the whole map: an MPO of bond dimension 4."""
    return Sequential(Flatten(), Linear(mpo(modes, modes).with_rank(4), bias=False), Unflatten(image))


def _preactivated(channels: int, first: Layer, width: int, second: Layer) -> tuple[Layer, ...]:
    return BatchNorm(channels), ReLU(), first, BatchNorm(width), ReLU(), second
