"""A run's configuration -> that of its rehearsal: the same, but for the options set here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.preflight import resolved
from recipe.flowrl.rehearsal.inputs import Inputs

CPU = Path(__file__).resolve().parents[3] / "configs" / "cluster" / "cpu.yaml"

RESPONSE_TOKENS = 64
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

_NEEDS_AN_ACCELERATOR = {
    "trainer.nnodes": 1,
    f"{_WORKER}.model.use_fused_kernels": False,
    f"{_WORKER}.model.use_liger": False,
    f"{_WORKER}.model.enable_activation_offload": False,
    f"{_ACTOR}.ulysses_sequence_parallel_size": 1,
    f"{_ROLLOUT}.data_parallel_size": 1,
    f"{_ROLLOUT}.pipeline_model_parallel_size": 1,
    f"{_ROLLOUT}.expert_parallel_size": 1,
    f"{_ROLLOUT}.full_determinism": False,
    **{
        f"{engine}.{name}": False
        for engine in (f"{_ACTOR}.fsdp_config", f"{_WORKER}.ref.fsdp_config", "critic.fsdp")
        for name in ("param_offload", "optimizer_offload", "offload_policy")
    },
}
"""Beside what ``cluster=cpu`` sets."""


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
        "smaller": _sizes(real),
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
    """One rank on one machine without an accelerator; a run that is on CPUs keeps its ranks."""
    if real.trainer.device == "cpu":
        return {"trainer.nnodes": 1}
    overlay = dict(leaves(OmegaConf.to_container(OmegaConf.load(CPU), resolve=False)))
    values = {option: value for option, value in overlay.items() if option not in _SLOW_ONLY}
    if not _has_critic(real):
        values = {option: value for option, value in values.items() if not option.startswith("critic.")}
    if real.trainer.v1.trainer_mode == "separate_async":
        values["trainer.v1.trainer_mode"] = "colocate_async"
    return values | {key: value for key, value in _NEEDS_AN_ACCELERATOR.items() if OmegaConf.select(real, key)}


def _sizes(real: DictConfig) -> dict[str, Any]:
    """Fewer steps, prompts and tokens; as many updates a step and rollouts a prompt as in the run."""
    actor, rollout, data = real.actor_rollout_ref.actor, real.actor_rollout_ref.rollout, real.data
    updates = max(1, data.train_batch_size // actor.ppo_mini_batch_size)
    mini = max(1, min(actor.ppo_mini_batch_size, PROMPTS // updates))
    response = min(data.max_response_length, RESPONSE_TOKENS)
    longest = data.max_prompt_length + response
    values = {
        "trainer.total_training_steps": STEPS,
        "trainer.save_freq": STEPS,
        "trainer.test_freq": STEPS,
        "trainer.critic_warmup": min(real.trainer.critic_warmup, STEPS - 1),
        "data.train_batch_size": updates * mini,
        f"{_ACTOR}.ppo_mini_batch_size": mini,
        "data.max_response_length": response,
        f"{_ROLLOUT}.max_model_len": longest,
        "data.train_max_samples": _at_most(data.train_max_samples, max(TRAINING_ROWS, STEPS * updates * mini)),
        "data.val_max_samples": _at_most(data.val_max_samples, VALIDATION_ROWS),
        f"{_ROLLOUT}.val_kwargs.n": min(rollout.val_kwargs.n, VALIDATION_SAMPLES),
    }
    if data.gen_batch_size is not None:
        values["data.gen_batch_size"] = updates * mini
    if OmegaConf.select(real, "algorithm.filter_groups.enable"):
        # It would draw prompts until the policy, which knows nothing, is right about some of each group.
        values["algorithm.filter_groups.enable"] = False
    return values | _micro_batches(real, updates * mini * rollout.n, mini * rollout.n, longest)


def _micro_batches(real: DictConfig, sequences: int, mini_sequences: int, longest: int) -> dict[str, Any]:
    """The run's size where it divides; token budgets in proportion to the longest sequence.

    Args:
        real: the run's configuration, resolved.
        sequences, mini_sequences: the rehearsal's in a step and in a mini-batch.
        longest: the rehearsal's prompt and response.
    """
    values, shorter = {}, longest / (real.data.max_prompt_length + real.data.max_response_length)
    passes = {
        f"{_ACTOR}.ppo": mini_sequences,
        f"{_ROLLOUT}.log_prob": sequences,
        f"{_WORKER}.ref.log_prob": sequences,
    }
    passes |= {"critic.ppo": mini_sequences, "critic.forward": sequences} if _has_critic(real) else {}
    for prefix, whole in passes.items():
        tokens = OmegaConf.select(real, f"{prefix}_max_token_len_per_gpu")
        # At least a sequence: in the run, several ranks may share one.
        values[f"{prefix}_max_token_len_per_gpu"] = max(longest, round(tokens * shorter))
        size = OmegaConf.select(real, f"{prefix}_micro_batch_size_per_gpu")
        if size is not None:
            values[f"{prefix}_micro_batch_size_per_gpu"] = gcd(size, whole)
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
