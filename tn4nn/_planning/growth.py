"""How the cost of a network grows with batch, rank and sites, beside dense: curves and their exponents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .._base.errors import TN4NNError
from .._base.fits import exponent
from .._drawing.charts import draw_growth
from .._graph.catalogue import dense, like
from .._graph.modes import modes_for
from .._graph.network import Network
from .._runtime.cost import Machine
from .._runtime.devices import machine_of
from .._runtime.target import CPU
from .layer import plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
SITES = (2, 3, 4, 5, 6, 8, 10)
QUANTITIES = {"time": "predicted_s", "MACs": "macs", "memory": "saved"}


@dataclasses.dataclass(frozen=True)
class GrowthPoint:
    """What one pass costs at one place of a curve.

    Attributes:
        at: the batch, the rank of all bonds, or the modes on each side.
        params: numbers in the cores.
        macs: multiply-adds.
        saved: bytes saved for backward; of a forward pass, the peak.
        predicted_s: seconds by the cost model, on the device that the curves are of.
        dense_macs: multiply-adds of the dense layer.
        dense_s: its predicted seconds.
    """

    at: int
    params: int
    macs: int
    saved: int
    predicted_s: float
    dense_macs: int
    dense_s: float


@dataclasses.dataclass(frozen=True, repr=False)
class Growth:
    """Curves of what a network costs; its text is the table of exponents.

    Attributes:
        network: where the curves meet (but for a rank that is the same on all bonds).
        batch: rows, where the batch is not what varies.
        rank: of all bonds, where the sites vary.
        phase: "forward" or "train".
        curves: "batch", "rank" and "sites" -> points; only those that the network has.
        device: a GPU by its name, or "cpu": the native runtime of a processor.

    Examples:
        >>> import tn4nn as tn
        >>> found = tn.growth(tn.low_rank(64, 64).with_rank(4))
        >>> list(found.curves), round(found.exponents()["batch"]["MACs"], 2)
        (['batch', 'rank'], 1.0)
    """

    network: Network
    batch: int
    rank: int
    phase: str
    curves: Mapping[str, tuple[GrowthPoint, ...]]
    device: str = CPU

    def exponents(self) -> dict[str, dict[str, float]]:
        """By curve, the exponents e of quantity ~ at^e: of our time, MACs and memory, and of the dense layer's time."""
        quantities = {**QUANTITIES, "dense time": "dense_s"}
        return {
            axis: {
                name: exponent([p.at for p in points], [getattr(p, of) for p in points])
                for name, of in quantities.items()
                if min(getattr(p, of) for p in points) > 0
                and not (name == "dense time" and axis != "batch")  # it depends on nothing else
            }
            for axis, points in self.curves.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The curves as plain data."""
        curves = {axis: [dataclasses.asdict(point) for point in points] for axis, points in self.curves.items()}
        asked = {"batch": self.batch, "rank": self.rank, "phase": self.phase, "device": self.device}
        return {"schema": 1, **asked, "curves": curves, "exponents": self.exponents()}

    def draw(self, path: str | None = None) -> Figure:
        """Time and multiply-adds against batch, rank and sites, next to dense, the exponents in the legends.

        Args:
            path: a .png or .svg file to write.

        Raises:
            TN4NNError: another ending, or matplotlib is not installed.
        """
        names = ("predicted_s", "dense_s", "macs", "dense_macs")
        curves = {
            axis: ([p.at for p in points], {name: [float(getattr(p, name)) for p in points] for name in names})
            for axis, points in self.curves.items()
        }
        fixed = {"batch": "", "rank": f", batch {self.batch}", "sites": f", batch {self.batch}, rank {self.rank}"}
        t = self.network.topology
        title = f"{t.name} {t.in_features} -> {t.out_features}, {self.phase}, {self.device}"
        return draw_growth(title, curves, fixed, path)

    def __repr__(self) -> str:
        lines = [
            f"Growth of {self.network.topology.name!r}, {self.phase}, {self.device}: x^e, fitted through the logarithms"
        ]
        for axis, exponents in self.exponents().items():
            at = [point.at for point in self.curves[axis]]
            shown = "  ".join(f"{name} {axis}^{e:.2f}" for name, e in exponents.items())
            lines.append(f"  {axis:<6} {at[0]:>4}..{at[-1]:<5} {shown}")
        return "\n".join(lines)

    __str__ = __repr__


def growth(
    network: Network,
    *,
    batch: int = 256,
    phase: str = "train",
    itemsize: int = 4,
    machine: Machine | None = None,
    device: str | None = None,
    cache: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Growth:
    """How the predicted cost of a network grows, each point planned for itself.

    It is planned for the native runtime of a processor, or as a program of a GPU.

    Three curves, as far as there are two points: the batch from 1 to 4,096; the rank, the same on all bonds or the
    largest that is of use there, until the network has more parameters than the dense layer; and the number of modes
    on each side of the same features, at a rank that is the geometric mean of the network's, where the topology is one
    of the catalogue with its default options.

    Args:
        network: what is applied.
        batch: rows, for the curves of rank and sites.
        phase: "forward" or "train".
        itemsize: 4 or 8 bytes of a number; on a GPU also 2.
        machine: parameters of the cost model (default: this processor's, where calibrated; else one CPU core).
        device: a GPU that need not be here, "H100" for instance, or one that was calibrated. Instead of `machine`.
        cache: False plans anew and stores nothing.
        progress: called with a line of text for each point.

    Raises:
        TN4NNError: an unknown phase or device, a batch below 1, a device with a machine.

    Examples:
        >>> from tn4nn import growth
        >>> import tn4nn as tn
        >>> found = growth(tn.low_rank(64, 64).with_rank(4), batch=64)
        >>> list(found.curves), found.exponents()["rank"]["MACs"]
        (['batch', 'rank'], 1.0)
    """
    if device is not None and machine is not None:
        raise TN4NNError(f"device={device!r} has parameters of its own: leave out machine=, received {machine!r}")
    runtime = "native"
    if device is not None:
        runtime, machine = "program", machine_of(device, itemsize)
    own = network.ranks.values()
    rank = max(1, round(float(np.exp(np.mean(np.log(list(own))))))) if own else 1
    curves = {}
    for axis, found in (
        ("batch", ((rows, network) for rows in BATCHES)),
        ("rank", _ranked(network)),
        ("sites", _sited(network, rank)),
    ):
        points = []
        for at, result in found:
            rows = at if axis == "batch" else batch
            options: dict[str, Any] = {"itemsize": itemsize, "machine": machine, "cache": cache}
            ours = plan(result, rows, phase, runtime=runtime, **options).cost
            whole = plan(dense((result.in_features,), (result.out_features,)).with_rank(1), rows, phase, **options).cost
            saved = ours.saved or ours.peak
            points.append(
                GrowthPoint(
                    at, result.num_params, ours.macs, saved, ours.predicted_s, whole.macs, whole.predicted_s
                )
            )  # fmt: skip
            if progress is not None:
                progress(f"{axis} {at}: {ours.predicted_s * 1e3:.3g} ms")
        if len(points) > 1:
            curves[axis] = tuple(points)
    return Growth(network, batch, rank, phase, curves, device or CPU)


def _ranked(network: Network) -> Iterator[tuple[int, Network]]:
    seen = set[str]()
    for rank in RANKS if network.topology.bonds else ():
        result = network.topology.with_rank(rank, clip=True)
        if result.fingerprint in seen or (seen and result.num_params > result.dense_params):
            return
        seen.add(result.fingerprint)
        yield rank, result


def _sited(network: Network, rank: int) -> Iterator[tuple[int, Network]]:
    t, found = network.topology, {}
    for sites in SITES:
        inputs, outputs = modes_for(t.in_features, t.out_features, sites, pad=False)
        if 1 in inputs and 1 in outputs:
            break
        result = like(t, inputs, outputs)
        if result is not None:
            found[sites] = result
    if len({len(result.cores) for result in found.values()}) > 1:  # else modes are only names, as in dense and low_rank
        yield from ((sites, result.with_rank(rank, clip=True)) for sites, result in found.items())
