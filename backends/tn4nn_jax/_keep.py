"""Equinox models with layers on networks, kept in one file, and put together again from the original architecture."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tn4nn._base.checks import check_file, nearest
from tn4nn._base.errors import BackendError, CheckpointError, ShapeError
from tn4nn._model import kept
from tn4nn._model.kept import KeptLayer, Structure
from tn4nn._model.layers import OnNetwork

from ._convert import _replaced, _walk, word
from ._device import beside, to_device, wide
from ._kinds import kind_of
from ._modules import JaxModule, build_module


def save(path: str | os.PathLike[str], model: Any) -> None:
    """Writes a converted Equinox model to one file, whole or not at all: `load` puts it together again.

    The file is a safetensors file: all arrays of the model to the bit (those that are in it twice once; bfloat16 as its
    bits in uint16), and as JSON in its metadata which layers are on which networks, their orderings, and which arrays
    are one. A digest over all of it tells a damaged file. The code of the model is not in it, nor are numbers that are
    no arrays, functions and random keys: these come from the base.

    Args:
        path: of the file; an older one is replaced.
        model: any pytree, e.g. what `convert` gave.

    Raises:
        BackendError: arrays without numbers, inside of jit or of `eval_shape`.
        ShapeError: arrays of a dtype that cannot be stored.
        WriteError: the file cannot be written; an older one is as it was.

    Examples:
        >>> import equinox as eqx, jax, pathlib, tempfile
        >>> from tn4nn_jax import convert, load, save
        >>> base = eqx.nn.MLP(16, 4, 16, 1, key=jax.random.key(0))
        >>> small = convert(base, {"layers.0": "low_rank"}, budget=200)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "small.safetensors"
        ...     save(file, small)
        ...     again = load(file, base)
        >>> bool((again(jax.numpy.ones(16)) == small(jax.numpy.ones(16))).all())
        True
    """
    check_file(path, "save(path, model)")
    layers: dict[int, tuple[JaxModule, list[str]]] = {}
    for name, node, _ in _walk(model):
        if isinstance(node, JaxModule) and isinstance(node.model, OnNetwork):
            layers.setdefault(id(node), (node, []))[1].append(name)
    groups: dict[int, list[str]] = {}
    arrays: dict[str, NDArray[Any]] = {}
    dtypes: dict[str, str] = {}
    for name, leaf in _arrays(model):
        names = groups.setdefault(id(leaf), [])
        names.append(name)
        if len(names) == 1:
            arrays[name] = _numbers(name, leaf, dtypes)
    ties = tuple(tuple(names) for names in groups.values() if len(names) > 1)
    kept.write(path, Structure(tuple(_kept(*one) for one in layers.values()), ties), arrays, dtypes)


def _kept(module: JaxModule, names: list[str]) -> KeptLayer:
    layer, options = module.model, module.options
    assert isinstance(layer, OnNetwork)
    planned = {"phase": options.phase, "minimize": options.minimize, "batch": options.plan_batch}
    return KeptLayer(tuple(names), layer, planned)


def _arrays(model: Any) -> Iterator[tuple[str, Any]]:
    """(name, array) of all arrays of numbers in a pytree."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        if isinstance(leaf, jax.core.Tracer):
            raise BackendError("save and load need the numbers of a model: call them outside of jit, grad and vmap")
        if _is_array(leaf):
            yield ".".join(map(word, path)), leaf


def _is_array(leaf: Any) -> bool:
    array = isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)
    return array and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _numbers(name: str, leaf: Any, dtypes: dict[str, str]) -> NDArray[Any]:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise BackendError(f"{name!r} has a shape and no numbers (eval_shape): there is nothing to save")
    host = np.array(leaf)
    if host.dtype.name in kept.BITS:
        dtypes[name] = host.dtype.name
        return host.view(kept.BITS[host.dtype.name])
    if host.dtype.kind not in "biufc" or host.dtype.itemsize > 8 * (1 + (host.dtype.kind == "c")):
        raise ShapeError(f"{name!r} is of dtype {host.dtype}, which cannot be stored: convert it first")
    return host


