"""The torch layers as a torch user meets them: values are compared, not only that it ran."""

import copy
import io
import pickle

import numpy as np
import pytest
from helpers import close, run_python

import tn4nn as tn
from tn4nn._planning import layer as _layer
from tn4nn._planning import planner as _planner

torch = pytest.importorskip("torch")
from tn4nn_torch import TNConv2d, TNEmbedding, TNLinear, convert, split_attention, to_module  # noqa: E402

torch.set_num_threads(1)

NETWORKS = {
    "mpo": tn.mpo((4, 3, 2), (2, 3, 2)).with_rank(3),
    "ring": tn.ring((4, 3, 2), (2, 3, 2)).with_rank(2),
    "tree": tn.tree((4, 3, 2), (2, 3, 2)).with_rank(3),
    "peps": tn.peps((2, 3, 2, 2), (2, 3, 2, 1)).with_rank(2),
    "cp": tn.cp((4, 6), (4, 3)).with_rank(5),
    "btt": tn.btt((4, 6), (4, 3)).with_rank(2),
    "dense": tn.dense(24, 12).with_rank(1),
}


@pytest.fixture(params=list(NETWORKS))
def layer(request):
    return TNLinear(NETWORKS[request.param], seed=1, batch=5)


@pytest.fixture
def x():
    return torch.from_numpy(np.random.default_rng(0).standard_normal((5, 24)).astype(np.float32))


def expected(layer, x):
    weights = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}
    w = torch.from_numpy(layer.network.to_dense({n: weights[n] for n in layer.network.shapes}))
    return x.double() @ w.T + torch.from_numpy(weights["bias"])


def gradients_of(layer, x):
    """Gradients of the sum of squares, by plain autograd."""
    value = x.clone().requires_grad_(True)
    (layer(value) ** 2).sum().backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters()} | {"x": value.grad}
    layer.zero_grad()
    return found


@pytest.mark.cases(6)
def test_is_a_plain_module_with_ordinary_parameters(layer):
    assert all(isinstance(p, torch.nn.Parameter) for p in layer.parameters())
    assert set(dict(layer.named_parameters())) == {*layer.network.shapes, "bias"}
    assert "24 -> 12" in repr(layer)


def test_non_contiguous_empty_and_leading_axes(layer, x):
    wide = torch.stack([x, x + 1], dim=-1)[..., 0]
    assert not wide.is_contiguous()
    assert close(layer(wide), expected(layer, x))
    assert layer(x[:0]).shape == (0, 12)
    assert layer(x[0]).shape == (12,)
    assert close(layer(x[0]), expected(layer, x)[0])
    assert layer(x.reshape(1, 5, 1, 24)).shape == (1, 5, 1, 12)


def test_any_subset_may_not_require_gradients(layer, x):
    whole = gradients_of(layer, x)
    for frozen in layer.network.shapes:
        some = copy.deepcopy(layer)
        dict(some.named_parameters())[frozen].requires_grad_(False)
        (some(x) ** 2).sum().backward()
        for name, p in some.named_parameters():
            if name == frozen:
                assert p.grad is None
            else:
                assert close(p.grad, whole[name])


