"""Muon on cores: what makes a matrix of them, how far a step goes, and that torch and jax go together."""

import math

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._graph.muon import matrix_axes

NETS = {
    "dense": tn.dense(12, 20).with_rank(1),
    "mpo": tn.mpo((3, 4), (4, 5)).with_rank(3),
    "btt": tn.btt((3, 4), (4, 5)).with_rank(2),
    "cp": tn.cp((3, 4), (4, 5)).with_rank(6),
    "tree": tn.tree((3, 2, 2), (4, 5, 1)).with_rank(3),
    "ring": tn.ring((3, 4), (4, 5)).with_rank(2),
    "kronecker": tn.kronecker((3, 4), (4, 5)),
}
NETS = {name: net if isinstance(net, tn.Network) else net.with_rank(1) for name, net in NETS.items()}


def matrices(array, axes):
    """The stack of matrices of a core, shape (stack, summed, opened)."""
    summed, opened = axes
    stack = [axis for axis in range(array.ndim) if axis not in (*summed, *opened)]
    moved = np.transpose(array, (*stack, *summed, *opened))
    return moved.reshape(-1, math.prod(array.shape[a] for a in summed), math.prod(array.shape[a] for a in opened))


@pytest.mark.parametrize("name", NETS)
def test_every_axis_is_summed_opened_or_numbers_matrices(name):
    t = NETS[name].topology
    for core in t.cores:
        summed, opened = matrix_axes(t)[core.name]
        assert not set(summed) & set(opened)
        assert all(core.legs[axis] not in t.outputs for axis in summed)
        assert all(core.legs[axis] not in t.inputs for axis in opened)
    if name == "btt":  # each core is a stack of blocks
        assert all(len(summed) + len(opened) < len(core.legs) for core in t.cores
                   for summed, opened in [matrix_axes(t)[core.name]])  # fmt: skip


@pytest.mark.cases(5)
@pytest.mark.parametrize("framework", ["torch", "jax"])
@pytest.mark.parametrize("name", NETS)
def test_a_step_has_equal_singular_values_and_the_size_of_adamws(name, framework):
    pytest.importorskip(framework)
    rng = np.random.default_rng(0)
    for core, shape in NETS[name].shapes.items():
        axes = matrix_axes(NETS[name].topology)[core]
        gradient = rng.standard_normal(shape)
        if framework == "torch":
            import torch
            from tn4nn_torch._muon import orthogonalized

            step = orthogonalized(torch.from_numpy(gradient), axes).numpy()
        else:
            import jax
            from tn4nn_jax._directions import orthogonalized

            with jax.enable_x64(True):
                step = np.asarray(orthogonalized(jax.numpy.asarray(gradient), axes))
        assert step.shape == shape
        for before, after in zip(matrices(gradient, axes), matrices(step, axes), strict=True):
            rows, columns = after.shape
            values = np.linalg.svd(after, compute_uv=False) / (0.2 * math.sqrt(max(rows, columns)))
            # The iteration brings all to about 1, the smallest ones not quite.
            assert values.max() < 1.3
            assert np.median(values) > 0.6
            u, _, v = np.linalg.svd(before, full_matrices=False)
            along = np.einsum("mr,mn,rn->r", u, after, v)
            assert np.all(along > 0)
            assert np.linalg.norm(along) == pytest.approx(np.linalg.norm(after))  # the singular vectors stay


