"""Converted models in the files of Hugging Face: `save_pretrained`, `from_pretrained` and the checkpoints of Trainer.

Importing this module registers the method "tn4nn" with transformers. `convert` notes the structure of a model of
transformers in its config, so that `save_pretrained` writes it to config.json, and `from_pretrained` puts the layers on
networks in before it reads their cores. What is read of config.json is plain data with a digest; the numbers are in
safetensors files as transformers writes them.

    import tn4nn_torch.hugging_face                  # before from_pretrained
    small = convert(model, {"encoder.*": "low_rank"}, budget=0.5)
    small.save_pretrained("small")
    again = AutoModel.from_pretrained("small")
"""

from __future__ import annotations

import importlib
from typing import Any

from tn4nn._base.errors import BackendError, CheckpointError
from tn4nn._model.kept import Structure

from ._keep import restored, settle, structure_of, tie
from ._modules import _Planned

try:
    _models: Any = importlib.import_module("transformers.modeling_utils")
    _auto: Any = importlib.import_module("transformers.quantizers.auto")
    _base: Any = importlib.import_module("transformers.quantizers.base")
    _configs: Any = importlib.import_module("transformers.utils.quantization_config")
except ImportError as error:
    raise BackendError(
        f"tn4nn_torch.hugging_face needs transformers ({error}): pip install 'transformers>=5'"
    ) from error

__all__ = ["attach", "TNConfig", "TNQuantizer"]

_METHOD = "tn4nn"
_WHERE = "quantization_config of config.json"


@_auto.register_quantization_config(_METHOD)
class TNConfig(_configs.QuantizationConfigMixin):  # type: ignore[misc]
    """The structure of a converted model as `quantization_config`.

    Args:
        structure: plain data with a digest.
        quant_method: "tn4nn".

    Examples:
        >>> TNConfig({}).quant_method
        'tn4nn'
    """

    def __init__(self, structure: Any = None, quant_method: str = _METHOD, **others: Any) -> None:
        if quant_method != _METHOD or others:
            raise CheckpointError(
                f"{_WHERE} is not of tn4nn: expected 'structure' and quant_method {_METHOD!r}, received quant_method "
                f"{quant_method!r} and {sorted(others)}"
            )
        self.quant_method: Any = quant_method
        self.structure = structure


@_auto.register_quantizer(_METHOD)
class TNQuantizer(_base.HfQuantizer):  # type: ignore[misc]
    """What transformers calls a quantizer: puts layers on networks into a model before its weights are read.

    Examples:
        >>> TNQuantizer.requires_calibration
        False
    """

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self._read: Structure = restored(model, self.quantization_config.structure, _WHERE)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        tie(model, self._read, _WHERE)
        settle(model)
        model.is_quantized = False  # cores are ordinary parameters: they may be trained and cast
        return model

    def is_serializable(self) -> bool:
        """It is."""
        return True

    @property
    def is_trainable(self) -> bool:
        """It is."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """It is, without adapters."""
        return True

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, Any]]:
        """The structure as it is when the model is saved."""
        attach(model)
        return None, {}


def attach(model: Any) -> None:
    """Notes the structure of a model of transformers in its config, in place; does nothing to other modules.

    `convert` and `undo` call it, and `save_pretrained` does for a model that it was called for: it is needed only where
    layers on networks were put in otherwise.

    Args:
        model: of transformers, with layers on networks, or with none again.

    Examples:
        >>> import torch
        >>> layer = torch.nn.Linear(4, 4)
        >>> attach(layer)
        >>> hasattr(layer, "config")
        False
    """
    if not isinstance(model, _models.PreTrainedModel):
        return
    mine = isinstance(getattr(model, "hf_quantizer", None), TNQuantizer)
    if any(isinstance(module, _Planned) for module in model.modules()):
        config = TNConfig(structure_of(model).to_dict())
        model.config.quantization_config = config
        if not mine:
            model.__dict__["hf_quantizer"] = TNQuantizer(config, pre_quantized=True)
    elif mine:
        del model.hf_quantizer
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
