"""Trains one model over several processes, each with a whole copy of it (DistributedDataParallel):

torchrun --standalone --nproc-per-node=2 examples/ddp.py

On GPUs: backend "nccl", and the model and the rows on torch.device("cuda", local_rank).
"""

import torch
import torch.distributed as dist
from model import DECAY, LR, batches, keep, small_gpt, text, topology
from tn4nn_torch import parameter_groups
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
task = text()
model = small_gpt(topology(), task.outputs[-1]).build("torch", seed=0)
optimizer = torch.optim.AdamW(parameter_groups(model, LR, DECAY))  # by the model itself, whose layers it knows
replica = DistributedDataParallel(model)
losses = []
for arrays in batches(task):
    x, y = (torch.from_numpy(array[rank::world]) for array in arrays)  # as many rows in each process
    loss = cross_entropy(replica(x).flatten(0, -2), y.flatten())
    optimizer.zero_grad()
    loss.backward()  # takes the mean of the gradients over the processes
    optimizer.step()
    mean = loss.detach() / world
    dist.all_reduce(mean)
    losses.append(mean.item())
if rank == 0:
    keep(losses, model.state_dict())
dist.destroy_process_group()
