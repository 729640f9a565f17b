"""Commands to copy, at the end of each `--help` and on the page of the command line."""

from __future__ import annotations

EXAMPLES = {
    "compare": (
        "tn4nn compare --topologies mpo,tree --budget 600 --backend torch --lr 3e-3 --epochs 3",
        "tn4nn compare --model gpt --task shakespeare --budget 0.25 --steps 500",
    ),
    "plan": (
        "tn4nn plan mpo --rank 8 --batch 256 --explain",
        "tn4nn plan 'x0=4 x1=8 -> y0=4 : x0 y0 a, x1 a' --rank 2 --picture tree.svg",
    ),
    "cost": ("tn4nn cost tree --budget 5000 --measure", "tn4nn cost mpo --rank 8 --device H100 --growth growth.svg"),
    "train": ("tn4nn train ring --budget 800 --epochs 5",),
    "decompose": (
        "tn4nn decompose W.npy mpo --params 400",
        "tn4nn decompose model.safetensors tree --tensor fc.weight --error 0.5 --out small.safetensors",
    ),
    "calibrate": ("tn4nn calibrate", "tn4nn calibrate --backend torch --device cuda --dtype bfloat16"),
    "backends": ("tn4nn backends",),
    "doctor": ("tn4nn doctor",),
    "init": ("tn4nn init mine.toml", "tn4nn init sweep.toml --sweep"),
    "build-kernel": ("tn4nn build-kernel",),
    "reproduce": ("tn4nn reproduce --list", "tn4nn reproduce fc2 --quick"),
    "catalogue": ("tn4nn catalogue",),
}


def epilog(command: str) -> str:
    """What `--help` ends with.

    Examples:
        >>> epilog("train")
        'For example:\\n\\ntn4nn train ring --budget 800 --epochs 5'
    """
    return "\n\n".join(["For example:", *EXAMPLES[command]])  # typer joins lines, but for those after an empty one
