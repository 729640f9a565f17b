"""tn4nn's torch backend: plain nn.Modules with ordinary Parameters.

`TNLinear`, `TNConv2d` and `TNEmbedding` stand where nn.Linear, nn.Conv2d and nn.Embedding stood; they need
nothing else of tn4nn.
"""

from ._backend import TorchBackend
from ._modules import TNConv2d, TNEmbedding, TNLinear, to_module

backend = TorchBackend()

__all__ = ["TNConv2d", "TNEmbedding", "TNLinear", "TorchBackend", "backend", "to_module"]
