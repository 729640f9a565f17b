"""Models and tasks, as a command and a sweep file name them.

MODEL   gpt, vit, mlp, cnn                a preset; its options by --model-options or in the file
        my.py:make_model                  a function in a Python file, which makes a module or a layer graph
        config.json                       a configuration of Hugging Face's transformers
TASK    digits, mnist, fashion-mnist      pictures by name; or the path of an .npz file
        shakespeare, tinyshakespeare      texts by name; or the path of a .txt, .npy or .bin file
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import presets
from .._base.checks import nearest, read_json
from .._base.errors import DataError, TN4NNError
from .._model.layers import Layer
from .._training.data import load as load_data
from .._training.tasks import Task, classification
from .._training.text import TEXTS, language_model, load_text

PRESETS = ("gpt", "vit", "mlp", "cnn")
_FUNCTION = re.compile(r"(.*\.py):(\w+)")
_CONTEXT = 64


class FromFile:
    """A function in a Python file. It can be sent to another process, which reads the file again.

    Args:
        path: of the file.
        name: of the function.
        options: given to it at every call.

    Raises:
        TN4NNError: no such file or function, or a file that raises when it is read.
    """

    def __init__(self, path: Path, name: str, options: Mapping[str, Any]) -> None:
        self.path, self.name, self.options = path.resolve(), name, dict(options)
        try:
            self.digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError as error:
            raise TN4NNError(f"{path} cannot be read: {error}") from error
        self.__signature__ = self._signature()

    def _signature(self) -> inspect.Signature:
        """That of the function, its given options out of it or as its defaults."""
        parameters = inspect.signature(self._function()).parameters.values()
        for name in self.options:
            if name not in {p.name for p in parameters} and not any(p.kind is p.VAR_KEYWORD for p in parameters):
                raise TN4NNError(f"{self.name} in {self.path.name} takes no {name!r}")
        return inspect.Signature(
            [p.replace(default=self.options[p.name]) if p.name in self.options else p for p in parameters]
        )

    def _function(self) -> Callable[..., Any]:
        module_name = f"_tn4nn_{self.digest[:16]}"
        module = sys.modules.get(module_name)
        if module is None:
            spec = importlib.util.spec_from_file_location(module_name, self.path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            try:
                spec.loader.exec_module(module)
            except Exception as error:
                del sys.modules[module_name]
                raise TN4NNError(f"{self.path} cannot be run: {type(error).__name__}: {error}") from error
        found = getattr(module, self.name, None)
        if not callable(found):
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise TN4NNError(f"{self.path.name} has no function {self.name!r}." + nearest(self.name, names))
        function: Callable[..., Any] = found
        return function

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What the function returns."""
        return self._function()(*args, **{**self.options, **options})

    def __repr__(self) -> str:
        """By the contents of the file: one that was edited is another function."""
        return f"{self.path.name}:{self.name} {self.digest[:16]} {sorted(self.options.items())}"


class HuggingFace:
    """A model of transformers, out of its configuration, with weights that are drawn.

    Args:
        path: of config.json.
        options: settings of the configuration to change.

    Raises:
        TN4NNError: a file that is no configuration, or transformers is not installed.
    """

    def __init__(self, path: Path, options: Mapping[str, Any]) -> None:
        try:
            self.settings = {**read_json(path.read_text("utf-8"), f"configuration of transformers ({path})"), **options}
        except OSError as error:
            raise TN4NNError(f"{path} cannot be read: {error}") from error
        if "model_type" not in self.settings:
            raise TN4NNError(f"{path} is no configuration of transformers: it lacks 'model_type'")
        self.__signature__ = inspect.Signature()

    def __call__(self) -> Any:
        """The model, in the class that its configuration names first, else for causal language modelling."""
        try:
            import transformers  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise TN4NNError(
                f"models by their configuration need transformers ({error}): pip install transformers"
            ) from error
        settings = dict(self.settings)
        config = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        named = (self.settings.get("architectures") or [None])[0]
        kind = getattr(transformers, named, None) if isinstance(named, str) else None
        return transformers.AutoModelForCausalLM.from_config(config) if kind is None else kind(config)

    def __repr__(self) -> str:
        return f"transformers {sorted(self.settings.items(), key=str)}"


