"""verl's model merger for any dtype: verl's own makes everything bfloat16."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from verl.model_merger.base_model_merger import ModelMergerConfig
from verl.model_merger.fsdp_model_merger import FSDPModelMerger


class AdapterOnlyCheckpointError(ValueError):
    """The checkpoint holds LoRA adapters without their base model."""


class AnyDtypeMerger(FSDPModelMerger):
    """Merges an FSDP checkpoint's shards into a Hugging Face model directory.

    ``dtype`` is that of the floating-point weights and the one that ``config.json`` names; None keeps the checkpoint's.
    """

    def __init__(self, config: ModelMergerConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__(config)
        self.dtype = dtype

    def _load_and_merge_state_dicts(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        with _NoBFloat16Cast():
            state = super()._load_and_merge_state_dicts(*args, **kwargs)
        if all("lora_" in name for name in state):
            raise AdapterOnlyCheckpointError(
                f"{self.config.local_dir} holds LoRA adapters only, as written with checkpoint.save_lora_only=true"
            )
        self.dtype = self.dtype or next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
        return {name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}

    def patch_model_generation_config(self, model: nn.Module) -> nn.Module:
        # The one call that verl makes between building the model, whose dtype config.json takes, and saving it.
        return super().patch_model_generation_config(model.to(self.dtype))


class _NoBFloat16Cast(TorchFunctionMode):
    """``tensor.bfloat16()`` returns the tensor as it is."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return args[0] if func is Tensor.bfloat16 else func(*args, **(kwargs or {}))
