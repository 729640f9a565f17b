"""What the tests on a GPU share."""

import numpy as np
import torch


def noise(*shape, seed=0):
    """Normal numbers, the same at each call."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float().cuda()


def step(layer, x, gy):
    """y and all gradients of a training step."""
    value = x.detach().clone().requires_grad_(True)
    y = layer(value)
    return [y.detach(), *torch.autograd.grad(y, [value, *layer.parameters()], gy)]
