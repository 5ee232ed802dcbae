"""Tokens, FLOPs and time of a step, from what the GPU can do and what share of it is usually reached."""

import math
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.gpus import GPU
from recipe.flowrl.plan.architecture import ModelShape
from recipe.flowrl.plan.memory import BF16, MemoryPlan
from recipe.flowrl.preflight.batches import needs_reference


@dataclass(frozen=True)
class Assumptions:
    """What the estimate of time rests on. None of it has been measured here."""

    prompt_tokens: int = 200
    response_share: float = 0.3
    """Mean response, as a share s of the longest L. Of the responses a share (1 - t/L)^(1/s - 1) is longer than t: this
    has that mean, and takes the last ones to L."""
    training_share: float = 0.35
    """Of the GPU's FLOP/s that training reaches."""
    decoding_share: float = 0.5
    """Of the memory bandwidth that decoding reaches."""


@dataclass(frozen=True)
class DurationPlan:
    """Of one step on all GPUs; seconds and FLOPs."""

    tokens: float
    flops: float
    phases: dict[str, float]
    steps: int | None
    """None: as many as the data has."""

    @property
    def step_s(self) -> float:
        """Seconds for a step, without validation and checkpoints."""
        return sum(self.phases.values())


def plan_duration(
    config: DictConfig,
    shape: ModelShape,
    gpu: GPU,
    memory: MemoryPlan,
    assumed: Assumptions,
    critic: ModelShape | None = None,
) -> DurationPlan:
    """Estimate a step.

    Args:
        config: of the run, resolved.
        shape, gpu: of its model, its GPUs.
        memory: says how many sequences a rollout server holds.
        assumed: see there.
        critic: of its critic, None if it has none.
    """
    worker = config.actor_rollout_ref
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    responses = config.data.train_batch_size * worker.rollout.n
    response = assumed.response_share * config.data.max_response_length
    length = assumed.prompt_tokens + response
    tokens = responses * length
    forward = _forward(config, "actor_rollout_ref.model", worker.actor.ppo_max_token_len_per_gpu, shape, tokens, length)
    scoring = worker.rollout.log_prob_max_token_len_per_gpu
    scored = _forward(config, "actor_rollout_ref.model", scoring, shape, tokens, length)
    work = {"old log-probs": scored}
    if needs_reference(config):
        work["reference"] = scored
    work["update"] = _passes(worker.model) * worker.actor.ppo_epochs * forward
    if critic is not None:
        budgets = (config.critic.forward_max_token_len_per_gpu, config.critic.ppo_max_token_len_per_gpu)
        values, update = (_forward(config, "critic.model", budget, critic, tokens, length) for budget in budgets)
        work["values"] = values
        work["critic's update"] = _passes(config.critic.model) * config.critic.ppo_epochs * update
    speed = gpus * gpu.flops * assumed.training_share
    phases = {"rollout": _decoding(config, shape, gpu, memory, assumed)}
    phases |= {name: flops / speed for name, flops in work.items()}
    steps = OmegaConf.select(config, "trainer.total_training_steps")
    return DurationPlan(tokens, forward + sum(work.values()), phases, steps)


def _passes(model: DictConfig) -> int:
    """Of an update, in forward passes: a backward is two, and with checkpointing there is a second forward."""
    return 4 if model.enable_gradient_checkpointing else 3


def _forward(config: DictConfig, model: str, budget: int, shape: ModelShape, tokens: float, length: float) -> float:
    """FLOPs of a forward pass over ``tokens`` tokens in sequences of ``length``, ``budget`` tokens in a micro-batch."""
    # Looking an embedding up costs nothing, multiplying with the head does. Attention's mean context is half as long;
    # sdpa works on all pairs of a packed micro-batch, and masks those of different sequences.
    multiplied = (
        shape.parameters
        - shape.embedding_parameters
        + (0 if model == "critic.model" else shape.vocabulary * shape.hidden)
    )
    attention = OmegaConf.select(config, f"{model}.override_config.attn_implementation")
    masked = attention == "sdpa" and OmegaConf.select(config, f"{model}.use_remove_padding")
    context = 2 * max(budget, length) if masked else length
    return tokens * (2 * multiplied + 2 * shape.layers * shape.hidden * context)


def _decoding(config: DictConfig, shape: ModelShape, gpu: GPU, memory: MemoryPlan, assumed: Assumptions) -> float:
    """Seconds. Each decoding step reads the weights, and each token the KV cache of its own sequence.

    What is read of the caches doesn't depend on how many sequences are decoded together; how often the weights are read
    does.
    """
    rollout = config.actor_rollout_ref.rollout
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    parallel = rollout.tensor_model_parallel_size
    share = math.ceil(config.data.train_batch_size * rollout.n * parallel / gpus)
    longest = config.data.max_response_length
    mean = assumed.response_share * longest
    square = 2 * mean**2 / (1 + assumed.response_share)
    context = assumed.prompt_tokens + square / 2 / mean
    held = max(1, int(memory.longest_sequences * (config.data.max_prompt_length + longest) / context))
    together = min(share, rollout.max_num_seqs, held)
    # All but the last sequences pass through the places at their mean length; the last ones wait for the longest.
    steps = (share - together) / together * mean + longest
    cache = share * mean * context * BF16 * 2 * shape.layers * shape.key_value_width
    reading = (steps * BF16 * shape.parameters + cache) / (gpu.bandwidth * assumed.decoding_share)
    computing = share * mean * 2 * shape.parameters / (gpu.flops * assumed.training_share)
    return max(reading, computing) / parallel