@pytest.mark.cases(2)
def test_gradcheck_and_second_derivatives(layer):
    double = layer.double()
    x = torch.randn(2, 24, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(double, (x,))
    assert torch.autograd.gradgradcheck(lambda v: (double(v) ** 2).sum(), (x,))


@pytest.mark.cases(2)
@pytest.mark.parametrize("how", ["tensor", "parameter", "vmapped", "compiled"])
def test_a_core_of_the_right_size_and_another_shape_is_refused(x, how):
    layer = TNLinear(NETWORKS["mpo"], seed=1)
    layer(x)  # planned, and the short path is open
    wrong = layer.core0.detach().reshape(layer.core0.shape[::-1])
    assert wrong.shape != layer.core0.shape
    given = {**dict(layer.named_parameters()), "core0": torch.nn.Parameter(wrong) if how == "parameter" else wrong}

    def call(params, v):
        return torch.func.functional_call(layer, params, (v,))

    if how == "vmapped":
        call = torch.vmap(call, in_dims=(None, 0))
        x = x[None]
    if how == "compiled":
        call = torch.compile(call, backend="eager")
    with pytest.raises(Exception, match=r"core 'core0': expected shape \(4, 2, 3\), received \(3, 2, 4\)"):
        call(given, x)
    copied = copy.deepcopy(layer)
    assert [id(core) for core in copied._own] == [id(core) for core in copied.cores()]
    assert not {id(core) for core in copied._own} & {id(core) for core in layer._own}


def test_functional_call_uses_what_it_is_given(layer, x):
    other = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    result = torch.func.functional_call(layer, other, (x,))
    twin = copy.deepcopy(layer)
    twin.load_state_dict(other)
    assert close(result, expected(twin, x))
    assert not close(result, expected(layer, x))


def test_func_grad_and_vmap(layer, x):
    parameters = dict(layer.named_parameters())
    loss = lambda p, v: (torch.func.functional_call(layer, p, (v,)) ** 2).sum()  # noqa: E731
    whole = gradients_of(layer, x)
    found = torch.func.grad(loss)(parameters, x)
    assert all(close(found[name], whole[name]) for name in parameters)
    assert close(torch.vmap(layer)(x), expected(layer, x))
    assert close(torch.vmap(layer)(x.reshape(5, 1, 24))[:, 0], expected(layer, x))
    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    assert all(close(each[name].sum(0), whole[name], 1e-4) for name in parameters)


@pytest.mark.slow
def test_compile_fullgraph(layer, x):
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert close(compiled(x), expected(layer, x))
    value = x.clone().requires_grad_(True)
    (compiled(value) ** 2).sum().backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters()} | {"x": value.grad}
    layer.zero_grad()
    whole = gradients_of(layer, x)
    assert all(close(found[name], whole[name]) for name in whole)
    more = torch.cat([x, x + 1, x - 1])
    assert close(compiled(more), expected(layer, more))


@pytest.mark.cases(4)
def test_export(layer, x):
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(layer.eval(), (x,), dynamic_shapes=({0: rows},))
    more = torch.cat([x, x + 1])
    assert close(program.module()(more), expected(layer, more))


