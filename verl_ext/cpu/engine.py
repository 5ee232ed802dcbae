"""verl's FSDP2 engines, registered for the CPU."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

if TYPE_CHECKING:
    from verl.workers.config import FSDPEngineConfig
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine as _Engine
else:
    _Engine = object


class CPUFSDPMixin(_Engine):
    """Keeps parameters where they are: on a CPU there is nothing to offload them to.

    verl wraps a forward-only (reference) model with ``CPUOffloadPolicy(pin_memory=True)``; pinning memory needs an
    accelerator. Only FSDP2 is supported: FSDP1 assumes one in three more places.
    """

    engine_config: FSDPEngineConfig

    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        if not self.engine_config.forward_only:
            return super()._build_fsdp_module(module)
        forward_only_config = self.engine_config
        self.engine_config = dataclasses.replace(forward_only_config, forward_only=False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = forward_only_config


def register_cpu_engine(model_type: str, engine: type) -> type:
    """Register ``engine``, an FSDP engine class of verl, under ``model_type`` for FSDP2 on the CPU.

    Returns the class that was registered: ``engine`` with :class:`CPUFSDPMixin` in front.
    """
    cpu_engine = type(f"CPU{engine.__name__}", (CPUFSDPMixin, engine), {})
    return EngineRegistry.register(model_type=model_type, backend="fsdp2", device="cpu")(cpu_engine)


register_cpu_engine("language_model", FSDPEngineWithLMHead)
register_cpu_engine("value_model", FSDPEngineWithValueHead)
