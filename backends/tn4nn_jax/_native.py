"""The native runtime of the CPU as primitives of jax.

There are three, each with the same function in jax's own operations for everything that is not a plain call on the CPU:
`apply` makes y and what it saves for the backward pass; `jvp` is its derivative, linear in the tangents, and exists
only to be transposed or differentiated once more; `vjp` is the transpose of that, all gradients at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.ffi
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad as _ad
from jax.interpreters import batching, mlir

from tn4nn._base.warn import warn_once
from tn4nn._planning.layer import plan
from tn4nn._planning.plan import Plan
from tn4nn._runtime import native as _native
from tn4nn._runtime.native import Native
from tn4nn._runtime.variants import source_digest

from ._ops import known, planned, run

Arrays = Sequence[jax.Array]
ad: Any = _ad  # without types, like
ffi: Any = jax.ffi
config: Any = jax.config


# -- what runs ---------------------------------------------------------------------------------------------------


@functools.cache
def _handler(itemsize: int) -> str | None:
    """The name under which XLA finds the runtime; None where there is no kernel, or this jaxlib does not take it."""
    found = _native.runtime(itemsize)
    if found is None:
        return None
    # Part of a compiled program, which jax may keep on disk: another version must have another name.
    name = f"tn4nn_{8 * itemsize}_{source_digest()[:12]}"
    wanted = ctypes.c_int.in_dll(found, "xla_minor")
    wanted.value = min(wanted.value, _interface())
    try:
        ffi.register_ffi_target(name, ffi.pycapsule(found.handle), platform="cpu")
    except Exception as error:  # jaxlib has no class of its own for this
        warn_once(f"jaxlib does not take the native kernel ({error}): layers run in jax's own operations")
        return None
    return name


def _interface() -> int:
    """The minor version of the interface of custom calls that jaxlib has, 0.x; a large one where it does not say."""
    try:
        header = (Path(ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text()
    except OSError:
        return 1 << 30
    found = re.search(r"define XLA_FFI_API_MINOR (\d+)", header)
    return int(found[1]) if found else 1 << 30


_KNOWN: dict[tuple[Any, ...], Native] = {}  # one object for one plan: jit compares its parameters


def native_of(plan: Plan) -> Native:
    """The native runtime of a plan whose executor is "native"."""
    key = (plan.network.fingerprint, plan.path, plan.layouts, plan.block, plan.save, plan.itemsize)
    if key not in _KNOWN:
        result = _native.native(plan.recipe)
        assert result is not None  # `available` has seen the kernel
        _KNOWN[key] = result
    return _KNOWN[key]


def available(dtype: Any) -> bool:
    """Whether the native runtime is used for a dtype.

    That is for float32 and float64 on the CPU, where it is jax's only device: XLA cannot split a custom
    call over several. While jax looks for NaNs, it must see the single operations, and no memory that only the
    backward pass reads.
    """
    kind = np.dtype(dtype)
    return kind in (np.float32, np.float64) and _alone() and not _looking() and _handler(kind.itemsize) is not None


def _alone() -> bool:
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _looking() -> bool:
    return bool(config.jax_debug_nans or config.jax_debug_infs)


def apply(native: Native, cores: Arrays, x: jax.Array) -> jax.Array:
    """y of shape (rows, product of the output modes) for x of shape (rows, product of the input modes).

    Args:
        native: what runs.
        cores: in the network's order, of x's dtype.
        x: the rows.
    """
    y: jax.Array = apply_p.bind(x, *cores, native=native, save=False)[0]
    return y


# -- the same in jax's own operations ----------------------------------------------------------------------------


def _plain(native: Native, x: jax.Array, *cores: jax.Array) -> jax.Array:
    return run(plan(native.recipe.network, planned(x.shape[:1]), "train").program, [*cores, x])


def _plain_apply(x: jax.Array, *cores: jax.Array, native: Native, save: bool) -> list[jax.Array]:
    return [_plain(native, x, *cores), jnp.zeros(_apply_shapes(x, native=native, save=save)[1].shape, x.dtype)]


def _plain_jvp(*given: jax.Array, native: Native, moved: tuple[bool, ...]) -> list[jax.Array]:
    count = len(moved)
    still, moves = given[:count], iter(given[count + 1 :])  # `saved` lies between
    along = [next(moves) if moving else jnp.zeros_like(value) for value, moving in zip(still, moved, strict=True)]
    return [jax.jvp(functools.partial(_plain, native), tuple(still), tuple(along))[1]]


def _plain_vjp(*given: jax.Array, native: Native, wanted: tuple[bool, ...]) -> list[jax.Array]:
    *still, _, gy = given
    found = jax.vjp(functools.partial(_plain, native), *still)[1](gy)
    return [grad for grad, needed in zip(found, wanted, strict=True) if needed]


# -- on the CPU --------------------------------------------------------------------------------------------------


def _call(native: Native, encoded: Any, back: bool, places: Sequence[int], results: Any, *arrays: jax.Array) -> Any:
    call = ffi.ffi_call(str(_handler(native.recipe.itemsize)), results)
    return call(jnp.asarray(encoded.view(np.int32)), *arrays, at=np.array([back, *places], np.int64))


def _cpu_apply(x: jax.Array, *cores: jax.Array, native: Native, save: bool) -> list[jax.Array]:
    buffers = native.recipe.buffers
    results = _apply_shapes(x, *cores, native=native, save=save)
    # Where nothing is saved, the second result is a number that is not read.
    places = [buffers.x, *range(len(cores)), buffers.y, buffers.prologue if native.saved(1) else buffers.y_grad]
    return list(_call(native, native.training if save else native.encoded(), False, places, results, x, *cores))


def _cpu_vjp(*given: jax.Array, native: Native, wanted: tuple[bool, ...]) -> list[jax.Array]:
    (x, *cores), saved, gy, buffers = given[:-2], given[-2], given[-1], native.recipe.buffers
    targets = [buffers.x_grad, *buffers.core_grads]
    places = [buffers.x, *range(len(cores)), buffers.prologue if native.saved(1) else buffers.y, buffers.y_grad]
    places += [target for target, needed in zip(targets, wanted, strict=True) if needed]
    results = _vjp_shapes(*given, native=native, wanted=wanted)
    return list(_call(native, native.encoded(wanted), True, places, results, x, *cores, saved, gy))


# -- the primitives ----------------------------------------------------------------------------------------------


def _apply_shapes(x: Any, *cores: Any, native: Native, save: bool) -> list[jax.core.ShapedArray]:
    y = jax.core.ShapedArray((x.shape[0], native.outputs), x.dtype)
    saved = native.saved(x.shape[0] if save else 0)
    return [y, jax.core.ShapedArray((max(1, saved) if known((saved,)) else saved,), x.dtype)]


def _jvp_shapes(*given: Any, native: Native, moved: tuple[bool, ...]) -> list[jax.core.ShapedArray]:
    return _apply_shapes(*given[: len(moved)], native=native, save=False)[:1]


def _vjp_shapes(*given: Any, native: Native, wanted: tuple[bool, ...]) -> list[jax.core.ShapedArray]:
    values = [value for value, needed in zip(given, wanted, strict=False) if needed]
    return [jax.core.ShapedArray(value.shape, value.dtype) for value in values]


def _primitive(name: str, shapes: Callable[..., Any], plain: Callable[..., Any], cpu: Callable[..., Any]) -> Any:
    result: Any = Primitive(f"tn4nn_{name}")
    result.multiple_results = True
    result.def_impl(_compiled(jax.jit(result.bind, static_argnames=("native", "save", "moved", "wanted"))))
    result.def_abstract_eval(shapes)
    mlir.register_lowering(result, mlir.lower_fun(plain, multiple_results=True))
    mlir.register_lowering(result, _lowered(plain, cpu), platform="cpu")
    return result


def _compiled(jitted: Callable[..., Any]) -> Callable[..., Any]:
    """A call outside of jit is compiled by itself, as any operation of jax is: under jax.disable_jit too."""

    def impl(*given: jax.Array, **static: Any) -> Any:
        with jax.disable_jit(False) if config.jax_disable_jit else contextlib.nullcontext():
            return jitted(*given, **static)

    return impl


def _lowered(plain: Callable[..., Any], cpu: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for the CPU: what is exported is to run where nobody has registered our calls."""
    here, away = (mlir.lower_fun(function, multiple_results=True) for function in (cpu, plain))

    def rule(ctx: Any, *given: Any, **static: Any) -> Any:
        exported = getattr(ctx.module_context.lowering_parameters, "for_export", False)
        return (away if exported else here)(ctx, *given, **static)

    return rule


