"""The native runtime under jax: the numbers of XLA's own operations, under every transform."""

import numpy as np
import pytest
from helpers import first_of, run_python

import tn4nn as tn
from tn4nn._planning import native as _native_executor
from tn4nn._runtime import native as core
from tn4nn._runtime import recipe as _recipe

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
import tn4nn_jax  # noqa: E402
from tn4nn_jax import _native  # noqa: E402

if core.runtime(4) is None:
    pytest.skip("there is no native kernel here", allow_module_level=True)
if jax.device_count() > 1 or jax.default_backend() != "cpu":
    pytest.skip("the native runtime is for one CPU", allow_module_level=True)

NETWORKS = {
    name: tn.build(name, 36, 24, sites=4 if name == "mera" else 2, pad=False).with_rank(2, clip=True)
    for name in tn.catalogue()
    if name != "dense"
} | {
    "mpo-5": tn.mpo((4,) * 5, (4,) * 5).with_rank(4),
    "padded": tn.build("mpo", 35, 23, sites=2).with_rank(3),
    "kept": tn.topology("k x0 a, a k y0, x1 y1", {"k": 3, "x0": 3, "x1": 4}, {"y1": 2, "k": 3, "y0": 4}).with_rank(2),
}


def problem(name, rows=5, dtype=np.float32):
    """(ours, the same in XLA's operations, cores, x); both are functions of cores and x."""
    net = NETWORKS[name]
    cores = {key: jnp.asarray(value, dtype) for key, value in net.init(1).items()}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((rows, net.in_features)), dtype)

    def function(runtime):
        return lambda cores, x: tn4nn_jax.linear(net, cores, x, runtime=runtime)

    return function(None), function("program"), cores, x


def squares(function):
    return lambda cores, x: (function(cores, x) ** 2).sum()


def agree(a, b, tolerance=1e-5):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    for found, expected in pairs:
        scale = max(float(jnp.abs(expected).max()), 1e-30)
        assert found.shape == expected.shape
        assert float(jnp.abs(found - expected).max()) <= tolerance * scale


def primitives(function, *given):
    return str(jax.make_jaxpr(function)(*given))


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("rows", [1, 45])
def test_values_and_gradients(name, rows):
    ours, plain, cores, x = problem(name, rows)
    assert "tn4nn_apply" in primitives(ours, cores, x)
    assert "tn4nn_apply" not in primitives(plain, cores, x)
    agree(ours(cores, x), plain(cores, x))
    agree(jax.jit(ours)(cores, x), plain(cores, x))
    gradients = [jax.jit(jax.grad(squares(f), argnums=(0, 1)))(cores, x) for f in (ours, plain)]
    agree(*gradients)
    weights = {key: np.asarray(value) for key, value in cores.items()}
    agree(ours(cores, x), x @ NETWORKS[name].to_dense(weights).T)


