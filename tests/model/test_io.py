"""Files: to the bit through every backend, and a clear word for every file that is none."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

import tn4nn as tn
from tn4nn import testing
from tn4nn._base import files as _files
from tn4nn._base.cache import PlanCache
from tn4nn._base.records import sealed
from tn4nn._graph import candidates as _candidates
from tn4nn._model import io as _io
from tn4nn._planning import planner as _planner

MODEL = tn.Sequential(
    tn.Linear(tn.mpo((4, 4), (2, 3)).with_rank(3), ordering="hilbert"),
    tn.ReLU(),
    tn.BatchNorm(6),
    first=tn.Linear(6, 4),
)


def another_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> PlanCache:
    """What a process on another machine starts with."""
    other = PlanCache(folder)
    for module, name in ((_planner, "_store"), (_candidates, "_store"), (_io, "plans")):
        monkeypatch.setattr(module, name, other)
    return other


def written(folder: Path, model: tn.Layer = MODEL) -> tuple[Path, dict[str, np.ndarray]]:
    weights = testing.weights_for(model)
    tn.save(folder / "m.safetensors", model, weights)
    return folder / "m.safetensors", weights


def same_bits(one: dict, two: dict) -> bool:
    return list(one) == list(two) and all(
        a.dtype == two[n].dtype and a.shape == two[n].shape and a.tobytes() == two[n].tobytes() for n, a in one.items()
    )


@pytest.mark.parametrize("case", testing.CASES, ids=str)
def test_every_kind_of_layer(case: testing.Case, tmp_path: Path) -> None:
    path, weights = written(tmp_path, case.model)
    model, again = tn.load(path)
    assert model == case.model
    assert model.fingerprint == case.model.fingerprint
    assert same_bits(again, weights)


def test_plans_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tn.Sequential(tn.Linear(tn.ring((4, 4, 3), (2, 3, 2)).with_rank(3)), tn.ReLU())
    net = model.networks()["0"]
    options = [
        {"runtime": runtime, "phase": phase} for runtime in ("program", "native") for phase in ("forward", "train")
    ]
    found = [tn.plan(net, 37, **how) for how in options]
    path, _ = written(tmp_path, model)
    other = another_cache(tmp_path / "another machine's cache", monkeypatch)
    loaded, weights = tn.load(path)
    tn.save(path, loaded, weights)  # they stay with it
    tn.load(path)
    monkeypatch.setattr(_planner, "candidates", None)  # nothing is searched for
    again = [tn.plan(net, 37, **how) for how in options]
    assert [dataclasses.replace(p, candidates=()) for p in again] == [
        dataclasses.replace(p, candidates=()) for p in found
    ]
    assert all(p.candidates == ((p.order, p.cost),) for p in again)  # of what is computed here
    assert not other.folder.exists()


def test_a_plan_in_a_file_that_does_not_fit_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tn.Sequential(tn.Linear(tn.ring((4, 4, 3), (2, 3, 2)).with_rank(3)), tn.ReLU())
    net = model.networks()["0"]
    p = tn.plan(net, 41)
    path, _ = written(tmp_path, model)
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        record = json.loads(file.metadata()["tn4nn"])
    arrays = from_bytes(path.read_bytes())
    ((owner, entries),) = record["plans"].items()
    assert owner == net.fingerprint
    for wrong in ({"path": [[0, 0]]}, 3, {}):
        spoilt = {**record, "plans": {owner: dict.fromkeys(entries, wrong), "other": wrong}}
        path.write_bytes(to_bytes(arrays, {"tn4nn": json.dumps(sealed(spoilt, arrays))}))
        another_cache(tmp_path / "empty", monkeypatch)
        tn.load(path)
        assert tn.plan(net, 41) == p


def test_a_network_alone(tmp_path: Path) -> None:
    net = tn.peps((2,) * 4, (2,) * 4).with_rank(3)
    tn.save(tmp_path / "n", net, net.init(0))
    again, weights = tn.load(tmp_path / "n")
    assert again == net
    assert same_bits(weights, net.init(0))


@pytest.mark.parametrize("route", [("torch", "jax", "torch"), ("jax", "torch", "jax"), ("numpy", "torch", "jax")])
def test_bits_survive_every_framework(route: tuple[str, ...], tmp_path: Path) -> None:
    for name in route:
        if name != "numpy":
            pytest.importorskip(name)
    _, start = written(tmp_path)
    model, weights = MODEL, start
    for step, name in enumerate(route):
        backend = tn.backend(name)
        module = model.build(name, weights, dtype="float32")
        path = tmp_path / f"{step}.safetensors"
        tn.save(path, model, backend.weights(module))
        model, weights = tn.load(path)
        assert model == MODEL
        assert same_bits(weights, start)


def test_a_torch_user_needs_no_tn4nn_to_read_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from safetensors.torch import load_file

    path, weights = written(tmp_path)
    module = MODEL.build("torch", seed=9)
    module.load_state_dict(load_file(path))
    assert same_bits(tn.backend("torch").weights(module), weights)


def test_arrays_that_do_not_lie_in_order(tmp_path: Path) -> None:
    """safetensors writes the buffer of an array as it lies: that is the trap, and save does not step into it."""
    model = tn.Linear(3, 2, bias=False)
    array = np.arange(6, dtype=np.float32).reshape(3, 2).T
    assert not array.flags.c_contiguous
    tn.save(tmp_path / "t", model, {"core0": array})
    np.testing.assert_array_equal(tn.load(tmp_path / "t")[1]["core0"], array)
    strided = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::2]
    tn.save(tmp_path / "s", model, {"core0": strided})
    np.testing.assert_array_equal(tn.load(tmp_path / "s")[1]["core0"], strided)
    swapped = array.astype(">f4")
    tn.save(tmp_path / "b", model, {"core0": swapped})
    np.testing.assert_array_equal(tn.load(tmp_path / "b")[1]["core0"], array)


@pytest.mark.parametrize("kind", ["float16", "float64", "complex64"])
def test_other_dtypes(kind: str, tmp_path: Path) -> None:
    net = tn.low_rank(3, 2).with_rank(2)
    weights = {n: a.astype(kind) for n, a in net.init(0).items()}
    tn.save(tmp_path / "d", net, weights)
    assert same_bits(tn.load(tmp_path / "d")[1], weights)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("route", [("torch", "jax"), ("jax", "torch")])
def test_half_precision_comes_back_to_the_bit(dtype: str, route: tuple[str, str], tmp_path: Path) -> None:
    """Files hold float32, which holds every 16-bit float: a module of the old dtype has the old bits."""
    for name in route:
        pytest.importorskip(name)
    first, second = map(tn.backend, route)
    start = MODEL.build(route[0], seed=3, dtype=dtype)
    held = first.weights(start)
    assert {a.dtype for a in held.values()} == {np.dtype("float32")}
    tn.save(tmp_path / "half", MODEL, held)
    model, weights = tn.load(tmp_path / "half")
    again = second.weights(model.build(route[1], weights, dtype=dtype))
    back = first.weights(model.build(route[0], again, dtype=dtype))
    assert same_bits(back, held)
    assert not same_bits(held, MODEL.init(3))  # it was rounded
    x = np.ones((2, 16), np.float32)
    assert first.forward(start, x).dtype == np.float32


def test_bfloat16_of_jax_is_written_as_float32(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    net = tn.low_rank(3, 2).with_rank(2)
    weights = {n: a.astype(ml_dtypes.bfloat16) for n, a in net.init(0).items()}
    tn.save(tmp_path / "b", net, weights)
    assert same_bits(tn.load(tmp_path / "b")[1], {n: a.astype(np.float32) for n, a in weights.items()})


def test_loaded_arrays_are_the_callers_own(tmp_path: Path) -> None:
    path, weights = written(tmp_path)
    _, one = tn.load(path)
    one["0.core0"][...] = 0
    assert same_bits(tn.load(path)[1], weights)


def test_what_stands_in_the_file(tmp_path: Path) -> None:
    from safetensors import safe_open

    path, _ = written(tmp_path)
    with safe_open(path, framework="numpy") as file:
        record = json.loads(file.metadata()["tn4nn"])
    assert record["schema"] == 2
    assert set(record["versions"]) == {"tn4nn", "numpy"}
    assert tn.model_from_json(json.dumps({"model": record["model"]})) == MODEL


# -- plans that somebody has written ----------------------------------------------------------------------------


def with_plans(path: Path, change) -> None:
    """The file with the entries of its plans changed, and a digest that is right."""

    def changed(record, arrays):
        record["plans"] = change(record["plans"])

    spoilt(path, changed)


@pytest.mark.parametrize("runtime", ["program", "native"])
def test_plans_are_adopted_for_the_networks_of_the_file_alone(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entries under another network's name, or under its keys, never reach it."""
    victim = tn.ring((4, 4, 3), (2, 3, 2)).with_rank(3)
    expected = tn.plan(victim, 53, "train", runtime=runtime)
    asked = _planner._store.owned({victim.fingerprint})[victim.fingerprint]
    poison = {key: {**entry, "block": 10**9, "sliced": ["y0"]} for key, entry in asked.items()}
    path, _ = written(tmp_path)
    own = tn.mpo((4, 4), (2, 3)).with_rank(3).fingerprint
    with_plans(path, lambda found: {victim.fingerprint: poison, own: poison, "": poison})
    another_cache(tmp_path / "empty", monkeypatch)
    tn.load(path)
    assert tn.plan(victim, 53, "train", runtime=runtime) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"block": 10**9}, {"block": 3}, {"block": -1}, {"sliced": ["y0"]}, {"sliced": ["batch"]}, {"sliced": ["a0"]},
        {"sliced": ["no leg"]}, {"path": [[0, 1], [2, 9]]}, {"path": [["a0", "a1"]]}, {"layouts": [1] * 50},
        {"layouts": [7]}, {"save": 3}, {"order": "\x1b[2J"}, {"path": [[0, float("inf")]]},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("runtime", ["program", "native"])
