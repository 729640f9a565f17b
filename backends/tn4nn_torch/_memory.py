"""Whether the numbers of a tensor lie in memory as they are: what is read by address has to be looked at before.

The memory of a tensor may be freed while the tensor lives on, as FSDP frees that of weights that it gathers again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

stored: Callable[[Tensor], bool] = torch._C._has_storage


def as_it_is(t: Tensor) -> bool:
    """Whether the numbers of a tensor lie in memory as they are, if it was not freed.

    Those of a batch of gradients (is_grads_batched) and of zeros that torch has not written down do not, and others are
    to be negated."""
    return stored(t) and not (t.is_neg() or t._is_zerotensor())


def ordinary(t: Tensor) -> bool:
    """Whether a tensor is torch's own and no subclass, which may keep its numbers elsewhere."""
    return type(t) is Tensor or type(t) is torch.nn.Parameter


def require(what: str, t: Tensor) -> None:
    """Makes sure that the memory of a tensor is there.

    Args:
        what: the tensor is called so in the error.
        t: with a storage of its own, or a part of one.

    Raises:
        RuntimeError: its storage is smaller than its sizes say.

    Examples:
        >>> import torch
        >>> x = torch.zeros(2, 3)
        >>> require("x", x)
        >>> _ = x.untyped_storage().resize_(0)
        >>> require("x", x)
        Traceback (most recent call last):
        RuntimeError: x: sizes [2, 3] need 24 bytes in memory, received a storage of 0 bytes: it was freed or made \
smaller (`untyped_storage().resize_`, as FSDP does between calls): fill it again before the call, and keep it until \
the backward pass has ended
    """
    there = t.untyped_storage().nbytes()
    if t.is_contiguous() and t.storage_offset() * t.itemsize + t.nbytes <= there:  # at every call: no more than needed
        return
    numbers = t.numel()
    if not numbers:
        return
    if not t.is_contiguous():
        numbers = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    needed = (t.storage_offset() + numbers) * t.itemsize
    if there < needed:
        raise RuntimeError(
            f"{what}: sizes {list(t.shape)} need {needed} bytes in memory, received a storage of {there} bytes: it was "
            "freed or made smaller (`untyped_storage().resize_`, as FSDP does between calls): fill it again before the "
            "call, and keep it until the backward pass has ended"
        )


def require_all(what: str, tensors: Iterable[Tensor]) -> None:
    """The same for each of some tensors that has a storage; subclasses look after their own."""
    for position, t in enumerate(tensors):
        if ordinary(t) and stored(t):
            require(f"{what} {position}", t)
