"""A run's configuration -> that of its rehearsal: the same, but for the options set here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.project import CONFIG_DIR
from recipe.flowrl.preflight import resolved
from recipe.flowrl.preflight.separate import CHANNEL, OWN_SOCKETS, is_separate
from recipe.flowrl.rehearsal.inputs import RESPONSE_TOKENS, Inputs, longest_of
from verl_ext.replay_memory import earlier_of

CPU = CONFIG_DIR / "cluster" / "cpu.yaml"

PROMPTS = 16
"""Of a step, unless a step has more updates."""
STEPS = 2
TRAINING_ROWS, VALIDATION_ROWS, VALIDATION_SAMPLES = 256, 8, 2

_WORKER, _ACTOR, _ROLLOUT = "actor_rollout_ref", "actor_rollout_ref.actor", "actor_rollout_ref.rollout"

_SLOW_ONLY = {
    f"{model}.{name}"
    for model in (f"{_WORKER}.model", "critic.model")
    for name in ("enable_gradient_checkpointing", "use_remove_padding")
}
"""Options of ``cluster=cpu`` that are there for speed: the run's own value works, so it is what is rehearsed."""

_ENGINES = (f"{_ACTOR}.fsdp_config", f"{_WORKER}.ref.fsdp_config", "critic.fsdp")

_NEEDS_CUDA = {
    f"{_WORKER}.model.fused_kernel_options.impl_backend": ("torch", "the other kernels are Triton's"),
    f"{_WORKER}.model.use_liger": (False, "its kernels are Triton's"),
    f"{_WORKER}.model.enable_activation_offload": (False, "it copies in CUDA streams"),
    f"{_ACTOR}.ulysses_sequence_parallel_size": (1, "it exchanges heads inside flash attention, a CUDA kernel"),
    f"{_ROLLOUT}.data_parallel_size": (1, "a vLLM engine has one rank here"),
    f"{_ROLLOUT}.pipeline_model_parallel_size": (1, "a vLLM engine has one rank here"),
    f"{_ROLLOUT}.expert_parallel_size": (1, "a vLLM engine has one rank here"),
    f"{_ROLLOUT}.full_determinism": (False, "its kernels are Triton's"),
    **{f"{engine}.offload_policy": (False, "it pins memory for CUDA") for engine in _ENGINES},
}
"""Beside what ``cluster=cpu`` sets: option -> its value here, and why."""

_WHY = {
    f"{_WORKER}.model.override_config.attn_implementation": "flash attention is a CUDA kernel; packed batches stay",
    f"{_ROLLOUT}.free_cache_engine": "vLLM's sleep mode is CUDA's",
    f"{_ROLLOUT}.enable_sleep_mode": "vLLM's sleep mode is CUDA's",
    f"{_ROLLOUT}.enforce_eager": "CUDA graphs",
    f"{_ROLLOUT}.tensor_model_parallel_size": "a vLLM engine has one rank here",
    f"{_ROLLOUT}.checkpoint_engine.backend": "it sends weights from GPU to GPU",
} | {option: why for option, (_, why) in _NEEDS_CUDA.items()}

RANKS = 2
"""At most, whatever the run has."""


@dataclass(frozen=True)
class Change:
    """An option that the rehearsal has otherwise than the run; None: not set."""

    option: str
    run: Any
    rehearsal: Any


Settings = Mapping[str, Mapping[str, Any]]
"""Why -> option -> value."""


def settings(real: DictConfig, inputs: Inputs) -> Settings:
    """The options that a rehearsal sets.

    Args:
        real: the run's configuration, resolved.
        inputs: the model and the data that it gets instead of the run's.
    """
    groups = {
        "smaller": _sizes(real, inputs),
        "what goes in": _what_goes_in(real, inputs),
        "what comes out, each time anew": _places(real),
    }
    decided = {option for group in groups.values() for option in group}
    platform = {option: value for option, value in _platform(real).items() if option not in decided}
    return groups | {"without an accelerator": platform}


def rehearsal_of(config: DictConfig, settings: Settings) -> DictConfig:
    """The configuration with these settings; ``config`` itself, which isn't resolved, stays.

    Options that follow others follow them in the rehearsal as well.
    """
    rehearsal = config.copy()
    OmegaConf.set_struct(rehearsal, False)
    for option, value in (setting for group in settings.values() for setting in group.items()):
        OmegaConf.update(rehearsal, option, value, force_add=True)
    return rehearsal


