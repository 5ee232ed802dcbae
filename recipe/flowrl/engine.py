"""verl's FSDP engine with the log-partition head: it adds log Z(x) to what the model computes in an update."""

import dataclasses
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.workers.config.optimizer import FSDPOptimizerConfig
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.partition import LogPartition, prompt_mean
from verl_ext.auxiliary import AuxiliaryModuleMixin

MODEL_TYPE = "language_model_with_log_partition"
"""Name under which verl's ``EngineRegistry`` knows the engine."""


class FlowRLEngine(AuxiliaryModuleMixin, FSDPEngineWithLMHead):
    """Adds ``log_z`` ``(B,)`` to the model's outputs wherever gradients are computed.

    ``flowrl`` must be set before :meth:`initialize`.
    """

    flowrl: FlowRLConfig
    auxiliary_name = "flowrl/log_partition"

    @property
    def clip_auxiliary_separately(self) -> bool:
        return self.flowrl.partition_clip_separately

    def _build_module(self) -> nn.Module:
        self.model_config.model_type = "language_model"  # the only two that verl builds are this and value_model
        return super()._build_module()

    def build_auxiliary(self, policy: nn.Module) -> LogPartition:
        decoder = _decoder(policy)
        decoder.register_forward_hook(self._keep_hidden_states)
        with torch.random.fork_rng(devices=[]):  # the same weights on every rank
            torch.default_generator.manual_seed(self.engine_config.seed)
            return LogPartition(decoder.config.hidden_size, self.flowrl)

    def auxiliary_optim_config(self) -> FSDPOptimizerConfig:
        own = {"lr": self.flowrl.partition_lr, "weight_decay": self.flowrl.partition_weight_decay}
        return dataclasses.replace(self.optimizer_config, **{k: v for k, v in own.items() if v is not None})

    def _keep_hidden_states(self, decoder: nn.Module, args: Any, output: Any) -> None:
        """Forward hook: the final norm's output is the decoder's first output."""
        self._hidden_states = output[0] if torch.is_grad_enabled() else None

    def prepare_model_outputs(
        self, output: Any, output_args: dict, micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict:
        hidden_states, self._hidden_states = self._hidden_states, None
        model_output = super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        if hidden_states is not None:
            # Outside autocast: log Z is computed in float32.
            with torch.autocast(device_type=get_device_name(), enabled=False):
                model_output["log_z"] = self._log_z(hidden_states, micro_batch)
        return model_output

    def _log_z(self, hidden_states: torch.Tensor, micro_batch: TensorDict) -> torch.Tensor:
        packed = tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True)
        prompt_state = prompt_mean(
            hidden_states.squeeze(0) if packed else hidden_states,
            prompt_lengths=micro_batch["prompts"].offsets().diff(),
            sequence_lengths=micro_batch["input_ids"].offsets().diff(),
            packed=packed,
            sp_group=self.ulysses_parallel_group,
        )
        return self.auxiliary(prompt_state.detach() if self.flowrl.partition_detach else prompt_state)


def _decoder(policy: nn.Module) -> nn.Module:
    """The transformer without its language-model head, under any wrapping by FSDP1 and PEFT."""
    model = getattr(policy, "_fsdp_wrapped_module", policy)
    if hasattr(model, "peft_config"):
        model = model.get_base_model()
    return model.get_decoder()


EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])(FlowRLEngine)
if get_device_name() == "cpu":
    from verl_ext.cpu.engine import register_cpu_engine

    register_cpu_engine(MODEL_TYPE, FlowRLEngine)
