"""Options of verl that the chosen loss doesn't read: each is named where it is set, so that none is taken and ignored.

What verl's losses read is taken from their source. FlowRL's objective reads none of these options, unless it has verl's
loss in it (``flowrl.ppo_coef``); its own are in ``flowrl``.
"""

import ast
import functools
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.preflight.schema import ReplayOptions
from verl_ext.source import verl_directory

_ACTOR = "actor_rollout_ref.actor"

LOSS_OPTIONS: dict[str, Any] = {
    "clip_ratio": 0.2,
    "clip_ratio_low": 0.2,
    "clip_ratio_high": 0.2,
    "clip_ratio_c": 3.0,
    "tau_pos": 1.0,
    "tau_neg": 1.05,
    "policy_loss.clip_cov_ratio": 2e-4,
    "policy_loss.clip_cov_lb": 1.0,
    "policy_loss.clip_cov_ub": 5.0,
    "policy_loss.kl_cov_ratio": 2e-4,
    "policy_loss.ppo_kl_coef": 0.1,
    "policy_loss.dro_beta": None,
    "loss_agg_mode": "token-mean",
}
"""Options of ``actor_rollout_ref.actor`` that some of verl's policy losses read -> verl's default.

One that still has its default isn't mentioned.
"""

BESIDE_THE_LOSS: dict[str, Any] = {
    "policy_loss.loss_mode": "vanilla",
    "loss_scale_factor": None,
    "entropy_coeff": 0,
    "use_kl_loss": False,
    "kl_loss_coef": 0.001,
    "kl_loss_type": "low_var_kl",
    "calculate_sum_pi_squared": False,
}
"""The same, of what verl adds to any policy loss of its own, and FlowRL doesn't."""

_ADVANTAGE_OPTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "algorithm.gamma": (1.0, ("gae", "reinforce_plus_plus")),
    "algorithm.lam": (1.0, ("gae",)),
}
"""Option -> verl's default, and the estimators that read it."""

_UNUSED: dict[str, tuple[Any, str]] = {
    "actor_rollout_ref.actor.use_prefix_grouper": (False, "verl's V1 trainer doesn't read it"),
    "actor_rollout_ref.actor.freeze_vision_tower": (False, "multimodal models aren't supported"),
    "actor_rollout_ref.actor.checkpoint.strict": (True, "FSDP's checkpoints are always read whole"),
    "actor_rollout_ref.actor.fsdp_config.dtype": ("bfloat16", "FSDP computes in fsdp_config.mixed_precision's"),
    "actor_rollout_ref.ref.fsdp_config.dtype": ("bfloat16", "FSDP computes in fsdp_config.mixed_precision's"),
    "actor_rollout_ref.ref.fsdp_config.optimizer_offload": (False, "a reference has no optimizer"),
    "actor_rollout_ref.rollout.over_sample_rate": (0, "verl's V1 trainer doesn't read it"),
    "actor_rollout_ref.rollout.multi_stage_wake_up": (False, "vLLM's rollout doesn't read it"),
    "algorithm.filter_groups.max_num_gen_batches": (0, "verl's V1 replay buffer doesn't read it"),
    "algorithm.use_pf_ppo": (False, "verl's V1 trainer doesn't read it"),
    "algorithm.pf_ppo.reweight_method": ("pow", "verl's V1 trainer doesn't read it"),
    "algorithm.pf_ppo.weight_pow": (2.0, "verl's V1 trainer doesn't read it"),
}
"""Options that nothing reads in verl 0.9.1's V1 trainer with vLLM -> verl's default, and why."""


_READ_INSTEAD: dict[str, tuple[str, Any]] = {
    "actor_rollout_ref.actor.grad_clip": ("actor_rollout_ref.actor.optim.clip_grad", 1.0),
    "actor_rollout_ref.actor.use_torch_compile": ("actor_rollout_ref.actor.fsdp_config.use_torch_compile", True),
    "actor_rollout_ref.ref.use_torch_compile": ("actor_rollout_ref.ref.fsdp_config.use_torch_compile", True),
    "actor_rollout_ref.actor.use_fused_kernels": ("actor_rollout_ref.model.use_fused_kernels", None),
    "actor_rollout_ref.actor.use_remove_padding": ("actor_rollout_ref.model.use_remove_padding", None),
    "actor_rollout_ref.actor.rollout_n": ("actor_rollout_ref.rollout.n", None),
    "actor_rollout_ref.ref.rollout_n": ("actor_rollout_ref.rollout.n", None),
}
"""Option that nothing reads -> the one that is read, and verl's default of the first (None: it follows the other)."""


_TURBO = {
    "fully_shard_parallel_size": 16,
    "tensor_parallel_size": 1,
    "expert_parallel_size": 1,
    "expert_fully_shard_parallel_size": 1,
    "ulysses_parallel_size": 1,
    "fsdp_plan": {
        "param_dtype": "bf16",
        "reduce_dtype": "fp32",
        "output_dtype": "bf16",
        "fsdp_implementation": "native",
        "num_to_forward_prefetch": 1,
        "num_to_backward_prefetch": 1,
    },
}
"""verl's ``fsdp_config.turbo_config.distributed``, which another engine reads."""


