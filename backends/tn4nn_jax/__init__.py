"""The jax backend of tn4nn: pure functions over dicts of arrays, and modules that are pytrees.

`linear`, `conv2d`, `embedding` and `apply` are pure; `TNLinear`, `TNConv2d` and `TNEmbedding` are layers that
can be used alone; `backend` is what `model.build("jax")` finds.
"""

from ._apply import apply, conv2d, embedding, linear
from ._backend import JaxBackend, backend
from ._modules import JaxModule, TNConv2d, TNEmbedding, TNLinear
from ._trainer import JaxTrainer

__all__ = [
    "JaxBackend",
    "JaxModule",
    "JaxTrainer",
    "TNConv2d",
    "TNEmbedding",
    "TNLinear",
    "apply",
    "backend",
    "conv2d",
    "embedding",
    "linear",
]
