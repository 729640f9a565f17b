"""`tn.einsum` and `tn.contract_expression`: any contraction, on arrays of numpy, torch or jax."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from .._base.errors import ShapeError, TN4NNError, TopologyError
from .._base.notebook import shown
from .._graph.einsum import Equation, interleaved, read
from .._model.backend import backend, target_of
from .._runtime.target import Target
from .einsum_plan import EinsumPlan, EinsumRequest, find_einsum
from .numpy_einsum import NumpyEinsums
from .request import OBJECTIVES, PHASES

Run = Callable[[Sequence[Any]], Any]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_MOST = 4096  # equations with shapes whose executables are kept


class Einsums(Protocol):
    """What a framework brings for `tn.einsum` on its arrays: `einsums` of its backend."""

    def signature(self, arrays: Sequence[Any]) -> Hashable:
        """What the executable for some arrays depends on: shapes, dtypes, and what else decides it."""
        ...

    def lookup(self, arrays: Sequence[Any]) -> Hashable:
        """The same, at every call: anything may be raised for what are no arrays of the framework, and where
        executables cannot be looked up by it."""
        ...

    def target(self, arrays: Sequence[Any]) -> Target:
        """Where arrays are contracted.

        Raises:
            ShapeError: arrays on several devices.
        """
        ...

    def phase(self, arrays: Sequence[Any]) -> str:
        """ "train" where a backward pass follows, as far as the arrays say it, else "forward"."""
        ...

    def executable(self, plan: EinsumPlan, arrays: Sequence[Any]) -> Run:
        """What runs a plan on arrays like these: a function of the list of operands that are no constants. Constants
        are taken from `arrays`."""
        ...


# -- whose arrays ------------------------------------------------------------------------------------------------

_ARRAYS = ("ndarray", "generic", "Tensor", "Array", "Tracer")
_FRAMEWORKS = {"numpy": "numpy", "torch": "torch", "jax": "jax", "jaxlib": "jax"}  # module of a type -> backend


def _framework(kind: type) -> str | None:
    """The framework of a type of arrays, by the modules of the type and its bases: nothing is imported."""
    for base in kind.__mro__:
        root = base.__module__.partition(".")[0]
        if root in _FRAMEWORKS and base.__name__.rpartition(".")[2] in _ARRAYS:
            return _FRAMEWORKS[root]
    return None


@functools.cache
def _einsums(framework: str) -> Einsums:
    if framework == "numpy":
        return NumpyEinsums()
    found: Einsums = backend(framework).einsums  # type: ignore[attr-defined]
    return found


def _framework_of(arrays: Sequence[Any]) -> str:
    """The one framework of all arrays; ShapeError where there are others, or what are no arrays."""
    found: dict[str, int] = {}
    for position, array in enumerate(arrays):
        framework = _framework(type(array))
        if framework is None:
            raise ShapeError(
                f"operand {position}: expected an array of numpy, torch or jax, received {type(array).__name__}"
            )
        found.setdefault(framework, position)
    if len(found) > 1:
        here = ", ".join(f"operand {position} of {framework}" for framework, position in found.items())
        raise ShapeError(f"expected arrays of one framework, received {here}: convert them to one")
    return next(iter(found))


# -- the functions -----------------------------------------------------------------------------------------------


def einsum(equation: Any, *operands: Any, minimize: str = "time", time_limit: float = 10.0) -> Any:
    """Contracts arrays by an einsum equation, in an order that is searched for once.

    Indices may be on any number of operands, in the result or not (hyperedges, batch legs), twice on one operand
    (traces, diagonals), and be any characters. The executable for an equation and arrays of given shapes and dtypes is
    kept; the paths that were found for large networks are kept on disk too.

    Args:
        equation: as of numpy.einsum, ``"ij,jk->ik"``: an ellipsis stands for leading axes that are broadcast, and
            without an arrow the result has the indices that occur once, in alphabetical order. In place of it, all
            arguments may be arrays, each with a list of labels, and the labels of the result:
            ``einsum(a, [0, 1], b, [1, 2], [0, 2])``.
        operands: arrays of numpy, torch or jax, all of one of them. Those of several dtypes are promoted as the
            framework does it. An axis of size 1 is broadcast.
        minimize: "time" (by the cost model), "flops" (multiply-adds) or "memory" (peak bytes).
        time_limit: seconds of the path search for large networks.

    Returns:
        an array of that framework; differentiable there.

    Raises:
        TopologyError: no such equation, another number of operands, an unknown index in the result, or one twice.
        ShapeError: another number of axes, sizes that differ, what are no arrays, arrays of several frameworks.
        BackendError: the framework's backend is not installed.

    Source: the notation of numpy.einsum and opt_einsum.contract.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> a, b, c = np.ones((2, 3)), np.ones((3, 4)), np.ones((4, 2))
        >>> float(tn.einsum("ij,jk,ki->", a, b, c))
        24.0
        >>> tn.einsum(a, [0, 1], b, [1, 2], [2, 0]).shape
        (4, 2)
    """
    if type(equation) is not str:
        equation, operands = _from_lists((equation, *operands))
    try:
        run = _FOUND.get((equation, minimize, time_limit, _LOOKUPS[type(operands[0])](operands)))
    except Exception:  # the first of their kind, or no arrays
        run = None
    if run is None:
        run = getattr(_SHELF, _prepare(equation, minimize, time_limit, *operands))
    return run(operands)


_FOUND: dict[Any, Run] = {}
_LOOKUPS: dict[type, Callable[[Sequence[Any]], Hashable]] = {}


def _from_lists(given: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    if len(given) < 2:
        raise TopologyError(
            "expected an equation and arrays, as in einsum('ij,jk->ik', a, b), or arrays each with a list of labels, "
            f"received {len(given)} arguments"
        )
    text, arrays = interleaved(given)
    return text, tuple(arrays)


def _untraced(function: _Function) -> _Function:
    """Has torch.compile run a function beside the trace, as torch.compiler.assume_constant_result does: torch may not
    be there."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class _Shelf:
    """Executables as attributes: torch.compile takes text from what it runs beside the trace, but no functions, and
    sees attributes as they are, but dictionaries as they were when it first looked."""

    def __init__(self) -> None:
        self.number = itertools.count()

    def put(self, runs: dict[Any, Run], key: Hashable, run: Run) -> str:
        """Remembers an executable under a key, and returns the name of the attribute that it is."""
        if len(runs) >= _MOST:
            runs.clear()
        if len(vars(self)) >= _MOST:
            vars(self).clear()
            self.number = itertools.count()
        name = f"run{next(self.number)}"
        runs[key] = run
        setattr(self, name, run)
        return name


