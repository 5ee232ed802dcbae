"""Bytes on one GPU in the phases of a step, for FSDP2 and vLLM on the same GPUs (verl 0.9.1, colocated)."""

from dataclasses import dataclass

from omegaconf import DictConfig

from recipe.flowrl.plan.gpus import GPU
from recipe.flowrl.plan.model import ModelShape

FP32, BF16 = 4, 2
RUNTIME = 2.5e9
"""CUDA context, NCCL buffers, fragmentation. An assumption."""
_LOGIT = 3 * FP32
"""Bytes for a logit without fused kernels: float32 logits, their softmax and its gradient."""
_FUSED_LOGIT, _FUSED_CHUNK = 5 * FP32, 512
"""With fused kernels: logits, softmax, one-hot labels, their difference and its product with the gradient, of so many
tokens at once (``FusedLinearForPPO``, verl's ``impl_backend: torch``)."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, by what they are for."""

    resident: dict[str, float]
    """On the GPU in every phase, unless offloaded."""
    update: dict[str, dict[str, float]]
    """By moment of the update. In the backward gradients come as activations go, block by block."""
    rollout: dict[str, float]
    host: dict[str, float]
    """In the memory of a node."""
    longest_sequences: int
    """Of maximal length whose KV cache one rollout server holds at once; less than 1 means that none fits."""

    @property
    def worst_moment(self) -> str:
        """The moment of the update that takes most."""
        return max(self.update, key=lambda moment: sum(self.update[moment].values()))

    @property
    def phases(self) -> dict[str, float]:
        """Total on the GPU, by phase."""
        resident = sum(self.resident.values()) + RUNTIME
        update = sum(self.update[self.worst_moment].values())
        return {"update": resident + update, "rollout": resident + sum(self.rollout.values())}


def plan_memory(config: DictConfig, shape: ModelShape, gpu: GPU) -> MemoryPlan:
    """Add up what a run takes.

    Args:
        config: of the run, resolved.
        shape: of its model.
        gpu: that it runs on.
    """
    worker = config.actor_rollout_ref
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    trained = shape.parameters + shape.head_parameters
    offload = worker.actor.fsdp_config
    resident, host = (
        {},
        {"reference (verl keeps it on the host with FSDP2)": FP32 * shape.parameters / config.trainer.nnodes},
    )
    for name, size, offloaded in (
        ("parameters", FP32, offload.param_offload),
        ("optimizer", 2 * FP32, offload.optimizer_offload),
    ):
        if offloaded:
            host[name] = size * trained / config.trainer.nnodes
        else:
            resident[name] = size * trained / ranks
    sizes = {"parameters": FP32 * trained / ranks, "optimizer": 2 * FP32 * trained / ranks}
    loaded = {f"{name}, loaded for the update": size for name, size in sizes.items() if name not in resident}
    update = {moment: loaded | parts for moment, parts in _update(config, shape, trained / ranks).items()}
    rollout, sequences = _rollout(config, shape, gpu)
    return MemoryPlan(resident, update, rollout, host, sequences)


def _update(config: DictConfig, shape: ModelShape, trained: float) -> dict[str, dict[str, float]]:
    """By moment; ``trained``: this GPU's share of the trained parameters."""
    worker = config.actor_rollout_ref
    tokens = worker.actor.ppo_max_token_len_per_gpu
    if not worker.actor.use_dynamic_bsz:
        longest = config.data.max_prompt_length + config.data.max_response_length
        tokens = worker.actor.ppo_micro_batch_size_per_gpu * longest
    tokens /= worker.actor.ulysses_sequence_parallel_size
    checkpointing = worker.model.enable_gradient_checkpointing
    # Inside a block. Two norms: input in float32, normalised, weighted. Queries, attention and its output's input,
    # residual; keys, values; the MLP's four widths.
    block = 2 * (FP32 + 2 * BF16) * shape.hidden + BF16 * (3 * shape.hidden + 2 * shape.key_value_width)
    block = tokens * (block + BF16 * 4 * shape.intermediate)
    kept = {"activations kept": BF16 * tokens * shape.hidden * shape.layers}
    outer, inner = shape.embedding_parameters, shape.largest_block_parameters
    fused = worker.model.use_fused_kernels
    logits = min(tokens, _FUSED_CHUNK) * _FUSED_LOGIT if fused else tokens * _LOGIT
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
            "logits": logits * shape.vocabulary,
            "gradients of the head": 2 * BF16 * shape.vocabulary * shape.hidden,
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
