"""Parameters of the cost model, fitted to what was measured."""

import dataclasses
import json
import sys
import time
import types

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._base.errors import BackendError, TN4NNError
from tn4nn._base.records import sealed
from tn4nn._model.backend import Place, place_of
from tn4nn._planning import calibrate as calibrating
from tn4nn._planning import calibrate_threads
from tn4nn._planning.calibrate import NATIVE_PARAMETERS, PROGRAM_PARAMETERS, Sample
from tn4nn._planning.planner import candidates
from tn4nn._planning.program import ProgramExecutor
from tn4nn._planning.request import PlanRequest
from tn4nn._runtime import devices as _devices
from tn4nn._runtime import native as _native
from tn4nn._runtime import processor as _processor
from tn4nn._runtime.recipe_cost import recipe_cost
from tn4nn._runtime.target import Target

TRUE = {
    "tile_macs_per_s": 1.7,
    "tile_s": 0.5,
    "vector_s": 2.0,
    "far_s": 1.5,
    "task_s": 3.0,
    "call_s": 0.7,
    "memory_bytes_per_s": 0.8,
}


@pytest.fixture
def native():
    if _native.runtime(4) is None:
        pytest.skip("there is no native runtime here: no C compiler")


def invented(noise=0.0, count=200):
    """Samples of a machine on which everything takes TRUE times as long as by default."""
    rng = np.random.default_rng(0)
    result = []
    for i in range(count):
        times = dict(zip(NATIVE_PARAMETERS, rng.exponential(1e-4, len(NATIVE_PARAMETERS)), strict=True))
        seconds = sum(TRUE[name] * times[name] for name in NATIVE_PARAMETERS) * np.exp(noise * rng.standard_normal())
        result.append(Sample(str(i), times, seconds))
    return result


def test_the_fit_finds_the_machine_that_made_the_times():
    assert calibrating.fitted(invented()) == pytest.approx(TRUE, rel=0.1)
    factors, before, after = calibrating.judged(invented(noise=0.1))
    assert factors == pytest.approx(TRUE, rel=0.25)
    assert after < 0.12 < before


def test_parameters_stay_within_ten_times_their_defaults():
    slow = [sample._replace(measured_s=sample.measured_s * 3) for sample in invented()]
    within = {name: min(10, 3 * factor) for name, factor in TRUE.items()}
    assert calibrating.fitted(slow) == pytest.approx(within, rel=0.1)
    far = [sample._replace(measured_s=sample.measured_s * 1e3) for sample in invented()]
    assert set(calibrating.fitted(far).values()) == {10.0}
    near = [sample._replace(measured_s=sample.measured_s / 1e3) for sample in invented()]
    assert set(calibrating.fitted(near).values()) == {0.1}


def test_where_the_fit_is_no_better_the_defaults_stay(monkeypatch):
    monkeypatch.setattr(calibrating, "fitted", lambda samples: dict.fromkeys(NATIVE_PARAMETERS, 7.0))
    factors, before, after = calibrating.judged(invented())
    assert factors == dict.fromkeys(NATIVE_PARAMETERS, 1.0)
    assert before == after


def test_a_scaled_machine_takes_so_many_times_as_long():
    machine = calibrating.scaled(tn.Machine(), TRUE)
    assert machine.tile_macs_per_s == tn.Machine().tile_macs_per_s / 1.7
    assert machine.task_s == tn.Machine().task_s * 3
    assert machine.macs_per_s == tn.Machine().macs_per_s


@pytest.mark.parametrize("phase", ["forward", "train"])
def test_the_parts_of_a_prediction_are_the_whole_and_grow_with_their_parameters(phase):
    net, machine = tn.mpo((4, 8, 4), (4, 8, 4)).with_rank(4), tn.Machine()
    p = tn.plan(net, 2048, phase, runtime="native", machine=machine, cache=False)
    times = calibrating.native_times(p, machine)
    assert all(seconds > 0 for name, seconds in times.items() if name != "far_s")  # nothing is strided here
    assert sum(times.values()) == pytest.approx(p.cost.predicted_s)
    slow = calibrating.native_times(p, calibrating.scaled(machine, TRUE))
    assert slow == pytest.approx({name: TRUE[name] * times[name] for name in NATIVE_PARAMETERS})


def test_the_parts_of_a_plan_that_saves_its_states_are_its_whole():
    net, machine = tn.mpo((4, 8, 4), (4, 8, 4)).with_rank(4), tn.Machine()
    asked = PlanRequest(net, 16, "train", target=Target(executors=("native",)), machine=machine)
    p = next(p for p in candidates(asked) if p.save)
    times = calibrating.native_times(p, machine)
    assert sum(times.values()) == pytest.approx(p.cost.predicted_s)


