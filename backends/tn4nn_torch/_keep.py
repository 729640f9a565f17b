"""Models with layers on networks, kept: in one file, and put together again from the original architecture."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tn4nn._base.checks import check_file, nearest
from tn4nn._base.errors import CheckpointError, ShapeError, TN4NNError
from tn4nn._model import kept
from tn4nn._model.kept import KeptLayer, Structure

from ._kinds import carry_over, kind_of
from ._modules import _Planned
from ._tied import rename_tied

_BITS = {torch.bfloat16: (torch.uint16, "bfloat16")}
_DTYPES = {"bfloat16": torch.bfloat16}


def structure_of(model: nn.Module) -> Structure:
    """What a model is beside its architecture and its numbers."""
    found: dict[int, tuple[_Planned, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _Planned):
            found.setdefault(id(module), (module, []))[1].append(name)
    layers = tuple(
        KeptLayer(tuple(names), module.layer, {"phase": module.phase, "minimize": module.minimize, "batch": None})
        for module, names in found.values()
    )
    named = list(model.named_parameters(remove_duplicate=False))
    groups: dict[int, list[str]] = {}
    for name, parameter in named:
        groups.setdefault(id(parameter), []).append(name)
    ties = tuple(tuple(names) for names in groups.values() if len(names) > 1)
    return Structure(layers, ties, tuple(name for name, parameter in named if not parameter.requires_grad))


def put_in(model: nn.Module, structure: Structure, where: str) -> None:
    """Puts layers on networks into a model, in place: with the right shapes, and no numbers yet.

    Args:
        model: the architecture as it was before its conversion, also on the meta device.
        structure: of the converted model.
        where: it comes from, for errors.

    Raises:
        CheckpointError: a layer that the model does not have, or has otherwise.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    renamed: dict[str, list[str]] = {}
    for one in structure.layers:
        for name in one.names:
            if name not in modules:
                raise CheckpointError(f"{where}: the base has no layer {name!r}." + nearest(name, list(modules)))
        new = _layer_for(modules[one.names[0]], one, where)
        for name in one.names:
            renamed[f"{name}.weight"] = [f"{name}.{core}" for core in new.names]
            parent, _, last = name.rpartition(".")
            if name:
                modules[parent]._modules[last] = new
    rename_tied(model, renamed)


def _layer_for(old: nn.Module, one: KeptLayer, where: str) -> _Planned:
    layer: Any = one.layer
    if isinstance(old, _Planned) and old.layer == layer:
        return old
    kind = kind_of(old)
    weight: Any = None if kind is None else old._parameters.get("weight")
    if kind is not None and weight is not None:
        network = layer.solid()
        shape = tuple(kind.matrix(weight).shape)
        expected = kind.layer(old, network, getattr(layer, "ordering", None))
        if shape == (network.out_features, network.in_features) and expected == layer:
            options = {name: one.options[name] for name in ("phase", "minimize")}
            new = kind.make(layer, device="meta", dtype=weight.dtype, **options)
            if "bias" in old._parameters:
                new._parameters["bias"] = old._parameters["bias"]
            carry_over(old, new, kind.keeps, {})
            return new
    raise CheckpointError(f"{where}: its layer {one.names[0]!r} is {layer.describe()}, that of the base is {old}")


def tie(model: nn.Module, structure: Structure, where: str) -> None:
    """Makes the arrays one that were one, in place, and freezes those that were not trained.

    Raises:
        CheckpointError: names that the model does not have, or of another shape.
    """
    for group in structure.ties:
        first = _parameter(model, group[0], where)
        for name in group[1:]:
            if _parameter(model, name, where).shape != first.shape:
                raise CheckpointError(f"{where}: {group[0]!r} and {name!r} cannot be one array: their shapes differ")
            _set(model, name, first)
    for name in structure.frozen:
        _parameter(model, name, where).requires_grad_(False)
    settle(model)


def settle(model: nn.Module) -> None:
    """Layers on networks take note of cores that were put into them."""
    for module in model.modules():
        if isinstance(module, _Planned):
            module._apply(lambda t: t)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str] | None:
    path, _, last = name.rpartition(".")
    try:
        return model.get_submodule(path), last
    except AttributeError:
        return None


def _parameter(model: nn.Module, name: str, where: str) -> nn.Parameter:
    owner = _owner(model, name)
    found = None if owner is None else owner[0]._parameters.get(owner[1])
    if found is None:
        raise CheckpointError(f"{where}: the base has no parameter {name!r}")
    return found


def _set(model: nn.Module, name: str, value: Tensor) -> None:
    owner = _owner(model, name)
    assert owner is not None
    module, last = owner
    if last in module._parameters:
        module._parameters[last] = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
    else:
        module._buffers[last] = value


