"""People's own modules as a subject: of torch, Hugging Face, Equinox or flax's nnx."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .._base.errors import BackendError, TN4NNError, TopologyError
from .._base.hashing import fingerprint_of
from .._graph.catalogue import dense
from .._graph.network import Network
from .._model.foreign import foreign
from .._model.layers import Layer, Linear, OnNetwork
from .._training.modules import check_outputs
from .._training.tasks import Task
from .families import Asked, Family, own_width
from .variants import chosen_names

_LINEAR = ("Linear", "Conv1D")
Fit = Callable[[Any, Any], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make a module of the table.

    Attributes:
        make: a person's function.
        backend: of the framework.
        width: given to `make`; None where it takes none.
        networks: name of a layer -> what it is put on.
        start: see `compare`.
        sizes: name -> (kind, in_features, out_features) of all layers that could be replaced.
        num_params: of the module.
        fit: a person's own training, or None.
    """

    make: Callable[..., Any]
    backend: str
    width: int | None
    networks: Mapping[str, Network]
    start: str
    sizes: Mapping[str, tuple[str, int, int]]
    num_params: int
    fit: Fit | None = None

    @property
    def fingerprint(self) -> str:
        """Equal for equal recipes: the functions count by their source, where it can be read."""
        nets = {name: net.to_dict() for name, net in self.networks.items()}
        sizes = {name: list(size) for name, size in self.sizes.items()}
        return fingerprint_of([_source(self.make), _source(self.fit), self.width, nets, self.start, sizes])

    def layer(self, name: str) -> Linear:
        """A layer of the module, as a linear one."""
        return Linear(self.networks.get(name) or dense(*self.sizes[name][1:]).with_rank(1))

    def built(self, seed: int) -> Any:
        """The module with the weights of a seed."""
        known = foreign(self.backend)
        with known.seeded(seed):
            module = made_by(self.make, self.width)
        return known.replaced(module, self.networks, seed, self.start)


# Of one model, which end no sweep.
FAILURES = (TN4NNError, RuntimeError, ValueError, MemoryError)


def ends_one_cell(error: Exception, model: Layer | Recipe) -> bool:
    """Whether an error is that of one model, and the sweep goes on: in a person's own code anything may happen."""
    return isinstance(model, Recipe) or isinstance(error, FAILURES)


def _source(function: Any) -> list[str]:
    """What tells a function from another one: its name, its source, and what it was given beforehand."""
    if function is None:
        return []
    if isinstance(function, functools.partial):
        return [*_source(function.func), repr(function.args), repr(sorted(function.keywords.items()))]
    named = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', None) or repr(function)}"
    try:
        return [named, inspect.getsource(function)]
    except (OSError, TypeError):  # typed at a prompt, or an object that is called
        return [named]


def made_by(make: Callable[..., Any], width: int | None) -> Any:
    """What a person's function makes."""
    return make() if width is None else make(width=width)


@dataclasses.dataclass(frozen=True)
class Modules(Family[Recipe]):
    """See `Family`.

    Attributes:
        make: makes a module, dense; takes a `width` where it can be made thinner.
        asked: of it; its task is empty where a person's own `fit` knows its data.
        start: see `compare`.
        fit: see `compare`.
    """

    make: Callable[..., Any]
    asked: Asked
    start: str = "fresh"
    fit: Fit | None = None

    def __post_init__(self) -> None:
        if self.asked.widths and own_width(self.make) is None:
            raise TN4NNError("a ladder of widths needs a model function with an argument width=")
        self.layers(self.reference)  # patterns that match nothing are told at once

    def dense(self, width: int | None) -> Recipe:
        """See `Family`."""
        return dataclasses.replace(_dense_recipe(self.make, self.asked.backend, width, self.start), fit=self.fit)

    def layers(self, model: Recipe) -> dict[str, OnNetwork]:
        """See `Family`."""
        linear = [name for name, size in model.sizes.items() if size[0] in _LINEAR]
        names = chosen_names(model.sizes, self.asked.where) if self.asked.where else linear[:-1] or linear
        return {name: model.layer(name) for name in names}

    def put(self, model: Recipe, networks: Mapping[str, Network]) -> Recipe:
        """See `Family`."""
        dense_params = sum(model.sizes[name][1] * model.sizes[name][2] for name in networks)
        params = model.num_params - dense_params + sum(net.num_params for net in networks.values())
        return dataclasses.replace(model, networks=networks, num_params=params)

    def rows(self, model: Recipe) -> Mapping[str, int]:
        """See `Family`.

        Raises:
            TN4NNError: it cannot be told.
        """
        rows = rows_of_module(model, self.task)
        missing = [name for name in self.layers(model) if name not in rows]
        if missing:
            raise TN4NNError(
                f"{self.asked.budget_of}= needs the rows that each layer sees, which are not known of {missing[0]!r}: "
                "give budget= or bytes="
            )
        return rows

    def num_params(self, model: Recipe) -> int:
        """See `Family`."""
        return model.num_params

    def thinner(self, model: Recipe, width: int | None) -> tuple[int, Callable[[int], Recipe | None]]:
        """See `Family`."""
        own = own_width(self.make) if width is None else width
        if own is None:
            raise TopologyError("the model function takes no width=, so that no thinner model can be made of it")
        return own, self._at

    def _at(self, width: int) -> Recipe | None:
        try:
            return self.dense(width)
        except TN4NNError:
            raise
        except (ValueError, AssertionError, RuntimeError, ArithmeticError):  # heads may have to divide it
            return None


@functools.lru_cache(maxsize=64)
def _dense_recipe(make: Callable[..., Any], backend: str, width: int | None, start: str) -> Recipe:
    known = foreign(backend)
    with known.seeded(0):
        module = made_by(make, width)
    if not known.owns(module):
        raise BackendError(f"model: expected a module of {backend}, received {type(module).__name__}")
    return Recipe(make, backend, width, {}, start, known.layers(module), known.num_params(module))


@functools.lru_cache(maxsize=64)
def _rows(make: Callable[..., Any], backend: str, width: int | None, task: Task) -> Mapping[str, int]:
    known = foreign(backend)
    with known.seeded(0):
        module = made_by(make, width)
    x, _ = task.train.take(task.train.numbers()[:2])
    check_outputs(known.outputs(module, x)[1:], task)
    return known.rows(module, x)


def rows_of_module(recipe: Recipe, task: Task) -> Mapping[str, int]:
    """Name -> rows that each dense layer sees for one sample; empty where that cannot be told.

    Raises:
        DataError: the module does not take the task, or gives something else.
    """
    return _rows(recipe.make, recipe.backend, recipe.width, task)


def layers_of(recipe: Recipe, task: Task) -> list[tuple[Linear, int]]:
    """(layer, rows for one sample) of the linear layers of a module, those on networks and the dense ones."""
    return [(recipe.layer(name), rows) for name, rows in rows_of_module(recipe, task).items()]