_SHELF = _Shelf()


@_untraced
def _prepare(equation: str, minimize: str, time_limit: float, *operands: Any) -> str:
    """Plans what runs arrays of these shapes; returns where it is on the shelf."""
    expression = Expression(read(equation, _shapes(operands)), {}, minimize, time_limit)
    run, kit = expression._executable(operands)
    _LOOKUPS[type(operands[0])] = kit.lookup
    return _SHELF.put(_FOUND, (equation, minimize, time_limit, kit.signature(operands)), run)


def _shapes(operands: Sequence[Any]) -> list[Any]:
    if operands:
        _framework_of(operands)
    return [array.shape for array in operands]


def contract_expression(
    equation: Any,
    *shapes: Any,
    constants: Sequence[int] = (),
    minimize: str = "time",
    time_limit: float = 10.0,
) -> Expression:
    """An einsum of arrays of given shapes, to be called many times.

    Args:
        equation: as in `einsum`; also lists of labels, each after its shape.
        shapes: of the operands, in order; an array in place of a constant.
        constants: positions of the operands that are the same in every call. What can be contracted of them alone is
            contracted once for each dtype of the others, and the calls take the other operands alone.
        minimize: "time" (by the cost model), "flops" (multiply-adds) or "memory" (peak bytes).
        time_limit: seconds of the path search for large networks.

    Returns:
        an `Expression`: a function of the operands that are no constants.

    Raises:
        TopologyError, ShapeError: as `einsum`; a constant that is no array, or whose gradient is wanted.

    Source: opt_einsum.contract_expression.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> w, v = np.ones((64, 4)), np.ones((4, 64))
        >>> expression = tn.contract_expression("ab,bc,cd->ad", (10, 64), w, v, constants=[1, 2])
        >>> expression(np.ones((10, 64))).shape
        (10, 64)
        >>> expression.plan().linear_path
        ((1, 2), (0, 1))
    """
    if type(equation) is not str:
        equation, shapes = _from_lists((equation, *shapes))
    fixed = _checked_constants(constants, shapes)
    sizes = [shape.shape if i in fixed else _checked_shape(i, shape) for i, shape in enumerate(shapes)]
    return Expression(read(equation, sizes), fixed, minimize, time_limit)


def _checked_constants(constants: Sequence[int], shapes: Sequence[Any]) -> dict[int, Any]:
    found = {}
    for position in constants:
        if type(position) is not int or not 0 <= position < len(shapes):
            raise TopologyError(
                f"constants are positions of operands from 0 to {len(shapes) - 1}, received {position!r}"
            )
        array = shapes[position]
        if _framework(type(array)) is None:
            raise ShapeError(f"operand {position} is a constant: expected its array, received {type(array).__name__}")
        if getattr(array, "requires_grad", False):
            raise ShapeError(
                f"operand {position} is a constant, and its gradient is wanted (requires_grad): no gradient reaches "
                "constants. Leave it out of constants=, or pass its detach()"
            )
        found[position] = array
    if len(found) == len(shapes):
        raise TopologyError("all operands are constants: contract them with einsum")
    if found:
        _framework_of(list(found.values()))
    return found


