"""Weight normalization of cores: it computes what it says, alike on both backends, and leaves plain weights behind."""

import numpy as np
import pytest

import tn4nn as tn
from tn4nn._training.settings import TrainSettings

NETS = {
    "btt": tn.btt((4, 4), (4, 4)).with_rank(2),
    "mpo": tn.mpo((4, 4), (4, 4)).with_rank(3),
    "tree": tn.tree((4, 2, 2), (4, 2, 2)).with_rank(2),
}


def model_on(name):
    return tn.Sequential(tn.Linear(NETS[name]), tn.ReLU(), tn.Linear(16, 3))


def small_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 16)).astype("float32")
    return x, (x[:, :3].argmax(1)).astype("int64")


OPTIONS = {"epochs": 3, "batch_size": 20, "optimizer": "adamw", "weight_norm": True, "seed": 1}


@pytest.mark.cases(1)
@pytest.mark.parametrize("name", NETS)
def test_torch_and_jax_follow_each_other(name):
    runs = []
    for backend in ("torch", "jax"):
        pytest.importorskip(backend)
        runs.append(tn.train(model_on(name), small_data(), backend=backend, lr=3e-2, **OPTIONS))
    assert np.abs(runs[0].losses - runs[1].losses).max() < 1e-4
    for key, array in runs[0].weights.items():
        assert np.allclose(array, runs[1].weights[key], atol=1e-3), key
    plain = tn.train(model_on(name), small_data(), lr=3e-2, **{**OPTIONS, "weight_norm": False})
    assert np.abs(plain.losses[0] - runs[0].losses[0]) < 1e-6  # the start is the same
    assert np.abs(plain.losses - runs[0].losses).max() > 1e-3  # and what follows is not


@pytest.mark.cases(1)
def test_the_weights_of_a_run_are_those_that_are_computed_with(trained_backend):
    model = model_on("btt")
    run = tn.train(model, small_data(), backend=trained_backend, lr=3e-2, **OPTIONS)
    assert set(run.weights) == set(model.specs())
    x = small_data()[0]
    expected = tn.backend("numpy").forward(model.build("numpy", run.weights), x)
    backend = tn.backend(trained_backend)
    assert np.allclose(backend.forward(run.module, x), expected, atol=1e-4)
    assert np.allclose(backend.forward(model.build(trained_backend, run.weights), x), expected, atol=1e-4)


def test_a_core_is_held_below_its_cap_but_for_the_gain(trained_backend):
    model = model_on("btt")
    settings = TrainSettings(backend=trained_backend, lr=0.3, **OPTIONS)
    start = model.init(0)
    grown = {key: 10 * array if "core" in key else array for key, array in start.items()}
    trainer = settings.trainer(model, grown)
    for key, array in trainer.weights().items():  # cores above their cap at the start are computed with all the same
        assert np.allclose(array, grown[key], rtol=1e-5)
    trainer = settings.trainer(model, start)
    x, y = (trainer.put(array) for array in small_data())
    trainer.steps(x, y, np.tile(np.arange(120).reshape(6, 20), (10, 1)), [0.3] * 60, 0)
    state, weights = trainer.state(), trainer.weights()
    caps = settings.spec(model).caps
    assert set(caps) == {"0.core0", "0.core1"}
    grew = []
    for core, cap in caps.items():
        raw = state[f"weights/{core}"]
        rms = float(np.sqrt(np.mean(raw.astype("float64") ** 2)))
        gain = next(float(v) for key, v in state.items() if key.removesuffix("/value") == f"optimizer/{core}:gain")
        assert np.allclose(weights[core], gain * raw / max(1, rms / cap), rtol=1e-4, atol=1e-6)
        grew.append(rms > 1.1 * cap)
    assert any(grew)


@pytest.mark.cases(1)
def test_a_run_that_was_stopped_goes_on_to_the_bit(trained_backend, tmp_path):
    options = {**OPTIONS, "backend": trained_backend, "lr": 3e-2}
    whole = tn.train(model_on("mpo"), small_data(), **options)

    class StopError(Exception):
        pass

    def stop(epoch, trainer):
        if epoch.epoch == 2:
            raise StopError

    file = tmp_path / "run.safetensors"
    with pytest.raises(StopError):
        tn.train(model_on("mpo"), small_data(), checkpoint=file, callback=stop, **options)
    rest = tn.train(model_on("mpo"), small_data(), checkpoint=file, **options)
    assert np.array_equal(rest.losses, whole.losses)
    for key, array in whole.weights.items():
        assert np.array_equal(array, rest.weights[key]), key


@pytest.mark.cases(1)
@pytest.mark.parametrize("lacking", [True, False])
def test_a_state_without_a_gain_is_refused(trained_backend, lacking):
    settings = TrainSettings(backend=trained_backend, **OPTIONS)
    trainer = settings.trainer(model_on("btt"), model_on("btt").init(0))
    state = trainer.state()
    key = next(key for key in state if ":gain" in key)
    state = {k: v for k, v in state.items() if k != key} if lacking else {**state, key: np.ones(3, "float32")}
    with pytest.raises(tn.CheckpointError, match="0.core0:gain"):
        trainer.load(state)


@pytest.mark.cases(1)
def test_muon_and_weight_norm_go_together(trained_backend):
    run = tn.train(model_on("btt"), small_data(), backend=trained_backend, lr=3e-2, **{**OPTIONS, "optimizer": "muon"})
    assert run.losses[-5:].mean() < run.losses[:5].mean()


def test_ranks_cannot_move_meanwhile():
    with pytest.raises(tn.TN4NNError, match="ranks= changes cores that weight_norm= makes"):
        tn.train(model_on("btt"), small_data(), weight_norm=True, ranks=tn.AutoRank(params=100))


def test_a_module_is_normalized_and_computes_what_it_did():
    torch = pytest.importorskip("torch")
    from tn4nn_torch import TNLinear, parameter_groups, weight_norm
    from torch.nn.utils import parametrize

    torch.manual_seed(0)
    model = torch.nn.Sequential(TNLinear(NETS["btt"], seed=0), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    x = torch.randn(8, 16)
    before = model(x)
    assert weight_norm(model) is model
    assert torch.allclose(model(x), before, atol=1e-6)
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=3e-2))
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    after = model(x)
    for core in ("core0", "core1"):
        parametrize.remove_parametrizations(model[0], core)
    assert torch.allclose(model(x), after, atol=1e-6)
    assert {name for name, _ in model[0].named_parameters()} == {"core0", "core1", "bias"}
    twice = weight_norm(TNLinear(NETS["btt"], seed=0))
    from tn4nn import BackendError

    with pytest.raises(BackendError, match="is a parametrization already"):
        weight_norm(twice)


@pytest.mark.thorough
def test_a_comparison_hands_it_on_and_refuses_modules():
    torch = pytest.importorskip("torch")
    options = {"budget": 1600, "backends": ["torch"], "seeds": 1, "epochs": 1, "lr": 1e-2}
    rows = [tn.compare(["btt"], weight_norm=flag, **options).rows[0] for flag in (False, True)]
    assert rows[0]["status"] == rows[1]["status"] == "ok"
    assert rows[0]["best_validation"] != rows[1]["best_validation"]

    def make():
        return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))

    task = tn.classification(np.zeros((20, 8), "float32"), np.arange(20) % 2)
    with pytest.raises(tn.TN4NNError, match=r"weight_norm= is for layer graphs.*tn4nn_torch.weight_norm"):
        tn.compare(["btt"], model=make, where="0", task=task, weight_norm=True)
