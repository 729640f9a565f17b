"""One training loop on every backend."""

import dataclasses
import errno
import inspect
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
from helpers import environment, first_of, small_data

import tn4nn as tn
from tn4nn import backend as load_backend
from tn4nn._base import files as _files
from tn4nn._base import records
from tn4nn._training import checkpoint

MODEL = tn.Sequential(
    tn.Linear(tn.mpo((4, 4), (4, 4)).with_rank(4)), tn.ReLU(), tn.Linear(tn.ring((4, 4), (1, 3)).with_rank(2))
)


DATA = small_data()


def both():
    for name in ("torch", "jax"):
        pytest.importorskip(name)
    return "torch", "jax"


# -- the same numbers everywhere --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
        {"optimizer": "sgd", "lr": 0.2, "momentum": 0.0, "schedule": ("exponential", 0.9)},
        {"optimizer": "adam", "lr": 3e-3, "weight_decay": 1e-3},
        {"optimizer": "adamw", "lr": 3e-3, "weight_decay": {"0.*": 0.1}, "warmup": 10},
        {"optimizer": "muon", "lr": 3e-3, "weight_decay": 0.1},
        {"optimizer": "adam", "lr": 5e-3, "lr_factors": {"0.core0": 2.0}, "schedule": "linear"},
    ],
    ids=lambda o: f"{o['optimizer']}-{o.get('schedule', '')}-{o.get('warmup', '')}",
)
def test_torch_and_jax_follow_each_other(options):
    runs = [tn.train(MODEL, DATA, backend=name, seed=3, epochs=10, batch_size=20, **options) for name in both()]
    assert len(runs[0].losses) >= 100
    assert np.abs(runs[0].losses[:100] - runs[1].losses[:100]).max() <= 1e-4
    assert runs[0].losses[-10:].mean() < 0.8 * runs[0].losses[:10].mean()
    for name, array in runs[0].weights.items():
        assert np.allclose(array, runs[1].weights[name], atol=1e-3), name


@pytest.mark.thorough
def test_batch_norm_and_convolution_follow_each_other():
    image = tn.topology("c a, h w o a", {"c": 1, "h": 3, "w": 3}, {"o": 4}).with_rank(3)
    model = tn.Sequential(
        tn.Unflatten((1, 4, 4)), tn.Conv2d(image, kernel=3, padding=1), tn.BatchNorm(4), tn.GELU(), tn.AvgPool(2),
        tn.Flatten(), tn.LayerNorm(16), tn.Linear(16, 3), input_shape=(16,),
    )  # fmt: skip
    runs = [tn.train(model, DATA, backend=name, epochs=10, batch_size=20, lr=1e-3) for name in both()]
    assert np.abs(runs[0].losses[:100] - runs[1].losses[:100]).max() <= 1e-4
    assert not np.allclose(runs[0].weights["2.mean"], 0)
    assert np.allclose(runs[0].weights["2.var"], runs[1].weights["2.var"], rtol=1e-3)


@pytest.mark.cases(1)
def test_an_embedding_trains(trained_backend):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 60, size=(300, 2))
    model = tn.Sequential(
        tn.Embedding(tn.build("mpo", 60, 8, sites=2, pad=False).with_rank(4)), tn.Flatten(), tn.Linear(16, 2)
    )
    run = tn.train(model, (tokens, (tokens[:, 0] > 30).astype(np.int64)), backend=trained_backend, epochs=20, lr=0.02)
    assert run.accuracy >= 90


@pytest.mark.cases(1)
def test_regression(trained_backend):
    x, _ = DATA
    target = x @ np.arange(32, dtype=np.float32).reshape(16, 2) / 16
    run = tn.train(
        tn.Linear(tn.mpo((4, 4), (2, 1)).with_rank(2)),
        (x, target),
        backend=trained_backend,
        loss="mse",
        epochs=60,
        lr=0.01,
    )
    assert run.history[-1].validation_loss < 0.05 * run.history[0].validation_loss
    assert np.isnan(run.accuracy)


