"""E12: the continuous space of two-factor einsums, at equal multiply-adds."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import Layer, Linear, Network, ReLU, Topology, topology, train
from .. import Sequential as Model
from .._base.seeds import rng_for
from .._base.tables import markdown_table
from .._comparison.settings import LEARNING_RATES
from .._drawing.figure import COLOURS, GREY, dress, legend, panels
from .._graph.problem import min_macs
from ._experiment import Experiment, Line, Row, Settings, Unit, mean_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BITS, FEATURES, TARGETS = 8, 128, 16  # the layers under test are 2^8 -> 2^8
WIDTH = 2**BITS
MACS, RANDOM = 16_384, 8  # multiply-adds a sample and layer, a quarter of dense; random points
ROWS, TEST_ROWS, EPOCHS, SEARCH_EPOCHS, BATCH = 50_000, 5_000, 3, 1, 100
SEARCH_SEED = 1_000

Theta = tuple[int, int, int, int, int, int]

# log2 of the legs (alpha, beta, gamma | delta, epsilon, phi); rho follows from the budget.
POINTS: dict[str, Theta] = {
    "low rank": (8, 0, 0, 0, 8, 0),
    "Kronecker": (4, 4, 0, 4, 4, 0),
    "TT": (4, 4, 0, 4, 4, 0),
    "Monarch": (4, 0, 4, 0, 4, 4),
    "BTT": (4, 0, 4, 0, 4, 4),
}
WITHOUT_RANK = ("Kronecker", "Monarch")  # rho = 1: what they are beside TT and BTT


def two_factor(theta: Theta) -> Topology:
    """W = sum over rho of A (alpha gamma delta phi rho) and B (beta gamma epsilon phi rho), the input being
    (alpha beta gamma), the output (delta epsilon phi), by log2 of their sizes.

    Examples:
        >>> print(two_factor((4, 0, 4, 0, 4, 4)).text)
        A: alpha gamma phi rho, B: gamma epsilon phi rho
    """
    names = ("alpha", "beta", "gamma", "delta", "epsilon", "phi")
    size: dict[str, int] = {name: 2**bits for name, bits in zip(names, theta, strict=True)}
    held = {leg for leg, n in size.items() if n > 1}
    a = [leg for leg in ("alpha", "gamma", "delta", "phi") if leg in held]
    b = [leg for leg in ("beta", "gamma", "epsilon", "phi") if leg in held]
    ins: dict[str, int] = {leg: size[leg] for leg in ("alpha", "beta", "gamma") if leg in held}
    outs: dict[str, int] = {leg: size[leg] for leg in ("delta", "epsilon", "phi") if leg in held}
    return topology(f"A: {' '.join(a)} rho, B: {' '.join(b)} rho", ins, outs)


def network(name: str, theta: Theta) -> Network:
    """The structure with the rank that fills the budget."""
    t = two_factor(theta)
    return t.with_rank(1) if name in WITHOUT_RANK else t.with_budget(macs=MACS * BATCH, batch=BATCH)


def points() -> dict[str, Theta]:
    """The named points, and random ones that the budget can meet."""
    found, rng = dict(POINTS), rng_for(0, "einsum space")
    while len(found) < len(POINTS) + RANDOM:
        cuts = [sorted(int(n) for n in rng.integers(0, BITS + 1, 2)) for _ in range(2)]
        (a, b), (d, e) = cuts
        theta: Theta = (a, b - a, BITS - b, d, e - d, BITS - e)
        name = "-".join(map(str, theta))
        one = two_factor(theta).with_rank(1)
        if theta not in found.values() and min_macs(one, BATCH) <= MACS * BATCH:
            found[name] = theta
    return found


def _model(net: Network | None) -> Model:
    def hidden() -> Linear:
        return Linear(WIDTH, WIDTH) if net is None else Linear(net)

    return Model(Linear(FEATURES, WIDTH), ReLU(), hidden(), ReLU(), hidden(), ReLU(), Linear(WIDTH, TARGETS))


@functools.cache
def task() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Normal inputs, and the standardised outputs of a dense model of the same shape with random weights."""
    teacher = _model(None)
    weights = teacher.init(7)
    x = rng_for(0, "inputs").standard_normal((ROWS + TEST_ROWS, FEATURES)).astype(np.float32)
    # Twice the usual scale in the hidden layers: a function further from linear.
    wide = {name: 2 * array if name[0] in "024" else array for name, array in weights.items()}
    y = np.asarray(teacher.build("numpy", wide)(x))
    return x, ((y - y.mean(0)) / y.std(0)).astype(np.float32)


def _loss(model: Layer, settings: Settings, seed: int, lr: float, epochs: int, test: bool) -> float:
    """Mean squared error over the variance: on the test rows, or on the validation split."""
    x, y = task()
    fitting, held_out = (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:])
    run = train(
        model, fitting, validation=held_out if test else 0.1, backend=settings.backend, device=settings.device,
        seed=seed, epochs=epochs, batch_size=BATCH, lr=lr, loss="mse",
    )  # fmt: skip
    return run.history[-1].validation_loss