def changes(config: DictConfig, rehearsal: DictConfig) -> list[Change]:
    """Every option whose value differs between the two, in the order of the rehearsal's."""
    before, after = (dict(leaves(OmegaConf.to_container(resolved(side)))) for side in (config, rehearsal))
    names = dict.fromkeys([*after, *before])
    return [Change(n, before.get(n), after.get(n)) for n in names if _or_none(before.get(n)) != _or_none(after.get(n))]


def switched_off(changes: list[Change]) -> Iterator[str]:
    """A line for each option that the rehearsal hasn't got because it needs CUDA itself."""
    for change in changes:
        if change.option in _WHY:
            yield f"not here: {change.option}={change.run or 'its default'}: {_WHY[change.option]}"


def leaves(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in ``section`` that is no section itself, or an empty one."""
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _or_none(value: Any) -> Any:
    return None if value == {} else value


def _platform(real: DictConfig) -> dict[str, Any]:
    """Up to two ranks on one machine without an accelerator; a run that is on CPUs keeps its ranks."""
    if real.trainer.device == "cpu":
        return {"trainer.nnodes": 1}
    overlay = dict(leaves(OmegaConf.to_container(OmegaConf.load(CPU), resolve=False)))
    values = {option: value for option, value in overlay.items() if option not in _SLOW_ONLY}
    if not _has_critic(real):
        values = {option: value for option, value in values.items() if not option.startswith("critic.")}
    if is_separate(real):
        channel = f"{_ROLLOUT}.checkpoint_engine"
        values |= {f"{_WORKER}.hybrid_engine": False, f"{_ROLLOUT}.nnodes": 1, f"{_ROLLOUT}.n_gpus_per_node": 1}
        values |= {f"{channel}.backend": OWN_SOCKETS, f"{channel}.custom_backend_module": CHANNEL}
    values |= {"trainer.nnodes": 1, "trainer.n_gpus_per_node": _ranks(real)}
    return values | {key: value for key, (value, _) in _NEEDS_CUDA.items() if OmegaConf.select(real, key)}


def _ranks(real: DictConfig) -> int:
    """As many as the run has, on GPUs up to :data:`RANKS` and fewer where a mini-batch can't be shared among them."""
    if real.trainer.device == "cpu":
        return real.trainer.n_gpus_per_node
    ranks = min(RANKS, real.trainer.nnodes * real.trainer.n_gpus_per_node)
    return gcd(ranks, _mini_batch(real) * real.actor_rollout_ref.rollout.n)


def _updates(real: DictConfig) -> int:
    return max(1, real.data.train_batch_size // real.actor_rollout_ref.actor.ppo_mini_batch_size)


def _mini_batch(real: DictConfig) -> int:
    """The rehearsal's, in prompts; with replay two or more, some of which are earlier ones."""
    least = 1 if real.algorithm.replay.share is None else 2
    return max(least, min(real.actor_rollout_ref.actor.ppo_mini_batch_size, PROMPTS // _updates(real)))


def _sizes(real: DictConfig, inputs: Inputs) -> dict[str, Any]:
    """Fewer steps, prompts and tokens; as many updates a step and rollouts a prompt as in the run."""
    rollout, data = real.actor_rollout_ref.rollout, real.data
    updates, mini = _updates(real), _mini_batch(real)
    response, longest = min(data.max_response_length, RESPONSE_TOKENS), longest_of(real)
    # As in the run, where the model's own context is shorter than what the data may need.
    context = longest if not 0 < inputs.own_positions < longest else rollout.max_model_len
    values = {
        "trainer.total_training_steps": STEPS,
        "trainer.save_freq": STEPS,
        "trainer.test_freq": STEPS,
        "trainer.critic_warmup": min(real.trainer.critic_warmup, STEPS - 1),
        "data.train_batch_size": updates * mini,
        f"{_ACTOR}.ppo_mini_batch_size": mini,
        "data.max_response_length": response,
        f"{_ROLLOUT}.max_model_len": context,
        "data.train_max_samples": _at_most(data.train_max_samples, max(TRAINING_ROWS, STEPS * updates * mini)),
        "data.val_max_samples": _at_most(data.val_max_samples, VALIDATION_ROWS),
        f"{_ROLLOUT}.val_kwargs.n": min(rollout.val_kwargs.n, VALIDATION_SAMPLES),
    }
    if data.gen_batch_size is not None:
        values["data.gen_batch_size"] = updates * mini
    if OmegaConf.select(real, "algorithm.filter_groups.enable"):
        # It would draw prompts until the policy, which knows nothing, is right about some of each group.
        values["algorithm.filter_groups.enable"] = False
    alone = updates * mini  # prompts of the smallest pass that the reference has
    if (share := real.algorithm.replay.share) is not None:
        share = share if 0 < earlier_of(mini, share) < mini else 1 / mini
        values["algorithm.replay.share"] = share
        alone = gcd(mini, mini - earlier_of(mini, share))
    return values | _micro_batches(real, updates * mini * rollout.n, mini * rollout.n, alone * rollout.n, longest)


def _micro_batches(
    real: DictConfig, sequences: int, mini_sequences: int, reference_sequences: int, longest: int
) -> dict[str, Any]:
    """The run's size where it divides; token budgets in proportion to the longest sequence.

    Args:
        real: the run's configuration, resolved.
        sequences, mini_sequences, reference_sequences: the rehearsal's in a step, in a mini-batch, and what divides
            each pass of the reference, over all ranks.
        longest: the rehearsal's prompt and response.
    """
    values, shorter = {}, longest / (real.data.max_prompt_length + real.data.max_response_length)
    passes = {
        f"{_ACTOR}.ppo": mini_sequences,
        f"{_ROLLOUT}.log_prob": sequences,
        f"{_WORKER}.ref.log_prob": reference_sequences,
    }
    passes |= {"critic.ppo": mini_sequences, "critic.forward": sequences} if _has_critic(real) else {}
    for prefix, whole in passes.items():
        tokens = OmegaConf.select(real, f"{prefix}_max_token_len_per_gpu")
        # At least a sequence: in the run, several ranks may share one.
        values[f"{prefix}_max_token_len_per_gpu"] = max(longest, round(tokens * shorter))
        size = OmegaConf.select(real, f"{prefix}_micro_batch_size_per_gpu")
        if size is not None:
            values[f"{prefix}_micro_batch_size_per_gpu"] = gcd(size, whole // _ranks(real))
    return values


def _has_critic(real: DictConfig) -> bool:
    return real.algorithm.adv_estimator == "gae" or bool(real.critic.enable)


def _at_most(limit: int, rows: int) -> int:
    return min(limit, rows) if limit > 0 else rows


def _places(real: DictConfig) -> dict[str, Any]:
    """A directory of its own, always from scratch."""
    return {
        "run_dir": f"{str(real.run_dir).rstrip('/')}-rehearsal",
        "trainer.default_local_dir": "${run_dir}/checkpoints",
        "trainer.rollout_data_dir": "${run_dir}/rollouts",
        "trainer.validation_data_dir": "${run_dir}/validation",
        "trainer.resume_mode": "disable",
        "trainer.resume_from_path": None,
    }


def _what_goes_in(real: DictConfig, inputs: Inputs) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if inputs.policy is not None:
        values["prepare.model"] = inputs.policy.name
        values[f"{_WORKER}.model.path"] = str(Path(real.cache_dir) / inputs.policy.name)
        values[f"{_WORKER}.model.tokenizer_path"] = None
        key = f"{_ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes"
        values[key] = max(OmegaConf.select(OmegaConf.load(CPU), key), inputs.policy.largest_tensor_megabytes)
        if _has_critic(real):
            values["critic.model.path"] = values["critic.model.tokenizer_path"] = f"${{{_WORKER}.model.path}}"
    if inputs.sample is not None:
        sample = Path(real.cache_dir) / inputs.sample.name
        values["prepare.data"] = inputs.sample.name
        for key in ("train_files", "val_files"):
            given = real.data[key]
            names = [str(sample / Path(name).name) for name in ([given] if isinstance(given, str) else given)]
            values[f"data.{key}"] = names[0] if isinstance(given, str) else names
    return values
