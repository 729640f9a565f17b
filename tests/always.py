"""A stand-in for what a torch layer has found to be fastest: one Triton kernel for each dtype, whatever it costs."""

import functools

from tn4nn_torch._triton import dtype_for
from tn4nn_torch._tuned import through


class Always:
    """In place of a layer's `Tuned`."""

    def __init__(self, **kernels):
        self.kernels = kernels

    def way(self, layer, rows, cores):
        """The kernel, where it can take these tensors."""
        kernel = self.kernels.get(str(dtype_for(rows, cores)).removeprefix("torch."))
        return kernel and functools.partial(through, kernel, layer.names)