def _point(name: str, theta: Theta, settings: Settings, scratch: Path) -> dict[str, Any]:
    net = network(name, theta)
    model = _model(net)
    tried = {lr: _loss(model, settings, SEARCH_SEED, lr, SEARCH_EPOCHS, test=False) for lr in LEARNING_RATES}
    lr = min(tried, key=lambda rate: math.inf if math.isnan(tried[rate]) else tried[rate])
    cores = {core: rng_for(0, core).standard_normal(shape) for core, shape in net.shapes.items()}
    return {
        "theta": list(theta), "rho": net.ranks["rho"], "params": net.num_params, "macs": min_macs(net, BATCH) / BATCH,
        "matrix_rank": int(np.linalg.matrix_rank(net.to_dense(cores))), "lr": lr,
        "losses": [_loss(model, settings, seed, lr, EPOCHS, test=True) for seed in range(settings.seeds)],
    }  # fmt: skip


def _units(settings: Settings) -> list[Unit]:
    chosen = POINTS if settings.quick else points()
    return [Unit({"point": name}, functools.partial(_point, name, theta, settings)) for name, theta in chosen.items()]


def _ratio(rows: Sequence[Row], name: str) -> list[float]:
    losses = {row["point"]: row["losses"] for row in rows}
    return [btt / other for btt, other in zip(losses["BTT"], losses[name], strict=True)]


def _lines(rows: Sequence[Row]) -> list[Line]:
    looks: dict[str, Any] = {"unit": "", "digits": 4}
    rank = next(row["matrix_rank"] for row in rows if row["point"] == "BTT")
    return [
        Line("rank of BTT's matrix", rank, low=WIDTH, high=WIDTH, unit="", digits=0),
        mean_line("loss of BTT / loss of TT", _ratio(rows, "TT"), high=1, unit="", digits=3),
        mean_line("loss of BTT / loss of low rank", _ratio(rows, "low rank"), high=1, unit="", digits=3),
        *(mean_line(f"loss, {row['point']}", row["losses"], **looks) for row in rows),
    ]


def _text(rows: Sequence[Row]) -> list[str]:
    head = ("point", "alpha beta gamma, delta epsilon phi", "rho", "params", "MACs", "rank of W", "lr", "loss")
    table = []
    for row in sorted(rows, key=lambda row: statistics.fmean(row["losses"])):
        first, second = (" ".join(str(2**bits) for bits in part) for part in (row["theta"][:3], row["theta"][3:]))
        numbers = [f"{row['params']:,}", f"{row['macs']:,.0f}", row["matrix_rank"], f"{row['lr']:g}"]
        loss = f"{statistics.fmean(row['losses']):.4f}"
        table.append([row["point"], f"{first}, {second}", row["rho"], *numbers, loss])
    return [markdown_table(head, table)]


def _draw(figure: Figure, rows: Sequence[Row]) -> None:
    left, right = panels(figure, 2, sharey=True)
    for row in rows:
        named = row["point"] in POINTS
        loss = statistics.fmean(row["losses"])
        place = list(POINTS).index(row["point"]) if named else 0
        look: dict[str, Any] = {"marker": "osD^v"[place] if named else ".", "markersize": 9 if named else 7}
        look |= {"color": COLOURS[place] if named else GREY, "linestyle": "none"}
        left.plot([row["params"] / row["macs"]], [loss], label=row["point"] if named else None, **look)
        right.plot([row["matrix_rank"]], [loss], **look)
    dress(left, "parameters / MACs (1: no parameter is shared)", "test loss")
    dress(right, "rank of W", "")
    legend(left)


EXPERIMENT = Experiment(
    name="einsum-space",
    title="The space of two-factor einsums",
    source="Potapczynski et al. 2024 (arXiv:2410.02117), Qiu et al. 2024 (arXiv:2406.06248)",
    about=(
        "W = sum over rho of A and B, where each leg of the input and of the output belongs to A, to B or to both: low "
        "rank, Kronecker, TT, Monarch and BTT are points, the others are random ones (grey). Two hidden layers "
        f"{WIDTH} -> {WIDTH} on each structure, rho chosen for {MACS:,} multiply-adds a sample and layer (Kronecker "
        "and Monarch have rho = 1, half of that; dense has 65,536). Regression of the outputs of a dense model of the "
        f"same shape with random weights, {ROWS:,} rows, {EPOCHS} epochs of Adam; the loss is the mean squared error "
        "over the variance, on rows that were not trained on. Learning rate by validation, for each structure. As in "
        "the source, computing is scarce and rows are not."
    ),
    finding=(
        "At equal multiply-adds the loss of a block tensor train is {loss of BTT / loss of TT} times that of a "
        "tensor train and {loss of BTT / loss of low rank} times that of low rank."
    ),
    cost="12 min",
    quick_cost="2 min",
    units=_units,
    lines=_lines,
    recipe={
        "macs": MACS, "features": FEATURES, "rows": ROWS, "epochs": EPOCHS, "search_epochs": SEARCH_EPOCHS,
        "batch": BATCH,
        "rates": LEARNING_RATES, "random": RANDOM,
    },
    text=_text,
    draw=_draw,
)  # fmt: skip
