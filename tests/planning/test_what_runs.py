"""What is shown is what runs: layers, tables and plans made before anything is built name the plan that is executed."""

import dataclasses

import numpy as np
import pytest
from helpers import first_of

import tn4nn as tn
from tn4nn._graph import paths as _paths
from tn4nn._planning.planner import at_rows, find
from tn4nn._planning.request import PlanRequest
from tn4nn._runtime import native as _native
from tn4nn._runtime.target import Target

NETWORKS = {
    "mpo": tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4),
    "tree": tn.tree((4, 4, 4, 4), (4, 4, 4, 4)).with_rank(4),
    "btt": tn.btt((16, 16), (16, 16)).with_rank(2),
    "padded": tn.build("mpo", 35, 23, sites=2).with_rank(3),
}
ROWS = (1, 64, 100)
needs_compiler = pytest.mark.skipif(_native.runtime(4) is None, reason="no C compiler on this machine")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def jax():
    return pytest.importorskip("jax")


def ones(rows, net):
    return np.ones((rows, net.in_features), np.float32)


# -- torch --------------------------------------------------------------------------------------------------------


@pytest.fixture
def executed(monkeypatch):
    """Everything that the native runtime or an array program is called for: recipes and programs, in order."""
    found = []
    forward = _native.Native.forward

    def spied(self, *args, **options):
        found.append(self.recipe)
        return forward(self, *args, **options)

    monkeypatch.setattr(_native.Native, "forward", spied)
    return found


@pytest.mark.cases(7)
@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rows", ROWS)
def test_torch_runs_the_native_plan_that_it_shows(name, rows, torch, executed):
    from tn4nn_torch import TNLinear

    net = NETWORKS[name]
    layer = TNLinear(net, seed=1)
    shown = layer.plan(rows)
    layer(torch.from_numpy(ones(rows, net)))
    assert shown.executor == "native"
    (ran,) = executed
    assert (ran.path, ran.block, ran.layouts, ran.save_states) == (shown.path, shown.block, shown.layouts, shown.save)
    assert shown.batch == rows
    assert shown == tn.plan(net, rows, "train", backend="torch")
    assert "by the executor 'native'" in str(shown)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("where", [{"dtype": "bfloat16"}, {"executor": "program"}])
def test_torch_runs_the_program_that_it_shows(name, where, torch, monkeypatch):
    from tn4nn_torch import TNLinear, _steps

    ran, run = [], _steps.run
    monkeypatch.setattr(_steps, "run", lambda ops, program, arrays: (ran.append(program), run(ops, program, arrays))[1])
    net = NETWORKS[name]
    layer = TNLinear(net, seed=1, **where)
    shown = layer.plan(50)
    with torch.no_grad():
        layer(torch.from_numpy(ones(50, net)).to(layer.core0.dtype))
    assert shown.executor == "program"
    assert ran == [shown.program]
    if "dtype" in where:
        assert shown == tn.plan(net, 50, "train", backend="torch", dtype="bfloat16")