def _checked_shape(position: int, shape: Any) -> tuple[int, ...]:
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise ShapeError(
            f"operand {position}: expected a shape, a tuple of whole numbers, received {type(shape).__name__}: arrays "
            "are for the positions in constants="
        )
    return sizes


class Expression:
    """An einsum of arrays of given shapes: call it with arrays of numpy, torch or jax.

    Attributes:
        equation: the text of the equation.
        shapes: of all operands.
        constants: position -> array, of those that do not change.

    Examples:
        >>> import numpy as np, tn4nn as tn
        >>> expression = tn.contract_expression("ij,jk->ik", (2, 3), (3, 4))
        >>> expression(np.ones((2, 3)), np.ones((3, 4))).shape
        (2, 4)
    """

    def __init__(self, equation: Equation, constants: Mapping[int, Any], minimize: str, time_limit: float) -> None:
        if minimize not in OBJECTIVES:
            raise TN4NNError(f"minimize must be one of {', '.join(OBJECTIVES)}, received {minimize!r}")
        self.equation, self.shapes, self.constants = equation.text, equation.shapes, dict(constants)
        self._read, self._minimize, self._time_limit = equation, minimize, time_limit
        self._given = tuple(i for i in range(len(equation.shapes)) if i not in constants)
        self._runs: dict[Any, Run] = {}

    def __call__(self, *arrays: Any) -> Any:
        """The result for the operands that are no constants.

        Raises:
            ShapeError: another number of arrays, another shape, what are no arrays, or arrays of several frameworks.
        """
        try:
            run = self._runs.get(_LOOKUPS[type(arrays[0])](arrays))
        except Exception:  # the first of their kind, or no arrays
            run = None
        if run is None:
            run = getattr(_SHELF, self._prepare(*arrays))
        return run(arrays)

    def plan(
        self, backend: str | None = None, *, device: str | None = None, dtype: str = "float32", phase: str = "forward"
    ) -> EinsumPlan:
        """The plan by which arrays run: its path, its costs, its steps; `print` shows it.

        Args:
            backend: "torch" or "jax"; without one, the array program on a CPU, which is how numpy's arrays run.
            device: with a backend, its own word for a device; None for its default.
            dtype: of the numbers.
            phase: "train" for a pass forward and backward.

        Raises:
            BackendError: an unknown backend, device or dtype, or a backend that is not installed.
        """
        if phase not in PHASES:
            raise TN4NNError(f"phase must be one of {', '.join(PHASES)}, received {phase!r}")
        target = Target(dtype=dtype) if backend is None else target_of(backend, device, dtype)
        return find_einsum(self._request(target, phase))

    def _executable(self, operands: Sequence[Any]) -> tuple[Run, Einsums]:
        """What runs arrays like these, constants among them, and what their framework brings."""
        kit = _einsums(_framework_of(operands))
        plan = find_einsum(self._request(kit.target(operands), kit.phase(operands)))
        return kit.executable(plan, operands), kit

    def _request(self, target: Target, phase: str) -> EinsumRequest:
        constants = frozenset(self.constants)
        return EinsumRequest(self._read, target, phase, self._minimize, constants, self._time_limit)

    @_untraced
    def _prepare(self, *arrays: Any) -> str:
        """Plans what runs arrays like these; returns where it is on the shelf."""
        if len(arrays) != len(self._given):
            raise ShapeError(f"{self.equation!r}: expected {len(self._given)} arrays, received {len(arrays)}")
        operands: list[Any] = [self.constants.get(i) for i in range(len(self.shapes))]
        for position, array in zip(self._given, arrays, strict=True):
            operands[position] = array
        _framework_of(operands)
        for position, array in enumerate(operands):
            if tuple(array.shape) != self.shapes[position]:
                raise ShapeError(
                    f"operand {position} of {self.equation!r}: expected shape {self.shapes[position]}, received "
                    f"{tuple(array.shape)}"
                )
        run, kit = self._executable(operands)
        _LOOKUPS[type(arrays[0])] = kit.lookup
        return _SHELF.put(self._runs, kit.signature(arrays), run)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return shown(str(self))

    def __repr__(self) -> str:
        return f"<Expression {self.equation!r}, shapes {self.shapes}, constants {sorted(self.constants)}>"

    def __str__(self) -> str:
        return str(self.plan())