def test_autocast(layer, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(x)
    assert close(result, expected(layer, x), 0.05)
    assert result.dtype == torch.bfloat16  # as of nn.Linear


def test_deepcopy_pickle_and_state_dict(layer, x):
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not close(twin(x), layer(x).detach())
    layer.load_state_dict(twin.state_dict())
    assert torch.equal(layer(x), twin(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    held = io.BytesIO()
    torch.save(layer.state_dict(), held)
    held.seek(0)
    assert set(torch.load(held, weights_only=True)) == set(layer.state_dict())


def test_conversion_of_dtype(layer, x):
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


def test_to_dense_is_differentiable(layer):
    w = layer.to_dense()
    weights = {n: p.detach().numpy() for n, p in layer.named_parameters() if n != "bias"}
    assert close(w, torch.from_numpy(layer.network.to_dense(weights)))
    (w**2).sum().backward()
    assert all(p.grad is not None for n, p in layer.named_parameters() if n != "bias")


def test_no_graph_without_gradients(layer, x):
    with torch.no_grad():
        assert not layer(x).requires_grad


def test_training_does_not_write_into_the_weights_it_was_given(x):
    weights = NETWORKS["mpo"].init(0) | {"bias": np.zeros(12, np.float32)}
    before = {name: array.copy() for name, array in weights.items()}
    layer = TNLinear(NETWORKS["mpo"], weights=weights)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    (layer(x) ** 2).sum().backward()
    optimizer.step()
    assert all(np.array_equal(weights[name], before[name]) for name in before)


def test_batches_that_vary_make_few_plans(x, monkeypatch):
    planned, find = [], _layer.find
    monkeypatch.setattr(_layer, "find", lambda request: planned.append(request.batch) or find(request))
    layer = TNLinear(NETWORKS["mpo"])
    assert planned == []
    for rows in range(1, 70):
        layer(x[:1].expand(rows, -1))
    assert list(dict.fromkeys(planned)) == [1, 4, 16, 64, 256]
    assert layer.plan(3).executor != "native" or len(planned) == 6  # nothing is planned twice, or that does not run


def test_a_batch_is_planned_when_the_layer_is_made_and_never_again(x, monkeypatch):
    planned, find = [], _layer.find
    monkeypatch.setattr(_layer, "find", lambda request: planned.append(request.batch) or find(request))
    layer = TNLinear(NETWORKS["mpo"], batch=5)
    assert planned == [5]
    with monkeypatch.context() as patch:
        if layer.plan(5).executor == "native":
            patch.setattr(_planner, "candidates", None)  # nothing is searched for
        for rows in (5, 1, 70):
            layer(x[:1].expand(rows, -1))
    assert set(planned) == {5}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: torch.zeros(3, 23), r"expected inputs of shape \(..., 24\), received \(3, 23\)"),
        (lambda: torch.zeros(3, 24, dtype=torch.int64), "takes floating-point inputs, received torch.int64"),
        (lambda: torch.zeros(3, 24, dtype=torch.float64), "the weights are torch.float32, the input is torch.float64"),
        (lambda: torch.zeros(3, 24, device="meta"), "the weights are on cpu, the input is on meta"),
        (lambda: torch.tensor(1.0), r"expected inputs of shape \(..., 24\), received \(\)"),
    ],
)
def test_bad_input(bad, message):
    with pytest.raises(tn.ShapeError, match=message):
        TNLinear(NETWORKS["mpo"])(bad())


def test_bad_tokens_and_images():
    table = TNEmbedding(tn.build("mpo", 1000, 12, sites=3).with_rank(2))
    with pytest.raises(tn.ShapeError, match=r"tokens from 0 to 999, received 3\.\.1000"):
        table(torch.tensor([3, 1000]))
    with pytest.raises(tn.ShapeError, match="takes integers, received torch.float32"):
        table(torch.tensor([3.0]))
    with pytest.raises(tn.ShapeError, match=r"expected \(batch, channels, height, width\), received \(8, 5, 5\)"):
        TNConv2d(tn.mpo((8, 9), (4, 4)).with_rank(2))(torch.zeros(8, 5, 5))


def test_unknown_device_and_dtype():
    model = tn.Linear(4, 2)
    with pytest.raises(tn.BackendError, match="torch knows no device 'gpuu'"):
        model.build("torch", device="gpuu")
    with pytest.raises(tn.BackendError, match="unknown dtype 'float3'. Did you mean 'float32'"):
        model.build("torch", dtype="float3")
    if not torch.cuda.is_available():
        with pytest.raises(tn.BackendError, match="torch sees no CUDA device here.*use device='cpu'"):
            model.build("torch", device="cuda")


def test_weights_of_another_model():
    with pytest.raises(tn.ShapeError, match="'core9' is not a weight of this model"):
        tn.Linear(4, 2).build("torch", weights={"core9": np.zeros((2, 4))})
    with pytest.raises(tn.ShapeError, match=r"'core0': expected shape \(2, 4\), received \(4, 2\)"):
        tn.Linear(4, 2).build("torch", weights={"core0": np.zeros((4, 2)), "bias": np.zeros(2)})