def test_a_plain_matrix_moves_as_by_torchs_own_muon():
    torch = pytest.importorskip("torch")
    from tn4nn_torch import Muon

    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(value) for value in [torch.randn(24, 40)] * 2)
    ours, theirs = torch.nn.Parameter(ours.detach().clone()), torch.nn.Parameter(theirs.detach().clone())
    start = ours.detach().clone()
    options = {"lr": 0.02, "weight_decay": 0.1}
    pair = (
        Muon([{"params": [ours], "axes": ((1,), (0,))}], **options),
        torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options),
    )
    for _ in range(5):
        gradient = torch.randn(24, 40)
        for parameter, optimizer in zip((ours, theirs), pair, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    off = (ours - theirs).norm() / (theirs - start).norm()
    assert off < 0.02  # torch iterates in bfloat16


def test_an_array_of_two_axes_moves_as_by_optax():
    jax = pytest.importorskip("jax")
    contrib = pytest.importorskip("optax.contrib")
    if not hasattr(contrib, "MuonDimensionNumbers"):
        pytest.skip("needs optax with muon_weight_dimension_numbers")
    from tn4nn_jax._directions import orthogonalized

    array = jax.random.normal(jax.random.key(0), (3, 4, 5))
    other = contrib.muon(
        1.0, nesterov=False, consistent_rms=0.2,
        muon_weight_dimension_numbers={"w": contrib.MuonDimensionNumbers((0,), (2,))},
    )  # fmt: skip
    theirs, _ = other.update({"w": array}, other.init({"w": array}), {"w": array})
    assert np.allclose(-theirs["w"], orthogonalized(array, ((0,), (2,))), atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_a_first_step_moves_w_as_that_of_a_dense_layer(name):
    torch = pytest.importorskip("torch")
    from tn4nn_torch import Muon, TNLinear, parameter_groups

    net, lr, moves = NETS[name], 1e-3, []
    for seed in range(5):
        torch.manual_seed(seed)
        layer = TNLinear(net, seed=seed, bias=False)
        optimizer = Muon(parameter_groups(layer, lr, optimizer="muon"))
        before = dict(layer.named_parameters())
        before = net.to_dense({core: array.detach().numpy().copy() for core, array in before.items()})
        target = torch.randn(64, net.out_features)
        (layer(torch.randn(64, net.in_features)) - target).square().mean().backward()
        optimizer.step()
        after = net.to_dense({core: array.detach().numpy() for core, array in layer.named_parameters()})
        moves.append(np.linalg.norm(after - before) / np.linalg.norm(before))
    # All entries of a dense matrix of standard deviation in_features^-1/2 move by 0.2 lr; the N parts of a network's
    # step add up to as much where they agree, and to a part of it where they do not.
    dense = 0.2 * lr * math.sqrt(net.in_features)
    assert 0.4 / math.sqrt(len(net.shapes)) * dense < np.median(moves) < 1.3 * dense


def test_an_own_loop_with_its_state_saved_goes_on_to_the_bit():
    torch = pytest.importorskip("torch")
    from tn4nn_torch import Muon, TNLinear, parameter_groups

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(7, 12)
            self.layer = TNLinear(NETS["mpo"], seed=0)
            self.head = torch.nn.Linear(20, 12)
            self.out = torch.nn.Linear(12, 7, bias=False)
            self.out.weight = self.table.weight

        def forward(self, tokens):
            return self.out(self.head(self.layer(self.table(tokens))))

    def steps(model, optimizer, count, first):
        losses = []
        for step in range(first, first + count):
            tokens = torch.from_numpy(np.random.default_rng(step).integers(0, 7, 16))
            loss = torch.nn.functional.cross_entropy(model(tokens), (tokens + 1) % 7)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    torch.manual_seed(0)
    model = Model()
    groups = parameter_groups(model, 3e-2, 0.01, optimizer="muon")
    axes = {name: group["axes"] for group in groups for name in group["names"]}
    assert axes == {
        "table.weight": None,  # it is the matrix of the output too
        "layer.core0": ((0,), (1, 2)), "layer.core1": ((0, 1), (2,)), "layer.bias": None,
        "head.weight": ((1,), (0,)), "head.bias": None,
    }  # fmt: skip
    optimizer = Muon(groups)
    first = steps(model, optimizer, 20, 0)
    saved = {key: value.clone() for key, value in model.state_dict().items()}
    import copy

    state = copy.deepcopy(optimizer.state_dict())
    rest = steps(model, optimizer, 20, 20)
    assert rest[-1] < 0.5 * first[0]
    other = Model()
    other.load_state_dict(saved)
    resumed = Muon(parameter_groups(other, 3e-2, 0.01, optimizer="muon"))
    resumed.load_state_dict(state)
    assert steps(other, resumed, 20, 20) == rest


@pytest.mark.thorough
def test_an_equinox_model_trains_by_scale_by_muon():
    eqx, jax, optax = (pytest.importorskip(name) for name in ("equinox", "jax", "optax"))
    import tn4nn_jax as tj

    class Model(eqx.Module):
        table: eqx.nn.Embedding
        layer: tj.TNLinear
        head: eqx.nn.Linear

        def __call__(self, token):
            return self.head(jax.nn.relu(self.layer(self.table(token)[None])[0]))

    keys = jax.random.split(jax.random.key(0))
    model = Model(
        eqx.nn.Embedding(7, 12, key=keys[0]), tj.TNLinear(NETS["btt"], seed=0), eqx.nn.Linear(20, 7, key=keys[1])
    )
    chain = optax.chain(
        tj.scale_by_muon(model), tj.scale_by_structure(model, lr=3e-2, optimizer="muon"),
        tj.decay_by_structure(model, 0.01), optax.scale_by_learning_rate(3e-2),
    )  # fmt: skip
    tokens = np.arange(7)

    @eqx.filter_jit
    def step(model, state):
        def loss_of(model):
            return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(tokens), (tokens + 1) % 7).mean()

        loss, gradients = eqx.filter_value_and_grad(loss_of)(model)
        updates, state = chain.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, loss, updates

    state, losses = chain.init(eqx.filter(model, eqx.is_inexact_array)), []
    for _ in range(30):
        model, state, loss, updates = step(model, state)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
    assert updates.head.weight.shape == (7, 20)


def test_a_complex_parameter_is_refused():
    torch = pytest.importorskip("torch")
    from tn4nn_torch import Muon

    with pytest.raises(ValueError, match="real parameters"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))], "axes": ((0,), (1,))}])
