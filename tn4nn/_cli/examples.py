"""What `tn4nn init` writes: files to begin with, each with its syntax as comments."""

from __future__ import annotations

from pathlib import Path

from .._base.errors import TN4NNError
from .._base.files import atomic_write

TOPOLOGIES = """\
# Topologies for tn4nn. Try this file as it stands:
#
#   tn4nn plan {file}:chain --rank 4 --batch 256
#   tn4nn compare --topologies {file} --budget 600
#
# Each [entry] is one network. `cores` has a comma between cores and a space between their legs.
#   x...  a leg in `inputs` meets the layer's input; their sizes multiply to the layer's input features.
#   y...  a leg in `outputs` is part of the layer's output; their sizes multiply to its output features.
#   a, b  any other leg joins the cores that have it (a bond). Its size comes from the budget.
# A leg of three or more cores, or an input or output leg of two, is a hyperedge. A leg that is both input and output
# makes W block diagonal in it. Cores may have names: "left: x0 y0 a, right: a x1 y1".
#
# The digits that `tn4nn compare` trains on by default are images of 8 x 8 pixels, and the layer under test is 64 -> 64.

[chain]                       # a tensor train of three cores (an MPO)
cores = "x0 y0 a, a x1 y1 b, b x2 y2"
inputs = {{ x0 = 4, x1 = 4, x2 = 4 }}
outputs = {{ y0 = 4, y1 = 4, y2 = 4 }}

[star]                        # three cores around a fourth, which has bonds alone
cores = "x0 y0 a, x1 y1 b, x2 y2 c, a b c"
inputs = {{ x0 = 4, x1 = 4, x2 = 4 }}
outputs = {{ y0 = 4, y1 = 4, y2 = 4 }}

[sum]                         # one bond on all three cores: a CP decomposition
cores = "x0 y0 r, x1 y1 r, x2 y2 r"
inputs = {{ x0 = 4, x1 = 4, x2 = 4 }}
outputs = {{ y0 = 4, y1 = 4, y2 = 4 }}

[halves]                      # input and output modes may be as many as you like, here two and three
cores = "x0 y0 a, a x1 y1 y2"
inputs = {{ x0 = 8, x1 = 8 }}
outputs = {{ y0 = 4, y1 = 4, y2 = 4 }}
"""

SWEEP = """\
# A comparison for tn4nn. Run it with
#
#   tn4nn compare {file}
#
# Words are the arguments of `tn.compare`; every option of the command may be given beside the file, and wins.

topologies = ["mpo", "tree", "btt"]   # names of `tn4nn catalogue`, or files: "mytopology.toml"
budget = [0.25, 0.5]                  # parts of the weights of the chosen layers; whole numbers above 1 are weights
where = "blocks.*"                    # which layers: names or patterns
backends = ["torch"]                  # and "jax"
seeds = 2                             # runs of each cell; three or more for tests of significance
steps = 200                           # of training; or epochs = 10
lr = "auto"                           # chosen for each topology by successive halving, with the same effort
out = "results"                       # rows.jsonl, results.json, report.html; --resume goes on from what is there

[model]                               # gpt, vit, mlp or cnn; "my.py:make_model"; or a config.json of transformers
name = "gpt"
layers = 2
width = 64
heads = 4

[task]                                # shakespeare and digits are embedded; mnist; a .txt, .npy, .bin or .npz file
name = "shakespeare"
context = 32
"""


def write_example(path: Path, text: str, replace: bool) -> None:
    """Writes an example.

    Args:
        path: where to; must end in ".toml".
        text: `TOPOLOGIES` or `SWEEP`.
        replace: a file that is there.

    Raises:
        TN4NNError: another suffix, or a file that is there.
        WriteError: it cannot be written.
    """
    if path.suffix != ".toml":
        raise TN4NNError(f"expected a name that ends in .toml, received {str(path)!r}")
    if path.exists() and not replace:
        raise TN4NNError(f"{path} is there already: give another name, or --replace to write over it")
    atomic_write(path, text.format(file=path).encode())
