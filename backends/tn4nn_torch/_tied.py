"""The names of tied weights that a Hugging Face model keeps, after its layers have been replaced.

`_tied_weights_keys` (of the class; patterns, target -> source; a list of targets before transformers 5) and
`all_tied_weights_keys` (of the object; exact names) name parameters that a converted layer no longer has. What reads
them: `tie_weights`, `save_pretrained`, the checkpoints of Trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

Renamed = Mapping[str, Sequence[str]]  # name of a parameter -> of those that replace it, in one order for tied ones


def rename_tied(model: nn.Module, renamed: Renamed) -> None:
    """Brings the names that a model and the models in it keep up to date, in place.

    Args:
        model: with its new layers.
        renamed: full names as seen from `model`.

    Examples:
        >>> from torch import nn
        >>> model = nn.Module()
        >>> model._tied_weights_keys = {"head.weight": "table.weight"}
        >>> rename_tied(model, {f"{layer}.weight": [f"{layer}.core0", f"{layer}.core1"] for layer in ("head", "table")})
        >>> model._tied_weights_keys
        {'head.core0$': 'table.core0$', 'head.core1$': 'table.core1$'}
    """
    for prefix, module in model.named_modules(remove_duplicate=False):
        start = f"{prefix}." if prefix else ""
        own = {name.removeprefix(start): found for name, found in renamed.items() if name.startswith(start)}
        own = {name: [new.removeprefix(start) for new in found] for name, found in own.items()}
        patterns = _attribute(module, "_tied_weights_keys")
        if isinstance(patterns, Mapping):
            module.__dict__["_tied_weights_keys"] = _pairs(patterns, own, "$")
        elif isinstance(patterns, list):
            module.__dict__["_tied_weights_keys"] = [new for old in patterns for new in own.get(old, [old])]
        exact = _attribute(module, "all_tied_weights_keys")
        if isinstance(exact, Mapping):
            module.__dict__["all_tied_weights_keys"] = _pairs(exact, own, "")


def _attribute(module: nn.Module, name: str) -> Any:
    return module.__dict__.get(name, getattr(type(module), name, None))


def _pairs(known: Mapping[str, str], renamed: Renamed, end: str) -> dict[str, str]:
    return dict(pair for old in known.items() for pair in _new(*old, renamed, end))


def _new(target: str, source: str, renamed: Renamed, end: str) -> Iterator[tuple[str, str]]:
    # A name is a pattern too, in which the end has to be marked: core1 is not core10.
    new = [renamed.get(name.removesuffix("$")) for name in (target, source)]
    if new[0] is None and new[1] is None:
        yield target, source
        return
    targets, sources = (found or [name] for found, name in zip(new, (target, source), strict=True))
    for one, other in zip(targets, sources, strict=False):
        yield _marked(one, end), _marked(other, end)


def _marked(name: str, end: str) -> str:
    return name + end if end and not name.endswith((".weight", ".bias", end)) else name