def task_of(text: str, context: int | None) -> Task:
    """The task that a text names.

    Raises:
        DataError: it names none.
    """
    if text in TEXTS:
        return language_model(load_text(text), context=context or _CONTEXT, name=text)
    path = Path(text)
    if path.suffix in (".txt", ".npy", ".bin"):
        return language_model(path, context=context or _CONTEXT)
    if context is not None:
        raise DataError(f"context= is for texts, received the task {text!r}")
    return classification(load_data(text))


def model_of(text: str, options: Mapping[str, Any], task: Task | None) -> Any:
    """What `tn.compare` takes as `model`, by its name.

    Raises:
        TN4NNError: it names none.
    """
    if matched := _FUNCTION.fullmatch(text):
        return FromFile(Path(matched[1]), matched[2], options)
    if text.endswith(".json"):
        return HuggingFace(Path(text), options)
    if text not in PRESETS:
        raise TN4NNError(
            f"no model is called {text!r}: expected one of {', '.join(PRESETS)}, my.py:make_model, or a config.json."
            + nearest(text, PRESETS)
        )
    if task is None:
        raise TN4NNError(f"the model {text!r} needs a task, as --task shakespeare")
    return Preset(text, options, task)


class Preset:
    """A preset as a function of its width, with the sizes of a task.

    Args:
        name: of the preset.
        options: of the preset.
        task: whose rows go into it.

    Raises:
        TN4NNError: an option that it does not have, or a task that it cannot learn.
    """

    def __init__(self, name: str, options: Mapping[str, Any], task: Task) -> None:
        self.name, self.task = name, task
        self.options = {**self._sizes(), **options}
        function = getattr(presets, name)
        known = {*inspect.signature(function).parameters, *(("hidden", "width") if name == "mlp" else ())}
        for option in options:
            if option not in known:
                raise TN4NNError(f"the model {name!r} has no option {option!r}." + nearest(option, known))
        default = 256 if name == "mlp" else inspect.signature(function).parameters["width"].default
        width = inspect.Parameter("width", inspect.Parameter.KEYWORD_ONLY, default=self.options.pop("width", default))
        self.__signature__ = inspect.Signature([width])
        self.width = int(width.default)

    def _sizes(self) -> dict[str, Any]:
        inputs, outputs = self.task.inputs, self.task.outputs
        if self.name == "gpt":
            if len(outputs) != 2:
                raise TN4NNError(f"the model 'gpt' predicts tokens: expected a text as the task, received {self.task}")
            return {"vocab": outputs[-1], "context": inputs[0]}
        if len(outputs) != 1:
            raise TN4NNError(f"the model {self.name!r} has one answer for a row, received the task {self.task}")
        if self.name == "mlp":
            return {}
        image = _image(inputs)
        found: dict[str, Any] = {"classes": outputs[0], "image": image}
        if self.name == "vit":  # patches of about a quarter of the side
            sides = [n for n in range(1, image[1] + 1) if image[1] % n == 0 and image[2] % n == 0]
            found["patch"] = min(sides, key=lambda n: abs(n - image[1] / 4))
        return found

    def __call__(self, *, width: int | None = None) -> Layer:
        """The model at a width."""
        width = self.width if width is None else width
        options = dict(self.options)
        if self.name == "mlp":
            hidden = [width] * int(options.pop("hidden", 2))
            sizes = (math.prod(self.task.inputs), *hidden, self.task.outputs[0])
            return presets.mlp(options.pop("sizes", sizes), **options)
        if self.name == "cnn":  # its channels are as wide as the rest
            channels = options.pop("channels", (max(1, width // 8), max(1, width // 4)))
            return presets.cnn(tuple(channels), width, **options)
        found: Layer = getattr(presets, self.name)(width=width, **options)
        return found


def _image(inputs: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of rows of pictures, which may be flat."""
    if len(inputs) == 3:
        return (inputs[0], inputs[1], inputs[2])
    pixels = math.prod(inputs)
    for channels in (1, 3):
        side = math.isqrt(pixels // channels)
        if channels * side * side == pixels:
            return channels, side, side
    raise TN4NNError(f"rows of shape {inputs} are no square pictures of 1 or 3 channels")
