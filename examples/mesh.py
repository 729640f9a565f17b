"""Trains one model on a mesh of devices in jax: the rows are split over them, every device has all weights.

XLA_FLAGS=--xla_force_host_platform_device_count=2 python examples/mesh.py

The flag makes two devices of one CPU; on GPUs leave it out.
"""

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from model import DECAY, LR, batches, keep, small_gpt, text, topology
from tn4nn_jax import decay_by_structure, scale_by_structure

task = text()
mesh = jax.make_mesh((len(jax.devices()),), ("rows",), axis_types=(AxisType.Auto,))
split, everywhere = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
model = small_gpt(topology(), task.outputs[-1]).build("jax", seed=0)
optimizer = optax.chain(
    optax.scale_by_adam(),
    scale_by_structure(model, lr=LR),
    decay_by_structure(model, DECAY),
    optax.scale_by_learning_rate(LR),
)


@jax.jit
def step(model, state, x, y):
    """One step; jax takes the mean over the devices, because the loss is one over all rows."""

    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    value, gradient = jax.value_and_grad(loss)(model)
    updates, state = optimizer.update(gradient, state, model)
    return optax.apply_updates(model, updates), state, value


model = jax.device_put(model, everywhere)
state = jax.device_put(optimizer.init(model), everywhere)
losses = []
for arrays in batches(task):
    x, y = jax.device_put(arrays, split)
    model, state, value = step(model, state, x, y)
    losses.append(float(value))
keep(losses, model.weights)
