"""Bytes on one GPU in the phases of a step, for FSDP2 and vLLM on the same GPUs (verl 0.9.1, colocated)."""

from dataclasses import dataclass

from omegaconf import DictConfig

from recipe.flowrl.common.gpus import GPU
from recipe.flowrl.plan.architecture import ModelShape
from recipe.flowrl.preflight.batches import needs_reference

FP32, BF16 = 4, 2
_HALF = ("bf16", "bfloat16", "fp16", "float16")
RUNTIME = 2.5e9
"""CUDA context, NCCL buffers, fragmentation. An assumption."""
_LOGIT = 3 * FP32
"""Bytes for a logit without fused kernels: float32 logits, their softmax and its gradient."""
_FUSED_LOGIT, _FUSED_CHUNK = 5 * FP32, 512
"""With fused kernels: logits, softmax, one-hot labels, their difference and its product with the gradient, of so many
tokens at once (``FusedLinearForPPO``, verl's ``impl_backend: torch``)."""
_LOGIT_READ, _FUSED_LOGIT_READ = 2 * FP32, 3 * FP32
"""Without gradients: logits and softmax; with fused kernels the product of the two, for the entropy, as well."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, by what they are for."""

    resident: dict[str, float]
    """On the GPU in every phase, unless offloaded."""
    update: dict[str, dict[str, float]]
    """By moment of the policy's update. In the backward gradients come as activations go, block by block."""
    critic_update: dict[str, dict[str, float]]
    """The same of the critic's; empty without one."""
    log_probs: dict[str, float]
    """In the passes that compute log-probs without gradients."""
    rollout: dict[str, float]
    host: dict[str, float]
    """In the memory of a node, while it trains."""
    loading: dict[str, float]
    """In the memory of the first node, while the models are loaded."""
    longest_sequences: int
    """Of maximal length whose KV cache one rollout server holds at once; less than 1 means that none fits."""

    @property
    def worst_moment(self) -> str:
        """The moment of the policy's update that takes most."""
        return worst(self.update)

    @property
    def phases(self) -> dict[str, float]:
        """Total on the GPU, by phase."""
        parts = {"update": self.update[self.worst_moment], "log-probs": self.log_probs}
        if self.critic_update:
            parts["critic's update"] = self.critic_update[worst(self.critic_update)]
        parts["rollout"] = self.rollout
        resident = sum(self.resident.values()) + RUNTIME
        return {phase: resident + sum(sizes.values()) for phase, sizes in parts.items()}

    @property
    def host_peak(self) -> float:
        """Bytes of host memory that a node needs at the worst time."""
        return max(sum(self.host.values()), sum(self.loading.values()))


def worst(moments: dict[str, dict[str, float]]) -> str:
    """The moment that takes most."""
    return max(moments, key=lambda moment: sum(moments[moment].values()))


def plan_memory(config: DictConfig, shape: ModelShape, gpu: GPU, critic: ModelShape | None = None) -> MemoryPlan:
    """Add up what a run takes.

    Args:
        config: of the run, resolved.
        shape: of its model.
        gpu: that it runs on.
        critic: of its critic, None if it has none.
    """
    worker = config.actor_rollout_ref
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    host: dict[str, float] = {}
    if needs_reference(config) and not worker.model.lora_rank:  # with LoRA it is the policy without its adapter
        size = BF16 if worker.ref.fsdp_config.model_dtype in _HALF else FP32
        host["reference (verl keeps it on the host with FSDP2)"] = size * shape.parameters / config.trainer.nnodes
    loading = dict(host)
    resident: dict[str, float] = {}
    policy = _place("", worker.actor.fsdp_config, shape, config, resident, host)
    others = {}
    critic_update = {}
    if critic is not None:
        others = _place("critic's ", config.critic.fsdp, critic, config, resident, host)
        critic_update = {moment: others | parts for moment, parts in _critic_update(config, critic, ranks).items()}
    loading |= {name: size for name, size in host.items() if name.endswith("parameters") and critic is not None}
    # Rank 0 reads the whole state dict and hands the shards out; with tied embeddings every rank reads it.
    readers = config.trainer.n_gpus_per_node if shape.tied else 1
    largest = max(shape.parameters, critic.parameters if critic else 0)
    loading[f"the whole state dict in float32, on {'each rank' if shape.tied else 'rank 0'}"] = FP32 * largest * readers
    trained = (shape.parameters + shape.head_parameters) / ranks
    update = {moment: policy | parts for moment, parts in _update(config, shape, trained).items()}
    # These passes use the parameters alone, which are loaded for them.
    loaded = {name: size for name, size in policy.items() if name.startswith("parameters")}
    log_probs = loaded | _log_probs(config, shape)
    rollout, sequences = _rollout(config, shape, gpu)
    return MemoryPlan(resident, update, critic_update, log_probs, rollout, host, loading, sequences)


def _place(
    whose: str,
    offload: DictConfig,
    shape: ModelShape,
    config: DictConfig,
    resident: dict[str, float],
    host: dict[str, float],
) -> dict[str, float]:
    """Put a trained model's parameters and moments on the GPU or the host; returns what its update loads from there."""
    trained = shape.parameters + shape.head_parameters
    nodes, loaded = config.trainer.nnodes, {}
    for name, size, offloaded in (
        ("parameters", FP32 * trained, offload.param_offload),
        ("optimizer", 2 * FP32 * trained, offload.optimizer_offload),
    ):
        share = size / (nodes * config.trainer.n_gpus_per_node)
        if offloaded:
            host[f"{whose}{name}"] = size / nodes
            loaded[f"{whose}{name}, loaded for the update"] = share
        else:
            resident[f"{whose}{name}"] = share
    return loaded


