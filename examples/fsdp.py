"""Trains one model that is split over several processes, block by block (FSDP2):

torchrun --standalone --nproc-per-node=2 examples/fsdp.py

On GPUs: backend "nccl", and the model and the rows on torch.device("cuda", local_rank).
"""

import torch
import torch.distributed as dist
from model import DECAY, LR, batches, keep, small_gpt, text, topology
from tn4nn_torch import parameter_groups
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mesh = dist.init_device_mesh("cpu", (world,))
task = text()
model = small_gpt(topology(), task.outputs[-1]).build("torch", seed=0)  # the same weights in every process
for block in model.get_submodule("blocks").children():
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(parameter_groups(model, LR, DECAY))  # of the shards: after fully_shard
losses = []
for arrays in batches(task):
    x, y = (torch.from_numpy(array[rank::world]) for array in arrays)  # as many rows in each process
    loss = cross_entropy(model(x).flatten(0, -2), y.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    mean = loss.detach() / world
    dist.all_reduce(mean)
    losses.append(mean.item())
weights = {name: shards.full_tensor() for name, shards in model.state_dict().items()}  # every process takes part
if rank == 0:
    keep(losses, weights)
dist.destroy_process_group()
