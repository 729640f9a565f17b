"""One model on several devices: the examples give what one device gives, and `tn.train` refuses to be one process of
several."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import environment, largest_error, small_data

import tn4nn as tn

EXAMPLES = Path(__file__).parents[2] / "examples"
if not EXAMPLES.is_dir():  # the wheel, tested from outside the tree
    pytest.skip("examples/ is not part of the wheel", allow_module_level=True)

# The mean over two halves of a batch is rounded otherwise than the mean over all of it, and Adam divides by gradients
# that may be small. Measured: 1e-6 in the loss, 1e-4 in the weights.
LOSSES, WEIGHTS = 1e-5, 1e-3


def ran(command, out, **changes):
    """Losses of every step, and the weights at the end."""
    done = subprocess.run(
        [*command, str(out)],
        env=environment(OMP_NUM_THREADS="1", **changes), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out) as file:
        return json.loads(done.stdout.splitlines()[-1]), dict(file)


def torchrun(processes, example, topology, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return ran([*command, str(EXAMPLES / f"{example}.py"), topology], tmp_path / f"{example}{processes}.npz")


def mesh(devices, topology, tmp_path):
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, str(EXAMPLES / "mesh.py"), topology]
    return ran(command, tmp_path / f"mesh{devices}.npz", XLA_FLAGS=flags)


def are_equal(found, expected):
    (losses, weights), (whole_losses, whole_weights) = found, expected
    assert losses[-1] < losses[0] - 1
    assert largest_error(losses, whole_losses) <= LOSSES
    assert weights.keys() == whole_weights.keys()
    for name, array in whole_weights.items():
        # Softmax takes no notice of a bias of the keys: its gradient is nothing but rounding.
        if not name.endswith("key.bias"):
            assert largest_error(weights[name], array) <= WEIGHTS, name


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("topology", ["mpo", "btt"])
def test_two_processes_of_torch_train_the_model_of_one(topology, tmp_path):
    pytest.importorskip("torch")
    alone = torchrun(1, "ddp", topology, tmp_path)
    are_equal(torchrun(2, "ddp", topology, tmp_path), alone)
    are_equal(torchrun(2, "fsdp", topology, tmp_path), alone)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("topology", ["mpo", "btt"])
def test_a_mesh_of_two_devices_of_jax_trains_the_model_of_one(topology, tmp_path):
    pytest.importorskip("jax")
    are_equal(mesh(2, topology, tmp_path), mesh(1, topology, tmp_path))


# -- tn.train, which trains in one process ------------------------------------------------------------------------


def train(backend):
    model = tn.Sequential(tn.Linear(16, 4), tn.ReLU(), tn.Linear(4, 3))
    return tn.train(model, small_data(20), backend=backend, epochs=1)


REFUSED = r"train in one process, received one of 2 .*a loop of your own \(documentation: how-to/several-devices\)"


def test_one_process_of_torchrun_does_not_train_a_model_of_its_own(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(tn.BackendError, match=REFUSED):
        train("torch")
    with pytest.raises(tn.BackendError, match=REFUSED):
        tn.compare(["mpo"], budget=600, backends="torch", seeds=1, epochs=1, lr=1e-3)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert len(train("torch").losses) == 1


def test_one_process_of_a_group_does_not_train_a_model_of_its_own(monkeypatch, tmp_path):
    distributed = pytest.importorskip("torch.distributed")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert len(train("torch").losses) == 1
        monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
        with pytest.raises(tn.BackendError, match=REFUSED):
            train("torch")
    finally:
        monkeypatch.undo()
        distributed.destroy_process_group()


def test_one_process_of_several_of_jax_does_not_train_a_model_of_its_own(monkeypatch):
    jax = pytest.importorskip("jax")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(tn.BackendError, match=REFUSED):
        train("jax")
