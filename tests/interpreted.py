"""Run by test_triton.py in a process of its own, with TRITON_INTERPRET=1: prints relative errors as JSON."""

import json
import sys
import warnings

import numpy as np
import torch
from always import Always
from tn4nn_torch import TNLinear, _triton

import tn4nn as tn
from tn4nn._stream import stream
from tn4nn.reference import backend as oracle
from tn4nn.testing import random_network

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NETWORKS = {
    "mpo": tn.mpo((4, 3, 3), (2, 3, 4)).with_rank(3),
    "mpo-wide": tn.mpo((6, 6), (6, 6)).with_rank(9),  # several tiles along every axis
    "tree": tn.tree((4, 3, 2), (2, 3, 2)).with_rank(3),
    "ring": tn.ring((4, 3, 2), (2, 3, 2)).with_rank(2),
    "cp": tn.cp((4, 6), (4, 3)).with_rank(5),  # a bond of four cores
    "btt": tn.btt((4, 6), (4, 3)).with_rank(2),  # kept legs
    "kept": tn.topology("k x0 a, a k y0, x1 y1", {"k": 3, "x0": 3, "x1": 4}, {"y1": 2, "k": 3, "y0": 4}).with_rank(2),
    "padded": tn.build("mpo", 35, 23, sites=2).with_rank(3),
} | {f"random{seed}": random_network(seed, cores=6) for seed in range(5)}
launches = []
_options = _triton._options
_triton._options = lambda kernel: launches.append(kernel) or _options(kernel)


def forced(net, dtype):
    """A layer whose rows all go through the Triton kernel."""
    path = tn.plan(net, 64, "train", minimize="flops").path
    made = _triton.fused(stream(net, path), CPU, dtype)
    assert made is not None
    layer = TNLinear(net, seed=1, dtype=dtype, tune=True)
    layer._tuned = Always(**{str(dtype).removeprefix("torch."): made})
    return layer


def error(found, right):
    if right.numel() == 0:
        return 0.0
    found, right = found.detach().double(), right.detach().double()
    return float((found - right).abs().max()) / max(float(right.abs().max()), 1e-30)


def errors(net, dtype, rows):
    """Of y and of every gradient, against the oracle in float64 on the same, rounded numbers."""
    layer = forced(net, dtype)
    before = len(launches)
    rng = np.random.default_rng(rows)
    x, gy = (torch.from_numpy(rng.standard_normal((rows, n))).to(dtype) for n in (net.in_features, net.out_features))
    value = x.clone().requires_grad_(True)
    y = layer(value)
    y.backward(gy)
    wide = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}
    module = oracle.build(tn.Linear(net), wide)
    right, gx = oracle.gradients(module, x.double().numpy(), gy.double().numpy())
    found = {"y": error(y, torch.from_numpy(module(x.double().numpy()))), "x": error(value.grad, torch.from_numpy(gx))}
    found["launches"] = float(len(launches) - before != 2)  # it did run in the kernel, forward and backward
    return found | {n: error(p.grad, torch.from_numpy(right[n])) for n, p in layer.named_parameters()}


def slopes(layer, x):
    """Gradients of the sum of squares, None where none is asked for."""
    layer.zero_grad()
    (layer(x) ** 2).sum().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in layer.named_parameters()}


def parts():
    """Only what is asked for gets a gradient, and it is the one that it gets among all."""
    layer = forced(NETWORKS["mpo"], torch.float32)
    x = torch.randn(20, 36, generator=torch.Generator().manual_seed(0), requires_grad=True)
    whole, gx = slopes(layer, x), x.grad
    fixed = slopes(layer, x.detach())
    layer.core1.requires_grad_(False)
    some = slopes(layer, x.detach())
    for p in layer.parameters():
        p.requires_grad_(False)
    frozen = x.detach().clone().requires_grad_(True)
    (layer(frozen) ** 2).sum().backward()
    return {
        "no x": max(error(fixed[n], whole[n]) for n in whole),
        "one core less": max(error(some[n], whole[n]) for n in whole if n != "core1"),
        "none for the frozen core": float(some["core1"] is not None),
        "x alone": error(frozen.grad, gx),
    }


def second():
    """Second derivatives, against the program's."""
    layer = forced(NETWORKS["ring"], torch.float32)
    plain = TNLinear(NETWORKS["ring"], seed=1)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))

    def twice(module):
        first = torch.autograd.grad((module(x) ** 2).sum(), list(module.parameters()), create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), list(module.parameters()))

    return {str(i): error(a, b) for i, (a, b) in enumerate(zip(twice(layer), twice(plain), strict=True))}


def elsewhere():
    """Strides, no rows, autocast, transforms and moves."""
    layer = forced(NETWORKS["mpo"], torch.float32)
    layer._tuned.kernels |= forced(NETWORKS["mpo"], torch.bfloat16)._tuned.kernels
    x = torch.randn(20, 36, generator=torch.Generator().manual_seed(0))
    y = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    found = {
        "strided": error(layer(torch.stack([x, x], -1)[..., 0]), y),
        "vmap": error(torch.vmap(layer)(x), y),
        "no rows": float(layer(x[:0]).shape != (0, 24)),
        "autocast": float(error(low, y) > 0.02 or torch.equal(low.float(), y)),
    }
    return found | {"moved": error(layer.double()(x.double()), y), "forgotten": float(isinstance(layer._tuned, Always))}


def wrong():
    """The self-check finds a kernel that reads from the wrong place: it must say so, and give no kernel."""
    right = _triton._made

    def shifted(*args):
        made = right(*args)
        made.table[-1] += 1 if made.table[-1] == 0 else -1
        return made

    _triton._made = shifted
    net = NETWORKS["mpo"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = _triton.fused(stream(net, tn.plan(net, 64, "train", minimize="flops").path), CPU, torch.float32)
    _triton._made = right
    return {"used": float(made is not None), "silent": float("failed its self-check" not in str(said[-1].message))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {
        f"{name} {dtype} {rows}": errors(net, DTYPES[dtype], rows)
        for name, net in NETWORKS.items()
        for dtype in (DTYPES if not name.startswith("random") else ["float32"])
        for rows in ((1, 45, 129) if name in ("mpo", "btt") else (45,))
    }
    found |= {"parts": parts(), "second": second(), "elsewhere": elsewhere(), "wrong": wrong()}
    json.dump(found, sys.stdout)
