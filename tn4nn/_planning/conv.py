"""How a convolution on a network is run: through the kernel, or patch by patch."""

from __future__ import annotations

import dataclasses
import math

from .._model.layers import Conv2d
from .._runtime.cost import Machine
from .plan import Plan, bucket, plan


@dataclasses.dataclass(frozen=True, slots=True)
class ConvPlan:
    """The choice for one convolution.

    Attributes:
        form: "kernel": W is built and the framework's own convolution runs with it; "patches": the image is
            cut into patches, and each patch is one row for the network.
        plan: of the network, for W ("dense") or for the patches ("apply").
    """

    form: str
    plan: Plan


def conv_plan(
    layer: Conv2d,
    batch: int,
    shape: tuple[int, int, int],
    phase: str = "train",
    minimize: str = "time",
    *,
    machine: Machine | None = None,
    itemsize: int = 4,
) -> ConvPlan:
    """Chooses the cheaper form by the cost model.

    Args:
        layer: the convolution.
        batch: images.
        shape: of one input image.
        phase: "forward" or "train".
        minimize: "time", "flops" or "memory".
        machine: figures of the cost model (default: a CPU core).
        itemsize: bytes of one number.
    """
    machine = machine or Machine()
    net = layer.solid()
    positions = bucket(batch) * math.prod(layer.out_shape(shape)[1:])
    patches = plan(net, batch=bucket(positions), phase=phase, minimize=minimize, machine=machine, itemsize=itemsize)
    if net.topology.kept:  # W of a kept leg is block diagonal: building it would waste the blocks
        return ConvPlan("patches", patches)
    kernel = plan(net, batch=1, phase=phase, minimize=minimize, form="dense", machine=machine, itemsize=itemsize)
    passes = 3 if phase == "train" else 1
    macs = positions * net.dense_params * passes
    unfolded = positions * net.in_features * itemsize
    by_kernel = {
        "time": kernel.cost.predicted_s + macs / machine.macs_per_s,
        "flops": kernel.cost.macs + macs,
        "memory": kernel.cost.peak + kernel.cost.saved,
    }[minimize]
    by_patches = {
        "time": patches.cost.predicted_s + 2 * passes * unfolded / machine.bytes_per_s,
        "flops": patches.cost.macs,
        "memory": patches.cost.peak + patches.cost.saved + unfolded,
    }[minimize]
    return ConvPlan("kernel", kernel) if by_kernel <= by_patches else ConvPlan("patches", patches)