def check_loss_options(config: DictConfig) -> list[str]:
    """Name the options that are set and that the chosen loss and advantage don't read.

    Args:
        config: of the run, resolved.

    Returns:
        Warnings, one an option.
    """
    return [
        *_unread_by_the_loss(config),
        *_unread_by_the_advantage(config),
        *_unread_without_replay(config),
        *_unread_by_verl(config),
    ]


@functools.cache
def read_by_verls_losses() -> dict[str, frozenset[str]]:
    """Loss mode -> those of :data:`LOSS_OPTIONS` that verl's loss of that name reads, from the source."""
    tree = ast.parse((verl_directory() / "trainer" / "ppo" / "core_algos.py").read_text())
    found = {}
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        for decorator in function.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "register_policy_loss":
                found[ast.literal_eval(decorator.args[0])] = frozenset(_options_read(function))
    return found


def _options_read(function: ast.FunctionDef) -> Iterator[str]:
    """``config.NAME``, ``config.policy_loss.NAME``, ``config.get("NAME")``, and the argument ``loss_agg_mode``."""
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id == "loss_agg_mode":
            yield node.id
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("config.get", "config.policy_loss.get"):
            if node.args and isinstance(node.args[0], ast.Constant):
                text = f"{ast.unparse(node.func).removesuffix('.get')}.{ast.literal_eval(node.args[0])}"
        if text.removeprefix("config.") in LOSS_OPTIONS:
            yield text.removeprefix("config.")


def _unread_by_the_loss(config: DictConfig) -> Iterator[str]:
    actor = config.actor_rollout_ref.actor
    mode = actor.policy_loss.loss_mode
    if config.flowrl is not None and not config.flowrl.ppo_coef:
        reads: frozenset[str] = frozenset()
        whose, options = "FlowRL's objective, whose options are under flowrl", LOSS_OPTIONS | BESIDE_THE_LOSS
    elif mode in read_by_verls_losses():
        reads, whose, options = read_by_verls_losses()[mode], f"the loss {mode}", LOSS_OPTIONS
    else:  # another module's loss, which may read anything
        return
    for name, default in options.items():
        value = OmegaConf.select(actor, name)
        if value != default and name not in reads:
            yield f"{_ACTOR}.{name}={value} has no effect on {whose}"
    clips = [actor.clip_ratio_low, actor.clip_ratio_high]
    if "clip_ratio_low" in reads and None not in clips and actor.clip_ratio != 0.2 and actor.clip_ratio not in clips:
        yield (
            f"{_ACTOR}.clip_ratio={actor.clip_ratio} has no effect where clip_ratio_low={clips[0]} and "
            f"clip_ratio_high={clips[1]} are set, as they are by default: set those two"
        )
    if config.flowrl is None or config.flowrl.ppo_coef:
        if not actor.use_kl_loss and actor.kl_loss_coef != BESIDE_THE_LOSS["kl_loss_coef"]:
            yield f"{_ACTOR}.kl_loss_coef={actor.kl_loss_coef} has no effect without {_ACTOR}.use_kl_loss=true"
        if actor.loss_scale_factor is not None and actor.loss_agg_mode != "seq-mean-token-sum-norm":
            yield (
                f"{_ACTOR}.loss_scale_factor={actor.loss_scale_factor} has no effect with {_ACTOR}.loss_agg_mode="
                f"{actor.loss_agg_mode}: it belongs to seq-mean-token-sum-norm"
            )


def _unread_by_the_advantage(config: DictConfig) -> Iterator[str]:
    estimator = config.algorithm.adv_estimator
    for key, (default, readers) in _ADVANTAGE_OPTIONS.items():
        value = OmegaConf.select(config, key)
        if value != default and estimator not in readers:
            yield f"{key}={value} has no effect with algorithm.adv_estimator={estimator}"
    if not config.algorithm.use_kl_in_reward and config.algorithm.kl_ctrl.kl_coef != 0.001:
        yield (
            f"algorithm.kl_ctrl.kl_coef={config.algorithm.kl_ctrl.kl_coef} has no effect without "
            "algorithm.use_kl_in_reward=true"
        )


def _unread_without_replay(config: DictConfig) -> Iterator[str]:
    given, unset = config.algorithm.replay, ReplayOptions()
    if given.share is None:
        for name in ("size", "reward_temperature", "half_life"):
            if given[name] != getattr(unset, name):
                yield f"algorithm.replay.{name}={given[name]} has no effect without algorithm.replay.share"


def _unread_by_verl(config: DictConfig) -> Iterator[str]:
    for key, (default, why) in _UNUSED.items():
        value = OmegaConf.select(config, key)
        if value != default:
            yield f"{key}={value} has no effect: {why}"
    for key, (read, default) in _READ_INSTEAD.items():
        value, other = OmegaConf.select(config, key), OmegaConf.select(config, read)
        if value not in (None, other, default):
            yield f"{key}={value} has no effect: verl reads {read}, which is {other}"
    for role in ("actor", "ref"):
        key = f"actor_rollout_ref.{role}.fsdp_config.turbo_config.distributed"
        if OmegaConf.select(config, key, default=_TURBO) != _TURBO:
            yield f"{key} has no effect: it belongs to verl's fsdp_turbo, an engine that isn't supported"