def test_global_configuration_is_untouched(x):
    state, dtype, threads = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    model = tn.Sequential(tn.Linear(NETWORKS["mpo"]), tn.Dropout(0.5), tn.Linear(12, 2))
    data = (np.ones((20, 24), np.float32), np.zeros(20, np.int64))
    tn.train(model, data, epochs=1, batch_size=5, precision="float64")
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() == dtype
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("way", ["assign", "to_empty"])
def test_an_ordering_survives_the_meta_device(way):
    net = tn.build("mpo", 64, 16, sites=2).with_rank(3)
    source, x = TNLinear(net, ordering="hilbert", seed=1), torch.randn(5, 64)
    layer = TNLinear(net, ordering="hilbert", device="meta")
    if way == "to_empty":
        layer.to_empty(device="cpu")
    layer.load_state_dict(source.state_dict(), assign=way == "assign")
    assert torch.equal(layer(x), source(x))
    assert close(layer.weight, source.weight)


def test_batches_of_gradients(layer):
    x, w = torch.randn(5, 24, requires_grad=True), layer.weight.detach()
    gy = torch.randn(3, 5, 12)
    (batched,) = torch.autograd.grad(layer(x), x, gy, is_grads_batched=True)
    assert close(batched, gy @ w)
    y = layer(x)
    assert close(torch.vmap(lambda g: torch.autograd.grad(y, x, g, retain_graph=True)[0])(gy), gy @ w)
    jacobian = torch.autograd.functional.jacobian(layer, x[:1], vectorize=True)
    assert close(jacobian[0, :, 0], w)
    cores = list(layer.parameters())
    each = [torch.autograd.grad(layer(x), cores, g) for g in gy]
    together = torch.autograd.grad(layer(x), cores, gy, is_grads_batched=True)
    assert all(close(found[i], each[i][j]) for j, found in enumerate(together) for i in range(3))


def test_numbers_that_torch_keeps_otherwise_than_they_are(layer, x):
    layer(x)  # the next call takes the short way
    assert close(layer(torch._neg_view(x)), expected(layer, -x))
    zeros = torch._efficientzerotensor(5, 24)
    assert close(layer(zeros), expected(layer, torch.zeros(5, 24)))
    value, w = x.requires_grad_(), layer.weight.detach()
    gy = torch.ones(5, 12)
    assert close(torch.autograd.grad(layer(value), value, torch._neg_view(gy))[0], -gy @ w)
    assert not torch.autograd.grad(layer(value), value, torch._efficientzerotensor(5, 12))[0].any()


CONVOLUTIONS = {
    "mpo": tn.mpo((8, 9), (4, 4)).with_rank(3),
    "kept": tn.btt((8, 9), (4, 4)).with_rank(2),
    "dense": tn.dense(72, 16).with_rank(1),
}


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", list(CONVOLUTIONS))
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_convolutions(name, dynamic):
    torch._dynamo.reset()
    conv = TNConv2d(CONVOLUTIONS[name], kernel=3, padding=1, stride=2)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    kernel = conv.weight.detach().double()
    for shape in ((3, 8, 6, 6), (9, 8, 16, 7)):
        image = torch.randn(shape, requires_grad=True)
        result = torch.nn.functional.conv2d(image.double(), kernel, conv.bias.double(), 2, 1)
        found = compiled(image)
        assert close(found, result)
        gradients = [torch.autograd.grad((y**2).sum(), image)[0] for y in (found, result)]
        assert close(*gradients)


@pytest.mark.parametrize("name", list(CONVOLUTIONS))
def test_a_convolution_of_no_images(name):
    conv = TNConv2d(CONVOLUTIONS[name], kernel=3, padding=1, stride=2)
    assert conv(torch.zeros(0, 8, 6, 7)).shape == (0, 16, 3, 4)


def test_exported_convolution_takes_any_batch():
    conv = TNConv2d(CONVOLUTIONS["mpo"], kernel=3, padding=1)
    images = torch.randn(70, 8, 6, 6)
    program = torch.export.export(conv, (images[:4],), dynamic_shapes=({0: torch.export.Dim("images", max=99)},))
    assert close(program.module()(images), conv(images))


@pytest.mark.cases(1)
def test_weight_can_be_read_under_compile(layer):
    torch._dynamo.reset()
    assert close(torch.compile(lambda: layer.weight, fullgraph=True, backend="aot_eager")(), layer.weight)