@pytest.mark.thorough
def test_float64_and_other_dtypes():
    from tn4nn_jax._device import wide

    with wide(True):
        ours, plain, cores, x = problem("ring", dtype=np.float64)
        assert ours(cores, x).dtype == jnp.float64
        assert "tn4nn_apply" in primitives(ours, cores, x)
        agree(*[jax.grad(squares(f))(cores, x) for f in (ours, plain)], tolerance=1e-12)
    ours, _, cores, x = problem("ring")
    half = {key: value.astype(jnp.bfloat16) for key, value in cores.items()}
    assert "tn4nn_apply" not in primitives(ours, half, x.astype(jnp.bfloat16))
    assert ours(half, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", first_of(["cp", "mpo-5", "padded"]))
def test_forward_mode_and_second_derivatives(name):
    ours, plain, cores, x = problem(name)
    along = jax.tree.map(lambda value: jnp.cos(3 * value), (cores, x))
    agree(*[jax.jvp(f, (cores, x), along)[1] for f in (ours, plain)])
    agree(*[jax.jvp(lambda x, f=f: f(cores, x), (x,), (along[1],))[1] for f in (ours, plain)])

    def reverse_twice(f):
        return jax.grad(lambda cores, x: sum((g**2).sum() for g in jax.tree.leaves(jax.grad(squares(f))(cores, x))))

    def forward_over_reverse(f):
        return jax.jvp(jax.grad(squares(f), argnums=(0, 1)), (cores, x), along)[1]

    def reverse_over_forward(f):
        return jax.grad(lambda cores: (jax.jvp(f, (cores, x), along)[1] ** 2).sum())(cores)

    agree(*[jax.jit(reverse_twice(f))(cores, x) for f in (ours, plain)], tolerance=1e-4)
    agree(*[forward_over_reverse(f) for f in (ours, plain)], tolerance=1e-4)
    agree(*[reverse_over_forward(f) for f in (ours, plain)], tolerance=1e-4)


@pytest.mark.slow
def test_vmap_over_rows_is_one_long_call_and_over_cores_gives_the_same():
    ours, plain, cores, x = problem("mpo-5")
    many = jnp.stack([x, 2 * x, x - 1])
    found = jax.vmap(ours, in_axes=(None, 0))(cores, many)
    agree(found, jnp.stack([plain(cores, each) for each in many]))
    assert "tn4nn_apply" in primitives(jax.vmap(ours, in_axes=(None, 0)), cores, many)
    agree(jax.vmap(ours, in_axes=(None, 1))(cores, many.swapaxes(0, 1)), found)
    ensemble = jax.tree.map(lambda value: jnp.stack([value, -value, value + 1]), cores)
    one_by_one = [plain(jax.tree.map(lambda value, i=i: value[i], ensemble), x) for i in range(3)]
    agree(jax.vmap(ours, in_axes=(0, None))(ensemble, x), jnp.stack(one_by_one))
    per_example = [jax.vmap(jax.grad(squares(f)), in_axes=(None, 0))(cores, many) for f in (ours, plain)]
    agree(*per_example)
    one_row = [jax.vmap(lambda row, f=f: f(cores, row))(x) for f in (ours, plain)]
    agree(*one_row)


@pytest.mark.slow
def test_scan_checkpoint_and_gradients_of_a_part():
    ours, plain, cores, x = problem("mpo-5")

    def chain(f):
        def step(value, _):
            return jnp.tanh(f(cores, value)), None

        return lambda x: jax.lax.scan(step, x, None, length=3)[0]

    agree(*[jax.jit(jax.grad(lambda x, f=f: (chain(f)(x) ** 2).sum()))(x) for f in (ours, plain)])
    agree(*[jax.grad(jax.checkpoint(squares(f)))(cores, x) for f in (ours, plain)])

    def part(f):
        return jax.grad(lambda core: squares(f)({**cores, "core1": core}, x))(cores["core1"])

    agree(part(ours), part(plain))
    assert "wanted=(False, False, True, False, False, False)" in primitives(
        jax.grad(lambda core: squares(ours)({**cores, "core1": core}, x)), cores["core1"]
    )


@pytest.mark.slow
def test_without_jit():
    ours, plain, cores, x = problem("mpo-5")
    with jax.disable_jit():
        agree(ours(cores, x), plain(cores, x))
        found = jax.grad(squares(ours), argnums=(0, 1))(cores, x)
    agree(found, jax.grad(squares(plain), argnums=(0, 1))(cores, x))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 17, 45])