@pytest.mark.thorough
def test_calibrate_stores_what_it_found_for_this_processor(native, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    assert tn.calibrated() is None
    from tn4nn import _cli

    monkeypatch.setattr(sys, "argv", ["tn4nn", "calibrate", "--json", str(tmp_path / "c.json")])
    with pytest.raises(SystemExit) as end:
        _cli.main()
    assert end.value.code == 0
    assert "Calibrated on " in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["seconds"] < 60
    assert found["after"] <= found["before"]
    assert dataclasses.asdict(tn.calibrated()) == found["machine"]
    assert tn.calibrated("cpu", dtype="float32") == tn.calibrated() == _devices.native_machine(4)
    assert tn.calibrated(dtype="float64") is None
    assert _devices.native_machine(8) == tn.Machine(vector_bytes=_processor.vector_bytes())
    assert found["default"]["tile_s"] == tn.Machine().tile_s
    monkeypatch.setattr(_devices, "processor", lambda: "another")
    assert tn.calibrated() is None


def samples_of_threads(true, threads=8):
    """Plans of all networks that a calibration runs, measured on a machine whose parameters are known."""
    target = Target(executors=("native",), threads=threads)
    for network, batches in calibrating._networks():
        for batch in batches:
            p = candidates(PlanRequest(network, batch, "train", target=target, machine=tn.Machine()))[0]
            cost = recipe_cost(p.recipe, batch, "train", true, threads)
            yield dataclasses.replace(p, measured_s=cost.predicted_s)


@pytest.mark.parametrize("true", [tn.Machine(team_s=12e-6, streams=2.0), tn.Machine(team_s=1.5e-6, streams=8.0)])
def test_what_threads_cost_is_found(true):
    samples = list(samples_of_threads(true))
    found = calibrate_threads.fitted(tn.Machine(), samples, 8)
    assert (found.team_s, found.streams) == pytest.approx((true.team_s, true.streams))
    assert calibrate_threads.fitted(tn.Machine(), samples[:2], 8) == tn.Machine()  # too few to say


def test_threads_that_are_as_predicted_change_nothing():
    assert calibrate_threads.fitted(tn.Machine(), list(samples_of_threads(tn.Machine())), 8) == tn.Machine()


def test_threads_are_measured_until_the_time_is_over(native, monkeypatch):
    run = []
    monkeypatch.setattr(calibrate_threads, "measured", lambda found: run.extend(found) or found)
    asked = [(tn.mpo((8, 8), (8, 8)).with_rank(8), 256)] * 3
    assert calibrate_threads.with_threads(tn.Machine(), asked, "float32", 2, 10.0) == tn.Machine()
    assert [p.request.target.threads for p in run] == [2, 2, 2]
    assert calibrate_threads.with_threads(tn.Machine(), asked, "float32", 2, -1.0) == tn.Machine()
    assert len(run) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"schema": 1, "machine": {"tile_s": 0.0}}',
        '{"schema": 1, "machine": {"tile_s": NaN}}',
        '{"schema": 1, "machine": {"speed": 2}}',
        '{"schema": 2, "machine": {}}',
        '{"schema": 1, "mach',
        "[" * 10**5,
        "[]",
    ],
)
def test_a_file_that_cannot_be_read_counts_as_absent(monkeypatch, tmp_path, text):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    path = _devices._file("native", "cpu", "float32")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert tn.calibrated() is None
    if text.startswith("{") and text.endswith("}"):
        path.write_text(json.dumps(sealed(json.loads(text))))
        _devices._read.cache_clear()
        assert tn.calibrated() is None


@pytest.mark.parametrize("how", ["edited", "of another", "a link", "open to others"])
def test_parameters_that_were_edited_or_are_not_ours_count_as_absent(monkeypatch, tmp_path, how):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    _devices.store("native", "cpu", "float32", {"schema": 1, "machine": dataclasses.asdict(tn.Machine())})
    assert tn.calibrated() == tn.Machine()
    path = _devices._file("native", "cpu", "float32")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    if how == "edited":
        path.write_text(path.read_text().replace('"tile_s": ', '"tile_s": 1'))
    elif how == "of another":
        monkeypatch.setattr("os.geteuid", lambda: 12345)
    elif how == "a link":
        path.rename(tmp_path / "other")
        path.symlink_to(tmp_path / "other")
    else:
        path.chmod(0o666)
    _devices._read.cache_clear()
    assert tn.calibrated() is None


