"""torch's part in running a program."""

import torch

from tn4nn._program import Ops

OPS = Ops(torch.reshape, torch.permute, torch.matmul, torch.mul, torch.select, torch.cat)
