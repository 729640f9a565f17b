"""The jax backend of tn4nn: pure functions over dicts of arrays, and modules that are pytrees.

`linear`, `conv2d`, `embedding` and `apply` are pure; `TNLinear`, `TNConv2d` and `TNEmbedding` are layers that
can be used alone; `convert` puts them into a trained Equinox model, `undo` takes them out again, and `decompose_params`
does it for a tree of named matrices; `replace` puts layers into a model that is to be trained, `scale_by_structure`
and `decay_by_structure` are for optax in one's own loop; `backend` is what `model.build("jax")` finds.
"""

from ._apply import apply, conv2d, embedding, linear
from ._backend import JaxBackend, backend
from ._convert import ConversionPlan, Rule, convert, plan_conversion, undo
from ._keep import load, save
from ._modules import JaxModule, TNConv2d, TNEmbedding, TNLinear, plans
from ._params import decompose_params, plan_params
from ._replace import plan_replacement, replace
from ._structure import decay_by_structure, scale_by_muon, scale_by_structure
from ._trainer import JaxTrainer

__all__ = [
    "ConversionPlan",
    "JaxBackend",
    "JaxModule",
    "JaxTrainer",
    "Rule",
    "TNConv2d",
    "TNEmbedding",
    "TNLinear",
    "apply",
    "backend",
    "conv2d",
    "convert",
    "decay_by_structure",
    "decompose_params",
    "embedding",
    "linear",
    "load",
    "plan_conversion",
    "plan_params",
    "plan_replacement",
    "plans",
    "replace",
    "save",
    "scale_by_muon",
    "scale_by_structure",
    "undo",
]