def _tokens(config: DictConfig, dynamic: bool, budget: int, sequences: int | None, ulysses: int) -> float:
    """Of a micro-batch on one GPU."""
    longest = config.data.max_prompt_length + config.data.max_response_length
    return (budget if dynamic else (sequences or 1) * longest) / ulysses


def _block(shape: ModelShape, tokens: float) -> float:
    """Bytes of the activations inside a block. Two norms: input in float32, normalised, weighted. Queries, attention
    and its output's input, residual; keys, values; the MLP's four widths."""
    block = 2 * (FP32 + 2 * BF16) * shape.hidden + BF16 * (3 * shape.hidden + 2 * shape.key_value_width)
    return tokens * (block + BF16 * 4 * shape.intermediate)


def _update(config: DictConfig, shape: ModelShape, trained: float) -> dict[str, dict[str, float]]:
    """Of the policy, by moment; ``trained``: this GPU's share of the trained parameters."""
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    tokens = _tokens(
        config,
        actor.use_dynamic_bsz,
        actor.ppo_max_token_len_per_gpu,
        actor.ppo_micro_batch_size_per_gpu,
        actor.ulysses_sequence_parallel_size,
    )
    fused = model.use_fused_kernels
    logits = min(tokens, _FUSED_CHUNK) * _FUSED_LOGIT if fused else tokens * _LOGIT
    head = {
        "logits": logits * shape.vocabulary,
        "gradients of the head": 2 * BF16 * shape.vocabulary * shape.hidden,
    }
    return _moments(shape, trained, tokens, model.enable_gradient_checkpointing, head)


def _critic_update(config: DictConfig, shape: ModelShape, ranks: int) -> dict[str, dict[str, float]]:
    """Its head has one output, which takes nothing."""
    critic = config.critic
    tokens = _tokens(
        config,
        critic.use_dynamic_bsz,
        critic.ppo_max_token_len_per_gpu,
        critic.ppo_micro_batch_size_per_gpu,
        critic.ulysses_sequence_parallel_size,
    )
    return _moments(shape, shape.parameters / ranks, tokens, critic.model.enable_gradient_checkpointing, {})


def _moments(
    shape: ModelShape, trained: float, tokens: float, checkpointing: bool, head: dict[str, float]
) -> dict[str, dict[str, float]]:
    """By moment of an update; ``head``: what its head takes at the loss."""
    block = _block(shape, tokens)
    kept = {"activations kept": BF16 * tokens * shape.hidden * shape.layers}
    outer, inner = shape.embedding_parameters, shape.largest_block_parameters
    gradients = {"gradients": FP32 * trained}
    gathered = {
        "gathered weights": BF16 * (outer + 2 * inner),
        "gradients of gathered weights": BF16 * (outer + inner) + FP32 * inner,
    }
    return {
        "at the loss": {
            **kept,
            **({} if checkpointing else {"activations of blocks": block * shape.layers}),
            "gathered weights": BF16 * (outer + inner),
            **head,
        },
        "in the last block's backward": {
            **kept,
            "activations of blocks": block * (1 if checkpointing else shape.layers),
            **gathered,
        },
        "in the first block's backward": {
            **gradients,
            "activations kept": kept["activations kept"] / shape.layers,
            "activations of blocks": block,
            **gathered,
        },
        "at the end of the backward": {
            **gradients,
            "gathered weights": BF16 * outer,
            "gradients of gathered weights": (BF16 + FP32) * outer,
        },
        "in the optimizer's step": {**gradients, "square roots (AdamW, for all at once)": FP32 * trained},
    }


def _log_probs(config: DictConfig, shape: ModelShape) -> dict[str, float]:
    """Of the larger of the two passes, the old policy's and the reference's, at the moment that takes most."""
    worker = config.actor_rollout_ref
    ulysses = worker.actor.ulysses_sequence_parallel_size
    passes = [worker.rollout, worker.ref] if needs_reference(config) else [worker.rollout]
    tokens = max(
        _tokens(
            config,
            section.log_prob_use_dynamic_bsz,
            section.log_prob_max_token_len_per_gpu,
            section.log_prob_micro_batch_size_per_gpu,
            ulysses,
        )
        for section in passes
    )
    fused = worker.model.use_fused_kernels
    logits = min(tokens, _FUSED_CHUNK) * _FUSED_LOGIT_READ if fused else tokens * _LOGIT_READ
    outer = BF16 * shape.embedding_parameters
    moments = {
        "in a block": {
            "activations of a block": _block(shape, tokens),
            "gathered weights": outer + 2 * BF16 * shape.largest_block_parameters,
        },
        "at the end": {"gathered weights": outer, "logits": logits * shape.vocabulary},
    }
    return moments[worst(moments)]


def _rollout(config: DictConfig, shape: ModelShape, gpu: GPU) -> tuple[dict[str, float], int]:
    rollout = config.actor_rollout_ref.rollout
    parallel = rollout.tensor_model_parallel_size
    weights = BF16 * shape.parameters / parallel
    budget = rollout.gpu_memory_utilization * gpu.memory
    activations = BF16 * rollout.max_num_batched_tokens * (shape.hidden + 2 * shape.intermediate / parallel)
    cache = max(0.0, budget - weights - activations)
    token = BF16 * 2 * shape.layers * shape.key_value_width / parallel
    longest = config.data.max_prompt_length + config.data.max_response_length
    parts = {"vLLM weights": weights, "vLLM activations": activations, "vLLM KV cache": cache}
    return parts, int(cache / (token * longest))