# -- one file -----------------------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Writes a converted model to one file, whole or not at all: `load` puts it together again.

    The file is a safetensors file: all parameters and persistent buffers to the bit (those that are tied once;
    bfloat16 as its bits in uint16), and as JSON in its metadata which layers are on which networks, their orderings,
    which parameters are one, and which are frozen. A digest over all of it tells a damaged file. The code of the model
    is not in it.

    Args:
        path: of the file; an older one is replaced.
        model: any module, e.g. what `convert` gave.

    Raises:
        ShapeError: parameters without numbers (on the meta device), or of a dtype that cannot be stored.
        WriteError: the file cannot be written; an older one is as it was.

    Examples:
        >>> import tempfile, pathlib, torch
        >>> from torch import nn
        >>> from tn4nn_torch import convert, load, save
        >>> def base():
        ...     return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> small = convert(base(), {"0": "low_rank"}, budget=200)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "small.safetensors"
        ...     save(file, small)
        ...     again = load(file, base)
        >>> x = torch.ones(2, 16)
        >>> torch.equal(again(x), small(x))
        True
    """
    check_file(path, "save(path, model)")
    if not isinstance(model, nn.Module):
        raise TN4NNError(f"save(path, model) takes an nn.Module, received {type(model).__name__}")
    structure = structure_of(model)
    once = {name for group in structure.ties for name in group[1:]}
    arrays: dict[str, NDArray[Any]] = {}
    dtypes: dict[str, str] = {}
    for name, value in model.state_dict().items():
        if name not in once:
            arrays[name] = _numbers(name, value, dtypes)
    kept.write(path, structure, arrays, dtypes)


def _numbers(name: str, value: object, dtypes: dict[str, str]) -> NDArray[Any]:
    if not isinstance(value, Tensor) or value.is_meta:
        raise ShapeError(f"{name!r} holds no numbers that can be stored: expected a tensor with numbers")
    host = value.detach().cpu().contiguous()
    if host.dtype in _BITS:
        bits, dtypes[name] = _BITS[host.dtype]
        host = host.view(bits)
    try:
        return host.numpy()
    except (TypeError, RuntimeError) as error:
        raise ShapeError(f"{name!r} is of {value.dtype}, which cannot be stored ({error}): convert it first") from None


def load(path: str | os.PathLike[str], base: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Reads what `save` wrote: the original architecture with the layers on networks, ties, dtypes and numbers.

    A file may come from anybody: nothing in it is executed, and it only fills what the base has.

    Args:
        path: of the file.
        base: the architecture as it was before `convert` (after `split_attention`, if that was used): a module, of
            which a copy is taken and whose own numbers do not matter, or a function without arguments that makes one.
            Buffers that are not in `state_dict` come from it, and so do devices and modes.

    Raises:
        DataError: there is no such file, or it cannot be read.
        CheckpointError: a file that is not of `save`, was damaged, or is of another architecture.

    Examples:
        >>> from tn4nn_torch import load
        >>> from torch import nn
        >>> load("no such file", nn.Linear(4, 4))
        Traceback (most recent call last):
            ...
        tn4nn.DataError: no such file cannot be read (No such file or directory: no such file): give a file that ...
    """
    check_file(path, "load(path, base)")
    structure, arrays, dtypes = kept.read(path)
    model = copy.deepcopy(base) if isinstance(base, nn.Module) else base()
    if not isinstance(model, nn.Module):
        raise TN4NNError(f"base is a module, or a function that makes one; received {type(model).__name__}")
    where = str(path)
    if any(name == "" for one in structure.layers for name in one.names):  # the model is one layer
        model = _layer_for(model, structure.layers[0], where)
    else:
        put_in(model, structure, where)
    state = model.state_dict(keep_vars=True)
    once = {name for group in structure.ties for name in group[1:]}
    kept.check_names(path, list(arrays), [name for name in state if name not in once])
    for name, array in arrays.items():
        _fill(model, name, state[name], _tensor(array, dtypes.get(name)), name not in structure.frozen, where)
    tie(model, structure, where)
    return model


def _tensor(array: NDArray[Any], dtype: str | None) -> Tensor:
    found = torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)
    return found if dtype is None else found.view(_DTYPES[dtype])


def _fill(model: nn.Module, name: str, old: Tensor, new: Tensor, trained: bool, where: str) -> None:
    kinds = [(t.is_floating_point(), t.is_complex(), t.dtype == torch.bool) for t in (old, new)]
    if old.shape != new.shape or kinds[0] != kinds[1]:
        raise CheckpointError(
            f"{where}: {name!r} has shape {tuple(new.shape)} and dtype {new.dtype}, expected {tuple(old.shape)} and "
            f"{old.dtype}: give the architecture it is of"
        )
    value = new if old.is_meta else new.to(old.device)
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, requires_grad=trained and any(kinds[1][:2]))
    _set(model, name, value)


def restored(model: nn.Module, data: Mapping[str, Any], where: str) -> Structure:
    """Puts the layers of a record into a model without numbers, and ties them; gives the structure."""
    structure = Structure.from_dict(data, where)
    put_in(model, structure, where)
    tie(model, structure, where)
    return structure
