"""Option values: types and ranges, the algorithm's options, and what a CPU can run."""

from collections.abc import Collection

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.rules import guess, show
from recipe.flowrl.config import FlowRLConfig, check_replay, refuse_additions
from recipe.flowrl.preflight.schema import SEEDED_ROLLOUTS, seconds_of
from recipe.flowrl.preflight.target import saturation
from recipe.flowrl.preflight.values import RULES
from recipe.flowrl.prepare.own_tasks import MAKERS

_ROLLOUT, _ACTOR, _REF = (f"actor_rollout_ref.{part}" for part in ("rollout", "actor", "ref"))

# vLLM compiles its LoRA kernels up to this rank (MaxLoRARanks of vllm/config/lora.py).
LARGEST_LORA_RANK = 512

_ON_CPU = {
    f"{_ACTOR}.strategy": ("fsdp2", "FSDP1 assumes an accelerator"),
    f"{_ACTOR}.fsdp_config.strategy": ("fsdp2", "FSDP1 assumes an accelerator"),
    f"{_REF}.strategy": ("fsdp2", "FSDP1 assumes an accelerator"),
    f"{_REF}.fsdp_config.strategy": ("fsdp2", "FSDP1 assumes an accelerator"),
    f"{_ACTOR}.ulysses_sequence_parallel_size": (1, "sequence parallelism needs flash attention"),
    f"{_ROLLOUT}.name": ("vllm", "the others need a GPU"),
    f"{_ROLLOUT}.free_cache_engine": (False, "vLLM's sleep mode needs a GPU"),
    f"{_ROLLOUT}.enable_sleep_mode": (False, "vLLM's sleep mode needs a GPU"),
    f"{_ROLLOUT}.full_determinism": (False, "its kernels need Triton"),
    "ray_kwargs.ray_init.runtime_env.env_vars.VERL_PLATFORM": ("cpu", "cluster=cpu has all that a CPU needs"),
}
"""Option -> the value it must have where ``trainer.device=cpu``, and why."""

_LEGACY = {
    "custom_reward_function": "reward.custom_reward_function",
    "reward_model": "reward",
    "sandbox_fusion": "reward.sandbox_fusion",
}
"""Sections of earlier verl versions, which its V1 trainer ignores -> where their options are now."""


def check_options(config: DictConfig, makers: Collection[str] = tuple(MAKERS)) -> list[str]:
    """Check the options one by one.

    Args:
        config: of the run, resolved.
        makers: what ``prepare`` may name.

    Returns:
        Warnings.

    Raises:
        UserError: an option has a value that can't work.
    """
    for key, rule in RULES.items():
        value = OmegaConf.select(config, key)
        if not rule.accepts(value):
            raise UserError(f"{key}: got {show(value)}; allowed: {rule.allowed}")
    for kind, name in config.prepare.items():
        if name is not None and name not in makers:
            raise UserError(
                f"prepare.{kind}={name}: unknown{guess(name, makers)}; the run can make {', '.join(makers)}"
            )
    if config.slurm.notice_s >= seconds_of(config.slurm.time):
        raise UserError(
            f"slurm.notice_s={config.slurm.notice_s} isn't less than slurm.time={config.slurm.time}: a job would begin "
            "to end before it trains; set less notice or more time"
        )
    _check_contradictions(config)
    _check_legacy_sections(config)
    _check_lora(config)
    if config.trainer.device == "cpu":
        _check_cpu(config)
    return check_algorithm(config)


def check_algorithm(config: DictConfig) -> list[str]:
    """Check the options of FlowRL, and that the others suit it. Returns warnings."""
    for override in HydraConfig.get().overrides.task if HydraConfig.initialized() else ():
        if override.startswith(("+flowrl", "++flowrl", "flowrl=", "~flowrl")):
            raise UserError(f"{override}: choose FlowRL with algo=flowrl, and set its options with flowrl.NAME=VALUE")
    if config.flowrl is None:
        check_replay(config.algorithm, None)
        _check_additions(config)
        return _single_rollouts(config)
    refuse_additions(config.algorithm)
    check_replay(config.algorithm, FlowRLConfig.from_mapping(OmegaConf.to_container(config.flowrl)))
    estimator = config.algorithm.adv_estimator
    if estimator not in ("grpo", "grpo_vectorized", "raw_reward"):
        raise UserError(
            f"algorithm.adv_estimator={estimator}: FlowRL's reward is normalised over each prompt's rollouts, "
            "which is grpo, or taken as it is, which is raw_reward; choose another algorithm with algo=NAME"
        )
    warnings = []
    if config.actor_rollout_ref.rollout.n == 1 and estimator != "raw_reward":
        beta = config.flowrl.beta
        warnings.append(
            "actor_rollout_ref.rollout.n=1: a prompt's only rollout has nothing to be normalised over, so r_hat is the "
            f"reward as it is, times flowrl.beta={beta:g}; use 4 or more, or adv_estimator=raw_reward to say so"
        )
    if config.algorithm.use_kl_in_reward:
        warnings.append("algorithm.use_kl_in_reward=true: FlowRL's objective has the reference policy in it already")
    return warnings


def saturated_target(config: DictConfig) -> list[str]:
    """A line if the run's target is so sharp that its policy would end where a reward maximiser's does.

    No warning: the paper's own values are such.
    """
    if config.flowrl is None:
        return []
    flowrl = FlowRLConfig.from_mapping(OmegaConf.to_container(config.flowrl))
    normalised = config.algorithm.adv_estimator != "raw_reward"
    line = saturation(flowrl, normalised, config.actor_rollout_ref.rollout.n, config.data.max_response_length)
    return [line] if line else []