def test_no_runtime_and_too_little_time_are_told(native, monkeypatch, tmp_path):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    with pytest.raises(TN4NNError, match=r"dtype 'float32' or 'float64', received dtype='float16': .* backend='torch'"):
        tn.calibrate(dtype="float16")
    with pytest.raises(TN4NNError, match="seconds were enough for 0 plans: allow more time"):
        tn.calibrate(time_limit=-1.0)
    assert list(tmp_path.glob("machines/*")) == []


# -- programs ---------------------------------------------------------------------------------------------------

MPO = tn.mpo((4, 8, 4), (4, 8, 4)).with_rank(4)
SLOW = dict(zip(PROGRAM_PARAMETERS, (1.7, 0.5, 0.8, 3.0, 2.0, 4.0, 2.5), strict=True))


def plans(machine, networks=None):
    """The best and the worst program of all networks that a calibration runs."""
    for network, batches in networks or calibrating._networks():
        for batch in batches:
            for phase in ("forward", "train"):
                asked = PlanRequest(network, batch, phase, machine=machine)
                priced = [ProgramExecutor("program").plan(asked, *named) for named in calibrating._orders(asked)]
                ranked = sorted(priced, key=lambda p: p.cost.predicted_s)
                yield from (ranked[0], ranked[-1])


@pytest.fixture
def few(monkeypatch, tmp_path):
    """A cache of its own, one network, and few samples asked for."""
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    monkeypatch.setattr(calibrating, "_EACH", 0.5)
    monkeypatch.setattr(calibrating, "_networks", lambda: iter([(tn.mpo((4, 4), (4, 4)).with_rank(2), (16,))]))


@pytest.mark.parametrize("factors", [dict.fromkeys(PROGRAM_PARAMETERS, 1.0), SLOW, {**SLOW, "macs_per_s": 0.1}])
def test_the_parts_of_a_program_are_its_whole(factors):
    machine = calibrating.scaled(tn.Machine(), factors)
    for p in plans(machine, [(MPO, (1, 1024)), (tn.monarch((32, 32), (32, 32)).with_ranks({}), (16,))]):
        assert sum(calibrating.program_times(p, machine).values()) == pytest.approx(p.cost.predicted_s)


def test_copies_take_as_long_as_their_parameter_says():
    machine = calibrating.scaled(tn.Machine(), SLOW)
    assert machine.bytes_per_s == tn.Machine().bytes_per_s / 0.5
    assert machine.strided / machine.bytes_per_s == pytest.approx(0.8 * tn.Machine().strided / tn.Machine().bytes_per_s)


def test_the_fit_finds_the_machine_that_ran_the_programs(monkeypatch):
    right, samples = calibrating.scaled(tn.Machine(), SLOW), []
    for p in plans(tn.Machine()):
        times = calibrating.program_times(p, tn.Machine())
        seconds = sum(calibrating.program_times(p, right).values())
        samples.append(Sample(p.order, times, seconds, lambda machine, p=p: calibrating.program_times(p, machine)))
    factors, before, after = calibrating.judged(samples, tn.Machine())
    assert after < 0.01 < 0.3 < before
    well_known = ("macs_per_s", "strided", "op_s", "step_s")
    assert {name: factors[name] for name in well_known} == pytest.approx({n: SLOW[n] for n in well_known}, rel=0.05)
    # What a step counts, its multiply-adds or its bytes, depends on the parameters.
    monkeypatch.setattr(calibrating, "_REFITS", 0)
    assert calibrating.judged(samples, tn.Machine())[2] > 2 * after


def test_a_gpu_is_waited_for_and_the_cpus_seconds_are_those_that_it_worked():
    waited = []

    def run():
        time.sleep(2e-3)
        return len(waited)

    def clocked(name):
        return calibrating.clocked([run], Place(name, "float32", 4, False, None, waited.append))[0]

    assert clocked("a GPU") >= 2e-3
    assert len(waited) == 2 + calibrating._ROUNDS
    assert clocked("cpu") < 1e-3