def test_embedding_under_vmap_fake_tensors_and_a_trace():
    table = TNEmbedding(tn.build("mpo", 97, 12, sites=2).with_rank(3))
    tokens = torch.arange(96).reshape(12, 8)
    assert torch.equal(torch.vmap(table)(tokens), table(tokens))
    given = {name: torch.stack([p, -p]) for name, p in table.named_parameters()}
    both = torch.vmap(lambda p, ids: torch.func.functional_call(table, p, (ids,)))(given, tokens[:2])
    assert close(both[0], table(tokens[0]))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        assert table(torch.zeros(3, dtype=torch.int64)).shape == (3, 12)


@pytest.mark.parametrize("token", [97, -1, 1000])
def test_a_token_of_the_padding_is_an_error_where_tokens_cannot_be_looked_at(token):
    table = TNEmbedding(tn.build("mpo", 97, 12, sites=2).with_rank(3))  # 98 rows with the padding
    with pytest.raises(IndexError):
        torch.vmap(table)(torch.tensor([[token]]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("name", list(NETWORKS))
def test_cuda_agrees_with_the_oracle(name, x):
    layer = TNLinear(NETWORKS[name], device="cuda")
    assert close(layer(x.cuda()).cpu(), expected(layer.cpu(), x), 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's inductor still imports what torch deprecates
def test_inductor(x):
    layer = TNLinear(NETWORKS["mpo"], batch=5)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    assert close(compiled(x), expected(layer, x))


def _replica(rank, port, queue):
    import os

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    layer = TNLinear(NETWORKS["tree"], seed=rank)  # DDP brings all replicas to those of rank 0
    replica = torch.nn.parallel.DistributedDataParallel(layer)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 24)).astype(np.float32))
    (replica(x[rank::2]) ** 2).sum().backward()
    if rank == 0:
        queue.put({name: p.grad.numpy().copy() for name, p in layer.named_parameters()})
    torch.distributed.destroy_process_group()


@pytest.mark.thorough
def test_distributed_data_parallel_gives_the_gradients_of_one_process():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    children = [context.Process(target=_replica, args=(rank, port, queue)) for rank in range(2)]
    for child in children:
        child.start()
    found = queue.get()
    for child in children:
        child.join(60)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 24)).astype(np.float32))
    whole = gradients_of(TNLinear(NETWORKS["tree"], seed=0), x)
    for name, gradient in found.items():
        assert close(2 * torch.from_numpy(gradient), whole[name])  # DDP takes the mean over replicas


# -- traced as a whole ------------------------------------------------------------------------------------------


def _attention():
    source = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    attention = split_attention(source)
    attention.q_proj = TNLinear(tn.mpo((4, 4), (4, 4)).with_rank(3))

    class SelfAttention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    return SelfAttention()