@pytest.mark.thorough
def test_bf16_is_near_float32_and_keeps_float32_weights(trained_backend):
    options = {"backend": trained_backend, "epochs": 8, "batch_size": 20, "lr": 3e-3}
    exact = tn.train(MODEL, DATA, **options)
    rough = tn.train(MODEL, DATA, precision="bf16", **options)
    assert all(array.dtype == np.float32 for array in rough.weights.values())
    assert not np.array_equal(exact.losses, rough.losses)
    assert np.abs(exact.losses - rough.losses).max() < 0.1


def test_seeds(trained_backend):
    options = {"backend": trained_backend, "epochs": 1, "batch_size": 20}
    first = tn.train(MODEL, DATA, seed=1, **options)
    assert np.array_equal(first.losses, tn.train(MODEL, DATA, seed=1, **options).losses)
    assert not np.array_equal(first.losses, tn.train(MODEL, DATA, seed=2, **options).losses)


@pytest.mark.thorough
def test_dropout_is_on_in_training_only_and_repeats(trained_backend):
    model = tn.Sequential(tn.Linear(16, 64), tn.Dropout(0.5), tn.ReLU(), tn.Linear(64, 3))
    options = {"backend": trained_backend, "epochs": 2, "batch_size": 20}
    first = tn.train(model, DATA, **options)
    assert np.array_equal(first.losses, tn.train(model, DATA, **options).losses)
    backend = load_backend(trained_backend)
    module = backend.build(
        model, first.weights, batch=None, phase="train", device=None, dtype="float32", minimize="time"
    )
    assert np.array_equal(backend.forward(module, DATA[0]), backend.forward(module, DATA[0]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", first_of([-1, 2**31, 2**40]))
def test_dropout_takes_any_seed(trained_backend, seed):
    model = tn.Sequential(tn.Linear(16, 8), tn.Dropout(0.5), tn.Linear(8, 3))
    run = tn.train(model, DATA, backend=trained_backend, epochs=1, batch_size=20, seed=seed)
    assert np.isfinite(run.losses).all()


# -- the loop ---------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_device_is_not_waited_for_between_steps(trained_backend, monkeypatch):
    kind = type(load_backend(trained_backend).trainer(MODEL, MODEL.init(0), _spec()))
    reads, chunks = [], []
    read, steps = kind.read, kind.steps
    monkeypatch.setattr(kind, "read", lambda self, losses: reads.append(1) or read(self, losses))
    monkeypatch.setattr(
        kind, "steps", lambda self, x, y, i, lrs, first: chunks.append(len(lrs)) or steps(self, x, y, i, lrs, first)
    )
    run = tn.train(MODEL, small_data(2000), backend=trained_backend, epochs=2, batch_size=10)
    assert len(run.losses) == 360
    assert len(reads) == len(chunks) == 6
    assert max(chunks) == 64


def _spec(**changes):
    from tn4nn._model.backend import TrainSpec

    spec = TrainSpec(
        loss="cross_entropy", optimizer="adam", momentum=0.9, nesterov=False, betas=(0.9, 0.999), eps=1e-8,
        lr_factors={}, decay={}, precision="float32", device=None, seed=0, batch_size=10,
    )  # fmt: skip
    return dataclasses.replace(spec, **changes)


@pytest.mark.thorough
def test_early_stop_best_and_last(trained_backend):
    x, y = small_data(120)
    noise = np.random.default_rng(9).integers(0, 3, size=40)
    run = tn.train(
        MODEL,
        (x, y),
        backend=trained_backend,
        validation=(x[:40], noise),
        epochs=50,
        batch_size=20,
        lr=0.02,
        patience=3,
    )
    assert run.stopped_early
    assert len(run.history) == run.best_epoch + 3 < 50
    assert run.best_accuracy == max(line.accuracy for line in run.history) > 0
    assert run.accuracy == run.history[-1].accuracy
    assert any(not np.array_equal(run.weights[name], run.best_weights[name]) for name in run.weights)


@pytest.mark.thorough
def test_every_row_is_seen_once_in_an_epoch(trained_backend):
    seen = []
    trainer = load_backend(trained_backend).trainer(MODEL, MODEL.init(0), _spec())
    original = type(trainer).steps

    class Spy(type(trainer)):
        def steps(self, x, y, index, lrs, first):
            seen.append(index.copy())
            return original(self, x, y, index, lrs, first)

    from tn4nn._training.loop import Loop
    from tn4nn._training.settings import TrainSettings
    from tn4nn._training.splits import Arrays

    spy = Spy(MODEL, MODEL.init(0), _spec())
    Loop(TrainSettings(epochs=2, batch_size=10), MODEL, spy, Arrays(*small_data(53))).run(lambda *_: None, None)
    epochs = [np.concatenate([i.ravel() for i in seen[:2]]), np.concatenate([i.ravel() for i in seen[2:]])]
    for order in epochs:
        assert sorted(order) == list(range(53))
    assert not np.array_equal(*epochs)


@pytest.mark.slow
def test_callback_and_printed_history(trained_backend):
    lines = []
    run = tn.train(
        MODEL, DATA, backend=trained_backend, epochs=3, batch_size=50, test=small_data(50, seed=5),
        callback=lambda epoch, trainer: lines.append((epoch.epoch, sorted(trainer.weights()))),
    )  # fmt: skip
    assert [number for number, _ in lines] == [1, 2, 3]
    assert lines[0][1] == sorted(MODEL.specs())
    assert f"test accuracy {run.test_accuracy:.2f} %, loss {run.test_loss:.4f}" in str(run)
    assert run.samples_per_s > 0


def test_progress_bar(trained_backend, capsys):
    tn.train(MODEL, DATA, backend=trained_backend, epochs=1, batch_size=50, progress=True)
    shown = capsys.readouterr().err
    assert "samples/s" in shown
    assert "loss" in shown


def test_the_default_learning_rate_factor_of_a_dense_layer_is_one():
    from tn4nn._training.settings import TrainSettings

    factors = TrainSettings().spec(MODEL).lr_factors
    assert factors["0.core0"] == pytest.approx(16 / 4 / 2)
    assert factors["0.core1"] == pytest.approx(16 / 16 / 2)
    assert factors["0.bias"] == TrainSettings().spec(tn.Linear(16, 3)).lr_factors["core0"] == 1


# -- checkpoints ------------------------------------------------------------------------------------------------

OPTIONS = {"seed": 2, "epochs": 4, "batch_size": 20, "lr": 3e-3, "checkpoint_every": 3}

CHILD = """
import sys
sys.path.insert(0, {folder!r})
from test_train import DATA, MODEL, OPTIONS
import tn4nn as tn
from tn4nn._training.checkpoint import Checkpoint
write = Checkpoint.write
def slow(self, progress, state):
    write(self, progress, state)
    print("step", progress.step, flush=True)
    if progress.step >= 15:
        import time; time.sleep(60)
Checkpoint.write = slow
tn.train(MODEL, DATA, backend={backend!r}, checkpoint={path!r}, **OPTIONS)
"""


@pytest.mark.thorough
def test_resumes_to_the_bit_after_being_killed(trained_backend, tmp_path):
    path = tmp_path / "run.safetensors"
    code = CHILD.format(folder=os.path.dirname(__file__), backend=trained_backend, path=str(path))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment())
    for line in child.stdout:
        if line == "step 15\n":
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    whole = tn.train(MODEL, DATA, backend=trained_backend, **OPTIONS)
    begin = time.perf_counter()
    calls = []
    kind = type(load_backend(trained_backend).trainer(MODEL, MODEL.init(0), _spec()))
    steps = kind.steps
    try:
        kind.steps = lambda self, x, y, i, lrs, first: calls.append(first) or steps(self, x, y, i, lrs, first)
        rest = tn.train(MODEL, DATA, backend=trained_backend, checkpoint=path, **OPTIONS)
    finally:
        kind.steps = steps
    assert calls[0] == 15, "it goes on where it was killed"
    assert np.array_equal(whole.losses, rest.losses)
    assert all(np.array_equal(whole.weights[name], rest.weights[name]) for name in whole.weights)
    assert all(np.array_equal(whole.best_weights[name], rest.best_weights[name]) for name in whole.weights)
    assert [line.accuracy for line in whole.history] == [line.accuracy for line in rest.history]
    assert time.perf_counter() - begin < 60


def test_a_finished_checkpoint_is_not_run_again(trained_backend, tmp_path):
    path = tmp_path / "run.safetensors"
    first = tn.train(MODEL, DATA, backend=trained_backend, checkpoint=path, **OPTIONS)
    before = path.read_bytes()
    again = tn.train(MODEL, DATA, backend=trained_backend, checkpoint=path, **OPTIONS)
    assert np.array_equal(first.losses, again.losses)
    assert path.read_bytes() == before


@pytest.mark.cases(1)
def test_a_checkpoint_of_another_run_is_refused(trained_backend, tmp_path):
    path = tmp_path / "run.safetensors"
    tn.train(MODEL, DATA, backend=trained_backend, checkpoint=path, **OPTIONS)
    before = path.read_bytes()
    with pytest.raises(tn.CheckpointError, match="belongs to another run.*resume=False"):
        tn.train(MODEL, DATA, backend=trained_backend, checkpoint=path, **{**OPTIONS, "lr": 1e-3})
    assert path.read_bytes() == before
    tn.train(MODEL, DATA, backend=trained_backend, checkpoint=path, resume=False, **{**OPTIONS, "lr": 1e-3})
    assert path.read_bytes() != before


def test_a_resumed_run_may_have_more_patience_but_no_other_validation_data(tmp_path):
    x, y = small_data(120)
    noise = np.random.default_rng(9).integers(0, 3, size=40)
    options = {"epochs": 12, "batch_size": 20, "lr": 0.02, "validation": (x[:40], noise)}
    path = tmp_path / "run.safetensors"
    assert tn.train(MODEL, (x, y), checkpoint=path, patience=1, **options).stopped_early
    assert tn.train(MODEL, (x, y), checkpoint=path, patience=1, **options).stopped_early
    with pytest.raises(tn.CheckpointError, match="belongs to another run"):
        tn.train(MODEL, (x, y), checkpoint=path, **{**options, "validation": (x[:40], y[:40])})
    more = tn.train(MODEL, (x, y), checkpoint=path, patience=12, **options)
    whole = tn.train(MODEL, (x, y), patience=12, **options)
    assert len(more.history) == 12
    assert np.array_equal(more.losses, whole.losses)
    assert more.best_epoch == whole.best_epoch
    assert all(np.array_equal(more.best_weights[name], whole.best_weights[name]) for name in whole.weights)


@pytest.mark.cases(1)
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 100])
def test_a_corrupt_checkpoint_is_named_and_kept(tmp_path, damage):
    pytest.importorskip("torch")
    path = tmp_path / "run.safetensors"
    tn.train(MODEL, DATA, checkpoint=path, **OPTIONS)
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(tn.CheckpointError, match=r"run\.safetensors is not a safetensors file.*resume=False"):
        tn.train(MODEL, DATA, checkpoint=path, **OPTIONS)
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint in the middle of an epoch, by backend: its path, its record and its arrays."""
    made = {}

    def of(name):
        if name not in made:
            path = tmp_path_factory.mktemp(name) / "run.safetensors"
            stop = KeyError("stopped")

            def callback(epoch, trainer):
                if epoch.epoch == 2:
                    raise stop

            with pytest.raises(KeyError):
                tn.train(MODEL, DATA, backend=name, checkpoint=path, callback=callback, **OPTIONS)
            made[name] = path.read_bytes(), *records.read_arrays(path, checkpoint.SCHEMA, "", "")
        return made[name]

    return of


def _refused(name, path, match):
    """A checkpoint is refused before anything is trained."""
    kind = type(load_backend(name).trainer(MODEL, MODEL.init(0), _spec()))
    before = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "steps", lambda *_: pytest.fail("it trains"))
        with pytest.raises(tn.CheckpointError, match=match) as caught:
            tn.train(MODEL, DATA, backend=name, checkpoint=path, **OPTIONS)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


WRONG_RECORDS = [
    {"step": None}, {"step": -1}, {"step": 0}, {"step": 10**9}, {"step": 3.0}, {"step": True}, {"step": "3"},
    {"history": None}, {"history": []}, {"history": [[1, 2]]}, {"history": {"1": 2}}, {"history": [[1, "a", 0, 0, 0]]},
    {"history": [[7, 0.1, 0.1, 50.0, 0.1]]}, {"best_epoch": None}, {"best_epoch": 99}, {"best_epoch": -1},
    {"best_epoch": 0}, {"epoch_seconds": None}, {"epoch_seconds": -1.0}, {"epoch_seconds": float("nan")},
]  # fmt: skip


@pytest.mark.cases(4)
@pytest.mark.parametrize("wrong", WRONG_RECORDS, ids=str)
def test_a_record_that_no_run_could_have_written_is_refused_at_once(wrong, trained_backend, checkpoints, tmp_path):
    _, record, arrays = checkpoints(trained_backend)
    path = tmp_path / "run.safetensors"
    records.write_arrays(path, arrays, {**record, **wrong})
    _refused(trained_backend, path, "no checkpoint of this run: expected")
    records.write_arrays(path, arrays, {key: value for key, value in record.items() if key not in wrong})
    _refused(trained_backend, path, "no checkpoint of this run: expected")


WRONG_ARRAYS = {
    "another shape": lambda array: array.reshape(-1)[:0],
    "another dtype": lambda array: array.astype(np.float16),
    "whole numbers": lambda array: array.astype(np.int64),
    "missing": lambda array: None,
}


@pytest.mark.slow
@pytest.mark.parametrize("how", WRONG_ARRAYS)
def test_arrays_that_no_run_could_have_written_are_refused_at_once(how, trained_backend, checkpoints, tmp_path):
    _, record, arrays = checkpoints(trained_backend)
    path = tmp_path / "run.safetensors"
    for name, array in arrays.items():
        if array.dtype.kind == "i" and how == "whole numbers":
            continue  # jax counts steps in them
        changed = {**arrays, name: WRONG_ARRAYS[how](array)}
        records.write_arrays(path, {n: a for n, a in changed.items() if a is not None}, record)
        _refused(trained_backend, path, "expected|lacks|no state of")
    records.write_arrays(path, {**arrays, "weights/more": arrays["losses"]}, record)
    _refused(trained_backend, path, "arrays of no use: weights/more")
    records.write_arrays(path, {**arrays, "optimizer/more/x": arrays["losses"]}, record)
    _refused(trained_backend, path, "no state of")


@pytest.mark.slow
def test_a_checkpoint_that_was_damaged_or_edited_is_refused_at_once(trained_backend, checkpoints, tmp_path):
    whole, record, arrays = checkpoints(trained_backend)
    path, rng = tmp_path / "run.safetensors", np.random.default_rng(0)
    for at in rng.integers(8, len(whole), 60):  # bits
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
        _refused(trained_backend, path, ".")
    name = "weights/" + next(iter(MODEL.specs()))
    history = [[1, 0.0, 0.0, 100.0, 0.1], *record["history"][1:]]
    text = json.dumps(records.sealed(record, arrays))
    edited = text.replace(json.dumps(record["history"]), json.dumps(history))
    assert edited != text
    path.write_bytes(safetensors.numpy.save(arrays, {"tn4nn": edited}))
    _refused(trained_backend, path, "was damaged or edited after it was written")
    path.write_bytes(safetensors.numpy.save({**arrays, name: np.full_like(arrays[name], np.nan)}, {"tn4nn": text}))
    _refused(trained_backend, path, "was damaged or edited after it was written")


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    path = tmp_path / "run.safetensors"
    tn.train(MODEL, DATA, checkpoint=path, **{**OPTIONS, "epochs": 1})
    before = path.read_bytes()

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files, "_write_all", full)
    with pytest.raises(tn.WriteError, match="No space left on device.*free some space"):
        tn.train(MODEL, DATA, checkpoint=path, resume=False, **OPTIONS)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.safetensors"]


# -- bad input --------------------------------------------------------------------------------------------------

X, Y = DATA


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X[:0], Y[:0]), "training data: expected at least one row, received none"),
        ((X, Y[:-1]), "x has 230 rows, y has 229"),
        ((np.where(np.arange(230)[:, None] == 7, np.nan, X), Y), "NaN or infinity in 1 rows, the first is 7"),
        ((X, np.where(np.arange(230) == 5, 3, Y)), "label 3 in row 5 is not from 0 to 2"),
        ((X, np.where(np.arange(230) == 5, -1, Y)), "label -1 in row 5"),
        ((X, Y.astype(float)), "needs integer labels of shape .rows,., received float64"),
        (((X * 255).astype(np.uint8), Y), "takes floating-point x, received uint8: convert it"),
        ((X[:, :15], Y), r"x has shape \(230, 15\): layer '0'.*expected inputs of shape \(..., 16\)"),
        (X, r"expected \(x, y\) or a Dataset, received ndarray"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises((tn.DataError, tn.ShapeError), match=message):
        tn.train(MODEL, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adagrad"}, "optimizer must be one of sgd, adam, adamw, muon, received 'adagrad'"),
        ({"loss": "hinge"}, "loss must be one of cross_entropy, mse, received 'hinge'"),
        ({"precision": "fp8"}, "precision must be one of float32, float64, bf16, received 'fp8'"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'.*Did you mean 'cosine'"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, received 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be a whole number of at least 1, received 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, received 0"),
        ({"validation": 1.5}, "validation must be a share from 0 to 1"),
        ({"weight_decay": {"9.*": 0.1}}, "weight_decay: '9.*' matches no weight"),
        ({"lr_factors": "per-core"}, "lr_factors must be one of none, structure, received 'per-core'"),
    ],
)
def test_bad_settings(options, message):
    pytest.importorskip("torch")
    with pytest.raises((tn.TN4NNError), match=message):
        tn.train(MODEL, DATA, **options)


def test_settings_have_the_defaults_of_train():
    from tn4nn._training.settings import TrainSettings

    given = {name: p.default for name, p in inspect.signature(tn.train).parameters.items()}
    fields = dataclasses.fields(TrainSettings)
    assert {field.name: field.default for field in fields} == {field.name: given[field.name] for field in fields}


def test_a_model_without_ranks_says_what_gives_them():
    with pytest.raises(tn.TopologyError, match=r"layer '0' has a topology without ranks.*tn\.with_budget"):
        tn.train(tn.Sequential(tn.Linear(tn.mpo((4, 4), (3, 1)))), DATA)


def test_schedules():
    rates = tn.learning_rates("cosine", 1.0, steps=10, steps_per_epoch=5, warmup=4)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] < 0.1
    assert tn.learning_rates(("exponential", 0.5), 1.0, steps=4, steps_per_epoch=2) == [1.0, 1.0, 0.5, 0.5]
    assert tn.learning_rates(("step", 2, 0.1), 1.0, steps=6, steps_per_epoch=1) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert tn.learning_rates(lambda step, steps: step / steps, 2.0, steps=2, steps_per_epoch=1) == [0.0, 1.0]
    for lr in (-1.0, float("nan"), float("inf")):
        with pytest.raises(tn.TN4NNError, match="lr must be a finite number of at least 0, received"):
            tn.learning_rates("constant", lr, steps=2, steps_per_epoch=1)
    assert tn.learning_rates("constant", 0.1, steps=2, steps_per_epoch=1) == [0.1, 0.1]


# -- real data --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mnist_at_1760_weights(trained_backend):
    """E1: an MPO at 1,760 weights reaches 96.2 % in 6 epochs, low rank at the same budget stays far below."""
    try:
        data = tn.load_data("mnist", download=False)
    except tn.DataError as error:
        pytest.skip(str(error))
    mpo = tn.Sequential(
        tn.Linear(tn.mpo((4, 7, 7, 4), (4, 4, 4, 4)).with_rank(4)), tn.ReLU(),
        tn.Linear(tn.mpo((4, 4, 4, 4), (1, 1, 10, 1)).with_rank(4)),
    )  # fmt: skip
    low = tn.with_budget(
        tn.Sequential(tn.Linear(tn.low_rank(784, 256)), tn.ReLU(), tn.Linear(tn.low_rank(256, 10))),
        params=1760, count="networks",
    )  # fmt: skip
    assert mpo.num_weights == 1760
    options = {"backend": trained_backend, "epochs": 6, "batch_size": 100, "lr": 1e-3}
    assert tn.train(mpo, data, **options).test_accuracy >= 96.2
    assert tn.train(low, data, **options).test_accuracy <= 80