def test_a_gpu_that_takes_twice_as_long(few, monkeypatch):
    """No GPU: what it takes is made up."""
    place = Place("NVIDIA H200", "bfloat16", 2, True, lambda program, shapes, phase: program, None)
    asked = []
    monkeypatch.setattr(calibrating, "place_of", lambda *names: asked.append(names) or place)
    monkeypatch.setattr(calibrating, "clocked", lambda programs, place: [2e-5 * len(p.steps) for p in programs])
    times = calibrating.program_times
    monkeypatch.setattr(calibrating, "_program_samples", lambda network, batch, place, machine: [
        Sample("", times(p, machine), 2 * p.cost.predicted_s, lambda m, p=p: times(p, m))
        for p in plans(machine, [(network, (batch,))])
    ])  # fmt: skip
    lines = []
    found = tn.calibrate("gpu", backend="jax", dtype="bfloat16", progress=lines.append)
    default = _devices.gpu("NVIDIA H200").machine(2, compiled=True)
    assert found.default == default
    assert found.machine.macs_per_s == pytest.approx(default.macs_per_s / 2, rel=0.01)
    assert found.machine.op_s == pytest.approx(2 * default.op_s, rel=0.03)
    assert (found.before, found.after) == (pytest.approx(0.5), pytest.approx(0.0, abs=0.01))
    assert any("low_rank, batch 8192" in line for line in lines)  # what keeps it busy
    assert any("mpo, batch 16384" in line for line in lines)
    assert "s: programs of jax on NVIDIA H200, bfloat16; median error" in str(found)
    assert f"  {'op_s':<18} {found.machine.op_s:>10.3g}  (default 3e-06)" in str(found)
    assert tn.calibrated("gpu", backend="jax", dtype="bfloat16") == found.machine
    assert set(asked) == {("jax", "gpu", "bfloat16")}
    assert (
        _devices.stored("torch", "NVIDIA H200", "bfloat16") is None is _devices.stored("jax", "NVIDIA A100", "bfloat16")
    )


def test_nothing_more_is_run_when_the_time_is_over(few, monkeypatch):
    place = Place("cpu", "float32", 4, False, None, None)

    def slow(network, batch, place, machine):
        for sample in invented(count=200):
            time.sleep(0.01)
            yield sample

    monkeypatch.setattr(calibrating, "place_of", lambda *names: place)
    monkeypatch.setattr(calibrating, "_program_samples", slow)
    monkeypatch.setattr(calibrating, "PROGRAM_PARAMETERS", NATIVE_PARAMETERS)
    found = tn.calibrate(backend="torch", time_limit=0.2)
    assert found.samples <= 21
    assert found.seconds < 1


