"""tn4nn's torch backend: plain nn.Modules with ordinary Parameters.

`TNLinear`, `TNConv2d` and `TNEmbedding` replace nn.Linear, nn.Conv2d and nn.Embedding; they need
nothing else of tn4nn. `convert` puts them into a trained model, `undo` takes them out again.
"""

from ._attention import SplitAttention, split_attention
from ._backend import TorchBackend
from ._calls import build_extension
from ._convert import ConversionPlan, Rule, convert, plan_conversion, undo
from ._modules import TNConv2d, TNEmbedding, TNLinear, plans, to_module
from ._refine import Refined, distill, refine

backend = TorchBackend()

__all__ = [
    "build_extension",
    "ConversionPlan",
    "convert",
    "distill",
    "plan_conversion",
    "plans",
    "refine",
    "Refined",
    "Rule",
    "split_attention",
    "SplitAttention",
    "TNConv2d",
    "TNEmbedding",
    "TNLinear",
    "TorchBackend",
    "backend",
    "to_module",
    "undo",
]