TRACED = {
    "linear": lambda: (TNLinear(tn.mpo((4, 4), (4, 4)).with_rank(3)), torch.randn(2, 3, 16)),
    "padded": lambda: (TNLinear(tn.build("mpo", 35, 23, sites=2).with_rank(3)), torch.randn(2, 35)),
    "ordered": lambda: (
        TNLinear(tn.mpo((4, 4), (4, 4)).with_rank(3), ordering=tn.Ordering.random(16, seed=1)),
        torch.randn(2, 3, 16),
    ),
    "dense": lambda: (TNLinear(tn.build("dense", 16, 16).with_rank(1)), torch.randn(2, 16)),
    "convolution": lambda: (
        TNConv2d(tn.mpo((8, 9), (4, 4)).with_rank(3), kernel=3, padding=1),
        torch.randn(2, 8, 6, 6),
    ),
    "embedding": lambda: (TNEmbedding(tn.mpo((10, 10), (4, 4)).with_rank(3)), torch.randint(100, (2, 5))),
    "padded embedding": lambda: (
        TNEmbedding(tn.build("mpo", 97, 12, sites=2).with_rank(3), padding_idx=3),
        torch.randint(97, (2, 5)),
    ),
    "attention": lambda: (_attention(), torch.randn(2, 5, 16)),
}


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", list(TRACED))
@pytest.mark.parametrize("how", ["compile", "compile dynamic", "export strict", "export"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_layer_is_traced_as_a_whole(name, how):
    module, x = TRACED[name]()
    torch._dynamo.reset()
    if how.startswith("compile"):
        traced = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=how.endswith("dynamic"))
    else:
        batch = ({0: torch.export.Dim("batch")},)
        strict = how.endswith("strict")
        traced = torch.export.export(module, (x,), strict=strict, dynamic_shapes=batch).module()
    for value in (x, torch.cat([x, x, x])) if how != "compile" else (x,):
        y = traced(value)
        assert close(y, module(value))
        parameters = dict(module.named_parameters())
        if how.startswith("export"):
            parameters = dict(traced.named_parameters())
        names = [key for key, p in module.named_parameters() if p.requires_grad]
        found = torch.autograd.grad(y.square().sum(), [parameters[key] for key in names])
        right = torch.autograd.grad(
            module(value).square().sum(), [dict(module.named_parameters())[key] for key in names]
        )
        assert all(close(a, b, 1e-4) for a, b in zip(found, right, strict=True))


# -- sharded ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_results_are_no_views(shape):
    net = tn.build("mpo", 35, 23, sites=2).with_rank(3)
    for options in ({}, {"bias": False}, {"bias": False, "executor": "program"}, {"executor": "program"}):
        y = TNLinear(net, **options)(torch.randn(*shape, 35))
        assert not y._is_view()
        y.mul_(2).sum().backward()
    for layer in (TNEmbedding(net), TNEmbedding(net, padding_idx=3), TNEmbedding(tn.mpo((7, 5), (2, 2)).with_rank(2))):
        y = layer(torch.randint(35, shape))
        assert not y._is_view()
        expected = torch.autograd.grad(layer(torch.ones(shape, dtype=torch.int64)).sum() * 2, list(layer.parameters()))
        found = layer(torch.ones(shape, dtype=torch.int64)).mul_(2)
        assert all(map(close, torch.autograd.grad(found.sum(), list(layer.parameters())), expected))


@pytest.mark.slow
def test_fsdp_shards_every_layer_without_a_warning(tmp_path):
    code = """
        import sys, warnings, torch, torch.distributed as dist, tn4nn as tn
        from tn4nn_torch import TNConv2d, TNEmbedding, TNLinear
        from torch.distributed.fsdp import fully_shard
        dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
        net = tn.mpo((4, 4), (4, 4)).with_rank(3)
        layers = (
            (TNLinear(net), torch.randn(2, 3, 16)),
            (TNLinear(net, bias=False, executor="program"), torch.randn(2, 3, 16)),
            (TNConv2d(tn.mpo((8, 9), (4, 4)).with_rank(3), 3, padding=1), torch.randn(2, 8, 6, 6)),
            (TNEmbedding(tn.mpo((10, 10), (4, 4)).with_rank(3)), torch.randint(100, (2, 5))),
        )
        for layer, x in layers:
            expected = layer(x).detach()
            fully_shard(layer)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*returned a view.*")
                for _ in range(3):
                    y = layer(x)
                    assert torch.allclose(y, expected, atol=1e-5)
                    y.sum().backward()
        dist.destroy_process_group()
        print("done")
    """
    assert "done" in run_python(code, tmp_path / "store")


# -- copied and reparametrized ----------------------------------------------------------------------------------


def test_a_copy_is_made_while_another_thread_calls():
    layer, x = TNLinear(NETWORKS["mpo"]), torch.randn(5, 24)

    class Called:
        """Found by a call; while it is copied, the next call finds another one."""

        def __deepcopy__(self, memo):
            layer._quick[len(layer._quick)] = Called()
            return self

    for _ in range(3):
        layer._quick[len(layer._quick)] = Called()
    again = copy.deepcopy(layer)
    assert again._quick == {}
    assert torch.equal(again(x), layer(x))
    assert again.network.topology is layer.network.topology


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["linear", "convolution", "embedding"])
def test_a_weight_that_is_computed_cannot_be_reparametrized(kind):
    from torch.nn.utils import prune

    utils = torch.nn.utils
    for change in (
        utils.parametrizations.weight_norm, utils.parametrizations.spectral_norm, utils.parametrizations.orthogonal,
        utils.weight_norm, utils.spectral_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ):  # fmt: skip
        layer, x = TRACED[kind]()
        y = layer(x)
        with pytest.raises(tn.BackendError, match=r"received 'weight', which .* its cores \(core0.*name='core0'.*undo"):
            change(layer)
        assert torch.equal(layer(x), y)
        assert not utils.parametrize.is_parametrized(layer)
        for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(again(x), y)
            with pytest.raises(tn.BackendError, match="received 'weight'"):
                change(again)