@pytest.mark.cases(10)
@pytest.mark.parametrize("name", ["torch", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("phase", ["forward", "train"])
def test_what_is_timed_is_the_program(name, dtype, phase):
    place = placed(name, dtype)
    assert (place.name, place.dtype, place.compiled) == ("cpu", dtype, name == "jax")
    p = tn.plan(MPO, 5, phase)
    result = place.run_of(p.program, p.input_shapes(), phase)()
    place.wait(result)
    if phase == "forward":
        result = (result,)
    elif name == "jax":
        result = (result[0], *result[1])  # y, gradients
    shapes = [(5, 128)] if phase == "forward" else [*[(5, 128)] * (name == "jax"), *p.input_shapes()]
    assert [tuple(array.shape) for array in result] == shapes
    assert all(dtype in str(array.dtype) for array in result)
    assert all(np.any(to_host(array)) for array in result)


def to_host(array):
    """Whatever a framework made, as numpy's float64."""
    return np.asarray(array.detach().double() if hasattr(array, "detach") else array, np.float64)


def placed(name, dtype="float32", device=None):
    try:
        tn.backend(name)
    except BackendError as error:
        pytest.skip(str(error))
    return place_of(name, device, dtype)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_the_programs_of_a_backend_on_the_cpu(name, few):
    placed(name)
    found = tn.calibrate("cpu", backend=name)
    assert found.what == f"programs of {name} on cpu, float32"
    assert found.figures == PROGRAM_PARAMETERS
    assert 4 <= found.samples <= 6
    assert found.after <= found.before
    assert tn.calibrated(backend=name) == found.machine
    assert tn.calibrated(backend=name, dtype="bfloat16") is None is tn.calibrated()


def test_a_torch_layer_plans_with_what_was_stored_and_an_older_one_goes_on(few):
    torch = pytest.importorskip("torch")
    from tn4nn_torch import TNLinear

    older, x = TNLinear(MPO, seed=1, dtype="bfloat16"), torch.ones(64, 128, dtype=torch.bfloat16)
    right = older(x)
    before = older.plan(64)
    assert before.request.target.machine is None
    machine = tn.Machine(op_s=1e-3)
    _devices.store("torch", "cpu", "bfloat16", {"schema": 1, "machine": dataclasses.asdict(machine)})
    newer = TNLinear(MPO, seed=1, dtype="bfloat16")
    assert newer.plan(64).request.target.machine == machine
    assert newer.plan(64).itemsize == 2
    assert TNLinear(MPO).plan(64).request.target.machine is None
    assert torch.equal(older(x), right)
    assert older.plan(64) == before
    assert torch.allclose(newer(x), right, atol=0.05)
    older.bfloat16()  # it goes through all that .to() does, and plans with the new parameters
    assert older.plan(64) == newer.plan(64)
    assert len(older.plan(64).program.steps) <= len(before.program.steps)  # an operation is expensive now
    assert torch.equal(older(x), newer(x))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_parameters_of_a_gpu_are_those_stored_per_dtype_and_read_once(name, monkeypatch, tmp_path):
    """No GPU: a name for one is enough."""
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    placed(name)
    if name == "torch":
        import torch
        from tn4nn_torch import _device

        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
        kinds = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

        def target(dtype):
            return _device.target(torch.device("cuda"), kinds[dtype])
    else:
        import jax.numpy as jnp
        from tn4nn_jax import _target

        card = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
        monkeypatch.setattr(_target.jax, "devices", lambda *kind: [card])

        def target(dtype):
            return _target.target(jnp.dtype(dtype))

    table = {size: _devices.gpu("NVIDIA H200").machine(size, compiled=name == "jax") for size in (2, 4)}
    assert target("bfloat16") == Target(name, "NVIDIA H200", "bfloat16", ("dense", "program"), table[2])
    own = dataclasses.replace(table[2], macs_per_s=1e15)
    _devices.store(name, "NVIDIA H200", "bfloat16", {"schema": 1, "machine": dataclasses.asdict(own)})
    assert target("bfloat16").machine == own
    assert target("float16").machine == table[2]
    assert target("float32").machine == table[4]
    assert [target(dtype).itemsize for dtype in ("bfloat16", "float16", "float32")] == [2, 2, 4]
    for path in (tmp_path / "machines").iterdir():
        path.unlink()
    assert target("bfloat16").machine == own  # no file is read again


def test_costs_are_predicted_with_what_was_stored(monkeypatch, tmp_path):
    monkeypatch.setenv("TN4NN_CACHE", str(tmp_path))
    default = _devices.native_machine()  # with the vectors of this processor
    before = tn.cost(MPO, [64], phases=["forward"]).rows[0].predicted_s
    slow = dataclasses.replace(default, tile_macs_per_s=1e6)
    _devices.store("native", "cpu", "float32", {"schema": 1, "machine": dataclasses.asdict(slow)})
    assert tn.cost(MPO, [64], phases=["forward"]).rows[0].predicted_s > 100 * before
    assert tn.cost(MPO, [64], phases=["forward"], machine=default).rows[0].predicted_s == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "the native runtime runs on the CPU, received device='cuda': pass backend='torch'"),
        ({"backend": "numpy"}, "the programs of backend 'numpy' cannot be calibrated: expected 'torch' or 'jax'"),
        ({"backend": "troch"}, "unknown backend 'troch'.*torch"),
        ({"backend": "torch", "dtype": "int8"}, "unknown dtype 'int8'.*bfloat16"),
        ({"backend": "jax", "dtype": "int8"}, "computes in float32, .*received dtype 'int8'"),
        ({"backend": "torch", "device": "mps"}, "calibrated are the devices 'cpu' and 'cuda', received device='mps'"),
        ({"backend": "torch", "device": "cuda:99"}, "torch sees .* received .*'cuda:99'"),
        ({"backend": "jax", "device": "gpu:99"}, "jax has no device 'gpu:99' here: use one of .*'cpu'"),
    ],
)
def test_what_is_not_there_is_told_before_any_work(options, message, few, monkeypatch):
    if options.get("backend") in ("torch", "jax"):
        placed(options["backend"])
    monkeypatch.setattr(calibrating, "candidates", None)
    monkeypatch.setattr(calibrating, "candidate_paths", None)
    for ask in (tn.calibrate, tn.calibrated):
        with pytest.raises(BackendError, match=message):
            ask(**options)


def test_the_command_calibrates_a_backend(few, monkeypatch, tmp_path, capsys):
    from tn4nn import _cli

    placed("torch")
    asked = ["calibrate", "--device", "cpu", "--backend", "torch", "--dtype", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["tn4nn", *asked, "--json", str(tmp_path / "c.json")])
    with pytest.raises(SystemExit) as end:
        _cli.main()
    assert end.value.code == 0
    assert ": programs of torch on cpu, bfloat16; median error" in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_text())
    assert dataclasses.asdict(tn.calibrated(backend="torch", dtype="bfloat16")) == found["machine"]