def load(path: str | os.PathLike[str], base: Any) -> Any:
    """Reads what `save` wrote: the original architecture with the layers on networks, dtypes and numbers.

    A file may come from anybody: nothing in it is executed, and it only fills what the base has.

    Args:
        path: of the file.
        base: the architecture as it was before `convert`: a model whose own numbers do not matter, shapes alone
            (`eqx.filter_eval_shape`), or a function without arguments that makes one of these. It is not changed.

    Raises:
        DataError: there is no such file, or it cannot be read.
        CheckpointError: a file that is not of `save`, was damaged, or is of another architecture.

    Examples:
        >>> from tn4nn_jax import load
        >>> load("no such file", None)
        Traceback (most recent call last):
            ...
        tn4nn.DataError: no such file cannot be read (No such file or directory: no such file): give a file that ...
    """
    check_file(path, "load(path, base)")
    structure, arrays, dtypes = kept.read(path)
    model = base() if _is_factory(base) else base
    where = str(path)
    same = {name: group[0] for group in structure.ties for name in group}
    nodes = {name: node for name, node, _ in _walk(model)}
    instead: dict[int, Any] = {}
    for one in structure.layers:
        for name in one.names:
            if name not in nodes:
                raise CheckpointError(f"{where}: the base has no layer {name!r}." + nearest(name, list(nodes)))
        weights = {}
        for spec in one.layer.specs():
            stored = f"{one.names[0]}.weights.{spec}".removeprefix(".")
            stored = same.get(stored, stored)
            if stored not in arrays:
                raise CheckpointError(f"{where}: the array {stored!r} is not in it")
            weights[spec] = _values(arrays[stored], dtypes.get(stored))
        new = _layer_for(nodes[one.names[0]], one, weights, where)
        instead.update({id(nodes[name]): new for name in one.names})
    return _filled(_replaced(model, instead), arrays, dtypes, same, where)


def _is_factory(base: Any) -> bool:
    """Models can be called too: a function is what is no pytree of its own."""
    return callable(base) and all(leaf is base for leaf in jax.tree_util.tree_leaves(base))


def _layer_for(old: Any, one: KeptLayer, weights: Mapping[str, Any], where: str) -> Any:
    layer: Any = one.layer
    kind, dense = kind_of(old), old
    if isinstance(old, JaxModule) and old.model == layer:
        make: Any = type(old)
    elif kind is not None and len(dense.weight.shape) == kind.axes:
        network = layer.solid()
        right = kind.features(dense.weight) == (network.in_features, network.out_features)
        make = kind.make if right and kind.layer(old, network, getattr(layer, "ordering", None)) == layer else None
    else:
        make = None
    if make is None:
        raise CheckpointError(f"{where}: its layer {one.names[0]!r} is {layer.describe()}, that of the base is {old}")
    first = next(iter(weights.values()))
    try:
        layer.check(weights)
    except ShapeError as error:
        raise CheckpointError(f"{where}: layer {one.names[0]!r}: {error}") from error
    return build_module(make, layer, weights, dtype=first.dtype.name, **one.options)


def _values(array: NDArray[Any], dtype: str | None) -> NDArray[Any]:
    return array if dtype is None else array.view(jnp.dtype(dtype))


def _filled(
    model: Any, arrays: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str], same: Mapping[str, str], where: str
) -> Any:
    """The model with the arrays of the file."""
    named = dict(_arrays(model))
    kept.check_names(where, list(arrays), [name for name in named if same.get(name, name) == name])
    made: dict[str, Any] = {}

    def value(path: Any, leaf: Any) -> Any:
        name = ".".join(map(word, path))
        if not _is_array(leaf):
            return leaf
        stored = same.get(name, name)
        found = _values(arrays[stored], dtypes.get(stored))
        kinds = [_sort(dtype) for dtype in (found.dtype, leaf.dtype)]
        if found.shape != tuple(leaf.shape) or kinds[0] != kinds[1]:
            raise CheckpointError(
                f"{where}: {name!r} has shape {found.shape} and dtype {found.dtype}, expected {tuple(leaf.shape)} and "
                f"{leaf.dtype}: give the architecture it is of"
            )
        if stored not in made:
            with wide(found.dtype.itemsize == 8):
                plain = isinstance(leaf, np.ndarray)
                made[stored] = found if plain else beside(to_device(found, found.dtype, None), leaf)
        return made[stored]

    return jax.tree_util.tree_map_with_path(value, model)


def _sort(dtype: Any) -> str:
    """What kind of numbers."""
    sorts = ("bool", "integer", "floating", "complexfloating")
    known = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    return next((name for name, kind in zip(sorts, known, strict=True) if jnp.issubdtype(dtype, kind)), str(dtype))