def test_autocast_runs_the_program_that_a_layer_shows_within_it(torch, monkeypatch):
    from tn4nn_torch import TNLinear, _steps

    ran, run = [], _steps.run
    monkeypatch.setattr(_steps, "run", lambda ops, program, arrays: (ran.append(program), run(ops, program, arrays))[1])
    net = NETWORKS["mpo"]
    layer = TNLinear(net, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        shown = layer.plan(64)
        layer(torch.from_numpy(ones(64, net)))
    assert (shown.executor, shown.itemsize) == ("program", 2)
    assert ran == [shown.program]


@pytest.mark.thorough
def test_a_plan_under_a_memory_cap_is_the_one_that_runs(torch):
    from tn4nn_torch import TNLinear

    net = tn.mpo((4,) * 5, (4,) * 5).with_rank(8)
    free = tn.plan(net, 256, "train")
    capped = tn.plan(net, 256, "train", memory=free.cost.peak * 2 // 3)
    layer, other = TNLinear(net, seed=1, executor=capped), TNLinear(net, seed=1)
    assert layer.plan(256) == capped
    assert layer.plan(64) == at_rows(capped, 64)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((256, 1024), np.float32))
    assert torch.allclose(layer(x), other(x), atol=1e-5)


def test_a_convolution_runs_in_the_form_that_it_shows(torch, monkeypatch):
    from tn4nn_torch import TNConv2d

    built, whole = [], TNConv2d.to_dense
    monkeypatch.setattr(TNConv2d, "to_dense", lambda self: (built.append(1), whole(self))[1])
    forms = set()
    for rank, side in ((1, 16), (100, 16)):
        conv = TNConv2d(tn.mpo((8, 9), (16, 16)).with_rank(rank), kernel=3, padding=1, seed=1)
        shown = conv.plan(2 * side * side)
        built.clear()
        conv(torch.ones(2, 8, side, side))
        assert (shown.form == "kernel") == bool(built)
        forms.add(shown.form)
        if shown.form == "kernel":  # the product with the kernel is part of the cost
            assert shown.cost.macs > 3 * 2 * side * side * conv.network.dense_params
    assert forms == {"kernel", "apply"}


@needs_compiler
def test_an_embedding_and_a_dense_layer_show_what_they_run(torch):
    from tn4nn_torch import TNEmbedding, plans

    table = TNEmbedding(tn.mpo((10, 10), (4, 4)).with_rank(3))
    assert (table.plan(7).form, table.plan(7).executor, table.plan(7).batch) == ("gather", "program", 7)
    model = tn.Sequential(tn.Linear(NETWORKS["mpo"]), tn.ReLU(), tn.Linear(256, 10)).build("torch", seed=0)
    found = plans(model, 64)
    assert {name: p.executor for name, p in found.items()} == {"0": "native", "2": "dense"}
    assert found["2"].cost.macs == 3 * 64 * 2560
    assert found["2"].cost.saved == 64 * 256 * 4


# -- jax ----------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_jax_runs_the_native_plan_that_it_shows(name, jax, monkeypatch):
    import tn4nn_jax
    from tn4nn_jax import _apply

    ran, run = [], _apply.apply_native
    monkeypatch.setattr(
        _apply, "apply_native", lambda native, *rest: (ran.append(native.recipe), run(native, *rest))[1]
    )
    net = NETWORKS[name]
    layer = tn4nn_jax.TNLinear(net, seed=0)
    shown = layer.plan(77)
    layer(ones(77, net))
    assert shown.executor == "native"
    assert [(r.path, r.block, r.layouts, r.save_states) for r in ran] == [
        (shown.path, shown.block, shown.layouts, shown.save)
    ]
    assert shown == tn.plan(net, 77, "train", backend="jax")


@pytest.mark.cases(2)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("where", [{"dtype": "bfloat16"}, {"runtime": "program"}])
def test_jax_runs_the_program_that_it_shows(name, where, jax, monkeypatch):
    import tn4nn_jax
    from tn4nn_jax import _apply

    ran, run = [], _apply.run
    monkeypatch.setattr(_apply, "run", lambda program, arrays: (ran.append(program), run(program, arrays))[1])
    net = NETWORKS[name]
    layer = tn4nn_jax.TNLinear(net, seed=0, **where)
    shown = layer.plan(51)
    layer(ones(51, net))
    assert shown.executor == "program"
    assert ran == [shown.program]


def test_a_jax_convolution_runs_in_the_form_that_it_shows(jax, monkeypatch):
    import tn4nn_jax
    from tn4nn_jax import _apply

    cut, patches = [], _apply._patches
    monkeypatch.setattr(_apply, "_patches", lambda *args: (cut.append(1), patches(*args))[1])
    forms = set()
    for rank, side in ((1, 16), (100, 16)):
        conv = tn4nn_jax.TNConv2d(tn.mpo((8, 9), (16, 16)).with_rank(rank), kernel=3, padding=1, seed=0)
        cut.clear()
        conv(np.ones((2, 8, side, side), np.float32))
        shown = conv.plan(2 * side * side)
        assert (shown.form == "apply") == bool(cut)
        forms.add(shown.form)
    assert forms == {"kernel", "apply"}


def test_a_model_of_several_layers_shows_each(jax):
    import tn4nn_jax

    model = tn.Sequential(tn.Linear(NETWORKS["mpo"]), tn.ReLU(), tn.Linear(256, 10)).build("jax", seed=0)
    assert list(tn4nn_jax.plans(model, 64)) == ["0", "2"]
    with pytest.raises(tn.BackendError, match=r"this model has 2 layers on a network: use tn4nn_jax.plans"):
        model.plan(64)


# -- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", first_of(["float32", "bf16"]))
def test_the_rows_of_compare_are_the_plans_that_run(precision, trained_backend):
    batch = 48
    report = tn.compare(
        ["mpo", "dense"], budget=900, backends=[trained_backend], seeds=1, epochs=1, lr=1e-3, batch_size=batch,
        precision=precision,
    )  # fmt: skip
    for row in report.rows:
        name = row["topology"]
        parts = [tn.build(name, *sizes) for sizes in ((64, 64), (64, 10))]
        model = tn.Sequential(*map(tn.Linear, parts))
        if name != "dense":
            model = tn.with_budget(model, params=900, count="networks")
        dtype = "bfloat16" if precision == "bf16" else "float32"
        module = model.build(trained_backend, seed=0, dtype=dtype)
        if trained_backend == "torch":
            from tn4nn_torch import plans
        else:
            from tn4nn_jax import plans
        found = plans(module, batch).values()
        assert {p.batch for p in found} == {batch}
        assert row["macs_per_sample"] == round(sum(p.cost.macs for p in found) / 3 / batch)
        first, last = (p.cost for p in found)
        assert row["peak_bytes"] == max(first.peak, first.saved + last.peak) >= row["saved_bytes"]
        assert row["saved_bytes"] == sum(p.cost.saved for p in found)


def test_the_table_of_a_conversion_is_the_plans_that_run(torch):
    from tn4nn_torch import plan_conversion, plans

    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(
        nn.Conv2d(32, 64, 3, padding=1), nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(), nn.Linear(64, 9)
    )
    dry = plan_conversion(model, {"0": "mpo", "2": "tree"}, budget=0.2, batch=32)
    found = plans(dry.run(), 32)
    rows = {row.name: row for row in dry.rows if row.converted}
    assert rows.keys() == found.keys() == {"0", "2"}
    for name, row in rows.items():
        assert row.macs_after == at_rows(found[name], 32, "forward").cost.macs
        dense = dataclasses.replace(dry, rows=()).batch * row.before
        assert row.macs_before == dense


@needs_compiler
def test_the_cost_of_a_module_is_that_of_its_plans(torch):
    from tn4nn_torch import TNLinear

    layer = TNLinear(NETWORKS["mpo"])
    (report,) = tn.cost(torch.nn.Sequential(layer), [64], phases=["train"]).reports.values()
    row = report.rows[0]
    shown = layer.plan(64).cost
    assert (row.runtime, row.macs, row.saved, row.predicted_s) == (
        "native", shown.macs, shown.saved, shown.predicted_s,
    )  # fmt: skip


@needs_compiler
def test_a_merged_layer_runs_the_order_that_was_priced_for_it(torch):
    from tn4nn_torch import TNLinear

    frozen = TNLinear(tn.mpo((4,) * 5, (4,) * 5).with_rank(4)).merge(batch=16)
    assert frozen.plan(16).phase == "forward"
    assert frozen.plan(16) == frozen.plan(16)
    assert len(frozen.network.topology.cores) == len(frozen.plan(16).path)  # nothing is left to contract ahead


# -- nothing is planned that does not run ---------------------------------------------------------------------------


@pytest.fixture
def searches(monkeypatch, tmp_path):
    """Counts the searches of large networks, in an empty store."""
    from tn4nn._base.cache import PlanCache

    store, count = PlanCache(tmp_path / "plans"), []
    for module in ("tn4nn._planning.planner", "tn4nn._graph.candidates"):
        monkeypatch.setattr(f"{module}._store", store)
    run = _paths.TreeSearch.run
    monkeypatch.setattr(_paths.TreeSearch, "run", lambda self, **how: (count.append(1), run(self, **how))[1])
    return count


@pytest.mark.thorough
@needs_compiler
def test_a_layer_of_twelve_sites_is_searched_once(torch, searches):
    from tn4nn_torch import TNLinear

    net = tn.mpo((2,) * 12, (2,) * 12).with_rank(2)
    layer = TNLinear(net, seed=1)
    assert not searches  # nobody knows what will come
    x = torch.ones(64, net.in_features)
    layer(x)
    assert len(searches) == 1
    layer(x[:5]).sum().backward()  # another batch class starts from what was found
    layer.to_dense()  # another contraction
    assert len(searches) == 2
    TNLinear(net, seed=2)(x)
    assert len(searches) == 2


@pytest.mark.thorough
@needs_compiler
def test_a_layer_with_a_batch_is_planned_by_its_first_call_and_once(torch, searches):
    from tn4nn_torch import TNLinear

    net = tn.ring((2,) * 12, (2,) * 12).with_rank(2)
    layer = TNLinear(net, batch=32)
    for rows in (32, 7, 1000):
        layer(torch.ones(rows, net.in_features))
        assert layer.plan(rows).path == layer.plan(32).path
    assert len(searches) == 1


@pytest.mark.slow
def test_the_answer_does_not_depend_on_what_was_asked_before(searches):
    net = tn.mpo((2,) * 12, (2,) * 12).with_rank(3)
    one = [tn.plan(net, batch, "train", runtime="native", cache=False) for batch in (1, 64, 1024)]
    other = [tn.plan(net, batch, "train", runtime="native", cache=False) for batch in (1024, 64, 1)]
    assert one == other[::-1]


# -- executors ----------------------------------------------------------------------------------------------------


def test_who_cannot_run_says_why():
    net = NETWORKS["mpo"]
    with pytest.raises(tn.TN4NNError, match="the native runtime applies networks to float32 and float64 rows on a CPU"):
        tn.plan(net, form="gather", runtime="native")
    with pytest.raises(tn.TN4NNError, match="backend='torch' decides what runs there, received runtime='native' too"):
        tn.plan(net, backend="torch", runtime="native")
    with pytest.raises(tn.TN4NNError, match="device='cpu' and dtype=None are a backend's words"):
        tn.plan(net, device="cpu")
    with pytest.raises(tn.BackendError, match="backend 'numpy' runs no plans: expected 'torch' or 'jax'"):
        tn.plan(net, backend="numpy")
    with pytest.raises(tn.BackendError, match="unknown backend 'troch'. Did you mean 'torch'"):
        tn.plan(net, backend="troch")


@needs_compiler
def test_a_new_executor_is_a_class_and_a_name(monkeypatch):
    """What docs/pages/explanation/rooms/planning.md promises to whoever adds one."""
    from tn4nn._planning import executors
    from tn4nn._planning.native import NativeExecutor
    from tn4nn._planning.planner import find
    from tn4nn._planning.request import PlanRequest
    from tn4nn._runtime.target import Target

    class Small(NativeExecutor):
        name = "small"

        def refuses(self, request):
            return None if request.batch <= 8 else "small runs at most 8 rows"

    monkeypatch.setitem(executors.EXECUTORS, "small", Small())
    target = Target(executors=("small", "program"))
    assert find(PlanRequest(NETWORKS["mpo"], 8, target=target), cache=False).executor == "small"
    assert find(PlanRequest(NETWORKS["mpo"], 9, target=target), cache=False).executor == "program"
    with pytest.raises(tn.TN4NNError, match="small runs at most 8 rows"):
        find(PlanRequest(NETWORKS["mpo"], 9, target=target.only("small")), cache=False)


@pytest.mark.cases(3)
@pytest.mark.parametrize("runtime", ["program", "native"])
@pytest.mark.parametrize(("name", "batch", "rows"), [("tree", 64, 1), ("tucker", 256, 1), ("mpo", 256, 255)])
def test_a_plan_out_of_the_store_is_priced_for_other_rows_as_it_runs(name, batch, rows, runtime):
    """The leg orders of a program depend on the rows that it was lowered for."""
    net = tn.build(name, 256, 256, sites=4).with_budget(params=20_000)
    request = PlanRequest(net, batch, "train", target=Target(executors=(runtime,)))
    found, restored = find(request), find(request)
    assert not {"program", "recipe"} & set(vars(restored))
    moved, expected = at_rows(restored, rows), at_rows(found, rows)
    assert (moved.cost, moved.batch) == (expected.cost, rows)
    if runtime == "program":
        assert moved.program == found.program
    else:
        assert (moved.recipe.block, moved.recipe.layouts) == (found.recipe.block, found.recipe.layouts)