apply_p = _primitive("apply", _apply_shapes, _plain_apply, _cpu_apply)
jvp_p = _primitive("jvp", _jvp_shapes, _plain_jvp, _plain_jvp)
vjp_p = _primitive("vjp", _vjp_shapes, _plain_vjp, _cpu_vjp)


def _apply_jvp(given: Arrays, along: Sequence[Any], *, native: Native, save: bool) -> tuple[Any, Any]:
    y, saved = apply_p.bind(*given, native=native, save=True)
    moved = tuple(type(tangent) is not ad.Zero for tangent in along)
    moves = [tangent for tangent, moving in zip(along, moved, strict=True) if moving]
    (dy,) = jvp_p.bind(*given, saved, *moves, native=native, moved=moved)
    # What is saved has no derivative of its own: `vjp` is differentiated as a function of the cores.
    return (y, saved), (dy, ad.Zero(jax.core.ShapedArray(saved.shape, saved.dtype)))


def _jvp_transpose(given: Any, *values: Any, native: Native, moved: tuple[bool, ...]) -> list[Any]:
    (gy,), count = given, len(moved)
    still = values[: count + 1]
    if type(gy) is ad.Zero:
        return [None] * (count + 1) + [ad.Zero(value.aval) for value in values[count + 1 :]]
    return [*[None] * (count + 1), *vjp_p.bind(*still, gy, native=native, wanted=moved)]