def test_a_core_can_be_reparametrized():
    layer, x = TRACED["linear"]()
    y = layer(x)
    torch.nn.utils.parametrizations.weight_norm(layer, "core0")
    assert torch.nn.utils.parametrize.is_parametrized(layer, "core0")
    assert close(layer(x), y)
    layer(x).sum().backward()
    assert layer.parametrizations.core0.original0.grad is not None
    torch.nn.utils.parametrize.remove_parametrizations(layer, "core0")
    assert close(layer(x), y)
    named = TNLinear(tn.topology("weight: x a, other: a y", {"x": 4}, {"y": 4}).with_rank(2))
    assert sorted(named.state_dict()) == ["bias", "other", "weight"]


def test_weights_lie_in_order_however_they_are_given():
    """A core that does not would be copied by every call."""
    net = tn.mpo((4, 4), (4, 4)).with_rank(3)
    turned = {name: np.asfortranarray(core) for name, core in net.init(0).items()}
    layer = TNLinear(net, weights={**turned, "bias": np.zeros(32)[::2]})
    assert all(p.is_contiguous() for p in layer.parameters())
    found = tn.decompose(np.asfortranarray(net.to_dense(turned)), net.topology, params=net.num_params)
    assert all(p.is_contiguous() for p in TNLinear(found.network, False, weights=found.weights).parameters())
    rules = {"0": tn.mpo((8, 8), (8, 8)).with_rank(8)}
    model = convert(torch.nn.Sequential(torch.nn.Linear(64, 64)), rules)
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("name", ["low_rank", "mpo", "tree", "btt", "ring"])
@pytest.mark.parametrize("rows", [1, 8, 256])
def test_a_merged_layer_is_not_predicted_to_be_slower(name, rows):
    layer = TNLinear(tn.build(name, 256, 256, sites=1 if name == "low_rank" else 2, pad=False).with_rank(8), seed=0)
    merged = layer.merge(batch=rows)
    assert all(p.is_contiguous() for p in merged.parameters())
    before = TNLinear(layer.network, batch=rows, phase="forward").plan(rows)
    after = merged.plan(rows)
    if after.executor == before.executor:  # prices of the framework's own product are of another model
        assert after.cost.predicted_s <= 1.1 * before.cost.predicted_s
    x = torch.randn(rows, 256)
    assert torch.allclose(merged(x), layer(x), atol=1e-4)


def test_weights_of_another_model_are_refused():
    model = tn.Sequential(tn.Linear(tn.mpo((4, 4), (2, 2)).with_rank(2)), tn.ReLU())
    weights = model.init(0)
    with pytest.raises(tn.ShapeError, match="core1"):
        to_module(model, {name: array for name, array in weights.items() if "core1" not in name})
    with pytest.raises(tn.ShapeError, match="core0"):
        to_module(model, weights | {"0.core0": weights["0.core0"][:1]})