def test_a_plan_that_the_planner_could_not_have_made_is_made_anew(
    runtime: str, wrong: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tn.Sequential(tn.Linear(tn.ring((4, 4, 3), (2, 3, 2)).with_rank(3)))
    net = model.networks()["0"]
    expected = tn.plan(net, 61, "train", runtime=runtime)
    path, _ = written(tmp_path, model)
    with_plans(path, lambda found: {o: {k: {**e, **wrong} for k, e in es.items()} for o, es in found.items()})
    another_cache(tmp_path / "empty", monkeypatch)
    tn.load(path)
    assert tn.plan(net, 61, "train", runtime=runtime) == expected


def test_what_a_file_says_of_costs_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tn.Sequential(tn.Linear(tn.ring((4, 4, 3), (2, 3, 2)).with_rank(3)))
    net = model.networks()["0"]
    expected = tn.plan(net, 67, "train", runtime="native")
    path, _ = written(tmp_path, model)
    wrong = {"cost": [0, 0, 0, 0, 0.0], "candidates": [["free", [0, 0, 0, 0, 0.0]]], "measured_s": 1e-12}
    with_plans(path, lambda found: {o: {k: {**e, **wrong} for k, e in es.items()} for o, es in found.items()})
    another_cache(tmp_path / "empty", monkeypatch)
    tn.load(path)
    again = tn.plan(net, 67, "train", runtime="native")
    assert (again.path, again.cost, again.measured_s) == (expected.path, expected.cost, None)
    assert again.candidates == ((expected.order, expected.cost),)


def test_a_path_that_costs_a_thousand_times_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tn.low_rank(4096, 4096).with_rank(1)
    expected = tn.plan(net, 1, minimize="flops")
    tn.save(tmp_path / "n", net, net.init(0))
    dear = {"path": [[0, 1], [2, 3]]}  # W first
    with_plans(tmp_path / "n", lambda found: {o: {k: {**e, **dear} for k, e in s.items()} for o, s in found.items()})
    another_cache(tmp_path / "empty", monkeypatch)
    tn.load(tmp_path / "n")
    assert tn.plan(net, 1, minimize="flops").path == expected.path


@pytest.mark.parametrize("memory", [2_000, 4_000])
def test_plans_under_a_memory_cap_come_along(memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tn.ring((4, 4, 3), (2, 3, 2)).with_rank(3)
    expected = tn.plan(net, 1, memory=memory)
    tn.save(tmp_path / "n", net, net.init(0))
    another_cache(tmp_path / "empty", monkeypatch)
    tn.load(tmp_path / "n")
    monkeypatch.setattr(_planner, "candidates", None)
    again = tn.plan(net, 1, memory=memory)
    assert (again.path, again.block, again.sliced, again.cost) == (
        expected.path, expected.block, expected.sliced, expected.cost,
    )  # fmt: skip


# -- what is refused --------------------------------------------------------------------------------------------


def spoilt(path: Path, change) -> None:
    """The file with its record and arrays changed."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        record = json.loads(file.metadata()["tn4nn"])
    arrays = from_bytes(path.read_bytes())
    text = change(record, arrays)
    path.write_bytes(to_bytes(arrays, {"tn4nn": json.dumps(sealed(record, arrays)) if text is None else text}))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r, a: r.update(schema=9), "has schema 9, written by tn4nn"),
        (lambda r, a: r.update(schema=9, versions=0), "by tn4nn of an unknown version; this version reads schema 2"),
        (lambda r, a: a.__delitem__("0.core1"), "do not fit: weight '0.core1' of shape (3, 4, 3) is missing"),
        (
            lambda r, a: a.update({"0.core7": a["0.bias"]}),
            "'0.core7' is not a weight of this model. Did you mean '0.core",
        ),
        (lambda r, a: a.update({"0.bias": a["0.bias"][:2]}), "'0.bias': expected shape (6,), received (2,)"),
        (lambda r, a: r.__delitem__("model"), "do not fit: 'model'"),
        (lambda r, a: r.update(model={"kind": "Magic"}), "unknown kind of layer 'Magic'"),
        (lambda r, a: r.update(model=3), "a layer is an object in model data, received 3"),
        (lambda r, a: "[1]", "expected an object with a schema, received list"),
        (lambda r, a: "{", "are not JSON"),
    ],
)  # fmt: skip
def test_files_of_another_making(change, text: str, tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    spoilt(path, change)
    with pytest.raises(tn.CheckpointError, match=re.escape(text)) as caught:
        tn.load(path)
    assert str(path) in str(caught.value)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """In the weights, in the record, in the head: an error, or what was written."""
    path, weights = written(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(len(whole), size=150):
        broken = bytearray(whole)
        broken[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(tn.CheckpointError) as caught:
            tn.load(path)
        assert str(path) in str(caught.value)
    path.write_bytes(whole)
    assert same_bits(tn.load(path)[1], weights)


def test_tensors_that_changed_places_and_edited_bodies_are_noticed(tmp_path: Path) -> None:
    from safetensors import safe_open

    model = tn.Sequential(tn.Linear(3, 3), tn.Linear(3, 3))
    path, weights = written(tmp_path, model)
    with safe_open(path, framework="numpy") as file:
        text = file.metadata()["tn4nn"]
    exchanged = {**weights, "0.core0": weights["1.core0"], "1.core0": weights["0.core0"]}
    lost = {**weights, "0.core0": np.full_like(weights["0.core0"], np.nan)}
    turned = {**weights, "0.core0": np.ascontiguousarray(weights["0.core0"].T)}
    for arrays, record in ((exchanged, text), (lost, text), (turned, text), (weights, text.replace("true", "false"))):
        path.write_bytes(to_bytes(arrays, {"tn4nn": record}))
        with pytest.raises(tn.CheckpointError, match="was damaged or edited after it was written"):
            tn.load(path)


def test_a_record_nested_without_end_is_refused(tmp_path: Path) -> None:
    path, weights = written(tmp_path)
    for depth in (150, 5_000, 200_000):
        for text in ('{"model":' * depth + "1" + "}" * depth, "[" * depth + "]" * depth):
            path.write_bytes(to_bytes(weights, {"tn4nn": text}))
            with pytest.raises(tn.CheckpointError):
                tn.load(path)


def test_no_file_no_safetensors_and_not_ours(tmp_path: Path) -> None:
    with pytest.raises(tn.DataError, match="cannot be read"):
        tn.load(tmp_path / "missing")
    with pytest.raises(tn.DataError, match="cannot be read"):
        tn.load(tmp_path)
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    path, _ = written(tmp_path)
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-3])
    for name in ("text", "empty", "cut"):
        with pytest.raises(tn.CheckpointError, match="is not a safetensors file that can be read here"):
            tn.load(tmp_path / name)
    (tmp_path / "other").write_bytes(to_bytes({"w": np.zeros(3)}))
    with pytest.raises(tn.CheckpointError, match=re.escape("but not one of tn4nn.save: its metadata have no 'tn4nn'")):
        tn.load(tmp_path / "other")


def test_nothing_is_written_for_wrong_weights(tmp_path: Path) -> None:
    weights = MODEL.init(0)
    path = tmp_path / "never"
    with pytest.raises(tn.ShapeError, match=re.escape("'0.core9' is not a weight of this model")):
        tn.save(path, MODEL, {**weights, "0.core9": weights["0.core0"]})
    with pytest.raises(tn.ShapeError, match=re.escape("'0.bias' must hold numbers that numpy has, received <U1")):
        tn.save(path, MODEL, {**weights, "0.bias": np.array(["a"] * 6)})
    with pytest.raises(tn.ShapeError, match="save takes a model or a Network, then its weights; received dict"):
        tn.save(path, weights, MODEL)  # type: ignore[arg-type]
    with pytest.raises(tn.TopologyError, match="has a topology without ranks"):
        tn.save(path, tn.Linear(tn.mpo((2, 2), (2, 2))), {})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, weights = written(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_files, "_write_all", full)
    with pytest.raises(tn.WriteError, match="No space left"):
        tn.save(path, MODEL, MODEL.init(5))
    monkeypatch.undo()
    assert same_bits(tn.load(path)[1], weights)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("backend", ["", "torch", "jax"])
def test_arguments_that_changed_places(backend: str, tmp_path: Path) -> None:
    """The model first and the file second, as other libraries have it."""
    file, model = str(tmp_path / "model.safetensors"), tn.Sequential(tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(2)))
    if backend:
        save = pytest.importorskip(f"tn4nn_{backend}").save
        load = pytest.importorskip(f"tn4nn_{backend}").load
        for call in (lambda: save({}, file), lambda: load({}, file)):
            with pytest.raises(tn.TN4NNError, match=r"takes the file's name first, a str or a Path; received dict"):
                call()
    else:
        with pytest.raises(tn.TN4NNError, match=r"save\(path, model, weights\) takes the file's name first"):
            tn.save(model, file, model.init(0))  # type: ignore[arg-type]
    assert not Path(file).exists()
