"""tn4nn's torch backend: plain nn.Modules with ordinary Parameters.

`TNLinear`, `TNConv2d` and `TNEmbedding` replace nn.Linear, nn.Conv2d and nn.Embedding; they need
nothing else of tn4nn. `convert` puts them into a trained model, `undo` takes them out again; `replace` puts them into a
model that is to be trained, and `parameter_groups` is for the optimizer of one's own loop.
"""

from ._attention import SplitAttention, split_attention
from ._backend import TorchBackend
from ._calls import build_extension
from ._convert import ConversionPlan, Rule, convert, plan_conversion, undo
from ._groups import parameter_groups
from ._keep import load, save
from ._modules import TNConv2d, TNEmbedding, TNLinear, plans, to_module
from ._muon import Muon
from ._refine import Refined, distill, refine
from ._replace import plan_replacement, replace
from ._weight_norm import weight_norm

backend = TorchBackend()
"""The torch backend, as `tn.backend("torch")` gives it."""

__all__ = [
    "build_extension",
    "ConversionPlan",
    "convert",
    "distill",
    "load",
    "Muon",
    "parameter_groups",
    "plan_conversion",
    "plan_replacement",
    "plans",
    "refine",
    "Refined",
    "replace",
    "Rule",
    "save",
    "split_attention",
    "SplitAttention",
    "TNConv2d",
    "TNEmbedding",
    "TNLinear",
    "TorchBackend",
    "backend",
    "to_module",
    "undo",
    "weight_norm",
]