_ALONE = {
    **dict.fromkeys(("grpo", "grpo_vectorized", "rloo", "opo"), "the reward as it is"),
    "gpg": "the reward as it is, scaled",
    "rloo_vectorized": "0 for every response, so that nothing is learned",
}
"""Estimator of verl's that compares a response with the others of its prompt -> its advantage where there are none."""


def _single_rollouts(config: DictConfig) -> list[str]:
    advantage = _ALONE.get(config.algorithm.adv_estimator)
    if config.actor_rollout_ref.rollout.n != 1 or advantage is None:
        return []
    return [
        f"actor_rollout_ref.rollout.n=1: with no other rollout of its prompt to compare with, a response's advantage "
        f"(algorithm.adv_estimator={config.algorithm.adv_estimator}) is {advantage}; use 4 or more"
    ]


def _check_additions(config: DictConfig) -> None:
    """What ``configs/flowrl.yaml`` adds to verl's ``algorithm`` section."""
    algorithm, rollouts = config.algorithm, config.actor_rollout_ref.rollout.n
    if algorithm.adv_estimator == "pass_at_k" and not 1 <= (algorithm.pass_k or 0) <= rollouts:
        raise UserError(
            f"algorithm.pass_k={algorithm.pass_k}: pass_at_k needs 1 to actor_rollout_ref.rollout.n={rollouts} attempts"
        )
    if algorithm.reference_reset_steps is not None:
        if not (config.actor_rollout_ref.actor.use_kl_loss or algorithm.use_kl_in_reward):
            raise UserError(
                f"algorithm.reference_reset_steps={algorithm.reference_reset_steps}: there is no reference to reset; "
                "set actor_rollout_ref.actor.use_kl_loss=true"
            )
        if config.actor_rollout_ref.model.lora_rank:
            raise UserError(
                f"algorithm.reference_reset_steps={algorithm.reference_reset_steps}: with LoRA the reference is the "
                "base model and can't be reset; unset one"
            )


def _check_contradictions(config: DictConfig) -> None:
    trainer, rollout = config.trainer, config.actor_rollout_ref.rollout
    if trainer.resume_from_path is not None and trainer.resume_mode != "resume_path":
        raise UserError(
            f"trainer.resume_from_path={trainer.resume_from_path} has no effect with trainer.resume_mode="
            f"{trainer.resume_mode}: set trainer.resume_mode=resume_path"
        )
    if trainer.val_only and not trainer.val_before_train:
        raise UserError("trainer.val_only=true needs trainer.val_before_train=true: the run would do nothing else")
    if config.deterministic:
        needed = {"agent.agent_loop_manager_class": SEEDED_ROLLOUTS, "enable_prefix_caching": False}
        for name, value in needed.items():
            if (given := OmegaConf.select(rollout, name)) != value:
                raise UserError(f"{_ROLLOUT}.{name}={given}: deterministic=true sets it to {value}; leave it out")
    engine = OmegaConf.select(config, f"{_ROLLOUT}.name")  # verl's default is "missing"
    longest = config.data.max_prompt_length + config.data.max_response_length
    for name in ("max_model_len", "max_num_batched_tokens"):
        limit = rollout[name]
        at_once = name == "max_model_len" or not rollout.enable_chunked_prefill
        if engine == "vllm" and at_once and limit is not None and limit < longest:
            raise UserError(
                f"{_ROLLOUT}.{name}={limit} is less than data.max_prompt_length + data.max_response_length = "
                f"{longest}: set it to {longest} or more"
            )


def _check_legacy_sections(config: DictConfig) -> None:
    for section, successor in _LEGACY.items():
        if given := _given(config[section], section):
            raise UserError(f"{given} has no effect in verl 0.9's V1 trainer: its options are under {successor}")


def _given(section: DictConfig, path: str) -> str | None:
    """The first option under ``path`` that has a value."""
    for name, value in section.items():
        if isinstance(value, DictConfig):
            if found := _given(value, f"{path}.{name}"):
                return found
        elif value is not None:
            return f"{path}.{name}={value}"
    return None


def _check_lora(config: DictConfig) -> None:
    model = config.actor_rollout_ref.model
    ranks = {"lora_rank": model.lora_rank, "lora.rank": model.lora.rank}
    for name, rank in ranks.items():
        if rank > LARGEST_LORA_RANK and config.actor_rollout_ref.rollout.name == "vllm":
            raise UserError(f"actor_rollout_ref.model.{name}={rank}: vLLM takes ranks up to {LARGEST_LORA_RANK}")


def _check_cpu(config: DictConfig) -> None:
    for key, (needed, reason) in _ON_CPU.items():
        value = OmegaConf.select(config, key)
        if value != needed:
            raise UserError(f"{key}={value} doesn't work with trainer.device=cpu ({reason}): set it to {needed}")
    model = config.actor_rollout_ref.model
    if model.use_fused_kernels and model.fused_kernel_options.impl_backend != "torch":
        raise UserError(
            f"actor_rollout_ref.model.fused_kernel_options.impl_backend={model.fused_kernel_options.impl_backend} "
            "doesn't work with trainer.device=cpu (its kernels need Triton): set it to torch"
        )