def test_debug_nans_sees_those_of_the_numbers_and_no_others(rows):
    ours, plain, cores, x = problem("mpo-5", rows)
    expected = jax.grad(squares(plain))(cores, x)
    jax.config.update("jax_debug_nans", True)
    try:
        agree(jax.grad(squares(ours))(cores, x), expected)
        for function in (ours, jax.jit(ours)):
            with pytest.raises(FloatingPointError, match="nan"):
                function(cores, x.at[0, 0].set(jnp.nan))
    finally:
        jax.config.update("jax_debug_nans", False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mpo-5", "cp", "kept"])
def test_transposes_of_a_linear_function(name):
    ours, plain, cores, x = problem(name)
    first = next(iter(cores))
    of_x = [lambda x, f=f: f(cores, x) for f in (ours, plain)]
    of_core = [lambda core, f=f: f({**cores, first: core}, x) for f in (ours, plain)]
    gy = jnp.cos(plain(cores, x))
    agree(*[jax.linear_transpose(f, x)(gy) for f in of_x])
    agree(*[jax.jit(jax.linear_transpose(f, cores[first]))(gy) for f in of_core])


@pytest.mark.thorough
def test_gradients_of_an_iterative_solver():
    net = tn.mpo((4, 4), (4, 4)).with_rank(4)
    cores = net.init(0)
    matrix = np.asarray(net.to_dense(cores)) + 4 * np.eye(16)

    def solved(b):
        solution, _ = jax.scipy.sparse.linalg.bicgstab(lambda v: tn4nn_jax.linear(net, cores, v) + 4 * v, b)
        return solution.sum()

    agree(jax.grad(solved)(jnp.ones(16)), jnp.asarray(np.linalg.solve(matrix.T, np.ones(16))), 1e-3)


def test_a_module_says_whether_it_uses_the_runtime():
    model = tn.Sequential(tn.Linear(NETWORKS["ring"]), tn.ReLU())
    x = jnp.ones((3, 36))
    for runtime, there in ((None, True), ("program", False)):
        module = tn4nn_jax.JaxModule(model.init(0), tn4nn_jax._modules.Options(model, runtime=runtime))
        assert ("tn4nn_apply" in primitives(lambda m, x: m(x), module, x)) == there
    with pytest.raises(tn.BackendError, match="runtime must be 'program' or None, received 'cuda'"):
        tn4nn_jax.linear(NETWORKS["ring"], NETWORKS["ring"].init(0), x, runtime="cuda")


@pytest.mark.thorough
def test_what_is_exported_is_the_program():
    from jax import export

    ours, plain, cores, x = problem("ring")
    for function in (plain, ours, jax.grad(squares(ours))):  # also of what runs natively here
        exported = export.export(jax.jit(function))(cores, x)
        assert "custom_call @tn4nn" not in exported.mlir_module()
        agree(exported.call(cores, x), function(cores, x))


def test_without_a_compiler_it_is_the_program(monkeypatch):
    monkeypatch.setattr(_native, "_handler", lambda itemsize: None)
    ours, plain, cores, x = problem("tree")
    assert "tn4nn_apply" not in primitives(ours, cores, x)
    agree(ours(cores, x), plain(cores, x))


def test_a_call_of_another_version_or_processor_is_an_error_and_not_a_crash():
    native = _native.native_of(tn.plan(NETWORKS["ring"], 4, "train", runtime="native"))
    x, cores = jnp.ones((4, 36)), [jnp.asarray(c) for c in NETWORKS["ring"].init(0).values()]
    results = _native._apply_shapes(x, *cores, native=native, save=False)
    buffers = native.recipe.buffers
    good = [buffers.x, *range(len(cores)), buffers.y, buffers.prologue]
    with pytest.raises(Exception, match="another version of tn4nn"):
        jax.block_until_ready(_native._call(native, native.encoded(), False, good[:-1], results, x, *cores))
    other = native.encoded().copy()
    other[0] = 3
    with pytest.raises(Exception, match="another processor"):
        jax.block_until_ready(_native._call(native, other, False, good, results, x, *cores))


_GRADIENTS = """
    import jax, jax.numpy as jnp, numpy as np, tn4nn as tn, tn4nn_jax
    net = tn.mpo((4,) * 5, (4,) * 5).with_rank(4)
    cores = {key: jnp.asarray(value) for key, value in net.init(0).items()}
    x = jnp.asarray(np.random.default_rng(0).standard_normal((700, 1024)), jnp.float32)
    def loss(cores, x, runtime=None):
        return (tn4nn_jax.linear(net, cores, x, runtime=runtime) ** 2).sum()
    print("tn4nn_apply" in str(jax.make_jaxpr(loss)(cores, x)))
    def gradients(runtime):
        return jax.jit(jax.grad(lambda c, x: loss(c, x, runtime), argnums=(0, 1)))(cores, x)
    expected = gradients("program")
    for _ in range(20):
        errors = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(b).max()), gradients(None), expected)
        assert max(jax.tree.leaves(errors)) < 1e-5, errors
"""


@pytest.mark.thorough
def test_threads_of_xla_give_the_same_numbers():
    assert run_python(
        _GRADIENTS, XLA_FLAGS="--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads=4"
    ).split() == ["True"]


@pytest.mark.thorough
def test_several_devices_take_the_program():
    assert run_python(_GRADIENTS, XLA_FLAGS="--xla_force_host_platform_device_count=2").split() == ["False"]


@pytest.mark.thorough
def test_the_prologue_is_recomputed_where_it_is_not_saved(monkeypatch):
    monkeypatch.setattr(_recipe, "_SAVED_PROLOGUE", 0)
    monkeypatch.setattr(_native_executor, "_SAVE", -1)
    monkeypatch.setitem(NETWORKS, "recomputed", tn.mpo((4, 3, 5, 4), (3, 4, 4, 5)).with_rank(5))
    ours, plain, cores, x = problem("recomputed", 600)
    agree(ours(cores, x), plain(cores, x))
    gradients = [jax.jit(jax.grad(squares(f), argnums=(0, 1)))(cores, x) for f in (ours, plain)]
    agree(*gradients)