def _apply_transpose(given: Any, *values: Any, native: Native, save: bool) -> list[Any]:
    """Of y, where it is linear in x alone, or in one core: what jax.linear_transpose asks for."""
    gy, at = given[0], [ad.is_undefined_primal(value) for value in values]
    if type(gy) is ad.Zero:
        return [ad.Zero(value.aval) if open_ else None for value, open_ in zip(values, at, strict=True)]

    def along(*moving: jax.Array) -> jax.Array:
        moves = iter(moving)
        return _plain(native, *(next(moves) if open_ else value for value, open_ in zip(values, at, strict=True)))

    shapes = [value.aval for value, open_ in zip(values, at, strict=True) if open_]
    found = iter(jax.linear_transpose(along, *shapes)(gy))
    return [next(found) if open_ else None for open_ in at]


def _differentiated(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A jvp rule: that of the same function in jax's own operations."""

    def rule(given: Arrays, along: Sequence[Any], **static: Any) -> tuple[Any, Any]:
        tangents = [ad.instantiate_zeros(tangent) for tangent in along]
        found: tuple[Any, Any] = jax.jvp(functools.partial(plain, **static), tuple(given), tuple(tangents))
        return found

    return rule


def _mapped(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A rule of vmap: that of the same function in jax's own operations."""

    def rule(given: Arrays, axes: Sequence[Any], **static: Any) -> tuple[Any, Any]:
        found = jax.vmap(functools.partial(plain, **static), in_axes=tuple(axes))(*given)
        return found, [0] * len(found)

    return rule


def _apply_mapped(given: Arrays, axes: Sequence[Any], *, native: Native, save: bool) -> tuple[Any, Any]:
    """Many batches through the same cores are one long batch."""
    x, *cores = given
    if any(axis is not None for axis in axes[1:]):
        rule: tuple[Any, Any] = _mapped(_plain_apply)(given, axes, native=native, save=save)
        return rule
    long = jnp.moveaxis(x, axes[0], 0)
    y, saved = apply_p.bind(long.reshape(-1, long.shape[-1]), *cores, native=native, save=save)
    return (y.reshape(*long.shape[:-1], y.shape[-1]), saved), (0, None)


ad.primitive_jvps[apply_p] = _apply_jvp
ad.primitive_jvps[jvp_p] = _differentiated(_plain_jvp)
ad.primitive_jvps[vjp_p] = _differentiated(_plain_vjp)
ad.primitive_transposes[apply_p] = _apply_transpose
ad.primitive_transposes[jvp_p] = _jvp_transpose
batching.primitive_batchers[apply_p] = _apply_mapped
batching.primitive_batchers[jvp_p] = _mapped(_plain_jvp)
batching.primitive_batchers[vjp_p] = _mapped(_plain_vjp)
