"""Which setting to change where a run doesn't fit."""

from omegaconf import DictConfig

from recipe.flowrl.common.gpus import GPU
from recipe.flowrl.plan.memory import MemoryPlan

_ACTOR = "actor_rollout_ref.actor"


def problems(config: DictConfig, memory: MemoryPlan, gpu: GPU) -> list[str]:
    """What doesn't fit, and the setting that helps most, one line each; empty if all fits."""
    found = []
    for phase, needed in memory.phases.items():
        if needed > gpu.memory:
            found.append(f"{phase}: {needed / 1e9:.1f} GB of {gpu.memory / 1e9:.0f}: {_remedy(config, memory, phase)}")
    if memory.longest_sequences < 1:
        found.append(
            "rollout: no KV cache for one sequence of full length: raise "
            "actor_rollout_ref.rollout.tensor_model_parallel_size or .gpu_memory_utilization"
        )
    return found


def _remedy(config: DictConfig, memory: MemoryPlan, phase: str) -> str:
    offload = config.actor_rollout_ref.actor.fsdp_config
    if phase == "rollout":
        if any(name.startswith("critic's") for name in memory.resident):
            return "set critic.fsdp.param_offload=true and critic.fsdp.optimizer_offload=true"
        if not offload.optimizer_offload:
            return f"set {_ACTOR}.fsdp_config.optimizer_offload=true"
        if not offload.param_offload:
            return f"set {_ACTOR}.fsdp_config.param_offload=true"
        return "lower actor_rollout_ref.rollout.gpu_memory_utilization"
    if phase == "log-probs":
        if not config.actor_rollout_ref.model.use_fused_kernels:
            return "set actor_rollout_ref.model.use_fused_kernels=true"
        names = ("rollout.log_prob_max_token_len_per_gpu", "ref.log_prob_max_token_len_per_gpu")
        return f"lower {' and '.join(f'actor_rollout_ref.{name}' for name in names)}"
    if phase == "critic's update":
        if not config.critic.fsdp.optimizer_offload or not config.critic.fsdp.param_offload:
            return "set critic.fsdp.param_offload=true and critic.fsdp.optimizer_offload=true"
        return "lower critic.ppo_max_token_len_per_gpu, or use more GPUs (cluster=4x8, trainer.nnodes)"
    parts = memory.update[memory.worst_moment]
    logits = parts.get("logits", 0.0)
    of_tokens = logits + parts.get("activations of blocks", 0.0)
    if logits == max(parts.values()) and not config.actor_rollout_ref.model.use_fused_kernels:
        return "set actor_rollout_ref.model.use_fused_kernels=true"
    if not config.actor_rollout_ref.model.enable_gradient_checkpointing:
        return "set actor_rollout_ref.model.enable_gradient_checkpointing=true"
    if of_tokens > sum(memory.resident.values()):
        return f"raise {_ACTOR}.ulysses_sequence_parallel_size"
    return "use more GPUs (cluster=4x8, trainer.nnodes)"
